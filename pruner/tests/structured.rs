//! Whole heads and neurons: the cut against the masked model, budgets, searches that are killed, and what is refused.

mod common;

use common::{decoder, spread};
use lacuna::model::Weight;
use lacuna::{Decoder, DecoderOptions, Model};
use lacuna_prune::Calibration;
use lacuna_prune::latency::{LatencyTable, MeasuredAttention, MeasuredLayer, Reading};
use lacuna_prune::search::{Event, Evolution, SearchSettings, Stage, tidy};
use lacuna_prune::structured::{
    Accumulation, HeadMode, Kind, LatencyBudget, Limit, Local, Outcome, Score, Spread, Structured,
};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Runs until it ends, killed at event `first`, then each time `step` later; and how often it was killed.
fn killed_and_again(
    settings: &Structured,
    model: &Model,
    work: &Path,
    first: usize,
    step: usize,
) -> (Outcome, usize) {
    let mut times = 0;
    loop {
        let mut events = 0;
        let die = AssertUnwindSafe(|| {
            settings.run(model, &tokens(600), "a model", work, &mut |_: Event| {
                events += 1;
                assert!(events != first + step * times, "killed");
            })
        });
        match catch_unwind(die) {
            Ok(done) => return (done.unwrap(), times),
            Err(_) => times += 1,
        }
    }
}

fn tokens(n: usize) -> Vec<u32> {
    let values = spread(n, 1.0, 99);
    (values.iter())
        .map(|v| (v.abs().powi(3) * 49.9) as u32)
        .collect()
}

fn settings(sparsity: f64) -> Structured {
    Structured {
        schema: 1,
        sparsity,
        latency: None,
        heads: HeadMode::Query,
        accumulation: Accumulation::Expectation,
        local: Local::default(),
        spread: Spread::Even,
        calibration: Calibration {
            windows: 12,
            window: 10,
            held_out: 4,
            ..Calibration::default()
        },
        search: None,
        widths: BTreeMap::new(),
    }
}

fn searched(sparsity: f64) -> Structured {
    let stage = |tokens, keep| Stage { tokens, keep };
    Structured {
        search: Some(SearchSettings {
            rounds: 2,
            interval: 0.25,
            levels: 2,
            windows: 8,
            top: 16,
            evolution: Evolution {
                generations: 3,
                offspring: 5,
                swaps: 3,
                surrogate: sparsity > 0.35,
                stages: vec![stage(20, 2), stage(60, 1)],
            },
        }),
        ..settings(sparsity)
    }
}

fn run(settings: &Structured, model: &Model, work: &Path) -> Result<Outcome, String> {
    let done = settings.run(model, &tokens(600), "a model", work, &mut |_| {});
    done.map_err(|e| e.to_string())
}

fn widths(list: &[(&str, usize)]) -> BTreeMap<String, usize> {
    list.iter().map(|(n, w)| (n.to_string(), *w)).collect()
}

fn logits(model: &Model, chunk: usize) -> Vec<f32> {
    let options = DecoderOptions {
        threads: 1,
        capacity: 32,
        chunk,
        all_logits: true,
        round_inputs: Some(false),
        ..DecoderOptions::default()
    };
    let mut decoder = Decoder::new(model, options).unwrap();
    let mut all = Vec::new();
    let read = |_, row: &[f32]| all.extend_from_slice(row);
    decoder.score(&tokens(23), read).unwrap();
    all
}

/// The model with zeros where the outcome cut, and the weights that it fitted.
fn masked(model: &Model, done: &Outcome) -> Model {
    let mut masked = model.clone();
    for module in &done.modules {
        let width = if module.kind == Kind::Attention { 6 } else { 1 };
        let (rows, cols) = model.weights()[&module.weight].matrix();
        let mut values = vec![0f32; rows * cols];
        // Heads with as many left beside them stand first where the cut has them.
        let mut order = module.kept.clone();
        if module.kind == Kind::Attention {
            let left = |h: usize| module.kept.iter().filter(|k| **k / 2 == h / 2).count();
            order.sort_by_key(|&h| (std::cmp::Reverse(left(h)), h));
        }
        let columns: Vec<usize> = (order.iter())
            .flat_map(|u| u * width..(u + 1) * width)
            .collect();
        if let Some(left) = done.model.weights().get(&module.weight) {
            assert_eq!(left.shape(), [rows, columns.len()]);
            let left = left.to_f32().unwrap();
            for (row, left) in values.chunks_mut(cols).zip(left.chunks(columns.len())) {
                columns.iter().zip(left).for_each(|(&c, v)| row[c] = *v);
            }
        }
        let weight = Weight::from_f32(&[rows, cols], &values);
        masked.set_weight(&module.weight, weight).unwrap();
    }
    masked
}

#[test]
fn the_cut_computes_what_the_masked_model_does() {
    let model = decoder();
    let dir = tempfile::tempdir().unwrap();
    for (mode, list) in [
        (
            HeadMode::Query,
            vec![("0.o", 3), ("1.o", 1), ("0.down", 17)],
        ),
        (HeadMode::Query, vec![("0.o", 2), ("1.o", 0), ("1.down", 1)]),
        (HeadMode::Query, vec![("0.o", 0), ("0.down", 0), ("1.o", 3)]),
        (HeadMode::KvGroup, vec![("0.o", 2), ("1.down", 39)]),
        (HeadMode::Equal, vec![("0.o", 2), ("1.o", 4), ("1.down", 0)]),
    ] {
        let settings = Structured {
            heads: mode,
            widths: widths(&list),
            ..settings(0.0)
        };
        let done = run(&settings, &model, dir.path()).unwrap();
        for (name, width) in &list {
            let module = done.modules.iter().find(|m| m.weight == *name).unwrap();
            assert_eq!(module.kept.len(), *width);
        }
        let masked = masked(&model, &done);
        for module in &done.modules {
            let [own, given] =
                [&masked, &done.masked].map(|m| m.weights()[&module.weight].to_f32());
            assert_eq!(own, given);
        }
        for chunk in [1, 8] {
            let (cut, whole) = (logits(&done.model, chunk), logits(&masked, chunk));
            let most = whole.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (c, w) in cut.iter().zip(&whole) {
                assert!((c - w).abs() <= 1e-5 * most, "{list:?}: {c} is not {w}");
            }
        }
        let path = dir.path().join("cut.safetensors");
        done.model.save(&path).unwrap();
        let opened = Model::open(&path).unwrap();
        assert_eq!(logits(&opened, 8), logits(&done.model, 8));
        let left: usize = opened.weights().values().map(Weight::numel).sum();
        let all: usize = model.weights().values().map(Weight::numel).sum();
        // Norms of modules that are gone leave too, beyond the parameters of the modules.
        let gone = done.parameters[0] - done.parameters[1];
        assert!((gone..=gone + 100).contains(&(all - left)));
    }
}

#[test]
fn a_search_keeps_its_budget_replays_and_goes_on_after_a_kill() {
    let model = decoder();
    let dir = tempfile::tempdir().unwrap();
    let settings = searched(0.4);
    let bytes = |done: &Outcome| {
        let path = dir.path().join("m.safetensors");
        done.model.save(&path).unwrap();
        std::fs::read(path).unwrap()
    };
    let whole = dir.path().join("whole");
    let done = run(&settings, &model, &whole).unwrap();
    let [_, after, target] = done.parameters;
    // A neuron has 72 parameters.
    assert!(after.abs_diff(target) <= 72, "{after} of {target}");
    let log = std::fs::read_to_string(whole.join("evaluations.jsonl")).unwrap();
    assert!(log.lines().count() >= 2 * 3 * (5 + 3) / 2);
    assert_eq!(done.rounds.len(), 2);
    for history in done.rounds.iter().map(|r| &r.history) {
        assert!(history.len() == 3 && history.iter().all(|d| *d > 0.0));
    }
    let replayed = run(&done.settings, &model, dir.path()).unwrap();
    assert_eq!(bytes(&replayed), bytes(&done));
    let read = Structured::from_toml(&done.settings.to_toml()).unwrap();
    assert_eq!(read, done.settings);
    // Killed at one event or another, each time a little later.
    let killed = dir.path().join("killed");
    let (again, times) = killed_and_again(&settings, &model, &killed, 4, 2);
    assert!(times > 3, "{times}");
    assert_eq!(bytes(&again), bytes(&done));
    let other = std::fs::read_to_string(killed.join("evaluations.jsonl")).unwrap();
    assert_eq!(other, log);
    let e = run(&searched(0.5), &model, &killed).unwrap_err();
    assert!(e.contains("killed") && e.contains("another model"), "{e}");
    tidy(&killed, 2).unwrap();
    assert!(!killed.join("round-2").exists() && killed.join("evaluations.jsonl").exists());
}

/// Times in proportion to the elements of a layer, those of a prompt ten times as long, and to heads.
fn table(model: &Model) -> LatencyTable {
    let sizes = |n: usize| vec![n / 4, n / 2, n];
    let times = |first: &[usize], second: &[usize], each: f64| -> Vec<Vec<f64>> {
        let row = |a: &usize| second.iter().map(|b| each * (a * b) as f64).collect();
        first.iter().map(row).collect()
    };
    let layers: Vec<MeasuredLayer> = (model.prunable().iter())
        .filter(|(name, _)| *name != "head")
        .map(|(name, _)| {
            let shape = model.weights()[*name].shape();
            let (first, second) = (sizes(shape[0]), sizes(shape[1]));
            MeasuredLayer {
                weight: name.to_string(),
                ms: times(&first, &second, 1e-3),
                prompt_ms: times(&first, &second, 1e-2),
                first,
                second,
            }
        })
        .collect();
    let attentions = (0..2).map(|b| MeasuredAttention {
        node: format!("node {b}.a"),
        keys: vec![1, 2],
        queries: vec![1, 2],
        ms: times(&[1, 2], &[1, 2], 0.1),
        prompt_ms: times(&[1, 2], &[1, 2], 1.0),
    });
    let full: f64 = layers.iter().map(|l| l.ms[2][2]).sum::<f64>() + 2.0 * 0.4;
    LatencyTable {
        schema: 1,
        layers,
        attentions: attentions.collect(),
        whole_ms: Some([full + 2.0, 10.0 * full + 2.0]),
    }
}

#[test]
fn a_budget_of_milliseconds_is_kept_and_says_what_it_came_to() {
    let model = decoder();
    let dir = tempfile::tempdir().unwrap();
    let table = table(&model);
    let settings = |of, limit, heads| Structured {
        heads,
        latency: Some(LatencyBudget {
            limit,
            of,
            table: table.clone(),
        }),
        ..searched(0.0)
    };
    for (at, (of, limit, heads)) in [
        (Reading::Token, Limit::Share(0.7), HeadMode::Query),
        (Reading::Prompt, Limit::Milliseconds(60.0), HeadMode::Query),
        (Reading::Token, Limit::Share(0.6), HeadMode::KvGroup),
    ]
    .into_iter()
    .enumerate()
    {
        let work = dir.path().join(at.to_string());
        let settings = settings(of, limit, heads);
        let done = run(&settings, &model, &work).unwrap();
        let found = done.latency.unwrap();
        let [before, after, most] = found.ms;
        let whole = table.whole_ms.unwrap()[usize::from(of == Reading::Prompt)];
        assert!((before - whole).abs() < 1e-9 * whole);
        // By hand, from what is left: layers in proportion to their elements, attentions to their query heads.
        let each = if of == Reading::Prompt { 1e-2 } else { 1e-3 };
        let mut sum = found.rest_ms;
        for m in done.modules.iter().filter(|m| !m.kept.is_empty()) {
            let n = m.kept.len();
            sum += each
                * match m.kind {
                    Kind::Mlp => (3 * 24 * n.max(10)) as f64,
                    Kind::Attention => {
                        let mut keys: Vec<usize> = m.kept.iter().map(|h| h / 2).collect();
                        keys.dedup();
                        (2 * 24 * 6 * n + 2 * 24 * 6 * keys.len()) as f64 + 100.0 * n as f64
                    }
                };
        }
        assert!((sum - after).abs() < 1e-6 * sum, "{sum} {after}");
        // A neuron takes 0.072 of a token's milliseconds.
        let step = 72.0 * each;
        assert!(
            after <= most + step && after > most - 3.0 * step,
            "{:?}",
            found.ms
        );
        assert!(done.parameters[1] < done.parameters[0]);
        let again = run(&done.settings, &model, dir.path()).unwrap();
        assert_eq!(again.modules, done.modules);
        assert!(done.settings.latency.is_none());
        if at == 0 {
            let killed = dir.path().join("killed");
            let (again, times) = killed_and_again(&settings, &model, &killed, 6, 4);
            assert!(times > 2 && again.settings == done.settings);
        }
    }
    let refused = |change: &dyn Fn(&mut LatencyBudget), words: &[&str]| {
        let mut settings = settings(Reading::Token, Limit::Share(0.5), HeadMode::Query);
        change(settings.latency.as_mut().unwrap());
        let e = run(&settings, &model, dir.path()).unwrap_err();
        assert!(words.iter().all(|w| e.contains(w)), "{e}");
    };
    refused(
        &|l| l.table.layers.retain(|l| l.weight != "1.up"),
        &["`1.up`"],
    );
    refused(&|l| l.table.attentions.truncate(1), &["`node 1.a`"]);
    refused(&|l| l.table.whole_ms = None, &["no language model"]);
    refused(
        &|l| l.limit = Limit::Milliseconds(1.0),
        &["1.000 ms", "2.000"],
    );
    refused(
        &|l| l.limit = Limit::Milliseconds(99.0),
        &["99.000 ms", "as it is"],
    );
}

#[test]
fn some_attention_is_always_left() {
    let model = decoder();
    let dir = tempfile::tempdir().unwrap();
    let heads = |done: &Outcome| -> usize {
        let attentions = done.modules.iter().filter(|m| m.kind == Kind::Attention);
        attentions.map(|m| m.kept.len()).sum()
    };
    // Hardly any head fits into what is left, and candidates without one would be runnable but no decoders.
    for sparsity in [0.85, 0.9] {
        let mut settings = searched(sparsity);
        settings.search.as_mut().unwrap().interval = 0.25;
        let done = run(&settings, &model, &dir.path().join(sparsity.to_string())).unwrap();
        assert!(heads(&done) > 0, "{:?}", done.settings.widths);
        assert_eq!(logits(&done.model, 8).len(), 23 * 50);
        let even = run(
            &Structured {
                search: None,
                ..settings
            },
            &model,
            dir.path(),
        )
        .unwrap();
        assert!(heads(&even) > 0);
        logits(&even.model, 8);
    }
    // A head has more than what is to be left.
    let e = run(&settings(0.95), &model, dir.path()).unwrap_err();
    assert!(e.contains("461 of 9216"), "{e}");
    let none = Structured {
        widths: widths(&[("0.o", 0), ("1.o", 0)]),
        ..settings(0.5)
    };
    let e = run(&none, &model, dir.path()).unwrap_err();
    assert!(e.contains("no attention is left"), "{e}");
    let blocks = Structured {
        spread: Spread::Blocks,
        ..settings(0.99)
    };
    match run(&blocks, &model, dir.path()) {
        Ok(done) => assert!(heads(&done) > 0),
        Err(e) => assert!(e.contains("are to be left"), "{e}"),
    }
}

#[test]
fn threads_do_not_change_the_result() {
    let model = decoder();
    let dir = tempfile::tempdir().unwrap();
    let one = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let work = dir.path().join(threads.to_string());
        let done = pool
            .build()
            .unwrap()
            .install(|| run(&searched(0.3), &model, &work));
        let done = done.unwrap();
        (done.settings, done.modules)
    };
    assert_eq!(one(1), one(3));
}

#[test]
fn a_block_file_that_is_broken_is_made_again() {
    let model = decoder();
    let dir = tempfile::tempdir().unwrap();
    let settings = searched(0.4);
    let done = run(&settings, &model, dir.path()).unwrap();
    let state = dir.path().join("round-2.json");
    std::fs::remove_file(state).unwrap();
    let block = dir.path().join("round-2/block-000.safetensors");
    let whole = std::fs::read(&block).unwrap();
    std::fs::write(&block, &whole[..whole.len() / 2]).unwrap();
    std::fs::write(dir.path().join("teacher.safetensors"), b"no").unwrap();
    let again = run(&settings, &model, dir.path()).unwrap();
    assert_eq!(std::fs::read(&block).unwrap(), whole);
    assert_eq!(again.settings, done.settings);
}

#[test]
fn uniform_methods_reach_the_same_parameters() {
    let model = decoder();
    let dir = tempfile::tempdir().unwrap();
    for score in [Score::Obs, Score::Code, Score::Paper, Score::Wanda] {
        for (heads, sparsity) in [
            (HeadMode::Query, 0.37),
            (HeadMode::KvGroup, 0.25),
            (HeadMode::Equal, 0.5),
        ] {
            let settings = Structured {
                heads,
                local: Local {
                    score,
                    ..Local::default()
                },
                ..settings(sparsity)
            };
            let done = run(&settings, &model, dir.path()).unwrap();
            let [_, after, target] = done.parameters;
            assert!(after.abs_diff(target) <= 72, "{score:?} {heads:?}");
            assert!(done.errors.iter().all(|e| e.held_out.is_some()));
        }
    }
}

/// How far the logits of the cut are from those of the masked model, as a share of the largest.
fn gap(done: &Outcome) -> f32 {
    let (cut, whole) = (logits(&done.model, 8), logits(&done.masked, 8));
    let most = whole.iter().fold(0f32, |m, v| m.max(v.abs()));
    let pairs = cut.iter().zip(&whole);
    pairs.fold(0f32, |m, (c, w)| m.max((c - w).abs())) / most
}

#[test]
fn flap_ranks_across_modules_and_keeps_the_means_of_what_goes() {
    let model = decoder();
    let dir = tempfile::tempdir().unwrap();
    for (heads, sparsity) in [
        (HeadMode::Query, 0.4),
        (HeadMode::KvGroup, 0.25),
        (HeadMode::Equal, 0.5),
        (HeadMode::Query, 0.9),
    ] {
        let settings = Structured {
            heads,
            local: Local {
                score: Score::Fluctuation,
                ..Local::default()
            },
            spread: Spread::Ranked,
            ..settings(sparsity)
        };
        let done = run(&settings, &model, dir.path()).unwrap();
        let [_, after, target] = done.parameters;
        assert!(
            after.abs_diff(target) <= 400,
            "{heads:?}: {after}, {target}"
        );
        let mut shares: Vec<f64> = (done.modules.iter())
            .map(|m| m.kept.len() as f64 / m.units as f64)
            .collect();
        shares.sort_by(f64::total_cmp);
        assert!(shares[0] < shares[shares.len() - 1], "{shares:?}");
        for m in done.modules.iter().filter(|m| m.kept.len() < m.units) {
            assert!(
                done.masked
                    .weights()
                    .contains_key(&format!("{}.bias", m.weight))
            );
        }
        assert!(gap(&done) <= 1e-5);
        // What stays is untouched, and its mean makes the error smaller than that of the same without a bias.
        let bare = Structured {
            local: Local {
                score: Score::Wanda,
                ..Local::default()
            },
            ..settings.clone()
        };
        let bare = run(&bare, &model, dir.path()).unwrap();
        for ((m, e), (b, f)) in
            (done.modules.iter().zip(&done.errors)).zip(bare.modules.iter().zip(&bare.errors))
        {
            if m.kept == b.kept && m.kept.len() < m.units {
                assert!(e.fitted < f.fitted, "{}", m.weight);
            }
        }
        let again = run(&done.settings, &model, dir.path()).unwrap();
        assert_eq!(logits(&again.model, 8), logits(&done.model, 8));
    }
}

#[test]
fn blocks_are_dropped_whole_and_of_the_last_what_comes_nearest() {
    let model = decoder();
    let dir = tempfile::tempdir().unwrap();
    let settings = |sparsity| Structured {
        local: Local {
            score: Score::Wanda,
            ..Local::default()
        },
        spread: Spread::Blocks,
        ..settings(sparsity)
    };
    let done = run(&settings(0.5), &model, dir.path()).unwrap();
    let kept: Vec<usize> = done.modules.iter().map(|m| m.kept.len()).collect();
    assert!(kept[..2] == [0, 0] || kept[2..] == [0, 0], "{kept:?}");
    assert!(kept.iter().filter(|k| **k > 0).count() == 2, "{kept:?}");
    assert!(gap(&done) <= 1e-5);
    let attention = |d: &Outcome| d.model.graph().nodes.len();
    assert!(attention(&done) < model.graph().nodes.len());
    // No block, attention or MLP comes near a twentieth.
    let e = run(&settings(0.05), &model, dir.path()).unwrap_err();
    assert!(e.contains("parameters are to be left"), "{e}");
}

#[test]
fn what_cannot_be_is_refused_with_the_value() {
    let model = decoder();
    let dir = tempfile::tempdir().unwrap();
    let refused = |settings: Structured, words: &[&str]| {
        let e = run(&settings, &model, dir.path()).unwrap_err();
        assert!(words.iter().all(|w| e.contains(w)), "{e}");
    };
    refused(settings(1.0), &["sparsity 1"]);
    let mut short = settings(0.5);
    short.calibration.windows = 1000;
    refused(short, &["600 tokens", "1004 are asked for"]);
    let with = |list| Structured {
        widths: widths(list),
        ..settings(0.5)
    };
    refused(with(&[("0.q", 2)]), &["`0.q`", "reads no heads"]);
    refused(with(&[("0.o", 5)]), &["`0.o` = 5", "it has 4"]);
    let mut none = searched(0.5);
    none.search.as_mut().unwrap().rounds = 0;
    refused(none, &["rounds"]);
    let linear = common::linears(vec![Weight::from_f32(&[2, 3], &[1.0; 6])]);
    let e = run(&settings(0.5), &linear, dir.path()).unwrap_err();
    assert!(e.contains("no attention and no MLP"), "{e}");
    let e = Structured::from_toml("schema = 2").unwrap_err().to_string();
    assert!(e.contains("sparsity") || e.contains("schema"), "{e}");
}

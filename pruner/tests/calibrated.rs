//! Methods that learn from a text, on a small decoder: against candle's executor, and what is refused.

mod common;

use candle_core::{Device, Tensor};
use common::{decoder, linears, spread};
use lacuna::candle::Reference;
use lacuna::model::Weight;
use lacuna::{DType, Model};
use lacuna_prune::search::{Event, Evolution, SearchSettings, Stage};
use lacuna_prune::{
    AllocatorName, Calibrated, Calibration, Pattern, Prefix, Recipe, RefinerName, SolverName, save,
};
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

const SOLVERS: [SolverName; 5] = [
    SolverName::Magnitude,
    SolverName::Wanda,
    SolverName::SparseGpt,
    SolverName::LAdmm,
    SolverName::Alps,
];

fn tokens(n: usize) -> Vec<u32> {
    // Few tokens are frequent, as in a text.
    let values = spread(n, 1.0, 99);
    values
        .iter()
        .map(|v| (v.abs().powi(3) * 49.9) as u32)
        .collect()
}

fn recipe(solver: SolverName) -> Recipe {
    Recipe {
        solver,
        calibration: Some(Calibration {
            windows: 12,
            window: 10,
            held_out: 4,
            ..Calibration::default()
        }),
        ..Recipe::new(AllocatorName::Uniform, 0.5)
    }
}

fn run(recipe: &Recipe, model: &Model) -> Result<Calibrated, String> {
    let done = recipe.calibrate(model, &tokens(400), &mut |_| {});
    done.map_err(|e| e.to_string())
}

fn two_four() -> Option<Pattern> {
    "2:4".parse().ok()
}

#[test]
fn every_solver_reaches_its_zeros_and_repeats_its_bytes() {
    let model = decoder();
    let dir = tempfile::tempdir().unwrap();
    for solver in SOLVERS {
        for (pattern, refiner, allocator) in [
            (None, RefinerName::None, AllocatorName::Uniform),
            (
                two_four(),
                RefinerName::SparseSwapsRefit,
                AllocatorName::Uniform,
            ),
            (None, RefinerName::SparseSwaps, AllocatorName::Owl),
        ] {
            let recipe = Recipe {
                pattern,
                refiner,
                allocator,
                ..recipe(solver)
            };
            let done = run(&recipe, &model).unwrap();
            let plan = &done.pruned.plan;
            assert_eq!(plan.zeros_after * 2, plan.total, "{solver:?} {refiner:?}");
            let path = dir.path().join("a.safetensors");
            let saved = save(&done.pruned, &path).unwrap();
            assert_eq!(done.errors.len(), plan.layers.len());
            if let Some(pattern) = pattern {
                for layer in &plan.layers {
                    let values = saved.weights()[&layer.weight].to_f32().unwrap();
                    for group in values.chunks(pattern.of) {
                        assert_eq!(group.iter().filter(|v| **v != 0.0).count(), pattern.keep);
                    }
                }
            }
            let again = rayon::ThreadPoolBuilder::new()
                .num_threads(3)
                .build()
                .unwrap();
            let again = again.install(|| run(&recipe, &model).unwrap());
            let other = dir.path().join("b.safetensors");
            save(&again.pruned, &other).unwrap();
            assert_eq!(
                std::fs::read(&path).unwrap(),
                std::fs::read(&other).unwrap()
            );
            let read = Recipe::from_toml(&recipe.to_toml()).unwrap();
            assert_eq!((read.hash(), &read), (recipe.hash(), &recipe));
        }
    }
}

/// What candle's executor shows each layer, in one matrix for all windows, row-major.
fn inputs(model: &Model, windows: &[&[u32]]) -> HashMap<String, Vec<f32>> {
    let mut seen: HashMap<String, Vec<f32>> = HashMap::new();
    let reference = Reference::new(model).unwrap();
    for window in windows {
        let ids: Vec<i64> = window.iter().map(|&t| t.into()).collect();
        let ids = Tensor::from_vec(ids, (1, window.len()), &Device::Cpu).unwrap();
        let mut observe = |node: &lacuna::model::Node, inputs: &[Option<Tensor>], _: &Tensor| {
            if node.op.weight_input().is_some() {
                let values = inputs[0]
                    .as_ref()
                    .unwrap()
                    .flatten_all()?
                    .to_vec1::<f32>()?;
                seen.entry(node.inputs[1].clone())
                    .or_default()
                    .extend(values);
            }
            Ok(())
        };
        reference.run_observed(&[ids], &mut observe).unwrap();
    }
    seen
}

/// `‖X (W - Ŵ)ᵀ‖² / ‖X Wᵀ‖²`, product by product.
fn error(x: &[f32], dense: &Weight, pruned: &Weight) -> f64 {
    let (w, p) = (dense.to_f32().unwrap(), pruned.to_f32().unwrap());
    let cols = dense.shape()[1];
    let (mut lost, mut whole) = (0.0, 0.0);
    for x in x.chunks(cols) {
        for (w, p) in w.chunks(cols).zip(p.chunks(cols)) {
            let dot = |w: &[f32]| -> f64 { x.iter().zip(w).map(|(x, w)| f64::from(x * w)).sum() };
            whole += dot(w).powi(2);
            lost += (dot(w) - dot(p)).powi(2);
        }
    }
    lost / whole
}

#[test]
fn errors_are_those_that_candle_sees() {
    let model = decoder();
    let tokens = tokens(400);
    for prefix in [Prefix::Dense, Prefix::Pruned] {
        let mut recipe = recipe(SolverName::Wanda);
        let settings = recipe.calibration.as_mut().unwrap();
        settings.prefix = prefix;
        let windows = lacuna_prune::calibration::windows(settings, &tokens).unwrap();
        let done = run(&recipe, &model).unwrap();
        let pruned = &done.pruned.model;
        let mut source = model.clone();
        for block in ["0.", "1."] {
            let (fitted, held_out) = (
                inputs(&source, &windows[..12]),
                inputs(&source, &windows[12..]),
            );
            for e in done.errors.iter().filter(|e| e.weight.starts_with(block)) {
                let (w, p) = (&model.weights()[&e.weight], &pruned.weights()[&e.weight]);
                for (seen, reported) in [(&fitted, e.fitted), (&held_out, e.held_out.unwrap())] {
                    let expect = error(&seen[&e.weight], w, p);
                    let name = (&e.weight, prefix);
                    assert!(
                        (expect - reported).abs() < 1e-4 * expect,
                        "{name:?} {expect} {reported}"
                    );
                }
            }
            if prefix == Prefix::Pruned {
                for (name, weight) in pruned.weights().iter().filter(|w| w.0.starts_with(block)) {
                    source.set_weight(name, weight.clone()).unwrap();
                }
            }
        }
    }
}

#[test]
fn errors_fall_from_magnitude_to_alps_and_by_every_refiner() {
    let model = decoder();
    let total = |solver, refiner| {
        let mut recipe = Recipe {
            refiner,
            ..recipe(solver)
        };
        recipe.calibration.as_mut().unwrap().prefix = Prefix::Dense;
        let errors = run(&recipe, &model).unwrap().errors;
        errors.iter().map(|e| e.fitted).sum::<f64>()
    };
    let plain: Vec<f64> = SOLVERS
        .iter()
        .map(|&s| total(s, RefinerName::None))
        .collect();
    let [magnitude, wanda, sparsegpt, _, alps] = plain[..] else {
        panic!()
    };
    assert!(
        sparsegpt < wanda && wanda < magnitude && alps < sparsegpt,
        "{plain:?}"
    );
    for (i, &solver) in SOLVERS.iter().enumerate() {
        let swapped = total(solver, RefinerName::SparseSwaps);
        let refitted = total(solver, RefinerName::Refit);
        assert!(
            swapped <= plain[i] * (1.0 + 1e-6),
            "{solver:?} {swapped} {}",
            plain[i]
        );
        assert!(
            refitted <= plain[i] * (1.0 + 1e-6),
            "{solver:?} {refitted} {}",
            plain[i]
        );
    }
}

#[test]
fn sixteen_bits_keep_their_zeros() {
    for dtype in [DType::BF16, DType::F16] {
        let recipe = Recipe {
            dtype: Some(dtype),
            ..recipe(SolverName::Alps)
        };
        let model = decoder();
        let model = recipe.convert(&model).unwrap();
        let done = run(&recipe, &model).unwrap();
        assert_eq!(done.pruned.plan.zeros_after * 2, done.pruned.plan.total);
        assert_eq!(done.pruned.model.weights()["0.q"].dtype(), dtype);
    }
}

fn searched(solver: SolverName, prefix: Prefix) -> Recipe {
    let stage = |tokens, keep| Stage { tokens, keep };
    let mut recipe = Recipe {
        allocator: AllocatorName::Search,
        search: Some(SearchSettings {
            rounds: 2,
            interval: 0.1,
            levels: 2,
            windows: 8,
            top: 16,
            evolution: Evolution {
                generations: 3,
                offspring: 6,
                swaps: 3,
                surrogate: true,
                stages: vec![stage(20, 2), stage(60, 1)],
            },
        }),
        ..recipe(solver)
    };
    recipe.calibration.as_mut().unwrap().prefix = prefix;
    recipe
}

#[test]
fn searched_sparsities_keep_the_budget_replay_and_go_on_after_a_kill() {
    let model = decoder();
    let dir = tempfile::tempdir().unwrap();
    let look = |recipe: &Recipe, work: &Path, tell: &mut dyn FnMut(Event)| {
        recipe.search(&model, &tokens(600), "a model", work, tell)
    };
    for (at, (solver, prefix)) in [
        (SolverName::SparseGpt, Prefix::Pruned),
        (SolverName::Wanda, Prefix::Dense),
    ]
    .into_iter()
    .enumerate()
    {
        let recipe = searched(solver, prefix);
        let work = dir.path().join(at.to_string());
        let mut said = Vec::new();
        let found = look(&recipe, &work, &mut |e| {
            if let Event::Supernet { bytes, .. } = e {
                said.push(bytes);
            }
        })
        .unwrap();
        let log = std::fs::read_to_string(work.join("evaluations.jsonl")).unwrap();
        // Candidates but the probes keep the budget: half of the weights, and the tolerance.
        let rows: Vec<serde_json::Value> =
            (log.lines().map(|l| serde_json::from_str(l).unwrap())).collect();
        let total = 2.0 * (24.0 * 24.0 * 2.0 + 2.0 * 12.0 * 24.0 + 3.0 * 40.0 * 24.0);
        let last = rows.iter().filter(|r| r["stage"] == 1);
        let far = |r: &serde_json::Value| (r["cost"].as_f64().unwrap() - total / 2.0).abs();
        assert!(last.clone().count() >= 2 * 3 * 2);
        assert!(last.clone().all(|r| far(r) <= 0.0025 * total + 1.0));
        // What was said of the disk is what the pruned weights take.
        let names: Vec<&String> = found.recipe.sparsities.keys().collect();
        let files = std::fs::read_dir(work.join("round-2")).unwrap();
        let bytes = |path: std::path::PathBuf| -> usize {
            let block = Model::open(path).unwrap();
            let own = block.weights().iter().filter(|w| names.contains(&w.0));
            own.map(|w| w.1.byte_len()).sum()
        };
        let bytes: usize = files.map(|f| bytes(f.unwrap().path())).sum();
        let predicted = said[1] as f64;
        // Levels that a part has not are stored as its last.
        assert!(
            bytes as f64 >= predicted && bytes as f64 <= 1.6 * predicted,
            "{bytes} {said:?}"
        );

        let done = found
            .recipe
            .calibrate(&model, &tokens(600), &mut |_| {})
            .unwrap();
        assert_eq!(done.pruned.plan.zeros_after * 2, done.pruned.plan.total);
        let shares: BTreeMap<String, f64> = found.recipe.sparsities.clone();
        for layer in &done.pruned.plan.layers {
            assert!((layer.sparsity() - shares[&layer.weight]).abs() < 0.01);
        }
        assert!(shares["0.q"] == shares["0.o"] && shares["1.up"] == shares["1.down"]);
        assert!(
            shares.values().any(|s| (s - 0.5).abs() > 0.01),
            "{shares:?}"
        );
        let read = Recipe::from_toml(&found.recipe.to_toml()).unwrap();
        assert_eq!((&read, read.hash()), (&found.recipe, found.recipe.hash()));
        assert!(done.seconds["solve"] > 0.0 && done.seconds["forward"] > 0.0);

        let killed = dir.path().join(format!("killed-{at}"));
        let mut times = 0;
        let again = loop {
            let mut events = 0;
            let die = AssertUnwindSafe(|| {
                look(&recipe, &killed, &mut |_| {
                    events += 1;
                    assert!(events != 4 + 3 * times, "killed");
                })
            });
            match catch_unwind(die) {
                Ok(found) => break found.unwrap(),
                Err(_) => times += 1,
            }
        };
        assert!(times > 3, "{times}");
        assert_eq!(again.recipe, found.recipe);
        assert_eq!(
            std::fs::read_to_string(killed.join("evaluations.jsonl")).unwrap(),
            log
        );
        let mut other = recipe.clone();
        other.sparsity = 0.6;
        let e = look(&other, &killed, &mut |_| {}).unwrap_err().to_string();
        assert!(e.contains("another model"), "{e}");
    }
    let mut wrong = searched(SolverName::Wanda, Prefix::Pruned);
    let e = wrong
        .calibrate(&model, &tokens(600), &mut |_| {})
        .unwrap_err();
    assert!(e.to_string().contains("`search`"), "{e}");
    wrong.search = None;
    wrong.sparsities = BTreeMap::from([("0.q".to_owned(), 0.5)]);
    let e = run(&wrong, &model).unwrap_err();
    assert!(e.contains("none for `"), "{e}");
    wrong.allocator = AllocatorName::Uniform;
    let e = run(&wrong, &model).unwrap_err();
    assert!(e.contains("allocator `search`"), "{e}");
}

fn refused(change: impl Fn(&mut Recipe), model: &Model, parts: &[&str]) {
    let mut recipe = recipe(SolverName::SparseGpt);
    change(&mut recipe);
    let e = run(&recipe, model).unwrap_err();
    for part in parts {
        assert!(e.contains(part), "`{part}` is not in: {e}");
    }
}

#[test]
fn the_output_layer_is_a_part_of_the_last_block() {
    let recipe = Recipe {
        include: vec!["head".into()],
        ..recipe(SolverName::SparseGpt)
    };
    let done = run(&recipe, &decoder()).unwrap();
    assert_eq!(done.errors.len(), 1);
    assert!(done.errors[0].fitted < 0.5, "{:?}", done.errors);
}

#[test]
fn what_cannot_be_calibrated_is_refused_with_the_value() {
    let model = decoder();
    let with = |f: fn(&mut Calibration)| move |r: &mut Recipe| f(r.calibration.as_mut().unwrap());
    refused(
        with(|c| c.windows = 40),
        &model,
        &["400 tokens", "44 are asked for"],
    );
    refused(with(|c| c.windows = 0), &model, &["0 windows"]);
    refused(with(|c| c.damping = f64::NAN), &model, &["damping NaN"]);
    refused(
        |r| r.calibration = None,
        &model,
        &["no table [calibration]"],
    );
    refused(
        |r| {
            r.allocator = AllocatorName::GlobalMagnitude;
            r.pattern = two_four();
        },
        &model,
        &["2:4", "uniform"],
    );
    refused(|r| r.pattern = "2:7".parse().ok(), &model, &["2:7", "0.5"]);
    refused(
        |r| {
            r.pattern = "8:16".parse().ok();
        },
        &model,
        &["24 inputs", "16"],
    );
    // Ten tokens leave 24 features dependent.
    let few = |c: &mut Calibration| (c.windows, c.held_out, c.damping) = (1, 0, 0.0);
    refused(
        |r| few(r.calibration.as_mut().unwrap()),
        &model,
        &["singular", "--damping"],
    );

    let no_decoder = linears(vec![Weight::from_f32(&[2, 2], &[1.0; 4])]);
    refused(|_| {}, &no_decoder, &["no decoder"]);
    let mut short = model.clone();
    short.text = Some(lacuna::model::Text {
        context: 8,
        ..Default::default()
    });
    refused(|_| {}, &short, &["10 tokens", "context is 8"]);

    let mut bad = model.clone();
    let mut table = spread(50 * 24, 1.0, 1);
    table[7] = f32::NAN;
    bad.set_weight("table", Weight::from_f32(&[50, 24], &table))
        .unwrap();
    refused(|_| {}, &bad, &["NaN"]);

    let e = recipe(SolverName::Wanda)
        .calibrate(&model, &[60; 400], &mut |_| {})
        .unwrap_err();
    assert!(e.to_string().contains("token 60"), "{e}");
    let plain = Recipe {
        calibration: None,
        ..recipe(SolverName::Wanda)
    };
    let e = plain.run(&model).unwrap_err().to_string();
    assert!(e.contains("`wanda`") && e.contains("a text"), "{e}");
}

#[test]
fn magnitudes_by_a_pattern_need_no_text() {
    let model = decoder();
    let recipe = Recipe {
        pattern: two_four(),
        ..Recipe::new(AllocatorName::Uniform, 0.5)
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let saved = recipe.prepare(&model).unwrap().write(&path).unwrap();
    let (before, after) = (&model.weights()["1.down"], &saved.weights()["1.down"]);
    let (before, after) = (before.to_f32().unwrap(), after.to_f32().unwrap());
    for (b, a) in before.chunks(4).zip(after.chunks(4)) {
        let mut sizes: Vec<f32> = b.iter().map(|v| v.abs()).collect();
        sizes.sort_by(f32::total_cmp);
        for (b, a) in b.iter().zip(a) {
            assert_eq!(*a, if b.abs() >= sizes[2] { *b } else { 0.0 });
        }
    }
}

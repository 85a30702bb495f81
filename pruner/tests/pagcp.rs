//! PAGCP on a network of two heads: allowances, budgets, what the oracle sees, interruptions, and what is refused.

mod common;
#[path = "common/nets.rs"]
mod nets;

use lacuna::Model;
use lacuna::model::{Coordinates, Dim, Graph, Interpolation, Op, Resized, Symbols};
use lacuna_prune::eval::EvalOptions;
use lacuna_prune::groups::{Groups, Removed};
use lacuna_prune::pagcp::{
    Budget, Conduct, LatencyTable, MeasuredLayer, Outcome, PagcpSettings, Saved, Stage, pagcp,
};
use lacuna_prune::report::report;
use lacuna_prune::tasks::{TaskOptions, TaskSettings, evaluate_tasks};
use lacuna_prune::train::{DataSettings, Effort, TrainSettings, train};
use nets::Net;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::{Path, PathBuf};

const SIDE: usize = 10;
const IMAGES: usize = 90;

/// A residual backbone, classes, a map of pixels at the size of the image, and four numbers.
fn network() -> Model {
    let mut n = Net::new("heads", 1, SIDE, 11);
    let stem = n.block("stem", "x", 12, [3, 2, 1], Op::Relu);
    let a = n.block("a", &stem, 20, [3, 1, 1], Op::Relu);
    let b = n.conv_padded("b", &a, 12, [3, 1, 1, 1], false);
    let b = n.norm("b.bn", &b);
    let sum = n.node("sum", Op::Add, &[&b, &stem]);
    let sum = n.node("sum.act", Op::Relu, &[&sum]);
    let pool = n.node("pool", Op::GlobalAveragePool, &[&sum]);
    let flat = n.node("flat", Op::Flatten { axis: 1 }, &[&pool]);
    let classes = n.linear("classes", &flat, 3);
    let numbers = n.linear("numbers", &flat, 4);
    let soft = n.node("soft", Op::Softmax { axis: 1 }, &[&classes]);
    let side = n.block("side", &sum, 9, [3, 1, 1], Op::Relu);
    let map = n.conv("map", &side, 2, 1, 1, 1);
    let resize = Op::Resize {
        resized: Resized::Scales([2.0; 2]),
        interpolation: Interpolation::Linear,
        coordinates: Coordinates::HalfPixel,
    };
    let pixels = n.node("pixels", resize, &[&map]);
    n.finish(&[&soft, &pixels, &numbers])
}

/// Bright blobs on noise: the class is how bright, the map where.
fn data(path: &Path) {
    let noise = common::spread(IMAGES * SIDE * SIDE, 1.0, 5);
    let (mut images, mut mask, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    for (i, noise) in noise.chunks(SIDE * SIDE).enumerate() {
        let class = i % 3;
        labels.push(class as u8);
        for (p, x) in noise.iter().enumerate() {
            let inside = (p / SIDE + i) % SIDE < 4 && (p % SIDE + i / 3) % SIDE < 5;
            let level = if inside {
                110.0 + 60.0 * class as f32
            } else {
                25.0
            };
            images.push((level + 20.0 * x) as u8);
            mask.push(if p % 37 == 0 { 255 } else { u8::from(inside) });
        }
    }
    let view = |shape: Vec<usize>, data| TensorView::new(Dtype::U8, shape, data).unwrap();
    let tensors = [
        ("train_images", view(vec![IMAGES, 1, SIDE, SIDE], &images)),
        ("train_labels", view(vec![IMAGES], &labels)),
        ("train_mask", view(vec![IMAGES, SIDE, SIDE], &mask)),
    ];
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

fn tasks() -> Vec<TaskSettings> {
    let read = |text: &str| text.parse().unwrap();
    vec![
        read("name=classes,output=soft,loss=cross-entropy,labels=labels"),
        read("name=pixels,loss=cross-entropy,labels=mask,ignore=255,weight=0.5"),
        read("name=numbers,loss=mse"),
    ]
}

struct Place {
    dir: tempfile::TempDir,
    model: Model,
}

impl Place {
    /// A network that knows its tasks.
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        data(&dir.path().join("data.safetensors"));
        let mut place = Place {
            dir,
            model: network(),
        };
        let mut settings = place.training();
        settings.tasks.pop();
        settings.epochs = 12;
        let trained = train(
            &place.model,
            None,
            &settings,
            &Effort::default(),
            &mut |_| {},
        );
        let trained = trained.unwrap();
        let losses: Vec<f64> = trained.rows.iter().map(|r| r.loss).collect();
        assert!(losses[11] < 0.6 * losses[0], "{losses:?}");
        place.model = trained.model;
        place
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn training(&self) -> TrainSettings {
        TrainSettings {
            batch: 16,
            lr: 0.05,
            tasks: tasks(),
            data: DataSettings {
                path: self.file("data.safetensors"),
                ..DataSettings::default()
            },
            ..TrainSettings::default()
        }
    }

    /// All samples decide, and nothing is trained.
    fn settings(&self, share: f64) -> PagcpSettings {
        let mut train = self.training();
        train.data.hold_out = Some(IMAGES);
        PagcpSettings {
            train,
            batch: 16,
            rounds: 1,
            ..PagcpSettings::new(Budget {
                of: Saved::Flops,
                share,
                table: None,
            })
        }
    }

    /// The losses of the tasks on all samples, by the runtime's own evaluation.
    fn losses(&self, model: &Model) -> Vec<f64> {
        let options = TaskOptions {
            path: &self.file("data.safetensors"),
            split: "train",
            eval: EvalOptions::default(),
            teacher: Some(&self.model),
        };
        let figures = evaluate_tasks(model, &tasks(), &options).unwrap();
        figures.iter().map(|f| f.loss).collect()
    }
}

fn prune(model: &Model, settings: &PagcpSettings) -> Outcome {
    pagcp(model, settings, &Conduct::default(), &mut |_| {}).unwrap()
}

fn macs(model: &Model) -> u64 {
    report(model, &Symbols::new()).unwrap().totals.dense_macs
}

#[test]
fn no_visit_exceeds_its_allowance_and_what_the_oracle_saw_is_so() {
    let place = Place::new();
    let settings = PagcpSettings {
        top: 1.0,
        ..place.settings(0.05)
    };
    let outcome = prune(&place.model, &settings);
    let round = &outcome.rounds[0];
    let groups = Groups::of(&place.model).unwrap();
    let mut units = vec![Vec::new(); groups.all().len()];
    let mut base = round.losses_before.clone();
    let mut allowance = settings.allowance;
    for visit in &round.visits {
        assert!((visit.allowance - allowance).abs() < 1e-12);
        if visit.removed.is_empty() {
            assert!(visit.stopped_by.is_some());
            continue;
        }
        for (loss, base) in visit.losses.iter().zip(&base) {
            assert!(*loss <= base * (1.0 + allowance), "{}", visit.name);
        }
        // The same losses from the whole cut network, without what trials share.
        units[visit.group].clone_from(&visit.removed);
        let removed = Removed::new(&groups, units.clone()).unwrap();
        let cut = groups.cut(&removed, true).unwrap().model;
        let own = place.losses(&cut);
        for (i, (loss, own)) in visit.losses.iter().zip(&own).enumerate() {
            // A task without labels counts from what the dense network says.
            let start = if i == 2 { round.losses_before[2] } else { 0.0 };
            assert!(
                (loss - start - own).abs() <= 1e-5 * loss,
                "{} {i}: {loss} {own}",
                visit.name
            );
        }
        for (base, loss) in base.iter_mut().zip(&visit.losses) {
            *base = base.max(*loss);
        }
        allowance *= round.decay;
    }
    let stopped = round.visits.iter().filter(|v| v.stopped_by.is_some());
    assert!(stopped.count() > 0);
    assert!(round.visits.iter().any(|v| v.taken > 0));
}

#[test]
fn budgets_are_met_and_no_more_is_cut_than_they_ask_for() {
    let place = Place::new();
    let layers = |model: &Model| -> Vec<MeasuredLayer> {
        let layer = |name: &str, shape: &[usize]| MeasuredLayer {
            weight: name.into(),
            first: vec![1, shape[0]],
            second: vec![1, shape[1].max(2)],
            ms: vec![vec![0.0, 0.1], vec![0.1, 1.0]],
            prompt_ms: Vec::new(),
        };
        let all = model.prunable().into_iter();
        all.map(|(n, _)| layer(n, model.weights()[n].shape()))
            .collect()
    };
    let table = LatencyTable {
        schema: 1,
        layers: layers(&place.model),
        attentions: Vec::new(),
        whole_ms: None,
    };
    for (of, table) in [
        (Saved::Flops, None),
        (Saved::Parameters, None),
        (Saved::Bytes, None),
        (Saved::Latency, Some(table)),
    ] {
        let settings = PagcpSettings {
            budget: Budget {
                of,
                share: 0.6,
                table,
            },
            allowance: 0.3,
            inflation: 100.0,
            top: 1.0,
            rounds: 8,
            ..place.settings(0.6)
        };
        let outcome = prune(&place.model, &settings);
        assert!(
            outcome.met && outcome.left <= 0.6,
            "{of:?}: {}",
            outcome.left
        );
        assert!(outcome.left > 0.5, "{of:?}: {}", outcome.left);
        if of == Saved::Flops {
            let share = macs(&outcome.model) as f64 / macs(&place.model) as f64;
            assert!((share - outcome.left).abs() < 1e-9);
        }
    }
}

#[test]
fn as_coded_forgets_what_no_task_stops_and_takes_a_step_less_of_it() {
    let place = Place::new();
    let settings = PagcpSettings {
        allowance: 1e6,
        inflation: 1e100,
        decay: false,
        top: 1.0,
        ..place.settings(0.01)
    };
    let meant = prune(&place.model, &settings);
    let coded = prune(
        &place.model,
        &PagcpSettings {
            as_coded: true,
            ..settings
        },
    );
    for (meant, coded) in meant.rounds[0].visits.iter().zip(&coded.rounds[0].visits) {
        assert_eq!(meant.stopped_by, None);
        assert_eq!(meant.removed.len(), meant.units * 19 / 20);
        assert!(coded.removed.len() < meant.removed.len());
        assert_eq!(coded.removed.len(), coded.taken);
    }
}

#[test]
fn a_run_that_is_interrupted_anywhere_gives_the_same_network() {
    let place = Place::new();
    let mut settings = place.settings(0.2);
    settings.rounds = 3;
    settings.train.data.hold_out = Some(30);
    settings.epochs = 2;
    settings.inflation = 3.0;
    let whole = prune(&place.model, &settings);
    assert!(whole.rounds.len() > 1, "{:?}", whole.left);
    let state = place.file("state");
    // Snapshots of everything on disk, between visits, in trainings and between rounds.
    let mut snapshots = 0;
    let copy = |to: &Path| {
        std::fs::create_dir(to).unwrap();
        for entry in std::fs::read_dir(place.dir.path()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            if name.to_string_lossy().starts_with("state") {
                std::fs::copy(entry.path(), to.join(name)).unwrap();
            }
        }
    };
    let conduct = |state: PathBuf| Conduct {
        state: Some(state),
        ..Conduct::default()
    };
    let mut events = 0;
    let kept = pagcp(&place.model, &settings, &conduct(state), &mut |p| {
        let of_note = matches!(
            p.stage,
            Stage::Visited(..) | Stage::Training(_) | Stage::Done(_)
        );
        events += usize::from(of_note);
        if of_note && events % 4 == 0 {
            copy(&place.file(&format!("at{snapshots}")));
            snapshots += 1;
        }
    })
    .unwrap();
    let bytes = |model: &Model| {
        let path = place.file("out.safetensors");
        model.save(&path).unwrap();
        std::fs::read(path).unwrap()
    };
    assert_eq!(bytes(&kept.model), bytes(&whole.model));
    assert!(snapshots > 4);
    let mut resumed = 0;
    for i in 0..snapshots {
        let state = place.file(&format!("at{i}")).join("state");
        let mut show = |p: &lacuna_prune::pagcp::Progress<'_>| {
            resumed += usize::from(matches!(p.stage, Stage::Resumed(_)));
        };
        let again = pagcp(&place.model, &settings, &conduct(state), &mut show).unwrap();
        assert_eq!(bytes(&again.model), bytes(&whole.model), "snapshot {i}");
    }
    assert!(resumed > snapshots / 2);
    // Another setting does not go on from it.
    settings.top = 0.7;
    let state = place.file(&format!("at{}", snapshots - 1)).join("state");
    let e = pagcp(&place.model, &settings, &conduct(state), &mut |_| {});
    assert!(
        e.unwrap_err()
            .to_string()
            .contains("another model or setting")
    );
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let place = Place::new();
    let refused = |change: &dyn Fn(&mut PagcpSettings), what: &[&str]| {
        let mut settings = place.settings(0.5);
        change(&mut settings);
        let e = pagcp(&place.model, &settings, &Conduct::default(), &mut |_| {});
        let e = e.map(|_| ()).unwrap_err().to_string();
        for what in what {
            assert!(e.contains(what), "{e}");
        }
    };
    let task = |text: &str| vec![text.parse::<TaskSettings>().unwrap()];
    refused(
        &|s| s.train.tasks = task("name=a,output=logits,loss=kl"),
        &["task `a`", "`logits`", "`soft`, `pixels`, `numbers`"],
    );
    refused(
        &|s| s.train.tasks = task("name=a,output=soft,loss=cross-entropy,labels=none"),
        &["data.safetensors", "`train_none`", "task `a`"],
    );
    refused(
        &|s| s.train.tasks = task("name=a,output=soft,loss=cross-entropy,labels=mask"),
        &["data.safetensors", "`train_mask`", "[90, 10, 10]"],
    );
    refused(
        &|s| s.train.tasks = task("name=a,output=pixels,loss=cross-entropy,labels=mask"),
        &["`train_mask`", "element 0 of image 0 is 255", "2 classes"],
    );
    refused(
        &|s| s.train.tasks = task("name=a,output=numbers,loss=mse,metric=top1"),
        &["task `a`", "top1"],
    );
    refused(&|s| s.train.data.hold_out = None, &["held out"]);
    refused(&|s| s.budget.share = 0.0, &["0 is no share"]);
    refused(&|s| s.allowance = 20.0, &["20", "inflation of 6"]);
    refused(&|s| s.budget.of = Saved::Latency, &["table"]);
    refused(
        &|s| {
            s.budget.of = Saved::Latency;
            s.budget.table = Some(LatencyTable {
                schema: 1,
                layers: vec![],
                attentions: vec![],
                whole_ms: None,
            });
        },
        &["stem.conv.weight"],
    );
}

/// A model whose batch is fixed, and a task that ends in a graph input's shape, still run.
#[test]
fn a_fixed_batch_is_run_as_it_is() {
    let place = Place::new();
    let mut graph: Graph = place.model.graph().clone();
    graph.inputs[0].shape[0] = Dim::Fixed(4);
    let fixed = Model::new(graph, place.model.weights().clone()).unwrap();
    let settings = PagcpSettings {
        top: 1.0,
        ..place.settings(0.7)
    };
    let (open, fixed) = (prune(&place.model, &settings), prune(&fixed, &settings));
    let taken =
        |o: &Outcome| -> Vec<usize> { o.rounds[0].visits.iter().map(|v| v.taken).collect() };
    assert_eq!(taken(&open), taken(&fixed));
}

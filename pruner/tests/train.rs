//! Training of a tiny network: what it learns, its recipes, hostile settings and data.

mod training;

use lacuna::Model;
use lacuna::model::{Dim, Graph, Input, Node, Op, Weight, Weights};
use lacuna_prune::train::{DataSettings, Effort, Gradual, SparsityCurve, TrainSettings, train};
use lacuna_prune::{AllocatorName, Error, Floor, Recipe};
use std::path::Path;
use std::process::Command;
use training::{Place, images, network, well};

fn settings(data: &Path) -> TrainSettings {
    TrainSettings {
        epochs: 4,
        batch: 20,
        lr: 0.1,
        data: DataSettings {
            path: data.into(),
            ..DataSettings::default()
        },
        ..TrainSettings::default()
    }
}

#[test]
fn a_recipe_with_training_replays_to_the_same_bytes() {
    let place = Place::new();
    for (name, more) in [
        ("once", &[][..]),
        ("slowly", &["--gradual", "linear", "--gradual-end", "9"]),
    ] {
        let (output, recipe) = (format!("{name}.safetensors"), format!("{name}.toml"));
        let more = [more, &["--emit-recipe", &recipe]].concat();
        well(place.command(&output, &more).output().unwrap());
        let mut again = Command::new(env!("CARGO_BIN_EXE_prune"));
        again.current_dir(place.dir.path());
        again.args(["run", &recipe, "-o", "again.safetensors", "--threads", "1"]);
        well(again.output().unwrap());
        assert!(
            place.bytes(&output) == place.bytes("again.safetensors"),
            "{name}"
        );
        // Another seed is another result.
        let text = String::from_utf8(place.bytes(&recipe)).unwrap();
        assert!(
            text.contains("[train]") && text.contains("seed = 0"),
            "{text}"
        );
        std::fs::write(place.file(&recipe), text.replace("seed = 0", "seed = 1")).unwrap();
        let mut other = Command::new(env!("CARGO_BIN_EXE_prune"));
        other.current_dir(place.dir.path());
        well(
            other
                .args(["run", &recipe, "-o", "other.safetensors"])
                .output()
                .unwrap(),
        );
        assert!(
            place.bytes(&output) != place.bytes("other.safetensors"),
            "{name}"
        );
    }
    assert_ne!(
        place.bytes("once.safetensors"),
        place.bytes("slowly.safetensors")
    );
}

#[test]
fn the_network_learns_and_the_mask_holds() {
    let place = Place::new();
    let data = place.file("data.safetensors");
    for allocator in [
        AllocatorName::GlobalMagnitude,
        AllocatorName::Uniform,
        AllocatorName::Erk,
        AllocatorName::Lamp,
    ] {
        let recipe = Recipe {
            floor: Some(Floor {
                min_weights: Some(12),
                ..Floor::default()
            }),
            ..Recipe::new(allocator, 0.5)
        };
        let mut settings = settings(&data);
        settings.data.test = "test".into();
        let trained = train(
            &network(),
            Some(&recipe),
            &settings,
            &Effort::default(),
            &mut |_| (),
        )
        .unwrap();
        let plan = trained.plan.unwrap();
        assert_eq!(plan.zeros_after, (324 + 108 + 36) / 2, "{allocator:?}");
        for layer in &plan.layers {
            let weight = &trained.model.weights()[&layer.weight];
            assert_eq!(
                weight.numel() - weight.count_nonzero(),
                layer.zeros_after,
                "{allocator:?}"
            );
            assert!(layer.size - layer.zeros_after >= 12, "{allocator:?}");
        }
        let last = trained.rows.last().unwrap();
        assert!(
            last.loss < trained.rows[0].loss,
            "{allocator:?}: {:?}",
            trained.rows
        );
        assert!(
            last.test_accuracy.unwrap() > 0.6,
            "{allocator:?}: {:?}",
            trained.rows
        );
    }
}

#[test]
fn gradual_pruning_reaches_the_sparsity_by_its_curve() {
    let place = Place::new();
    let gradual = Some(Gradual {
        curve: SparsityCurve::Linear,
        start: 0,
        end: 2,
    });
    let settings = TrainSettings {
        gradual,
        ..settings(&place.file("data.safetensors"))
    };
    let recipe = Recipe::new(AllocatorName::GlobalMagnitude, 0.8);
    let trained = train(
        &network(),
        Some(&recipe),
        &settings,
        &Effort::default(),
        &mut |_| (),
    )
    .unwrap();
    let sparsities: Vec<Option<f64>> = trained.rows.iter().map(|r| r.sparsity).collect();
    let of = |n: f64| Some((468.0 * n).floor() / 468.0);
    assert_eq!(sparsities, [None, of(0.4), of(0.8), of(0.8)]);
    assert_eq!(trained.plan.unwrap().zeros_after, 374);
    // A sparse model keeps its zeros when it is trained again.
    let sparse = trained.model;
    assert!(sparse.weights()["c1.w"].is_sparse());
    let again = train(
        &sparse,
        None,
        &TrainSettings {
            gradual: None,
            ..settings
        },
        &Effort::default(),
        &mut |_| (),
    );
    let zeros = |m: &Model| m.weights()["c1.w"].numel() - m.weights()["c1.w"].count_nonzero();
    assert_eq!(zeros(&again.unwrap().model), zeros(&sparse));
}

#[test]
fn a_loss_that_is_no_number_names_its_epoch_and_step() {
    let place = Place::new();
    let settings = TrainSettings {
        lr: 1e30,
        ..settings(&place.file("data.safetensors"))
    };
    let e = train(&network(), None, &settings, &Effort::default(), &mut |_| ()).unwrap_err();
    assert!(
        matches!(
            e,
            Error::Diverged {
                epoch: 1,
                step: 2 | 3,
                ..
            }
        ),
        "{e}"
    );
}

#[test]
fn data_that_does_not_fit_is_refused() {
    let place = Place::new();
    let refused = |model: &Model, count: usize, label: u8, what: &[&str]| {
        let path = place.file("bad.safetensors");
        images(&path, count, |_| label);
        let e = train(
            model,
            None,
            &settings(&path),
            &Effort::default(),
            &mut |_| (),
        )
        .unwrap_err()
        .to_string();
        assert!(what.iter().all(|w| e.contains(w)), "{e}");
    };
    refused(&network(), 0, 0, &["nothing to train on"]);
    refused(&network(), 8, 3, &["label 3", "3 classes"]);
    let mut graph = network().graph().clone();
    graph.inputs[0].shape[2] = Dim::Fixed(16);
    let larger = Model::new(graph, network().weights().clone()).unwrap();
    refused(&larger, 8, 0, &["9x9", "--size"]);
    let e = train(
        &network(),
        None,
        &settings(&place.file("none")),
        &Effort::default(),
        &mut |_| (),
    );
    assert!(e.unwrap_err().to_string().contains("no such file"));
}

#[test]
fn a_checkpoint_of_another_run_or_of_garbage_is_refused() {
    let place = Place::new();
    let files = Effort {
        checkpoint: Some(place.file("c")),
        ..Effort::default()
    };
    let settings = settings(&place.file("data.safetensors"));
    let run = |settings: &TrainSettings| train(&network(), None, settings, &files, &mut |_| ());
    run(&settings).unwrap();
    let e = run(&TrainSettings {
        lr: 0.2,
        ..settings.clone()
    })
    .unwrap_err()
    .to_string();
    assert!(e.contains("another model, recipe or setting"), "{e}");
    let whole = place.bytes("c");
    for cut in [0, 7, 100, whole.len() - 1] {
        std::fs::write(place.file("c"), &whole[..cut]).unwrap();
        let e = run(&settings).unwrap_err().to_string();
        assert!(e.contains("no checkpoint of this run"), "{e}");
    }
}

/// A limit on the size of files stands for the full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_keeps_the_last_checkpoint() {
    let place = Place::new();
    let data = place.file("data.safetensors");
    let files = Effort {
        checkpoint: Some(place.file("out.safetensors.checkpoint")),
        ..Effort::default()
    };
    train(&network(), None, &settings(&data), &files, &mut |_| ()).unwrap();
    let old = place.bytes("out.safetensors.checkpoint");
    // Shorter than a checkpoint; the signal is ignored, so that the write itself fails.
    let output = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 4; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_prune"),
        ])
        .args([
            "train",
            "in.safetensors",
            "--data",
            "data.safetensors",
            "--epochs",
            "1",
            "-o",
            "other.safetensors",
        ])
        .current_dir(place.dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success()
            && said.contains("other.safetensors.checkpoint")
            && said.contains("cannot write"),
        "{said}"
    );
    assert!(!place.file("other.safetensors.checkpoint").exists());
    assert_eq!(place.bytes("out.safetensors.checkpoint"), old);
    let left = std::fs::read_dir(place.dir.path()).unwrap().count();
    assert_eq!(left, 3, "the failed write left something behind");
}

#[test]
fn language_models_and_other_inputs_are_refused_with_a_reason() {
    let graph = Graph {
        name: "mean".into(),
        inputs: vec![Input::f32(
            "x",
            vec![Dim::Symbol("N".into()), Dim::Fixed(4), Dim::Fixed(4)],
        )],
        outputs: vec!["y".into()],
        nodes: vec![Node {
            name: "norm".into(),
            op: Op::RMSNormalization { epsilon: 1e-5 },
            inputs: vec!["x".into(), "w".into()],
            output: "y".into(),
        }],
    };
    let weights = Weights::from([("w".to_string(), Weight::from_f32(&[4], &[1.0; 4]))]);
    let model = Model::new(graph, weights).unwrap();
    let place = Place::new();
    let e = train(
        &model,
        None,
        &settings(&place.file("data.safetensors")),
        &Effort::default(),
        &mut |_| (),
    );
    let e = e.unwrap_err().to_string();
    assert!(
        e.contains("`norm` (RMSNormalization)") && e.contains("language models"),
        "{e}"
    );
}

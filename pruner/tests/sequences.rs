//! FastGRNN on sequences from end to end: training, kills, threads, columns, cuts, streams, microcontrollers, bad data.

mod training;

use lacuna::{Model, Session, SessionOptions, Stream, TensorView};
use lacuna_prune::data::Sequences;
use lacuna_prune::eval::{EvalOptions, evaluate_sequences};
use lacuna_prune::train::{
    DataSettings, Effort, Gradual, Optimizer, SparsityCurve, TrainSettings, train,
};
use lacuna_prune::{AllocatorName, Recipe, SolverName, cut};
use safetensors::Dtype;
use safetensors::tensor::TensorView as View;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;
use training::{numbers, until_it_ends};

const TIME: usize = 21;
const CHANNELS: usize = 3;
const COUNT: usize = 120;

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Noise far from zero, in which the channel that rises in the middle is the class: it has to be remembered.
fn sequences() -> Vec<f32> {
    let mut values = numbers(COUNT * TIME * CHANNELS, 5);
    for (i, x) in values.iter_mut().enumerate() {
        let (window, t, c) = (i / TIME / CHANNELS, i / CHANNELS % TIME, i % CHANNELS);
        let rises = (8..18).contains(&t) && window % CHANNELS == c;
        *x = 40.0 + 4.0 * *x + if rises { 8.0 } else { 0.0 };
    }
    values
}

/// The windows of 6 subjects, 20 each.
fn write(path: &Path, values: &[f32], labels: &[u8], subjects: &[u8]) {
    let data = bytes(values);
    let view = |dtype, shape: &[usize], data| View::new(dtype, shape.to_vec(), data).unwrap();
    let count = labels.len();
    let tensors = [
        ("windows", view(Dtype::F32, &[count, TIME, CHANNELS], &data)),
        ("labels", view(Dtype::U8, &[count], labels)),
        ("subjects", view(Dtype::U8, &[subjects.len()], subjects)),
    ];
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        let labels: Vec<u8> = (0..COUNT).map(|i| (i % CHANNELS) as u8).collect();
        let subjects: Vec<u8> = (0..COUNT).map(|i| 1 + i as u8 / 20).collect();
        write(
            &place.file("data.safetensors"),
            &sequences(),
            &labels,
            &subjects,
        );
        place
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap()
    }

    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prune"));
        command.current_dir(self.0.path()).args(args.split(' '));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn well(&self, args: &str) -> Output {
        let output = self.command(args).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args}: {error}");
        output
    }

    fn settings(&self) -> TrainSettings {
        TrainSettings {
            epochs: 60,
            batch: 20,
            optimizer: Optimizer::Adam,
            lr: 0.02,
            weight_decay: 0.0,
            data: DataSettings {
                path: self.file("data.safetensors"),
                test: "test".into(),
                held_out_subjects: vec![2, 5],
                ..DataSettings::default()
            },
            ..TrainSettings::default()
        }
    }
}

fn network(arch: &str) -> Model {
    let options = lacuna_convert::Options {
        arch: Some(arch.into()),
        ..Default::default()
    };
    lacuna_convert::untrained(&options, 1).unwrap()
}

/// Logits of the first windows by a stream, and by a session that is handed its state.
fn outputs(model: &Model, windows: usize) -> Vec<f32> {
    let values = sequences();
    let mut stream = Stream::new(model, SessionOptions::default()).unwrap();
    let mut session = Session::new(model, SessionOptions::default()).unwrap();
    let width = session.inputs()[1].1[1];
    let mut all = Vec::new();
    for window in values.chunks_exact(TIME * CHANNELS).take(windows) {
        stream.reset();
        let mut state = vec![0.0; width];
        let mut last = Vec::new();
        for step in window.chunks_exact(CHANNELS) {
            let x = TensorView::f32(&[1, CHANNELS], step);
            last = stream.step(&[x]).unwrap().remove(0).data;
            let given = session
                .run(&[x, TensorView::f32(&[1, width], &state)])
                .unwrap();
            assert_eq!(given[0].data, last);
            state.clone_from(&given[1].data);
        }
        all.extend(last);
    }
    all
}

/// The same by the crate for microcontrollers.
fn micro_outputs(model: &Model, windows: usize) -> Vec<f32> {
    let bytes = lacuna_convert::micro(model).unwrap();
    let micro = lacuna_micro::Model::parse(&bytes).unwrap();
    let mut all = Vec::new();
    for window in sequences().chunks_exact(TIME * CHANNELS).take(windows) {
        let mut state = vec![0.0; micro.hidden()];
        let mut scratch = vec![0.0; micro.scratch_len()];
        let mut logits = vec![0.0; micro.classes()];
        for step in window.chunks_exact(CHANNELS) {
            micro
                .step(step, &mut state, &mut scratch, &mut logits)
                .unwrap();
        }
        all.extend(logits);
    }
    all
}

fn near(what: &str, found: &[f32], expected: &[f32], error: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= error * scale, "{what}: {a} is not {b}");
    }
}

#[test]
fn a_cell_learns_what_was_earlier_and_the_model_normalises_its_input() {
    let place = Place::new();
    let trained = train(
        &network("fastgrnn-3-13-3"),
        None,
        &place.settings(),
        &Effort::default(),
        &mut |_| (),
    )
    .unwrap();
    let last = trained.rows.last().unwrap();
    assert_eq!(last.test_samples, Some(40));
    assert!(last.test_accuracy.unwrap() > 0.9, "{:?}", trained.rows);
    // Statistics are those of the training subjects alone.
    let own = Sequences::open(&place.file("data.safetensors"), "train", &[2, 5]).unwrap();
    assert_eq!(own.len(), 80);
    let [mean, std] = own.statistics().unwrap();
    let weight = |name: &str| trained.model.weights()[name].to_f32().unwrap();
    assert_eq!([weight("input.mean"), weight("input.std")], [mean, std]);
    // The epoch's figure is that of the model as it is.
    let test = Sequences::open(&place.file("data.safetensors"), "test", &[2, 5]).unwrap();
    for batch in [1, 7, 64] {
        let options = EvalOptions {
            batch,
            ..EvalOptions::default()
        };
        let found = evaluate_sequences(&trained.model, &test, &options, &mut |_, _| ()).unwrap();
        assert_eq!(Some(found.top1), last.test_accuracy, "batch {batch}");
    }
    near(
        "micro",
        &micro_outputs(&trained.model, 6),
        &outputs(&trained.model, 6),
        1e-5,
    );
}

#[test]
fn columns_go_and_the_cut_model_is_the_masked_one() {
    let place = Place::new();
    let dense = network("fastgrnn-3-17-3-3-17");
    for gradual in [None, Some(SparsityCurve::Cubic)] {
        let recipe = Recipe {
            solver: SolverName::Columns,
            ranks: [("rnn.W1".to_owned(), 2), ("rnn.U1".to_owned(), 5)].into(),
            ..Recipe::new(AllocatorName::Columns, 0.0)
        };
        let settings = TrainSettings {
            gradual: gradual.map(|curve| Gradual {
                curve,
                start: 1,
                end: 30,
            }),
            ..place.settings()
        };
        let mut sparsities = Vec::new();
        let trained = train(
            &dense,
            Some(&recipe),
            &settings,
            &Effort::default(),
            &mut |p| {
                if let Some(row) = p.row {
                    sparsities.push(row.sparsity.unwrap_or(0.0));
                }
            },
        )
        .unwrap();
        // 1 of 3 columns of 3, 12 of 17 columns of 17.
        let plan = trained.plan.unwrap();
        let zeros: Vec<usize> = plan.layers.iter().map(|l| l.zeros_after).collect();
        assert_eq!(zeros, [3, 12 * 17]);
        if gradual.is_some() {
            assert_eq!(sparsities[0], 0.0);
            assert!(
                sparsities[2] > 0.0 && sparsities[2] < sparsities[40],
                "{sparsities:?}"
            );
        }
        let masked = trained.model;
        assert!(trained.rows.last().unwrap().test_accuracy.unwrap() > 0.8);
        let (small, cuts) = cut(&masked).unwrap();
        let sizes: Vec<(usize, usize)> = cuts.iter().map(|c| (c.before, c.after)).collect();
        assert_eq!(sizes, [(3, 2), (17, 5)]);
        assert_eq!(small.weights()["rnn.U2"].shape(), [17, 5]);
        let path = place.file("small.safetensors");
        small.save(&path).unwrap();
        let small = Model::open(&path).unwrap();
        let expected = outputs(&masked, 9);
        near("cut", &outputs(&small, 9), &expected, 1e-6);
        near("masked micro", &micro_outputs(&masked, 9), &expected, 1e-5);
        near("cut micro", &micro_outputs(&small, 9), &expected, 1e-5);
        let size = |m: &Model| lacuna_convert::micro(m).unwrap().len();
        assert!(size(&small) < size(&masked));
    }
}

const COLUMNS: &str = "columns --arch fastgrnn-3-17-3-3-17 --rank rnn.U1=5 --rank rnn.W1=2 --fine-tune 14 --gradual cubic \
                       --gradual-end 9 --data data.safetensors --held-out-subjects 2,5 --test-split test --batch 8 \
                       --optimizer adam --lr 0.01";

#[test]
fn a_killed_run_gives_the_same_bytes_on_any_number_of_threads_and_so_does_its_recipe() {
    let place = Place::new();
    let started = Instant::now();
    place.well(&format!(
        "{COLUMNS} -o whole.safetensors --threads 1 --emit-recipe r.toml"
    ));
    let whole = started.elapsed();
    place.well(&format!(
        "{COLUMNS} -o two.safetensors --threads 2 --metrics m.jsonl"
    ));
    assert_eq!(
        place.bytes("whole.safetensors"),
        place.bytes("two.safetensors")
    );
    let rows = String::from_utf8(place.bytes("m.jsonl")).unwrap();
    assert_eq!(
        rows.lines().filter(|l| l.contains("test_accuracy")).count(),
        14
    );
    place.well("run r.toml -o again.safetensors");
    assert_eq!(
        place.bytes("whole.safetensors"),
        place.bytes("again.safetensors")
    );

    let checkpoint = place.file("killed.safetensors.checkpoint");
    until_it_ends(whole, &checkpoint, || {
        place.command(&format!("{COLUMNS} -o killed.safetensors --threads 2"))
    });
    assert_eq!(
        place.bytes("whole.safetensors"),
        place.bytes("killed.safetensors")
    );

    let said = place
        .well("cut whole.safetensors -o small.safetensors --json")
        .stdout;
    let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
    assert_eq!(said["cuts"][1]["after"], 5, "{said}");
    let accuracy = |name: &str| {
        let args = format!("eval {name} --data data.safetensors --held-out-subjects 2,5 --json");
        let report: serde_json::Value = serde_json::from_slice(&place.well(&args).stdout).unwrap();
        assert_eq!(report["samples"], 40);
        report["top1_correct"].clone()
    };
    assert_eq!(accuracy("whole.safetensors"), accuracy("small.safetensors"));
}

#[test]
fn bad_data_and_bad_ranks_are_named() {
    let place = Place::new();
    let (values, labels, subjects) = (sequences(), vec![0u8; COUNT], vec![1u8; COUNT]);
    let fails = |args: &str, what: &str| {
        let output = place.command(args).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains(what),
            "{args}: {error}"
        );
        assert!(!place.file("o.safetensors").exists());
    };
    let mut bad = values.clone();
    bad[(7 * TIME + 4) * CHANNELS + 2] = f32::NAN;
    write(&place.file("nan.safetensors"), &bad, &labels, &subjects);
    let mut still = values.clone();
    still
        .iter_mut()
        .skip(1)
        .step_by(CHANNELS)
        .for_each(|x| *x = 2.5);
    write(&place.file("still.safetensors"), &still, &labels, &subjects);
    write(
        &place.file("short.safetensors"),
        &values,
        &labels,
        &subjects[1..],
    );
    write(
        &place.file("label.safetensors"),
        &values,
        &[9; COUNT],
        &subjects,
    );
    let train = "train --arch fastgrnn-3-8-3 -o o.safetensors --data";
    for (args, what) in [
        ("nan.safetensors", "window 7, step 4, channel 2: NaN"),
        ("still.safetensors", "channel 1 never changes"),
        (
            "short.safetensors --held-out-subjects 1",
            "119 subjects for 120 windows",
        ),
        ("label.safetensors", "label 9, but the model has 3 classes"),
        (
            "data.safetensors --held-out-subjects 2,11",
            "subject 11 is to be held out",
        ),
        (
            "data.safetensors --held-out-subjects 2 --split all",
            "split `all`",
        ),
        (
            "data.safetensors --held-out-subjects 1,2,3,4,5,6",
            "nothing to train on",
        ),
        ("data.safetensors --flip", "crop and flip are for images"),
        ("data.safetensors --mean 1,2", "[1.0, 2.0] for 3 channels"),
        ("data.safetensors --preset cifar10", "is for images"),
    ] {
        fails(&format!("{train} {args}"), what);
    }
    let wide = "train --arch fastgrnn-4-8-3 -o o.safetensors --data data.safetensors";
    fails(wide, "4 channels");
    fails(
        "train --arch resnet-20 -o o.safetensors --data data.safetensors --held-out-subjects 1",
        "the model takes images",
    );
    let columns = "columns --arch fastgrnn-3-8-3-3-8 -o o.safetensors";
    fails(columns, "--sparsity is missing");
    fails(
        &format!("{columns} --rank rnn.U2=3"),
        "`rnn.U2`, which is no first factor",
    );
    fails(
        &format!("{columns} --rank rnn.U1=9"),
        "a rank of 9 for `rnn.U1`",
    );
    fails(&format!("{columns} --rank rnn.U1"), "a weight and a number");
    fails(
        &format!("{columns} --sparsity 0.5 --min-weights 3"),
        "a floor",
    );
    fails(
        "columns --arch fastgrnn-3-8-3 --sparsity 0.5 -o o.safetensors",
        "factors of low rank",
    );
    place.well(&format!("{columns} --sparsity 0.5"));
}

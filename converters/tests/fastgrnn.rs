//! FastGRNN: named networks, and the tensors of EdgeML.

use lacuna::model::{Weight, Weights};
use lacuna::{Model, Session, SessionOptions, Stream, TensorView};
use lacuna_convert::{Options, export_onnx, micro, open, untrained};
use safetensors::tensor::{self, Dtype, serialize};

fn network(name: &str) -> Model {
    let arch = Some(name.to_owned());
    let options = Options {
        arch,
        ..Options::default()
    };
    untrained(&options, 0).unwrap()
}

fn save(dir: &tempfile::TempDir, weights: &Weights) -> std::path::PathBuf {
    let bytes = |w: &Weight| -> Vec<u8> {
        let values = w.to_f32().unwrap();
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    };
    let data: Vec<(&str, &Weight, Vec<u8>)> = weights
        .iter()
        .map(|(n, w)| (n.as_str(), w, bytes(w)))
        .collect();
    let views = data.iter().map(|(name, weight, bytes)| {
        let shape = weight.shape().to_vec();
        (
            *name,
            tensor::TensorView::new(Dtype::F32, shape, bytes).unwrap(),
        )
    });
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, serialize(views, None).unwrap()).unwrap();
    path
}

#[test]
fn fastgrnn_of_edgeml_is_turned_over() {
    let ours = network("fastgrnn-5-12-3-4-6");
    // As EdgeML's first releases write it: matrices the other way round, vectors of two axes, other prefixes.
    let theirs: Weights = ours
        .weights()
        .iter()
        .map(|(name, weight)| {
            let values = weight.to_f32().unwrap();
            let name = name
                .replace("rnn.", "model.cell.")
                .replace("fc.", "model.FC.");
            let weight = match *weight.shape() {
                [rows, cols] if !name.contains("FC") => {
                    let turned: Vec<f32> = (0..rows * cols)
                        .map(|i| values[i % rows * cols + i / rows])
                        .collect();
                    Weight::from_f32(&[cols, rows], &turned)
                }
                [n] if !name.contains("FC") => Weight::from_f32(&[1, n], &values),
                _ => weight.clone(),
            };
            (name, weight)
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let read = open(save(&dir, &theirs), &Options::default()).unwrap();
    assert_eq!(read.graph(), ours.graph());
    let values = |m: &Model| -> Vec<_> {
        m.weights()
            .iter()
            .map(|(n, w)| (n.clone(), w.shape().to_vec(), w.to_f32()))
            .collect()
    };
    assert_eq!(values(&read), values(&ours));
    let x = [0.3, -1.0, 0.5, 2.0, 0.0];
    let view = [TensorView::f32(&[1, 5], &x)];
    let steps = |model: &Model| {
        let mut stream = Stream::new(model, SessionOptions::default()).unwrap();
        stream.step(&view).unwrap();
        stream.step(&view).unwrap()
    };
    assert_eq!(steps(&read), steps(&ours));
}

#[test]
fn inputs_are_normalised_where_the_dict_says_how() {
    let plain = network("fastgrnn-2-4-3");
    let mut weights = plain.weights().clone();
    weights.insert("input.mean".into(), Weight::from_f32(&[2], &[1.0, -2.0]));
    weights.insert("input.std".into(), Weight::from_f32(&[2], &[0.5, 4.0]));
    let dir = tempfile::tempdir().unwrap();
    let model = open(save(&dir, &weights), &Options::default()).unwrap();
    let step = |model: &Model, x: [f32; 2]| {
        let mut stream = Stream::new(model, SessionOptions::default()).unwrap();
        stream.step(&[TensorView::f32(&[1, 2], &x)]).unwrap()
    };
    assert_eq!(step(&model, [2.0, 2.0]), step(&plain, [2.0, 1.0]));
}

#[test]
fn what_is_no_cell_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut Weights)| {
        let mut weights = network("fastgrnn-5-12-3-4-6").weights().clone();
        change(&mut weights);
        open(save(&dir, &weights), &Options::default())
            .unwrap_err()
            .to_string()
    };
    let none = refused(&|w| drop(w.remove("rnn.U1")));
    assert!(none.contains("the other is not"), "{none}");
    let fewer =
        refused(&|w| drop(w.insert("rnn.W2".into(), Weight::from_f32(&[12, 3], &[0.5; 36]))));
    assert!(fewer.contains("rnn.w2"), "{fewer}");
    let more = refused(&|w| drop(w.insert("rnn.V".into(), Weight::from_f32(&[1], &[0.5]))));
    assert!(more.contains("without a use: rnn.V"), "{more}");
}

/// A model with most of its weights taken out, pruned ones and whole ones in turn.
fn thinned(name: &str) -> Model {
    let mut model = network(name);
    for (i, name) in model.weights().clone().keys().enumerate() {
        let weight = &model.weights()[name];
        if weight.shape().len() == 2 && i % 3 != 0 {
            let keep = |(i, v): (usize, f32)| if i * 7 % 10 < 3 { v } else { 0.0 };
            let values = weight.to_f32().unwrap();
            let values: Vec<f32> = values.into_iter().enumerate().map(keep).collect();
            let weight = Weight::from_f32(weight.shape(), &values);
            model.set_weight(name, weight).unwrap();
        }
    }
    model.encoded()
}

#[test]
fn a_microcontroller_computes_what_a_stream_computes() {
    for name in [
        "fastgrnn-6-32-7",
        "fastgrnn-9-80-2-8-70",
        "fastgrnn-1-1-1",
        "fastgrnn-3-17-9-1-2",
    ] {
        for model in [network(name), thinned(name)] {
            let bytes = micro(&model).unwrap();
            let small = lacuna_micro::Model::parse(&bytes).unwrap();
            let mut stream = Stream::new(&model, SessionOptions::default()).unwrap();
            let mut state = vec![0.0; small.hidden()];
            let mut scratch = vec![f32::NAN; small.scratch_len()];
            let mut logits = vec![f32::NAN; small.classes()];
            for t in 0..50 {
                let x: Vec<f32> = (0..small.inputs())
                    .map(|i| ((t * 13 + i * 5) as f32).sin())
                    .collect();
                small
                    .step(&x, &mut state, &mut scratch, &mut logits)
                    .unwrap();
                let want = stream.step(&[TensorView::f32(&[1, x.len()], &x)]).unwrap();
                for (got, want) in logits.iter().zip(&want[0].data) {
                    assert!(
                        (got - want).abs() < 1e-5,
                        "{name}, step {t}: {got}, not {want}"
                    );
                }
            }
        }
    }
    let (whole, thin) = (network("fastgrnn-6-32-7"), thinned("fastgrnn-6-32-7"));
    assert!(micro(&thin).unwrap().len() < micro(&whole).unwrap().len());
    let error = micro(&network("resnet-20")).unwrap_err().to_string();
    assert!(error.contains("fastgrnn"), "{error}");
}

#[test]
fn broken_bytes_of_a_microcontroller_are_refused() {
    use lacuna_micro::Error;
    let bytes = micro(&thinned("fastgrnn-3-9-2-2-5")).unwrap();
    let parse = |bytes: &[u8]| lacuna_micro::Model::parse(bytes).map(drop);
    assert_eq!(parse(&bytes), Ok(()));
    for len in 0..bytes.len() {
        assert!(parse(&bytes[..len]).is_err(), "{len} bytes");
    }
    let long = [&bytes[..], &[0]].concat();
    assert!(matches!(parse(&long), Err(Error::Length { .. })));
    let with = |at: usize, part: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + part.len()].copy_from_slice(part);
        parse(&bytes)
    };
    assert_eq!(with(7, b"2"), Err(Error::Magic));
    assert_eq!(with(8, &0u32.to_le_bytes()), Err(Error::Size(0)));
    assert_eq!(
        with(12, &u32::MAX.to_le_bytes()),
        Err(Error::Size(u32::MAX))
    );
    assert_eq!(with(32, &f32::NAN.to_le_bytes()), Err(Error::NotFinite));
    // Every bit of the header and of what follows, turned over: an error or a network, never a panic.
    let mut kept = 0;
    for bit in 0..8 * bytes.len() {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(model) = lacuna_micro::Model::parse(&bytes) {
            let (mut state, mut logits) = (vec![0.0; model.hidden()], vec![0.0; model.classes()]);
            let mut scratch = vec![0.0; model.scratch_len()];
            model
                .step(
                    &vec![1.0; model.inputs()],
                    &mut state,
                    &mut scratch,
                    &mut logits,
                )
                .unwrap();
            kept += 1;
        }
    }
    assert!(kept > 0 && kept < 8 * bytes.len());
    let model = lacuna_micro::Model::parse(&bytes).unwrap();
    let error = model
        .step(&[0.0; 3], &mut [0.0; 9], &mut [0.0; 2], &mut [0.0; 2])
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Buffer {
                name: "scratch",
                given: 2,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn the_step_leaves_as_onnx() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("step.onnx");
    for name in ["fastgrnn-5-12-3-4-6", "fastgrnn-5-12-3"] {
        let model = network(name);
        export_onnx(&model, &path).unwrap();
        let back = open(&path, &Options::default()).unwrap();
        let (x, h) = ([0.3, -1.0, 0.5, 2.0, 0.0], [0.25; 12]);
        let views = [TensorView::f32(&[1, 5], &x), TensorView::f32(&[1, 12], &h)];
        let run = |model: &Model| {
            let mut session = Session::new(model, SessionOptions::default()).unwrap();
            session.run(&views).unwrap()
        };
        for (got, want) in run(&back).iter().zip(run(&model)) {
            assert_eq!(got.shape, want.shape);
            for (a, b) in got.data.iter().zip(&want.data) {
                assert!((a - b).abs() < 1e-6, "{name}: {a}, not {b}");
            }
        }
    }
}

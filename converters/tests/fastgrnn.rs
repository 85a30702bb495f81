//! FastGRNN: named networks, and the tensors of EdgeML.

use lacuna::model::{Weight, Weights};
use lacuna::{Model, SessionOptions, Stream, TensorView};
use lacuna_convert::{Options, open, untrained};
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

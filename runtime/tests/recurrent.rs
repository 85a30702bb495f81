//! FastGRNN on every instruction set against a plain f64 oracle, and streams against sessions.

mod common;

use common::{Random, compare, isas_of_f32};
use lacuna::model::{Dim, Graph, Input, Node, Op, Weights};
use lacuna::{Model, Session, SessionOptions, Stream, TensorView, Weight};

/// The parameters of a cell of `inputs` and `width` elements, with a linear layer of 3 outputs.
struct Cell {
    inputs: usize,
    width: usize,
    weights: Weights,
}

impl Cell {
    fn new(inputs: usize, width: usize, density: f32) -> Cell {
        let mut random = Random(7 + width as u64);
        let mut weights = Weights::new();
        let mut matrix = |name: &str, rows: usize, cols: usize| {
            let values = random.sparse(rows, cols, density);
            weights.insert(name.into(), Weight::from_f32(&[rows, cols], &values));
        };
        matrix("w", width, inputs);
        matrix("u", width, width);
        matrix("fc", 3, width);
        for name in ["gate", "update"] {
            weights.insert(
                name.into(),
                Weight::from_f32(&[width], &random.tensor(width)),
            );
        }
        weights.insert("zeta".into(), Weight::from_f32(&[1], &[0.7]));
        weights.insert("nu".into(), Weight::from_f32(&[1], &[-2.5]));
        Cell {
            inputs,
            width,
            weights,
        }
    }

    fn graph(&self) -> Graph {
        let node = |name: &str, op: Op, inputs: &[&str]| Node {
            name: name.into(),
            op,
            inputs: inputs.iter().map(|s| s.to_string()).collect(),
            output: name.into(),
        };
        let product = |name, inputs: &[&str]| node(name, Op::MatMul { trans_b: true }, inputs);
        let shape = |width| vec![Dim::Symbol("N".into()), Dim::Fixed(width)];
        Graph {
            name: "cell".into(),
            inputs: vec![
                Input::f32("x", shape(self.inputs)),
                Input::carried("h", shape(self.width), "state"),
            ],
            outputs: vec!["logits".into(), "state".into()],
            nodes: vec![
                product("wx", &["x", "w"]),
                product("uh", &["h", "u"]),
                node("sum", Op::Add, &["wx", "uh"]),
                node(
                    "state",
                    Op::FastGRNN,
                    &["sum", "h", "gate", "update", "zeta", "nu"],
                ),
                product("logits", &["state", "fc"]),
            ],
        }
    }

    fn model(&self) -> Model {
        Model::new(self.graph(), self.weights.clone()).unwrap()
    }

    fn values(&self, name: &str) -> Vec<f64> {
        let values = self.weights[name].to_f32().unwrap();
        values.into_iter().map(f64::from).collect()
    }

    /// The state after a step, in f64.
    fn step(&self, x: &[f32], h: &[f64]) -> Vec<f64> {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let (w, u) = (self.values("w"), self.values("u"));
        let (gate, update) = (self.values("gate"), self.values("update"));
        let (zeta, nu) = (sigmoid(f64::from(0.7f32)), sigmoid(-2.5));
        let n = self.width;
        (0..n)
            .map(|i| {
                let wx: f64 = (0..self.inputs)
                    .map(|j| w[i * self.inputs + j] * f64::from(x[j]))
                    .sum();
                let uh: f64 = (0..n).map(|j| u[i * n + j] * h[j]).sum();
                let z = sigmoid(wx + uh + gate[i]);
                z * h[i] + (zeta * (1.0 - z) + nu) * (wx + uh + update[i]).tanh()
            })
            .collect()
    }

    fn logits(&self, h: &[f64]) -> Vec<(f64, f64)> {
        let fc = self.values("fc");
        (fc.chunks(self.width))
            .map(|row| (row.iter().zip(h).map(|(a, b)| a * b).sum(), 1.0))
            .collect()
    }
}

#[test]
fn streams_agree_with_the_oracle() {
    for (inputs, width, density) in [
        (1, 1, 1.0),
        (6, 17, 1.0),
        (9, 80, 1.0),
        (5, 33, 0.3),
        (3, 16, 0.0),
    ] {
        let cell = Cell::new(inputs, width, density);
        let model = cell.model().encoded();
        for isa in isas_of_f32() {
            for (batch, threads) in [(1, 1), (3, 2)] {
                let options = SessionOptions {
                    isa: Some(isa.name().into()),
                    threads,
                    symbols: [("N".to_owned(), batch)].into(),
                    ..SessionOptions::default()
                };
                let mut stream = Stream::new(&model, options).unwrap();
                assert_eq!(stream.inputs(), [("x".to_owned(), vec![batch, inputs])]);
                assert_eq!(stream.outputs(), [("logits".to_owned(), vec![batch, 3])]);
                for sequence in 0..2 {
                    let mut random = Random(sequence + 1);
                    let mut states = vec![vec![0.0; width]; batch];
                    for step in 0..20 {
                        let x = random.tensor(batch * inputs);
                        let got = stream
                            .step(&[TensorView::f32(&[batch, inputs], &x)])
                            .unwrap();
                        let mut want = Vec::new();
                        for (state, x) in states.iter_mut().zip(x.chunks(inputs)) {
                            *state = cell.step(x, state);
                            want.extend(cell.logits(state));
                        }
                        let what =
                            || format!("{isa}, {inputs} x {width}, batch {batch}, step {step}");
                        compare(&got[0].data, &want, |_| 2e-5, &what);
                    }
                    assert_eq!(stream.steps(), 20);
                    stream.reset();
                }
            }
        }
    }
}

#[test]
fn what_is_carried_can_be_kept_and_given_back() {
    let cell = Cell::new(4, 10, 1.0);
    let mut stream = Stream::new(&cell.model(), SessionOptions::default()).unwrap();
    let (x, y) = ([0.5; 4], [-1.0; 4]);
    let shape = [1, 4];
    stream.step(&[TensorView::f32(&shape, &x)]).unwrap();
    let kept: Vec<(String, Vec<f32>)> = stream
        .carried()
        .map(|(n, v)| (n.to_owned(), v.to_vec()))
        .collect();
    let first = stream.step(&[TensorView::f32(&shape, &y)]).unwrap();
    // An error in the middle changes nothing.
    let bad = [0.0, f32::NAN, 0.0, 0.0];
    let error = stream
        .step(&[TensorView::f32(&shape, &bad)])
        .unwrap_err()
        .to_string();
    assert!(error.contains("element 1 is NaN"), "{error}");
    assert_eq!(stream.steps(), 2);
    stream.reset();
    stream.set_carried(&kept[0].0, &kept[0].1).unwrap();
    assert_eq!(stream.step(&[TensorView::f32(&shape, &y)]).unwrap(), first);

    let error = |r: lacuna::Result<()>| r.unwrap_err().to_string();
    assert!(error(stream.set_carried("g", &[0.0])).contains("`g`"));
    assert!(error(stream.set_carried("h", &[0.0])).contains("10 are carried"));
    let error = stream.step(&[]).unwrap_err().to_string();
    assert!(error.contains("0 given, 1 expected"), "{error}");
    // The session of the same model takes the state as an input like any other.
    let mut session = Session::new(&cell.model(), SessionOptions::default()).unwrap();
    let h = TensorView::f32(&[1, 10], &kept[0].1);
    assert_eq!(
        session.run(&[TensorView::f32(&shape, &y), h]).unwrap()[0],
        first[0]
    );
}

#[test]
fn what_can_not_be_carried_is_refused() {
    let cell = Cell::new(4, 10, 1.0);
    let refused = |change: &dyn Fn(&mut Graph)| {
        let mut graph = cell.graph();
        change(&mut graph);
        Model::new(graph, cell.weights.clone())
            .unwrap_err()
            .to_string()
    };
    for (error, part) in [
        (
            refused(&|g| g.inputs[1].carried = Some("sum".into())),
            "`sum`, which is no output",
        ),
        (
            refused(&|g| g.inputs[1].carried = Some("logits".into())),
            "is carried from `logits` of shape [N, 3]",
        ),
        (
            refused(&|g| g.inputs[0].carried = Some("state".into())),
            "is no output or taken",
        ),
        (refused(&|g| g.inputs[1].shape[1] = Dim::Fixed(11)), "10"),
        (
            refused(&|g| g.nodes[3].inputs.swap(2, 4)),
            "input 2 has shape [1], not [10]",
        ),
        (
            refused(&|g| g.nodes[3].inputs.truncate(4)),
            "4 inputs, expected 6",
        ),
    ] {
        assert!(error.contains(part), "{error}");
    }
    let mut graph = cell.graph();
    graph.inputs[1].carried = None;
    let model = Model::new(graph, cell.weights.clone()).unwrap();
    let error = Stream::new(&model, SessionOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("carries nothing"), "{error}");
}

#[cfg(feature = "candle")]
#[test]
fn the_reference_agrees() {
    use candle_core::{Device, Tensor as Candle};
    let cell = Cell::new(6, 19, 1.0);
    let mut random = Random(3);
    let (x, h) = (random.tensor(2 * 6), random.tensor(2 * 19));
    let options = SessionOptions {
        symbols: [("N".to_owned(), 2)].into(),
        ..SessionOptions::default()
    };
    let mut session = Session::new(&cell.model(), options).unwrap();
    let views = [TensorView::f32(&[2, 6], &x), TensorView::f32(&[2, 19], &h)];
    let got = session.run(&views).unwrap();
    let given = [(x, 6), (h, 19)].map(|(v, n)| Candle::from_vec(v, (2, n), &Device::Cpu).unwrap());
    let want = lacuna::candle::Reference::new(&cell.model())
        .unwrap()
        .run(&given)
        .unwrap();
    for (got, want) in got.iter().zip(&want) {
        let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
        let want: Vec<(f64, f64)> = want.iter().map(|&v| (f64::from(v), 1.0)).collect();
        compare(&got.data, &want, |_| 5e-6, &|| "candle".into());
    }
}

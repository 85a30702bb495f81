//! The operators of language models on every instruction set against plain f64 oracles.

mod common;

use common::{Random, compare, isas_of_f32};
use half::{bf16, f16};
use lacuna::model::{Dim, Graph, Input, Node, Op, Weights};
use lacuna::{DType, Model, Session, SessionOptions, TensorView, Weight};

/// What a graph input is given.
enum Given {
    F32(Vec<usize>, Vec<f32>),
    I64(Vec<usize>, Vec<i64>),
}

use Given::{F32, I64};

impl Given {
    fn view(&self) -> TensorView<'_> {
        match self {
            F32(shape, data) => TensorView::f32(shape, data),
            I64(shape, data) => TensorView::i64(shape, data),
        }
    }

    fn input(&self, name: String) -> Input {
        let dims = |shape: &[usize]| shape.iter().map(|&n| Dim::Fixed(n)).collect();
        match self {
            F32(shape, _) => Input::f32(name, dims(shape)),
            I64(shape, _) => Input::i64(name, dims(shape)),
        }
    }
}

/// A graph of one node. Inputs are the graph's `x0, x1, ...`, then the weights `w0, w1, ...`, unless
/// `order` names them.
fn one_node(op: Op, given: &[Given], weights: Vec<Weight>, order: Option<&[&str]>) -> Model {
    let inputs: Vec<String> = match order {
        Some(names) => names.iter().map(|n| n.to_string()).collect(),
        None => (0..given.len())
            .map(|i| format!("x{i}"))
            .chain((0..weights.len()).map(|i| format!("w{i}")))
            .collect(),
    };
    let graph = Graph {
        name: "one".into(),
        inputs: (given.iter().enumerate())
            .map(|(i, g)| g.input(format!("x{i}")))
            .collect(),
        outputs: vec!["y".into()],
        nodes: vec![Node {
            name: "node".into(),
            op,
            inputs,
            output: "y".into(),
        }],
    };
    let weights = weights.into_iter().enumerate();
    let weights: Weights = weights.map(|(i, w)| (format!("w{i}"), w)).collect();
    Model::new(graph, weights).unwrap()
}

/// Runs on every instruction set with one, two and three threads; the error is relative to the second
/// of `want`.
fn check(model: &Model, given: &[Given], want: &[(f64, f64)], tolerance: f64, case: &str) {
    let views: Vec<TensorView<'_>> = given.iter().map(Given::view).collect();
    for isa in isas_of_f32() {
        for threads in [1, 2, 3] {
            let options = SessionOptions {
                isa: Some(isa.name().into()),
                threads,
                ..SessionOptions::default()
            };
            let mut session = Session::new(model, options).unwrap();
            for _ in 0..2 {
                let got = session.run(&views).unwrap();
                let what = || format!("{isa}, {threads} threads; {case}");
                compare(&got[0].data, want, |size| tolerance * size, &what);
            }
        }
    }
}

fn erf(x: f64) -> f64 {
    // The series near 0, the continued fraction of erfc beyond.
    if x.abs() < 3.0 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        2.0 / std::f64::consts::PI.sqrt() * sum
    } else {
        let z = x.abs();
        let fraction = (1..80).rev().fold(z, |f, k| z + f64::from(k) / 2.0 / f);
        x.signum() * (1.0 - (-z * z).exp() / fraction / std::f64::consts::PI.sqrt())
    }
}

#[test]
fn activations_agree_with_the_oracle() {
    let mut x: Vec<f32> = (-2000..2000).map(|i| i as f32 * 0.01).collect();
    x.extend([-1e30, -200.0, -90.0, -0.0, 0.0, 1e-20, 90.0, 200.0, 1e30]);
    x.extend([1e-3, -1e-4, 0.6324, 0.6325, -0.6325]);
    type F = fn(f64) -> f64;
    let sigmoid: F = |x| 1.0 / (1.0 + (-x).exp());
    let cases: [(Op, F); 6] = [
        (Op::Sigmoid, sigmoid),
        (Op::Tanh, f64::tanh),
        (Op::Swish { alpha: 1.0 }, |x| x / (1.0 + (-x).exp())),
        (Op::Swish { alpha: -0.5 }, |x| x / (1.0 + (x * 0.5).exp())),
        (Op::Gelu { approximate: false }, |x| {
            x * 0.5 * (1.0 + erf(x / 2f64.sqrt()))
        }),
        (Op::Gelu { approximate: true }, |x| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x * 0.5 * (1.0 + u.tanh())
        }),
    ];
    for (op, f) in cases {
        // Relative to the argument's size where the result is tiny beside it.
        let want: Vec<(f64, f64)> = x
            .iter()
            .map(|&x| {
                let y = f(f64::from(x));
                (y, y.abs() + 0.03 * f64::from(x).abs().min(1.0) + 1e-30)
            })
            .collect();
        let given = [F32(vec![x.len()], x.clone())];
        let case = format!("{op:?}");
        check(
            &one_node(op, &given, vec![], None),
            &given,
            &want,
            1.2e-6,
            &case,
        );
    }
}

#[test]
fn gates_become_one_step_and_agree_with_the_oracle() {
    let shape = vec![2usize, 3, 37];
    let mut random = Random(4);
    let (a, b) = (random.tensor(222), random.tensor(222));
    for flipped in [false, true] {
        for late in [false, true] {
            let node = |name: &str, op: Op, inputs: &[&str]| Node {
                name: name.into(),
                op,
                inputs: inputs.iter().map(|s| s.to_string()).collect(),
                output: name.into(),
            };
            let mut nodes = vec![
                node("act", Op::Swish { alpha: 1.0 }, &["x0"]),
                node("up", Op::HardSwish, &["x1"]),
                node(
                    "mul",
                    Op::Mul,
                    if flipped {
                        &["up", "act"]
                    } else {
                        &["act", "up"]
                    },
                ),
                node("out", Op::Add, &["mul", "x0"]),
            ];
            if late {
                nodes.swap(0, 1);
            }
            let given = [F32(shape.clone(), a.clone()), F32(shape.clone(), b.clone())];
            let graph = Graph {
                name: "gate".into(),
                inputs: vec![given[0].input("x0".into()), given[1].input("x1".into())],
                outputs: vec!["out".into()],
                nodes,
            };
            let model = Model::new(graph, Weights::new()).unwrap();
            let want: Vec<(f64, f64)> = (a.iter().zip(&b))
                .map(|(&a, &b)| {
                    let (a, b) = (f64::from(a), f64::from(b));
                    let up = b * (b / 6.0 + 0.5).clamp(0.0, 1.0);
                    (a / (1.0 + (-a).exp()) * up + a, 1.0)
                })
                .collect();
            check(&model, &given, &want, 1e-6, "gate");
            let session = Session::new(&model, SessionOptions::default()).unwrap();
            let kernels: Vec<&str> = session.steps().iter().map(|s| s.kernel.as_str()).collect();
            assert_eq!(kernels.len(), 3, "{kernels:?}");
            assert!(kernels[1].starts_with("f32_swish_mul_"), "{kernels:?}");
            assert_eq!(session.steps()[1].fused, ["mul"]);
        }
    }
}

#[test]
fn an_activation_that_is_returned_too_stays_a_step() {
    let given = [F32(vec![3, 5], Random(1).tensor(15))];
    let node = |name: &str, op: Op, inputs: &[&str]| Node {
        name: name.into(),
        op,
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        output: name.into(),
    };
    let graph = Graph {
        name: "gate".into(),
        inputs: vec![given[0].input("x0".into())],
        outputs: vec!["mul".into(), "act".into()],
        nodes: vec![
            node("act", Op::Sigmoid, &["x0"]),
            node("mul", Op::Mul, &["act", "x0"]),
        ],
    };
    let model = Model::new(graph, Weights::new()).unwrap();
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    assert_eq!(session.steps().len(), 2);
    let outputs = session.run(&[given[0].view()]).unwrap();
    let F32(_, x) = &given[0] else { panic!() };
    for (i, x) in x.iter().enumerate() {
        assert!((outputs[0].data[i] - outputs[1].data[i] * x).abs() < 1e-7);
    }
}

#[test]
fn normalizations_agree_with_the_oracle() {
    let mut random = Random(9);
    for (rows, width) in [
        (1, 1),
        (1, 576),
        (2, 15),
        (3, 16),
        (7, 17),
        (5, 64),
        (2, 2049),
        (1, 100),
    ] {
        for offset in [0.0f32, 30.0] {
            let mut x = random.tensor(rows * width);
            x.iter_mut().for_each(|x| *x += offset);
            let (scale, bias) = (random.tensor(width), random.tensor(width));
            let given = [F32(vec![1, rows, width], x.clone())];
            let vector = |v: &[f32]| Weight::from_f32(&[width], v);
            let row = |i: usize| {
                x[i / width * width..][..width]
                    .iter()
                    .map(|x| f64::from(*x))
            };
            let n = width as f64;
            let case = format!("{rows} x {width} + {offset}");

            let want: Vec<(f64, f64)> = (0..x.len())
                .map(|i| {
                    let mean = row(i).map(|x| x * x).sum::<f64>() / n;
                    let y = f64::from(x[i]) / (mean + 1e-5).sqrt();
                    (y * f64::from(scale[i % width]), 1.0 + y.abs())
                })
                .collect();
            let op = Op::RMSNormalization { epsilon: 1e-5 };
            let model = one_node(op, &given, vec![vector(&scale)], None);
            check(&model, &given, &want, 1e-6, &case);

            for with_bias in [false, true] {
                let want: Vec<(f64, f64)> = (0..x.len())
                    .map(|i| {
                        let mean = row(i).sum::<f64>() / n;
                        let variance = row(i).map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
                        let b = f64::from(u8::from(with_bias)) * f64::from(bias[i % width]);
                        let y = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt();
                        // The mean in f32 costs digits of its own size.
                        let size = 1.0 + y.abs() + mean.abs() / (variance + 1e-5).sqrt();
                        (y * f64::from(scale[i % width]) + b, size)
                    })
                    .collect();
                let mut weights = vec![vector(&scale)];
                weights.extend(with_bias.then(|| vector(&bias)));
                let op = Op::LayerNormalization { epsilon: 1e-5 };
                check(
                    &one_node(op, &given, weights, None),
                    &given,
                    &want,
                    1e-6,
                    &case,
                );
            }
        }
    }
    // Huge and vanishing rows.
    let x = [vec![1e18f32; 20], vec![-1e-18; 20], vec![0.0; 20]].concat();
    let given = [F32(vec![3, 20], x)];
    let want: Vec<(f64, f64)> = (0..60)
        .map(|i| ([1.0, -1e-18 / 1e-12, 0.0][i / 20], 1.0))
        .collect();
    let op = Op::RMSNormalization { epsilon: 1e-24 };
    let model = one_node(op, &given, vec![Weight::from_f32(&[20], &[1.0; 20])], None);
    check(&model, &given, &want, 1e-6, "huge");
}

#[test]
fn lengths_agree_with_the_oracle_on_every_axis() {
    let shape = [2usize, 5, 19];
    let mut x = Random(2).tensor(190);
    x[..19].fill(0.0);
    for axis in [-1i64, 0, 1, 2] {
        let at = if axis < 0 { 2 } else { axis as usize };
        let inner: usize = shape[at + 1..].iter().product();
        let want: Vec<(f64, f64)> = (0..190)
            .map(|i| {
                let base = i - i / inner % shape[at] * inner;
                let sum: f64 = (0..shape[at])
                    .map(|k| f64::from(x[base + k * inner]).powi(2))
                    .sum();
                let y = f64::from(x[i]) / sum.sqrt();
                (if sum > 0.0 { y } else { 0.0 }, 1.0)
            })
            .collect();
        let given = [F32(shape.to_vec(), x.clone())];
        let op = Op::LpNormalization { axis };
        check(
            &one_node(op, &given, vec![], None),
            &given,
            &want,
            1e-6,
            &format!("{axis}"),
        );
    }
}

#[test]
fn softmax_agrees_with_the_oracle_on_every_axis() {
    let shape = [3usize, 4, 35];
    let mut x = Random(2).tensor(420);
    x.iter_mut().for_each(|x| *x *= 80.0);
    x[5] = 3e38;
    x[6] = -3e38;
    for axis in [-1i64, 0, 1] {
        let at = if axis < 0 { 2 } else { axis as usize };
        let inner: usize = shape[at + 1..].iter().product();
        let want: Vec<(f64, f64)> = (0..420)
            .map(|i| {
                let base = i - i / inner % shape[at] * inner;
                let row = (0..shape[at]).map(|k| f64::from(x[base + k * inner]));
                let max = row.clone().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = row.map(|v| (v - max).exp()).sum();
                ((f64::from(x[i]) - max).exp() / sum, 1.0)
            })
            .collect();
        let given = [F32(shape.to_vec(), x.clone())];
        let op = Op::Softmax { axis };
        check(
            &one_node(op, &given, vec![], None),
            &given,
            &want,
            1e-5,
            &format!("{axis}"),
        );
    }
}

#[test]
fn masked_means_agree_with_the_oracle() {
    for (batch, tokens, width) in [(1, 1, 1), (2, 9, 33), (3, 70, 16), (1, 128, 384)] {
        let x = Random(3).tensor(batch * tokens * width);
        // The last text of a batch has nothing to attend to.
        let mask: Vec<i64> = (0..batch * tokens)
            .map(|i| i64::from(i % 3 != 1 && (batch == 1 || i / tokens < batch - 1)) * 7)
            .collect();
        let want: Vec<(f64, f64)> = (0..batch * width)
            .map(|i| {
                let (n, d) = (i / width, i % width);
                let kept = (0..tokens).filter(|t| mask[n * tokens + t] != 0);
                let count = kept.clone().count().max(1) as f64;
                let sum: f64 = kept
                    .map(|t| f64::from(x[(n * tokens + t) * width + d]))
                    .sum();
                (sum / count, 1.0)
            })
            .collect();
        let given = [
            F32(vec![batch, tokens, width], x),
            I64(vec![batch, tokens], mask),
        ];
        let model = one_node(Op::MaskedMean, &given, vec![], None);
        check(
            &model,
            &given,
            &want,
            1e-6,
            &format!("{batch} {tokens} {width}"),
        );
    }
}

/// The same values as weights of every dtype and encoding, and what they decode to.
fn tables(shape: &[usize], values: &[f32]) -> Vec<(Weight, Vec<f32>)> {
    let sparse: Vec<f32> = (values.iter().enumerate())
        .map(|(i, v)| if i % 3 == 1 { *v } else { 0.0 })
        .collect();
    let half = |dtype: DType| {
        let bytes: Vec<u8> = match dtype {
            DType::F16 => sparse
                .iter()
                .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                .collect(),
            _ => sparse
                .iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect(),
        };
        Weight::dense(shape.to_vec(), dtype, bytes.into()).unwrap()
    };
    let mut list = vec![
        Weight::from_f32(shape, values),
        Weight::from_f32(shape, &sparse).encode(),
    ];
    for dtype in [DType::F16, DType::BF16] {
        list.extend([half(dtype), half(dtype).encode()]);
    }
    list.into_iter()
        .map(|w| {
            let values = w.to_f32().unwrap();
            (w, values)
        })
        .collect()
}

#[test]
fn gathers_agree_with_the_oracle() {
    let shape = [7usize, 4, 9];
    let values = Random(5).tensor(252);
    let indices: Vec<i64> = vec![0, 3, -1, 2, -4, 1];
    for axis in [0i64, 1, -1] {
        let at = if axis < 0 { 2 } else { axis as usize };
        let (axis_len, inner): (usize, usize) = (shape[at], shape[at + 1..].iter().product());
        let outer: usize = shape[..at].iter().product();
        let expect = |values: &[f32]| -> Vec<(f64, f64)> {
            let mut want = Vec::new();
            for o in 0..outer {
                for &i in &indices {
                    let i = if i < 0 { i + axis_len as i64 } else { i } as usize;
                    let row = &values[(o * axis_len + i) * inner..][..inner];
                    want.extend(row.iter().map(|v| (f64::from(*v), 0.0)));
                }
            }
            want
        };
        let op = Op::Gather { axis };
        let ids = || I64(vec![2, 3], indices.clone());
        let bytes: Vec<u8> = indices.iter().flat_map(|i| i.to_le_bytes()).collect();
        let constant = || Weight::dense(vec![2, 3], DType::I64, bytes.clone().into()).unwrap();
        for (table, decoded) in tables(&shape, &values) {
            let case = format!("axis {axis}, {table:?}");
            let given = [ids()];
            let model = one_node(op.clone(), &given, vec![table.clone()], Some(&["w0", "x0"]));
            check(&model, &given, &expect(&decoded), 0.0, &case);
            let model = one_node(
                op.clone(),
                &[],
                vec![table, constant()],
                Some(&["w0", "w1"]),
            );
            check(&model, &[], &expect(&decoded), 0.0, &case);
        }
        let given = [F32(shape.to_vec(), values.clone()), ids()];
        let model = one_node(op.clone(), &given, vec![], None);
        check(&model, &given, &expect(&values), 0.0, "activation");
        let given = [F32(shape.to_vec(), values.clone())];
        let model = one_node(op, &given, vec![constant()], None);
        check(&model, &given, &expect(&values), 0.0, "constant indices");
    }
}

#[test]
fn indices_outside_of_the_axis_are_refused() {
    let table = || Weight::from_f32(&[4, 2], &[0.0; 8]);
    for bad in [4i64, -5, i64::MAX, i64::MIN] {
        let given = [I64(vec![1, 2], vec![0, bad])];
        let op = Op::Gather { axis: 0 };
        let model = one_node(op.clone(), &given, vec![table()], Some(&["w0", "x0"]));
        let mut session = Session::new(&model, SessionOptions::default()).unwrap();
        let error = session.run(&[given[0].view()]).unwrap_err().to_string();
        assert!(error.contains(&bad.to_string()), "{error}");
        let constant = Weight::dense(vec![1], DType::I64, bad.to_le_bytes().to_vec().into());
        let weights = vec![table(), constant.unwrap()];
        let model = one_node(op, &[], weights, Some(&["w0", "w1"]));
        let error = Session::new(&model, SessionOptions::default()).unwrap_err();
        assert!(error.to_string().contains(&bad.to_string()), "{error}");
    }
}

#[test]
fn rotations_agree_with_the_oracle() {
    for (batch, tokens, heads, width, rotated) in [
        (1, 1, 1, 2, 2),
        (2, 5, 3, 20, 20),
        (1, 40, 2, 64, 64),
        (1, 7, 2, 70, 66),
        (3, 4, 1, 9, 4),
    ] {
        let x = Random(8).tensor(batch * tokens * heads * width);
        let pairs = rotated / 2;
        let frequencies: Vec<f32> = (0..pairs)
            .map(|i| 10000f64.powf(-(i as f64) / pairs as f64) as f32)
            .collect();
        for (interleaved, scale) in [(false, 1.0f32), (true, 1.0), (false, 1.25)] {
            let want: Vec<(f64, f64)> = (0..x.len())
                .map(|i| {
                    let (d, head) = (i % width, i - i % width);
                    if d >= rotated {
                        return (f64::from(x[i]), 1.0);
                    }
                    let (pair, second) = if interleaved {
                        (d / 2, d % 2 == 1)
                    } else {
                        (d % pairs, d >= pairs)
                    };
                    let (a, b) = if interleaved {
                        (x[head + 2 * pair], x[head + 2 * pair + 1])
                    } else {
                        (x[head + pair], x[head + pairs + pair])
                    };
                    let p = (i / (heads * width) % tokens) as f64;
                    let (sin, cos) = (p * f64::from(frequencies[pair])).sin_cos();
                    let (a, b) = (f64::from(a), f64::from(b));
                    let y = if second {
                        b * cos + a * sin
                    } else {
                        a * cos - b * sin
                    };
                    (y * f64::from(scale), 1.0)
                })
                .collect();
            let given = [F32(vec![batch, tokens, heads * width], x.clone())];
            let op = Op::RotaryEmbedding {
                heads,
                interleaved,
                scale,
            };
            let weights = vec![Weight::from_f32(&[pairs], &frequencies)];
            let case = format!("{batch} {tokens} {heads} {width} {rotated} {interleaved}");
            check(
                &one_node(op, &given, weights, None),
                &given,
                &want,
                5e-7,
                &case,
            );
        }
    }
}

#[test]
fn position_vectors_are_added_from_the_start_of_the_table() {
    let (batch, tokens, width) = (2usize, 5usize, 33usize);
    let x = Random(8).tensor(batch * tokens * width);
    let given = [F32(vec![batch, tokens, width], x.clone())];
    for (table, decoded) in tables(&[9, width], &Random(4).tensor(9 * width)) {
        let want: Vec<(f64, f64)> = (0..x.len())
            .map(|i| {
                (
                    f64::from(x[i]) + f64::from(decoded[i % (tokens * width)]),
                    1.0,
                )
            })
            .collect();
        let case = format!("{table:?}");
        let model = one_node(Op::PositionEmbedding, &given, vec![table], None);
        check(&model, &given, &want, 1e-7, &case);
    }
    let short = vec![Weight::from_f32(&[4, width], &vec![0.0; 4 * width])];
    let model = one_node(Op::PositionEmbedding, &given, short, None);
    let error = Session::new(&model, SessionOptions::default()).unwrap_err();
    assert!(
        error.to_string().contains("5 positions, the table has 4"),
        "{error}"
    );
}

#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    size: usize,
    value_size: usize,
    causal: bool,
    /// Of every how many keys one is not attended; 0 for no mask, 1 for a mask that hides all.
    masked: usize,
    scale: Option<f32>,
    amplitude: f32,
}

const PLAIN: Case = Case {
    batch: 1,
    tokens: 1,
    heads: 1,
    kv_heads: 1,
    size: 16,
    value_size: 16,
    causal: true,
    masked: 0,
    scale: None,
    amplitude: 1.0,
};

fn attention(case: Case) {
    let Case {
        batch,
        tokens,
        heads,
        kv_heads,
        size,
        value_size,
        ..
    } = case;
    let mut random = Random(tokens as u64 * 31 + size as u64);
    let mut q = random.tensor(batch * tokens * heads * size);
    let k = random.tensor(batch * tokens * kv_heads * size);
    let v = random.tensor(batch * tokens * kv_heads * value_size);
    q.iter_mut().for_each(|q| *q *= case.amplitude);
    let mask: Vec<i64> = (0..batch * tokens)
        .map(|i| i64::from(case.masked == 0 || i % case.masked.max(1) != case.masked - 1))
        .collect();
    let scale = case.scale.map_or(1.0 / (size as f64).sqrt(), f64::from);
    let mut want = Vec::new();
    for n in 0..batch {
        for t in 0..tokens {
            for h in 0..heads {
                let kv = h / (heads / kv_heads);
                let row = |t: usize, head: usize, of: usize| (n * tokens + t) * of + head;
                let last = if case.causal { t + 1 } else { tokens };
                let seen: Vec<usize> = (0..last).filter(|j| mask[n * tokens + j] != 0).collect();
                let scores: Vec<f64> = (seen.iter())
                    .map(|&j| {
                        let a = &q[row(t, h, heads) * size..][..size];
                        let b = &k[row(j, kv, kv_heads) * size..][..size];
                        let dot = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
                        dot.sum::<f64>() * scale
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                for e in 0..value_size {
                    let value = |j: usize| f64::from(v[row(j, kv, kv_heads) * value_size + e]);
                    let weighed = scores.iter().zip(&seen);
                    let y: f64 = weighed.map(|(s, &j)| (s - max).exp() * value(j)).sum();
                    want.push((if sum > 0.0 { y / sum } else { 0.0 }, 1.0));
                }
            }
        }
    }
    let mut given = vec![
        F32(vec![batch, tokens, heads * size], q),
        F32(vec![batch, tokens, kv_heads * size], k),
        F32(vec![batch, tokens, kv_heads * value_size], v),
    ];
    if case.masked > 0 {
        given.push(I64(vec![batch, tokens], mask));
    }
    for cache in [false, true] {
        let op = Op::Attention {
            heads,
            kv_heads,
            causal: case.causal,
            cache,
            scale: case.scale,
        };
        let model = one_node(op, &given, vec![], None);
        // An error of the scores grows with them.
        let tolerance = 2e-6 * f64::from(case.amplitude).max(1.0);
        check(&model, &given, &want, tolerance, &format!("{case:?}"));
    }
}

#[test]
fn attention_agrees_with_the_oracle() {
    for tokens in [1, 2, 15, 16, 17, 33, 70] {
        for (heads, kv_heads) in [(1, 1), (3, 1), (9, 3), (4, 4), (8, 1)] {
            for (size, value_size) in [(16, 16), (20, 20), (64, 64), (7, 33), (80, 5)] {
                attention(Case {
                    tokens,
                    heads,
                    kv_heads,
                    size,
                    value_size,
                    ..PLAIN
                });
            }
        }
    }
}

#[test]
fn attention_with_masks_batches_and_scales_agrees_with_the_oracle() {
    for causal in [false, true] {
        for masked in [0, 1, 2, 5] {
            for tokens in [1, 19, 40] {
                attention(Case {
                    batch: 2,
                    tokens,
                    heads: 6,
                    kv_heads: 2,
                    size: 20,
                    value_size: 24,
                    causal,
                    masked,
                    scale: [None, Some(0.7), Some(-0.3)][tokens % 3],
                    ..PLAIN
                });
            }
        }
    }
    let long = Case {
        tokens: 600,
        heads: 3,
        size: 64,
        value_size: 64,
        ..PLAIN
    };
    attention(long);
    attention(Case {
        tokens: 45,
        heads: 3,
        amplitude: 300.0,
        ..PLAIN
    });
}

#[test]
fn logits_beyond_the_range_of_exponentials_pick_the_largest() {
    let (tokens, size) = (20usize, 4usize);
    let q = vec![1e4f32; tokens * size];
    let k: Vec<f32> = (0..tokens * size)
        .map(|i| (i / size) as f32 * 1e4)
        .collect();
    let v = Random(1).tensor(tokens * size);
    let given = [q, k, v.clone()].map(|x| F32(vec![1, tokens, size], x));
    let op = Op::Attention {
        heads: 1,
        kv_heads: 1,
        causal: true,
        cache: false,
        scale: None,
    };
    let want: Vec<(f64, f64)> = v.iter().map(|v| (f64::from(*v), 1.0)).collect();
    check(
        &one_node(op, &given, vec![], None),
        &given,
        &want,
        1e-6,
        "huge",
    );
}

/// A bias that stands as a sum behind a product joins it, whatever its leading axes; other constants
/// stay sums.
#[test]
fn a_constant_sum_behind_a_product_becomes_its_bias() {
    let mut random = Random(77);
    let (t, inner, outer) = (13, 20, 9);
    for (shape, trans_b, fused) in [
        (vec![outer], true, true),
        (vec![1, 1, outer], false, true),
        (vec![t, outer], true, false),
        (vec![1], true, false),
    ] {
        let weight = random.tensor(inner * outer);
        let bias = random.tensor(shape.iter().product());
        let x = random.tensor(t * inner);
        let w_shape = if trans_b {
            [outer, inner]
        } else {
            [inner, outer]
        };
        let node = |name: &str, op: Op, inputs: [&str; 2], output: &str| Node {
            name: name.into(),
            op,
            inputs: inputs.map(String::from).to_vec(),
            output: output.into(),
        };
        let graph = Graph {
            name: "bias".into(),
            inputs: vec![Input::f32("x", [1, t, inner].map(Dim::Fixed).to_vec())],
            outputs: vec!["z".into()],
            nodes: vec![
                node("product", Op::MatMul { trans_b }, ["x", "w"], "y"),
                node("sum", Op::Add, ["b", "y"], "z"),
            ],
        };
        let weights = Weights::from([
            ("w".to_owned(), Weight::from_f32(&w_shape, &weight)),
            ("b".to_owned(), Weight::from_f32(&shape, &bias)),
        ]);
        let model = Model::new(graph, weights).unwrap();
        for isa in isas_of_f32() {
            let options = SessionOptions {
                isa: Some(isa.name().into()),
                threads: 2,
                ..SessionOptions::default()
            };
            let mut session = Session::new(&model, options).unwrap();
            assert_eq!(
                session.steps().len(),
                if fused { 1 } else { 2 },
                "{shape:?}"
            );
            let y = session.run(&[TensorView::f32(&[1, t, inner], &x)]).unwrap();
            for n in 0..t {
                for o in 0..outer {
                    let w = |k: usize| match trans_b {
                        true => weight[o * inner + k],
                        false => weight[k * outer + o],
                    };
                    let product: f64 = (0..inner)
                        .map(|k| f64::from(x[n * inner + k]) * f64::from(w(k)))
                        .sum();
                    let b = bias[(n * outer + o) % bias.len()];
                    let error =
                        (f64::from(y[0].data[n * outer + o]) - product - f64::from(b)).abs();
                    assert!(error < 1e-5, "{isa} {shape:?}: {error}");
                }
            }
        }
    }
}

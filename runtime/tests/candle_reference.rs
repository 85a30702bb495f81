//! The reference executor against plain loops, hand-computed values and finite differences.
#![cfg(feature = "candle")]

use candle_core::{DType, Device, Tensor, Var};
use lacuna::candle::Reference;
use lacuna::model::{Dim, Graph, Input, Node, Op, PadMode, Padding, Weights, Window};
use lacuna::{Model, Weight};
use std::collections::HashMap;

/// A graph of one node; `inputs` are its inputs `i0`, `i1` ... in order.
fn one(op: &Op, inputs: &[&Tensor]) -> lacuna::Result<Tensor> {
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("i{i}")).collect();
    let graph = Graph {
        name: "one".into(),
        inputs: names
            .iter()
            .zip(inputs)
            .map(|(name, t)| {
                Input::f32(
                    name.clone(),
                    t.dims().iter().map(|&n| Dim::Fixed(n)).collect(),
                )
            })
            .collect(),
        outputs: vec!["y".into()],
        nodes: vec![Node {
            name: "n".into(),
            op: op.clone(),
            inputs: names,
            output: "y".into(),
        }],
    };
    let model = Model::new(graph, Weights::new())?;
    let inputs: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
    Ok(Reference::new(&model)?.run(&inputs)?.remove(0))
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

/// Deterministic values in -1..1 without a pattern that an index mistake could reproduce.
fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    tensor(&values, shape)
}

#[track_caller]
fn check(op: Op, inputs: &[&Tensor], shape: &[usize], expected: &[f32]) {
    let y = one(&op, inputs).unwrap();
    assert_eq!(y.dims(), shape, "{op:?}");
    close(&values(&y), expected, 1e-6);
}

#[track_caller]
fn close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!(
            (g - e).abs() <= tolerance * e.abs().max(1.0),
            "at {i}: {g} instead of {e}\n{got:?}\n{expected:?}"
        );
    }
}

/// Padding of one axis, after ONNX.
fn pads_of(
    padding: Padding,
    n: [usize; 2],
    k: [usize; 2],
    s: [usize; 2],
    d: [usize; 2],
) -> [i64; 4] {
    match padding {
        Padding::Explicit(p) => p.map(|v| v as i64),
        _ => {
            let mut pads = [0; 4];
            for i in 0..2 {
                let out = n[i].div_ceil(s[i]);
                let total = ((out - 1) * s[i] + (k[i] - 1) * d[i] + 1).saturating_sub(n[i]) as i64;
                let first = if padding == Padding::SameUpper {
                    total / 2
                } else {
                    total - total / 2
                };
                (pads[i], pads[i + 2]) = (first, total - first);
            }
            pads
        }
    }
}

/// A convolution by its definition, in f64.
fn plain_conv(x: &Tensor, w: &Tensor, op: &Op) -> (Vec<usize>, Vec<f32>) {
    let Op::Conv {
        strides: s,
        padding,
        dilations: d,
        groups,
    } = *op
    else {
        panic!()
    };
    let (n, c, ih, iw) = x.dims4().unwrap();
    let (o, cg, kh, kw) = w.dims4().unwrap();
    let p = pads_of(padding, [ih, iw], [kh, kw], s, d);
    let out = |i: usize, size: usize, k: usize| {
        (size + p[i] as usize + p[i + 2] as usize - (k - 1) * d[i] - 1) / s[i] + 1
    };
    let (oh, ow) = (out(0, ih, kh), out(1, iw, kw));
    let (xs, ws) = (values(x), values(w));
    let mut y = Vec::new();
    for b in 0..n {
        for oc in 0..o {
            let g = oc / (o / groups);
            for r in 0..oh {
                for q in 0..ow {
                    let mut sum = 0f64;
                    for ic in 0..cg {
                        for i in 0..kh {
                            for j in 0..kw {
                                let h = (r * s[0] + i * d[0]) as i64 - p[0];
                                let v = (q * s[1] + j * d[1]) as i64 - p[1];
                                if h < 0 || v < 0 || h >= ih as i64 || v >= iw as i64 {
                                    continue;
                                }
                                let at =
                                    ((b * c + g * cg + ic) * ih + h as usize) * iw + v as usize;
                                let wt = ((oc * cg + ic) * kh + i) * kw + j;
                                sum += f64::from(xs[at]) * f64::from(ws[wt]);
                            }
                        }
                    }
                    y.push(sum as f32);
                }
            }
        }
    }
    (vec![n, o, oh, ow], y)
}

/// Shapes, groups, strides, dilations and paddings that candle's own convolution cannot express.
fn conv_cases() -> Vec<(Op, [usize; 4], [usize; 4])> {
    let conv = |s: [usize; 2], padding, d: [usize; 2], groups| Op::Conv {
        strides: s,
        padding,
        dilations: d,
        groups,
    };
    use Padding::*;
    vec![
        (
            conv([1, 1], Padding::NONE, [1, 1], 1),
            [2, 3, 5, 7],
            [4, 3, 1, 1],
        ),
        (
            conv([2, 2], Padding::NONE, [1, 1], 1),
            [1, 3, 6, 5],
            [4, 3, 1, 1],
        ),
        (
            conv([1, 1], Explicit([1; 4]), [1, 1], 1),
            [2, 3, 5, 7],
            [4, 3, 3, 3],
        ),
        (
            conv([2, 2], Explicit([0, 1, 2, 3]), [1, 1], 1),
            [1, 2, 8, 7],
            [3, 2, 3, 2],
        ),
        (
            conv([2, 1], Explicit([1, 0, 1, 2]), [1, 1], 1),
            [1, 2, 7, 6],
            [3, 2, 3, 3],
        ),
        (
            conv([1, 2], Explicit([2, 3, 2, 1]), [2, 3], 1),
            [1, 2, 9, 8],
            [3, 2, 3, 2],
        ),
        (
            conv([2, 2], Explicit([2; 4]), [2, 2], 2),
            [1, 4, 9, 9],
            [6, 2, 3, 3],
        ),
        (
            conv([1, 1], SameUpper, [1, 1], 1),
            [1, 2, 5, 6],
            [3, 2, 2, 4],
        ),
        (
            conv([2, 2], SameUpper, [1, 1], 1),
            [1, 2, 8, 7],
            [3, 2, 3, 3],
        ),
        (
            conv([2, 2], SameLower, [1, 1], 1),
            [1, 2, 8, 7],
            [3, 2, 3, 3],
        ),
        (
            conv([3, 2], SameLower, [1, 2], 2),
            [1, 4, 8, 7],
            [2, 2, 4, 2],
        ),
        (
            conv([1, 1], Explicit([1; 4]), [1, 1], 4),
            [2, 4, 6, 5],
            [4, 1, 3, 3],
        ),
        (
            conv([2, 2], Explicit([1, 1, 0, 2]), [1, 1], 3),
            [2, 3, 7, 6],
            [6, 1, 3, 2],
        ),
        (
            conv([2, 1], SameUpper, [2, 1], 5),
            [1, 5, 9, 4],
            [5, 1, 3, 5],
        ),
        (
            conv([4, 4], Explicit([3; 4]), [1, 1], 1),
            [1, 1, 1, 1],
            [2, 1, 1, 1],
        ),
    ]
}

#[test]
fn convolutions_match_the_definition() {
    for (op, xs, ws) in conv_cases() {
        let (x, w) = (noise(&xs, 1), noise(&ws, 2));
        let (shape, expected) = plain_conv(&x, &w, &op);
        let y = one(&op, &[&x, &w]).unwrap();
        assert_eq!(y.dims(), shape, "{op:?}");
        close(&values(&y), &expected, 1e-5);
        let bias = noise(&ws[..1], 3);
        let with_bias = one(&op, &[&x, &w, &bias]).unwrap();
        let expected = y.broadcast_add(&bias.reshape((1, ws[0], 1, 1)).unwrap());
        close(&values(&with_bias), &values(&expected.unwrap()), 1e-6);
    }
}

/// A pool by its definition: maximum, mean of the elements, mean of elements and padding.
fn plain_pool(x: &Tensor, w: &Window) -> (Vec<usize>, [Vec<f32>; 3]) {
    let (n, c, ih, iw) = x.dims4().unwrap();
    let (k, s, d) = (w.kernel, w.strides, w.dilations);
    let p = pads_of(w.padding, [ih, iw], k, s, d);
    let size = [ih as i64, iw as i64];
    let out = [0, 1].map(|i| {
        let span = size[i] + p[i] + p[i + 2] - ((k[i] - 1) * d[i]) as i64 - 1;
        let step = s[i] as i64;
        let mut out = span / step + 1;
        if w.ceil_mode && span % step != 0 && out * step < size[i] + p[i] {
            out += 1;
        }
        out as usize
    });
    let xs = values(x);
    let mut all = [const { Vec::new() }; 3];
    for plane in 0..n * c {
        for r in 0..out[0] {
            for q in 0..out[1] {
                let (mut max, mut sum, mut inside, mut padded) = (f32::NEG_INFINITY, 0f64, 0, 0);
                for i in 0..k[0] {
                    for j in 0..k[1] {
                        let h = (r * s[0] + i * d[0]) as i64 - p[0];
                        let v = (q * s[1] + j * d[1]) as i64 - p[1];
                        padded += i32::from(h < size[0] + p[2] && v < size[1] + p[3]);
                        if h < 0 || v < 0 || h >= size[0] || v >= size[1] {
                            continue;
                        }
                        let value = xs[(plane * ih + h as usize) * iw + v as usize];
                        max = max.max(value);
                        sum += f64::from(value);
                        inside += 1;
                    }
                }
                all[0].push(max);
                all[1].push((sum / f64::from(inside)) as f32);
                all[2].push((sum / f64::from(padded)) as f32);
            }
        }
    }
    (vec![n, c, out[0], out[1]], all)
}

#[test]
fn pools_match_the_definition() {
    let window = |k, s, padding, d, ceil_mode| Window {
        kernel: k,
        strides: s,
        padding,
        dilations: d,
        ceil_mode,
    };
    use Padding::*;
    for w in [
        window([2, 2], [2, 2], Padding::NONE, [1, 1], false),
        window([3, 3], [2, 2], Explicit([1; 4]), [1, 1], false),
        window([3, 3], [2, 2], Explicit([1; 4]), [1, 1], true),
        window([3, 2], [1, 2], Explicit([1, 0, 2, 1]), [1, 1], false),
        window([2, 3], [3, 2], Explicit([0, 1, 0, 1]), [2, 2], true),
        window([3, 3], [2, 2], SameUpper, [1, 1], false),
        window([2, 2], [2, 2], SameLower, [1, 1], false),
        window([1, 1], [2, 2], Padding::NONE, [1, 1], true),
    ] {
        // Negative throughout, so that zero padding would win a maximum.
        let x = (noise(&[2, 3, 7, 8], 5) - 2.0).unwrap();
        let (shape, expected) = plain_pool(&x, &w);
        let pools = [
            Op::MaxPool(w),
            Op::AveragePool {
                window: w,
                count_include_pad: false,
            },
            Op::AveragePool {
                window: w,
                count_include_pad: true,
            },
        ];
        for (op, expected) in pools.iter().zip(&expected) {
            let y = one(op, &[&x]).unwrap();
            assert_eq!(y.dims(), shape, "{op:?}");
            close(&values(&y), expected, 1e-5);
        }
    }
}

#[test]
fn a_window_of_padding_alone_is_refused() {
    let x = noise(&[1, 1, 1, 4], 1);
    let w = Window {
        kernel: [2, 1],
        strides: [1, 1],
        padding: Padding::Explicit([1, 0, 1, 0]),
        dilations: [2, 1],
        ceil_mode: false,
    };
    let error = one(&Op::MaxPool(w), &[&x]).unwrap_err().to_string();
    assert!(
        error.contains("window 0 of 1 holds only padding"),
        "{error}"
    );
}

#[test]
fn elementwise_operators() {
    let x = tensor(&[-4.0, -1.0, 0.0, 0.5, 2.0, 7.0], &[2, 3]);
    let each = |f: &dyn Fn(f32) -> f32| values(&x).into_iter().map(f).collect::<Vec<f32>>();
    let hard = |v: f32, a: f32, b: f32| (a * v + b).clamp(0.0, 1.0);
    for (op, expected) in [
        (Op::Relu, each(&|v| v.max(0.0))),
        (
            Op::LeakyRelu { alpha: 0.1 },
            each(&|v| if v > 0.0 { v } else { 0.1 * v }),
        ),
        (
            Op::Clip {
                min: Some(-1.5),
                max: Some(6.0),
            },
            each(&|v| v.clamp(-1.5, 6.0)),
        ),
        (
            Op::Clip {
                min: None,
                max: Some(1.0),
            },
            each(&|v| v.min(1.0)),
        ),
        (
            Op::Clip {
                min: None,
                max: None,
            },
            each(&|v| v),
        ),
        // ONNX: the upper limit wins.
        (
            Op::Clip {
                min: Some(2.0),
                max: Some(1.0),
            },
            each(&|_| 1.0),
        ),
        (
            Op::HardSigmoid {
                alpha: 0.2,
                beta: 0.5,
            },
            each(&|v| hard(v, 0.2, 0.5)),
        ),
        (Op::HardSwish, each(&|v| v * hard(v, 1.0 / 6.0, 0.5))),
        (Op::Sigmoid, each(&|v| 1.0 / (1.0 + (-v).exp()))),
        (Op::Tanh, each(&f32::tanh)),
        (Op::Identity, each(&|v| v)),
    ] {
        check(op, &[&x], &[2, 3], &expected);
    }
}

#[test]
fn arithmetic_broadcasts_both_ways() {
    let a = tensor(&[1.0, 2.0, 3.0], &[3, 1]);
    let b = tensor(&[10.0, 20.0], &[1, 1, 2]);
    let shape = [1, 3, 2];
    check(Op::Add, &[&a, &b], &shape, &[11., 21., 12., 22., 13., 23.]);
    check(
        Op::Sub,
        &[&a, &b],
        &shape,
        &[-9., -19., -8., -18., -7., -17.],
    );
    check(Op::Mul, &[&a, &b], &shape, &[10., 20., 20., 40., 30., 60.]);
    check(
        Op::Div,
        &[&b, &a],
        &shape,
        &[10., 20., 5., 10., 10. / 3., 20. / 3.],
    );
}

#[test]
fn batch_normalization_uses_the_running_statistics() {
    let x = tensor(&[1., 2., 3., 4., 5., 6., 7., 8.], &[2, 2, 2]);
    let p = |v: [f32; 2]| tensor(&v, &[2]);
    let parameters = [p([2., 0.5]), p([1., -1.]), p([1., 3.]), p([3.99, 0.24])];
    let inputs: Vec<&Tensor> = [&x].into_iter().chain(&parameters).collect();
    let bn = Op::BatchNormalization { epsilon: 0.01 };
    check(
        bn.clone(),
        &inputs,
        &[2, 2, 2],
        &[1., 2., -1., 0., 5., 6., 3., 4.],
    );
    // Two axes: a normalised linear layer.
    let x = tensor(&[1., 3., 5., 7.], &[2, 2]);
    let inputs: Vec<&Tensor> = [&x].into_iter().chain(&parameters).collect();
    check(bn, &inputs, &[2, 2], &[1., -1., 5., 3.]);
}

#[test]
fn matrix_products() {
    let a = tensor(&[1., 2., 3., 4., 5., 6.], &[2, 3]);
    let b = tensor(&[1., 0., 2., 1., 0., 3.], &[3, 2]);
    let c = tensor(&[10., 20.], &[2]);
    let gemm = |alpha, beta, trans_a, trans_b| Op::Gemm {
        alpha,
        beta,
        trans_a,
        trans_b,
    };
    let (at, bt) = (
        a.t().unwrap().contiguous().unwrap(),
        b.t().unwrap().contiguous().unwrap(),
    );
    let product = [5., 11., 14., 23.];
    check(gemm(1., 1., false, false), &[&a, &b], &[2, 2], &product);
    check(gemm(1., 1., true, true), &[&at, &bt], &[2, 2], &product);
    let scaled = [7.5, 15.5, 12., 21.5];
    check(
        gemm(0.5, 0.5, false, true),
        &[&a, &bt, &c],
        &[2, 2],
        &scaled,
    );

    let plain = Op::MatMul { trans_b: false };
    let turned = Op::MatMul { trans_b: true };
    check(plain.clone(), &[&a, &b], &[2, 2], &product);
    check(turned.clone(), &[&a, &bt], &[2, 2], &product);
    let batch = Tensor::stack(&[&a, &(&a * 2.0).unwrap()], 0).unwrap();
    let twice: Vec<f32> = product
        .iter()
        .copied()
        .chain(product.map(|v| 2. * v))
        .collect();
    check(plain.clone(), &[&batch, &b], &[2, 2, 2], &twice);
    check(turned, &[&batch, &bt], &[2, 2, 2], &twice);
    let stack = batch.unsqueeze(1).unwrap();
    let pair = Tensor::stack(&[&b, &b], 0).unwrap();
    let four: Vec<f32> = [product; 2]
        .concat()
        .into_iter()
        .chain([product.map(|v| 2. * v); 2].concat())
        .collect();
    check(plain.clone(), &[&stack, &pair], &[2, 2, 2, 2], &four);
    let v = tensor(&[1., 1., 1.], &[3]);
    check(plain.clone(), &[&v, &b], &[2], &[3., 4.]);
    check(plain.clone(), &[&batch, &v], &[2, 2], &[6., 15., 12., 30.]);
    check(plain, &[&v, &v], &[], &[3.]);
}

#[test]
fn reductions_and_softmax() {
    let x = tensor(&[1., 2., 3., 4., 5., 6., 7., 9.], &[1, 2, 2, 2]);
    check(Op::GlobalAveragePool, &[&x], &[1, 2, 1, 1], &[2.5, 6.75]);
    let mean = |axes: &[i64], keepdims| Op::ReduceMean {
        axes: axes.to_vec(),
        keepdims,
    };
    check(mean(&[1, -1], true), &[&x], &[1, 1, 2, 1], &[3.5, 5.75]);
    check(mean(&[2], false), &[&x], &[1, 2, 2], &[2., 3., 6., 7.5]);
    check(mean(&[], false), &[&x], &[], &[37. / 8.]);
    let x = tensor(&[1000., 1000., 0., 2f32.ln()], &[2, 2]);
    check(
        Op::Softmax { axis: -1 },
        &[&x],
        &[2, 2],
        &[0.5, 0.5, 1. / 3., 2. / 3.],
    );
    check(Op::Softmax { axis: 0 }, &[&x], &[2, 2], &[1., 1., 0., 0.]);
}

#[test]
fn shapes_and_slices() {
    let x = tensor(&[0., 1., 2., 3., 4., 5.], &[1, 2, 3]);
    let line = [0., 1., 2., 3., 4., 5.];
    check(
        Op::Reshape {
            shape: vec![0, -1, 2],
        },
        &[&x],
        &[1, 3, 2],
        &line,
    );
    check(Op::Flatten { axis: 2 }, &[&x], &[2, 3], &line);
    check(Op::Flatten { axis: 0 }, &[&x], &[1, 6], &line);
    check(Op::Squeeze { axes: vec![] }, &[&x], &[2, 3], &line);
    check(Op::Squeeze { axes: vec![-3] }, &[&x], &[2, 3], &line);
    check(
        Op::Unsqueeze { axes: vec![-1, 1] },
        &[&x],
        &[1, 1, 2, 3, 1],
        &line,
    );
    let turned = [0., 3., 1., 4., 2., 5.];
    check(
        Op::Transpose {
            perm: vec![2, 0, 1],
        },
        &[&x],
        &[3, 1, 2],
        &turned,
    );
    let joined = [0., 1., 2., 0., 1., 2., 3., 4., 5., 3., 4., 5.];
    check(Op::Concat { axis: -1 }, &[&x, &x], &[1, 2, 6], &joined);
    let slice = |axes: &[i64], starts: &[i64], ends: &[i64], steps: &[i64]| Op::Slice {
        axes: axes.to_vec(),
        starts: starts.to_vec(),
        ends: ends.to_vec(),
        steps: steps.to_vec(),
    };
    check(
        slice(&[-1, 1], &[0, -1], &[i64::MAX, 9], &[2, 1]),
        &[&x],
        &[1, 1, 2],
        &[3., 5.],
    );
    check(
        slice(&[2], &[-1], &[i64::MIN], &[-2]),
        &[&x],
        &[1, 2, 2],
        &[2., 0., 5., 3.],
    );
    check(slice(&[2], &[2], &[1], &[1]), &[&x], &[1, 2, 0], &[]);
}

#[test]
fn pads_of_every_mode_and_sign() {
    let x = tensor(&[1., 2., 3., 4., 5., 6.], &[2, 3]);
    let pad = |pads: &[i64], mode| Op::Pad {
        pads: pads.to_vec(),
        mode,
    };
    let nine = PadMode::Constant(9.0);
    let one_each = [9., 9., 9., 9., 9., 9., 1., 2., 3., 9., 9., 4., 5., 6., 9.];
    check(pad(&[1, 1, 0, 1], nine), &[&x], &[3, 5], &one_each);
    check(
        pad(&[0, -1, -1, 2], nine),
        &[&x],
        &[1, 4],
        &[2., 3., 9., 9.],
    );
    // Everything cropped from one side, more than that added on the other.
    check(pad(&[0, -4, 0, 3], nine), &[&x], &[2, 2], &[9., 9., 9., 9.]);
    check(pad(&[0, -3, 0, 0], nine), &[&x], &[2, 0], &[]);
    let reflected = [3., 2., 1., 2., 3., 2., 6., 5., 4., 5., 6., 5.];
    check(
        pad(&[0, 2, 0, 1], PadMode::Reflect),
        &[&x],
        &[2, 6],
        &reflected,
    );
    let rows = [4., 5., 6., 1., 2., 3., 4., 5., 6., 1., 2., 3.];
    check(pad(&[1, 0, 1, 0], PadMode::Reflect), &[&x], &[4, 3], &rows);
    let edges = [1., 1., 1., 2., 3., 3., 4., 4., 4., 5., 6., 6.];
    check(pad(&[0, 2, 0, 1], PadMode::Edge), &[&x], &[2, 6], &edges);
    check(
        pad(&[0, -1, 0, 1], PadMode::Edge),
        &[&x],
        &[2, 3],
        &[2., 3., 3., 5., 6., 6.],
    );
    let error = one(&pad(&[0, 3, 0, 0], PadMode::Reflect), &[&x]).unwrap_err();
    assert!(error.to_string().contains("beyond size 3"), "{error}");
    let error = one(&pad(&[0, 0, 2, 0], PadMode::Reflect), &[&x]).unwrap_err();
    assert!(error.to_string().contains("beyond size 2"), "{error}");
    check(
        pad(&[i64::MIN, 0, i64::MAX, 0], nine),
        &[&x],
        &[1, 3],
        &[9., 9., 9.],
    );
    let error = one(&pad(&[1 << 36, 0, 0, 0], nine), &[&x]).unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
}

/// A small network: strided convolution, normalisation, residual add, pools, two linear layers.
fn network() -> Model {
    let node = |name: &str, op: Op, inputs: &[&str]| Node {
        name: name.into(),
        op,
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        output: name.into(),
    };
    let conv = |strides, pads, groups| Op::Conv {
        strides,
        padding: Padding::Explicit(pads),
        dilations: [1, 1],
        groups,
    };
    let gemm = Op::Gemm {
        alpha: 1.0,
        beta: 1.0,
        trans_a: false,
        trans_b: true,
    };
    let pool = Window {
        kernel: [3, 2],
        strides: [2, 2],
        padding: Padding::Explicit([1, 0, 1, 0]),
        dilations: [1, 1],
        ceil_mode: true,
    };
    let graph = Graph {
        name: "net".into(),
        inputs: vec![Input::f32(
            "x",
            vec![
                Dim::Symbol("N".into()),
                Dim::Fixed(2),
                Dim::Fixed(9),
                Dim::Fixed(8),
            ],
        )],
        outputs: vec!["f2".into()],
        nodes: vec![
            node("c1", conv([2, 2], [1, 1, 1, 0], 1), &["x", "w1", "b1"]),
            node(
                "bn",
                Op::BatchNormalization { epsilon: 1e-3 },
                &["c1", "g", "b1", "b1", "v"],
            ),
            node("r1", Op::LeakyRelu { alpha: 0.1 }, &["bn"]),
            node("c2", conv([1, 1], [1, 1, 1, 1], 4), &["r1", "w2", ""]),
            node("s1", Op::Sigmoid, &["c2"]),
            node("a1", Op::Add, &["s1", "r1"]),
            node("p1", Op::MaxPool(pool), &["a1"]),
            node("c3", conv([2, 1], [1, 1, 1, 1], 2), &["p1", "w3", ""]),
            node("r3", Op::Tanh, &["c3"]),
            node(
                "p2",
                Op::AveragePool {
                    window: Window {
                        kernel: [2, 2],
                        strides: [1, 1],
                        padding: Padding::NONE,
                        dilations: [1, 1],
                        ceil_mode: false,
                    },
                    count_include_pad: false,
                },
                &["r3"],
            ),
            node("fl", Op::Flatten { axis: 1 }, &["p2"]),
            node("f1", gemm.clone(), &["fl", "w4", ""]),
            node("h", Op::HardSwish, &["f1"]),
            node("f2", gemm, &["h", "w5", "b5"]),
        ],
    };
    let weight = |shape: &[usize], seed| Weight::try_from(&noise(shape, seed)).unwrap();
    let positive = |shape: &[usize], seed| {
        Weight::try_from(&(noise(shape, seed).abs().unwrap() + 0.5).unwrap()).unwrap()
    };
    let weights = Weights::from([
        ("w1".into(), weight(&[4, 2, 3, 2], 11).encode()),
        ("b1".into(), weight(&[4], 12)),
        ("g".into(), positive(&[4], 13)),
        ("v".into(), positive(&[4], 14)),
        ("w2".into(), weight(&[4, 1, 3, 3], 15)),
        ("w3".into(), weight(&[6, 2, 3, 3], 16)),
        ("w4".into(), weight(&[5, 6], 17)),
        ("w5".into(), weight(&[3, 5], 18)),
        ("b5".into(), weight(&[3], 19)),
    ]);
    Model::new(graph, weights).unwrap()
}

/// A scalar of the outputs in which every output element counts differently.
fn score(outputs: &[Tensor]) -> Tensor {
    let factors = noise(outputs[0].dims(), 99);
    (&outputs[0] * factors).unwrap().sum_all().unwrap()
}

#[test]
fn gradients_match_finite_differences() {
    let model = network();
    let x = Var::from_tensor(&noise(&[2, 2, 9, 8], 7)).unwrap();
    let vars: HashMap<String, Var> = model
        .weights()
        .iter()
        .map(|(name, w)| {
            let dense = Tensor::try_from(w).unwrap();
            (name.clone(), Var::from_tensor(&dense).unwrap())
        })
        .collect();
    let tensors = |vars: &HashMap<String, Var>| {
        vars.iter()
            .map(|(n, v)| (n.clone(), v.as_tensor().clone()))
            .collect()
    };
    let reference = Reference::with_weights(&model, tensors(&vars)).unwrap();
    let loss = score(&reference.run(&[x.as_tensor().clone()]).unwrap());
    let grads = loss.backward().unwrap();

    let mut leaves: Vec<(&str, &Var)> = vars.iter().map(|(n, v)| (n.as_str(), v)).collect();
    leaves.push(("x", &x));
    let mut checked = 0;
    for (name, var) in leaves {
        let grad = values(
            grads
                .get(var.as_tensor())
                .unwrap_or_else(|| panic!("no gradient of {name}")),
        );
        let start = values(var.as_tensor());
        let shape = var.dims().to_vec();
        let scale = grad.iter().fold(0f32, |m, g| m.max(g.abs()));
        assert!(scale > 1e-3, "{name} has no influence");
        let step = 2e-3;
        let mut off = 0;
        for i in (0..start.len()).step_by(start.len().div_ceil(24)) {
            let at = |delta: f32| {
                let mut moved = start.clone();
                moved[i] += delta;
                var.set(&tensor(&moved, &shape)).unwrap();
                let loss = score(&reference.run(&[x.as_tensor().clone()]).unwrap());
                f64::from(loss.to_scalar::<f32>().unwrap())
            };
            let slope = ((at(step) - at(-step)) / f64::from(2.0 * step)) as f32;
            // A kink of a pool or an activation may lie within the step, rarely.
            off += u32::from((slope - grad[i]).abs() > 0.02 * scale);
            checked += 1;
        }
        var.set(&tensor(&start, &shape)).unwrap();
        assert!(off <= 1, "{name}: {off} gradients are off");
    }
    assert!(checked > 100);
}

#[test]
fn conv_gradients_match_finite_differences_in_every_case() {
    for (op, xs, ws) in conv_cases() {
        let x = Var::from_tensor(&noise(&xs, 21)).unwrap();
        let w = Var::from_tensor(&noise(&ws, 22)).unwrap();
        let run = || score(&[one(&op, &[x.as_tensor(), w.as_tensor()]).unwrap()]);
        let grads = run().backward().unwrap();
        for var in [&x, &w] {
            let grad = values(grads.get(var.as_tensor()).unwrap());
            let start = values(var.as_tensor());
            for i in (0..start.len()).step_by(start.len().div_ceil(10)) {
                let at = |delta: f32| {
                    let mut moved = start.clone();
                    moved[i] += delta;
                    var.set(&tensor(&moved, var.dims())).unwrap();
                    f64::from(run().to_scalar::<f32>().unwrap())
                };
                // Linear in each operand: a large step has no error but rounding.
                let slope = ((at(1.0) - at(-1.0)) / 2.0) as f32;
                assert!(
                    (slope - grad[i]).abs() < 1e-3,
                    "{op:?}: {slope} and {}",
                    grad[i]
                );
            }
            var.set(&tensor(&start, var.dims())).unwrap();
        }
    }
}

/// Candle's `max_pool2d` divides the gradient by the window's size; ours does not.
#[test]
fn max_pool_passes_the_whole_gradient() {
    let x = Var::from_tensor(&noise(&[1, 1, 4, 4], 3)).unwrap();
    let w = Window {
        kernel: [2, 2],
        strides: [2, 2],
        padding: Padding::NONE,
        dilations: [1, 1],
        ceil_mode: false,
    };
    let y = one(&Op::MaxPool(w), &[x.as_tensor()]).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    let grad = values(grads.get(x.as_tensor()).unwrap());
    assert_eq!(grad.iter().sum::<f32>(), 4.0);
    assert_eq!(grad.iter().filter(|&&g| g == 1.0).count(), 4);
}

#[test]
fn symbols_take_their_size_from_the_input_and_sparse_is_dense() {
    let model = network();
    let reference = Reference::new(&model).unwrap();
    let dense = Reference::new(&model.decoded()).unwrap();
    for n in [1, 3] {
        let x = noise(&[n, 2, 9, 8], 4);
        let y = reference.run(std::slice::from_ref(&x)).unwrap().remove(0);
        assert_eq!(y.dims(), [n, 3]);
        assert_eq!(values(&y), values(&dense.run(&[x]).unwrap()[0]));
    }
}

#[test]
fn an_observer_sees_every_node_with_its_inputs() {
    let model = network();
    let reference = Reference::new(&model).unwrap();
    let mut seen = Vec::new();
    let x = noise(&[1, 2, 9, 8], 4);
    reference
        .run_observed(&[x], &mut |node, inputs, output| {
            assert_eq!(inputs.len(), node.inputs.len());
            for (name, value) in node.inputs.iter().zip(inputs) {
                assert_eq!(name.is_empty(), value.is_none());
            }
            seen.push((node.name.clone(), output.dims().to_vec()));
            Ok(())
        })
        .unwrap();
    assert_eq!(seen.len(), model.graph().nodes.len());
    assert_eq!(seen[0], ("c1".to_owned(), vec![1, 4, 5, 4]));
}

#[test]
fn misfits_are_named() {
    let model = network();
    let mut reference = Reference::new(&model).unwrap();
    let fails = |r: &Reference, inputs: &[Tensor]| r.run(inputs).unwrap_err().to_string();
    let x = noise(&[1, 2, 9, 7], 4);
    assert!(fails(&reference, &[x]).contains("input `x`: axis 3 has size 7, 8 is 8"));
    assert!(fails(&reference, &[noise(&[2, 9, 8], 4)]).contains("3 axes"));
    assert!(fails(&reference, &[]).contains("0 inputs given, 1 needed"));
    let bad = reference.set_weight("w5", noise(&[3, 4], 1)).unwrap_err();
    assert!(
        bad.to_string()
            .contains("weight `w5`: shape [3, 4] instead of [3, 5]")
    );
    let bad = reference.set_weight("w9", noise(&[1], 1)).unwrap_err();
    assert!(bad.to_string().contains("`w9`"), "{bad}");
    // Batch 0 is no window position, but an answer.
    let empty = Tensor::zeros((0, 2, 9, 8), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(reference.run(&[empty]).unwrap()[0].dims(), [0, 3]);
}

#[test]
fn no_channels_and_no_inner_size_do_not_panic() {
    let conv = Op::Conv {
        strides: [1, 1],
        padding: Padding::NONE,
        dilations: [1, 1],
        groups: 1,
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let y = one(&conv, &[&zeros(&[1, 0, 3, 3]), &zeros(&[2, 0, 1, 1])]);
    assert!(y.is_err() || values(&y.unwrap()) == [0.0; 18]);
    let product = Op::MatMul { trans_b: false };
    check(
        product,
        &[&zeros(&[2, 0]), &zeros(&[0, 2])],
        &[2, 2],
        &[0.0; 4],
    );
}

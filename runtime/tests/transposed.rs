//! Transposed convolutions against their definition, in f64: the plan on every instruction set, and candle's reference.

mod common;

use common::Dice;
use lacuna::model::{Dim, Graph, Input, Node, Op, Weight, Weights, infer_shapes};
use lacuna::{Isa, Model, Session, SessionOptions, Tensor};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
struct Case {
    x: [usize; 4],
    outputs: usize,
    kernel: [usize; 2],
    strides: [usize; 2],
    pads: [usize; 4],
    output_padding: [usize; 2],
    dilations: [usize; 2],
    groups: usize,
}

impl Case {
    fn op(&self) -> Op {
        Op::ConvTranspose {
            strides: self.strides,
            pads: self.pads,
            output_padding: self.output_padding,
            dilations: self.dilations,
            groups: self.groups,
        }
    }

    fn weight(&self) -> [usize; 4] {
        let [_, c, _, _] = self.x;
        [c, self.outputs, self.kernel[0], self.kernel[1]]
    }

    /// The model, with a batch normalisation and limits behind it where `fused` says so.
    fn model(&self, weight: &[f32], bias: &[f32], fused: bool) -> Result<Model, lacuna::Error> {
        let node = |name: &str, op: Op, inputs: &[&str]| Node {
            name: name.into(),
            op,
            inputs: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: name.into(),
        };
        let channels = self.outputs * self.groups.max(1);
        let mut weights = Weights::from([
            (
                "w".into(),
                Weight::from_f32(&self.weight(), weight).encode(),
            ),
            ("b".into(), Weight::from_f32(&[channels], bias)),
        ]);
        let mut nodes = vec![node("up", self.op(), &["x", "w", "b"])];
        if fused {
            for (name, value) in [("s", 0.5), ("t", 0.25), ("m", -0.5), ("v", 3.0)] {
                weights.insert(
                    name.into(),
                    Weight::from_f32(&[channels], &vec![value; channels]),
                );
            }
            let norm = Op::BatchNormalization { epsilon: 1.0 };
            nodes.push(node("norm", norm, &["up", "s", "t", "m", "v"]));
            nodes.push(node("relu", Op::Relu, &["norm"]));
        }
        let graph = Graph {
            name: "up".into(),
            inputs: vec![Input::f32("x", self.x.map(Dim::Fixed).to_vec())],
            outputs: vec![nodes[nodes.len() - 1].name.clone()],
            nodes,
        };
        Model::new(graph, weights)
    }

    /// Every product, added where it belongs.
    fn by_definition(&self, x: &[f32], weight: &[f32], bias: &[f32], out: [usize; 4]) -> Vec<f32> {
        let ([_, c, h, w], [_, o, kh, kw]) = (self.x, self.weight());
        let mut y: Vec<f64> = (0..out.iter().product())
            .map(|i: usize| f64::from(bias[i / (out[2] * out[3]) % out[1]]))
            .collect();
        for (i, &value) in x.iter().enumerate() {
            let (image, channel, row, column) =
                (i / (c * h * w), i / (h * w) % c, i / w % h, i % w);
            let group = channel / (c / self.groups);
            for j in 0..o * kh * kw {
                let (own, ky, kx) = (j / (kh * kw), j / kw % kh, j % kw);
                let at = |i: usize, k: usize, axis: usize| {
                    (i * self.strides[axis] + k * self.dilations[axis]).checked_sub(self.pads[axis])
                };
                if let (Some(r), Some(s)) = (at(row, ky, 0), at(column, kx, 1))
                    && r < out[2]
                    && s < out[3]
                {
                    let to = ((image * out[1] + group * o + own) * out[2] + r) * out[3] + s;
                    y[to] += f64::from(value) * f64::from(weight[channel * o * kh * kw + j]);
                }
            }
        }
        y.into_iter().map(|y| y as f32).collect()
    }
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(0.1f32, |m, b| m.max(b.abs()));
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    off.fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m }) / scale
}

fn case() -> impl Strategy<Value = Case> {
    let pair = |most: usize| [1..=most, 1..=most];
    let pads = [0..4usize, 0..4usize, 0..4usize, 0..4usize];
    let sizes = (
        1..3usize,
        1..4usize,
        1..8usize,
        1..20usize,
        1..5usize,
        1..4usize,
    );
    let more = [0..3usize, 0..3usize];
    (sizes, pair(5), pair(4), pads, more, pair(3)).prop_map(
        |((n, c, h, w, outputs, groups), kernel, strides, pads, output_padding, dilations)| Case {
            x: [n, c * groups, h, w],
            outputs,
            kernel,
            strides,
            pads,
            output_padding,
            dilations,
            groups,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_is_what_the_definition_says(case in case(), seed in any::<u64>(), keep in 1..11usize, fused: bool) {
        let mut dice = Dice(seed | 1);
        let values = |dice: &mut Dice, n: usize, keep: usize| -> Vec<f32> {
            (0..n).map(|_| f32::from(dice.below(10) < keep) * dice.value()).collect()
        };
        let x = values(&mut dice, case.x.iter().product(), 10);
        let weight = values(&mut dice, case.weight().iter().product(), keep);
        let bias = values(&mut dice, case.outputs * case.groups, 10);
        let model = case.model(&weight, &bias, fused);
        // Padding that leaves nothing is told.
        prop_assume!(model.is_ok());
        let model = model.unwrap();
        let shapes = infer_shapes(model.graph(), model.weights(), &Default::default()).unwrap();
        let out: Vec<usize> = shapes["up"].iter().map(|d| match d { Dim::Fixed(n) => *n, _ => 0 }).collect();
        let out: [usize; 4] = out.try_into().unwrap();
        let mut expected = case.by_definition(&x, &weight, &bias, out);
        if fused {
            expected.iter_mut().for_each(|y| *y = ((*y + 0.5) / 2.0 * 0.5 + 0.25).max(0.0));
        }
        let input = Tensor { shape: case.x.to_vec(), data: x };
        for isa in ["scalar", "avx2", "avx512", "neon"].into_iter().filter(|n| Isa::parse(n).is_ok()) {
            let options = SessionOptions { threads: 1 + (seed % 3) as usize, isa: Some(isa.into()), ..SessionOptions::default() };
            let mut session = Session::new(&model, options).unwrap();
            let found = session.run(&[input.view()]).unwrap();
            prop_assert_eq!(&found[0].shape, &out.to_vec());
            let off = difference(&found[0].data, &expected);
            prop_assert!(off <= 1e-5, "{isa}: {off} {case:?}");
        }
        #[cfg(feature = "candle")]
        {
            let reference = lacuna::candle::Reference::new(&model).unwrap();
            let input = candle_core::Tensor::try_from(&input).unwrap();
            let found = Tensor::try_from(&reference.run(&[input]).unwrap()[0]).unwrap();
            let off = difference(&found.data, &expected);
            prop_assert!(off <= 1e-5, "candle: {off} {case:?}");
        }
    }
}

/// Attributes that no exporter writes: refused with what is wrong, before anything is allocated, and never a panic.
#[test]
fn hostile_attributes_are_answered() {
    let plain = Case {
        x: [1, 2, 3, 3],
        outputs: 2,
        kernel: [2, 2],
        strides: [2, 2],
        pads: [0; 4],
        output_padding: [0; 2],
        dilations: [1, 1],
        groups: 1,
    };
    let far = 1 << 24;
    for (case, part) in [
        (Case { groups: 0, ..plain }, "groups"),
        (Case { groups: 3, ..plain }, "groups"),
        (
            Case {
                strides: [0, 1],
                ..plain
            },
            "positive",
        ),
        (
            Case {
                dilations: [1, 0],
                ..plain
            },
            "positive",
        ),
        (
            Case {
                strides: [usize::MAX, 1],
                ..plain
            },
            "limit",
        ),
        (
            Case {
                dilations: [1, usize::MAX],
                ..plain
            },
            "limit",
        ),
        (
            Case {
                pads: [usize::MAX; 4],
                ..plain
            },
            "limit",
        ),
        (
            Case {
                output_padding: [usize::MAX, 0],
                ..plain
            },
            "limit",
        ),
        (
            Case {
                pads: [3, 0, 3, 0],
                ..plain
            },
            "leaves nothing",
        ),
        (
            Case {
                strides: [far; 2],
                dilations: [far; 2],
                ..plain
            },
            "elements",
        ),
        (
            Case {
                strides: [64, 64],
                ..plain
            },
            "more than 1024 convolutions",
        ),
        // A small output of an input that would be large.
        (
            Case {
                strides: [far; 2],
                pads: [far, far, far - 8, far - 8],
                ..plain
            },
            "",
        ),
        (
            Case {
                output_padding: [4096, 0],
                strides: [4096, 1],
                ..plain
            },
            "convolutions",
        ),
    ] {
        let groups = case.groups.max(1);
        let numel = case.weight().iter().product();
        let session = case
            .model(&vec![1.0; numel], &vec![1.0; 2 * groups], false)
            .and_then(|model| {
                #[cfg(feature = "candle")]
                {
                    let input = candle_core::Tensor::zeros(
                        &case.x[..],
                        candle_core::DType::F32,
                        &candle_core::Device::Cpu,
                    );
                    let reference = lacuna::candle::Reference::new(&model)?;
                    let _ = reference.run(&[input.unwrap()]);
                }
                Session::new(&model, SessionOptions::default())
            });
        match session {
            Ok(mut session) => {
                assert_eq!(part, "", "{case:?}");
                let x = Tensor {
                    shape: case.x.to_vec(),
                    data: vec![1.0; case.x.iter().product()],
                };
                session.run(&[x.view()]).unwrap();
            }
            Err(e) => assert!(
                e.to_string().contains(part) && e.to_string().contains("up"),
                "{case:?}: {e}"
            ),
        }
    }
}

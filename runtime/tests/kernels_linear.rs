//! Linear layers from the model's own bytes: every instruction set, dtype and encoding against an
//! f64 oracle, over columns, odd sizes, empty rows, bias, residual and limits.

mod common;

use common::{Random, isas_of_f32};
use lacuna::model::{
    Bitmask, Bytes, Dim, Encoding, Graph, Input, Node, Op, Scales, Storage, Weights,
};
use lacuna::plan::{Form, Forms, Variant};
use lacuna::{DType, Isa, Model, Residency, Session, SessionOptions, TensorView, Weight};
use proptest::prelude::*;

const STORAGES: [Storage; 3] = [Storage::Dense, Storage::Bitmask, Storage::TwoFour];

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    storage: Storage,
    columns: usize,
    inner: usize,
    outer: usize,
    density: f32,
    bias: bool,
    residual: bool,
    clamp: bool,
    seed: u64,
}

/// The bytes behind three others, so that nothing is aligned, at the end of an allocation.
fn odd(bytes: &[u8]) -> Bytes {
    let mut all = vec![0xff; 3];
    all.extend_from_slice(bytes);
    let len = all.len();
    Bytes::from(all).slice(3..len).unwrap()
}

/// A weight of `dtype` in either encoding, and its values as f32.
fn weight(case: &Case, random: &mut Random) -> (Weight, Vec<f32>) {
    let (outer, inner) = (case.outer, case.inner);
    let mut bytes = Vec::new();
    for i in 0..outer * inner {
        let keep = random.next() < 2.0 * case.density - 1.0;
        let empty = case.density < 1.0 && i / inner % 5 == 4;
        let left = case.storage != Storage::TwoFour || two_of_four(i);
        let v = if keep && !empty && left {
            random.next()
        } else {
            0.0
        };
        match case.dtype {
            DType::F16 => bytes.extend(half::f16::from_f32(v).to_le_bytes()),
            DType::BF16 => bytes.extend(half::bf16::from_f32(v).to_le_bytes()),
            _ => bytes.extend(v.to_le_bytes()),
        }
    }
    if case.dtype == DType::I8 {
        let dense = Weight::dense(vec![outer, inner], DType::F32, bytes.into()).unwrap();
        let scaled = dense.to_scaled(case.group()).unwrap();
        let scales = scaled.scales().unwrap();
        let mut values = scales.values.to_vec();
        // Bytes of a scale of 0 stand for 0.
        for scale in values.chunks_exact_mut(2).skip(3).step_by(7) {
            scale.fill(0);
        }
        let scales = Scales {
            group: scales.group,
            values: odd(&values),
        };
        let weight = Weight::scaled(vec![outer, inner], unaligned(&scaled), scales).unwrap();
        let values = weight.to_f32().unwrap();
        return (weight, values);
    }
    let dense = Weight::dense(vec![outer, inner], case.dtype, odd(&bytes)).unwrap();
    let values = dense.to_f32().unwrap();
    if case.storage == Storage::Dense {
        return (dense, values);
    }
    let bitmask = unaligned(&dense.store_as(case.storage).unwrap());
    let weight = Weight::bitmask(vec![outer, inner], case.dtype, bitmask).unwrap();
    (weight, values)
}

/// Two of each four, in all six ways.
fn two_of_four(i: usize) -> bool {
    const WAYS: [u8; 6] = [0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100];
    let group = i / 4;
    WAYS[(group * 5 + group / 7) % 6] >> (i % 4) & 1 == 1
}

/// The tensors of an encoded weight, none of them aligned.
fn unaligned(weight: &Weight) -> Bitmask {
    let Encoding::Bitmask(b) = weight.encoding() else {
        panic!("not encoded")
    };
    Bitmask {
        values: odd(&b.values),
        mask: odd(&b.mask),
        row_offsets: b.row_offsets.as_deref().map(odd),
        ..*b
    }
}

/// A row rounded to whole multiples, from -127 to 127, of a scale for each group.
fn round_groups(x: &[f32], group: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for part in x.chunks(group) {
        let largest = part.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let round = |v: &f32| (v * inverse).round_ties_even() * (largest / 127.0);
        out.extend(part.iter().map(round));
    }
    out
}

impl Case {
    /// Columns that share a scale in weights of I8.
    fn group(&self) -> usize {
        if self.storage == Storage::Dense {
            64
        } else {
            32
        }
    }

    fn model(&self, weight: Weight, bias: &[f32]) -> Model {
        let node = |name: &str, op, inputs: &[&str], output: &str| Node {
            name: name.into(),
            op,
            inputs: inputs.iter().map(|s| s.to_string()).collect(),
            output: output.into(),
        };
        let mut weights = Weights::from([("w".to_owned(), weight)]);
        let op = Op::Gemm {
            alpha: 1.0,
            beta: 1.0,
            trans_a: false,
            trans_b: true,
        };
        let mut nodes = if self.bias {
            weights.insert("b".into(), Weight::from_f32(&[self.outer], bias));
            vec![node("linear", op, &["x", "w", "b"], "y")]
        } else {
            vec![node("linear", op, &["x", "w"], "y")]
        };
        let dims = |n: usize| vec![Dim::Fixed(self.columns), Dim::Fixed(n)];
        let mut inputs = vec![Input::f32("x", dims(self.inner))];
        if self.residual {
            inputs.push(Input::f32("r", dims(self.outer)));
            nodes.push(node("add", Op::Add, &["r", "y"], "s"));
        }
        if self.clamp {
            let last = nodes.last().unwrap().output.clone();
            let clip = Op::Clip {
                min: Some(-0.5),
                max: Some(0.25),
            };
            nodes.push(node("clip", clip, &[&last], "z"));
        }
        let graph = Graph {
            name: "linear".into(),
            inputs,
            outputs: vec![nodes.last().unwrap().output.clone()],
            nodes,
        };
        Model::new(graph, weights).unwrap()
    }

    /// What is right, and how far from it f32 sums in any order may be.
    fn reference(&self, w: &[f32], x: &[f32], bias: &[f32], residual: &[f32]) -> Vec<(f64, f64)> {
        let mut want = Vec::new();
        for (n, x) in x.chunks_exact(self.inner).enumerate() {
            for (o, w) in w.chunks_exact(self.inner).enumerate() {
                let products = || w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let mut sum: f64 = products().sum();
                let mut size: f64 = products().map(f64::abs).sum();
                if self.bias {
                    sum += f64::from(bias[o]);
                    size += f64::from(bias[o].abs());
                }
                if self.residual {
                    let r = residual[n * self.outer + o];
                    sum += f64::from(r);
                    size += f64::from(r.abs());
                }
                // A sum of n terms is off by at most n - 1 roundings of the sum of magnitudes.
                let roundings = (self.inner + 3) as f64 * f64::from(f32::EPSILON) / 2.0;
                let bound = roundings / (1.0 - roundings) * size;
                want.push((
                    if self.clamp {
                        sum.clamp(-0.5, 0.25)
                    } else {
                        sum
                    },
                    bound,
                ));
            }
        }
        want
    }

    fn check(&self) {
        let mut case = self.clone();
        if case.storage == Storage::TwoFour {
            case.inner = case.inner.next_multiple_of(4);
        }
        case.check_all();
    }

    fn check_all(&self) {
        let mut random = Random(self.seed);
        let (weight, w) = weight(self, &mut random);
        let x = random.tensor(self.columns * self.inner);
        let bias = random.tensor(self.outer);
        let residual = random.tensor(self.columns * self.outer);
        let rounded: Vec<f32> = match self.dtype {
            DType::F16 => x.iter().map(|x| half::f16::from_f32(*x).to_f32()).collect(),
            _ => x
                .iter()
                .map(|x| half::bf16::from_f32(*x).to_f32())
                .collect(),
        };
        let want = [
            self.reference(&w, &x, &bias, &residual),
            match self.dtype {
                DType::BF16 => self.reference(&w, &rounded, &bias, &residual),
                DType::F16 if self.columns <= 8 => self.reference(&w, &rounded, &bias, &residual),
                DType::I8 if self.columns <= 8 => {
                    let rows = x.chunks_exact(self.inner);
                    let rounded = rows.flat_map(|row| round_groups(row, self.group()));
                    let rounded: Vec<f32> = rounded.collect();
                    self.reference(&w, &rounded, &bias, &residual)
                }
                _ => Vec::new(),
            },
        ];
        let model = self.model(weight, &bias);
        let (x_shape, r_shape) = ([self.columns, self.inner], [self.columns, self.outer]);
        let mut views = vec![TensorView::f32(&x_shape, &x)];
        if self.residual {
            views.push(TensorView::f32(&r_shape, &residual));
        }
        for isa in Isa::available() {
            for (dense, threads, round_inputs) in [
                (false, 1, false),
                (false, 3, false),
                (true, 2, false),
                (false, 2, true),
                (true, 1, true),
            ] {
                // Others run what one of those runs.
                if !round_inputs && !isas_of_f32().any(|i| i == isa) {
                    continue;
                }
                let want = match &want[1] {
                    rounded
                        if round_inputs
                            && !rounded.is_empty()
                            && (self.dtype != DType::F16 || isa.multiplies(DType::F16, true))
                            && !(dense && self.dtype == DType::I8) =>
                    {
                        rounded
                    }
                    _ => &want[0],
                };
                let options = SessionOptions {
                    isa: Some(isa.name().into()),
                    dense,
                    threads,
                    forms: self.forms(dense),
                    round_inputs,
                    ..SessionOptions::default()
                };
                let mut session = Session::new(&model, options).unwrap();
                self.check_plan(&session, isa, dense, round_inputs);
                // Twice: nothing may be left over from the run before.
                for _ in 0..2 {
                    let got = session.run(&views).unwrap();
                    assert_eq!(got[0].data.len(), want.len());
                    for (i, (got, (want, bound))) in got[0].data.iter().zip(want).enumerate() {
                        let error = (f64::from(*got) - want).abs();
                        assert!(
                            error <= *bound,
                            "{isa} dense {dense}: element {i} is {got}, not {want}; {self:?}"
                        );
                    }
                }
            }
        }
    }

    /// Weights of 16 bits stay as they are; a small model would have them decoded.
    fn forms(&self, dense: bool) -> Forms {
        let both = match (self.storage, self.dtype) {
            // That of f32 is one of several forms.
            _ if dense => return Forms::new(),
            (Storage::TwoFour, DType::I8) => [Form::BitmaskRows, Form::BitmaskChunk],
            (Storage::TwoFour, _) => [Form::TwoOfFourRows, Form::TwoOfFourChunk],
            (Storage::Bitmask, dtype) if dtype != DType::F32 => {
                [Form::BitmaskRows, Form::BitmaskChunk]
            }
            _ => return Forms::new(),
        };
        Forms::from([("w".into(), both.map(Variant::plain).to_vec())])
    }

    fn check_plan(&self, session: &Session, isa: Isa, dense: bool, rounded: bool) {
        let [step] = session.steps() else {
            panic!("not fused: {:?}", session.steps())
        };
        if self.dtype == DType::F32 && (self.storage != Storage::TwoFour || dense) {
            return;
        }
        let encoded = self.storage != Storage::Dense || self.dtype == DType::I8;
        let encoding = match self.storage {
            _ if dense || !encoded => "dense",
            Storage::TwoFour if self.dtype != DType::I8 => "2of4",
            _ => "bitmask",
        };
        let form = if self.columns <= 8 { "rows" } else { "chunk" };
        let operands = match (self.dtype, rounded) {
            (DType::BF16, true) => "bf16xbf16".into(),
            (DType::F16, true) if isa.multiplies(DType::F16, form == "rows") => "f16xf16".into(),
            (DType::I8, true) if form == "rows" && !dense => "i8xi8".into(),
            (DType::I8, _) if dense => "f32".into(),
            (dtype, _) => dtype.name().to_lowercase(),
        };
        let name = format!("{operands}_linear_{encoding}_{form}_");
        assert!(step.kernel.starts_with(&name), "{}", step.kernel);
        let decoded = encoded && dense;
        assert_eq!(step.residency == Residency::Packed, decoded, "{self:?}");
    }
}

#[test]
fn every_dtype_encoding_and_number_of_columns_agrees_with_the_oracle() {
    let mut seed = 0;
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8] {
        for storage in STORAGES {
            for columns in [1, 2, 3, 4, 5, 7, 8, 9, 16, 63, 64, 65, 130] {
                for (inner, outer, density) in [(67, 53, 0.5), (48, 29, 0.3), (145, 9, 0.9)] {
                    seed += 1;
                    let case = Case {
                        dtype,
                        storage,
                        columns,
                        inner,
                        outer,
                        density,
                        bias: seed % 2 == 0,
                        residual: seed % 3 == 0,
                        clamp: seed % 5 == 0,
                        seed,
                    };
                    case.check();
                }
            }
        }
    }
}

#[test]
fn weights_of_all_zeros_and_of_none() {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8] {
        for storage in STORAGES {
            for columns in [1, 3, 9, 80] {
                for (inner, outer) in [(1, 1), (7, 3), (8, 5), (16, 24), (33, 25), (200, 50)] {
                    for density in [0.0, 1.0] {
                        let case = Case {
                            dtype,
                            storage,
                            columns,
                            inner,
                            outer,
                            density,
                            bias: true,
                            residual: columns == 9,
                            clamp: false,
                            seed: 3,
                        };
                        case.check();
                    }
                }
            }
        }
    }
}

#[test]
fn long_rows_cross_chunks_and_many_columns_cross_passes() {
    for (columns, inner, outer) in [
        (1, 1000, 130),
        (4, 777, 50),
        (300, 1100, 49),
        (513, 300, 30),
    ] {
        for (dtype, storage) in [
            (DType::BF16, Storage::Bitmask),
            (DType::F16, Storage::Dense),
            (DType::F32, Storage::Bitmask),
            (DType::I8, Storage::Bitmask),
            (DType::F32, Storage::TwoFour),
            (DType::F16, Storage::TwoFour),
            (DType::BF16, Storage::TwoFour),
        ] {
            let case = Case {
                dtype,
                storage,
                columns,
                inner,
                outer,
                density: 0.5,
                bias: true,
                residual: true,
                clamp: false,
                seed: 9,
            };
            case.check();
        }
    }
}

#[test]
fn signed_bytes_stored_inputs_first_or_multiplied_are_copied_with_their_scales() {
    let values: Vec<f32> = (0..70 * 40).map(|i| (i % 11) as f32 - 5.0).collect();
    let weight = Weight::from_f32(&[70, 40], &values).to_scaled(32).unwrap();
    let seen = weight.to_f32().unwrap();
    for (trans_b, alpha) in [(false, 1.0), (true, 0.5), (false, -2.0)] {
        let (inner, outer) = if trans_b { (40, 70) } else { (70, 40) };
        for (columns, dense) in [(1, false), (1, true), (20, false), (20, true)] {
            let graph = Graph {
                name: "linear".into(),
                inputs: vec![Input::f32(
                    "x",
                    vec![Dim::Fixed(columns), Dim::Fixed(inner)],
                )],
                outputs: vec!["y".into()],
                nodes: vec![Node {
                    name: "product".into(),
                    op: Op::Gemm {
                        alpha,
                        beta: 1.0,
                        trans_a: false,
                        trans_b,
                    },
                    inputs: vec!["x".into(), "w".into()],
                    output: "y".into(),
                }],
            };
            let weights = Weights::from([("w".into(), weight.clone())]);
            let model = Model::new(graph, weights).unwrap();
            for round_inputs in [false, true] {
                let options = SessionOptions {
                    dense,
                    round_inputs,
                    ..SessionOptions::default()
                };
                let mut session = Session::new(&model, options).unwrap();
                let x = vec![1.0; columns * inner];
                let got = session
                    .run(&[TensorView::f32(&[columns, inner], &x)])
                    .unwrap();
                let at = |o: usize, i: usize| if trans_b { o * 40 + i } else { i * 40 + o };
                for (i, y) in got[0].data.iter().enumerate() {
                    let want: f32 = (0..inner).map(|k| seen[at(i % outer, k)]).sum();
                    assert!(
                        (y - alpha * want).abs() < 1e-3,
                        "{trans_b} {alpha}: {y} {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_weight_of_sixteen_bits_stored_inputs_first_is_copied_once() {
    let w = half::bf16::from_f32(0.5).to_le_bytes();
    let weight = Weight::dense(vec![20, 3], DType::BF16, w.repeat(60).into()).unwrap();
    for columns in [1, 40] {
        let graph = Graph {
            name: "linear".into(),
            inputs: vec![Input::f32("x", vec![Dim::Fixed(columns), Dim::Fixed(20)])],
            outputs: vec!["y".into()],
            nodes: vec![Node {
                name: "product".into(),
                op: Op::MatMul { trans_b: false },
                inputs: vec!["x".into(), "w".into()],
                output: "y".into(),
            }],
        };
        let model = Model::new(graph, Weights::from([("w".into(), weight.clone())])).unwrap();
        let mut session = Session::new(&model, SessionOptions::default()).unwrap();
        assert_eq!(session.steps()[0].residency, Residency::Packed);
        let x = vec![1.0; columns * 20];
        let got = session.run(&[TensorView::f32(&[columns, 20], &x)]).unwrap();
        assert!(got[0].data.iter().all(|y| *y == 10.0));
    }
}

prop_compose! {
    fn cases()(
        dtype in prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16), Just(DType::I8)],
        storage in prop_oneof![Just(Storage::Dense), Just(Storage::Bitmask), Just(Storage::TwoFour)],
        columns in 1usize..90, inner in 1usize..150, outer in 1usize..80,
        density in prop_oneof![Just(0.0f32), Just(0.1), Just(0.5), Just(0.9), Just(1.0)],
        bias: bool, residual: bool, clamp: bool, seed: u64,
    ) -> Case {
        Case { dtype, storage, columns, inner, outer, density, bias, residual, clamp, seed }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linear_layers_agree_with_the_oracle(case in cases()) {
        case.check();
    }
}

//! Convolutions against plain f64: strides, dilations, padding, groups, images, tails; every form of weight.

use super::battery::{Values, go, halves, matrix, rounded, two_four};
use super::launch::{self, Cores, Epilogue, Weight, Windows};
use super::machine::{Memory, cores};
use super::pack::{self, Form, Half};
use crate::Weight as Matrix;
use proptest::prelude::*;

/// A convolution of so many groups.
#[derive(Clone, Copy, Debug)]
struct Case {
    half: Half,
    images: usize,
    groups: usize,
    /// Of a group.
    channels: usize,
    rows: usize,
    input: [usize; 2],
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    pads: [usize; 2],
}

impl Case {
    fn output(&self, i: usize) -> usize {
        let span = (self.kernel[i] - 1) * self.dilations[i] + 1;
        (self.input[i] + 2 * self.pads[i] - span) / self.strides[i] + 1
    }

    fn cols(&self) -> usize {
        self.channels * self.kernel[0] * self.kernel[1]
    }

    fn taps(&self) -> Vec<u32> {
        let mut taps = Vec::new();
        for c in 0..self.channels {
            for i in 0..self.kernel[0] {
                for j in 0..self.kernel[1] {
                    let (dy, dx) = (i * self.dilations[0], j * self.dilations[1]);
                    taps.push(((c * self.input[0] + dy) * self.input[1] + dx) as u32);
                    taps.push((dy << 16 | dx) as u32);
                }
            }
        }
        taps
    }
}

enum Packed {
    Chunks(pack::Chunks, [Memory; 3]),
    Rows(pack::Rows, Memory),
    Tiles(pack::Tiles, Memory),
    TwoFour(pack::TwoFour, [Memory; 2]),
}

impl Packed {
    fn all(dense: &Matrix, sparse: &Matrix) -> Vec<Packed> {
        let chunks = |form| {
            let p = pack::chunks(&dense.encode(), form).expect("packs");
            let parts = [
                Memory::of(&p.masks),
                Memory::of(&p.starts),
                Memory::of(&p.values),
            ];
            Packed::Chunks(p, parts)
        };
        let rows = pack::rows(dense).expect("packs");
        let tiles = pack::tiles(dense).expect("packs");
        let (r, t) = (Memory::of(&rows.values), Memory::of(&tiles.values));
        let mut all = vec![
            chunks(Form::Vector),
            chunks(Form::Matrix),
            Packed::Rows(rows, r),
            Packed::Tiles(tiles, t),
        ];
        if sparse.is_sparse() {
            let p = pack::two_four(sparse).expect("packs");
            let parts = [Memory::of(&p.values), Memory::of(&p.places)];
            all.push(Packed::TwoFour(p, parts));
        }
        all
    }

    fn at(&self) -> Weight {
        match self {
            Packed::Chunks(p, [m, s, v]) => p.at(m.region(), s.region(), v.region()),
            Packed::Rows(p, v) => p.at(v.region()),
            Packed::Tiles(p, v) => p.at(v.region()),
            Packed::TwoFour(p, [v, w]) => p.at(v.region(), w.region()),
        }
    }
}

fn run(case: &Case, seed: u64, kept: u32) {
    let mut values = Values(seed);
    let (cols, output) = (case.cols(), [case.output(0), case.output(1)]);
    let (plane, pixels) = (case.input[0] * case.input[1], output[0] * output[1]);
    let (all_in, all_out) = (case.channels * case.groups, case.rows * case.groups);
    let x = values.many(case.images * all_in * plane);
    let bias = values.many(all_out);
    let residual = values.many(case.images * all_out * pixels);
    let limits = (-0.5, 1.5);
    let (xs, biases, residuals) = (Memory::of(&x), Memory::of(&bias), Memory::of(&residual));
    let taps = Memory::of(&case.taps());
    let weights: Vec<[Matrix; 2]> = (0..case.groups)
        .map(|_| {
            let dense = matrix(&mut values, case.half, case.rows, cols, kept);
            let sparse = match cols.is_multiple_of(4) {
                true => two_four(&mut values, case.half, case.rows, cols),
                false => dense.clone(),
            };
            [dense, sparse]
        })
        .collect();
    let packed: Vec<Vec<Packed>> = weights.iter().map(|[d, s]| Packed::all(d, s)).collect();
    let by = |form: usize| match packed[0][form].at().is_matrix() {
        true => cores(),
        false => vec![Cores::Warp],
    };
    let forms = (0..packed[0].len()).flat_map(|f| by(f).into_iter().map(move |c| (f, c)));
    for (form, cores) in forms {
        let y = Memory::new(case.images * all_out * pixels * 4);
        let mut is_matrix = false;
        for (g, packed) in packed.iter().enumerate() {
            let weight = packed[form].at();
            is_matrix = weight.is_matrix();
            let (out, channel) = (g * case.rows, g * case.channels);
            let windows = Windows {
                x: xs.region().from(channel * plane * 4),
                taps: taps.region(),
                images: case.images,
                channels: [all_in, case.channels],
                input: case.input,
                output,
                strides: case.strides,
                pads: case.pads,
                outputs: all_out,
            };
            let epilogue = Epilogue {
                bias: Some(biases.region().from(out * 4)),
                residual: Some(residuals.region().from(out * pixels * 4)),
                limits,
            };
            let y = y.region().from(out * pixels * 4);
            go(&launch::conv(&weight, cores, y, &windows, &epilogue).expect("a launch"));
        }
        let y: Vec<f32> = y.read();
        for (at, y) in y.iter().enumerate() {
            let (p, o, n) = (at % pixels, at / pixels % all_out, at / pixels / all_out);
            let (g, row) = (o / case.rows, o % case.rows);
            let w = weights[g][usize::from(form == 4)]
                .to_f32()
                .expect("a float");
            let (mut sum, mut size) = (0.0, 1e-3);
            for k in 0..cols {
                let (c, i, j) = (
                    k / (case.kernel[0] * case.kernel[1]),
                    k / case.kernel[1] % case.kernel[0],
                    k % case.kernel[1],
                );
                let from = p / output[1] * case.strides[0] + i * case.dilations[0];
                let to = p % output[1] * case.strides[1] + j * case.dilations[1];
                let (Some(from), Some(to)) =
                    (from.checked_sub(case.pads[0]), to.checked_sub(case.pads[1]))
                else {
                    continue;
                };
                if from >= case.input[0] || to >= case.input[1] {
                    continue;
                }
                let channel = n * all_in + g * case.channels + c;
                let v = x[(channel * case.input[0] + from) * case.input[1] + to];
                let v = if is_matrix {
                    rounded(case.half, v).1
                } else {
                    v
                };
                let one = f64::from(v) * f64::from(w[row * cols + k]);
                sum += one;
                size += one.abs();
            }
            sum += f64::from(bias[o]) + f64::from(residual[at]);
            size += 2.0;
            let sum = sum.clamp(limits.0.into(), limits.1.into());
            let far = (f64::from(*y) - sum).abs();
            assert!(
                far <= 3e-6 * size,
                "form {form}, y[{at}] = {y}, {sum}: {case:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[ignore = "needs a C++ compiler"]
    fn convolutions(
        seed: u64, half in halves(), images in 1usize..3, groups in 1usize..3, channels in 1usize..9,
        rows in 1usize..20, input in (1usize..9, 1usize..11), kernel in (1usize..4, 1usize..4),
        strides in (1usize..3, 1usize..3), dilations in (1usize..3, 1usize..3),
        pads in (0usize..3, 0usize..3), kept in 8u32..=64,
    ) {
        let span = |k: usize, d: usize| (k - 1) * d + 1;
        let high = span(kernel.0, dilations.0).saturating_sub(2 * pads.0).max(input.0);
        let wide = span(kernel.1, dilations.1).saturating_sub(2 * pads.1).max(input.1);
        let case = Case {
            half, images, groups, channels, rows, input: [high, wide], kernel: kernel.into(),
            strides: strides.into(), dilations: dilations.into(), pads: pads.into(),
        };
        run(&case, seed, kept);
    }
}

#[test]
#[ignore = "needs a C++ compiler"]
fn every_convolution_runs() {
    for half in [Half::F16, Half::Bf16] {
        let case = Case {
            half,
            images: 2,
            groups: 1,
            channels: 36,
            rows: 37,
            input: [9, 7],
            kernel: [3, 3],
            strides: [1, 1],
            dilations: [1, 1],
            pads: [1, 1],
        };
        run(&case, 5, 30);
    }
}

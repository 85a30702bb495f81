//! The packed forms of linear layers against sums in f64: every instruction set, odd sizes, densities, uneven
//! and empty rows, several threads, and a sum in place.

use super::lookup::{Lookup, LookupRows};
use super::outputs::{OutputPanels, Outputs};
use super::team::Team;
use super::weights::MatrixRows;
use super::{Io, Isa, Kernel, Sequence};
use std::ops::Range;
use std::sync::Arc;

struct Case {
    outer: usize,
    inner: usize,
    count: usize,
    /// Of a hundred weights those that are kept; rows differ where `uneven`.
    kept: usize,
    uneven: bool,
    clamp: (f32, f32),
}

struct Pointer(*mut f32);
// SAFETY: members write disjoint parts.
unsafe impl Sync for Pointer {}

/// Columns and values of each row.
struct Lists<'l>(&'l [(Vec<u32>, Vec<f32>)]);

impl MatrixRows for Lists<'_> {
    fn visit(&self, row: usize, columns: Range<usize>, mut f: impl FnMut(usize, f32)) {
        for (k, v) in self.0[row].0.iter().zip(&self.0[row].1) {
            if columns.contains(&(*k as usize)) {
                f(*k as usize, *v);
            }
        }
    }
}

fn value(i: usize) -> f32 {
    (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

impl Case {
    fn rows(&self) -> Vec<(Vec<u32>, Vec<f32>)> {
        let keep = |r: usize, k: usize| {
            let kept = match self.uneven {
                true => self.kept * (r % 7) / 3,
                false => self.kept,
            };
            (value(r * self.inner + k + 77) + 1.0) * 50.0 < kept as f32
        };
        (0..self.outer)
            .map(|r| {
                let columns: Vec<u32> = (0..self.inner as u32)
                    .filter(|k| keep(r, *k as usize))
                    .collect();
                let values = columns.iter().map(|k| value(r + 3 * *k as usize)).collect();
                (columns, values)
            })
            .collect()
    }

    fn check(&self) {
        let rows = self.rows();
        let matrix = Lists(&rows);
        let bias: Vec<f32> = (0..self.outer).map(|i| value(i + 5)).collect();
        // Exactly as long as the kernels may read.
        let x: Vec<f32> = (0..self.count * self.inner).map(value).collect();
        for (threads, residual, bias) in [(1, false, vec![]), (3, true, bias)] {
            let start = |n: usize, r: usize| match residual {
                true => value(n * self.outer + r + 9),
                false => 0.0,
            };
            let mut want = Vec::new();
            for n in 0..self.count {
                for (r, row) in rows.iter().enumerate() {
                    let mut sum = f64::from(bias.get(r).copied().unwrap_or(0.0));
                    sum += f64::from(start(n, r));
                    let mut size = 2.0;
                    for (k, w) in row.0.iter().zip(&row.1) {
                        let product = f64::from(*w) * f64::from(x[n * self.inner + *k as usize]);
                        sum += product;
                        size += product.abs();
                    }
                    let (low, high) = self.clamp;
                    // A sum is off by at most a rounding of all magnitudes for each term.
                    let bound = (self.inner + 4) as f64 * f64::from(f32::EPSILON) / 2.0 * size;
                    want.push((sum.clamp(low.into(), high.into()), bound));
                }
            }
            let rows = LookupRows::pack(self.outer, self.inner, bias.clone(), &matrix);
            let lookup = Kernel::Lookup(Lookup {
                weights: Arc::new(rows),
                count: self.count,
                clamp: self.clamp,
            });
            let outputs = [false, true].map(|many| {
                let panels =
                    OutputPanels::pack(self.outer, self.inner, many, bias.clone(), &matrix);
                Kernel::Outputs(Outputs {
                    weights: Arc::new(panels),
                    count: self.count,
                    clamp: self.clamp,
                })
            });
            for isa in Isa::available() {
                let outputs = &outputs[usize::from(isa.has_many_registers())];
                for kernel in [&lookup, outputs] {
                    if matches!(kernel, Kernel::Lookup(_)) && self.count > 20 {
                        continue;
                    }
                    let mut out: Vec<f32> = (0..self.count * self.outer)
                        .map(|i| match residual {
                            true => value(i + 9),
                            false => f32::NAN,
                        })
                        .collect();
                    run(isa, kernel, threads, &x, residual, &mut out);
                    for (i, (got, (want, bound))) in out.iter().zip(&want).enumerate() {
                        let error = (f64::from(*got) - want).abs();
                        assert!(
                            error <= *bound,
                            "{isa} {kernel:?}: element {i} of {}x{} @ {} is {got}, not {want}",
                            self.outer,
                            self.inner,
                            self.count
                        );
                    }
                }
            }
        }
    }
}

fn run(isa: Isa, kernel: &Kernel, threads: usize, x: &[f32], residual: bool, out: &mut [f32]) {
    let len = kernel.scratch_len().next_multiple_of(16);
    let mut scratch = vec![f32::NAN; len * threads + 16];
    let from = scratch.as_ptr().align_offset(64);
    let (out, scratch) = (
        Pointer(out.as_mut_ptr()),
        Pointer(scratch[from..].as_mut_ptr()),
    );
    Team::new(threads).unwrap().run(&|member| {
        let (out, scratch) = (&out, &scratch);
        let inputs = [x.as_ptr(), out.0.cast_const()];
        let io = Io {
            inputs: &inputs[..1 + usize::from(residual)],
            out: out.0,
            // SAFETY: each member has a part of its own.
            scratch: unsafe { scratch.0.add(len * member.index) },
            sequence: Sequence::NONE,
            member,
        };
        // SAFETY: the instruction set is available; the buffers have the kernel's sizes.
        unsafe { isa.run(kernel, &io) };
    });
}

#[test]
fn packed_linear_layers_agree_with_sums_in_double() {
    let free = (f32::NEG_INFINITY, f32::INFINITY);
    for (i, outer) in [1, 5, 16, 47, 70, 130].into_iter().enumerate() {
        for (j, inner) in [1, 15, 16, 33, 141, 300].into_iter().enumerate() {
            for (k, count) in [1, 2, 3, 4, 5, 7, 8, 9, 13, 64, 130]
                .into_iter()
                .enumerate()
            {
                let case = Case {
                    outer,
                    inner,
                    count,
                    kept: [0, 4, 10, 50, 100][(i + j + k) % 5],
                    uneven: (i + k) % 2 == 1,
                    clamp: if k % 3 == 2 { (-0.5, 0.25) } else { free },
                };
                case.check();
            }
        }
    }
}

#[test]
fn many_columns_cross_passes_of_packed_weights() {
    for (outer, inner, count) in [(3, 200, 300), (20, 9000, 130)] {
        let case = Case {
            outer,
            inner,
            count,
            kept: 60,
            uneven: false,
            clamp: (f32::NEG_INFINITY, f32::INFINITY),
        };
        case.check();
    }
}

//! Where each index of an axis comes from, for operators that only move elements.

use super::Reason;
use lacuna::model::{Dim, Op, PadMode};

/// Where an axis of an output comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Origin {
    /// From nowhere: a new axis, or one that mixes several.
    Fixed,
    /// The same axis.
    Same {
        /// The axis of the input.
        axis: usize,
    },
    /// Runs, one after another.
    Runs(Vec<Run>),
    /// Index `i` is the indices `i * inner` to `(i + 1) * inner` of the axis.
    Rows {
        /// The axis of the input.
        axis: usize,
        /// Indices of it to one here.
        inner: usize,
    },
    /// A product of axes: index `i` is index `i / inner % size` of each.
    Merged(Vec<Factor>),
}

/// One axis of a product of axes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Factor {
    pub axis: usize,
    pub size: Option<usize>,
    pub inner: Option<usize>,
}

/// Indices one after another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Run {
    /// Indices from `start` on of an axis of an input.
    Copy {
        input: usize,
        axis: usize,
        start: usize,
        len: usize,
    },
    /// A constant.
    Fill { len: usize },
}

/// The axes of the output of an operator that only moves elements; `None` of another.
pub(super) fn origins(op: &Op, inputs: &[&[Dim]], output: &[Dim]) -> Option<Vec<Origin>> {
    let x = *inputs.first()?;
    let same = |axes: std::ops::Range<usize>| axes.map(|axis| Origin::Same { axis }).collect();
    match op {
        Op::Identity => Some(same(0..x.len())),
        Op::Transpose { perm } => Some(perm.iter().map(|&axis| Origin::Same { axis }).collect()),
        Op::Reshape { .. } | Op::Flatten { .. } | Op::Squeeze { .. } | Op::Unsqueeze { .. } => {
            Some(reshaped(x, output))
        }
        Op::Slice {
            axes,
            starts,
            steps,
            ..
        } => {
            let mut list: Vec<Origin> = same(0..x.len());
            for ((&axis, &start), &step) in axes.iter().zip(starts).zip(steps) {
                let axis = wrapped(axis, x.len())?;
                list[axis] = match (&x[axis], &output[axis]) {
                    (Dim::Fixed(n), Dim::Fixed(len)) if step == 1 => {
                        Origin::Runs(vec![Run::Copy {
                            input: 0,
                            axis,
                            start: clamped(start, *n),
                            len: *len,
                        }])
                    }
                    _ => Origin::Fixed,
                };
            }
            Some(list)
        }
        Op::Pad { pads, mode } => {
            let one = |axis: usize| match (pads[axis], pads[axis + x.len()], &x[axis]) {
                (0, 0, _) => Origin::Same { axis },
                (before, after, Dim::Fixed(len)) if before >= 0 && after >= 0 => match mode {
                    PadMode::Constant(_) => Origin::Runs(vec![
                        Run::Fill {
                            len: before as usize,
                        },
                        Run::Copy {
                            input: 0,
                            axis,
                            start: 0,
                            len: *len,
                        },
                        Run::Fill {
                            len: after as usize,
                        },
                    ]),
                    PadMode::Reflect | PadMode::Edge => Origin::Fixed,
                },
                _ => Origin::Fixed,
            };
            Some((0..x.len()).map(one).collect())
        }
        Op::Concat { axis } => {
            let joined = wrapped(*axis, x.len())?;
            let mut list: Vec<Origin> = same(0..x.len());
            let runs = inputs.iter().enumerate().map(|(input, shape)| {
                let len = match shape.get(joined)? {
                    Dim::Fixed(n) => *n,
                    Dim::Symbol(_) => return None,
                };
                Some(Run::Copy {
                    input,
                    axis: joined,
                    start: 0,
                    len,
                })
            });
            list[joined] = runs
                .collect::<Option<_>>()
                .map_or(Origin::Fixed, Origin::Runs);
            Some(list)
        }
        _ => None,
    }
}

/// What an operator that only moves elements does to a channel that it does not keep apart.
pub(super) fn lost(node: &lacuna::model::Node) -> Reason {
    let what = match &node.op {
        Op::Reshape { .. } | Op::Flatten { .. } => "mixes channels with other axes",
        Op::Slice { .. } => "takes channels in steps",
        Op::Pad { .. } => "crops or mirrors channels",
        _ => "does not keep channels apart",
    };
    Reason::Node {
        node: node.name.clone(),
        op: node.op.name(),
        what,
    }
}

/// An axis that counts from the end when it is negative.
pub(super) fn wrapped(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// The first index of a slice with step 1 of `n` indices.
pub(super) fn clamped(start: i64, n: usize) -> usize {
    let (start, n) = (i128::from(start), n as i128);
    let start = if start < 0 { start + n } else { start };
    start.clamp(0, n) as usize
}

/// A product of sizes: a number and symbols.
#[derive(Clone, Default, PartialEq)]
struct Product<'a> {
    number: usize,
    symbols: Vec<&'a str>,
}

impl<'a> Product<'a> {
    fn times(mut self, dim: &'a Dim) -> Product<'a> {
        match dim {
            Dim::Fixed(n) => self.number = self.number.saturating_mul(*n),
            Dim::Symbol(s) => {
                self.symbols.push(s);
                self.symbols.sort_unstable();
            }
        }
        self
    }

    fn one() -> Product<'a> {
        Product {
            number: 1,
            symbols: Vec::new(),
        }
    }
}

/// The axes of `y`, which has the elements of `x` in their order.
fn reshaped(x: &[Dim], y: &[Dim]) -> Vec<Origin> {
    let real = |shape: &[Dim]| -> Vec<usize> {
        (0..shape.len())
            .filter(|&a| shape[a] != Dim::Fixed(1))
            .collect()
    };
    let (from, to) = (real(x), real(y));
    let mut list = vec![Origin::Fixed; y.len()];
    let (mut i, mut j) = (0, 0);
    while i < from.len() && j < to.len() {
        let (first, begin) = (i, j);
        let mut have = Product::one().times(&x[from[i]]);
        let mut need = Product::one().times(&y[to[j]]);
        (i, j) = (i + 1, j + 1);
        while have != need {
            let grow_x = match have.symbols == need.symbols {
                true => have.number < need.number,
                false => have.symbols.len() < need.symbols.len(),
            };
            match (grow_x, from.get(i), to.get(j)) {
                (true, Some(&a), _) | (false, Some(&a), None) => {
                    have = have.times(&x[a]);
                    i += 1;
                }
                (false, _, Some(&a)) | (true, None, Some(&a)) => {
                    need = need.times(&y[a]);
                    j += 1;
                }
                (_, None, None) => return list,
            }
        }
        let (own, made) = (&from[first..i], &to[begin..j]);
        match (own, made) {
            ([axis], [to]) => list[*to] = Origin::Same { axis: *axis },
            ([axis], [to, ..]) => {
                if let (Dim::Fixed(n), Dim::Fixed(rows)) = (&x[*axis], &y[*to])
                    && *rows > 0
                {
                    list[*to] = Origin::Rows {
                        axis: *axis,
                        inner: n / rows,
                    };
                }
            }
            (own, [to]) => {
                let mut inner = Some(1usize);
                let mut factors = Vec::with_capacity(own.len());
                for &axis in own.iter().rev() {
                    let size = match &x[axis] {
                        Dim::Fixed(n) => Some(*n),
                        Dim::Symbol(_) => None,
                    };
                    factors.push(Factor { axis, size, inner });
                    inner = inner.zip(size).and_then(|(a, b)| a.checked_mul(b));
                }
                list[*to] = Origin::Merged(factors);
            }
            _ => {}
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> Vec<Dim> {
        let dim = |s: &str| match s.parse() {
            Ok(n) => Dim::Fixed(n),
            Err(_) => Dim::Symbol(s.to_owned()),
        };
        text.split_whitespace().map(dim).collect()
    }

    fn of(x: &str, y: &str) -> Vec<Origin> {
        reshaped(&shape(x), &shape(y))
    }

    fn factor(axis: usize, size: usize, inner: usize) -> Factor {
        Factor {
            axis,
            size: Some(size),
            inner: Some(inner),
        }
    }

    #[test]
    fn reshapes_are_index_maps() {
        let same = |axis| Origin::Same { axis };
        let flat = Origin::Merged(vec![factor(3, 5, 1), factor(2, 4, 5), factor(1, 3, 20)]);
        assert_eq!(of("N 3 4 5", "N 60"), [same(0), flat]);
        let rows = Origin::Rows { axis: 2, inner: 64 };
        assert_eq!(
            of("N T 576", "N T 9 64"),
            [same(0), same(1), rows, Origin::Fixed]
        );
        assert_eq!(of("N 7 1 1", "N 7"), [same(0), same(1)]);
        assert_eq!(of("N 7", "N 7 1"), [same(0), same(1), Origin::Fixed]);
        assert_eq!(
            of("2 4 6", "2 6 4"),
            [same(0), Origin::Fixed, Origin::Fixed]
        );
        let merged = Origin::Merged(vec![factor(2, 6, 1), factor(1, 4, 6)]);
        assert_eq!(of("2 4 6 5", "2 24 5"), [same(0), merged, same(3)]);
    }
}

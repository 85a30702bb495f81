//! Where elements lie: values of four axes are kept channels last, every other value in the order of its axes.

use super::pointwise::walk;
use rayon::prelude::*;

/// The stored axes of a value, as logical ones.
fn order(rank: usize) -> Vec<usize> {
    match rank {
        4 => vec![0, 2, 3, 1],
        _ => (0..rank).collect(),
    }
}

/// The sizes of a value in the order in which it is stored.
pub(super) fn stored(shape: &[usize]) -> Vec<usize> {
    order(shape.len())
        .into_iter()
        .map(|axis| shape[axis])
        .collect()
}

/// The stored position of a logical axis.
pub(super) fn stored_axis(axis: usize, rank: usize) -> usize {
    order(rank).iter().position(|&a| a == axis).unwrap_or(axis)
}

/// The strides of the logical axes of a value, or of a weight, whose axes lie in order.
pub(super) fn strides(shape: &[usize], weight: bool) -> Vec<usize> {
    let order = if weight {
        (0..shape.len()).collect()
    } else {
        order(shape.len())
    };
    let mut strides = vec![0; shape.len()];
    let mut next = 1;
    for &axis in order.iter().rev() {
        strides[axis] = next;
        next *= shape[axis];
    }
    strides
}

/// The strides of an operand over the stored axes of `out`, 0 where it is broadcast.
pub(super) fn broadcast(shape: &[usize], weight: bool, out: &[usize]) -> Vec<usize> {
    let own = strides(shape, weight);
    let missing = out.len().saturating_sub(shape.len());
    let logical = |axis: usize| match axis.checked_sub(missing) {
        Some(a) if shape[a] != 1 => own[a],
        _ => 0,
    };
    order(out.len()).into_iter().map(logical).collect()
}

/// The strides over the stored axes of a value of shape `out` that has the elements of one of shape `shape` in
/// row-major order; `None` where they lie in the same order already.
pub(super) fn reshaped(shape: &[usize], out: &[usize]) -> Option<[Moved; 2]> {
    let plain = |s: &[usize]| s.len() != 4 || s[1] == 1 || s[2] * s[3] == 1;
    match plain(shape) && plain(out) {
        true => None,
        // First to row-major order, then to the order of the result.
        false => Some([Moved::to_rows(shape), Moved::from_rows(out)]),
    }
}

/// A permutation of elements.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Moved {
    /// The sizes of the result, in its stored order.
    pub dims: Vec<usize>,
    /// The strides of the source along them.
    pub strides: Vec<usize>,
}

impl Moved {
    /// A value's elements in row-major order.
    fn to_rows(shape: &[usize]) -> Moved {
        Moved {
            dims: shape.to_vec(),
            strides: strides(shape, false),
        }
    }

    /// Elements in row-major order as a value.
    fn from_rows(shape: &[usize]) -> Moved {
        let rows = strides(shape, true);
        Moved {
            dims: stored(shape),
            strides: order(shape.len()).into_iter().map(|a| rows[a]).collect(),
        }
    }

    /// A value's axes in another order.
    pub fn transposed(shape: &[usize], perm: &[usize]) -> Moved {
        let own = strides(shape, false);
        let out: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
        let moved: Vec<usize> = perm.iter().map(|&p| own[p]).collect();
        Moved {
            dims: stored(&out),
            strides: order(out.len()).into_iter().map(|a| moved[a]).collect(),
        }
    }

    pub fn forward(&self, x: &[f32], y: &mut [f32]) {
        let each = self.dims.iter().skip(1).product::<usize>().max(1);
        y.par_chunks_mut(each).enumerate().for_each(|(n, y)| {
            walk(
                &self.dims,
                n,
                [&self.strides, &self.strides],
                |i, [at, _]| y[i] = x[at],
            );
        });
    }

    pub fn backward(&self, dy: &[f32], dx: &mut [f32]) {
        let each = self.dims.iter().skip(1).product::<usize>().max(1);
        for (n, dy) in dy.chunks(each).enumerate() {
            walk(
                &self.dims,
                n,
                [&self.strides, &self.strides],
                |i, [at, _]| dx[at] = dy[i],
            );
        }
    }
}

/// For every stored axis of a result, the index of the source that each index reads; `None` reads a constant.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Selection {
    /// The sizes of the source, in its stored order.
    pub dims: Vec<usize>,
    pub maps: Vec<Vec<Option<usize>>>,
    pub constant: f32,
}

impl Selection {
    fn sizes(&self) -> [usize; 2] {
        let each = |dims: &mut dyn Iterator<Item = usize>| dims.skip(1).product::<usize>();
        [
            each(&mut self.dims.iter().copied()),
            each(&mut self.maps.iter().map(Vec::len)),
        ]
    }

    /// Calls `f` with the start of each innermost row of entry 0 of the result, and where the source has the row.
    fn rows(&self, mut f: impl FnMut(usize, Option<usize>)) {
        let Some((last, outer)) = self.maps[1..].split_last() else {
            return f(0, Some(0));
        };
        let mut strides = vec![1; self.dims.len()];
        for axis in (0..self.dims.len() - 1).rev() {
            strides[axis] = strides[axis + 1] * self.dims[axis + 1];
        }
        let count: usize = outer.iter().map(Vec::len).product();
        for row in 0..count {
            let (mut rest, mut at) = (row, Some(0));
            for (axis, map) in outer.iter().enumerate().rev() {
                let index = map[rest % map.len()];
                rest /= map.len();
                at = at.zip(index).map(|(at, i)| at + i * strides[axis + 1]);
            }
            f(row * last.len(), at);
        }
    }

    /// The map of the innermost axis behind the batch.
    fn last(&self) -> &[Option<usize>] {
        match self.maps.as_slice() {
            [_, .., last] => last,
            _ => &[Some(0)],
        }
    }

    pub fn forward(&self, x: &[f32], y: &mut [f32]) {
        let [size, out] = self.sizes();
        let last = self.last();
        y.par_chunks_mut(out.max(1))
            .zip(&self.maps[0])
            .for_each(|(y, n)| {
                y.fill(self.constant);
                let Some(n) = n else { return };
                let x = &x[n * size..][..size];
                self.rows(|to, from| {
                    let Some(from) = from else { return };
                    for (y, i) in y[to..].iter_mut().zip(last) {
                        if let Some(i) = i {
                            *y = x[from + i];
                        }
                    }
                });
            });
    }

    /// Adds to the source's gradient.
    pub fn backward(&self, dy: &[f32], dx: &mut [f32]) {
        let [size, out] = self.sizes();
        let last = self.last();
        let entry = |n: usize, dx: &mut [f32]| {
            let dy = &dy[n * out..][..out];
            self.rows(|to, from| {
                let Some(from) = from else { return };
                for (d, i) in dy[to..].iter().zip(last) {
                    if let Some(i) = i {
                        dx[from + i] += d;
                    }
                }
            });
        };
        let straight = self.maps[0].len() == self.dims[0]
            && self.maps[0].iter().enumerate().all(|(i, m)| *m == Some(i));
        if straight {
            dx.par_chunks_mut(size.max(1))
                .enumerate()
                .for_each(|(n, dx)| entry(n, dx));
            return;
        }
        for (n, from) in self.maps[0].iter().enumerate() {
            if let Some(from) = from {
                entry(n, &mut dx[from * size..][..size]);
            }
        }
    }
}

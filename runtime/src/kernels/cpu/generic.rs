//! Operators that move or combine elements: one plain implementation, no tuning.

use super::Io;

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Unary {
    Clamp(f32, f32),
    LeakyRelu(f32),
    HardSigmoid(f32, f32),
    HardSwish,
    Erf,
    /// `a * x + b`.
    Affine(f32, f32),
}

impl Unary {
    #[inline(always)]
    fn apply(self, x: f32) -> f32 {
        let clamp = |x: f32, low: f32, high: f32| {
            let x = if x < low { low } else { x };
            if x > high { high } else { x }
        };
        match self {
            Unary::Clamp(low, high) => clamp(x, low, high),
            Unary::LeakyRelu(alpha) => {
                if x < 0.0 {
                    alpha * x
                } else {
                    x
                }
            }
            Unary::HardSigmoid(alpha, beta) => clamp(alpha * x + beta, 0.0, 1.0),
            Unary::HardSwish => x * clamp(x / 6.0 + 0.5, 0.0, 1.0),
            Unary::Erf => libm::erff(x),
            Unary::Affine(a, b) => a * x + b,
        }
    }
}

/// A function of two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// `a` where positive, else `a * b`.
    PRelu,
}

/// A planned operator of this module.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Generic {
    /// One function over `len` elements.
    Unary { function: Unary, len: usize },
    /// Two inputs broadcast to `shape`; strides are 0 where an input is broadcast.
    Binary {
        function: Binary,
        shape: Vec<usize>,
        strides: [Vec<usize>; 2],
        clamp: (f32, f32),
    },
    /// Per channel `x * scale + shift` over `[batch, channels, plane]`.
    ScaleShift {
        batch: usize,
        plane: usize,
        scale: Vec<f32>,
        shift: Vec<f32>,
    },
    /// Every plane of `[batch, channels, plane]` to mean 0 and variance 1, then `x * scale + shift` by channel.
    InstanceNorm {
        batch: usize,
        plane: usize,
        scale: Vec<f32>,
        shift: Vec<f32>,
        epsilon: f32,
    },
    /// Planes of `input` rows and columns, each element of the output between two rows and two columns: their
    /// indices, and the weight of the second.
    Interpolate {
        planes: usize,
        input: [usize; 2],
        rows: Vec<(usize, usize, f32)>,
        columns: Vec<(usize, usize, f32)>,
    },
    /// Copies with an index table per axis. Output element `i` of an axis takes the input offset
    /// `tables[axis][i]`; `None` on any axis fills. Output strides place the copy in a larger tensor.
    Copy { parts: Vec<Part> },
    /// The mean over the inner of `[outer, reduced, inner]`, after `axes` were brought there by strides.
    Mean {
        /// Sizes and input strides of the kept axes.
        kept: Vec<(usize, usize)>,
        /// Sizes and input strides of the reduced axes.
        reduced: Vec<(usize, usize)>,
    },
    /// Softmax over the middle of `[outer, axis, inner]`.
    Softmax {
        outer: usize,
        axis: usize,
        inner: usize,
    },
    /// Batched matrix product of two activations.
    MatMul {
        /// Element offsets of each batch entry in a, b.
        batch: Vec<(usize, usize)>,
        m: usize,
        k: usize,
        n: usize,
        /// Row and column strides of a, then of b.
        strides: [usize; 4],
    },
}

/// One copy of [`Generic::Copy`].
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Part {
    /// Which input.
    pub input: usize,
    pub tables: Vec<Vec<Option<usize>>>,
    /// Output strides.
    pub strides: Vec<usize>,
    /// Output offset of the part.
    pub offset: usize,
    pub fill: f32,
}

impl Generic {
    /// Runs this member's share.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run).
    #[inline(always)]
    pub(super) unsafe fn run(&self, io: &Io<'_>) {
        let alone = io.member.index == 0;
        // SAFETY: the plan sized every buffer for these shapes.
        unsafe {
            match self {
                Generic::Unary { function, len } => {
                    for i in io.member.share(*len) {
                        *io.out.add(i) = function.apply(*io.inputs[0].add(i));
                    }
                }
                Generic::Binary {
                    function,
                    shape,
                    strides,
                    clamp,
                } => {
                    binary(io, *function, shape, strides, *clamp);
                }
                Generic::ScaleShift {
                    batch,
                    plane,
                    scale,
                    shift,
                } => {
                    for p in io.member.share(batch * scale.len()) {
                        let c = p % scale.len();
                        for i in p * plane..(p + 1) * plane {
                            *io.out.add(i) = *io.inputs[0].add(i) * scale[c] + shift[c];
                        }
                    }
                }
                Generic::InstanceNorm {
                    batch,
                    plane,
                    scale,
                    shift,
                    epsilon,
                } => {
                    for p in io.member.share(batch * scale.len()) {
                        let c = p % scale.len();
                        let x = std::slice::from_raw_parts(io.inputs[0].add(p * plane), *plane);
                        let count = (*plane).max(1) as f64;
                        let mean = sum(x) / count;
                        let square = |&x: &f32| (f64::from(x) - mean) * (f64::from(x) - mean);
                        let variance = x.iter().map(square).sum::<f64>() / count;
                        let factor = f64::from(scale[c]) / (variance + f64::from(*epsilon)).sqrt();
                        for (i, &x) in x.iter().enumerate() {
                            let y = (f64::from(x) - mean) * factor + f64::from(shift[c]);
                            *io.out.add(p * plane + i) = y as f32;
                        }
                    }
                }
                Generic::Interpolate {
                    planes,
                    input: [height, width],
                    rows,
                    columns,
                } => {
                    for line in io.member.share(planes * rows.len()) {
                        let (plane, row) = (line / rows.len(), line % rows.len());
                        let (above, below, v) = rows[row];
                        let x = io.inputs[0].add(plane * height * width);
                        let (above, below) = (x.add(above * width), x.add(below * width));
                        let out = io.out.add(line * columns.len());
                        for (i, &(left, right, h)) in columns.iter().enumerate() {
                            let a = *above.add(left) + h * (*above.add(right) - *above.add(left));
                            let b = *below.add(left) + h * (*below.add(right) - *below.add(left));
                            *out.add(i) = a + v * (b - a);
                        }
                    }
                }
                Generic::Copy { parts } => {
                    for (i, part) in parts.iter().enumerate() {
                        if i % io.member.size == io.member.index {
                            part.copy(io.inputs[part.input], io.out.add(part.offset), 0, Some(0));
                        }
                    }
                }
                Generic::Mean { kept, reduced }
                    if follow(reduced, 1) && follow(kept, len(reduced)) =>
                {
                    let count = len(reduced);
                    for i in io.member.share(len(kept)) {
                        let x = std::slice::from_raw_parts(io.inputs[0].add(i * count), count);
                        *io.out.add(i) = (sum(x) / count as f64) as f32;
                    }
                }
                Generic::Mean { kept, reduced } if alone => {
                    let count = len(reduced);
                    let mut out = io.out;
                    walk(kept, 0, &mut |base| {
                        let mut sum = 0.0f64;
                        walk(reduced, base, &mut |at| {
                            sum += f64::from(*io.inputs[0].add(at))
                        });
                        *out = (sum / count as f64) as f32;
                        out = out.add(1);
                    });
                }
                Generic::Softmax { outer, axis, inner } => {
                    for row in io.member.share(outer * inner) {
                        let base = row / inner * axis * inner + row % inner;
                        softmax(io.inputs[0].add(base), io.out.add(base), *axis, *inner);
                    }
                }
                Generic::MatMul {
                    batch,
                    m,
                    k,
                    n,
                    strides,
                } => {
                    let [ar, ac, br, bc] = *strides;
                    for row in io.member.share(batch.len() * m) {
                        let (a, b) = batch[row / m];
                        let (a, b) = (io.inputs[0].add(a + row % m * ar), io.inputs[1].add(b));
                        for j in 0..*n {
                            let mut sum = 0.0;
                            for i in 0..*k {
                                sum += *a.add(i * ac) * *b.add(i * br + j * bc);
                            }
                            *io.out.add(row * n + j) = sum;
                        }
                    }
                }
                Generic::Mean { .. } => {}
            }
        }
    }
}

/// Elements of axes given by size and stride.
fn len(axes: &[(usize, usize)]) -> usize {
    axes.iter().map(|a| a.0).product()
}

/// Whether the elements of the axes lie `stride` apart, in order.
fn follow(axes: &[(usize, usize)], mut stride: usize) -> bool {
    axes.iter().rev().all(|&(size, step)| {
        let next = size <= 1 || step == stride;
        stride *= size;
        next
    })
}

/// The sum, eight lanes at a time.
#[inline(always)]
fn sum(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (whole, rest) = x.as_chunks::<8>();
    for x in whole {
        for (lane, &x) in lanes.iter_mut().zip(x) {
            *lane += f64::from(x);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x)).sum::<f64>()
}

#[inline(always)]
unsafe fn binary(
    io: &Io<'_>,
    function: Binary,
    shape: &[usize],
    strides: &[Vec<usize>; 2],
    clamp: (f32, f32),
) {
    let apply = |a: f32, b: f32| {
        let y = match function {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::PRelu => {
                if a < 0.0 {
                    a * b
                } else {
                    a
                }
            }
        };
        let y = if y < clamp.0 { clamp.0 } else { y };
        if y > clamp.1 { clamp.1 } else { y }
    };
    let last = shape.last().copied().unwrap_or(1);
    let rows: usize = shape.iter().product::<usize>() / last.max(1);
    let step = |i: usize| strides[i].last().copied().unwrap_or(0);
    for row in io.member.share(rows) {
        let (mut left, mut at) = (row, [0usize; 2]);
        for axis in (0..shape.len().saturating_sub(1)).rev() {
            let index = left % shape[axis];
            left /= shape[axis];
            at[0] += index * strides[0][axis];
            at[1] += index * strides[1][axis];
        }
        // SAFETY: the plan sized the inputs for these strides and the output for the shape.
        unsafe {
            let (a, b) = (io.inputs[0].add(at[0]), io.inputs[1].add(at[1]));
            let out = io.out.add(row * last);
            if (step(0), step(1)) == (1, 1) {
                for i in 0..last {
                    *out.add(i) = apply(*a.add(i), *b.add(i));
                }
            } else {
                for i in 0..last {
                    *out.add(i) = apply(*a.add(i * step(0)), *b.add(i * step(1)));
                }
            }
        }
    }
}

impl Part {
    unsafe fn copy(&self, x: *const f32, out: *mut f32, axis: usize, base: Option<usize>) {
        // SAFETY: tables name elements of the input; strides lie within the output.
        unsafe {
            let Some(table) = self.tables.get(axis) else {
                *out = base.map_or(self.fill, |at| *x.add(at));
                return;
            };
            let stride = self.strides[axis];
            if let (Some(base), true) = (base, axis + 1 == self.tables.len()) {
                for (i, offset) in table.iter().enumerate() {
                    *out.add(i * stride) = offset.map_or(self.fill, |o| *x.add(base + o));
                }
                return;
            }
            for (i, offset) in table.iter().enumerate() {
                let at = base.zip(*offset).map(|(b, o)| b + o);
                self.copy(x, out.add(i * stride), axis + 1, at);
            }
        }
    }
}

fn walk(axes: &[(usize, usize)], base: usize, f: &mut impl FnMut(usize)) {
    match axes {
        [] => f(base),
        [(size, stride), rest @ ..] => (0..*size).for_each(|i| walk(rest, base + i * stride, f)),
    }
}

unsafe fn softmax(x: *const f32, out: *mut f32, len: usize, stride: usize) {
    // SAFETY: the caller gives `len` elements `stride` apart.
    unsafe {
        let mut max = f32::NEG_INFINITY;
        for i in 0..len {
            max = max.max(*x.add(i * stride));
        }
        let mut sum = 0.0;
        for i in 0..len {
            let e = (*x.add(i * stride) - max).exp();
            *out.add(i * stride) = e;
            sum += e;
        }
        for i in 0..len {
            *out.add(i * stride) /= sum;
        }
    }
}

//! Functions of single elements, and sums and products with broadcast.

use super::parts::SPAN;
use lacuna::Isa;
use rayon::prelude::*;

/// Functions of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Activation {
    LeakyRelu(f32),
    Clamp(f32, f32),
    /// `clamp(slope * x + offset, 0, 1)`.
    HardSigmoid(f32, f32),
    HardSwish,
    Sigmoid,
    Tanh,
    Erf,
    Swish(f32),
    /// Whether it is the tanh approximation.
    Gelu(bool),
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

impl Activation {
    #[inline(always)]
    pub fn value(self, x: f32) -> f32 {
        match self {
            Activation::LeakyRelu(alpha) => {
                if x > 0.0 {
                    x
                } else {
                    alpha * x
                }
            }
            Activation::Clamp(low, high) => {
                let x = if x < low { low } else { x };
                if x > high { high } else { x }
            }
            Activation::HardSigmoid(slope, offset) => (slope * x + offset).clamp(0.0, 1.0),
            Activation::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Activation::Sigmoid => sigmoid(x),
            Activation::Tanh => x.tanh(),
            Activation::Erf => 2.0 * normal(x * std::f32::consts::SQRT_2) - 1.0,
            Activation::Swish(alpha) => x * sigmoid(alpha * x),
            Activation::Gelu(true) => 0.5 * x * (1.0 + tanh_argument(x).tanh()),
            Activation::Gelu(false) => x * normal(x),
        }
    }

    #[inline(always)]
    pub fn slope(self, x: f32) -> f32 {
        match self {
            Activation::LeakyRelu(alpha) => {
                if x > 0.0 {
                    1.0
                } else {
                    alpha
                }
            }
            Activation::Clamp(low, high) => {
                if x > low && x < high {
                    1.0
                } else {
                    0.0
                }
            }
            Activation::HardSigmoid(slope, offset) => {
                let y = slope * x + offset;
                if y > 0.0 && y < 1.0 { slope } else { 0.0 }
            }
            Activation::HardSwish if x <= -3.0 => 0.0,
            Activation::HardSwish if x >= 3.0 => 1.0,
            Activation::HardSwish => x / 3.0 + 0.5,
            Activation::Sigmoid => {
                let y = sigmoid(x);
                y * (1.0 - y)
            }
            Activation::Tanh => 1.0 - x.tanh() * x.tanh(),
            Activation::Erf => std::f32::consts::FRAC_2_SQRT_PI * (-x * x).exp(),
            Activation::Swish(alpha) => {
                let s = sigmoid(alpha * x);
                s + alpha * x * s * (1.0 - s)
            }
            Activation::Gelu(true) => {
                let t = tanh_argument(x).tanh();
                let inner = SQRT_2_PI * (1.0 + 3.0 * CUBE * x * x);
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
            }
            Activation::Gelu(false) => {
                let density = (-0.5 * x * x).exp() * (0.5 * SQRT_2_PI);
                normal(x) + x * density
            }
        }
    }

    pub fn forward(self, isa: Isa, x: &[f32], y: &mut [f32]) {
        (y.par_chunks_mut(SPAN).zip(x.par_chunks(SPAN))).for_each(|(y, x)| {
            isa.vectorize(|| y.iter_mut().zip(x).for_each(|(y, &x)| *y = self.value(x)));
        });
    }

    /// Multiplies the output's gradient by the slopes.
    pub fn backward(self, isa: Isa, x: &[f32], gradient: &mut [f32]) {
        (gradient.par_chunks_mut(SPAN).zip(x.par_chunks(SPAN))).for_each(|(g, x)| {
            isa.vectorize(|| g.iter_mut().zip(x).for_each(|(g, &x)| *g *= self.slope(x)));
        });
    }
}

const SQRT_2_PI: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

fn tanh_argument(x: f32) -> f32 {
    SQRT_2_PI * (x + CUBE * x * x * x)
}

/// The standard normal distribution function, by Abramowitz and Stegun's 7.1.26 in f64: to 1.5e-7.
fn normal(x: f32) -> f32 {
    let x = f64::from(x);
    let z = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let series = [
        1.061_405_429,
        -1.453_152_027,
        1.421_413_741,
        -0.284_496_736,
        0.254_829_592,
    ];
    let polynomial = series.iter().fold(0.0, |sum, c| (sum + c) * t);
    let half = 0.5 * polynomial * (-z * z).exp();
    (if x < 0.0 { half } else { 1.0 - half }) as f32
}

/// Operators of two numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// `a` where positive, else `a * b`.
    PRelu,
}

impl Binary {
    #[inline(always)]
    fn value(self, a: f32, b: f32) -> f32 {
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::PRelu => {
                if a > 0.0 {
                    a
                } else {
                    a * b
                }
            }
        }
    }

    /// The slopes with respect to both.
    #[inline(always)]
    fn slopes(self, a: f32, b: f32) -> [f32; 2] {
        match self {
            Binary::Add => [1.0, 1.0],
            Binary::Sub => [1.0, -1.0],
            Binary::Mul => [b, a],
            Binary::Div => [1.0 / b, -a / (b * b)],
            Binary::PRelu if a > 0.0 => [1.0, 0.0],
            Binary::PRelu => [b, a],
        }
    }

    /// `a op b` over `dims`, the operands read with strides that are 0 where they are broadcast.
    pub fn forward(
        self,
        dims: &[usize],
        a: (&[f32], &[usize]),
        b: (&[f32], &[usize]),
        y: &mut [f32],
    ) {
        let each = dims.iter().skip(1).product::<usize>().max(1);
        y.par_chunks_mut(each).enumerate().for_each(|(n, y)| {
            walk(dims, n, [a.1, b.1], |i, [at_a, at_b]| {
                y[i] = self.value(a.0[at_a], b.0[at_b])
            });
        });
    }

    /// Adds to the gradient of operand `which`.
    pub fn backward(
        self,
        which: usize,
        dims: &[usize],
        a: (&[f32], &[usize]),
        b: (&[f32], &[usize]),
        dy: &[f32],
        to: &mut [f32],
    ) {
        let each = dims.iter().skip(1).product::<usize>().max(1);
        for n in 0..dims.first().copied().unwrap_or(1) {
            let dy = &dy[n * each..][..each];
            walk(dims, n, [a.1, b.1], |i, at| {
                to[at[which]] += dy[i] * self.slopes(a.0[at[0]], b.0[at[1]])[which];
            });
        }
    }
}

/// Visits the elements of entry `n` of the first axis: their index in it, and where two operands have them.
pub(super) fn walk(
    dims: &[usize],
    n: usize,
    strides: [&[usize]; 2],
    mut f: impl FnMut(usize, [usize; 2]),
) {
    let Some(inner) = dims.get(1..) else {
        return f(0, [0, 0]);
    };
    let start: [usize; 2] = std::array::from_fn(|o| n * strides[o][0]);
    let mut index = vec![0; inner.len()];
    let mut at = start;
    for i in 0..inner.iter().product::<usize>() {
        f(i, at);
        for axis in (0..inner.len()).rev() {
            index[axis] += 1;
            for (at, strides) in at.iter_mut().zip(strides) {
                *at += strides[axis + 1];
            }
            if index[axis] < inner[axis] {
                break;
            }
            index[axis] = 0;
            for (at, strides) in at.iter_mut().zip(strides) {
                *at -= inner[axis] * strides[axis + 1];
            }
        }
    }
}

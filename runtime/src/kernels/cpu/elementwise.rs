//! Functions of elements: activations, gated activations, sums and products of equal shapes.

use super::generic::Binary;
use super::math::{self, vectors};
use super::simd::{LANES, Simd, first};
use super::softmax::{exponentials, multiply};
use super::{Extent, Io};

/// An activation.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Function {
    Swish(f32),
    Gelu,
    GeluTanh,
    Sigmoid,
    Tanh,
}

impl Function {
    #[inline(always)]
    unsafe fn apply<S: Simd>(self, x: S::V) -> S::V {
        // SAFETY: the caller runs with the features of `S`.
        unsafe {
            match self {
                Function::Swish(alpha) => math::swish::<S>(x, alpha),
                Function::Gelu => math::gelu::<S>(x),
                Function::GeluTanh => math::gelu_tanh::<S>(x),
                Function::Sigmoid => math::sigmoid::<S>(x),
                Function::Tanh => math::tanh::<S>(x),
            }
        }
    }
}

/// A planned operator of this module.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Elementwise {
    /// `f(x)`.
    Unary { function: Function, extent: Extent },
    /// `f(x) * y`.
    Gated { function: Function, extent: Extent },
    /// `x ∘ y` between limits.
    Binary {
        function: Binary,
        extent: Extent,
        clamp: (f32, f32),
    },
    /// Softmax of rows of `width` elements; the extent counts rows.
    Softmax { extent: Extent, width: usize },
}

impl Elementwise {
    /// Runs this member's share.
    ///
    /// # Safety
    /// As [`Kernel::run`](super::Kernel::run).
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        // SAFETY: the plan sized every buffer for the extent; masks end at it.
        unsafe {
            match self {
                Elementwise::Unary { function, extent } => {
                    let share = vectors(io.member, extent.active(&io.sequence));
                    let mut i = share.start;
                    while i < share.end {
                        let mask = first(share.end - i);
                        let x = S::load_mask(io.inputs[0].add(i), mask);
                        S::store_mask(io.out.add(i), function.apply::<S>(x), mask);
                        i += LANES;
                    }
                }
                Elementwise::Gated { function, extent } => {
                    let share = vectors(io.member, extent.active(&io.sequence));
                    let mut i = share.start;
                    while i < share.end {
                        let mask = first(share.end - i);
                        let x = S::load_mask(io.inputs[0].add(i), mask);
                        let y = S::load_mask(io.inputs[1].add(i), mask);
                        S::store_mask(io.out.add(i), S::mul(function.apply::<S>(x), y), mask);
                        i += LANES;
                    }
                }
                Elementwise::Binary {
                    function,
                    extent,
                    clamp,
                } => {
                    let (low, high) = (S::splat(clamp.0), S::splat(clamp.1));
                    let share = vectors(io.member, extent.active(&io.sequence));
                    let mut i = share.start;
                    while i < share.end {
                        let mask = first(share.end - i);
                        let x = S::load_mask(io.inputs[0].add(i), mask);
                        let y = S::load_mask(io.inputs[1].add(i), mask);
                        let v = match function {
                            Binary::Add => S::add(x, y),
                            Binary::Sub => S::sub(x, y),
                            Binary::Mul => S::mul(x, y),
                            Binary::Div => S::div(x, y),
                            Binary::PRelu => {
                                let zero = S::splat(0.0);
                                S::add(S::max(zero, x), S::mul(S::min(zero, x), y))
                            }
                        };
                        S::store_mask(io.out.add(i), S::min(high, S::max(low, v)), mask);
                        i += LANES;
                    }
                }
                Elementwise::Softmax { extent, width } => {
                    for row in io.member.share(extent.active(&io.sequence)) {
                        let (x, out) = (io.inputs[0].add(row * width), io.out.add(row * width));
                        std::ptr::copy_nonoverlapping(x, out, *width);
                        let sum = exponentials::<S>(out, std::ptr::null(), *width);
                        multiply::<S>(out, 1.0 / sum, *width);
                    }
                }
            }
        }
    }
}

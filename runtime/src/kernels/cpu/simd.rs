//! The SIMD layer: every instruction set is a token with the same operations on 16 f32.
//!
//! An algorithm is written once over [`Simd`]; what a register holds (one `zmm`, two `ymm`, an
//! array) is the token's business. Methods are unsafe because the token alone does not prove that
//! the CPU has the instructions: they are inlined into functions that enable them, which are
//! called only behind detection.

use half::bf16;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// The type of stored weights; kernels compute in f32.
pub trait Element: Copy {
    /// Which type.
    const KIND: Kind;
    /// Bytes of a stored value.
    const SIZE: usize;
}

/// The types of stored weights.
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    F32,
    F16,
    Bf16,
    I8,
}

/// Stored as f32.
#[derive(Clone, Copy)]
pub struct F32;
/// Stored as IEEE half precision.
#[derive(Clone, Copy)]
pub struct F16;
/// Stored as the upper half of an f32.
#[derive(Clone, Copy)]
pub struct Bf16;

/// Stored as a signed byte; what it stands for is a multiple of it.
#[derive(Clone, Copy)]
pub struct I8;

impl Element for I8 {
    const KIND: Kind = Kind::I8;
    const SIZE: usize = 1;
}
impl Element for F32 {
    const KIND: Kind = Kind::F32;
    const SIZE: usize = 4;
}
impl Element for F16 {
    const KIND: Kind = Kind::F16;
    const SIZE: usize = 2;
}
impl Element for Bf16 {
    const KIND: Kind = Kind::Bf16;
    const SIZE: usize = 2;
}

/// Work that is compiled as a function of its own, for registers are dealt out badly in a very large one.
pub trait Task {
    /// What it returns.
    type Output;

    /// Does it.
    ///
    /// # Safety
    /// The CPU has the features of `S`; otherwise as the maker of the task says.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Operations on vectors of [`LANES`] f32.
///
/// # Safety
/// Every method requires the CPU features of the implementing token. Pointer methods read or write
/// exactly the lanes that their mask names (all 16 without a mask); no alignment is needed.
pub unsafe trait Simd: Copy {
    /// Sixteen f32.
    type V: Copy;
    /// Where sixteen of 32 elements are.
    type Places: Copy;
    /// Output rows of the dense panel kernel's register tile.
    const MR: usize;
    /// Vectors across the dense panel kernel's register tile.
    const NV: usize;
    /// Whether some thirty vectors fit the registers, rather than seven.
    const MANY: bool;
    /// Whether [`expand_pairs`](Simd::expand_pairs) is there.
    const PAIRS: bool = false;
    /// Whether there are products of bfloat16 pairs: [`dot`](Simd::dot) and what has 32 words in a
    /// vector.
    const DOT: bool = false;
    /// Whether there are those of half precision too, but for [`word_pairs`](Simd::word_pairs).
    const HALVES: bool = false;
    /// Whether there are products of bytes: [`dot_bytes`](Simd::dot_bytes) and what has 64 of them in
    /// a vector.
    const BYTES: bool = false;
    /// Whether only kernels run that round their inputs and have these products.
    const ROUNDED: bool = false;

    /// Columns of inputs up to which [`select`](Simd::select) is faster than an expansion of weights.
    const SELECT: usize;

    /// Does a task in a function of its own.
    #[inline(always)]
    unsafe fn call<T: Task>(task: T) -> T::Output {
        // SAFETY: the caller's promise.
        unsafe { task.run::<Self>() }
    }
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// Sixteen elements at `p`.
    unsafe fn load(p: *const f32) -> Self::V;
    /// The lanes in `mask`; others are 0.
    unsafe fn load_mask(p: *const f32, mask: u16) -> Self::V;
    /// Lane `i < n` is `p[2 * i]`; others are 0. Nothing behind `p[2 * n - 2]` is read.
    unsafe fn load_even(p: *const f32, n: usize) -> Self::V;
    /// The even and the odd ones of 32 lanes.
    #[inline(always)]
    unsafe fn split(low: Self::V, high: Self::V) -> (Self::V, Self::V) {
        let mut lanes = [0.0f32; 2 * LANES];
        // SAFETY: 32 lanes for 32 elements; the caller's promise.
        unsafe {
            Self::store(lanes.as_mut_ptr(), low);
            Self::store(lanes.as_mut_ptr().add(LANES), high);
            let every =
                |from: usize| -> [f32; LANES] { std::array::from_fn(|i| lanes[2 * i + from]) };
            (Self::load(every(0).as_ptr()), Self::load(every(1).as_ptr()))
        }
    }
    /// Writes sixteen elements.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Writes the lanes in `mask`.
    unsafe fn store_mask(p: *mut f32, v: Self::V, mask: u16);
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// The larger of each lane; NaN where `b` is NaN, either operand where only `a` is.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller of each lane; NaN where `b` is NaN, either operand where only `a` is.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// Lanes of `x` where `a < b`, lanes of `y` elsewhere.
    unsafe fn where_less(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// `v * 2^n` for whole numbers `n` from -250 to 250; NaN where `v` is NaN.
    unsafe fn scale(v: Self::V, n: Self::V) -> Self::V;
    /// The largest lane; NaN counts as the smallest.
    unsafe fn largest(v: Self::V) -> f32 {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: sixteen lanes for sixteen elements; the caller's promise.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        lanes.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x))
    }
    /// The sum of the lanes.
    unsafe fn sum(v: Self::V) -> f32;
    /// The sums of the lanes of each.
    #[inline(always)]
    unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        v.map(|v| unsafe { Self::sum(v) })
    }
    /// Sixteen stored values at `p`, as f32.
    unsafe fn widen<E: Element>(p: *const u8) -> Self::V;
    /// The first `n < 16` stored values at `p`, as f32; others are 0 and not read.
    unsafe fn widen_first<E: Element>(p: *const u8, n: usize) -> Self::V;
    /// Lane `i` in `mask` is the next stored value at `p`, as f32; others are 0. May read sixteen.
    unsafe fn expand<E: Element>(p: *const u8, mask: u16) -> Self::V;
    /// Lanes in `mask`: how many values [`expand`](Simd::expand) takes.
    #[inline(always)]
    fn count(mask: u16) -> usize {
        mask.count_ones() as usize
    }
    /// Of 32 lanes, lane `i` in `mask` is the next bfloat16 at `p`, as f32, and others are 0: the even
    /// lanes and the odd ones. May read 32.
    #[inline(always)]
    unsafe fn expand_pairs(_: *const u8, _: u32) -> (Self::V, Self::V) {
        unreachable!("only called where `PAIRS`")
    }
    /// Where the lanes in `mask`, two of each four, are.
    unsafe fn places(mask: u32) -> Self::Places;
    /// Of 32 elements at `x` the sixteen at these places, in their order.
    unsafe fn select(x: *const f32, places: Self::Places) -> Self::V;
    /// Writes where the sixteen are, counted from `first`.
    unsafe fn store_places(places: Self::Places, first: u32, out: *mut u32);
    /// As [`places`](Simd::places), of 64 words.
    #[inline(always)]
    unsafe fn word_places(_: u64) -> Self::V {
        unreachable!("only called where `DOT`")
    }
    /// Of 64 words at `x` the 32 at these places, in their order.
    #[inline(always)]
    unsafe fn select_words(_: *const f32, _: Self::V) -> Self::V {
        unreachable!("only called where `DOT`")
    }
    /// Of two pairs of words in each lane, the first ones in `low`, the six pairs that [`PAIRS_OF_FOUR`] lists.
    #[inline(always)]
    unsafe fn word_pairs(_: Self::V, _: Self::V) -> [Self::V; 6] {
        unreachable!("only called where `DOT`")
    }
    /// Writes for each of the sixteen half bytes of `mask` which of its six pairs it names, counted from
    /// `first`, six for each half byte.
    #[inline(always)]
    unsafe fn store_pairs(_: u64, _: u32, _: *mut u32) {
        unreachable!("only called where `DOT`")
    }
    /// Two vectors of `N` columns lie at `x`, all columns' first ones before their second ones. For each column:
    /// lane `i` is the element, of 32, that the `i`-th of sixteen bytes names.
    #[inline(always)]
    unsafe fn lookup<const N: usize>(x: *const f32, indices: *const u8) -> [Self::V; N] {
        // SAFETY: the caller's promise.
        unsafe {
            let indices: [u8; LANES] = indices.cast::<[u8; LANES]>().read();
            let at = indices.map(|i| i as usize / LANES * N * LANES + i as usize % LANES);
            std::array::from_fn(|n| Self::load(at.map(|at| *x.add(n * LANES + at)).as_ptr()))
        }
    }
    /// Each lane rounded to bfloat16, to nearest, ties to even.
    #[inline(always)]
    unsafe fn round(v: Self::V) -> Self::V {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: sixteen lanes for sixteen elements; the caller's promise.
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            Self::load(lanes.map(|x| bf16::from_f32(x).to_f32()).as_ptr())
        }
    }
    /// 32 lanes rounded to `E`, bfloat16 or half precision, as 32 words in their order.
    #[inline(always)]
    unsafe fn round_words<E: Element>(_: Self::V, _: Self::V) -> Self::V {
        unreachable!("only called where `DOT`")
    }
    /// The first `n <= 32` words at `p`; others are 0 and not read.
    #[inline(always)]
    unsafe fn words(_: *const u8, _: usize) -> Self::V {
        unreachable!("only called where `DOT`")
    }
    /// Of 32 words, word `i` in `mask` is the next one at `p`; others are 0. May read 32.
    #[inline(always)]
    unsafe fn expand_words(_: *const u8, _: u32) -> Self::V {
        unreachable!("only called where `DOT`")
    }
    /// `sum` and the products of pairs of `E`, bfloat16 or half precision: of bfloat16 each in its lane, of half
    /// precision in any.
    #[inline(always)]
    unsafe fn dot<E: Element>(_: Self::V, _: Self::V, _: Self::V) -> Self::V {
        unreachable!("only called where `DOT`")
    }
    /// Of 64 bytes, byte `i` in `mask` is the next one at `p`; others are 0. May read 64.
    #[inline(always)]
    unsafe fn expand_bytes(_: *const u8, _: u64) -> Self::V {
        unreachable!("only called where `BYTES`")
    }
    /// The first `n <= 64` elements at `p` as whole multiples, from -127 to 127, of a scale for each
    /// `group`, 32 or 64, and the scales: magnitudes as bytes and which are negative, or signed bytes and 0.
    #[inline(always)]
    unsafe fn round_bytes(_: *const f32, _: usize, _: usize) -> (Self::V, u64, [f32; 2]) {
        unreachable!("only called where `BYTES`")
    }
    /// The products of 64 signed bytes and of what [`round_bytes`](Simd::round_bytes) made of 64 elements, four
    /// to a lane.
    #[inline(always)]
    unsafe fn dot_bytes(_: Self::V, _: Self::V, _: u64) -> Self::V {
        unreachable!("only called where `BYTES`")
    }
    /// Of the scales of sixteen groups of `group` bytes those of the lanes of 64 bytes, `block`.
    #[inline(always)]
    unsafe fn pick(_: Self::V, _: usize, _: usize) -> Self::V {
        unreachable!("only called where `BYTES`")
    }
    /// Lane `j` of vector `i` becomes lane `i` of vector `j`.
    unsafe fn transpose(v: [Self::V; LANES]) -> [Self::V; LANES];
    /// Asks for the cache line of any address, mapped or not.
    unsafe fn prefetch(p: *const u8);
}

/// Which two of four lanes each half byte names; of other half bytes any.
pub const TWO_OF_FOUR: [[u8; 2]; 16] = {
    let mut table = [[0; 2]; 16];
    let mut bits = 0;
    while bits < 16u8 {
        if bits.count_ones() == 2 {
            let first = bits.trailing_zeros();
            let second = (bits & (bits - 1)).trailing_zeros();
            table[bits as usize] = [first as u8, second as u8];
        }
        bits += 1;
    }
    table
};

/// The half bytes with two bits.
#[cfg(any(
    target_arch = "x86_64",
    all(target_arch = "aarch64", target_endian = "little")
))]
pub const PAIRS_OF_FOUR: [u8; 6] = [0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100];

/// Which of those a half byte is; of other half bytes any.
#[cfg(any(
    target_arch = "x86_64",
    all(target_arch = "aarch64", target_endian = "little")
))]
pub static PAIR_OF: [i32; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 6 {
        table[PAIRS_OF_FOUR[i] as usize] = i as i32;
        i += 1;
    }
    table
};

/// The mask of the first `n` lanes; all for `n >= 16`.
#[inline(always)]
pub const fn first(n: usize) -> u16 {
    if n >= LANES { u16::MAX } else { (1 << n) - 1 }
}

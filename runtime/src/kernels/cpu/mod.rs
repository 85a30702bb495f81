//! CPU kernels: written once over a SIMD token, run by a team of threads.

pub mod attention;
#[cfg(test)]
mod battery;
pub(crate) mod by_row;
pub mod chunk;
pub mod conv;
pub mod elementwise;
pub mod gather;
pub mod generic;
pub mod hash;
mod isa;
pub mod linear;
pub mod lookup;
mod math;
pub mod norm;
pub mod outputs;
pub mod packed;
#[cfg(test)]
mod packed_battery;
pub mod pairs;
mod panel;
pub mod position;
pub mod product;
pub mod recurrent;
mod room;
pub mod rows;
mod simd;
mod softmax;
pub mod team;
pub mod weights;
pub mod window;

pub use isa::{ISA_VARIABLE, Isa};

use simd::Simd;
use team::Member;

/// A planned kernel: everything but its buffers.
#[derive(Debug)]
pub enum Kernel {
    /// Convolution, or a linear layer of many columns.
    Conv(conv::Conv),
    /// Depthwise convolution or pooling.
    Window(window::Window),
    /// A linear layer of few columns.
    Linear(linear::Linear),
    /// A linear layer of many columns, from the model's own bytes.
    Chunk(chunk::Chunk),
    /// A dense linear layer, its weights packed by outputs.
    Outputs(outputs::Outputs),
    /// A sparse linear layer of few columns, its non-zeros packed.
    Lookup(lookup::Lookup),
    /// Activations, sums of equal shapes, softmax of rows.
    Elementwise(elementwise::Elementwise),
    /// A step of a recurrent cell.
    FastGrnn(recurrent::FastGrnn),
    /// Normalization of rows, means over tokens.
    Norm(norm::Norm),
    /// Slices by index.
    Gather(gather::Gather),
    /// A rotation by position.
    Rotary(position::Rotary),
    /// A sum with the vectors of positions.
    PositionRows(position::PositionRows),
    /// Scaled dot-product attention.
    Attention(attention::Attention),
    /// Everything else.
    Generic(generic::Generic),
}

/// The buffers of one run of a kernel, and the thread's place in the team.
pub struct Io<'a> {
    /// The inputs; those of integers point to i64.
    pub inputs: &'a [*const f32],
    /// The output.
    pub out: *mut f32,
    /// This thread's scratch.
    pub scratch: *mut f32,
    /// What earlier runs left.
    pub sequence: Sequence,
    /// This thread.
    pub member: &'a Member<'a>,
}

/// Where a run stands in a sequence of tokens. A run outside of one starts at position 0.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
    /// Positions that earlier runs processed: where this run's first token stands.
    pub past: usize,
    /// Tokens of this run; a planned chunk may hold more, which are not computed or not used.
    pub tokens: usize,
    /// The session's keys and values.
    pub cache: *mut f32,
}

impl Sequence {
    /// A run outside of a sequence.
    pub const NONE: Sequence = Sequence {
        past: 0,
        tokens: usize::MAX,
        cache: std::ptr::null_mut(),
    };
}

impl Io<'_> {
    /// Of `planned` columns those to compute: a run's tokens where the columns are `tokens`.
    #[inline(always)]
    fn columns(&self, planned: usize, tokens: bool) -> usize {
        match tokens {
            true => planned.min(self.sequence.tokens),
            false => planned,
        }
    }
}

/// How many elements a kernel works on, all told and for each token of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// All that the plan has room for.
    pub len: usize,
    /// Of one token; 0 where the elements are no tokens of the session's sequence.
    pub per_token: usize,
}

impl Extent {
    /// Elements that a run needs: the leading ones.
    #[inline(always)]
    pub fn active(&self, sequence: &Sequence) -> usize {
        match self.per_token {
            0 => self.len,
            n => self.len.min(n.saturating_mul(sequence.tokens)),
        }
    }
}

impl Kernel {
    /// Scratch elements that each thread needs.
    pub fn scratch_len(&self) -> usize {
        match self {
            Kernel::Conv(k) => k.scratch_len(),
            Kernel::Window(k) => k.scratch_len(),
            Kernel::Linear(k) => k.scratch_len(),
            Kernel::Chunk(k) => k.scratch_len(),
            Kernel::Outputs(k) => k.scratch_len(),
            Kernel::Lookup(k) => k.scratch_len(),
            Kernel::Attention(k) => k.scratch_len(),
            _ => 0,
        }
    }

    /// Runs one member's share.
    ///
    /// # Safety
    /// The CPU has the features of `S`. Inputs, output and scratch have the sizes that the kernel was
    /// planned for; the output overlaps an input only where the kernel reads each element before it
    /// writes it; every member of the team calls this with the same buffers and its own scratch.
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, io: &Io<'_>) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Kernel::Conv(k) => k.run::<S>(io),
                Kernel::Window(k) => k.run::<S>(io),
                Kernel::Linear(k) => k.run::<S>(io),
                Kernel::Chunk(k) => k.run::<S>(io),
                Kernel::Outputs(k) => k.run::<S>(io),
                Kernel::Lookup(k) => k.run::<S>(io),
                Kernel::Elementwise(k) => k.run::<S>(io),
                Kernel::FastGrnn(k) => k.run::<S>(io),
                Kernel::Norm(k) => k.run::<S>(io),
                Kernel::Gather(k) => k.run(io),
                Kernel::Rotary(k) => k.run::<S>(io),
                Kernel::PositionRows(k) => k.run::<S>(io),
                Kernel::Attention(k) => k.run::<S>(io),
                Kernel::Generic(k) => k.run(io),
            }
        }
    }
}

/// Bytes of the first-level data cache; 32 KiB where the system does not tell.
pub fn l1_bytes() -> usize {
    static BYTES: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *BYTES.get_or_init(|| {
        let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index0/size");
        let kib = text
            .ok()
            .and_then(|t| t.trim().strip_suffix('K')?.parse::<usize>().ok());
        kib.filter(|k| (8..=1024).contains(k)).unwrap_or(32) * 1024
    })
}

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

/// Bytes of the first-level data cache; 32 KiB where the CPU does not tell. No file is read for it.
pub fn l1_bytes() -> usize {
    static BYTES: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *BYTES.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        let told = cpuid_l1_bytes();
        #[cfg(not(target_arch = "x86_64"))]
        let told = None;
        told.filter(|b| (8 << 10..=1 << 20).contains(b))
            .unwrap_or(32 << 10)
    })
}

/// The first-level data cache in the deterministic cache parameters: leaf 4 of Intel, 0x8000001d of AMD.
#[cfg(target_arch = "x86_64")]
fn cpuid_l1_bytes() -> Option<usize> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let extended = 0x8000_001d;
    let amd = __cpuid(0x8000_0000).eax >= extended && __cpuid(0x8000_0001).ecx >> 22 & 1 == 1;
    let leaf = match amd {
        true => extended,
        false if __cpuid(0).eax >= 4 => 4,
        false => return None,
    };
    (0..8).map(|i| __cpuid_count(leaf, i)).find_map(|cache| {
        let (kind, level) = (cache.eax & 31, cache.eax >> 5 & 7);
        let ways = (cache.ebx >> 22) as usize + 1;
        let partitions = (cache.ebx >> 12 & 0x3ff) as usize + 1;
        let line = (cache.ebx & 0xfff) as usize + 1;
        let sets = cache.ecx as usize + 1;
        (kind == 1 && level == 1).then_some(ways * partitions * line * sets)
    })
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests {
    #[test]
    fn the_cpu_tells_the_size_of_its_cache_as_the_system_does() {
        let path = "/sys/devices/system/cpu/cpu0/cache/index0/size";
        let text = std::fs::read_to_string(path).unwrap();
        let kib: usize = text.trim().trim_end_matches('K').parse().unwrap();
        assert_eq!(super::l1_bytes(), kib << 10);
    }
}

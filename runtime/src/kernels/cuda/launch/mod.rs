//! Launches: a kernel, its grid and its arguments, with every size checked against the regions that it reads and
//! writes. Rows are tokens; activations are f32, `[tokens, width]`, unless said otherwise.

use super::error::{Error, Result};

mod decoder;
mod network;
mod product;

pub use decoder::*;
pub use network::*;
pub use product::*;

/// A part of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its first byte.
    pub address: u64,
    /// Its length.
    pub bytes: usize,
}

impl Region {
    /// What is behind its first bytes.
    #[must_use]
    pub const fn from(self, bytes: usize) -> Region {
        Region {
            address: self.address + bytes as u64,
            bytes: self.bytes.saturating_sub(bytes),
        }
    }
}

/// What a kernel is given at a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// An address; 0 where an optional region is not given.
    Pointer(u64),
    /// A number.
    Integer(i32),
    /// A number.
    Float(f32),
}

/// A kernel with its grid and arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// One of [`KERNELS`](super::KERNELS).
    pub kernel: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// As many as the kernel has parameters.
    pub arguments: Vec<Argument>,
    /// Those of them that are a weight's.
    pub weights: Vec<Region>,
}

/// A launch in the making: arguments in order, each checked.
struct Builder(Launch);

impl Builder {
    fn new(kernel: impl Into<String>, grid: [usize; 3], threads: u32) -> Result<Builder> {
        let kernel = kernel.into();
        let mut blocks = [0; 3];
        // The most that every device takes.
        for ((block, n), most) in blocks
            .iter_mut()
            .zip(grid)
            .zip([0x7fff_ffff, 65_535, 65_535])
        {
            *block = match u32::try_from(n) {
                Ok(n) if (1..=most).contains(&n) => n,
                _ => {
                    let what = format!("a grid of {grid:?} blocks");
                    return Err(Error::Argument { kernel, what });
                }
            };
        }
        Ok(Builder(Launch {
            kernel,
            grid: blocks,
            threads,
            arguments: Vec::new(),
            weights: Vec::new(),
        }))
    }

    fn fail<T>(&self, what: String) -> Result<T> {
        let kernel = self.0.kernel.clone();
        Err(Error::Argument { kernel, what })
    }

    /// A region of so many elements of so many bytes, aligned to as many (to 16 at most).
    fn region(mut self, name: &str, region: Region, counts: &[usize], size: usize) -> Result<Self> {
        let elements = counts.iter().try_fold(1usize, |n, &c| n.checked_mul(c));
        let needed = elements.and_then(|n| n.checked_mul(size));
        if needed.is_none_or(|n| n > region.bytes) {
            let what = format!(
                "{name} has {} bytes, {counts:?} elements of {size} bytes are needed",
                region.bytes
            );
            return self.fail(what);
        }
        if needed != Some(0) && region.address == 0 {
            return self.fail(format!("{name} is nowhere"));
        }
        if !region.address.is_multiple_of(size as u64) {
            return self.fail(format!(
                "{name} is at {:#x}, not a multiple of {size}",
                region.address
            ));
        }
        self.0.arguments.push(Argument::Pointer(region.address));
        Ok(self)
    }

    fn floats(self, name: &str, region: Region, counts: &[usize]) -> Result<Self> {
        self.region(name, region, counts, 4)
    }

    fn optional(mut self, name: &str, region: Option<Region>, counts: &[usize]) -> Result<Self> {
        match region {
            Some(region) => self.floats(name, region, counts),
            None => {
                self.0.arguments.push(Argument::Pointer(0));
                Ok(self)
            }
        }
    }

    fn integers<const N: usize>(mut self, numbers: [(&str, usize); N]) -> Result<Self> {
        for (name, n) in numbers {
            let Ok(n) = i32::try_from(n) else {
                return self.fail(format!("{name} is {n}, at most 2^31 - 1 is counted"));
            };
            self.0.arguments.push(Argument::Integer(n));
        }
        Ok(self)
    }

    fn float(mut self, f: f32) -> Self {
        self.0.arguments.push(Argument::Float(f));
        self
    }
}

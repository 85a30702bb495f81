//! Instruction sets: detection, choice, and the entry that enables each.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod scalar;

use super::product::Product;
use super::simd::{Simd, Task};
use super::{Io, Kernel};
#[cfg(any(
    target_arch = "x86_64",
    all(target_arch = "aarch64", target_endian = "little")
))]
use super::{chunk::Chunk, linear::Linear};
use crate::DType;
use std::fmt;
use std::sync::OnceLock;

/// The environment variable in which Lacuna's programs are told an instruction set. The library reads no
/// variables: a program hands the value to [`Isa::prefer`].
pub const ISA_VARIABLE: &str = "LACUNA_ISA";

/// Whether the portable kernels are there. They can be left out where every CPU has something better.
const PORTABLE: bool = cfg!(any(
    test,
    feature = "portable",
    not(all(target_arch = "aarch64", target_endian = "little"))
));

/// The one in use where none is named.
static DEFAULT: OnceLock<Isa> = OnceLock::new();

/// An instruction set that kernels are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Portable code.
    Scalar,
    /// The baseline of 64-bit ARM.
    Neon,
    /// The same with DotProd, which multiplies fours of bytes (Armv8.2).
    NeonDot,
    /// The same with FHM, which multiplies half precision and adds f32 (Armv8.4).
    NeonFhm,
    /// The same with BF16, which multiplies pairs of bfloat16 (Armv8.6).
    NeonBf16,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    Avx512,
    /// The same with VBMI and VBMI2, which expand 16-bit values.
    Avx512Vbmi2,
    /// The same with BF16 and VNNI, which multiply pairs of bfloat16 and fours of bytes.
    Avx512Bf16,
}

impl Isa {
    /// Every instruction set; those of one architecture slowest first.
    pub const ALL: [Isa; 9] = [
        Isa::Scalar,
        Isa::Neon,
        Isa::NeonDot,
        Isa::NeonFhm,
        Isa::NeonBf16,
        Isa::Avx2,
        Isa::Avx512,
        Isa::Avx512Vbmi2,
        Isa::Avx512Bf16,
    ];

    /// Its name in kernel names, options and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::NeonDot => "neondot",
            Isa::NeonFhm => "neonfhm",
            Isa::NeonBf16 => "neonbf16",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vbmi2 => "avx512vbmi2",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    /// The one whose kernels it runs where it has none of its own.
    pub(crate) const fn base(self) -> Isa {
        match self {
            Isa::NeonDot | Isa::NeonFhm | Isa::NeonBf16 => Isa::Neon,
            Isa::Avx512Vbmi2 | Isa::Avx512Bf16 => Isa::Avx512,
            other => other,
        }
    }

    /// Whether it multiplies weights of this type with inputs that are rounded as they are, faster than with f32: at
    /// `few` columns (bytes and half precision only there) or at many.
    pub fn multiplies(self, dtype: DType, few: bool) -> bool {
        match dtype {
            DType::BF16 => matches!(self, Isa::Avx512Bf16 | Isa::NeonBf16),
            DType::F16 => few && matches!(self, Isa::NeonFhm | Isa::NeonBf16),
            DType::I8 => {
                let arm = matches!(self, Isa::NeonDot | Isa::NeonFhm | Isa::NeonBf16);
                few && (arm || self == Isa::Avx512Bf16)
            }
            _ => false,
        }
    }

    /// Whether this CPU and build have it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => PORTABLE,
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::NeonDot => {
                Isa::Neon.is_available() && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::NeonFhm => {
                Isa::NeonDot.is_available() && std::arch::is_aarch64_feature_detected!("fhm")
            }
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::NeonBf16 => {
                Isa::NeonFhm.is_available() && std::arch::is_aarch64_feature_detected!("bf16")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("popcnt")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vbmi2 => {
                Isa::Avx512.is_available()
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vbmi2")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => {
                Isa::Avx512Vbmi2.is_available()
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
            }
            _ => false,
        }
    }

    /// The instruction sets of this CPU, slowest first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|i| i.is_available()).collect()
    }

    /// The instruction set named `name`, or the reason why it cannot be had.
    pub fn parse(name: &str) -> Result<Isa, String> {
        let names = |list: &[Isa]| list.iter().map(|i| i.name()).collect::<Vec<_>>().join(", ");
        let isa = Isa::ALL
            .into_iter()
            .find(|i| i.name() == name)
            .ok_or_else(|| {
                format!(
                    "unknown instruction set `{name}`; known: {}",
                    names(&Isa::ALL)
                )
            })?;
        match isa.is_available() {
            true => Ok(isa),
            false => Err(format!(
                "this CPU has no {name}; it has {}",
                names(&Isa::available())
            )),
        }
    }

    /// The instruction set that is taken where none is named: the [preferred](Isa::prefer) one, or the best
    /// one of this CPU. Detected once.
    pub fn detect() -> Isa {
        *DEFAULT.get_or_init(|| Isa::available().pop().unwrap_or(Isa::Scalar))
    }

    /// Makes the instruction set of this name the one that [`detect`](Isa::detect) returns, for the whole
    /// process.
    ///
    /// # Errors
    /// When this CPU does not have it, or another one is in use already: call it before anything else.
    pub fn prefer(name: &str) -> Result<(), String> {
        let isa = Isa::parse(name)?;
        match *DEFAULT.get_or_init(|| isa) {
            used if used == isa => Ok(()),
            used => Err(format!("{} is in use already", used.name())),
        }
    }

    /// Rows of the dense panel kernel's register tile.
    pub fn dense_rows(self) -> usize {
        match self {
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::Neon | Isa::NeonDot | Isa::NeonFhm | Isa::NeonBf16 => neon::Neon::<false>::MR,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::MR,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vbmi2 | Isa::Avx512Bf16 => avx512::Avx512::<false, false>::MR,
            _ => scalar::Scalar::MR,
        }
    }

    /// Rows and vectors of the register tile of linear layers of many columns.
    pub(crate) fn chunk_tile(self) -> (usize, usize) {
        match self {
            Isa::Avx512 | Isa::Avx512Vbmi2 | Isa::Avx512Bf16 => (6, 4),
            _ => (6, 1),
        }
    }

    /// The same where two of each four columns are stored.
    pub(crate) fn select_tile(self) -> (usize, usize) {
        match self.has_many_registers() {
            true => (3, 4),
            false => (1, 4),
        }
    }

    /// Whether some thirty vectors fit the registers, rather than seven.
    pub(crate) fn has_many_registers(self) -> bool {
        match self {
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::Neon | Isa::NeonDot | Isa::NeonFhm | Isa::NeonBf16 => neon::Neon::<false>::MANY,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::MANY,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vbmi2 | Isa::Avx512Bf16 => {
                avx512::Avx512::<false, false>::MANY
            }
            _ => scalar::Scalar::MANY,
        }
    }

    /// Runs a kernel with these instructions.
    ///
    /// # Safety
    /// The instruction set [is available](Isa::is_available); otherwise as [`Kernel::run`].
    pub(crate) unsafe fn run(self, kernel: &Kernel, io: &Io<'_>) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self, kernel) {
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512Bf16, Kernel::Linear(k)) if k.rounded => Bf16::call(Run(k, io)),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512Bf16, Kernel::Chunk(k)) if k.is_rounded() => Bf16::call(Run(k, io)),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512Bf16 | Isa::Avx512Vbmi2, Kernel::Linear(k)) => Vbmi2::call(Run(k, io)),
                #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
                (_, Kernel::Linear(k)) if k.rounded && self.multiplies(k.rows.dtype(), true) => {
                    neon::Neon::<true>::call(Run(k, io));
                }
                #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
                (_, Kernel::Chunk(k)) if k.is_rounded() && self.multiplies(k.dtype(), false) => {
                    neon::Neon::<true>::call(Run(k, io));
                }
                _ => self.call(Run(kernel, io)),
            }
        }
    }

    /// Computes a product with these instructions.
    ///
    /// # Safety
    /// The instruction set [is available](Isa::is_available); otherwise as [`Product::tiles`].
    pub(super) unsafe fn product(
        self,
        product: &Product<'_>,
        a: *const f32,
        b: *const f32,
        c: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.call(Tiles(product, a, b, c)) }
    }

    /// Runs portable code, which the compiler vectorizes, with these instructions.
    ///
    /// # Panics
    /// When they [are not available](Isa::is_available).
    #[inline(always)]
    pub fn vectorize<R>(self, code: impl FnOnce() -> R) -> R {
        assert!(self.is_available(), "this CPU has no {self}");
        // SAFETY: the CPU has the instructions.
        unsafe { self.call(Code(code)) }
    }

    /// Does a task with the instructions of the [base](Isa::base).
    ///
    /// # Safety
    /// The instruction set [is available](Isa::is_available); otherwise as the task.
    #[inline(always)]
    unsafe fn call<T: Task>(self, task: T) -> T::Output {
        // SAFETY: the caller's promise.
        unsafe {
            match self.base() {
                #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
                Isa::Neon => neon::Neon::<false>::call(task),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2::Avx2::call(task),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512::Avx512::<false, false>::call(task),
                _ if PORTABLE => scalar::Scalar::call(task),
                _ => unreachable!("{self} is not available"),
            }
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
type Vbmi2 = avx512::Avx512<true, false>;
#[cfg(target_arch = "x86_64")]
type Bf16 = avx512::Avx512<true, true>;

/// A kernel's share.
struct Run<'k, 'i, K>(&'k K, &'k Io<'i>);

macro_rules! run {
    ($kernel:ty) => {
        impl Task for Run<'_, '_, $kernel> {
            type Output = ();

            #[inline(always)]
            unsafe fn run<S: Simd>(self) {
                // SAFETY: the caller's promise.
                unsafe { self.0.run::<S>(self.1) }
            }
        }
    };
}

run!(Kernel);
#[cfg(any(
    target_arch = "x86_64",
    all(target_arch = "aarch64", target_endian = "little")
))]
run!(Linear);
#[cfg(any(
    target_arch = "x86_64",
    all(target_arch = "aarch64", target_endian = "little")
))]
run!(Chunk);

/// A product, tile by tile.
struct Tiles<'p>(&'p Product<'p>, *const f32, *const f32, *mut f32);

impl Task for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.tiles::<S>(self.1, self.2, self.3) }
    }
}

/// Code without vectors of its own.
struct Code<F>(F);

impl<R, F: FnOnce() -> R> Task for Code<F> {
    type Output = R;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> R {
        (self.0)()
    }
}

//! Products of dense matrices by cuBLASLt, where it is installed, with what follows a sum where it can do that too.

use super::blas::dense;
use super::driver::{Arena, Device, Stream};
use super::error::{Error, Result};
use super::launch::{Epilogue, Product, Region, Weight, stride};
use super::library::probe;
use super::pack::Half;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use std::ffi::c_void;
use std::sync::Arc;

/// Those of CUDA 11 and 12; cudarc looks for them too.
const FILES: &[&str] = &[
    "libcublasLt.so",
    "libcublasLt.so.12",
    "libcublasLt.so.11",
    "cublasLt64_12.dll",
    "cublasLt64_11.dll",
];

/// What is called of cuBLASLt. A call of a missing one would panic.
const SYMBOLS: &[&str] = &[
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

/// Bytes that an algorithm may use: NVIDIA's advice for Hopper.
const WORKSPACE: usize = 32 << 20;

/// Regions start at multiples of it.
const ALIGNMENT: u32 = 16;

/// cuBLASLt on a stream.
#[derive(Debug)]
pub struct BlasLt {
    handle: sys::cublasLtHandle_t,
    stream: Arc<Stream>,
    workspace: Region,
    _arena: Arena,
}

// SAFETY: a handle may be used on any thread, by one at a time.
unsafe impl Send for BlasLt {}

fn said<T>(result: std::result::Result<T, CublasError>, call: &'static str) -> Result<T> {
    result.map_err(|e| Error::Driver {
        call,
        what: format!("{:?}", e.0),
    })
}

/// A descriptor, destroyed when it goes.
struct Owned<T: Copy>(T, unsafe fn(T) -> std::result::Result<(), CublasError>);

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: created where this was, and not destroyed since.
        let _ = unsafe { (self.1)(self.0) };
    }
}

type Matrix = Owned<sys::cublasLtMatrixLayout_t>;
type Operation = Owned<sys::cublasLtMatmulDesc_t>;
type Preference = Owned<sys::cublasLtMatmulPreference_t>;

fn matrix(kind: sys::cudaDataType, rows: usize, cols: usize, pitch: usize) -> Result<Matrix> {
    let made = result::create_matrix_layout(kind, rows as u64, cols as u64, pitch as i64);
    let made = said(made, "cublasLtMatrixLayoutCreate")?;
    Ok(Owned(made, result::destroy_matrix_layout))
}

impl Operation {
    /// f32 sums of a transposed first matrix.
    fn new() -> Result<Operation> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let made = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F);
        let made = Owned(
            said(made, "cublasLtMatmulDescCreate")?,
            result::destroy_matmul_desc,
        );
        use sys::cublasLtMatmulDescAttributes_t as A;
        made.set(
            A::CUBLASLT_MATMUL_DESC_TRANSA,
            cudarc::cublas::sys::cublasOperation_t::CUBLAS_OP_T,
        )?;
        Ok(made)
    }

    fn set<T: Copy>(&self, which: sys::cublasLtMatmulDescAttributes_t, value: T) -> Result<()> {
        let at = std::ptr::from_ref(&value).cast();
        // SAFETY: the value is of the attribute's type, and is copied.
        let done = unsafe { result::set_matmul_desc_attribute(self.0, which, at, size_of::<T>()) };
        said(done, "cublasLtMatmulDescSetAttribute")
    }

    /// What follows a sum, but for the residual; `None` where the library has no such thing.
    fn epilogue(&self, e: &Epilogue) -> Result<Option<()>> {
        use sys::cublasLtEpilogue_t as E;
        use sys::cublasLtMatmulDescAttributes_t as A;
        let which = match (e.bias.is_some(), e.limits) {
            (false, l) if l == Epilogue::NONE.limits => E::CUBLASLT_EPILOGUE_DEFAULT,
            (true, l) if l == Epilogue::NONE.limits => E::CUBLASLT_EPILOGUE_BIAS,
            (false, (0.0, f32::INFINITY)) => E::CUBLASLT_EPILOGUE_RELU,
            (true, (0.0, f32::INFINITY)) => E::CUBLASLT_EPILOGUE_RELU_BIAS,
            _ => return Ok(None),
        };
        self.set(A::CUBLASLT_MATMUL_DESC_EPILOGUE, which)?;
        if let Some(bias) = e.bias {
            self.set(A::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.address)?;
        }
        Ok(Some(()))
    }
}

fn preference() -> Result<Preference> {
    let made = said(
        result::create_matmul_pref(),
        "cublasLtMatmulPreferenceCreate",
    )?;
    let made = Owned(made, result::destroy_matmul_pref);
    use sys::cublasLtMatmulPreferenceAttributes_t as A;
    let set = |which, at: *const c_void, size| {
        // SAFETY: a value of the attribute's type, which is copied.
        let done = unsafe { result::set_matmul_pref_attribute(made.0, which, at, size) };
        said(done, "cublasLtMatmulPreferenceSetAttribute")
    };
    set(
        A::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
        std::ptr::from_ref(&WORKSPACE).cast(),
        size_of::<usize>(),
    )?;
    for which in [
        A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        A::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    ] {
        set(which, std::ptr::from_ref(&ALIGNMENT).cast(), 4)?;
    }
    Ok(made)
}

impl BlasLt {
    /// Opens the library.
    ///
    /// # Errors
    /// When it or a symbol of it is missing, or it refuses.
    pub fn open(device: &Arc<Device>, stream: &Arc<Stream>) -> Result<BlasLt> {
        let library = "cuBLASLt";
        probe(Error::NoLibrary { library }, FILES, SYMBOLS)?;
        stream.current()?;
        let mut arena = Arena::new(device, WORKSPACE)?;
        Ok(BlasLt {
            workspace: arena.take(WORKSPACE)?,
            handle: said(result::create_handle(), "cublasLtCreate")?,
            stream: stream.clone(),
            _arena: arena,
        })
    }

    /// `y = w x` of a dense weight and 16-bit activations, as matrix kernels take them, with the epilogue, by the algorithm that
    /// the library thinks the fastest. Returns what is left to do of the epilogue: nothing, or all of it.
    ///
    /// # Errors
    /// When the weight is not dense, when a region is too small, or when the library refuses.
    ///
    /// # Safety
    /// As [`Stream::launch`].
    pub unsafe fn linear(&self, weight: &Weight, p: &Product) -> Result<Epilogue> {
        let d = dense("cublasLtMatmul", weight, p)?;
        self.stream.current()?;
        let single = sys::cudaDataType_t::CUDA_R_32F;
        let half = match d.half {
            Half::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Half::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let w = matrix(half, d.cols, d.rows, d.pitch)?;
        let x = matrix(half, d.cols, p.columns, stride(d.cols))?;
        let y = matrix(single, d.rows, p.columns, d.rows)?;
        let preference = preference()?;
        let algorithm = |operation: &Operation| {
            // SAFETY: all of them are alive.
            unsafe {
                result::get_matmul_algo_heuristic(
                    self.handle,
                    operation.0,
                    w.0,
                    x.0,
                    y.0,
                    y.0,
                    preference.0,
                )
            }
        };
        let mut operation = Operation::new()?;
        let mut left = Epilogue::NONE;
        let mut found = match operation.epilogue(&p.epilogue)? {
            Some(()) => algorithm(&operation).ok(),
            None => None,
        };
        if found.is_none() {
            left = p.epilogue;
            operation = Operation::new()?;
            let plain = algorithm(&operation);
            found = Some(said(plain, "cublasLtMatmulAlgoGetHeuristic")?);
        }
        let added = match left.residual {
            Some(_) => None,
            None => p.epilogue.residual,
        };
        let (one, beta) = (1f32, if added.is_some() { 1f32 } else { 0f32 });
        let found = found
            .as_ref()
            .map_or(std::ptr::null(), |f| &raw const f.algo);
        // SAFETY: the regions hold the matrices; they live as the caller promises.
        let done = unsafe {
            result::matmul(
                self.handle,
                operation.0,
                std::ptr::from_ref(&one).cast(),
                std::ptr::from_ref(&beta).cast(),
                d.values.address as *const c_void,
                w.0,
                p.x.address as *const c_void,
                x.0,
                added.unwrap_or(p.y).address as *const c_void,
                y.0,
                p.y.address as *mut c_void,
                y.0,
                found,
                self.workspace.address as *mut c_void,
                WORKSPACE,
                self.stream.raw().cast(),
            )
        };
        said(done, "cublasLtMatmul")?;
        Ok(left)
    }
}

impl Drop for BlasLt {
    fn drop(&mut self) {
        // SAFETY: created here.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

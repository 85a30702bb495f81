//! Products of dense matrices by cuBLAS, where it is installed.

use super::driver::Stream;
use super::error::{Error, Result};
use super::launch::{Epilogue, Product, Region, Weight, stride};
use super::library::probe;
use super::pack::Half;
use cudarc::cublas::result::{self, CublasError};
use cudarc::cublas::sys;
use std::ffi::c_void;
use std::sync::Arc;

/// Those of CUDA 11 and 12; cudarc looks for them too.
const FILES: &[&str] = &[
    "libcublas.so",
    "libcublas.so.12",
    "libcublas.so.11",
    "cublas64_12.dll",
    "cublas64_11.dll",
];

/// What is called of cuBLAS. A call of a missing one would panic.
const SYMBOLS: &[&str] = &[
    "cublasCreate_v2",
    "cublasDestroy_v2",
    "cublasGemmEx",
    "cublasSetStream_v2",
];

/// cuBLAS on a stream.
#[derive(Debug)]
pub struct Blas {
    handle: sys::cublasHandle_t,
    stream: Arc<Stream>,
}

// SAFETY: a handle may be used on any thread, by one at a time.
unsafe impl Send for Blas {}

fn said<T>(result: std::result::Result<T, CublasError>, call: &'static str) -> Result<T> {
    result.map_err(|e| Error::Driver {
        call,
        what: format!("{:?}", e.0),
    })
}

impl Blas {
    /// Opens the library.
    ///
    /// # Errors
    /// When it or a symbol of it is missing, or it refuses.
    pub fn open(stream: &Arc<Stream>) -> Result<Blas> {
        let missing = Error::NoLibrary { library: "cuBLAS" };
        probe(missing, FILES, SYMBOLS)?;
        stream.current()?;
        let handle = said(result::create_handle(), "cublasCreate")?;
        let blas = Blas {
            handle,
            stream: stream.clone(),
        };
        // SAFETY: both are alive.
        let set = unsafe { result::set_stream(handle, stream.raw().cast()) };
        said(set, "cublasSetStream")?;
        Ok(blas)
    }

    /// `y = w x` of a dense weight and 16-bit activations, as matrix kernels take them. Returns what is left to do: the
    /// epilogue.
    ///
    /// # Errors
    /// When the weight is not dense, when a region is too small, or when the library refuses.
    ///
    /// # Safety
    /// As [`Stream::launch`].
    pub unsafe fn linear(&self, weight: &Weight, p: &Product) -> Result<Epilogue> {
        let d = dense("cublasGemmEx", weight, p)?;
        let [m, n, k, lda, ldb] = [d.rows, p.columns, d.cols, d.pitch, stride(d.cols)]
            .map(|n| i32::try_from(n).unwrap_or(i32::MAX));
        let kind = match d.half {
            Half::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Half::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let (one, none) = (1f32, 0f32);
        self.stream.current()?;
        // SAFETY: the regions hold the matrices; they live as the caller promises.
        let done = unsafe {
            result::gemm_ex(
                self.handle,
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                m,
                n,
                k,
                std::ptr::from_ref(&one).cast(),
                d.values.address as *const c_void,
                kind,
                lda,
                p.x.address as *const c_void,
                kind,
                ldb,
                std::ptr::from_ref(&none).cast(),
                p.y.address as *mut c_void,
                sys::cudaDataType_t::CUDA_R_32F,
                m,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        said(done, "cublasGemmEx")?;
        Ok(p.epilogue)
    }
}

/// A dense weight for a library.
pub(super) struct Dense {
    pub half: Half,
    pub rows: usize,
    pub cols: usize,
    /// Elements from a row to the next.
    pub pitch: usize,
    pub values: Region,
}

/// The weight of a product whose regions hold it, with sizes that are numbers of i32.
pub(super) fn dense(call: &'static str, weight: &Weight, p: &Product) -> Result<Dense> {
    let &Weight::Dense {
        half,
        rows,
        cols,
        stride: pitch,
        values,
    } = weight
    else {
        return Err(Error::Weight("a sparse matrix, dense is needed".into()));
    };
    let fail = |what: String| {
        let kernel = call.into();
        Err(Error::Argument { kernel, what })
    };
    let n = p.columns;
    let numbers = [rows, n, pitch, stride(cols)];
    if numbers.iter().any(|&n| i32::try_from(n).is_err()) {
        return fail(format!("[{rows}, {cols}] by {n} columns"));
    }
    let holds = |region: Option<Region>, elements| region.is_none_or(|r| r.bytes >= elements * 4);
    let fits = values.bytes >= rows * pitch * 2
        && p.x.bytes >= n * stride(cols) * 2
        && p.y.bytes >= n * rows * 4
        && holds(p.epilogue.bias, rows)
        && holds(p.epilogue.residual, n * rows);
    if !fits {
        return fail(format!("regions are too small for [{rows}, {cols}] by {n}"));
    }
    Ok(Dense {
        half,
        rows,
        cols,
        pitch,
        values,
    })
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: created here.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

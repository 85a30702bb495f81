//! Models, and what is known about inputs and outputs.

use crate::handle::{self, Handle};
use crate::memory::{self, Versioned};
use crate::status::{Failure, Result, c_string, guard, lacuna_status};
use runtime::model::{Bytes, Dim, file};
use runtime::{DType, Model};
use std::ffi::{CString, c_char, c_void};
use std::mem::offset_of;
use std::ptr;

/// A model: a Lacuna file that was opened and checked. Weights are mapped, not copied.
pub struct lacuna_model {
    _opaque: [u8; 0],
}

/// A type of elements.
pub type lacuna_dtype = u32;

/// `float`.
pub const LACUNA_DTYPE_F32: lacuna_dtype = 0;
/// `int64_t`: token ids, masks.
pub const LACUNA_DTYPE_I64: lacuna_dtype = 1;

/// An input or an output, as a question is answered. What it points to belongs to the model or session and goes
/// with it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lacuna_tensor_info {
    /// sizeof(lacuna_tensor_info), set by the app before it asks.
    pub size: usize,
    /// Its name.
    pub name: *const c_char,
    /// Its dimensions, outermost first. One that is 0 is bound when a session is made: see
    /// lacuna_model_input_symbol.
    pub shape: *const usize,
    /// The number of dimensions.
    pub rank: usize,
    /// Bytes of all elements; 0 while a dimension is not bound.
    pub bytes: usize,
    /// Of integers that are indices, such as token ids: how many there are to index. Otherwise 0.
    pub index_limit: usize,
    /// The type of its elements.
    pub dtype: lacuna_dtype,
    #[doc(hidden)]
    pub reserved: u32,
}

// SAFETY: repr(C), a size first, zeros are NULL and 0; the last two fields fill a word.
unsafe impl Versioned for lacuna_tensor_info {
    const NAME: &'static str = "lacuna_tensor_info";
    const FIRST: usize = offset_of!(lacuna_tensor_info, reserved) + 4;
}

/// An input or output with what C is told of it, at places that stay.
pub struct Described {
    pub name: CString,
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub index_limit: usize,
}

impl Described {
    pub fn new(name: &str, shape: Vec<usize>, dtype: DType, index_limit: usize) -> Described {
        Described {
            name: c_string(name),
            shape,
            dtype,
            index_limit,
        }
    }

    fn info(&self) -> lacuna_tensor_info {
        lacuna_tensor_info {
            size: 0,
            name: self.name.as_ptr(),
            shape: self.shape.as_ptr(),
            rank: self.shape.len(),
            bytes: self.shape.iter().product::<usize>() * self.dtype.size(),
            index_limit: self.index_limit,
            dtype: match self.dtype {
                DType::I64 => LACUNA_DTYPE_I64,
                _ => LACUNA_DTYPE_F32,
            },
            reserved: 0,
        }
    }
}

/// Answers about one of `list`.
pub fn describe(list: &[Described], index: usize, out: *mut lacuna_tensor_info) -> Result {
    let one = list
        .get(index)
        .ok_or_else(|| Failure::argument(format!("number {index}; there are {}", list.len())))?;
    memory::write(out, &one.info())
}

pub struct Opened {
    pub model: Model,
    inputs: Vec<Described>,
    symbols: Vec<Vec<Option<CString>>>,
}

impl Handle for lacuna_model {
    type Object = Opened;
    const NAME: &'static str = "model";
}

impl Opened {
    fn new(model: Model) -> Opened {
        let inputs = &model.graph().inputs;
        let size = |dim: &Dim| match dim {
            Dim::Fixed(n) => *n,
            Dim::Symbol(_) => 0,
        };
        let symbol = |dim: &Dim| match dim {
            Dim::Fixed(_) => None,
            Dim::Symbol(name) => Some(c_string(name)),
        };
        let described = inputs
            .iter()
            .map(|i| Described::new(&i.name, i.shape.iter().map(size).collect(), i.dtype, 0));
        Opened {
            inputs: described.collect(),
            symbols: inputs
                .iter()
                .map(|i| i.shape.iter().map(symbol).collect())
                .collect(),
            model,
        }
    }
}

/// Opens a Lacuna file. It is mapped: while the model or anything made from it is there, the file must not be
/// changed in place; replacing it by renaming another one is fine.
///
/// # Safety
/// `path` ends with a zero byte; `out` has room for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_model_open(
    path: *const c_char,
    out: *mut *mut lacuna_model,
) -> lacuna_status {
    guard(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { memory::string(path, "path") }?;
        handle::put(out, || Ok(Opened::new(Model::open(path)?)))
    })
}

/// Opens the bytes of a whole Lacuna file in memory. They are not copied: they must stay where they are, and as
/// they are, until the model and everything that was made from it is freed.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_model_open_memory(
    data: *const c_void,
    bytes: usize,
    out: *mut *mut lacuna_model,
) -> lacuna_status {
    guard(|| {
        // SAFETY: the caller promises that the bytes stay for as long as anything reads them; "static" says
        // no more to what is below.
        let data: &'static [u8] = unsafe { memory::elements(data.cast(), bytes, "data") }?;
        handle::put(out, || {
            let model = file::read_bytes("(memory)", Bytes::from_static(data))?;
            Ok(Opened::new(model))
        })
    })
}

/// Opens a Lacuna file that is `length` bytes from `offset` on of an open file, such as an uncompressed asset of
/// an Android package; a length of 0 is all of the rest. It is mapped as by lacuna_model_open. The descriptor
/// stays the app's, which may close it afterwards. LACUNA_STATUS_UNSUPPORTED on Windows.
///
/// # Safety
/// `out` has room for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_model_open_fd(
    fd: i32,
    offset: u64,
    length: u64,
    out: *mut *mut lacuna_model,
) -> lacuna_status {
    guard(|| {
        handle::put(out, || {
            let file = duplicate(fd)?;
            let end = match length {
                0 => u64::MAX,
                length => offset.saturating_add(length),
            };
            let model = file::read_part(format!("(descriptor {fd})"), &file, offset..end)?;
            Ok(Opened::new(model))
        })
    })
}

#[cfg(unix)]
fn duplicate(fd: i32) -> Result<std::fs::File> {
    use std::os::fd::BorrowedFd;
    if fd < 0 {
        return Err(Failure::argument(format!("a descriptor of {fd}")));
    }
    // SAFETY: it is not -1; one that is not open is refused by the system, and is not used after this line.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let owned = borrowed
        .try_clone_to_owned()
        .map_err(|e| Failure::new(lacuna_status::Io, format!("descriptor {fd}: {e}")))?;
    Ok(owned.into())
}

#[cfg(not(unix))]
fn duplicate(_: i32) -> Result<std::fs::File> {
    let message = "this system has no file descriptors: open a path or memory";
    Err(Failure::new(lacuna_status::Unsupported, message))
}

/// The number of the model's inputs.
///
/// # Safety
/// `count` has room for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_model_input_count(
    model: *const lacuna_model,
    count: *mut usize,
) -> lacuna_status {
    guard(|| memory::put(count, "number of inputs", handle::get(model)?.inputs.len()))
}

/// One of the model's inputs. Outputs are known when a session is made.
///
/// # Safety
/// `info->size` is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_model_input(
    model: *const lacuna_model,
    index: usize,
    info: *mut lacuna_tensor_info,
) -> lacuna_status {
    guard(|| describe(&handle::get(model)?.inputs, index, info))
}

/// The name of a dimension that is bound when a session is made, such as "N"; NULL for one that is fixed.
///
/// # Safety
/// `symbol` has room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_model_input_symbol(
    model: *const lacuna_model,
    index: usize,
    axis: usize,
    symbol: *mut *const c_char,
) -> lacuna_status {
    guard(|| {
        let model = handle::get(model)?;
        let name = model
            .symbols
            .get(index)
            .and_then(|s| s.get(axis))
            .ok_or_else(|| {
                Failure::argument(format!("dimension {axis} of input {index}: not there"))
            })?;
        let name = name.as_ref().map_or(ptr::null(), |n| n.as_ptr());
        memory::put(symbol, "symbol", name)
    })
}

/// Frees a model. Sessions, decoders and tokenizers that were made from it go on.
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_model_free(model: *mut lacuna_model) -> lacuna_status {
    guard(|| handle::free(model))
}

//! Sessions: a model that runs as a whole.

use crate::handle::{self, Handle};
use crate::memory::{self, Versioned};
use crate::model::{
    Described, LACUNA_DTYPE_F32, LACUNA_DTYPE_I64, describe, lacuna_dtype, lacuna_model,
    lacuna_tensor_info,
};
use crate::status::{Failure, Result, c_string, guard, lacuna_status};
use runtime::model::Symbols;
use runtime::{DType, Session, SessionOptions, TensorView, TensorViewMut};
use std::ffi::{CStr, CString, c_char, c_void};
use std::ops::Range;
use std::sync::Mutex;

/// A planned model with its own activations and threads. Weights are shared with everything else that was made
/// from the same model.
pub struct lacuna_session {
    _opaque: [u8; 0],
}

/// Choices that are on or off, added up.
pub type lacuna_flags = u32;

/// Run every weight dense.
pub const LACUNA_FLAG_DENSE: lacuna_flags = 1;
/// Round the inputs of linear layers as their weights are: to bfloat16, or signed bytes. Faster on CPUs that
/// multiply such. A decoder does it by itself where it is faster.
pub const LACUNA_FLAG_ROUND_INPUTS: lacuna_flags = 2;
/// Of a decoder: never round inputs.
pub const LACUNA_FLAG_KEEP_INPUTS: lacuna_flags = 4;
/// Of a session: run inputs that hold NaN or infinities; otherwise they are an error.
pub const LACUNA_FLAG_ALLOW_NON_FINITE: lacuna_flags = 8;

/// As many threads as the process may use cores.
pub const LACUNA_THREADS_ALL: u32 = u32::MAX;

/// The size of a dimension that has a name.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lacuna_symbol {
    /// The name, such as "N".
    pub name: *const c_char,
    /// The size.
    pub value: usize,
}

/// How a session is planned and run.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lacuna_session_options {
    /// sizeof(lacuna_session_options).
    pub size: usize,
    /// The instruction set: "scalar", "neon", "avx2", "avx512", ...; NULL takes the best one here.
    pub isa: *const c_char,
    /// Sizes of dimensions that have names; those not listed are 1.
    pub symbols: *const lacuna_symbol,
    /// How many are listed.
    pub symbol_count: usize,
    /// A directory where packed weights are kept, and mapped the next time instead of packed again; NULL for
    /// none. Who can write there can change the model's answers.
    pub pack_cache: *const c_char,
    /// Threads that work on one run, the one that calls among them: 0 and 1 start none. LACUNA_THREADS_ALL
    /// takes every core.
    pub threads: u32,
    /// LACUNA_FLAG_...
    pub flags: lacuna_flags,
}

// SAFETY: repr(C), a size first, zeros are NULL and 0; the last two fields fill a word.
unsafe impl Versioned for lacuna_session_options {
    const NAME: &'static str = "lacuna_session_options";
    const FIRST: usize = size_of::<lacuna_session_options>();
}

/// What a run reads: the app's own memory, borrowed for the run.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lacuna_input {
    /// sizeof(lacuna_input), in every element of an array.
    pub size: usize,
    /// The input's name; NULL for the one at this place of the array.
    pub name: *const c_char,
    /// The elements, row-major, aligned to their type.
    pub data: *const c_void,
    /// Bytes of all elements.
    pub bytes: usize,
    /// The dimensions, which are checked; NULL for those that the session was planned for.
    pub shape: *const usize,
    /// The number of dimensions, where there is a shape.
    pub rank: usize,
    /// The type of the elements.
    pub dtype: lacuna_dtype,
    #[doc(hidden)]
    pub reserved: u32,
}

/// What a run fills: the app's own memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lacuna_output {
    /// sizeof(lacuna_output), in every element of an array.
    pub size: usize,
    /// The output's name; NULL for the one at this place of the array.
    pub name: *const c_char,
    /// Room for the elements, row-major, aligned to their type; it overlaps no input and no other output.
    pub data: *mut c_void,
    /// Bytes of all elements.
    pub bytes: usize,
    /// The dimensions, which are checked; NULL for those that the session was planned for.
    pub shape: *const usize,
    /// The number of dimensions, where there is a shape.
    pub rank: usize,
    /// The type of the elements: LACUNA_DTYPE_F32.
    pub dtype: lacuna_dtype,
    #[doc(hidden)]
    pub reserved: u32,
}

// SAFETY: repr(C), a size first, zeros are NULL and 0; the last two fields fill a word.
unsafe impl Versioned for lacuna_input {
    const NAME: &'static str = "lacuna_input";
    const FIRST: usize = size_of::<lacuna_input>();
}

// SAFETY: as above.
unsafe impl Versioned for lacuna_output {
    const NAME: &'static str = "lacuna_output";
    const FIRST: usize = size_of::<lacuna_output>();
}

/// What a session or decoder uses.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct lacuna_usage {
    /// sizeof(lacuna_usage), set by the app before it asks.
    pub size: usize,
    /// The instruction set. It belongs to the session or decoder.
    pub isa: *const c_char,
    /// Threads of a run, the one that calls among them.
    pub threads: usize,
    /// Bytes of activations, scratch, keys and values.
    pub working_bytes: usize,
    /// Bytes of weights that were packed for this device; sessions of one model share them.
    pub packed_bytes: usize,
    /// Bytes of weights that are used where they lie in the file.
    pub mapped_bytes: usize,
}

// SAFETY: repr(C), a size first, zeros are NULL and 0, words only.
unsafe impl Versioned for lacuna_usage {
    const NAME: &'static str = "lacuna_usage";
    const FIRST: usize = size_of::<lacuna_usage>();
}

pub struct Planned {
    session: Mutex<Session>,
    inputs: Vec<Described>,
    outputs: Vec<Described>,
    isa: CString,
}

impl Handle for lacuna_session {
    type Object = Planned;
    const NAME: &'static str = "session";
}

impl Planned {
    fn new(session: Session) -> Planned {
        let inputs = session.inputs().iter().zip(session.input_dtypes());
        let inputs = inputs.enumerate().map(|(i, ((name, shape), dtype))| {
            let limit = session.index_limit(i).unwrap_or(0);
            Described::new(name, shape.clone(), *dtype, limit)
        });
        let outputs = session.outputs().iter();
        Planned {
            inputs: inputs.collect(),
            outputs: outputs
                .map(|(name, shape)| Described::new(name, shape.clone(), DType::F32, 0))
                .collect(),
            isa: c_string(session.isa()),
            session: Mutex::new(session),
        }
    }
}

/// Threads as the runtime counts them.
pub fn threads(asked: u32) -> usize {
    match asked {
        0 => 1,
        LACUNA_THREADS_ALL => 0,
        n => n as usize,
    }
}

/// Whether each of `known` is set; others are refused.
pub fn flags<const N: usize>(given: lacuna_flags, known: [lacuna_flags; N]) -> Result<[bool; N]> {
    match given & !known.iter().sum::<u32>() {
        0 => Ok(known.map(|f| given & f != 0)),
        rest => Err(Failure::argument(format!(
            "flags: {rest:#x} has no meaning here"
        ))),
    }
}

fn options(given: *const lacuna_session_options) -> Result<SessionOptions> {
    let given = memory::read(given)?;
    let known = [
        LACUNA_FLAG_DENSE,
        LACUNA_FLAG_ROUND_INPUTS,
        LACUNA_FLAG_ALLOW_NON_FINITE,
    ];
    let [dense, round_inputs, allow_non_finite] = flags(given.flags, known)?;
    // SAFETY: the app's promise on strings and arrays of options.
    let (isa, pack_cache, listed) = unsafe {
        (
            memory::optional_string(given.isa, "isa")?,
            memory::optional_string(given.pack_cache, "pack_cache")?,
            memory::elements(given.symbols, given.symbol_count, "symbols")?,
        )
    };
    let mut symbols = Symbols::new();
    for symbol in listed {
        // SAFETY: as above.
        let name = unsafe { memory::string(symbol.name, "name of a symbol") }?;
        symbols.insert(name.to_owned(), symbol.value);
    }
    Ok(SessionOptions {
        threads: threads(given.threads),
        isa: isa.map(str::to_owned),
        dense,
        round_inputs,
        symbols,
        pack_cache: pack_cache.map(Into::into),
        allow_non_finite,
        ..SessionOptions::default()
    })
}

/// Plans a model for this device. NULL options are zeros: the thread that calls, the best instruction set.
///
/// # Safety
/// Strings end with a zero byte; `options->size` is set; `out` has room for a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_session_new(
    model: *const lacuna_model,
    options: *const lacuna_session_options,
    out: *mut *mut lacuna_session,
) -> lacuna_status {
    guard(|| {
        let model = handle::get(model)?;
        let options = self::options(options)?;
        handle::put(out, || {
            Ok(Planned::new(Session::new(&model.model, options)?))
        })
    })
}

/// The number of inputs.
///
/// # Safety
/// `count` has room for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_session_input_count(
    session: *const lacuna_session,
    count: *mut usize,
) -> lacuna_status {
    guard(|| {
        memory::put(
            count,
            "number of inputs",
            handle::get(session)?.inputs.len(),
        )
    })
}

/// The number of outputs.
///
/// # Safety
/// `count` has room for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_session_output_count(
    session: *const lacuna_session,
    count: *mut usize,
) -> lacuna_status {
    guard(|| {
        memory::put(
            count,
            "number of outputs",
            handle::get(session)?.outputs.len(),
        )
    })
}

/// One of the inputs, with the shape that it was planned for.
///
/// # Safety
/// `info->size` is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_session_input(
    session: *const lacuna_session,
    index: usize,
    info: *mut lacuna_tensor_info,
) -> lacuna_status {
    guard(|| describe(&handle::get(session)?.inputs, index, info))
}

/// One of the outputs, with the shape that it was planned for.
///
/// # Safety
/// `info->size` is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_session_output(
    session: *const lacuna_session,
    index: usize,
    info: *mut lacuna_tensor_info,
) -> lacuna_status {
    guard(|| describe(&handle::get(session)?.outputs, index, info))
}

/// Runs the model once: every input is read and every output is filled, each named or at its place. Nothing is
/// written when a tensor does not fit.
///
/// # Safety
/// The memory is there and as large as `bytes` says; nobody else writes to it during the run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_session_run(
    session: *const lacuna_session,
    inputs: *const lacuna_input,
    input_count: usize,
    outputs: *const lacuna_output,
    output_count: usize,
) -> lacuna_status {
    guard(|| {
        let planned = handle::get(session)?;
        let inputs = memory::read_array(inputs, input_count)?;
        let outputs = memory::read_array(outputs, output_count)?;
        let inputs = inputs.iter().map(Given::input);
        let outputs = outputs.iter().map(Given::output);
        let inputs = place("input", &planned.inputs, inputs.collect())?;
        let outputs = place("output", &planned.outputs, outputs.collect())?;
        apart(&inputs, &outputs)?;
        let views: Vec<TensorView<'_>> = inputs
            .iter()
            .zip(&planned.inputs)
            .map(|(given, wanted)| given.view(wanted))
            .collect::<Result<_>>()?;
        let mut views_mut: Vec<TensorViewMut<'_>> = outputs
            .iter()
            .zip(&planned.outputs)
            .map(|(given, wanted)| given.view_mut(wanted))
            .collect::<Result<_>>()?;
        let mut session = handle::enter(&planned.session, "session")?;
        Ok(session.run_into(&views, &mut views_mut)?)
    })
}

/// A tensor of the app.
#[derive(Clone, Copy)]
struct Given {
    name: *const c_char,
    data: *mut c_void,
    bytes: usize,
    shape: *const usize,
    rank: usize,
    dtype: lacuna_dtype,
}

impl Given {
    fn input(given: &lacuna_input) -> Given {
        Given {
            name: given.name,
            data: given.data.cast_mut(),
            bytes: given.bytes,
            shape: given.shape,
            rank: given.rank,
            dtype: given.dtype,
        }
    }

    fn output(given: &lacuna_output) -> Given {
        Given {
            name: given.name,
            data: given.data,
            bytes: given.bytes,
            shape: given.shape,
            rank: given.rank,
            dtype: given.dtype,
        }
    }

    fn range(&self) -> Range<usize> {
        self.data.addr()..self.data.addr().saturating_add(self.bytes)
    }

    fn shape<'a>(&self, wanted: &'a Described) -> Result<&'a [usize]>
    where
        Self: 'a,
    {
        if self.shape.is_null() {
            return Ok(&wanted.shape);
        }
        if self.rank > 64 {
            return Err(Failure::argument(format!("{} dimensions", self.rank)));
        }
        // SAFETY: the app promises `rank` dimensions at `shape` for the run, which is all that they are used for.
        unsafe { memory::elements(self.shape, self.rank, "shape") }
    }

    /// How many elements of `size` bytes the app gives for `wanted`.
    fn count(&self, wanted: &Described, size: usize) -> Result<usize> {
        let shape = self.shape(wanted)?;
        let needed = shape.iter().try_fold(size, |n, d| n.checked_mul(*d));
        match needed == Some(self.bytes) {
            true => Ok(self.bytes / size),
            false => Err(Failure::argument(format!(
                "`{}`: {} bytes do not fill shape {shape:?} of elements of {size} bytes",
                wanted.name.to_string_lossy(),
                self.bytes
            ))),
        }
    }

    fn view<'a>(&self, wanted: &'a Described) -> Result<TensorView<'a>> {
        let (what, shape) = (wanted.name.to_string_lossy(), self.shape(wanted)?);
        // SAFETY: the app promises `bytes` bytes at `data` for the run; any bits are numbers.
        unsafe {
            match self.dtype {
                LACUNA_DTYPE_F32 => {
                    let count = self.count(wanted, 4)?;
                    let data = memory::elements(self.data.cast(), count, &what)?;
                    Ok(TensorView::f32(shape, data))
                }
                LACUNA_DTYPE_I64 => {
                    let count = self.count(wanted, 8)?;
                    let data = memory::elements(self.data.cast(), count, &what)?;
                    Ok(TensorView::i64(shape, data))
                }
                other => Err(Failure::argument(format!("`{what}`: dtype {other}"))),
            }
        }
    }

    fn view_mut<'a>(&self, wanted: &'a Described) -> Result<TensorViewMut<'a>> {
        let (what, shape) = (wanted.name.to_string_lossy(), self.shape(wanted)?);
        if self.dtype != LACUNA_DTYPE_F32 {
            let message = format!("`{what}`: dtype {}; outputs are F32", self.dtype);
            return Err(Failure::argument(message));
        }
        let count = self.count(wanted, 4)?;
        // SAFETY: as above, and `apart` found that it overlaps nothing else of the run.
        let data = unsafe { memory::room(self.data.cast(), count, &what) }?;
        Ok(TensorViewMut::f32(shape, data))
    }
}

/// The tensors in the order of `wanted`.
fn place(kind: &str, wanted: &[Described], given: Vec<Given>) -> Result<Vec<Given>> {
    if given.len() != wanted.len() {
        let (n, all) = (given.len(), names(wanted));
        return Err(Failure::argument(format!(
            "{n} {kind}s given; there are {}: {all}",
            wanted.len()
        )));
    }
    let mut placed: Vec<Option<Given>> = vec![None; wanted.len()];
    for (i, tensor) in given.into_iter().enumerate() {
        let at = match tensor.name.is_null() {
            true => i,
            false => {
                // SAFETY: the app promises that the name ends with a zero byte and stays for the run.
                let name = unsafe { CStr::from_ptr(tensor.name) };
                let at = wanted.iter().position(|w| *w.name == *name);
                at.ok_or_else(|| {
                    let (name, all) = (name.to_string_lossy(), names(wanted));
                    Failure::argument(format!("no {kind} `{name}`; there are {all}"))
                })?
            }
        };
        if placed[at].replace(tensor).is_some() {
            let name = wanted[at].name.to_string_lossy();
            return Err(Failure::argument(format!("{kind} `{name}` given twice")));
        }
    }
    Ok(placed.into_iter().flatten().collect())
}

fn names(list: &[Described]) -> String {
    let names: Vec<_> = list.iter().map(|d| d.name.to_string_lossy()).collect();
    format!("`{}`", names.join("`, `"))
}

/// Outputs are written while inputs are read.
fn apart(inputs: &[Given], outputs: &[Given]) -> Result {
    for (i, output) in outputs.iter().enumerate() {
        let others = inputs.iter().chain(&outputs[..i]);
        let (a, empty) = (output.range(), output.bytes == 0);
        for other in others.filter(|o| o.bytes > 0 && !empty) {
            let b = other.range();
            if a.start < b.end && b.start < a.end {
                let message = format!("output {i} overlaps another tensor of the run");
                return Err(Failure::argument(message));
            }
        }
    }
    Ok(())
}

/// What the session uses.
///
/// # Safety
/// `usage->size` is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lacuna_session_usage(
    session: *const lacuna_session,
    usage: *mut lacuna_usage,
) -> lacuna_status {
    guard(|| {
        let planned = handle::get(session)?;
        let session = handle::enter(&planned.session, "session")?;
        let memory = session.memory();
        let answer = lacuna_usage {
            size: 0,
            isa: planned.isa.as_ptr(),
            threads: session.threads(),
            working_bytes: memory.arena,
            packed_bytes: memory.packed,
            mapped_bytes: memory.mapped,
        };
        memory::write(usage, &answer)
    })
}

/// Frees a session and ends its threads.
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_session_free(session: *mut lacuna_session) -> lacuna_status {
    guard(|| handle::free(session))
}

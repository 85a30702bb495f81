//! Statuses, messages, and the guard around every call.

use runtime::Error;
use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What came of a call.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum lacuna_status {
    /// It was done.
    Ok = 0,
    /// An argument, an option or a tensor is not what it must be.
    InvalidArgument = 1,
    /// A handle is NULL, freed, of another kind, or none.
    InvalidHandle = 2,
    /// The operating system refused: no such file, no memory map, no thread.
    Io = 3,
    /// The file is no model, is damaged, or asks for what this library cannot run.
    InvalidModel = 4,
    /// The caller's buffer is too small; how much is needed was written.
    BufferTooSmall = 5,
    /// Another thread is in the session, decoder, sampler or text.
    Busy = 6,
    /// This build of the library, or this system, cannot do it.
    Unsupported = 7,
    /// A fault of the library. What the call worked on should be freed.
    Internal = 8,
}

/// Why a call was not done.
#[derive(Debug)]
pub struct Failure {
    pub status: lacuna_status,
    pub message: String,
}

pub type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    pub fn new(status: lacuna_status, message: impl Into<String>) -> Failure {
        Failure {
            status,
            message: message.into(),
        }
    }

    pub fn argument(message: impl Into<String>) -> Failure {
        Failure::new(lacuna_status::InvalidArgument, message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let status = match &error {
            Error::Io { .. } => lacuna_status::Io,
            Error::File { .. }
            | Error::FileTensor { .. }
            | Error::InFile { .. }
            | Error::Weight { .. }
            | Error::Node { .. }
            | Error::Graph { .. } => lacuna_status::InvalidModel,
            Error::Binding { .. } | Error::Option(_) => lacuna_status::InvalidArgument,
            _ => lacuna_status::Internal,
        };
        Failure::new(status, error.to_string())
    }
}

thread_local! {
    static MESSAGE: RefCell<CString> = RefCell::default();
}

/// Runs one call: no panic leaves it, and what went wrong becomes the thread's message.
pub fn guard(call: impl FnOnce() -> Result) -> lacuna_status {
    let failure = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => return lacuna_status::Ok,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let message = format!("a fault of the library: {}", words(&*panic));
            // A payload whose drop panics must not unwind into the caller either.
            std::mem::forget(panic);
            Failure::new(lacuna_status::Internal, message)
        }
    };
    let message = c_string(&failure.message);
    // A thread that is ending has no message any more.
    let _ = MESSAGE.try_with(|m| m.replace(message));
    failure.status
}

fn words(panic: &(dyn Any + Send)) -> &str {
    match panic.downcast_ref::<&str>() {
        Some(text) => text,
        None => panic.downcast_ref::<String>().map_or("", String::as_str),
    }
}

/// `text` up to its first zero byte, which names in a file may have.
pub fn c_string(text: &str) -> CString {
    let end = text.find('\0').unwrap_or(text.len());
    CString::new(&text[..end]).unwrap_or_default()
}

/// What was wrong with the last call that failed on this thread: it names the file, the tensor and the value.
/// Empty where none did. It stays as it is until the thread's next call that fails; the app does not free it.
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_last_error() -> *const c_char {
    MESSAGE
        .try_with(|m| m.try_borrow().map_or(c"".as_ptr(), |m| m.as_ptr()))
        .unwrap_or(c"".as_ptr())
}

/// A status in a word or two, such as "invalid argument"; "unknown" for other numbers.
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_status_name(status: i32) -> *const c_char {
    let name = match status {
        0 => c"ok",
        1 => c"invalid argument",
        2 => c"invalid handle",
        3 => c"input or output",
        4 => c"invalid model",
        5 => c"buffer too small",
        6 => c"busy",
        7 => c"unsupported",
        8 => c"internal",
        _ => c"unknown",
    };
    name.as_ptr()
}

//! What `dev.lacuna.Native` declares. A call that fails throws `dev.lacuna.LacunaException`; no panic leaves it, and a
//! handle is a number that is found or not, never an address.

mod calls;
mod handles;
mod text;

use jni::JNIEnv;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The message of an exception.
type Result<T> = std::result::Result<T, String>;

/// What failed, in words.
fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Runs a call; what it fails with is thrown, and `nothing` returned.
fn guard<'l, T>(
    env: &mut JNIEnv<'l>,
    nothing: T,
    call: impl FnOnce(&mut JNIEnv<'l>) -> Result<T>,
) -> T {
    let message = match catch_unwind(AssertUnwindSafe(|| call(env))) {
        Ok(Ok(value)) => return value,
        Ok(Err(message)) => message,
        Err(_) => "a fault of the library; what was called should be closed".into(),
    };
    // An exception that is on its way already, such as one of memory, goes first.
    if !env.exception_check().unwrap_or(false) {
        let _ = env.throw_new("dev/lacuna/LacunaException", message);
    }
    nothing
}

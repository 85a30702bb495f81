//! Versions.

use std::ffi::{CStr, c_char};

/// The version of this interface that the header describes. It grows when something that an app may rely on
/// changes; new functions, and new fields at the end of structs that start with their size, do not change it.
pub const LACUNA_ABI_VERSION: u32 = 1;

/// The version of the interface that the library has: the app's LACUNA_ABI_VERSION, or it was linked with
/// another library than it was compiled for.
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_abi_version() -> u32 {
    LACUNA_ABI_VERSION
}

/// The library's own version, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn lacuna_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => c"",
        };
    VERSION.as_ptr()
}

//! Whether a library of CUDA is here, and whole. Calls of cudarc panic where it is not.

use super::error::{Error, Result};
use libloading::Library;

/// Looks for the first of these files, and for every symbol in it. The library stays loaded.
pub(super) fn probe(
    missing: Error,
    files: &[&str],
    symbols: &'static [&'static str],
) -> Result<()> {
    // SAFETY: NVIDIA's own libraries; what runs is their start.
    let library = files
        .iter()
        .find_map(|file| unsafe { Library::new(*file) }.ok());
    let library = library.ok_or(missing)?;
    for symbol in symbols {
        // SAFETY: only whether it is there is asked.
        if unsafe { library.get::<*const ()>(symbol.as_bytes()) }.is_err() {
            return Err(Error::NoSymbol { symbol });
        }
    }
    std::mem::forget(library);
    Ok(())
}

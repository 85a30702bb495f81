//! The memory map: the one place of this module with unsafe code.

use crate::model::Bytes;
use crate::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Maps a regular file, read-only. See [`read`](super::read) on changing the file while it is mapped.
///
/// # Errors
/// [`Error::Io`] when the system refuses, [`Error::File`] when it is no regular file.
pub fn map(path: &Path) -> Result<Bytes> {
    let io = |action: &'static str| {
        move |source| Error::Io {
            path: path.to_path_buf(),
            action,
            source,
        }
    };
    let file = File::open(path).map_err(io("open"))?;
    let metadata = file.metadata().map_err(io("open"))?;
    if !metadata.is_file() {
        return Err(Error::File {
            path: path.to_path_buf(),
            what: "not a regular file".into(),
        });
    }
    // SAFETY: the map is private to this process, read-only, and only ever read as bytes, for which
    // every bit pattern is valid. Our own writers replace files by renaming and never write into
    // one that exists; that others do not change a file under a running program is the documented
    // contract of `file::read`.
    let map = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
    #[cfg(target_os = "linux")]
    {
        // Only a hint: file systems without huge pages refuse it.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok(Bytes::mapped(Arc::new(map)))
}

/// Drops the whole pages of `range` from the process; a later read brings them back from the file.
pub fn release(map: &Mmap, range: std::ops::Range<usize>) {
    #[cfg(unix)]
    {
        // Pages of every size that systems use.
        const PAGE: usize = 64 << 10;
        let (from, to) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        if from < to {
            // SAFETY: the map is of a file and read-only, so that a page that is read again has the
            // same bytes.
            let _ = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, to - from)
            };
        }
    }
}

//! The memory map: the one place of this module with unsafe code.

use crate::model::Bytes;
use crate::{Error, Result};
use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Maps a regular file, read-only. See [`read`](super::read) on changing the file while it is mapped.
///
/// # Errors
/// [`Error::Io`] when the system refuses, [`Error::File`] when it is no regular file.
pub fn map(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(|source| Error::Io {
        path: path.to_path_buf(),
        action: "open",
        source,
    })?;
    map_part(path, &file, 0..u64::MAX)
}

/// Maps a part of an open regular file, read-only, or what there is of it where the range ends behind the
/// file's end; `label` stands for the path in errors. The file may be closed afterwards.
///
/// # Errors
/// As [`map`]; [`Error::File`] when the range starts behind the file's end.
pub fn map_part(label: &Path, file: &File, range: Range<u64>) -> Result<Bytes> {
    let io = |action: &'static str| {
        move |source| Error::Io {
            path: label.to_path_buf(),
            action,
            source,
        }
    };
    let fault = |what: String| Error::File {
        path: label.to_path_buf(),
        what,
    };
    let metadata = file.metadata().map_err(io("open"))?;
    if !metadata.is_file() {
        return Err(fault("not a regular file".into()));
    }
    let (start, end) = (range.start, range.end.min(metadata.len()));
    let length = end.checked_sub(start).ok_or_else(|| {
        fault(format!(
            "a part from byte {start} to {end} of a file of {} bytes",
            metadata.len()
        ))
    })?;
    let length = usize::try_from(length)
        .map_err(|_| fault(format!("{length} bytes, more than can be addressed here")))?;
    // SAFETY: the map is private to this process, read-only, and only ever read as bytes, for which
    // every bit pattern is valid. Our own writers replace files by renaming and never write into
    // one that exists; that others do not change a file under a running program is the documented
    // contract of `file::read`.
    let map = unsafe { MmapOptions::new().offset(start).len(length).map(file) };
    let map = map.map_err(io("map"))?;
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
    #[cfg(not(unix))]
    let _ = (map, range);
}

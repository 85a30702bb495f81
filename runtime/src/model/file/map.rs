//! The memory map: the one place of this module with unsafe code.

use crate::model::Bytes;
use crate::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Maps a regular file, read-only.
pub(super) fn map(path: &Path) -> Result<Bytes> {
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

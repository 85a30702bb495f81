//! Weight bytes: a cheap handle to a part of a mapped file or of memory.

use memmap2::Mmap;
use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// An immutable, shared run of bytes. Clones share the storage; no alignment is promised.
#[derive(Clone)]
pub struct Bytes {
    storage: Storage,
    range: Range<usize>,
}

#[derive(Clone)]
enum Storage {
    Memory(Arc<Cow<'static, [u8]>>),
    Mapped(Arc<Mmap>),
}

impl Bytes {
    /// All of a mapped file.
    pub fn mapped(map: Arc<Mmap>) -> Bytes {
        let range = 0..map.len();
        Bytes {
            storage: Storage::Mapped(map),
            range,
        }
    }

    /// Bytes that are there as long as the process, such as a model that is part of the program
    /// (`include_bytes!`): nothing is copied.
    pub fn from_static(bytes: &'static [u8]) -> Bytes {
        Bytes {
            range: 0..bytes.len(),
            storage: Storage::Memory(Arc::new(Cow::Borrowed(bytes))),
        }
    }

    /// A part, or `None` when the range does not lie within these bytes.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let base = self.range.start;
        Some(Bytes {
            storage: self.storage.clone(),
            range: base + range.start..base + range.end,
        })
    }

    /// Whether the bytes live in a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.storage, Storage::Mapped(_))
    }

    /// Lets go of the pages of a mapped file that these bytes fill: they are read again when they are
    /// used again.
    pub(crate) fn release(&self) {
        if let Storage::Mapped(map) = &self.storage {
            super::file::release(map, self.range.clone());
        }
    }

    /// Little-endian bytes of f32 values.
    pub fn from_f32(values: &[f32]) -> Bytes {
        values
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect::<Vec<u8>>()
            .into()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes {
            range: 0..bytes.len(),
            storage: Storage::Memory(Arc::new(Cow::Owned(bytes))),
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.storage {
            Storage::Memory(b) => &b[self.range.clone()],
            Storage::Mapped(m) => &m[self.range.clone()],
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_mapped() { "mapped" } else { "owned" };
        write!(f, "Bytes({} {kind})", self.len())
    }
}

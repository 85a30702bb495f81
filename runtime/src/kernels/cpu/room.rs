//! Room for packed weights: zeros at first, aligned to cache lines, in huge pages where it is large.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// Bytes from which huge pages are asked for.
#[cfg(target_os = "linux")]
const LARGE: usize = 4 << 20;
#[cfg(target_os = "linux")]
const HUGE_PAGE: usize = 2 << 20;

/// Numbers: any bytes are a value, and they are bytes.
///
/// # Safety
/// No padding, no pattern of bits that is no value, and the alignment is that of a cache line at most.
pub unsafe trait Plain: Copy + Send + Sync {}
// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: numbers.
unsafe impl Plain for u16 {}
// SAFETY: numbers.
unsafe impl Plain for u8 {}

/// A slice of `len` elements.
pub struct Room<T> {
    storage: Storage,
    len: usize,
    element: std::marker::PhantomData<T>,
}

enum Storage {
    Lines(Vec<Line>),
    /// A mapping, and where in it the room starts.
    #[cfg(target_os = "linux")]
    Pages(memmap2::MmapMut, usize),
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl<T: Plain> Room<T> {
    /// `len` zeros.
    pub fn new(len: usize) -> Room<T> {
        Room {
            storage: Storage::new(len * size_of::<T>()),
            len,
            element: std::marker::PhantomData,
        }
    }
}

impl Storage {
    fn new(bytes: usize) -> Storage {
        #[cfg(target_os = "linux")]
        if bytes >= LARGE
            && let Ok(map) = memmap2::MmapMut::map_anon(bytes + HUGE_PAGE)
        {
            let from = map.as_ptr().align_offset(HUGE_PAGE);
            // Small pages are right too, only slower.
            map.advise_range(memmap2::Advice::HugePage, from, bytes)
                .ok();
            return Storage::Pages(map, from);
        }
        Storage::Lines(vec![Line([0; 64]); bytes.div_ceil(64)])
    }

    fn as_ptr(&self) -> *const u8 {
        match self {
            Storage::Lines(lines) => lines.as_ptr().cast(),
            #[cfg(target_os = "linux")]
            Storage::Pages(map, from) => map.as_ptr().wrapping_add(*from),
        }
    }
}

impl<T: Plain> Deref for Room<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the storage holds the elements' bytes, initialised, aligned to lines at least.
        unsafe { std::slice::from_raw_parts(self.storage.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Room<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let start: *mut u8 = match &mut self.storage {
            Storage::Lines(lines) => lines.as_mut_ptr().cast(),
            #[cfg(target_os = "linux")]
            Storage::Pages(map, from) => map.as_mut_ptr().wrapping_add(*from),
        };
        // SAFETY: as `deref`; the storage is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), self.len) }
    }
}

impl<T> fmt::Debug for Room<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Room({})", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_of_any_size_are_zeros_on_lines() {
        for len in [0, 1, 33, (1 << 20) - 1, 1 << 20, 3 << 20] {
            let mut room = Room::<f32>::new(len);
            assert_eq!((room.len(), room.as_ptr().align_offset(64)), (len, 0));
            assert!(room.iter().all(|v| *v == 0.0));
            room.fill(1.0);
            assert_eq!(room.iter().filter(|v| **v == 1.0).count(), len);
        }
    }
}

//! What the app passes by pointer, read and written with as much checking as there can be.

use crate::status::{Failure, Result, lacuna_status};
use std::ffi::{CStr, c_char};
use std::{mem, ptr, slice};

/// A struct that starts with its size.
///
/// # Safety
/// It is `repr(C)`, its first field is a `usize`, zeros are a value of it, and it has no padding.
pub unsafe trait Versioned: Copy {
    /// What messages call it.
    const NAME: &'static str;
    /// Its size in the first version of the interface.
    const FIRST: usize;
}

/// No struct is larger: a size beyond it was never set.
const LARGEST: usize = 4096;

fn size_of_given<T: Versioned>(given: *const T) -> Result<usize> {
    // SAFETY: the caller of the API promises that at least the size is there.
    let size = unsafe { given.cast::<usize>().read_unaligned() };
    match size {
        s if (T::FIRST..=LARGEST).contains(&s) => Ok(s),
        s => Err(Failure::argument(format!(
            "{}: size is {s}; it holds sizeof({0}), {} here",
            T::NAME,
            size_of::<T>()
        ))),
    }
}

/// A struct that the app filled; zeros where it passed NULL or knows fewer fields.
pub fn read<T: Versioned>(given: *const T) -> Result<T> {
    // SAFETY: zeros are a value of it.
    let mut value: T = unsafe { mem::zeroed() };
    if given.is_null() {
        return Ok(value);
    }
    let size = size_of_given(given)?;
    let known = size.min(size_of::<T>());
    // SAFETY: the app says that it has `size` bytes; they are copied, as bytes, to where there is room.
    let rest = unsafe {
        ptr::copy_nonoverlapping(given.cast::<u8>(), (&raw mut value).cast::<u8>(), known);
        slice::from_raw_parts(given.cast::<u8>().add(known), size - known)
    };
    if rest.iter().any(|&b| b != 0) {
        return Err(Failure::new(
            lacuna_status::Unsupported,
            format!(
                "{}: a field is set that this library does not know",
                T::NAME
            ),
        ));
    }
    Ok(value)
}

/// The structs of an array; their size is also the distance from one to the next.
pub fn read_array<T: Versioned>(given: *const T, count: usize) -> Result<Vec<T>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if given.is_null() {
        return Err(Failure::argument(format!(
            "{count} of {}, but NULL",
            T::NAME
        )));
    }
    if count > LARGEST {
        return Err(Failure::argument(format!("{count} of {}", T::NAME)));
    }
    let stride = size_of_given(given)?;
    let one = |i: usize| {
        // SAFETY: the app says that the array has `count` of them, `stride` bytes apart.
        let at = unsafe { given.cast::<u8>().add(i * stride) }.cast::<T>();
        if size_of_given(at)? != stride {
            let message = format!("{} {i}: its size is not that of the first", T::NAME);
            return Err(Failure::argument(message));
        }
        read(at)
    };
    (0..count).map(one).collect()
}

/// Fills a struct of the app, as much of it as it knows; its size stays.
pub fn write<T: Versioned>(out: *mut T, value: &T) -> Result {
    if out.is_null() {
        return Err(Failure::argument(format!(
            "no place for {} (NULL)",
            T::NAME
        )));
    }
    let size = size_of_given(out)?;
    let (known, head) = (size.min(size_of::<T>()), size_of::<usize>());
    // SAFETY: the app says that it has room for `size` bytes; fields that are not known here become zero.
    unsafe {
        let (from, to) = ((&raw const *value).cast::<u8>(), out.cast::<u8>());
        ptr::copy_nonoverlapping(from.add(head), to.add(head), known - head);
        ptr::write_bytes(to.add(known), 0, size - known);
    }
    Ok(())
}

/// Writes a plain value.
pub fn put<T>(out: *mut T, what: &str, value: T) -> Result {
    if out.is_null() {
        return Err(Failure::argument(format!("no place for the {what} (NULL)")));
    }
    // SAFETY: it is not null, and the caller of the API promises that it points to room for one.
    unsafe { out.write_unaligned(value) };
    Ok(())
}

/// Elements of the app, borrowed for the call, or for as long as it promises.
///
/// # Safety
/// The app promises `len` initialised elements at `data` that nobody writes to for `'a`. Their alignment is
/// checked.
pub unsafe fn elements<'a, T>(data: *const T, len: usize, what: &str) -> Result<&'a [T]> {
    check(data, len, what)?;
    match len {
        0 => Ok(&[]),
        // SAFETY: it is aligned, not null, and not too long; the rest is the caller's promise.
        _ => Ok(unsafe { slice::from_raw_parts(data, len) }),
    }
}

/// Room of the app that is filled.
///
/// # Safety
/// As [`elements`], and nobody else reads or writes it for `'a`.
pub unsafe fn room<'a, T>(data: *mut T, len: usize, what: &str) -> Result<&'a mut [T]> {
    check(data, len, what)?;
    match len {
        0 => Ok(&mut []),
        // SAFETY: as in `elements`.
        _ => Ok(unsafe { slice::from_raw_parts_mut(data, len) }),
    }
}

fn check<T>(data: *const T, len: usize, what: &str) -> Result {
    if len == 0 {
        return Ok(());
    }
    let refuse = |why: &str| Err(Failure::argument(format!("{what}: {why}")));
    match len.checked_mul(size_of::<T>()) {
        _ if data.is_null() => refuse("NULL"),
        _ if !data.is_aligned() => refuse("not aligned to its elements"),
        Some(bytes) if bytes <= isize::MAX as usize => Ok(()),
        _ => refuse("longer than any memory"),
    }
}

/// A string of the app.
///
/// # Safety
/// The app promises that it ends with a zero byte and stays as it is for `'a`.
pub unsafe fn string<'a>(text: *const c_char, what: &str) -> Result<&'a str> {
    // SAFETY: the caller's promise.
    let text = unsafe { optional_string(text, what) }?;
    text.ok_or_else(|| Failure::argument(format!("{what}: NULL")))
}

/// A string of the app, or `None` for NULL.
///
/// # Safety
/// As [`string`].
pub unsafe fn optional_string<'a>(text: *const c_char, what: &str) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) }.to_str();
    match text {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Failure::argument(format!("{what}: not UTF-8"))),
    }
}

/// Text of the app, of a known length.
///
/// # Safety
/// As [`elements`].
pub unsafe fn text<'a>(text: *const c_char, bytes: usize, what: &str) -> Result<&'a str> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { elements(text.cast::<u8>(), bytes, what) }?;
    std::str::from_utf8(bytes)
        .map_err(|e| Failure::argument(format!("{what}: not UTF-8 at byte {}", e.valid_up_to())))
}

/// Copies what was made into the app's room, and tells how much it is.
///
/// # Safety
/// `data` has room for `capacity` elements.
pub unsafe fn fill<T: Copy>(
    made: &[T],
    end: Option<T>,
    data: *mut T,
    capacity: usize,
    count: *mut usize,
    what: &str,
) -> Result {
    put(count, &format!("number of {what}"), made.len())?;
    let needed = made.len() + usize::from(end.is_some());
    if capacity < needed {
        return Err(Failure::new(
            lacuna_status::BufferTooSmall,
            format!("room for {capacity} {what}; {needed} are needed"),
        ));
    }
    // SAFETY: the caller's promise.
    let room = unsafe { room(data, needed, what) }?;
    room[..made.len()].copy_from_slice(made);
    if let Some(end) = end {
        room[made.len()] = end;
    }
    Ok(())
}

/// The same of a text, a zero byte at its end; `bytes` gets its length without it.
///
/// # Safety
/// `text` has room for `capacity` bytes.
pub unsafe fn fill_text(
    made: &str,
    text: *mut c_char,
    capacity: usize,
    bytes: *mut usize,
) -> Result {
    // SAFETY: the caller's promise.
    unsafe {
        fill(
            made.as_bytes(),
            Some(0),
            text.cast(),
            capacity,
            bytes,
            "bytes",
        )
    }
}

//! Handles: numbers that look like pointers. An object is found by its number, so that a handle that was
//! freed, is of another kind, or never was one is told from a good one without touching memory.

use crate::status::{Failure, Result, lacuna_status};
use std::any::Any;
use std::collections::BTreeMap;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};

/// What C sees of an object.
pub trait Handle {
    /// The object.
    type Object: Send + Sync + 'static;
    /// What it is called in messages.
    const NAME: &'static str;
}

struct Entry {
    name: &'static str,
    object: Arc<dyn Any + Send + Sync>,
}

struct Table {
    entries: BTreeMap<usize, Entry>,
    next: usize,
}

static TABLE: RwLock<Table> = RwLock::new(Table {
    entries: BTreeMap::new(),
    next: 1,
});

/// A new handle of an object, written to `out`.
pub fn put<H: Handle>(out: *mut *mut H, make: impl FnOnce() -> Result<H::Object>) -> Result {
    if out.is_null() {
        let message = format!("no place for the {} (NULL)", H::NAME);
        return Err(Failure::argument(message));
    }
    let object = Arc::new(make()?);
    let handle = {
        let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
        // Odd, so that it is no address of anything that is aligned; used again only after 2^31 of them.
        while table.entries.contains_key(&table.next) {
            table.next = table.next.wrapping_add(2);
        }
        let handle = table.next;
        table.next = table.next.wrapping_add(2);
        let name = H::NAME;
        table.entries.insert(handle, Entry { name, object });
        handle
    };
    // SAFETY: it is not null, and the caller of the API promises that it points to room for a handle.
    unsafe { out.write_unaligned(ptr::without_provenance_mut(handle)) };
    Ok(())
}

/// The object of a handle. It lives as long as the result, even if the handle is freed meanwhile.
pub fn get<H: Handle>(handle: *const H) -> Result<Arc<H::Object>> {
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    let entry = table.entries.get(&handle.addr());
    let entry = entry.ok_or_else(|| missing::<H>(handle))?;
    let object = entry.object.clone();
    let other = entry.name;
    drop(table);
    object.downcast().map_err(|_| mistaken::<H>(other))
}

/// Frees a handle; its object goes when the last call that works on it ends.
pub fn free<H: Handle>(handle: *mut H) -> Result {
    if handle.is_null() {
        return Ok(());
    }
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let entry = match table.entries.get(&handle.addr()) {
        None => return Err(missing::<H>(handle)),
        Some(entry) if !entry.object.is::<H::Object>() => return Err(mistaken::<H>(entry.name)),
        Some(_) => table.entries.remove(&handle.addr()),
    };
    // Joining threads and unmapping files takes time: not while others wait for the table.
    drop(table);
    drop(entry);
    Ok(())
}

fn missing<H: Handle>(handle: *const H) -> Failure {
    let message = match handle.is_null() {
        true => format!("the {} is NULL", H::NAME),
        false => format!(
            "no {} has this handle: it was freed, or never made",
            H::NAME
        ),
    };
    Failure::new(lacuna_status::InvalidHandle, message)
}

fn mistaken<H: Handle>(other: &str) -> Failure {
    let message = format!("the handle of a {other} where one of a {} belongs", H::NAME);
    Failure::new(lacuna_status::InvalidHandle, message)
}

/// Enters an object that belongs to one thread at a time.
pub fn enter<'m, T>(object: &'m Mutex<T>, name: &str) -> Result<MutexGuard<'m, T>> {
    object.try_lock().map_err(|e| match e {
        TryLockError::WouldBlock => Failure::new(
            lacuna_status::Busy,
            format!("another thread is in the {name}"),
        ),
        TryLockError::Poisoned(_) => Failure::new(
            lacuna_status::Internal,
            format!("an earlier call failed within the {name}: free it"),
        ),
    })
}

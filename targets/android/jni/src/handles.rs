//! Handles: numbers that stand for models, sessions and decoders.

use crate::Result;
use jni::sys::jlong;
use runtime::{Decoder, Model, Session};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// What a handle stands for.
#[derive(Clone)]
pub enum Item {
    Model(Box<Model>),
    Session(Arc<Mutex<Session>>),
    Decoder(Arc<Mutex<Decoder>>),
    #[cfg(feature = "tokenizer")]
    Tokenizer(Arc<runtime::Tokenizer>),
}

#[derive(Default)]
struct Table {
    next: jlong,
    items: HashMap<jlong, Item>,
}

static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new handle; none is given twice.
pub fn add(item: Item) -> jlong {
    let mut table = table();
    table.next += 1;
    let handle = table.next;
    table.items.insert(handle, item);
    handle
}

pub fn get(handle: jlong) -> Result<Item> {
    let found = table().items.get(&handle).cloned();
    found.ok_or_else(|| format!("handle {handle} is closed, or was never one"))
}

/// Closes; a handle that is closed already stays so.
pub fn close(handle: jlong) {
    let item = table().items.remove(&handle);
    // What it holds goes while nobody waits for the table.
    drop(item);
}

/// Enters what a thread at a time may be in.
pub fn enter<'a, T>(item: &'a Mutex<T>, name: &str) -> Result<MutexGuard<'a, T>> {
    item.try_lock()
        .map_err(|_| format!("another thread is in this {name}, or it failed before"))
}

pub fn model(handle: jlong) -> Result<Model> {
    match get(handle)? {
        Item::Model(model) => Ok(*model),
        _ => Err(format!("handle {handle} is no model")),
    }
}

pub fn session(handle: jlong) -> Result<Arc<Mutex<Session>>> {
    match get(handle)? {
        Item::Session(session) => Ok(session),
        _ => Err(format!("handle {handle} is no session")),
    }
}

pub fn decoder(handle: jlong) -> Result<Arc<Mutex<Decoder>>> {
    match get(handle)? {
        Item::Decoder(decoder) => Ok(decoder),
        _ => Err(format!("handle {handle} is no decoder")),
    }
}

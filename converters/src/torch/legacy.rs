//! The format before zip archives: five pickles, then every storage with its length.

use super::collect;
use super::globals::Storage;
use super::pickle::{Object, Pickle};
use crate::Result;
use crate::source::Source;
use lacuna::model::Weights;
use std::collections::HashMap;
use std::ops::Range;

/// What the first pickle holds.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
/// What the second pickle holds.
const PROTOCOL: i128 = 1001;

pub(crate) fn read(source: &Source) -> Result<Weights> {
    let parts = parts(&source.bytes).map_err(|what| source.error(what))?;
    collect(source, &parts.state, |storage| {
        let range = parts
            .storages
            .get(storage.key)
            .ok_or_else(|| format!("storage `{}` is not in the file", storage.key))?;
        let part = source.bytes.slice(range.clone());
        part.ok_or_else(|| format!("storage `{}` ends behind the file", storage.key))
    })
}

struct Parts<'a> {
    state: Pickle<'a>,
    /// Where the elements of each storage lie in the file.
    storages: HashMap<&'a str, Range<usize>>,
}

fn parts(bytes: &[u8]) -> Result<Parts<'_>, String> {
    let mut at = 0;
    let mut next = || {
        let pickle = Pickle::read(&bytes[at..]).map_err(|what| format!("at byte {at}: {what}"))?;
        at += pickle.len;
        Ok::<_, String>(pickle)
    };
    let is_int = |p: &Pickle<'_>, v: i128| matches!(p.get(p.root), Object::Int(i) if *i == v);
    if !is_int(&next()?, MAGIC) {
        return Err("a pickle, but not one that torch.save made".into());
    }
    if !is_int(&next()?, PROTOCOL) {
        return Err(format!("not torch's protocol {PROTOCOL}"));
    }
    let system = next()?;
    let endian = system.lookup(system.root, "little_endian");
    if let Some(Object::Bool(false)) = endian.map(|id| system.get(id)) {
        return Err("saved on a big-endian machine".into());
    }
    let state = next()?;
    let keys = next()?;
    let mut declared: HashMap<&str, Storage<'_>> = HashMap::new();
    for storage in state.storages() {
        let first = declared.entry(storage.key).or_insert(*storage);
        if first != storage {
            return Err(format!("two kinds of storage `{}`", storage.key));
        }
    }
    let mut storages = HashMap::new();
    let list = keys
        .items(keys.root)
        .ok_or("no list of storages behind the state dict")?;
    for &id in list {
        let Object::Str(key) = *keys.get(id) else {
            return Err("a storage key that is no string".into());
        };
        let storage = declared
            .get(key)
            .ok_or_else(|| format!("storage `{key}` is used by no tensor"))?;
        let (count, start) = match bytes[at..].first_chunk::<8>() {
            Some(head) => (i64::from_le_bytes(*head), at + 8),
            None => return Err(format!("the file ends before storage `{key}`")),
        };
        if usize::try_from(count) != Ok(storage.elements) {
            return Err(format!(
                "storage `{key}` has {count} elements, the pickle says {}",
                storage.elements
            ));
        }
        let end = storage
            .elements
            .checked_mul(storage.element.size())
            .and_then(|len| len.checked_add(start))
            .filter(|&end| end <= bytes.len())
            .ok_or_else(|| {
                format!("the file ends within the {count} elements of storage `{key}`")
            })?;
        storages.insert(key, start..end);
        at = end;
    }
    Ok(Parts { state, storages })
}

//! The zip format: `<name>/data.pkl` and one entry `<name>/data/<key>` for each storage.

use super::collect;
use super::pickle::Pickle;
use crate::Result;
use crate::source::Source;
use lacuna::model::{Bytes, Weights};
use std::collections::HashMap;
use std::io::{self, Cursor};
use zip::{CompressionMethod, ZipArchive};

type Archive<'a> = ZipArchive<Cursor<&'a [u8]>>;

pub(crate) fn read(source: &Source) -> Result<Weights> {
    let fail = |what: String| source.error(what);
    let mut archive = ZipArchive::new(Cursor::new(&source.bytes[..]))
        .map_err(|e| fail(format!("not a readable zip archive: {e}")))?;
    let folder = archive
        .file_names()
        .filter_map(|name| Some(name.ok()?.strip_suffix("data.pkl")?.to_owned()))
        .find(|folder| folder.ends_with('/') && folder.matches('/').count() == 1)
        .ok_or_else(|| fail("a zip archive without data.pkl: not a PyTorch state dict".into()))?;
    let byte_order = format!("{folder}byteorder");
    if archive.index_for_name(&byte_order).is_some() {
        let order = entry(source, &mut archive, &byte_order).map_err(fail)?;
        if order[..] != *b"little" {
            return Err(fail("saved on a big-endian machine".into()));
        }
    }
    let data = entry(source, &mut archive, &format!("{folder}data.pkl")).map_err(fail)?;
    let pickle = Pickle::read(&data).map_err(|what| fail(format!("data.pkl: {what}")))?;
    // Tensors may share a storage; each is checked once. Entries of an honest file do not overlap.
    let mut read: HashMap<String, Bytes> = HashMap::new();
    let mut total = 0usize;
    collect(source, &pickle, |storage| {
        let bytes = match read.get(storage.key) {
            Some(bytes) => bytes.clone(),
            None => {
                let name = format!("{folder}data/{}", storage.key);
                let bytes = entry(source, &mut archive, &name)?;
                total = total.saturating_add(bytes.len());
                if total > source.bytes.len() {
                    return Err(format!("zip entry `{name}` overlaps others"));
                }
                read.insert(storage.key.to_owned(), bytes.clone());
                bytes
            }
        };
        if storage.elements.checked_mul(storage.element.size()) != Some(bytes.len()) {
            return Err(format!(
                "storage `{}` has {} bytes, the pickle says {} elements of {} bytes",
                storage.key,
                bytes.len(),
                storage.elements,
                storage.element.size()
            ));
        }
        Ok(bytes)
    })
}

/// The bytes of an entry, which lie uncompressed in the file, after a check of their checksum.
fn entry(source: &Source, archive: &mut Archive<'_>, name: &str) -> Result<Bytes, String> {
    let refuse = |e: &dyn std::fmt::Display| format!("zip entry `{name}`: {e}");
    let mut file = archive.by_name(name).map_err(|e| refuse(&e))?;
    if file.compression() != CompressionMethod::Stored {
        return Err(refuse(&format!(
            "compressed ({}); torch.save stores its entries as they are",
            file.compression()
        )));
    }
    let len = io::copy(&mut file, &mut io::sink()).map_err(|e| refuse(&e))?;
    let range = file.data_start().and_then(|start| {
        let start = usize::try_from(start).ok()?;
        Some(start..start.checked_add(usize::try_from(len).ok()?)?)
    });
    range
        .and_then(|range| source.bytes.slice(range))
        .ok_or_else(|| refuse(&"lies behind the end of the file"))
}

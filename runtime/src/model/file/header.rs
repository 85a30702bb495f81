//! The header of a safetensors file, checked in one pass: nothing that it says is believed before
//! it is compared with the bytes that are there.

use super::shown;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

/// The longest header that safetensors allows, in bytes.
pub(super) const MAX_HEADER: usize = 100_000_000;

/// The dtypes of safetensors and their sizes in bits.
const DTYPES: [(&str, usize); 22] = [
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("C64", 64),
    ("F64", 64),
    ("I64", 64),
    ("U64", 64),
];

/// One tensor: its dtype's safetensors name, its shape, and where its bytes lie in the file.
#[derive(Debug)]
pub(super) struct Entry {
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
}

/// A checked header: the entries tile the data of the file exactly.
#[derive(Debug)]
pub(super) struct Header {
    pub metadata: BTreeMap<String, String>,
    pub entries: BTreeMap<String, Entry>,
}

/// What is wrong with a header, and the tensor that it is about.
#[derive(Debug)]
pub(super) struct Fault {
    pub tensor: Option<String>,
    pub what: String,
}

fn file_fault(what: impl Into<String>) -> Fault {
    Fault {
        tensor: None,
        what: what.into(),
    }
}

/// Parses and checks the header of `file`, the bytes of a whole safetensors file.
pub(super) fn parse(file: &[u8]) -> Result<Header, Fault> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(file_fault(format!(
            "not a safetensors file: {} bytes, of which the first 8 would be the header's length",
            file.len()
        )));
    };
    let declared = u64::from_le_bytes(*length);
    let hint = || other_format(file).map_or(String::new(), |f| format!("; this looks like {f}"));
    let length = usize::try_from(declared)
        .ok()
        .filter(|&n| n <= MAX_HEADER)
        .ok_or_else(|| {
            file_fault(format!(
                "not a safetensors file: a header of {declared} bytes, the limit is {MAX_HEADER}{}",
                hint()
            ))
        })?;
    let Some((json, data)) = rest.split_at_checked(length) else {
        return Err(file_fault(format!(
            "a header of {length} bytes in a file of {} bytes: truncated, or not a safetensors file{}",
            file.len(),
            hint()
        )));
    };
    let json = std::str::from_utf8(json)
        .map_err(|e| file_fault(format!("the header is not UTF-8: {e}{}", hint())))?;
    if !json.starts_with('{') {
        return Err(file_fault(format!(
            "the header does not start with `{{`{}",
            hint()
        )));
    }

    let mut current = None;
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let (metadata, raw) = HeaderSeed {
        current: &mut current,
    }
    .deserialize(&mut deserializer)
    .and_then(|header| deserializer.end().map(|()| header))
    .map_err(|e| Fault {
        tensor: current.take(),
        what: format!("header: {e}"),
    })?;

    let start = file.len() - data.len();
    let mut entries = BTreeMap::new();
    for (name, raw) in raw {
        let entry = check(&raw, start, data.len()).map_err(|what| Fault {
            tensor: Some(name.clone()),
            what,
        })?;
        entries.insert(name, entry);
    }
    tile(&entries, start, data.len())?;
    Ok(Header { metadata, entries })
}

/// Checks one entry against its own numbers and the length of the data.
fn check(raw: &RawEntry, start: usize, len: usize) -> Result<Entry, String> {
    let &(dtype, bits) = DTYPES
        .iter()
        .find(|d| d.0 == raw.dtype)
        .ok_or_else(|| format!("unknown dtype `{}`", shown(&raw.dtype)))?;
    let shape = raw
        .shape
        .iter()
        .map(|&d| usize::try_from(d))
        .collect::<Result<Vec<usize>, _>>()
        .map_err(|_| format!("shape {} overflows", brief(&raw.shape)))?;
    let total_bits = crate::model::weight::numel(&shape)
        .and_then(|n| n.checked_mul(bits))
        .ok_or_else(|| format!("shape {} overflows", brief(&raw.shape)))?;
    let [begin, end] = raw.data_offsets;
    let range = usize::try_from(begin)
        .ok()
        .zip(usize::try_from(end).ok())
        .filter(|&(b, e)| b <= e && e <= len)
        .ok_or_else(|| {
            format!(
                "data_offsets [{begin}, {end}] do not lie in the {len} bytes of data; is the file truncated?"
            )
        })?;
    let size = range.1 - range.0;
    if total_bits % 8 != 0 || total_bits / 8 != size {
        return Err(format!(
            "data_offsets [{begin}, {end}] hold {size} bytes, {dtype} of shape {} needs {}",
            brief(&raw.shape),
            total_bits.div_ceil(8)
        ));
    }
    Ok(Entry {
        dtype,
        shape,
        range: start + range.0..start + range.1,
    })
}

/// Checks that the entries cover the data without overlaps and holes.
fn tile(entries: &BTreeMap<String, Entry>, start: usize, len: usize) -> Result<(), Fault> {
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    order.sort_by_key(|(_, e)| (e.range.start, e.range.end));
    let mut at = start;
    let mut before = "the header";
    for (name, entry) in order {
        let begin = entry.range.start;
        if begin != at {
            let what = if begin < at {
                format!(
                    "data_offsets begin at {}, inside tensor `{}`, which ends at {}",
                    begin - start,
                    shown(before),
                    at - start
                )
            } else {
                format!(
                    "data_offsets begin at {}, the data before end at {}: a hole",
                    begin - start,
                    at - start
                )
            };
            return Err(Fault {
                tensor: Some(name.clone()),
                what,
            });
        }
        at = entry.range.end;
        before = name;
    }
    if at != start + len {
        return Err(file_fault(format!(
            "{} bytes behind the last tensor, which ends at {} of {len} bytes of data",
            start + len - at,
            at - start
        )));
    }
    Ok(())
}

/// What a file that is not safetensors most likely is.
fn other_format(file: &[u8]) -> Option<&'static str> {
    const MAGIC: [(&[u8], &str); 6] = [
        (
            b"PK\x03\x04",
            "a zip archive, such as a PyTorch checkpoint; convert it with `prune convert`",
        ),
        (
            b"\x80\x02",
            "a pickle, such as a legacy PyTorch checkpoint; convert it with `prune convert`",
        ),
        (b"GGUF", "a GGUF file"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"version https://git-lfs", "a Git LFS pointer"),
    ];
    if let Some((_, what)) = MAGIC.iter().find(|(magic, _)| file.starts_with(magic)) {
        return Some(what);
    }
    // An ONNX model starts with its IR version: field 1, a small varint, and goes on with field 2
    // (the producer, a string) or another field.
    matches!(file, [0x08, 1..=20, 0x12 | 0x1a | 0x3a, ..])
        .then_some("an ONNX model; convert it with `prune convert`")
}

/// A shape for an error message.
fn brief(shape: &[u64]) -> String {
    match shape {
        [first @ .., _] if first.len() >= 8 => format!("{:?} and more", &shape[..8]),
        all => format!("{all:?}"),
    }
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

type RawHeader = (BTreeMap<String, String>, BTreeMap<String, RawEntry>);

/// Reads the header and leaves the name of the tensor at hand behind when it fails.
struct HeaderSeed<'a> {
    current: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = RawHeader;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut metadata = None;
        let mut entries = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let name = &*self.current.insert(name);
            if name == "__metadata__" {
                let UniqueMap(read) = map.next_value::<UniqueMap<String>>()?;
                if metadata.replace(read).is_some() {
                    return Err(A::Error::custom("the key stands twice"));
                }
            } else {
                let entry = map.next_value::<RawEntry>()?;
                if entries.insert(name.clone(), entry).is_some() {
                    return Err(A::Error::custom("the key stands twice"));
                }
            }
            *self.current = None;
        }
        Ok((metadata.unwrap_or_default(), entries))
    }
}

/// A JSON object in which no key stands twice.
#[derive(Debug)]
pub(super) struct UniqueMap<V>(pub BTreeMap<String, V>);

impl<V> Default for UniqueMap<V> {
    fn default() -> Self {
        UniqueMap(BTreeMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Unique<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap<V>, A::Error> {
                let mut all = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value()?;
                    if all.contains_key(&key) {
                        return Err(A::Error::custom(format!(
                            "the key `{}` stands twice",
                            shown(&key)
                        )));
                    }
                    all.insert(key, value);
                }
                Ok(UniqueMap(all))
            }
        }
        deserializer.deserialize_map(Unique(PhantomData))
    }
}

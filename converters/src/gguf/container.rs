//! The container: header, metadata and tensor list. Nothing that it says is believed before it is
//! compared with the bytes that are there, and nothing is allocated by a count from the file.

use super::quant::Kind;
use super::value::{Array, Metadata, Value};
use crate::Result;
use crate::source::{Source, shown};
use crate::strided::numel;
use std::collections::BTreeMap;
use std::ops::Range;

/// The first bytes of a file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";

/// Where tensors start is a multiple of this, unless the metadata says otherwise.
const ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
const MAX_AXES: u32 = 4;
const MAX_NESTING: usize = 4;

/// One tensor: its shape outermost first, its type, and where it lies in the file.
#[derive(Debug)]
pub(super) struct Info {
    pub shape: Vec<usize>,
    pub kind: Kind,
    pub range: Range<usize>,
}

/// A checked file.
#[derive(Debug)]
pub(super) struct Container<'a> {
    pub metadata: Metadata<'a>,
    pub tensors: BTreeMap<&'a str, Info>,
}

/// Reads forward through the file.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let part = usize::try_from(len).ok().and_then(|n| rest.get(..n));
        let part = part.ok_or_else(|| {
            format!(
                "{len} bytes are wanted at {}, the file ends at {}: truncated or damaged",
                self.at,
                self.bytes.len()
            )
        })?;
        self.at += part.len();
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let part = self.take(N as u64)?;
        part.try_into().map_err(|_| "truncated".to_owned())
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a [u8], String> {
        let len = self.u64()?;
        self.take(len)
    }

    fn name(&mut self) -> Result<&'a str, String> {
        let at = self.at;
        let bytes = self.text()?;
        std::str::from_utf8(bytes).map_err(|_| format!("the name at {at} is not UTF-8"))
    }

    fn value(&mut self, kind: u32) -> Result<Value<'a>, String> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array::<1>()? {
                [b @ (0 | 1)] => Value::Bool(b == 1),
                [b] => return Err(format!("a boolean of {b}")),
            },
            8 => {
                let bytes = self.text()?;
                Value::Text(std::str::from_utf8(bytes).map_err(|_| "text that is not UTF-8")?)
            }
            9 => Value::Array(self.list(0)?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("a value of the unknown type {other}")),
        })
    }

    fn list(&mut self, depth: usize) -> Result<Array<'a>, String> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let start = self.at;
        match kind {
            0 | 1 | 7 => self.skip(count, 1)?,
            2 | 3 => self.skip(count, 2)?,
            4..=6 => self.skip(count, 4)?,
            10..=12 => self.skip(count, 8)?,
            8 => {
                for _ in 0..count {
                    self.text()?;
                }
            }
            9 if depth + 1 < MAX_NESTING => {
                for _ in 0..count {
                    self.list(depth + 1)?;
                }
            }
            9 => return Err(format!("arrays nested deeper than {MAX_NESTING}")),
            other => return Err(format!("an array of the unknown type {other}")),
        }
        Ok(Array {
            kind,
            // Every element took a byte of the file.
            count: count as usize,
            bytes: &self.bytes[start..self.at],
        })
    }

    fn skip(&mut self, count: u64, size: u64) -> Result<(), String> {
        let len = count
            .checked_mul(size)
            .ok_or("an array's length overflows")?;
        self.take(len).map(drop)
    }
}

impl<'a> Container<'a> {
    /// Reads and checks everything but the elements of the tensors.
    pub fn parse(source: &'a Source) -> Result<Container<'a>> {
        let whole = |what: String| source.error(what);
        let mut cursor = Cursor {
            bytes: &source.bytes,
            at: 0,
        };
        if cursor.array::<4>().map_err(whole)? != MAGIC {
            return Err(source.error("not a GGUF file"));
        }
        match cursor.u32().map_err(whole)? {
            2 | 3 => {}
            v if matches!(v.swap_bytes(), 1..=3) => {
                return Err(source.error("a big-endian GGUF file; little-endian ones are read"));
            }
            v => return Err(source.error(format!("GGUF version {v}; 2 and 3 are read"))),
        }
        let tensor_count = cursor.u64().map_err(whole)?;
        let pairs = cursor.u64().map_err(whole)?;

        let mut metadata = BTreeMap::new();
        for i in 0..pairs {
            let key = cursor
                .name()
                .map_err(|e| whole(format!("metadata key {i} of {pairs}: {e}")))?;
            let value = cursor.u32().and_then(|kind| cursor.value(kind));
            let value = value.map_err(|e| whole(format!("metadata `{}`: {e}", shown(key))))?;
            if metadata.insert(key, value).is_some() {
                return Err(whole(format!("metadata `{}` stands twice", shown(key))));
            }
        }
        let metadata = Metadata(metadata);

        let mut listed: Vec<(&str, Listed)> = Vec::new();
        for i in 0..tensor_count {
            let name = cursor
                .name()
                .map_err(|e| whole(format!("tensor {i} of {tensor_count}: {e}")))?;
            if name.is_empty() {
                return Err(whole(format!("tensor {i} of {tensor_count} has no name")));
            }
            let info = cursor.tensor();
            listed.push((
                name,
                info.map_err(|e| source.tensor_error(&shown(name), e))?,
            ));
        }
        let alignment = match metadata.whole("general.alignment").map_err(whole)? {
            None => ALIGNMENT,
            Some(a) if a.is_power_of_two() && a <= MAX_ALIGNMENT => a,
            Some(a) => {
                return Err(whole(format!(
                    "metadata `general.alignment` is {a}, not a power of two up to {MAX_ALIGNMENT}"
                )));
            }
        };
        let start = (cursor.at as u64).next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for (name, info) in listed {
            let info = info
                .place(start, alignment, source.bytes.len())
                .map_err(|e| source.tensor_error(&shown(name), e))?;
            if tensors.insert(name, info).is_some() {
                return Err(source.tensor_error(&shown(name), "the name stands twice"));
            }
        }
        let mut order: Vec<(&str, &Info)> = tensors.iter().map(|(n, i)| (*n, i)).collect();
        order.sort_by_key(|(_, i)| i.range.start);
        for pair in order.windows(2) {
            let [(before, a), (name, b)] = pair else {
                continue;
            };
            if b.range.start < a.range.end {
                let what = format!(
                    "begins at {}, inside tensor `{}`, which ends at {}",
                    b.range.start,
                    shown(before),
                    a.range.end
                );
                return Err(source.tensor_error(&shown(name), what));
            }
        }
        Ok(Container { metadata, tensors })
    }
}

/// A tensor as the list has it.
struct Listed {
    shape: Vec<usize>,
    kind: Kind,
    len: usize,
    offset: u64,
}

impl Cursor<'_> {
    fn tensor(&mut self) -> Result<Listed, String> {
        let axes = self.u32()?;
        if !(1..=MAX_AXES).contains(&axes) {
            return Err(format!("{axes} axes; 1 to {MAX_AXES} are read"));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            let size = self.u64()?;
            let fits = usize::try_from(size).ok().filter(|&s| s > 0);
            shape.push(fits.ok_or_else(|| format!("an axis of {size} elements"))?);
        }
        let kind = Kind::of_id(self.u32()?)?;
        let offset = self.u64()?;
        // The file lists the innermost axis first.
        let row = shape[0];
        shape.reverse();
        let (block, size) = kind.block();
        if !row.is_multiple_of(block) {
            return Err(format!(
                "rows of {row} elements in blocks of {block} ({kind})"
            ));
        }
        let len = numel(&shape)
            .and_then(|n| (n / block).checked_mul(size))
            .filter(|&n| isize::try_from(n).is_ok())
            .ok_or_else(|| format!("shape {shape:?} overflows"))?;
        Ok(Listed {
            shape,
            kind,
            len,
            offset,
        })
    }
}

impl Listed {
    fn place(self, start: u64, alignment: u64, file: usize) -> Result<Info, String> {
        let Listed {
            shape,
            kind,
            len,
            offset,
        } = self;
        if !offset.is_multiple_of(alignment) {
            return Err(format!("offset {offset} is no multiple of {alignment}"));
        }
        let begin = start
            .checked_add(offset)
            .and_then(|b| usize::try_from(b).ok());
        let range = begin.and_then(|b| Some(b..b.checked_add(len)?));
        let range = range.filter(|r| r.end <= file).ok_or_else(|| {
            format!(
                "{kind} of shape {shape:?} takes {len} bytes from offset {offset} of the data, \
                 which starts at {start} of a file of {file} bytes: truncated or damaged"
            )
        })?;
        Ok(Info { shape, kind, range })
    }
}

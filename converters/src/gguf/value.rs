//! Metadata values, and reading them as what they should be.

use crate::source::shown;
use std::collections::BTreeMap;

/// A value; arrays stay in the file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(&'a str),
    Array(Array<'a>),
}

/// An array whose elements are known to lie in `bytes`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Array<'a> {
    pub kind: u32,
    pub count: usize,
    pub bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The elements of an array of text.
    fn texts(&self) -> Option<impl Iterator<Item = Result<&'a str, String>> + use<'a>> {
        let mut rest = self.bytes;
        let next = move |i: usize| {
            let (len, behind) = rest.split_first_chunk::<8>().ok_or("truncated")?;
            let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| "truncated")?;
            let (text, behind) = behind.split_at_checked(len).ok_or("truncated")?;
            rest = behind;
            std::str::from_utf8(text).map_err(|_| format!("element {i} is not UTF-8"))
        };
        (self.kind == 8).then(|| (0..self.count).map(next))
    }

    /// The elements of an array of whole numbers.
    fn whole(&self) -> Option<Vec<i64>> {
        fn read<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> i64) -> Vec<i64> {
            bytes.as_chunks().0.iter().map(|c| f(*c)).collect()
        }
        Some(match self.kind {
            0 => read(self.bytes, |[b]: [u8; 1]| b.into()),
            1 => read(self.bytes, |b| i8::from_le_bytes(b).into()),
            2 => read(self.bytes, |b| u16::from_le_bytes(b).into()),
            3 => read(self.bytes, |b| i16::from_le_bytes(b).into()),
            4 => read(self.bytes, |b| u32::from_le_bytes(b).into()),
            5 => read(self.bytes, |b| i32::from_le_bytes(b).into()),
            10 => read(self.bytes, |b| {
                u64::from_le_bytes(b).try_into().unwrap_or(i64::MAX)
            }),
            11 => read(self.bytes, i64::from_le_bytes),
            _ => return None,
        })
    }

    fn floats(&self) -> Option<Vec<f32>> {
        (self.kind == 6).then(|| {
            let chunks = self.bytes.as_chunks().0.iter();
            chunks.map(|c| f32::from_le_bytes(*c)).collect()
        })
    }
}

impl Value<'_> {
    /// The value for a message.
    fn show(&self) -> String {
        match self {
            Value::Unsigned(v) => v.to_string(),
            Value::Signed(v) => v.to_string(),
            Value::Float(v) => v.to_string(),
            Value::Bool(v) => v.to_string(),
            Value::Text(v) => format!("`{}`", shown(v)),
            Value::Array(a) => format!("an array of {} elements of type {}", a.count, a.kind),
        }
    }
}

/// The metadata of a file, by key.
#[derive(Debug)]
pub(super) struct Metadata<'a>(pub BTreeMap<&'a str, Value<'a>>);

impl<'a> Metadata<'a> {
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.0.get(key).copied()
    }

    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        as_type: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let read = |v: Value<'a>| {
            as_type(v)
                .ok_or_else(|| format!("metadata `{key}` is {}, expected {expected}", v.show()))
        };
        self.get(key).map(read).transpose()
    }

    /// A whole number that is not negative.
    pub fn whole(&self, key: &str) -> Result<Option<u64>, String> {
        self.read(key, "a whole number", |v| match v {
            Value::Unsigned(v) => Some(v),
            Value::Signed(v) => v.try_into().ok(),
            _ => None,
        })
    }

    /// A whole number that is a size in memory.
    pub fn size(&self, key: &str) -> Result<Option<usize>, String> {
        let size = |v: u64| {
            usize::try_from(v).map_err(|_| format!("metadata `{key}` is {v}, beyond this machine"))
        };
        self.whole(key)?.map(size).transpose()
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>, String> {
        self.read(key, "a number", |v| match v {
            Value::Float(v) => Some(v),
            _ => None,
        })
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, String> {
        self.read(key, "true or false", |v| match v {
            Value::Bool(v) => Some(v),
            _ => None,
        })
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        self.read(key, "text", |v| match v {
            Value::Text(v) => Some(v),
            _ => None,
        })
    }

    /// Every element of an array of text.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, String> {
        let texts = self.read(key, "an array of text", |v| match v {
            Value::Array(a) => a.texts(),
            _ => None,
        })?;
        let all = texts.map(Iterator::collect::<Result<Vec<_>, String>>);
        all.transpose()
            .map_err(|e| format!("metadata `{key}`: {e}"))
    }

    pub fn wholes(&self, key: &str) -> Result<Option<Vec<i64>>, String> {
        self.read(key, "an array of whole numbers", |v| match v {
            Value::Array(a) => a.whole(),
            _ => None,
        })
    }

    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, String> {
        self.read(key, "an array of f32", |v| match v {
            Value::Array(a) => a.floats(),
            _ => None,
        })
    }

    /// A whole number, or one for each of `count` layers.
    pub fn per_layer(&self, key: &str, count: usize) -> Result<Option<Vec<usize>>, String> {
        let Some(Value::Array(_)) = self.get(key) else {
            // One number stands for layers that the tensors have yet to show: nothing is repeated
            // by a count that only the metadata gives.
            return Ok(None);
        };
        let all = self.wholes(key)?.unwrap_or_default();
        if all.len() != count {
            return Err(format!(
                "metadata `{key}` has {} elements for {count} layers",
                all.len()
            ));
        }
        let size = |v: &i64| {
            usize::try_from(*v).map_err(|_| format!("metadata `{key}` has an element of {v}"))
        };
        all.iter().map(size).collect::<Result<_, _>>().map(Some)
    }

    /// A value that must be there.
    pub fn require<T>(&self, key: &str, value: Option<T>) -> Result<T, String> {
        value.ok_or_else(|| format!("metadata `{key}` is missing"))
    }
}

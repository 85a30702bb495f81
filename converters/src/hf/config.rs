//! JSON files beside the weights, read as what they should be.

use crate::source::shown;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The longest configuration file that is read, in bytes.
const LONGEST: u64 = 64 << 20;

/// A JSON object of a file.
#[derive(Clone, Debug)]
pub(super) struct Object {
    path: PathBuf,
    /// The key that it stands under, followed by a dot; empty for the file itself.
    at: String,
    map: Map<String, Value>,
}

/// The content of a small file; `None` when there is none.
pub(super) fn read_small(path: &Path) -> Result<Option<Vec<u8>>> {
    let io = |action| {
        move |source| Error::Io {
            path: path.to_path_buf(),
            action,
            source,
        }
    };
    let fault = |what: String| Error::Format {
        path: path.to_path_buf(),
        what,
    };
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io("open")(e)),
        Ok(m) if !m.is_file() => return Err(fault("not a regular file".into())),
        Ok(_) => {}
    }
    let file = std::fs::File::open(path).map_err(io("open"))?;
    let mut bytes = Vec::new();
    file.take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(io("read"))?;
    if bytes.len() as u64 > LONGEST {
        return Err(fault(format!("longer than {LONGEST} bytes")));
    }
    Ok(Some(bytes))
}

/// The JSON of a small file; `None` when there is none.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(bytes) = read_small(path)? else {
        return Ok(None);
    };
    let value = serde_json::from_slice(&bytes).map_err(|e| Error::Format {
        path: path.to_path_buf(),
        what: format!("not JSON: {e}"),
    })?;
    Ok(Some(value))
}

fn brief(value: &Value) -> String {
    shown(&value.to_string())
}

impl Object {
    /// The object that a file holds; `None` when there is no file.
    pub fn read(path: &Path) -> Result<Option<Object>> {
        let Some(value) = read_json(path)? else {
            return Ok(None);
        };
        Object::of(path, String::new(), value).map(Some)
    }

    /// The object that a file must hold.
    pub fn require(path: &Path) -> Result<Object> {
        Object::read(path)?.ok_or_else(|| Error::Format {
            path: path.to_path_buf(),
            what: "there is no such file".into(),
        })
    }

    /// An empty object under a path, for files that leave everything to defaults.
    pub fn empty(path: &Path) -> Object {
        Object {
            path: path.to_path_buf(),
            at: String::new(),
            map: Map::new(),
        }
    }

    /// A value of a file that should be an object.
    pub fn of(path: &Path, at: String, value: Value) -> Result<Object> {
        match value {
            Value::Object(map) => Ok(Object {
                path: path.to_path_buf(),
                at,
                map,
            }),
            other => Err(Error::Format {
                path: path.to_path_buf(),
                what: match at.strip_suffix('.') {
                    Some(key) => format!("`{key}` is {}, expected an object", brief(&other)),
                    None => format!("{}, expected an object", brief(&other)),
                },
            }),
        }
    }

    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::Format {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    /// Whether the key is there, be it null.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A value that is there and not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        f: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let read = |v: &Value| {
            f(v).ok_or_else(|| {
                self.error(format!(
                    "`{}{key}` is {}, expected {expected}",
                    self.at,
                    brief(v)
                ))
            })
        };
        self.get(key).map(read).transpose()
    }

    pub fn whole(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |v| v.as_u64()?.try_into().ok())
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub fn text(&self, key: &str) -> Result<Option<String>> {
        self.typed(key, "text", |v| v.as_str().map(str::to_owned))
    }

    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        self.typed(key, "a list of text", |v| {
            let text = |v: &Value| v.as_str().map(str::to_owned);
            v.as_array()?.iter().map(text).collect()
        })
    }

    /// One token or a list of them.
    pub fn tokens(&self, key: &str) -> Result<Option<Vec<u32>>> {
        self.typed(key, "a token or a list of tokens", |v| {
            let one = |v: &Value| u32::try_from(v.as_u64()?).ok();
            match v {
                Value::Array(list) => list.iter().map(one).collect(),
                v => one(v).map(|t| vec![t]),
            }
        })
    }

    pub fn object(&self, key: &str) -> Result<Option<Object>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let at = format!("{}{key}.", self.at);
        Object::of(&self.path, at, value.clone()).map(Some)
    }

    /// A value that must be there.
    pub fn need<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(format!("`{}{key}` is missing", self.at)))
    }
}

//! The file: one safetensors file is a whole model, and any safetensors reader opens it.
//!
//! | tensor | dtype, shape | content |
//! |---|---|---|
//! | `lacuna.graph` | U8 `[n]` | JSON `{"version": 1 or 2, "graph": {..}, "shapes": {weight: logical shape}, "groups": {weight: columns}, "text": {..}}`; the last for language models |
//! | `lacuna.tokenizer` | U8 `[n]` | a `tokenizer.json`, where the model has one |
//! | `NAME` | any, logical shape | a dense weight |
//! | `X.compressed` | F32, F16, BF16 or I8 `[nnz]` | the stored values of the sparse weight `X.weight`, row-major |
//! | `X.bitmask` | U8 `[rows, ceil(cols / 8)]` | where they stand, least significant bit first |
//! | `X.shape` | I64 `[2]` | `[rows, cols]` |
//! | `X.row_offsets` | I64 `[rows]` | where each row starts in the values |
//! | 2:4: `X.compressed` | F32, F16 or BF16 `[rows, cols / 2]` | two values of each four columns, in their order; either may be 0 |
//! | 2:4: `X.bitmask` | U8 `[rows, ceil(cols / 8)]` | where they stand: two bits of each half byte |
//! | 2:4: `X.shape` | I64 `[2, 1]` | `[rows, cols]`; the columns are a multiple of 4, and there are no row offsets |
//! | `X.scales` | BF16 `[rows, ceil(cols / group)]` | of values of I8: what they are multiplied by |
//!
//! Columns of a group, 32 or 64, are in `groups` of `lacuna.graph`, by the weight's name.
//! A sparse weight `N` whose name does not end in `.weight` is stored as `N.compressed` and so on.
//! It is a matrix in the file; `shapes` in `lacuna.graph` gives the shape that the graph sees. These
//! are the names and the bit order of the formats `sparse-bitmask` and `sparse-24-bitmask` of
//! compressed-tensors. The metadata is `format` (`lacuna`), `version` and, where known, `recipe` and
//! `source`, each a SHA-256 in hex. Unknown metadata, unknown JSON keys and unknown tensors that start
//! with `lacuna.` are ignored; unknown versions are refused. A file with a weight that is stored 2:4 is of
//! version 2, every other one of version 1.
//!
//! Equal models are equal bytes: header keys are sorted, and tensors follow each other by the
//! alignment that their length keeps, then by name. The data start at a multiple of 64 bytes.

mod atomic;
mod encoded;
mod finite;
mod header;
mod made;
#[allow(unsafe_code)]
mod map;
mod reader;
mod tensors;
mod writer;

pub use atomic::{Output, replace};
pub use encoded::decode_bitmask_tensors;
pub use made::{Form, Maker};
pub(super) use map::release;
pub use map::{map, map_part};
pub use tensors::{StoredTensor, Tensors};
pub use writer::{write, write_dense, write_made, write_weights};

use super::{Bytes, Model};
use crate::Result;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

const FORMAT: &str = "lacuna";
const VERSION: &str = "1";
/// Of files with weights that are stored 2:4.
const VERSION_TWO_FOUR: &str = "2";
const VERSIONS: [&str; 2] = [VERSION, VERSION_TWO_FOUR];
const RESERVED: &str = "lacuna.";
const GRAPH: &str = "lacuna.graph";
const TOKENIZER: &str = "lacuna.tokenizer";

/// Reads a Lacuna file, memory-mapped: weights stay in the file and are shared by every clone of
/// the model.
///
/// Everything is checked before the model is returned: offsets, shapes, masks, counts, that values
/// are finite, that the graph is sound and that every weight fits it. While a model is open its
/// file must not be changed in place (replacing it by a rename, as [`write`] does, is fine).
///
/// # Errors
/// Names the file and the tensor, node or value that is wrong, and what the file is when it is no
/// Lacuna file.
pub fn read(path: &Path) -> Result<Model> {
    let mut model = reader::model(&Tensors::open(path)?)?;
    model.set_path(path);
    Ok(model)
}

/// Reads a part of an open file that is a whole Lacuna file, memory-mapped, such as one that lies
/// uncompressed in an Android package; `label` stands for the path in errors. The range may end behind the
/// file's end: `0..u64::MAX` is all of it. The file may be closed afterwards.
///
/// # Errors
/// As [`read`].
pub fn read_part(label: impl Into<PathBuf>, file: &File, range: Range<u64>) -> Result<Model> {
    let label = label.into();
    let bytes = map_part(&label, file, range)?;
    read_bytes(label, bytes)
}

/// Reads the bytes of a whole Lacuna file, such as one that is embedded in an app; `label` stands
/// for the path in errors.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(label: impl Into<PathBuf>, file: Bytes) -> Result<Model> {
    reader::model(&Tensors::parse(label, file)?)
}

/// A name or value from a file for an error message, cut where it is long.
fn shown(text: &str) -> String {
    const LIMIT: usize = 120;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

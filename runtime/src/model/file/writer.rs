//! A model becomes a file.

use super::atomic::Output;
use super::encoded::{Parts, prefix};
use super::header::MAX_HEADER;
use super::made::{self, AsItIs, Fault, Maker, Part, Placed};
use super::{
    FORMAT, GRAPH, RESERVED, TOKENIZER, Tensors, VERSION, VERSION_TWO_FOUR, atomic, finite, map,
    reader, shown,
};
use crate::model::{Bytes, Encoding, Graph, Model, Storage, Text, Weight, Weights};
use crate::{DType, Error, Result};
use serde::Serialize;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::SeekFrom;
use std::path::Path;

/// The alignment of the data, and of every tensor whose length keeps it.
const ALIGN: usize = 64;

/// One tensor to be written.
pub(super) struct Item<'a> {
    /// The weight that it belongs to.
    pub owner: &'a str,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub len: usize,
    pub data: Data<'a>,
}

pub(super) enum Data<'a> {
    Bytes(Bytes),
    /// A sparse weight that is decoded while it is written.
    Decode(&'a Weight),
    /// A part of a weight that is made while it is written.
    Made(Part),
}

impl Item<'_> {
    /// The bytes of a tensor that needs no making.
    fn bytes(&self) -> Option<Bytes> {
        match &self.data {
            Data::Bytes(bytes) => Some(bytes.clone()),
            Data::Decode(weight) => Some(match weight.decode().encoding() {
                Encoding::Dense(data) => data.clone(),
                Encoding::Bitmask(b) => b.values.clone(),
            }),
            Data::Made(_) => None,
        }
    }

    /// Lets go of the pages of a mapped source.
    fn release(&self) {
        match &self.data {
            Data::Bytes(bytes) => bytes.release(),
            Data::Decode(weight) => weight.release(),
            Data::Made(_) => {}
        }
    }

    /// Bytes that making its weight takes for this tensor; a mask has a bit for each element.
    pub fn dense_bytes(&self) -> usize {
        match self.data {
            Data::Made(Part::Mask) => self.len * 8 * 4,
            _ => self.len,
        }
    }
}

/// The tensors of a file, by name.
type Items<'a> = BTreeMap<String, Item<'a>>;

/// Writes a Lacuna file: equal models give equal bytes.
///
/// The file is written beside `path`, synced, read back and compared, and only then renamed to
/// `path`; on any failure what was there before stays.
///
/// # Errors
/// When two weights would be stored under one name, when a value is not finite, when `path` is the
/// file that the model was opened from, and when the system refuses.
pub fn write(model: &Model, path: &Path) -> Result<()> {
    write_made(model, &AsItIs, path)
}

/// Writes a Lacuna file, some of whose weights are made while it is written: as [`write`] of a model that
/// has them, byte for byte, but with few of them in memory at a time.
///
/// # Errors
/// As [`write`], and when a weight cannot be made or is not of the form that was promised.
pub fn write_made(model: &Model, maker: &dyn Maker, path: &Path) -> Result<()> {
    refuse_own_source(model, path)?;
    let mut items = Items::new();
    let mut shapes: BTreeMap<&str, &[usize]> = BTreeMap::new();
    let storage =
        |name: &str, weight: &Weight| maker.form(name).map_or(weight.storage(), |f| f.storage);
    let mut version = VERSION;
    let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, weight) in model.weights() {
        let storage = storage(name, weight);
        if storage != Storage::Dense {
            shapes.insert(name, weight.shape());
        }
        if storage == Storage::TwoFour {
            version = VERSION_TWO_FOUR;
        }
        if let Some(form) = maker.form(name) {
            for (stored, item) in made::items(name, weight, form) {
                add(&mut items, stored, item)?;
            }
            continue;
        }
        finite::check(weight).map_err(|what| fault(name, what))?;
        if let Some(scales) = weight.scales() {
            groups.insert(name, scales.group);
        }
        add_weight(&mut items, name, weight)?;
    }
    for name in items.keys() {
        if let Some(p) = name.strip_suffix(".compressed")
            && let Some(mask) = items.get(&Parts::of(p).bitmask)
            && prefix(mask.owner) != p
        {
            return Err(fault(
                name,
                format!(
                    "beside the weight `{}` it would be read as an encoded weight",
                    shown(mask.owner)
                ),
            ));
        }
    }
    check_graph(model.graph())?;
    let json = graph_json(model, version, &shapes, &groups)?;
    add_bytes(&mut items, GRAPH, json.into());
    if let Some(tokenizer) = &model.tokenizer {
        add_bytes(&mut items, TOKENIZER, tokenizer.clone());
    }
    let mut metadata = BTreeMap::from([("format", FORMAT), ("version", version)]);
    for (key, value) in [
        ("recipe", &model.metadata.recipe),
        ("source", &model.metadata.source),
    ] {
        if let Some(value) = value {
            metadata.insert(key, value);
        }
    }
    write_items(path, &items, &metadata, maker, |tensors| {
        let back = reader::model(tensors)?;
        let same = back.graph() == model.graph()
            && back.weights().len() == model.weights().len()
            && back.metadata == model.metadata
            && back.text == model.text
            && back.weights().iter().zip(model.weights()).all(|(a, b)| {
                a.0 == b.0 && a.1.shape() == b.1.shape() && a.1.storage() == storage(b.0, b.1)
            });
        if same {
            Ok(())
        } else {
            Err(tensors.file_fault("the model that was written reads back as another one"))
        }
    })
}

/// Writes every weight of a model decoded into a plain safetensors file, without the graph.
///
/// Atomic and checked, as [`write`].
///
/// # Errors
/// As [`write`].
pub fn write_dense(model: &Model, path: &Path) -> Result<()> {
    refuse_own_source(model, path)?;
    write_weights(model.weights(), path)
}

/// Writes weights decoded into a plain safetensors file.
///
/// Atomic and checked, as [`write`].
///
/// # Errors
/// When a name is reserved, and when the system refuses.
pub fn write_weights(weights: &Weights, path: &Path) -> Result<()> {
    let mut items = Items::new();
    for (name, weight) in weights {
        check_name(name)?;
        let (len, data) = match weight.encoding() {
            Encoding::Dense(data) => (data.len(), Data::Bytes(data.clone())),
            Encoding::Bitmask(_) => (
                weight.numel() * weight.element_dtype().size(),
                Data::Decode(weight),
            ),
        };
        let item = Item {
            owner: name,
            dtype: weight.element_dtype(),
            shape: weight.shape().to_vec(),
            len,
            data,
        };
        items.insert(name.clone(), item);
    }
    // The value that stock loaders of PyTorch checkpoints ask for.
    write_items(
        path,
        &items,
        &BTreeMap::from([("format", "pt")]),
        &AsItIs,
        |_| Ok(()),
    )
}

fn fault(weight: &str, what: impl Into<String>) -> Error {
    Error::Weight {
        weight: shown(weight),
        what: what.into(),
    }
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name == "__metadata__" || name.starts_with(RESERVED) {
        return Err(fault(name, "the file keeps this name for itself"));
    }
    Ok(())
}

/// Adds a tensor whose name no other has.
fn add<'a>(items: &mut Items<'a>, stored: String, item: Item<'a>) -> Result<()> {
    check_name(&stored)?;
    if let Some(other) = items.get(&stored) {
        return Err(fault(
            item.owner,
            format!(
                "would be stored as `{}`, and so would the weight `{}`",
                shown(&stored),
                shown(other.owner)
            ),
        ));
    }
    items.insert(stored, item);
    Ok(())
}

fn add_weight<'a>(items: &mut Items<'a>, name: &'a str, weight: &Weight) -> Result<()> {
    check_name(name)?;
    let item = |dtype, shape: Vec<usize>, bytes: &Bytes| Item {
        owner: name,
        dtype,
        shape,
        len: bytes.len(),
        data: Data::Bytes(bytes.clone()),
    };
    let b = match weight.encoding() {
        Encoding::Dense(data) => {
            let dense = item(weight.dtype(), weight.shape().to_vec(), data);
            return add(items, name.to_owned(), dense);
        }
        Encoding::Bitmask(b) => b,
    };
    let parts = Parts::of(prefix(name));
    let stored = b.values.len() / weight.dtype().size();
    let values = match b.is_two_four() {
        true => vec![b.rows, b.cols / 2],
        false => vec![stored],
    };
    let mask = vec![b.rows, b.mask_stride()];
    add(
        items,
        parts.compressed,
        item(weight.dtype(), values, &b.values),
    )?;
    add(items, parts.bitmask, item(DType::U8, mask, &b.mask))?;
    let shape = made::shape_item(name, [b.rows, b.cols], b.is_two_four());
    add(items, parts.shape, shape)?;
    if let Some(offsets) = &b.row_offsets {
        let offsets = item(DType::I64, vec![b.rows], offsets);
        add(items, parts.row_offsets, offsets)?;
    }
    if let Some(scales) = weight.scales() {
        let shape = vec![b.rows, scales.per_row(b.cols)];
        add(
            items,
            parts.scales,
            item(DType::BF16, shape, &scales.values),
        )?;
    }
    Ok(())
}

fn add_bytes<'a>(items: &mut Items<'a>, name: &'a str, bytes: Bytes) {
    let item = Item {
        owner: name,
        dtype: DType::U8,
        shape: vec![bytes.len()],
        len: bytes.len(),
        data: Data::Bytes(bytes),
    };
    items.insert(name.to_owned(), item);
}

/// Refuses attributes that JSON cannot hold.
fn check_graph(graph: &Graph) -> Result<()> {
    for node in &graph.nodes {
        let back = serde_json::to_vec(node).and_then(|json| serde_json::from_slice(&json));
        match back {
            Ok(back) if *node == back => {}
            Ok(_) => {
                return Err(Error::node(
                    node,
                    "an attribute does not survive the file: not finite?",
                ));
            }
            Err(e) => return Err(Error::node(node, format!("does not survive the file: {e}"))),
        }
    }
    Ok(())
}

fn graph_json(
    model: &Model,
    version: &str,
    shapes: &BTreeMap<&str, &[usize]>,
    groups: &BTreeMap<&str, usize>,
) -> Result<Vec<u8>> {
    #[derive(Serialize)]
    struct Document<'a> {
        version: u64,
        graph: &'a Graph,
        shapes: &'a BTreeMap<&'a str, &'a [usize]>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        groups: &'a BTreeMap<&'a str, usize>,
        #[serde(skip_serializing_if = "Option::is_none")]
        text: &'a Option<Text>,
    }
    let graph = model.graph();
    serde_json::to_vec(&Document {
        version: version.parse().unwrap_or(1),
        graph,
        shapes,
        groups,
        text: &model.text,
    })
    .map_err(|e| Error::Graph {
        graph: graph.name.clone(),
        what: format!("cannot become JSON: {e}"),
    })
}

fn refuse_own_source(model: &Model, path: &Path) -> Result<()> {
    let Some(source) = model.path() else {
        return Ok(());
    };
    if same_file(source, path) {
        return Err(Error::File {
            path: path.to_path_buf(),
            what: "is the file that the model is mapped from; write to another one".into(),
        });
    }
    Ok(())
}

fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if let (Ok(a), Ok(b)) = (std::fs::metadata(a), std::fs::metadata(b)) {
            return a.dev() == b.dev() && a.ino() == b.ino();
        }
    }
    match (std::fs::canonicalize(a), std::fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

/// Names in the order of their data: the longer a power of two divides a length, the earlier, so
/// that every tensor starts at a multiple of what its own length keeps.
fn order<'i>(items: &'i Items<'_>) -> Vec<(&'i String, &'i Item<'i>)> {
    let mut order: Vec<_> = items.iter().collect();
    order.sort_by_key(|(_, item)| Reverse((item.len | ALIGN).trailing_zeros()));
    order
}

/// The length and the JSON of the header, padded so that the data are aligned.
fn header(path: &Path, items: &Items<'_>, metadata: &BTreeMap<&str, &str>) -> Result<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Entry<'a> {
        Metadata(&'a BTreeMap<&'a str, &'a str>),
        Tensor {
            dtype: &'static str,
            shape: &'a [usize],
            data_offsets: [usize; 2],
        },
    }
    let mut keys: BTreeMap<&str, Entry<'_>> = BTreeMap::new();
    let mut at = 0;
    for (name, item) in order(items) {
        keys.insert(
            name,
            Entry::Tensor {
                dtype: item.dtype.name(),
                shape: &item.shape,
                data_offsets: [at, at + item.len],
            },
        );
        at += item.len;
    }
    keys.insert("__metadata__", Entry::Metadata(metadata));
    let refuse = |what: String| Error::File {
        path: path.to_path_buf(),
        what,
    };
    let mut bytes = vec![0; 8];
    serde_json::to_writer(&mut bytes, &keys).map_err(|e| refuse(format!("header: {e}")))?;
    bytes.resize(bytes.len().next_multiple_of(ALIGN), b' ');
    let length = bytes.len() - 8;
    if length > MAX_HEADER {
        return Err(refuse(format!(
            "a header of {length} bytes, the limit is {MAX_HEADER}"
        )));
    }
    bytes[..8].copy_from_slice(&(length as u64).to_le_bytes());
    Ok(bytes)
}

/// Writes, reads back, compares every tensor, and asks `check`.
fn write_items(
    path: &Path,
    items: &Items<'_>,
    metadata: &BTreeMap<&str, &str>,
    maker: &dyn Maker,
    check: impl FnOnce(&Tensors) -> Result<()>,
) -> Result<()> {
    let header = header(path, items, metadata)?;
    let mut at = header.len();
    let placed: Vec<Placed<'_>> = (order(items).into_iter())
        .map(|(name, item)| {
            at += item.len;
            (name, item, at - item.len)
        })
        .collect();
    // Filled while writing: hashes of what was made, and why a weight could not be made.
    let (hashes, mut failed) = (RefCell::new(BTreeMap::new()), None);
    let fill = |out: &mut dyn Output| {
        out.write_all(&header)?;
        let mut end = header.len();
        for (_, item, start) in &placed {
            let Some(bytes) = item.bytes() else { continue };
            if *start != end {
                out.seek(SeekFrom::Start(*start as u64))?;
            }
            out.write_all(&bytes)?;
            item.release();
            end = start + item.len;
        }
        match made::write(&placed, maker, out) {
            Ok(made) => *hashes.borrow_mut() = made,
            Err(Fault::Io(e)) => return Err(e),
            Err(Fault::Weight(e)) => {
                failed = Some(e);
                return Err(std::io::Error::other("a weight could not be made"));
            }
        }
        Ok(())
    };
    let compare = |temporary: &Path| {
        let tensors = Tensors::parse(path, map::map(temporary)?)?;
        if tensors.len() != items.len() {
            return Err(tensors.file_fault(format!(
                "{} tensors read back, {} written",
                tensors.len(),
                items.len()
            )));
        }
        for (name, item) in items {
            let back = tensors.require(name)?;
            let same = match item.bytes() {
                Some(bytes) => back.bytes[..] == bytes[..],
                None => hashes.borrow().get(name.as_str()) == Some(&made::hash(&back.bytes)),
            };
            if !same || back.dtype() != Some(item.dtype) || back.shape != item.shape {
                return Err(tensors.fault(name, "reads back different from what was written"));
            }
            back.bytes.release();
            item.release();
        }
        check(&tensors)
    };
    let written = atomic::replace(path, fill, compare);
    match failed {
        Some(e) => Err(*e),
        None => written,
    }
}

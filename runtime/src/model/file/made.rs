//! Weights that exist only while they are written.

use super::encoded::{Parts, prefix};
use super::writer::{Data, Item};
use super::{atomic::Output, finite};
use crate::model::{Encoding, Storage, Weight};
use crate::{DType, Error, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::io::SeekFrom;
use std::sync::Mutex;

/// Makes weights one at a time, so that a model is written that memory could not hold.
pub trait Maker: Sync {
    /// What [`Maker::make`] will give; `None` for a weight that is written as the model has it.
    fn form(&self, name: &str) -> Option<Form>;

    /// The weight, of the shape and dtype of the model's and of the form that was promised.
    fn make(&self, name: &str) -> std::result::Result<Weight, String>;
}

/// How a weight will be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// The encoding.
    pub storage: Storage,
    /// Elements that are not zero.
    pub nonzeros: usize,
}

/// Every weight as the model has it.
pub(super) struct AsItIs;

impl Maker for AsItIs {
    fn form(&self, _: &str) -> Option<Form> {
        None
    }

    fn make(&self, name: &str) -> std::result::Result<Weight, String> {
        Err(format!("nothing makes `{name}`"))
    }
}

/// A tensor of a weight that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Dense,
    Values,
    Mask,
    RowOffsets,
}

impl Part {
    fn of(self, weight: &Weight) -> Option<&[u8]> {
        match (self, weight.encoding()) {
            (Part::Dense, Encoding::Dense(data)) => Some(data),
            (Part::Values, Encoding::Bitmask(b)) => Some(&b.values),
            (Part::Mask, Encoding::Bitmask(b)) => Some(&b.mask),
            (Part::RowOffsets, Encoding::Bitmask(b)) => b.row_offsets.as_deref(),
            _ => None,
        }
    }
}

/// The tensors that a weight of this form will be stored as, with their names.
pub(super) fn items<'a>(name: &'a str, like: &Weight, form: Form) -> Vec<(String, Item<'a>)> {
    let size = like.dtype().size();
    let item = |dtype: DType, shape: Vec<usize>, size: usize, data| Item {
        owner: name,
        dtype,
        len: shape.iter().product::<usize>() * size,
        shape,
        data,
    };
    if form.storage == Storage::Dense {
        let data = Data::Made(Part::Dense);
        let dense = item(like.dtype(), like.shape().to_vec(), size, data);
        return vec![(name.to_owned(), dense)];
    }
    let (rows, cols) = like.matrix();
    let parts = Parts::of(prefix(name));
    let two_four = form.storage == Storage::TwoFour;
    let values = match two_four {
        true => vec![rows, cols / 2],
        false => vec![form.nonzeros],
    };
    let mask = vec![rows, cols.div_ceil(8)];
    let mut items = vec![
        (
            parts.compressed,
            item(like.dtype(), values, size, Data::Made(Part::Values)),
        ),
        (
            parts.bitmask,
            item(DType::U8, mask, 1, Data::Made(Part::Mask)),
        ),
        (parts.shape, shape_item(name, [rows, cols], two_four)),
    ];
    if !two_four {
        let offsets = Data::Made(Part::RowOffsets);
        items.push((parts.row_offsets, item(DType::I64, vec![rows], 8, offsets)));
    }
    items
}

/// The `shape` tensor of an encoded weight; that of a 2:4 weight is a column.
pub(super) fn shape_item(name: &str, sizes: [usize; 2], two_four: bool) -> Item<'_> {
    let bytes = sizes.map(|n| (n as u64).to_le_bytes());
    Item {
        owner: name,
        dtype: DType::I64,
        shape: match two_four {
            true => vec![2, 1],
            false => vec![2],
        },
        len: 16,
        data: Data::Bytes(bytes.as_flattened().to_vec().into()),
    }
}

/// Dense bytes of weights that are made at the same time; a larger weight is made alone.
const TOGETHER: usize = 32 << 20;

/// A tensor to be written: its name, itself, and where it starts in the file.
pub(super) type Placed<'i> = (&'i String, &'i Item<'i>, usize);

/// Makes the weights that own these tensors, a few at a time, and writes each as soon as it is there.
/// Returns a hash of every tensor.
pub(super) fn write<'i>(
    placed: &[Placed<'i>],
    maker: &dyn Maker,
    out: &mut dyn Output,
) -> Result<BTreeMap<&'i str, u64>, Fault> {
    let mut owners: BTreeMap<&str, Vec<Placed<'i>>> = BTreeMap::new();
    for &(name, item, at) in placed {
        if matches!(item.data, Data::Made(_)) {
            owners.entry(item.owner).or_default().push((name, item, at));
        }
    }
    let owners: Vec<(&str, Vec<Placed<'i>>)> = owners.into_iter().collect();
    let hashes = Mutex::new(BTreeMap::new());
    let out = Mutex::new(out);
    let mut rest = &owners[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let few = rest.iter().take_while(|(_, parts)| {
            let first = bytes == 0;
            bytes += parts.iter().map(|p| p.1.dense_bytes()).sum::<usize>();
            first || bytes <= TOGETHER
        });
        let (batch, later) = rest.split_at(few.count());
        batch.par_iter().try_for_each(|(owner, parts)| {
            let weight = maker.make(owner).map_err(|what| refuse(owner, what))?;
            finite::check(&weight).map_err(|what| refuse(owner, what))?;
            for (name, item, at) in parts {
                let Data::Made(part) = item.data else {
                    continue;
                };
                let bytes = part.of(&weight).filter(|b| b.len() == item.len);
                let bytes = bytes.ok_or_else(|| {
                    let what = "was made in another form than the plan said";
                    refuse(owner, what.to_owned())
                })?;
                let hash = hash(bytes);
                let mut out = out.lock().unwrap_or_else(|e| e.into_inner());
                out.seek(SeekFrom::Start(*at as u64))?;
                out.write_all(bytes)?;
                let mut hashes = hashes.lock().unwrap_or_else(|e| e.into_inner());
                hashes.insert(name.as_str(), hash);
            }
            Ok::<(), Fault>(())
        })?;
        rest = later;
    }
    Ok(hashes.into_inner().unwrap_or_else(|e| e.into_inner()))
}

/// A hash by which bytes are known again within this process.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Why writing stopped.
pub(super) enum Fault {
    /// The system refused.
    Io(std::io::Error),
    /// A weight could not be made; boxed because it is large and rare.
    Weight(Box<Error>),
}

impl From<std::io::Error> for Fault {
    fn from(e: std::io::Error) -> Fault {
        Fault::Io(e)
    }
}

fn refuse(weight: &str, what: String) -> Fault {
    Fault::Weight(Box::new(Error::Weight {
        weight: weight.to_owned(),
        what,
    }))
}

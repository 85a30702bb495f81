//! A safetensors file of images and labels: plain pixels, or JPEG files end to end.

use super::{Dataset, Image, decode, read};
use crate::{Error, Result};
use safetensors::tensor::TensorView as View;
use safetensors::{Dtype, SafeTensors};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Images of a safetensors file, held in memory. For a split `test` its tensors are
///
/// - `test_images` U8 `[N, C, H, W]` with 1 or 3 channels, or
/// - `test_jpeg` U8 `[bytes]` with `test_offsets` I64 `[N + 1]`, image `i` being the bytes from
///   offset `i` to offset `i + 1`;
/// - `test_labels` `[N]`, U8, I32 or I64, where labels are read.
///
/// Names without the split (`images`, ...) are read where those with it do not exist.
#[derive(Clone, Debug)]
pub struct Tensors {
    path: PathBuf,
    split: String,
    images: Images,
    labels: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Images {
    Pixels {
        shape: [usize; 3],
        data: Vec<u8>,
    },
    Jpeg {
        ranges: Vec<Range<usize>>,
        data: Vec<u8>,
    },
}

impl Tensors {
    /// Reads and checks the tensors of a split.
    pub fn open(path: &Path, split: &str) -> Result<Tensors> {
        Tensors::read(path, split, true)
    }

    /// The same without labels: each is 0.
    pub fn images(path: &Path, split: &str) -> Result<Tensors> {
        Tensors::read(path, split, false)
    }

    fn read(path: &Path, split: &str, labelled: bool) -> Result<Tensors> {
        let bytes = read(path)?;
        Tensors::parse(&bytes, path, split, labelled).map_err(|what| Error::Data {
            path: path.to_owned(),
            what,
        })
    }

    fn parse(bytes: &[u8], path: &Path, split: &str, labelled: bool) -> Result<Tensors, String> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let find = |name: &str| find(&file, split, name).map(|v| (name.to_owned(), v));
        let need = |name: &str| {
            find(name).ok_or_else(|| format!("no tensor `{split}_{name}` or `{name}`"))
        };
        let bytes_of = |(name, view): &(String, View<'_>)| match view.dtype() {
            Dtype::U8 => Ok(view.data().to_vec()),
            other => Err(format!("tensor `{name}` is {other:?}, not U8")),
        };
        let labels = match labelled {
            true => Some(need("labels")?),
            false => None,
        };
        let labels = labels.map(|l| indices(&l.0, &l.1)).transpose()?;
        let (images, count) = if let Some(jpeg) = find("jpeg") {
            let offsets = need("offsets")?;
            let offsets = indices(&offsets.0, &offsets.1)?;
            let data = bytes_of(&jpeg)?;
            let ranges: Vec<Range<usize>> = offsets.windows(2).map(|w| w[0]..w[1]).collect();
            let bad = |r: &&Range<usize>| r.start > r.end || r.end > data.len();
            if let Some(bad) = ranges.iter().find(bad) {
                return Err(format!(
                    "offsets {bad:?} do not lie in order within {} bytes",
                    data.len()
                ));
            }
            let count = ranges.len();
            (Images::Jpeg { ranges, data }, count)
        } else {
            let images = need("images")?;
            let [count, c @ (1 | 3), h, w] = *images.1.shape() else {
                return Err(format!(
                    "images of shape {:?}, not [N, 1 or 3, H, W]",
                    images.1.shape()
                ));
            };
            let data = bytes_of(&images)?;
            let shape = [c, h, w];
            (Images::Pixels { shape, data }, count)
        };
        let labels = labels.unwrap_or_else(|| vec![0; count]);
        if count != labels.len() {
            return Err(format!("{} labels for {count} images", labels.len()));
        }
        Ok(Tensors {
            path: path.to_owned(),
            split: split.to_owned(),
            images,
            labels,
        })
    }
}

impl Dataset for Tensors {
    fn describe(&self) -> String {
        let kind = match self.images {
            Images::Pixels { .. } => "images",
            Images::Jpeg { .. } => "JPEG images",
        };
        format!(
            "{} {kind} of {}, split {}",
            self.labels.len(),
            self.path.display(),
            self.split
        )
    }

    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, index: usize) -> usize {
        self.labels[index]
    }

    fn image(&self, index: usize) -> Result<Image> {
        match &self.images {
            Images::Jpeg { ranges, data } => {
                decode(&data[ranges[index].clone()]).map_err(|what| Error::Data {
                    path: self.origin(index).into(),
                    what,
                })
            }
            Images::Pixels { shape, data } => {
                let [channels, height, width] = *shape;
                let plane = height * width;
                let planes = &data[index * channels * plane..(index + 1) * channels * plane];
                let pixels = (0..plane)
                    .flat_map(|p| (0..channels).map(move |c| planes[c * plane + p]))
                    .collect();
                Ok(Image {
                    height,
                    width,
                    channels,
                    pixels,
                })
            }
        }
    }

    fn origin(&self, index: usize) -> String {
        format!("{}, {} image {index}", self.path.display(), self.split)
    }
}

/// The tensor of a split, or the one without a split in its name.
pub(super) fn find<'a>(file: &SafeTensors<'a>, split: &str, name: &str) -> Option<View<'a>> {
    let with_split = format!("{split}_{name}");
    let view = file.tensor(&with_split).or_else(|_| file.tensor(name));
    view.ok()
}

/// The values of a tensor of integers.
pub(crate) fn integers(view: &View<'_>) -> Result<Vec<i64>, String> {
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::U8 => data.iter().map(|&b| b.into()).collect(),
        Dtype::I32 => {
            let words = data.as_chunks::<4>().0.iter();
            words.map(|w| i32::from_le_bytes(*w).into()).collect()
        }
        Dtype::I64 => {
            let words = data.as_chunks::<8>().0.iter();
            words.map(|w| i64::from_le_bytes(*w)).collect()
        }
        other => return Err(format!("{other:?}, not U8, I32 or I64")),
    })
}

/// The values of a tensor of non-negative integers.
pub(super) fn indices(name: &str, view: &View<'_>) -> Result<Vec<usize>, String> {
    let values = integers(view).map_err(|what| format!("tensor `{name}` is {what}"))?;
    let index = |v: i64| usize::try_from(v).map_err(|_| format!("tensor `{name}` holds {v}"));
    values.into_iter().map(index).collect()
}

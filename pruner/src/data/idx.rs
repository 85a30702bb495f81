//! IDX, the format of MNIST and its relatives: an image file and a label file, raw or gzipped.

use super::{Dataset, Image, list};
use crate::{Error, Result};
use flate2::read::GzDecoder;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// The most bytes of pixels that a file may claim.
const LIMIT: usize = 1 << 32;

/// Grey images and their labels from a pair of IDX files, held in memory.
#[derive(Clone, Debug)]
pub struct Idx {
    path: PathBuf,
    height: usize,
    width: usize,
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

/// The IDX image file of a folder: the one, or the one whose name starts with the split
/// (`t10k` is the test split).
pub(super) fn images_in(folder: &Path, split: &str) -> Result<Option<PathBuf>> {
    let name = |p: &Path| {
        p.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let mut files = list(folder)?;
    files.retain(|p| name(p).contains("images-idx3-ubyte"));
    let wanted =
        |p: &&PathBuf| name(p).starts_with(split) || split == "test" && name(p).starts_with("t10k");
    match (files.iter().find(wanted), files.as_slice()) {
        (Some(file), _) | (None, [file]) => Ok(Some(file.clone())),
        (None, []) => Ok(None),
        (None, _) => Err(Error::Data {
            path: folder.to_owned(),
            what: format!("no IDX image file of the split `{split}`"),
        }),
    }
}

impl Idx {
    /// Reads an image file, and beside it the label file: `images-idx3` becomes `labels-idx1`.
    pub fn open(images: &Path) -> Result<Idx> {
        let name = images.file_name().unwrap_or_default().to_string_lossy();
        let other = name.replace("images-idx3", "labels-idx1");
        if other == name {
            return Err(Error::Data {
                path: images.to_owned(),
                what: "the name lacks `images-idx3`, from which the label file's name is made"
                    .into(),
            });
        }
        Idx::open_pair(images, &images.with_file_name(other))
    }

    /// Reads an image file and a label file.
    pub fn open_pair(images: &Path, labels: &Path) -> Result<Idx> {
        let (dims, pixels) = read_idx(images)?;
        let refuse = |path: &Path, what: String| Error::Data {
            path: path.to_owned(),
            what,
        };
        let [count, height, width] = dims[..] else {
            return Err(refuse(
                images,
                format!("{} axes, images have 3", dims.len()),
            ));
        };
        let (dims, labels_read) = read_idx(labels)?;
        if dims != [count] {
            let what = format!("labels of shape {dims:?} for {count} images");
            return Err(refuse(labels, what));
        }
        Ok(Idx {
            path: images.to_owned(),
            height,
            width,
            pixels,
            labels: labels_read,
        })
    }
}

impl Dataset for Idx {
    fn describe(&self) -> String {
        format!("{} images of {}", self.labels.len(), self.path.display())
    }

    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, index: usize) -> usize {
        self.labels[index].into()
    }

    fn image(&self, index: usize) -> Result<Image> {
        let size = self.height * self.width;
        Ok(Image {
            height: self.height,
            width: self.width,
            channels: 1,
            pixels: self.pixels[index * size..(index + 1) * size].to_vec(),
        })
    }

    fn origin(&self, index: usize) -> String {
        format!("{}, image {index}", self.path.display())
    }
}

/// The axes and the bytes of an IDX file of unsigned bytes.
fn read_idx(path: &Path) -> Result<(Vec<usize>, Vec<u8>)> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        action: "read",
        source,
    };
    let file = BufReader::new(File::open(path).map_err(io)?);
    let gzipped = path.extension().is_some_and(|e| e == "gz");
    let mut reader: Box<dyn Read> = match gzipped {
        true => Box::new(GzDecoder::new(file)),
        false => Box::new(file),
    };
    let refuse = |what: String| Error::Data {
        path: path.to_owned(),
        what,
    };
    let mut word = |what: &str| -> Result<[u8; 4]> {
        let mut word = [0; 4];
        reader
            .read_exact(&mut word)
            .map_err(|e| refuse(format!("cannot read {what}: {e}")))?;
        Ok(word)
    };
    let magic = word("the magic number")?;
    let [0, 0, 8, axes @ 1..=3] = magic else {
        return Err(refuse(format!(
            "magic number {:#010x} is not that of an IDX file of bytes with 1 to 3 axes",
            u32::from_be_bytes(magic)
        )));
    };
    let mut dims = Vec::new();
    for axis in 0..axes {
        dims.push(u32::from_be_bytes(word(&format!("the size of axis {axis}"))?) as usize);
    }
    let size = dims
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= LIMIT)
        .ok_or_else(|| refuse(format!("shape {dims:?} is beyond {LIMIT} bytes")))?;
    let mut data = Vec::new();
    let found = reader
        .take(size as u64 + 1)
        .read_to_end(&mut data)
        .map_err(|e| refuse(format!("cannot read the data: {e}")))?;
    if found != size {
        let more = if found > size { "more than " } else { "" };
        let found = found.min(size);
        return Err(refuse(format!(
            "{more}{found} bytes of data, shape {dims:?} needs {size}"
        )));
    }
    Ok((dims, data))
}

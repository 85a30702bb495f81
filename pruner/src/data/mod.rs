//! Labelled images to measure accuracy on: folders, IDX files, safetensors; and sequences.

mod folder;
mod idx;
mod preprocess;
mod resize;
mod sequences;
mod tensors;

pub use folder::Folder;
pub use idx::Idx;
pub use preprocess::{Preprocess, Preset};
pub use sequences::Sequences;
pub use tensors::Tensors;

pub(crate) use tensors::integers;

use crate::{Error, Result};
use lacuna::Model;
use libjpeg_turbo_rs::{DecodeLimits, Decoder, PixelFormat};
use std::path::{Path, PathBuf};

/// An image of 8 bits per channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// `height * width * channels` bytes, the channels of a pixel side by side.
    pub pixels: Vec<u8>,
}

/// Labelled images, in an order that does not change.
pub trait Dataset: Send + Sync {
    /// What it is, for reports: where it came from, its split, its size.
    fn describe(&self) -> String;

    /// The number of images.
    fn len(&self) -> usize;

    /// Whether there is no image.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class of image `index`, less than [`Dataset::len`].
    fn label(&self, index: usize) -> usize;

    /// Reads image `index`, less than [`Dataset::len`].
    fn image(&self, index: usize) -> Result<Image>;

    /// Where image `index` comes from, for errors.
    fn origin(&self, index: usize) -> String;
}

/// What a model is trained or measured on.
pub enum Samples {
    /// Images.
    Images(Box<dyn Dataset>),
    /// Sequences, for recurrent models.
    Sequences(Sequences),
}

impl Samples {
    /// Opens what `model` takes: sequences where it carries a state from step to step, else images. See [`open`] and
    /// [`Sequences::open`].
    pub fn open(
        model: &Model,
        path: &Path,
        split: &str,
        held_out_subjects: &[usize],
    ) -> Result<Samples> {
        if crate::train::is_recurrent(model) {
            let sequences = Sequences::open(path, split, held_out_subjects)?;
            return Ok(Samples::Sequences(sequences));
        }
        match held_out_subjects {
            [] => Ok(Samples::Images(open(path, split)?)),
            _ => Err(Error::Data {
                path: path.to_owned(),
                what: "subjects are held out of sequences; the model takes images".into(),
            }),
        }
    }

    /// What it is, for reports.
    pub fn describe(&self) -> String {
        match self {
            Samples::Images(d) => d.describe(),
            Samples::Sequences(d) => d.describe(),
        }
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        match self {
            Samples::Images(d) => d.len(),
            Samples::Sequences(d) => d.len(),
        }
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class of sample `index`, less than [`Samples::len`].
    pub fn label(&self, index: usize) -> usize {
        match self {
            Samples::Images(d) => d.label(index),
            Samples::Sequences(d) => d.label(index),
        }
    }

    /// Where sample `index` comes from, for errors.
    pub fn origin(&self, index: usize) -> String {
        match self {
            Samples::Images(d) => d.origin(index),
            Samples::Sequences(d) => d.origin(index),
        }
    }
}

/// Opens a data set of any kind that this crate reads:
///
/// - a folder of images, or a glob over image files (see [`Folder`]);
/// - an IDX image file, or a folder with IDX files (see [`Idx`]);
/// - a safetensors file of images or JPEG bytes, and labels (see [`Tensors`]).
///
/// `split` is "test" or "train" where the source holds both.
pub fn open(path: &Path, split: &str) -> Result<Box<dyn Dataset>> {
    let refuse = |what: &str| Error::Data {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    let name = path.to_string_lossy();
    if path.is_dir() {
        return Ok(match idx::images_in(path, split)? {
            Some(images) => Box::new(Idx::open(&images)?),
            None => Box::new(Folder::open(path)?),
        });
    }
    if !path.exists() {
        if name.contains(['*', '?', '[']) {
            return Ok(Box::new(Folder::glob(&name)?));
        }
        return Err(refuse("no such file or folder"));
    }
    if name.ends_with(".safetensors") {
        Ok(Box::new(Tensors::open(path, split)?))
    } else if name.contains("idx3-ubyte") {
        Ok(Box::new(Idx::open(path)?))
    } else {
        Err(refuse(
            "not a data set: give a folder of images, a quoted glob over images, \
             an idx3-ubyte file (raw or .gz), or a .safetensors of images and labels",
        ))
    }
}

/// The most pixels of an image's side.
const SIDE: u32 = 1 << 14;

/// Decodes a JPEG or PNG of at most [`SIDE`] pixels a side.
fn decode(bytes: &[u8]) -> Result<Image, String> {
    if bytes.starts_with(&[0xff, 0xd8]) {
        return decode_jpeg(bytes);
    }
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(SIDE);
    limits.max_image_height = Some(SIDE);
    let mut reader = image::ImageReader::new(std::io::Cursor::new(bytes));
    reader.limits(limits);
    let decoded = reader
        .with_guessed_format()
        .map_err(|e| e.to_string())?
        .decode()
        .map_err(|e| e.to_string())?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let (channels, pixels) = match decoded.color().has_color() {
        true => (3, decoded.into_rgb8().into_raw()),
        false => (1, decoded.into_luma8().into_raw()),
    };
    Ok(Image {
        height,
        width,
        channels,
        pixels,
    })
}

/// Decodes a JPEG to the pixels that libjpeg-turbo gives, to the bit: networks are trained and measured on
/// those, and a level of difference turns an answer now and then.
fn decode_jpeg(bytes: &[u8]) -> Result<Image, String> {
    let side = SIDE as usize;
    let mut decoder = Decoder::new(bytes).map_err(|e| e.to_string())?;
    decoder.set_limits(DecodeLimits {
        max_width: side,
        max_height: side,
        max_memory: Some(4 << 30),
        ..DecodeLimits::default()
    });
    let (channels, format) = match decoder.header().components.len() {
        1 => (1, PixelFormat::Grayscale),
        _ => (3, PixelFormat::Rgb),
    };
    decoder.set_output_format(format);
    let decoded = decoder.decode_image().map_err(|e| e.to_string())?;
    if decoded.data.len() != decoded.width * decoded.height * channels {
        return Err(format!(
            "{} bytes for {} x {} pixels",
            decoded.data.len(),
            decoded.width,
            decoded.height
        ));
    }
    Ok(Image {
        height: decoded.height,
        width: decoded.width,
        channels,
        pixels: decoded.data,
    })
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let io = |source| Error::Io {
        path: folder.to_owned(),
        action: "read",
        source,
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        paths.push(entry.map_err(io)?.path());
    }
    paths.sort();
    Ok(paths)
}

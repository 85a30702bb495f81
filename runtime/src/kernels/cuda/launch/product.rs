//! Products of a weight with columns: linear layers and convolutions.

use super::{Builder, Launch, Region};
use crate::kernels::cuda::error::Result;
use crate::kernels::cuda::pack::{CHUNK, Chunks, Form, Half, Rows, Tiles, TwoFour};

/// A weight on the device: what its kernels are told of it.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Weight {
    /// [`Chunks`].
    Bitmask {
        half: Half,
        form: Form,
        rows: usize,
        cols: usize,
        masks: Region,
        starts: Region,
        values: Region,
        /// Elements of `values`, an even number.
        stored: usize,
    },
    /// [`Rows`].
    Dense {
        half: Half,
        rows: usize,
        cols: usize,
        stride: usize,
        values: Region,
    },
    /// [`Tiles`].
    Tiles {
        half: Half,
        rows: usize,
        cols: usize,
        values: Region,
    },
    /// [`TwoFour`].
    TwoFour {
        half: Half,
        rows: usize,
        cols: usize,
        values: Region,
        places: Region,
    },
}

/// What a product of a weight and columns reads and writes beside the weight.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// f32 `[columns, rows]`.
    pub y: Region,
    /// `[columns, cols]`: f32 of vector kernels; of matrix kernels 16-bit elements in rows of [`stride`] elements.
    pub x: Region,
    /// What is done to a sum.
    pub epilogue: Epilogue,
    /// Columns of the product.
    pub columns: usize,
}

/// Who multiplies on tensor cores: kernels of matrices come for both, those of vectors for neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// A warp: `mma`, compute capability 8.0 and later.
    Warp,
    /// Four warps: `wgmma`, compute capability 9.0.
    Group,
}

/// What is done to a sum before it is stored: the bias of its row and a residual are added, then it is brought within the
/// limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epilogue {
    /// f32 `[rows]`.
    pub bias: Option<Region>,
    /// f32 where the sum goes; it may be `y`.
    pub residual: Option<Region>,
    /// The least and the greatest value.
    pub limits: (f32, f32),
}

impl Epilogue {
    /// Nothing is done.
    pub const NONE: Epilogue = Epilogue {
        bias: None,
        residual: None,
        limits: (f32::NEG_INFINITY, f32::INFINITY),
    };
}

/// The windows of a convolution, whose columns are output pixels.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Windows {
    /// f32 `[images, channels, height, width]`, from the first channel of the group on.
    pub x: Region,
    /// For each column of the weight a pair of i32: how far its element is from the window's first in `x`, and its row << 16 |
    /// column from there.
    pub taps: Region,
    pub images: usize,
    /// Channels of x, and of them those of the group.
    pub channels: [usize; 2],
    pub input: [usize; 2],
    pub output: [usize; 2],
    pub strides: [usize; 2],
    /// Top and left.
    pub pads: [usize; 2],
    /// Channels of y, of which the weight's rows are some.
    pub outputs: usize,
}

/// Columns of a block of the widest vector kernel.
pub const VECTOR_COLUMNS: usize = 8;

/// Elements from one row of 16-bit activations to the next.
pub const fn stride(cols: usize) -> usize {
    cols.next_multiple_of(64)
}

impl Chunks {
    /// The weight, where its three parts were uploaded to.
    pub fn at(&self, masks: Region, starts: Region, values: Region) -> Weight {
        Weight::Bitmask {
            half: self.half,
            form: self.form,
            rows: self.rows,
            cols: self.cols,
            masks,
            starts,
            values,
            stored: self.values.len(),
        }
    }
}

impl Rows {
    /// The weight, where it was uploaded to.
    pub fn at(&self, values: Region) -> Weight {
        Weight::Dense {
            half: self.half,
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
            values,
        }
    }
}

impl Tiles {
    /// The weight, where it was uploaded to.
    pub fn at(&self, values: Region) -> Weight {
        Weight::Tiles {
            half: self.half,
            rows: self.rows,
            cols: self.cols,
            values,
        }
    }
}

impl TwoFour {
    /// The weight, where its two parts were uploaded to.
    pub fn at(&self, values: Region, places: Region) -> Weight {
        Weight::TwoFour {
            half: self.half,
            rows: self.rows,
            cols: self.cols,
            values,
            places,
        }
    }
}

impl Half {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Half::F16 => "f16",
            Half::Bf16 => "bf16",
        }
    }
}

impl Weight {
    /// Rows and columns.
    pub const fn shape(&self) -> (usize, usize) {
        match *self {
            Weight::Bitmask { rows, cols, .. }
            | Weight::Dense { rows, cols, .. }
            | Weight::Tiles { rows, cols, .. }
            | Weight::TwoFour { rows, cols, .. } => (rows, cols),
        }
    }

    /// What its values are.
    pub const fn half(&self) -> Half {
        match *self {
            Weight::Bitmask { half, .. }
            | Weight::Dense { half, .. }
            | Weight::Tiles { half, .. }
            | Weight::TwoFour { half, .. } => half,
        }
    }

    /// Its kernels are those of tensor cores, which read rounded columns.
    pub const fn is_matrix(&self) -> bool {
        !matches!(
            self,
            Weight::Dense { .. }
                | Weight::Bitmask {
                    form: Form::Vector,
                    ..
                }
        )
    }

    const fn name(&self) -> &'static str {
        match self {
            Weight::Bitmask { .. } => "bitmask",
            Weight::Dense { .. } | Weight::Tiles { .. } => "dense",
            Weight::TwoFour { .. } => "2to4",
        }
    }

    /// A launch of `columns` columns of an operation, without its arguments.
    fn launch(&self, cores: Cores, operation: &str, columns: usize) -> Result<Builder> {
        let (rows, n) = (self.shape().0, columns);
        let (half, name) = (self.half().name(), self.name());
        let conv = operation == "conv";
        if !self.is_matrix() {
            let width = match conv {
                true => VECTOR_COLUMNS,
                false => n.next_power_of_two().min(VECTOR_COLUMNS),
            };
            let kernel = format!("{half}_{operation}_{name}_{width}");
            return Builder::new(kernel, [rows.div_ceil(16), n.div_ceil(width), 1], 512);
        }
        let wide = n.next_power_of_two();
        let (cores, width, high) = match (cores, conv) {
            (Cores::Warp, true) => ("mma", 64, 64),
            (Cores::Warp, false) if wide >= 64 => ("mma", 64, 64),
            (Cores::Warp, false) => ("mma", wide.max(8), 32),
            (Cores::Group, false) if wide <= 64 => ("wgmma", 64, 64),
            (Cores::Group, _) => ("wgmma", 128, 128),
        };
        let kernel = format!("{half}_{operation}_{name}_{cores}_{width}");
        Builder::new(kernel, [rows.div_ceil(high), n.div_ceil(width), 1], 256)
    }
}

impl Builder {
    fn weight(mut self, weight: &Weight) -> Result<Builder> {
        self.0.weights = match *weight {
            Weight::Bitmask {
                masks,
                starts,
                values,
                ..
            } => vec![masks, starts, values],
            Weight::Dense { values, .. } | Weight::Tiles { values, .. } => vec![values],
            Weight::TwoFour { values, places, .. } => vec![values, places],
        };
        match *weight {
            Weight::Bitmask {
                form,
                rows,
                cols,
                masks,
                starts,
                values,
                stored,
                ..
            } => {
                let chunks = chunks(form, rows, cols);
                self.region("masks", masks, &[chunks, 32], 4)?
                    .region("starts", starts, &[chunks], 4)?
                    .region("values", values, &[stored / 2], 4)
            }
            Weight::Dense {
                rows,
                stride,
                values,
                ..
            } => self.region("values", values, &[rows, stride / 8], 16),
            Weight::Tiles {
                rows, cols, values, ..
            } => {
                let tiles = chunks(Form::Matrix, rows, cols);
                self.region("values", values, &[tiles, CHUNK / 8], 16)
            }
            Weight::TwoFour {
                rows,
                cols,
                values,
                places,
                ..
            } => {
                let tiles = chunks(Form::Matrix, rows, cols);
                self.region("values", values, &[tiles, CHUNK / 16], 16)?
                    .region("places", places, &[tiles, 32], 4)
            }
        }
    }

    fn epilogue(self, e: &Epilogue, rows: usize, elements: usize) -> Result<Builder> {
        let (low, high) = e.limits;
        let b = self.optional("bias", e.bias, &[rows])?;
        let b = b.optional("residual", e.residual, &[elements])?;
        Ok(b.float(low).float(high))
    }
}

/// `y = w x`, then the epilogue.
///
/// # Errors
/// When a region is too small or not aligned.
pub fn linear(weight: &Weight, cores: Cores, p: &Product) -> Result<Launch> {
    let (n, (rows, cols)) = (p.columns, weight.shape());
    let b = weight.launch(cores, "linear", n)?;
    let b = b.floats("y", p.y, &[n, rows])?.weight(weight)?;
    let b = match weight.is_matrix() {
        true => b.region("x", p.x, &[n, stride(cols) / 8], 16)?,
        false => b.floats("x", p.x, &[n, cols])?,
    };
    let b = b.epilogue(&p.epilogue, rows, n * rows)?;
    let b = b.integers([("rows", rows), ("cols", cols)])?;
    let b = match *weight {
        Weight::Dense { stride, .. } => b.integers([("stride", stride)])?,
        _ if weight.is_matrix() => b.integers([("stride", stride(cols))])?,
        _ => b,
    };
    Ok(b.integers([("columns", n)])?.0)
}

/// A convolution, or a group of one: `y` is f32 `[images, outputs, output]` from the group's first channel on.
///
/// # Errors
/// When a region is too small or not aligned, or when a window is larger than its table can say.
pub fn conv(weight: &Weight, cores: Cores, y: Region, w: &Windows, e: &Epilogue) -> Result<Launch> {
    let (rows, cols) = weight.shape();
    let (pixels, plane) = (w.output[0] * w.output[1], w.input[0] * w.input[1]);
    let n = w.images * pixels;
    let b = weight.launch(cores, "conv", n)?;
    if w.images == 0 || rows > w.outputs || w.channels[1] > w.channels[0] {
        return b.fail(format!("{w:?} for {rows} rows"));
    }
    let stored = ((w.images - 1) * w.outputs + rows) * pixels;
    let read = ((w.images - 1) * w.channels[0] + w.channels[1]) * plane;
    let b = b.floats("y", y, &[stored])?.weight(weight)?;
    let b = b.epilogue(e, rows, stored)?;
    let b = b.integers([("rows", rows), ("cols", cols)])?;
    let b = match *weight {
        Weight::Dense { stride, .. } => b.integers([("stride", stride)])?,
        _ => b,
    };
    Ok(b.integers([("columns", n)])?
        .floats("x", w.x, &[read])?
        .region("taps", w.taps, &[cols], 8)?
        .integers([
            ("image", w.channels[0] * plane),
            ("height", w.input[0]),
            ("width", w.input[1]),
            ("pixels", pixels),
            ("across", w.output[1]),
            ("stride down", w.strides[0]),
            ("stride across", w.strides[1]),
            ("top", w.pads[0]),
            ("left", w.pads[1]),
            ("outputs", w.outputs),
        ])?
        .0)
}

/// The epilogue of a product whose kernel has none, in place; `y` is f32 `[columns, rows]`.
///
/// # Errors
/// When a region is too small or not aligned.
pub fn epilogue(y: Region, e: &Epilogue, rows: usize, columns: usize) -> Result<Launch> {
    let count = rows * columns;
    let b = Builder::new("f32_epilogue", [count.div_ceil(256), 1, 1], 256)?;
    let b = b.floats("y", y, &[count])?;
    let b = b.optional("bias", e.bias, &[rows])?;
    let b = b.optional("residual", e.residual, &[count])?;
    let b = b.integers([("rows", rows), ("count", count)])?;
    Ok(b.float(e.limits.0).float(e.limits.1).0)
}

fn chunks(form: Form, rows: usize, cols: usize) -> usize {
    let (across, bands) = form.chunks(rows, cols);
    across * bands
}

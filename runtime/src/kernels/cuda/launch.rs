//! Launches: a kernel, its grid and its arguments, with every size checked against the regions that it reads and
//! writes. Rows are tokens; activations are f32, `[tokens, width]`, unless said otherwise.

use super::error::{Error, Result};
use super::pack::{CHUNK, Chunks, Form, Half, Rows, TwoFour};

/// A part of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its first byte.
    pub address: u64,
    /// Its length.
    pub bytes: usize,
}

/// What a kernel is given at a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// An address; 0 where an optional region is not given.
    Pointer(u64),
    /// A number.
    Integer(i32),
    /// A number.
    Float(f32),
}

/// A kernel with its grid and arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// One of [`KERNELS`](super::KERNELS).
    pub kernel: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// As many as the kernel has parameters.
    pub arguments: Vec<Argument>,
}

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
    /// f32 `[rows]`.
    pub bias: Option<Region>,
    /// f32 `[columns, rows]`, added; it may be `y`.
    pub residual: Option<Region>,
    /// Columns of the product.
    pub columns: usize,
}

/// Most columns of a vector kernel.
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
    const fn name(self) -> &'static str {
        match self {
            Half::F16 => "f16",
            Half::Bf16 => "bf16",
        }
    }
}

/// A launch in the making: arguments in order, each checked.
struct Builder(Launch);

impl Builder {
    fn new(kernel: impl Into<String>, grid: [usize; 3], threads: u32) -> Result<Builder> {
        let kernel = kernel.into();
        let mut blocks = [0; 3];
        // The most that every device takes.
        for ((block, n), most) in blocks
            .iter_mut()
            .zip(grid)
            .zip([0x7fff_ffff, 65_535, 65_535])
        {
            *block = match u32::try_from(n) {
                Ok(n) if (1..=most).contains(&n) => n,
                _ => {
                    let what = format!("a grid of {grid:?} blocks");
                    return Err(Error::Argument { kernel, what });
                }
            };
        }
        Ok(Builder(Launch {
            kernel,
            grid: blocks,
            threads,
            arguments: Vec::new(),
        }))
    }

    fn fail<T>(&self, what: String) -> Result<T> {
        let kernel = self.0.kernel.clone();
        Err(Error::Argument { kernel, what })
    }

    /// A region of so many elements of so many bytes, aligned to as many (to 16 at most).
    fn region(mut self, name: &str, region: Region, counts: &[usize], size: usize) -> Result<Self> {
        let elements = counts.iter().try_fold(1usize, |n, &c| n.checked_mul(c));
        let needed = elements.and_then(|n| n.checked_mul(size));
        if needed.is_none_or(|n| n > region.bytes) {
            let what = format!(
                "{name} has {} bytes, {counts:?} elements of {size} bytes are needed",
                region.bytes
            );
            return self.fail(what);
        }
        if needed != Some(0) && region.address == 0 {
            return self.fail(format!("{name} is nowhere"));
        }
        if !region.address.is_multiple_of(size as u64) {
            return self.fail(format!(
                "{name} is at {:#x}, not a multiple of {size}",
                region.address
            ));
        }
        self.0.arguments.push(Argument::Pointer(region.address));
        Ok(self)
    }

    fn floats(self, name: &str, region: Region, counts: &[usize]) -> Result<Self> {
        self.region(name, region, counts, 4)
    }

    fn optional(mut self, name: &str, region: Option<Region>, counts: &[usize]) -> Result<Self> {
        match region {
            Some(region) => self.floats(name, region, counts),
            None => {
                self.0.arguments.push(Argument::Pointer(0));
                Ok(self)
            }
        }
    }

    fn integers<const N: usize>(mut self, numbers: [(&str, usize); N]) -> Result<Self> {
        for (name, n) in numbers {
            let Ok(n) = i32::try_from(n) else {
                return self.fail(format!("{name} is {n}, at most 2^31 - 1 is counted"));
            };
            self.0.arguments.push(Argument::Integer(n));
        }
        Ok(self)
    }

    fn float(mut self, f: f32) -> Self {
        self.0.arguments.push(Argument::Float(f));
        self
    }

    fn product(self, p: &Product, rows: usize) -> Result<Self> {
        self.optional("bias", p.bias, &[rows])?
            .optional("residual", p.residual, &[p.columns, rows])
    }
}

/// `y = w x (+ bias) (+ residual)`. Weights for vectors take up to 8 columns, those for matrices any number.
///
/// # Errors
/// When a region is too small or not aligned, or when the weight's form does not take so many columns.
pub fn linear(weight: &Weight, p: &Product) -> Result<Launch> {
    let n = p.columns;
    match *weight {
        Weight::Bitmask {
            half,
            form: Form::Vector,
            rows,
            cols,
            masks,
            starts,
            values,
            stored,
        } => {
            let chunks = chunks(Form::Vector, rows, cols);
            vector(half, "bitmask", rows, n)?
                .floats("y", p.y, &[n, rows])?
                .region("masks", masks, &[chunks, 32], 4)?
                .region("starts", starts, &[chunks], 4)?
                .region("values", values, &[stored / 2], 4)?
                .floats("x", p.x, &[n, cols])?
                .product(p, rows)?
                .integers([("rows", rows), ("cols", cols), ("columns", n)])
        }
        Weight::Dense {
            half,
            rows,
            cols,
            stride,
            values,
        } => vector(half, "dense", rows, n)?
            .floats("y", p.y, &[n, rows])?
            .region("values", values, &[rows, stride / 8], 16)?
            .floats("x", p.x, &[n, cols])?
            .product(p, rows)?
            .integers([
                ("rows", rows),
                ("cols", cols),
                ("stride", stride),
                ("columns", n),
            ]),
        Weight::Bitmask {
            half,
            form: Form::Matrix,
            rows,
            cols,
            masks,
            starts,
            values,
            stored,
        } => {
            let chunks = chunks(Form::Matrix, rows, cols);
            matrix(half, "bitmask", rows, n)?
                .floats("y", p.y, &[n, rows])?
                .region("masks", masks, &[chunks, 32], 4)?
                .region("starts", starts, &[chunks], 4)?
                .region("values", values, &[stored / 2], 4)?
                .region("x", p.x, &[n, stride(cols) / 8], 16)?
                .product(p, rows)?
                .integers([
                    ("rows", rows),
                    ("cols", cols),
                    ("stride", stride(cols)),
                    ("columns", n),
                ])
        }
        Weight::TwoFour {
            half,
            rows,
            cols,
            values,
            places,
        } => {
            let tiles = chunks(Form::Matrix, rows, cols);
            matrix(half, "2to4", rows, n)?
                .floats("y", p.y, &[n, rows])?
                .region("values", values, &[tiles, CHUNK / 16], 16)?
                .region("places", places, &[tiles, 32], 4)?
                .region("x", p.x, &[n, stride(cols) / 8], 16)?
                .product(p, rows)?
                .integers([
                    ("rows", rows),
                    ("cols", cols),
                    ("stride", stride(cols)),
                    ("columns", n),
                ])
        }
    }
    .map(|b| b.0)
}

fn chunks(form: Form, rows: usize, cols: usize) -> usize {
    let (across, bands) = form.chunks(rows, cols);
    across * bands
}

fn vector(half: Half, form: &str, rows: usize, n: usize) -> Result<Builder> {
    let kernel = format!("{}_linear_{form}_{}", half.name(), n.next_power_of_two());
    if !(1..=VECTOR_COLUMNS).contains(&n) {
        let what = format!("{n} columns, 1 to {VECTOR_COLUMNS} are taken");
        return Err(Error::Argument { kernel, what });
    }
    Builder::new(kernel, [rows.div_ceil(16), 1, 1], 512)
}

/// Columns that a block has, as few as hold them all, and the bands of 16 rows.
fn matrix(half: Half, form: &str, rows: usize, n: usize) -> Result<Builder> {
    let width = n.next_power_of_two().clamp(8, 64);
    let bands = if width == 64 { 4 } else { 2 };
    let kernel = format!("{}_linear_{form}_mma_{width}", half.name());
    Builder::new(
        kernel,
        [rows.div_ceil(16 * bands), n.div_ceil(width), 1],
        256,
    )
}

/// f32 `[tokens, cols]` to 16 bits in rows of [`stride`] elements, as matrix kernels read them.
///
/// # Errors
/// When a region is too small or not aligned.
pub fn round(half: Half, y: Region, x: Region, tokens: usize, cols: usize) -> Result<Launch> {
    Ok(
        Builder::new(format!("{}_round", half.name()), [tokens, 1, 1], 256)?
            .region("y", y, &[tokens, stride(cols)], 2)?
            .floats("x", x, &[tokens, cols])?
            .integers([("cols", cols), ("stride", stride(cols))])?
            .0,
    )
}

/// Rows of a dense table to f32 `[tokens, cols]`; `ids` are u32. An id outside of the table gives zeros.
///
/// # Errors
/// When a region is too small or not aligned, or when the table is not dense.
pub fn embed(table: &Weight, y: Region, ids: Region, tokens: usize) -> Result<Launch> {
    let &Weight::Dense {
        half,
        rows,
        cols,
        stride,
        values,
    } = table
    else {
        return Err(Error::Weight("a sparse table, dense is needed".into()));
    };
    Ok(
        Builder::new(format!("{}_embed", half.name()), [tokens, 1, 1], 256)?
            .floats("y", y, &[tokens, cols])?
            .region("table", values, &[rows, stride], 2)?
            .region("ids", ids, &[tokens], 4)?
            .integers([("rows", rows), ("width", cols), ("stride", stride)])?
            .0,
    )
}

/// `x / sqrt(mean(x^2) + epsilon) * weight` of each token.
///
/// # Errors
/// When a region is too small or not aligned.
pub fn rms_norm(
    y: Region,
    x: Region,
    weight: Region,
    (tokens, width): (usize, usize),
    epsilon: f32,
) -> Result<Launch> {
    Ok(Builder::new("f32_rms_norm", [tokens, 1, 1], 256)?
        .floats("y", y, &[tokens, width])?
        .floats("x", x, &[tokens, width])?
        .floats("weight", weight, &[width])?
        .integers([("width", width)])?
        .float(epsilon)
        .0)
}

/// Heads of a query, of keys or of values.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Heads {
    pub tokens: usize,
    pub heads: usize,
    /// Elements of a head.
    pub width: usize,
}

impl Heads {
    fn elements(&self) -> [usize; 3] {
        [self.tokens, self.heads, self.width]
    }

    fn blocks(&self) -> [usize; 3] {
        let all = self
            .elements()
            .iter()
            .fold(1usize, |n, c| n.saturating_mul(*c));
        [all.div_ceil(256), 1, 1]
    }
}

/// A rotation: tables of cosines and sines, f32 `[positions, pairs]`, and the u32 that says how many tokens came
/// before.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Rotation {
    pub cosines: Region,
    pub sines: Region,
    pub past: Region,
    pub positions: usize,
    pub pairs: usize,
    /// Pairs are neighbours and not halves.
    pub interleaved: bool,
}

/// Rotates the heads of every token by its position, which must be within the tables.
///
/// # Errors
/// When a region is too small or not aligned, when `y` is `x`, or when a head has fewer elements than the pairs.
pub fn rotary(y: Region, x: Region, heads: &Heads, r: &Rotation) -> Result<Launch> {
    let b = Builder::new("f32_rotary", heads.blocks(), 256)?;
    if y.address == x.address {
        return b.fail("y is x".into());
    }
    if r.pairs == 0 || 2 * r.pairs > heads.width {
        return b.fail(format!("{} pairs in heads of {}", r.pairs, heads.width));
    }
    Ok(b.floats("y", y, &heads.elements())?
        .floats("x", x, &heads.elements())?
        .floats("cosines", r.cosines, &[r.positions, r.pairs])?
        .floats("sines", r.sines, &[r.positions, r.pairs])?
        .region("past", r.past, &[1], 4)?
        .integers([
            ("tokens", heads.tokens),
            ("heads", heads.heads),
            ("width", heads.width),
            ("pairs", r.pairs),
            ("interleaved", r.interleaved.into()),
        ])?
        .0)
}

/// `gate * sigmoid(gate) * up`.
///
/// # Errors
/// When a region is too small or not aligned.
pub fn swiglu(y: Region, gate: Region, up: Region, count: usize) -> Result<Launch> {
    Ok(
        Builder::new("f32_swiglu", [count.div_ceil(256), 1, 1], 256)?
            .floats("y", y, &[count])?
            .floats("gate", gate, &[count])?
            .floats("up", up, &[count])?
            .integers([("count", count)])?
            .0,
    )
}

/// The keys and the values of a layer: `[kv_heads, capacity, width]` each.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Cache {
    pub keys: Region,
    pub values: Region,
    /// The u32 that says how many tokens are in it.
    pub past: Region,
    pub kv_heads: usize,
    pub capacity: usize,
    /// Elements are f16, and f32 otherwise.
    pub half: bool,
}

impl Cache {
    fn kernel(&self, operation: &str) -> String {
        format!("{}_{operation}", if self.half { "f16" } else { "f32" })
    }

    fn size(&self) -> usize {
        if self.half { 2 } else { 4 }
    }
}

/// Puts keys and values, f32 `[tokens, kv_heads, width]` each, behind those of the cache; those behind its capacity
/// are left out.
///
/// # Errors
/// When a region is too small or not aligned.
pub fn keep(cache: &Cache, k: Region, v: Region, tokens: usize, width: usize) -> Result<Launch> {
    let heads = Heads {
        tokens,
        heads: cache.kv_heads,
        width,
    };
    let all = [cache.kv_heads, cache.capacity, width];
    Ok(Builder::new(cache.kernel("keep"), heads.blocks(), 256)?
        .region("keys", cache.keys, &all, cache.size())?
        .region("values", cache.values, &all, cache.size())?
        .floats("k", k, &heads.elements())?
        .floats("v", v, &heads.elements())?
        .region("past", cache.past, &[1], 4)?
        .integers([
            ("tokens", tokens),
            ("kv_heads", cache.kv_heads),
            ("width", width),
            ("capacity", cache.capacity),
        ])?
        .0)
}

/// Causal attention of queries, f32 `[tokens, heads, width]`, to what the cache holds and the tokens themselves, which
/// [`keep`] put there; both launches. The context is cut in `parts`, computed side by side in `room`, f32
/// `[tokens, heads, parts, width + 2]`.
///
/// # Errors
/// When a region is too small or not aligned, when heads do not share keys evenly, or when a head's width is no
/// multiple of 8 up to 256.
pub fn attention(
    cache: &Cache,
    y: Region,
    q: Region,
    room: Region,
    heads: &Heads,
    parts: usize,
    scale: f32,
) -> Result<[Launch; 2]> {
    let Heads {
        tokens,
        heads: count,
        width,
    } = *heads;
    let b = Builder::new(cache.kernel("attention"), [count, tokens, parts], 128)?;
    if !width.is_multiple_of(8) || !(8..=256).contains(&width) {
        return b.fail(format!(
            "heads of {width} elements, a multiple of 8 up to 256 is taken"
        ));
    }
    if cache.kv_heads == 0 || !count.is_multiple_of(cache.kv_heads) {
        return b.fail(format!("{count} heads share {} of keys", cache.kv_heads));
    }
    if !cache.keys.address.is_multiple_of(16) {
        return b.fail(format!("keys are at {:#x}", cache.keys.address));
    }
    let all = [cache.kv_heads, cache.capacity, width];
    let partial = [tokens, count, parts, width + 2];
    let first = b
        .floats("room", room, &partial)?
        .floats("q", q, &heads.elements())?
        .region("keys", cache.keys, &all, cache.size())?
        .region("values", cache.values, &all, cache.size())?
        .region("past", cache.past, &[1], 4)?
        .integers([
            ("kv_heads", cache.kv_heads),
            ("width", width),
            ("capacity", cache.capacity),
        ])?
        .float(scale);
    let second = Builder::new("f32_attention_sum", [tokens * count, 1, 1], 128)?
        .floats("y", y, &heads.elements())?
        .floats("room", room, &partial)?
        .integers([("width", width), ("parts", parts)])?;
    Ok([first.0, second.0])
}

/// The first of the highest logits, f32 `[tokens, count]`, of each token: u32 `[tokens]`.
///
/// # Errors
/// When a region is too small or not aligned.
pub fn argmax(ids: Region, logits: Region, tokens: usize, count: usize) -> Result<Launch> {
    Ok(Builder::new("f32_argmax", [tokens, 1, 1], 1024)?
        .region("ids", ids, &[tokens], 4)?
        .floats("logits", logits, &[tokens, count])?
        .integers([("count", count)])?
        .0)
}

/// How a token is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Divides the logits; above 0.
    pub temperature: f32,
    /// Only so many of the most likely tokens; 0 is all.
    pub top_k: usize,
    /// Only the fewest of them that have so much of the mass; 1 is all.
    pub top_p: f32,
}

/// Draws a token for each row of logits by a number in `[0, 1)`, f32 `[tokens]`.
///
/// # Errors
/// When a region is too small or not aligned, or when a number of `draw` is out of its range.
pub fn sample(
    ids: Region,
    logits: Region,
    draws: Region,
    (tokens, count): (usize, usize),
    draw: &Draw,
) -> Result<Launch> {
    let b = Builder::new("f32_sample", [tokens, 1, 1], 1024)?;
    let warm = draw.temperature.is_finite() && draw.temperature > 0.0;
    let some = draw.top_p > 0.0 && draw.top_p <= 1.0;
    if !(warm && some && count > 0) {
        return b.fail(format!("{draw:?} of {count} logits"));
    }
    Ok(b.region("ids", ids, &[tokens], 4)?
        .floats("logits", logits, &[tokens, count])?
        .floats("draws", draws, &[tokens])?
        .integers([("count", count)])?
        .float(draw.temperature)
        .integers([("top_k", draw.top_k)])?
        .float(draw.top_p)
        .0)
}

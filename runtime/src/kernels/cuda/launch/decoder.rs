//! Launches of what is between the products of a decoder.

use super::{Builder, Launch, Region, Weight, stride};
use crate::kernels::cuda::error::{Error, Result};
use crate::kernels::cuda::pack::Half;

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

/// Rows of a dense table to f32 `[tokens, cols]`; `ids` are i32. A negative id counts from the end, one outside of the table
/// gives zeros.
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

/// [`embed`] from a table of f32, `[rows, cols]`.
///
/// # Errors
/// When a region is too small or not aligned.
pub fn embed_f32(
    y: Region,
    table: Region,
    ids: Region,
    tokens: usize,
    (rows, cols): (usize, usize),
) -> Result<Launch> {
    Ok(Builder::new("f32_embed", [tokens, 1, 1], 256)?
        .floats("y", y, &[tokens, cols])?
        .floats("table", table, &[rows, cols])?
        .region("ids", ids, &[tokens], 4)?
        .integers([("rows", rows), ("width", cols), ("stride", cols)])?
        .0)
}

/// `x` and the rows of a table, f32 `[positions, width]`, from the u32 `past` on; tokens behind it get the last.
///
/// # Errors
/// When a region is too small or not aligned.
pub fn positions(
    y: Region,
    x: Region,
    table: Region,
    past: Region,
    (tokens, width): (usize, usize),
    positions: usize,
) -> Result<Launch> {
    Ok(Builder::new("f32_positions", [tokens, 1, 1], 256)?
        .floats("y", y, &[tokens, width])?
        .floats("x", x, &[tokens, width])?
        .floats("table", table, &[positions, width])?
        .region("past", past, &[1], 4)?
        .integers([("width", width), ("positions", positions)])?
        .0)
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

/// Rotates the heads of every token by its position; those behind the tables get the last.
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
            ("positions", r.positions),
            ("pairs", r.pairs),
            ("interleaved", r.interleaved.into()),
        ])?
        .0)
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

/// What tokens see, and how.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Each token sees up to itself, and all of the cache otherwise.
    pub causal: bool,
    /// i32 `[capacity]`: positions of 0 are not seen.
    pub mask: Option<Region>,
    /// Factor of the products.
    pub scale: f32,
}

/// Attention of queries, f32 `[tokens, heads, width]`, to what the cache holds and the tokens themselves, which
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
    seen: &Seen,
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
        .optional("mask", seen.mask, &[cache.capacity])?
        .integers([
            ("kv_heads", cache.kv_heads),
            ("width", width),
            ("capacity", cache.capacity),
            ("causal", seen.causal.into()),
        ])?
        .float(seen.scale);
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

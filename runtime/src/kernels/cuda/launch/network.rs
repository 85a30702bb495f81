//! Launches of element-wise operators, windows, sums along axes and products of activations. What a kernel reads of a table is
//! said here; the numbers of functions are those of `elementwise.cu`.

use super::{Builder, Launch, Region};
use crate::kernels::cuda::error::Result;

/// A function of one element and its two constants.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Unary {
    Clamp(f32, f32),
    LeakyRelu(f32),
    HardSigmoid(f32, f32),
    HardSwish,
    Erf,
    Affine(f32, f32),
    Swish(f32),
    Gelu,
    GeluTanh,
    Sigmoid,
    Tanh,
}

impl Unary {
    const fn number(self) -> (usize, f32, f32) {
        match self {
            Unary::Clamp(a, b) => (0, a, b),
            Unary::LeakyRelu(a) => (1, a, 0.0),
            Unary::HardSigmoid(a, b) => (2, a, b),
            Unary::HardSwish => (3, 0.0, 0.0),
            Unary::Erf => (4, 0.0, 0.0),
            Unary::Affine(a, b) => (5, a, b),
            Unary::Swish(a) => (6, a, 0.0),
            Unary::Gelu => (7, 0.0, 0.0),
            Unary::GeluTanh => (8, 0.0, 0.0),
            Unary::Sigmoid => (9, 0.0, 0.0),
            Unary::Tanh => (10, 0.0, 0.0),
        }
    }
}

/// A function of two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// `a` where positive, else `a * b`.
    PRelu,
}

/// A launch with a thread for each of `count` elements.
fn each(kernel: &str, count: usize) -> Result<Builder> {
    Builder::new(kernel, [count.div_ceil(256), 1, 1], 256)
}

/// `y = f(x)`, f32.
///
/// # Errors
/// When a region is too small or not aligned; so of every launch here.
pub fn unary(y: Region, x: Region, function: Unary, count: usize) -> Result<Launch> {
    let (number, a, b) = function.number();
    let built = each("f32_unary", count)?;
    let built = built.floats("y", y, &[count])?.floats("x", x, &[count])?;
    let built = built.integers([("count", count), ("function", number)])?;
    Ok(built.float(a).float(b).0)
}

/// `y = f(x) * gate`.
///
/// # Errors
/// As [`unary`].
pub fn gated(y: Region, x: Region, gate: Region, function: Unary, count: usize) -> Result<Launch> {
    let (number, a, _) = function.number();
    let built = each("f32_gated", count)?.floats("y", y, &[count])?;
    let built = built
        .floats("x", x, &[count])?
        .floats("gate", gate, &[count])?;
    let built = built.integers([("count", count), ("function", number)])?;
    Ok(built.float(a).0)
}

/// `y = a . b` within limits. Where `table` is given, i32 `[3, rank]`, it has the sizes of y and the strides of a and b.
///
/// # Errors
/// As [`unary`].
pub fn binary(
    y: Region,
    [a, b]: [Region; 2],
    lengths: [usize; 2],
    table: Option<(Region, usize)>,
    function: Binary,
    count: usize,
    limits: (f32, f32),
) -> Result<Launch> {
    let rank = table.map_or(0, |t| t.1);
    let built = each("f32_binary", count)?.floats("y", y, &[count])?;
    let built = built
        .floats("a", a, &[lengths[0]])?
        .floats("b", b, &[lengths[1]])?;
    let built = built.optional("table", table.map(|t| t.0), &[3, rank])?;
    let built = built.integers([
        ("rank", rank),
        ("count", count),
        ("function", function as usize),
    ])?;
    Ok(built.float(limits.0).float(limits.1).0)
}

/// `x * scale + shift` by channel of `[batch, channels, plane]`.
///
/// # Errors
/// As [`unary`].
pub fn scale_shift(
    y: Region,
    x: Region,
    [scale, shift]: [Region; 2],
    [batch, channels, plane]: [usize; 3],
) -> Result<Launch> {
    let count = batch * channels * plane;
    let built = each("f32_scale_shift", count)?.floats("y", y, &[count])?;
    let built = built
        .floats("x", x, &[count])?
        .floats("scale", scale, &[channels])?;
    let built = built.floats("shift", shift, &[channels])?;
    let sizes = [("channels", channels), ("plane", plane), ("count", count)];
    Ok(built.integers(sizes)?.0)
}

/// A copy of `count` elements by a table, i32: `rank` sizes, strides of y, and for each axis where its elements are in x, -1 to
/// fill; `words` all told.
///
/// # Errors
/// As [`unary`].
pub fn copy(
    y: Region,
    x: Region,
    (table, words): (Region, usize),
    rank: usize,
    count: usize,
    fill: f32,
) -> Result<Launch> {
    let built = each("f32_copy", count)?
        .floats("y", y, &[1])?
        .floats("x", x, &[0])?;
    let built = built.region("table", table, &[words], 4)?;
    Ok(built
        .integers([("rank", rank), ("count", count)])?
        .float(fill)
        .0)
}

/// Planes in another size. `taps` are pairs of i32, first those of rows, then of columns; `weights` f32, in the same order.
///
/// # Errors
/// As [`unary`].
pub fn interpolate(
    y: Region,
    x: Region,
    [rows, columns, weights]: [Region; 3],
    planes: usize,
    input: [usize; 2],
    output: [usize; 2],
) -> Result<Launch> {
    let count = planes * output[0] * output[1];
    let built = each("f32_interpolate", count)?.floats("y", y, &[count])?;
    let built = built.floats("x", x, &[planes, input[0], input[1]])?;
    let built = built.region("rows", rows, &[output[0]], 8)?;
    let built = built.region("columns", columns, &[output[1]], 8)?;
    let built = built.floats("weights", weights, &[output[0] + output[1]])?;
    let sizes = [
        ("height", input[0]),
        ("width", input[1]),
        ("down", output[0]),
        ("across", output[1]),
        ("count", count),
    ];
    Ok(built.integers(sizes)?.0)
}

/// A step of FastGRNN of `[batch, width]`; `constants` are gate bias, update bias, zeta and nu.
///
/// # Errors
/// As [`unary`].
pub fn fast_grnn(
    y: Region,
    [u, h]: [Region; 2],
    [gate, update, zeta, nu]: [Region; 4],
    (batch, width): (usize, usize),
) -> Result<Launch> {
    let count = batch * width;
    let built = each("f32_fast_grnn", count)?.floats("y", y, &[count])?;
    let built = built.floats("u", u, &[count])?.floats("h", h, &[count])?;
    let built = built
        .floats("gate", gate, &[width])?
        .floats("update", update, &[width])?;
    let built = built.floats("zeta", zeta, &[1])?.floats("nu", nu, &[1])?;
    Ok(built.integers([("width", width), ("count", count)])?.0)
}

/// Softmax over the middle of `[outer, axis, inner]`.
///
/// # Errors
/// As [`unary`].
pub fn softmax(y: Region, x: Region, [outer, axis, inner]: [usize; 3]) -> Result<Launch> {
    along("f32_softmax", y, x, [outer, axis, inner])
}

/// `x / |x|` over the middle of `[outer, axis, inner]`.
///
/// # Errors
/// As [`unary`].
pub fn length_norm(y: Region, x: Region, [outer, axis, inner]: [usize; 3]) -> Result<Launch> {
    along("f32_length_norm", y, x, [outer, axis, inner])
}

fn along(kernel: &str, y: Region, x: Region, [outer, axis, inner]: [usize; 3]) -> Result<Launch> {
    let built = Builder::new(kernel, [outer * inner, 1, 1], 256)?;
    let built = built.floats("y", y, &[outer, axis, inner])?;
    let built = built.floats("x", x, &[outer, axis, inner])?;
    Ok(built.integers([("axis", axis), ("inner", inner)])?.0)
}

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias` of rows.
///
/// # Errors
/// As [`unary`].
pub fn layer_norm(
    y: Region,
    x: Region,
    scale: Region,
    bias: Option<Region>,
    (rows, width): (usize, usize),
    epsilon: f32,
) -> Result<Launch> {
    let built = Builder::new("f32_layer_norm", [rows, 1, 1], 256)?;
    let built = built
        .floats("y", y, &[rows, width])?
        .floats("x", x, &[rows, width])?;
    let built = built
        .floats("scale", scale, &[width])?
        .optional("bias", bias, &[width])?;
    Ok(built.integers([("width", width)])?.float(epsilon).0)
}

/// The same of planes of `[batch, channels, plane]`, scaled by channel.
///
/// # Errors
/// As [`unary`].
pub fn instance_norm(
    y: Region,
    x: Region,
    [scale, bias]: [Region; 2],
    [batch, channels, plane]: [usize; 3],
    epsilon: f32,
) -> Result<Launch> {
    let built = Builder::new("f32_instance_norm", [batch * channels, 1, 1], 256)?;
    let built = built.floats("y", y, &[batch, channels, plane])?;
    let built = built.floats("x", x, &[batch, channels, plane])?;
    let built = built
        .floats("scale", scale, &[channels])?
        .floats("bias", bias, &[channels])?;
    let built = built.integers([("channels", channels), ("plane", plane)])?;
    Ok(built.float(epsilon).0)
}

/// Means of `span` elements each. `table` is i32: size and stride of each of the `kept` axes, then of the `reduced` ones.
///
/// # Errors
/// As [`unary`].
pub fn mean(
    y: Region,
    x: Region,
    table: Region,
    [kept, reduced]: [usize; 2],
    (count, span): (usize, usize),
) -> Result<Launch> {
    let built = Builder::new("f32_mean", [count.div_ceil(8), 1, 1], 256)?;
    let built = built
        .floats("y", y, &[count])?
        .floats("x", x, &[count, span])?;
    let built = built.region("table", table, &[kept + reduced, 2], 4)?;
    let sizes = [
        ("kept", kept),
        ("reduced", reduced),
        ("count", count),
        ("span", span),
    ];
    Ok(built.integers(sizes)?.0)
}

/// Means over the tokens of `[batch, tokens, width]` whose mask, i32, is not 0.
///
/// # Errors
/// As [`unary`].
pub fn masked_mean(
    y: Region,
    x: Region,
    mask: Region,
    [batch, tokens, width]: [usize; 3],
) -> Result<Launch> {
    let count = batch * width;
    let built = each("f32_masked_mean", count)?.floats("y", y, &[count])?;
    let built = built.floats("x", x, &[batch, tokens, width])?;
    let built = built.region("mask", mask, &[batch, tokens], 4)?;
    let sizes = [("tokens", tokens), ("width", width), ("count", count)];
    Ok(built.integers(sizes)?.0)
}

/// `[batch, m, n]` products of activations. `offsets` are pairs of i32: where a and b begin; `strides` of rows and columns of
/// a, then of b.
///
/// # Errors
/// As [`unary`].
pub fn matmul(
    y: Region,
    [a, b, offsets]: [Region; 3],
    batch: usize,
    [m, k, n]: [usize; 3],
    strides: [usize; 4],
) -> Result<Launch> {
    let built = Builder::new("f32_matmul", [n.div_ceil(16), m.div_ceil(16), batch], 256)?;
    let built = built.floats("y", y, &[batch, m, n])?;
    let built = built.floats("a", a, &[m, k])?.floats("b", b, &[k, n])?;
    let built = built.region("offsets", offsets, &[batch], 8)?;
    let sizes = [
        ("m", m),
        ("k", k),
        ("n", n),
        ("row of a", strides[0]),
        ("column of a", strides[1]),
        ("row of b", strides[2]),
        ("column of b", strides[3]),
    ];
    Ok(built.integers(sizes)?.0)
}

/// Windows over planes.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Planes {
    /// Of y.
    pub planes: usize,
    pub input: [usize; 2],
    pub output: [usize; 2],
    pub kernel: [usize; 2],
    pub strides: [usize; 2],
    pub dilations: [usize; 2],
    /// Top and left.
    pub pads: [usize; 2],
}

impl Planes {
    fn count(&self) -> usize {
        self.planes * self.output[0] * self.output[1]
    }

    fn build(&self, kernel: &str, y: Region, x: Region, planes_of_x: usize) -> Result<Builder> {
        let built = each(kernel, self.count())?.floats("y", y, &[self.count()])?;
        built.floats("x", x, &[planes_of_x, self.input[0], self.input[1]])
    }

    fn sizes(&self, built: Builder) -> Result<Builder> {
        built.integers([
            ("planes", self.planes),
            ("height", self.input[0]),
            ("width", self.input[1]),
            ("down", self.output[0]),
            ("across", self.output[1]),
            ("kernel rows", self.kernel[0]),
            ("kernel columns", self.kernel[1]),
            ("stride down", self.strides[0]),
            ("stride across", self.strides[1]),
            ("dilation down", self.dilations[0]),
            ("dilation across", self.dilations[1]),
            ("top", self.pads[0]),
            ("left", self.pads[1]),
        ])
    }
}

/// A depthwise convolution: weights `[channels, kernel]`, `multiplier` channels of y for each of x.
///
/// # Errors
/// As [`unary`].
pub fn depthwise(
    y: Region,
    x: Region,
    (weights, bias): (Region, Option<Region>),
    planes: &Planes,
    (channels, multiplier): (usize, usize),
    limits: (f32, f32),
) -> Result<Launch> {
    let built = planes.build("f32_depthwise", y, x, planes.planes / multiplier.max(1))?;
    if multiplier == 0 || channels == 0 {
        return built.fail(format!("{channels} channels, {multiplier} for each of x"));
    }
    let built = built.floats(
        "weights",
        weights,
        &[channels, planes.kernel[0], planes.kernel[1]],
    )?;
    let built = planes.sizes(built.optional("bias", bias, &[channels])?)?;
    let built = built.integers([("channels", channels), ("multiplier", multiplier)])?;
    Ok(built.float(limits.0).float(limits.1).0)
}

/// The largest element of each window.
///
/// # Errors
/// As [`unary`].
pub fn max_pool(y: Region, x: Region, planes: &Planes) -> Result<Launch> {
    let built = planes.build("f32_max_pool", y, x, planes.planes)?;
    Ok(planes.sizes(built)?.0)
}

/// The sum of each window times a factor of its row and one of its column, f32, those of rows first.
///
/// # Errors
/// As [`unary`].
pub fn average_pool(y: Region, x: Region, factors: Region, planes: &Planes) -> Result<Launch> {
    let built = planes.build("f32_average_pool", y, x, planes.planes)?;
    let built = built.floats("factors", factors, &[planes.output[0] + planes.output[1]])?;
    Ok(planes.sizes(built)?.0)
}

//! Runs FastGRNN networks on microcontrollers: `no_std`, no allocation, one time step at a time.
//!
//! `prune export MODEL --micro -o model.bin` writes the bytes; they are read where they lie, in flash:
//!
//! ```
//! # let bytes = lacuna_micro::doc_model();
//! # let bytes: &[u8] = &bytes;
//! // static BYTES: &[u8] = include_bytes!("model.bin");
//! let model = lacuna_micro::Model::parse(bytes)?;
//! let mut state = [0.0; 2]; // model.hidden()
//! let mut scratch = [0.0; 5]; // model.scratch_len()
//! let mut logits = [0.0; 2]; // model.classes()
//! for x in [[0.1, 0.2, 0.3], [0.0, -0.5, 1.0]] {
//!     model.step(&x, &mut state, &mut scratch, &mut logits)?;
//! }
//! # Ok::<(), lacuna_micro::Error>(())
//! ```
//!
//! # The format
//!
//! Little-endian, without padding. [`MAGIC`]; six u32: inputs, hidden, classes, the rank of W and of U (0 where
//! they are whole), and the number of bytes in all; then f32: sigmoid(zeta), sigmoid(nu), `mean` and `scale` of
//! each input (the network sees `(x - mean) * scale`), the biases of gate, update, and classifier; then the
//! matrices W1, W2 or W; U1, U2 or U; and the classifier's, each row after row: a u32 that is 0 before plain f32
//! values, or 1 before a mask (a bit for each element, the lowest bit first, every row from a whole byte on) and
//! the values of the set bits.
#![no_std]
#![forbid(unsafe_code)]

mod matrix;

use core::fmt;
use matrix::Matrix;

/// What a file begins with: the format and its version.
pub const MAGIC: [u8; 8] = *b"LACUNAg1";

/// What is wrong with the bytes or with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The bytes begin with something else.
    Magic,
    /// The bytes end before what they announce, or go on after it.
    Length {
        /// Bytes that were needed.
        needed: usize,
        /// Bytes that are there.
        given: usize,
    },
    /// A size is 0 or beyond 65,536.
    Size(u32),
    /// A matrix is of no known encoding.
    Encoding(u32),
    /// A number is infinite or none.
    NotFinite,
    /// A buffer of a call has a wrong length.
    Buffer {
        /// Which.
        name: &'static str,
        /// Its length.
        given: usize,
        /// What it must be, or at least be for `scratch`.
        needed: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Magic => write!(f, "no FastGRNN of this format's version"),
            Error::Length { needed, given } => write!(f, "{given} bytes, {needed} are needed"),
            Error::Size(n) => write!(f, "a size of {n}, not 1 to {MOST}"),
            Error::Encoding(n) => write!(f, "a matrix of encoding {n}"),
            Error::NotFinite => write!(f, "a number is not finite"),
            Error::Buffer {
                name,
                given,
                needed,
            } => write!(f, "`{name}` has {given} elements, {needed} are needed"),
        }
    }
}

impl core::error::Error for Error {}

/// The largest size.
const MOST: u32 = 1 << 16;

/// A network over bytes that stay where they are.
#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    inputs: usize,
    hidden: usize,
    classes: usize,
    zeta: f32,
    nu: f32,
    mean: Floats<'a>,
    scale: Floats<'a>,
    gate_bias: Floats<'a>,
    update_bias: Floats<'a>,
    class_bias: Floats<'a>,
    w: Product<'a>,
    u: Product<'a>,
    classifier: Matrix<'a>,
}

/// A matrix, or two factors of low rank.
#[derive(Clone, Copy, Debug)]
struct Product<'a> {
    first: Matrix<'a>,
    second: Option<Matrix<'a>>,
}

impl<'a> Model<'a> {
    /// Checks the bytes, all of them.
    ///
    /// # Errors
    /// When they are no network of this format.
    pub fn parse(bytes: &'a [u8]) -> Result<Model<'a>, Error> {
        let mut reader = Reader { bytes, at: 0 };
        if reader.take(MAGIC.len()).is_ok_and(|m| m != MAGIC) {
            return Err(Error::Magic);
        }
        let mut sizes = [0; 5];
        for (i, size) in sizes.iter_mut().enumerate() {
            let n = reader.u32()?;
            if n > MOST || (n == 0 && i < 3) {
                return Err(Error::Size(n));
            }
            *size = n as usize;
        }
        let [inputs, hidden, classes, rank_w, rank_u] = sizes;
        let needed = reader.u32()? as usize;
        if needed != bytes.len() {
            return Err(Error::Length {
                needed,
                given: bytes.len(),
            });
        }
        let (zeta, nu) = (reader.floats(1)?.get(0), reader.floats(1)?.get(0));
        let (mean, scale) = (reader.floats(inputs)?, reader.floats(inputs)?);
        let (gate_bias, update_bias) = (reader.floats(hidden)?, reader.floats(hidden)?);
        let class_bias = reader.floats(classes)?;
        let mut product = |columns: usize, rank: usize| -> Result<Product<'a>, Error> {
            let rows = if rank == 0 { hidden } else { rank };
            let first = Matrix::read(&mut reader, rows, columns)?;
            let second = match rank {
                0 => None,
                _ => Some(Matrix::read(&mut reader, hidden, rank)?),
            };
            Ok(Product { first, second })
        };
        let (w, u) = (product(inputs, rank_w)?, product(hidden, rank_u)?);
        let classifier = Matrix::read(&mut reader, classes, hidden)?;
        if reader.at != bytes.len() {
            return Err(Error::Length {
                needed: reader.at,
                given: bytes.len(),
            });
        }
        Ok(Model {
            inputs,
            hidden,
            classes,
            zeta,
            nu,
            mean,
            scale,
            gate_bias,
            update_bias,
            class_bias,
            w,
            u,
            classifier,
        })
    }

    /// Elements of a time step.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Elements of the state.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Elements of the result.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Elements that a step needs beside the state: products, and what goes into them.
    pub fn scratch_len(&self) -> usize {
        let rank = |p: &Product<'_>| p.second.map_or(0, |m| m.columns());
        self.hidden + self.inputs.max(rank(&self.u)) + rank(&self.w)
    }

    /// Multiplications of a step with the weights that are left.
    pub fn macs(&self) -> usize {
        let product = |p: &Product<'_>| p.first.stored() + p.second.map_or(0, |m| m.stored());
        product(&self.w) + product(&self.u) + self.classifier.stored()
    }

    /// One time step: `state` becomes the state after `x`, `logits` the classifier's result on it. The first
    /// step of a sequence begins with zeros. What `scratch` holds does not matter.
    ///
    /// # Errors
    /// When a buffer has a wrong length; nothing is written then.
    pub fn step(
        &self,
        x: &[f32],
        state: &mut [f32],
        scratch: &mut [f32],
        logits: &mut [f32],
    ) -> Result<(), Error> {
        let scratch_len = self.scratch_len();
        for (name, given, needed, fits) in [
            ("x", x.len(), self.inputs, x.len() == self.inputs),
            (
                "state",
                state.len(),
                self.hidden,
                state.len() == self.hidden,
            ),
            (
                "scratch",
                scratch.len(),
                scratch_len,
                scratch.len() >= scratch_len,
            ),
            (
                "logits",
                logits.len(),
                self.classes,
                logits.len() == self.classes,
            ),
        ] {
            if !fits {
                return Err(Error::Buffer {
                    name,
                    given,
                    needed,
                });
            }
        }
        let (sum, rest) = scratch.split_at_mut(self.hidden);
        sum.fill(0.0);
        {
            let (input, rest) = rest.split_at_mut(self.inputs);
            for (i, (to, from)) in input.iter_mut().zip(x).enumerate() {
                *to = (from - self.mean.get(i)) * self.scale.get(i);
            }
            self.w.add(input, rest, sum);
        }
        self.u.add(state, rest, sum);
        for (i, (h, u)) in state.iter_mut().zip(sum.iter()).enumerate() {
            let z = 1.0 / (1.0 + libm::expf(-(u + self.gate_bias.get(i))));
            let c = libm::tanhf(u + self.update_bias.get(i));
            *h = z * *h + (self.zeta * (1.0 - z) + self.nu) * c;
        }
        for (i, y) in logits.iter_mut().enumerate() {
            *y = self.class_bias.get(i);
        }
        self.classifier.add(state, logits);
        Ok(())
    }
}

impl Product<'_> {
    /// Adds the product with `x` to `sum`.
    fn add(&self, x: &[f32], scratch: &mut [f32], sum: &mut [f32]) {
        match self.second {
            None => self.first.add(x, sum),
            Some(second) => {
                let inner = &mut scratch[..second.columns()];
                inner.fill(0.0);
                self.first.add(x, inner);
                second.add(inner, sum);
            }
        }
    }
}

/// Finite f32 values at any address.
#[derive(Clone, Copy, Debug)]
struct Floats<'a>(&'a [[u8; 4]]);

impl Floats<'_> {
    fn get(&self, i: usize) -> f32 {
        f32::from_le_bytes(self.0[i])
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let short = Error::Length {
            needed: self.at.saturating_add(len),
            given: self.bytes.len(),
        };
        let part = self.bytes[self.at..].get(..len).ok_or(short)?;
        self.at += len;
        Ok(part)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn floats(&mut self, count: usize) -> Result<Floats<'a>, Error> {
        let bytes = self.take(count.saturating_mul(4))?;
        let values = bytes.as_chunks::<4>().0;
        match values.iter().all(|v| f32::from_le_bytes(*v).is_finite()) {
            true => Ok(Floats(values)),
            false => Err(Error::NotFinite),
        }
    }
}

/// The bytes of a network of 3 inputs, 2 hidden elements and 2 classes, for the example above.
#[doc(hidden)]
pub fn doc_model() -> [u8; 156] {
    let mut bytes = [0; 156];
    bytes[..8].copy_from_slice(&MAGIC);
    for (i, n) in [3u32, 2, 2, 0, 0, 156].into_iter().enumerate() {
        bytes[8 + 4 * i..12 + 4 * i].copy_from_slice(&n.to_le_bytes());
    }
    bytes
}

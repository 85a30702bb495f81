//! Tensors as an app hands them over: borrowed views of a dtype, a shape and a slice.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The element type of a tensor or a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16.
    BF16,
    /// Signed 64-bit integers.
    I64,
    /// Signed 32-bit integers.
    I32,
    /// Signed bytes.
    I8,
    /// Bytes.
    U8,
}

impl DType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::I8 | DType::U8 => 1,
        }
    }

    /// The name that safetensors uses.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::I64 => "I64",
            DType::I32 => "I32",
            DType::I8 => "I8",
            DType::U8 => "U8",
        }
    }

    /// The dtype with this safetensors name.
    pub fn from_name(name: &str) -> Option<DType> {
        use DType::*;
        [F32, F16, BF16, I64, I32, I8, U8]
            .into_iter()
            .find(|d| d.name() == name)
    }

    /// Whether the dtype is one of the floating-point types that weights come in.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A borrowed, contiguous, row-major tensor: what a session reads.
///
/// The number of elements is checked against `shape` when a session receives the view.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    shape: &'a [usize],
    elements: Elements<'a>,
}

/// The elements of a [`TensorView`], row-major.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Integers: token ids, masks.
    I64(&'a [i64]),
}

impl Elements<'_> {
    /// Their number.
    pub const fn len(&self) -> usize {
        match self {
            Elements::F32(e) => e.len(),
            Elements::I64(e) => e.len(),
        }
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> TensorView<'a> {
    /// A view of `data` as f32 with the given shape.
    pub const fn f32(shape: &'a [usize], data: &'a [f32]) -> Self {
        let elements = Elements::F32(data);
        TensorView { shape, elements }
    }

    /// A view of `data` as I64 with the given shape.
    pub const fn i64(shape: &'a [usize], data: &'a [i64]) -> Self {
        let elements = Elements::I64(data);
        TensorView { shape, elements }
    }

    /// The element type.
    pub const fn dtype(&self) -> DType {
        match self.elements {
            Elements::F32(_) => DType::F32,
            Elements::I64(_) => DType::I64,
        }
    }

    /// The shape, outermost dimension first.
    pub const fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The elements, row-major.
    pub const fn elements(&self) -> Elements<'a> {
        self.elements
    }
}

/// A borrowed, contiguous, row-major f32 tensor that a session fills.
#[derive(Debug)]
pub struct TensorViewMut<'a> {
    shape: &'a [usize],
    data: &'a mut [f32],
}

impl<'a> TensorViewMut<'a> {
    /// A mutable view of `data` as f32 with the given shape.
    pub const fn f32(shape: &'a [usize], data: &'a mut [f32]) -> Self {
        TensorViewMut { shape, data }
    }

    /// The same view for a shorter time.
    pub(crate) const fn reborrow(&mut self) -> TensorViewMut<'_> {
        TensorViewMut::f32(self.shape, self.data)
    }

    /// The element type.
    pub const fn dtype(&self) -> DType {
        DType::F32
    }

    /// The shape, outermost dimension first.
    pub const fn shape(&self) -> &[usize] {
        self.shape
    }

    /// The elements, row-major.
    pub fn data_mut(&mut self) -> &mut [f32] {
        self.data
    }
}

/// An owned f32 tensor: what the convenience calls return.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub data: Vec<f32>,
}

impl Tensor {
    /// A tensor of zeros.
    pub fn zeros(shape: &[usize]) -> Tensor {
        Tensor {
            shape: shape.to_vec(),
            data: vec![0.0; shape.iter().product()],
        }
    }

    /// A borrowed view.
    pub fn view(&self) -> TensorView<'_> {
        TensorView::f32(&self.shape, &self.data)
    }
}

//! Views of storages as weights.

use super::globals::{Element, TensorRef};
use lacuna::DType;
use lacuna::model::{Bytes, Weight};

/// Bytes that may still be copied out of a file. Contiguous tensors are not copied; the limit
/// keeps many strided views of one storage from growing a small file into a large model.
pub(super) struct Budget(usize);

impl Budget {
    pub fn for_file(len: usize) -> Budget {
        Budget(len.saturating_mul(2))
    }

    fn spend(&mut self, bytes: usize) -> Result<(), String> {
        self.0 = self
            .0
            .checked_sub(bytes)
            .ok_or("the tensors copy their storages too many times over")?;
        Ok(())
    }
}

/// The tensor as a dense, row-major weight; it shares the storage's bytes where it can.
pub(super) fn weight(
    tensor: &TensorRef<'_>,
    storage: &Bytes,
    budget: &mut Budget,
) -> Result<Weight, String> {
    let (shape, strides) = (&tensor.shape, &tensor.strides);
    let element = tensor.storage.element;
    let count = shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= tensor.storage.elements)
        .ok_or_else(|| {
            format!(
                "shape {shape:?} over a storage of {} elements",
                tensor.storage.elements
            )
        })?;
    let size = element.size();
    if count == 0 {
        return finish(shape, element, Vec::new().into(), budget);
    }
    // The furthest element, which bounds every other.
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(tensor.offset, |at, (&n, &s)| {
            (n - 1).checked_mul(s)?.checked_add(at)
        })
        .filter(|&last| last < storage.len() / size)
        .ok_or_else(|| {
            format!(
                "offset {}, shape {shape:?} and strides {strides:?} leave a storage of {} elements",
                tensor.offset, tensor.storage.elements
            )
        })?;
    if is_contiguous(shape, strides) {
        let part = storage.slice(tensor.offset * size..(last + 1) * size);
        let part = part.ok_or("lies outside its storage")?;
        return finish(shape, element, part, budget);
    }
    budget.spend(count * size)?;
    // An axis of size 1 may have any stride; the others are bounded by the storage.
    let step = |axis: usize| if shape[axis] == 1 { 0 } else { strides[axis] };
    let mut data = Vec::with_capacity(count * size);
    let mut index = vec![0; shape.len()];
    let mut at = tensor.offset;
    for _ in 0..count {
        data.extend_from_slice(&storage[at * size..(at + 1) * size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += step(axis);
            if index[axis] < shape[axis] {
                break;
            }
            at -= step(axis) * shape[axis];
            index[axis] = 0;
        }
    }
    finish(shape, element, data.into(), budget)
}

fn finish(
    shape: &[usize],
    element: Element,
    data: Bytes,
    budget: &mut Budget,
) -> Result<Weight, String> {
    let (dtype, data) = match element {
        Element::Plain(dtype) => (dtype, data),
        Element::Bool => (DType::U8, data),
        Element::F64 => {
            budget.spend(data.len() / 2)?;
            (DType::F32, narrow_f64(&data))
        }
        Element::I16 => return Err("16-bit integers are not supported".into()),
    };
    Weight::dense(shape.to_vec(), dtype, data)
}

/// Whether the elements follow each other in row-major order; axes of size 1 have any stride.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&n, &s)| {
        let fits = n == 1 || s == expected;
        expected *= n;
        fits
    })
}

/// Little-endian f64 rounded to the nearest f32.
pub(crate) fn narrow_f64(data: &[u8]) -> Bytes {
    let values = data.as_chunks::<8>().0.iter();
    let narrow: Vec<u8> = values
        .flat_map(|b| (f64::from_le_bytes(*b) as f32).to_le_bytes())
        .collect();
    narrow.into()
}

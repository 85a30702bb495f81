//! Conversions between candle tensors and ours.

use crate::model::{Bytes, Encoding};
use crate::{DType, Elements, Error, Result, Tensor, TensorView, Weight};
use candle_core::{CpuStorage, Device, Storage};
use half::{bf16, f16};

type Candle = candle_core::Tensor;

/// Hands `read` the elements of a candle tensor as f32, row-major. A contiguous f32 tensor in CPU
/// memory is lent as it is; any other is converted first.
///
/// # Errors
/// When candle cannot convert the dtype to f32 or copy the tensor to the CPU.
pub fn with_view<R>(tensor: &Candle, read: impl FnOnce(TensorView<'_>) -> R) -> Result<R> {
    let tensor = tensor
        .to_device(&Device::Cpu)?
        .to_dtype(candle_core::DType::F32)?
        .contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let elements = match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((from, to))) => values.get(from..to),
        _ => None,
    };
    match elements {
        Some(values) => Ok(read(TensorView::f32(tensor.dims(), values))),
        None => Err(candle_core::Error::msg("the tensor did not become contiguous CPU f32").into()),
    }
}

/// Copies the elements as f32, whatever the dtype, device and layout.
impl TryFrom<&Candle> for Tensor {
    type Error = Error;

    fn try_from(tensor: &Candle) -> Result<Tensor> {
        with_view(tensor, |view| Tensor {
            shape: view.shape().to_vec(),
            data: match view.elements() {
                Elements::F32(data) => data.to_vec(),
                Elements::I64(data) => data.iter().map(|&i| i as f32).collect(),
            },
        })
    }
}

/// Copies to a tensor of the same dtype in CPU memory.
///
/// # Errors
/// When the length of the data is not the product of the shape.
impl TryFrom<TensorView<'_>> for Candle {
    type Error = Error;

    fn try_from(view: TensorView<'_>) -> Result<Candle> {
        match view.elements() {
            Elements::F32(data) => from_values(data.to_vec(), view.shape()),
            Elements::I64(data) => from_values(data.to_vec(), view.shape()),
        }
    }
}

/// Copies to an f32 tensor in CPU memory.
///
/// # Errors
/// When the length of the data is not the product of the shape.
impl TryFrom<&Tensor> for Candle {
    type Error = Error;

    fn try_from(tensor: &Tensor) -> Result<Candle> {
        tensor.view().try_into()
    }
}

/// A dense weight of the same dtype; f64 becomes f32. [`Weight::encode`] makes it sparse.
///
/// # Errors
/// When the tensor is not of a floating-point dtype that weights come in.
impl TryFrom<&Candle> for Weight {
    type Error = Error;

    fn try_from(tensor: &Candle) -> Result<Weight> {
        use candle_core::DType as C;
        let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
        let (dtype, data) = match tensor.dtype() {
            C::F32 => (DType::F32, Bytes::from_f32(&flat.to_vec1::<f32>()?)),
            C::F64 => (
                DType::F32,
                Bytes::from_f32(&flat.to_dtype(C::F32)?.to_vec1::<f32>()?),
            ),
            C::F16 => (
                DType::F16,
                to_bytes(flat.to_vec1::<f16>()?, f16::to_le_bytes),
            ),
            C::BF16 => (
                DType::BF16,
                to_bytes(flat.to_vec1::<bf16>()?, bf16::to_le_bytes),
            ),
            other => {
                return Err(candle_core::Error::msg(format!(
                    "a tensor of dtype {other:?} is no weight: F32, F16, BF16 and F64 are"
                ))
                .into());
            }
        };
        Weight::dense(tensor.dims().to_vec(), dtype, data)
            .map_err(|what| candle_core::Error::msg(what).into())
    }
}

/// Every element in CPU memory, in the weight's own dtype.
///
/// # Errors
/// When candle lacks the dtype (signed bytes).
impl TryFrom<&Weight> for Candle {
    type Error = Error;

    fn try_from(weight: &Weight) -> Result<Candle> {
        let dense = weight.decode();
        let Encoding::Dense(data) = dense.encoding() else {
            return Err(candle_core::Error::msg("a decoded weight is still encoded").into());
        };
        let shape = dense.shape();
        match dense.dtype() {
            DType::F32 => from_values(from_bytes(data, f32::from_le_bytes), shape),
            DType::F16 => from_values(from_bytes(data, f16::from_le_bytes), shape),
            DType::BF16 => from_values(from_bytes(data, bf16::from_le_bytes), shape),
            DType::I64 => from_values(from_bytes(data, i64::from_le_bytes), shape),
            DType::I32 => from_values(from_bytes(data, i32::from_le_bytes), shape),
            DType::U8 => from_values(data.to_vec(), shape),
            DType::I8 => Err(candle_core::Error::msg("candle has no dtype I8").into()),
        }
    }
}

fn from_values<T: candle_core::WithDType>(values: Vec<T>, shape: &[usize]) -> Result<Candle> {
    Ok(Candle::from_vec(values, shape, &Device::Cpu)?)
}

fn from_bytes<T, const N: usize>(data: &[u8], value: fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>().0.iter().map(|b| value(*b)).collect()
}

fn to_bytes<T, const N: usize>(values: Vec<T>, bytes: fn(T) -> [u8; N]) -> Bytes {
    values
        .into_iter()
        .flat_map(bytes)
        .collect::<Vec<u8>>()
        .into()
}

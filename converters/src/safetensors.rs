//! safetensors state dicts.

use crate::Result;
use crate::source::Source;
use crate::torch::narrow_f64;
use ::safetensors::{Dtype, SafeTensors};
use lacuna::model::{Weight, Weights};
use lacuna::{DType, model::Bytes};

/// Every tensor of the file, by name. F64 becomes F32 and BOOL becomes U8.
pub(crate) fn read(source: &Source) -> Result<Weights> {
    let file = SafeTensors::deserialize(&source.bytes)
        .map_err(|e| source.error(format!("not a valid safetensors file: {e}")))?;
    let mut tensors = Weights::new();
    for (name, view) in file.iter() {
        let (dtype, data): (DType, Bytes) = match view.dtype() {
            Dtype::F64 => (DType::F32, narrow_f64(view.data())),
            Dtype::BOOL => (DType::U8, source.share(view.data())),
            other => {
                let known = DType::from_name(&other.to_string()).ok_or_else(|| {
                    source.tensor_error(
                        name,
                        format!(
                            "dtype {other}; supported: F64, F32, F16, BF16, I64, I32, I8, U8, BOOL"
                        ),
                    )
                })?;
                (known, source.share(view.data()))
            }
        };
        let weight = Weight::dense(view.shape().to_vec(), dtype, data)
            .map_err(|what| source.tensor_error(name, what))?;
        tensors.insert(name.to_owned(), weight);
    }
    Ok(tensors)
}

//! safetensors state dicts, sparse checkpoints of compressed-tensors included.

use crate::Result;
use crate::source::Source;
use crate::torch::narrow_f64;
use lacuna::DType;
use lacuna::model::file::{Tensors, decode_bitmask_tensors};
use lacuna::model::{Weight, Weights};

/// Every tensor of the file, by name. F64 becomes F32 and BOOL becomes U8.
pub(crate) fn read(source: &Source) -> Result<Weights> {
    let file = Tensors::parse(&source.path, source.bytes.clone());
    let file = file.map_err(|e| source.model_error(e))?;
    if file.names().any(|name| name.ends_with(".bitmask")) {
        return decode_bitmask_tensors(&file).map_err(|e| source.model_error(e));
    }
    let mut tensors = Weights::new();
    for name in file.names() {
        let tensor = file.require(name).map_err(|e| source.model_error(e))?;
        let (dtype, data) = match (tensor.dtype(), tensor.dtype_name) {
            (Some(dtype), _) => (dtype, tensor.bytes),
            (None, "F64") => (DType::F32, narrow_f64(&tensor.bytes)),
            (None, "BOOL") => (DType::U8, tensor.bytes),
            (None, other) => {
                return Err(source.tensor_error(
                    name,
                    format!(
                        "dtype {other}; supported: F64, F32, F16, BF16, I64, I32, I8, U8, BOOL"
                    ),
                ));
            }
        };
        let weight = Weight::dense(tensor.shape.to_vec(), dtype, data);
        let weight = weight.map_err(|what| source.tensor_error(name, what))?;
        tensors.insert(name.to_owned(), weight);
    }
    Ok(tensors)
}

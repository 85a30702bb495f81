//! PyTorch state dicts, read without executing anything.

mod globals;
mod legacy;
mod pickle;
mod strided;
mod zipped;

pub(crate) use legacy::read as read_legacy;
pub(crate) use strided::narrow_f64;
pub(crate) use zipped::read as read_zip;

use crate::Result;
use crate::source::Source;
use globals::{Storage, TensorRef};
use lacuna::model::{Bytes, Weights};
use pickle::{Id, Object, Pickle};
use strided::Budget;

/// Keys under which training scripts wrap a state dict.
const WRAPPERS: [&str; 5] = ["state_dict", "model_state_dict", "model", "net", "params"];

/// The tensors of the state dict that `pickle` is or wraps; `storage` finds the bytes of a storage.
fn collect(
    source: &Source,
    pickle: &Pickle<'_>,
    mut storage: impl FnMut(&Storage<'_>) -> Result<Bytes, String>,
) -> Result<Weights> {
    let mut budget = Budget::for_file(source.bytes.len());
    let mut tensors = Weights::new();
    for (name, tensor) in entries(pickle).map_err(|what| source.error(what))? {
        let weight = storage(&tensor.storage)
            .and_then(|bytes| strided::weight(tensor, &bytes, &mut budget))
            .map_err(|what| source.tensor_error(name, what))?;
        tensors.insert(name.to_owned(), weight);
    }
    Ok(tensors)
}

/// The names and tensors of the state dict.
fn entries<'p, 'a>(pickle: &'p Pickle<'a>) -> Result<Vec<(&'a str, &'p TensorRef<'a>)>, String> {
    let is_dict = |id: Id| matches!(pickle.get(id), Object::Dict(_));
    let wrapped = WRAPPERS
        .iter()
        .filter_map(|key| pickle.lookup(pickle.root, key))
        .find(|&id| is_dict(id));
    let root = wrapped.unwrap_or(pickle.root);
    let Object::Dict(items) = pickle.get(root) else {
        return Err(format!(
            "holds {} instead of a state dict",
            pickle.get(root).kind()
        ));
    };
    let mut tensors = Vec::new();
    for &(key, value) in items {
        let Object::Str(name) = *pickle.get(key) else {
            return Err(format!(
                "a key of the state dict is {}",
                pickle.get(key).kind()
            ));
        };
        match pickle.get(value) {
            Object::Tensor(tensor) => tensors.push((name, tensor)),
            other => {
                return Err(format!(
                    "`{name}` of the state dict is {} instead of a tensor",
                    other.kind()
                ));
            }
        }
    }
    if tensors.is_empty() {
        return Err("the state dict holds no tensors".into());
    }
    Ok(tensors)
}

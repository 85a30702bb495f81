//! Indices of weights: taken out, or zeroed.

use crate::{Error, Result};
use lacuna::model::{Bytes, Encoding, Weight};

/// The dense bytes of a weight, decoded if need be.
fn dense(name: &str, weight: &Weight) -> Result<(Weight, Bytes)> {
    if !weight.dtype().is_float() {
        return Err(Error::WeightType {
            weight: name.to_owned(),
            dtype: weight.dtype(),
        });
    }
    let decoded = weight.decode();
    let Encoding::Dense(data) = decoded.encoding() else {
        return Err(Error::Channels(format!("weight `{name}` does not decode")));
    };
    let data = data.clone();
    Ok((decoded, data))
}

fn built(name: &str, old: &Weight, shape: Vec<usize>, data: Vec<u8>) -> Result<Weight> {
    let weight = Weight::dense(shape, old.dtype(), data.into());
    let weight = weight.map_err(|what| Error::Channels(format!("weight `{name}`: {what}")))?;
    Ok(match old.is_sparse() {
        true => weight.stored_best(),
        false => weight,
    })
}

/// The weight with only the given indices of each named axis.
pub(crate) fn sliced(name: &str, weight: &Weight, kept: &[(usize, Vec<usize>)]) -> Result<Weight> {
    let (decoded, data) = dense(name, weight)?;
    let mut shape = decoded.shape().to_vec();
    let mut data: Vec<u8> = data.to_vec();
    for (axis, kept) in kept {
        let inner: usize = shape[axis + 1..].iter().product::<usize>() * decoded.dtype().size();
        let block = shape[*axis] * inner;
        let mut next = Vec::with_capacity(data.len() / shape[*axis].max(1) * kept.len());
        for outer in data.chunks_exact(block.max(1)) {
            for &i in kept {
                next.extend_from_slice(&outer[i * inner..(i + 1) * inner]);
            }
        }
        shape[*axis] = kept.len();
        data = next;
    }
    built(name, weight, shape, data)
}

/// The weight with zeros at the given indices of each named axis.
pub(super) fn zeroed(name: &str, weight: &Weight, gone: &[(usize, Vec<usize>)]) -> Result<Weight> {
    let (decoded, data) = dense(name, weight)?;
    let shape = decoded.shape().to_vec();
    let mut data: Vec<u8> = data.to_vec();
    for (axis, gone) in gone {
        let inner: usize = shape[axis + 1..].iter().product::<usize>() * decoded.dtype().size();
        let block = shape[*axis] * inner;
        for outer in data.chunks_exact_mut(block.max(1)) {
            for &i in gone {
                outer[i * inner..(i + 1) * inner].fill(0);
            }
        }
    }
    built(name, weight, shape, data)
}

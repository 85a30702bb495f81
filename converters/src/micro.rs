//! FastGRNN networks as the bytes that `lacuna-micro` runs on microcontrollers.

use crate::arch;
use crate::{Error, Options, Result};
use lacuna::{Model, Weight};
use std::path::Path;

/// A FastGRNN network in the format of [`lacuna_micro`]: weights in f32, a matrix as mask and values where
/// that is smaller.
///
/// # Errors
/// When the model is another network than the architecture `fastgrnn` builds, or a number is not finite.
pub fn micro(model: &Model) -> Result<Vec<u8>> {
    let refuse = |what: String| Error::Arch {
        path: model
            .path()
            .map_or_else(|| "model".into(), Path::to_path_buf),
        arch: "fastgrnn".into(),
        what,
    };
    let options = Options {
        arch: Some("fastgrnn".into()),
        ..Options::default()
    };
    let rebuilt = arch::build(Path::new("model"), model.weights().clone(), &options)
        .map_err(|e| refuse(format!("is needed for a microcontroller: {e}")))?;
    if rebuilt.graph().nodes != model.graph().nodes {
        return Err(refuse("has another graph than this architecture".into()));
    }
    let weight = |name: &str| rebuilt.weights().get(name);
    let floats = |name: &str| weight(name).and_then(Weight::to_f32).unwrap_or_default();
    let size = |name: &str, axis: usize| weight(name).map_or(0, |w| w.shape()[axis]);
    let low = weight("rnn.W1").is_some();
    let (w, u): (&[&str], &[&str]) = match low {
        true => (&["rnn.W1", "rnn.W2"], &["rnn.U1", "rnn.U2"]),
        false => (&["rnn.W"], &["rnn.U"]),
    };
    let inputs = size(w[0], 1);
    let ranks = match low {
        true => [size(w[0], 0), size(u[0], 0)],
        false => [0, 0],
    };
    let mut bytes = lacuna_micro::MAGIC.to_vec();
    let sizes = [
        inputs,
        size("rnn.bias_gate", 0),
        size("fc.weight", 0),
        ranks[0],
        ranks[1],
        0,
    ];
    for size in sizes {
        let size = u32::try_from(size).map_err(|_| refuse(format!("a size of {size}")))?;
        bytes.extend(size.to_le_bytes());
    }
    let sigmoid = |name: &str| 1.0 / (1.0 + (-f64::from(floats(name)[0])).exp());
    let or = |name: &str, default: f32, len: usize| match weight(name) {
        Some(_) => floats(name),
        None => vec![default; len],
    };
    let scale = or("input.std", 1.0, inputs)
        .into_iter()
        .map(|std| 1.0 / std)
        .collect();
    for values in [
        vec![sigmoid("rnn.zeta") as f32, sigmoid("rnn.nu") as f32],
        or("input.mean", 0.0, inputs),
        scale,
        floats("rnn.bias_gate"),
        floats("rnn.bias_update"),
        or("fc.bias", 0.0, sizes[2]),
    ] {
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    for name in w.iter().chain(u).chain(&["fc.weight"]) {
        matrix(&mut bytes, &floats(name), size(name, 1));
    }
    let len = u32::try_from(bytes.len()).map_err(|_| refuse("is larger than 4 GiB".into()))?;
    bytes[28..32].copy_from_slice(&len.to_le_bytes());
    lacuna_micro::Model::parse(&bytes).map_err(|e| refuse(e.to_string()))?;
    Ok(bytes)
}

fn matrix(bytes: &mut Vec<u8>, values: &[f32], columns: usize) {
    let kept = values.iter().filter(|v| **v != 0.0);
    let stride = columns.div_ceil(8);
    let mask_len = values.len() / columns * stride;
    let masked = mask_len + 4 * kept.clone().count() < 4 * values.len();
    bytes.extend(u32::from(masked).to_le_bytes());
    if !masked {
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        return;
    }
    let start = bytes.len();
    bytes.resize(start + mask_len, 0);
    for (i, v) in values.iter().enumerate() {
        let (row, column) = (i / columns, i % columns);
        bytes[start + row * stride + column / 8] |= u8::from(*v != 0.0) << (column % 8);
    }
    bytes.extend(kept.flat_map(|v| v.to_le_bytes()));
}

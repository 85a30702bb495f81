//! The graphs of language models, whatever file their tensors come from. Tensors and nodes are
//! named as Hugging Face names the modules.

mod assembly;
mod decoder;
mod encoder;
mod rotary;

pub(crate) use decoder::{Decoder, EMBEDDING};
pub(crate) use encoder::Encoder;
pub(crate) use rotary::{Rotary, Scaling};

use lacuna::model::{Dim, Op};

/// The shape of token ids, `[N, T]`, or what the caller asks for instead.
fn token_shape(asked: Option<&[Dim]>) -> Result<Vec<Dim>, String> {
    match asked {
        None => Ok(["N", "T"].map(|s| Dim::Symbol(s.into())).to_vec()),
        Some(shape @ [_, _]) => Ok(shape.to_vec()),
        Some(shape) => {
            let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
            Err(format!(
                "input shape [{}] for token ids, which have two axes",
                dims.join(", ")
            ))
        }
    }
}

/// The activation that a `config.json` names.
pub(crate) fn activation(name: &str) -> Result<Op, String> {
    Ok(match name {
        "silu" | "swish" => Op::Swish { alpha: 1.0 },
        "gelu" => Op::Gelu { approximate: false },
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Op::Gelu { approximate: true },
        "relu" => Op::Relu,
        other => {
            return Err(format!(
                "activation `{other}`; supported: silu, gelu, gelu_new, gelu_fast, \
                 gelu_pytorch_tanh, relu"
            ));
        }
    })
}

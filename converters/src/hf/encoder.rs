//! BERT: what a `config.json` says of it.

use super::config::Object;
use crate::Result;
use crate::lm::{Encoder, activation};
use crate::source::shown;
use lacuna::Weight;
use lacuna::model::Weights;

const WORDS: &str = "embeddings.word_embeddings.weight";
const POSITIONS: &str = "embeddings.position_embeddings.weight";

/// Whether tensors are named as a BERT's.
pub(super) fn detect(weights: &Weights) -> bool {
    ["", "bert."]
        .iter()
        .any(|prefix| weights.contains_key(&format!("{prefix}{WORDS}")))
}

/// Names without the prefix of a model with heads, without those heads' tensors and with today's
/// names of scales and biases.
pub(super) fn normalized(weights: Weights) -> Weights {
    let named = |(name, weight): (String, Weight)| {
        let name = name.strip_prefix("bert.").unwrap_or(&name);
        let name = match name.rsplit_once('.') {
            Some((module, "gamma")) => format!("{module}.weight"),
            Some((module, "beta")) => format!("{module}.bias"),
            _ => name.to_owned(),
        };
        // Neither hidden states nor their mean depend on these.
        let unused = name.starts_with("pooler.")
            || name.starts_with("cls.")
            || name == "embeddings.position_ids";
        (!unused).then_some((name, weight))
    };
    weights.into_iter().filter_map(named).collect()
}

/// The encoder and the positions that it is made for. `heads` stands in for a configuration that
/// does not say how many there are.
pub(super) fn describe(
    config: &Object,
    weights: &Weights,
    heads: Option<usize>,
    name: &str,
) -> Result<(Encoder, usize)> {
    if let Some(kind) = config.text("position_embedding_type")?
        && kind != "absolute"
    {
        return Err(config.error(format!(
            "`position_embedding_type` is `{}`; supported: absolute",
            shown(&kind)
        )));
    }
    for key in ["is_decoder", "add_cross_attention"] {
        if config.bool(key)? == Some(true) {
            return Err(config.error(format!("`{key}` is true, which is not read")));
        }
    }
    let size = |name: &str, axis: usize| {
        let shape = weights.get(name).map(Weight::shape);
        shape.and_then(|s| s.get(axis)).copied()
    };
    let hidden = match config.whole("hidden_size")? {
        Some(hidden) => hidden,
        None => config.need("hidden_size", size(WORDS, 1))?,
    };
    let heads = match config.whole("num_attention_heads")? {
        Some(heads) => heads,
        None => config.need("num_attention_heads", heads)?,
    };
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(config.error(format!("{heads} heads of {hidden} elements")));
    }
    let epsilon = config.float("layer_norm_eps")?.unwrap_or(1e-12);
    if !(epsilon.is_finite() && epsilon >= 0.0) {
        return Err(config.error(format!("`layer_norm_eps` is {epsilon}")));
    }
    let act = config.text("hidden_act")?;
    let act = activation(act.as_deref().unwrap_or("gelu")).map_err(|e| config.error(e))?;
    let context = match config.whole("max_position_embeddings")? {
        Some(context) => context,
        None => size(POSITIONS, 0).unwrap_or(0),
    };
    let encoder = Encoder {
        name: name.to_owned(),
        layers: config.whole("num_hidden_layers")?,
        head: hidden / heads,
        epsilon: epsilon as f32,
        activation: act,
        sentence: None,
    };
    Ok((encoder, context))
}

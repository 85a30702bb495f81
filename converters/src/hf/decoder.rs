//! Decoders: what a `config.json` says of them.

use super::config::Object;
use crate::Result;
use crate::lm::{Decoder, Rotary, Scaling, activation};
use crate::source::shown;
use lacuna::model::Weights;

/// Model types that are read.
pub(super) const TYPES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// The window of a Mistral whose file does not speak of one.
const MISTRAL_WINDOW: usize = 4096;

/// The decoder and the positions that it is made for.
pub(super) fn describe(config: &Object, kind: &str, name: &str) -> Result<(Decoder, usize)> {
    let need = |key: &str| config.whole(key).and_then(|v| config.need(key, v));
    let (hidden, heads) = (need("hidden_size")?, need("num_attention_heads")?);
    let layers = need("num_hidden_layers")?;
    let head = match config.whole("head_dim")? {
        Some(head) if heads > 0 => head,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        _ => return Err(config.error(format!("{heads} heads of {hidden} elements"))),
    };
    let epsilon = config.float("rms_norm_eps")?.unwrap_or(1e-6);
    if !(epsilon.is_finite() && epsilon >= 0.0) {
        return Err(config.error(format!("`rms_norm_eps` is {epsilon}")));
    }
    let act = config.text("hidden_act")?;
    let act = activation(act.as_deref().unwrap_or("silu")).map_err(|e| config.error(e))?;
    let positions = need("max_position_embeddings")?;
    let context = match window(config, kind, layers)? {
        Some(window) => positions.min(window),
        None => positions,
    };
    let decoder = Decoder {
        name: name.to_owned(),
        layers: Some(layers),
        head,
        heads: None,
        epsilon: epsilon as f32,
        rotary: rotary(config, head, positions)?,
        activation: act,
        tied: config.bool("tie_word_embeddings")?,
        required: match kind {
            "qwen2" => &["q_proj.bias", "k_proj.bias", "v_proj.bias"],
            "qwen3" => &["q_norm.weight", "k_norm.weight"],
            _ => &[],
        },
    };
    Ok((decoder, context))
}

/// How far back every layer looks; `None` for all the way. Beyond the window the model would forget
/// what the session keeps, so the context ends there.
fn window(config: &Object, kind: &str, layers: usize) -> Result<Option<usize>> {
    let slides = match kind {
        "mistral" => true,
        "qwen2" | "qwen3" => config.bool("use_sliding_window")?.unwrap_or(false),
        _ => false,
    };
    let window = match config.whole("sliding_window")?.filter(|_| slides) {
        None if kind == "mistral" && !config.has("sliding_window") => Some(MISTRAL_WINDOW),
        window => window,
    };
    let mixed =
        || config.error("a sliding window in some layers only; all or none of them are supported");
    if let Some(types) = config.texts("layer_types")? {
        let sliding = types.iter().filter(|t| *t == "sliding_attention").count();
        let full = types.iter().filter(|t| *t == "full_attention").count();
        if sliding + full != types.len() {
            return Err(config.error(format!(
                "`layer_types` has {}; supported: full_attention, sliding_attention",
                shown(&types.join(", "))
            )));
        }
        return match (sliding, full) {
            (0, _) => Ok(None),
            (_, 0) => Ok(window),
            _ => Err(mixed()),
        };
    }
    if window.is_some() && kind != "mistral" {
        return match config.whole("max_window_layers")?.unwrap_or(28) {
            0 => Ok(window),
            first if first >= layers => Ok(None),
            _ => Err(mixed()),
        };
    }
    Ok(window)
}

/// The rotary angles. `rope_parameters` is how newer files write what older ones have as
/// `rope_theta` and `rope_scaling`.
fn rotary(config: &Object, head: usize, positions: usize) -> Result<Rotary> {
    let scaling = match config.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => config.object("rope_scaling")?,
    };
    let inner = scaling.clone().unwrap_or_else(|| config.clone());
    let either = |key: &str| -> Result<Option<f64>> {
        Ok(match inner.float(key)? {
            Some(v) => Some(v),
            None => config.float(key)?,
        })
    };
    let base = either("rope_theta")?.unwrap_or(10_000.0);
    let part = either("partial_rotary_factor")?.unwrap_or(1.0);
    if !(part > 0.0 && part <= 1.0) {
        return Err(config.error(format!("`partial_rotary_factor` is {part}")));
    }
    let rotated = (head as f64 * part) as usize;
    let kind = match &scaling {
        None => None,
        Some(s) => match s.text("rope_type")? {
            Some(kind) => Some(kind),
            None => s.text("type")?,
        },
    };
    let need = |key: &str| inner.float(key).and_then(|v| inner.need(key, v));
    let stretched = match kind.as_deref() {
        None | Some("default") => Scaling::None,
        Some("linear") => Scaling::Linear {
            factor: need("factor")?,
        },
        Some("llama3") => Scaling::Llama3 {
            factor: need("factor")?,
            low: need("low_freq_factor")?,
            high: need("high_freq_factor")?,
            original: need("original_max_position_embeddings")?,
        },
        Some("yarn") => {
            for key in ["mscale", "mscale_all_dim"] {
                if inner.get(key).is_some() {
                    return Err(inner.error(format!("`{key}` of yarn, which is not read")));
                }
            }
            if inner.bool("truncate")? == Some(false) {
                return Err(inner.error("`truncate` of yarn is false, which is not read"));
            }
            Scaling::Yarn {
                factor: need("factor")?,
                original: inner
                    .float("original_max_position_embeddings")?
                    .unwrap_or(positions as f64),
                beta_fast: inner.float("beta_fast")?.unwrap_or(32.0),
                beta_slow: inner.float("beta_slow")?.unwrap_or(1.0),
                attention: inner.float("attention_factor")?,
            }
        }
        Some(other) => {
            return Err(config.error(format!(
                "rotary scaling `{}`; supported: default, linear, llama3, yarn",
                shown(other)
            )));
        }
    };
    Rotary::new(rotated, base, &stretched).map_err(|e| config.error(e))
}

/// Names as the whole model has them, without the tensors that older files repeat.
pub(super) fn normalized(weights: Weights) -> Weights {
    // The model without its output has no prefix.
    let bare = weights.contains_key("embed_tokens.weight");
    let named = |(name, weight): (String, _)| {
        let name = if bare && name != "lm_head.weight" {
            format!("model.{name}")
        } else {
            name
        };
        (!name.ends_with(".rotary_emb.inv_freq")).then_some((name, weight))
    };
    weights.into_iter().filter_map(named).collect()
}

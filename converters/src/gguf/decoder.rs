//! From the names, orders and keys of a GGUF file to those of a decoder.

use super::container::{Container, Info};
use super::quant::{Kind, dequantise};
use crate::Result;
use crate::lm::{Decoder, Rotary, Scaling};
use crate::source::{Source, shown};
use crate::strided::pick;
use lacuna::model::{Op, Weights};
use lacuna::{DType, Weight};

/// An architecture that is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub name: &'static str,
    /// Whether the rows of queries and keys are stored in the order of interleaved rotation.
    interleaved: bool,
    /// Tensors of every attention that the family never lacks.
    required: &'static [&'static str],
}

const FAMILIES: [Family; 3] = [
    Family {
        name: "llama",
        interleaved: true,
        required: &[],
    },
    Family {
        name: "qwen2",
        interleaved: false,
        required: &["q_proj.bias", "k_proj.bias", "v_proj.bias"],
    },
    Family {
        name: "qwen3",
        interleaved: false,
        required: &["q_norm.weight", "k_norm.weight"],
    },
];

impl Family {
    pub fn of(name: &str) -> Option<Family> {
        FAMILIES.into_iter().find(|f| f.name == name)
    }

    fn key(self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }
}

/// The names of the architectures.
pub(super) fn supported() -> String {
    FAMILIES.map(|f| f.name).join(", ")
}

/// Modules of a layer: the file's name and ours.
const LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const FACTORS: &str = "rope_freqs.weight";

/// Our name of a tensor, or `None` when a decoder has no such tensor.
fn our_name(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (module, part) = rest.rsplit_once('.')?;
    let number: usize = layer.parse().ok()?;
    if number.to_string() != layer || !matches!(part, "weight" | "bias") {
        return None;
    }
    let (_, ours) = LAYER.iter().find(|(theirs, _)| *theirs == module)?;
    Some(format!("model.layers.{number}.{ours}.{part}"))
}

/// Every tensor under our name and in our order.
pub(super) fn weights(
    source: &Source,
    container: &Container<'_>,
    family: Family,
) -> Result<Weights> {
    let head = head_size(container, family).map_err(|e| source.error(e))?;
    let mut weights = Weights::new();
    for (&name, info) in &container.tensors {
        if name == FACTORS {
            continue;
        }
        let fail = |what: String| source.tensor_error(&shown(name), what);
        let ours = our_name(name).ok_or_else(|| {
            fail(format!(
                "no tensor of the architecture {}; a mixture of experts, or one of its variants, \
                 is not read",
                family.name
            ))
        })?;
        let (dtype, data) = match info.kind.plain() {
            Some(dtype) => (dtype, source.bytes.slice(info.range.clone())),
            None => {
                let blocks = &source.bytes[info.range.clone()];
                (DType::F32, dequantise(info.kind, blocks).map(Into::into))
            }
        };
        let data = data.ok_or_else(|| fail("not within the file".into()))?;
        let rotated = family.interleaved
            && (ours.contains(".self_attn.q_proj.") || ours.contains(".self_attn.k_proj."));
        let data = if rotated {
            halves(&data, &info.shape, head).map_err(fail)?.into()
        } else {
            data
        };
        let weight = Weight::dense(info.shape.clone(), dtype, data).map_err(fail)?;
        weights.insert(ours, weight);
    }
    Ok(weights)
}

/// Puts the rows of every head from pairs of neighbours into two halves.
fn halves(data: &[u8], shape: &[usize], head: usize) -> Result<Vec<u8>, String> {
    let rows = shape.first().copied().unwrap_or(0);
    if head == 0 || !head.is_multiple_of(2) || rows == 0 || !rows.is_multiple_of(head) {
        return Err(format!("{rows} rows, which are no heads of {head}"));
    }
    let half = head / 2;
    let order = (0..rows).map(|row| {
        let (start, i) = (row / head * head, row % head);
        start + i % half * 2 + i / half
    });
    Ok(pick(data, data.len() / rows, order))
}

/// The size of a query or key head.
fn head_size(container: &Container<'_>, family: Family) -> Result<usize, String> {
    let metadata = &container.metadata;
    if let Some(size) = metadata.size(&family.key("attention.key_length"))? {
        return Ok(size);
    }
    let key = family.key("attention.head_count");
    // Where layers differ in their heads, the first layer's queries tell the size of one.
    let layers = layer_count(container);
    if let Some(heads) = metadata.per_layer(&key, layers)? {
        let rows = container.tensors.get("blk.0.attn_q.weight");
        let rows = rows.map_or(0, |info| info.shape[0]);
        return match heads.first() {
            Some(&n) if n > 0 && rows.is_multiple_of(n) => Ok(rows / n),
            _ => Err(format!(
                "metadata `{key}` begins with {:?}, `blk.0.attn_q.weight` has {rows} rows",
                heads.first()
            )),
        };
    }
    let heads = metadata.require(&key, metadata.size(&key)?)?;
    let key = family.key("embedding_length");
    let width = metadata.require(&key, metadata.size(&key)?)?;
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(format!("{heads} heads of {width} elements"));
    }
    Ok(width / heads)
}

/// How many layers there are tensors for.
fn layer_count(container: &Container<'_>) -> usize {
    let tensors = &container.tensors;
    let any = |i: &usize| {
        let head = format!("blk.{i}.");
        let next = tensors.range(head.as_str()..).next();
        next.is_some_and(|(name, _)| name.starts_with(&head))
    };
    (0..).take_while(any).count()
}

/// What the metadata says of the decoder.
pub(super) fn describe(
    source: &Source,
    container: &Container<'_>,
    family: Family,
) -> Result<Decoder, String> {
    let metadata = &container.metadata;
    let key = |k: &str| family.key(k);
    let layers = layer_count(container);
    for experts in ["expert_count", "expert_used_count"] {
        if let Some(n) = metadata.whole(&key(experts))?
            && n > 0
        {
            return Err(format!("a mixture of {n} experts, which is not read"));
        }
    }
    let head = head_size(container, family)?;
    let rotated = metadata.size(&key("rope.dimension_count"))?.unwrap_or(head);
    if family.interleaved && rotated != head {
        return Err(format!(
            "{rotated} of the {head} elements of a head are rotated; llama rotates all"
        ));
    }
    let base = metadata.float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let epsilon_key = key("attention.layer_norm_rms_epsilon");
    let epsilon = metadata.require(&epsilon_key, metadata.float(&epsilon_key)?)?;
    if !(epsilon.is_finite() && epsilon >= 0.0) {
        return Err(format!("metadata `{epsilon_key}` is {epsilon}"));
    }
    let q = metadata.per_layer(&key("attention.head_count"), layers)?;
    let kv = metadata.per_layer(&key("attention.head_count_kv"), layers)?;
    let heads = match (q, kv) {
        (Some(q), Some(kv)) => Some(q.into_iter().zip(kv).map(|(q, kv)| [q, kv]).collect()),
        // One count for all layers may be that of the model before it was pruned.
        _ => None,
    };
    let scaling = scaling(source, container, family)?;
    let declared = metadata.size(&key("block_count"))?;
    Ok(Decoder {
        name: family.name.into(),
        layers: declared,
        head,
        heads,
        epsilon: epsilon as f32,
        rotary: Rotary::new(rotated, base, &scaling)?,
        activation: Op::Swish { alpha: 1.0 },
        tied: None,
        required: family.required,
    })
}

/// How the rotary angles are stretched.
fn scaling(source: &Source, container: &Container<'_>, family: Family) -> Result<Scaling, String> {
    let metadata = &container.metadata;
    let key = |k: &str| family.key(k);
    let factor_key = key("rope.scaling.factor");
    let factor = match metadata.float(&factor_key)? {
        Some(factor) => Some(factor),
        None => metadata.float(&key("rope.scale_linear"))?,
    };
    let kind = metadata.text(&key("rope.scaling.type"))?;
    let stretched = match kind {
        None if factor.is_none_or(|f| f == 1.0) => Scaling::None,
        Some("none") => Scaling::None,
        None | Some("linear") => Scaling::Linear {
            factor: metadata.require(&factor_key, factor)?,
        },
        Some("yarn") => {
            let original = key("rope.scaling.original_context_length");
            let own = metadata.whole(&original)?;
            let extrapolation = key("rope.scaling.yarn_ext_factor");
            if let Some(f) = metadata.float(&extrapolation)?
                && f != 1.0
                && f != -1.0
            {
                return Err(format!("metadata `{extrapolation}` is {f}; 1 is supported"));
            }
            let factor = metadata.require(&factor_key, factor)?;
            let attention = metadata.float(&key("rope.scaling.attn_factor"))?;
            let attention = attention.map(|a| {
                let own = if factor > 1.0 {
                    0.1 * factor.ln() + 1.0
                } else {
                    1.0
                };
                a * own
            });
            let beta = |name: &str, default: f64| -> Result<f64, String> {
                let beta = metadata.float(&key(&format!("rope.scaling.{name}")))?;
                Ok(beta.unwrap_or(default))
            };
            Scaling::Yarn {
                factor,
                original: metadata.require(&original, own)? as f64,
                beta_fast: beta("yarn_beta_fast", 32.0)?,
                beta_slow: beta("yarn_beta_slow", 1.0)?,
                attention,
            }
        }
        Some(other) => {
            return Err(format!(
                "rotary scaling `{}`; supported: none, linear, yarn, and factors in `{FACTORS}`",
                shown(other)
            ));
        }
    };
    let Some(info) = container.tensors.get(FACTORS) else {
        return Ok(stretched);
    };
    if stretched != Scaling::None {
        return Err(format!(
            "`{FACTORS}` beside a rotary scaling; one of them is supported"
        ));
    }
    factors(source, info)
        .map(Scaling::Factors)
        .map_err(|e| format!("`{FACTORS}`: {e}"))
}

fn factors(source: &Source, info: &Info) -> Result<Vec<f32>, String> {
    if info.kind != Kind::F32 {
        return Err(format!("elements of {}, expected F32", info.kind));
    }
    let data = source.bytes.get(info.range.clone()).unwrap_or_default();
    let chunks = data.as_chunks().0.iter();
    Ok(chunks.map(|c| f32::from_le_bytes(*c)).collect())
}

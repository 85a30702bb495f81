//! A folder that stock loaders of Hugging Face take: the weights of a Llama with zeros filled in, and its `config.json`.

use super::config::Object;
use super::{CONFIG, build};
use crate::{Error, Options, Result};
use lacuna::Model;
use lacuna::model::file::{replace, write_weights};
use lacuna::model::{Node, Op, Weight, Weights};
use serde_json::{Value, json};
use std::path::Path;

/// The constant of the graph that loaders make by themselves.
const FREQUENCIES: &str = "model.rotary_emb.inv_freq";

/// Angles that differ by less are the same.
const NEAR: f32 = 1e-5;

/// Writes `config.json`, `model.safetensors`, and the tokenizer where the model has one, into `folder`.
///
/// # Errors
/// When the model is no Llama of the same heads and neurons in every block (of a model of heads and neurons cut that is its
/// zero-filled form), has stretched rotary angles, and when the system refuses.
pub fn export_hf(model: &Model, folder: &Path) -> Result<()> {
    let refuse = |what: String| Error::Arch {
        path: folder.to_owned(),
        arch: "llama".into(),
        what,
    };
    let config = config(model).map_err(refuse)?;
    let mut weights: Weights = model.weights().clone();
    weights.remove(FREQUENCIES);
    check(&config, &weights).map_err(|what| {
        refuse(format!(
            "{what}; of a model of heads and neurons cut export what --masked wrote"
        ))
    })?;
    std::fs::create_dir_all(folder).map_err(|source| Error::Io {
        path: folder.to_owned(),
        action: "write",
        source,
    })?;
    let path = folder.join(CONFIG);
    let object = Object::of(&path, String::new(), config.clone())?;
    let dense: Weights = (weights.iter())
        .map(|(n, w)| (n.clone(), w.decode()))
        .collect();
    let read = build(folder, &object, "llama", dense, &Options::default())?;
    if let Some(what) = other(model, &read) {
        return Err(refuse(format!("would be read as another model: {what}")));
    }
    let text = serde_json::to_string_pretty(&config).unwrap_or_default() + "\n";
    let mut files: Vec<(&str, &[u8])> = vec![(CONFIG, text.as_bytes())];
    if let Some(tokenizer) = &model.tokenizer {
        files.push(("tokenizer.json", tokenizer));
    }
    fill_biases(&config, &mut weights);
    let own = |source| Error::Model {
        path: folder.to_owned(),
        source,
    };
    for (name, bytes) in files {
        replace(&folder.join(name), |out| out.write_all(bytes), |_| Ok(())).map_err(own)?;
    }
    write_weights(&weights, &folder.join("model.safetensors")).map_err(own)
}

/// What a Llama's `config.json` says, by the graph.
fn config(model: &Model) -> Result<Value, String> {
    let (graph, weights) = (model.graph(), model.weights());
    let missing = |what: &str| format!("the model has no {what}");
    let shape = |name: &str| {
        let found = weights.get(name).map(|w| w.shape().to_vec());
        found.filter(|s| s.len() == 2).ok_or_else(|| missing(name))
    };
    let table = shape("model.embed_tokens.weight")?;
    let first = |which: fn(&Node) -> bool| graph.nodes.iter().find(|n| which(n));
    let attends = |n: &Node| matches!(n.op, Op::Attention { .. });
    let Some(Op::Attention {
        heads, kv_heads, ..
    }) = first(attends).map(|n| &n.op)
    else {
        return Err(missing("attention"));
    };
    let norm = first(|n| matches!(n.op, Op::RMSNormalization { .. }));
    let Some(Op::RMSNormalization { epsilon }) = norm.map(|n| &n.op) else {
        return Err(missing("RMS norm"));
    };
    let frequencies = weights.get(FREQUENCIES).and_then(|w| w.to_f32());
    let frequencies = frequencies.ok_or_else(|| missing(FREQUENCIES))?;
    let head = shape("model.layers.0.self_attn.q_proj.weight")?[0] / heads;
    let pairs = frequencies.len();
    let theta = match frequencies.last() {
        Some(&f) if pairs > 1 => {
            let theta = f64::from(f).powf(-(head as f64) / (2 * (pairs - 1)) as f64);
            let whole = theta.round();
            if (theta - whole).abs() < 1e-6 * theta {
                whole
            } else {
                theta
            }
        }
        _ => 1e4,
    };
    let text = model.text.clone().unwrap_or_default();
    let output = graph
        .nodes
        .iter()
        .rfind(|n| graph.outputs.contains(&n.output));
    let tied = output.is_some_and(|n| n.inputs.iter().any(|i| i == "model.embed_tokens.weight"));
    let dtype = match weights["model.embed_tokens.weight"].dtype() {
        lacuna::DType::F16 => "float16",
        lacuna::DType::BF16 => "bfloat16",
        _ => "float32",
    };
    // The shortest decimal of an f32, and not what it is as an f64.
    let epsilon: f64 = epsilon.to_string().parse().unwrap_or(f64::from(*epsilon));
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": table[1],
        "vocab_size": table[0],
        "intermediate_size": shape("model.layers.0.mlp.gate_proj.weight")?[0],
        "num_hidden_layers": graph.nodes.iter().filter(|n| attends(n)).count(),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "hidden_act": "silu",
        "rms_norm_eps": epsilon,
        "rope_theta": theta,
        "max_position_embeddings": text.context.max(1),
        "tie_word_embeddings": tied,
        "attention_bias": biased(weights, ".self_attn."),
        "mlp_bias": biased(weights, ".mlp."),
        "torch_dtype": dtype,
    });
    if let Some(bos) = text.bos {
        config["bos_token_id"] = bos.into();
    }
    match text.eos.as_slice() {
        [] => {}
        [eos] => config["eos_token_id"] = (*eos).into(),
        several => config["eos_token_id"] = several.into(),
    }
    Ok(config)
}

/// Whether a layer of such a name has a bias.
fn biased(weights: &Weights, part: &str) -> bool {
    weights
        .keys()
        .any(|n| n.contains(part) && n.ends_with(".bias"))
}

/// The shape of a tensor in a Llama of this configuration; `None` where there is none of the name.
fn shape(config: &Value, name: &str) -> Option<Vec<usize>> {
    let size = |key: &str| config[key].as_u64().unwrap_or(0) as usize;
    let (hidden, inner) = (size("hidden_size"), size("intermediate_size"));
    let (queries, keys) = (
        size("num_attention_heads") * size("head_dim"),
        size("num_key_value_heads") * size("head_dim"),
    );
    match name {
        "model.embed_tokens.weight" | "lm_head.weight" => {
            return Some(vec![size("vocab_size"), hidden]);
        }
        "model.norm.weight" => return Some(vec![hidden]),
        _ => {}
    }
    let (_, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (layer, kind) = rest.rsplit_once('.')?;
    let [outputs, inputs] = match layer {
        "input_layernorm" | "post_attention_layernorm" if kind == "weight" => {
            return Some(vec![hidden]);
        }
        "self_attn.q_proj" => [queries, hidden],
        "self_attn.k_proj" | "self_attn.v_proj" => [keys, hidden],
        "self_attn.o_proj" => [hidden, queries],
        "mlp.gate_proj" | "mlp.up_proj" => [inner, hidden],
        "mlp.down_proj" => [hidden, inner],
        _ => return None,
    };
    match kind {
        "weight" => Some(vec![outputs, inputs]),
        "bias" => Some(vec![outputs]),
        _ => None,
    }
}

/// Refuses tensors that a Llama of this configuration has not.
fn check(config: &Value, weights: &Weights) -> Result<(), String> {
    for (name, weight) in weights {
        match shape(config, name) {
            None => return Err(format!("`{name}` is no tensor of a Llama")),
            Some(shape) if shape != weight.shape() => {
                return Err(format!(
                    "`{name}` is {:?}, where the first block makes it {shape:?}",
                    weight.shape()
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Where some layers have biases a Llama has all of them: of zeros.
fn fill_biases(config: &Value, weights: &mut Weights) {
    let missing: Vec<String> = (weights.keys())
        .filter_map(|n| n.strip_suffix("_proj.weight"))
        .filter(|n| {
            let key = match n.contains(".self_attn.") {
                true => "attention_bias",
                false => "mlp_bias",
            };
            config[key] == true
        })
        .map(|n| format!("{n}_proj.bias"))
        .filter(|n| !weights.contains_key(n))
        .collect();
    for name in missing {
        if let Some(shape) = shape(config, &name) {
            let zeros = vec![0.0; shape[0]];
            weights.insert(name, Weight::from_f32(&shape, &zeros));
        }
    }
}

/// What tells two models apart; their names do not.
fn other(model: &Model, read: &Model) -> Option<String> {
    let (a, b) = (model.graph(), read.graph());
    let pair = a.nodes.iter().zip(&b.nodes).find(|(a, b)| a != b);
    if let Some((node, _)) = pair {
        return Some(format!("node `{}`", node.name));
    }
    if a.nodes.len() != b.nodes.len() || a.outputs != b.outputs {
        return Some(format!("{} nodes and {}", a.nodes.len(), b.nodes.len()));
    }
    for (name, weight) in model.weights() {
        let same = read.weights().get(name);
        let same = same.is_some_and(|w| w.shape() == weight.shape());
        if !same {
            return Some(format!("weight `{name}`"));
        }
    }
    let of = |m: &Model| m.weights().get(FREQUENCIES).and_then(|w| w.to_f32());
    let (a, b) = (of(model)?, of(read)?);
    let far = |(a, b): (&f32, &f32)| (a - b).abs() > NEAR * a.abs().max(b.abs());
    a.iter()
        .zip(&b)
        .any(far)
        .then(|| "its rotary angles, which are stretched or cut".to_owned())
}

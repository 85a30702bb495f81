//! Writes a folder that looks like a language model of 1.5 billion parameters in bf16, or f32: a config and one
//! safetensors file of random weights. For measuring memory and time, not for use.
//!
//! `cargo run --release -p lacuna-prune --example large_checkpoint -- FOLDER [LAYERS [bf16|f32]]`

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::PathBuf;

const HIDDEN: usize = 2048;
const FEED: usize = 8192;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const VOCABULARY: usize = 32_000;

/// Weights in the order of the file, by name and shape.
fn tensors(layers: usize) -> Vec<(String, Vec<usize>)> {
    let kv = HIDDEN / HEADS * KV_HEADS;
    let mut list = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            vec![VOCABULARY, HIDDEN],
        ),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for i in 0..layers {
        for (part, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![kv, HIDDEN]),
            ("self_attn.v_proj", vec![kv, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![FEED, HIDDEN]),
            ("mlp.up_proj", vec![FEED, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FEED]),
        ] {
            list.push((format!("model.layers.{i}.{part}.weight"), shape));
        }
    }
    list
}

/// Bell-shaped values around 0, of a deviation near 0.02 that differs from layer to layer.
struct Values {
    state: u64,
    scale: f32,
}

impl Values {
    fn next(&mut self) -> f32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let bytes = self.state.to_le_bytes();
        let sum: i32 = bytes.iter().map(|&b| i32::from(b)).sum();
        // The sum has 11 bits; what is left of the state fills the lower bits of an f32.
        let more = (self.state >> 32) as f32 / 4_294_967_296.0;
        (sum as f32 - 1019.9 + more) * self.scale
    }
}

/// The upper half of an f32, cut instead of rounded.
fn bf16(value: f32) -> [u8; 2] {
    ((value.to_bits() >> 16) as u16).to_le_bytes()
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = || std::io::Error::other("usage: large_checkpoint FOLDER [LAYERS [bf16|f32]]");
    let folder = PathBuf::from(args.next().ok_or_else(usage)?);
    let layers = args.next().map_or(Ok(24), |n| n.parse());
    let layers: usize = layers.map_err(|_| usage())?;
    let single = match args.next().as_deref() {
        None | Some("bf16") => false,
        Some("f32") => true,
        Some(_) => return Err(usage()),
    };
    let (dtype, size) = if single { ("F32", 4) } else { ("BF16", 2) };
    std::fs::create_dir_all(&folder)?;
    let config = format!(
        r#"{{"model_type": "llama", "hidden_size": {HIDDEN}, "intermediate_size": {FEED},
"num_hidden_layers": {layers}, "num_attention_heads": {HEADS}, "num_key_value_heads": {KV_HEADS},
"vocab_size": {VOCABULARY}, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
"hidden_act": "silu", "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2}}
"#
    );
    std::fs::write(folder.join("config.json"), config)?;

    let list = tensors(layers);
    let mut header = String::from("{");
    let mut at = 0;
    for (name, shape) in &list {
        let end = at + size * shape.iter().product::<usize>();
        if at > 0 {
            header.push(',');
        }
        header += &format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{at},{end}]}}"#
        );
        at = end;
    }
    header.push('}');
    let padded = header.len().next_multiple_of(8);
    header.extend(std::iter::repeat_n(' ', padded - header.len()));

    let mut out =
        BufWriter::with_capacity(1 << 20, File::create(folder.join("model.safetensors"))?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for (i, (_, shape)) in list.iter().enumerate() {
        let mut values = Values {
            state: 0x9e37_79b9_7f4a_7c15 ^ (i as u64 + 1),
            scale: 0.02 / 209.0 * (0.5 + i as f32 % 7.0 / 7.0),
        };
        let mut row = Vec::with_capacity(size * shape[shape.len() - 1]);
        for _ in 0..shape.iter().product::<usize>() / shape[shape.len() - 1] {
            row.clear();
            for _ in 0..shape[shape.len() - 1] {
                match (single, values.next()) {
                    (true, value) => row.extend_from_slice(&value.to_le_bytes()),
                    (false, value) => row.extend_from_slice(&bf16(value)),
                }
            }
            out.write_all(&row)?;
        }
    }
    out.into_inner()?.sync_all()?;
    println!("{}: {} parameters, {at} bytes", folder.display(), at / size);
    Ok(())
}

//! GGUF: what real and made files become, and what is refused.

mod common;
#[path = "common/gguf.rs"]
mod made;

use common::{fixture, test_data};
use lacuna::model::{Op, Weight};
use lacuna::{DType, Model, Tokenizer};
use lacuna_convert::{Format, Options, open};
use made::{File, array, boolean, float, floats, ints, long, text, texts, uint};
use sha2::{Digest, Sha256};
use std::path::Path;

const LABEL: &str = "made.gguf";

fn open_bytes(dir: &Path, bytes: &[u8]) -> Result<Model, String> {
    let path = dir.join(LABEL);
    // Some file systems sync a file that is cut to nothing and written again.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, bytes).unwrap();
    open(&path, &Options::default()).map_err(|e| e.to_string())
}

fn open_made(file: &File) -> Result<Model, String> {
    open_bytes(tempfile::tempdir().unwrap().path(), &file.bytes())
}

/// Saves and opens again, which checks everything that the file checks.
fn round_trip(model: &Model) -> Model {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    model.save(&path).unwrap();
    let back = Model::open(&path).unwrap();
    assert_eq!(back.graph(), model.graph());
    assert_eq!(back.text, model.text);
    assert_eq!(
        back.tokenizer.as_deref(),
        model.tokenizer.as_deref(),
        "tokenizer"
    );
    back
}

#[test]
fn a_pruned_decoder_keeps_the_widths_of_its_layers() {
    let path = fixture("language/llama.gguf");
    assert_eq!(Format::of_file(&path).unwrap(), Format::Gguf);
    let model = open(&path, &Options::default()).unwrap();
    let graph = model.graph();
    assert_eq!(graph.name, "Tiny (dequantised from Q4_1, Q8_0, Q5_0, Q4_0)");
    let heads: Vec<[usize; 2]> = graph
        .nodes
        .iter()
        .filter_map(|n| match n.op {
            Op::Attention {
                heads,
                kv_heads,
                causal: true,
                cache: true,
                scale: None,
            } => Some([heads, kv_heads]),
            _ => None,
        })
        .collect();
    assert_eq!(heads, [[4, 2], [2, 1]]);
    let shape = |name: &str| model.weights()[name].shape().to_vec();
    assert_eq!(shape("model.layers.0.mlp.up_proj.weight"), [96, 64]);
    assert_eq!(shape("model.layers.1.mlp.down_proj.weight"), [64, 64]);
    let node = |name: &str| graph.nodes.iter().find(|n| n.name == name).unwrap();
    assert_eq!(
        node("lm_head").inputs[1],
        "model.embed_tokens.weight",
        "tied"
    );
    let text = model.text.as_ref().unwrap();
    assert_eq!((text.context, text.bos, text.add_bos), (128, Some(1), true));
    assert_eq!(text.eos, [0]);
    assert_eq!(
        text.chat_template.as_deref(),
        Some("{{ messages[0].content }}")
    );
    // Factors from 1 to 4 over eight angles of base 1000.
    let frequencies = model.weights()["model.rotary_emb.inv_freq"]
        .to_f32()
        .unwrap();
    assert_eq!(frequencies.len(), 8);
    for (i, f) in frequencies.iter().enumerate() {
        let plain = 1000f64.powf(-(i as f64) / 8.0);
        let expected = plain / (1.0 + 3.0 * i as f64 / 7.0);
        assert!((f64::from(*f) / expected - 1.0).abs() < 1e-6, "{i}: {f}");
    }
    round_trip(&model);
}

#[test]
fn plain_tensors_stay_in_the_file_and_in_their_dtype() {
    let model = open(fixture("language/llama.gguf"), &Options::default()).unwrap();
    for (name, dtype) in [
        ("v_proj", DType::F16),
        ("o_proj", DType::BF16),
        ("q_proj", DType::F32),
    ] {
        let weight = &model.weights()[&format!("model.layers.0.self_attn.{name}.weight")];
        assert_eq!(weight.dtype(), dtype, "{name}");
        let lacuna::model::Encoding::Dense(data) = weight.encoding() else {
            panic!("{name} is sparse")
        };
        assert_eq!(data.is_mapped(), name != "q_proj", "{name}");
    }
}

/// Every quantised type against the `gguf` package, bit for bit; queries and keys in the order of
/// halves.
#[test]
fn every_quantised_type_is_dequantised_to_the_bit() {
    let model = open(fixture("language/kinds.gguf"), &Options::default()).unwrap();
    let json = std::fs::read(fixture("language/kinds.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let expected = expected.as_object().unwrap();
    assert_eq!(expected.len(), 8);
    for (name, e) in expected {
        let values = model.weights()[name].to_f32().unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let digest: String = Sha256::digest(&bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(
            e["sha256"].as_str().unwrap(),
            digest,
            "{name} ({}): {:?}, expected {}",
            e["kind"],
            &values[..4],
            e["first"]
        );
    }
}

/// Text to tokens and back through the tokenizer that travels with the model.
#[test]
fn byte_pairs_merge_as_the_file_lists_them() {
    let model = open(fixture("language/llama.gguf"), &Options::default()).unwrap();
    let tokenizer = Tokenizer::new(&model).unwrap();
    assert_eq!(tokenizer.vocabulary(), 266);
    let token = |piece: &str| tokenizer.token(piece).unwrap();
    let pieces = |text: &str| tokenizer.encode(text, false).unwrap();
    assert_eq!(
        pieces("hello world"),
        ["hell", "o", "Ġwor", "ld"].map(token)
    );
    // Digits stand alone; special and user-defined tokens are found in the text.
    assert_eq!(
        pieces("42<|end|>he<|user|>"),
        ["4", "2", "<|end|>", "he", "<|user|>"].map(token)
    );
    assert_eq!(tokenizer.encode("he", true).unwrap(), [1, token("he")]);
    let text = "Naïve cafés, 1234 ≠ 5\n\t\u{1f642}\u{0}";
    assert_eq!(tokenizer.decode(&pieces(text)).unwrap(), text);
}

#[test]
fn every_known_cut_makes_a_tokenizer() {
    let runs = ["Ġ", "123", "4", "ĊĊ"].as_slice();
    let digits = ["Ġ", "1", "2", "3", "4", "ĊĊ"].as_slice();
    let cuts = [
        ("gpt-2", runs),
        ("smollm", digits),
        ("llama-bpe", runs),
        ("qwen2", digits),
        ("default", runs),
    ];
    for (pre, expected) in cuts {
        let tokens = ["Ġ", "1", "2", "3", "4", "Ċ", "12", "123", "ĊĊ"];
        let mut file = File::with_tokenizer();
        file.tensors.clear();
        file.add("token_embd.weight", &[4, tokens.len() as u64]);
        let rest = File::decoder().tensors.split_off(1);
        for t in rest {
            file.add(&t.name, &t.sizes);
        }
        file.set("tokenizer.ggml.pre", text(pre));
        file.set("tokenizer.ggml.tokens", texts(&tokens));
        file.unset("tokenizer.ggml.token_type");
        file.set("tokenizer.ggml.merges", texts(&["1 2", "12 3", "Ċ Ċ"]));
        let model = open_made(&file).unwrap();
        let tokenizer = Tokenizer::new(&model).unwrap();
        let ids = tokenizer.encode(" 1234\n\n", false).unwrap();
        let pieces: Vec<&str> = ids.iter().map(|&id| tokens[id as usize]).collect();
        assert_eq!(pieces, expected, "{pre}");
    }
}

/// The first Llamas' tokenizer: merges follow from scores, other bytes are spelled out.
#[test]
fn sentencepiece_merges_follow_from_scores() {
    let tokens = [
        "<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "ab", "▁a", "▁ab", "c",
    ];
    let kinds = [2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1];
    let scores = [
        0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -8.0, -8.0, -1.0, -2.0, -3.0, -8.0,
    ];
    let mut file = File::decoder();
    file.tensors.clear();
    file.add("token_embd.weight", &[4, tokens.len() as u64]);
    for t in File::decoder().tensors.split_off(1) {
        file.add(&t.name, &t.sizes);
    }
    file.set("tokenizer.ggml.model", text("llama"));
    file.set("tokenizer.ggml.tokens", texts(&tokens));
    file.set("tokenizer.ggml.token_type", ints(&kinds));
    file.set("tokenizer.ggml.scores", floats(&scores));
    file.set("tokenizer.ggml.bos_token_id", uint(1));
    let model = open_made(&file).unwrap();
    let tokenizer = Tokenizer::new(&model).unwrap();
    let pieces = |text: &str, special: bool| -> Vec<&str> {
        let ids = tokenizer.encode(text, special).unwrap();
        ids.iter().map(|&id| tokens[id as usize]).collect()
    };
    assert_eq!(pieces("ab", true), ["<s>", "▁ab"]);
    assert_eq!(pieces("a cab", false), ["▁a", "▁", "c", "ab"]);
    assert_eq!(pieces("é</s>", false), ["▁", "<0xC3>", "<0xA9>", "</s>"]);
    let ids = tokenizer.encode("ab é", false).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), "ab é");
}

#[test]
fn the_real_model_opens_and_survives_a_round_trip() {
    let Some(path) = test_data("SmolLM2-135M-Instruct.Q4_1.gguf") else {
        return;
    };
    let model = open(path, &Options::default()).unwrap();
    let elements: usize = model.weights().values().map(Weight::numel).sum();
    assert_eq!(elements, 134_515_008 + 32);
    assert_eq!(model.graph().nodes.len(), 1 + 30 * 16 + 2);
    let text = model.text.as_ref().unwrap();
    assert_eq!(
        (text.context, text.bos, text.add_bos),
        (8192, Some(1), false)
    );
    assert_eq!(text.eos, [2]);
    let tokenizer = Tokenizer::new(&model).unwrap();
    let ids = tokenizer.encode("<|im_start|>user\nhi 12<|im_end|>\n", true);
    assert_eq!(ids.unwrap(), [1, 4093, 198, 6004, 216, 33, 34, 2, 198]);
    round_trip(&model);
}

#[test]
fn a_made_decoder_opens_in_both_versions() {
    for version in [2, 3] {
        let mut file = File::with_tokenizer();
        file.version = version;
        let model = open_made(&file).unwrap();
        assert_eq!(model.graph().name, "llama");
        round_trip(&model);
    }
}

/// Rows of a head `[0, 1, 2, 3]` in the file are the pairs (0, 1) and (2, 3); in halves the first
/// elements of the pairs come first.
#[test]
fn rows_of_queries_and_keys_come_in_halves() {
    let file = File::decoder();
    let model = open_made(&file).unwrap();
    let q = model.weights()["model.layers.0.self_attn.q_proj.weight"].to_f32();
    let v = model.weights()["model.layers.0.self_attn.v_proj.weight"].to_f32();
    let (q, v) = (q.unwrap(), v.unwrap());
    let rows = |w: &[f32], order: [usize; 4]| -> Vec<f32> {
        order
            .iter()
            .flat_map(|r| w[r * 4..][..4].to_vec())
            .collect()
    };
    assert_eq!(q, rows(&v, [0, 2, 1, 3]));
}

#[test]
fn qwen_keeps_the_order_of_rows_and_may_have_biases_and_norms() {
    let mut file = File::decoder();
    file.set("general.architecture", text("qwen3"));
    for (key, _) in &mut file.meta {
        *key = key.replace("llama.", "qwen3.");
    }
    file.add("blk.0.attn_q.bias", &[4]);
    file.add("blk.0.attn_q_norm.weight", &[4]);
    file.add("blk.0.attn_k_norm.weight", &[4]);
    let model = open_made(&file).unwrap();
    let q = &model.weights()["model.layers.0.self_attn.q_proj.weight"];
    let v = &model.weights()["model.layers.0.self_attn.v_proj.weight"];
    assert_eq!(q.to_f32(), v.to_f32());
    let names: Vec<&str> = model
        .graph()
        .nodes
        .iter()
        .map(|n| n.name.as_str())
        .collect();
    for name in ["q_proj.add_bias", "q_norm", "k_norm"] {
        let name = format!("model.layers.0.self_attn.{name}");
        assert!(names.contains(&name.as_str()), "{name} of {names:?}");
    }
    round_trip(&model);
}

#[test]
fn rotary_scalings_are_read() {
    let frequencies = |change: &dyn Fn(&mut File)| {
        let mut file = File::decoder();
        change(&mut file);
        let model = open_made(&file).unwrap();
        model.weights()["model.rotary_emb.inv_freq"]
            .to_f32()
            .unwrap()
    };
    assert_eq!(frequencies(&|_| ()), [1.0, 0.01]);
    let linear = frequencies(&|f| {
        f.set("llama.rope.scaling.type", text("linear"));
        f.set("llama.rope.scaling.factor", float(4.0));
    });
    assert_eq!(linear, [0.25, 0.0025]);
    let base = frequencies(&|f| f.set("llama.rope.freq_base", float(100.0)));
    assert_eq!(base, [1.0, 0.1]);
}

type Change = fn(&mut File);

/// What is changed in a file that opens, and what the error must say.
const HOSTILE: &[(&str, Change, &[&str])] = &[
    ("version 1", |f| f.version = 1, &["version 1"]),
    ("version 4", |f| f.version = 4, &["version 4", "2 and 3"]),
    (
        "big-endian",
        |f| f.version = 3u32.swap_bytes(),
        &["big-endian"],
    ),
    (
        "absurd tensor count",
        |f| f.counts[0] = Some(u64::MAX),
        &["18446744073709551615"],
    ),
    (
        "absurd metadata count",
        |f| f.counts[1] = Some(1 << 60),
        &["metadata"],
    ),
    (
        "a key twice",
        |f| f.meta.push(("llama.block_count".into(), uint(1))),
        &["`llama.block_count` stands twice"],
    ),
    (
        "a value of an unknown type",
        |f| f.set("general.name", made::Raw(13, vec![0])),
        &["`general.name`", "unknown type 13"],
    ),
    (
        "a boolean of 2",
        |f| f.set("tokenizer.ggml.add_bos_token", boolean(2)),
        &["boolean of 2"],
    ),
    (
        "text that is not UTF-8",
        |f| {
            let mut bad = 1u64.to_le_bytes().to_vec();
            bad.push(0xff);
            f.set("general.name", made::Raw(8, bad));
        },
        &["`general.name`", "UTF-8"],
    ),
    (
        "text longer than the file",
        |f| f.set("general.name", made::Raw(8, vec![0xff; 8])),
        &["`general.name`", "truncated"],
    ),
    (
        "an array longer than the file",
        |f| f.set("general.x", array(4, 1 << 40, &[])),
        &["`general.x`", "truncated"],
    ),
    (
        "an array whose length overflows",
        |f| f.set("general.x", array(10, u64::MAX, &[])),
        &["`general.x`", "overflows"],
    ),
    (
        "an array of an unknown type",
        |f| f.set("general.x", array(99, 0, &[])),
        &["`general.x`", "unknown type 99"],
    ),
    (
        "arrays nested without end",
        |f| {
            let mut inner = Vec::new();
            for _ in 0..64 {
                inner.extend(9u32.to_le_bytes());
                inner.extend(1u64.to_le_bytes());
            }
            f.set("general.x", array(9, 1, &inner));
        },
        &["`general.x`", "nested"],
    ),
    (
        "an alignment of 0",
        |f| f.set("general.alignment", uint(0)),
        &["`general.alignment` is 0"],
    ),
    (
        "an alignment of 48",
        |f| f.set("general.alignment", uint(48)),
        &["`general.alignment` is 48"],
    ),
    (
        "an alignment as text",
        |f| f.set("general.alignment", text("32")),
        &["`general.alignment` is `32`", "expected"],
    ),
    (
        "no axes",
        |f| f.tensor("output_norm.weight").sizes.clear(),
        &["`output_norm.weight`", "0 axes"],
    ),
    (
        "five axes",
        |f| f.tensor("output_norm.weight").sizes = vec![1; 5],
        &["`output_norm.weight`", "5 axes"],
    ),
    (
        "an axis of 0",
        |f| f.tensor("output_norm.weight").sizes = vec![0],
        &["`output_norm.weight`", "axis of 0"],
    ),
    (
        "a shape that overflows",
        |f| f.tensor("output_norm.weight").sizes = vec![1 << 40, 1 << 40],
        &["`output_norm.weight`", "overflows"],
    ),
    (
        "a tensor larger than the file",
        |f| f.tensor("output_norm.weight").sizes = vec![1 << 40],
        &["`output_norm.weight`", "truncated"],
    ),
    (
        "an offset behind the file",
        |f| f.tensor("output_norm.weight").offset = 1 << 50,
        &["`output_norm.weight`", "1125899906842624"],
    ),
    (
        "an offset that overflows",
        |f| f.tensor("output_norm.weight").offset = u64::MAX - 31,
        &["`output_norm.weight`", "18446744073709551584"],
    ),
    (
        "an unaligned offset",
        |f| f.tensor("output_norm.weight").offset += 4,
        &["`output_norm.weight`", "no multiple of 32"],
    ),
    (
        "overlapping tensors",
        |f| f.tensor("output_norm.weight").offset = 32,
        &["inside tensor"],
    ),
    (
        "a name twice",
        |f| f.tensor("blk.0.ffn_norm.weight").name = "output_norm.weight".into(),
        &["`output_norm.weight`", "twice"],
    ),
    (
        "an unknown element type",
        |f| f.tensor("output_norm.weight").kind = 77,
        &["`output_norm.weight`", "unknown type 77", "Q4_K"],
    ),
    (
        "an element type that is not read",
        |f| f.tensor("output_norm.weight").kind = 10,
        &["`output_norm.weight`", "Q2_K", "supported"],
    ),
    (
        "rows that are no whole blocks",
        |f| f.tensor("token_embd.weight").kind = 2,
        &["`token_embd.weight`", "rows of 4", "blocks of 32"],
    ),
    (
        "a tensor of another architecture",
        |f| f.tensor("blk.0.ffn_up.weight").name = "blk.0.ffn_up_exps.weight".into(),
        &["`blk.0.ffn_up_exps.weight`"],
    ),
    (
        "a layer number with a zero before it",
        |f| f.tensor("blk.0.ffn_up.weight").name = "blk.00.ffn_up.weight".into(),
        &["`blk.00.ffn_up.weight`"],
    ),
    (
        "a missing tensor",
        |f| f.tensors.retain(|t| t.name != "blk.0.ffn_down.weight"),
        &["missing tensors", "model.layers.0.mlp.down_proj.weight"],
    ),
    (
        "a layer too many",
        |f| f.set("llama.block_count", uint(2)),
        &["2 layers, of which 1"],
    ),
    (
        "4 billion layers",
        |f| f.set("llama.block_count", uint(u32::MAX)),
        &["4294967295 layers"],
    ),
    (
        "no architecture",
        |f| f.unset("general.architecture"),
        &["`general.architecture` is missing"],
    ),
    (
        "an unknown architecture",
        |f| f.set("general.architecture", text("mamba")),
        &["mamba", "supported: llama, qwen2, qwen3"],
    ),
    (
        "an architecture as a number",
        |f| f.set("general.architecture", uint(3)),
        &["`general.architecture` is 3", "expected text"],
    ),
    (
        "no head count",
        |f| f.unset("llama.attention.head_count"),
        &["`llama.attention.head_count` is missing"],
    ),
    (
        "no heads",
        |f| f.set("llama.attention.head_count", uint(0)),
        &["0 heads"],
    ),
    (
        "heads that do not divide",
        |f| f.set("llama.attention.head_count", uint(3)),
        &["3 heads of 4"],
    ),
    (
        "a huge head",
        |f| f.set("llama.attention.key_length", long(1 << 60)),
        &["1152921504606846976"],
    ),
    (
        "an odd head",
        |f| f.set("llama.attention.key_length", uint(1)),
        &["heads of 1"],
    ),
    (
        "a list of heads for other layers",
        |f| f.set("llama.attention.head_count", ints(&[1, 1])),
        &["`llama.attention.head_count`", "2 elements for 1"],
    ),
    (
        "a negative head count",
        |f| f.set("llama.attention.head_count", ints(&[-1])),
        &["`llama.attention.head_count`", "-1"],
    ),
    (
        "listed heads that the tensors do not have",
        |f| {
            f.set("llama.attention.key_length", uint(2));
            f.set("llama.attention.head_count", ints(&[2]));
            f.set("llama.attention.head_count_kv", ints(&[1]));
        },
        &["layer 0 has 2 query and 1 key heads"],
    ),
    (
        "no epsilon",
        |f| f.unset("llama.attention.layer_norm_rms_epsilon"),
        &["layer_norm_rms_epsilon` is missing"],
    ),
    (
        "an epsilon that is no number",
        |f| f.set("llama.attention.layer_norm_rms_epsilon", float(f32::NAN)),
        &["layer_norm_rms_epsilon` is NaN"],
    ),
    (
        "a base of 0",
        |f| f.set("llama.rope.freq_base", float(0.0)),
        &["base of 0"],
    ),
    (
        "a rotation of part of a head",
        |f| f.set("llama.rope.dimension_count", uint(2)),
        &["2 of the 4"],
    ),
    (
        "an unknown rotary scaling",
        |f| f.set("llama.rope.scaling.type", text("longrope")),
        &["longrope", "supported"],
    ),
    (
        "a rotary scaling by 0",
        |f| {
            f.set("llama.rope.scaling.type", text("linear"));
            f.set("llama.rope.scaling.factor", float(0.0));
        },
        &["factor of 0"],
    ),
    (
        "rotary factors of another head",
        |f| f.add("rope_freqs.weight", &[5]),
        &["5 factors for 2"],
    ),
    (
        "a mixture of experts",
        |f| f.set("llama.expert_count", uint(8)),
        &["8 experts"],
    ),
    (
        "no context",
        |f| f.unset("llama.context_length"),
        &["`llama.context_length` is missing"],
    ),
    (
        "an unknown tokenizer",
        |f| f.set("tokenizer.ggml.model", text("rwkv")),
        &["rwkv", "supported: gpt2, llama"],
    ),
    (
        "an unknown cut",
        |f| f.set("tokenizer.ggml.pre", text("klingon")),
        &["klingon", "smollm", "llama-bpe", "qwen2", "default"],
    ),
    (
        "more tokens than the embedding has",
        |f| {
            f.set("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "c"]));
            f.unset("tokenizer.ggml.token_type");
        },
        &["4 tokens, the embedding has 3"],
    ),
    (
        "a token twice",
        |f| f.set("tokenizer.ggml.tokens", texts(&["a", "b", "a"])),
        &["`a` is token 0 and token 2"],
    ),
    (
        "tokens as numbers",
        |f| f.set("tokenizer.ggml.tokens", ints(&[1, 2, 3])),
        &["`tokenizer.ggml.tokens`", "expected an array of text"],
    ),
    (
        "types of other tokens",
        |f| f.set("tokenizer.ggml.token_type", ints(&[1])),
        &["1 elements for 3 tokens"],
    ),
    (
        "an unknown token type",
        |f| f.set("tokenizer.ggml.token_type", ints(&[1, 9, 1])),
        &["token 1 is of type 9"],
    ),
    (
        "no merges",
        |f| f.unset("tokenizer.ggml.merges"),
        &["`tokenizer.ggml.merges` is missing"],
    ),
    (
        "a merge of one part",
        |f| f.set("tokenizer.ggml.merges", texts(&["ab"])),
        &["`ab`", "no space"],
    ),
    (
        "a merge of three parts",
        |f| f.set("tokenizer.ggml.merges", texts(&["a b b"])),
        &["`a b b`", "more than one space"],
    ),
    (
        "a merge into no token",
        |f| f.set("tokenizer.ggml.merges", texts(&["b a"])),
        &["`ba`, which is no token"],
    ),
    (
        "an end token that is none",
        |f| f.set("tokenizer.ggml.eos_token_id", uint(3)),
        &["eos_token_id` is 3", "3 tokens"],
    ),
    (
        "scores of other tokens",
        |f| {
            f.set("tokenizer.ggml.model", text("llama"));
            f.set("tokenizer.ggml.scores", floats(&[0.0]));
        },
        &["`tokenizer.ggml.scores`", "1 elements"],
    ),
];

#[test]
fn every_hostile_file_is_refused_with_its_fault() {
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (name, change, expected) in HOSTILE {
        let mut file = File::with_tokenizer();
        change(&mut file);
        match open_bytes(dir.path(), &file.bytes()) {
            Ok(_) => wrong.push(format!("{name}: opened")),
            Err(said) => {
                let misses: Vec<_> = expected.iter().filter(|e| !said.contains(**e)).collect();
                if !misses.is_empty() || !said.contains(LABEL) || said.len() > 1000 {
                    wrong.push(format!("{name}: {said}\n    misses {misses:?}"));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "of {} cases:\n{}",
        HOSTILE.len(),
        wrong.join("\n")
    );
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = File::with_tokenizer().bytes();
    for end in 4..whole.len() {
        let said = open_bytes(dir.path(), &whole[..end]).expect_err(&format!("cut at {end}"));
        assert!(said.contains(LABEL), "{said}");
    }
}

/// A changed byte may make another sound file; it never makes a panic.
#[test]
fn no_changed_byte_panics() {
    let dir = tempfile::tempdir().unwrap();
    let whole = File::with_tokenizer().bytes();
    let header = whole.len() - 800;
    for at in 0..header {
        let mut bytes = whole.clone();
        bytes[at] ^= [0x01, 0x80, 0xff][at % 3];
        let _ = open_bytes(dir.path(), &bytes);
    }
}

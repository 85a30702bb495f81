//! The tokenizer of a GGUF file as a `tokenizer.json`, and the facts about text beside it.

use super::decoder::Family;
use super::sentencepiece;
use super::value::Metadata;
use crate::source::shown;
use lacuna::model::Text;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A tokenizer.
pub(super) struct Tokenizer {
    /// The bytes of a `tokenizer.json`.
    pub json: Vec<u8>,
    tokens: usize,
    /// Whether a text starts with the start token where the file does not say.
    starts: bool,
}

/// Token types of the file.
pub(super) mod kind {
    pub const NORMAL: i64 = 1;
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER: i64 = 4;
    pub const BYTE: i64 = 6;
}

/// The tokens of a file, with their types.
pub(super) struct Vocabulary<'a> {
    pub tokens: Vec<&'a str>,
    pub kinds: Vec<i64>,
    pub ids: BTreeMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &Metadata<'a>, limit: usize) -> Result<Vocabulary<'a>, String> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        const TYPES: &str = "tokenizer.ggml.token_type";
        let tokens = metadata.require(TOKENS, metadata.texts(TOKENS)?)?;
        if tokens.len() > limit {
            return Err(format!(
                "metadata `{TOKENS}` has {} tokens, the embedding has {limit}",
                tokens.len()
            ));
        }
        let kinds = match metadata.wholes(TYPES)? {
            Some(kinds) => kinds,
            None => vec![kind::NORMAL; tokens.len()],
        };
        if kinds.len() != tokens.len() {
            return Err(format!(
                "metadata `{TYPES}` has {} elements for {} tokens",
                kinds.len(),
                tokens.len()
            ));
        }
        if let Some(i) = kinds
            .iter()
            .position(|k| !(kind::NORMAL..=kind::BYTE).contains(k))
        {
            return Err(format!(
                "metadata `{TYPES}`: token {i} is of type {}",
                kinds[i]
            ));
        }
        let mut ids = BTreeMap::new();
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(*token, id) {
                return Err(format!(
                    "metadata `{TOKENS}`: `{}` is token {first} and token {id}",
                    shown(token)
                ));
            }
        }
        Ok(Vocabulary { tokens, kinds, ids })
    }

    /// The tokens that are matched in the text before anything else.
    fn added(&self) -> Vec<Value> {
        let one = |(id, (token, kind)): (usize, (&&str, &i64))| {
            let special = matches!(*kind, kind::CONTROL | kind::UNKNOWN);
            (special || *kind == kind::USER).then(|| {
                json!({
                    "id": id,
                    "content": token,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": special,
                })
            })
        };
        let all = self.tokens.iter().zip(&self.kinds).enumerate();
        all.filter_map(one).collect()
    }
}

/// The Llama 3 pattern, with `digits` for a run of numerals.
fn split_pattern(digits: &str) -> String {
    format!(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|{digits}\
         | ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
    )
}

/// The pattern of GPT-2.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

fn split(pattern: &str) -> Value {
    json!({
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": false,
    })
}

fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": true,
        "use_regex": use_regex,
    })
}

fn sequence(parts: Vec<Value>) -> Value {
    json!({"type": "Sequence", "pretokenizers": parts})
}

/// How text is cut before merges, by the name in `tokenizer.ggml.pre`.
struct Cut {
    names: &'static [&'static str],
    normalizer: fn() -> Value,
    parts: fn() -> Value,
    ignore_merges: bool,
    starts: bool,
}

const CUTS: [Cut; 5] = [
    Cut {
        names: &["gpt-2", "gpt2"],
        normalizer: || Value::Null,
        parts: || byte_level(true),
        ignore_merges: false,
        starts: false,
    },
    Cut {
        names: &["smollm"],
        normalizer: || Value::Null,
        parts: || {
            let digits = json!({"type": "Digits", "individual_digits": true});
            sequence(vec![digits, byte_level(true)])
        },
        ignore_merges: false,
        starts: false,
    },
    Cut {
        names: &["llama-bpe", "llama3", "llama-v3"],
        normalizer: || Value::Null,
        parts: || {
            sequence(vec![
                split(&split_pattern("\\p{N}{1,3}")),
                byte_level(false),
            ])
        },
        ignore_merges: true,
        starts: true,
    },
    Cut {
        names: &["qwen2"],
        normalizer: || json!({"type": "NFC"}),
        parts: || sequence(vec![split(&split_pattern("\\p{N}")), byte_level(false)]),
        ignore_merges: false,
        starts: false,
    },
    Cut {
        names: &["default"],
        normalizer: || Value::Null,
        parts: || {
            let mut all: Vec<Value> = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]
                .map(split)
                .to_vec();
            all.push(byte_level(false));
            sequence(all)
        },
        ignore_merges: false,
        starts: false,
    },
];

/// The tokenizer of the file for an embedding of `limit` tokens; `None` where there is none.
pub(super) fn read(metadata: &Metadata<'_>, limit: usize) -> Result<Option<Tokenizer>, String> {
    const MODEL: &str = "tokenizer.ggml.model";
    let byte_pairs = match metadata.text(MODEL)? {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some("gpt2") => true,
        Some("llama") => false,
        Some(other) => {
            return Err(format!(
                "metadata `{MODEL}` is `{}`; supported: gpt2, llama, none",
                shown(other)
            ));
        }
    };
    let vocabulary = Vocabulary::read(metadata, limit)?;
    let (mut document, starts) = if byte_pairs {
        bpe(metadata, &vocabulary)?
    } else {
        (sentencepiece::document(metadata, &vocabulary)?, true)
    };
    document["version"] = "1.0".into();
    document["truncation"] = Value::Null;
    document["padding"] = Value::Null;
    document["added_tokens"] = vocabulary.added().into();
    Ok(Some(Tokenizer {
        json: document.to_string().into_bytes(),
        tokens: vocabulary.tokens.len(),
        starts,
    }))
}

/// Byte-level byte pair encoding.
fn bpe(metadata: &Metadata<'_>, vocabulary: &Vocabulary<'_>) -> Result<(Value, bool), String> {
    const PRE: &str = "tokenizer.ggml.pre";
    let pre = metadata.text(PRE)?.unwrap_or("default");
    let cut = CUTS
        .iter()
        .find(|c| c.names.contains(&pre))
        .ok_or_else(|| {
            let known: Vec<&str> = CUTS.iter().flat_map(|c| c.names).copied().collect();
            format!(
                "metadata `{PRE}` is `{}`; supported: {}",
                shown(pre),
                known.join(", ")
            )
        })?;
    const MERGES: &str = "tokenizer.ggml.merges";
    let merges = metadata.require(MERGES, metadata.texts(MERGES)?)?;
    for (i, merge) in merges.iter().enumerate() {
        check_merge(merge, vocabulary).map_err(|what| {
            format!(
                "metadata `{MERGES}`: element {i}, `{}`, {what}",
                shown(merge)
            )
        })?;
    }
    let document = json!({
        "normalizer": (cut.normalizer)(),
        "pre_tokenizer": (cut.parts)(),
        "post_processor": byte_level(true),
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": cut.ignore_merges,
            "vocab": vocabulary.ids,
            "merges": merges,
        },
    });
    Ok((document, cut.starts))
}

/// A merge is two tokens with a space between, and what they make is a token too.
fn check_merge(merge: &str, vocabulary: &Vocabulary<'_>) -> Result<(), String> {
    let Some((left, right)) = merge.split_once(' ') else {
        return Err("has no space between its parts".into());
    };
    if right.contains(' ') {
        return Err("has more than one space".into());
    }
    let joined = format!("{left}{right}");
    match [left, right, &joined]
        .iter()
        .find(|t| !vocabulary.ids.contains_key(**t))
    {
        Some(absent) => Err(format!("has `{}`, which is no token", shown(absent))),
        None => Ok(()),
    }
}

/// How the model is fed and when it stops.
pub(super) fn text(
    metadata: &Metadata<'_>,
    family: Family,
    tokenizer: Option<&Tokenizer>,
) -> Result<Text, String> {
    let token = |key: &str| -> Result<Option<u32>, String> {
        let key = format!("tokenizer.ggml.{key}");
        let Some(id) = metadata.whole(&key)? else {
            return Ok(None);
        };
        let known = tokenizer.map_or(usize::MAX, |t| t.tokens);
        match u32::try_from(id) {
            Ok(id) if (id as usize) < known => Ok(Some(id)),
            _ => Err(format!(
                "metadata `{key}` is {id}, there are {known} tokens"
            )),
        }
    };
    let key = format!("{}.context_length", family.name);
    let mut context = metadata.require(&key, metadata.size(&key)?)?;
    let window = metadata.size(&format!("{}.attention.sliding_window", family.name))?;
    if let Some(window) = window.filter(|&w| w > 0) {
        // Beyond the window the model would forget what we keep.
        context = context.min(window);
    }
    let mut eos = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        if let Some(id) = token(key)?
            && !eos.contains(&id)
        {
            eos.push(id);
        }
    }
    let bos = token("bos_token_id")?;
    let starts = metadata.bool("tokenizer.ggml.add_bos_token")?;
    Ok(Text {
        context,
        bos,
        add_bos: bos.is_some() && starts.unwrap_or(tokenizer.is_some_and(|t| t.starts)),
        eos,
        chat_template: metadata.text("tokenizer.chat_template")?.map(str::to_owned),
    })
}

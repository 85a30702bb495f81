//! The tokenizer of a directory, and the facts about text beside it.

use super::config::{Object, read_json, read_small};
use crate::source::{Source, shown};
use crate::{Error, Result};
use lacuna::model::{Bytes, Text};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// What is looked at in a `tokenizer.json`.
#[derive(Default, Deserialize)]
struct Document {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    post_processor: Option<Value>,
    #[serde(rename = "model")]
    _model: Model,
}

/// That a tokenizer's model is an object; the rest is for the tokenizer to read.
#[derive(Default, Deserialize)]
struct Model {}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// The tokenizer and how the model is fed and when it stops.
pub(super) struct Facts {
    pub tokenizer: Option<Bytes>,
    pub text: Text,
}

/// Reads the tokenizer; its bytes stay in the file.
fn tokenizer(path: &Path) -> Result<Option<(Bytes, Document)>> {
    if !path.exists() {
        return Ok(None);
    }
    let source = Source::open(path)?;
    let document = serde_json::from_slice(&source.bytes)
        .map_err(|e| source.error(format!("no tokenizer: {e}")))?;
    Ok(Some((source.bytes, document)))
}

/// What a directory says about the text of its model, made for `context` positions.
pub(super) fn read(folder: &Path, config: &Object, context: usize) -> Result<Facts> {
    let found = tokenizer(&folder.join("tokenizer.json"))?;
    let (bytes, document) = match found {
        Some((bytes, document)) => (Some(bytes), document),
        None => (None, Document::default()),
    };
    let path = folder.join("tokenizer_config.json");
    let settings = Object::read(&path)?.unwrap_or_else(|| Object::empty(&path));
    let path = folder.join("generation_config.json");
    let generation = Object::read(&path)?.unwrap_or_else(|| Object::empty(&path));

    let either = |key: &str| -> Result<Vec<u32>> {
        Ok(match generation.tokens(key)? {
            Some(tokens) => tokens,
            None => config.tokens(key)?.unwrap_or_default(),
        })
    };
    let mut eos = either("eos_token_id")?;
    if let Some(token) = named(&settings, "eos_token", &document)?
        && !eos.contains(&token)
    {
        eos.push(token);
    }
    let bos = match either("bos_token_id")?.first() {
        Some(&token) => Some(token),
        None => named(&settings, "bos_token", &document)?,
    };
    let starts = settings.bool("add_bos_token")?;
    let starts = starts.unwrap_or_else(|| bos.is_some() && first_token(&document) == bos);
    Ok(Facts {
        tokenizer: bytes,
        text: Text {
            context,
            bos,
            add_bos: bos.is_some() && starts,
            eos,
            chat_template: chat_template(folder, &settings)?,
        },
    })
}

/// The token that a key of `tokenizer_config.json` names, as text or as an object with `content`.
fn named(settings: &Object, key: &str, document: &Document) -> Result<Option<u32>> {
    let name = match settings.get(key) {
        Some(Value::Object(_)) => {
            let token = settings.object(key)?;
            token.map(|t| t.text("content")).transpose()?.flatten()
        }
        _ => settings.text(key)?,
    };
    let id = |name: String| {
        let token = document.added_tokens.iter().find(|t| t.content == name);
        token.map(|t| t.id)
    };
    Ok(name.and_then(id))
}

/// The token that the tokenizer puts before every text.
fn first_token(document: &Document) -> Option<u32> {
    let processor = document.post_processor.as_ref()?;
    let list = processor["processors"].as_array();
    let all = list.map_or(std::slice::from_ref(processor), Vec::as_slice);
    all.iter().find_map(|p| {
        let name = p["single"][0]["SpecialToken"]["id"].as_str()?;
        let id = p["special_tokens"][name]["ids"][0].as_u64()?;
        u32::try_from(id).ok()
    })
}

fn chat_template(folder: &Path, settings: &Object) -> Result<Option<String>> {
    let path = folder.join("chat_template.jinja");
    if let Some(bytes) = read_small(&path)? {
        let text = String::from_utf8(bytes).map_err(|_| Error::Format {
            path,
            what: "not UTF-8".into(),
        })?;
        return Ok(Some(text));
    }
    const KEY: &str = "chat_template";
    let Some(Value::Array(list)) = settings.get(KEY) else {
        return settings.text(KEY);
    };
    let named = |name: &str| list.iter().find(|t| t["name"] == name);
    match named("default").or(list.first()).map(|t| &t["template"]) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(settings.error(format!(
            "`{KEY}` has a template of {}, expected text",
            shown(&other.to_string())
        ))),
    }
}

/// What follows the encoder in a directory of sentence-transformers.
pub(super) struct Sentence {
    pub normalize: bool,
    /// The most tokens of a text.
    pub context: Option<usize>,
}

/// Reads `modules.json`; `None` when there is none.
pub(super) fn sentence(folder: &Path) -> Result<Option<Sentence>> {
    let path = folder.join("modules.json");
    let Some(value) = read_json(&path)? else {
        return Ok(None);
    };
    let fault = |what: String| Error::Format {
        path: path.clone(),
        what,
    };
    let Value::Array(list) = value else {
        return Err(fault("expected a list of modules".into()));
    };
    let mut kinds = Vec::new();
    for (i, module) in list.into_iter().enumerate() {
        let module = Object::of(&path, format!("{i}."), module)?;
        let kind = module.text("type")?;
        let kind = module.need("type", kind)?;
        let kind = kind.rsplit('.').next().unwrap_or_default().to_owned();
        if kind == "Pooling" {
            let place = module.text("path")?;
            pooling(folder, &module.need("path", place)?, &module)?;
        }
        kinds.push(kind);
    }
    let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
    let normalize = match kinds[..] {
        ["Transformer", "Pooling"] => false,
        ["Transformer", "Pooling", "Normalize"] => true,
        _ => {
            return Err(fault(format!(
                "modules {}; supported: Transformer, Pooling and perhaps Normalize",
                shown(&kinds.join(", "))
            )));
        }
    };
    let context = Object::read(&folder.join("sentence_bert_config.json"))?
        .map(|c| c.whole("max_seq_length"))
        .transpose()?
        .flatten();
    Ok(Some(Sentence { normalize, context }))
}

/// Checks that a pooling module takes the mean.
fn pooling(folder: &Path, place: &str, module: &Object) -> Result<()> {
    if Path::new(place).file_name().is_none_or(|n| n != place) {
        return Err(module.error(format!("`path` is `{}`, not a folder here", shown(place))));
    }
    let config = Object::require(&folder.join(place).join("config.json"))?;
    for key in config.keys() {
        let Some(mode) = key.strip_prefix("pooling_mode_") else {
            continue;
        };
        let wanted = mode == "mean_tokens";
        if config.bool(key)?.unwrap_or(wanted) != wanted {
            return Err(config.error(format!("`{}`; mean pooling is supported", shown(key))));
        }
    }
    match config.text("pooling_mode")? {
        Some(mode) if mode != "mean" => Err(config.error(format!(
            "`pooling_mode` is `{}`; mean pooling is supported",
            shown(&mode)
        ))),
        _ => Ok(()),
    }
}

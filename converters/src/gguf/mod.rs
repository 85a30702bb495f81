//! GGUF files, versions 2 and 3: decoders of the Llama family with their tokenizer. Quantised
//! tensors become f32; F32, F16 and BF16 stay as they are, mapped where their order allows.

mod container;
mod decoder;
mod quant;
mod sentencepiece;
mod tokenizer;
mod value;

use crate::source::{Source, shown};
use crate::{Error, Options, Result};
use container::Container;
use lacuna::Model;
use std::collections::BTreeMap;

/// Reads a whole file as a model.
pub(crate) fn read(source: &Source, options: &Options) -> Result<Model> {
    let container = Container::parse(source)?;
    let metadata = &container.metadata;
    let fail = |what: String| source.error(what);
    let arch = metadata.text("general.architecture").map_err(fail)?;
    let arch = metadata
        .require("general.architecture", arch)
        .map_err(fail)?;
    let family = decoder::Family::of(arch).ok_or_else(|| Error::Arch {
        path: source.path.clone(),
        arch: shown(arch),
        what: format!("not read from GGUF; supported: {}", decoder::supported()),
    })?;
    let weights = decoder::weights(source, &container, family)?;
    let wrong = |what| Error::Arch {
        path: source.path.clone(),
        arch: arch.to_owned(),
        what,
    };
    let plan = decoder::describe(source, &container, family).map_err(wrong)?;
    let decoder = lm_name(&container, plan).map_err(wrong)?;
    let (graph, weights) = decoder
        .build(weights, options.input.as_deref())
        .map_err(wrong)?;
    let tokens = graph_tokens(&weights);
    let mut model = Model::new(graph, weights).map_err(|e| source.model_error(e))?;
    let tokenizer = tokenizer::read(metadata, tokens).map_err(fail)?;
    model.text = Some(tokenizer::text(metadata, family, tokenizer.as_ref()).map_err(fail)?);
    model.tokenizer = tokenizer.map(|t| t.json.into());
    model.metadata.source = Some(source.sha256());
    Ok(model)
}

/// The number of tokens that the embedding knows.
fn graph_tokens(weights: &lacuna::model::Weights) -> usize {
    let embedding = weights.get(crate::lm::EMBEDDING);
    embedding
        .and_then(|w| w.shape().first())
        .copied()
        .unwrap_or(0)
}

/// Gives the decoder the model's name, and says what its weights were before.
fn lm_name(
    container: &Container<'_>,
    mut decoder: crate::lm::Decoder,
) -> Result<crate::lm::Decoder, String> {
    let mut elements: BTreeMap<quant::Kind, usize> = BTreeMap::new();
    for info in container.tensors.values() {
        if info.kind.plain().is_none() {
            *elements.entry(info.kind).or_default() += info.shape.iter().product::<usize>();
        }
    }
    let mut kinds: Vec<_> = elements.into_iter().collect();
    kinds.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
    let kinds: Vec<String> = kinds.iter().map(|(k, _)| k.to_string()).collect();
    let name = container.metadata.text("general.name")?;
    decoder.name = name.map_or_else(|| decoder.name.clone(), shown);
    if !kinds.is_empty() {
        decoder.name += &format!(" (dequantised from {})", kinds.join(", "));
    }
    Ok(decoder)
}

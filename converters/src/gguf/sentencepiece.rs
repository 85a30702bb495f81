//! SentencePiece's byte pair encoding with byte fallback, as the first Llamas have it: merges
//! follow from the scores of the pieces.

use super::tokenizer::{Vocabulary, kind};
use super::value::Metadata;
use crate::source::shown;
use serde_json::{Value, json};

/// The longest piece, in bytes: every cut of a piece is tried.
const LONGEST: usize = 512;

/// One merge.
struct Merge<'a> {
    left: &'a str,
    right: &'a str,
    score: f32,
    lengths: [usize; 2],
}

/// Every pair of pieces that makes a piece, best score first, then the longest left part.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Result<Vec<[String; 2]>, String> {
    let plain = |id: usize| matches!(vocabulary.kinds[id], kind::NORMAL | kind::USER);
    let part = |text: &str| vocabulary.ids.get(text).is_some_and(|&id| plain(id));
    let mut all = Vec::new();
    for (id, &piece) in vocabulary.tokens.iter().enumerate() {
        if !plain(id) {
            continue;
        }
        if piece.len() > LONGEST {
            return Err(format!("token {id}, `{}`, is too long", shown(piece)));
        }
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if part(left) && part(right) {
                all.push(Merge {
                    left,
                    right,
                    score: scores[id],
                    lengths: [left.chars().count(), right.chars().count()],
                });
            }
        }
    }
    all.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.lengths.cmp(&a.lengths)));
    let pair = |m: &Merge<'_>| [m.left.to_owned(), m.right.to_owned()];
    Ok(all.iter().map(pair).collect())
}

/// The tokenizer without what every tokenizer has.
pub(super) fn document(
    metadata: &Metadata<'_>,
    vocabulary: &Vocabulary<'_>,
) -> Result<Value, String> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores = metadata.require(SCORES, metadata.floats(SCORES)?)?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(format!(
            "metadata `{SCORES}` has {} elements for {} tokens",
            scores.len(),
            vocabulary.tokens.len()
        ));
    }
    let prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?;
    let prefix = prefix.unwrap_or(true);
    let unknown = vocabulary.kinds.iter().position(|&k| k == kind::UNKNOWN);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let mut normalizers = vec![replace];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown.map(|id| vocabulary.tokens[id]),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary.ids,
            "merges": merges(vocabulary, &scores)?,
        },
    }))
}

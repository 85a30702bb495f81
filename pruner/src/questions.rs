//! Multiple choice by likelihood: which of several continuations a language model finds likeliest.

use crate::perplexity::{PerplexityOptions, nll};
use crate::{Error, Result};
use lacuna::{Model, Tokenizer};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A line of a file of questions: JSON of these three.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// What stands before every choice.
    pub prompt: String,
    /// The continuations; a space goes between where neither side has white space.
    pub choices: Vec<String>,
    /// The index of the right one, from 0.
    pub answer: usize,
}

/// A question in tokens.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// For each choice the prompt with it, how many tokens are the prompt's, and bytes of the choice.
    choices: Vec<(Vec<u32>, usize, usize)>,
    answer: usize,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MultipleChoice {
    /// Questions.
    pub questions: usize,
    /// Those whose right choice is the likeliest.
    pub correct: usize,
    /// Those whose right choice is the likeliest by the byte.
    pub correct_by_byte: usize,
    /// 95 % intervals of both shares (Wilson).
    pub interval: [f64; 2],
    /// As `interval`, by the byte.
    pub interval_by_byte: [f64; 2],
    /// The mean over questions of one over the number of choices.
    pub chance: f64,
    /// The choice of each question, and that by the byte.
    pub chosen: Vec<[usize; 2]>,
    /// The instruction set that ran.
    pub isa: String,
}

/// Reads a file of questions, a line of JSON each; empty lines are skipped.
///
/// # Errors
/// When the file cannot be read, a line is no question, or there is none.
pub fn read(path: &Path) -> Result<Vec<Question>> {
    let fault = |what: String| Error::Data {
        path: path.to_owned(),
        what,
    };
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })?;
    let mut questions = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|l| !l.1.trim().is_empty()) {
        let line_fault = |what: String| fault(format!("line {}: {what}", i + 1));
        let question: Question =
            serde_json::from_str(line).map_err(|e| line_fault(e.to_string()))?;
        let (n, at) = (question.choices.len(), question.answer);
        if n < 2 || at >= n {
            return Err(line_fault(format!("{n} choices, of which {at} is right")));
        }
        questions.push(question);
    }
    match questions.is_empty() {
        true => Err(fault("holds no question".into())),
        false => Ok(questions),
    }
}

/// Questions in the tokens of `model`.
///
/// # Errors
/// When the model has no tokenizer, or a prompt or a choice has no token; the number of the question is given, from 1.
pub fn encode(model: &Model, questions: &[Question]) -> Result<Vec<Encoded>> {
    let tokenizer = Tokenizer::new(model)?;
    let one = |(i, q): (usize, &Question)| -> Result<Encoded> {
        let refuse = |what: &str| Error::Evaluation(format!("question {}: {what}", i + 1));
        let prompt = tokenizer.encode(&q.prompt, false)?;
        if prompt.is_empty() {
            return Err(refuse("its prompt has no token"));
        }
        let choice = |choice: &String| -> Result<(Vec<u32>, usize, usize)> {
            let apart =
                q.prompt.ends_with(char::is_whitespace) || choice.starts_with(char::is_whitespace);
            let between = if apart { "" } else { " " };
            let whole = tokenizer.encode(&format!("{}{between}{choice}", q.prompt), false)?;
            // Where a token reaches over the end of the prompt it belongs to the choice.
            let pairs = prompt.iter().zip(&whole);
            let same = pairs.take_while(|(a, b)| a == b).count().max(1);
            match whole.len() > same {
                true => Ok((whole, same, choice.len().max(1))),
                false => Err(refuse(&format!("choice `{choice}` has no token"))),
            }
        };
        Ok(Encoded {
            choices: q.choices.iter().map(choice).collect::<Result<_>>()?,
            answer: q.answer,
        })
    };
    questions.iter().enumerate().map(one).collect()
}

/// Asks `model`; windows of `options` are not used. `progress` is told questions done and in all.
///
/// # Errors
/// When the model is no decoder, a question is longer than its context, or a logit is not finite.
pub fn ask(
    model: &Model,
    questions: &[Encoded],
    options: &PerplexityOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<MultipleChoice> {
    let context = model.text.as_ref().map_or(0, |t| t.context);
    let length = |q: &Encoded| q.choices.iter().map(|c| c.0.len()).max().unwrap_or(0);
    let capacity = questions.iter().map(length).max().unwrap_or(0);
    let at = questions.iter().position(|q| length(q) == capacity);
    if context > 0 && capacity > context {
        return Err(Error::Evaluation(format!(
            "question {} has {capacity} tokens; the model's context is {context}",
            at.unwrap_or(0) + 1
        )));
    }
    let mut decoder = options.decoder(model, capacity.max(2))?;
    let mut chosen = Vec::with_capacity(questions.len());
    for (done, question) in questions.iter().enumerate() {
        let mut lost = Vec::with_capacity(question.choices.len());
        // What every choice shares, less the token that the first of a choice is predicted from.
        let (first, _, _) = &question.choices[0];
        let shared = question.choices.iter().map(|(whole, prompt, _)| {
            let pairs = whole.iter().zip(first);
            pairs.take_while(|(a, b)| a == b).count().min(prompt - 1)
        });
        let shared = shared.min().unwrap_or(0);
        decoder.reset();
        if shared > 0 {
            decoder.score(&first[..shared], |_, _| {})?;
        }
        for (whole, prompt, bytes) in &question.choices {
            decoder.truncate(shared);
            let (mut sum, mut finite) = (0.0, true);
            decoder.score(&whole[shared..], |i, logits| {
                let next = shared + i + 1;
                if (*prompt..whole.len()).contains(&next) {
                    match nll(logits, whole[next]) {
                        Some(nll) => sum += nll,
                        None => finite = false,
                    }
                }
            })?;
            if !finite {
                let what = format!("question {}: logits are not finite", done + 1);
                return Err(Error::Evaluation(what));
            }
            lost.push([sum, sum / *bytes as f64]);
        }
        let least = |by: usize| {
            let order = |a: &usize, b: &usize| lost[*a][by].total_cmp(&lost[*b][by]);
            (0..lost.len()).min_by(order).unwrap_or(0)
        };
        chosen.push([least(0), least(1)]);
        progress(done + 1, questions.len());
    }
    let right = |by: usize| {
        let pairs = chosen.iter().zip(questions);
        pairs.filter(|(c, q)| c[by] == q.answer).count()
    };
    let (n, correct, by_byte) = (questions.len(), right(0), right(1));
    let chance = questions.iter().map(|q| 1.0 / q.choices.len() as f64);
    Ok(MultipleChoice {
        questions: n,
        correct,
        correct_by_byte: by_byte,
        interval: wilson(correct, n),
        interval_by_byte: wilson(by_byte, n),
        chance: chance.sum::<f64>() / n.max(1) as f64,
        chosen,
        isa: decoder.isa().to_owned(),
    })
}

/// The 95 % interval of a share, after Wilson.
fn wilson(correct: usize, of: usize) -> [f64; 2] {
    if of == 0 {
        return [0.0, 1.0];
    }
    let (z, n) = (1.959964, of as f64);
    let p = correct as f64 / n;
    let middle = p + z * z / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let whole = 1.0 + z * z / n;
    [(middle - half) / whole, (middle + half) / whole]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_wilsons() {
        let [low, high] = wilson(8, 10);
        assert!((low - 0.49016).abs() < 1e-4 && (high - 0.94332).abs() < 1e-4);
        let [low, high] = wilson(0, 20);
        assert!(low.abs() < 1e-12 && (high - 0.16113).abs() < 1e-4);
    }

    #[test]
    fn lines_that_are_no_questions_are_refused_with_their_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.jsonl");
        let refused = |text: &str, word: &str| {
            std::fs::write(&path, text).unwrap();
            let e = read(&path).unwrap_err().to_string();
            assert!(e.contains("q.jsonl") && e.contains(word), "{e}");
        };
        let good = r#"{"prompt": "a", "choices": ["b", "c"], "answer": 1}"#;
        refused("", "no question");
        refused(&format!("{good}\n\n{{\"prompt\": 1}}"), "line 3");
        refused(&good.replace("1}", "2}"), "line 1: 2 choices, of which 2");
        refused(&good.replace("\"b\", ", ""), "line 1: 1 choices");
        std::fs::write(&path, format!("{good}\n\n{good}\n")).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
    }
}

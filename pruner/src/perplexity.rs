//! Perplexity of a language model on a text.

use crate::{Error, Result};
use lacuna::{Decoder, DecoderOptions, Model};
use serde::Serialize;

/// How perplexity is measured.
#[derive(Clone, Debug)]
pub struct PerplexityOptions {
    /// Tokens that the model sees at a time.
    pub window: usize,
    /// Tokens from the start of one window to the next. Where it is smaller than the window, windows
    /// overlap and each token counts once, in the window in which it has the longest past.
    pub stride: usize,
    /// Use only so many windows.
    pub windows: Option<usize>,
    /// Threads; 0 takes every core.
    pub threads: usize,
    /// The instruction set; `None` takes the best.
    pub isa: Option<String>,
    /// Run every weight dense.
    pub dense: bool,
    /// As [`DecoderOptions::round_inputs`].
    pub round_inputs: Option<bool>,
    /// Run tokens one at a time, as generation does, and not in chunks, as prompts are run.
    pub by_token: bool,
}

impl Default for PerplexityOptions {
    /// Windows of 512 tokens that do not overlap.
    fn default() -> PerplexityOptions {
        PerplexityOptions {
            window: 512,
            stride: 512,
            windows: None,
            threads: 0,
            isa: None,
            dense: false,
            round_inputs: None,
            by_token: false,
        }
    }
}

impl PerplexityOptions {
    /// A decoder of `model` that tells the logits of every token.
    pub(crate) fn decoder(&self, model: &Model, capacity: usize) -> Result<Decoder> {
        let options = DecoderOptions {
            threads: self.threads,
            isa: self.isa.clone(),
            dense: self.dense,
            round_inputs: self.round_inputs,
            capacity,
            all_logits: true,
            ..DecoderOptions::default()
        };
        Ok(Decoder::new(model, options)?)
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// `exp` of the mean negative log likelihood.
    pub perplexity: f64,
    /// The mean negative log likelihood of a token, in nats.
    pub nll: f64,
    /// Its standard error over windows.
    pub nll_se: f64,
    /// Tokens of the text.
    pub tokens: usize,
    /// Tokens that were predicted and counted.
    pub predicted: usize,
    /// Windows.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens between the starts of windows.
    pub stride: usize,
    /// The instruction set that ran.
    pub isa: String,
    /// The sum of negative log likelihoods of each window, and how many tokens it counts.
    pub by_window: Vec<(f64, usize)>,
}

/// Measures the perplexity of `model` on `tokens`. Each window starts afresh, with no token before
/// it, and its first token is not predicted. `progress` is told windows done and in all.
///
/// # Errors
/// When the model is no decoder, the window is shorter than two tokens or longer than the model's
/// context, the stride is 0 or larger than the window, the text is shorter than a window, or a
/// logit is not finite.
pub fn perplexity(
    model: &Model,
    tokens: &[u32],
    options: &PerplexityOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity> {
    let PerplexityOptions { window, stride, .. } = *options;
    let refuse = |what: String| Err(Error::Evaluation(what));
    if window < 2 || stride == 0 || stride > window {
        return refuse(format!(
            "a window of {window} and a stride of {stride}: a window has two tokens at least, a stride is from 1 to the window"
        ));
    }
    if tokens.len() < window {
        return refuse(format!(
            "the text has {} tokens, a window {window}",
            tokens.len()
        ));
    }
    let mut decoder = options.decoder(model, window)?;
    let count = (tokens.len() - window) / stride + 1;
    let count = options.windows.map_or(count, |n| n.min(count));
    let mut by_window = Vec::with_capacity(count);
    for w in 0..count {
        let part = &tokens[w * stride..][..window];
        // Tokens that an earlier window predicted do not count again.
        let first = if w == 0 { 1 } else { window - stride }.max(1);
        let (mut sum, mut counted, mut bad) = (0.0, 0, None);
        decoder.reset();
        let mut read = |i: usize, logits: &[f32]| {
            let next = i + 1;
            if next >= first && next < window {
                match nll(logits, part[next]) {
                    Some(nll) => sum += nll,
                    None => bad = Some(next),
                }
                counted += 1;
            }
        };
        match options.by_token {
            true => {
                for (i, &token) in part.iter().enumerate() {
                    read(i, decoder.step(token)?);
                }
            }
            false => decoder.score(part, read)?,
        }
        if let Some(at) = bad {
            let at = w * stride + at;
            return refuse(format!("the logits before token {at} are not finite"));
        }
        by_window.push((sum, counted));
        progress(w + 1, count);
    }
    let predicted: usize = by_window.iter().map(|w| w.1).sum();
    let nll = by_window.iter().map(|w| w.0).sum::<f64>() / predicted as f64;
    // The error of a ratio of sums, from the windows' residuals.
    let residuals = by_window.iter().map(|w| (w.0 - nll * w.1 as f64).powi(2));
    let n = count as f64;
    let variance = residuals.sum::<f64>() / (n - 1.0).max(1.0) * n / (predicted as f64).powi(2);
    Ok(Perplexity {
        perplexity: nll.exp(),
        nll,
        nll_se: if count > 1 { variance.sqrt() } else { f64::NAN },
        tokens: tokens.len(),
        predicted,
        windows: count,
        window,
        stride,
        isa: decoder.isa().to_owned(),
        by_window,
    })
}

/// The negative log of the softmax of `logits` at `token`, in f64; `None` where it is not finite.
pub(crate) fn nll(logits: &[f32], token: u32) -> Option<f64> {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - most).exp()).sum();
    let nll = most + sum.ln() - f64::from(*logits.get(token as usize)?);
    nll.is_finite().then_some(nll)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nll_is_that_of_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0];
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        for (i, l) in logits.iter().enumerate() {
            let expect = -(f64::from(*l).exp() / total).ln();
            assert!((nll(&logits, i as u32).unwrap() - expect).abs() < 1e-12);
        }
        assert!(nll(&[1000.0, -1000.0], 1).unwrap() > 1999.0);
        assert_eq!(nll(&[f32::NAN, 0.0], 1), None);
        assert_eq!(nll(&logits, 3), None);
    }
}

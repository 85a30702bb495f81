//! Generation: choosing the next token from logits, again and again.

use super::Decoder;
use crate::{Error, Result};
use std::ops::ControlFlow;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the most likely token (greedy).
    pub temperature: f32,
    /// Choose among so many of the most likely tokens; 0 for all.
    pub top_k: usize,
    /// Choose among the most likely tokens that hold this share of the probability together; 1 for all.
    pub top_p: f32,
    /// Where the random numbers start: equal seeds give equal texts.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
        }
    }
}

/// Chooses tokens; keeps the state of the random numbers and its buffers.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    state: u64,
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// # Errors
    /// When the temperature is negative or not finite, or `top_p` is not in `(0, 1]`.
    pub fn new(sampling: Sampling) -> Result<Sampler> {
        let Sampling {
            temperature, top_p, ..
        } = sampling;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(Error::Option(format!(
                "a temperature of {temperature}; it is 0 or more"
            )));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::Option(format!("top_p of {top_p}; it is in (0, 1]")));
        }
        Ok(Sampler {
            sampling,
            state: sampling.seed,
            candidates: Vec::new(),
        })
    }

    /// The next token.
    ///
    /// # Errors
    /// When there are no logits or one is NaN.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        let mut best = 0;
        for (i, l) in logits.iter().enumerate() {
            if l.is_nan() {
                return Err(Error::Option(format!("the logit of token {i} is NaN")));
            }
            if *l > logits[best] {
                best = i;
            }
        }
        let most = *logits
            .get(best)
            .ok_or_else(|| Error::Option("no logits to choose from".into()))?;
        let Sampling {
            temperature,
            top_k,
            top_p,
            ..
        } = self.sampling;
        if temperature == 0.0 || top_k == 1 || most.is_infinite() {
            return Ok(best as u32);
        }
        let weight = |l: f32| ((l - most) / temperature).exp();
        let list = &mut self.candidates;
        list.clear();
        list.extend(
            logits
                .iter()
                .enumerate()
                .map(|(i, &l)| (i as u32, weight(l))),
        );
        // By weight, then by token: the same order everywhere.
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if top_k > 0 && top_k < list.len() {
            list.select_nth_unstable_by(top_k - 1, order);
            list.truncate(top_k);
        }
        let total = |list: &[(u32, f32)]| list.iter().map(|c| f64::from(c.1)).sum::<f64>();
        if top_p < 1.0 {
            // Tokens that are too unlikely to matter even all together need no place in the order.
            let all = total(list);
            let rest = (1.0 - f64::from(top_p)) * all;
            let least = rest / list.len() as f64;
            list.retain(|c| f64::from(c.1) >= least);
            list.sort_unstable_by(order);
            let mut sum = 0.0;
            let inside = list.iter().position(|c| {
                sum += f64::from(c.1);
                sum >= f64::from(top_p) * all
            });
            list.truncate(inside.map_or(list.len(), |i| i + 1));
        } else {
            list.sort_unstable_by_key(|c| c.0);
        }
        let mut left = self.uniform() * total(&self.candidates);
        for (token, weight) in &self.candidates {
            left -= f64::from(*weight);
            if left < 0.0 {
                return Ok(*token);
            }
        }
        Ok(self.candidates.last().map_or(best as u32, |c| c.0))
    }

    /// How it chooses.
    #[cfg(feature = "cuda")]
    pub(super) fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// The next random number in `[0, 1)` (SplitMix64).
    pub(super) fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How a text is generated.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// How each token is chosen.
    pub sampling: Sampling,
    /// Tokens at most; 0 stands for as many as the capacity has room for.
    pub max_tokens: usize,
    /// Tokens that end the text; they are not part of it. See [`Text::eos`](crate::model::Text::eos).
    pub stop: Vec<u32>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A token of [`GenerateOptions::stop`].
    Token(u32),
    /// As many tokens as were asked for.
    Length,
    /// The decoder has no room for more.
    Capacity,
    /// The callback asked for it.
    Callback,
}

/// A generated text as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The tokens after the prompt.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub stop: Stop,
}

/// What generation needs of a decoder.
pub(super) trait Chooses {
    /// Processes tokens and chooses the one that follows them.
    fn choose(&mut self, tokens: &[u32], sampler: &mut Sampler) -> Result<u32>;

    /// Whether there is no room for more.
    fn is_full(&self) -> bool;
}

impl Chooses for Decoder {
    fn choose(&mut self, tokens: &[u32], sampler: &mut Sampler) -> Result<u32> {
        sampler.sample(self.prefill(tokens)?)
    }

    fn is_full(&self) -> bool {
        self.position() >= self.capacity()
    }
}

impl Decoder {
    /// Processes `prompt` after what was processed before, then chooses and processes tokens until one
    /// of the reasons in [`Stop`]. `on_token` sees each token as it is chosen.
    ///
    /// # Errors
    /// As [`Decoder::prefill`] and [`Sampler::new`], and when a logit is NaN.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated> {
        generate(self, prompt, options, on_token)
    }
}

pub(super) fn generate(
    decoder: &mut impl Chooses,
    prompt: &[u32],
    options: &GenerateOptions,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Generated> {
    let mut sampler = Sampler::new(options.sampling)?;
    let mut tokens = Vec::new();
    let mut next = decoder.choose(prompt, &mut sampler)?;
    loop {
        let stop = if options.stop.contains(&next) {
            Some(Stop::Token(next))
        } else {
            tokens.push(next);
            if on_token(next).is_break() {
                Some(Stop::Callback)
            } else if options.max_tokens > 0 && tokens.len() >= options.max_tokens {
                Some(Stop::Length)
            } else if decoder.is_full() {
                Some(Stop::Capacity)
            } else {
                None
            }
        };
        if let Some(stop) = stop {
            return Ok(Generated { tokens, stop });
        }
        next = decoder.choose(&[next], &mut sampler)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(sampling: Sampling, logits: &[f32], n: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut counts = vec![0; logits.len()];
        for _ in 0..n {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(
            draw(Sampling::default(), &[1., 3., 3., 2.], 3),
            [0, 3, 0, 0]
        );
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let sampling = Sampling {
            temperature: 0.5,
            seed: 7,
            ..Sampling::default()
        };
        let logits = [0.0f32, 0.5, 1.0, -1.0];
        let counts = draw(sampling, &logits, 40_000);
        let weights: Vec<f64> = logits.iter().map(|l| f64::from(l / 0.5).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(&weights) {
            let p = weight / total;
            let sigma = (p * (1.0 - p) * 40_000.0).sqrt();
            assert!(
                (*count as f64 - p * 40_000.0).abs() < 5.0 * sigma,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn top_k_and_top_p_leave_the_rest_out() {
        let logits = [2.0f32, 1.0, 0.0, -1.0, -8.0];
        let base = Sampling {
            temperature: 1.0,
            seed: 1,
            ..Sampling::default()
        };
        let counts = draw(Sampling { top_k: 2, ..base }, &logits, 2000);
        assert!(counts[0] > counts[1] && counts[1] > 0, "{counts:?}");
        assert_eq!(counts[2..], [0, 0, 0]);
        // The first two hold 88 % of the probability.
        let counts = draw(Sampling { top_p: 0.8, ..base }, &logits, 2000);
        assert!(counts[1] > 0 && counts[2..] == [0, 0, 0], "{counts:?}");
        let counts = draw(Sampling { top_p: 0.9, ..base }, &logits, 2000);
        assert!(counts[2] > 0 && counts[3..] == [0, 0], "{counts:?}");
    }

    #[test]
    fn equal_seeds_give_equal_choices() {
        let sampling = Sampling {
            temperature: 1.0,
            top_p: 0.95,
            seed: 3,
            ..Sampling::default()
        };
        let logits: Vec<f32> = (0..500).map(|i| ((i * 37) % 101) as f32 / 20.0).collect();
        assert_eq!(draw(sampling, &logits, 300), draw(sampling, &logits, 300));
        let other = Sampling {
            seed: 4,
            ..sampling
        };
        assert_ne!(draw(sampling, &logits, 300), draw(other, &logits, 300));
    }

    #[test]
    fn bad_options_and_logits_are_refused_with_the_value() {
        let refused = |temperature, top_p| {
            let sampling = Sampling {
                temperature,
                top_p,
                ..Sampling::default()
            };
            Sampler::new(sampling).unwrap_err().to_string()
        };
        assert!(refused(-1.0, 1.0).contains("-1"));
        assert!(refused(f32::NAN, 1.0).contains("NaN"));
        assert!(refused(1.0, 0.0).contains("top_p of 0"));
        let mut sampler = Sampler::new(Sampling::default()).unwrap();
        let error = sampler.sample(&[0.0, f32::NAN]).unwrap_err().to_string();
        assert!(error.contains("token 1 is NaN"), "{error}");
        assert!(sampler.sample(&[]).is_err());
    }
}

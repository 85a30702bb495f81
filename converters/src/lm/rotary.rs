//! The angles of rotary embeddings, and what stretches them to longer contexts.

use std::f64::consts::PI;

/// Angle per position of every pair of elements, and the factor of cosine and sine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rotary {
    pub frequencies: Vec<f32>,
    pub scale: f32,
}

/// How the angles are stretched.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scaling {
    None,
    /// Every angle divided by a factor.
    Linear {
        factor: f64,
    },
    /// Slow angles divided, fast ones kept, a ramp between: Llama 3.1.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    /// The same with a ramp over the pairs, and a factor of cosine and sine: YaRN.
    Yarn {
        factor: f64,
        original: f64,
        beta_fast: f64,
        beta_slow: f64,
        /// The factor of cosine and sine; from `factor` where absent.
        attention: Option<f64>,
    },
    /// Each angle divided by its own factor, as a file lists them.
    Factors(Vec<f32>),
}

impl Rotary {
    /// The angles of `rotated` elements of a head over `base`.
    pub fn new(rotated: usize, base: f64, scaling: &Scaling) -> Result<Rotary, String> {
        // No head is near this wide; the bound keeps a hostile size from being allocated.
        const WIDEST: usize = 1 << 16;
        if rotated == 0 || !rotated.is_multiple_of(2) || rotated > WIDEST {
            return Err(format!("{rotated} rotated elements of a head"));
        }
        if !(base.is_finite() && base > 0.0) {
            return Err(format!("a rotary base of {base}"));
        }
        let dim = rotated as f64;
        let plain = (0..rotated / 2).map(|i| base.powf(-2.0 * i as f64 / dim));
        let mut scale = 1.0;
        let angles: Vec<f64> = match scaling {
            Scaling::None => plain.collect(),
            Scaling::Linear { factor } => {
                let factor = positive("factor", *factor)?;
                plain.map(|f| f / factor).collect()
            }
            Scaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                let factor = positive("factor", *factor)?;
                let low = positive("low_freq_factor", *low)?;
                let high = positive("high_freq_factor", *high)?;
                let original = positive("original_max_position_embeddings", *original)?;
                if low >= high {
                    return Err(format!(
                        "low_freq_factor {low} from high_freq_factor {high} on"
                    ));
                }
                plain
                    .map(|f| {
                        // Turns over the original context.
                        let turns = original * f / (2.0 * PI);
                        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                        f * kept + f / factor * (1.0 - kept)
                    })
                    .collect()
            }
            Scaling::Yarn {
                factor,
                original,
                beta_fast,
                beta_slow,
                attention,
            } => {
                let factor = positive("factor", *factor)?;
                let original = positive("original_max_position_embeddings", *original)?;
                let fast = positive("beta_fast", *beta_fast)?;
                let slow = positive("beta_slow", *beta_slow)?;
                let own = if factor > 1.0 {
                    0.1 * factor.ln() + 1.0
                } else {
                    1.0
                };
                scale = positive("attention_factor", attention.unwrap_or(own))?;
                // The pair that makes `turns` turns over the original context.
                let pair =
                    |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
                let first = pair(fast).floor().max(0.0);
                let last = pair(slow).ceil().min(dim - 1.0);
                let width = if last == first { 0.001 } else { last - first };
                plain
                    .enumerate()
                    .map(|(i, f)| {
                        let divided = ((i as f64 - first) / width).clamp(0.0, 1.0);
                        f / factor * divided + f * (1.0 - divided)
                    })
                    .collect()
            }
            Scaling::Factors(factors) => {
                if factors.len() != rotated / 2 {
                    return Err(format!(
                        "{} factors for {} rotary angles",
                        factors.len(),
                        rotated / 2
                    ));
                }
                plain
                    .zip(factors)
                    .map(|(f, &by)| Ok(f / positive("rotary factor", by.into())?))
                    .collect::<Result<_, String>>()?
            }
        };
        let frequencies: Vec<f32> = angles.iter().map(|&f| f as f32).collect();
        match frequencies.iter().find(|f| !f.is_finite()) {
            Some(f) => Err(format!("a rotary angle of {f}")),
            None => Ok(Rotary {
                frequencies,
                scale: scale as f32,
            }),
        }
    }
}

fn positive(name: &str, value: f64) -> Result<f64, String> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(format!("a {name} of {value}"))
    }
}

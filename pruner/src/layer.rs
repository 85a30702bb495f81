//! The layers that a run prunes: which they are, and whether they can be ranked.

use crate::select::Profile;
use crate::{Error, Result};
use glob::Pattern;
use half::{bf16, f16};
use lacuna::model::{Encoding, Node, Weight};
use lacuna::{DType, Model};
use rayon::prelude::*;

/// One prunable weight and the node that reads it first.
#[derive(Clone, Debug)]
pub struct Layer<'m> {
    /// The weight's name.
    pub name: &'m str,
    /// The node that reads it.
    pub node: &'m Node,
    /// The weight.
    pub weight: &'m Weight,
    /// Elements that are zero already.
    pub zeros: usize,
    /// The share of outliers in its block, where a run counted them: see [`Owl`](crate::allocator::Owl).
    pub outliers: Option<f64>,
    /// How often its magnitudes occur.
    pub(crate) profile: Profile,
}

impl Layer<'_> {
    /// Elements of the weight.
    pub fn numel(&self) -> usize {
        self.weight.numel()
    }
}

/// The prunable weights whose names match any of `include` and none of `exclude`, in graph order.
/// Patterns are shell globs; each must match something. An empty `include` stands for
/// [`Model::prunable`]; a pattern may also name the output layer of a language model.
///
/// Refuses weights that are not floating point and weights with NaN or infinity.
pub(crate) fn select<'m>(
    model: &'m Model,
    include: &[String],
    exclude: &[String],
) -> Result<Vec<Layer<'m>>> {
    let all = match include {
        [] => model.prunable(),
        _ => model.product_weights(),
    };
    if all.is_empty() {
        return Err(Error::NothingToPrune);
    }
    let compile = |patterns: &[String]| -> Result<Vec<Pattern>> {
        patterns
            .iter()
            .map(|text| {
                let refuse = |what: String| Error::Pattern {
                    pattern: text.clone(),
                    what,
                };
                let pattern = Pattern::new(text).map_err(|e| refuse(e.to_string()))?;
                if all.iter().any(|(name, _)| pattern.matches(name)) {
                    Ok(pattern)
                } else {
                    Err(refuse(format!(
                        "matches none of the {} prunable weights, such as `{}`",
                        all.len(),
                        all[0].0
                    )))
                }
            })
            .collect()
    };
    let (include, exclude) = (compile(include)?, compile(exclude)?);
    let any = |patterns: &[Pattern], name: &str| patterns.iter().any(|p| p.matches(name));
    let chosen: Vec<(&str, &Node)> = all
        .iter()
        .copied()
        .filter(|(name, _)| (include.is_empty() || any(&include, name)) && !any(&exclude, name))
        .collect();
    if chosen.is_empty() {
        return Err(Error::NothingSelected(all.len()));
    }
    let layers: Result<Vec<Layer<'m>>> = chosen
        .into_par_iter()
        .map(|(name, node)| {
            let weight = &model.weights()[name];
            if !weight.dtype().is_float() {
                return Err(Error::WeightType {
                    weight: name.to_owned(),
                    dtype: weight.dtype(),
                });
            }
            let profile = Profile::of(weight);
            if !profile.finite
                && let Some(index) = first_not_finite(weight)
            {
                return Err(Error::NotFinite {
                    weight: name.to_owned(),
                    index,
                    value: weight.to_f32().map_or(f32::NAN, |all| all[index]),
                });
            }
            weight.release();
            Ok(Layer {
                name,
                node,
                weight,
                zeros: profile.zeros,
                outliers: None,
                profile,
            })
        })
        .collect();
    let layers = layers?;
    match layers.iter().all(|l| l.numel() == 0) {
        true => Err(Error::NothingToPrune),
        false => Ok(layers),
    }
}

/// The flat index of the first NaN or infinity of a floating-point weight.
fn first_not_finite(weight: &Weight) -> Option<usize> {
    let data = match weight.encoding() {
        Encoding::Dense(data) => data,
        Encoding::Bitmask(b) => &b.values,
    };
    let stored = match weight.dtype() {
        DType::F32 => data
            .as_chunks::<4>()
            .0
            .iter()
            .position(|b| !f32::from_le_bytes(*b).is_finite()),
        DType::F16 => data
            .as_chunks::<2>()
            .0
            .iter()
            .position(|b| !f16::from_le_bytes(*b).is_finite()),
        DType::BF16 => data
            .as_chunks::<2>()
            .0
            .iter()
            .position(|b| !bf16::from_le_bytes(*b).is_finite()),
        _ => None,
    }?;
    Some(match weight.encoding() {
        Encoding::Dense(_) => stored,
        Encoding::Bitmask(b) => {
            let row = (0..b.rows)
                .rfind(|&r| b.row_start(r) <= stored)
                .unwrap_or(0);
            let column = b.row_columns(row).nth(stored - b.row_start(row));
            row * b.cols + column.unwrap_or(0)
        }
    })
}

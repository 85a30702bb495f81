//! What every method that cuts keeps to.

use super::{Group, Groups, Reason};
use crate::{Error, Result};
use glob::Pattern;
use serde::{Deserialize, Serialize};

/// How much of a group may go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Output channels that are left of a layer are a multiple of it, where the layer had as many; 1 for any number.
    pub round_to: usize,
    /// Output channels that every layer of a group keeps at least.
    pub min_channels: usize,
    /// The largest share of a group's units that may go, from 0 to 1.
    pub max_ratio: f64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            round_to: 1,
            min_channels: 1,
            max_ratio: 1.0,
        }
    }
}

impl Limits {
    /// # Errors
    /// When `round_to` is 0 or `max_ratio` no share.
    pub fn check(&self) -> Result<()> {
        if self.round_to == 0 {
            return Err(Error::Channels(
                "channels cannot be rounded to multiples of 0".into(),
            ));
        }
        match (0.0..=1.0).contains(&self.max_ratio) {
            true => Ok(()),
            false => Err(Error::Channels(format!(
                "a largest ratio of {} is no share from 0 to 1",
                self.max_ratio
            ))),
        }
    }

    /// The largest number of units, up to `wanted`, that may go from `group`. At least one stays.
    pub fn allowed(&self, group: &Group, wanted: usize) -> usize {
        if group.reason.is_some() || group.outputs().next().is_none() {
            return 0;
        }
        let most = (self.max_ratio * group.units as f64 + 1e-9).floor() as usize;
        let width = group
            .outputs()
            .map(|m| m.per_unit)
            .min()
            .unwrap_or(1)
            .max(1);
        let least = self.min_channels.div_ceil(width).max(1);
        let kept = group.units - wanted.min(most).min(group.units);
        let step = group.outputs().fold(1, |step, m| {
            lcm(step, self.round_to / gcd(self.round_to, m.per_unit))
        });
        let kept = kept.max(least).next_multiple_of(step);
        group.units.saturating_sub(kept)
    }
}

impl Groups<'_> {
    /// Keeps groups that make channels of a weight whose name matches a shell glob.
    ///
    /// # Errors
    /// When a pattern is malformed or matches no weight.
    pub fn ignore(&mut self, patterns: &[String]) -> Result<()> {
        for text in patterns {
            let refuse = |what: String| Error::Pattern {
                pattern: text.clone(),
                what,
            };
            let pattern = Pattern::new(text).map_err(|e| refuse(e.to_string()))?;
            if !self
                .model
                .weights()
                .keys()
                .any(|name| pattern.matches(name))
            {
                return Err(refuse("matches no weight".into()));
            }
            for group in &mut self.groups {
                let makes = group.outputs().any(|m| pattern.matches(&m.weight));
                if makes && group.reason.is_none() {
                    group.reason = Some(Reason::Ignored(text.clone()));
                }
            }
        }
        Ok(())
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: usize, b: usize) -> usize {
    a / gcd(a, b) * b
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::{Member, Role};

    fn group(units: usize, per_unit: &[usize]) -> Group {
        let member = |&per_unit: &usize| Member {
            weight: "w".into(),
            axis: 0,
            role: Role::Output,
            per_unit,
            indices: vec![],
        };
        Group {
            units,
            members: per_unit.iter().map(member).collect(),
            reason: None,
        }
    }

    #[test]
    fn limits_hold_in_channels() {
        let free = Limits::default();
        assert_eq!(free.allowed(&group(20, &[1]), 100), 19);
        let eight = Limits {
            round_to: 8,
            ..free.clone()
        };
        // 20 channels: 8, 16 or all of them.
        let allowed: Vec<usize> = [3, 4, 11, 12, 19]
            .map(|n| eight.allowed(&group(20, &[1]), n))
            .into();
        assert_eq!(allowed, [0, 4, 4, 12, 12]);
        // Heads of 12 query and 4 key channels: both multiples of 8 with two heads at a time.
        assert_eq!(eight.allowed(&group(6, &[12, 4]), 3), 2);
        let least = Limits {
            min_channels: 10,
            ..free.clone()
        };
        assert_eq!(least.allowed(&group(6, &[12, 4]), 6), 3);
        let most = Limits {
            max_ratio: 0.3,
            ..free
        };
        assert_eq!(most.allowed(&group(20, &[1]), 20), 6);
        assert!(
            Limits {
                round_to: 0,
                ..most.clone()
            }
            .check()
            .is_err()
        );
        assert!(
            Limits {
                max_ratio: f64::NAN,
                ..most
            }
            .check()
            .is_err()
        );
    }
}

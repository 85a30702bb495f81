//! Masks by scores: the largest stay, of equal ones the later.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// `keep` of every `of` neighbours along the inputs stay, such as 2:4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    /// Elements of a group that stay.
    pub keep: usize,
    /// Elements of a group.
    pub of: usize,
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.keep, self.of)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.to_string()
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Pattern, String> {
        text.parse()
    }
}

impl std::str::FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        let parts = text.split_once(':');
        let parts = parts.and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
        match parts {
            Some((keep, of)) if (1..of).contains(&keep) && of <= 64 => Ok(Pattern { keep, of }),
            _ => Err(format!(
                "pattern `{text}`: give N:M with 0 < N < M <= 64, such as 2:4"
            )),
        }
    }
}

impl Pattern {
    /// The share of elements that go.
    pub fn sparsity(self) -> f64 {
        (self.of - self.keep) as f64 / self.of as f64
    }

    /// Whether what it leaves lies 2:4, where the inputs are a multiple of four.
    pub(crate) fn is_two_four(self) -> bool {
        4 % self.of == 0 && self.keep * (4 / self.of) <= 2
    }

    /// How many of a weight's elements go.
    ///
    /// # Errors
    /// When its inputs are no whole number of groups.
    pub(crate) fn remove(self, name: &str, (rows, cols): (usize, usize)) -> Result<usize> {
        match cols % self.of {
            0 => Ok(rows * cols / self.of * (self.of - self.keep)),
            _ => Err(Error::Recipe(format!(
                "weight `{name}`: {cols} inputs are no multiple of {}, as pattern {self} needs; leave it out with --exclude",
                self.of
            ))),
        }
    }
}

/// Which elements stay when the `remove` lowest scores go; of equal ones the earlier go.
pub(crate) fn lowest(scores: &[f64], remove: usize) -> Vec<bool> {
    let mut keep = vec![true; scores.len()];
    if remove == 0 {
        return keep;
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let remove = remove.min(order.len());
    let by_score = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b));
    order.select_nth_unstable_by(remove - 1, by_score);
    order[..remove].iter().for_each(|&i| keep[i] = false);
    keep
}

/// As [`lowest`] in each row: every row loses as many, the first ones one more where that does not come out even.
pub(crate) fn by_rows(scores: &[f64], cols: usize, remove: usize) -> Vec<bool> {
    let rows = scores.len() / cols.max(1);
    let (each, more) = (remove / rows.max(1), remove % rows.max(1));
    let parts = scores.chunks_exact(cols.max(1)).enumerate();
    parts
        .flat_map(|(r, row)| lowest(row, each + usize::from(r < more)))
        .collect()
}

/// As [`lowest`] in each group of a pattern.
pub(crate) fn by_groups(scores: &[f64], pattern: Pattern) -> Vec<bool> {
    let groups = scores.chunks(pattern.of);
    groups
        .flat_map(|g| lowest(g, (pattern.of - pattern.keep).min(g.len())))
        .collect()
}

/// Sets what does not stay to 0.
pub(crate) fn apply(values: &mut [f64], keep: &[bool]) {
    for (value, keep) in values.iter_mut().zip(keep) {
        if !keep {
            *value = 0.0;
        }
    }
}

/// Zeros of a weight when its smallest magnitudes went by a pattern.
pub(crate) fn zeros_under(weight: &lacuna::Weight, pattern: Pattern) -> usize {
    let values = weight.to_f32().unwrap_or_default();
    let zeros = |g: &[f32]| g.iter().filter(|v| **v == 0.0).count();
    let groups = values.chunks(pattern.of);
    groups
        .map(|g| zeros(g).max(pattern.of - pattern.keep))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_and_refused() {
        let pattern: Pattern = "2:4".parse().unwrap();
        let lies = |p: &str| p.parse::<Pattern>().unwrap().is_two_four();
        assert!(["2:4", "1:2", "1:4"].into_iter().all(lies));
        assert!(!["3:4", "4:8", "1:3", "2:3"].into_iter().any(lies));
        assert_eq!((pattern.keep, pattern.of, pattern.sparsity()), (2, 4, 0.5));
        for bad in ["4:4", "0:4", "2", "2:", "a:b", "2:65", "5:4"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
        let e = pattern.remove("w", (3, 6)).unwrap_err().to_string();
        assert!(e.contains("`w`") && e.contains("6 inputs"), "{e}");
    }

    #[test]
    fn ties_go_in_order_and_counts_are_exact() {
        assert_eq!(lowest(&[1.0, 0.0, 0.0, 0.0], 2), [true, false, false, true]);
        let rows = by_rows(&[3., 2., 1., 1., 2., 3.], 3, 3);
        assert_eq!(rows, [true, false, false, false, true, true]);
        let two_four = by_groups(
            &[1., 0., 2., 0., 0., 0., 0., 7.],
            Pattern { keep: 2, of: 4 },
        );
        assert_eq!(
            two_four,
            [true, false, true, false, false, false, true, true]
        );
    }
}

//! What is reported of a task.

use super::precision::Precision;
use super::{Head, LossName, Target};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What is reported of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The share of samples whose label has the largest output.
    Top1,
    /// The share of pixels whose label has the largest output.
    PixelAccuracy,
    /// Intersection over union of labelled and predicted pixels, the mean over the classes that occur in either.
    MeanIou,
    /// The mean magnitude of the difference.
    Mae,
    /// The root of the mean square of the difference.
    Rmse,
    /// The share of samples or pixels for which the largest output is that of the other network.
    Agreement,
    /// Mean average precision of a detection head's boxes at an IoU of 0.5.
    Map50,
}

impl Metric {
    const ALL: [Metric; 7] = [
        Metric::Top1,
        Metric::PixelAccuracy,
        Metric::MeanIou,
        Metric::Mae,
        Metric::Rmse,
        Metric::Agreement,
        Metric::Map50,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Metric::Top1 => "top1",
            Metric::PixelAccuracy => "pixel-accuracy",
            Metric::MeanIou => "mean-iou",
            Metric::Mae => "mae",
            Metric::Rmse => "rmse",
            Metric::Agreement => "agreement",
            Metric::Map50 => "map50",
        }
    }

    /// Whether more is better.
    pub const fn is_share(self) -> bool {
        !matches!(self, Metric::Mae | Metric::Rmse)
    }

    /// The usual one of a loss over an output of so many pixels.
    pub(super) fn usual(loss: LossName, pixels: usize) -> Metric {
        match loss {
            LossName::CrossEntropy if pixels == 1 => Metric::Top1,
            LossName::CrossEntropy => Metric::MeanIou,
            LossName::Mse => Metric::Rmse,
            LossName::SmoothL1 => Metric::Mae,
            LossName::Kl => Metric::Agreement,
            LossName::Box | LossName::Objectness | LossName::Class => Metric::Map50,
        }
    }

    /// Whether it says something of a task of this loss.
    pub(super) fn fits(self, loss: LossName) -> bool {
        match self {
            Metric::Top1 | Metric::PixelAccuracy | Metric::MeanIou => {
                loss == LossName::CrossEntropy
            }
            Metric::Mae | Metric::Rmse => !loss.is_of_classes() && !loss.is_of_boxes(),
            Metric::Map50 => loss.is_of_boxes(),
            Metric::Agreement => loss == LossName::Kl,
        }
    }
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Metric, String> {
        let found = Metric::ALL.into_iter().find(|m| m.name() == text);
        found.ok_or_else(|| {
            let names = Metric::ALL.map(Metric::name);
            format!("metric `{text}`: one of {}", names.join(", "))
        })
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The first of the largest.
fn largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best
}

/// A metric over the samples so far.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    metric: Metric,
    right: u64,
    counted: u64,
    magnitudes: f64,
    squares: f64,
    /// By class: pixels of both, labelled, predicted.
    classes: Vec<[u64; 3]>,
    precision: Precision,
}

impl Tally {
    pub fn new(head: &Head) -> Tally {
        Tally {
            metric: head.metric,
            right: 0,
            counted: 0,
            magnitudes: 0.0,
            squares: 0.0,
            classes: vec![[0; 3]; head.width],
            precision: Precision::new(head.grid.as_ref().map_or(0, |g| g.classes)),
        }
    }

    /// Counts outputs, channels last, against their target.
    pub fn count(&mut self, head: &Head, values: &[f32], target: &Target) {
        let rows = values.chunks_exact(head.width);
        match target {
            Target::Boxes(each, boxes) => {
                let images = values.chunks_exact(head.rows * head.width);
                for (grid, (values, boxes)) in
                    (head.grid.iter().cycle()).zip(images.zip(boxes.chunks_exact(*each)))
                {
                    self.precision.count(grid, values, boxes);
                }
            }
            Target::Classes(labels) => {
                for (row, &label) in rows.zip(labels) {
                    if Some(label) == head.ignore {
                        continue;
                    }
                    let (found, label) = (largest(row), usize::from(label));
                    self.right += u64::from(found == label);
                    self.counted += 1;
                    self.classes[label][0] += u64::from(found == label);
                    self.classes[label][1] += 1;
                    self.classes[found][2] += 1;
                }
            }
            Target::Numbers(wanted) if head.loss == LossName::Kl => {
                for (row, wanted) in rows.zip(wanted.chunks_exact(head.width)) {
                    self.right += u64::from(largest(row) == largest(wanted));
                    self.counted += 1;
                }
            }
            Target::Numbers(wanted) => {
                for (x, wanted) in values.iter().zip(wanted) {
                    let d = f64::from(*x) - f64::from(*wanted);
                    self.magnitudes += d.abs();
                    self.squares += d * d;
                }
                self.counted += values.len() as u64;
            }
        }
    }

    /// What it comes to.
    pub fn value(&self) -> f64 {
        let counted = self.counted.max(1) as f64;
        match self.metric {
            Metric::Top1 | Metric::PixelAccuracy | Metric::Agreement => self.right as f64 / counted,
            Metric::Map50 => self.precision.value(),
            Metric::Mae => self.magnitudes / counted,
            Metric::Rmse => (self.squares / counted).sqrt(),
            Metric::MeanIou => {
                let union = |c: &[u64; 3]| c[1] + c[2] - c[0];
                let met: Vec<f64> = (self.classes.iter().filter(|c| union(c) > 0))
                    .map(|c| c[0] as f64 / union(c) as f64)
                    .collect();
                met.iter().sum::<f64>() / met.len().max(1) as f64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::head::test_head;

    #[test]
    fn unions_are_counted_by_class_and_ignored_pixels_are_not() {
        let head = test_head(LossName::CrossEntropy, 3, 5, Some(9));
        let mut tally = Tally::new(&head);
        let hot = |c: usize| [0, 1, 2].map(|i| if i == c { 1.0 } else { 0.0 });
        let values: Vec<f32> = [0, 0, 1, 1, 0].iter().flat_map(|&c| hot(c)).collect();
        tally.count(&head, &values, &Target::Classes(vec![0, 1, 1, 1, 9]));
        // Class 0: 1 of 2; class 1: 2 of 3; class 2 is nowhere.
        assert!((tally.value() - (0.5 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn differences_are_those_of_numbers() {
        let head = test_head(LossName::Mse, 2, 1, None);
        let mut tally = Tally::new(&head);
        tally.count(
            &head,
            &[1.0, 2.0, 3.0, 0.0],
            &Target::Numbers(vec![1.0, 0.0, 0.0, 0.0]),
        );
        assert!((tally.value() - (13.0f64 / 4.0).sqrt()).abs() < 1e-12);
    }
}

//! Mean average precision of a detection head at an IoU of 0.5.

use super::boxes::{Grid, LABEL, Rect, iou, sigmoid};

/// Boxes below this score are no answer.
const LEAST: f64 = 0.001;

/// Of boxes of one class that overlap by more, only the likeliest stays.
const SUPPRESSED: f64 = 0.6;

/// A box is found by one that overlaps it by so much.
const FOUND: f64 = 0.5;

/// The most boxes of an image.
const MOST: usize = 300;

/// Answers and labels of the images so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Precision {
    /// By class: the score of each answer, and whether it found a box.
    answers: Vec<Vec<(f64, bool)>>,
    /// By class: labelled boxes.
    labelled: Vec<usize>,
}

impl Precision {
    pub fn new(classes: usize) -> Precision {
        Precision {
            answers: vec![Vec::new(); classes],
            labelled: vec![0; classes],
        }
    }

    /// Counts one image: its output, channels last, and its boxes.
    pub fn count(&mut self, grid: &Grid, values: &[f32], labels: &[f32]) {
        let mut wanted: Vec<(usize, Rect, bool)> = (labels.chunks_exact(LABEL))
            .filter_map(|l| grid.rect(l))
            .map(|(class, rect)| (class, rect, false))
            .collect();
        for (class, _, _) in &wanted {
            self.labelled[*class] += 1;
        }
        for (class, score, rect) in detections(grid, values) {
            // The box of the class that overlaps most and was not found yet.
            let best = (wanted.iter_mut())
                .filter(|w| w.0 == class && !w.2)
                .map(|w| (iou(rect, w.1), w))
                .max_by(|a, b| a.0.total_cmp(&b.0));
            let hit = match best {
                Some((overlap, found)) if overlap >= FOUND => {
                    found.2 = true;
                    true
                }
                _ => false,
            };
            self.answers[class].push((score, hit));
        }
    }

    /// The mean over classes that occur of the area under precision by recall, precision never rising with recall.
    pub fn value(&self) -> f64 {
        let occur = self.answers.iter().zip(&self.labelled).filter(|c| *c.1 > 0);
        let areas: Vec<f64> = occur.map(|(answers, &n)| area(answers, n)).collect();
        areas.iter().sum::<f64>() / areas.len().max(1) as f64
    }
}

fn area(answers: &[(f64, bool)], labelled: usize) -> f64 {
    let mut answers = answers.to_vec();
    answers.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut hits = 0usize;
    let mut curve: Vec<(f64, bool)> = (answers.iter().enumerate())
        .map(|(i, (_, hit))| {
            hits += usize::from(*hit);
            (hits as f64 / (i + 1) as f64, *hit)
        })
        .collect();
    let mut best = 0.0f64;
    for point in curve.iter_mut().rev() {
        best = best.max(point.0);
        point.0 = best;
    }
    curve.iter().filter(|p| p.1).map(|p| p.0).sum::<f64>() / labelled as f64
}

/// The boxes that an output says, the likeliest first, without those of a class that overlap a likelier one.
fn detections(grid: &Grid, values: &[f32]) -> Vec<(usize, f64, Rect)> {
    let mut all: Vec<(usize, f64, Rect)> = Vec::new();
    for (rect, v) in grid.boxes(values) {
        let objectness = sigmoid(v[4]);
        for (class, &logit) in v[5..].iter().enumerate() {
            // One class is no question.
            let score = objectness
                * if grid.classes > 1 {
                    sigmoid(logit)
                } else {
                    1.0
                };
            if score >= LEAST {
                all.push((class, score, rect));
            }
        }
    }
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut kept: Vec<(usize, f64, Rect)> = Vec::new();
    for one in all {
        let hidden = |k: &(usize, f64, Rect)| k.0 == one.0 && iou(k.2, one.2) > SUPPRESSED;
        if kept.len() < MOST && !kept.iter().any(hidden) {
            kept.push(one);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One anchor of a cell's size, so that a logit of 0 says a box of one cell in its middle.
    fn grid(classes: usize) -> Grid {
        Grid {
            size: [1, 4],
            anchors: vec![[0.25, 1.0]],
            classes,
        }
    }

    /// An output with these scores of two classes in each cell.
    fn output(scores: [[f64; 2]; 4]) -> Vec<f32> {
        let logit = |p: f64| {
            if p > 0.0 {
                (p / (1.0 - p)).ln() as f32
            } else {
                -60.0
            }
        };
        let cell = |s: [f64; 2]| [0.0, 0.0, 0.0, 0.0, 60.0, logit(s[0]), logit(s[1])];
        scores.into_iter().flat_map(cell).collect()
    }

    /// A box of a class in a cell, moved to the right by a part of it.
    fn label(class: f32, cell: usize, moved: f32) -> [f32; 5] {
        [class, (cell as f32 + 0.5 + moved) / 4.0, 0.5, 0.25, 1.0]
    }

    #[test]
    fn precision_is_that_by_hand() {
        let mut p = Precision::new(2);
        let labels = [
            label(0.0, 0, 0.1),
            label(0.0, 2, 0.0),
            label(1.0, 1, 0.0),
            [-1.0; 5],
        ];
        let scores = [[0.9, 0.0], [0.8, 0.0], [0.7, 0.0], [0.0, 0.6]];
        p.count(&grid(2), &output(scores), labels.as_flattened());
        // Class 0: found, not there, found: precision 1 and 2/3 at the two boxes. Class 1: another cell than the box.
        assert!(
            (p.value() - (1.0 + 2.0 / 3.0) / 2.0 / 2.0).abs() < 1e-9,
            "{}",
            p.value()
        );
        // A second image: the third box of class 0 is missed, the second of class 1 is found at once.
        let labels = [label(0.0, 3, 0.0), label(1.0, 0, 0.0)];
        let scores = [[0.0, 0.95], [0.0; 2], [0.0; 2], [0.0; 2]];
        p.count(&grid(2), &output(scores), labels.as_flattened());
        // Class 0: (1 + 2/3) / 3. Class 1: precision 1 at the first of two.
        let expected = ((1.0 + 2.0 / 3.0) / 3.0 + 1.0 / 2.0) / 2.0;
        assert!((p.value() - expected).abs() < 1e-9, "{}", p.value());
    }

    #[test]
    fn a_box_is_found_once_and_by_half_of_it() {
        let value = |labels: &[[f32; 5]], scores| {
            let mut p = Precision::new(2);
            p.count(&grid(2), &output(scores), labels.as_flattened());
            p.value()
        };
        let two = [[0.9, 0.0], [0.8, 0.0], [0.0; 2], [0.0; 2]];
        // A third of a cell away: 2/3 of 4/3 is met; half a cell away: a half of three halves is not.
        assert_eq!(value(&[label(0.0, 0, 1.0 / 3.0 - 0.001)], two), 1.0);
        assert_eq!(value(&[label(0.0, 0, 0.5)], two), 0.0);
        // Two boxes in the one place, of which one answer finds one.
        let same = [label(0.0, 0, 0.0), label(0.0, 0, 0.0)];
        assert_eq!(value(&same, two), 0.5);
        assert_eq!(Precision::new(2).value(), 0.0);
    }

    #[test]
    fn overlapping_answers_of_a_class_are_one() {
        // Two anchors of one shape.
        let grid = Grid {
            size: [1, 1],
            anchors: vec![[0.5, 0.5], [0.5, 0.5]],
            classes: 2,
        };
        let one = |score: f32| [0.0, 0.0, 0.0, 0.0, 60.0, score, -60.0];
        let values = [one(1.0), one(2.0)].concat();
        let found = detections(&grid, &values);
        assert_eq!(found.len(), 1);
        assert!((found[0].1 - sigmoid(2.0)).abs() < 1e-9);
    }
}

//! Detection heads: which anchors answer for which boxes, and the losses of YOLOv5, complete IoU for boxes and binary
//! cross-entropy for objectness and classes.
//!
//! Of each cell of a grid an output `[N, A * (5 + K), H, W]` has, for each of `A` anchors, centre, size, objectness and `K`
//! classes, as logits: the centre is `2 sigmoid(t) - 0.5` cells from the cell's corner, the size `(2 sigmoid(t))²` times the anchor's.

use super::LossName;
use std::f64::consts::PI;
use std::ops::{Add, Div, Mul, Sub};

/// An anchor answers for boxes whose sides are less than so many times its own, or it theirs.
const RATIO: f64 = 4.0;

/// Numbers of a labelled box: class, centre and size, as shares of the image. A class below 0 is no box.
pub(crate) const LABEL: usize = 5;

/// A head's grid.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Grid {
    /// Rows and columns.
    pub size: [usize; 2],
    /// Width and height of each anchor, as shares of the image.
    pub anchors: Vec<[f64; 2]>,
    pub classes: usize,
}

/// A box in cells: centre and size.
pub(crate) type Rect = [f64; 4];

/// An anchor of a cell that answers for a box.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Positive {
    /// Where its numbers start in the output, channels last.
    at: usize,
    column: usize,
    row: usize,
    anchor: usize,
    class: usize,
    wanted: Rect,
}

pub(crate) fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(x)).exp())
}

impl Grid {
    /// Numbers of an anchor.
    pub fn each(&self) -> usize {
        5 + self.classes
    }

    /// A labelled box in cells; none where there is no box.
    pub fn rect(&self, label: &[f32]) -> Option<(usize, Rect)> {
        let [class, x, y, w, h] = label else {
            return None;
        };
        let [rows, columns] = self.size.map(|n| n as f64);
        let scale = [columns, rows, columns, rows];
        let all = [*x, *y, *w, *h].map(f64::from);
        let rect = std::array::from_fn(|i| all[i] * scale[i]);
        (*class >= 0.0).then_some((*class as usize, rect))
    }

    /// Anchors of about the size of a box answer for it, in its cell and in the nearest cell beside it on each axis.
    fn positives(&self, labels: &[f32]) -> Vec<Positive> {
        let [rows, columns] = self.size;
        let mut found = Vec::new();
        for (class, wanted) in labels.chunks_exact(LABEL).filter_map(|l| self.rect(l)) {
            for (anchor, own) in self.anchors.iter().enumerate() {
                let fits = [0, 1].iter().all(|&i| {
                    let ratio = wanted[2 + i] / (own[i] * [columns, rows][i] as f64);
                    ratio < RATIO && ratio * RATIO > 1.0
                });
                if !fits {
                    continue;
                }
                let cell = |at: f64, n: usize| (at.floor().max(0.0) as usize).min(n - 1);
                let (column, row) = (cell(wanted[0], columns), cell(wanted[1], rows));
                let beside = |at: f64, cell: usize, n: usize| match at - (cell as f64) < 0.5 {
                    true => cell.checked_sub(1),
                    false => Some(cell + 1).filter(|&c| c < n),
                };
                let mut cells = vec![(row, column)];
                cells.extend(beside(wanted[0], column, columns).map(|c| (row, c)));
                cells.extend(beside(wanted[1], row, rows).map(|r| (r, column)));
                found.extend(cells.into_iter().map(|(row, column)| Positive {
                    at: ((row * columns + column) * self.anchors.len() + anchor) * self.each(),
                    column,
                    row,
                    anchor,
                    class,
                    wanted,
                }));
            }
        }
        found
    }

    /// The box that the four numbers of an anchor say, in cells.
    fn decoded<T: Number>(&self, t: [T; 4], [column, row]: [usize; 2], anchor: usize) -> [T; 4] {
        let own = self.anchors[anchor];
        let size = [own[0] * self.size[1] as f64, own[1] * self.size[0] as f64];
        let [x, y, w, h] = t.map(Number::sigmoid);
        let half = T::of(0.5);
        let twice = |x: T| x + x;
        [
            twice(x) - half + T::of(column as f64),
            twice(y) - half + T::of(row as f64),
            twice(w) * twice(w) * T::of(size[0]),
            twice(h) * twice(h) * T::of(size[1]),
        ]
    }

    /// Every box of one sample's output, channels last: cell by cell, anchor by anchor, with its numbers.
    pub fn boxes<'v>(&'v self, values: &'v [f32]) -> impl Iterator<Item = (Rect, &'v [f32])> {
        let anchors = self.anchors.len();
        values
            .chunks_exact(self.each())
            .enumerate()
            .map(move |(i, v)| {
                let cell = i / anchors;
                let place = [cell % self.size[1], cell / self.size[1]];
                let t = [v[0], v[1], v[2], v[3]].map(f64::from);
                (self.decoded(t, place, i % anchors), v)
            })
    }

    /// The loss of one sample; with `factor` the values become its gradient times it. Means are over the boxes that are answered for, and
    /// over all anchors of objectness, which is held against the IoU of what it stands for.
    pub fn loss(
        &self,
        name: LossName,
        values: &mut [f32],
        labels: &[f32],
        smoothing: f32,
        factor: Option<f64>,
    ) -> f64 {
        let positives = self.positives(labels);
        let share = 1.0 / positives.len().max(1) as f64;
        let mut gradient = vec![0.0f64; if factor.is_some() { values.len() } else { 0 }];
        let mut add = |at: usize, slope: f64| {
            if let Some(g) = gradient.get_mut(at) {
                *g += slope;
            }
        };
        let mut loss = 0.0;
        match name {
            LossName::Box => {
                for p in &positives {
                    let t: [Dual; 4] = std::array::from_fn(|i| Dual::variable(values[p.at + i], i));
                    let found = self.decoded(t, [p.column, p.row], p.anchor);
                    let one = Dual::of(1.0) - complete_iou(found, p.wanted);
                    loss += one.value * share;
                    (0..4).for_each(|i| add(p.at + i, one.slopes[i] * share));
                }
            }
            LossName::Objectness => {
                let mut wanted = vec![0.0f64; values.len() / self.each()];
                for p in &positives {
                    let t = std::array::from_fn(|i| f64::from(values[p.at + i]));
                    let overlap = iou(self.decoded(t, [p.column, p.row], p.anchor), p.wanted);
                    let own = &mut wanted[p.at / self.each()];
                    *own = own.max(overlap);
                }
                let share = 1.0 / wanted.len().max(1) as f64;
                for (i, wanted) in wanted.into_iter().enumerate() {
                    let at = i * self.each() + 4;
                    let (own, slope) = binary(values[at], wanted);
                    loss += own * share;
                    add(at, slope * share);
                }
            }
            // One class is no question.
            _ if self.classes > 1 => {
                let share = share / self.classes as f64;
                for (p, class) in positives
                    .iter()
                    .flat_map(|p| (0..self.classes).map(move |c| (p, c)))
                {
                    let even = 0.5 * f64::from(smoothing);
                    let wanted = if class == p.class { 1.0 - even } else { even };
                    let (own, slope) = binary(values[p.at + 5 + class], wanted);
                    loss += own * share;
                    add(p.at + 5 + class, slope * share);
                }
            }
            _ => {}
        }
        if let Some(factor) = factor {
            for (v, g) in values.iter_mut().zip(gradient) {
                *v = (g * factor) as f32;
            }
        }
        loss
    }
}

/// Cross-entropy of a logit with a probability, and its slope.
fn binary(x: f32, wanted: f64) -> (f64, f64) {
    let own = f64::from(x);
    let loss = own.max(0.0) - own * wanted + (-own.abs()).exp().ln_1p();
    (loss, sigmoid(x) - wanted)
}

/// Intersection over union.
pub(crate) fn iou(a: Rect, b: Rect) -> f64 {
    overlap(a, b)[0]
}

/// Intersection over union, and width and height of the smallest box around both.
fn overlap<T: Number>(a: [T; 4], b: [T; 4]) -> [T; 3] {
    let half = T::of(0.5);
    let edges = |i: usize| {
        let of = |r: &[T; 4]| [r[i] - r[2 + i] * half, r[i] + r[2 + i] * half];
        let ([a0, a1], [b0, b1]) = (of(&a), of(&b));
        let inner = (a1.least(b1) - a0.most(b0)).most(T::of(0.0));
        (inner, a1.most(b1) - a0.least(b0))
    };
    let ((w, outer_w), (h, outer_h)) = (edges(0), edges(1));
    let both = w * h;
    let union = a[2] * a[3] + b[2] * b[3] - both + T::of(1e-9);
    [both / union, outer_w, outer_h]
}

/// Complete IoU (arXiv 1911.08287): less the distance of the centres over the diagonal around both, squared, and less the
/// difference of the aspects, whose weight counts as a constant.
fn complete_iou(found: [Dual; 4], wanted: Rect) -> Dual {
    let wanted = wanted.map(Dual::of);
    let [overlap, width, height] = overlap(found, wanted);
    let (dx, dy) = (found[0] - wanted[0], found[1] - wanted[1]);
    let tiny = Dual::of(1e-9);
    let distance = (dx * dx + dy * dy) / (width * width + height * height + tiny);
    let angle = |r: [Dual; 4]| (r[2] / (r[3] + tiny)).atan();
    let turn = angle(wanted) - angle(found);
    let aspect = turn * turn * Dual::of(4.0 / (PI * PI));
    let weight = aspect.value / (1.0 + 1e-9 - overlap.value + aspect.value);
    overlap - distance - aspect * Dual::of(weight)
}

/// What a box is made of: numbers, and numbers with their slopes.
trait Number:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    fn of(x: f64) -> Self;
    fn sigmoid(self) -> Self;
    fn least(self, other: Self) -> Self;
    fn most(self, other: Self) -> Self;
}

impl Number for f64 {
    fn of(x: f64) -> f64 {
        x
    }

    fn sigmoid(self) -> f64 {
        1.0 / (1.0 + (-self).exp())
    }

    fn least(self, other: f64) -> f64 {
        self.min(other)
    }

    fn most(self, other: f64) -> f64 {
        self.max(other)
    }
}

/// A number and its slopes by the four numbers of a box.
#[derive(Clone, Copy, Debug)]
struct Dual {
    value: f64,
    slopes: [f64; 4],
}

impl Dual {
    fn variable(x: f32, i: usize) -> Dual {
        let mut dual = Dual::of(f64::from(x));
        dual.slopes[i] = 1.0;
        dual
    }

    /// The chain rule of a function of two.
    fn chain(self, other: Dual, value: f64, [a, b]: [f64; 2]) -> Dual {
        Dual {
            value,
            slopes: std::array::from_fn(|i| a * self.slopes[i] + b * other.slopes[i]),
        }
    }

    fn atan(self) -> Dual {
        self.chain(
            self,
            self.value.atan(),
            [1.0 / (1.0 + self.value * self.value), 0.0],
        )
    }
}

impl Number for Dual {
    fn of(value: f64) -> Dual {
        Dual {
            value,
            slopes: [0.0; 4],
        }
    }

    fn sigmoid(self) -> Dual {
        let y = Number::sigmoid(self.value);
        self.chain(self, y, [y * (1.0 - y), 0.0])
    }

    fn least(self, other: Dual) -> Dual {
        if self.value <= other.value {
            self
        } else {
            other
        }
    }

    fn most(self, other: Dual) -> Dual {
        if self.value >= other.value {
            self
        } else {
            other
        }
    }
}

impl Add for Dual {
    type Output = Dual;

    fn add(self, o: Dual) -> Dual {
        self.chain(o, self.value + o.value, [1.0, 1.0])
    }
}

impl Sub for Dual {
    type Output = Dual;

    fn sub(self, o: Dual) -> Dual {
        self.chain(o, self.value - o.value, [1.0, -1.0])
    }
}

impl Mul for Dual {
    type Output = Dual;

    fn mul(self, o: Dual) -> Dual {
        self.chain(o, self.value * o.value, [o.value, self.value])
    }
}

impl Div for Dual {
    type Output = Dual;

    fn div(self, o: Dual) -> Dual {
        let value = self.value / o.value;
        self.chain(o, value, [1.0 / o.value, -value / o.value])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        Grid {
            size: [3, 4],
            anchors: vec![[0.3, 0.3], [0.1, 0.4]],
            classes: 3,
        }
    }

    const LABELS: [f32; 15] = [
        1.0, 0.4, 0.55, 0.35, 0.3, // fits the first anchor
        2.0, 0.9, 0.1, 0.1, 0.5, // and this the second
        -1.0, 0.0, 0.0, 0.0, 0.0,
    ];

    fn values() -> Vec<f32> {
        let n = 12 * 2 * 8;
        (0..n)
            .map(|i| ((i * 29 % 17) as f32 - 8.0) * 0.21)
            .collect()
    }

    #[test]
    fn anchors_of_the_size_of_a_box_answer_in_three_cells() {
        let found = grid().positives(&LABELS);
        // Column 1.6, row 1.65: cells (1, 1), (1, 2) and (2, 1). Column 3.6, row 0.3: the last column and the first row.
        let of = |anchor: usize, class: usize| -> Vec<(usize, usize)> {
            let own = found
                .iter()
                .filter(|p| p.anchor == anchor && p.class == class);
            own.map(|p| (p.row, p.column)).collect()
        };
        assert_eq!(of(0, 1), [(1, 1), (1, 2), (2, 1)]);
        assert_eq!(of(1, 2), [(0, 3)]);
        for p in &found {
            assert_eq!(p.at, ((p.row * 4 + p.column) * 2 + p.anchor) * 8);
        }
        // Three and a half times as wide is near enough, five times is not.
        assert_eq!(of(1, 1), [(1, 1), (1, 2), (2, 1)]);
        let narrow = Grid {
            anchors: vec![[0.07, 0.3]],
            ..grid()
        };
        assert!(narrow.positives(&LABELS[..5]).is_empty());
    }

    #[test]
    fn overlaps_are_those_by_hand() {
        let a = [2.0, 2.0, 2.0, 2.0];
        assert!((iou(a, a) - 1.0).abs() < 1e-8);
        // A quarter of each: 1 of 4 + 4 - 1.
        assert!((iou(a, [3.0, 3.0, 2.0, 2.0]) - 1.0 / 7.0).abs() < 1e-8);
        assert_eq!(iou(a, [9.0, 9.0, 2.0, 2.0]), 0.0);
        // The same shape a cell away on both axes: centres 2 apart, squared, of a diagonal of 18.
        let complete = complete_iou(a.map(Dual::of), [3.0, 3.0, 2.0, 2.0]).value;
        assert!((complete - (1.0 / 7.0 - 2.0 / 18.0)).abs() < 1e-8);
        // Twice as wide at the same place: half the area, and (4 / pi^2)(atan 2 - atan 1)^2.
        let aspect = 4.0 / (PI * PI) * (2f64.atan() - 1f64.atan()).powi(2);
        let weight = aspect / (0.5 + aspect);
        let complete = complete_iou([2.0, 2.0, 4.0, 2.0].map(Dual::of), a).value;
        assert!((complete - (0.5 - aspect * weight)).abs() < 1e-8);
    }

    #[test]
    fn an_output_that_says_the_boxes_costs_nothing() {
        let grid = grid();
        let mut values = vec![-40.0; 12 * 2 * 8];
        let logit = |p: f64| (p / (1.0 - p)).ln() as f32;
        for p in grid.positives(&LABELS) {
            let own = grid.anchors[p.anchor];
            let t = [
                (p.wanted[0] - p.column as f64 + 0.5) / 2.0,
                (p.wanted[1] - p.row as f64 + 0.5) / 2.0,
                (p.wanted[2] / (own[0] * 4.0)).sqrt() / 2.0,
                (p.wanted[3] / (own[1] * 3.0)).sqrt() / 2.0,
            ];
            (0..4).for_each(|i| values[p.at + i] = logit(t[i]));
            values[p.at + 4] = 40.0;
            values[p.at + 5 + p.class] = 40.0;
        }
        for name in [LossName::Box, LossName::Objectness, LossName::Class] {
            let loss = grid.loss(name, &mut values.clone(), &LABELS, 0.0, None);
            assert!(loss.abs() < 1e-4, "{name:?}: {loss}");
        }
        // No boxes: only objectness is asked.
        let mut flat = vec![0.0; values.len()];
        assert_eq!(grid.loss(LossName::Box, &mut flat, &[], 0.0, None), 0.0);
        let loss = grid.loss(LossName::Objectness, &mut flat, &[], 0.0, None);
        assert!((loss - 2f64.ln()).abs() < 1e-6);
    }

    /// Against central differences, with what counts as a constant held.
    #[test]
    fn gradients_are_slopes() {
        let (grid, values) = (grid(), values());
        for name in [LossName::Objectness, LossName::Class] {
            let of = |v: &[f32]| grid.loss(name, &mut v.to_vec(), &LABELS, 0.1, None);
            let mut gradient = values.clone();
            grid.loss(name, &mut gradient, &LABELS, 0.1, Some(0.5));
            for i in 0..values.len() {
                // What objectness is held against depends on the boxes, and has no gradient.
                if i % 8 < 4 {
                    assert_eq!(gradient[i], 0.0);
                    continue;
                }
                let moved = |by: f32| {
                    let mut v = values.clone();
                    v[i] += by;
                    of(&v)
                };
                let slope = 0.5 * (moved(1e-2) - moved(-1e-2)) / 2e-2;
                assert!(
                    (slope - f64::from(gradient[i])).abs() < 1e-5,
                    "{name:?} {i}"
                );
            }
        }
        let mut gradient = values.clone();
        grid.loss(LossName::Box, &mut gradient, &LABELS, 0.0, Some(1.0));
        let positives = grid.positives(&LABELS);
        let weights: Vec<f64> = positives
            .iter()
            .map(|p| aspect_weight(&grid, p, &values))
            .collect();
        for (i, &found) in gradient.iter().enumerate() {
            let moved = |by: f64| {
                let one = |(p, weight): (&Positive, &f64)| {
                    let t = std::array::from_fn(|j| {
                        f64::from(values[p.at + j]) + if p.at + j == i { by } else { 0.0 }
                    });
                    1.0 - by_definition(
                        grid.decoded(t, [p.column, p.row], p.anchor),
                        p.wanted,
                        *weight,
                    )
                };
                positives.iter().zip(&weights).map(one).sum::<f64>() / positives.len() as f64
            };
            let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!(
                (slope - f64::from(found)).abs() < 1e-5,
                "box {i}: {slope} {found}"
            );
        }
    }

    fn aspect(a: Rect, b: Rect) -> f64 {
        4.0 / (PI * PI) * ((b[2] / b[3]).atan() - (a[2] / a[3]).atan()).powi(2)
    }

    fn aspect_weight(grid: &Grid, p: &Positive, values: &[f32]) -> f64 {
        let t = std::array::from_fn(|i| f64::from(values[p.at + i]));
        let found = grid.decoded(t, [p.column, p.row], p.anchor);
        let v = aspect(found, p.wanted);
        v / (1.0 - iou(found, p.wanted) + v)
    }

    fn by_definition(a: Rect, b: Rect, weight: f64) -> f64 {
        let side = |r: Rect, i: usize, sign: f64| r[i] + sign * r[2 + i] / 2.0;
        let span = |i: usize| {
            side(a, i, 1.0).max(side(b, i, 1.0)) - side(a, i, -1.0).min(side(b, i, -1.0))
        };
        let distance = (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2);
        iou(a, b) - distance / (span(0).powi(2) + span(1).powi(2)) - weight * aspect(a, b)
    }
}

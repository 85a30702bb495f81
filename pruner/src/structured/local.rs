//! One matrix loses input channels, atom by atom, and what stays makes up for them.

use crate::matrix::{Matrix, ROWS};
use faer::linalg::matmul::matmul;
use faer::linalg::solvers::{DenseSolveCore, Llt, Solve};
use faer::{Accum, MatMut, MatRef, Par, Side};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// What atoms are ranked by; the lowest go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// What the outputs lose when the atom goes and the others make up for it (OBS, as OSSCAR and ZipLM have it).
    #[default]
    Obs,
    /// The same and the first-order term `W · G`, as in the code of Týr-the-Pruner.
    Code,
    /// The magnitude of the first-order term and `‖W‖² / 2 [H⁻¹]`, the mean over the atom's channels, as in its paper
    /// (arXiv 2503.09657).
    Paper,
    /// `‖x‖ Σ |w|` over the atom's channels; nothing makes up for what goes (Wanda-sp).
    Wanda,
    /// `Σ (x - mean)² ‖w‖²` over the atom's channels; the mean of what goes becomes a bias (FLAP, arXiv 2312.11983).
    Fluctuation,
}

impl Score {
    /// Whether what stays is fitted again.
    pub(crate) fn updates(self) -> bool {
        !matches!(self, Score::Wanda | Score::Fluctuation)
    }

    /// Whether the mean of what goes is put back.
    pub(crate) fn biases(self) -> bool {
        self == Score::Fluctuation
    }
}

/// How many atoms go before the others are ranked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// So many at a time.
    Atoms(usize),
    /// What a level takes, in so many parts that are as even as can be.
    Rounds(usize),
}

/// How a matrix is pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// What atoms are ranked by.
    pub score: Score,
    /// Steps of heads; the paper takes one at a time, its code all at once.
    pub heads: Step,
    /// Steps of neurons; the paper takes 16 at a time, its code a sixteenth of all that go.
    pub neurons: Step,
    /// Least squares on what is left at the end of a level, in place of the sum of the steps' updates.
    pub refit: bool,
}

impl Default for Local {
    fn default() -> Local {
        Local {
            score: Score::default(),
            heads: Step::Atoms(1),
            neurons: Step::Atoms(16),
            refit: true,
        }
    }
}

/// A matrix to prune.
pub(crate) struct Reader<'a> {
    /// `W`, inputs by outputs.
    pub weight: &'a Matrix,
    /// The damped second moments `H` of its inputs.
    pub gram: &'a Matrix,
    /// `Σ x²` of each input, without damping; around the mean for [`Score::Fluctuation`].
    pub squares: &'a [f64],
    /// The inputs of each atom.
    pub atoms: &'a [Vec<usize>],
    /// The class of each atom, where as many of every class go at a time.
    pub classes: Option<&'a [usize]>,
}

/// A level of a matrix.
#[derive(Clone, Debug)]
pub(crate) struct Level {
    /// Atoms that stay, ascending.
    pub kept: Vec<usize>,
    /// The weight of what stays, its inputs in the order of the atoms, by outputs.
    pub weight: Matrix,
    /// `‖X (W - Ŵ)‖² / ‖X W‖²`, with the damping.
    pub error: f64,
}

/// What is left of a matrix on the way from level to level.
struct State<'a> {
    reader: &'a Reader<'a>,
    score: Score,
    /// `G = H W` of the matrix as it was.
    target: &'a Matrix,
    /// Inputs that are left, of which some may be gone since the last level.
    channels: Vec<usize>,
    /// Atoms that are left, and where their inputs lie among `channels`.
    atoms: Vec<(usize, Vec<usize>)>,
    /// Their weights, and `H⁻¹` of them.
    weight: Matrix,
    inverse: Matrix,
}

/// The levels of a matrix with so many atoms left each, in descending order, one going on from the other.
///
/// # Errors
/// When the second moments are singular, or the counts do not descend.
pub(crate) fn levels(
    reader: &Reader<'_>,
    counts: &[usize],
    local: &Local,
    step: Step,
) -> Result<Vec<Level>, String> {
    let all = reader.atoms.len();
    if counts.windows(2).any(|c| c[0] <= c[1]) || counts.first().is_some_and(|&c| c > all) {
        return Err(format!("levels {counts:?} do not descend from {all}"));
    }
    let h = reader.gram;
    let target = h.times(reader.weight);
    let whole = dot(&reader.weight.data, &target.data).max(f64::MIN_POSITIVE);
    let inverse = match local.score.updates() {
        true => inverse(h)?,
        false => Matrix::zeros(0, 0),
    };
    let mut state = State {
        reader,
        score: local.score,
        target: &target,
        channels: (0..h.rows).collect(),
        atoms: reader.atoms.iter().cloned().enumerate().collect(),
        weight: reader.weight.clone(),
        inverse,
    };
    let mut levels = Vec::with_capacity(counts.len());
    for &count in counts {
        let go = state.atoms.len() - count;
        let (step, rounds) = match step {
            Step::Atoms(n) => (n.max(1), go.div_ceil(n.max(1))),
            Step::Rounds(n) => (0, n.min(go)),
        };
        let mut left = go;
        for round in 0..rounds {
            let n = match step {
                0 => left / (rounds - round),
                n => n.min(left),
            };
            state.remove(n)?;
            left -= n;
        }
        state.shrink();
        levels.push(state.level(local.refit && local.score.updates(), whole)?);
    }
    Ok(levels)
}

impl State<'_> {
    /// Takes the `n` lowest atoms; of equal ones the first. With classes, as many of each.
    fn remove(&mut self, n: usize) -> Result<(), String> {
        let scores = self.scores()?;
        let mut order: Vec<usize> = (0..self.atoms.len()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
        let mut gone: Vec<usize> = match self.reader.classes {
            None => order[..n].to_vec(),
            Some(classes) => {
                let all = classes.iter().max().map_or(1, |c| c + 1);
                let mut room = vec![n / all; all];
                let fits = |&a: &usize| {
                    let room = &mut room[classes[self.atoms[a].0]];
                    let fits = *room > 0;
                    *room -= usize::from(fits);
                    fits
                };
                order.into_iter().filter(fits).collect()
            }
        };
        gone.sort_unstable();
        let places: Vec<usize> = gone.iter().flat_map(|&a| self.atoms[a].1.clone()).collect();
        for &a in gone.iter().rev() {
            self.atoms.remove(a);
        }
        if self.score.updates() && !self.atoms.is_empty() {
            self.update(&places)?;
        }
        Ok(())
    }

    /// What each atom that is left is worth.
    fn scores(&self) -> Result<Vec<f64>, String> {
        let outputs = self.weight.cols;
        let target = |p: usize| self.target.row(self.channels[p]);
        let one = |(_, places): &(usize, Vec<usize>)| -> Result<f64, String> {
            let own = |p: &usize| self.weight.row(*p);
            match self.score {
                Score::Wanda => Ok((places.iter())
                    .map(|p| {
                        let square = self.square(*p);
                        square.sqrt() * own(p).iter().map(|w| w.abs()).sum::<f64>()
                    })
                    .sum()),
                Score::Fluctuation => Ok((places.iter())
                    .map(|p| self.square(*p) * dot(own(p), own(p)))
                    .sum()),
                Score::Paper => {
                    let sum: f64 = (places.iter())
                        .map(|&p| {
                            let second = dot(self.weight.row(p), self.weight.row(p))
                                / (2.0 * self.inverse.row(p)[p]);
                            dot(self.weight.row(p), target(p)).abs() + second
                        })
                        .sum();
                    Ok(sum / places.len().max(1) as f64)
                }
                Score::Obs | Score::Code => {
                    let second = match places[..] {
                        [p] => dot(own(&p), own(&p)) / self.inverse.row(p)[p],
                        _ => {
                            let rows: Vec<f64> = places.iter().flat_map(own).copied().collect();
                            let rows = Matrix::new(places.len(), outputs, rows);
                            let solved = solve(&self.block(places), &rows)?;
                            dot(&rows.data, &solved.data)
                        }
                    };
                    let first = match self.score {
                        Score::Code => places.iter().map(|p| dot(own(p), target(*p))).sum(),
                        _ => 0.0,
                    };
                    Ok(0.5 * second + first)
                }
            }
        };
        self.atoms.par_iter().map(one).collect()
    }

    fn square(&self, place: usize) -> f64 {
        self.reader.squares[self.channels[place]]
    }

    /// `H⁻¹` between some of what is left.
    fn block(&self, places: &[usize]) -> Matrix {
        let rows = places.iter();
        let data = rows.flat_map(|&r| places.iter().map(move |&c| self.inverse.row(r)[c]));
        Matrix::new(places.len(), places.len(), data.collect())
    }

    /// Zeroes inputs and lets the others make up for them:
    /// `W -= H⁻¹[:,P] (H⁻¹[P,P])⁻¹ W[P]`, and the same of `H⁻¹`.
    fn update(&mut self, gone: &[usize]) -> Result<(), String> {
        let (n, outputs, count) = (self.inverse.rows, self.weight.cols, gone.len());
        let mut both = Matrix::zeros(count, outputs + n);
        for (row, &p) in both.data.chunks_exact_mut(outputs + n).zip(gone) {
            row[..outputs].copy_from_slice(self.weight.row(p));
            row[outputs..].copy_from_slice(self.inverse.row(p));
        }
        let solved = solve(&self.block(gone), &both)?;
        let parts = self.weight.data.par_chunks_mut(ROWS * outputs);
        let parts = parts.zip(self.inverse.data.par_chunks_mut(ROWS * n));
        parts.for_each(|(weight, inverse)| {
            let rows = inverse.len() / n;
            let across: Vec<f64> = (inverse.chunks_exact(n))
                .flat_map(|row| gone.iter().map(|&p| row[p]))
                .collect();
            let across = MatRef::from_row_major_slice(&across, rows, count);
            for (part, first, cols) in [(weight, 0, outputs), (inverse, outputs, n)] {
                matmul(
                    MatMut::from_row_major_slice_mut(part, rows, cols),
                    Accum::Add,
                    across,
                    solved.view().subcols(first, cols),
                    -1.0,
                    Par::Seq,
                );
            }
        });
        for &p in gone {
            self.weight.data[p * outputs..][..outputs].fill(0.0);
            self.inverse.data[p * n..][..n].fill(0.0);
            for r in 0..n {
                self.inverse.data[r * n + p] = 0.0;
            }
        }
        Ok(())
    }

    /// Drops the rows and columns of what went.
    fn shrink(&mut self) {
        let stay: Vec<usize> = self.atoms.iter().flat_map(|a| a.1.clone()).collect();
        let rows = |m: &Matrix| stay.iter().flat_map(|&p| m.row(p).to_vec()).collect();
        self.weight = Matrix::new(stay.len(), self.weight.cols, rows(&self.weight));
        if self.score.updates() {
            self.inverse = self.block(&stay);
        }
        self.channels = stay.iter().map(|&p| self.channels[p]).collect();
        let mut at = 0;
        for (_, places) in &mut self.atoms {
            let len = places.len();
            *places = (at..at + len).collect();
            at += len;
        }
    }

    /// What is left as a level.
    fn level(&mut self, refit: bool, whole: f64) -> Result<Level, String> {
        let (n, outputs) = (self.channels.len(), self.weight.cols);
        let rows = (self.channels.iter()).flat_map(|&c| self.target.row(c).to_vec());
        let target = Matrix::new(n, outputs, rows.collect());
        let h = self.reader.gram;
        let pairs =
            (self.channels.iter()).flat_map(|&r| self.channels.iter().map(move |&c| h.row(r)[c]));
        let h = Matrix::new(n, n, pairs.collect());
        let weight = match refit && n > 0 && n < self.reader.gram.rows {
            true => solve(&h, &target)?,
            false => self.weight.clone(),
        };
        let image = h.times(&weight);
        let lost = whole - 2.0 * dot(&weight.data, &target.data) + dot(&weight.data, &image.data);
        Ok(Level {
            kept: self.atoms.iter().map(|a| a.0).collect(),
            weight: weight.transposed(),
            error: (lost / whole).max(0.0),
        })
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn factor(h: &Matrix) -> Result<Llt<f64>, String> {
    let singular = "the second moments are singular: more windows, or a larger --damping";
    Llt::new(h.view(), Side::Lower).map_err(|_| singular.to_owned())
}

fn inverse(h: &Matrix) -> Result<Matrix, String> {
    let found = factor(h)?.inverse();
    let data = (0..h.rows).flat_map(|r| (0..h.cols).map(move |c| (r, c)));
    let data: Vec<f64> = data.map(|at| found[at]).collect();
    match data.iter().all(|v| v.is_finite()) {
        true => Ok(Matrix::new(h.rows, h.cols, data)),
        false => Err("the inverse of the second moments is not finite".into()),
    }
}

/// `A⁻¹ B` for a positive definite `A`.
pub(crate) fn solve(a: &Matrix, b: &Matrix) -> Result<Matrix, String> {
    let found = factor(a)?.solve(b.view());
    let mut out = Matrix::zeros(b.rows, b.cols);
    for c in 0..b.cols {
        for r in 0..b.rows {
            out.data[r * b.cols + c] = found[(r, c)];
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;

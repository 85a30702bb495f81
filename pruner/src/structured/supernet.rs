//! Every module at several widths, on disk, and the same modules at one width each.

use super::compact::{Left, biased, compact};
use super::files::{load, store};
use super::local::{Local, Reader, levels};
use super::loss::{Lost, image};
use super::modules::{HeadMode, Kind, Module, modules};
use crate::calibration::{Blocks, Calibration, Gram, Moments, States, Taps, windows};
use crate::matrix::Matrix;
use crate::spent::Spent;
use crate::{Error, Layer, Prefix, Progress, Result, layer};
use lacuna::{Model, Weight};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// What the blocks behind a block that has several levels are calibrated on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accumulation {
    /// The mean of the levels' outputs, weighted by their density (arXiv 2503.09657, Eq. 5).
    #[default]
    Expectation,
    /// The outputs of the level in the middle.
    Median,
    /// The outputs of the block as it was.
    None,
}

/// A decoder with what can go from it, and what it is calibrated on.
pub(crate) struct Net<'m> {
    pub model: &'m Model,
    pub modules: Vec<Module>,
    pub blocks: Blocks,
    layers: Vec<Layer<'m>>,
    /// For each block its modules, and the index of their input among the block's.
    members: Vec<Vec<(usize, usize)>>,
    windows: Vec<&'m [u32]>,
    settings: Calibration,
    /// What the model and its text are known by.
    pub digest: String,
    /// Wall time so far.
    pub spent: Spent,
}

/// What a run of the model as it was shows of a block.
pub(crate) struct Passed<'a> {
    /// Its modules, and the index of their input.
    pub members: &'a [(usize, usize)],
    /// The states of the windows before it and behind it.
    pub before: &'a [Vec<f32>],
    pub after: &'a States,
    /// Sums of the inputs and of their squares.
    pub taps: &'a Taps,
}

/// A level of a module.
#[derive(Clone, Debug)]
pub(crate) struct Rung {
    /// Heads or neurons that are left, ascending.
    pub kept: Vec<usize>,
    /// The reader's weight over them; none where all or none are left.
    pub weight: Option<Weight>,
    /// What is added to the reader's outputs for what went. Rungs of a supernet have none.
    pub bias: Option<Vec<f32>>,
    /// `‖X (W - Ŵ)ᵀ‖² / ‖X Wᵀ‖²` on the windows that it was fitted on, and on those held out.
    pub error: f64,
    pub held_out: Option<f64>,
}

/// The atoms left at each level of a module, in descending order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Ladder {
    pub counts: Vec<usize>,
    /// The level in the middle.
    pub centre: usize,
}

impl<'m> Net<'m> {
    /// Finds what can go from `model`, and draws windows of `tokens`.
    pub fn new(
        model: &'m Model,
        mode: HeadMode,
        settings: &Calibration,
        tokens: &'m [u32],
        digest: String,
    ) -> Result<Net<'m>> {
        faer::set_global_parallelism(faer::Par::Seq);
        let windows = windows(settings, tokens)?;
        let mut modules = modules(model, mode)?;
        let names: Vec<String> = (modules.iter())
            .map(|m| glob::Pattern::escape(&m.reader))
            .collect();
        let layers = layer::select(model, &names, &[])?;
        let blocks = Blocks::new(model, &layers, settings.window)?;
        let at = |name: &str| modules.iter().position(|m| m.reader == name);
        let of = |l: usize| at(layers[l].name).unwrap_or_default();
        let members: Vec<Vec<(usize, usize)>> = (blocks.blocks.iter())
            .map(|b| b.layers.iter().map(|&(l, i)| (of(l), i)).collect())
            .collect();
        let order: Vec<usize> = members.iter().flatten().map(|m| m.0).collect();
        if !order.is_sorted() || order.len() != modules.len() {
            return Err(Error::Calibration(format!(
                "{} modules, of which {} lie in blocks",
                modules.len(),
                order.len()
            )));
        }
        modules.iter_mut().for_each(|m| {
            m.optional &= m.atoms() > 0;
        });
        Ok(Net {
            model,
            modules,
            blocks,
            layers,
            members,
            windows,
            settings: settings.clone(),
            digest,
            spent: Spent::default(),
        })
    }

    /// The modules of each block.
    pub fn by_block(&self) -> Vec<Vec<usize>> {
        let of = |b: &Vec<(usize, usize)>| b.iter().map(|m| m.0).collect();
        self.members.iter().map(of).collect()
    }

    /// The layer that reads a module's heads or neurons.
    fn layer(&self, module: usize) -> &Layer<'m> {
        let name = &self.modules[module].reader;
        let found = self.layers.iter().find(|l| l.name == name);
        found.unwrap_or(&self.layers[0])
    }

    /// The values of the weight that reads a module.
    pub fn dense(&self, module: usize) -> Matrix {
        Matrix::of(self.layer(module).weight)
    }

    /// Runs the model as it was, and shows each block.
    pub fn watch(&self, look: &mut dyn FnMut(Passed<'_>)) -> Result<()> {
        let mut states = self.states()?;
        for (block, members) in self.blocks.blocks.iter().zip(&self.members) {
            let before = states.windows().to_vec();
            let taps = states.collect(block, self.model, false, true)?;
            look(Passed {
                members,
                before: &before,
                after: &states,
                taps: &taps,
            });
            for &(m, _) in members {
                self.layer(m).weight.release();
            }
        }
        Ok(())
    }

    fn states(&self) -> Result<States> {
        States::new(
            &self.blocks.before,
            self.model,
            &self.windows,
            self.settings.windows,
        )
    }

    /// Parameters of the modules with these rungs.
    pub fn parameters<'r>(&self, rungs: impl Iterator<Item = &'r Rung>) -> usize {
        let pairs = self.modules.iter().zip(rungs);
        pairs.map(|(m, r)| m.left(&r.kept)).sum()
    }

    /// Whether heads are left in some attention where modules have so many units: a model without is no decoder.
    pub fn attends(&self, left: impl Fn(usize) -> usize) -> bool {
        let attention =
            |n: &&lacuna::model::Node| matches!(n.op, lacuna::model::Op::Attention { .. });
        let all = self.model.graph().nodes.iter().filter(attention).count();
        let own: Vec<usize> = (0..self.modules.len())
            .filter(|&m| self.modules[m].kind == Kind::Attention)
            .collect();
        all > own.len() || own.into_iter().any(|m| left(m) > 0)
    }

    /// Bytes that a supernet takes on disk.
    pub fn bytes(&self, ladders: &[Ladder]) -> u64 {
        let one = |(i, l): (usize, &Ladder)| -> u64 {
            let m = &self.modules[i];
            let element = self.layer(i).weight.dtype().size();
            let width = m.inputs[0].len() * m.bundle;
            let level = |&&c: &&usize| c > 0 && c < m.atoms();
            let bytes = |&c: &usize| (c * (width * m.outputs * element + 8 * m.bundle)) as u64;
            l.counts.iter().filter(level).map(bytes).sum()
        };
        ladders.iter().enumerate().map(one).sum()
    }

    /// Prunes every module to the levels of its ladder, block by block, from the model as it was. With a folder each
    /// block lies in a file there; those that are there already are not made again.
    pub fn supernet(
        &self,
        ladders: &[Ladder],
        local: &Local,
        accumulation: Accumulation,
        folder: Option<&Path>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Vec<Rung>>> {
        let digest =
            crate::search::digest(&(&self.digest, ladders, local, accumulation, &self.settings))?;
        let mut states = self.states()?;
        let mut pruned = self.model.clone();
        let mut all: Vec<Vec<Rung>> = vec![Vec::new(); self.modules.len()];
        let count = self.blocks.blocks.len();
        let dense = accumulation == Accumulation::None || self.settings.prefix == Prefix::Dense;
        for (done, (block, members)) in self.blocks.blocks.iter().zip(&self.members).enumerate() {
            progress(Progress {
                phase: "blocks",
                done,
                all: count,
            });
            let path = folder.map(|f| f.join(format!("block-{done:03}.safetensors")));
            let stored = path.as_ref().and_then(|p| load(p, &digest, members.len()));
            let advanced = stored.is_none() && dense;
            let rungs = match stored {
                Some(rungs) => rungs,
                None => {
                    let source = if dense { self.model } else { &pruned };
                    let taps = states.collect(block, source, true, dense)?;
                    self.spent.add("forward", taps.seconds[0]);
                    self.spent.add("moments", taps.seconds[1]);
                    let solving = Instant::now();
                    let made: Vec<Vec<Rung>> = (members.par_iter())
                        .map(|&(m, input)| {
                            self.prune(
                                m,
                                &ladders[m].counts,
                                local,
                                &taps,
                                input,
                                &block.inputs[input],
                            )
                        })
                        .collect::<Result<_>>()?;
                    self.spent.add("solve", solving.elapsed().as_secs_f64());
                    match &path {
                        Some(path) => store(path, &digest, made)?,
                        None => made,
                    }
                }
            };
            if done + 1 < count && !advanced {
                if !dense {
                    for (&(m, _), rungs) in members.iter().zip(&rungs) {
                        let weight = self.mean(m, rungs, &ladders[m], accumulation)?;
                        pruned.set_weight(&self.modules[m].reader, weight)?;
                    }
                }
                self.spent
                    .time("advance", || states.advance(block, &pruned))?;
            }
            for (&(m, _), rungs) in members.iter().zip(rungs) {
                all[m] = rungs;
                self.layer(m).weight.release();
            }
        }
        progress(Progress {
            phase: "blocks",
            done: count,
            all: count,
        });
        Ok(all)
    }

    /// The levels of a module.
    fn prune(
        &self,
        module: usize,
        counts: &[usize],
        local: &Local,
        taps: &Taps,
        input: usize,
        name: &str,
    ) -> Result<Vec<Rung>> {
        let (one, layer) = (&self.modules[module], self.layer(module));
        let refuse = |what: String| Gram::refuse(layer.name, format!("input `{name}`: {what}"));
        let gram = Gram::new(&taps.fitted[input], self.settings.damping).map_err(refuse)?;
        let dense = Matrix::of(layer.weight);
        let spreads = taps.fitted[input].spreads();
        let atoms = one.atom_inputs();
        // The classes of atoms are those of heads: bundles have none.
        let reader = Reader {
            weight: &dense.transposed(),
            gram: gram.damped().map_err(refuse)?,
            squares: match local.score.biases() {
                true => &spreads,
                false => gram.diagonal(),
            },
            atoms: &atoms,
            classes: one.classes.as_deref(),
        };
        let step = match one.kind {
            Kind::Attention => local.heads,
            Kind::Mlp => local.neurons,
        };
        let step = match step {
            super::local::Step::Atoms(n) => {
                super::local::Step::Atoms(n.next_multiple_of(one.grain()))
            }
            rounds => rounds,
        };
        let (fitted, held_out) = (&taps.fitted[input], &taps.held_out[input]);
        let lost = |m: &Moments| (m.tokens() > 0).then(|| Lost::new(m, &dense)).flatten();
        let (on_held_out, on_fitted) = (
            lost(held_out),
            lost(fitted).filter(|_| local.score.biases()),
        );
        let made = levels(&reader, counts, local, step).map_err(refuse)?;
        made.into_iter()
            .map(|level| {
                let kept = one.units_of(&level.kept);
                let columns: Vec<usize> =
                    kept.iter().flat_map(|&k| one.inputs[k].clone()).collect();
                let stored = level.weight.to_stored(layer)?;
                let mut gap = dense.clone();
                let rows = gap.data.chunks_exact_mut(gap.cols);
                for (row, left) in rows.zip(level.weight.data.chunks(columns.len().max(1))) {
                    columns.iter().zip(left).for_each(|(&c, v)| row[c] -= v);
                }
                let biased = local.score.biases() && kept.len() < one.units;
                let bias = biased.then(|| image(&gap, &fitted.means()));
                let partly = !kept.is_empty() && kept.len() < one.units;
                let error = match (&bias, &on_fitted) {
                    (Some(bias), Some(lost)) => lost.share(&gap, Some(bias)),
                    _ => level.error,
                };
                Ok(Rung {
                    kept,
                    weight: partly.then_some(stored),
                    held_out: on_held_out.as_ref().map(|l| l.share(&gap, bias.as_deref())),
                    bias: bias.map(|b| b.into_iter().map(|v| v as f32).collect()),
                    error,
                })
            })
            .collect()
    }

    /// What stands for the levels of a module while the blocks behind it are calibrated, of the reader's shape.
    fn mean(
        &self,
        module: usize,
        rungs: &[Rung],
        ladder: &Ladder,
        accumulation: Accumulation,
    ) -> Result<Weight> {
        let (one, layer) = (&self.modules[module], self.layer(module));
        let density = |r: &Rung| r.kept.len() as f64 / one.units.max(1) as f64;
        let chosen = match accumulation {
            Accumulation::Median => &rungs[ladder.centre..=ladder.centre],
            _ => rungs,
        };
        let total: f64 = chosen.iter().map(density).sum();
        let (rows, cols) = layer.weight.matrix();
        let mut mean = vec![0f64; rows * cols];
        for rung in chosen.iter().filter(|r| !r.kept.is_empty()) {
            let share = density(rung) / total;
            let columns: Vec<usize> = (rung.kept.iter())
                .flat_map(|&k| one.inputs[k].clone())
                .collect();
            let weight = self.weight(module, rung).to_f32().unwrap_or_default();
            // Of a module that is whole the columns are all of them, in the order of the weight.
            let whole: Vec<usize> = (0..cols).collect();
            let columns = if rung.weight.is_some() {
                &columns
            } else {
                &whole
            };
            for (row, left) in mean
                .chunks_exact_mut(cols)
                .zip(weight.chunks(columns.len()))
            {
                columns
                    .iter()
                    .zip(left)
                    .for_each(|(&c, v)| row[c] += share * f64::from(*v));
            }
        }
        Matrix::new(rows, cols, mean).to_weight(layer)
    }

    /// The reader's weight at a level.
    pub fn weight(&self, module: usize, rung: &Rung) -> Weight {
        match &rung.weight {
            Some(weight) => weight.clone(),
            None => self.layer(module).weight.clone(),
        }
    }

    /// The model with the weights of these rungs in its old shapes.
    pub fn masked(&self, rungs: &[Rung]) -> Result<Model> {
        let mut masked = self.model.clone();
        let whole = Ladder {
            counts: Vec::new(),
            centre: 0,
        };
        for (m, rung) in rungs.iter().enumerate() {
            let one = std::slice::from_ref(rung);
            let weight = self.mean(m, one, &whole, Accumulation::Expectation)?;
            masked.set_weight(&self.modules[m].reader, weight)?;
        }
        let biases = rungs.iter().zip(&self.modules);
        let biases = biases.filter_map(|(r, m)| Some((m, r.bias.as_deref()?)));
        biased(&masked, biases)
    }

    /// `part`, the model or some of its blocks, with these modules at these levels.
    pub fn compact<'r>(
        &self,
        part: &Model,
        rungs: impl Iterator<Item = (usize, &'r Rung)>,
    ) -> Result<Model> {
        let left: Vec<Left<'_>> = rungs
            .filter(|(m, r)| r.kept.len() < self.modules[*m].units)
            .map(|(m, rung)| Left {
                module: &self.modules[m],
                kept: &rung.kept,
                weight: self.weight(m, rung),
                bias: rung.bias.as_deref(),
            })
            .collect();
        compact(part, &left)
    }
}

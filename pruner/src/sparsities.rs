//! Layer-wise sparsities that keep a model's answers: the search of [`search`](crate::search) over the attentions and MLPs of
//! a decoder, each pruned to several sparsities by any calibrated solver.

use crate::allocator::share;
use crate::calibrated::grams;
use crate::calibration::{Block, Blocks, States, windows};
use crate::search::{Event, Levels, Parts, Round, Rounds, SearchSettings, Space, Teacher, digest};
use crate::solver::Statistics;
use crate::spent::Spent;
use crate::{Calibration, Error, Layer, Prefix, Progress, Recipe, Result, layer};
use lacuna::model::Op;
use lacuna::{Model, Weight};
use serde::Serialize;
use std::path::Path;

/// As many candidates' kept weights may differ by, as a share of all that are pruned, to each side.
const TOLERANCE: f64 = 0.0025;

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The recipe with the sparsities, without a search: what replays it.
    pub recipe: Recipe,
    /// Rounds of the search.
    pub rounds: Vec<Round>,
}

/// The layers of a block up to that which reads its attention, or those behind.
#[derive(Clone, Debug)]
struct Part {
    block: usize,
    /// Whether it is an MLP.
    behind: bool,
    layers: Vec<usize>,
}

/// The sparsities at which a part is looked at, ascending.
#[derive(Clone, Debug, Serialize)]
struct Ladder {
    sparsities: Vec<f64>,
    /// The level in the middle.
    centre: usize,
}

/// The weights of a part at a level, by name.
type Rung = Vec<(String, Weight)>;

/// A decoder, what is pruned of it, and on what.
struct Net<'m> {
    recipe: &'m Recipe,
    model: &'m Model,
    calibration: &'m Calibration,
    layers: Vec<Layer<'m>>,
    blocks: Blocks,
    parts: Vec<Part>,
    windows: Vec<&'m [u32]>,
    digest: String,
}

impl Recipe {
    /// Looks for the sparsities of the layers of a model that [`Recipe::convert`] gave, as the recipe's `search` says, on
    /// windows of `tokens`. Supernets, state and log are kept in `work`, from where the same call goes on; `origin` names
    /// model and text.
    ///
    /// # Errors
    /// As [`Recipe::calibrate`], when the recipe has no search, and when a file cannot be written.
    pub fn search(
        &self,
        model: &Model,
        tokens: &[u32],
        origin: &str,
        work: &Path,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Found> {
        faer::set_global_parallelism(faer::Par::Seq);
        self.check()?;
        let (Some(search), Some(calibration)) = (&self.search, &self.calibration) else {
            return Err(Error::Recipe("no tables [search] and [calibration]".into()));
        };
        let net = Net::new(self, calibration, model, tokens, origin)?;
        let rounds = Rounds {
            settings: search,
            calibration,
            tokens,
            teacher: Teacher {
                model,
                blocks: &net.blocks,
                digest: &net.digest,
            },
            hash: &self.hash(),
            work,
            spent: &Spent::default(),
        };
        let start = vec![self.sparsity; net.parts.len()];
        let (found, rounds) = rounds.run(&net, start, tell)?;
        Ok(Found {
            recipe: Recipe {
                search: None,
                sparsities: net.exactly(&found),
                ..self.clone()
            },
            rounds,
        })
    }
}

impl Parts for Net<'_> {
    type Choice = f64;
    type Ladder = Ladder;
    type Rung = Rung;

    fn by_block(&self) -> Vec<Vec<usize>> {
        let of = |b: usize| {
            let all = 0..self.parts.len();
            all.filter(|&p| self.parts[p].block == b).collect()
        };
        (0..self.blocks.blocks.len()).map(of).collect()
    }

    /// Sparsities from 0.
    fn ladders(&self, found: &[f64], settings: &SearchSettings, round: usize) -> Vec<Ladder> {
        let step = settings.interval / 2f64.powi(round as i32);
        // Sums of steps that should meet differ by rounding alone.
        let near = |s: f64| (s * 1e9).round() / 1e9;
        let one = |&middle: &f64| {
            let below = ((middle / step + 1e-6).floor() as usize).min(settings.levels);
            let above = (((1.0 - middle) / step - 1e-6).floor() as usize).min(settings.levels);
            Ladder {
                sparsities: (0..=below + above)
                    .map(|l| near(middle + (l as f64 - below as f64) * step).max(0.0))
                    .collect(),
                centre: below,
            }
        };
        found.iter().map(one).collect()
    }

    fn choice(&self, ladder: &Ladder, level: usize) -> f64 {
        ladder.sparsities[level]
    }

    /// Of every layer and level the bitmask, its values and the rows' offsets, or the
    /// dense weight where that is less.
    fn bytes(&self, ladders: &[Ladder]) -> u64 {
        let one = |(part, ladder): (&Part, &Ladder)| -> u64 {
            let layer = |(l, s): (usize, f64)| -> u64 {
                let layer = &self.layers[l];
                let ((rows, cols), element) = (layer.weight.matrix(), layer.weight.dtype().size());
                let kept = layer.numel() - self.removes(l, s);
                let sparse = kept * element + rows * cols.div_ceil(8) + rows * 8;
                sparse.min(layer.numel() * element) as u64
            };
            let levels = ladder.sparsities.iter();
            let all = levels.flat_map(|&s| part.layers.iter().map(move |&l| (l, s)));
            all.map(layer).sum()
        };
        self.parts.iter().zip(ladders).map(one).sum()
    }

    /// Level 0 is that of the least sparsity.
    fn space<'a>(&'a self, ladders: &[Ladder], supernet: &'a [Vec<Rung>]) -> Space<'a> {
        let numel = |p: &Part| -> usize { p.layers.iter().map(|&l| self.layers[l].numel()).sum() };
        let kept = |p: &Part, s: f64| -> usize {
            let left = |&l: &usize| self.layers[l].numel() - self.removes(l, s);
            p.layers.iter().map(left).sum()
        };
        let pairs = || self.parts.iter().zip(ladders);
        Space {
            costs: pairs()
                .map(|(p, l)| l.sparsities.iter().map(|&s| kept(p, s) as f64).collect())
                .collect(),
            // Steps are as large as their parts; counts of weights differ by rounding.
            sizes: pairs()
                .map(|(p, l)| {
                    let levels = l.sparsities.len();
                    (0..levels).map(|i| numel(p) * (levels - i)).collect()
                })
                .collect(),
            kinds: self.parts.iter().map(|p| usize::from(p.behind)).collect(),
            allowed: Box::new(|_| true),
            apply: Box::new(|block, chosen| {
                let mut model = block.clone();
                for (name, weight) in chosen.iter().flat_map(|&(p, l)| &supernet[p][l]) {
                    model.set_weight(name, weight.clone())?;
                }
                Ok(model)
            }),
        }
    }

    /// Prunes every part to the levels of its ladder, each block on what the blocks before it give at their middle levels. A
    /// file for each block and level; those that are there already are not made again.
    fn supernet(
        &self,
        ladders: &[Ladder],
        folder: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Vec<Rung>>> {
        let recipe = Recipe {
            search: None,
            ..self.recipe.clone()
        };
        let key = digest(&(&self.digest, recipe.hash(), ladders))?;
        let full = self.recipe.solver.get().statistics() == Statistics::Full
            || self.recipe.refiner.get().is_some();
        let dense = self.calibration.prefix == Prefix::Dense;
        let held_out = self.calibration.windows;
        let mut states = States::new(
            &self.blocks.before,
            self.model,
            &self.windows[..held_out],
            held_out,
        )?;
        let mut pruned = self.model.clone();
        let mut all: Vec<Vec<Rung>> = vec![Vec::new(); self.parts.len()];
        let count = self.blocks.blocks.len();
        for (done, (block, parts)) in self.blocks.blocks.iter().zip(self.by_block()).enumerate() {
            progress(Progress {
                phase: "blocks",
                done,
                all: count,
            });
            let levels = parts.iter().map(|&p| ladders[p].sparsities.len());
            let levels = levels.max().unwrap_or(0);
            let path = |l: usize| folder.join(format!("block-{done:03}-{l}.safetensors"));
            let load = |l: usize| {
                let model = Model::open(path(l)).ok()?;
                (model.metadata.recipe.as_deref() == Some(&key)).then_some(model)
            };
            let mut made: Vec<Option<Model>> = (0..levels).map(load).collect();
            let whole = made.iter().all(Option::is_some);
            if !whole {
                let source = if dense { self.model } else { &pruned };
                let taps = states.collect(block, source, full, dense)?;
                let grams = grams(block, &taps, self.calibration.damping)?;
                for (l, made) in made.iter_mut().enumerate().filter(|m| m.1.is_none()) {
                    let mut removes = vec![0; self.layers.len()];
                    for &p in &parts {
                        let sparsities = &ladders[p].sparsities;
                        let s = sparsities[l.min(sparsities.len() - 1)];
                        for &layer in &self.parts[p].layers {
                            removes[layer] = self.removes(layer, s);
                        }
                    }
                    let solved = self
                        .recipe
                        .solve(block, &self.layers, &removes, &taps, &grams)?;
                    let mut model = block.plain().model(self.model)?;
                    for (&(layer, _), (weight, _)) in block.layers.iter().zip(solved) {
                        model.set_weight(self.layers[layer].name, weight.stored_best())?;
                    }
                    model.metadata.recipe = Some(key.clone());
                    model.save(path(l))?;
                    *made = Some(Model::open(path(l))?);
                }
            }
            for &p in &parts {
                all[p] = (0..ladders[p].sparsities.len())
                    .filter_map(|l| made[l].as_ref().map(|m| self.rung(p, m)))
                    .collect();
                if !dense {
                    for (name, weight) in &all[p][ladders[p].centre] {
                        pruned.set_weight(name, weight.clone())?;
                    }
                }
            }
            if done + 1 < count && (whole || !dense) {
                states.advance(block, if dense { self.model } else { &pruned })?;
            }
            self.release(block);
        }
        progress(Progress {
            phase: "blocks",
            done: count,
            all: count,
        });
        Ok(all)
    }

    fn start(&self, ladders: &[Ladder], _: &[Vec<Rung>]) -> Levels {
        ladders.iter().map(|l| l.centre).collect()
    }

    fn range(&self, start: f64) -> (f64, f64) {
        let total: usize = self.layers.iter().map(Layer::numel).sum();
        let target = (total - share(self.recipe.sparsity, total)) as f64;
        let slack = (TOLERANCE * total as f64).max((start - target).abs());
        (target - slack, target + slack)
    }
}

impl<'m> Net<'m> {
    fn new(
        recipe: &'m Recipe,
        calibration: &'m Calibration,
        model: &'m Model,
        tokens: &'m [u32],
        origin: &str,
    ) -> Result<Net<'m>> {
        let windows = windows(calibration, tokens)?;
        let layers = layer::select(model, &recipe.include, &recipe.exclude)?;
        let blocks = Blocks::new(model, &layers, calibration.window)?;
        let place = |name: &str| model.graph().nodes.iter().position(|n| n.name == name);
        let mut parts = Vec::new();
        for (b, block) in blocks.blocks.iter().enumerate() {
            let mut own: Vec<usize> = block.layers.iter().map(|l| l.0).collect();
            own.sort_by_key(|&l| place(&layers[l].node.name));
            // The first layer behind the attention reads what it gives.
            let attention = block.place(|op| matches!(op, Op::Attention { .. }));
            let after = |l: usize| block.place_of(&layers[l].node.name) > attention;
            let before = own.iter().filter(|&&l| !after(l)).count();
            let behind = own.split_off((before + 1).min(own.len()));
            for (behind, layers) in [(false, own), (true, behind)] {
                if !layers.is_empty() {
                    parts.push(Part {
                        block: b,
                        behind,
                        layers,
                    });
                }
            }
        }
        Ok(Net {
            recipe,
            model,
            calibration,
            layers,
            blocks,
            parts,
            windows,
            digest: origin.to_owned(),
        })
    }

    /// Elements that a layer loses at a sparsity.
    fn removes(&self, layer: usize, sparsity: f64) -> usize {
        let layer = &self.layers[layer];
        share(sparsity, layer.numel()).max(layer.zeros.min(layer.numel()))
    }

    fn release(&self, block: &Block) {
        let layers = block.layers.iter();
        layers.for_each(|&(l, _)| self.layers[l].weight.release());
    }

    /// The weights of a part in a block's model.
    fn rung(&self, part: usize, model: &Model) -> Rung {
        let names = self.parts[part].layers.iter().map(|&l| self.layers[l].name);
        names
            .filter_map(|n| Some((n.to_owned(), model.weights().get(n)?.clone())))
            .collect()
    }

    /// The sparsities of layers, moved alike so that their mean is the recipe's.
    fn exactly(&self, found: &[f64]) -> std::collections::BTreeMap<String, f64> {
        let each = || {
            let pairs = self.parts.iter().zip(found);
            pairs.flat_map(|(p, &s)| p.layers.iter().map(move |&l| (l, s)))
        };
        let total: usize = self.layers.iter().map(Layer::numel).sum();
        let mean = |by: f64| -> f64 {
            let sum: f64 = each()
                .map(|(l, s)| (s + by).clamp(0.0, 1.0 - 1e-9) * self.layers[l].numel() as f64)
                .sum();
            sum / total.max(1) as f64
        };
        // Clamped ones do not move: by halves.
        let (mut low, mut high) = (-1.0, 1.0);
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            match mean(middle) < self.recipe.sparsity {
                true => low = middle,
                false => high = middle,
            }
        }
        // Nine places: what is written is what is used.
        let near = |s: f64| ((s + high) * 1e9).round() / 1e9;
        each()
            .map(|(l, s)| {
                (
                    self.layers[l].name.to_owned(),
                    near(s).clamp(0.0, 1.0 - 1e-9),
                )
            })
            .collect()
    }
}

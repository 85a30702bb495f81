//! A recipe whose plan for a model is made: carried out in memory, or straight into a file.

use crate::{Layer, Pattern, Plan, Pruned, Recipe, Result, Solver, Task, write};
use lacuna::Model;
use lacuna::model::file::{self, Form, Maker};
use lacuna::model::{Storage, Weight};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// A recipe, the model that it is applied to, and the plan. Made by [`Recipe::prepare`].
#[derive(Clone, Debug)]
pub struct Prepared<'m> {
    pub(crate) recipe: &'m Recipe,
    pub(crate) model: &'m Model,
    pub(crate) layers: Vec<Layer<'m>>,
    pub(crate) plan: Plan,
}

impl Prepared<'_> {
    /// What will happen.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Carries the plan out.
    ///
    /// # Errors
    /// When a method is calibrated: see [`Recipe::calibrate`].
    pub fn run(self) -> Result<Pruned> {
        self.recipe.refuse_calibrated()?;
        let solver = self.recipe.solver.get();
        let pruned = self.plan.apply(self.model, &self.layers, solver)?;
        self.recipe.finish(pruned, self.plan)
    }

    /// Carries the plan out into a file, byte for byte what [`Prepared::run`] and [`save`](crate::save) write,
    /// with a few weights in memory at a time. Returns the model of the file.
    ///
    /// # Errors
    /// As [`Prepared::run`].
    pub fn write(&self, path: &Path) -> Result<Model> {
        self.recipe.refuse_calibrated()?;
        let mut model = self.model.clone();
        model.metadata.recipe = Some(self.recipe.hash());
        file::write_made(&model, &Making::new(self), path)?;
        write::verify(&self.plan, path)
    }
}

/// Carries a plan out while its result is written: each layer is solved when its turn comes.
struct Making<'a> {
    solver: &'a dyn Solver,
    pattern: Option<Pattern>,
    weights: BTreeMap<&'a str, Turn<'a>>,
}

struct Turn<'a> {
    weight: &'a Weight,
    /// The layer and how many of its weights go; a weight without is only stored in another form.
    layer: Option<(&'a Layer<'a>, usize)>,
    form: Form,
}

impl<'a> Making<'a> {
    fn new(prepared: &'a Prepared<'a>) -> Making<'a> {
        let Prepared {
            recipe,
            model,
            layers,
            plan,
        } = prepared;
        let keep_dense = recipe.keep_dense;
        let mut weights: BTreeMap<&str, Turn<'_>> = BTreeMap::new();
        let form = |weight: &Weight, nonzeros, two_four| Form {
            storage: match keep_dense {
                true => Storage::Dense,
                false => weight.best_storage(nonzeros, two_four),
            },
            nonzeros,
        };
        for (layer, planned) in layers.iter().zip(&plan.layers) {
            let one = Turn {
                weight: layer.weight,
                layer: Some((layer, planned.remove)),
                form: form(
                    layer.weight,
                    planned.size - planned.zeros_after,
                    planned.two_four,
                ),
            };
            weights.insert(layer.name, one);
        }
        let products = model.product_weights();
        let product = |name: &str| products.iter().any(|p| p.0 == name);
        let others: Vec<(&str, Turn<'_>)> = model
            .weights()
            .par_iter()
            .filter(|(name, _)| !weights.contains_key(name.as_str()))
            .filter_map(|(name, weight)| {
                // As `Recipe::finish` has it.
                let form = match (keep_dense, product(name)) {
                    (false, true) => form(weight, weight.count_nonzero(), weight.is_two_four()),
                    (true, _) => form(weight, weight.numel(), false),
                    (false, false) => return None,
                };
                let same = form.storage == Storage::Dense && !weight.is_sparse();
                let layer = None;
                (!same).then_some((
                    name.as_str(),
                    Turn {
                        weight,
                        layer,
                        form,
                    },
                ))
            })
            .collect();
        weights.extend(others);
        Making {
            solver: recipe.solver.get(),
            pattern: recipe.pattern,
            weights,
        }
    }
}

impl Maker for Making<'_> {
    fn form(&self, name: &str) -> Option<Form> {
        self.weights.get(name).map(|one| one.form)
    }

    fn make(&self, name: &str) -> Result<Weight, String> {
        let one = self.weights.get(name).ok_or("it is not planned")?;
        let made = match one.layer {
            Some((layer, remove)) => {
                let task = Task {
                    layer,
                    remove,
                    pattern: self.pattern,
                    gram: None,
                };
                let solved = self.solver.solve(&task);
                solved.map_err(|e| e.to_string())?
            }
            None => one.weight.decode(),
        };
        one.weight.release();
        match one.form.storage {
            Storage::Dense => Ok(made),
            storage => made.store_as(storage),
        }
    }
}

//! A run as a small TOML file: replayable to the same bytes, and hashed into the output.

use crate::allocator::{Columns, EVEN, Erk, GlobalMagnitude, Lamp, Uniform, first_factors, share};
use crate::origin::Origin;
use crate::train::TrainSettings;
use crate::{
    Allocator, Budget, ColumnSolver, Error, FloorMode, MagnitudeSolver, Plan, Result, Solver, Ties,
};
use crate::{Layer, Prepared, Refiner, layer};
use lacuna::{DType, Model};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The version of the recipe format.
const SCHEMA: u32 = 1;

/// Everything that decides the bytes of a run's output, given its input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The version of the format: 1.
    pub schema: u32,
    /// The share of the selected weights that is to be zero, in `[0, 1)`.
    pub sparsity: f64,
    /// How sparse each layer gets.
    pub allocator: AllocatorName,
    /// Which weights of a layer go.
    #[serde(default)]
    pub solver: SolverName,
    /// What happens afterwards.
    #[serde(default)]
    pub refiner: RefinerName,
    /// What happens to equal magnitudes.
    #[serde(default)]
    pub ties: Ties,
    /// Shell globs over weight names; empty means every prunable weight.
    #[serde(default)]
    pub include: Vec<String>,
    /// Shell globs over weight names that stay as they are.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Store every weight dense, zeros included.
    #[serde(default)]
    pub keep_dense: bool,
    /// The dtype of the output's matrices, converted before anything is ranked; `None` for that of the
    /// input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DType>,
    /// The fewest weights that a layer keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Floor>,
    /// With the allocator `columns`: by the name of a first factor, the channels that it keeps. The others lose the
    /// sparsity's share of theirs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ranks: BTreeMap<String, usize>,
    /// What is pruned, where the recipe says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Origin>,
    /// How the model is trained while or after its weights go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<TrainSettings>,
}

/// The fewest weights that a layer keeps; a smaller layer stays whole. One of the two is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Floor {
    /// How the floor is kept.
    #[serde(default)]
    pub mode: FloorMode,
    /// As a number of weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_weights: Option<usize>,
    /// As a percentage of all selected weights, rounded down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mt_percent: Option<f64>,
}

/// The allocators that a recipe can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllocatorName {
    /// One magnitude threshold for the whole network.
    GlobalMagnitude,
    /// The same share everywhere.
    Uniform,
    /// Small layers stay denser, by their shapes alone.
    Erk,
    /// One ranking of magnitudes normalised by what is left of their layer.
    Lamp,
    /// The inner channels of factors of low rank.
    Columns,
}

impl AllocatorName {
    /// The allocator of this name.
    pub fn get(self) -> &'static dyn Allocator {
        match self {
            AllocatorName::GlobalMagnitude => &GlobalMagnitude,
            AllocatorName::Uniform => &Uniform,
            AllocatorName::Erk => &Erk,
            AllocatorName::Lamp => &Lamp,
            AllocatorName::Columns => &EVEN,
        }
    }
}

/// The solvers that a recipe can name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SolverName {
    /// The smallest magnitudes go.
    #[default]
    Magnitude,
    /// The slices of the first axis with the smallest sums of magnitudes go.
    Columns,
}

impl SolverName {
    /// The solver of this name.
    pub fn get(self) -> &'static dyn Solver {
        match self {
            SolverName::Magnitude => &MagnitudeSolver,
            SolverName::Columns => &ColumnSolver,
        }
    }
}

/// The refiners that a recipe can name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefinerName {
    /// Nothing happens.
    #[default]
    None,
}

impl RefinerName {
    /// The refiner of this name, where anything is to happen.
    pub fn get(self) -> Option<&'static dyn Refiner> {
        match self {
            RefinerName::None => None,
        }
    }
}

/// A pruned model and the plan that made it.
#[derive(Clone, Debug)]
pub struct Pruned {
    /// The model, its zeros encoded where that is smaller, and the recipe's hash in its metadata.
    pub model: Model,
    /// What was done.
    pub plan: Plan,
}

impl Recipe {
    /// The recipe of a method at a sparsity, everything else at its default.
    pub fn new(allocator: AllocatorName, sparsity: f64) -> Recipe {
        Recipe {
            schema: SCHEMA,
            sparsity,
            allocator,
            solver: SolverName::default(),
            refiner: RefinerName::default(),
            ties: Ties::default(),
            include: Vec::new(),
            exclude: Vec::new(),
            keep_dense: false,
            dtype: None,
            floor: None,
            ranks: BTreeMap::new(),
            model: None,
            train: None,
        }
    }

    /// Reads a recipe. Unknown keys and other versions are refused.
    pub fn from_toml(text: &str) -> Result<Recipe> {
        let recipe: Recipe =
            toml::from_str(text).map_err(|e| Error::Recipe(e.to_string().trim_end().to_owned()))?;
        if recipe.schema != SCHEMA {
            return Err(Error::Recipe(format!(
                "schema {}, this version reads schema {SCHEMA}",
                recipe.schema
            )));
        }
        recipe.sigma(0)?;
        Ok(recipe)
    }

    /// The canonical form: every key in one order, defaults written out.
    pub fn to_toml(&self) -> String {
        // Strings, numbers and lists of strings always have a TOML form.
        toml::to_string(self).unwrap_or_default()
    }

    /// The SHA-256 of the canonical form, in lower-case hex, without where the model's file lies and what is
    /// in it: the output has the hash of that apart. Of the training images it has the file's name.
    pub fn hash(&self) -> String {
        let model = self.model.as_ref().map(Origin::anywhere);
        let recipe = Recipe {
            model: model.filter(|m| *m != Origin::default()),
            train: self.train.as_ref().map(TrainSettings::anywhere),
            ..self.clone()
        };
        let digest = Sha256::digest(recipe.to_toml().as_bytes());
        digest.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// What [`Recipe::run`] would do to `model`.
    pub fn plan(&self, model: &Model) -> Result<Plan> {
        Ok(self.prepare(&*self.convert(model)?)?.plan)
    }

    /// The model in the dtype that is asked for.
    pub fn convert<'m>(&self, model: &'m Model) -> Result<Cow<'m, Model>> {
        Ok(match self.dtype {
            Some(dtype) => Cow::Owned(model.to_dtype(dtype)?),
            None => Cow::Borrowed(model),
        })
    }

    /// Prunes `model`.
    pub fn run(&self, model: &Model) -> Result<Pruned> {
        self.prepare(&*self.convert(model)?)?.run()
    }

    /// Plans for a model that [`Recipe::convert`] gave.
    pub fn prepare<'m>(&'m self, model: &'m Model) -> Result<Prepared<'m>> {
        self.prepare_at(model, 1.0)
    }

    /// As [`Recipe::prepare`], on the way there: `progress`, from 0 to 1, of what is to go goes.
    pub(crate) fn prepare_at<'m>(
        &'m self,
        model: &'m Model,
        progress: f64,
    ) -> Result<Prepared<'m>> {
        if !(0.0..1.0).contains(&self.sparsity) {
            return Err(Error::Sparsity(self.sparsity));
        }
        let mut layers = layer::select(model, &self.include, &self.exclude)?;
        let columns = Columns {
            ranks: self.ranks.clone(),
            progress,
        };
        let allocator: &dyn Allocator = match self.allocator {
            AllocatorName::Columns => {
                layers = first_factors(model, layers)?;
                &columns
            }
            _ if !self.ranks.is_empty() => {
                return Err(Error::Recipe(
                    "ranks are for the allocator `columns`".into(),
                ));
            }
            other => other.get(),
        };
        let sizes: Vec<usize> = layers.iter().map(Layer::numel).collect();
        let budget = Budget::new(
            &sizes,
            progress * self.sparsity,
            self.sigma(sizes.iter().sum())?,
            self.floor.map(|f| f.mode).unwrap_or_default(),
            self.ties,
        )?;
        let plan = Plan::new(&layers, allocator, self.solver.get(), &budget)?;
        Ok(Prepared {
            recipe: self,
            model,
            layers,
            plan,
        })
    }

    /// The floor in weights per layer, for `total` selected weights.
    fn sigma(&self, total: usize) -> Result<usize> {
        match self.floor {
            None => Ok(0),
            Some(Floor {
                min_weights: Some(n),
                mt_percent: None,
                ..
            }) => Ok(n),
            Some(Floor {
                min_weights: None,
                mt_percent: Some(p),
                ..
            }) if (0.0..=100.0).contains(&p) => Ok(share(p / 100.0, total)),
            Some(Floor {
                min_weights: None,
                mt_percent: Some(p),
                ..
            }) => Err(Error::Recipe(format!(
                "floor: mt_percent {p} is not a percentage from 0 to 100"
            ))),
            Some(_) => Err(Error::Recipe(
                "floor: give one of min_weights and mt_percent".into(),
            )),
        }
    }
}

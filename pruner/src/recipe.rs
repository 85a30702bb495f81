//! A run as a small TOML file: replayable to the same bytes, and hashed into the output.

use crate::allocator::{
    Columns, EVEN, Erk, GlobalMagnitude, Lamp, Owl, Searched, Uniform, first_factors, share,
};
use crate::calibration::Calibration;
use crate::origin::Origin;
use crate::refiner::{Refit, SparseSwaps, SwapsThenRefit};
use crate::search::SearchSettings;
use crate::solver::{Alps, LAdmm, SparseGpt, Statistics, Wanda};
use crate::train::TrainSettings;
use crate::{
    Allocator, Budget, ColumnSolver, Error, FloorMode, Layer, MagnitudeSolver, Pattern, Plan,
    Prepared, Refiner, Result, Solver, Ties, layer,
};
use lacuna::{DType, Model};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The version of the recipe format.
pub(crate) const SCHEMA: u32 = 1;

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
    /// How the zeros lie, such as 2:4; the sparsity is that of the pattern and the allocator `uniform`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<Pattern>,
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
    /// With the allocator `search`: the share that each layer loses, by the name of its weight.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sparsities: BTreeMap<String, f64>,
    /// With the allocator `search` and without sparsities: how they are looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchSettings>,
    /// What is pruned, where the recipe says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Origin>,
    /// What the solver, the refiner and the allocator learn of the layers' inputs, and from what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
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
    /// Blocks with more outliers stay denser.
    Owl,
    /// What keeps the model's answers: the recipe's `search` looks for it, or `sparsities` say it.
    Search,
}

/// Before a search.
static NONE: Searched = Searched {
    sparsities: BTreeMap::new(),
};

impl AllocatorName {
    /// The allocator of this name.
    pub fn get(self) -> &'static dyn Allocator {
        match self {
            AllocatorName::GlobalMagnitude => &GlobalMagnitude,
            AllocatorName::Uniform => &Uniform,
            AllocatorName::Erk => &Erk,
            AllocatorName::Lamp => &Lamp,
            AllocatorName::Columns => &EVEN,
            AllocatorName::Owl => &Owl,
            AllocatorName::Search => &NONE,
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
    /// The smallest magnitudes times norms of inputs go.
    Wanda,
    /// Columns from left to right, each error spread over those behind it.
    #[serde(rename = "sparsegpt")]
    SparseGpt,
    /// Twenty iterations of ADMM.
    LAdmm,
    /// ADMM until the zeros settle, then least squares.
    Alps,
}

impl SolverName {
    /// The solver of this name.
    pub fn get(self) -> &'static dyn Solver {
        match self {
            SolverName::Magnitude => &MagnitudeSolver,
            SolverName::Columns => &ColumnSolver,
            SolverName::Wanda => &Wanda,
            SolverName::SparseGpt => &SparseGpt,
            SolverName::LAdmm => &LAdmm,
            SolverName::Alps => &Alps,
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
    /// Zeros and weights of a row change places.
    SparseSwaps,
    /// Least squares on the weights that are left.
    Refit,
    /// The one, then the other.
    SparseSwapsRefit,
}

impl RefinerName {
    /// The refiner of this name, where anything is to happen.
    pub fn get(self) -> Option<&'static dyn Refiner> {
        match self {
            RefinerName::None => None,
            RefinerName::SparseSwaps => Some(&SparseSwaps),
            RefinerName::Refit => Some(&Refit),
            RefinerName::SparseSwapsRefit => Some(&SwapsThenRefit),
        }
    }
}

/// Reads what a recipe is, of this version.
pub(crate) fn parse<R: for<'de> Deserialize<'de>>(text: &str, schema: fn(&R) -> u32) -> Result<R> {
    let recipe: R =
        toml::from_str(text).map_err(|e| Error::Recipe(e.to_string().trim_end().to_owned()))?;
    match schema(&recipe) {
        SCHEMA => Ok(recipe),
        other => Err(Error::Recipe(format!(
            "schema {other}, this version reads schema {SCHEMA}"
        ))),
    }
}

/// In lower-case hex.
pub(crate) fn sha256(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|b| format!("{b:02x}")).collect()
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
            pattern: None,
            ties: Ties::default(),
            include: Vec::new(),
            exclude: Vec::new(),
            keep_dense: false,
            dtype: None,
            floor: None,
            ranks: BTreeMap::new(),
            sparsities: BTreeMap::new(),
            search: None,
            model: None,
            calibration: None,
            train: None,
        }
    }

    /// Reads a recipe. Unknown keys and other versions are refused.
    pub fn from_toml(text: &str) -> Result<Recipe> {
        let recipe: Recipe = parse(text, |r: &Recipe| r.schema)?;
        recipe.sigma(0)?;
        recipe.check()?;
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
            calibration: self.calibration.as_ref().map(Calibration::anywhere),
            train: self.train.as_ref().map(TrainSettings::anywhere),
            ..self.clone()
        };
        sha256(&recipe.to_toml())
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
        self.check()?;
        let mut layers = layer::select(model, &self.include, &self.exclude)?;
        if self.allocator == AllocatorName::Columns {
            layers = first_factors(model, layers)?;
        }
        let plan = self.allot_at(&layers, progress)?;
        Ok(Prepared {
            recipe: self,
            model,
            layers,
            plan,
        })
    }

    /// The plan for these layers.
    pub(crate) fn allot(&self, layers: &[Layer<'_>]) -> Result<Plan> {
        self.allot_at(layers, 1.0)
    }

    fn allot_at(&self, layers: &[Layer<'_>], progress: f64) -> Result<Plan> {
        let columns = Columns {
            ranks: self.ranks.clone(),
            progress,
        };
        let searched = Searched {
            sparsities: self.sparsities.clone(),
        };
        let allocator: &dyn Allocator = match self.allocator {
            AllocatorName::Columns => &columns,
            AllocatorName::Search => &searched,
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
        Plan::new(layers, allocator, self.solver.get(), &budget, self.pattern)
    }

    /// Refuses what does not go together.
    pub(crate) fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.sparsity) {
            return Err(Error::Sparsity(self.sparsity));
        }
        let refuse = |what: String| Err(Error::Recipe(what));
        if !self.ranks.is_empty() && self.allocator != AllocatorName::Columns {
            return refuse("ranks are for the allocator `columns`".into());
        }
        if self.allocator != AllocatorName::Search
            && (self.search.is_some() || !self.sparsities.is_empty())
        {
            return refuse("search and sparsities are for the allocator `search`".into());
        }
        if self.search.is_some() && (self.calibration.is_none() || !self.sparsities.is_empty()) {
            return refuse("a search needs a [calibration], and no sparsities".into());
        }
        if let Some(pattern) = self.pattern {
            if (self.sparsity - pattern.sparsity()).abs() > 1e-9 {
                return refuse(format!(
                    "pattern {pattern} has sparsity {}, not {}",
                    pattern.sparsity(),
                    self.sparsity
                ));
            }
            if self.allocator != AllocatorName::Uniform || self.floor.is_some() {
                return refuse(format!(
                    "pattern {pattern} leaves every layer the same share: allocator `uniform` and no floor"
                ));
            }
            if self.train.as_ref().is_some_and(|t| t.gradual.is_some()) {
                return refuse(format!("pattern {pattern} goes at once, not gradually"));
            }
        }
        match &self.calibration {
            Some(_) if self.train.is_some() => {
                refuse("[calibration] and [train] do not go together".into())
            }
            Some(calibration) => calibration.check(),
            None => Ok(()),
        }
    }

    /// Refuses a method that needs a text, or a text that would be left aside.
    pub(crate) fn refuse_calibrated(&self) -> Result<()> {
        let (solver, refiner) = (self.solver.get(), self.refiner.get());
        let name = match (refiner, solver.statistics()) {
            (Some(refiner), _) => refiner.name(),
            (None, Statistics::None) if self.calibration.is_none() => return Ok(()),
            (None, _) => solver.name(),
        };
        Err(Error::Calibration(format!(
            "`{name}` is to be calibrated: give a text (--calibration-text)"
        )))
    }

    /// The result of a run.
    pub(crate) fn finish(&self, pruned: Model, plan: Plan) -> Result<Pruned> {
        let mut model = match self.keep_dense {
            true => pruned.decoded(),
            false => plan.encoded(&pruned)?,
        };
        model.metadata.recipe = Some(self.hash());
        Ok(Pruned { model, plan })
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

//! A model and a device become launches: the rewriting and lowering of the CPU's plans, forms of its own, one arena.

mod bind;
mod choose;
mod pool;
mod weighted;

pub use choose::{DeviceCandidate, DeviceForm};
pub(crate) use pool::Pool;

use super::arena::{Life, layout};
use super::lower::Place;
use super::lower::device::{DeviceOp, DeviceStep, lower_device};
use super::{PlanOptions, StepInfo, fixed_shape, index_limits, rewrite};
use crate::cuda::launch::Region;
use crate::cuda::{Machine, Work};
use crate::kernels::cpu::{Isa, Kernel};
use crate::model::{Dim, Symbols, infer_shapes};
use crate::{DType, Error, Model, Result};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Bytes of weights that a measurement goes through before it reads the first again: more than a device's cache holds.
pub const ROTATED: usize = 150 << 20;

/// How a plan for a device is made.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Only dense forms.
    pub dense: bool,
    /// Sizes of the symbolic dimensions; those not named are 1.
    pub symbols: Symbols,
    /// Run every form of every weighted layer on the device, and take the fastest; estimates choose otherwise.
    pub tune: bool,
    /// Forms to execute weights in, by name; the fastest legal one of a list is taken.
    pub forms: BTreeMap<String, Vec<DeviceForm>>,
}

/// How a layer's weight is executed on a device, and how else it could be.
#[derive(Clone, Debug)]
pub struct DeviceChoice {
    /// The form in use.
    pub form: DeviceForm,
    /// Whether the times were measured.
    pub measured: bool,
    /// Every legal form, the fastest first.
    pub legal: Vec<DeviceCandidate>,
}

/// What one step does on a device, and why this way.
#[derive(Clone, Debug)]
pub struct DeviceStepInfo {
    /// As of a CPU's step; the kernel is the first launch's but for rounding.
    pub info: StepInfo,
    /// Of weighted layers.
    pub choice: Option<DeviceChoice>,
    /// Its launches among those of the plan.
    pub launches: Range<usize>,
}

/// A value that a run takes or returns.
#[derive(Clone, Debug)]
pub(crate) struct DeviceValue {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub region: Region,
}

/// The launches of a model on a machine, bound to its memory.
#[derive(Debug)]
pub(crate) struct DevicePlan {
    pub inputs: Vec<DeviceValue>,
    pub outputs: Vec<DeviceValue>,
    pub index_limits: Vec<(usize, usize)>,
    pub work: Vec<Work>,
    pub steps: Vec<DeviceStepInfo>,
    /// Bytes of activations.
    pub arena: usize,
}

impl DevicePlan {
    /// Plans `model` for a machine, and uploads its weights to it.
    ///
    /// # Errors
    /// When a node has no kernel there, or the machine refuses.
    pub fn new(
        model: &Model,
        options: &DeviceOptions,
        capacity: Option<usize>,
        machine: &mut dyn Machine,
        pool: &mut Pool,
    ) -> Result<DevicePlan> {
        let mut symbols = options.symbols.clone();
        let graph = model.graph();
        for dim in graph.inputs.iter().flat_map(|i| &i.shape) {
            if let Dim::Symbol(s) = dim {
                symbols.entry(s.clone()).or_insert(1);
            }
        }
        let shapes = infer_shapes(graph, model.weights(), &symbols)?;
        let units = rewrite::rewrite(model, &shapes)?;
        let plan = PlanOptions {
            capacity,
            symbols,
            dense: options.dense,
            ..PlanOptions::new(Isa::Scalar)
        };
        let bf16 = machine.limits().bf16;
        let (mut lowered, steps) = lower_device(model, &units, &shapes, &plan, bf16)?;

        let scratches: Vec<usize> = steps.iter().map(|_| lowered.temporary()).collect();
        let outputs = units.outputs.iter().map(|o| lowered.place(o));
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        let lives = lives(&steps, &scratches, &outputs);
        let placed = layout(&lives);
        let arena = pool.take(machine, placed.len * 4)?;
        let value = |v: usize, elements: usize| {
            let at = placed.offsets.get(&v).copied().unwrap_or(0) * 4;
            Region {
                bytes: elements * 4,
                ..arena.from(at)
            }
        };
        let lengths: HashMap<usize, usize> = lives.iter().map(|l| (l.value, l.len)).collect();

        let mut inputs = Vec::new();
        for input in &graph.inputs {
            let shape = fixed_shape(&shapes, &input.name)?;
            // Integers are i32 there.
            let region = pool.take(machine, shape.iter().product::<usize>() * 4)?;
            inputs.push(DeviceValue {
                name: input.name.clone(),
                shape,
                dtype: input.dtype,
                region,
            });
        }
        let mut bound = DevicePlan {
            inputs,
            outputs: Vec::new(),
            index_limits: index_limits(graph, &shapes)?,
            work: Vec::new(),
            steps: Vec::new(),
            arena: placed.len * 4,
        };
        let mut caches = 0;
        for (step, scratch) in steps.into_iter().zip(scratches) {
            let places = step.inputs.iter();
            let regions = places.map(|p| match p {
                Place::Value(v) => Ok(value(*v, lengths.get(v).copied().unwrap_or(0))),
                other => bound.constant(other, machine, pool),
            });
            let regions = regions.collect::<Result<Vec<_>>>()?;
            let out = value(step.out, step.out_len);
            let scratch = value(scratch, lengths.get(&scratch).copied().unwrap_or(0));
            let io = bind::Io {
                inputs: &regions,
                out,
                scratch,
                cache: caches,
            };
            if let DeviceOp::Plain(Kernel::Attention(a)) = &step.op {
                caches += usize::from(a.cache.is_some());
            }
            bound.step(step, &io, options, machine, pool)?;
        }
        for (place, name) in outputs.iter().zip(&graph.outputs) {
            let shape = fixed_shape(&shapes, name)?;
            let region = match place {
                Place::Value(v) => value(*v, shape.iter().product()),
                other => bound.constant(other, machine, pool)?,
            };
            bound.outputs.push(DeviceValue {
                name: name.clone(),
                shape,
                dtype: DType::F32,
                region,
            });
        }
        Ok(bound)
    }

    /// Bytes that a run reads of weights.
    pub fn weight_bytes(&self) -> usize {
        self.steps.iter().map(|s| s.info.weight_bytes).sum()
    }

    fn constant(
        &self,
        place: &Place,
        machine: &mut dyn Machine,
        pool: &mut Pool,
    ) -> Result<Region> {
        match place {
            Place::Input(i) => Ok(self.inputs[*i].region),
            Place::Constant(c) => pool.constant(machine, c.clone(), c),
            Place::Integers(c) => {
                let narrow = |v: &i64| {
                    let wide = format!("the constant {v} on a GPU, 32 bits are read");
                    i32::try_from(*v).map_err(|_| Error::Option(wide))
                };
                let words = c.iter().map(narrow).collect::<Result<Vec<_>>>()?;
                pool.table(machine, &words)
            }
            Place::Value(_) => Err(Error::Option("a value is no constant".into())),
        }
    }

    fn step(
        &mut self,
        step: DeviceStep,
        io: &bind::Io<'_>,
        options: &DeviceOptions,
        machine: &mut dyn Machine,
        pool: &mut Pool,
    ) -> Result<()> {
        let DeviceStep { op, mut info, .. } = step;
        let refuse = |what: &str| Error::Node {
            node: info.node.clone(),
            op: info.op,
            what: what.into(),
        };
        let chosen = weighted::choose(&op, options, machine)?;
        let start = self.work.len();
        match (&op, &chosen) {
            (DeviceOp::Plain(kernel), _) => {
                let launches = bind::launches(kernel, io, machine, pool)?;
                let launches = launches.ok_or_else(|| refuse("has no kernel for a GPU"))?;
                self.work.extend(launches.into_iter().map(Work::Launch));
            }
            (DeviceOp::Linear(w, _) | DeviceOp::Conv(w, _), Some(chosen)) => {
                let uploaded = pool.weights(machine, &w.key, chosen.form, &w.groups)?;
                let at = weighted::Regions {
                    x: io.inputs[0],
                    residual: io.inputs.get(1).copied().filter(|_| w.residual),
                    y: io.out,
                    scratch: io.scratch,
                };
                let form = chosen.form;
                let work = weighted::work(&op, &at, &uploaded, machine, pool, form)?;
                self.work.extend(work);
            }
            _ => return Err(refuse("has no form on a GPU")),
        }
        let launches = start..self.work.len();
        let named = self.work[launches.clone()].iter().map(Work::kernel);
        let main = named.clone().find(|k| !k.ends_with("_round"));
        info.kernel = main.unwrap_or("-").to_owned();
        info.reason = String::new();
        let choice = chosen.map(|chosen| {
            info.reason = chosen.reason;
            info.weight_bytes = chosen.weight_bytes;
            info.macs = chosen.macs;
            DeviceChoice {
                form: chosen.form,
                measured: chosen.measured,
                legal: chosen.list,
            }
        });
        self.steps.push(DeviceStepInfo {
            info,
            choice,
            launches,
        });
        Ok(())
    }
}

/// When each value and each scratch is needed.
fn lives(steps: &[DeviceStep], scratches: &[usize], outputs: &[Place]) -> Vec<Life> {
    let mut lives: HashMap<usize, Life> = HashMap::new();
    for (i, (step, &scratch)) in steps.iter().zip(scratches).enumerate() {
        for (value, len) in [
            (step.out, step.out_len),
            (scratch, weighted::scratch(&step.op)),
        ] {
            let life = Life {
                value,
                len,
                born: i,
                dies: i,
            };
            lives.insert(value, life);
        }
        for input in &step.inputs {
            if let Place::Value(v) = input
                && let Some(life) = lives.get_mut(v)
            {
                life.dies = i;
            }
        }
    }
    for place in outputs {
        if let Place::Value(v) = place
            && let Some(life) = lives.get_mut(v)
        {
            life.dies = usize::MAX;
        }
    }
    // A map's order is not the same twice; a layout is.
    let mut lives: Vec<Life> = lives.into_values().collect();
    lives.sort_by_key(|l| l.value);
    lives
}

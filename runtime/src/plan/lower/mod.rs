//! Lowering: units become kernels with values for buffers.

mod generic;
mod weighted;
mod window;

use super::rewrite::{Unit, Units, is_depthwise, linear_weight};
use super::{PlanOptions, Residency, StepInfo, fixed_shape};
use crate::kernels::cpu::Kernel;
use crate::model::{Op, Shapes};
use crate::{Error, Model, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// Where a step finds an input.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// A value that a step computes.
    Value(usize),
    /// A graph input.
    Input(usize),
    /// A constant.
    Constant(Arc<Vec<f32>>),
}

pub(super) struct LoweredStep {
    pub kernel: Kernel,
    pub inputs: Vec<Place>,
    /// The value that the step computes, and its elements.
    pub out: usize,
    pub out_len: usize,
}

#[derive(Default)]
pub(super) struct Lowered {
    pub steps: Vec<LoweredStep>,
    pub infos: Vec<StepInfo>,
    /// Elements of keys and values so far.
    pub cache_len: usize,
    places: HashMap<String, Place>,
    values: usize,
}

impl Lowered {
    /// Where a named value is.
    pub fn place(&self, name: &str) -> Result<Place> {
        self.places.get(name).cloned().ok_or_else(|| Error::Graph {
            graph: String::new(),
            what: format!("`{name}` is not a floating-point value"),
        })
    }

    /// A value without a name.
    fn temporary(&mut self) -> usize {
        self.values += 1;
        self.values - 1
    }

    /// A value that later units find by name.
    fn named(&mut self, name: &str) -> usize {
        let value = self.temporary();
        self.places.insert(name.to_owned(), Place::Value(value));
        value
    }
}

/// What lowering one unit needs.
struct Context<'c> {
    model: &'c Model,
    shapes: &'c Shapes,
    options: &'c PlanOptions,
    unit: &'c Unit<'c>,
}

impl Context<'_> {
    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        fixed_shape(self.shapes, name)
    }

    /// The shape of the node's `i`-th input before views were resolved.
    fn input_shape(&self, i: usize) -> Result<Vec<usize>> {
        self.shape(&self.unit.node.inputs[i])
    }

    fn output_shape(&self) -> Result<Vec<usize>> {
        self.shape(&self.unit.output)
    }

    fn refuse(&self, what: impl Into<String>) -> Error {
        Error::node(self.unit.node, what)
    }

    /// The `i`-th input as a constant of f32.
    fn constant(&self, i: usize) -> Result<Vec<f32>> {
        let name = &self.unit.inputs[i];
        self.model
            .weights()
            .get(name)
            .and_then(|w| w.to_f32())
            .ok_or_else(|| {
                self.refuse(format!(
                    "input {i}, `{name}`, must be a floating-point constant"
                ))
            })
    }

    fn isa(&self) -> &'static str {
        self.options.isa.base().name()
    }

    /// The report of a step without weights.
    fn info(&self, kernel: String, reason: &str, elements: usize) -> Result<StepInfo> {
        let shape: Vec<String> = self.output_shape()?.iter().map(usize::to_string).collect();
        Ok(StepInfo {
            node: self.unit.node.name.clone(),
            op: self.unit.node.op.name(),
            fused: self.unit.fused.clone(),
            shape: shape.join("x"),
            kernel,
            reason: reason.to_owned(),
            residency: Residency::None,
            density: 1.0,
            weight_bytes: 0,
            activation_bytes: elements * 4,
            macs: 0,
            dense_macs: 0,
        })
    }
}

pub(super) fn lower(
    model: &Model,
    units: &Units<'_>,
    shapes: &Shapes,
    options: &PlanOptions,
) -> Result<Lowered> {
    let mut lowered = Lowered::default();
    for (i, input) in model.graph().inputs.iter().enumerate() {
        lowered.places.insert(input.name.clone(), Place::Input(i));
    }
    let read = units
        .list
        .iter()
        .flat_map(|u| u.inputs.iter().chain(&u.residual))
        .chain(&units.outputs);
    let mut wanted: Vec<&String> = read.filter(|n| model.weights().contains_key(*n)).collect();
    wanted.sort();
    wanted.dedup();
    // Weights that kernels pack are not needed as plain constants.
    let packed: Vec<&String> = units
        .list
        .iter()
        .flat_map(|u| weighted::packed_inputs(model, u))
        .collect();
    for name in wanted {
        if packed.contains(&name) && !plain_use(units, model, name) {
            continue;
        }
        if let Some(values) = model.weights()[name].to_f32() {
            lowered
                .places
                .insert(name.clone(), Place::Constant(Arc::new(values)));
        }
    }
    for unit in &units.list {
        let context = Context {
            model,
            shapes,
            options,
            unit,
        };
        lower_unit(&context, &mut lowered)?;
    }
    Ok(lowered)
}

/// Whether some unit reads the weight as a plain tensor, or the graph returns it.
fn plain_use(units: &Units<'_>, model: &Model, name: &String) -> bool {
    units.outputs.contains(name)
        || units.list.iter().any(|u| {
            let packed = weighted::packed_inputs(model, u);
            let reads = u.inputs.iter().filter(|i| *i == name).count();
            reads > packed.iter().filter(|p| **p == name).count()
        })
}

fn lower_unit(context: &Context<'_>, lowered: &mut Lowered) -> Result<()> {
    let unit = context.unit;
    match &unit.node.op {
        Op::Conv { .. } if is_depthwise(&unit.node.op, &context.shape(&unit.inputs[1])?) => {
            window::depthwise(context, lowered)
        }
        Op::Conv { .. } => weighted::conv(context, lowered),
        Op::Gemm { .. } | Op::MatMul { .. } => match linear_weight(context.model, unit) {
            Some(linear) => weighted::linear(context, &linear, lowered),
            None => generic::matrix_product(context, lowered),
        },
        Op::MaxPool(w) => window::pool(context, w, None, lowered),
        Op::AveragePool {
            window: w,
            count_include_pad,
        } => window::pool(context, w, Some(*count_include_pad), lowered),
        _ => generic::lower(context, lowered),
    }
}

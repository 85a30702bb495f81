//! Lowering: units become kernels with values for buffers.

mod attention;
mod decide;
#[cfg(feature = "cuda")]
pub(super) mod device;
mod generic;
mod matrix;
mod packing;
mod recurrent;
mod rows;
mod tokens;
mod transposed;
mod weighted;
mod window;

use self::tokens::Tokens;
use super::form::Variant;
use super::pack_cache::PackCache;
use super::rewrite::{Unit, Units, linear_weight};
use super::{PlanOptions, Residency, StepInfo, fixed_shape};
use crate::kernels::cpu::{Extent, Kernel};
use crate::model::{Op, Shapes, Weight};
use crate::{Error, Model, Result, parallel};
use std::collections::{BTreeSet, HashMap};
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
    /// A constant of integers.
    Integers(Arc<Vec<i64>>),
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

    /// A step that reads the unit's first `inputs` inputs, those that are there, and its report.
    fn push(
        &mut self,
        context: &Context<'_>,
        kernel: Kernel,
        inputs: usize,
        name: String,
        reason: &str,
    ) -> Result<()> {
        let unit = context.unit;
        let given = unit.inputs.iter().take(inputs).filter(|n| !n.is_empty());
        let inputs = given.map(|n| self.place(n)).collect::<Result<Vec<_>>>()?;
        let len: usize = context.output_shape()?.iter().product();
        let mut elements = len;
        for name in unit.inputs.iter().filter(|n| !n.is_empty()) {
            elements += context.shape(name)?.iter().product::<usize>();
        }
        let info = context.info(name, reason, elements)?;
        self.finish(context, kernel, inputs, info)
    }

    /// A step that computes the unit's output, and its report.
    fn finish(
        &mut self,
        context: &Context<'_>,
        kernel: Kernel,
        inputs: Vec<Place>,
        info: StepInfo,
    ) -> Result<()> {
        let out_len = context.output_shape()?.iter().product();
        let out = self.named(&context.unit.output);
        self.infos.push(info);
        self.steps.push(LoweredStep {
            kernel,
            inputs,
            out,
            out_len,
        });
        Ok(())
    }

    /// A value without a name.
    pub fn temporary(&mut self) -> usize {
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
    tokens: &'c Tokens,
    pack_cache: Option<&'c PackCache>,
    /// Every weight of the model, dense, stays in a core's caches.
    is_small: bool,
}

impl<'c> Context<'c> {
    /// What was measured for a layer of this kind on this machine.
    fn measured(&self, key: &str, density: f64) -> Option<&'c [(Variant, f64)]> {
        let options = self.options;
        let tuned = options.tuned.as_ref().filter(|_| !options.dense)?;
        tuned.get(options.isa, options.threads, key, density)
    }

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

    /// The elements of a value, or the rows of `width` elements that it consists of.
    fn extent(&self, name: &str, shape: &[usize], width: usize) -> Extent {
        let width = width.max(1);
        Extent {
            len: shape.iter().product::<usize>() / width,
            per_token: self.tokens.elements(name, shape) / width,
        }
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
            weighted: None,
        })
    }
}

pub(super) fn lower(
    model: &Model,
    units: &Units<'_>,
    shapes: &Shapes,
    options: &PlanOptions,
    pack_cache: Option<&PackCache>,
) -> Result<Lowered> {
    let mut lowered = Lowered::default();
    places(model, units, &mut lowered);
    let tokens = Tokens::find(model, shapes, options)?;
    let dense_bytes = |w: &Weight| w.numel() * w.element_dtype().size();
    let is_small = model.weights().values().map(dense_bytes).sum::<usize>() <= SMALL;
    let context = |unit| Context {
        model,
        shapes,
        options,
        unit,
        tokens: &tokens,
        pack_cache,
        is_small,
    };
    // Packing is nearly all of the work, and layers do not wait for each other.
    let prepared = parallel::on(options.threads, || {
        parallel::map(&units.list, |u| weighted::prepare(&context(u)))
    })?;
    for (unit, prepared) in units.list.iter().zip(prepared) {
        lower_unit(&context(unit), prepared?, &mut lowered)?;
    }
    Ok(lowered)
}

/// Places for inputs, and for the constants that are read as they are.
fn places(model: &Model, units: &Units<'_>, lowered: &mut Lowered) {
    for (i, input) in model.graph().inputs.iter().enumerate() {
        lowered.places.insert(input.name.clone(), Place::Input(i));
    }
    let plain = units.list.iter().flat_map(|u| plain_inputs(model, u));
    let constants = plain.chain(&units.outputs);
    let wanted: BTreeSet<&String> = constants
        .filter(|n| model.weights().contains_key(*n))
        .collect();
    for name in wanted {
        if let Some(values) = model.weights()[name].to_f32() {
            lowered
                .places
                .insert(name.clone(), Place::Constant(Arc::new(values)));
        } else if let Some(values) = model.weights()[name].to_i64() {
            lowered
                .places
                .insert(name.clone(), Place::Integers(Arc::new(values)));
        }
    }
}

/// Bytes of dense weights that stay in the caches of a core, so that expanding them again and again
/// costs more than reading them.
const SMALL: usize = 4 << 20;

/// What a unit reads as plain tensors: not the weights that its kernel packs.
fn plain_inputs<'u>(model: &Model, unit: &'u Unit<'_>) -> impl Iterator<Item = &'u String> {
    let packed = weighted::packed_inputs(model, unit);
    let plain = unit.inputs.iter().filter(move |name| {
        let reads = unit.inputs.iter().filter(|i| i == name).count();
        reads > packed.iter().filter(|p| *p == name).count()
    });
    plain.chain(&unit.residual)
}

fn lower_unit(
    context: &Context<'_>,
    prepared: Option<weighted::Prepared>,
    lowered: &mut Lowered,
) -> Result<()> {
    let unit = context.unit;
    match (&unit.node.op, prepared) {
        (Op::Conv { .. }, Some(prepared)) => return weighted::conv(context, prepared, lowered),
        (Op::Gemm { .. } | Op::MatMul { .. }, Some(prepared)) => {
            if let Some(linear) = linear_weight(context.model, unit) {
                return weighted::linear(context, &linear, prepared, lowered);
            }
        }
        _ => {}
    }
    match &unit.node.op {
        Op::Conv { .. } => window::depthwise(context, lowered),
        Op::Gemm { .. } | Op::MatMul { .. } => generic::matrix_product(context, lowered),
        Op::ConvTranspose { .. } => transposed::lower(context, lowered, &mut |inner, lowered| {
            lower_unit(inner, weighted::prepare(inner)?, lowered)
        }),
        Op::MaxPool(w) => window::pool(context, w, None, lowered),
        Op::AveragePool {
            window: w,
            count_include_pad,
        } => window::pool(context, w, Some(*count_include_pad), lowered),
        Op::Attention { .. } => attention::attention(context, lowered),
        Op::RotaryEmbedding { .. } => rows::rotary(context, lowered),
        Op::PositionEmbedding => rows::positions(context, lowered),
        Op::Gather { axis } => rows::gather(context, *axis, lowered),
        Op::RMSNormalization { .. }
        | Op::LayerNormalization { .. }
        | Op::LpNormalization { .. }
        | Op::MaskedMean => rows::norm(context, lowered),
        Op::FastGRNN => recurrent::fast_grnn(context, lowered),
        _ => generic::lower(context, lowered),
    }
}

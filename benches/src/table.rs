//! Layers of a model at several widths: what a pruner that saves milliseconds asks a device.

use crate::bench::session_with;
use crate::decoder_table::{self, TableAttention};
use crate::{Config, Error, Result, median, normal, open};
use lacuna::model::{Dim, Graph, Input, Node, Op, Symbols, infer_shapes};
use lacuna::plan::Forms;
use lacuna::{Model, Weight};
use lacuna_targets::{Conditions, State};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// The version of the format.
const SCHEMA: u32 = 1;

/// Widths that are measured, in eighths.
const EIGHTHS: [usize; 6] = [1, 2, 3, 4, 6, 8];

/// Untimed runs before the timed ones of a width.
const WARMUP: usize = 2;

/// Layers of a model, dense, at several widths.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The version of the format: 1.
    pub schema: u32,
    /// What it is.
    pub kind: &'static str,
    /// The model's path as it was given.
    pub model: String,
    /// The CPU.
    pub machine: String,
    /// Batch size.
    pub batch: usize,
    /// Threads of a run.
    pub threads: usize,
    /// The instruction set that ran.
    pub isa: String,
    /// Why the times may not be those of this machine; absent where no reason is known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<String>,
    /// Of a language model: tokens of the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<usize>,
    /// Of a language model: tokens in the cache before what was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Of a language model: median milliseconds of a generated token and of the prompt, all of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole_ms: Option<[f64; 2]>,
    /// The layers, in the order of the graph.
    pub layers: Vec<TableLayer>,
    /// Of a language model: its attentions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attentions: Vec<TableAttention>,
}

/// A layer at several widths.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableLayer {
    /// The weight's name.
    pub weight: String,
    /// The layer's operator.
    pub op: &'static str,
    /// Sizes of the weight's first axis, ascending.
    pub first: Vec<usize>,
    /// Sizes of its second axis, ascending; of groups of channels that of the model alone.
    pub second: Vec<usize>,
    /// Median milliseconds: for each size of the first axis one for each size of the second.
    pub ms: Vec<Vec<f64>>,
    /// Of a language model, where `ms` are those of one token: the same of the prompt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prompt_ms: Vec<Vec<f64>>,
}

/// Measures every convolution and every linear layer of constants at several widths, each alone. Every width takes
/// `min_time` of the configuration; layers that differ in nothing but their weights are measured once. Of a language model
/// that is done for one token and for a prompt, and for attentions by heads; the output layer is left out.
///
/// # Errors
/// When the model cannot be opened or a layer not be run.
pub fn table(config: &Config, mut progress: impl FnMut(&str)) -> Result<Table> {
    let before = State::now();
    progress("load");
    let model = open(&config.path, config.batch, false)?.model;
    let graph = model.graph();
    let mut known: HashMap<String, TableLayer> = HashMap::new();
    let mut table = Table {
        schema: SCHEMA,
        kind: "latency-table",
        model: config.name(),
        machine: lacuna_targets::Profile::detect().name,
        batch: config.batch,
        threads: 0,
        isa: String::new(),
        doubts: Vec::new(),
        prompt: None,
        depth: None,
        whole_ms: None,
        layers: Vec::new(),
        attentions: Vec::new(),
    };
    if crate::bench::is_decoder(&model) {
        decoder_table::fill(&mut table, &model, config, &mut progress)?;
        table.doubts = Conditions::since(before, table.threads).doubts();
        return Ok(table);
    }
    let mut symbols = Symbols::new();
    for dim in graph.inputs.iter().flat_map(|i| i.shape.first()) {
        if let Dim::Symbol(name) = dim {
            symbols.insert(name.clone(), config.batch);
        }
    }
    let shapes = infer_shapes(graph, model.weights(), &symbols)?;
    let layers = model.prunable();
    for (i, (name, node)) in layers.iter().enumerate() {
        progress(&format!("layer {} of {}: {name}", i + 1, layers.len()));
        let weight = &model.weights()[*name];
        let read = shapes.get(&node.inputs[0]).map_or(&[][..], Vec::as_slice);
        let size = |d: &Dim| match d {
            Dim::Fixed(n) => Ok(*n),
            Dim::Symbol(s) => Err(Error::Option(format!(
                "layer `{name}`: the size of `{s}` is not known"
            ))),
        };
        let read: Vec<usize> = read.iter().map(size).collect::<Result<_>>()?;
        let shape = weight.shape();
        let key = format!("{:?} {read:?} {shape:?}", node.op);
        if let Some(same) = known.get(&key) {
            table.layers.push(TableLayer {
                weight: (*name).to_owned(),
                ..same.clone()
            });
            continue;
        }
        let alone = Alone {
            node,
            weight,
            read: &read,
        };
        let (first, second) = alone.sizes();
        let mut ms = Vec::with_capacity(first.len());
        for &a in &first {
            let mut row = Vec::with_capacity(second.len());
            for &b in &second {
                let (mut runner, _) =
                    session_with(&alone.model([a, b])?, config, true, Forms::new())?;
                runner.warm_up(WARMUP)?;
                runner.burst(config.min_time.max(Duration::from_millis(1)))?;
                row.push(median(&runner.times).unwrap_or(0.0));
                table.threads = runner.session.threads();
                runner.session.isa().clone_into(&mut table.isa);
            }
            ms.push(row);
        }
        let layer = TableLayer {
            weight: (*name).to_owned(),
            op: node.op.name(),
            first,
            second,
            ms,
            prompt_ms: Vec::new(),
        };
        known.insert(key, layer.clone());
        table.layers.push(layer);
    }
    table.doubts = Conditions::since(before, table.threads).doubts();
    Ok(table)
}

/// A layer of its own.
pub(crate) struct Alone<'a> {
    pub node: &'a Node,
    pub weight: &'a Weight,
    /// The shape of what it reads.
    pub read: &'a [usize],
}

impl Alone<'_> {
    fn groups(&self) -> usize {
        match self.node.op {
            Op::Conv { groups, .. } | Op::ConvTranspose { groups, .. } => groups,
            _ => 1,
        }
    }

    /// The axis of the weight that reads, and that of its input; none of groups of channels.
    fn depth(&self) -> (usize, usize) {
        match self.node.op {
            Op::Conv { .. } => (1, 1),
            Op::ConvTranspose { .. } => (0, 1),
            Op::Gemm {
                trans_a, trans_b, ..
            } => (usize::from(trans_b), usize::from(!trans_a)),
            Op::MatMul { trans_b } => (usize::from(trans_b), self.read.len() - 1),
            _ => (1, self.read.len() - 1),
        }
    }

    /// Sizes of the weight's first two axes.
    pub fn sizes(&self) -> (Vec<usize>, Vec<usize>) {
        let shape = self.weight.shape();
        let widths = |n: usize, of: usize| {
            let mut sizes: Vec<usize> = EIGHTHS.iter().map(|e| (n * e / 8).max(1) * of).collect();
            sizes.dedup();
            sizes
        };
        match self.groups() {
            1 => (widths(shape[0], 1), widths(shape[1], 1)),
            groups => (widths(groups, shape[0] / groups), vec![shape[1]]),
        }
    }

    fn model(&self, sizes: [usize; 2]) -> Result<Model> {
        let mut shape = self.weight.shape().to_vec();
        let mut read = self.read.to_vec();
        let mut op = self.node.op.clone();
        let per_group = shape[0] / self.groups();
        shape[..2].copy_from_slice(&sizes);
        match &mut op {
            Op::Conv { groups, .. } if *groups > 1 => {
                *groups = sizes[0] / per_group.max(1);
                read[1] = *groups * sizes[1];
            }
            Op::ConvTranspose { groups, .. } if *groups > 1 => {
                *groups = sizes[0] / per_group.max(1);
                read[1] = sizes[0];
            }
            _ => {
                let (axis, own) = self.depth();
                read[own] = shape[axis];
            }
        }
        let weight = Weight::from_f32(&shape, &normal(shape.iter().product(), 5));
        let graph = Graph {
            name: self.node.name.clone(),
            inputs: vec![Input::f32("x", read.into_iter().map(Dim::Fixed).collect())],
            outputs: vec!["y".into()],
            nodes: vec![Node {
                name: self.node.name.clone(),
                op,
                inputs: vec!["x".into(), "w".into()],
                output: "y".into(),
            }],
        };
        Ok(Model::new(graph, BTreeMap::from([("w".into(), weight)]))?)
    }
}

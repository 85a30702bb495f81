//! A graph in blocks: between two of them one value lives.

use crate::{Error, Layer, Result};
use lacuna::Model;
use lacuna::model::{Dim, Graph, Input, Node, Op, Symbols, Weights, infer_shapes};
use lacuna::{DType, DType::I64};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// A language model in blocks of one attention each.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// Tokens to the input of the first block.
    pub before: Block,
    /// The blocks, in order.
    pub blocks: Vec<Block>,
    /// The output of the last block to that of the model; `None` where nothing follows.
    pub after: Option<Block>,
}

/// A part of a graph with one input and one value for the part behind it.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    graph: Graph,
    /// For each layer of the run in this part, its index and the index of its input among `inputs`.
    pub layers: Vec<(usize, usize)>,
    /// Values that the layers read, each once: the first outputs of the part.
    pub inputs: Vec<String>,
    /// Their widths.
    pub widths: Vec<usize>,
    /// Elements of the last output for one window.
    pub output: usize,
}

impl Blocks {
    /// Cuts `model` for windows of so many tokens. `layers` are those that are pruned.
    ///
    /// # Errors
    /// When the model is no decoder of one I64 input, or a layer lies in no block or cannot be calibrated.
    pub fn new(model: &Model, layers: &[Layer<'_>], window: usize) -> Result<Blocks> {
        let graph = model.graph();
        let refuse = |what: String| Err(Error::Calibration(what));
        let decoder =
            matches!(graph.inputs.as_slice(), [i] if i.dtype == I64 && i.shape.len() == 2);
        let attention = |n: &Node| matches!(n.op, Op::Attention { .. });
        let attentions: Vec<usize> = places(graph, attention);
        if !decoder || attentions.is_empty() {
            return refuse(format!(
                "`{}` is no decoder with one input of tokens [N, T]: calibrated methods prune decoders; \
                 global-mp, magnitude, erk and lamp prune any model",
                graph.name
            ));
        }
        let context = model.text.as_ref().map_or(0, |t| t.context);
        if context > 0 && window > context {
            return refuse(format!(
                "a window of {window} tokens; the model's context is {context}"
            ));
        }
        let mut symbols = Symbols::new();
        let sizes = [1, window];
        for (dim, size) in graph.inputs[0].shape.iter().zip(sizes) {
            match dim {
                Dim::Symbol(s) => _ = symbols.insert(s.clone(), size),
                Dim::Fixed(n) if *n == size => {}
                Dim::Fixed(n) => {
                    return refuse(format!("the model takes {n} tokens, a window has {window}"));
                }
            }
        }
        let shapes = infer_shapes(graph, model.weights(), &symbols)?;
        let shape = |name: &str| -> Vec<usize> {
            let dims = shapes.get(name).map_or(&[][..], Vec::as_slice);
            let fixed = |d: &Dim| if let Dim::Fixed(n) = d { *n } else { 0 };
            dims.iter().map(fixed).collect()
        };

        let of: BTreeMap<&str, usize> = (layers.iter().enumerate())
            .map(|(i, l)| (l.node.name.as_str(), i))
            .collect();
        let pruned: Vec<usize> = places(graph, |n| of.contains_key(n.name.as_str()));
        let (cuts, last) = (cuts(graph), pruned.iter().copied().max().unwrap_or(0));
        let mut starts: Vec<usize> = Vec::new();
        for &at in &attentions {
            let Some(&(cut, _)) = cuts.iter().rev().find(|c| c.0 < at) else {
                return refuse(format!(
                    "no single value leads to attention `{}`: its block cannot run alone",
                    graph.nodes[at].name
                ));
            };
            if starts.last() != Some(&cut) {
                starts.push(cut);
            }
        }
        let end = cuts
            .iter()
            .map(|c| c.0)
            .find(|&c| c >= last.max(attentions[attentions.len() - 1]));
        starts.push(end.unwrap_or(graph.nodes.len() - 1));
        if let Some(at) = pruned
            .iter()
            .find(|&&at| at <= starts[0] || at > starts[starts.len() - 1])
        {
            return refuse(format!(
                "weight `{}` lies in no block; leave it out with --exclude",
                layers[of[graph.nodes[*at].name.as_str()]].name
            ));
        }
        let part = |input: Input, nodes: Range<usize>| -> Result<Block> {
            let mut block = Block {
                output: shape(&graph.nodes[nodes.end - 1].output).iter().product(),
                graph: Graph {
                    name: graph.name.clone(),
                    inputs: vec![input],
                    outputs: Vec::new(),
                    nodes: graph.nodes[nodes].to_vec(),
                },
                layers: Vec::new(),
                inputs: Vec::new(),
                widths: Vec::new(),
            };
            for node in &block.graph.nodes {
                let Some(&layer) = of.get(node.name.as_str()) else {
                    continue;
                };
                let (read, rows) = (&node.inputs[0], layers[layer].weight.shape());
                let straight = match &node.op {
                    Op::MatMul { trans_b } => *trans_b,
                    Op::Gemm {
                        trans_a, trans_b, ..
                    } => *trans_b && !*trans_a,
                    _ => false,
                };
                if !straight || rows.len() != 2 || shape(read).last() != Some(&rows[1]) {
                    return Err(Error::Calibration(format!(
                        "weight `{}` of {}: only linear layers with a weight [outputs, inputs] are calibrated; \
                         leave it out with --exclude",
                        layers[layer].name,
                        node.op.name()
                    )));
                }
                let known = block.inputs.iter().position(|i| i == read);
                let input = known.unwrap_or_else(|| {
                    block.inputs.push(read.clone());
                    block.widths.push(rows[1]);
                    block.inputs.len() - 1
                });
                block.layers.push((layer, input));
            }
            block.graph.outputs = block.inputs.clone();
            let out = block.graph.nodes.last().map(|n| n.output.clone());
            block.graph.outputs.extend(out);
            Ok(block)
        };
        let between = |cut: usize| {
            let name = graph.nodes[cut].output.clone();
            let dims = shape(&name).into_iter().map(Dim::Fixed).collect();
            Input::f32(name, dims)
        };
        let tokens = Input::i64(
            graph.inputs[0].name.clone(),
            sizes.into_iter().map(Dim::Fixed).collect(),
        );
        let before = part(tokens, 0..starts[0] + 1)?;
        let last = starts[starts.len() - 1];
        let after = (last + 1 < graph.nodes.len())
            .then(|| part(between(last), last + 1..graph.nodes.len()))
            .transpose()?;
        let pairs = starts.windows(2);
        let blocks = pairs.map(|p| part(between(p[0]), p[0] + 1..p[1] + 1));
        Ok(Blocks {
            before,
            blocks: blocks.collect::<Result<_>>()?,
            after,
        })
    }
}

impl Block {
    /// The part as a model with the weights of `model`, which may have other values by now.
    pub fn model(&self, model: &Model) -> Result<Model> {
        let read = self.graph.nodes.iter().flat_map(|n| &n.inputs);
        let names: HashSet<&String> = read.collect();
        let weights: Weights = (names.into_iter())
            .filter_map(|n| Some((n.clone(), model.weights().get(n)?.clone())))
            .collect();
        Ok(Model::new(self.graph.clone(), weights)?)
    }

    /// The part without the outputs that layers read.
    pub fn plain(&self) -> Block {
        let mut block = self.clone();
        block.graph.outputs.drain(..block.inputs.len());
        block.inputs.clear();
        block.widths.clear();
        block.layers.clear();
        block
    }

    /// The part as far as the value `output`.
    pub fn until(&self, output: &str) -> Block {
        let mut block = self.plain();
        block.graph.outputs = vec![output.to_owned()];
        if let Some(at) = block.graph.nodes.iter().position(|n| n.output == output) {
            block.graph.nodes.truncate(at + 1);
        }
        block
    }

    /// Where the part has its first node of such an operator.
    pub fn place(&self, which: impl Fn(&Op) -> bool) -> Option<usize> {
        self.graph.nodes.iter().position(|n| which(&n.op))
    }

    /// Where the part has a node.
    pub fn place_of(&self, node: &str) -> Option<usize> {
        self.graph.nodes.iter().position(|n| n.name == node)
    }

    /// The element type of the part's input.
    pub fn dtype(&self) -> DType {
        self.graph.inputs[0].dtype
    }

    /// The shape of the part's input.
    pub fn shape(&self) -> Vec<usize> {
        let fixed = |d: &Dim| if let Dim::Fixed(n) = d { *n } else { 0 };
        self.graph.inputs[0].shape.iter().map(fixed).collect()
    }
}

fn places(graph: &Graph, which: impl Fn(&Node) -> bool) -> Vec<usize> {
    let nodes = graph.nodes.iter().enumerate();
    nodes.filter(|(_, n)| which(n)).map(|(i, _)| i).collect()
}

/// The nodes behind which their own output alone is read, with that output, in order.
fn cuts(graph: &Graph) -> Vec<(usize, &str)> {
    let mut last: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        for name in &node.inputs {
            last.insert(name, i);
        }
    }
    for name in &graph.outputs {
        last.insert(name, graph.nodes.len());
    }
    // Behind which node the latest reader of anything made so far stands, the node's own output apart.
    let inputs = graph
        .inputs
        .iter()
        .filter_map(|i| last.get(i.name.as_str()));
    let mut needed = inputs.copied().max().unwrap_or(0);
    let mut cuts = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        if needed <= i {
            cuts.push((i, node.output.as_str()));
        }
        needed = needed.max(last.get(node.output.as_str()).copied().unwrap_or(0));
    }
    cuts
}

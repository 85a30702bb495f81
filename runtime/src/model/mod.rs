//! The model as data: graph, operators, weights, shapes, and the file. Nothing here computes.

#![deny(unsafe_code)]

mod bitmask;
mod bytes;
mod derived;
pub mod file;
mod float;
mod graph;
mod op;
mod resize;
mod scales;
mod scan;
mod shape;
mod storage;
mod text;
mod weight;

pub use bitmask::Bitmask;
pub use bytes::Bytes;
pub(crate) use derived::Derived;
pub use graph::{Dim, Graph, Input, Node, Symbols};
pub use op::{Op, PadMode, Padding, Window};
pub use resize::{Coordinates, Interpolation, Resized, taps};
pub use scales::{GROUPS, Scales};
pub use shape::{Shapes, infer_shapes, padding_for};
pub(crate) use shape::{axis_index, axis_set, slice_range};
pub use storage::Storage;
pub use text::Text;
pub use weight::{Encoding, Weight};

use crate::{DType, Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The weights of a model, by name.
pub type Weights = BTreeMap<String, Weight>;

/// A whole model: the graph, its weights, and what travels with them. `Send`, `Sync`, cheap to
/// clone: clones share the weight bytes.
#[derive(Clone, Debug)]
pub struct Model {
    graph: Graph,
    weights: Weights,
    /// The tokenizer that travels in the file, as the bytes of a `tokenizer.json`.
    pub tokenizer: Option<Bytes>,
    /// How a language model is fed and when it stops.
    pub text: Option<Text>,
    /// Short keys of the file: where the model came from and how it was made.
    pub metadata: Metadata,
    path: Option<PathBuf>,
    derived: Derived,
}

/// The short keys that a file carries about its making.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// SHA-256 of the recipe that made the file, in hex.
    pub recipe: Option<String>,
    /// SHA-256 of the source that the model was converted from, in hex.
    pub source: Option<String>,
}

impl Model {
    /// Puts a model together, after checking the graph, its shapes, and that every weight is used
    /// as one of a floating-point dtype.
    pub fn new(graph: Graph, weights: Weights) -> Result<Model> {
        graph.validate(|name| weights.contains_key(name))?;
        graph.check_dtypes(|name| weights.get(name).map(Weight::element_dtype))?;
        infer_shapes(&graph, &weights, &Symbols::new())?;
        Ok(Model {
            graph,
            weights,
            tokenizer: None,
            text: None,
            metadata: Metadata::default(),
            path: None,
            derived: Derived::default(),
        })
    }

    /// The same weights under another graph, sharing what was made from them. Nodes of one name
    /// must use the weights in the same way in both graphs.
    pub(crate) fn with_graph(&self, graph: Graph) -> Result<Model> {
        let model = Model::new(graph, self.weights.clone())?;
        Ok(Model {
            derived: self.derived.clone(),
            ..model
        })
    }

    /// Opens a Lacuna file, memory-mapped. See [`file::read`].
    pub fn open(path: impl AsRef<Path>) -> Result<Model> {
        file::read(path.as_ref())
    }

    /// Writes a Lacuna file atomically and checks it by reading it back. See [`file::write`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        file::write(self, path.as_ref())
    }

    /// The computation.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The weights, by name.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The file that the model was opened from.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What was made from the weights and is shared by every session of this model.
    pub(crate) fn derived(&self) -> &Derived {
        &self.derived
    }

    pub(crate) fn set_path(&mut self, path: &Path) {
        self.path = Some(path.to_path_buf());
    }

    /// Replaces a weight by one of the same shape.
    pub fn set_weight(&mut self, name: &str, weight: Weight) -> Result<()> {
        let refuse = |what: String| Error::Weight {
            weight: name.to_owned(),
            what,
        };
        let slot = self
            .weights
            .get_mut(name)
            .ok_or_else(|| refuse("the model has no such weight".into()))?;
        if slot.shape() != weight.shape() {
            return Err(refuse(format!(
                "shape {:?} instead of {:?}",
                weight.shape(),
                slot.shape()
            )));
        }
        *slot = weight;
        self.derived = Derived::default();
        Ok(())
    }

    /// The weights of `Conv`, `Gemm` and `MatMul`, in graph order, each once, with the node that reads
    /// it first: all that can be pruned.
    pub fn product_weights(&self) -> Vec<(&str, &Node)> {
        let mut seen = std::collections::HashSet::new();
        let mut list = Vec::new();
        for node in &self.graph.nodes {
            let Some(name) = node.op.weight_input().and_then(|i| node.inputs.get(i)) else {
                continue;
            };
            if self.weights.contains_key(name) && seen.insert(name.as_str()) {
                list.push((name.as_str(), node));
            }
        }
        list
    }

    /// The weights that pruning looks at by default: those of `Conv`, `Gemm` and `MatMul`, but of a
    /// language model only those inside its blocks, not the embedding and the output layer.
    pub fn prunable(&self) -> Vec<(&str, &Node)> {
        let mut list = self.product_weights();
        if self.is_language_model() {
            let outer = |name: &str, node: &Node| {
                let embeds = |n: &Node| matches!(n.op, Op::Gather { .. }) && n.inputs[0] == name;
                self.graph.outputs.contains(&node.output) || self.graph.nodes.iter().any(embeds)
            };
            list.retain(|(name, node)| !outer(name, node));
        }
        list
    }

    /// Whether the model reads tokens.
    pub fn is_language_model(&self) -> bool {
        let reads_tokens = |n: &Node| {
            let tokens = |i: &Input| i.dtype == DType::I64 && n.inputs.get(1) == Some(&i.name);
            matches!(n.op, Op::Gather { .. }) && self.graph.inputs.iter().any(tokens)
        };
        self.graph.nodes.iter().any(reads_tokens)
    }

    /// The same model with every weight of two or more axes in `dtype`, rounded to nearest; biases,
    /// norms and other vectors stay as they are.
    ///
    /// # Errors
    /// When `dtype` is not a floating-point dtype, or a value is beyond its range.
    pub fn to_dtype(&self, dtype: DType) -> Result<Model> {
        let mut model = self.clone();
        model.derived = Derived::default();
        for (name, weight) in &mut model.weights {
            if weight.shape().len() >= 2 && weight.dtype().is_float() {
                *weight = weight.to_dtype(dtype).map_err(|what| Error::Weight {
                    weight: name.clone(),
                    what,
                })?;
            }
        }
        Ok(model)
    }

    /// The same model with the matrices of the layers that pruning looks at by default as signed bytes,
    /// with a scale for each `group` columns of a row; see [`Weight::to_scaled`]. Other matrices of a
    /// language model, its embedding, become BF16.
    ///
    /// # Errors
    /// When a value is not finite, or `group` is not 32 or 64.
    pub fn to_scaled(&self, group: usize) -> Result<Model> {
        let mut model = self.clone();
        model.derived = Derived::default();
        for (name, node) in self.prunable() {
            let weight = &self.weights[name];
            if matches!(node.op, Op::Conv { .. } | Op::ConvTranspose { .. })
                || !weight.dtype().is_float()
            {
                continue;
            }
            let scaled = weight.to_scaled(group).map_err(|what| Error::Weight {
                weight: name.to_owned(),
                what,
            })?;
            model.weights.insert(name.to_owned(), scaled);
        }
        match self.is_language_model() {
            true => model.to_dtype(DType::BF16),
            false => Ok(model),
        }
    }

    /// The same model with every weight of `Conv`, `Gemm` and `MatMul` in its best storage
    /// ([`Weight::best_storage`]).
    pub fn encoded(&self) -> Model {
        let mut model = self.clone();
        model.derived = Derived::default();
        let names: Vec<String> = self
            .product_weights()
            .iter()
            .map(|(n, _)| n.to_string())
            .collect();
        for name in names {
            let weight = &self.weights[&name];
            if weight.scales().is_some() {
                continue;
            }
            let chosen = weight.stored_best();
            model.weights.insert(name, chosen);
        }
        model
    }

    /// The same model with every weight dense.
    pub fn decoded(&self) -> Model {
        let mut model = self.clone();
        model.derived = Derived::default();
        for weight in model.weights.values_mut() {
            *weight = weight.decode();
        }
        model
    }
}

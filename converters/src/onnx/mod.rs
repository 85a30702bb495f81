//! ONNX models, operator sets 7 to 28.
//!
//! Constants and shape arithmetic are folded; a symbolic batch stays symbolic. Weights keep the
//! names of their initializers. The second matrix of `Gemm` and `MatMul` is stored as
//! `[outputs, inputs]` when it is a constant. Inputs of FLOAT16 and BFLOAT16 become f32 like
//! everything that a run computes; those of INT64 stay integers, and index a `Gather`.

mod activations;
mod attrs;
mod axes;
mod call;
mod constants;
mod convert;
pub(crate) mod export;
mod external;
mod fold;
mod ints;
mod language;
mod ops;
mod order;
mod proto;
mod resize;
mod tensor;
mod value;

use crate::source::Source;
use crate::{Error, Options, Result};
use convert::Converter;
use external::External;
use lacuna::Model;
use lacuna::model::{Bytes, Dim, Input};
use prost::Message;
use proto::{GraphProto, ModelProto, ValueInfoProto, data_type};
use std::collections::BTreeSet;
use std::path::PathBuf;
use tensor::{Budget, Reader};

/// The operator sets that are read.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=28;

/// The ONNX operators that are supported, sorted. `Cast`, `Ceil`, `Constant`, `ConstantOfShape`,
/// `Floor`, `Shape` and `Size` are folded: over constants and shapes only.
pub fn supported_ops() -> Vec<&'static str> {
    let mut list = [&ops::COMPUTED[..], &ops::FOLDED[..]].concat();
    list.sort_unstable();
    list
}

/// Lets the decoder cut slices out of the file instead of copying.
struct Owner(Bytes);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn decoded(source: &Source) -> Result<ModelProto> {
    let file = prost::bytes::Bytes::from_owner(Owner(source.bytes.clone()));
    ModelProto::decode(file).map_err(|e| source.error(format!("not a valid ONNX file: {e}")))
}

/// The files beside a model that its tensors lie in.
pub(crate) fn data_files(source: &Source) -> Result<Vec<PathBuf>> {
    let graph = decoded(source)?.graph.unwrap_or_default();
    let constants = graph.node.iter().flat_map(|n| &n.attribute);
    let constants = constants.filter_map(|a| a.t.as_ref());
    let external = External::new(&source.path);
    let locations = graph.initializer.iter().chain(constants);
    let locations = locations
        .filter(|t| t.data_location == 1)
        .flat_map(|t| &t.external_data)
        .filter(|e| e.key == "location");
    let names: BTreeSet<&str> = locations.map(|e| e.value.as_str()).collect();
    let beside = names.into_iter().map(|name| external.beside(name));
    beside
        .collect::<Result<_, String>>()
        .map_err(|what| source.error(what))
}

/// Reads a model.
pub(crate) fn read(source: &Source, options: &Options) -> Result<Model> {
    let proto = decoded(source)?;
    let graph = proto.graph.as_ref();
    let graph = graph.ok_or_else(|| source.error("an ONNX file without a graph"))?;
    let opset = proto
        .opset_import
        .iter()
        .find(|o| matches!(o.domain.as_str(), "" | "ai.onnx"))
        .map_or(1, |o| o.version);
    if !OPSETS.contains(&opset) {
        return Err(source.error(format!(
            "operator set {opset}; supported: {} to {}",
            OPSETS.start(),
            OPSETS.end()
        )));
    }
    let reader = Reader {
        source,
        external: External::new(&source.path),
        budget: Budget::for_file(source.bytes.len()),
    };
    let mut converter = Converter::new(graph, opset, reader);
    let inputs = inputs(graph, &converter, options).map_err(|what| source.error(what))?;
    for input in &inputs {
        let known = converter.input(input);
        known.map_err(|what| source.error(format!("input `{}`: {what}", input.name)))?;
    }
    for index in order::needed(graph).map_err(|what| source.error(what))? {
        let node = &graph.node[index];
        converter.node(index, node).map_err(|what| Error::Node {
            path: source.path.clone(),
            node: if node.name.is_empty() {
                format!("{}_{index}", node.op_type)
            } else {
                node.name.clone()
            },
            op: node.op_type.clone(),
            what,
        })?;
    }
    let name = if graph.name.is_empty() {
        "graph".to_owned()
    } else {
        graph.name.clone()
    };
    let outputs = graph.output.iter().map(|o| o.name.clone()).collect();
    let (graph, weights, reader) = converter
        .finish(name, inputs, outputs)
        .map_err(|what| source.error(what))?;
    let mut model = Model::new(graph, weights).map_err(|e| source.model_error(e))?;
    model.metadata.source = Some(reader.external.sha256(source));
    Ok(model)
}

/// What a run is given: the inputs that are no initializers.
fn inputs(
    graph: &GraphProto,
    converter: &Converter<'_>,
    options: &Options,
) -> Result<Vec<Input>, String> {
    let given: Vec<&ValueInfoProto> = graph
        .input
        .iter()
        .filter(|i| !converter.is_initializer(&i.name))
        .collect();
    if let Some(shape) = &options.input {
        let [one] = given[..] else {
            let names: Vec<&str> = given.iter().map(|i| i.name.as_str()).collect();
            return Err(format!(
                "an input shape is given, but the inputs are: {}",
                names.join(", ")
            ));
        };
        return Ok(vec![typed(one, shape.clone())?]);
    }
    given.into_iter().map(input).collect()
}

/// An input of this shape and the file's dtype.
fn typed(info: &ValueInfoProto, shape: Vec<Dim>) -> Result<Input, String> {
    let tensor = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    match tensor.map(|t| t.elem_type) {
        Some(data_type::FLOAT | data_type::FLOAT16 | data_type::BFLOAT16) => {
            Ok(Input::f32(info.name.clone(), shape))
        }
        Some(data_type::INT64) => Ok(Input::i64(info.name.clone(), shape)),
        Some(other) => Err(format!(
            "input `{}` has dtype {}; supported: INT64, FLOAT, and FLOAT16 and BFLOAT16 taken as f32",
            info.name,
            data_type::name(other)
        )),
        None => Err(format!("input `{}` is no tensor", info.name)),
    }
}

fn input(info: &ValueInfoProto) -> Result<Input, String> {
    let tensor = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    let shape = tensor
        .and_then(|t| t.shape.as_ref())
        .ok_or_else(|| format!("input `{}` has no shape; give one", info.name))?;
    let mut dims = Vec::with_capacity(shape.dim.len());
    for (axis, dim) in shape.dim.iter().enumerate() {
        let fixed = dim.dim_value.and_then(|v| usize::try_from(v).ok());
        dims.push(match (fixed, dim.dim_param.as_deref()) {
            (Some(n), _) => Dim::Fixed(n),
            (None, Some(symbol)) if !symbol.is_empty() => Dim::Symbol(symbol.to_owned()),
            (None, _) if axis == 0 => Dim::Symbol("N".into()),
            (None, _) => Dim::Symbol(format!("{}_{axis}", info.name)),
        });
    }
    typed(info, dims)
}

//! A model as an ONNX file, every weight dense in f32, so that any runtime takes it.

mod build;
mod encoder;
mod nodes;

use super::proto::{GraphProto, OperatorSetIdProto};
use crate::{Error, Options, Result};
use lacuna::Model;
use lacuna::model::file::{Output, replace};
use lacuna::model::{Op, Weight};
use prost::Message;
use std::path::Path;

/// The longest protocol buffer that readers take, with room for the graph.
const LIMIT: usize = (1 << 31) - (1 << 24);

/// `ModelProto` with the fields that only a writer needs.
#[derive(Clone, PartialEq, Message)]
struct Document {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(string, tag = "2")]
    producer_name: String,
    #[prost(string, tag = "3")]
    producer_version: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetIdProto>,
}

/// Writes a model as ONNX: names as in the model, zeros filled in, weights of 16 bits widened to f32, which
/// loses nothing. Matrices that only a `MatMul` reads are stored as ONNX has them, `[inputs, outputs]`.
///
/// The operator set is the earliest that has every operator, 18 or later. The file appears whole or not
/// at all: it is read back, and every weight compared, before it takes its name. An encoder's attention becomes operators
/// that other runtimes have and [`open`](crate::open) does not; of it the bytes are compared.
///
/// # Errors
/// When an operator has no form in ONNX (those of language models, which keep what earlier runs left), the
/// weights need more than a protocol buffer holds (2 GB), and when the system refuses.
pub fn export_onnx(model: &Model, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let refuse = |what: String| Error::Format {
        path: path.to_path_buf(),
        what,
    };
    let bytes: usize = model.weights().values().map(|w| w.numel() * 4).sum();
    if bytes > LIMIT {
        return Err(refuse(format!(
            "{bytes} bytes of weights in f32; an ONNX file holds {LIMIT}. Plain safetensors hold any number"
        )));
    }
    let (graph, opset) = build::graph(model).map_err(|fault| match fault {
        build::Fault::Node { node, op, what } => Error::Node {
            path: path.to_path_buf(),
            node,
            op: op.to_owned(),
            what,
        },
        build::Fault::Graph(what) => refuse(what),
        build::Fault::Model(source) => Error::Model {
            path: path.to_path_buf(),
            source: *source,
        },
    })?;
    let document = Document {
        // The first that knows the operator set.
        ir_version: match opset {
            ..19 => 8,
            19..20 => 9,
            20..23 => 9,
            _ => 11,
        },
        producer_name: "lacuna".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: opset,
        }],
    };
    let content = document.encode_to_vec();
    drop(document);
    let nodes = &model.graph().nodes;
    let ours = |op: &Op| {
        matches!(
            op,
            Op::Attention { .. } | Op::MaskedMean | Op::PositionEmbedding
        )
    };
    let foreign = nodes.iter().any(|n| ours(&n.op));
    let fill = |out: &mut dyn Output| out.write_all(&content);
    let mut wrong = None;
    let check = |temporary: &Path| {
        let found = match foreign {
            true => equal(&content, temporary),
            false => same(model, temporary),
        };
        found.map_err(|what| {
            wrong = Some(what);
            // Replaced below by the reason.
            lacuna::Error::File {
                path: path.to_path_buf(),
                what: String::new(),
            }
        })
    };
    let written = replace(path, fill, check);
    match (written, wrong) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(what)) => Err(refuse(format!("what was written {what}"))),
        (Err(source), None) => Err(Error::Model {
            path: path.to_path_buf(),
            source,
        }),
    }
}

/// Reads the file back and compares its bytes.
fn equal(content: &[u8], path: &Path) -> Result<(), String> {
    match std::fs::read(path) {
        Ok(found) if found == content => Ok(()),
        Ok(_) => Err("is something else".into()),
        Err(e) => Err(format!("cannot be read: {e}")),
    }
}

/// Reads the file back and compares its weights with those of the model.
fn same(model: &Model, path: &Path) -> Result<(), String> {
    let back = crate::open(path, &Options::default());
    let back = back.map_err(|e| format!("cannot be read: {e}"))?;
    for (name, _) in model.product_weights() {
        let (ours, theirs) = (&model.weights()[name], back.weights().get(name));
        let Some(theirs) = theirs else {
            return Err(format!("has no weight `{name}`"));
        };
        let values = |w: &Weight| w.to_f32().unwrap_or_default();
        let equal = match ours.shape() == theirs.shape() {
            true => values(ours) == values(theirs),
            // The other way round.
            false => ours.count_nonzero() == theirs.count_nonzero(),
        };
        if !equal {
            return Err(format!("has other values of `{name}`"));
        }
    }
    Ok(())
}

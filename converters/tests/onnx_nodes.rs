//! The node tests of the onnx package, for every operator that the converter claims: passed, refused
//! with a reason, or failed.
//!
//! `LACUNA_ONNX_NODE_TESTS` names the folder; `onnx_node_cases.py` beside this file makes it. The table
//! is printed with `cargo test -p lacuna-convert --test onnx_nodes -- --nocapture`.
//!
//! A case binds its tensors as graph inputs, which models do not do with their weights. It therefore
//! runs in up to three ways, integers being initializers in each: with every floating-point input
//! given at run time; with every input but the first an initializer; and, for operators that are
//! folded, with every input an initializer and the result added to a run-time zero. A case passes when one
//! way gives the expected values and none gives others; it is refused when every way is.

#[allow(dead_code, missing_docs, clippy::enum_variant_names)]
#[path = "../src/onnx/proto.rs"]
mod proto;

use lacuna::{Session, SessionOptions, TensorView};
use lacuna_convert::{Options, open, supported_ops};
use prost::Message;
use proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, data_type,
};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Operators whose results are folded when every input is a constant.
const FOLDED: [&str; 19] = [
    "Add",
    "Cast",
    "Ceil",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Div",
    "Flatten",
    "Floor",
    "Gather",
    "Mul",
    "Reshape",
    "Shape",
    "Size",
    "Slice",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
];

enum Outcome {
    Passed,
    Refused(String),
    Failed(String),
}

/// A tensor as f32 with its shape, when its dtype allows it.
fn values(tensor: &TensorProto) -> Option<(Vec<usize>, Vec<f32>)> {
    let raw = &tensor.raw_data;
    let list: Vec<f32> = match tensor.data_type {
        data_type::FLOAT if raw.is_empty() => tensor.float_data.clone(),
        data_type::FLOAT => {
            let all = raw.as_chunks::<4>().0.iter();
            all.map(|b| f32::from_le_bytes(*b)).collect()
        }
        data_type::FLOAT16 => {
            let all = raw.as_chunks::<2>().0.iter();
            all.map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
        }
        data_type::BFLOAT16 => {
            let all = raw.as_chunks::<2>().0.iter();
            all.map(|b| half::bf16::from_le_bytes(*b).to_f32())
                .collect()
        }
        data_type::DOUBLE => {
            let all = raw.as_chunks::<8>().0.iter();
            all.map(|b| f64::from_le_bytes(*b) as f32).collect()
        }
        data_type::INT64 => {
            let all = raw.as_chunks::<8>().0.iter();
            all.map(|b| i64::from_le_bytes(*b) as f32).collect()
        }
        data_type::INT32 => {
            let all = raw.as_chunks::<4>().0.iter();
            all.map(|b| i32::from_le_bytes(*b) as f32).collect()
        }
        _ => return None,
    };
    let shape: Vec<usize> = tensor.dims.iter().map(|&d| d as usize).collect();
    (shape.iter().product::<usize>() == list.len()).then_some((shape, list))
}

fn is_float(tensor: &TensorProto) -> bool {
    matches!(
        tensor.data_type,
        data_type::FLOAT | data_type::FLOAT16 | data_type::BFLOAT16
    )
}

struct Case {
    model: ModelProto,
    inputs: Vec<TensorProto>,
    outputs: Vec<TensorProto>,
}

impl Case {
    fn read(folder: &Path) -> Option<Case> {
        let model = std::fs::read(folder.join("model.onnx")).ok()?;
        let tensors = |kind: &str| -> Vec<TensorProto> {
            (0..)
                .map_while(|i| {
                    let name = format!("test_data_set_0/{kind}_{i}.pb");
                    std::fs::read(folder.join(name)).ok()
                })
                .map(|b| TensorProto::decode(&b[..]).unwrap())
                .collect()
        };
        Some(Case {
            model: ModelProto::decode(&model[..]).ok()?,
            inputs: tensors("input"),
            outputs: tensors("output"),
        })
    }

    fn graph(&self) -> &GraphProto {
        self.model.graph.as_ref().unwrap()
    }

    /// The model with every input an initializer but those that `keep` says, and those inputs.
    fn bound(&self, keep: impl Fn(usize) -> bool) -> (ModelProto, Vec<TensorProto>) {
        let mut model = self.model.clone();
        let graph = model.graph.as_mut().unwrap();
        let mut kept = Vec::new();
        let infos = std::mem::take(&mut graph.input);
        for (i, (info, tensor)) in infos.into_iter().zip(&self.inputs).enumerate() {
            if keep(i) {
                graph.input.push(info);
                kept.push(tensor.clone());
            } else {
                let mut tensor = tensor.clone();
                tensor.name = info.name;
                graph.initializer.push(tensor);
            }
        }
        (model, kept)
    }

    /// The model over constants only: `result = zero + f32(its output)`.
    fn folded(&self) -> Option<(ModelProto, Vec<TensorProto>)> {
        let [output] = &self.outputs[..] else {
            return None;
        };
        let (mut model, _) = self.bound(|_| false);
        let graph = model.graph.as_mut()?;
        let node = |op: &str, input: &[&str], output: &str| NodeProto {
            op_type: op.into(),
            input: input.iter().map(|s| (*s).to_owned()).collect(),
            output: vec![output.into()],
            ..NodeProto::default()
        };
        let mut cast = node("Cast", &[&graph.output[0].name], "as_float");
        cast.attribute.push(AttributeProto {
            name: "to".into(),
            r#type: 2,
            i: data_type::FLOAT.into(),
            ..AttributeProto::default()
        });
        graph.node.push(cast);
        graph
            .node
            .push(node("Add", &["zero", "as_float"], "result"));
        let dim = output.dims.iter().map(|&d| DimensionProto {
            dim_value: Some(d),
            dim_param: None,
        });
        let info = |name: &str| ValueInfoProto {
            name: name.into(),
            r#type: Some(TypeProto {
                tensor_type: Some(TensorTypeProto {
                    elem_type: data_type::FLOAT,
                    shape: Some(TensorShapeProto {
                        dim: dim.clone().collect(),
                    }),
                }),
            }),
        };
        graph.input = vec![info("zero")];
        graph.output = vec![info("result")];
        let zero = TensorProto {
            dims: output.dims.clone(),
            data_type: data_type::FLOAT,
            float_data: vec![0.0; values(output)?.1.len()],
            ..TensorProto::default()
        };
        Some((model, vec![zero]))
    }

    fn outcome(&self, scratch: &Path) -> Outcome {
        let run_time = |i: usize| is_float(&self.inputs[i]);
        let first = (0..self.inputs.len()).find(|&i| run_time(i));
        let mut ways = vec![self.bound(run_time)];
        if self.inputs.iter().filter(|t| is_float(t)).count() > 1 {
            ways.push(self.bound(|i| Some(i) == first));
        }
        let nodes = &self.graph().node;
        if nodes.iter().all(|n| FOLDED.contains(&n.op_type.as_str())) {
            ways.extend(self.folded());
        }
        let mut refusal = String::new();
        let mut passed = false;
        for (model, inputs) in &ways {
            match self.run(scratch, model, inputs) {
                Outcome::Passed => passed = true,
                Outcome::Refused(reason) => refusal = reason,
                failed => return failed,
            }
        }
        if passed {
            Outcome::Passed
        } else {
            Outcome::Refused(refusal)
        }
    }

    fn run(&self, scratch: &Path, model: &ModelProto, inputs: &[TensorProto]) -> Outcome {
        std::fs::write(scratch, model.encode_to_vec()).unwrap();
        let model = match open(scratch, &Options::default()) {
            Ok(model) => model,
            Err(e) => return Outcome::Refused(e.to_string()),
        };
        let mut tensors = Vec::new();
        for t in inputs {
            match values(t) {
                Some(v) => tensors.push(v),
                None => return Outcome::Refused("an input that the runner cannot read".into()),
            }
        }
        for isa in [Some("scalar".to_owned()), None] {
            let options = SessionOptions {
                threads: 1,
                isa,
                allow_non_finite: true,
                ..SessionOptions::default()
            };
            let mut session = match Session::new(&model, options) {
                Ok(session) => session,
                Err(e) => return Outcome::Refused(format!("plan: {e}")),
            };
            let views: Vec<TensorView<'_>> = tensors
                .iter()
                .map(|(shape, data)| TensorView::f32(shape, data))
                .collect();
            let outputs = match session.run(&views) {
                Ok(outputs) => outputs,
                Err(e) => return Outcome::Failed(format!("run: {e}")),
            };
            for (got, expected) in outputs.iter().zip(&self.outputs) {
                let Some((shape, data)) = values(expected) else {
                    return Outcome::Refused("an output that the runner cannot read".into());
                };
                if got.shape != shape {
                    return Outcome::Failed(format!("shape {:?}, expected {shape:?}", got.shape));
                }
                // A run computes in f32; and one case gives its values with four digits.
                let relative = match expected.data_type {
                    data_type::FLOAT16 => 2e-3,
                    data_type::BFLOAT16 => 8e-3,
                    _ => 1e-4,
                };
                let off = got.data.iter().zip(&data).find(|(a, b)| {
                    let close = (*a - *b).abs() <= 5e-5 + relative * b.abs();
                    !(close || a == b || a.is_nan() && b.is_nan())
                });
                if let Some((a, b)) = off {
                    return Outcome::Failed(format!("{} gives {a}, expected {b}", session.isa()));
                }
            }
        }
        Outcome::Passed
    }
}

#[derive(Default)]
struct Row {
    passed: usize,
    refused: BTreeMap<String, Vec<String>>,
    failed: Vec<String>,
}

/// The part of a refusal that does not name the file and the node.
fn reason(message: &str) -> String {
    let text = message.split_once("): ").map_or(message, |(_, what)| what);
    let text = text.split("; supported").next().unwrap_or(text);
    let text = text.rsplit_once(".onnx: ").map_or(text, |(_, what)| what);
    text.to_owned()
}

#[test]
fn every_case_of_every_claimed_operator_passes_or_is_refused_with_a_reason() {
    let Some(folder) = std::env::var_os("LACUNA_ONNX_NODE_TESTS") else {
        eprintln!("skipped: LACUNA_ONNX_NODE_TESTS names no folder");
        return;
    };
    let claimed: BTreeSet<&str> = supported_ops().into_iter().collect();
    let scratch = tempfile::tempdir().unwrap();
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let mut folders: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    for (i, path) in folders.iter().enumerate() {
        let Some(case) = Case::read(path) else {
            continue;
        };
        let nodes = &case.graph().node;
        let of_claimed =
            |n: &NodeProto| n.domain.is_empty() && claimed.contains(n.op_type.as_str());
        if nodes.is_empty() || !nodes.iter().all(of_claimed) {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let op = if nodes.len() == 1 {
            nodes[0].op_type.clone()
        } else {
            "(several nodes)".to_owned()
        };
        let row = rows.entry(op).or_default();
        let file = scratch.path().join(format!("{i}.onnx"));
        match catch_unwind(AssertUnwindSafe(|| case.outcome(&file))) {
            Ok(Outcome::Passed) => row.passed += 1,
            Ok(Outcome::Refused(why)) => {
                row.refused.entry(reason(&why)).or_default().push(name);
            }
            Ok(Outcome::Failed(why)) => row.failed.push(format!("{name}: {why}")),
            Err(_) => row.failed.push(format!("{name}: panic")),
        }
    }
    println!("| operator | passed | refused | failed |\n|---|---|---|---|");
    let mut total = [0; 3];
    for (op, row) in &rows {
        let refused: usize = row.refused.values().map(Vec::len).sum();
        let counts = [row.passed, refused, row.failed.len()];
        println!("| {op} | {} | {} | {} |", counts[0], counts[1], counts[2]);
        for (sum, n) in total.iter_mut().zip(counts) {
            *sum += n;
        }
    }
    println!(
        "| all | {} | {} | {} |\n\nRefused:",
        total[0], total[1], total[2]
    );
    for (op, row) in &rows {
        for (why, names) in &row.refused {
            println!(
                "- {op}: {why} ({} cases, such as {})",
                names.len(),
                names[0]
            );
        }
    }
    let failed: Vec<&String> = rows.values().flat_map(|r| &r.failed).collect();
    assert!(failed.is_empty(), "failed: {failed:#?}");
    assert!(total[0] > 0, "no case in {folder:?}");
}

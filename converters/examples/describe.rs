//! Opens model files of any supported format and prints what is in them:
//! `cargo run -p lacuna-convert --example describe -- FILE...`

use lacuna::model::{Dim, Symbols, Weight, infer_shapes};
use lacuna_convert::{Format, Options};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

fn main() {
    let mut failed = false;
    for path in std::env::args().skip(1) {
        match describe(Path::new(&path)) {
            Ok(text) => println!("{text}"),
            Err(e) => {
                failed = true;
                println!("refused: {e}");
            }
        }
    }
    std::process::exit(failed.into());
}

fn describe(path: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let format = Format::of_file(path)?;
    let start = Instant::now();
    let model = lacuna_convert::open(path, &Options::default())?;
    let time = start.elapsed();
    let graph = model.graph();
    let shapes = infer_shapes(graph, model.weights(), &Symbols::new())?;
    let show = |name: &str| {
        let dims: Vec<String> = shapes[name].iter().map(Dim::to_string).collect();
        format!("{name} [{}]", dims.join(", "))
    };
    let inputs: Vec<String> = graph.inputs.iter().map(|i| show(&i.name)).collect();
    let outputs: Vec<String> = graph.outputs.iter().map(|o| show(o)).collect();
    let mut ops: BTreeMap<&str, usize> = BTreeMap::new();
    for node in &graph.nodes {
        *ops.entry(node.op.name()).or_default() += 1;
    }
    let elements: usize = model.weights().values().map(Weight::numel).sum();
    Ok(format!(
        "{}: {format} `{}`, {} -> {}, {} weights of {elements} elements, {ops:?}, {time:.1?}",
        path.display(),
        graph.name,
        inputs.join(", "),
        outputs.join(", "),
        model.weights().len(),
    ))
}

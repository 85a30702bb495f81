//! The table of a language model: its layers and attentions at several widths, for one token and for a prompt.

use crate::bench::session_with;
use crate::decoder::Runner;
use crate::table::{Alone, Table, TableLayer};
use crate::{Config, Error, Result, median, normal};
use lacuna::model::{Dim, Graph, Input, Node, Op, Weights};
use lacuna::plan::Forms;
use lacuna::{DType, Isa, Model, PhaseKind, Weight};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Bytes of the copies of a layer that take turns: more than caches hold, as in a model.
const COLD: usize = 128 << 20;

/// Copies that read a prompt, and the most that read a token.
const COPIES: (usize, usize) = (4, 512);

/// An attention at several numbers of heads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableAttention {
    /// The node's name.
    pub node: String,
    /// Key heads, ascending.
    pub keys: Vec<usize>,
    /// Query heads of a key head, ascending.
    pub queries: Vec<usize>,
    /// Median milliseconds of a token: for each number of key heads one for each number of query heads.
    pub ms: Vec<Vec<f64>>,
    /// The same of the prompt.
    pub prompt_ms: Vec<Vec<f64>>,
}

/// Fills `table` with the layers and attentions of a decoder, and with the times of all of it.
pub(crate) fn fill(
    table: &mut Table,
    model: &Model,
    config: &Config,
    progress: &mut dyn FnMut(&str),
) -> Result<()> {
    let graph = model.graph();
    table.prompt = Some(config.prompt);
    table.depth = Some(config.depth);
    progress("the whole model");
    let mut whole = Runner::new(&model.decoded(), config, Forms::new())?;
    whole.once()?;
    whole.burst(Duration::from_secs(1).max(config.min_time))?;
    table.threads = whole.decoder.threads();
    whole.decoder.isa().clone_into(&mut table.isa);
    let both = median(&whole.decode).zip(median(&whole.prefill));
    table.whole_ms = both.map(|(token, prompt)| [token, prompt]);
    drop(whole);
    let isa = Isa::parse(&table.isa).map_err(Error::Option)?;
    let mut known: HashMap<String, TableLayer> = HashMap::new();
    let layers = model.prunable();
    for (i, (name, node)) in layers.iter().enumerate() {
        progress(&format!("layer {} of {}: {name}", i + 1, layers.len()));
        let weight = &model.weights()[*name];
        if graph.outputs.contains(&node.output) || weight.shape().len() != 2 {
            continue;
        }
        let key = format!("{:?} {:?} {}", node.op, weight.shape(), weight.dtype());
        let layer = match known.get(&key) {
            Some(same) => TableLayer {
                weight: (*name).to_owned(),
                ..same.clone()
            },
            None => {
                // Decoders round inputs where that is faster; layers alone do as the decoder did.
                let rounds = isa.multiplies(weight.dtype(), true);
                let config = Config {
                    round_inputs: config.round_inputs.or(Some(rounds)),
                    ..config.clone()
                };
                layer(name, node, weight, &config)?
            }
        };
        known.insert(key, layer.clone());
        table.layers.push(layer);
    }
    let mut seen: HashMap<String, TableAttention> = HashMap::new();
    let attends = |n: &&Node| matches!(n.op, Op::Attention { .. });
    for node in graph.nodes.iter().filter(attends) {
        progress(&format!("attention {}", node.name));
        let Some([query, value]) = widths(model, node) else {
            continue;
        };
        let key = format!("{:?} {query} {value}", node.op);
        let attention = match seen.get(&key) {
            Some(same) => TableAttention {
                node: node.name.clone(),
                ..same.clone()
            },
            None => attention(node, [query, value], config)?,
        };
        seen.insert(key, attention.clone());
        table.attentions.push(attention);
    }
    Ok(())
}

/// A layer at several widths: of a token the mean over copies that no cache holds, of a prompt over a few.
fn layer(name: &str, node: &Node, weight: &Weight, config: &Config) -> Result<TableLayer> {
    let read = [1, 1, weight.shape()[0].max(weight.shape()[1])];
    let alone = Alone {
        node,
        weight,
        read: &read,
    };
    let (first, second) = alone.sizes();
    let mut times = [Vec::new(), Vec::new()];
    for &a in &first {
        let mut rows = [Vec::new(), Vec::new()];
        for &b in &second {
            let cold = COLD / (a * b * weight.dtype().size()).max(1);
            let copies = [cold.clamp(COPIES.0, COPIES.1), COPIES.0];
            for ((row, copies), tokens) in rows.iter_mut().zip(copies).zip([1, config.prompt]) {
                let model = copied(node, weight.dtype(), [a, b], copies, tokens)?;
                let (mut runner, _) = session_with(&model, config, true, Forms::new())?;
                runner.warm_up(1)?;
                runner.burst(config.min_time.max(Duration::from_millis(1)))?;
                row.push(median(&runner.times).unwrap_or(0.0) / copies as f64);
            }
        }
        times.iter_mut().zip(rows).for_each(|(t, r)| t.push(r));
    }
    let [ms, prompt_ms] = times;
    Ok(TableLayer {
        weight: name.to_owned(),
        op: node.op.name(),
        first,
        second,
        ms,
        prompt_ms,
    })
}

/// Layers of one shape that read the same tokens.
fn copied(
    node: &Node,
    dtype: DType,
    [first, second]: [usize; 2],
    copies: usize,
    tokens: usize,
) -> Result<Model> {
    let trans = matches!(
        node.op,
        Op::MatMul { trans_b: true } | Op::Gemm { trans_b: true, .. }
    );
    let op = Op::MatMul { trans_b: trans };
    let depth = if trans { second } else { first };
    let one = Weight::from_f32(&[first, second], &normal(first * second, 5));
    let one = one.to_dtype(dtype).map_err(Error::Option)?;
    let lacuna::model::Encoding::Dense(bytes) = one.encoding() else {
        return Err(Error::Option("a dense weight is encoded".into()));
    };
    let mut weights = Weights::new();
    let mut nodes = Vec::with_capacity(copies);
    for i in 0..copies {
        let own = Weight::dense(vec![first, second], dtype, bytes.to_vec().into());
        weights.insert(format!("w{i}"), own.map_err(Error::Option)?);
        nodes.push(Node {
            name: format!("n{i}"),
            op: op.clone(),
            inputs: vec!["x".into(), format!("w{i}")],
            output: format!("y{i}"),
        });
    }
    let shape = [1, tokens, depth].map(Dim::Fixed).to_vec();
    let graph = Graph {
        name: node.name.clone(),
        inputs: vec![Input::f32("x", shape)],
        outputs: nodes.iter().map(|n| n.output.clone()).collect(),
        nodes,
    };
    Ok(Model::new(graph, weights)?)
}

/// Values of a query head and of a value head: by the weights that make them.
fn widths(model: &Model, node: &Node) -> Option<[usize; 2]> {
    let Op::Attention {
        heads, kv_heads, ..
    } = node.op
    else {
        return None;
    };
    let rows = |value: &str| {
        let mut value = value;
        for _ in 0..8 {
            let made = model.graph().nodes.iter().find(|n| n.output == value)?;
            if let Op::MatMul { trans_b } = made.op {
                let shape = model.weights().get(&made.inputs[1])?.shape();
                return Some(shape[usize::from(!trans_b)]);
            }
            value = &made.inputs[0];
        }
        None
    };
    Some([
        rows(&node.inputs[0])? / heads,
        rows(&node.inputs[2])? / kv_heads,
    ])
}

/// An attention at several numbers of heads, in a decoder of nothing else.
fn attention(node: &Node, widths: [usize; 2], config: &Config) -> Result<TableAttention> {
    let &Op::Attention {
        heads, kv_heads, ..
    } = &node.op
    else {
        return Err(Error::Option(format!("`{}` is no attention", node.name)));
    };
    let per = heads / kv_heads.max(1);
    let (keys, queries): (Vec<usize>, Vec<usize>) = ((1..=kv_heads).collect(), (1..=per).collect());
    let mut times = [Vec::new(), Vec::new()];
    for &k in &keys {
        let mut rows = [Vec::new(), Vec::new()];
        for &q in &queries {
            let model = attending(node, [q * k, k], widths)?;
            let mut runner = Runner::new(&model, config, Forms::new())?;
            let begin = Instant::now();
            while runner.steps[1].first().is_none_or(|t| t.len() < 3)
                || begin.elapsed() < config.min_time
            {
                runner.by_step()?;
            }
            for (i, kind) in [PhaseKind::Step, PhaseKind::Chunk].into_iter().enumerate() {
                let steps = runner.decoder.steps(kind);
                let all = steps.iter().zip(&runner.steps[i]);
                let own = all.filter(|(s, _)| s.op == "Attention");
                rows[i].push(own.filter_map(|(_, t)| median(t)).sum::<f64>());
            }
        }
        times.iter_mut().zip(rows).for_each(|(t, r)| t.push(r));
    }
    let [ms, prompt_ms] = times;
    Ok(TableAttention {
        node: node.name.clone(),
        keys,
        queries,
        ms,
        prompt_ms,
    })
}

/// A decoder with one attention and hardly anything else.
fn attending(node: &Node, [heads, keys]: [usize; 2], widths: [usize; 2]) -> Result<Model> {
    /// Tokens that it knows, and the width of its states.
    const SMALL: [usize; 2] = [64, 16];
    let mut op = node.op.clone();
    if let Op::Attention {
        heads: h,
        kv_heads: k,
        ..
    } = &mut op
    {
        (*h, *k) = (heads, keys);
    }
    let [vocabulary, width] = SMALL;
    let shapes = [
        ("table", vocabulary, width),
        ("wq", heads * widths[0], width),
        ("wk", keys * widths[0], width),
        ("wv", keys * widths[1], width),
        ("wo", vocabulary, heads * widths[1]),
    ];
    let weights: BTreeMap<String, Weight> = (shapes.into_iter().enumerate())
        .map(|(i, (name, a, b))| {
            let values = normal(a * b, 7 + i as u64);
            (name.to_owned(), Weight::from_f32(&[a, b], &values))
        })
        .collect();
    let linear = Op::MatMul { trans_b: true };
    let one = |op: &Op, inputs: &[&str], output: &str| Node {
        name: output.to_owned(),
        op: op.clone(),
        inputs: inputs.iter().map(|i| (*i).to_owned()).collect(),
        output: output.to_owned(),
    };
    let graph = Graph {
        name: node.name.clone(),
        inputs: vec![Input::i64(
            "ids",
            vec![Dim::Symbol("N".into()), Dim::Symbol("T".into())],
        )],
        outputs: vec!["logits".into()],
        nodes: vec![
            one(&Op::Gather { axis: 0 }, &["table", "ids"], "x"),
            one(&linear, &["x", "wq"], "q"),
            one(&linear, &["x", "wk"], "k"),
            one(&linear, &["x", "wv"], "v"),
            one(&op, &["q", "k", "v"], "a"),
            one(&linear, &["a", "wo"], "logits"),
        ],
    };
    Ok(Model::new(graph, weights)?)
}

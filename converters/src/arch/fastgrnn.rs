//! FastGRNN (Kusupati et al., arXiv 1901.02358): one step of the cell, and a linear layer on its state.
//!
//! Tensors are named as in EdgeML: `W` and `U`, or factors `W1, W2` and `U1, U2` of low rank, `bias_gate`,
//! `bias_update`, `zeta`, `nu`; the classifier is `fc`, or `FC`. Matrices are `[outputs, inputs]` here, as
//! PyTorch's linear layers are; those of EdgeML's first releases, the other way round, are turned over.
//! `input.mean` and `input.std`, where they are, normalise each channel of the input.

use super::builder::Builder;
use super::fresh::Fresh;
use lacuna::Weight;
use lacuna::model::{Dim, Input, Op, Weights};

const MATRICES: [&str; 6] = ["W", "W1", "W2", "U", "U1", "U2"];

/// What stands before the cell's names.
fn prefix(tensors: &Weights) -> Option<String> {
    let mut cells = tensors.keys().filter_map(|n| n.strip_suffix("bias_gate"));
    match (cells.next(), cells.next()) {
        (Some(one), None) => Some(one.to_owned()),
        _ => None,
    }
}

pub(super) fn detect(tensors: &Weights) -> bool {
    prefix(tensors).is_some_and(|p| {
        ["bias_update", "zeta", "nu"]
            .iter()
            .all(|n| tensors.contains_key(&format!("{p}{n}")))
    })
}

/// The tensors in one spelling: names `rnn.*` and `fc.*`, matrices `[outputs, inputs]`, vectors of one axis.
pub(super) fn tidy(tensors: Weights) -> Result<Weights, String> {
    let prefix = prefix(&tensors).ok_or("no `bias_gate`, or more than one")?;
    let rename = |name: &str| match name.strip_prefix(&prefix) {
        Some(rest) if !rest.contains('.') => format!("rnn.{rest}"),
        _ => match name.rsplit_once("FC.").or(name.rsplit_once("fc.")) {
            Some((_, rest)) => format!("fc.{rest}"),
            None => name.to_owned(),
        },
    };
    let mut tidy: Weights = tensors.into_iter().map(|(n, w)| (rename(&n), w)).collect();
    for name in ["rnn.bias_gate", "rnn.bias_update", "rnn.zeta", "rnn.nu"] {
        if let Some(weight) = tidy.get_mut(name)
            && let [1, n] = *weight.shape()
        {
            *weight = weight.reshape(vec![n]).unwrap_or_else(|| weight.clone());
        }
    }
    let hidden = tidy["rnn.bias_gate"].numel();
    let last = ["rnn.W", "rnn.W2", "rnn.U2"];
    let shapes = last.iter().filter_map(|n| tidy.get(*n)).map(Weight::shape);
    let turned = shapes
        .filter(|s| s.len() == 2 && (s[0] == hidden) != (s[1] == hidden))
        .map(|s| s[1] == hidden)
        .next();
    if turned == Some(true) {
        for name in MATRICES {
            if let Some(weight) = tidy.get_mut(&format!("rnn.{name}")) {
                *weight = transposed(weight).ok_or_else(|| format!("`rnn.{name}` is no matrix"))?;
            }
        }
    }
    Ok(tidy)
}

fn transposed(weight: &Weight) -> Option<Weight> {
    let [rows, cols] = *weight.shape() else {
        return None;
    };
    let values = weight.to_f32()?;
    let turned: Vec<f32> = (0..rows * cols)
        .map(|i| values[i % rows * cols + i / rows])
        .collect();
    Some(Weight::from_f32(&[cols, rows], &turned))
}

pub(super) fn build(b: &mut Builder<'_>) -> Result<String, String> {
    let low = (b.has("rnn.W1"), b.has("rnn.U1"));
    let (w, u): (&[&str], &[&str]) = match low {
        (true, true) => (&["W1", "W2"], &["U1", "U2"]),
        (false, false) => (&["W"], &["U"]),
        _ => return Err("one of W and U is of low rank, the other is not".into()),
    };
    let size = |b: &Builder<'_>, part: &str, axis| b.size(&format!("rnn.{part}"), axis);
    let (inputs, hidden, classes) = (
        size(b, w[0], 1),
        size(b, "bias_gate", 0),
        b.size("fc.weight", 0),
    );
    let batch = || Dim::Symbol("N".into());
    b.takes(Input::f32("x", vec![batch(), Dim::Fixed(inputs)]));
    let state = vec![batch(), Dim::Fixed(hidden)];
    b.takes_own(Input::carried("h", state, "state"));
    let mut x = "x".to_owned();
    if b.has("input.mean") || b.has("input.std") {
        x = b.over("input.centre", Op::Sub, &[&x], &["input.mean"]);
        x = b.over("input.scale", Op::Div, &[&x], &["input.std"]);
    }
    let mut product = |mut x: String, parts: &[&str]| {
        for part in parts {
            let op = Op::MatMul { trans_b: true };
            let name = format!("rnn.{}", part.to_lowercase());
            x = b.over(&name, op, &[&x], &[&format!("rnn.{part}")]);
        }
        x
    };
    let (wx, uh) = (product(x, w), product("h".into(), u));
    let sum = b.over("rnn.sum", Op::Add, &[&wx, &uh], &[]);
    let parts = ["rnn.bias_gate", "rnn.bias_update", "rnn.zeta", "rnn.nu"];
    let next = b.over("rnn.cell", Op::FastGRNN, &[&sum, "h"], &parts);
    b.rename_output(&next, "state");
    b.linear("fc", "state");
    b.returns("state");
    let sizes = format!("fastgrnn-{inputs}-{hidden}-{classes}");
    Ok(match low.0 {
        true => format!("{sizes}-{}-{}", size(b, "W1", 0), size(b, "U1", 0)),
        false => sizes,
    })
}

/// `fastgrnn-INPUTS-HIDDEN-CLASSES`, with the ranks of W and U behind where they are low; `fastgrnn` and
/// `fastgrnn-low-rank` are those of Global MP's HAR-2.
pub(super) fn fresh(name: &str, f: &mut Fresh) -> bool {
    let sizes = match name {
        "fastgrnn" => "9-80-2",
        "fastgrnn-low-rank" => "9-80-2-9-80",
        _ => match name.strip_prefix("fastgrnn-") {
            Some(sizes) => sizes,
            None => return false,
        },
    };
    let sizes: Option<Vec<usize>> = sizes
        .split('-')
        .map(|n| n.parse().ok().filter(|n| (1..=4096).contains(n)))
        .collect();
    let Some(sizes) = sizes else {
        return false;
    };
    let (hidden, classes) = match sizes[..] {
        [inputs, hidden, classes] => {
            f.random("rnn.W", &[hidden, inputs], 0.1);
            f.random("rnn.U", &[hidden, hidden], 0.1);
            (hidden, classes)
        }
        [inputs, hidden, classes, rank_w, rank_u] => {
            f.random("rnn.W1", &[rank_w, inputs], 0.1);
            f.random("rnn.W2", &[hidden, rank_w], 0.1);
            f.random("rnn.U1", &[rank_u, hidden], 0.1);
            f.random("rnn.U2", &[hidden, rank_u], 0.1);
            (hidden, classes)
        }
        _ => return false,
    };
    for (part, size, value) in [
        ("bias_gate", hidden, 1.0),
        ("bias_update", hidden, 1.0),
        ("zeta", 1, 1.0),
        ("nu", 1, -4.0),
    ] {
        f.put(&format!("rnn.{part}"), &[size], vec![value; size]);
    }
    f.linear("fc", classes, hidden);
    true
}

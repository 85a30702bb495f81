//! Operators of encoders, from what ONNX has at every runtime. Nothing is kept between runs of such a model: positions
//! start at 0 and attention is over the tokens of the run.

use super::build::Builder;
use super::nodes::{int, ints};
use lacuna::model::Node;

/// The numbers of `TensorProto.DataType`.
const FLOAT: i64 = 1;
const BOOL: i64 = 9;

/// `x [N,T,D]` plus the first `T` rows of a table.
pub fn positions(b: &mut Builder<'_>, node: &Node) {
    let (x, table) = (node.inputs[0].clone(), node.inputs[1].clone());
    let from = b.ints(node, "from", &[0]);
    let axes = b.ints(node, "axes", &[0]);
    let to = b.inner(
        node,
        "Shape",
        vec![x.clone()],
        vec![int("start", 1), int("end", 2)],
    );
    let rows = b.inner(node, "Slice", vec![table, from, to, axes], vec![]);
    b.last(node, "Add", vec![x, rows], vec![]);
}

/// Attention in both directions, as many key heads as query heads; keys whose mask is 0 are not attended, and a query
/// without keys gives zeros.
pub fn attention(b: &mut Builder<'_>, node: &Node, heads: usize, scale: f32) {
    let split = b.ints(node, "split", &[0, 0, heads as i64, -1]);
    let part = |b: &mut Builder<'_>, i: usize, perm: [usize; 4]| {
        let from = vec![node.inputs[i].clone(), split.clone()];
        let parted = b.inner(node, "Reshape", from, vec![]);
        b.inner(node, "Transpose", vec![parted], vec![ints("perm", perm)])
    };
    let q = part(b, 0, [0, 2, 1, 3]);
    let k = part(b, 1, [0, 2, 3, 1]);
    let v = part(b, 2, [0, 2, 1, 3]);
    let factor = b.scalar(node, "scale", scale);
    let scores = b.inner(node, "MatMul", vec![q, k], vec![]);
    let mut scores = b.inner(node, "Mul", vec![scores, factor], vec![]);
    let mask = node.inputs.get(3).filter(|m| !m.is_empty()).cloned();
    let seen = mask.map(|mask| {
        let axes = b.ints(node, "keys", &[1, 2]);
        let seen = b.inner(node, "Cast", vec![mask], vec![int("to", BOOL)]);
        b.inner(node, "Unsqueeze", vec![seen, axes], vec![])
    });
    if let Some(seen) = &seen {
        let hidden = b.scalar(node, "hidden", -1e30);
        scores = b.inner(node, "Where", vec![seen.clone(), scores, hidden], vec![]);
    }
    let mut shares = b.inner(node, "Softmax", vec![scores], vec![int("axis", -1)]);
    if let Some(seen) = seen {
        let none = b.scalar(node, "none", 0.0);
        shares = b.inner(node, "Where", vec![seen, shares, none], vec![]);
    }
    let y = b.inner(node, "MatMul", vec![shares, v], vec![]);
    let y = b.inner(node, "Transpose", vec![y], vec![ints("perm", [0, 2, 1, 3])]);
    let join = b.ints(node, "join", &[0, 0, -1]);
    b.last(node, "Reshape", vec![y, join], vec![]);
}

/// The mean of the tokens whose mask is not 0; zeros where there is none.
pub fn masked_mean(b: &mut Builder<'_>, node: &Node) {
    let (x, mask) = (node.inputs[0].clone(), node.inputs[1].clone());
    let (token, width) = (b.ints(node, "token", &[1]), b.ints(node, "width", &[2]));
    let seen = b.inner(node, "Cast", vec![mask], vec![int("to", BOOL)]);
    let seen = b.inner(node, "Cast", vec![seen], vec![int("to", FLOAT)]);
    let seen = b.inner(node, "Unsqueeze", vec![seen, width], vec![]);
    let kept = b.inner(node, "Mul", vec![x, seen.clone()], vec![]);
    let sum = |b: &mut Builder<'_>, of: String| {
        let from = vec![of, token.clone()];
        b.inner(node, "ReduceSum", from, vec![int("keepdims", 0)])
    };
    let (kept, count) = (sum(b, kept), sum(b, seen));
    let one = b.scalar(node, "one", 1.0);
    let count = b.inner(node, "Max", vec![count, one], vec![]);
    b.last(node, "Div", vec![kept, count], vec![]);
}

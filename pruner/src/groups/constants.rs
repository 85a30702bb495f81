//! What removed channels would be, had their weights been zeroed instead: the same number everywhere, or unknown.

use super::Role;
use super::cut::Cutter;
use super::maps::{Origin, Run, origins, wrapped};
use super::sets::Axis;
use lacuna::model::{Dim, Node, Op, PadMode, Padding};
use std::collections::HashMap;
use std::sync::Arc;

/// The constant of each index of an axis; NaN where it is none, or unknown.
type Line = Arc<[f32]>;

/// The constants of removed channels, by value and axis. An axis without removed channels has none.
#[derive(Debug, Default)]
pub(super) struct Constants<'m> {
    values: HashMap<&'m str, Vec<Option<Line>>>,
}

/// Removed channels that a node sums over, with constants that are not zero.
#[derive(Debug)]
pub(super) struct Read {
    /// The node's place in the graph.
    pub node: usize,
    /// Index of its input's axis and constant, NaN where it is unknown.
    pub channels: Vec<(usize, f32)>,
    /// Whether the sum of them is one number for each output channel.
    pub exact: bool,
}

impl<'m> Constants<'m> {
    /// Goes through the graph. `kept_shift` says of which removed channels shifts stay.
    pub fn of(
        cutter: &Cutter<'_, 'm>,
        kept_shift: &dyn Fn(u32) -> bool,
    ) -> (Constants<'m>, Vec<Read>) {
        let mut walk = Walk {
            cutter,
            kept_shift,
            known: Constants::default(),
        };
        let mut reads = Vec::new();
        for (at, node) in cutter.groups.model().graph().nodes.iter().enumerate() {
            if let Some((channels, exact)) = walk.reads(node) {
                reads.push(Read {
                    node: at,
                    channels,
                    exact,
                });
            }
            let lines = walk.node(node);
            walk.known.values.insert(&node.output, lines);
        }
        (walk.known, reads)
    }
}

struct Walk<'a, 'm> {
    cutter: &'a Cutter<'a, 'm>,
    kept_shift: &'a dyn Fn(u32) -> bool,
    known: Constants<'m>,
}

fn exactly_zero(c: f32) -> f32 {
    if c == 0.0 { 0.0 } else { f32::NAN }
}

impl<'m> Walk<'_, 'm> {
    /// The constants along an axis of an input; none where no channel of it goes.
    fn line(&self, name: &str, axis: usize) -> Option<Line> {
        if let Some(lines) = self.known.values.get(name) {
            return lines.get(axis).cloned().flatten();
        }
        let axes = self.cutter.groups.coupling.weight_axes(name);
        let Some(Axis::Ids(ids)) = axes.get(axis) else {
            return None;
        };
        if !ids.iter().any(|&id| self.cutter.is_gone(id)) {
            return None;
        }
        let weight = self.cutter.groups.model().weights().get(name)?;
        let role = self.cutter.role(name, axis);
        // Large matrices are read only where their values matter.
        let values = match role {
            Role::Output | Role::Scale => Vec::new(),
            _ => weight.to_f32().unwrap_or_default(),
        };
        let inner: usize = weight.shape()[axis + 1..].iter().product::<usize>().max(1);
        let mut line = vec![f32::NAN; ids.len()];
        for (i, &id) in ids
            .iter()
            .enumerate()
            .filter(|(_, id)| self.cutter.is_gone(**id))
        {
            line[i] = match role {
                Role::Output | Role::Scale => 0.0,
                Role::Shift if !(self.kept_shift)(id) => 0.0,
                _ => {
                    let runs = values.chunks(inner).skip(i).step_by(ids.len());
                    let mut own = runs.flatten();
                    match own.next() {
                        Some(&first) if own.all(|&v| v == first) => first,
                        _ => f32::NAN,
                    }
                }
            };
        }
        Some(line.into())
    }

    /// The one number that a weight holds along the axes that `axis` does not name; NaN of anything else.
    fn uniform(&self, name: &str) -> f32 {
        let weight = self.cutter.groups.model().weights().get(name);
        match weight.filter(|w| w.numel() == 1).and_then(|w| w.to_f32()) {
            Some(values) => values.first().copied().unwrap_or(f32::NAN),
            None => f32::NAN,
        }
    }

    fn shape(&self, name: &str) -> &[Dim] {
        let shape = self.cutter.groups.coupling.shapes.get(name);
        shape.map_or(&[], Vec::as_slice)
    }

    /// The lines of every axis of an input.
    fn lines(&self, name: &str) -> Vec<Option<Line>> {
        (0..self.shape(name).len())
            .map(|a| self.line(name, a))
            .collect()
    }

    /// Whether index `i` of an axis of a value goes.
    fn gone(&self, name: &str, axis: usize) -> Option<Vec<bool>> {
        match self.cutter.groups.axes(name).get(axis) {
            Some(Axis::Ids(ids)) => {
                let gone: Vec<bool> = ids.iter().map(|&id| self.cutter.is_gone(id)).collect();
                gone.contains(&true).then_some(gone)
            }
            _ => None,
        }
    }

    fn map(&self, name: &str, f: impl Fn(f32) -> f32) -> Vec<Option<Line>> {
        let lines = self.lines(name).into_iter();
        lines
            .map(|line| line.map(|line| line.iter().map(|&c| f(c)).collect()))
            .collect()
    }

    /// The axes of the result of arithmetic with broadcast.
    fn broadcast(&self, node: &Node, f: impl Fn(f32, f32) -> f32) -> Vec<Option<Line>> {
        let rank = self.shape(&node.output).len();
        let at = |input: usize, axis: usize, n: usize| -> Vec<f32> {
            let name = &node.inputs[input];
            let shape = self.shape(name);
            let own = (axis + shape.len()).checked_sub(rank);
            match own.filter(|&a| shape.get(a) != Some(&Dim::Fixed(1)) || n == 1) {
                Some(own) => match self.line(name, own) {
                    Some(line) if line.len() == n => line.to_vec(),
                    _ => vec![f32::NAN; n],
                },
                None => vec![self.uniform(name); n],
            }
        };
        (0..rank)
            .map(|axis| {
                let gone = self.gone_of_output(node, axis)?;
                let (a, b) = (at(0, axis, gone.len()), at(1, axis, gone.len()));
                Some(a.into_iter().zip(b).map(|(a, b)| f(a, b)).collect())
            })
            .collect()
    }

    fn gone_of_output(&self, node: &Node, axis: usize) -> Option<Vec<bool>> {
        self.gone(&node.output, axis)
    }

    /// Channels that a vector gives: `vector` where there is one, zeros else.
    fn shifted(&self, node: &Node, axis: usize, vector: usize) -> Option<Line> {
        let gone = self.gone_of_output(node, axis)?;
        let name = node.inputs.get(vector).filter(|n| !n.is_empty());
        Some(match name {
            None => gone
                .iter()
                .map(|&g| if g { 0.0 } else { f32::NAN })
                .collect(),
            Some(name) => match self.line(name, 0) {
                Some(line) => line,
                None => vec![f32::NAN; gone.len()].into(),
            },
        })
    }

    fn picture(&self, node: &Node, f: impl Fn(f32) -> f32) -> Vec<Option<Line>> {
        let mut lines = self.map(&node.inputs[0], f);
        lines.iter_mut().skip(2).for_each(|l| *l = None);
        lines
    }

    /// The constants of what a node computes.
    fn node(&self, node: &'m Node) -> Vec<Option<Line>> {
        let x = node.inputs.first().map_or("", String::as_str);
        match &node.op {
            Op::Relu => self.map(x, |c| c.max(0.0) + c * 0.0),
            Op::LeakyRelu { alpha } => self.map(x, |c| if c > 0.0 { c } else { alpha * c }),
            Op::Clip { min, max } => self.map(x, |c| {
                let low = min.map_or(c, |m| if c < m { m } else { c });
                max.map_or(low, |m| if low > m { m } else { low })
            }),
            Op::HardSigmoid { alpha, beta } => self.map(x, |c| {
                let y = alpha * c + beta;
                if y.is_nan() { y } else { y.clamp(0.0, 1.0) }
            }),
            Op::HardSwish => self.map(x, |c| {
                let gate = c / 6.0 + 0.5;
                if gate.is_nan() {
                    gate
                } else {
                    c * gate.clamp(0.0, 1.0)
                }
            }),
            Op::Sigmoid => self.map(x, sigmoid),
            Op::Tanh => self.map(x, f32::tanh),
            Op::Swish { alpha } => self.map(x, |c| c * sigmoid(alpha * c)),
            Op::Erf | Op::Gelu { .. } | Op::LpNormalization { .. } | Op::RotaryEmbedding { .. } => {
                self.map(x, exactly_zero)
            }
            Op::Conv { .. } | Op::ConvTranspose { .. } => {
                let mut lines = vec![None; 4];
                lines[1] = self.shifted(node, 1, 2);
                lines
            }
            Op::BatchNormalization { .. } | Op::InstanceNormalization { .. } => {
                let mut lines = vec![None; self.shape(x).len()];
                if lines.len() > 1 {
                    lines[1] = self.shifted(node, 1, 2);
                }
                lines
            }
            Op::MaxPool(_) | Op::GlobalAveragePool | Op::Resize { .. } => self.picture(node, |c| c),
            Op::AveragePool {
                window,
                count_include_pad,
            } => match *count_include_pad && !unpadded(window.padding, window.kernel) {
                true => self.picture(node, exactly_zero),
                false => self.picture(node, |c| c),
            },
            Op::Gemm { beta, .. } => {
                let product = self.product(node);
                match node.inputs.get(2).filter(|n| !n.is_empty()) {
                    None => product,
                    Some(c) => (0..2)
                        .map(|axis| {
                            let gone = self.gone_of_output(node, axis)?;
                            let rank = self.shape(c).len();
                            let own = (axis + rank).checked_sub(2);
                            let whole =
                                own.filter(|&a| self.shape(c).get(a) != Some(&Dim::Fixed(1)));
                            let add: Vec<f32> = match whole.and_then(|a| self.line(c, a)) {
                                Some(line) => line.to_vec(),
                                None => vec![self.uniform(c); gone.len()],
                            };
                            let product = product[axis].as_ref()?;
                            Some(product.iter().zip(add).map(|(p, c)| p + beta * c).collect())
                        })
                        .collect(),
                }
            }
            Op::MatMul { .. } => self.product(node),
            Op::Add => self.broadcast(node, |a, b| a + b),
            Op::Sub => self.broadcast(node, |a, b| a - b),
            Op::Mul => self.broadcast(node, |a, b| if a == 0.0 || b == 0.0 { 0.0 } else { a * b }),
            Op::Div => self.broadcast(node, |a, b| match (a == 0.0, b == 0.0) {
                (true, false) => 0.0,
                (_, true) => f32::NAN,
                _ => a / b,
            }),
            Op::PRelu => self.broadcast(node, |x, slope| if x >= 0.0 { x } else { x * slope }),
            Op::Concat { .. }
            | Op::Pad { .. }
            | Op::Slice { .. }
            | Op::Reshape { .. }
            | Op::Flatten { .. }
            | Op::Transpose { .. }
            | Op::Squeeze { .. }
            | Op::Unsqueeze { .. }
            | Op::Identity => self.moved(node),
            Op::ReduceMean { axes, keepdims } => {
                let lines = self.lines(x);
                let rank = lines.len();
                let reduced =
                    |a: usize| axes.is_empty() || axes.iter().any(|&r| wrapped(r, rank) == Some(a));
                let kept = lines
                    .into_iter()
                    .enumerate()
                    .filter(|(a, _)| *keepdims || !reduced(*a));
                kept.map(|(a, line)| line.filter(|_| !reduced(a))).collect()
            }
            Op::Softmax { .. } | Op::FastGRNN => self.map(x, |_| f32::NAN),
            Op::Gather { axis } => {
                let lines = self.lines(x);
                let Some(axis) = wrapped(*axis, lines.len()) else {
                    return Vec::new();
                };
                let mut out = lines[..axis].to_vec();
                let indices = node.inputs.get(1).map_or(0, |n| self.shape(n).len());
                out.extend(vec![None; indices]);
                out.extend_from_slice(&lines[axis + 1..]);
                out
            }
            Op::RMSNormalization { .. } => self.map(x, exactly_zero),
            Op::LayerNormalization { .. } => self.map(x, |_| f32::NAN),
            Op::PositionEmbedding => {
                let mut lines = self.lines(x);
                if let Some(line) = lines.get_mut(2) {
                    let table = node.inputs.get(1).and_then(|t| self.line(t, 1));
                    *line = line
                        .take()
                        .zip(table)
                        .map(|(a, b)| a.iter().zip(&*b).map(|(a, b)| a + b).collect());
                }
                lines
            }
            Op::Attention {
                heads, kv_heads, ..
            } => {
                let values = node.inputs.get(2).and_then(|v| self.line(v, 2));
                let repeated = values.map(|v| {
                    let head = (v.len() / kv_heads.max(&1)).max(1);
                    let shared = heads / kv_heads.max(&1);
                    let heads = v.chunks(head).flat_map(|h| std::iter::repeat_n(h, shared));
                    heads.flatten().copied().collect()
                });
                vec![None, None, repeated]
            }
            Op::MaskedMean => {
                let mut lines = self.map(x, exactly_zero);
                if lines.len() > 1 {
                    lines.remove(1);
                }
                lines
            }
        }
    }

    /// A row or column of zeros gives zeros.
    fn product(&self, node: &Node) -> Vec<Option<Line>> {
        let rank = self.shape(&node.output).len();
        let (a, b) = (&node.inputs[0], &node.inputs[1]);
        let (ra, rb) = (self.shape(a).len(), self.shape(b).len());
        let (row, column) = match node.op {
            Op::Gemm {
                trans_a, trans_b, ..
            } => (usize::from(trans_a), usize::from(!trans_b)),
            Op::MatMul { trans_b } if rb > 1 => {
                (ra.wrapping_sub(2), if trans_b { rb - 2 } else { rb - 1 })
            }
            _ => (ra.wrapping_sub(2), usize::MAX),
        };
        let zeros =
            |line: Option<Line>| line.map(|l| l.iter().map(|&c| exactly_zero(c)).collect::<Line>());
        (0..rank)
            .map(|axis| {
                let gone = self.gone_of_output(node, axis)?;
                let columns = column != usize::MAX && axis + 1 == rank;
                let rows = ra > 1 && axis + 1 + usize::from(column != usize::MAX) == rank;
                let line = if columns {
                    zeros(self.line(b, column))
                } else if rows {
                    zeros(self.line(a, row))
                } else {
                    // Leading axes of both.
                    let at = |name: &str, own: usize| {
                        let behind = rank - axis;
                        own.checked_sub(behind)
                            .and_then(|a| zeros(self.line(name, a)))
                    };
                    at(a, ra).or(at(b, rb))
                };
                Some(line.unwrap_or_else(|| vec![f32::NAN; gone.len()].into()))
            })
            .collect()
    }

    fn moved(&self, node: &Node) -> Vec<Option<Line>> {
        let views: Vec<&[Dim]> = node.inputs.iter().map(|n| self.shape(n)).collect();
        let Some(list) = origins(&node.op, &views, self.shape(&node.output)) else {
            return Vec::new();
        };
        let one = |(axis, origin): (usize, &Origin)| {
            let gone = self.gone_of_output(node, axis)?;
            let unknown = || -> Line { vec![f32::NAN; gone.len()].into() };
            let x = &node.inputs[0];
            Some(match origin {
                Origin::Fixed => unknown(),
                Origin::Same { axis } => {
                    let mut lines = node.inputs.iter().map(|n| self.line(n, *axis));
                    let first = lines.next().flatten().unwrap_or_else(unknown);
                    lines.fold(first, |a, b| match b {
                        Some(b) if b.len() == a.len() => {
                            let same = |(&a, &b): (&f32, &f32)| if a == b { a } else { f32::NAN };
                            a.iter().zip(b.iter()).map(same).collect()
                        }
                        _ => unknown(),
                    })
                }
                Origin::Runs(runs) => {
                    let mut line = Vec::with_capacity(gone.len());
                    for run in runs {
                        match run {
                            Run::Copy {
                                input,
                                axis,
                                start,
                                len,
                            } => match self.line(&node.inputs[*input], *axis) {
                                Some(own) => line.extend(own.iter().skip(*start).take(*len)),
                                None => line.resize(line.len() + len, f32::NAN),
                            },
                            Run::Fill { len } => {
                                let fill = match node.op {
                                    Op::Pad {
                                        mode: PadMode::Constant(value),
                                        ..
                                    } => value,
                                    _ => f32::NAN,
                                };
                                line.resize(line.len() + len, fill);
                            }
                        }
                    }
                    // Places behind the edge of another axis hold the fill too.
                    self.filled(node, axis, line).into()
                }
                Origin::Rows { axis, inner } => match self.line(x, *axis) {
                    Some(line) => line
                        .chunks((*inner).max(1))
                        .map(|c| {
                            if c.iter().all(|v| *v == c[0]) {
                                c[0]
                            } else {
                                f32::NAN
                            }
                        })
                        .collect(),
                    None => unknown(),
                },
                Origin::Merged(factors) => {
                    let mut cut = factors
                        .iter()
                        .filter_map(|f| Some((self.line(x, f.axis)?, f.size?, f.inner?)));
                    match cut.next() {
                        Some((line, n, inner)) => (0..gone.len())
                            .map(|i| line[i / inner.max(1) % n.max(1)])
                            .collect(),
                        None => unknown(),
                    }
                }
            })
        };
        let mut lines: Vec<Option<Line>> = list.iter().enumerate().map(one).collect();
        if let Op::Pad { .. } = node.op {
            for (axis, line) in lines.iter_mut().enumerate() {
                if let (Some(own), Origin::Same { .. }) = (line.as_mut(), &list[axis]) {
                    *own = self.filled(node, axis, own.to_vec()).into();
                }
            }
        }
        lines
    }

    /// Constants along `axis` of what a `Pad` gives: only those equal to the fill stay where another axis grows.
    fn filled(&self, node: &Node, axis: usize, mut line: Vec<f32>) -> Vec<f32> {
        let Op::Pad { pads, mode } = &node.op else {
            return line;
        };
        let rank = pads.len() / 2;
        let elsewhere = (0..rank).any(|a| a != axis && (pads[a] > 0 || pads[a + rank] > 0));
        if let (true, PadMode::Constant(fill)) = (elsewhere, mode) {
            line.iter_mut()
                .filter(|c| **c != *fill)
                .for_each(|c| *c = f32::NAN);
        }
        line
    }

    /// The removed channels that a node sums over, where they are not zero.
    fn reads(&self, node: &Node) -> Option<(Vec<(usize, f32)>, bool)> {
        let of = |name: &str, axis: usize| -> Vec<(usize, f32)> {
            let Some(gone) = self.gone(name, axis) else {
                return Vec::new();
            };
            let unknown = || vec![f32::NAN; gone.len()].into();
            let line = self.line(name, axis).unwrap_or_else(unknown);
            let both = gone.iter().zip(line.iter()).enumerate();
            both.filter(|(_, (gone, c))| **gone && **c != 0.0)
                .map(|(i, (_, &c))| (i, c))
                .collect()
        };
        let x = node.inputs.first()?;
        let weight = |i: usize| {
            self.cutter
                .groups
                .model()
                .weights()
                .contains_key(&node.inputs[i])
        };
        let (channels, exact) = match &node.op {
            Op::Conv {
                groups: 1, padding, ..
            } => {
                let shape = self.shape(&node.inputs[1]);
                let size = |a: usize| match shape.get(a) {
                    Some(Dim::Fixed(n)) => *n,
                    _ => 0,
                };
                let flat = unpadded(*padding, [size(2), size(3)]);
                (of(x, 1), flat && weight(1))
            }
            // Places of the output are reached by unequal parts of the kernel.
            Op::ConvTranspose { groups: 1, .. } => (of(x, 1), false),
            Op::Gemm { trans_a, alpha, .. } => {
                let channels = of(x, usize::from(!trans_a));
                (channels, weight(1) && alpha.is_finite())
            }
            Op::MatMul { trans_b } => {
                let (ra, rb) = (self.shape(x).len(), self.shape(&node.inputs[1]).len());
                let mut channels = of(x, ra.checked_sub(1)?);
                let other = match (rb, trans_b) {
                    (0 | 1, _) => 0,
                    (_, true) => rb - 1,
                    (_, false) => rb - 2,
                };
                // A zero on either side is enough.
                if !weight(1)
                    && let Some(line) = self.line(&node.inputs[1], other)
                {
                    channels.retain(|(i, _)| line.get(*i) != Some(&0.0));
                }
                (channels, weight(1) && rb == 2 && ra > 1)
            }
            Op::LpNormalization { axis } => {
                let axis = wrapped(*axis, self.shape(x).len())?;
                (of(x, axis), false)
            }
            _ => return None,
        };
        let known = channels.iter().all(|(_, c)| c.is_finite());
        (!channels.is_empty()).then_some((channels, exact && known))
    }
}

/// Whether no window reaches beyond the input.
fn unpadded(padding: Padding, kernel: [usize; 2]) -> bool {
    match padding {
        Padding::Explicit(pads) => pads == [0; 4],
        Padding::SameUpper | Padding::SameLower => kernel == [1, 1],
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

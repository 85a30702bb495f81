//! What each operator says about channels: which of its inputs and outputs go together.

use super::maps::{Origin, Run, lost, origins, wrapped};
use super::sets::{Axis, Id, Sets};
use super::{Reason, Role};
use lacuna::Model;
use lacuna::model::{Dim, Node, Op, Shapes};
use std::collections::HashMap;
use std::sync::Arc;

/// An axis of a weight whose indices are elementary channels.
#[derive(Clone, Debug)]
pub(super) struct WeightAxis<'m> {
    pub weight: &'m str,
    pub axis: usize,
    pub role: Role,
    pub ids: Arc<[Id]>,
}

/// The channels of every value of a graph, and which go together.
#[derive(Debug)]
pub(super) struct Coupling<'m> {
    pub model: &'m Model,
    pub shapes: Shapes,
    pub sets: Sets,
    /// The axes of every computed value.
    pub values: HashMap<&'m str, Vec<Axis>>,
    /// Axes of weights, in the order of the graph.
    pub weights: Vec<WeightAxis<'m>>,
    at: HashMap<(&'m str, usize), usize>,
    uncut: u32,
}

impl<'m> Coupling<'m> {
    /// Goes through the graph once.
    pub fn of(model: &'m Model, shapes: Shapes) -> Coupling<'m> {
        let mut sets = Sets::default();
        let uncut = sets.reason(Reason::Fixed);
        let mut c = Coupling {
            model,
            shapes,
            sets,
            values: HashMap::new(),
            weights: Vec::new(),
            at: HashMap::new(),
            uncut,
        };
        for input in &model.graph().inputs {
            let reason = c.sets.reason(Reason::Input(input.name.clone()));
            let axes = vec![Axis::Fixed(reason); input.shape.len()];
            c.values.insert(&input.name, axes);
        }
        for node in &model.graph().nodes {
            let axes = c.node(node);
            c.values.insert(&node.output, axes);
        }
        for output in &model.graph().outputs {
            let reason = c.sets.reason(Reason::Output(output.clone()));
            for axis in c.values.get(output.as_str()).cloned().unwrap_or_default() {
                c.sets.block_axis(&axis, reason);
            }
        }
        c
    }

    /// The axis of a weight, whose indices become channels at its first use.
    fn weight_axis(&mut self, weight: &'m str, axis: usize, role: Role) -> Axis {
        let fixed = Axis::Fixed(self.uncut);
        let Some(&n) = self
            .model
            .weights()
            .get(weight)
            .and_then(|w| w.shape().get(axis))
        else {
            return fixed;
        };
        let at = *self.at.entry((weight, axis)).or_insert_with(|| {
            self.weights.push(WeightAxis {
                weight,
                axis,
                role,
                ids: self.sets.fresh(n),
            });
            self.weights.len() - 1
        });
        let known = &mut self.weights[at];
        known.role = known.role.max(role);
        Axis::Ids(known.ids.clone())
    }

    /// The axes of a weight; those without channels are fixed.
    pub fn weight_axes(&self, weight: &str) -> Vec<Axis> {
        let rank = self
            .model
            .weights()
            .get(weight)
            .map_or(0, |w| w.shape().len());
        (0..rank)
            .map(|axis| match self.at.get(&(weight, axis)) {
                Some(&at) => Axis::Ids(self.weights[at].ids.clone()),
                None => Axis::Fixed(self.uncut),
            })
            .collect()
    }

    /// One axis of an input; `role` is what it is to a weight.
    fn axis(&mut self, node: &'m Node, input: usize, axis: usize, role: Role) -> Axis {
        let Some(name) = node.inputs.get(input).filter(|n| !n.is_empty()) else {
            return Axis::Fixed(self.uncut);
        };
        match self.values.get(name.as_str()) {
            Some(axes) => axes.get(axis).cloned().unwrap_or(Axis::Fixed(self.uncut)),
            None => self.weight_axis(name, axis, role),
        }
    }

    /// Every axis of an input.
    fn axes(&mut self, node: &'m Node, input: usize, role: Role) -> Vec<Axis> {
        let rank = self.rank(node, input);
        (0..rank).map(|a| self.axis(node, input, a, role)).collect()
    }

    fn rank(&self, node: &Node, input: usize) -> usize {
        let name = node.inputs.get(input);
        let shape = name.and_then(|n| self.shapes.get(n));
        shape.map_or(0, Vec::len)
    }

    fn why(&mut self, node: &Node, what: &'static str) -> u32 {
        self.sets.reason(Reason::Node {
            node: node.name.clone(),
            op: node.op.name(),
            what,
        })
    }

    fn block(&mut self, axis: &Axis, node: &Node, what: &'static str) {
        if let Axis::Ids(_) = axis {
            let why = self.why(node, what);
            self.sets.block_axis(axis, why);
        }
    }

    /// The first two axes of a picture; the others are places.
    fn picture(&mut self, node: &'m Node) -> Vec<Axis> {
        let mut axes = self.axes(node, 0, Role::Other);
        for axis in axes.iter_mut().skip(2) {
            self.block(axis, node, "works over them as over places");
            *axis = Axis::Fixed(self.uncut);
        }
        axes
    }

    /// Channels of axis `axis` of `x` and of vectors by their inputs.
    fn vectors(&mut self, node: &'m Node, axis: &Axis, roles: &[(usize, Role)]) {
        for &(input, role) in roles {
            if node.inputs.get(input).is_some_and(|n| !n.is_empty()) {
                let vector = self.axis(node, input, 0, role);
                self.sets.join_axes(axis, &vector);
            }
        }
    }

    /// Two values of which each axis of size 1 fits any size.
    fn broadcast(
        &mut self,
        node: &'m Node,
        a: (&[Axis], &[Dim]),
        b: (&[Axis], &[Dim]),
    ) -> Vec<Axis> {
        let rank = a.0.len().max(b.0.len());
        let at = |side: (&[Axis], &[Dim]), i: usize| {
            let own = (i + side.0.len()).checked_sub(rank)?;
            Some((side.0[own].clone(), side.1.get(own) == Some(&Dim::Fixed(1))))
        };
        let mut axes = Vec::with_capacity(rank);
        for i in 0..rank {
            axes.push(match (at(a, i), at(b, i)) {
                (Some((x, false)), Some((y, false))) | (Some((x, true)), Some((y, true))) => {
                    self.sets.join_axes(&x, &y);
                    if matches!(x, Axis::Ids(_)) { x } else { y }
                }
                (Some((one, true)), Some((many, false)))
                | (Some((many, false)), Some((one, true))) => {
                    self.block(&one, node, "spreads it over an axis");
                    many
                }
                (Some((x, _)), None) | (None, Some((x, _))) => x,
                (None, None) => Axis::Fixed(self.uncut),
            });
        }
        axes
    }

    fn shape(&self, name: &str) -> Vec<Dim> {
        self.shapes.get(name).cloned().unwrap_or_default()
    }

    fn arithmetic(&mut self, node: &'m Node, roles: [Role; 2]) -> Vec<Axis> {
        let (a, b) = (self.axes(node, 0, roles[0]), self.axes(node, 1, roles[1]));
        let (x, y) = (self.shape(&node.inputs[0]), self.shape(&node.inputs[1]));
        self.broadcast(node, (&a, &x), (&b, &y))
    }

    /// The axes of the output of a node.
    fn node(&mut self, node: &'m Node) -> Vec<Axis> {
        match &node.op {
            Op::Relu
            | Op::LeakyRelu { .. }
            | Op::Clip { .. }
            | Op::HardSigmoid { .. }
            | Op::HardSwish
            | Op::Sigmoid
            | Op::Tanh
            | Op::Erf
            | Op::Swish { .. }
            | Op::Gelu { .. } => self.axes(node, 0, Role::Other),
            Op::Conv { groups, .. } => self.conv(node, *groups),
            Op::ConvTranspose { groups, .. } => self.conv_transpose(node, *groups),
            Op::BatchNormalization { .. } => {
                let axes = self.axes(node, 0, Role::Other);
                let roles = [Role::Scale, Role::Shift, Role::Statistic, Role::Statistic];
                let vectors: Vec<(usize, Role)> = (1..).zip(roles).collect();
                if let Some(channels) = axes.get(1).cloned() {
                    self.vectors(node, &channels, &vectors);
                }
                axes
            }
            Op::InstanceNormalization { .. } => {
                let axes = self.picture(node);
                if let Some(channels) = axes.get(1).cloned() {
                    self.vectors(node, &channels, &[(1, Role::Scale), (2, Role::Shift)]);
                }
                axes
            }
            Op::MaxPool(_) | Op::AveragePool { .. } | Op::GlobalAveragePool | Op::Resize { .. } => {
                self.picture(node)
            }
            Op::Gemm {
                trans_a, trans_b, ..
            } => self.gemm(node, *trans_a, *trans_b),
            Op::MatMul { trans_b } => self.matmul(node, *trans_b),
            Op::Add | Op::Sub => self.arithmetic(node, [Role::Shift; 2]),
            Op::Mul => self.arithmetic(node, [Role::Scale; 2]),
            Op::Div | Op::PRelu => self.arithmetic(node, [Role::Other; 2]),
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
                let x = self.axes(node, 0, Role::Other);
                let reduced = |a: usize| {
                    axes.is_empty() || axes.iter().any(|&r| wrapped(r, x.len()) == Some(a))
                };
                let mut left = Vec::new();
                for (a, axis) in x.iter().enumerate() {
                    if reduced(a) {
                        self.block(axis, node, "averages over them");
                    }
                    match (reduced(a), keepdims) {
                        (true, true) => left.push(Axis::Fixed(self.uncut)),
                        (true, false) => {}
                        (false, _) => left.push(axis.clone()),
                    }
                }
                left
            }
            Op::Softmax { axis } => {
                let axes = self.axes(node, 0, Role::Other);
                if let Some(axis) = wrapped(*axis, axes.len()).map(|a| axes[a].clone()) {
                    self.block(&axis, node, "normalises over them");
                }
                axes
            }
            // A zero more or less does not change the norm.
            Op::LpNormalization { .. } => self.axes(node, 0, Role::Other),
            Op::Gather { axis } => {
                let data = self.axes(node, 0, Role::Output);
                let Some(axis) = wrapped(*axis, data.len()) else {
                    return data;
                };
                self.block(&data[axis], node, "picks from them by index");
                let indices = self.rank(node, 1);
                let mut axes = data[..axis].to_vec();
                axes.extend(vec![Axis::Fixed(self.uncut); indices]);
                axes.extend_from_slice(&data[axis + 1..]);
                axes
            }
            Op::RMSNormalization { .. } | Op::LayerNormalization { .. } => {
                let axes = self.axes(node, 0, Role::Other);
                if let Some(last) = axes.last().cloned() {
                    self.vectors(node, &last, &[(1, Role::Scale), (2, Role::Shift)]);
                    self.block(&last, node, "normalises over them");
                }
                axes
            }
            Op::RotaryEmbedding { heads, .. } => {
                let axes = self.axes(node, 0, Role::Other);
                if let Some(Axis::Ids(ids)) = axes.get(2) {
                    self.sets.join_runs(ids, ids.len() / heads.max(&1));
                }
                axes
            }
            Op::PositionEmbedding => {
                let axes = self.axes(node, 0, Role::Other);
                let table = self.axis(node, 1, 1, Role::Output);
                if let Some(width) = axes.get(2) {
                    self.sets.join_axes(width, &table);
                }
                axes
            }
            Op::Attention {
                heads, kv_heads, ..
            } => self.attention(node, *heads, *kv_heads),
            Op::MaskedMean => {
                let mut axes = self.axes(node, 0, Role::Other);
                if axes.len() > 1 {
                    let places = axes.remove(1);
                    self.block(&places, node, "averages over them");
                }
                axes
            }
            Op::FastGRNN => {
                let axes = self.axes(node, 0, Role::Other);
                let state = self.axes(node, 1, Role::Other);
                for (a, b) in axes.iter().zip(&state) {
                    self.sets.join_axes(a, b);
                }
                if let Some(width) = axes.get(1).cloned() {
                    self.vectors(node, &width, &[(2, Role::Shift), (3, Role::Shift)]);
                    self.block(&width, node, "keeps them from step to step");
                }
                axes
            }
        }
    }

    /// Groups of a grouped convolution go whole: inputs and outputs together.
    fn conv(&mut self, node: &'m Node, groups: usize) -> Vec<Axis> {
        let mut axes = self.picture(node);
        let made = self.axis(node, 1, 0, Role::Output);
        let Some(read) = axes.get(1).cloned() else {
            return axes;
        };
        if groups == 1 {
            let weight = self.axis(node, 1, 1, Role::Input);
            self.sets.join_axes(&read, &weight);
        } else {
            match (&read, &made) {
                (Axis::Ids(x), Axis::Ids(y)) => {
                    let (inputs, outputs) = (x.len() / groups, y.len() / groups);
                    self.sets.join_runs(x, inputs);
                    self.sets.join_runs(y, outputs);
                    for (x, y) in x.chunks(inputs.max(1)).zip(y.chunks(outputs.max(1))) {
                        self.sets.join(x[0], y[0]);
                    }
                }
                (Axis::Fixed(why), other) | (other, Axis::Fixed(why)) => {
                    self.sets.block_axis(other, *why);
                }
            }
        }
        self.vectors(node, &made, &[(2, Role::Shift)]);
        axes[1] = made;
        axes
    }

    /// The weight's first axis reads, its second makes. Groups go whole, as those of a convolution.
    fn conv_transpose(&mut self, node: &'m Node, groups: usize) -> Vec<Axis> {
        let mut axes = self.picture(node);
        let Some(read) = axes.get(1).cloned() else {
            return axes;
        };
        let role = if groups == 1 {
            Role::Input
        } else {
            Role::Output
        };
        let own = self.axis(node, 1, 0, role);
        self.sets.join_axes(&read, &own);
        let made = match (groups, self.shape(&node.output).get(1)) {
            (1, _) => self.axis(node, 1, 1, Role::Output),
            (_, Some(Dim::Fixed(n))) => {
                let made = self.sets.fresh(*n);
                match &read {
                    Axis::Ids(x) => {
                        let (inputs, outputs) = (x.len() / groups, made.len() / groups);
                        self.sets.join_runs(x, inputs);
                        self.sets.join_runs(&made, outputs);
                        for (x, y) in x.chunks(inputs.max(1)).zip(made.chunks(outputs.max(1))) {
                            self.sets.join(x[0], y[0]);
                        }
                        Axis::Ids(made)
                    }
                    Axis::Fixed(why) => Axis::Fixed(*why),
                }
            }
            _ => Axis::Fixed(self.uncut),
        };
        self.vectors(node, &made, &[(2, Role::Shift)]);
        axes[1] = made;
        axes
    }

    fn gemm(&mut self, node: &'m Node, trans_a: bool, trans_b: bool) -> Vec<Axis> {
        let (m, k) = if trans_a { (1, 0) } else { (0, 1) };
        let (n, depth) = if trans_b { (0, 1) } else { (1, 0) };
        let a = [
            self.axis(node, 0, m, Role::Output),
            self.axis(node, 0, k, Role::Input),
        ];
        let b = [
            self.axis(node, 1, n, Role::Output),
            self.axis(node, 1, depth, Role::Input),
        ];
        self.sets.join_axes(&a[1], &b[1]);
        let [rows, _] = a;
        let [columns, _] = b;
        let out = vec![rows, columns];
        if node.inputs.get(2).is_some_and(|n| !n.is_empty()) {
            let c = self.axes(node, 2, Role::Shift);
            let (shape, own) = (self.shape(&node.output), self.shape(&node.inputs[2]));
            return self.broadcast(node, (&out, &shape), (&c, &own));
        }
        out
    }

    fn matmul(&mut self, node: &'m Node, trans_b: bool) -> Vec<Axis> {
        let (ra, rb) = (self.rank(node, 0), self.rank(node, 1));
        let side = |c: &mut Self, input: usize, rank: usize, depth: usize| -> Vec<Axis> {
            let role = |a: usize| {
                if a == depth {
                    Role::Input
                } else {
                    Role::Output
                }
            };
            (0..rank).map(|a| c.axis(node, input, a, role(a))).collect()
        };
        if ra == 0 || rb == 0 {
            return Vec::new();
        }
        let depth_b = match (rb, trans_b) {
            (1, _) => 0,
            (_, true) => rb - 1,
            (_, false) => rb - 2,
        };
        let mut a = side(self, 0, ra, ra - 1);
        let mut b = side(self, 1, rb, depth_b);
        let (inner_a, inner_b) = (a.remove(ra - 1), b.remove(depth_b));
        self.sets.join_axes(&inner_a, &inner_b);
        let columns = (rb > 1).then(|| b.pop()).flatten();
        let rows = (ra > 1).then(|| a.pop()).flatten();
        let (x, y) = (self.shape(&node.inputs[0]), self.shape(&node.inputs[1]));
        let (x, y) = (&x[..a.len()], &y[..b.len()]);
        let mut out = self.broadcast(node, (&a, x), (&b, y));
        out.extend(rows);
        out.extend(columns);
        out
    }

    /// Query heads go with the key and value head that they share.
    fn attention(&mut self, node: &'m Node, heads: usize, kv_heads: usize) -> Vec<Axis> {
        let mut axes = self.axes(node, 0, Role::Other);
        let width = |c: &mut Self, input: usize| c.axis(node, input, 2, Role::Other);
        let parts = [0, 1, 2].map(|input| width(self, input));
        let (shared, kv_heads) = (heads / kv_heads.max(1), kv_heads.max(1));
        let mut firsts: Vec<Vec<Id>> = Vec::new();
        let mut fixed = None;
        for part in &parts {
            match part {
                Axis::Ids(ids) => {
                    let run = (ids.len() / kv_heads).max(1);
                    self.sets.join_runs(ids, run);
                    firsts.push(ids.iter().step_by(run).copied().collect());
                }
                Axis::Fixed(why) => fixed = Some(*why),
            }
        }
        if let Some(why) = fixed {
            for part in &parts {
                self.sets.block_axis(part, why);
            }
        }
        for pair in firsts.windows(2) {
            for (&a, &b) in pair[0].iter().zip(&pair[1]) {
                self.sets.join(a, b);
            }
        }
        if let Some(out) = axes.get_mut(2) {
            *out = match &parts[2] {
                Axis::Ids(v) => {
                    let head = (v.len() / kv_heads).max(1);
                    let repeated = v.chunks(head).flat_map(|h| std::iter::repeat_n(h, shared));
                    Axis::Ids(repeated.flatten().copied().collect())
                }
                Axis::Fixed(why) => Axis::Fixed(*why),
            };
        }
        axes
    }

    /// Operators that only move elements.
    fn moved(&mut self, node: &'m Node) -> Vec<Axis> {
        let inputs: Vec<Vec<Axis>> = (0..node.inputs.len())
            .map(|i| self.axes(node, i, Role::Other))
            .collect();
        let shapes: Vec<Vec<Dim>> = node.inputs.iter().map(|n| self.shape(n)).collect();
        let views: Vec<&[Dim]> = shapes.iter().map(Vec::as_slice).collect();
        let output = self.shape(&node.output);
        let Some(list) = origins(&node.op, &views, &output) else {
            return vec![Axis::Fixed(self.uncut); output.len()];
        };
        // Axes that go on; the channels of the others stay.
        let mut used: Vec<Vec<bool>> = inputs.iter().map(|a| vec![false; a.len()]).collect();
        let mut axes = Vec::with_capacity(list.len());
        for origin in &list {
            axes.push(match origin {
                Origin::Fixed => Axis::Fixed(self.uncut),
                Origin::Same { axis } => {
                    for (own, used) in inputs.iter().zip(&mut used) {
                        if let Some(other) = own.get(*axis) {
                            self.sets.join_axes(&inputs[0][*axis], other);
                            used[*axis] = true;
                        }
                    }
                    let ids = inputs.iter().filter_map(|own| own.get(*axis));
                    let mut ids = ids.filter(|a| matches!(a, Axis::Ids(_)));
                    ids.next().unwrap_or(&inputs[0][*axis]).clone()
                }
                Origin::Runs(runs) => self.runs(&inputs, &mut used, runs),
                Origin::Rows { axis, inner } => {
                    used[0][*axis] = true;
                    match &inputs[0][*axis] {
                        Axis::Ids(ids) => {
                            self.sets.join_runs(ids, *inner);
                            Axis::Ids(ids.iter().step_by((*inner).max(1)).copied().collect())
                        }
                        fixed => fixed.clone(),
                    }
                }
                Origin::Merged(factors) => {
                    let own = &inputs[0];
                    let mut cut = factors.iter().filter_map(|f| match &own[f.axis] {
                        Axis::Ids(ids) => Some((f, ids, f.size?, f.inner?)),
                        Axis::Fixed(_) => None,
                    });
                    let size = axes_size(output.get(axes.len()));
                    match (cut.next(), cut.next(), size) {
                        (Some((f, ids, n, inner)), None, Some(size)) if n > 0 && inner > 0 => {
                            used[0][f.axis] = true;
                            Axis::Ids((0..size).map(|i| ids[i / inner % n]).collect())
                        }
                        _ => Axis::Fixed(self.uncut),
                    }
                }
            });
        }
        let mut why = None;
        for (own, used) in inputs.iter().zip(&used) {
            for (axis, used) in own.iter().zip(used) {
                if !used && matches!(axis, Axis::Ids(_)) {
                    let why = *why.get_or_insert_with(|| self.sets.reason(lost(node)));
                    self.sets.block_axis(axis, why);
                }
            }
        }
        axes
    }

    fn runs(&mut self, inputs: &[Vec<Axis>], used: &mut [Vec<bool>], runs: &[Run]) -> Axis {
        let mut sources = runs.iter().filter_map(|r| match r {
            Run::Copy { input, axis, .. } => Some((*input, *axis)),
            Run::Fill { .. } => None,
        });
        let fixed = sources.find_map(|(input, axis)| match &inputs[input][axis] {
            Axis::Fixed(why) => Some(*why),
            Axis::Ids(_) => None,
        });
        if let Some(why) = fixed {
            for run in runs {
                if let Run::Copy { input, axis, .. } = run {
                    self.sets.block_axis(&inputs[*input][*axis], why);
                    used[*input][*axis] = true;
                }
            }
            return Axis::Fixed(why);
        }
        let mut ids: Vec<Id> = Vec::new();
        for run in runs {
            match run {
                Run::Copy {
                    input,
                    axis,
                    start,
                    len,
                } => {
                    used[*input][*axis] = true;
                    if let Axis::Ids(own) = &inputs[*input][*axis] {
                        ids.extend(own.iter().skip(*start).take(*len));
                    }
                }
                Run::Fill { len } => {
                    ids.extend(self.sets.fresh(*len).iter());
                }
            }
        }
        Axis::Ids(ids.into())
    }
}

fn axes_size(dim: Option<&Dim>) -> Option<usize> {
    match dim {
        Some(Dim::Fixed(n)) => Some(*n),
        _ => None,
    }
}

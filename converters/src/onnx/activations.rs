//! Activations that exporters spell out, GELU and SiLU, found among the nodes of a graph.

use lacuna::model::{Node, Op, Weights};
use std::collections::HashMap;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

/// How deep a spelling is at most.
const DEPTH: usize = 6;

/// Puts one operator in the place of the last node of each spelling; the others are left to those who read them.
/// `ranks` has the axes of every value.
pub(super) fn fuse(nodes: &mut [Node], weights: &Weights, ranks: &HashMap<String, usize>) {
    let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        for input in &node.inputs {
            readers.entry(input).or_default().push(i);
        }
    }
    let graph = Spelling {
        made: nodes.iter().map(|n| (n.output.as_str(), n)).collect(),
        weights,
        ranks,
    };
    let found: Vec<(usize, Op, String)> = (nodes.iter())
        .filter_map(|node| {
            let gate = graph.gate(node)?;
            let mut inputs = Vec::new();
            graph.reached(gate.inner, DEPTH, &mut inputs);
            // Products that the gate goes into, the nearest first.
            let mut products: Vec<usize> = Vec::new();
            let mut next = vec![node.output.as_str()];
            for _ in 0..DEPTH {
                let level: Vec<usize> = (next.iter())
                    .flat_map(|n| readers.get(n).into_iter().flatten().copied())
                    .filter(|&i| matches!(nodes[i].op, Op::Mul | Op::Div))
                    .collect();
                next = level.iter().map(|&i| nodes[i].output.as_str()).collect();
                products.extend(level);
            }
            inputs.into_iter().find_map(|x| {
                let (op, factor) = graph.function(&gate, x)?;
                let root = products.iter().copied().find(|&i| {
                    let parts = graph.factors(&nodes[i].output, [x, &node.output], DEPTH);
                    parts.is_some_and(|(c, counts)| near(c, factor) && counts == [1, 1])
                })?;
                Some((root, op, x.to_owned()))
            })
        })
        .collect();
    for (root, op, x) in found {
        nodes[root].op = op;
        nodes[root].inputs = vec![x];
    }
}

/// A function of an inner value that a product is gated by.
struct Gate<'n> {
    kind: Kind,
    inner: &'n str,
}

#[derive(Clone, Copy)]
enum Kind {
    Sigmoid,
    /// `1 + erf(..)`, `1 + tanh(..)`.
    Erf,
    Tanh,
}

struct Spelling<'n> {
    made: HashMap<&'n str, &'n Node>,
    weights: &'n Weights,
    ranks: &'n HashMap<String, usize>,
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-4 * b.abs()
}

impl<'n> Spelling<'n> {
    /// A constant number that leaves the shape of what it meets.
    fn number(&self, name: &str, x: &str) -> Option<f64> {
        let weight = self.weights.get(name)?;
        let fits = weight.numel() == 1 && weight.shape().len() <= *self.ranks.get(x)?;
        let value = fits.then(|| weight.to_f32()).flatten()?;
        value.first().map(|&v| v.into())
    }

    fn gate(&self, node: &'n Node) -> Option<Gate<'n>> {
        let of = |kind, node: &'n Node| Gate {
            kind,
            inner: node.inputs[0].as_str(),
        };
        match &node.op {
            Op::Sigmoid => Some(of(Kind::Sigmoid, node)),
            Op::Add => [[0, 1], [1, 0]].into_iter().find_map(|[one, other]| {
                let inner = self.made.get(node.inputs[other].as_str())?;
                let is_one = self.number(&node.inputs[one], &inner.output)? == 1.0;
                match inner.op {
                    Op::Erf if is_one => Some(of(Kind::Erf, inner)),
                    Op::Tanh if is_one => Some(of(Kind::Tanh, inner)),
                    _ => None,
                }
            }),
            _ => None,
        }
    }

    /// The values that `name` may be a polynomial of.
    fn reached(&self, name: &'n str, depth: usize, found: &mut Vec<&'n str>) {
        if self.weights.contains_key(name) || found.contains(&name) {
            return;
        }
        found.push(name);
        if let (Some(node), 1..) = (self.made.get(name), depth)
            && matches!(node.op, Op::Add | Op::Sub | Op::Mul | Op::Div)
        {
            for input in &node.inputs {
                self.reached(input, depth - 1, found);
            }
        }
    }

    /// The coefficients of `name` as a polynomial of `x` of the third degree at most.
    fn polynomial(&self, name: &str, x: &str, depth: usize) -> Option<[f64; 4]> {
        if name == x {
            return Some([0.0, 1.0, 0.0, 0.0]);
        }
        if let Some(c) = self.number(name, x) {
            return Some([c, 0.0, 0.0, 0.0]);
        }
        let node = self.made.get(name)?;
        let depth = depth.checked_sub(1)?;
        let side = |i: usize| self.polynomial(&node.inputs[i], x, depth);
        let each = |f: &dyn Fn(f64, f64) -> f64| {
            let (a, b) = (side(0)?, side(1)?);
            Some(std::array::from_fn(|i| f(a[i], b[i])))
        };
        match node.op {
            Op::Add => each(&|a, b| a + b),
            Op::Sub => each(&|a, b| a - b),
            Op::Div => {
                let by = self.number(&node.inputs[1], x)?;
                Some(side(0)?.map(|a| a / by))
            }
            Op::Mul => {
                let (a, b) = (side(0)?, side(1)?);
                let mut product = [0.0; 7];
                for (i, j) in (0..4).flat_map(|i| (0..4).map(move |j| (i, j))) {
                    product[i + j] += a[i] * b[j];
                }
                let [.., fourth, fifth, sixth] = product;
                let low = [product[0], product[1], product[2], product[3]];
                ([fourth, fifth, sixth] == [0.0; 3]).then_some(low)
            }
            _ => None,
        }
    }

    /// The operator that `x` times the gate is, and the factor that is still to come.
    fn function(&self, gate: &Gate<'_>, x: &str) -> Option<(Op, f64)> {
        let [constant, linear, square, cubic] = self.polynomial(gate.inner, x, DEPTH)?;
        let line = constant == 0.0 && square == 0.0;
        let tanh = (FRAC_2_PI).sqrt();
        match gate.kind {
            Kind::Sigmoid if line && cubic == 0.0 && linear != 0.0 => {
                let alpha = linear as f32;
                alpha.is_finite().then_some((Op::Swish { alpha }, 1.0))
            }
            Kind::Erf if line && cubic == 0.0 && near(linear, FRAC_1_SQRT_2) => {
                Some((Op::Gelu { approximate: false }, 0.5))
            }
            Kind::Tanh if line && near(linear, tanh) && near(cubic, 0.044715 * tanh) => {
                Some((Op::Gelu { approximate: true }, 0.5))
            }
            _ => None,
        }
    }

    /// `name` as a product of a constant and of how many of each of `values`.
    fn factors(&self, name: &str, values: [&str; 2], depth: usize) -> Option<(f64, [usize; 2])> {
        if let Some(i) = values.iter().position(|v| *v == name) {
            return Some((1.0, [usize::from(i == 0), usize::from(i == 1)]));
        }
        if let Some(c) = self.number(name, values[0]) {
            return Some((c, [0, 0]));
        }
        let node = self.made.get(name)?;
        let depth = depth.checked_sub(1)?;
        let (a, n) = self.factors(&node.inputs[0], values, depth)?;
        match node.op {
            Op::Mul => {
                let (b, m) = self.factors(&node.inputs[1], values, depth)?;
                Some((a * b, [n[0] + m[0], n[1] + m[1]]))
            }
            Op::Div => Some((a / self.number(&node.inputs[1], values[0])?, n)),
            _ => None,
        }
    }
}

//! Physical removal: channels that nothing goes through leave a model, which then computes the same with less.

use crate::allocator::{Pair, pairs};
use crate::{Error, Result};
use lacuna::model::{Op, Weight, Weights};
use lacuna::{DType, Model};
use serde::Serialize;

/// What a pair of factors lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CutPair {
    /// The weight of the first product.
    pub first: String,
    /// The weight of the second.
    pub second: String,
    /// Channels between them before.
    pub before: usize,
    /// Channels that are left.
    pub after: usize,
}

/// Removes the inner channels of products in a row that one of the two factors has only zeros for: rows of the first and
/// columns of the second. What is left computes the same sums, without the zeros. One channel stays where all could go.
///
/// # Errors
/// When a factor is not of a floating-point dtype.
pub fn cut(model: &Model) -> Result<(Model, Vec<CutPair>)> {
    let mut weights = model.weights().clone();
    let mut cuts = Vec::new();
    for Pair { first, second } in pairs(model) {
        let names = [&first.inputs[1], &second.inputs[1]];
        let transposed = [first, second].map(|n| n.op == Op::MatMul { trans_b: true });
        let a = Factor::new(&weights, names[0], usize::from(!transposed[0]))?;
        let b = Factor::new(&weights, names[1], usize::from(transposed[1]))?;
        let before = a.channels();
        let mut kept: Vec<usize> = (0..before).filter(|&k| a.any(k) && b.any(k)).collect();
        if kept.is_empty() && before > 0 {
            kept.push(0);
        }
        if kept.len() == before {
            continue;
        }
        cuts.push(CutPair {
            first: names[0].clone(),
            second: names[1].clone(),
            before,
            after: kept.len(),
        });
        for (name, factor) in names.into_iter().zip([a, b]) {
            weights.insert(name.clone(), factor.keep(&kept)?);
        }
    }
    if cuts.is_empty() {
        return Ok((model.clone(), cuts));
    }
    let mut graph = model.graph().clone();
    graph.name += ", cut";
    let mut smaller = Model::new(graph, weights)?;
    smaller.metadata = model.metadata.clone();
    Ok((smaller.encoded(), cuts))
}

/// A matrix and which of its axes the channels lie on.
struct Factor<'a> {
    name: &'a str,
    dtype: DType,
    shape: [usize; 2],
    values: Vec<f32>,
    axis: usize,
}

impl<'a> Factor<'a> {
    fn new(weights: &Weights, name: &'a str, axis: usize) -> Result<Factor<'a>> {
        let weight = weights.get(name);
        let fits = weight.filter(|w| w.dtype().is_float());
        let parts = fits.and_then(|w| Some((w.dtype(), w.shape(), w.to_f32()?)));
        let Some((dtype, &[rows, cols], values)) = parts else {
            return Err(Error::Factor {
                weight: name.to_owned(),
                what: format!(
                    "is {}; matrices of F32, F16 and BF16 can be cut",
                    weight.map_or("missing".into(), |w| w.dtype().to_string())
                ),
            });
        };
        Ok(Factor {
            name,
            dtype,
            shape: [rows, cols],
            values,
            axis,
        })
    }

    fn channels(&self) -> usize {
        self.shape[self.axis]
    }

    /// The channel of an element.
    fn channel(&self, i: usize) -> usize {
        let cols = self.shape[1].max(1);
        [i / cols, i % cols][self.axis]
    }

    /// Whether a channel has anything but zeros.
    fn any(&self, channel: usize) -> bool {
        let mut all = self.values.iter().enumerate();
        all.any(|(i, v)| *v != 0.0 && self.channel(i) == channel)
    }

    /// The matrix with these channels only.
    fn keep(&self, kept: &[usize]) -> Result<Weight> {
        let all = self.values.iter().enumerate();
        let left: Vec<f32> = all
            .filter(|(i, _)| kept.binary_search(&self.channel(*i)).is_ok())
            .map(|(_, v)| *v)
            .collect();
        let mut shape = self.shape;
        shape[self.axis] = kept.len();
        let weight = Weight::from_f32(&shape, &left);
        weight.to_dtype(self.dtype).map_err(|what| Error::Factor {
            weight: self.name.to_owned(),
            what,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna::model::{Dim, Graph, Input, Node};
    use lacuna::{Session, SessionOptions, TensorView};

    /// `x [5] -> 7 -> 6 -> 3`, the second matrix the other way round, and channels that are zero on one side.
    fn network(zero: impl Fn(&str, usize, usize) -> bool) -> Model {
        let mut weights = Weights::new();
        for (name, rows, cols) in [("a", 7, 5), ("b", 7, 6), ("c", 3, 6)] {
            let values: Vec<f32> = (0..rows * cols)
                .map(|i| match zero(name, i / cols, i % cols) {
                    true => 0.0,
                    false => ((i * 37 + rows) % 19) as f32 - 9.5,
                })
                .collect();
            weights.insert(name.into(), Weight::from_f32(&[rows, cols], &values));
        }
        let node = |name: &str, trans_b: bool, inputs: [&str; 2]| Node {
            name: name.into(),
            op: Op::MatMul { trans_b },
            inputs: inputs.map(str::to_owned).to_vec(),
            output: name.into(),
        };
        let shape = vec![Dim::Fixed(2), Dim::Fixed(5)];
        let graph = Graph {
            name: "chain".into(),
            inputs: vec![Input::f32("x", shape)],
            outputs: vec!["3".into()],
            nodes: vec![
                node("1", true, ["x", "a"]),
                node("2", false, ["1", "b"]),
                node("3", true, ["2", "c"]),
            ],
        };
        Model::new(graph, weights).unwrap()
    }

    fn run(model: &Model) -> Vec<f32> {
        let x: Vec<f32> = (0..10).map(|i| i as f32 * 0.25 - 1.0).collect();
        let mut session = Session::new(model, SessionOptions::default()).unwrap();
        let outputs = session.run(&[TensorView::f32(&[2, 5], &x)]).unwrap();
        outputs[0].data.clone()
    }

    #[test]
    fn what_nothing_goes_through_leaves_and_the_outputs_stay() {
        let full = network(|name, row, col| match name {
            "a" => row == 2 || row == 6,
            "b" => row == 3 || col == 0,
            _ => col == 4,
        });
        let (small, cuts) = cut(&full).unwrap();
        let sizes: Vec<(usize, usize)> = cuts.iter().map(|c| (c.before, c.after)).collect();
        assert_eq!(sizes, [(7, 4), (6, 4)]);
        let shape = |name: &str| small.weights()[name].shape().to_vec();
        assert_eq!(
            [shape("a"), shape("b"), shape("c")],
            [[4, 5], [4, 4], [3, 4]]
        );
        for (a, b) in run(&full).iter().zip(run(&small)) {
            assert!((a - b).abs() < 1e-4, "{a} became {b}");
        }
        // Nothing more goes.
        assert!(cut(&small).unwrap().1.is_empty());
    }

    #[test]
    fn one_channel_stays_where_all_could_go() {
        let (small, cuts) = cut(&network(|name, _, _| name == "a")).unwrap();
        assert_eq!(cuts[0].after, 1);
        assert!(run(&small).iter().all(|y| *y == 0.0));
    }
}

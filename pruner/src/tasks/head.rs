//! Tasks, once their outputs are found in a model.

use super::boxes::Grid;
use super::{LossName, Metric, TaskSettings, check, refuse};
use crate::Result;
use lacuna::Model;
use lacuna::model::{Dim, Graph, Op, Symbols, infer_shapes};
use std::collections::HashSet;

/// A task whose output is known.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    pub name: String,
    /// The index of its output among those of the narrowed model.
    pub output: usize,
    pub loss: LossName,
    pub metric: Metric,
    pub weight: f64,
    pub ignore: Option<u16>,
    /// The tensor of its labels; none where it is held against another network.
    pub labels: Option<String>,
    /// Channels of the output: numbers of a row.
    pub width: usize,
    /// Pixels of a sample; 1 without pixels.
    pub rows: usize,
    /// The output's shape without the batch.
    pub shape: Vec<usize>,
    /// Of a detection head.
    pub grid: Option<Grid>,
}

impl Head {
    /// A classifier's only task: classes of an output.
    pub fn classifier(classes: usize) -> Head {
        Head {
            name: "classes".into(),
            output: 0,
            loss: LossName::CrossEntropy,
            metric: Metric::Top1,
            weight: 1.0,
            ignore: None,
            labels: Some("labels".into()),
            width: classes,
            rows: 1,
            shape: vec![classes],
            grid: None,
        }
    }

    /// Outputs with the channels last, from planes.
    pub fn channels_last(&self, planes: &[f32], to: &mut [f32]) {
        let (width, rows) = (self.width, self.rows);
        if rows == 1 || width == 1 {
            return to.copy_from_slice(planes);
        }
        for (from, to) in (planes.chunks_exact(rows * width)).zip(to.chunks_exact_mut(rows * width))
        {
            for (row, to) in to.chunks_exact_mut(width).enumerate() {
                for (c, to) in to.iter_mut().enumerate() {
                    *to = from[c * rows + row];
                }
            }
        }
    }
}

impl Head {
    /// The way back of [`Head::channels_last`].
    #[cfg(any(test, feature = "candle"))]
    pub fn planes(&self, rows: &[f32], to: &mut [f32]) {
        let each = self.rows * self.width;
        for (from, to) in rows.chunks_exact(each).zip(to.chunks_exact_mut(each)) {
            for (row, from) in from.chunks_exact(self.width).enumerate() {
                for (c, &x) in from.iter().enumerate() {
                    to[c * self.rows + row] = x;
                }
            }
        }
    }
}

/// The model with the outputs that the tasks read and no others, logits in the place of a softmax over the channels
/// at the end of a task of classes, and the tasks.
///
/// # Errors
/// When there is no task, or one has no such output, or one of another shape than its loss takes.
pub(crate) fn heads(model: &Model, tasks: &[TaskSettings]) -> Result<(Model, Vec<Head>)> {
    check(tasks)?;
    let mut graph = model.graph().clone();
    let shapes = infer_shapes(
        &graph,
        model.weights(),
        &crate::report::bind(model, &Symbols::new()),
    )?;
    let given = std::mem::take(&mut graph.outputs);
    let mut heads = Vec::with_capacity(tasks.len());
    for task in tasks {
        if !given.contains(&task.output) {
            return Err(refuse(
                &task.name,
                format!(
                    "the model has no output `{}`; it has `{}`",
                    task.output,
                    given.join("`, `")
                ),
            ));
        }
        let dims = shapes.get(&task.output).map_or(&[][..], Vec::as_slice);
        let size = |d: &Dim| if let Dim::Fixed(n) = d { *n } else { 0 };
        let dims: Vec<usize> = dims.iter().map(size).collect();
        let shape = dims.get(1..).unwrap_or_default().to_vec();
        let (width, rows) = match (shape.as_slice(), task.loss.is_of_classes()) {
            ([c, h, w], _) => (*c, h * w),
            ([c], _) => (*c, 1),
            (other, false) => (other.iter().product(), 1),
            (_, true) => (0, 0),
        };
        if width == 0 || rows == 0 || task.loss.is_of_classes() && width < 2 {
            return Err(refuse(
                &task.name,
                format!(
                    "output `{}` has shape {dims:?}, no classes by sample or pixel",
                    task.output
                ),
            ));
        }
        let grid = match (task.loss.is_of_boxes(), shape.as_slice()) {
            (false, _) => None,
            (true, [c, h, w])
                if c % task.anchors.len().max(1) == 0 && c / task.anchors.len() > 5 =>
            {
                Some(Grid {
                    size: [*h, *w],
                    anchors: task.anchors.clone(),
                    classes: c / task.anchors.len() - 5,
                })
            }
            _ => {
                return Err(refuse(
                    &task.name,
                    format!(
                        "output `{}` has shape {dims:?}; {} anchors have 5 channels each, and one for each class, of rows and columns",
                        task.output,
                        task.anchors.len()
                    ),
                ));
            }
        };
        let metric = task.metric.unwrap_or(Metric::usual(task.loss, rows));
        if !metric.fits(task.loss) {
            return Err(refuse(
                &task.name,
                format!("metric {metric} says nothing of its loss"),
            ));
        }
        let mut name = task.output.clone();
        let last = graph.nodes.iter().find(|n| n.output == name);
        if let Some(node) = last
            && let Op::Softmax { axis } = node.op
            && task.loss.is_of_classes()
            && (axis == 1 || axis + dims.len() as i64 == 1)
        {
            name = node.inputs[0].clone();
        }
        let known = graph.outputs.iter().position(|o| *o == name);
        let output = known.unwrap_or_else(|| {
            graph.outputs.push(name);
            graph.outputs.len() - 1
        });
        heads.push(Head {
            name: task.name.clone(),
            output,
            loss: task.loss,
            metric,
            weight: task.weight,
            ignore: task.ignore,
            labels: task.labels.clone(),
            width,
            rows,
            shape,
            grid,
        });
    }
    if heads.is_empty() {
        return Err(refuse("", "no task is given"));
    }
    drop_unread(&mut graph);
    Ok((with_graph(model, graph)?, heads))
}

/// Drops nodes that no output needs.
pub(crate) fn drop_unread(graph: &mut Graph) {
    let mut needed: HashSet<String> = graph.outputs.iter().cloned().collect();
    let mut keep = Vec::new();
    for node in graph.nodes.drain(..).rev() {
        if needed.contains(&node.output) {
            needed.extend(node.inputs.iter().cloned());
            keep.push(node);
        }
    }
    keep.reverse();
    graph.nodes = keep;
}

/// The weights of `model` that `graph` reads, under it.
pub(crate) fn with_graph(model: &Model, graph: Graph) -> Result<Model> {
    let mut weights = model.weights().clone();
    let mut read: HashSet<&str> = graph.outputs.iter().map(String::as_str).collect();
    read.extend(
        graph
            .nodes
            .iter()
            .flat_map(|n| n.inputs.iter().map(String::as_str)),
    );
    weights.retain(|name, _| read.contains(name.as_str()));
    Ok(Model::new(graph, weights)?)
}

#[cfg(test)]
pub(super) fn test_head(loss: LossName, width: usize, rows: usize, ignore: Option<u16>) -> Head {
    Head {
        loss,
        metric: Metric::usual(loss, rows),
        width,
        rows,
        ignore,
        ..Head::classifier(width)
    }
}

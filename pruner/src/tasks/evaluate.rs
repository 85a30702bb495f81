//! Losses and metrics of several tasks, by sessions of the runtime.

use super::{Head, Metric, Tally, Target, TaskData, TaskSettings, Teacher, heads, losses};
use crate::data::{Preprocess, Samples};
use crate::eval::{EvalOptions, preprocess};
use crate::{Error, Result};
use lacuna::model::{Dim, Symbols};
use lacuna::{Model, Session, SessionOptions, Tensor, TensorView, TensorViewMut};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a task comes to on some samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskFigures {
    /// The task.
    pub name: String,
    /// Its mean loss.
    pub loss: f64,
    /// What is reported of it.
    pub metric: Metric,
    /// The metric's value.
    pub value: f64,
    /// Samples.
    pub samples: usize,
}

/// A session that runs any number of samples, some at a time.
pub(crate) struct Runner {
    session: Session,
    batch: usize,
    shapes: Vec<Vec<usize>>,
    results: Vec<Tensor>,
    result_shapes: Vec<Vec<usize>>,
    /// A last, smaller part of the samples.
    rest: Vec<Vec<f32>>,
}

/// What takes the outputs: the first sample, how many, and one tensor for each output; and says whether to go on.
pub(crate) type Take<'a> = dyn FnMut(usize, usize, &[Tensor]) -> Result<bool> + 'a;

impl Runner {
    /// `batch` samples at a time, where the model lets the batch be chosen.
    pub fn new(model: &Model, batch: usize, threads: usize) -> Result<Runner> {
        let mut symbols = Symbols::new();
        for input in &model.graph().inputs {
            if let Some(Dim::Symbol(s)) = input.shape.first() {
                symbols.insert(s.clone(), batch.max(1));
            }
        }
        let session = Session::new(
            model,
            SessionOptions {
                threads,
                symbols: crate::report::bind(model, &symbols),
                ..SessionOptions::default()
            },
        )?;
        let shapes: Vec<Vec<usize>> = session.inputs().iter().map(|i| i.1.clone()).collect();
        let result_shapes: Vec<Vec<usize>> =
            session.outputs().iter().map(|o| o.1.clone()).collect();
        let batch = shapes.first().and_then(|s| s.first()).copied().unwrap_or(0);
        let names = session.inputs().iter().chain(session.outputs());
        for ((name, _), shape) in names.zip(shapes.iter().chain(&result_shapes)) {
            if batch == 0 || shape.first() != Some(&batch) {
                return Err(Error::Evaluation(format!(
                    "`{name}` has shape {shape:?} for {batch} samples: its first axis is not theirs"
                )));
            }
        }
        Ok(Runner {
            results: result_shapes.iter().map(|s| Tensor::zeros(s)).collect(),
            rest: shapes
                .iter()
                .map(|s| vec![0.0; s.iter().product()])
                .collect(),
            session,
            batch,
            shapes,
            result_shapes,
        })
    }

    /// The shapes of the inputs.
    pub fn shapes(&self) -> &[Vec<usize>] {
        &self.shapes
    }

    /// Runs `count` samples of every input.
    pub fn run(&mut self, inputs: &[&[f32]], count: usize, take: &mut Take<'_>) -> Result<()> {
        let each: Vec<usize> = self
            .shapes
            .iter()
            .map(|s| s[1..].iter().product())
            .collect();
        for at in (0..count).step_by(self.batch) {
            let n = self.batch.min(count - at);
            let parts = inputs
                .iter()
                .zip(&each)
                .zip(&mut self.rest)
                .zip(&self.shapes);
            let views: Vec<TensorView<'_>> = parts
                .map(|(((input, each), rest), shape)| {
                    let part = &input[at * each..(at + n) * each];
                    if n < self.batch {
                        rest[..part.len()].copy_from_slice(part);
                        TensorView::f32(shape, rest)
                    } else {
                        TensorView::f32(shape, part)
                    }
                })
                .collect();
            let mut results: Vec<TensorViewMut<'_>> =
                (self.results.iter_mut().zip(&self.result_shapes))
                    .map(|(t, s)| TensorViewMut::f32(s, &mut t.data))
                    .collect();
            self.session.run_into(&views, &mut results)?;
            drop(results);
            if !take(at, n, &self.results)? {
                break;
            }
        }
        Ok(())
    }
}

/// Images as a network takes them, and the targets of every task.
pub(crate) struct Images {
    /// `[count, C, H, W]`.
    pub planes: Vec<f32>,
    pub count: usize,
    pub targets: Vec<Target>,
}

impl Images {
    /// Decodes the images of these indices.
    pub fn read(data: &TaskData, preprocess: &Preprocess, indices: &[usize]) -> Result<Images> {
        let Samples::Images(images) = &data.images else {
            return Err(Error::Evaluation("tasks are of images".into()));
        };
        let size: usize = preprocess.input.iter().product();
        let mut planes = vec![0.0f32; size * indices.len()];
        (indices.par_iter().zip(planes.par_chunks_mut(size.max(1)))).try_for_each(|(&i, to)| {
            let image = images.image(i)?;
            preprocess.apply(&image, to).map_err(|what| Error::Data {
                path: images.origin(i).into(),
                what,
            })
        })?;
        Ok(Images {
            planes,
            count: indices.len(),
            targets: data.labels.iter().map(|l| l.gather(indices)).collect(),
        })
    }
}

/// A part of the targets.
pub(crate) fn part(head: &Head, target: &Target, at: usize, n: usize) -> Target {
    let each = head.rows * head.width;
    match target {
        Target::Classes(v) => Target::Classes(v[at * head.rows..(at + n) * head.rows].to_vec()),
        Target::Numbers(v) => Target::Numbers(v[at * each..(at + n) * each].to_vec()),
        Target::Boxes(each, v) => Target::Boxes(*each, v[at * each..(at + n) * each].to_vec()),
    }
}

/// Where tasks are evaluated, and on what.
#[derive(Clone, Debug)]
pub struct TaskOptions<'a> {
    /// The images and labels.
    pub path: &'a Path,
    /// Their part.
    pub split: &'a str,
    /// Batch, threads, limit and preprocessing.
    pub eval: EvalOptions,
    /// The network that tasks without labels are held against.
    pub teacher: Option<&'a Model>,
}

/// The loss and the metric of every task.
///
/// # Errors
/// When a task does not fit the model or the data.
pub fn evaluate_tasks(
    model: &Model,
    tasks: &[TaskSettings],
    options: &TaskOptions<'_>,
) -> Result<Vec<TaskFigures>> {
    let (narrow, heads) = heads(model, tasks)?;
    let data = TaskData::open(options.path, options.split, &heads)?;
    let len = data.images.len();
    let count = options.eval.limit.map_or(len, |n| n.min(len));
    let indices: Vec<usize> = (0..count).map(|i| i * len / count).collect();
    let teacher = options
        .teacher
        .map(|t| super::heads(t, tasks))
        .transpose()?;
    figures(
        &narrow,
        &heads,
        &data,
        &indices,
        &options.eval,
        teacher.as_ref().map(|t| &t.0),
    )
}

/// The same on the samples of these indices; models are narrowed.
pub(crate) fn figures(
    model: &Model,
    heads: &[Head],
    data: &TaskData,
    indices: &[usize],
    options: &EvalOptions,
    teacher: Option<&Model>,
) -> Result<Vec<TaskFigures>> {
    if indices.is_empty() {
        return Err(Error::Evaluation(format!(
            "nothing to evaluate: {}",
            data.images.describe()
        )));
    }
    let batch = if options.batch == 0 { 8 } else { options.batch };
    let mut runner = Runner::new(model, batch, options.threads)?;
    let [_, c, h, w] = runner.shapes()[0][..] else {
        return Err(Error::Evaluation(format!(
            "an input of shape {:?}, no images",
            runner.shapes()[0]
        )));
    };
    let preprocess = preprocess(options, [c, h, w])?;
    let mut teacher = teacher
        .map(|t| Teacher::new(t, batch, options.threads))
        .transpose()?;
    data.check_teacher(heads, teacher.as_ref())?;
    let mut sums = vec![0.0; heads.len()];
    let mut tallies: Vec<Tally> = heads.iter().map(Tally::new).collect();
    // So many at a time that decoding runs in parallel and little is held.
    for indices in indices.chunks(batch * 16) {
        let mut images = Images::read(data, &preprocess, indices)?;
        if let Some(teacher) = &mut teacher {
            teacher.fill_planes(heads, &images.planes, &mut images.targets)?;
        }
        runner.run(&[&images.planes], images.count, &mut |at, n, outputs| {
            for (i, head) in heads.iter().enumerate() {
                let from = &outputs[head.output].data[..n * head.rows * head.width];
                let mut values = vec![0.0; from.len()];
                head.channels_last(from, &mut values);
                if let Some(bad) = values.iter().find(|v| v.is_nan()) {
                    return Err(super::refuse(&head.name, format!("an output is {bad}")));
                }
                let target = part(head, &images.targets[i], at, n);
                tallies[i].count(head, &values, &target);
                let found = losses(head, &mut values, &target, 0.0, None);
                sums[i] += found.iter().map(|f| f.0).sum::<f64>();
            }
            Ok(true)
        })?;
    }
    let all = heads.iter().zip(&sums).zip(&tallies);
    Ok(all
        .map(|((head, sum), tally)| TaskFigures {
            name: head.name.clone(),
            loss: sum / indices.len() as f64,
            metric: head.metric,
            value: tally.value(),
            samples: indices.len(),
        })
        .collect())
}

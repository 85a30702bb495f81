//! What a cut costs each task, on samples that were held out of the training.

use super::split::{prefix, split};
use crate::data::Preprocess;
use crate::tasks::{
    Head, Images, LossName, Metric, Runner, Tally, TaskData, TaskSettings, Teacher, heads, losses,
    part,
};
use crate::{Error, Result};
use lacuna::Model;
use lacuna::model::Dim;

/// Values of the running network are kept up to so many bytes; beyond that trials start at the images.
const KEPT_BYTES: usize = 2 << 30;

/// The oracle of every task.
pub(super) struct Oracle {
    tasks: Vec<TaskSettings>,
    heads: Vec<Head>,
    images: Images,
    /// What a task's loss counts from: tasks without labels start at 0, and no share of that can be allowed.
    offsets: Vec<f64>,
    batch: usize,
    threads: usize,
    /// The running network, narrowed, its batch fixed.
    running: Option<Model>,
    kept: Option<Kept>,
}

/// Values of the running network for all samples.
struct Kept {
    names: Vec<String>,
    values: Vec<Vec<f32>>,
}

/// What a trial came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// The mean loss of each task.
    Within(Vec<f64>),
    /// The task that first exceeded what it was allowed.
    Exceeds(usize),
}

impl Oracle {
    /// The samples of `indices`. `teacher` is what tasks without labels are held against.
    pub fn new(
        tasks: &[TaskSettings],
        data: &TaskData,
        indices: &[usize],
        preprocess: &Preprocess,
        teacher: &Model,
        [batch, threads]: [usize; 2],
    ) -> Result<Oracle> {
        if indices.is_empty() {
            return Err(Error::Evaluation(
                "no samples are held out to decide by".into(),
            ));
        }
        let (narrow, heads) = heads(teacher, tasks)?;
        let mut images = Images::read(data, preprocess, indices)?;
        if heads.iter().any(|h| h.labels.is_none()) {
            let mut teacher = Teacher::new(&narrow, batch, threads)?;
            teacher.fill_planes(&heads, &images.planes, &mut images.targets)?;
        }
        let offset = |(i, head): (usize, &Head)| match head.labels {
            Some(_) => 0.0,
            None => own_size(head, &images.targets[i], images.count),
        };
        Ok(Oracle {
            offsets: heads.iter().enumerate().map(offset).collect(),
            tasks: tasks.to_vec(),
            heads,
            images,
            batch: batch.min(indices.len()),
            threads,
            running: None,
            kept: None,
        })
    }

    /// Samples.
    pub fn len(&self) -> usize {
        self.images.count
    }

    /// What is measured of each task.
    pub fn names(&self) -> Vec<Metric> {
        self.heads.iter().map(|h| h.metric).collect()
    }

    /// The metric of each task.
    pub fn metrics(&self, model: &Model) -> Result<Vec<f64>> {
        let mut runner = Runner::new(&self.narrow(model)?, self.batch, self.threads)?;
        let mut tallies: Vec<Tally> = self.heads.iter().map(Tally::new).collect();
        let images: [&[f32]; 1] = [&self.images.planes];
        runner.run(&images, self.images.count, &mut |at, n, outputs| {
            for (i, head) in self.heads.iter().enumerate() {
                let target = part(head, &self.images.targets[i], at, n);
                tallies[i].count(head, &own(head, n, &outputs[head.output].data), &target);
            }
            Ok(true)
        })?;
        Ok(tallies.iter().map(Tally::value).collect())
    }

    /// The model with the tasks' outputs and a fixed batch.
    fn narrow(&self, model: &Model) -> Result<Model> {
        let (narrow, _) = heads(model, &self.tasks)?;
        let mut graph = narrow.graph().clone();
        for input in &mut graph.inputs {
            if let Some(dim @ Dim::Symbol(_)) = input.shape.first_mut() {
                *dim = Dim::Fixed(self.batch);
            }
        }
        crate::tasks::with_graph(&narrow, graph)
    }

    /// Makes `model` the running network, and measures it.
    pub fn run_on(&mut self, model: &Model) -> Result<Vec<f64>> {
        let narrow = self.narrow(model)?;
        self.kept = None;
        let verdict = self.measure(&narrow, None, None)?;
        self.running = Some(narrow);
        match verdict {
            Verdict::Within(losses) => Ok(losses),
            Verdict::Exceeds(task) => Err(crate::tasks::refuse(
                &self.heads[task].name,
                "its loss on the samples held out is no number",
            )),
        }
    }

    /// The losses of `trial`, a cut of the running network; until one exceeds `most`, for then the others do not
    /// matter. What both networks have in common runs once.
    pub fn trial(&mut self, trial: &Model, most: &[f64]) -> Result<Verdict> {
        let narrow = self.narrow(trial)?;
        let Some(running) = &self.running else {
            return self.measure(&narrow, None, Some(most));
        };
        let split = split(running, &narrow)?;
        if !self.keep(&split.between)? {
            return self.measure(&narrow, None, Some(most));
        }
        self.measure(&split.rest, self.kept.as_ref(), Some(most))
    }

    /// Has the running network's values of these names; or says that they do not fit.
    fn keep(&mut self, names: &[String]) -> Result<bool> {
        let Some(running) = &self.running else {
            return Ok(false);
        };
        if self.kept.as_ref().is_some_and(|k| k.names == names) {
            return Ok(true);
        }
        if names.is_empty()
            || running
                .graph()
                .inputs
                .iter()
                .all(|i| names == [i.name.clone()])
        {
            return Ok(false);
        }
        self.kept = None;
        let shapes = lacuna::model::infer_shapes(
            running.graph(),
            running.weights(),
            &crate::report::bind(running, &Default::default()),
        )?;
        let mut each = Vec::new();
        for name in names {
            let dims = shapes.get(name).map_or(&[][..], Vec::as_slice);
            match dims {
                [Dim::Fixed(batch), rest @ ..] if *batch == self.batch => {
                    let size = |d: &Dim| if let Dim::Fixed(n) = d { *n } else { 0 };
                    each.push(rest.iter().map(size).product::<usize>());
                }
                // A value that mixes samples.
                _ => return Ok(false),
            }
        }
        let count = self.images.count;
        if each
            .iter()
            .sum::<usize>()
            .saturating_mul(count * size_of::<f32>())
            > KEPT_BYTES
        {
            return Ok(false);
        }
        let mut values: Vec<Vec<f32>> = each.iter().map(|n| vec![0.0; n * count]).collect();
        let mut runner = Runner::new(&prefix(running, names)?, self.batch, self.threads)?;
        runner.run(&[&self.images.planes], count, &mut |at, n, outputs| {
            for ((value, each), output) in values.iter_mut().zip(&each).zip(outputs) {
                value[at * each..(at + n) * each].copy_from_slice(&output.data[..n * each]);
            }
            Ok(true)
        })?;
        self.kept = Some(Kept {
            names: names.to_vec(),
            values,
        });
        Ok(true)
    }

    fn measure(&self, model: &Model, kept: Option<&Kept>, most: Option<&[f64]>) -> Result<Verdict> {
        let count = self.images.count;
        let mut runner = Runner::new(model, self.batch, self.threads)?;
        let inputs: Vec<&[f32]> = match kept {
            Some(kept) => kept.values.iter().map(Vec::as_slice).collect(),
            None => vec![&self.images.planes],
        };
        let mut sums: Vec<f64> = self.offsets.iter().map(|o| o * count as f64).collect();
        let mut exceeds = None;
        runner.run(&inputs, count, &mut |at, n, outputs| {
            for (i, head) in self.heads.iter().enumerate() {
                let mut values = own(head, n, &outputs[head.output].data);
                let target = part(head, &self.images.targets[i], at, n);
                let found = losses(head, &mut values, &target, 0.0, None);
                sums[i] += found.iter().map(|f| f.0).sum::<f64>();
                // No loss is below 0: what is exceeded stays so. NaN exceeds too.
                let most = most.map_or(f64::MAX, |m| m[i]);
                if sums[i].is_nan() || sums[i] / count as f64 > most {
                    exceeds = Some(i);
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        Ok(match exceeds {
            Some(task) => Verdict::Exceeds(task),
            None => Verdict::Within(sums.iter().map(|s| s / count as f64).collect()),
        })
    }
}

/// A task's output for so many samples, channels last.
fn own(head: &Head, samples: usize, output: &[f32]) -> Vec<f32> {
    let from = &output[..samples * head.rows * head.width];
    let mut values = vec![0.0; from.len()];
    head.channels_last(from, &mut values);
    values
}

/// The mean size of what another network says: the entropy of its softmax, or the mean square of its numbers. With
/// it a divergence becomes a cross-entropy, and a difference a share.
fn own_size(head: &Head, target: &crate::tasks::Target, count: usize) -> f64 {
    let crate::tasks::Target::Numbers(values) = target else {
        return 0.0;
    };
    let rows = (head.rows * count).max(1) as f64;
    if head.loss != LossName::Kl {
        let squares: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        return squares / values.len().max(1) as f64;
    }
    let entropy = |row: &[f32]| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = row.iter().map(|&x| f64::from(x - largest).exp()).collect();
        let total: f64 = powers.iter().sum();
        let minus = |p: f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
        powers.iter().map(|p| minus(p / total)).sum::<f64>()
    };
    values.chunks_exact(head.width).map(entropy).sum::<f64>() / rows
}

//! Accuracy of a classifier on labelled images or sequences.

mod sequences;

pub use sequences::evaluate_sequences;

use crate::data::{Dataset, Preprocess, Preset, Samples};
use crate::{Error, Result};
use lacuna::model::{Dim, Symbols};
use lacuna::{Model, Session, SessionOptions, Tensor, TensorView, TensorViewMut};
use rayon::prelude::*;
use serde::Serialize;

/// How a model is evaluated.
#[derive(Clone, Debug, Default)]
pub struct EvalOptions {
    /// Images per run, where the model's batch is symbolic; 0 means 8.
    pub batch: usize,
    /// Use only so many images, spread evenly over the data set.
    pub limit: Option<usize>,
    /// Threads of a run; 0 takes every core.
    pub threads: usize,
    /// The instruction set of the session; `None` takes the best.
    pub isa: Option<String>,
    /// Run every weight dense.
    pub dense: bool,
    /// Preprocessing to start from; `None` chooses by the input's shape.
    pub preset: Option<Preset>,
    /// Means instead of the preset's.
    pub mean: Option<Vec<f32>>,
    /// Standard deviations instead of the preset's.
    pub std: Option<Vec<f32>>,
    /// Resize every image's shorter side to this, then crop the centre.
    pub size: Option<usize>,
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// Images evaluated.
    pub samples: usize,
    /// Images whose label has the largest output.
    pub top1_correct: usize,
    /// Images whose label is among the five largest outputs.
    pub top5_correct: usize,
    /// `top1_correct / samples`.
    pub top1: f64,
    /// `top5_correct / samples`.
    pub top5: f64,
    /// Outputs of the model.
    pub classes: usize,
    /// The data set, in words.
    pub data: String,
    /// What happened to images; nothing happens to sequences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocess>,
    /// The instruction set that ran.
    pub isa: String,
    /// Images per run.
    pub batch: usize,
}

/// Runs `model` on `data` and counts. `progress` is called with images done and images in all.
///
/// The model has one input `[N, C, H, W]`; its first output holds one number per class. Of equal
/// outputs the one of the lower class counts as larger.
pub fn evaluate(
    model: &Model,
    data: &dyn Dataset,
    options: &EvalOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Accuracy> {
    let refuse = |what: String| Err(Error::Evaluation(what));
    let [input] = model.graph().inputs.as_slice() else {
        return refuse(format!(
            "the model has {} inputs; images need exactly one",
            model.graph().inputs.len()
        ));
    };
    let mut symbols = Symbols::new();
    if let Some(Dim::Symbol(batch)) = input.shape.first() {
        let size = if options.batch == 0 { 8 } else { options.batch };
        symbols.insert(batch.clone(), size.min(data.len().max(1)));
    }
    let mut session = Session::new(
        model,
        SessionOptions {
            threads: options.threads,
            isa: options.isa.clone(),
            dense: options.dense,
            symbols: crate::report::bind(model, &symbols),
            ..SessionOptions::default()
        },
    )?;
    let (Some((name, shape)), Some((_, output))) =
        (session.inputs().first().cloned(), session.outputs().first())
    else {
        return refuse("the model has no input or no output".into());
    };
    let [batch, channels, height, width] = shape[..] else {
        return refuse(format!(
            "input `{name}` has shape {shape:?}, not [N, C, H, W]"
        ));
    };
    let outputs: usize = output.iter().product();
    if batch == 0 || outputs == 0 || !outputs.is_multiple_of(batch) {
        return refuse(format!("an output of shape {output:?} for {batch} images"));
    }
    let classes = outputs / batch;
    let preprocess = preprocess(options, [channels, height, width])?;

    let mut tally = Tally::new(classes, data.len(), options.limit);
    tally.check(|i| data.label(i), |i| data.origin(i), || data.describe())?;
    let size = channels * height * width;
    let mut images = vec![0.0f32; batch * size];
    let shapes: Vec<Vec<usize>> = session.outputs().iter().map(|o| o.1.clone()).collect();
    let mut results: Vec<Tensor> = shapes.iter().map(|s| Tensor::zeros(s)).collect();
    for chunk in tally.indices.clone().chunks(batch) {
        // A last, smaller chunk leaves earlier images behind it; their outputs are not read.
        (chunk.par_iter().zip(images.par_chunks_mut(size))).try_for_each(|(&i, to)| {
            let image = data.image(i)?;
            preprocess.apply(&image, to).map_err(|what| Error::Data {
                path: data.origin(i).into(),
                what,
            })
        })?;
        let mut views: Vec<TensorViewMut<'_>> = (results.iter_mut().zip(&shapes))
            .map(|(t, s)| TensorViewMut::f32(s, &mut t.data))
            .collect();
        session.run_into(&[TensorView::f32(&shape, &images)], &mut views)?;
        drop(views);
        for (&i, scores) in chunk.iter().zip(results[0].data.chunks_exact(classes)) {
            tally.count(scores, data.label(i), || data.origin(i))?;
        }
        progress(tally.done, tally.indices.len());
    }
    let isa = session.isa().to_owned();
    Ok(tally.accuracy(data.describe(), Some(preprocess), isa, batch))
}

/// [`evaluate`] or [`evaluate_sequences`], as the samples are.
pub fn evaluate_samples(
    model: &Model,
    data: &Samples,
    options: &EvalOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Accuracy> {
    match data {
        Samples::Images(images) => evaluate(model, &**images, options, progress),
        Samples::Sequences(sequences) => evaluate_sequences(model, sequences, options, progress),
    }
}

/// The samples of an evaluation, and how many were right so far.
struct Tally {
    classes: usize,
    /// Spread evenly over the data.
    indices: Vec<usize>,
    done: usize,
    top1: usize,
    top5: usize,
}

impl Tally {
    fn new(classes: usize, len: usize, limit: Option<usize>) -> Tally {
        let count = limit.map_or(len, |n| n.min(len));
        Tally {
            classes,
            indices: (0..count).map(|i| i * len / count).collect(),
            done: 0,
            top1: 0,
            top5: 0,
        }
    }

    /// Refuses labels without a class, and no samples at all.
    fn check(
        &self,
        label: impl Fn(usize) -> usize,
        origin: impl Fn(usize) -> String,
        describe: impl Fn() -> String,
    ) -> Result<()> {
        if self.indices.is_empty() {
            return Err(Error::Evaluation(format!(
                "nothing to evaluate: {}",
                describe()
            )));
        }
        match self.indices.iter().find(|&&i| label(i) >= self.classes) {
            Some(&i) => Err(Error::Label {
                sample: origin(i),
                label: label(i),
                classes: self.classes,
            }),
            None => Ok(()),
        }
    }

    fn count(&mut self, scores: &[f32], label: usize, origin: impl Fn() -> String) -> Result<()> {
        if let Some(class) = scores.iter().position(|s| s.is_nan()) {
            let what = format!("output {class} is NaN for {}", origin());
            return Err(Error::Evaluation(what));
        }
        let rank = rank(scores, label);
        self.top1 += usize::from(rank < 1);
        self.top5 += usize::from(rank < 5);
        self.done += 1;
        Ok(())
    }

    fn accuracy(
        self,
        data: String,
        preprocess: Option<Preprocess>,
        isa: String,
        batch: usize,
    ) -> Accuracy {
        let share = |n: usize| n as f64 / self.done.max(1) as f64;
        Accuracy {
            samples: self.done,
            top1_correct: self.top1,
            top5_correct: self.top5,
            top1: share(self.top1),
            top5: share(self.top5),
            classes: self.classes,
            data,
            preprocess,
            isa,
            batch,
        }
    }
}

/// The preprocessing that the options ask for, for an input of channels, height and width.
pub(crate) fn preprocess(options: &EvalOptions, input: [usize; 3]) -> Result<Preprocess> {
    let preset = options.preset;
    let preset = preset.unwrap_or_else(|| Preset::for_input(input[0], input[1]));
    let mut preprocess = Preprocess::new(preset, input);
    if let Some(mean) = &options.mean {
        preprocess.mean.clone_from(mean);
    }
    if let Some(std) = &options.std {
        preprocess.std.clone_from(std);
    }
    if let Some(size) = options.size {
        preprocess.size = Some(size);
        preprocess.always_resize = true;
    }
    preprocess.check()?;
    Ok(preprocess)
}

/// How many classes come before `label` when the largest score is first.
fn rank(scores: &[f32], label: usize) -> usize {
    let own = scores[label];
    let before = |(class, &score): (usize, &f32)| score > own || score == own && class < label;
    scores.iter().enumerate().filter(|&s| before(s)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_rank_by_class() {
        let scores = [1.0, 3.0, 3.0, 2.0];
        let ranks: Vec<usize> = (0..4).map(|label| rank(&scores, label)).collect();
        assert_eq!(ranks, [3, 0, 1, 2]);
    }
}

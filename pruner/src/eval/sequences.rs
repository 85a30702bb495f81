//! Accuracy of a recurrent classifier on labelled sequences.

use super::{Accuracy, EvalOptions, Tally};
use crate::data::Sequences;
use crate::{Error, Result};
use lacuna::model::Dim;
use lacuna::{Model, SessionOptions, Stream, Tensor, TensorView, TensorViewMut};

/// Runs `model` over the steps of each sequence, from a state of zeros, and counts by its first output after the last
/// step. `progress` is called with sequences done and sequences in all.
///
/// The model is one step: an input `[N, C]`, and what it carries. Normalisation is a part of it.
pub fn evaluate_sequences(
    model: &Model,
    data: &Sequences,
    options: &EvalOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Accuracy> {
    let refuse = |what: String| Error::Evaluation(what);
    if options.preset.is_some()
        || options.mean.is_some()
        || options.std.is_some()
        || options.size.is_some()
    {
        return Err(refuse(
            "preprocessing is for images; the normalisation of sequences is a part of the model"
                .into(),
        ));
    }
    let mut session = SessionOptions {
        threads: options.threads,
        isa: options.isa.clone(),
        dense: options.dense,
        ..SessionOptions::default()
    };
    let inputs = &model.graph().inputs;
    if let Some(Dim::Symbol(batch)) = inputs.first().and_then(|i| i.shape.first()) {
        let size = if options.batch == 0 { 8 } else { options.batch };
        session
            .symbols
            .insert(batch.clone(), size.min(data.len().max(1)));
    }
    session.symbols = crate::report::bind(model, &session.symbols);
    let mut stream = Stream::new(model, session)?;
    let [(name, shape)] = stream.inputs() else {
        return Err(refuse(format!(
            "the model takes {} inputs beside its state; sequences need one",
            stream.inputs().len()
        )));
    };
    let (batch, channels) = match shape[..] {
        [batch, channels] if batch > 0 && channels == data.channels() => (batch, channels),
        _ => {
            return Err(refuse(format!(
                "input `{name}` has shape {shape:?}, a step of the sequences {} channels",
                data.channels()
            )));
        }
    };
    let shape = shape.clone();
    let shapes: Vec<Vec<usize>> = stream.outputs().iter().map(|o| o.1.clone()).collect();
    let outputs: usize = shapes.first().map_or(0, |s| s.iter().product());
    if outputs == 0 || !outputs.is_multiple_of(batch) {
        return Err(refuse(format!("{outputs} outputs for {batch} sequences")));
    }
    let mut tally = Tally::new(outputs / batch, data.len(), options.limit);
    tally.check(|i| data.label(i), |i| data.origin(i), || data.describe())?;
    let mut step = vec![0.0; batch * channels];
    let mut results: Vec<Tensor> = shapes.iter().map(|s| Tensor::zeros(s)).collect();
    for chunk in tally.indices.clone().chunks(batch) {
        stream.reset();
        for t in 0..data.time() {
            // A last, smaller chunk leaves earlier steps behind it; their outputs are not read.
            for (&i, to) in chunk.iter().zip(step.chunks_exact_mut(channels)) {
                to.copy_from_slice(&data.sequence(i)[t * channels..][..channels]);
            }
            let filled = results.iter_mut().zip(&shapes);
            let mut views: Vec<TensorViewMut<'_>> = filled
                .map(|(t, s)| TensorViewMut::f32(s, &mut t.data))
                .collect();
            stream.step_into(&[TensorView::f32(&shape, &step)], &mut views)?;
        }
        for (&i, scores) in chunk
            .iter()
            .zip(results[0].data.chunks_exact(tally.classes))
        {
            tally.count(scores, data.label(i), || data.origin(i))?;
        }
        progress(tally.done, tally.indices.len());
    }
    let isa = stream.session().isa().to_owned();
    Ok(tally.accuracy(data.describe(), None, isa, batch))
}

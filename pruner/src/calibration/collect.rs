//! Windows sent through a model part by part.

use super::{Block, Moments};
use crate::{Error, Result};
use lacuna::model::Model;
use lacuna::{DType, Session, SessionOptions, TensorView, TensorViewMut};
use std::time::Instant;

/// The hidden states of all windows before a block.
#[derive(Clone, Debug)]
pub(crate) struct States {
    windows: Vec<Vec<f32>>,
    /// Windows from here on are held out.
    held_out: usize,
    /// Values of a token.
    width: usize,
}

/// The second moments of the inputs of a block's layers.
#[derive(Debug)]
pub(crate) struct Taps {
    /// Of the windows to fit, for each of the block's inputs.
    pub fitted: Vec<Moments>,
    /// Of the windows held out.
    pub held_out: Vec<Moments>,
    /// Wall time: of running the block, and of the sums.
    pub seconds: [f64; 2],
}

impl States {
    /// The states of `windows` before the first block; those from `held_out` on are held out.
    pub fn new(
        before: &Block,
        model: &Model,
        windows: &[&[u32]],
        held_out: usize,
    ) -> Result<States> {
        let mut session = session(before, model)?;
        if let Some(limit) = session.index_limit(0)
            && let Some(token) = windows
                .iter()
                .flat_map(|w| w.iter())
                .find(|&&t| t as usize >= limit)
        {
            return Err(Error::Calibration(format!(
                "token {token} of the text; the model's vocabulary has {limit}"
            )));
        }
        let shape = before.shape();
        let mut states = Vec::with_capacity(windows.len());
        for window in windows {
            let ids: Vec<i64> = window.iter().map(|&t| i64::from(t)).collect();
            let mut out = vec![0.0; before.output];
            run(
                &mut session,
                &[TensorView::i64(&shape, &ids)],
                &mut [&mut out],
            )?;
            states.push(out);
        }
        Ok(States {
            windows: states,
            held_out,
            width: before.output / before.shape()[1].max(1),
        })
    }

    /// Values of a token.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The states, window by window.
    pub fn windows(&self) -> &[Vec<f32>] {
        &self.windows
    }

    /// The same, taken out.
    pub fn into_windows(self) -> Vec<Vec<f32>> {
        self.windows
    }

    /// Bytes of the states.
    pub fn bytes(&self) -> usize {
        self.windows.iter().map(|w| w.len() * 4).sum()
    }

    /// Second moments of the inputs of the layers of `block` in `model`. With `advance` the states become those
    /// behind the block.
    pub fn collect(
        &mut self,
        block: &Block,
        model: &Model,
        full: bool,
        advance: bool,
    ) -> Result<Taps> {
        let mut session = session(block, model)?;
        let (shape, tokens) = (block.shape(), block.shape()[1]);
        let new = || {
            block
                .widths
                .iter()
                .map(|&w| Moments::new(w, full))
                .collect()
        };
        let (mut fitted, mut held_out): (Vec<Moments>, Vec<Moments>) = (new(), new());
        let mut taps: Vec<Vec<f32>> = block.widths.iter().map(|w| vec![0.0; w * tokens]).collect();
        let mut out = vec![0.0; block.output];
        let mut seconds = [0.0; 2];
        for (i, state) in self.windows.iter_mut().enumerate() {
            let started = Instant::now();
            let mut outputs: Vec<&mut [f32]> = taps.iter_mut().map(Vec::as_mut_slice).collect();
            outputs.push(&mut out);
            run(
                &mut session,
                &[TensorView::f32(&shape, state)],
                &mut outputs,
            )?;
            let ran = started.elapsed();
            let sums = if i < self.held_out {
                &mut fitted
            } else {
                &mut held_out
            };
            for ((sum, values), name) in sums.iter_mut().zip(&taps).zip(&block.inputs) {
                let refuse =
                    |what| Error::Calibration(format!("value `{name}`, window {i}: {what}"));
                sum.add(values).map_err(refuse)?;
            }
            seconds[0] += ran.as_secs_f64();
            seconds[1] += (started.elapsed() - ran).as_secs_f64();
            if advance {
                step(state, &out, i)?;
            }
        }
        Ok(Taps {
            fitted,
            held_out,
            seconds,
        })
    }

    /// Sends the states through a block.
    pub fn advance(&mut self, block: &Block, model: &Model) -> Result<()> {
        let block = block.plain();
        let mut session = session(&block, model)?;
        let shape = block.shape();
        let mut out = vec![0.0; block.output];
        for (i, state) in self.windows.iter_mut().enumerate() {
            run(
                &mut session,
                &[TensorView::f32(&shape, state)],
                &mut [&mut out],
            )?;
            step(state, &out, i)?;
        }
        Ok(())
    }
}

fn step(state: &mut Vec<f32>, out: &[f32], window: usize) -> Result<()> {
    if let Some(bad) = out.iter().find(|v| !v.is_finite()) {
        return Err(Error::Calibration(format!(
            "the output of the block holds {bad} in window {window}"
        )));
    }
    state.clear();
    state.extend_from_slice(out);
    Ok(())
}

fn session(block: &Block, model: &Model) -> Result<Session> {
    debug_assert!(matches!(block.dtype(), DType::F32 | DType::I64));
    Ok(Session::new(
        &block.model(model)?,
        SessionOptions::default(),
    )?)
}

fn run(session: &mut Session, inputs: &[TensorView<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
    let shapes: Vec<Vec<usize>> = session.outputs().iter().map(|o| o.1.clone()).collect();
    let views = outputs.iter_mut().zip(&shapes);
    let mut views: Vec<TensorViewMut<'_>> = views.map(|(o, s)| TensorViewMut::f32(s, o)).collect();
    Ok(session.run_into(inputs, &mut views)?)
}

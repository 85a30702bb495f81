//! What an app sees: a session runs one planned model.

use crate::model::Symbols;
use crate::{Error, Model, Result, Tensor, TensorView, TensorViewMut};

/// How a session is planned and run.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Threads that work on one run; 0 takes every core that the process may use.
    pub threads: usize,
    /// The instruction set: "scalar", "avx2", "avx512" or "neon"; `None` takes the best one here.
    pub isa: Option<String>,
    /// Run every weight dense.
    pub dense: bool,
    /// Sizes of the symbolic dimensions; those not named are 1.
    pub symbols: Symbols,
}

/// One planned model with its own activations. Weights are shared with every session of the model.
#[derive(Debug)]
pub struct Session {}

impl Session {
    /// Plans `model` for this device.
    pub fn new(_model: &Model, _options: SessionOptions) -> Result<Session> {
        Err(Error::Option("not built yet".into()))
    }

    /// Names and shapes of the inputs, in the order that a run takes them.
    pub fn inputs(&self) -> &[(String, Vec<usize>)] {
        &[]
    }

    /// Names and shapes of the outputs, in the order that a run fills them.
    pub fn outputs(&self) -> &[(String, Vec<usize>)] {
        &[]
    }

    /// Runs the model. Allocates nothing.
    pub fn run_into(
        &mut self,
        _inputs: &[TensorView<'_>],
        _outputs: &mut [TensorViewMut<'_>],
    ) -> Result<()> {
        Err(Error::Option("not built yet".into()))
    }

    /// Runs the model into new tensors.
    pub fn run(&mut self, inputs: &[TensorView<'_>]) -> Result<Vec<Tensor>> {
        let shapes: Vec<Vec<usize>> = self.outputs().iter().map(|o| o.1.clone()).collect();
        let mut outputs: Vec<Tensor> = shapes.iter().map(|s| Tensor::zeros(s)).collect();
        let mut views: Vec<TensorViewMut<'_>> = outputs
            .iter_mut()
            .zip(&shapes)
            .map(|(t, s)| TensorViewMut::f32(s, &mut t.data))
            .collect();
        self.run_into(inputs, &mut views)?;
        drop(views);
        Ok(outputs)
    }
}

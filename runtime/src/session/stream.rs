//! A recurrent model step by step: what it carries stays here between steps.

use super::{Session, SessionOptions};
use crate::{Error, Model, Result, Tensor, TensorView, TensorViewMut};

/// The most inputs, and the most outputs, of a streamed model.
const MOST: usize = 16;

/// A session of one step of a recurrent network, and the values that it carries from step to step: inputs
/// whose [`carried`](crate::model::Input::carried) names an output. Their first values are zeros.
///
/// With a batch, one stream holds that many sequences in step.
#[derive(Debug)]
pub struct Stream {
    session: Session,
    carried: Vec<Carried>,
    /// Names and shapes of what the caller gives and gets, and where a run takes them.
    inputs: Bindings,
    outputs: Bindings,
    steps: u64,
}

#[derive(Debug, Default)]
struct Bindings {
    named: Vec<(String, Vec<usize>)>,
    slots: Vec<usize>,
}

#[derive(Debug)]
struct Carried {
    name: String,
    shape: Vec<usize>,
    input: usize,
    output: usize,
    now: Vec<f32>,
    next: Vec<f32>,
}

impl Stream {
    /// Plans `model` for this device and starts with zeros.
    ///
    /// # Errors
    /// As [`Session::new`]; when the model carries nothing, or has more than 16 inputs or outputs.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Stream> {
        let refuse = |what: String| Error::Graph {
            graph: model.graph().name.clone(),
            what,
        };
        let session = Session::new(model, options)?;
        let (mut inputs, mut outputs) = (Bindings::default(), Bindings::default());
        let mut carried = Vec::new();
        for (i, input) in model.graph().inputs.iter().enumerate() {
            let (name, shape) = session.inputs()[i].clone();
            let Some(source) = &input.carried else {
                inputs.named.push((name, shape));
                inputs.slots.push(i);
                continue;
            };
            let output = session.outputs().iter().position(|o| o.0 == *source);
            let output = output.ok_or_else(|| refuse(format!("no output `{source}`")))?;
            let zeros = vec![0.0; shape.iter().product()];
            carried.push(Carried {
                name,
                shape,
                input: i,
                output,
                now: zeros.clone(),
                next: zeros,
            });
        }
        for (i, output) in session.outputs().iter().enumerate() {
            if !carried.iter().any(|c| c.output == i) {
                outputs.named.push(output.clone());
                outputs.slots.push(i);
            }
        }
        if carried.is_empty() {
            return Err(refuse("carries nothing from step to step".into()));
        }
        let most = session.inputs().len().max(session.outputs().len());
        if most > MOST {
            return Err(refuse(format!(
                "{most} inputs or outputs; a stream takes {MOST}"
            )));
        }
        Ok(Stream {
            session,
            carried,
            inputs,
            outputs,
            steps: 0,
        })
    }

    /// Names and shapes of what a step takes, without what is carried.
    pub fn inputs(&self) -> &[(String, Vec<usize>)] {
        &self.inputs.named
    }

    /// Names and shapes of what a step returns, without what is carried.
    pub fn outputs(&self) -> &[(String, Vec<usize>)] {
        &self.outputs.named
    }

    /// The session that runs the steps.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Steps since the start or the last [`reset`](Stream::reset).
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Begins a new sequence: what is carried becomes zeros.
    pub fn reset(&mut self) {
        for carried in &mut self.carried {
            carried.now.fill(0.0);
        }
        self.steps = 0;
    }

    /// What the next step takes, by the input's name: to be kept, and given back to
    /// [`set_carried`](Stream::set_carried) later.
    pub fn carried(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.carried.iter().map(|c| (c.name.as_str(), &*c.now))
    }

    /// Replaces what the next step takes.
    ///
    /// # Errors
    /// When nothing of this name is carried, or it has another number of elements.
    pub fn set_carried(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let refuse = |what: String| Error::Binding {
            kind: "input",
            name: name.to_owned(),
            what,
        };
        let Some(carried) = self.carried.iter_mut().find(|c| c.name == name) else {
            return Err(refuse("is not carried".into()));
        };
        if values.len() != carried.now.len() {
            let (have, want) = (values.len(), carried.now.len());
            return Err(refuse(format!("{have} elements, {want} are carried")));
        }
        carried.now.copy_from_slice(values);
        Ok(())
    }

    /// One step. Allocates nothing. After an error the stream stands where it stood.
    pub fn step_into(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [TensorViewMut<'_>],
    ) -> Result<()> {
        self.inputs.check("input", inputs.len())?;
        self.outputs.check("output", outputs.len())?;
        let mut views = [TensorView::f32(&[], &[]); MOST];
        let mut filled: [TensorViewMut<'_>; MOST] =
            std::array::from_fn(|_| TensorViewMut::f32(&[], &mut []));
        for (&slot, view) in self.inputs.slots.iter().zip(inputs) {
            views[slot] = *view;
        }
        for (&slot, view) in self.outputs.slots.iter().zip(outputs) {
            filled[slot] = view.reborrow();
        }
        for carried in &mut self.carried {
            views[carried.input] = TensorView::f32(&carried.shape, &carried.now);
            filled[carried.output] = TensorViewMut::f32(&carried.shape, &mut carried.next);
        }
        let (taken, given) = (self.session.inputs().len(), self.session.outputs().len());
        self.session
            .run_into(&views[..taken], &mut filled[..given])?;
        for carried in &mut self.carried {
            std::mem::swap(&mut carried.now, &mut carried.next);
        }
        self.steps += 1;
        Ok(())
    }

    /// One step into new tensors.
    pub fn step(&mut self, inputs: &[TensorView<'_>]) -> Result<Vec<Tensor>> {
        let shapes: Vec<Vec<usize>> = self.outputs().iter().map(|o| o.1.clone()).collect();
        let mut outputs: Vec<Tensor> = shapes.iter().map(|s| Tensor::zeros(s)).collect();
        let filled = outputs.iter_mut().zip(&shapes);
        let mut views: Vec<_> = filled
            .map(|(t, s)| TensorViewMut::f32(s, &mut t.data))
            .collect();
        self.step_into(inputs, &mut views)?;
        Ok(outputs)
    }
}

impl Bindings {
    fn check(&self, kind: &'static str, given: usize) -> Result<()> {
        if given == self.named.len() {
            return Ok(());
        }
        let names: Vec<&str> = self.named.iter().map(|n| n.0.as_str()).collect();
        Err(Error::Binding {
            kind,
            name: names.join("`, `"),
            what: format!("{given} given, {} expected", names.len()),
        })
    }
}

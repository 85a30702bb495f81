//! Models on a device: a session runs one planned model, a decoder a language model token by token.

mod decoder;
mod measure;
#[cfg(test)]
mod tests;

pub use decoder::{DeviceDecoder, DeviceDecoderOptions};
pub use measure::{Ceilings, StepTime};

use super::{check, check_finite, check_indices};
use crate::cuda::launch::Region;
use crate::cuda::{Machine, Recorded};
use crate::plan::device::{DeviceOptions, DevicePlan, DeviceStepInfo, DeviceValue, Pool};
use crate::{Elements, Error, Model, Result, Tensor, TensorView};

/// Bytes that a session or a decoder has on its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// All of them, rounded as they were handed out.
    pub total: usize,
    /// Packed weights of layers.
    pub weights: usize,
    /// Activations.
    pub arena: usize,
    /// Keys and values.
    pub cache: usize,
}

/// One planned model on a device of its own, captured as one graph of launches. Weights are rounded to 16 bits
/// ([`DeviceStepInfo`] says how each is executed), sums and activations between layers are f32.
///
/// ```no_run
/// use lacuna::cuda::{DeviceOptions, DeviceSession, Gpu};
///
/// let model = lacuna::Model::open("model.safetensors")?;
/// let gpu = Box::new(Gpu::open(0)?);
/// let mut session = DeviceSession::new(&model, gpu, &DeviceOptions::default())?;
/// let image = vec![0.0; 28 * 28];
/// let outputs = session.run(&[lacuna::TensorView::f32(&[1, 1, 28, 28], &image)])?;
/// println!("{:?}", outputs[0].data);
/// # Ok::<(), lacuna::Error>(())
/// ```
#[derive(Debug)]
pub struct DeviceSession {
    machine: Box<dyn Machine>,
    pool: Pool,
    plan: DevicePlan,
    recorded: Recorded,
    inputs: Vec<(String, Vec<usize>)>,
    outputs: Vec<(String, Vec<usize>)>,
}

impl DeviceSession {
    /// Plans `model` for a device, uploads its weights and captures a run.
    ///
    /// # Errors
    /// When a node has no kernel there, when a form that is asked for is not legal, or when the device refuses.
    pub fn new(
        model: &Model,
        mut machine: Box<dyn Machine>,
        options: &DeviceOptions,
    ) -> Result<DeviceSession> {
        let mut pool = Pool::default();
        let plan = DevicePlan::new(model, options, None, &mut *machine, &mut pool)?;
        // SAFETY: the plan made its launches of regions of this machine, which live as long as it.
        let recorded = unsafe { machine.record(&plan.work)? };
        let named = |list: &[DeviceValue]| {
            let pair = |v: &DeviceValue| (v.name.clone(), v.shape.clone());
            list.iter().map(pair).collect()
        };
        Ok(DeviceSession {
            inputs: named(&plan.inputs),
            outputs: named(&plan.outputs),
            machine,
            pool,
            plan,
            recorded,
        })
    }

    /// The device's name.
    pub fn device(&self) -> String {
        self.machine.name()
    }

    /// Names and shapes of the inputs, in the order that a run takes them.
    pub fn inputs(&self) -> &[(String, Vec<usize>)] {
        &self.inputs
    }

    /// Names and shapes of the outputs, in the order that a run returns them.
    pub fn outputs(&self) -> &[(String, Vec<usize>)] {
        &self.outputs
    }

    /// What each step does and why, in the order of execution.
    pub fn steps(&self) -> &[DeviceStepInfo] {
        &self.plan.steps
    }

    /// Bytes on the device.
    pub fn memory(&self) -> DeviceMemory {
        DeviceMemory {
            total: self.pool.bytes,
            weights: self.pool.weight_bytes,
            arena: self.plan.arena,
            cache: 0,
        }
    }

    /// Runs the model.
    ///
    /// # Errors
    /// When an input does not have its shape and dtype or holds NaN or infinities, or when the device fails.
    pub fn run(&mut self, inputs: &[TensorView<'_>]) -> Result<Vec<Tensor>> {
        self.write(inputs)?;
        self.machine.replay(self.recorded)?;
        let mut outputs = Vec::with_capacity(self.plan.outputs.len());
        for output in &self.plan.outputs {
            outputs.push(Tensor {
                data: read(&mut *self.machine, output.region)?,
                shape: output.shape.clone(),
            });
        }
        Ok(outputs)
    }

    fn write(&mut self, inputs: &[TensorView<'_>]) -> Result<()> {
        let given = inputs.iter().map(|v| (v.shape(), v.elements().len()));
        check("input", &self.inputs, given)?;
        for (i, (view, input)) in inputs.iter().zip(&self.plan.inputs).enumerate() {
            let refuse = |what: String| Error::Binding {
                kind: "input",
                name: input.name.clone(),
                what,
            };
            let data = match view.elements() {
                _ if view.dtype() != input.dtype => {
                    let (given, dtype) = (view.dtype(), input.dtype);
                    return Err(refuse(format!(
                        "elements of {given}, the model takes {dtype}"
                    )));
                }
                Elements::F32(data) => {
                    check_finite(&input.name, data)?;
                    data.iter().flat_map(|v| v.to_le_bytes()).collect()
                }
                Elements::I64(data) => {
                    for (_, limit) in self.plan.index_limits.iter().filter(|l| l.0 == i) {
                        check_indices(&input.name, data, *limit)?;
                    }
                    let narrow = |v: &i64| {
                        let wide = format!("{v}; a GPU reads 32 bits");
                        i32::try_from(*v).map_err(|_| refuse(wide))
                    };
                    let words = data.iter().map(narrow).collect::<Result<Vec<i32>>>()?;
                    words
                        .iter()
                        .flat_map(|v| v.to_le_bytes())
                        .collect::<Vec<u8>>()
                }
            };
            self.machine.write(input.region, &data)?;
        }
        Ok(())
    }
}

/// What is in a region of f32.
fn read(machine: &mut dyn Machine, region: Region) -> Result<Vec<f32>> {
    let mut bytes = vec![0; region.bytes];
    machine.read(region, &mut bytes)?;
    let elements = bytes.as_chunks::<4>().0.iter();
    Ok(elements.map(|b| f32::from_le_bytes(*b)).collect())
}

//! The engine whose gradients are candle's, on any device that candle has.
//!
//! Weights stay with the training loop: a step copies them to the device, and the gradients back.

use super::compile::Sample;
use super::engine::{Device, Engine};
use super::loader::Batch;
use super::network::Network;
use crate::tasks::{Found, losses};
use crate::{Error, Result};
use candle_core::{Tensor, Var};
use lacuna::candle::Reference;
use std::collections::HashMap;

/// A graph in candle ops, its trained weights as variables.
pub(super) struct Candle {
    name: Device,
    device: candle_core::Device,
    reference: Reference,
    /// For each parameter, its variable where it descends.
    variables: Vec<Option<Var>>,
    /// Channels, height and width of an image.
    input: [usize; 3],
}

impl Candle {
    pub fn new(name: Device, network: &Network) -> Result<Candle> {
        let failed = |e: candle_core::Error| Error::Training(format!("device {name}: {e}"));
        let device = match name {
            Device::Cuda(n) => candle_core::Device::new_cuda(n).map_err(failed)?,
            Device::Cpu | Device::Candle => candle_core::Device::Cpu,
        };
        let mut variables = Vec::new();
        let mut named = HashMap::new();
        for p in &network.parameters {
            let variable = match p.role.descends() {
                true => {
                    Some(Var::from_slice(&p.data, p.shape.as_slice(), &device).map_err(failed)?)
                }
                false => None,
            };
            if let Some(variable) = &variable {
                named.insert(p.name.clone(), variable.as_tensor().clone());
            }
            variables.push(variable);
        }
        let reference = Reference::with_weights(&network.model, named)?.to_device(&device)?;
        let Sample::Image(input) = network.sample else {
            return Err(Error::Training(format!(
                "device {name}: sequences are trained on `cpu`"
            )));
        };
        Ok(Candle {
            name,
            device,
            reference,
            variables,
            input,
        })
    }

    /// The outputs of a batch, and the running statistics moved on.
    fn forward(&self, network: &mut Network, images: &[f32], batch: usize) -> Result<Vec<Tensor>> {
        let [channels, height, width] = self.input;
        let tensor = |e: candle_core::Error| lacuna::Error::from(e);
        let x = Tensor::from_slice(images, (batch, height, width, channels), &self.device)
            .and_then(|x| x.permute((0, 3, 1, 2))?.contiguous())
            .map_err(tensor)?;
        let place: HashMap<&str, usize> = (network.parameters.iter().enumerate())
            .map(|(i, p)| (p.name.as_str(), i))
            .collect();
        let mut moments = Vec::new();
        let outputs = self
            .reference
            .run_by_batch(&[x], &mut |node, x, statistics| {
                let running = [3, 4].map(|i| place.get(node.inputs[i].as_str()).copied());
                moments.push((running, statistics.map(Tensor::clone), x.elem_count()));
                Ok(())
            })?;
        for (running, batch, elements) in moments {
            let [mean, variance] = batch.map(|t| numbers(&t).map_err(lacuna::Error::from));
            let (mean, variance) = (mean?, variance?);
            let rows = elements / mean.len().max(1);
            let wide = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<f64>>();
            network.follow(running, [&wide(mean), &wide(variance)], rows);
        }
        Ok(outputs)
    }

    fn try_step(
        &mut self,
        network: &mut Network,
        batch: &Batch,
        smoothing: f32,
    ) -> Result<Vec<Found>> {
        let fill = |(v, p): (&Option<Var>, &super::network::Parameter)| match v {
            Some(v) => v.set(&Tensor::from_slice(
                &p.data,
                p.shape.as_slice(),
                &self.device,
            )?),
            None => Ok(()),
        };
        let mut all = self.variables.iter().zip(&network.parameters);
        all.try_for_each(fill).map_err(lacuna::Error::from)?;
        let outputs = self.forward(network, &batch.samples, batch.count)?;
        // Losses and their gradients are those of the other engine; candle goes on from there.
        let mut sum: Option<Tensor> = None;
        let mut found = Vec::with_capacity(network.heads.len());
        for (head, target) in network.heads.iter().zip(&batch.targets) {
            let output = &outputs[head.output];
            let mut planes = numbers(output).map_err(lacuna::Error::from)?;
            let mut rows = vec![0.0; planes.len()];
            head.channels_last(&planes, &mut rows);
            let factor = Some(head.weight / batch.count as f64);
            found.push(Found::sum(&losses(
                head, &mut rows, target, smoothing, factor,
            )));
            head.planes(&rows, &mut planes);
            let part = || -> candle_core::Result<Tensor> {
                let gradient = Tensor::from_slice(&planes, output.dims(), &self.device)?;
                let part = (output * gradient)?.sum_all()?;
                match &sum {
                    Some(sum) => sum + part,
                    None => Ok(part),
                }
            };
            sum = Some(part().map_err(lacuna::Error::from)?);
        }
        let Some(sum) = sum else { return Ok(found) };
        let gradients = sum.backward().map_err(lacuna::Error::from)?;
        for (variable, own) in self.variables.iter().zip(&mut network.gradients) {
            let Some(variable) = variable else { continue };
            match gradients.get(variable.as_tensor()) {
                Some(g) => *own = numbers(g).map_err(lacuna::Error::from)?,
                None => own.fill(0.0),
            }
        }
        Ok(found)
    }
}

impl Engine for Candle {
    fn step(&mut self, network: &mut Network, batch: &Batch, smoothing: f32) -> Result<Vec<Found>> {
        self.try_step(network, batch, smoothing)
            .map_err(|e| Error::Training(format!("device {}: {e}", self.name)))
    }
}

/// The elements of a tensor, row-major.
fn numbers(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

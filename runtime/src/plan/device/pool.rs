//! What plans of one model have on a machine: weights once for each form, constants, tables, keys and values.

use super::DeviceForm;
use crate::Result;
use crate::cuda::launch::{Region, Weight};
use crate::cuda::pack::{self, Form};
use crate::cuda::{Error, Machine};
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of a block that small things are put in.
const BLOCK: usize = 4 << 20;

/// Regions start at multiples of it.
const ALIGNMENT: usize = 256;

/// Memory of a machine, handed out and never taken back, and what was put there by name.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    block: Option<Region>,
    weights: HashMap<(String, DeviceForm), Vec<Weight>>,
    /// By address; what is there stays alive beside, so that no address is another's later.
    constants: HashMap<usize, (Region, Arc<dyn Any + Send + Sync>)>,
    /// Keys and values of each attention, in the order of the graph.
    pub caches: Vec<[Region; 2]>,
    /// The u32 that says how many tokens came before.
    pub past: Option<Region>,
    /// Bytes handed out.
    pub bytes: usize,
    /// Of them weights.
    pub weight_bytes: usize,
}

impl Pool {
    /// A region of so many bytes.
    pub fn take(&mut self, machine: &mut dyn Machine, bytes: usize) -> Result<Region> {
        let length = bytes.max(1).next_multiple_of(ALIGNMENT);
        self.bytes += length;
        if length >= BLOCK {
            let whole = machine.allocate(length)?;
            return Ok(Region { bytes, ..whole });
        }
        let block = match self.block.take() {
            Some(block) if block.bytes >= length => block,
            _ => machine.allocate(BLOCK)?,
        };
        self.block = Some(block.from(length));
        Ok(Region { bytes, ..block })
    }

    /// A region that holds these bytes.
    pub fn put(&mut self, machine: &mut dyn Machine, data: &[u8]) -> Result<Region> {
        let region = self.take(machine, data.len())?;
        machine.write(region, data)?;
        Ok(region)
    }

    /// A region of f32.
    pub fn floats(&mut self, machine: &mut dyn Machine, data: &[f32]) -> Result<Region> {
        self.put(machine, &bytes(data, f32::to_le_bytes))
    }

    /// A table of i32.
    pub fn table(&mut self, machine: &mut dyn Machine, data: &[i32]) -> Result<Region> {
        self.put(machine, &bytes(data, i32::to_le_bytes))
    }

    /// Constants, a part of what `owner` holds, uploaded once.
    pub fn constant(
        &mut self,
        machine: &mut dyn Machine,
        owner: Arc<dyn Any + Send + Sync>,
        data: &[f32],
    ) -> Result<Region> {
        let key = data.as_ptr() as usize;
        if let Some((region, _)) = self.constants.get(&key) {
            return Ok(*region);
        }
        let region = self.floats(machine, data)?;
        self.constants.insert(key, (region, owner));
        Ok(region)
    }

    /// The u32 of positions; 0 until somebody writes it.
    pub fn past(&mut self, machine: &mut dyn Machine) -> Result<Region> {
        if let Some(region) = self.past {
            return Ok(region);
        }
        let region = self.put(machine, &[0; 4])?;
        self.past = Some(region);
        Ok(region)
    }

    /// The matrices of a layer in a form, packed and uploaded once for each name and form.
    pub fn weights(
        &mut self,
        machine: &mut dyn Machine,
        key: &str,
        form: DeviceForm,
        groups: &[crate::Weight],
    ) -> Result<Vec<Weight>> {
        let form = form.packing();
        let name = (key.to_owned(), form);
        if let Some(weights) = self.weights.get(&name) {
            return Ok(weights.clone());
        }
        let before = self.bytes;
        let one = |weight: &crate::Weight, pool: &mut Pool, machine: &mut dyn Machine| {
            upload(machine, pool, form, weight)
        };
        let weights = groups.iter().map(|w| one(w, self, machine));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        self.weight_bytes += self.bytes - before;
        self.weights.insert(name, weights.clone());
        Ok(weights)
    }
}

/// Little-endian bytes of numbers, as every device has them.
pub(super) fn bytes<T: Copy, const N: usize>(data: &[T], of: fn(T) -> [u8; N]) -> Vec<u8> {
    data.iter().flat_map(|v| of(*v)).collect()
}

/// Packs a matrix of 16 bits for a form and uploads it.
pub(super) fn upload(
    machine: &mut dyn Machine,
    pool: &mut Pool,
    form: DeviceForm,
    weight: &crate::Weight,
) -> Result<Weight> {
    let halves = |data: &[u16]| bytes(data, u16::to_le_bytes);
    let words = |data: &[u32]| bytes(data, u32::to_le_bytes);
    Ok(match form.packing() {
        DeviceForm::DenseVector => {
            let packed = pack::rows(&weight.decode())?;
            packed.at(pool.put(machine, &halves(&packed.values))?)
        }
        DeviceForm::DenseMma => {
            let packed = pack::tiles(&weight.decode())?;
            packed.at(pool.put(machine, &halves(&packed.values))?)
        }
        packing @ (DeviceForm::BitmaskVector | DeviceForm::BitmaskMma) => {
            let lay = match packing {
                DeviceForm::BitmaskVector => Form::Vector,
                _ => Form::Matrix,
            };
            let packed = pack::chunks(&weight.encode(), lay)?;
            packed.at(
                pool.put(machine, &words(&packed.masks))?,
                pool.put(machine, &words(&packed.starts))?,
                pool.put(machine, &halves(&packed.values))?,
            )
        }
        _ => {
            let stored = weight.encode_two_four().map_err(Error::Weight)?;
            let packed = pack::two_four(&stored)?;
            packed.at(
                pool.put(machine, &halves(&packed.values))?,
                pool.put(machine, &words(&packed.places))?,
            )
        }
    })
}

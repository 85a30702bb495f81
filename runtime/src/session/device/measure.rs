//! Times of steps on a device, beside what the device reached in the same run.

use super::{DeviceDecoder, DeviceSession};
use crate::cuda::launch::{Epilogue, Product, Region, Weight};
use crate::cuda::pack::Half;
use crate::cuda::{Library, Machine, Recorded, Work};
use crate::plan::device::{DevicePlan, ROTATED};
use crate::{PhaseKind, Result};

/// What a device reached: what times are held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes a second of a copy within the device, read and written.
    pub copy: f64,
    /// Multiply-adds a second of a product of f16 matrices, 4096 cubed, by cuBLASLt; `None` without it.
    pub gemm: Option<f64>,
}

/// What a step took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// Seconds: the median of replays, of a launch with weights that no cache holds.
    pub seconds: f64,
    /// Copies of the step that were replayed in turn.
    pub copies: usize,
    /// Bytes a second of weights and activations.
    pub bandwidth: f64,
    /// Multiply-adds a second that the kernel does.
    pub arithmetic: f64,
}

/// Rows and columns of the product that arithmetic is measured by.
const CUBE: usize = 4096;

fn median(machine: &mut dyn Machine, recorded: Recorded, runs: usize) -> Result<f64> {
    machine.time(recorded, 3)?;
    let mut times = machine.time(recorded, runs.max(1))?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Measures copies and, where cuBLASLt is, a product.
fn ceilings(machine: &mut dyn Machine, runs: usize) -> Result<Ceilings> {
    let before = machine.allocations();
    let measured = measure_ceilings(machine, runs);
    machine.free_to(before)?;
    measured
}

fn measure_ceilings(machine: &mut dyn Machine, runs: usize) -> Result<Ceilings> {
    let (from, to) = (machine.allocate(ROTATED)?, machine.allocate(ROTATED)?);
    // SAFETY: both live until they are freed, after the last replay; they do not overlap.
    let recorded = unsafe { machine.record_copies(&[(to, from)])? };
    let copy = 2.0 * ROTATED as f64 / median(machine, recorded, runs)?;
    let mut gemm = None;
    if machine.limits().blas_lt {
        let matrix = |machine: &mut dyn Machine, size: usize| machine.allocate(CUBE * CUBE * size);
        let (values, x, y): (Region, Region, Region) = (
            matrix(machine, 2)?,
            matrix(machine, 2)?,
            matrix(machine, 4)?,
        );
        // Small numbers of f16, so that nothing is skipped and nothing overflows.
        let numbers: Vec<u8> = (0..CUBE * CUBE)
            .flat_map(|i| (0x2c00u16 + (i % 509) as u16).to_le_bytes())
            .collect();
        machine.write(values, &numbers)?;
        machine.write(x, &numbers)?;
        let weight = Weight::Dense {
            half: Half::F16,
            rows: CUBE,
            cols: CUBE,
            stride: CUBE,
            values,
        };
        let product = Product {
            y,
            x,
            epilogue: Epilogue::NONE,
            columns: CUBE,
        };
        // SAFETY: the regions hold the matrices and live until they are freed, after the last replay.
        let recorded =
            unsafe { machine.record(&[Work::Blas(Library::CublasLt, weight, product)])? };
        gemm = Some((CUBE as f64).powi(3) / median(machine, recorded, runs)?);
    }
    Ok(Ceilings { copy, gemm })
}

/// Times of each step of a plan, replayed by itself: as many copies of its weights in turn as no cache holds.
fn times(plan: &DevicePlan, machine: &mut dyn Machine, runs: usize) -> Result<Vec<StepTime>> {
    let mut all = Vec::with_capacity(plan.steps.len());
    for step in &plan.steps {
        let work = &plan.work[step.launches.clone()];
        let before = machine.allocations();
        let time = rotated(work, machine, runs);
        machine.free_to(before)?;
        let (seconds, copies) = time?;
        let bytes = (step.info.weight_bytes + step.info.activation_bytes) as f64;
        all.push(StepTime {
            seconds,
            copies,
            bandwidth: bytes / seconds,
            arithmetic: step.info.macs as f64 / seconds,
        });
    }
    Ok(all)
}

/// Seconds of one pass through `work` with copies of its weights.
fn rotated(work: &[Work], machine: &mut dyn Machine, runs: usize) -> Result<(f64, usize)> {
    let bytes: usize = work.iter().flat_map(Work::weights).map(|r| r.bytes).sum();
    let copies = match bytes {
        0 => 1,
        n => ROTATED.div_ceil(n).min(256),
    };
    let mut all = work.to_vec();
    for _ in 1..copies {
        let mut again = work.to_vec();
        for one in &mut again {
            for region in one.weights() {
                let copy = machine.allocate(region.bytes)?;
                // SAFETY: a region of a plan and a new one.
                let recorded = unsafe { machine.record_copies(&[(copy, region)])? };
                machine.replay(recorded)?;
                one.replace(region, copy);
            }
        }
        all.extend(again);
    }
    // SAFETY: regions of the plan, and copies that are freed after the last replay.
    let recorded = unsafe { machine.record(&all)? };
    Ok((median(machine, recorded, runs)? / copies as f64, copies))
}

impl DeviceSession {
    /// What the device reaches, and what each of [`steps`](DeviceSession::steps) takes by itself: medians of so many replays.
    ///
    /// # Errors
    /// When the device fails, or has no memory for the copies of weights.
    pub fn measure(&mut self, runs: usize) -> Result<(Ceilings, Vec<StepTime>)> {
        let machine = &mut *self.machine;
        Ok((ceilings(machine, runs)?, times(&self.plan, machine, runs)?))
    }

    /// Seconds of so many runs of the captured graph, by the device's clock.
    ///
    /// # Errors
    /// When the device fails.
    pub fn time(&mut self, runs: usize) -> Result<Vec<f64>> {
        Ok(self.machine.time(self.recorded, runs)?)
    }

    /// Bytes of weights that a run reads.
    pub fn weight_bytes(&self) -> usize {
        self.plan.weight_bytes()
    }
}

impl DeviceDecoder {
    /// As [`DeviceSession::measure`], for the steps of a phase.
    ///
    /// # Errors
    /// As there.
    pub fn measure(&mut self, kind: PhaseKind, runs: usize) -> Result<(Ceilings, Vec<StepTime>)> {
        let ceilings = ceilings(self.machine(), runs)?;
        let mut all = Vec::new();
        let (machine, phase) = self.parts(kind);
        for plan in [Some(&phase.plan), phase.head.as_ref()]
            .into_iter()
            .flatten()
        {
            all.extend(times(plan, machine, runs)?);
        }
        Ok((ceilings, all))
    }
}

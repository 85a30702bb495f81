//! A graph in training mode: forwards with what the way back needs, and backwards to a gradient for every weight.

use super::buffers::Buffers;
use super::compile::{Compiled, Kind, Source, Step, compile};
use super::engine::Engine;
use super::loader::Batch;
use super::network::{Network, Parameter};
use super::norm::{self, Moments};
use super::pointwise::walk;
use super::recurrent::{Parts, States};
use crate::Result;
use crate::tasks::{Found, losses};
use lacuna::Isa;
use std::collections::BTreeMap;

/// Limits of an activation that follows in the same pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    pub low: f32,
    pub high: f32,
}

/// What a step keeps for the way back.
#[derive(Debug)]
enum Saved {
    Nothing,
    Moments(Moments),
    Indices(Vec<u32>),
    States(States),
}

/// The engine of the CPU.
pub(super) struct Tape {
    isa: Isa,
    buffers: Buffers,
    /// Steps by batch size and steps of a sequence.
    compiled: BTreeMap<[usize; 2], Compiled>,
}

impl Tape {
    pub fn new() -> Result<Tape> {
        Ok(Tape::with_isa(Isa::detect()))
    }

    pub fn with_isa(isa: Isa) -> Tape {
        Tape {
            isa,
            buffers: Buffers::default(),
            compiled: BTreeMap::new(),
        }
    }
}

impl Engine for Tape {
    fn step(&mut self, network: &mut Network, batch: &Batch, smoothing: f32) -> Result<Vec<Found>> {
        let sizes = [batch.count, batch.time];
        let compiled = match self.compiled.remove(&sizes) {
            Some(compiled) => compiled,
            None => compile(&network.model, &network.parameters, sizes[0], sizes[1])?,
        };
        network.gradients.iter_mut().for_each(|g| g.fill(0.0));
        let run = Run::forward(self, network, &compiled.steps, &batch.samples);
        let mut gradients: Vec<Option<Vec<f32>>> = vec![None; run.values.len()];
        let mut found = Vec::with_capacity(network.heads.len());
        for (head, target) in network.heads.iter().zip(&batch.targets) {
            let value = compiled.outputs[head.output].0;
            let mut values = self.buffers.take(run.values[value].len());
            values.copy_from_slice(&run.values[value]);
            let factor = Some(head.weight / batch.count as f64);
            found.push(Found::sum(&losses(
                head,
                &mut values,
                target,
                smoothing,
                factor,
            )));
            pass(&mut gradients, Some(value), values, &mut self.buffers);
        }
        run.backward(self, network, &compiled.steps, gradients);
        self.compiled.insert(sizes, compiled);
        Ok(found)
    }
}

/// The values of one pass. Value 0 is the input, value `i + 1` the output of step `i`.
struct Run {
    values: Vec<Vec<f32>>,
    saved: Vec<Saved>,
}

/// The elements of an input.
fn read<'a>(
    values: &'a [Vec<f32>],
    parameters: &'a [Parameter],
    source: Option<&Source>,
) -> &'a [f32] {
    match source {
        Some(Source::Value(i)) => &values[*i],
        Some(Source::Parameter(i)) => &parameters[*i].data,
        None => &[],
    }
}

impl Run {
    fn forward(tape: &mut Tape, network: &mut Network, steps: &[Step], samples: &[f32]) -> Run {
        let mut input = tape.buffers.take(samples.len());
        input.copy_from_slice(samples);
        let mut run = Run {
            values: vec![input],
            saved: Vec::new(),
        };
        for step in steps {
            let mut y = tape.buffers.take(step.len);
            let saved = run.one(tape, network, step, &mut y);
            run.values.push(y);
            run.saved.push(saved);
        }
        run
    }

    fn one(&self, tape: &mut Tape, network: &mut Network, step: &Step, y: &mut [f32]) -> Saved {
        let isa = tape.isa;
        let input = |i: usize| {
            read(
                &self.values,
                &network.parameters,
                step.inputs.get(i).and_then(Option::as_ref),
            )
        };
        let x = input(0);
        let optional = |i: usize| {
            step.inputs
                .get(i)
                .and_then(Option::as_ref)
                .map(|s| read(&self.values, &network.parameters, Some(s)))
        };
        match &step.kind {
            Kind::Conv(conv) => conv.forward(isa, x, input(1), optional(2), y),
            Kind::ConvTranspose(conv) => conv.forward_transposed(isa, x, input(1), optional(2), y),
            Kind::Planes(planes) => planes.forward(x, [input(1), input(2)], y),
            Kind::Norm {
                epsilon,
                batch,
                limits,
            } => {
                let channels = input(1).len();
                let (mean, variance) = norm::statistics(isa, x, channels, *batch);
                let moments = Moments {
                    mean: mean.iter().map(|&m| m as f32).collect(),
                    inverse: variance
                        .iter()
                        .map(|v| (1.0 / (v + f64::from(*epsilon)).sqrt()) as f32)
                        .collect(),
                };
                norm::forward(isa, x, &moments, [input(1), input(2)], *limits, y);
                let rows = x.len() / channels.max(1);
                let running = [3, 4].map(|i| match step.inputs.get(i) {
                    Some(Some(Source::Parameter(p))) => Some(*p),
                    _ => None,
                });
                network.follow(running, [&mean, &variance], rows);
                return Saved::Moments(moments);
            }
            Kind::Activation(f) => f.forward(isa, x, y),
            Kind::Sum { limits } => super::sum::forward(isa, x, input(1), *limits, y),
            Kind::Binary { op, dims, a, b } => op.forward(dims, (x, a), (input(1), b), y),
            Kind::Dense(dense) => dense.forward(isa, x, input(1), optional(2), y),
            Kind::Recurrent(cell) => {
                let parts = Parts::new([1, 2, 3, 4].map(input));
                let weights: Vec<&[f32]> = (5..step.inputs.len()).map(input).collect();
                let states = cell.forward(isa, x, &weights, parts, y, &mut tape.buffers);
                return Saved::States(states);
            }
            Kind::MaxPool(pool) => {
                let mut from = vec![0; y.len()];
                pool.max(x, y, &mut from);
                return Saved::Indices(from);
            }
            Kind::AveragePool(pool, with_padding) => pool.average(x, y, *with_padding),
            Kind::Select(selection) => selection.forward(x, y),
            Kind::Resize(resample) => resample.forward(x, y),
            Kind::Concat { inner } => {
                let row: usize = inner.iter().sum();
                let mut at = 0;
                for (i, &own) in inner.iter().enumerate() {
                    for (y, x) in y.chunks_exact_mut(row).zip(input(i).chunks_exact(own)) {
                        y[at..at + own].copy_from_slice(x);
                    }
                    at += own;
                }
            }
            Kind::Copy => y.copy_from_slice(x),
            Kind::Move(moved) => moved.forward(x, y),
            Kind::Reshape([first, second]) => {
                let mut rows = tape.buffers.take(x.len());
                first.forward(x, &mut rows);
                second.forward(&rows, y);
                tape.buffers.give(rows);
            }
            Kind::Mean {
                dims,
                strides,
                count,
            } => {
                y.fill(0.0);
                let part = 1.0 / *count as f32;
                let each = dims.iter().skip(1).product::<usize>().max(1);
                for (n, x) in x.chunks_exact(each).enumerate() {
                    walk(dims, n, [strides, strides], |i, [at, _]| y[at] += x[i]);
                }
                y.iter_mut().for_each(|y| *y *= part);
            }
            Kind::Softmax { len, inner } => super::sum::softmax(x, *len, *inner, y),
        }
        Saved::Nothing
    }

    fn backward(
        mut self,
        tape: &mut Tape,
        network: &mut Network,
        steps: &[Step],
        mut gradients: Vec<Option<Vec<f32>>>,
    ) {
        for (i, step) in steps.iter().enumerate().rev() {
            if let Some(dy) = gradients[i + 1].take() {
                let saved = std::mem::replace(&mut self.saved[i], Saved::Nothing);
                self.one_back(tape, network, step, i + 1, &saved, dy, &mut gradients);
                if let Saved::States(states) = saved {
                    states.give(&mut tape.buffers);
                }
            }
            tape.buffers.give(std::mem::take(&mut self.values[i + 1]));
        }
        for value in self
            .values
            .into_iter()
            .chain(gradients.into_iter().flatten())
        {
            tape.buffers.give(value);
        }
    }

    /// Consumes the gradient of one step's output.
    #[allow(clippy::too_many_arguments)]
    fn one_back(
        &self,
        tape: &mut Tape,
        network: &mut Network,
        step: &Step,
        output: usize,
        saved: &Saved,
        mut dy: Vec<f32>,
        gradients: &mut [Option<Vec<f32>>],
    ) {
        let Tape { isa, buffers, .. } = tape;
        let isa = *isa;
        let Network {
            parameters,
            gradients: own,
            ..
        } = network;
        let source = |i: usize| step.inputs.get(i).and_then(Option::as_ref);
        let x = read(&self.values, parameters, source(0));
        match &step.kind {
            Kind::Conv(conv) => {
                let (mut dw, mut db) = (take(own, source(1)), take(own, source(2)));
                let mut target = step.wants(0).map(|v| open(gradients, v, x.len(), buffers));
                let weight = read(&self.values, parameters, source(1));
                conv.backward(
                    isa,
                    x,
                    weight,
                    &dy,
                    target.as_mut().map(|(dx, old)| (dx.as_mut_slice(), *old)),
                    &mut dw,
                    source(2).map(|_| db.as_mut_slice()),
                    buffers,
                );
                if let (Some((dx, _)), Some(v)) = (target, step.wants(0)) {
                    gradients[v] = Some(dx);
                }
                give(own, source(1), dw);
                give(own, source(2), db);
            }
            Kind::ConvTranspose(conv) => {
                let (mut dw, mut db) = (take(own, source(1)), take(own, source(2)));
                let weight = read(&self.values, parameters, source(1));
                let bias = source(2).map(|_| db.as_mut_slice());
                conv.backward_transposed(isa, x, weight, &dy, &mut dw, bias, buffers);
                if let Some(v) = step.wants(0) {
                    let mut dx = buffers.take(x.len());
                    conv.forward(isa, &dy, weight, None, &mut dx);
                    pass(gradients, Some(v), dx, buffers);
                }
                give(own, source(1), dw);
                give(own, source(2), db);
            }
            Kind::Planes(planes) => {
                let (mut ds, mut db) = (take(own, source(1)), take(own, source(2)));
                let scale = read(&self.values, parameters, source(1));
                planes.backward(x, scale, &mut dy, [&mut ds, &mut db]);
                give(own, source(1), ds);
                give(own, source(2), db);
                pass(gradients, step.wants(0), dy, buffers);
                return;
            }
            Kind::Norm { batch, limits, .. } => {
                let (mut ds, mut db) = (take(own, source(1)), take(own, source(2)));
                let affine = [1, 2].map(|i| read(&self.values, parameters, source(i)));
                if let Saved::Moments(moments) = saved {
                    norm::backward(
                        isa,
                        x,
                        *batch,
                        moments,
                        affine,
                        *limits,
                        &mut dy,
                        [&mut ds, &mut db],
                    );
                }
                give(own, source(1), ds);
                give(own, source(2), db);
                pass(gradients, step.wants(0), dy, buffers);
                return;
            }
            Kind::Activation(f) => {
                f.backward(isa, x, &mut dy);
                pass(gradients, step.wants(0), dy, buffers);
                return;
            }
            Kind::Sum { limits } => {
                super::sum::backward(isa, &self.values[output], *limits, &mut dy);
                if let Some(v) = step.wants(1) {
                    match step.wants(0) {
                        Some(_) => {
                            let mut copy = buffers.take(dy.len());
                            copy.copy_from_slice(&dy);
                            pass(gradients, Some(v), copy, buffers);
                        }
                        None => return pass(gradients, Some(v), dy, buffers),
                    }
                }
                pass(gradients, step.wants(0), dy, buffers);
                return;
            }
            Kind::Binary { op, dims, a, b } => {
                let operands = [0, 1].map(|i| read(&self.values, parameters, source(i)));
                let lens = operands.map(<[f32]>::len);
                for (which, &len) in lens.iter().enumerate() {
                    let mut to = match source(which) {
                        Some(Source::Value(v)) if step.wants(which).is_some() => {
                            let (mut to, old) = open(gradients, *v, len, buffers);
                            if !old {
                                to.fill(0.0);
                            }
                            to
                        }
                        Some(Source::Parameter(p)) => std::mem::take(&mut own[*p]),
                        _ => continue,
                    };
                    if !to.is_empty() {
                        let operands = [0, 1].map(|i| read(&self.values, parameters, source(i)));
                        op.backward(
                            which,
                            dims,
                            (operands[0], a),
                            (operands[1], b),
                            &dy,
                            &mut to,
                        );
                    }
                    match source(which) {
                        Some(Source::Value(v)) => gradients[*v] = Some(to),
                        Some(Source::Parameter(p)) => own[*p] = to,
                        None => {}
                    }
                }
            }
            Kind::Dense(dense) => {
                let (mut dw, mut db) = (take(own, source(1)), take(own, source(2)));
                dense.backward_weight(
                    isa,
                    x,
                    &dy,
                    &mut dw,
                    source(2)
                        .filter(|_| !db.is_empty())
                        .map(|_| db.as_mut_slice()),
                );
                if let Some(v) = step.wants(0) {
                    let mut dx = buffers.take(x.len());
                    let weight = read(&self.values, parameters, source(1));
                    dense.backward_input(isa, weight, &dy, &mut dx);
                    pass(gradients, Some(v), dx, buffers);
                }
                give(own, source(1), dw);
                give(own, source(2), db);
            }
            Kind::Recurrent(cell) => {
                let Saved::States(states) = saved else {
                    return buffers.give(dy);
                };
                let read = |i: usize| read(&self.values, parameters, source(i));
                let matrices = 5..step.inputs.len();
                let weights: Vec<&[f32]> = matrices.clone().map(read).collect();
                let mut dvectors = [1, 2, 3, 4].map(|i| take(own, source(i)));
                let mut dweights: Vec<Vec<f32>> =
                    matrices.clone().map(|i| take(own, source(i))).collect();
                let mut dx = buffers.take(x.len());
                cell.backward(
                    isa,
                    states,
                    &weights,
                    Parts::new([1, 2, 3, 4].map(read)),
                    &dy,
                    &mut dx,
                    &mut dweights,
                    dvectors.each_mut().map(Vec::as_mut_slice),
                    buffers,
                );
                for (i, gradient) in (1..).zip(dvectors.into_iter().chain(dweights)) {
                    give(own, source(i), gradient);
                }
                pass(gradients, step.wants(0), dx, buffers);
            }
            Kind::Concat { inner } => {
                let row: usize = inner.iter().sum();
                let mut at = 0;
                for (i, &own) in inner.iter().enumerate() {
                    if let Some(v) = step.wants(i) {
                        let mut dx = buffers.take(dy.len() / row.max(1) * own);
                        for (dx, dy) in dx.chunks_exact_mut(own).zip(dy.chunks_exact(row)) {
                            dx.copy_from_slice(&dy[at..at + own]);
                        }
                        pass(gradients, Some(v), dx, buffers);
                    }
                    at += own;
                }
            }
            Kind::Copy => return pass(gradients, step.wants(0), dy, buffers),
            Kind::Softmax { len, inner } => {
                super::sum::softmax_back(&self.values[output], *len, *inner, &mut dy);
                return pass(gradients, step.wants(0), dy, buffers);
            }
            Kind::MaxPool(_)
            | Kind::AveragePool(..)
            | Kind::Select(_)
            | Kind::Resize(_)
            | Kind::Move(_)
            | Kind::Reshape(_)
            | Kind::Mean { .. } => {
                let Some(v) = step.wants(0) else {
                    return buffers.give(dy);
                };
                let mut dx = buffers.zeros(x.len());
                match (&step.kind, saved) {
                    (Kind::MaxPool(pool), Saved::Indices(from)) => {
                        pool.max_back(&dy, from, &mut dx)
                    }
                    (Kind::AveragePool(pool, with_padding), _) => {
                        pool.average_back(&dy, &mut dx, *with_padding)
                    }
                    (Kind::Select(selection), _) => selection.backward(&dy, &mut dx),
                    (Kind::Resize(resample), _) => resample.backward(&dy, &mut dx),
                    (Kind::Move(moved), _) => moved.backward(&dy, &mut dx),
                    (Kind::Reshape([first, second]), _) => {
                        let mut rows = buffers.take(dy.len());
                        second.backward(&dy, &mut rows);
                        first.backward(&rows, &mut dx);
                        buffers.give(rows);
                    }
                    (
                        Kind::Mean {
                            dims,
                            strides,
                            count,
                        },
                        _,
                    ) => {
                        let part = 1.0 / *count as f32;
                        let each = dims.iter().skip(1).product::<usize>().max(1);
                        for (n, dx) in dx.chunks_exact_mut(each).enumerate() {
                            walk(dims, n, [strides, strides], |i, [at, _]| {
                                dx[i] = dy[at] * part
                            });
                        }
                    }
                    _ => {}
                }
                pass(gradients, Some(v), dx, buffers);
            }
        }
        buffers.give(dy);
    }
}

/// Takes a parameter's gradient out, to be given back.
fn take(gradients: &mut [Vec<f32>], source: Option<&Source>) -> Vec<f32> {
    match source {
        Some(Source::Parameter(p)) => std::mem::take(&mut gradients[*p]),
        _ => Vec::new(),
    }
}

fn give(gradients: &mut [Vec<f32>], source: Option<&Source>, gradient: Vec<f32>) {
    if let Some(Source::Parameter(p)) = source {
        gradients[*p] = gradient;
    }
}

/// The gradient of a value to write to, and whether there is one to add to.
fn open(
    gradients: &mut [Option<Vec<f32>>],
    v: usize,
    len: usize,
    buffers: &mut Buffers,
) -> (Vec<f32>, bool) {
    match gradients[v].take() {
        Some(old) => (old, true),
        None => (buffers.take(len), false),
    }
}

/// Hands a gradient on to a value.
fn pass(
    gradients: &mut [Option<Vec<f32>>],
    v: Option<usize>,
    gradient: Vec<f32>,
    buffers: &mut Buffers,
) {
    let Some(v) = v else {
        return buffers.give(gradient);
    };
    match &mut gradients[v] {
        Some(sum) => {
            sum.iter_mut().zip(&gradient).for_each(|(s, g)| *s += g);
            buffers.give(gradient);
        }
        empty => *empty = Some(gradient),
    }
}

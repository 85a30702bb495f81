//! A language model on a device: keys and values, activations and the captured launches of a token stay there.

use super::{DeviceMemory, read};
use crate::cuda::launch::{self, Draw, Region};
use crate::cuda::{Machine, Recorded, Work};
use crate::plan::device::{DeviceOptions, DevicePlan, DeviceStepInfo, Pool};
use crate::session::decoder::{CAPACITY, CHUNK, split, token_input};
use crate::session::generate::{self, Chooses, Sampler};
use crate::{Error, GenerateOptions, Generated, Model, PhaseKind, Result};
use std::ops::ControlFlow;

/// How a decoder on a device is planned.
#[derive(Clone, Debug, Default)]
pub struct DeviceDecoderOptions {
    /// As of a session; symbols are the decoder's own.
    pub plan: DeviceOptions,
    /// Positions whose keys and values are kept. 0 takes the model's context, 2048 at most.
    pub capacity: usize,
    /// Tokens of a prompt that are processed at a time; 0 takes 128.
    pub chunk: usize,
}

/// A planned language model on a device. Weights are in 16 bits, keys and values f16. One graph of launches for a token and one
/// for a chunk, over one set of weights; a weight whose fastest form differs between them is there in both.
#[derive(Debug)]
pub struct DeviceDecoder {
    machine: Box<dyn Machine>,
    pool: Pool,
    step: Phase,
    chunk: Phase,
    past: Region,
    /// The most likely next token, u32.
    best: Region,
    logits: Region,
    /// The number that a token is drawn by, f32.
    draw: Region,
    /// Which row of a chunk the output layer reads, u32.
    row: Region,
    capacity: usize,
    position: usize,
    vocabulary: usize,
    name: String,
    limit: usize,
}

/// A captured run of so many tokens.
#[derive(Debug)]
pub(super) struct Phase {
    pub plan: DevicePlan,
    pub head: Option<DevicePlan>,
    recorded: Recorded,
    tokens: usize,
}

impl DeviceDecoder {
    /// Plans `model` for a device, uploads its weights and captures both runs.
    ///
    /// # Errors
    /// As [`Decoder::new`](crate::Decoder::new), and when a node has no kernel there or the device refuses.
    pub fn new(
        model: &Model,
        mut machine: Box<dyn Machine>,
        options: &DeviceDecoderOptions,
    ) -> Result<DeviceDecoder> {
        let graph = model.graph();
        let refuse = |what: String| Error::Graph {
            graph: graph.name.clone(),
            what,
        };
        let (batch, tokens) = token_input(graph).map_err(|e| refuse(format!("no decoder: {e}")))?;
        let context = model.text.as_ref().map(|t| t.context).filter(|&c| c > 0);
        let capacity = match (options.capacity, context) {
            (0, _) => context.unwrap_or(CAPACITY).min(CAPACITY),
            (n, Some(context)) if n > context => {
                return Err(Error::Option(format!(
                    "a capacity of {n} positions; the model's context is {context}"
                )));
            }
            (n, _) => n,
        };
        let chunk = match options.chunk {
            0 => CHUNK,
            n => n,
        };
        let chunk = chunk.min(capacity);
        let parts = split(model)?;
        let body = parts.as_ref().map_or(model, |p| &p.0);
        let mut pool = Pool::default();
        let past = pool.past(&mut *machine)?;
        let row = pool.put(&mut *machine, &[0; 4])?;
        let best = pool.put(&mut *machine, &[0; 4])?;
        let draw = pool.put(&mut *machine, &[0; 4])?;
        let mut logits = None;
        let mut phase = |length: usize, machine: &mut dyn Machine, pool: &mut Pool| {
            let mut plan = options.plan.clone();
            plan.symbols.insert(tokens.clone(), length);
            plan.symbols.extend(batch.clone().map(|b| (b, 1)));
            let body = DevicePlan::new(body, &plan, Some(capacity), machine, pool)?;
            let head = match &parts {
                None => None,
                Some((_, head)) => Some(DevicePlan::new(head, &plan, None, machine, pool)?),
            };
            let output = &body.outputs[0];
            let width = output.shape.last().copied().unwrap_or(0);
            let mut work = body.work.clone();
            // The last token's row goes to the output layer, or is the logits.
            let vocabulary = head
                .as_ref()
                .map_or(width, |h| h.outputs[0].shape.last().copied().unwrap_or(0));
            let to = match &logits {
                Some(region) => *region,
                None => *logits.insert(pool.take(machine, vocabulary * 4)?),
            };
            let at = head.as_ref().map_or(to, |h| h.inputs[0].region);
            let size = (length, width);
            work.push(Work::Launch(launch::embed_f32(
                at,
                output.region,
                row,
                1,
                size,
            )?));
            if let Some(head) = &head {
                work.extend(head.work.iter().cloned());
                let (from, zero) = (head.outputs[0].region, pool.put(machine, &[0; 4])?);
                let size = (1, vocabulary);
                work.push(Work::Launch(launch::embed_f32(to, from, zero, 1, size)?));
            }
            work.push(Work::Launch(launch::argmax(best, to, 1, vocabulary)?));
            // SAFETY: the plans made their launches of regions of this machine, which live as long as it.
            let recorded = unsafe { machine.record(&work)? };
            Ok::<_, Error>((
                Phase {
                    plan: body,
                    head,
                    recorded,
                    tokens: length,
                },
                vocabulary,
                to,
            ))
        };
        let (step, vocabulary, logits) = phase(1, &mut *machine, &mut pool)?;
        let (chunk, ..) = phase(chunk, &mut *machine, &mut pool)?;
        let limit = step.plan.index_limits.first().map_or(usize::MAX, |l| l.1);
        Ok(DeviceDecoder {
            name: graph.inputs[0].name.clone(),
            machine,
            pool,
            step,
            chunk,
            past,
            best,
            logits,
            draw,
            row,
            capacity,
            position: 0,
            vocabulary,
            limit,
        })
    }

    /// The device's name.
    pub fn device(&self) -> String {
        self.machine.name()
    }

    /// The longest sequence.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens processed so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Logits of one token.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Tokens of a prompt that are processed at a time.
    pub fn chunk(&self) -> usize {
        self.chunk.tokens
    }

    /// Forgets every token from `position` on.
    pub fn truncate(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    /// What each step of a run does and why, in the order of execution; the output layer's last.
    pub fn steps(&self, kind: PhaseKind) -> Vec<&DeviceStepInfo> {
        let phase = self.phase(kind);
        let head = phase.head.iter().flat_map(|h| &h.steps);
        phase.plan.steps.iter().chain(head).collect()
    }

    /// Bytes on the device.
    pub fn memory(&self) -> DeviceMemory {
        let plans = [&self.step, &self.chunk].into_iter();
        let plans = plans.flat_map(|p| [Some(&p.plan), p.head.as_ref()]);
        let caches = self.pool.caches.iter().flatten();
        DeviceMemory {
            total: self.pool.bytes,
            weights: self.pool.weight_bytes,
            arena: plans.flatten().map(|p| p.arena).sum(),
            cache: caches.map(|c| c.bytes).sum(),
        }
    }

    /// Processes `tokens` after those before and returns the logits that follow the last one.
    ///
    /// # Errors
    /// When there are none, when one is not in the vocabulary, when they do not fit the capacity (the sequence is then as it
    /// was), or when the device fails.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.feed(tokens)?;
        read(&mut *self.machine, self.logits)
    }

    /// Processes one token and returns the logits that follow it.
    ///
    /// # Errors
    /// As [`prefill`](DeviceDecoder::prefill).
    pub fn step(&mut self, token: u32) -> Result<Vec<f32>> {
        self.prefill(&[token])
    }

    /// Processes `tokens` and returns the most likely next one: four bytes come from the device.
    ///
    /// # Errors
    /// As [`prefill`](DeviceDecoder::prefill).
    pub fn next(&mut self, tokens: &[u32]) -> Result<u32> {
        self.feed(tokens)?;
        self.best()
    }

    /// As [`Decoder::generate`](crate::Decoder::generate); tokens are chosen on the device, by the numbers of the same generator.
    ///
    /// # Errors
    /// As [`prefill`](DeviceDecoder::prefill), and as [`Sampler::new`].
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated> {
        generate::generate(self, prompt, options, on_token)
    }

    fn best(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.machine.read(self.best, &mut bytes)?;
        let token = u32::from_le_bytes(bytes);
        match (token as usize) < self.vocabulary {
            true => Ok(token),
            false => Err(Error::Option("the logits are NaN".into())),
        }
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        self.check(tokens)?;
        let mut at = 0;
        while at < tokens.len() {
            let left = tokens.len() - at;
            let (kind, count) = match self.chunk.tokens.min(left) {
                1 => (PhaseKind::Step, 1),
                n => (PhaseKind::Chunk, n),
            };
            self.run(kind, &tokens[at..at + count])?;
            at += count;
        }
        Ok(())
    }

    fn run(&mut self, kind: PhaseKind, tokens: &[u32]) -> Result<()> {
        let phase = self.phase(kind);
        let (ids, recorded) = (phase.plan.inputs[0].region, phase.recorded);
        // What lies behind the tokens is computed and read by nobody: later tokens overwrite its keys.
        let mut padded = vec![0u32; phase.tokens];
        padded[..tokens.len()].copy_from_slice(tokens);
        let bytes: Vec<u8> = padded.iter().flat_map(|t| t.to_le_bytes()).collect();
        let word = |n: usize| (n as u32).to_le_bytes();
        self.machine.write(ids, &bytes)?;
        self.machine.write(self.past, &word(self.position))?;
        self.machine.write(self.row, &word(tokens.len() - 1))?;
        self.machine.replay(recorded)?;
        self.position += tokens.len();
        Ok(())
    }

    pub(super) fn phase(&self, kind: PhaseKind) -> &Phase {
        match kind {
            PhaseKind::Step => &self.step,
            PhaseKind::Chunk => &self.chunk,
        }
    }

    pub(super) fn parts(&mut self, kind: PhaseKind) -> (&mut dyn Machine, &Phase) {
        let phase = match kind {
            PhaseKind::Step => &self.step,
            PhaseKind::Chunk => &self.chunk,
        };
        (&mut *self.machine, phase)
    }

    pub(super) fn machine(&mut self) -> &mut dyn Machine {
        &mut *self.machine
    }

    /// Seconds of so many runs of one token, or of a chunk, after `position` tokens, by the device's clock; the sequence is as
    /// it was, but what was kept behind it.
    ///
    /// # Errors
    /// When there is no room for the tokens, or the device fails.
    pub fn time(&mut self, kind: PhaseKind, position: usize, runs: usize) -> Result<Vec<f64>> {
        let phase = self.phase(kind);
        let (count, recorded) = (phase.tokens, phase.recorded);
        if position + count > self.capacity {
            let capacity = self.capacity;
            return Err(Error::Option(format!(
                "{count} tokens after {position}, the capacity is {capacity}"
            )));
        }
        self.truncate(position);
        self.machine
            .write(self.past, &(position as u32).to_le_bytes())?;
        Ok(self.machine.time(recorded, runs)?)
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        let refuse = |what: String| {
            Err(Error::Binding {
                kind: "input",
                name: self.name.clone(),
                what,
            })
        };
        if tokens.is_empty() {
            return refuse("no tokens".into());
        }
        if let Some(at) = tokens.iter().position(|&t| t as usize >= self.limit) {
            let (token, limit) = (tokens[at], self.limit);
            return refuse(format!("token {at} is {token}, the vocabulary has {limit}"));
        }
        if tokens.len() > self.capacity - self.position {
            let (n, past, capacity) = (tokens.len(), self.position, self.capacity);
            return refuse(format!(
                "{n} tokens after {past}, the capacity is {capacity}"
            ));
        }
        Ok(())
    }
}

impl Chooses for DeviceDecoder {
    fn choose(&mut self, tokens: &[u32], sampler: &mut Sampler) -> Result<u32> {
        self.feed(tokens)?;
        let how = sampler.sampling();
        if how.temperature == 0.0 || how.top_k == 1 {
            return self.best();
        }
        // f32 rounds what is nearest to 1 up to it.
        let number = (sampler.uniform() as f32).min(1.0 - f32::EPSILON);
        self.machine.write(self.draw, &number.to_le_bytes())?;
        let how = Draw {
            temperature: how.temperature,
            top_k: how.top_k,
            top_p: how.top_p,
        };
        let size = (1, self.vocabulary);
        let work = launch::sample(self.best, self.logits, self.draw, size, &how)?;
        // SAFETY: regions of this machine.
        unsafe { self.machine.run(&[Work::Launch(work)])? };
        self.best()
    }

    fn is_full(&self) -> bool {
        self.position >= self.capacity
    }
}

//! A language model run token by token: keys and values of earlier positions are kept.

use super::bound::{Arena, Bound, Cache};
use super::{isa, team};
use crate::kernels::cpu::Sequence;
use crate::kernels::cpu::team::Team;
use crate::model::{Dim, Graph, Input, Op, Symbols};
use crate::plan::{Costs, Forms, Memory, Plan, PlanOptions, Slot, StepInfo, Tuned};
use crate::{DType, Error, Isa, Model, Result};
use std::time::{Duration, Instant};

/// Positions kept when neither the app nor the model says how many.
pub(super) const CAPACITY: usize = 2048;

/// Tokens of a chunk when the app does not say how many.
pub(super) const CHUNK: usize = 128;

/// How a decoder is planned and run.
#[derive(Clone, Debug, Default)]
pub struct DecoderOptions {
    /// Threads that work on one run; 0 takes every core that the process may use.
    pub threads: usize,
    /// The instruction set, as in [`SessionOptions`](crate::SessionOptions::isa).
    pub isa: Option<String>,
    /// Run every weight dense.
    pub dense: bool,
    /// Forms to execute weights in, by name, as in [`SessionOptions`](crate::SessionOptions::forms). List
    /// one for a token and one for a chunk; both dense or both bitmask where no weight may be held twice.
    pub forms: Forms,
    /// Choices that were measured, as in [`SessionOptions`](crate::SessionOptions::tuned).
    pub tuned: Option<Tuned>,
    /// As [`SessionOptions::costs`](crate::SessionOptions::costs).
    pub costs: Costs,
    /// As [`SessionOptions::round_inputs`](crate::SessionOptions::round_inputs); `None` rounds where layers
    /// become faster by it: where the instruction set [multiplies](crate::Isa::multiplies) such. The error is of the size that storing
    /// weights so has.
    pub round_inputs: Option<bool>,
    /// Positions whose keys and values are kept: the longest sequence. 0 takes the model's context,
    /// 2048 at most.
    pub capacity: usize,
    /// Tokens of a prompt that are processed at a time; 0 takes 128.
    pub chunk: usize,
    /// Compute the logits of every token of a prompt and not only of its last: for perplexity.
    pub all_logits: bool,
}

/// A planned language model with its own keys, values and threads. Weights are shared with every
/// session and decoder of the same [`Model`] and its clones.
///
/// There are two plans, for one token and for a chunk of them, over one set of weights and one
/// arena; nothing is planned and nothing is allocated while it runs.
///
/// ```no_run
/// # fn main() -> Result<(), lacuna::Error> {
/// let model = lacuna::Model::open("smollm2.safetensors")?;
/// let mut decoder = lacuna::Decoder::new(&model, lacuna::DecoderOptions::default())?;
/// let mut logits = decoder.prefill(&[1, 4093, 253])?;
/// # let next = logits.len() as u32 - 1;
/// logits = decoder.step(next)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Decoder {
    step: Phase,
    chunk: Phase,
    head: Option<Head>,
    team: Team,
    arena: Arena,
    cache: Cache,
    /// Token ids of the run.
    ids: Vec<i64>,
    past: usize,
    /// Where the logits of the last token are, until a token is forgotten.
    last: Option<(PhaseKind, usize)>,
    capacity: usize,
    vocabulary: usize,
    isa: Isa,
    pack_time: Duration,
}

/// A plan for a fixed number of tokens, and where its output is.
#[derive(Debug)]
struct Phase {
    bound: Bound,
    tokens: usize,
    /// Elements of the output for one token.
    width: usize,
}

/// The output layer, run for one token.
#[derive(Debug)]
struct Head {
    phase: Phase,
    input: Vec<f32>,
}

/// Which of a decoder's two plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseKind {
    /// One token.
    Step,
    /// A chunk of a prompt.
    Chunk,
}

/// The steps of one run and their times.
pub type StepTimes<'d> = (Vec<&'d StepInfo>, Vec<Duration>);

impl Decoder {
    /// Plans `model` for this device.
    ///
    /// # Errors
    /// When the model is no decoder (one I64 input `[N, T]` with a symbolic `T`, attention with a
    /// cache, one output), when a node cannot be executed, when the capacity is beyond the model's
    /// context, or when the system has no memory or threads.
    pub fn new(model: &Model, options: DecoderOptions) -> Result<Decoder> {
        let graph = model.graph();
        let refuse = |what: String| Error::Graph {
            graph: graph.name.clone(),
            what,
        };
        let (batch, tokens) = token_input(graph).map_err(|e| refuse(format!("no decoder: {e}")))?;
        let context = model.text.as_ref().map(|t| t.context).filter(|&c| c > 0);
        let capacity = match options.capacity {
            0 => context.unwrap_or(CAPACITY).min(CAPACITY),
            n if context.is_some_and(|c| n > c) => {
                let context = context.unwrap_or_default();
                return Err(Error::Option(format!(
                    "a capacity of {n} positions; the model's context is {context}"
                )));
            }
            n => n,
        };
        let chunk = match options.chunk {
            0 => CHUNK,
            n => n,
        }
        .min(capacity);
        let isa = isa(options.isa.as_deref())?;
        let team = team(options.threads)?;
        let start = Instant::now();
        let plan = |model: &Model, length: usize| {
            let mut symbols = Symbols::from([(tokens.clone(), length)]);
            symbols.extend(batch.clone().map(|b| (b, 1)));
            Plan::new(
                model,
                &PlanOptions {
                    isa,
                    dense: options.dense,
                    round_inputs: options.round_inputs,
                    symbols,
                    capacity: Some(capacity),
                    threads: team.size(),
                    forms: options.forms.clone(),
                    tuned: options.tuned.clone(),
                    costs: options.costs.clone(),
                    pack_cache: None,
                },
            )
        };
        let parts = match options.all_logits {
            true => None,
            false => split(model)?,
        };
        let body = parts.as_ref().map_or(model, |p| &p.0);
        let (step, chunk_plan) = (plan(body, 1)?, plan(body, chunk)?);
        let head = parts.as_ref().map(|p| plan(&p.1, 1)).transpose()?;
        let plans: Vec<&Plan> = [&step, &chunk_plan].into_iter().chain(&head).collect();
        let arena = Arena::new(&plans, team.size())?;
        let cache = Cache::new(step.cache_len.max(chunk_plan.cache_len))?;
        let last_axis = |values: &[(String, Vec<usize>)]| {
            let width = values.first().and_then(|(_, shape)| shape.last().copied());
            width.unwrap_or(0)
        };
        let phase = |plan: Plan, tokens: usize| Phase {
            width: last_axis(plan.outputs()),
            bound: Bound::new(plan, &arena),
            tokens,
        };
        let head = head.map(|plan| Head {
            input: vec![0.0; last_axis(plan.inputs())],
            phase: phase(plan, 1),
        });
        let (step, chunk) = (phase(step, 1), phase(chunk_plan, chunk));
        let vocabulary = head.as_ref().map_or(step.width, |h| h.phase.width);
        for phase in [Some(&step), Some(&chunk), head.as_ref().map(|h| &h.phase)] {
            let output = phase.and_then(|p| p.bound.plan.outputs.first());
            if !output.is_none_or(|o| matches!(o.slot, Slot::Arena(_))) {
                return Err(refuse(
                    "no decoder: the output is an input or a constant".into(),
                ));
            }
        }
        Ok(Decoder {
            ids: vec![0; chunk.tokens],
            step,
            chunk,
            head,
            team,
            arena,
            cache,
            past: 0,
            last: None,
            capacity,
            vocabulary,
            isa,
            pack_time: start.elapsed(),
        })
    }

    /// The longest sequence.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens processed so far: the position of the next one.
    pub fn position(&self) -> usize {
        self.past
    }

    /// Logits of one token.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Tokens of a prompt that are processed at a time.
    pub fn chunk(&self) -> usize {
        self.chunk.tokens
    }

    /// The instruction set in use.
    pub fn isa(&self) -> &str {
        self.isa.name()
    }

    /// Threads that work on one run.
    pub fn threads(&self) -> usize {
        self.team.size()
    }

    /// The time that planning took.
    pub fn plan_time(&self) -> Duration {
        self.pack_time
    }

    /// Forgets every token.
    pub fn reset(&mut self) {
        self.truncate(0);
    }

    /// Forgets every token from `position` on, so that a sequence can be continued in another way.
    /// Does nothing when fewer tokens were processed.
    pub fn truncate(&mut self, position: usize) {
        if position < self.past {
            self.past = position;
            self.last = None;
        }
    }

    /// The logits that follow the last token, as [`prefill`](Decoder::prefill) and [`step`](Decoder::step)
    /// returned them; `None` where no token was processed since the start, a reset or a truncation, and
    /// after [`score`](Decoder::score).
    pub fn logits(&self) -> Option<&[f32]> {
        let (kind, i) = self.last?;
        Some(match &self.head {
            Some(head) => row(&self.arena, &head.phase, 0),
            None => self.output(kind, i),
        })
    }

    /// What each step of a plan does and why, in the order of execution.
    pub fn steps(&self, kind: PhaseKind) -> Vec<&StepInfo> {
        let phase = match kind {
            PhaseKind::Step => &self.step,
            PhaseKind::Chunk => &self.chunk,
        };
        let head = self.head.iter().flat_map(|h| h.phase.bound.plan.steps());
        phase.bound.plan.steps().iter().chain(head).collect()
    }

    /// Bytes held for activations, keys and values, and weights; each weight counts once.
    pub fn memory(&self) -> Memory {
        let head = self.head.as_ref().map(|h| h.phase.bound.plan.memory());
        let (one, head) = (self.step.bound.plan.memory(), head.unwrap_or_default());
        let all = [one, self.chunk.bound.plan.memory(), head];
        Memory {
            arena: self.arena.byte_len(),
            activations: all.iter().map(|m| m.activations).max().unwrap_or(0),
            activations_bound: all.iter().map(|m| m.activations_bound).max().unwrap_or(0),
            cache: self.cache.byte_len(),
            packed: one.packed + head.packed,
            mapped: one.mapped + head.mapped,
        }
    }

    /// Processes `tokens` after those before and returns the logits that follow the last one.
    ///
    /// # Errors
    /// When there are none, when one is not in the vocabulary, or when they do not fit the
    /// capacity; the sequence is then as it was.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.check(tokens)?;
        let mut at = 0;
        let mut last = (PhaseKind::Step, 0);
        while at < tokens.len() {
            let (kind, count) = self.next(tokens.len() - at);
            self.run(kind, &tokens[at..at + count], None);
            last = (kind, count - 1);
            at += count;
        }
        Ok(self.logits_of(last.0, last.1, None))
    }

    /// Processes one token and returns the logits that follow it.
    ///
    /// # Errors
    /// As [`prefill`](Decoder::prefill).
    pub fn step(&mut self, token: u32) -> Result<&[f32]> {
        self.prefill(&[token])
    }

    /// Processes `tokens` and hands `read` the logits that follow each of them, by its index.
    ///
    /// # Errors
    /// As [`prefill`](Decoder::prefill), and when the decoder was not made with
    /// [`all_logits`](DecoderOptions::all_logits).
    pub fn score(&mut self, tokens: &[u32], mut read: impl FnMut(usize, &[f32])) -> Result<()> {
        if self.head.is_some() {
            return Err(Error::Option(
                "the decoder computes the logits of the last token only (option all_logits)".into(),
            ));
        }
        self.check(tokens)?;
        self.last = None;
        let mut at = 0;
        while at < tokens.len() {
            let (kind, count) = self.next(tokens.len() - at);
            self.run(kind, &tokens[at..at + count], None);
            for i in 0..count {
                read(at + i, self.output(kind, i));
            }
            at += count;
        }
        Ok(())
    }

    /// As [`prefill`](Decoder::prefill) of at most a chunk, with the time of each step: those of the
    /// plan for one token or for a chunk, as the number of tokens asks, then those of the output layer.
    ///
    /// # Errors
    /// As [`prefill`](Decoder::prefill), and when there are more tokens than a chunk holds.
    pub fn run_timed(&mut self, tokens: &[u32]) -> Result<StepTimes<'_>> {
        self.check(tokens)?;
        let (kind, count) = self.next(tokens.len());
        if count < tokens.len() {
            let (n, chunk) = (tokens.len(), self.chunk.tokens);
            return Err(Error::Option(format!("{n} tokens, a chunk holds {chunk}")));
        }
        let steps = self.steps(kind).len();
        let mut times = vec![Duration::ZERO; steps];
        let body = steps
            - self
                .head
                .as_ref()
                .map_or(0, |h| h.phase.bound.plan.steps.len());
        let (body, head) = times.split_at_mut(body);
        self.run(kind, tokens, Some(body));
        self.logits_of(kind, count - 1, Some(head));
        Ok((self.steps(kind), times))
    }

    /// The plan for the next of `left` tokens, and how many it takes.
    fn next(&self, left: usize) -> (PhaseKind, usize) {
        match left {
            0 | 1 => (PhaseKind::Step, left),
            _ if self.chunk.tokens == 1 => (PhaseKind::Step, 1),
            _ => (PhaseKind::Chunk, left.min(self.chunk.tokens)),
        }
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        let refuse = |what: String| {
            Err(Error::Binding {
                kind: "input",
                name: self.step.bound.plan.inputs()[0].0.clone(),
                what,
            })
        };
        if tokens.is_empty() {
            return refuse("no tokens".into());
        }
        let limits = &self.step.bound.plan.index_limits;
        let limit = limits.first().map_or(usize::MAX, |l| l.1);
        if let Some(at) = tokens.iter().position(|&t| t as usize >= limit) {
            return refuse(format!(
                "token {at} is {}, the vocabulary has {limit}",
                tokens[at]
            ));
        }
        if tokens.len() > self.capacity - self.past {
            return refuse(format!(
                "{} tokens after {}, the capacity is {}",
                tokens.len(),
                self.past,
                self.capacity
            ));
        }
        Ok(())
    }

    /// Runs the body of a plan on tokens that were checked and that it has room for.
    fn run(&mut self, kind: PhaseKind, tokens: &[u32], times: Option<&mut [Duration]>) {
        let phase = match kind {
            PhaseKind::Step => &mut self.step,
            PhaseKind::Chunk => &mut self.chunk,
        };
        // What lies behind the tokens is computed or left out, and read by nobody.
        self.ids.fill(0);
        for (id, &token) in self.ids.iter_mut().zip(tokens) {
            *id = i64::from(token);
        }
        let sequence = Sequence {
            past: self.past,
            tokens: tokens.len(),
            cache: self.cache.as_mut_ptr(),
        };
        // SAFETY: the arena was made for this plan; `ids` holds a chunk of I64; the cache holds what
        // both plans ask for, and the caller checked the positions.
        unsafe {
            let inputs = [self.ids.as_ptr().cast()];
            phase
                .bound
                .run(&mut self.arena, &mut self.team, &inputs, sequence, times);
        }
        self.past += tokens.len();
    }

    /// The logits of token `i` of the run before.
    fn logits_of(&mut self, kind: PhaseKind, i: usize, times: Option<&mut [Duration]>) -> &[f32] {
        self.last = Some((kind, i));
        let Some(mut head) = self.head.take() else {
            return self.output(kind, i);
        };
        head.input.copy_from_slice(self.output(kind, i));
        // SAFETY: the arena was made for this plan; the input has its width; it has no cache.
        unsafe {
            let inputs = [head.input.as_ptr()];
            let sequence = Sequence {
                tokens: 1,
                ..Sequence::NONE
            };
            head.phase
                .bound
                .run(&mut self.arena, &mut self.team, &inputs, sequence, times);
        }
        let head = self.head.insert(head);
        row(&self.arena, &head.phase, 0)
    }

    /// The output of a plan for token `i` of the run before.
    fn output(&self, kind: PhaseKind, i: usize) -> &[f32] {
        match kind {
            PhaseKind::Step => row(&self.arena, &self.step, i),
            PhaseKind::Chunk => row(&self.arena, &self.chunk, i),
        }
    }
}

fn row<'a>(arena: &'a Arena, phase: &Phase, i: usize) -> &'a [f32] {
    match phase.bound.plan.outputs.first().map(|o| &o.slot) {
        Some(Slot::Arena(at)) => &arena.elements()[at + i * phase.width..][..phase.width],
        _ => &[],
    }
}

/// The symbols of the batch, if it has one, and of the tokens of a decoder's input.
pub(super) fn token_input(graph: &Graph) -> Result<(Option<String>, String), String> {
    let [input] = graph.inputs.as_slice() else {
        return Err(format!("{} inputs instead of one", graph.inputs.len()));
    };
    if graph.outputs.len() != 1 {
        return Err(format!("{} outputs instead of one", graph.outputs.len()));
    }
    let (batch, tokens) = match (input.dtype, input.shape.as_slice()) {
        (DType::I64, [Dim::Symbol(n), Dim::Symbol(t)]) => (Some(n.clone()), t.clone()),
        (DType::I64, [Dim::Fixed(1), Dim::Symbol(t)]) => (None, t.clone()),
        _ => return Err(format!("input `{}` is not I64 [N, T]", input.name)),
    };
    let attentions = graph.nodes.iter().filter_map(|n| match n.op {
        Op::Attention { cache, causal, .. } => Some((n, cache && causal)),
        _ => None,
    });
    let mut any = false;
    for (node, kept) in attentions {
        if !kept {
            return Err(format!(
                "node `{}` does not keep keys and values",
                node.name
            ));
        }
        any = true;
    }
    match any {
        true => Ok((batch, tokens)),
        false => Err("no attention".into()),
    }
}

/// The model up to its output layer, and the output layer; `None` where the last node is no
/// linear layer.
pub(super) fn split(model: &Model) -> Result<Option<(Model, Model)>> {
    let graph = model.graph();
    let Some(at) = graph
        .nodes
        .iter()
        .position(|n| n.output == graph.outputs[0])
    else {
        return Ok(None);
    };
    let node = &graph.nodes[at];
    let (hidden, weight) = match (&node.op, node.inputs.as_slice()) {
        (Op::MatMul { .. }, [hidden, weight]) => (hidden, weight),
        _ => return Ok(None),
    };
    let read_once = graph.nodes.iter().flat_map(|n| &n.inputs);
    let read_once = read_once.filter(|i| *i == &node.output).count() == 0;
    let computed = graph.nodes.iter().any(|n| n.output == *hidden);
    let (true, true, Some(shape)) = (
        read_once,
        computed,
        model.weights().get(weight).map(|w| w.shape()),
    ) else {
        return Ok(None);
    };
    let (Op::MatMul { trans_b }, &[rows, cols]) = (&node.op, shape) else {
        return Ok(None);
    };
    let width = if *trans_b { cols } else { rows };
    let mut body = graph.clone();
    body.nodes.remove(at);
    body.outputs = vec![hidden.clone()];
    let one = Dim::Fixed(1);
    let head = Graph {
        name: graph.name.clone(),
        inputs: vec![Input::f32(
            hidden.clone(),
            vec![one.clone(), one, Dim::Fixed(width)],
        )],
        outputs: graph.outputs.clone(),
        nodes: vec![node.clone()],
    };
    Ok(Some((model.with_graph(body)?, model.with_graph(head)?)))
}

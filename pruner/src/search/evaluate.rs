//! How far candidates are from the model as it was: the divergence of their next-token distributions over the likeliest
//! tokens of the model, on stored windows.

use super::{Levels, Space};
use crate::calibration::{Block, Blocks, States};
use crate::{Error, Progress, Result};
use lacuna::model::file::{Tensors, replace};
use lacuna::{Model, Session, SessionOptions, TensorView, TensorViewMut, Weight};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView as View;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// The model as it was, in blocks.
#[derive(Clone, Copy)]
pub(crate) struct Teacher<'m> {
    pub model: &'m Model,
    pub blocks: &'m Blocks,
    /// What the model and its text are known by.
    pub digest: &'m str,
}

/// The model as it was on the windows of the search, and what candidates are run with.
pub(crate) struct Judge<'m> {
    teacher: Teacher<'m>,
    /// The parts of each block.
    by_block: Vec<Vec<usize>>,
    /// The output of the last block to what the output layer reads.
    tail: Block,
    /// The output layer, `[vocabulary, width]`.
    head: Weight,
    table: Vec<f32>,
    /// The states of the windows before the first block.
    states: Vec<Arc<Vec<f32>>>,
    /// Tokens kept at a position.
    top: usize,
    /// For each window the tokens of each position and the logs of their probabilities among themselves.
    ids: Vec<Vec<u32>>,
    logs: Vec<Vec<f32>>,
    /// Inputs of layers are rounded as their weights are, where that is faster.
    round_inputs: bool,
}

/// Candidates that are the same so far, and their states.
struct Class {
    members: Vec<usize>,
    states: Vec<Arc<Vec<f32>>>,
}

const KEY: &str = "lacuna.teacher";

impl<'m> Judge<'m> {
    /// Runs the model as it was on `windows`, or takes what an earlier run left in `path`.
    ///
    /// # Errors
    /// When the output of the model is no product of a weight with what its last block gives, or the file cannot be
    /// written.
    pub fn new(
        teacher: Teacher<'m>,
        by_block: Vec<Vec<usize>>,
        windows: &[&[u32]],
        top: usize,
        path: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Judge<'m>> {
        let Teacher {
            model,
            blocks,
            digest,
        } = teacher;
        let graph = model.graph();
        let refuse =
            |what: &str| Error::Calibration(format!("the output of `{}` {what}", graph.name));
        let output = graph
            .outputs
            .first()
            .map(String::as_str)
            .unwrap_or_default();
        let node = graph.nodes.iter().find(|n| n.output == output);
        let node = node.ok_or_else(|| refuse("is computed by no node"))?;
        let head = match node.op {
            lacuna::model::Op::MatMul { trans_b: true } => model.weights().get(&node.inputs[1]),
            _ => None,
        };
        let head = head.ok_or_else(|| refuse("is no product of a weight [vocabulary, width]"))?;
        let after = blocks.after.as_ref();
        let tail = after
            .ok_or_else(|| refuse("is that of a block"))?
            .until(&node.inputs[0]);
        let session = Session::new(&tail.model(model)?, SessionOptions::default())?;
        let round_inputs = lacuna::Isa::parse(session.isa())
            .is_ok_and(|i| i.multiplies(lacuna::DType::BF16, false));
        let states = States::new(&blocks.before, model, windows, windows.len())?;
        let states = states.into_windows().into_iter().map(Arc::new).collect();
        let table = head.to_f32().unwrap_or_default();
        let mut judge = Judge {
            teacher,
            by_block,
            tail,
            head: head.clone(),
            table,
            states,
            top: top.min(head.shape()[0]),
            ids: Vec::new(),
            logs: Vec::new(),
            round_inputs,
        };
        let digest = super::digest(&(digest, windows, judge.top))?;
        if !judge.load(path, &digest) {
            judge.teach(progress)?;
            judge.store(path, &digest)?;
        }
        Ok(judge)
    }

    /// Windows there are.
    pub fn windows(&self) -> usize {
        self.states.len()
    }

    /// Tokens of a window.
    pub fn window(&self) -> usize {
        self.teacher.blocks.before.shape()[1]
    }

    /// What the model as it was says at each position.
    fn teach(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let blocks = &self.teacher.blocks.blocks;
        let mut states = self.states.clone();
        let all = blocks.len() + 1;
        for (done, block) in blocks.iter().enumerate() {
            progress(Progress {
                phase: "teacher",
                done,
                all,
            });
            let model = block.plain().model(self.teacher.model)?;
            states = self.advance(&model, &states)?;
        }
        let hidden = self.advance(&self.tail.model(self.teacher.model)?, &states)?;
        let (vocabulary, width) = (self.head.shape()[0], self.head.shape()[1]);
        let one = |hidden: &Arc<Vec<f32>>| -> (Vec<u32>, Vec<f32>) {
            let rows = hidden.len() / width;
            let mut logits = vec![0f32; rows * vocabulary];
            faer::linalg::matmul::matmul(
                faer::MatMut::from_row_major_slice_mut(&mut logits, rows, vocabulary),
                faer::Accum::Replace,
                faer::MatRef::from_row_major_slice(hidden.as_slice(), rows, width),
                faer::MatRef::from_row_major_slice(&self.table, vocabulary, width).transpose(),
                1.0,
                faer::Par::Seq,
            );
            let (mut ids, mut logs) = (Vec::new(), Vec::new());
            for row in logits.chunks_exact(vocabulary) {
                let mut order: Vec<u32> = (0..vocabulary as u32).collect();
                let better = |a: &u32, b: &u32| {
                    let (x, y) = (row[*a as usize], row[*b as usize]);
                    y.total_cmp(&x).then(a.cmp(b))
                };
                if self.top < vocabulary {
                    order.select_nth_unstable_by(self.top, better);
                    order.truncate(self.top);
                }
                // In ascending order the rows of the output layer are read as they lie.
                order.sort_unstable();
                let values: Vec<f32> = order.iter().map(|&i| row[i as usize]).collect();
                logs.extend(log_softmax(&values));
                ids.extend(order);
            }
            (ids, logs)
        };
        let taught: Vec<(Vec<u32>, Vec<f32>)> = hidden.par_iter().map(one).collect();
        (self.ids, self.logs) = taught.into_iter().unzip();
        progress(Progress {
            phase: "teacher",
            done: all,
            all,
        });
        Ok(())
    }

    fn store(&self, path: &Path, digest: &str) -> Result<()> {
        let refuse = |e: safetensors::SafeTensorError| Error::Data {
            path: path.to_owned(),
            what: e.to_string(),
        };
        let shape = vec![self.windows(), self.window(), self.top];
        let ids: Vec<u8> = self
            .ids
            .iter()
            .flatten()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let logs: Vec<u8> = self
            .logs
            .iter()
            .flatten()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let views = [("ids", Dtype::U32, &ids), ("logs", Dtype::F32, &logs)];
        let views: Vec<_> = (views.into_iter())
            .map(|(n, d, b)| Ok((n, View::new(d, shape.clone(), b)?)))
            .collect::<Result<_, _>>()
            .map_err(refuse)?;
        let metadata = HashMap::from([(KEY.to_owned(), digest.to_owned())]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(refuse)?;
        Ok(replace(path, |out| out.write_all(&bytes), |_| Ok(()))?)
    }

    fn load(&mut self, path: &Path, digest: &str) -> bool {
        let Ok(file) = Tensors::open(path) else {
            return false;
        };
        let (Some(ids), Some(logs)) = (file.get("ids"), file.get("logs")) else {
            return false;
        };
        let size = self.window() * self.top * 4;
        let whole = size * self.windows();
        let own = file.metadata().get(KEY).is_some_and(|d| d == digest);
        if !own || ids.bytes.len() != whole || logs.bytes.len() != whole {
            return false;
        }
        let four = |b: &[u8]| [b[0], b[1], b[2], b[3]];
        self.ids = (ids.bytes.chunks_exact(size))
            .map(|w| {
                w.chunks_exact(4)
                    .map(|b| u32::from_le_bytes(four(b)))
                    .collect()
            })
            .collect();
        self.logs = (logs.bytes.chunks_exact(size))
            .map(|w| {
                w.chunks_exact(4)
                    .map(|b| f32::from_le_bytes(four(b)))
                    .collect()
            })
            .collect();
        let known = self.head.shape()[0] as u32;
        self.ids.iter().flatten().all(|&i| i < known)
    }

    /// The states behind a part.
    fn advance(&self, part: &Model, states: &[Arc<Vec<f32>>]) -> Result<Vec<Arc<Vec<f32>>>> {
        let count = states.len().div_ceil(rayon::current_num_threads()).max(1);
        let parts: Vec<Vec<Arc<Vec<f32>>>> = (states.par_chunks(count))
            .map(|states| self.send(part, states))
            .collect::<Result<_>>()?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// The same on this thread.
    fn send(&self, part: &Model, states: &[Arc<Vec<f32>>]) -> Result<Vec<Arc<Vec<f32>>>> {
        let options = SessionOptions {
            threads: 1,
            round_inputs: self.round_inputs,
            ..SessionOptions::default()
        };
        let mut session = Session::new(part, options)?;
        let shape: Vec<usize> = session.inputs()[0].1.clone();
        let out: Vec<usize> = session.outputs()[0].1.clone();
        let one = |state: &Arc<Vec<f32>>| {
            let mut values = vec![0f32; out.iter().product()];
            session.run_into(
                &[TensorView::f32(&shape, state)],
                &mut [TensorViewMut::f32(&out, &mut values)],
            )?;
            Ok(Arc::new(values))
        };
        states.iter().map(one).collect()
    }

    /// For each candidate the mean divergence on these windows, in nats. Blocks before which candidates are the same
    /// run once for all of them.
    ///
    /// # Errors
    /// When a state is not finite.
    pub fn divergences(
        &self,
        space: &Space<'_>,
        candidates: &[&Levels],
        windows: &[usize],
    ) -> Result<Vec<f64>> {
        let start = windows.iter().map(|&w| self.states[w].clone()).collect();
        let mut classes = vec![Class {
            members: (0..candidates.len()).collect(),
            states: start,
        }];
        for (block, parts) in self.teacher.blocks.blocks.iter().zip(&self.by_block) {
            let plain = block.plain().model(self.teacher.model)?;
            let key =
                |c: usize| -> Vec<usize> { parts.iter().map(|&m| candidates[c][m]).collect() };
            // Those of the same levels here go through one session, whatever came before.
            let mut alike: BTreeMap<Vec<usize>, Vec<(usize, Vec<usize>)>> = BTreeMap::new();
            for (at, class) in classes.iter().enumerate() {
                let mut split: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
                for &c in &class.members {
                    split.entry(key(c)).or_default().push(c);
                }
                for (key, members) in split {
                    alike.entry(key).or_default().push((at, members));
                }
            }
            let one = |(key, alike): (Vec<usize>, Vec<(usize, Vec<usize>)>)| {
                let chosen: Vec<_> = parts.iter().copied().zip(key).collect();
                let model = (space.apply)(&plain, &chosen)?;
                let states: Vec<Arc<Vec<f32>>> = (alike.iter())
                    .flat_map(|p| classes[p.0].states.iter().cloned())
                    .collect();
                let states = self.advance(&model, &states)?;
                let classes = alike.into_iter().zip(states.chunks(windows.len().max(1)));
                Ok(classes
                    .map(|((_, members), states)| Class {
                        members,
                        states: states.to_vec(),
                    })
                    .collect::<Vec<_>>())
            };
            let alike: Vec<_> = alike.into_iter().collect();
            let next: Vec<Vec<Class>> = alike.into_par_iter().map(one).collect::<Result<_>>()?;
            classes = next.into_iter().flatten().collect();
        }
        let tail = self.tail.model(self.teacher.model)?;
        let mut found = vec![0.0; candidates.len()];
        for class in &classes {
            let hidden = self.advance(&tail, &class.states)?;
            let sums: Vec<f64> = (hidden.par_iter().zip(windows))
                .map(|(h, &w)| self.divergence(h, w))
                .collect::<Result<_>>()?;
            let mean = sums.iter().sum::<f64>() / (windows.len() * self.window()).max(1) as f64;
            class.members.iter().for_each(|&c| found[c] = mean);
        }
        Ok(found)
    }

    /// The sum over the positions of a window.
    fn divergence(&self, hidden: &[f32], window: usize) -> Result<f64> {
        let width = self.head.shape()[1];
        let rows = hidden.chunks_exact(width);
        let taught = self.ids[window].chunks_exact(self.top);
        let taught = taught.zip(self.logs[window].chunks_exact(self.top));
        let mut sum = 0.0;
        for (hidden, (ids, logs)) in rows.zip(taught) {
            let logits: Vec<f32> = (ids.iter())
                .map(|&i| product(&self.table[i as usize * width..][..width], hidden))
                .collect();
            let own = log_softmax(&logits);
            let each = logs.iter().zip(&own);
            let each = each.map(|(&t, &s)| f64::from(t).exp() * (f64::from(t) - f64::from(s)));
            sum += each.sum::<f64>();
        }
        match sum.is_finite() {
            true => Ok(sum),
            false => Err(Error::Calibration(format!(
                "the divergence of a candidate is {sum} in window {window} of the search"
            ))),
        }
    }
}

/// A sum in sixteen parts, which compilers do at once.
fn product(a: &[f32], b: &[f32]) -> f32 {
    let (x, rest) = a.as_chunks::<16>();
    let (y, last) = b.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for (x, y) in x.iter().zip(y) {
        for i in 0..16 {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + rest.iter().zip(last).map(|(a, b)| a * b).sum::<f32>()
}

/// Logs of probabilities among these logits.
fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - most).exp()).sum();
    let log = f64::from(most) + sum.ln();
    logits
        .iter()
        .map(|&l| (f64::from(l) - log) as f32)
        .collect()
}

//! What a page is made of: the sidecar of a run and the files that may stand beside it. Unknown keys are
//! ignored; other versions are refused.

use crate::tasks::Metric;
use serde::Deserialize;

/// The version of every file that is read.
const SCHEMA: u32 = 1;

/// The report that `prune` leaves beside its output.
#[derive(Debug, Deserialize)]
pub struct Sidecar {
    schema: u32,
    pub kind: String,
    pub tool: String,
    pub input: String,
    pub input_sha256: Option<String>,
    pub output: Option<String>,
    pub recipe_sha256: String,
    pub recipe: serde_json::Value,
    /// Of methods that set weights to zero.
    pub plan: Option<Plan>,
    /// Of methods that cut channels: what is left of each group.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// Names and metrics of tasks, and what rounds came to.
    #[serde(default)]
    pub tasks: Vec<String>,
    #[serde(default)]
    pub metrics: Vec<Metric>,
    #[serde(default)]
    pub rounds: Vec<Round>,
    pub note: Option<String>,
    pub mac_convention: String,
    pub before: State,
    pub after: State,
    pub layers: Vec<Layer>,
    /// Those of the training, where there was one.
    #[serde(default)]
    pub epochs: Vec<Epoch>,
    pub seconds: Option<Seconds>,
}

#[derive(Debug, Deserialize)]
pub struct Plan {
    pub allocator: String,
    pub target: f64,
    pub total: usize,
    pub zeros_after: usize,
    pub sigma: usize,
    pub threshold: Option<f64>,
    pub layers: Vec<Planned>,
}

#[derive(Debug, Deserialize)]
pub struct Planned {
    pub weight: String,
    pub floored: bool,
}

/// Channels, heads or neurons that go together.
#[derive(Debug, Deserialize)]
pub struct Group {
    pub name: String,
    pub units: usize,
    pub removed: usize,
}

/// A round of cutting and training: the figures of every task before it, once cut, and once trained.
#[derive(Debug, Deserialize)]
pub struct Round {
    pub left_after: f64,
    pub losses_before: Vec<f64>,
    pub losses_cut: Vec<f64>,
    pub losses_after: Vec<f64>,
    pub metrics: [Vec<f64>; 3],
}

#[derive(Debug, Deserialize)]
pub struct State {
    pub sparsity: f64,
    pub sparsity_of_all: f64,
    pub parameters: usize,
    pub parameter_zeros: usize,
    pub sparse_macs: u64,
    pub weight_bytes: u64,
    pub file_bytes: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub struct Layer {
    pub weight: String,
    pub node: String,
    pub op: String,
    pub shape: Vec<usize>,
    pub encoding: String,
    pub size: usize,
    pub nonzeros: usize,
    pub dense_macs: u64,
    pub sparse_macs: u64,
    pub bytes: u64,
}

#[derive(Debug, Deserialize)]
pub struct Seconds {
    pub open: f64,
    pub plan: f64,
    pub write: Option<f64>,
}

/// A line of the metrics of a training run.
#[derive(Clone, Debug, Deserialize)]
pub struct Epoch {
    pub epoch: f64,
    pub sparsity: Option<f64>,
    pub train_accuracy: Option<f64>,
    pub test_accuracy: Option<f64>,
}

/// What `lacuna-bench --layers --json` prints.
#[derive(Debug, Deserialize)]
pub struct Latency {
    schema: u32,
    pub layers: Vec<Timed>,
}

#[derive(Debug, Deserialize)]
pub struct Timed {
    pub node: String,
    pub kernel: String,
    pub ms: f64,
    pub dense_ms: Option<f64>,
}

/// What `prune eval --json` prints.
#[derive(Debug, Deserialize)]
pub struct Evaluation {
    schema: u32,
    pub top1: f64,
    pub samples: usize,
}

impl Sidecar {
    pub fn parse(text: &str) -> Result<Sidecar, String> {
        let sidecar: Sidecar = serde_json::from_str(text).map_err(|e| e.to_string())?;
        version(sidecar.schema)?;
        match (sidecar.kind.as_str(), &sidecar.plan) {
            ("prune", Some(_)) | ("channels" | "pagcp", _) => Ok(sidecar),
            ("prune", None) => Err("no plan".into()),
            (other, _) => Err(format!(
                "a report of kind `{other}`, not `prune`, `channels` or `pagcp`"
            )),
        }
    }
}

impl Epoch {
    pub fn parse(text: &str) -> Result<Vec<Epoch>, String> {
        let lines = text.lines().enumerate().filter(|l| !l.1.trim().is_empty());
        lines
            .map(|(i, line)| serde_json::from_str(line).map_err(|e| format!("line {}: {e}", i + 1)))
            .collect()
    }
}

impl Latency {
    pub fn parse(text: &str) -> Result<Latency, String> {
        // A line of its own, before or after the figures of the whole model.
        let mut lines = text.lines().map(serde_json::from_str::<Latency>);
        let latency = lines
            .find_map(Result::ok)
            .ok_or("no latency by layer; `lacuna-bench MODEL --layers --json` prints it")?;
        version(latency.schema)?;
        Ok(latency)
    }
}

impl Latency {
    /// The same layers, dense as another run measured them: those of the model before its channels went.
    pub fn against(self, before: &Latency) -> Latency {
        let dense = |node: &str| before.layers.iter().find(|b| b.node == node);
        let timed = |t: Timed| Timed {
            dense_ms: dense(&t.node).map(|b| b.ms),
            ..t
        };
        Latency {
            layers: self.layers.into_iter().map(timed).collect(),
            ..self
        }
    }
}

impl Evaluation {
    pub fn parse(text: &str) -> Result<Evaluation, String> {
        let evaluation: Evaluation = serde_json::from_str(text)
            .map_err(|e| format!("{e}; `prune eval --data .. --json` prints it"))?;
        version(evaluation.schema)?;
        Ok(evaluation)
    }
}

fn version(schema: u32) -> Result<(), String> {
    match schema {
        SCHEMA => Ok(()),
        other => Err(format!("schema {other}, this version reads {SCHEMA}")),
    }
}

//! A model on a GPU: the whole by the device's clock, and each step beside what the device reaches.

use crate::{Error, Result, model};
use lacuna::cuda::{
    Ceilings, DeviceDecoder, DeviceDecoderOptions, DeviceOptions, DeviceSession, DeviceStepInfo,
    Gpu, StepTime,
};
use lacuna::{Model, PhaseKind};
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

/// Timed runs where none are asked for.
const RUNS: usize = 31;

/// What to measure.
#[derive(Clone, Debug, Default)]
pub struct CudaConfig {
    /// The model.
    pub path: PathBuf,
    /// The number of the GPU.
    pub ordinal: usize,
    /// First dimension of the inputs.
    pub batch: usize,
    /// Only dense forms.
    pub dense: bool,
    /// Choose forms by running each of them on the device.
    pub tune: bool,
    /// Measure each step too.
    pub layers: bool,
    /// Of a language model: tokens processed at a time, and before those that are timed.
    pub prompt: usize,
    /// Tokens before those that are timed.
    pub depth: usize,
    /// Untimed runs before.
    pub warmup: usize,
}

/// A run of the whole model, or of a phase of it.
#[derive(Clone, Debug, Serialize)]
pub struct CudaRun {
    /// "run", "decode" or "prefill".
    pub phase: &'static str,
    /// Tokens of a run; 0 where there are none.
    pub tokens: usize,
    /// Milliseconds, by device events: median, least and greatest of `n`.
    pub median_ms: f64,
    /// The least.
    pub min_ms: f64,
    /// The greatest.
    pub max_ms: f64,
    /// Timed runs.
    pub n: usize,
    /// Of steps.
    pub steps: Vec<CudaStep>,
}

/// A step by itself, with weights that no cache holds.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct CudaStep {
    pub node: String,
    pub op: &'static str,
    pub shape: String,
    pub kernel: String,
    pub reason: String,
    pub density: f64,
    pub weight_bytes: usize,
    pub us: f64,
    pub gb_per_s: f64,
    pub tflop_per_s: f64,
    /// Of the copy's bandwidth.
    pub copy_share: f64,
    /// Of the product's arithmetic; `None` without cuBLASLt.
    pub gemm_share: Option<f64>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct CudaReport {
    pub schema: u32,
    pub model: String,
    pub device: String,
    pub tuned: bool,
    pub dense: bool,
    pub total_bytes: usize,
    pub weight_bytes: usize,
    pub cache_bytes: usize,
    /// A copy within the device, read and written; `None` where steps were not measured.
    pub copy_gb_per_s: Option<f64>,
    /// A product of f16 matrices, 4096 cubed, by cuBLASLt.
    pub gemm_tflop_per_s: Option<f64>,
    pub runs: Vec<CudaRun>,
}

/// Measures a model on a GPU.
///
/// # Errors
/// When there is no such GPU, when the model can't be opened or run there, or when the device fails.
pub fn cuda(config: &CudaConfig, mut progress: impl FnMut(&str)) -> Result<CudaReport> {
    let gpu = open(config.ordinal)?;
    progress("open");
    let opened = model::open(&config.path, config.batch, !config.dense)?;
    measure(&opened.model, gpu, config, progress)
}

/// Measures a model that is no file, under the name of the path.
///
/// # Errors
/// As [`cuda`].
pub fn cuda_model(
    model: &Model,
    config: &CudaConfig,
    progress: impl FnMut(&str),
) -> Result<CudaReport> {
    measure(model, open(config.ordinal)?, config, progress)
}

fn open(ordinal: usize) -> Result<Box<Gpu>> {
    let refused = |e: lacuna::cuda::Error| Error::Runtime(e.into());
    Ok(Box::new(Gpu::open(ordinal).map_err(refused)?))
}

fn measure(
    model: &Model,
    gpu: Box<Gpu>,
    config: &CudaConfig,
    mut progress: impl FnMut(&str),
) -> Result<CudaReport> {
    progress("plan");
    let plan = DeviceOptions {
        dense: config.dense,
        tune: config.tune,
        ..DeviceOptions::default()
    };
    let mut report = CudaReport {
        schema: 1,
        model: config.path.display().to_string(),
        device: String::new(),
        tuned: config.tune,
        dense: config.dense,
        total_bytes: 0,
        weight_bytes: 0,
        cache_bytes: 0,
        copy_gb_per_s: None,
        gemm_tflop_per_s: None,
        runs: Vec::new(),
    };
    let limits = |report: &mut CudaReport, ceilings: &Ceilings| {
        report.copy_gb_per_s = Some(ceilings.copy / 1e9);
        report.gemm_tflop_per_s = ceilings.gemm.map(|g| 2.0 * g / 1e12);
    };
    if model.is_language_model() {
        let chunk = config.prompt.max(1);
        let options = DeviceDecoderOptions {
            plan,
            capacity: config.depth + chunk + 1,
            chunk,
        };
        let mut decoder = DeviceDecoder::new(model, gpu, &options)?;
        let memory = decoder.memory();
        (report.total_bytes, report.weight_bytes) = (memory.total, memory.weights);
        (report.cache_bytes, report.device) = (memory.cache, decoder.device());
        for (kind, phase, tokens) in [
            (PhaseKind::Step, "decode", 1),
            (PhaseKind::Chunk, "prefill", decoder.chunk()),
        ] {
            progress(phase);
            decoder.time(kind, config.depth, config.warmup.max(1))?;
            let times = decoder.time(kind, config.depth, RUNS)?;
            let mut run = summary(phase, tokens, times);
            if config.layers {
                let (ceilings, times) = decoder.measure(kind, RUNS)?;
                limits(&mut report, &ceilings);
                run.steps = steps(&decoder.steps(kind), &times, &ceilings);
            }
            report.runs.push(run);
        }
        return Ok(report);
    }
    let mut session = DeviceSession::new(model, gpu, &plan)?;
    let memory = session.memory();
    (report.total_bytes, report.weight_bytes) = (memory.total, memory.weights);
    report.device = session.device();
    progress("run");
    session.time(config.warmup.max(1))?;
    let mut run = summary("run", 0, session.time(RUNS)?);
    if config.layers {
        let (ceilings, times) = session.measure(RUNS)?;
        limits(&mut report, &ceilings);
        let all: Vec<&DeviceStepInfo> = session.steps().iter().collect();
        run.steps = steps(&all, &times, &ceilings);
    }
    report.runs.push(run);
    Ok(report)
}

fn summary(phase: &'static str, tokens: usize, mut times: Vec<f64>) -> CudaRun {
    times.sort_by(f64::total_cmp);
    let ms = |i: usize| times.get(i).copied().unwrap_or(f64::NAN) * 1e3;
    CudaRun {
        phase,
        tokens,
        median_ms: ms(times.len() / 2),
        min_ms: ms(0),
        max_ms: ms(times.len().saturating_sub(1)),
        n: times.len(),
        steps: Vec::new(),
    }
}

fn steps(infos: &[&DeviceStepInfo], times: &[StepTime], ceilings: &Ceilings) -> Vec<CudaStep> {
    let pairs = infos.iter().zip(times);
    pairs
        .map(|(step, time)| CudaStep {
            node: step.info.node.clone(),
            op: step.info.op,
            shape: step.info.shape.clone(),
            kernel: step.info.kernel.clone(),
            reason: step.info.reason.clone(),
            density: step.info.density,
            weight_bytes: step.info.weight_bytes,
            us: time.seconds * 1e6,
            gb_per_s: time.bandwidth / 1e9,
            tflop_per_s: 2.0 * time.arithmetic / 1e12,
            copy_share: time.bandwidth / ceilings.copy,
            gemm_share: ceilings.gemm.map(|g| time.arithmetic / g),
        })
        .collect()
}

/// The report as text.
pub fn cuda_text(r: &CudaReport) -> String {
    let mut out = String::new();
    let mb = |b: usize| b as f64 / 1e6;
    let how = if r.tuned { "measured" } else { "estimated" };
    let _ = writeln!(out, "model    {}", r.model);
    let _ = writeln!(out, "device   {}   forms {how}", r.device);
    let _ = writeln!(
        out,
        "memory   {:.1} MB   (weights {:.1}, keys and values {:.1})",
        mb(r.total_bytes),
        mb(r.weight_bytes),
        mb(r.cache_bytes)
    );
    if let Some(copy) = r.copy_gb_per_s {
        let gemm = match r.gemm_tflop_per_s {
            Some(gemm) => format!("cuBLASLt f16 {gemm:.1} TFLOP/s"),
            None => "cuBLASLt is not installed".into(),
        };
        let _ = writeln!(out, "ceilings copy {copy:.1} GB/s   {gemm}");
    }
    for run in &r.runs {
        let rate = match run.tokens {
            0 => String::new(),
            n => format!("{:.1} tokens/s   ", n as f64 / (run.median_ms * 1e-3)),
        };
        let _ = writeln!(
            out,
            "{:<8} {rate}median {:.3} ms   min {:.3}   max {:.3}   (n = {})",
            run.phase, run.median_ms, run.min_ms, run.max_ms, run.n
        );
        for s in &run.steps {
            let gemm = s
                .gemm_share
                .map_or(String::new(), |g| format!(" {:3.0} %", g * 100.0));
            let _ = writeln!(
                out,
                "  {:<28} {:<22} {:<26} {:9.1} us {:8.1} GB/s {:3.0} % {:7.2} TFLOP/s{gemm}  {}",
                s.node,
                s.shape,
                s.kernel,
                s.us,
                s.gb_per_s,
                s.copy_share * 100.0,
                s.tflop_per_s,
                s.reason
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_it_says_so() {
        let config = CudaConfig {
            ordinal: 9_999,
            ..CudaConfig::default()
        };
        let error = cuda(&config, |_| ()).unwrap_err().to_string();
        assert!(error.starts_with("no CUDA device"), "{error}");
    }

    #[test]
    fn runs_are_shown_with_their_rates() {
        let run = summary("decode", 1, vec![0.003, 0.001, 0.002]);
        assert_eq!(
            (run.median_ms, run.min_ms, run.max_ms, run.n),
            (2.0, 1.0, 3.0, 3)
        );
        let report = CudaReport {
            schema: 1,
            model: "m".into(),
            device: "d".into(),
            tuned: false,
            dense: false,
            total_bytes: 3_000_000,
            weight_bytes: 2_000_000,
            cache_bytes: 0,
            copy_gb_per_s: Some(3000.0),
            gemm_tflop_per_s: None,
            runs: vec![run],
        };
        let text = cuda_text(&report);
        assert!(
            text.contains("decode   500.0 tokens/s   median 2.000 ms"),
            "{text}"
        );
        assert!(
            text.contains("copy 3000.0 GB/s   cuBLASLt is not installed"),
            "{text}"
        );
    }
}

//! The flags.

use clap::{Parser, Subcommand};
use lacuna::DeviceName;
use lacuna_bench::on::Target;
use std::path::PathBuf;

/// Measures a model on this device: load, first run and steady latency, memory, and every layer
/// beside the same layer run dense and beside the limits of this machine.
///
/// Input data is pseudo-random, standard normal, the same on every machine. Results go to stdout,
/// progress to stderr, and only on a terminal.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "lacuna-bench",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Args {
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// Lacuna files, or anything that the converters open (ONNX, PyTorch state dicts); weights
    /// with zeros are then encoded on the fly. Each of several is measured by a process of its own
    #[arg(required_unless_present = "profile_out", value_name = "MODEL")]
    pub models: Vec<PathBuf>,
    /// What to run on: cpu, or cuda or cuda:N, a GPU of NVIDIA; with ",cpu" behind it the processor where that fails.
    /// Times on a GPU are those of device events; flags that say otherwise are for processors
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: DeviceName,
    /// On a GPU: run every form of every layer there and take the fastest; forms are chosen by estimate otherwise
    #[arg(long, requires = "device")]
    pub cuda_tune: bool,
    /// Threads of a run; 0 takes every core
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub threads: usize,
    /// Untimed runs before the timed ones
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub warmup: usize,
    /// Steady runs last at least this long
    #[arg(long, default_value_t = 1000.0, value_name = "M", value_parser = milliseconds)]
    pub min_time_ms: f64,
    /// Instruction set: scalar, neon, neondot, neonfhm, neonbf16, avx2, avx512, avx512vbmi2, avx512bf16 [default: $LACUNA_ISA, or the best one here]
    #[arg(long)]
    pub isa: Option<String>,
    /// Run every weight dense, and only that
    #[arg(long)]
    pub dense: bool,
    /// Round the inputs of linear layers with BF16 or I8 weights as their weights are [default: in
    /// language models, with avx512bf16]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub round_inputs: Option<bool>,
    /// First dimension of the inputs, where it is symbolic or the format lets it be replaced
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub batch: usize,
    /// Of a language model: tokens of the prompt
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub prompt: usize,
    /// Of a language model: tokens generated
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub generate: usize,
    /// Of a language model: tokens in the cache before the prompt, and before the generation
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub depth: usize,
    /// Measure layers, dense beside sparse, and the limits of this machine; the default unless
    /// --json is given
    #[arg(long, conflicts_with = "no_layers")]
    pub layers: bool,
    /// Measure steady latency only
    #[arg(long)]
    pub no_layers: bool,
    /// Print JSON; the last line is one flat object, with --layers an object of layers before it
    #[arg(long)]
    pub json: bool,
    /// Time every form of every layer where it stands in the network; fail where the plan's choice is more
    /// than 5 % behind the best, or the whole behind dense
    #[arg(long, conflicts_with_all = ["csv", "html", "layers", "no_layers", "dense"])]
    pub audit: bool,
    /// Audit, and remember the fastest forms for this machine in this file; entries of other layers and
    /// machines stay
    #[arg(long, value_name = "FILE", conflicts_with_all = ["csv", "html", "layers", "no_layers", "dense", "tuned"])]
    pub tune: Option<PathBuf>,
    /// Use the forms that --tune remembered in this file
    #[arg(long, value_name = "FILE")]
    pub tuned: Option<PathBuf>,
    /// Measure every convolution and linear layer alone, dense, at several widths, --min-time-ms each, and write the
    /// times as JSON: what `prune pagcp --latency` reads. Of a language model one token and a prompt, and attentions by
    /// heads, for `prune tyr --latency`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["csv", "html", "layers", "no_layers", "audit", "tune", "json"])]
    pub table: Option<PathBuf>,
    /// Keep packed weights in this directory, and map them from there the next time
    #[arg(long, value_name = "DIR")]
    pub pack_cache: Option<PathBuf>,
    /// Write the layers as CSV
    #[arg(long, value_name = "FILE", conflicts_with = "no_layers")]
    pub csv: Option<PathBuf>,
    /// Write one self-contained page
    #[arg(long, value_name = "FILE", conflicts_with = "no_layers")]
    pub html: Option<PathBuf>,
    /// Hold layers against the limits of this device profile instead of measuring them quickly, and choose forms by its
    /// costs
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Measure this machine for some seconds and write its profile
    #[arg(long, value_name = "FILE")]
    pub profile_out: Option<PathBuf>,
    /// Measure on another machine: ssh:[user@]host[:port] or adb[:serial]. The program and every file that the flags
    /// name are pushed there, results are fetched; --pack-cache names a folder there
    #[arg(long, value_name = "DEVICE")]
    pub on: Option<Target>,
    /// The lacuna-bench to push, built for that machine [default: this one]
    #[arg(long, value_name = "FILE", requires = "on")]
    pub on_binary: Option<PathBuf>,
    /// Where the temporary folder on that machine goes [default: $TMPDIR or /tmp; /data/local/tmp with adb]
    #[arg(long, value_name = "DIR", requires = "on")]
    pub on_folder: Option<String>,
    /// An option for ssh, as it takes them after -o; may be given several times
    #[arg(long, value_name = "OPTION", requires = "on")]
    pub ssh_option: Vec<String>,
    /// Between models, wait until the processor is within 3 degrees of where it was at first, this long at most; this
    /// long where no temperature is known
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub cool_down: Option<f64>,
    /// The name of the model in what is printed
    #[arg(long, hide = true)]
    pub shown_as: Option<String>,
}

/// What measures nothing. A model of such a name is given as `./man`.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Prints what makes a shell complete this program's flags
    Completions(lacuna_manual::Completions),
    /// Prints the manual page
    Man(lacuna_manual::Man),
    /// Prints what this machine is doing as JSON: clocks, temperature, throttling, load
    State(CoolTo),
}

/// What to wait for first.
#[derive(clap::Args, Clone, Debug)]
pub struct CoolTo {
    /// First wait until the processor is no warmer than this
    #[arg(
        long,
        value_name = "CELSIUS",
        requires = "within",
        allow_negative_numbers = true
    )]
    pub cool_to: Option<f64>,
    /// But no longer than this
    #[arg(long, value_name = "SECONDS", value_parser = seconds, requires = "cool_to")]
    pub within: Option<f64>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.0..=86_400.0).contains(&s) => Ok(s),
        _ => Err("expected seconds between 0 and 86400".into()),
    }
}

/// A time that a [`Duration`](std::time::Duration) holds.
fn milliseconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ms) if (0.0..=86_400_000.0).contains(&ms) => Ok(ms),
        _ => Err("expected milliseconds between 0 and 86400000".into()),
    }
}

//! `lacuna-bench`: what a model brings on this device.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser, Subcommand};
use indicatif::ProgressBar;
use lacuna::Isa;
use lacuna::plan::Tuned;
use lacuna_bench::{Config, Measured, report};
use lacuna_targets::Profile;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Measures a model on this device: load, first run and steady latency, memory, and every layer
/// beside the same layer run dense and beside the limits of this machine.
///
/// Input data is pseudo-random, standard normal, the same on every machine. Results go to stdout,
/// progress to stderr, and only on a terminal.
#[derive(Parser)]
#[command(
    name = "lacuna-bench",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// A Lacuna file, or anything that the converters open (ONNX, PyTorch state dicts); weights
    /// with zeros are then encoded on the fly
    #[arg(required_unless_present = "profile_out")]
    model: Option<PathBuf>,
    /// Threads of a run; 0 takes every core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// Untimed runs before the timed ones
    #[arg(long, default_value_t = 3, value_name = "N")]
    warmup: usize,
    /// Steady runs last at least this long
    #[arg(long, default_value_t = 1000.0, value_name = "M", value_parser = milliseconds)]
    min_time_ms: f64,
    /// Instruction set: scalar, neon, avx2, avx512, avx512vbmi2, avx512bf16 [default: $LACUNA_ISA, or the best one here]
    #[arg(long)]
    isa: Option<String>,
    /// Run every weight dense, and only that
    #[arg(long)]
    dense: bool,
    /// Round the inputs of linear layers with BF16 or I8 weights as their weights are [default: in
    /// language models, with avx512bf16]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    round_inputs: Option<bool>,
    /// First dimension of the inputs, where it is symbolic or the format lets it be replaced
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// Of a language model: tokens of the prompt
    #[arg(long, default_value_t = 128, value_name = "N")]
    prompt: usize,
    /// Of a language model: tokens generated
    #[arg(long, default_value_t = 64, value_name = "N")]
    generate: usize,
    /// Of a language model: tokens in the cache before the prompt, and before the generation
    #[arg(long, default_value_t = 0, value_name = "N")]
    depth: usize,
    /// Measure layers, dense beside sparse, and the limits of this machine; the default unless
    /// --json is given
    #[arg(long, conflicts_with = "no_layers")]
    layers: bool,
    /// Measure steady latency only
    #[arg(long)]
    no_layers: bool,
    /// Print JSON; the last line is one flat object, with --layers an object of layers before it
    #[arg(long)]
    json: bool,
    /// Time every form of every layer where it stands in the network; fail where the plan's choice is more
    /// than 5 % behind the best, or the whole behind dense
    #[arg(long, conflicts_with_all = ["csv", "html", "layers", "no_layers", "dense"])]
    audit: bool,
    /// Audit, and remember the fastest forms for this machine in this file; entries of other layers and
    /// machines stay
    #[arg(long, value_name = "FILE", conflicts_with_all = ["csv", "html", "layers", "no_layers", "dense", "tuned"])]
    tune: Option<PathBuf>,
    /// Use the forms that --tune remembered in this file
    #[arg(long, value_name = "FILE")]
    tuned: Option<PathBuf>,
    /// Measure every convolution and linear layer alone, dense, at several widths, --min-time-ms each, and write the
    /// times as JSON: what `prune pagcp --latency` reads
    #[arg(long, value_name = "FILE", conflicts_with_all = ["csv", "html", "layers", "no_layers", "audit", "tune", "json"])]
    table: Option<PathBuf>,
    /// Keep packed weights in this directory, and map them from there the next time
    #[arg(long, value_name = "DIR")]
    pack_cache: Option<PathBuf>,
    /// Write the layers as CSV
    #[arg(long, value_name = "FILE", conflicts_with = "no_layers")]
    csv: Option<PathBuf>,
    /// Write one self-contained page
    #[arg(long, value_name = "FILE", conflicts_with = "no_layers")]
    html: Option<PathBuf>,
    /// Hold layers against the limits of this device profile instead of measuring them quickly
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Measure this machine for some seconds and write its profile
    #[arg(long, value_name = "FILE")]
    profile_out: Option<PathBuf>,
}

/// What measures nothing. A model of such a name is given as `./man`.
#[derive(Subcommand)]
enum Verb {
    /// Prints what makes a shell complete this program's flags
    Completions(lacuna_manual::Completions),
    /// Prints the manual page
    Man(lacuna_manual::Man),
}

/// A time that a [`Duration`] holds.
fn milliseconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ms) if (0.0..=86_400_000.0).contains(&ms) => Ok(ms),
        _ => Err("expected milliseconds between 0 and 86400000".into()),
    }
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let Some(verb) = &args.verb {
        let text = match verb {
            Verb::Completions(v) => v.text(Args::command()),
            Verb::Man(v) => v.text(Args::command())?,
        };
        print!("{text}");
        return Ok(ExitCode::SUCCESS);
    }
    prefer_isa().map_err(anyhow::Error::msg)?;
    if let Some(path) = &args.profile_out {
        write_profile(path, args.threads)?;
    }
    let Some(model) = args.model else {
        return Ok(ExitCode::SUCCESS);
    };
    let profile = args.profile.or(args.profile_out);
    let wanted = args.layers || args.csv.is_some() || args.html.is_some();
    let config = Config {
        path: model,
        threads: args.threads,
        isa: args.isa,
        dense: args.dense,
        round_inputs: args.round_inputs,
        batch: args.batch,
        warmup: args.warmup,
        min_time: Duration::from_secs_f64(args.min_time_ms / 1e3),
        layers: wanted || !(args.json || args.no_layers),
        profile: profile.map(Profile::load).transpose()?,
        tuned: args.tuned.map(Tuned::open).transpose()?,
        pack_cache: args.pack_cache,
        prompt: args.prompt,
        generate: args.generate,
        depth: args.depth,
    };
    let bar = ProgressBar::new_spinner();
    let progress = |stage: &str| {
        bar.set_message(stage.to_owned());
        bar.tick();
    };
    if args.audit || args.tune.is_some() {
        let code = audit(&config, args.json, args.tune.as_deref(), progress);
        bar.finish_and_clear();
        return code;
    }
    if let Some(path) = &args.table {
        let table = lacuna_bench::table(&config, progress)?;
        bar.finish_and_clear();
        std::fs::write(path, serde_json::to_string_pretty(&table)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{} layers in {}", table.layers.len(), path.display());
        return Ok(ExitCode::SUCCESS);
    }
    let measured = lacuna_bench::run(&config, progress)?;
    bar.finish_and_clear();
    let measured = match measured {
        Measured::Whole(report) => report,
        Measured::Decoder(measured) => {
            if args.csv.is_some() || args.html.is_some() {
                bail!("--csv and --html show models that run as a whole; use --json");
            }
            if args.json && config.layers {
                println!("{}", report::decoder_layers_json(&measured));
            }
            match args.json {
                true => println!("{}", report::decoder_json(&measured)),
                false => print!("{}", report::decoder_text(&measured)),
            }
            return Ok(ExitCode::SUCCESS);
        }
    };
    for (path, text) in [
        (&args.csv, report::csv as fn(&_) -> String),
        (&args.html, report::html),
    ] {
        if let Some(path) = path {
            std::fs::write(path, text(&measured))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    if args.json {
        if config.layers {
            println!("{}", report::layers_json(&measured));
        }
        println!("{}", report::json(&measured));
    } else {
        print!("{}", report::text(&measured));
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints an audit; with `tune`, keeps what it measured.
fn audit(
    config: &Config,
    json: bool,
    tune: Option<&Path>,
    progress: impl FnMut(&str),
) -> Result<ExitCode> {
    // What cannot be written to is known before minutes of measuring.
    let mut tuned = match tune.filter(|p| p.exists()) {
        Some(path) => Tuned::open(path)?,
        None => Tuned::default(),
    };
    let audit = lacuna_bench::audit(config, progress)?;
    match json {
        true => println!("{}", report::audit_json(&audit)),
        false => print!("{}", report::audit_text(&audit)),
    }
    if let Some(path) = tune {
        let kinds = lacuna_bench::tune(&audit, &mut tuned)?;
        tuned.save(path)?;
        eprintln!(
            "{kinds} kinds of layers measured on {}; {} in {}",
            audit.machine,
            tuned.len(),
            path.display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    Ok(match audit.holds() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(2),
    })
}

/// Measures with one thread, with every core, and with `threads` where that is neither.
fn write_profile(path: &Path, threads: usize) -> Result<()> {
    let mut here = Profile::detect();
    if let Some(stem) = path.file_stem() {
        here.name = stem.to_string_lossy().into_owned();
    }
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    here.origin = Some(format!("lacuna-bench --profile-out {file}"));
    let mut counts = vec![1, here.cores(), threads.max(1)];
    counts.sort_unstable();
    counts.dedup();
    let bar = ProgressBar::new_spinner();
    for threads in counts {
        bar.set_message(format!("limits of this machine, {threads} thread(s)"));
        bar.tick();
        here.measure(Duration::from_secs(3), threads)?;
    }
    bar.finish_and_clear();
    here.save(path)?;
    Ok(())
}

/// The instruction set that the environment asks for is taken where no flag names one.
fn prefer_isa() -> Result<(), String> {
    match std::env::var(lacuna::ISA_VARIABLE) {
        Ok(name) => Isa::prefer(&name).map_err(|e| format!("{}: {e}", lacuna::ISA_VARIABLE)),
        Err(_) => Ok(()),
    }
}

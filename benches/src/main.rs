//! `lacuna-bench`: what a model brings on this device, or on another one.
#![forbid(unsafe_code)]

mod cli;

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser};
use cli::args::{Args, Verb};
use indicatif::ProgressBar;
use lacuna::plan::Tuned;
use lacuna::{DeviceName, Isa};
use lacuna_bench::{Config, Measured, report};
use lacuna_targets::Profile;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    run().unwrap_or_else(|e| {
        eprintln!("error: {}", lacuna_manual::told(e.as_ref()));
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let args = Args::parse();
    if let Some(verb) = &args.verb {
        let text = match verb {
            Verb::Completions(v) => v.text(Args::command()),
            Verb::Man(v) => v.text(Args::command())?,
            Verb::State(v) => cli::state::text(v),
        };
        print!("{text}");
        return Ok(ExitCode::SUCCESS);
    }
    if args.on.is_some() || args.models.len() > 1 {
        return cli::series::run(&args);
    }
    if let DeviceName::Cuda { ordinal, or_cpu } = args.device {
        match cuda(&args, ordinal) {
            Err(e) if or_cpu => eprintln!("{e:#}; on the processor instead"),
            other => return other,
        }
    }
    prefer_isa().map_err(anyhow::Error::msg)?;
    if let Some(path) = &args.profile_out {
        write_profile(path, args.threads)?;
    }
    let Some(model) = args.models.into_iter().next() else {
        return Ok(ExitCode::SUCCESS);
    };
    let profile = args.profile.or(args.profile_out);
    let profile = profile.map(Profile::load).transpose()?;
    let costs = profile.as_ref().map(lacuna_bench::costs).transpose()?;
    let wanted = args.layers || args.csv.is_some() || args.html.is_some();
    let config = Config {
        path: model,
        shown_as: args.shown_as,
        threads: args.threads,
        isa: args.isa,
        dense: args.dense,
        round_inputs: args.round_inputs,
        batch: args.batch,
        warmup: args.warmup,
        min_time: Duration::from_secs_f64(args.min_time_ms / 1e3),
        layers: wanted || !(args.json || args.no_layers),
        profile,
        costs: costs.unwrap_or_default(),
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
        let attentions = match table.attentions.len() {
            0 => String::new(),
            n => format!(" and {n} attentions"),
        };
        println!(
            "{} layers{attentions} in {}",
            table.layers.len(),
            path.display()
        );
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

/// Measures on a GPU. An error is before the first figure.
#[cfg(feature = "cuda")]
fn cuda(args: &Args, ordinal: usize) -> Result<ExitCode> {
    let Some(model) = args.models.first() else {
        bail!("--device cuda: no model");
    };
    let config = lacuna_bench::CudaConfig {
        path: model.clone(),
        ordinal,
        batch: args.batch,
        dense: args.dense,
        tune: args.cuda_tune,
        layers: args.layers || !(args.json || args.no_layers),
        prompt: args.prompt,
        depth: args.depth,
        warmup: args.warmup,
    };
    let bar = ProgressBar::new_spinner();
    let report = lacuna_bench::cuda(&config, |stage| {
        bar.set_message(stage.to_owned());
        bar.tick();
    })?;
    bar.finish_and_clear();
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print!("{}", lacuna_bench::cuda_text(&report)),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: &Args, _: usize) -> Result<ExitCode> {
    bail!("this lacuna-bench was built without its feature cuda")
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
    lacuna_bench::measure(&mut here, Duration::from_secs(3), &counts, |stage| {
        bar.set_message(stage.to_owned());
        bar.tick();
    })?;
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

//! `prune`: a checkpoint in, a sparse file out, and what it cost.

#![forbid(unsafe_code)]

mod cli;

use clap::Parser;
use lacuna::Isa;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let result = prefer_isa().map_err(anyhow::Error::msg);
    let text = match result.and_then(|()| cli.run()) {
        Ok(text) => text,
        Err(e) => {
            eprintln!("error: {}", lacuna_manual::told(e.as_ref()));
            return ExitCode::FAILURE;
        }
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // A reader that stops early, such as `head`, is no error.
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("error: cannot write to stdout: {e}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// The instruction set that the environment asks for is taken where no flag names one.
fn prefer_isa() -> Result<(), String> {
    match std::env::var(lacuna::ISA_VARIABLE) {
        Ok(name) => Isa::prefer(&name).map_err(|e| format!("{}: {e}", lacuna::ISA_VARIABLE)),
        Err(_) => Ok(()),
    }
}

//! `prune completions` and `prune man`: made from the definition of the flags.

use super::Cli;
use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::path::PathBuf;

/// Source it, or put it where the shell looks for completions.
#[derive(Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub fn run(&self) -> Result<String> {
        let mut out = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "prune", &mut out);
        Ok(String::from_utf8(out)?)
    }
}

/// To stdout, for `man -l -`; or, with a folder, one page for each verb as well.
#[derive(Args)]
pub struct Man {
    /// Write prune.1, prune-inspect.1 and so on into this folder
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Man {
    pub fn run(&self) -> Result<String> {
        let Some(folder) = &self.output else {
            let mut out = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut out)?;
            return Ok(String::from_utf8(out)?);
        };
        let named = || format!("{}: cannot write the manual", folder.display());
        std::fs::create_dir_all(folder).with_context(named)?;
        clap_mangen::generate_to(Cli::command(), folder).with_context(named)?;
        Ok(format!("wrote the pages to {}\n", folder.display()))
    }
}

//! What Lacuna's programs say of themselves: the verbs `completions` and `man`, made from the definition of their flags, and
//! errors.

#![forbid(unsafe_code)]

use clap::{Args, Command};
use clap_complete::Shell;
use std::error::Error;
use std::io;
use std::path::PathBuf;

/// An error and its causes, each but those that the one before tells already.
pub fn told(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

/// Source it, or put it where the shell looks for completions.
#[derive(Args, Clone, Debug)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// The script that makes the shell complete `program`'s verbs and flags.
    pub fn text(&self, mut program: Command) -> String {
        let mut out = Vec::new();
        let name = program.get_name().to_owned();
        clap_complete::generate(self.shell, &mut program, name, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// To stdout, for `man -l -`; or, with a folder, one page for each verb as well.
#[derive(Args, Clone, Debug)]
pub struct Man {
    /// Write PROGRAM.1, PROGRAM-VERB.1 and so on into this folder
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Man {
    /// The manual page of `program`; with a folder its pages are written, and the text says where.
    ///
    /// # Errors
    /// When the folder cannot be made or written to; the error names it.
    pub fn text(&self, program: Command) -> io::Result<String> {
        let Some(folder) = &self.output else {
            let mut out = Vec::new();
            clap_mangen::Man::new(program).render(&mut out)?;
            return Ok(String::from_utf8_lossy(&out).into_owned());
        };
        let named = |e: io::Error| {
            let text = format!("{}: cannot write the manual: {e}", folder.display());
            io::Error::new(e.kind(), text)
        };
        std::fs::create_dir_all(folder).map_err(named)?;
        clap_mangen::generate_to(program, folder).map_err(named)?;
        Ok(format!("wrote the pages to {}\n", folder.display()))
    }
}

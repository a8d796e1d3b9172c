//! `scelle completions`: what a shell needs to complete the commands and their options, made from the command line itself.

use std::io;

use clap::Args;
use clap_complete::Shell;

use super::text::print;
use crate::problem::{ExitCode, Problem};

/// Arguments of `scelle completions`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The shell
    shell: Shell,
}

/// `scelle completions`.
pub(super) fn run(arguments: &Arguments, command: &mut clap::Command) -> Result<ExitCode, Problem> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, command, "scelle", &mut script);
    print(&mut io::stdout().lock(), &String::from_utf8_lossy(&script))?;
    Ok(ExitCode::Done)
}

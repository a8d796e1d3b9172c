//! The `scelle` command: it only dispatches to [`scelle::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(scelle::cli::run(std::env::args_os().collect()))
}

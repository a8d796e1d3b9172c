//! The command line: turns arguments into a validated configuration, runs one command, and returns its exit code.
//!
//! Each command has a file of its own. The process behind a mount, and what the commands that work on devices share, is
//! [`crate::daemon`]'s. A command that asks about a mounted volume asks its daemon through [`crate::control`]; only
//! `where` asks the mounted folder itself.

mod audit;
mod check;
mod create;
mod device;
mod helper;
mod logging;
mod mount;
mod options;
mod performance;
mod registry;
mod replica;
mod secret;
mod status;
mod task;
mod text;
mod umount;
mod r#where;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use helper::Helper;

use crate::daemon::Documents;
use crate::policy::load::{REGISTRY_PATH, TRUST_PATH};
use crate::problem::{ExitCode, Problem};

/// An encrypted, replicated filesystem that writes only to devices a signed registry approves.
#[derive(Debug, Parser)]
#[command(name = "scelle", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 refused by policy, 4 wrong key, 5 integrity damage, \
                        6 degraded, 7 busy.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a volume on devices that the registry approves
    Create(create::Arguments),
    /// Mount a volume; leaves a daemon behind
    Mount(mount::Arguments),
    /// Unmount, and wait until everything is durable and the daemon has ended
    Umount(umount::Arguments),
    /// Show how the mounted volumes are
    Status(status::Arguments),
    /// Say where files are: devices, sites, owners, whose law
    Where(r#where::Arguments),
    /// Verify everything on every replica of a volume that is not mounted
    Check(check::Arguments),
    /// Show devices and what the policy says of them
    Device(device::Arguments),
    /// Bring replicas of a mounted volume back
    Replica(replica::Arguments),
    /// Show and stop the long work on a mounted volume
    Task(task::Arguments),
    /// Make, sign and verify registries
    Registry(registry::Arguments),
    /// Show, export and verify what happened to a volume
    Audit(audit::Arguments),
}

/// Where the documents are that approve devices.
#[derive(Clone, Debug, Args)]
struct DocumentArguments {
    /// The signed registry; its signatures are beside it
    #[arg(long, value_name = "FILE", default_value = REGISTRY_PATH)]
    registry: PathBuf,
    /// The trust anchors: officers' public keys and the threshold
    #[arg(long, value_name = "FILE", default_value = TRUST_PATH)]
    trust: PathBuf,
}

impl DocumentArguments {
    fn documents(&self) -> Documents {
        Documents { registry: self.registry.clone(), trust: self.trust.clone() }
    }
}

/// Where the passphrase comes from.
#[derive(Clone, Debug, Args)]
struct Passphrase {
    /// Read the passphrase from this file, `-` for standard input; else from the systemd credential
    /// scelle.passphrase; else from the terminal
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Runs the command line `arguments`, the program's name first, and returns the exit code.
pub fn run(arguments: Vec<OsString>) -> u8 {
    let outcome = match arguments.first().and_then(|name| Helper::of(name)) {
        Some(helper) => helper.run(&arguments[1..]),
        None => dispatch(arguments),
    };
    match outcome {
        Ok(code) => code as u8,
        Err(problem) => {
            eprintln!("scelle: {}", problem.whole());
            problem.exit() as u8
        }
    }
}

fn dispatch(arguments: Vec<OsString>) -> Result<ExitCode, Problem> {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to fail.
            let _ = error.print();
            return Ok(match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::Done,
                _ => ExitCode::Usage,
            });
        }
    };
    if !matches!(cli.command, Command::Mount(_)) {
        logging::to_terminal();
    }
    match cli.command {
        Command::Create(arguments) => create::run(&arguments),
        Command::Mount(arguments) => mount::run(&arguments),
        Command::Umount(arguments) => umount::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Where(arguments) => r#where::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Device(arguments) => device::run(&arguments),
        Command::Replica(arguments) => replica::run(&arguments),
        Command::Task(arguments) => task::run(&arguments),
        Command::Registry(arguments) => registry::run(&arguments),
        Command::Audit(arguments) => audit::run(&arguments),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

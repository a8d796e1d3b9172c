//! The command line: turns arguments into a validated configuration, runs one command, and returns its exit code.
//!
//! Each command has a file of its own. The process behind a mount, and what the commands that work on devices share, is
//! [`crate::daemon`]'s. A command that asks about a mounted volume asks its daemon through [`crate::control`]; only
//! `where` asks the mounted folder itself.

mod audit;
mod check;
mod completions;
mod create;
mod destroy;
mod device;
mod helper;
mod logging;
mod mount;
mod options;
mod performance;
mod registry;
mod replica;
mod scrub;
mod secret;
mod status;
mod task;
mod text;
mod umount;
mod r#where;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use helper::Helper;

use crate::daemon::Documents;
use crate::os::process;
use crate::policy::load::{REGISTRY_PATH, TRUST_PATH};
use crate::problem::{Code, ExitCode, Problem};

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
    /// Overwrite the labels and key slots of replicas, so that nothing on their devices can be read
    Destroy(destroy::Arguments),
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
    /// Read everything on every replica of a mounted volume, verify it, and repair what is damaged
    Scrub(scrub::Arguments),
    /// Show and stop the long work on a mounted volume
    Task(task::Arguments),
    /// Make, sign and verify registries
    Registry(registry::Arguments),
    /// Show, export and verify what happened to a volume
    Audit(audit::Arguments),
    /// Print what a shell needs to complete commands and options
    Completions(completions::Arguments),
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
    /// Read the passphrase from this file, which others must not be able to read, `-` for standard input; else from the
    /// systemd credential scelle.passphrase; else from the terminal
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Only root may go on, who opens devices and is shown what they are.
fn only_root(does: &str) -> Result<(), Problem> {
    match process::is_root() {
        true => Ok(()),
        false => Err(Problem::new(Code::NeedsRoot, format!("only root can {does}"))),
    }
}

/// Runs the command line `arguments`, the program's name first, and returns the exit code.
///
/// Before anything else the process is protected from core dumps and debuggers, whatever the command: no list of commands
/// that handle secrets has to be kept. A process that cannot be protected does nothing.
pub fn run(arguments: Vec<OsString>) -> u8 {
    let protected = process::harden().map_err(|error| {
        Problem::new(Code::System, format!("this process cannot be protected from core dumps: {error}"))
    });
    let outcome = protected.and_then(|()| match arguments.first().and_then(|name| Helper::of(name)) {
        Some(helper) => helper.run(&arguments[1..]),
        None => dispatch(arguments),
    });
    match outcome {
        Ok(code) => code as u8,
        Err(problem) => {
            eprintln!("scelle: {}", text::lines(&problem.whole()));
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
        Command::Destroy(arguments) => destroy::run(&arguments),
        Command::Mount(arguments) => mount::run(&arguments),
        Command::Umount(arguments) => umount::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Where(arguments) => r#where::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Device(arguments) => device::run(&arguments),
        Command::Replica(arguments) => replica::run(&arguments),
        Command::Scrub(arguments) => scrub::run(&arguments),
        Command::Task(arguments) => task::run(&arguments),
        Command::Registry(arguments) => registry::run(&arguments),
        Command::Audit(arguments) => audit::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments, &mut Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// What is called how: `registry sign`, with `--key` and the others.
    type Calls = BTreeMap<String, BTreeSet<String>>;

    /// Every command that has no commands below it, with its long options.
    fn calls(command: &clap::Command, above: &str, found: &mut Calls) {
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            let name = format!("{above} {}", below.get_name()).trim_start().to_owned();
            if below.has_subcommands() {
                calls(below, &name, found);
                continue;
            }
            let options = below.get_arguments().filter(|argument| !argument.is_hide_set());
            let options = options.filter_map(|argument| argument.get_long()).map(|long| format!("--{long}"));
            found.insert(name, options.collect());
        }
    }

    /// The same, as the synopsis of the manual page has it.
    fn synopsis(page: &str) -> Calls {
        let plain = page.replace("\\fB", "").replace("\\fI", "").replace("\\fR", "").replace("\\-", "-");
        let lines = plain.lines().filter_map(|line| line.strip_prefix("scelle "));
        let words = |line: &str| {
            let line = line.replace("DOCUMENTS", "--registry --trust");
            line.split([' ', '[', ']', '|']).filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let is_name = |word: &&String| word.bytes().all(|byte| byte.is_ascii_lowercase());
        lines
            .map(words)
            .filter(|words| words.first().is_some_and(|first| is_name(&first)))
            .map(|words| {
                let name = words.iter().take_while(is_name).cloned().collect::<Vec<_>>().join(" ");
                (name, words.into_iter().filter(|word| word.starts_with("--")).collect())
            })
            .collect()
    }

    #[test]
    fn the_manual_names_every_command_and_every_option() {
        let page = include_str!("../man/scelle.8");
        let head = page.split(".SH DESCRIPTION").next().unwrap_or_default();
        let mut real = Calls::new();
        calls(&Cli::command(), "", &mut real);
        assert_eq!(synopsis(head), real, "left: SYNOPSIS of man/scelle.8, right: src/cli");
    }
}

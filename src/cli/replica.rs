//! `scelle replica`.

use std::path::Path;

use clap::{Args, Subcommand};

use super::task;
use crate::control::ask;
use crate::os;
use crate::problem::{ExitCode, Problem};

/// Arguments of `scelle replica`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring replicas back that were refused, failed, or were away, while the volume is in use
    Resync(Resync),
}

#[derive(Debug, Args)]
struct Resync {
    /// A label, a UUID or a mount point
    volume: String,
    /// A device node, or the replica's identifier in the registry; all that are not in use if left out
    replica: Option<String>,
    /// Return when everything is copied
    #[arg(long)]
    wait: bool,
}

/// `scelle replica`.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    let Command::Resync(resync) = &arguments.command;
    let (daemon, _) = ask::daemon(&resync.volume)?;
    let answer = daemon.resync(resync.replica.as_deref().map(absolute))?;
    for returned in &answer.returned {
        let how =
            returned.task.map_or_else(|| "is in sync".to_owned(), |task| format!("is being resynced, task {task}"));
        println!("{} ({}) {how}", returned.registry_id, returned.device);
    }
    if answer.returned.is_empty() && answer.problems.is_empty() {
        println!("every replica is in use: nothing to resync");
    }
    let mut problems = answer.problems.into_iter();
    let first = problems.next();
    problems.for_each(|problem| eprintln!("scelle: {}", problem.whole()));
    if resync.wait {
        let tasks: Vec<u64> = answer.returned.iter().filter_map(|returned| returned.task).collect();
        task::wait(&daemon, &tasks)?;
    }
    first.map_or(Ok(ExitCode::Done), Err)
}

/// Makes a path absolute, because the daemon has another working folder.
fn absolute(name: &str) -> String {
    if !name.contains('/') {
        return name.to_owned();
    }
    os::mountpoint_path(Path::new(name)).to_string_lossy().into_owned()
}

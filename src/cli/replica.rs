//! `scelle replica`.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::control::{Client, VolumeStatus, ask};
use crate::os;
use crate::problem::{Code, ExitCode, Problem};

/// How often the daemon is asked how far it is.
const POLL: Duration = Duration::from_millis(200);

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
    let (daemon, volume) = ask::daemon(&resync.volume)?;
    let answer = daemon.resync(resync.replica.as_deref().map(absolute))?;
    for returned in &answer.returned {
        let how = if returned.resyncing { "is being resynced" } else { "is in sync" };
        println!("{} ({}) {how}", returned.registry_id, returned.device);
    }
    if answer.returned.is_empty() && answer.problems.is_empty() {
        println!("every replica is in use: nothing to resync");
    }
    let mut problems = answer.problems.into_iter();
    let first = problems.next();
    problems.for_each(|problem| eprintln!("scelle: {}", problem.whole()));
    if resync.wait {
        let ids: Vec<&str> = answer.returned.iter().map(|returned| returned.registry_id.as_str()).collect();
        wait(&daemon, &volume, &ids)?;
    }
    first.map_or(Ok(ExitCode::Done), Err)
}

/// The daemon has another working folder.
fn absolute(name: &str) -> String {
    if !name.contains('/') {
        return name.to_owned();
    }
    os::mountpoint_path(Path::new(name)).to_string_lossy().into_owned()
}

/// Waits until no replica of these is being resynced; then all must be in sync.
fn wait(daemon: &Client, volume: &VolumeStatus, ids: &[&str]) -> Result<(), Problem> {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::default_bar());
    loop {
        let status = daemon.status()?;
        let ours: Vec<_> = status.replicas.iter().filter(|r| ids.contains(&r.registry_id.as_str())).collect();
        if !ours.iter().any(|replica| replica.state == "resyncing") {
            bar.finish_and_clear();
            let left: Vec<String> = ours
                .iter()
                .filter(|replica| replica.state != "in-sync")
                .map(|replica| format!("{} is {}", replica.registry_id, replica.state))
                .collect();
            if left.is_empty() {
                return Ok(());
            }
            let advice = format!("scelle status {} says why.", volume.uuid);
            return Err(Problem::new(Code::ResyncEnded, left.join("; ")).advise(advice));
        }
        let progress = ours.iter().filter_map(|replica| replica.resync);
        let (done, total) = progress.fold((0, 0), |(d, t), r| (d + r.done_bytes, t + r.total_bytes));
        bar.set_length(total);
        bar.set_position(done);
        std::thread::sleep(POLL);
    }
}

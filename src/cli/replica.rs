//! `scelle replica`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::secret::{self, Obtained};
use super::{DocumentArguments, Passphrase, only_root, task, text};
use crate::control::{ResyncWanted, TableAnswer, TableChange, TableWanted, WentOn, ask};
use crate::daemon::gather::Gathered;
use crate::daemon::{WITNESS_DIR, devices, find, gather};
use crate::device::raw::Access;
use crate::os;
use crate::problem::{Code, ExitCode, Problem};
use crate::volume::{OpenOptions, Sealed};

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
    /// Make a blank device one more replica of a volume in use, and give it everything
    Add(Add),
    /// Take a replica out of a volume in use, and overwrite its label and key slots
    Remove(Remove),
    /// Give a blank device everything, and then take another replica out in its favour
    Replace(Replace),
    /// Enrol devices of a volume that is not mounted anew, as the registry lists them now
    Enrol(Enrol),
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
    /// Overwrite what the replica went on to elsewhere, up to this generation of it
    #[arg(long, value_name = "GENERATION", requires = "replica")]
    discard_diverged: Option<u64>,
}

#[derive(Debug, Args)]
struct Add {
    /// A label, a UUID or a mount point
    volume: String,
    /// The device, which the registry lists and on which nothing lies
    #[arg(value_name = "DEV")]
    device: String,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct Replace {
    /// A label, a UUID or a mount point
    volume: String,
    /// The replica that leaves: its identifier in the registry, or its device node
    #[arg(value_name = "REPLICA")]
    old: String,
    /// The device that takes its place
    #[arg(value_name = "DEV")]
    device: String,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct How {
    /// Only say what would be done
    #[arg(long)]
    plan: bool,
    /// Return when everything is copied
    #[arg(long, conflicts_with = "plan")]
    wait: bool,
}

#[derive(Debug, Args)]
struct Remove {
    /// A label, a UUID or a mount point
    volume: String,
    /// Its identifier in the registry, or its device node
    replica: String,
    /// Only say what would be done
    #[arg(long)]
    plan: bool,
}

#[derive(Debug, Args)]
struct Enrol {
    #[command(flatten)]
    documents: DocumentArguments,
    #[command(flatten)]
    passphrase: Passphrase,
    /// A label, a UUID, or all devices of one volume
    #[arg(required = true, value_name = "VOLUME|DEV")]
    devices: Vec<PathBuf>,
}

/// `scelle replica`.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    match &arguments.command {
        Command::Resync(resync) => run_resync(resync),
        Command::Add(Add { volume, device, how }) => {
            run_copy(volume, TableChange::Add { device: absolute(device) }, how)
        }
        Command::Replace(Replace { volume, old, device, how }) => {
            run_copy(volume, TableChange::Replace { old: absolute(old), device: absolute(device) }, how)
        }
        Command::Remove(remove) => run_remove(remove),
        Command::Enrol(enrol) => run_enrol(enrol),
    }
}

fn run_copy(volume: &str, change: TableChange, how: &How) -> Result<ExitCode, Problem> {
    let (daemon, _) = ask::daemon(volume)?;
    let answer = daemon.table(TableWanted { change, plan: how.plan })?;
    if how.plan {
        print!("{}", steps(&answer));
        return Ok(ExitCode::Done);
    }
    let TableAnswer { registry_id, device, task, .. } = answer;
    let is_given = task.map_or_else(|| "is in sync".to_owned(), |task| format!("is given everything, task {task}"));
    println!("{registry_id} ({device}) is a replica now, and {is_given}");
    if how.wait {
        task::wait(&daemon, &task.into_iter().collect::<Vec<_>>())?;
    }
    Ok(ExitCode::Done)
}

fn run_remove(Remove { volume, replica, plan }: &Remove) -> Result<ExitCode, Problem> {
    let (daemon, _) = ask::daemon(volume)?;
    let change = TableChange::Remove { replica: absolute(replica) };
    let answer = daemon.table(TableWanted { change, plan: *plan })?;
    if *plan {
        print!("{}", steps(&answer));
        return Ok(ExitCode::Done);
    }
    match answer {
        TableAnswer { registry_id, device, not_wiped: None, .. } => {
            println!("{registry_id} ({device}) is no replica any more; its label and key slots are overwritten");
            Ok(ExitCode::Done)
        }
        TableAnswer { registry_id, device, .. } if device.is_empty() => {
            println!("{registry_id} is no replica any more");
            println!(
                "Its device is not there, and still has the key slots: overwrite them with scelle destroy, or destroy it."
            );
            Ok(ExitCode::Done)
        }
        TableAnswer { registry_id, device, not_wiped, .. } => {
            println!("{registry_id} ({device}) is no replica any more");
            let why = not_wiped.unwrap_or_default();
            let text = format!("the label and key slots on {device} could not be overwritten: {why}");
            Err(Problem::new(Code::LabelNotWiped, text))
        }
    }
}

/// What would be done, a line a step.
fn steps(answer: &TableAnswer) -> String {
    let line = |(no, step): (usize, &String)| format!("{}. {}\n", no + 1, text::lines(step));
    answer.steps.iter().enumerate().map(line).collect::<String>() + "Nothing was done.\n"
}

/// Opens the volume, which writes its labels and a record of its trail, and closes it again.
fn run_enrol(arguments: &Enrol) -> Result<ExitCode, Problem> {
    only_root("enrol devices")?;
    let registry = devices::load_registry(&arguments.documents.documents())?;
    let sources = find::devices(&arguments.devices)?;
    let Gathered { approved, left_out } = gather::gather(&sources, &registry, Access::Exclusive, true)?;
    gather::said(&left_out).iter().for_each(|concern| eprintln!("scelle: {}", text::lines(&concern.to_string())));
    let sealed = Sealed::read(approved)?;
    let Obtained { secret, hints } =
        secret::obtain(arguments.passphrase.passphrase_file.as_deref(), secret::Purpose::Open)?;
    let assembled = sealed.unlock(&secret).map_err(|error| hints.explain(error.into()))?;
    let swapped = assembled.swapped();
    if swapped.is_empty() {
        println!("every device is enrolled as the registry lists it: nothing was changed");
        return Ok(ExitCode::Done);
    }
    let options = OpenOptions { enrol: true, witness: Some(WITNESS_DIR.into()), ..OpenOptions::default() };
    assembled.open(&registry, &options)?.close()?;
    for found in swapped {
        let (before, now) = (&found.enrolled.0, &found.listed.0);
        let also = if before == now { ", with another identity than before" } else { "" };
        println!(
            "replica {} ({}) was enrolled as {before}, and is enrolled as {now} from now on{also}",
            found.index, found.device
        );
    }
    Ok(ExitCode::Done)
}

fn run_resync(resync: &Resync) -> Result<ExitCode, Problem> {
    let (daemon, _) = ask::daemon(&resync.volume)?;
    let replica = resync.replica.as_deref().map(absolute);
    let answer = daemon.resync(ResyncWanted { replica, discard: resync.discard_diverged })?;
    answer.went_on.iter().for_each(|went_on| print!("{}", only_there(went_on, resync.discard_diverged.is_some())));
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
    problems.for_each(|problem| eprintln!("scelle: {}", text::lines(&problem.whole())));
    if resync.wait {
        let tasks: Vec<u64> = answer.returned.iter().filter_map(|returned| returned.task).collect();
        task::wait(&daemon, &tasks)?;
    }
    first.map_or(Ok(ExitCode::Done), Err)
}

/// What only a replica has that went on elsewhere, or had.
fn only_there(went_on: &WentOn, is_past: bool) -> String {
    let WentOn { what, only_there, count, incomplete } = went_on;
    let mut text = format!("{what}. Files and folders that only it {}: {count}\n", if is_past { "had" } else { "has" });
    only_there.iter().for_each(|path| text.push_str(&format!("  {path}\n")));
    if *count > only_there.len() as u64 {
        text.push_str(&format!("  and {} more\n", *count - only_there.len() as u64));
    }
    if let Some(why) = incomplete {
        text.push_str(&format!("  There may be more: {why}\n"));
    }
    text
}

/// Makes a path absolute, because the daemon has another working folder.
fn absolute(name: &str) -> String {
    if !name.contains('/') {
        return name.to_owned();
    }
    os::mountpoint_path(Path::new(name)).to_string_lossy().into_owned()
}

//! `scelle status`.

use std::collections::HashMap;
use std::fmt::Write;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::performance;
use super::scrub;
use super::task;
use super::text::{self, bytes, lines};
use crate::control::ask::{mounted, not_mounted};
use crate::control::{self, DeadMount, Replica, StatusReport, TaskState, VolumeState, VolumeStatus};
use crate::daemon::find;
use crate::os;
use crate::probe::mounts::Mount;
use crate::problem::{Code, ExitCode, Problem};

/// Arguments of `scelle status`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A label, a UUID or a mount point; every mounted volume if left out
    volume: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print more: the whole report of the last scrub
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    verbose: bool,
    /// Print what is being done, every two seconds, until the volume is unmounted
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Lines of `--watch` below one head.
const WATCH_LINES: u32 = 20;

/// Asks the daemons and prints their answers. The exit code is 6 when something is not as it should be.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    let wanted = arguments.volume.as_deref();
    let (found, silent) = mounted(wanted)?;
    let dead = dead(wanted);
    let report = StatusReport { volumes: found.into_iter().map(|(_, volume)| volume).collect(), dead };
    if let Some(name) = wanted.filter(|_| report.volumes.is_empty() && report.dead.is_empty()) {
        return Err(silent.unwrap_or_else(|| not_mounted(name)));
    }
    if arguments.watch {
        return watch(wanted, report.volumes);
    }
    if arguments.json {
        let json = serde_json::to_string(&report).map_err(|error| Problem::new(Code::Json, error.to_string()))?;
        println!("{json}");
    } else {
        print!("{}", words(&report, arguments.verbose));
    }
    if let Some(silent) = silent.filter(|_| wanted.is_none()) {
        return Err(silent);
    }
    let healthy = report.volumes.iter().all(|volume| volume.state == VolumeState::Healthy && volume.advice.is_empty());
    Ok(if healthy && report.dead.is_empty() { ExitCode::Done } else { ExitCode::Degraded })
}

/// The mounts whose daemon has died; with a name, those that it can mean.
fn dead(wanted: Option<&str>) -> Vec<DeadMount> {
    let is_wanted = |mount: &Mount| {
        let is_called = |name: &str| {
            mount.mountpoint == os::mountpoint_path(Path::new(name))
                || mount.source.rsplit(':').any(|part| part == name)
        };
        wanted.is_none_or(is_called)
    };
    let of =
        |mount: Mount| DeadMount { source: mount.source, mountpoint: mount.mountpoint.to_string_lossy().into_owned() };
    find::dead_mounts().into_iter().filter(is_wanted).map(of).collect()
}

/// Prints what is done between two answers, until no volume is left or nobody reads.
fn watch(wanted: Option<&str>, begin: Vec<VolumeStatus>) -> Result<ExitCode, Problem> {
    let by_daemon = |volumes: Vec<VolumeStatus>| -> HashMap<u32, VolumeStatus> {
        volumes.into_iter().map(|volume| (volume.pid, volume)).collect()
    };
    let mut before = by_daemon(begin);
    let mut lines = 0;
    while !before.is_empty() {
        std::thread::sleep(WATCH_INTERVAL);
        let (after, _) = mounted(wanted)?;
        for (_, volume) in &after {
            let Some(before) = before.get(&volume.pid) else { continue };
            let mut line = format!("{}\n", performance::rates(before, volume));
            if lines % WATCH_LINES == 0 {
                line.insert_str(0, performance::RATES_HEAD);
            }
            let mut out = std::io::stdout().lock();
            if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
                return Ok(ExitCode::Done);
            }
            lines += 1;
        }
        before = by_daemon(after.into_iter().map(|(_, volume)| volume).collect());
    }
    Ok(ExitCode::Done)
}

fn words(report: &StatusReport, verbose: bool) -> String {
    let mut out = String::new();
    if report.volumes.is_empty() && report.dead.is_empty() {
        out.push_str("no volume is mounted\n");
    }
    for DeadMount { source, mountpoint } in &report.dead {
        let problem = Problem::new(Code::DaemonDead, format!("the daemon of {source} on {mountpoint} has died"));
        out.push_str(&format!("{}\n", lines(&problem.whole())));
    }
    for volume in &report.volumes {
        // Writing to a String cannot fail.
        let _ = write_volume(&mut out, volume, verbose);
    }
    out
}

fn write_volume(out: &mut String, volume: &VolumeStatus, verbose: bool) -> std::fmt::Result {
    let state = match volume.state {
        VolumeState::Healthy => "healthy",
        VolumeState::Degraded => "DEGRADED",
        VolumeState::ReadOnly => "READ-ONLY",
    };
    let label = if volume.label.is_empty() { "(no label)" } else { &volume.label };
    writeln!(out, "{label}  {}  on {}: {state}", volume.uuid, volume.mountpoint)?;
    let (used, total) = (bytes(volume.capacity.used_bytes), bytes(volume.capacity.total_bytes));
    writeln!(out, "  generation {}, {used} of {total} used", volume.generation)?;
    let registry = &volume.registry;
    let signers = registry.signatures.join(", ");
    writeln!(
        out,
        "  registry version {}, valid until {}, signed by {signers}",
        registry.version, registry.valid_until
    )?;
    write_kind(out, volume)?;
    if !volume.remembered {
        writeln!(out, "  this host had no witness of the volume at the mount: a rollback would not have shown")?;
    }
    if volume.watch.interval_s > 0 && !(volume.watch.devices && volume.watch.files) {
        let every = volume.watch.interval_s;
        writeln!(out, "  the kernel does not tell of every change here: devices are looked at every {every} s")?;
    }
    for replica in &volume.replicas {
        write_replica(out, replica)?;
    }
    let scrub = if verbose { scrub::whole(&volume.scrub) } else { format!("scrub: {}", scrub::line(&volume.scrub)) };
    scrub.lines().try_for_each(|line| writeln!(out, "  {}", lines(line)))?;
    for running in volume.tasks.iter().filter(|task| task.state == TaskState::Running) {
        writeln!(out, "  {}", task::line(running))?;
    }
    performance::write(out, &volume.performance)?;
    let audit = &volume.audit;
    writeln!(out, "  audit trail: {} records, key {}", audit.records, audit.key)?;
    if volume.log.lost > 0 {
        writeln!(out, "  the system's log lacks {} messages", volume.log.lost)?;
    }
    for reason in &volume.advice {
        writeln!(out, "  ! {} [{}]", reason.text, reason.code)?;
    }
    Ok(())
}

/// The kind, whose signatures it rests on, and why it is no better one.
fn write_kind(out: &mut String, volume: &VolumeStatus) -> std::fmt::Result {
    writeln!(out, "  {}", text::trust(volume.sovereign, &volume.kind, &volume.registry.officers))?;
    volume.not_sovereign.iter().try_for_each(|lacking| writeln!(out, "    not sovereign: {lacking}"))
}

fn write_replica(out: &mut String, replica: &Replica) -> std::fmt::Result {
    let device = if replica.device.is_empty() { "-" } else { &replica.device };
    writeln!(out, "  replica {}  {device}  {}, generation {}", replica.registry_id, replica.state, replica.generation)?;
    writeln!(out, "    {}", text::place(&replica.site, replica.last_known.as_ref(), replica.listed))?;
    if let Some(old) = &replica.replaces {
        writeln!(out, "    takes the place of {old} once it has everything")?;
    }
    if let Some(io) = &replica.io {
        performance::write_device(out, io)?;
    }
    for reason in &replica.verdict.reasons {
        writeln!(out, "    refused: {} [{}]", reason.text, reason.code)?;
    }
    let errors = replica.errors;
    if errors != control::Errors::default() {
        let control::Errors { read, write, integrity, repaired } = errors;
        writeln!(out, "    errors: {read} read, {write} write, {integrity} integrity; {repaired} repaired")?;
    }
    write_total(out, &replica.total)
}

/// What went wrong over all mounts, if anything did.
fn write_total(out: &mut String, total: &control::ErrorTotal) -> std::fmt::Result {
    let control::ErrorTotal { since, errors, labels, resyncs, last_unasked } = total;
    if *errors != control::Errors::default() || (*labels, *resyncs) != (0, 0) {
        let control::Errors { read, write, integrity, repaired } = errors;
        let since = since.as_deref().unwrap_or("the first mount");
        writeln!(
            out,
            "    over all mounts since {since}: {read} read, {write} write, {integrity} integrity; {repaired} repaired"
        )?;
        let last =
            last_unasked.as_ref().map_or(String::new(), |at| format!(", the last that nobody asked for at {at}"));
        writeln!(out, "    label written over {labels} times, {resyncs} resyncs{last}")?;
    }
    Ok(())
}

//! `scelle status`.

use std::collections::HashMap;
use std::fmt::Write;
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;

use super::failure::{ExitCode, Failure};
use super::performance;
use super::umount::absolute;
use crate::control::{self, Client, Replica, State, StatusReport, VolumeStatus};

/// Arguments of `scelle status`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A label, a UUID or a mount point; every mounted volume if left out
    volume: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print what is being done, every two seconds, until the volume is unmounted
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Lines of `--watch` below one head.
const WATCH_LINES: u32 = 20;

/// Asks the daemons and prints; exit code 6 when something is not as it should be.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let wanted = arguments.volume.as_deref();
    let (found, silent) = mounted(wanted)?;
    let report = StatusReport { volumes: found.into_iter().map(|(_, volume)| volume).collect() };
    if let Some(name) = wanted.filter(|_| report.volumes.is_empty()) {
        return Err(silent.unwrap_or_else(|| not_mounted(name)));
    }
    if arguments.watch {
        return watch(wanted, report.volumes);
    }
    if arguments.json {
        let json = serde_json::to_string(&report).map_err(|error| Failure::failed("json", error.to_string()))?;
        println!("{json}");
    } else {
        print!("{}", text(&report));
    }
    if let Some(silent) = silent.filter(|_| wanted.is_none()) {
        return Err(silent);
    }
    let healthy = report.volumes.iter().all(|volume| volume.state == State::Healthy && volume.advice.is_empty());
    Ok(if healthy { ExitCode::Done } else { ExitCode::Degraded })
}

/// Daemons with their status, and what to say of those that do not answer.
type Heard = (Vec<(Client, VolumeStatus)>, Option<Failure>);

/// Asks all daemons at once for the volumes that are `wanted`. When there can be `only_one`, the others are not waited for.
pub(super) fn heard(only_one: bool, wanted: impl Fn(&VolumeStatus) -> bool) -> Result<Heard, Failure> {
    let system = |error| Failure::failed("control", format!("{}: {error}", control::RUN_DIR));
    let (sender, receiver) = mpsc::channel();
    for daemon in control::daemons(Path::new(control::RUN_DIR)).map_err(system)? {
        let sender = sender.clone();
        let ask = move || {
            // Who has heard enough has gone away.
            let _ = sender.send((daemon.status(), daemon));
        };
        std::thread::Builder::new().name("ask".into()).spawn(ask).map_err(system)?;
    }
    drop(sender);
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    for (answer, daemon) in receiver {
        match answer {
            Ok(status) if wanted(&status) => {
                found.push((daemon, status));
                if only_one {
                    break;
                }
            }
            Err(error) if error.is_silent() => silent.push(error.to_string()),
            // A socket whose daemon was killed answers nothing, and its volume is not mounted.
            Ok(_) | Err(_) => {}
        }
    }
    found.sort_by(|(_, one), (_, other)| one.uuid.cmp(&other.uuid));
    let failure = |text| {
        Failure::new(ExitCode::Degraded, "daemon-silent", text)
            .advise("A daemon is there and does not answer: is it stopped? See the system's log.")
    };
    Ok((found, (!silent.is_empty()).then(|| failure(silent.join("; ")))))
}

/// The volumes that are called `wanted`, all that are mounted without it. Several can have one label, but not one mount point.
fn mounted(wanted: Option<&str>) -> Result<Heard, Failure> {
    heard(wanted.is_some_and(is_path), |volume| wanted.is_none_or(|name| is_called(volume, name)))
}

/// Prints what is done from one look to the next, until no volume is left or nobody reads.
fn watch(wanted: Option<&str>, begin: Vec<VolumeStatus>) -> Result<ExitCode, Failure> {
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

/// The daemon of the one mounted volume that is called `name`, and its status.
pub(super) fn daemon(name: &str) -> Result<(Client, VolumeStatus), Failure> {
    let (mut found, silent) = mounted(Some(name))?;
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => {
            let text = format!("several mounted volumes are called {name:?}");
            Err(Failure::usage("volume-ambiguous", text).advise("Name it by its UUID or mount point."))
        }
        (None, _) => Err(silent.unwrap_or_else(|| not_mounted(name))),
    }
}

fn not_mounted(name: &str) -> Failure {
    Failure::usage("volume-not-mounted", format!("no mounted volume is called {name:?}"))
        .advise("scelle status without a name shows all that are mounted.")
}

fn is_path(name: &str) -> bool {
    name.contains('/')
}

fn is_called(volume: &VolumeStatus, name: &str) -> bool {
    volume.label == name
        || volume.uuid.eq_ignore_ascii_case(name)
        || (is_path(name) && Path::new(&volume.mountpoint) == absolute(Path::new(name)))
}

fn text(report: &StatusReport) -> String {
    let mut out = String::new();
    if report.volumes.is_empty() {
        out.push_str("no volume is mounted\n");
    }
    for volume in &report.volumes {
        // Writing to a String cannot fail.
        let _ = write_volume(&mut out, volume);
    }
    out
}

fn write_volume(out: &mut String, volume: &VolumeStatus) -> std::fmt::Result {
    let state = match volume.state {
        State::Healthy => "healthy",
        State::Degraded => "DEGRADED",
        State::ReadOnly => "READ-ONLY",
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
    if !volume.sovereign {
        writeln!(out, "  NOT SOVEREIGN: laboratory registry")?;
    }
    if volume.watch.interval_s > 0 && !(volume.watch.devices && volume.watch.files) {
        let every = volume.watch.interval_s;
        writeln!(out, "  the kernel does not tell of every change here: devices are looked at every {every} s")?;
    }
    for replica in &volume.replicas {
        write_replica(out, replica)?;
    }
    performance::write(out, &volume.performance)?;
    let audit = &volume.audit;
    writeln!(out, "  audit trail: {} records, key {}", audit.records, audit.key)?;
    for reason in &volume.advice {
        writeln!(out, "  ! {} [{}]", reason.text, reason.code)?;
    }
    Ok(())
}

fn write_replica(out: &mut String, replica: &Replica) -> std::fmt::Result {
    let device = if replica.device.is_empty() { "-" } else { &replica.device };
    writeln!(out, "  replica {}  {device}  {}, generation {}", replica.registry_id, replica.state, replica.generation)?;
    let law = replica.jurisdictions.join(", ");
    let Replica { site, site_name, country, owner, administrator, .. } = replica;
    writeln!(out, "    at {site} ({site_name}, {country}); owner {owner}, administrator {administrator}, law {law}")?;
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
    Ok(())
}

/// A number of bytes for people, in binary units.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (count.max(1).ilog2() / 10) as usize;
    if power == 0 {
        return format!("{count} B");
    }
    format!("{:.1} {}", count as f64 / (1u64 << (10 * power)) as f64, units[power])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        for (count, expected) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 << 20, "1.5 GiB"), (u64::MAX, "16.0 EiB")]
        {
            assert_eq!(bytes(count), expected);
        }
    }
}

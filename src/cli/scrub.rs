//! `scelle scrub`.

use std::path::Path;

use clap::Args;

use super::text::{bytes, lines};
use super::{options, task};
use crate::control::{Client, Scrub, ScrubAction, ScrubFinding, ScrubWanted, ask};
use crate::os;
use crate::problem::{ExitCode, Problem};

/// Arguments of `scelle scrub`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A label, a UUID or a mount point
    volume: String,
    /// Look only at this file, or at the files below this folder: its path in the volume, or below the mount point
    #[arg(conflicts_with = "known")]
    path: Option<String>,
    /// Read at most so many bytes a second of each replica: 512K, 20M, 1G
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    rate: Option<u64>,
    /// Look only at the blocks that are known to be lost
    #[arg(long)]
    known: bool,
    /// Have the scrub wait that is under way; the same command without options has it go on
    #[arg(long, conflicts_with_all = ["path", "rate", "known", "stop", "wait"])]
    pause: bool,
    /// End the scrub that is under way or waits, and forget where it was
    #[arg(long, conflicts_with_all = ["path", "rate", "known", "wait"])]
    stop: bool,
    /// Return when it is done
    #[arg(long)]
    wait: bool,
}

fn rate(text: &str) -> Result<u64, String> {
    let rate = options::parse_bytes(text).filter(|rate| *rate > 0);
    rate.ok_or_else(|| "a number of bytes a second, such as 512K, 20M or 1G".to_owned())
}

/// `scelle scrub`.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Problem> {
    let (daemon, status) = ask::daemon(&arguments.volume)?;
    let action = match (arguments.pause, arguments.stop) {
        (true, _) => ScrubAction::Pause,
        (_, true) => ScrubAction::Stop,
        _ => ScrubAction::Start,
    };
    let path = arguments.path.as_deref().map(|path| inside(path, Path::new(&status.mountpoint)));
    let answer = daemon.scrub(ScrubWanted { action, path, known: arguments.known, rate: arguments.rate })?;
    let Some(number) = answer.task else {
        let word = if arguments.pause { "paused" } else { "stopped" };
        println!("the scrub is {word}: {}", line(&scrub(&daemon)?));
        return Ok(ExitCode::Done);
    };
    let how = if answer.goes_on { "goes on where it was" } else { "has begun" };
    println!("the scrub {how}, task {number}");
    if !arguments.wait {
        return Ok(ExitCode::Done);
    }
    let outcome = task::wait(&daemon, &[number]);
    print!("{}", lines(&whole(&scrub(&daemon)?)));
    outcome.map(|()| ExitCode::Done)
}

fn scrub(daemon: &Client) -> Result<Scrub, Problem> {
    Ok(daemon.status()?.scrub)
}

/// A path from the root of the volume. A path that begins with the mount point is taken from there.
fn inside(path: &str, mountpoint: &Path) -> String {
    let absolute = os::mountpoint_path(Path::new(path));
    match absolute.strip_prefix(mountpoint) {
        Ok(below) if path.contains('/') => format!("/{}", below.display()),
        _ => format!("/{}", path.trim_start_matches('/')),
    }
}

/// A scrub in a line.
pub(super) fn line(scrub: &Scrub) -> String {
    let Scrub { errors, repaired, unrepaired, done_bytes, total_bytes, .. } = scrub;
    let when = |time: &Option<String>| time.clone().unwrap_or_else(|| "?".to_owned());
    let of = if scrub.subject == "all" { String::new() } else { format!(" of {}", scrub.subject) };
    let so_far = format!("{} of {}", bytes(*done_bytes), bytes(*total_bytes));
    let found = match errors {
        0 => "nothing found".to_owned(),
        _ => format!("{errors} errors found, {repaired} repaired, {unrepaired} not repaired"),
    };
    match scrub.state.as_str() {
        "never" => "none yet".to_owned(),
        "running" => format!("in progress since {}{of}, {so_far}, {found}", when(&scrub.began)),
        state @ ("paused" | "interrupted") => {
            let why = scrub.why.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
            format!("{state}{why}{of}, {so_far}, {found}; scelle scrub VOLUME goes on")
        }
        state => {
            let why = scrub.why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            let gaps = scrub.bytes.iter().any(|row| row.left_out.is_some()) || !scrub.not_looked_at.is_empty();
            let gaps = if gaps { "; not everything was looked at" } else { "" };
            format!("{state} at {}{of}{why}, {found}{gaps}", when(&scrub.ended))
        }
    }
}

/// The whole report of a scrub.
pub(super) fn whole(scrub: &Scrub) -> String {
    let mut text = format!("scrub: {}\n", line(scrub));
    for row in &scrub.bytes {
        let left_out = row.left_out.as_ref().map_or_else(String::new, |why| format!("; {why}"));
        text.push_str(&format!("  {}: {} read{left_out}\n", row.replica, bytes(row.bytes)));
    }
    for part in &scrub.not_looked_at {
        text.push_str(&format!("  not looked at: {part}\n"));
    }
    for finding in &scrub.findings {
        let ScrubFinding { what, offset, replica, device, how, repaired } = finding;
        let at = offset.map_or_else(String::new, |offset| format!(" at byte {offset}"));
        let outcome = if *repaired { "repaired" } else { "NOT REPAIRED" };
        text.push_str(&format!("  {what}{at}, {replica} ({device}): {how}: {outcome}\n"));
    }
    let more = scrub.errors.saturating_sub(scrub.findings.len() as u64 + scrub.not_looked_at.len() as u64);
    if more > 0 {
        text.push_str(&format!("  and {more} more\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_from_the_root_of_the_volume_or_from_below_the_mount_point() {
        let inside = |path| inside(path, Path::new("/srv/greffe"));
        assert_eq!(inside("/srv/greffe/deeds/1"), "/deeds/1");
        assert_eq!(inside("/srv/greffe"), "/");
        assert_eq!(inside("/deeds/1"), "/deeds/1");
        assert_eq!(inside("deeds"), "/deeds");
    }

    #[test]
    fn rates_are_sizes_a_second() {
        assert_eq!((rate("512K"), rate("20M")), (Ok(512 << 10), Ok(20 << 20)));
        assert!(rate("0").is_err() && rate("fast").is_err());
    }

    #[test]
    fn a_scrub_says_how_far_it_is_and_what_it_found() {
        let never = Scrub::default();
        assert_eq!(line(&never), "none yet");
        let mut scrub = Scrub {
            state: "running".into(),
            subject: "all".into(),
            began: Some("2026-11-21T00:00:00Z".into()),
            ended: Some("2026-11-21T00:01:00Z".into()),
            done_bytes: 1 << 20,
            total_bytes: 1 << 21,
            ..Scrub::default()
        };
        assert_eq!(line(&scrub), "in progress since 2026-11-21T00:00:00Z, 1.0 MiB of 2.0 MiB, nothing found");
        scrub.state = "paused".into();
        assert_eq!(line(&scrub), "paused, 1.0 MiB of 2.0 MiB, nothing found; scelle scrub VOLUME goes on");
        (scrub.state, scrub.errors, scrub.repaired, scrub.unrepaired) = ("finished".into(), 3, 2, 1);
        let found = "finished at 2026-11-21T00:01:00Z, 3 errors found, 2 repaired, 1 not repaired";
        assert_eq!(line(&scrub), found);
        scrub.findings.push(ScrubFinding { what: "/deed".into(), offset: Some(4096), ..ScrubFinding::default() });
        let whole = whole(&scrub);
        assert!(whole.contains("/deed at byte 4096") && whole.contains("NOT REPAIRED"), "{whole}");
        assert!(whole.ends_with("and 2 more\n"), "{whole}");
    }
}

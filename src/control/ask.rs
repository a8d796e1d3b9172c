//! Asking all daemons of the host: which volumes are mounted, and who serves one of them.

use std::path::Path;
use std::sync::mpsc;

use super::RUN_DIR;
use super::client::{Client, daemons};
use super::failure::{ExitCode, Failure};
use super::protocol::VolumeStatus;
use crate::os;

/// Daemons with their status, and what to say of those that do not answer.
pub type Heard = (Vec<(Client, VolumeStatus)>, Option<Failure>);

/// Asks all daemons at once for the volumes that are `wanted`. When there can be `only_one`, the others are not waited for.
pub fn heard(only_one: bool, wanted: impl Fn(&VolumeStatus) -> bool) -> Result<Heard, Failure> {
    let system = |error| Failure::failed("control", format!("{}: {error}", RUN_DIR));
    let (sender, receiver) = mpsc::channel();
    for daemon in daemons(Path::new(RUN_DIR)).map_err(system)? {
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
pub fn mounted(wanted: Option<&str>) -> Result<Heard, Failure> {
    heard(wanted.is_some_and(is_path), |volume| wanted.is_none_or(|name| is_called(volume, name)))
}

/// The daemon of the one mounted volume that is called `name`, and its status.
pub fn daemon(name: &str) -> Result<(Client, VolumeStatus), Failure> {
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

/// What is said of a name that no mounted volume has.
pub fn not_mounted(name: &str) -> Failure {
    Failure::usage("volume-not-mounted", format!("no mounted volume is called {name:?}"))
        .advise("scelle status without a name shows all that are mounted.")
}

fn is_path(name: &str) -> bool {
    name.contains('/')
}

fn is_called(volume: &VolumeStatus, name: &str) -> bool {
    volume.label == name
        || volume.uuid.eq_ignore_ascii_case(name)
        || (is_path(name) && Path::new(&volume.mountpoint) == os::mountpoint_path(Path::new(name)))
}

/// The daemon that serves the mount at `mountpoint`; none is said only when all daemons were heard.
pub fn daemon_at(mountpoint: &Path) -> Result<Option<Client>, Failure> {
    let (mut found, silent) = heard(true, |status| Path::new(&status.mountpoint) == mountpoint)?;
    match (found.pop(), silent) {
        (Some((client, _)), _) => Ok(Some(client)),
        (None, None) => Ok(None),
        (None, Some(Failure { reason, text, advice, .. })) => {
            let text = format!("whether a daemon still serves {} is not known: {text}", mountpoint.display());
            Err(Failure::failed(&reason, text).advise(advice))
        }
    }
}

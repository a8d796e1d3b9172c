//! Asks all daemons of the host which volumes are mounted, and finds the daemon of one of them.

use std::path::Path;
use std::sync::mpsc;

use super::RUN_DIR;
use super::client::{Client, ClientError, daemons};
use super::status::VolumeStatus;
use crate::os::{self, process};
use crate::probe::mounts::Mount;
use crate::problem::{Code, Problem};

/// Daemons with their answers; and, if some daemons do not answer, the problem that says so.
pub type Answers<T> = (Vec<(Client, T)>, Option<Problem>);

/// Daemons with their status.
pub type Heard = Answers<VolumeStatus>;

/// Asks all daemons at once for their status, and returns those whose volume is `wanted`. With `only_one`, the first
/// such answer ends the wait.
pub fn heard(only_one: bool, wanted: impl Fn(&VolumeStatus) -> bool) -> Result<Heard, Problem> {
    let (mut found, silent) = answers(only_one, Client::status, wanted)?;
    found.sort_by(|(_, one), (_, other)| one.uuid.cmp(&other.uuid));
    Ok((found, silent))
}

fn answers<T: Send + 'static>(
    only_one: bool,
    question: fn(&Client) -> Result<T, ClientError>,
    wanted: impl Fn(&T) -> bool,
) -> Result<Answers<T>, Problem> {
    if !process::is_root() {
        return Err(Problem::new(Code::NeedsRoot, "which volumes are mounted, and how they are, only root may ask"));
    }
    let system = |error| Problem::new(Code::Control, format!("{RUN_DIR}: {error}"));
    let (sender, receiver) = mpsc::channel();
    for daemon in daemons(Path::new(RUN_DIR)).map_err(system)? {
        let sender = sender.clone();
        let ask = move || {
            // If nobody listens any more, the asker has heard enough.
            let _ = sender.send((question(&daemon), daemon));
        };
        std::thread::Builder::new().name("ask".into()).spawn(ask).map_err(system)?;
    }
    drop(sender);
    let (mut found, mut unheard) = (Vec::new(), Vec::new());
    for (answer, daemon) in receiver {
        match answer {
            Ok(answer) if wanted(&answer) => {
                found.push((daemon, answer));
                if only_one {
                    break;
                }
            }
            Err(error) if error.is_gone() => {}
            Err(error) => unheard.push(error),
            Ok(_) => {}
        }
    }
    Ok((found, unheard_of(unheard)))
}

/// What is said of daemons that are there and were not understood or did not answer.
fn unheard_of(errors: Vec<ClientError>) -> Option<Problem> {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let first = errors.into_iter().next()?;
    let code = if first.is_silent() { Code::DaemonSilent } else { Problem::from(first).code };
    Some(Problem::new(code, texts.join("; ")))
}

/// The volumes that are called `wanted`; without a name, all that are mounted. Several can have one label, but not one
/// mount point.
pub fn mounted(wanted: Option<&str>) -> Result<Heard, Problem> {
    heard(wanted.is_some_and(is_path), |volume| wanted.is_none_or(|name| is_called(volume, name)))
}

/// The daemon of the one mounted volume that is called `name`, and its status.
pub fn daemon(name: &str) -> Result<(Client, VolumeStatus), Problem> {
    let (mut found, silent) = mounted(Some(name))?;
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => {
            let text = format!("several mounted volumes are called {name:?}");
            Err(Problem::new(Code::VolumeAmbiguous, text).advise("Name it by its UUID or mount point."))
        }
        (None, _) => Err(silent.unwrap_or_else(|| not_mounted(name))),
    }
}

/// The problem of a name that no mounted volume has.
pub fn not_mounted(name: &str) -> Problem {
    Problem::new(Code::VolumeNotMounted, format!("no mounted volume is called {name:?}"))
}

fn is_path(name: &str) -> bool {
    name.contains('/')
}

fn is_called(volume: &VolumeStatus, name: &str) -> bool {
    volume.label == name
        || volume.uuid.eq_ignore_ascii_case(name)
        || (is_path(name) && Path::new(&volume.mountpoint) == os::mountpoint_path(Path::new(name)))
}

/// The daemon that serves `mount`, of whatever version it is. `None` is returned only when all daemons were heard.
pub fn daemon_of(mount: &Mount) -> Result<Option<Client>, Problem> {
    let (mut found, silent) = answers(true, Client::greeting, |greeting| greeting.serves(mount.dev))?;
    match (found.pop(), silent) {
        (Some((daemon, _)), _) => Ok(Some(daemon)),
        (None, None) => Ok(None),
        (None, Some(silent)) => {
            let place = mount.mountpoint.display();
            let text = format!("whether a daemon still serves {place} is not known: {}", silent.text);
            Err(Problem { text, ..silent })
        }
    }
}

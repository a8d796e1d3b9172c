//! `scelle mount`, also as `mount.scelle`: the command that waits, and the daemon that serves.

mod daemon;
mod refusal;
mod resync;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::Args;

use super::failure::{ExitCode, Failure};
use super::options::{self, MountOptions};
use super::{Documents, Passphrase, find, logging, secret, umount};
use crate::device::process::{self, Report, Side};
use crate::policy::load::{REGISTRY_PATH, TRUST_PATH};

/// Arguments of `scelle mount`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Mount options: ro, degraded, noexec, suid, dev, sync, powersave, idle=TIME, cache=SIZE, accept-rollback, registry=FILE, trust=FILE, passphrase-file=FILE
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in front, and unmount on Ctrl-C
    #[arg(short = 'f', long)]
    foreground: bool,
    #[command(flatten)]
    documents: Documents,
    #[command(flatten)]
    passphrase: Passphrase,
    /// A label, a UUID, or the devices of one volume; then the folder to mount on
    #[arg(required = true, num_args = 2.., value_names = ["VOLUME|DEV", "MOUNTPOINT"])]
    places: Vec<PathBuf>,
}

/// What is to be mounted, complete and absolute.
#[derive(Clone, Debug)]
struct Request {
    sources: Vec<PathBuf>,
    mountpoint: PathBuf,
    options: MountOptions,
    documents: Documents,
    passphrase_file: Option<PathBuf>,
    foreground: bool,
}

/// `scelle mount`.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Some((mountpoint, sources)) = arguments.places.split_last() else {
        return Err(Failure::usage("arguments", "what to mount, and where"));
    };
    perform(Request {
        sources: sources.to_vec(),
        mountpoint: mountpoint.clone(),
        options: options::parse(&arguments.options)?,
        documents: arguments.documents.clone(),
        passphrase_file: arguments.passphrase.passphrase_file.clone(),
        foreground: arguments.foreground,
    })
}

/// `mount.scelle SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`, as mount(8) calls its helpers. SOURCE
/// is a label, a UUID or the devices with colons between them.
pub(super) fn as_helper(arguments: &[OsString]) -> Result<ExitCode, Failure> {
    let mut places = Vec::new();
    let mut lists = Vec::new();
    let mut fake = false;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().map(|value| value.to_string_lossy().into_owned()).ok_or(());
        let missing = |()| Failure::usage("arguments", format!("{} needs a value", argument.to_string_lossy()));
        match argument.as_bytes() {
            b"-o" => lists.push(value().map_err(missing)?),
            b"-N" | b"-t" => drop(value().map_err(missing)?),
            [b'-', flags @ ..] if !flags.is_empty() => {
                if let Some(&unknown) = flags.iter().find(|flag| !b"sfnvrw".contains(flag)) {
                    return Err(Failure::usage("arguments", format!("option -{} is not known", char::from(unknown))));
                }
                fake |= flags.contains(&b'f');
                lists.extend(flags.contains(&b'r').then(|| "ro".to_string()));
            }
            _ => places.push(argument),
        }
    }
    let [source, mountpoint] = places[..] else {
        return Err(Failure::usage("arguments", "usage: mount.scelle DEV[:DEV…] MOUNTPOINT [-o OPTIONS]"));
    };
    let options = options::parse(&lists)?;
    if fake {
        return Ok(ExitCode::Done);
    }
    let names = source.as_bytes().split(|&byte| byte == b':').filter(|name| !name.is_empty());
    perform(Request {
        sources: names.map(|name| PathBuf::from(OsString::from_vec(name.to_vec()))).collect(),
        mountpoint: PathBuf::from(mountpoint),
        options,
        documents: Documents { registry: REGISTRY_PATH.into(), trust: TRUST_PATH.into() },
        passphrase_file: None,
        foreground: false,
    })
}

/// Asks for the passphrase, splits the daemon off and waits until the folder is usable.
fn perform(mut request: Request) -> Result<ExitCode, Failure> {
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    let options = &request.options;
    request.documents.registry = absolute(options.registry.clone().unwrap_or(request.documents.registry));
    request.documents.trust = absolute(options.trust.clone().unwrap_or(request.documents.trust));
    request.passphrase_file = options.passphrase_file.clone().or(request.passphrase_file);
    request.mountpoint = umount::absolute(&request.mountpoint);
    request.sources = find::devices(&request.sources)?;
    find::prepare_mountpoint(&request.mountpoint)?;
    let secret = secret::obtain(request.passphrase_file.as_deref(), secret::Purpose::Open)?;
    if request.foreground {
        logging::to_terminal();
        return daemon::start(&request, &secret).inspect_err(|why| refusal::report(&request, why))?.serve();
    }
    let system = |error: std::io::Error| Failure::failed("daemon", format!("cannot start a daemon: {error}"));
    match process::fork_daemon().map_err(system)? {
        Side::Command(waiter) => match waiter.wait() {
            Some(Report { code: 0, .. }) => Ok(ExitCode::Done),
            Some(Report { code, message }) => {
                eprintln!("scelle: {message}");
                Ok(ExitCode::from_byte(code))
            }
            None => Err(Failure::failed("daemon-died", "the daemon ended before the folder was usable")
                .advise("See the system's log.")),
        },
        Side::Daemon(notifier) => {
            logging::to_system();
            match daemon::start(&request, &secret) {
                Ok(mounted) => {
                    drop(secret);
                    notifier.ready().map_err(system)?;
                    mounted.serve()
                }
                Err(failure) => {
                    refusal::report(&request, &failure);
                    // The command is gone if this fails; there is nobody else to tell.
                    let _ = notifier.failed(&Report { code: failure.code as u8, message: failure.to_string() });
                    Ok(failure.code)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn helper(arguments: &[&str]) -> Result<ExitCode, Failure> {
        as_helper(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_helper_understands_what_mount_passes() {
        assert_eq!(helper(&["/dev/a:/dev/b", "/mnt", "-f", "-o", "rw,nofail"]).unwrap(), ExitCode::Done);
        assert_eq!(helper(&["vol", "/mnt", "-snf", "-t", "scelle", "-N", "1"]).unwrap(), ExitCode::Done);
        for bad in [&["vol"][..], &["a", "b", "c"], &["a", "b", "-o"], &["a", "b", "-x"], &["a", "b", "-fo", "x"]] {
            assert_eq!(helper(bad).unwrap_err().code, ExitCode::Usage, "{bad:?}");
        }
        assert_eq!(helper(&["a", "b", "-f", "-o", "force"]).unwrap_err().reason, "mount-option-unknown");
    }

    #[test]
    fn what_cannot_be_a_mount_point_is_refused_before_any_question() {
        let failure = helper(&["/dev/null", "/nonexistent/folder"]).unwrap_err();
        assert_eq!((failure.reason.as_str(), failure.code), ("mountpoint", ExitCode::Usage));
    }
}

//! `scelle mount`, also as `mount.scelle`: the command that waits, and the daemon that serves.

mod daemon;
mod refusal;
mod remount;
mod resync;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;

use super::failure::{ExitCode, Failure};
use super::options::{self, MountOptions};
use super::{Documents, Passphrase, find, logging, secret, umount};
use crate::device::process::{self, Report, Side};
use crate::policy::load::{REGISTRY_PATH, TRUST_PATH};

/// How the source of a mount under a laboratory registry begins in the mount table, where spaces would be hard to read.
const LABORATORY: &str = "not-sovereign:laboratory-registry:";

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
pub(super) struct Request {
    /// What the mount table is to show: the volume or its devices, as they were named.
    named: String,
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
        named: join(sources),
        sources: sources.to_vec(),
        mountpoint: mountpoint.clone(),
        options: options::parse(&arguments.options)?,
        documents: arguments.documents.clone(),
        passphrase_file: arguments.passphrase.passphrase_file.clone(),
        foreground: arguments.foreground,
    })
}

fn join(sources: &[PathBuf]) -> String {
    sources.iter().map(|source| source.to_string_lossy()).collect::<Vec<_>>().join(":")
}

impl Request {
    /// What mount(8) asks for: `source` is a label, a UUID or the devices with colons between them, or what the mount
    /// table showed of it.
    pub(super) fn of_helper(source: &OsStr, mountpoint: &OsStr, options: MountOptions) -> Self {
        let source = source.as_bytes();
        let source = source.strip_prefix(LABORATORY.as_bytes()).unwrap_or(source);
        let names = source.split(|&byte| byte == b':').filter(|name| !name.is_empty());
        let sources: Vec<PathBuf> = names.map(|name| PathBuf::from(OsStr::from_bytes(name))).collect();
        Self {
            named: join(&sources),
            sources,
            mountpoint: PathBuf::from(mountpoint),
            options,
            documents: Documents { registry: REGISTRY_PATH.into(), trust: TRUST_PATH.into() },
            passphrase_file: None,
            foreground: false,
        }
    }

    /// The source of the mount in the mount table: what was asked for, so that mount(8) finds the line of fstab(5) mounted,
    /// and what it can be asked for with. That a volume is not sovereign is said first.
    fn shown(&self, sovereign: bool) -> String {
        format!("{}{}", if sovereign { "" } else { LABORATORY }, self.named)
    }
}

/// Asks for the passphrase, splits the daemon off and waits until the folder is usable.
pub(super) fn perform(mut request: Request) -> Result<ExitCode, Failure> {
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    let options = &request.options;
    request.documents.registry = absolute(options.registry.clone().unwrap_or(request.documents.registry));
    request.documents.trust = absolute(options.trust.clone().unwrap_or(request.documents.trust));
    request.passphrase_file = options.passphrase_file.clone().or(request.passphrase_file);
    request.mountpoint = umount::absolute(&request.mountpoint);
    if request.options.remount {
        return remount::run(&request);
    }
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

    #[test]
    fn what_the_mount_table_shows_can_be_mounted_again() {
        let of = |source: &str| Request::of_helper(OsStr::new(source), OsStr::new("/mnt"), MountOptions::default());
        for source in ["archives", "/dev/a:/dev/b", "/dev/disk/by-id/nvme-A"] {
            assert_eq!(of(source).shown(true), source);
            let laboratory = of(source).shown(false);
            assert_eq!(laboratory, format!("not-sovereign:laboratory-registry:{source}"));
            assert_eq!(of(&laboratory).shown(false), laboratory);
            assert_eq!(of(&laboratory).sources, of(source).sources);
            assert_eq!(of(&laboratory).shown(true), source, "a sovereign volume cannot be made to look like none");
        }
        assert_eq!(of("/dev/a:/dev/b").sources, [PathBuf::from("/dev/a"), PathBuf::from("/dev/b")]);
    }
}

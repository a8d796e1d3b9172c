//! What is to be mounted, and how: a mount's request, complete and plain. Parsing is [`crate::cli`]'s.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::policy::Kind;
use crate::policy::load::{REGISTRY_PATH, TRUST_PATH};
use crate::registry::Date;
use crate::units::Generation;

/// How the source of a mount begins in the mount table when the volume is not sovereign. Spaces would be hard to read
/// there. Officers and their keys are not named: they change, and a line of fstab(5) has to stay the same.
const NOT_SOVEREIGN: [(Kind, &str); 2] =
    [(Kind::Laboratory, "not-sovereign:laboratory-registry:"), (Kind::Private, "not-sovereign:private-registry:")];

/// Where the documents are that approve devices.
#[derive(Clone, Debug)]
pub struct Documents {
    /// The signed registry; its signatures are beside it.
    pub registry: PathBuf,
    /// The trust anchors: officers' public keys and the threshold.
    pub trust: PathBuf,
}

/// The mount options, as `-o` asked for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Change the flags of the mount that is there.
    pub remount: bool,
    /// Refuse every change.
    pub read_only: bool,
    /// Go on although a replica that was in sync is absent.
    pub degraded: bool,
    /// Go on from this generation, although this host has seen a later one.
    pub accept_rollback: Option<Generation>,
    /// Go on, on this day, although the clock shows an earlier time than one that has been.
    pub accept_clock: Option<Date>,
    /// Let nobody execute anything. If the mount does not say, execution is allowed.
    pub no_exec: Option<bool>,
    /// Honour set-user-id and set-group-id bits. If the mount does not say, they are not honoured.
    pub suid: Option<bool>,
    /// Honour device nodes. If the mount does not say, they are not honoured.
    pub dev: Option<bool>,
    /// Every write is durable when it returns. If the mount does not say, it is durable after fsync.
    pub sync: Option<bool>,
    /// Let processors sleep between requests, however short the pause.
    pub powersave: bool,
    /// Unmount when nobody has used the folder for this long.
    pub idle: Option<Duration>,
    /// Most memory for blocks that were read, in bytes.
    pub cache_bytes: Option<u64>,
    /// The signed registry.
    pub registry: Option<PathBuf>,
    /// The trust anchors.
    pub trust: Option<PathBuf>,
    /// Where the passphrase is.
    pub passphrase_file: Option<PathBuf>,
}

/// What is to be mounted: devices, as they were named or as a volume's name has led to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The devices; before they are looked for, perhaps the name.
    pub devices: Vec<PathBuf>,
    /// The label or UUID that the devices were found by, when they were not named one by one.
    pub name: Option<String>,
}

/// What is to be mounted, complete and absolute.
#[derive(Clone, Debug)]
pub struct Request {
    /// What the mount table is to show: the volume or its devices, as the user named them.
    pub named: String,
    /// What is to be mounted.
    pub sources: Sources,
    /// The folder to mount on.
    pub mountpoint: PathBuf,
    /// What `-o` asked for.
    pub options: MountOptions,
    /// Where the registry and the trust anchors are.
    pub documents: Documents,
    /// Where the passphrase is; if nowhere, the user is asked for it.
    pub passphrase_file: Option<PathBuf>,
    /// Whether no daemon is split off.
    pub foreground: bool,
}

/// Joins the sources to one source of the mount table.
pub fn join(sources: &[PathBuf]) -> String {
    sources.iter().map(|source| source.to_string_lossy()).collect::<Vec<_>>().join(":")
}

/// What a source of the mount table names, without what is said before it of a volume that is not sovereign.
fn named(source: &[u8]) -> Vec<PathBuf> {
    let shown = NOT_SOVEREIGN.iter().find_map(|(_, begin)| source.strip_prefix(begin.as_bytes()));
    let names = shown.unwrap_or(source).split(|&byte| byte == b':').filter(|name| !name.is_empty());
    names.map(|name| PathBuf::from(OsStr::from_bytes(name))).collect()
}

impl Request {
    /// The request of mount(8). `source` is a label, a UUID or the devices with colons between them, or what the mount
    /// table showed of these.
    pub fn of_helper(source: &OsStr, mountpoint: &OsStr, options: MountOptions) -> Self {
        let sources = named(source.as_bytes());
        Self {
            named: join(&sources),
            sources: Sources { devices: sources, name: None },
            mountpoint: PathBuf::from(mountpoint),
            options,
            documents: Documents { registry: REGISTRY_PATH.into(), trust: TRUST_PATH.into() },
            passphrase_file: None,
            foreground: false,
        }
    }

    /// The source of the mount in the mount table. It shows what was asked for: so mount(8) finds the line of fstab(5)
    /// mounted, and a user can ask for the volume with it. That a volume is not sovereign is said first.
    pub fn shown(&self, kind: Kind) -> String {
        let begin = NOT_SOVEREIGN.iter().find(|(other, _)| *other == kind).map_or("", |(_, begin)| begin);
        format!("{begin}{}", self.named)
    }

    /// Whether a mount with this source in the mount table was asked for in the same words.
    pub fn is_shown_as(&self, source: &str) -> bool {
        join(&named(source.as_bytes())) == self.named
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
            assert_eq!(of(source).shown(Kind::Sovereign), source);
            assert!(of(source).is_shown_as(source) && !of(source).is_shown_as("another"));
            for kind in [Kind::Laboratory, Kind::Private] {
                let shown = of(source).shown(kind);
                assert_eq!(shown, format!("not-sovereign:{kind}-registry:{source}"));
                assert!(of(source).is_shown_as(&shown));
                assert_eq!(of(&shown).shown(kind), shown);
                assert_eq!(of(&shown).sources.devices, of(source).sources.devices);
                assert_eq!(of(&shown).shown(Kind::Sovereign), source, "what it was says nothing of what it is");
            }
        }
        assert_eq!(of("/dev/a:/dev/b").sources.devices, [PathBuf::from("/dev/a"), PathBuf::from("/dev/b")]);
    }
}

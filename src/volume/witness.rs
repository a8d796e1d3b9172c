//! The host's memory of the last commit that it answered for: one small file for each volume. It recognises three things
//! that nothing on the devices can show. What follows from them is decided in `volume::open`.
//!
//! 1. *All* replicas were set back together.
//! 2. A replica that was left behind is mounted by itself, as if it were the volume.
//! 3. Somebody shows an older registry, or another one of the same version, with devices that were set back.
//!
//! # The file
//!
//! `UUID.witness` is TOML: a [`Record`]. A file of another `version` is refused. Keys that this program does not know
//! are kept as they are when the file is written anew. So a key that has to be understood needs another version.
//!
//! A new file is written beside the old one, flushed, and renamed over it; then the folder is flushed.
//!
//! # What is proved
//!
//! A generation is only a number: a volume that was set back and used elsewhere soon has a higher one. So the record
//! names the mount too, by epoch and random number. A root is of the remembered history in two cases:
//!
//! * It is of that mount, and not of an earlier generation.
//! * Its lineage names that mount, and went through it at least as far as the generation.
//!
//! A lineage remembers [`LINEAGE_MAX`](crate::label::LINEAGE_MAX) mounts. Of a mount before those nothing is proved,
//! and nothing disproved. Then the volume is refused too: whoever has used it elsewhere for so long accepts that once.
//!
//! # When it is written
//!
//! About every second by a thread of its own, the [`Keeper`]'s. Only one commit waits for it: the first whose root no
//! longer names a replica. Until the witness knows of that commit, a mount of that replica alone would not be
//! recognised.
//!
//! The record also holds what is known of the volume's [`health`](super::health). No commit waits for that: it is written
//! when it has changed, by the same thread.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::health::Health;
use crate::audit::Accepted;
use crate::label::{MountId, Root};
use crate::limits::{REPLICAS_MAX, WITNESS_BYTES_MAX};
use crate::os::Patience;
use crate::policy::clock::now_unix_s;
use crate::registry::VerifiedRegistry;
use crate::units::{Generation, Uuid};

mod keeper;

pub use keeper::Keeper;

/// The version of the file.
const VERSION: u32 = 1;

/// What the host remembers of a volume.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    version: u32,
    /// Number of the mount that made the last commit.
    epoch: u32,
    /// The mount's random number, in hexadecimal digits.
    nonce: String,
    /// The last commit that was answered for.
    generation: u64,
    /// When that was, in nanoseconds since 1970.
    committed_unix_ns: i64,
    /// The replicas that hold it, as the replica table counts them.
    in_sync: Vec<usize>,
    /// The registry that was in force then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registry: Option<Accepted>,
    /// What is known of the volume's health.
    #[serde(default)]
    health: Health,
    /// Keys of later programs.
    #[serde(flatten)]
    other: toml::Table,
}

/// Whether the history of a root went through what the host remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descent {
    /// It did.
    Proved,
    /// It did not.
    Disproved,
    /// The root does not remember so far back.
    Forgotten,
}

impl Record {
    /// What is to be remembered of this root.
    pub fn of(root: &Root) -> Self {
        Self {
            version: VERSION,
            epoch: root.epoch(),
            nonce: format!("{:016x}", root.mount.nonce),
            generation: root.generation.0,
            committed_unix_ns: root.committed_unix_ns,
            in_sync: (0..REPLICAS_MAX).filter(|index| root.names(*index)).collect(),
            registry: None,
            health: Health::default(),
            other: toml::Table::new(),
        }
    }

    /// The same, with the registry in force.
    pub fn under(self, registry: Option<&VerifiedRegistry>) -> Self {
        Self { registry: registry.map(Accepted::of), ..self }
    }

    /// The registry that was in force, if that is remembered.
    pub fn registry(&self) -> Option<&Accepted> {
        self.registry.as_ref()
    }

    /// What is known of the volume's health.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The last generation that was answered for.
    pub fn generation(&self) -> Generation {
        Generation(self.generation)
    }

    /// The replicas that hold it.
    pub fn in_sync(&self) -> &[usize] {
        &self.in_sync
    }

    /// Whether the history of `root` went through this.
    pub fn descent(&self, root: &Root) -> Descent {
        let nonce = u64::from_str_radix(&self.nonce, 16);
        let went_through = nonce.is_ok_and(|nonce| {
            let remembered = Root {
                mount: MountId { epoch: self.epoch, nonce },
                generation: Generation(self.generation),
                ..Root::default()
            };
            root.went_through(&remembered)
        });
        match went_through {
            true => Descent::Proved,
            false if root.lineage.forgot(self.epoch) => Descent::Forgotten,
            false => Descent::Disproved,
        }
    }

    /// This, with the unknown keys of what was remembered before, and what is known of the health by now.
    fn keeping(mut self, before: &toml::Table, health: Health) -> Self {
        self.other = before.clone();
        self.health = health;
        self
    }

    fn parse(text: &str) -> io::Result<Self> {
        let invalid = |why: String| Error::new(ErrorKind::InvalidData, why);
        let record: Self = toml::from_str(text).map_err(|error| invalid(error.message().to_owned()))?;
        match record.version {
            VERSION => Ok(record),
            version => Err(invalid(format!("it is of version {version}, which this program does not know"))),
        }
    }
}

fn file(folder: &Path, volume: Uuid) -> PathBuf {
    folder.join(format!("{volume}.witness"))
}

/// What the host remembers; nothing when it has never mounted the volume.
///
/// # Errors
/// When the file cannot be read or is no record. Then nothing is known, and the caller has to say so.
pub fn read(folder: &Path, volume: Uuid) -> io::Result<Option<Record>> {
    let file = match std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(file(folder, volume)) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    file.take(WITNESS_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > WITNESS_BYTES_MAX {
        return Err(Error::new(ErrorKind::InvalidData, format!("it is longer than {WITNESS_BYTES_MAX} bytes")));
    }
    Record::parse(&text).map(Some)
}

/// When the host wrote that down, in seconds since 1970; `None` when it has not, or cannot say.
fn written_unix_s(folder: &Path, volume: Uuid) -> Option<u64> {
    let modified = std::fs::metadata(file(folder, volume)).and_then(|meta| meta.modified()).ok()?;
    Some(modified.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs())
}

/// What the host remembers, and when it wrote that down, in seconds since 1970; but waits for `patience` at most. The host's
/// disk may hang.
///
/// # Errors
/// As [`read`]; [`ErrorKind::TimedOut`].
pub fn read_within(folder: &Path, volume: Uuid, patience: Duration) -> io::Result<Option<(Record, Option<u64>)>> {
    let folder = folder.to_owned();
    let read = move || Ok(read(&folder, volume)?.map(|record| (record, written_unix_s(&folder, volume))));
    Patience::new(patience).call(read)
}

/// Notes that a check has found the replicas of these identities whole, if the host remembers the volume. Returns whose
/// counts of errors start anew because of that. Waits for `patience` at most.
///
/// # Errors
/// As [`read_within`] and [`write()`].
pub fn found_whole(
    folder: &Path,
    volume: Uuid,
    identities: Vec<[u8; 32]>,
    patience: Duration,
) -> io::Result<Vec<[u8; 32]>> {
    let folder = folder.to_owned();
    Patience::new(patience).call(move || {
        let Some(mut record) = read(&folder, volume)? else { return Ok(Vec::new()) };
        let anew = record.health.found_whole(&identities, now_unix_s());
        if !anew.is_empty() {
            write(&folder, volume, &record)?;
        }
        Ok(anew)
    })
}

/// Remembers a record: when this returns, it is on stable storage of the host.
///
/// # Errors
/// The system's.
pub fn write(folder: &Path, volume: Uuid, record: &Record) -> io::Result<()> {
    let text = toml::to_string(record).map_err(|error| Error::new(ErrorKind::InvalidData, error.to_string()))?;
    std::fs::create_dir_all(folder)?;
    let target = file(folder, volume);
    let beside = target.with_extension("witness-new");
    let mut out = std::fs::File::create(&beside)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    std::fs::rename(beside, target)?;
    // The name is in the folder: until the folder is flushed, a power failure brings the old file back.
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::label::LINEAGE_MAX;

    fn root(epoch: u32, nonce: u64, generation: u64) -> Root {
        Root { mount: MountId { epoch, nonce }, generation: Generation(generation), in_sync: 5, ..Root::default() }
    }

    fn after(before: Root, epoch: u32, nonce: u64, generation: u64) -> Root {
        Root { lineage: before.lineage_after(), ..root(epoch, nonce, generation) }
    }

    #[test]
    fn remembers_the_last_commit() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Uuid([3; 16]);
        assert_eq!(read(folder.path(), volume).unwrap(), None);
        for generation in [5, 12] {
            let record = Record::of(&root(1, u64::MAX, generation));
            write(folder.path(), volume, &record).unwrap();
            let (seen, written) = read_within(folder.path(), volume, Duration::from_secs(60)).unwrap().unwrap();
            assert_eq!((seen, written), (record.clone(), written_unix_s(folder.path(), volume)));
            let now = crate::policy::clock::now_unix_s();
            assert!(written.is_some_and(|written| now - 60 <= written && written <= now + 60));
            assert_eq!((record.generation(), record.in_sync()), (Generation(generation), &[0, 2][..]));
        }
    }

    #[test]
    fn a_file_that_is_no_record_is_an_error_and_a_later_programs_keys_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Uuid([3; 16]);
        let good = toml::to_string(&Record::of(&root(1, 2, 3))).unwrap();
        let long = format!("{good}x = \"{}\"\n", "a".repeat(1 << 17));
        for bad in ["", "12\n", &good.replace("version = 1", "version = 2"), &good.replace("epoch", "era"), &long] {
            std::fs::write(file(folder.path(), volume), bad).unwrap();
            assert_eq!(read(folder.path(), volume).unwrap_err().kind(), ErrorKind::InvalidData, "{bad:.40}");
        }
        std::fs::write(file(folder.path(), volume), format!("{good}[later]\nkey = 7\n")).unwrap();
        let before = read(folder.path(), volume).unwrap().unwrap();
        write(folder.path(), volume, &Record::of(&root(1, 2, 4)).keeping(&before.other, Health::default())).unwrap();
        let now = std::fs::read_to_string(file(folder.path(), volume)).unwrap();
        assert!(now.contains("[later]\nkey = 7") && now.contains("generation = 4"), "{now}");
    }

    #[test]
    fn p6_only_a_history_that_went_through_it_is_recognised() {
        let seen = Record::of(&root(3, 30, 100));
        let of = |root: &Root| seen.descent(root);
        assert_eq!(of(&root(3, 30, 100)), Descent::Proved);
        assert_eq!(of(&root(3, 30, 101)), Descent::Proved);
        assert_eq!(of(&root(3, 30, 99)), Descent::Disproved);
        // Another mount of the same number, however far it got.
        assert_eq!(of(&root(3, 31, 5000)), Descent::Disproved);
        let elsewhere = after(root(2, 20, 90), 3, 31, 5000);
        assert_eq!(of(&elsewhere), Descent::Disproved);
        assert_eq!(of(&after(elsewhere, 4, 40, 6000)), Descent::Disproved);
        // A later mount that went on from before it, and one that went on from it.
        assert_eq!(of(&after(root(3, 30, 99), 4, 40, 6000)), Descent::Disproved);
        let mut now = after(root(3, 30, 100), 4, 40, 101);
        assert_eq!(of(&now), Descent::Proved);
        // As long as a root remembers; after that nothing is proved.
        for epoch in 5..LINEAGE_MAX as u32 + 4 {
            now = after(now, epoch, 7, u64::from(epoch) * 100);
            assert_eq!(of(&now), Descent::Proved, "{epoch}");
        }
        assert_eq!(of(&after(now, 1000, 7, 1_000_000)), Descent::Forgotten);
    }
}

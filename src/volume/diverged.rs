//! Two replicas that each went on without the other: what is said of the two histories, and what only one of them has.
//!
//! No history is ever merged into another, and none is discarded unless somebody names it. Whoever decides needs to know
//! when and where each of them went on, and what would be lost. So a history can be looked at where it lies: the page
//! store is opened at its root, over its device alone, and nothing is written.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::{Error, System};
use crate::audit;
use crate::crypto::Keys;
use crate::fs::{self, Fs};
use crate::label::{Header, Root};
use crate::mirror::{Mirror, State};
use crate::pages::{Store, StoreOptions};
use crate::policy::ApprovedDevice;
use crate::units::{Generation, Ino, shown};

/// Most paths that are listed.
pub const PATHS_MAX: usize = 1000;

/// Most names that are looked at for the list.
const NAMES_MAX: u64 = 1_000_000;

/// Longest time that the list may take.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Where a history lies.
pub(super) struct Place<'a> {
    pub header: &'a Header,
    pub keys: &'a Keys,
    pub device: &'a Arc<ApprovedDevice>,
    pub index: usize,
    /// Size of the device, as its label says.
    pub device_bytes: u64,
}

/// What only one history has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnlyThere {
    /// Paths that are only there, or whose content was written there since the histories parted; at most [`PATHS_MAX`].
    pub paths: Vec<String>,
    /// How many there are, also those not listed.
    pub count: u64,
    /// Why there may be more.
    pub incomplete: Option<String>,
}

/// Opens the filesystem as it is at `root`, on this device alone, to be looked at.
pub(super) fn look(place: &Place<'_>, root: &Root) -> Result<Arc<Fs>, Error> {
    let count = place.header.rows();
    let row = |index| match index == place.index {
        true => (Some(Arc::clone(place.device)), State::InSync),
        false => (None, State::Missing),
    };
    let mirror = Mirror::new((0..count).map(row).collect());
    let mirror = mirror.map_err(|source| System::error("starting a replica's thread", source))?;
    mirror.stop_repairing();
    let options = StoreOptions {
        keys: place.keys.volume_key().keys(place.header.volume),
        volume: place.header.volume,
        total_blocks: place.header.data_blocks,
        device_bytes: (0..count).map(|index| if index == place.index { place.device_bytes } else { 0 }).collect(),
        root: *root,
        epoch: root.epoch(),
    };
    let store = Store::open(Arc::new(mirror), options)?;
    store.poison_quietly("opened to be looked at".to_owned());
    Ok(Arc::new(Fs::open(store)?))
}

/// The host that mounted a history last, if that can be read.
pub(super) fn last_host(place: &Place<'_>, root: &Root) -> Option<String> {
    audit::last_host(&*look(place, root).ok()?).ok()?
}

/// The first epoch in which `theirs` went on without `ours`.
pub(super) fn parted(theirs: &Root, ours: &Root) -> u32 {
    let passed = theirs.lineage.iter().map(|passed| (passed.mount, passed.last));
    let mounts = std::iter::once((theirs.mount, theirs.generation)).chain(passed);
    let is_own = |(mount, last): &(crate::label::MountId, Generation)| {
        let common = if *mount == ours.mount { Some(ours.generation) } else { ours.lineage.last_of(*mount) };
        common.is_none_or(|common| common < *last)
    };
    mounts.filter(is_own).map(|(mount, _)| mount.epoch).min().unwrap_or(theirs.mount.epoch)
}

/// Lists what `theirs` has and `ours` has not: names, and the content of files that was written in epoch `since` or
/// later. What was only removed, renamed away or changed in its attributes is not listed.
pub(super) fn only_there(theirs: &Fs, ours: &Fs, since: u32) -> fs::Result<OnlyThere> {
    let mut only = OnlyThere::default();
    let (began, mut names) = (Instant::now(), 0);
    let mut folders = vec![(Ino::ROOT, Ino::ROOT, String::new())];
    while let Some((there, here, path)) = folders.pop() {
        let known: HashMap<Vec<u8>, Entry> = entries(ours, here)?.into_iter().map(|e| (e.name.clone(), e)).collect();
        for entry in entries(theirs, there)? {
            names += 1;
            if names > NAMES_MAX || began.elapsed() > TIME_MAX {
                only.incomplete = Some(format!("only {names} names were looked at"));
                return Ok(only);
            }
            let path = format!("{path}/{}", shown(&String::from_utf8_lossy(&entry.name)));
            match known.get(&entry.name) {
                Some(ours) if entry.kind == fs::Kind::Directory && ours.kind == entry.kind => {
                    folders.push((entry.ino, ours.ino, path));
                }
                Some(known) if known.kind == entry.kind && !is_written((theirs, &entry), (ours, known), since)? => {}
                _ => only.add(if entry.kind == fs::Kind::Directory { path + "/" } else { path }),
            }
        }
    }
    Ok(only)
}

struct Entry {
    ino: Ino,
    kind: fs::Kind,
    name: Vec<u8>,
}

fn entries(fs: &Fs, folder: Ino) -> fs::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    fs.readdir(folder, 0, false, &mut |entry| {
        if !matches!(entry.name, b"." | b"..") {
            entries.push(Entry { ino: entry.ino, kind: entry.kind, name: entry.name.to_vec() });
        }
        true
    })?;
    Ok(entries)
}

/// Whether content of a file was written in epoch `since` or later, and not in the other history too. Nobody can set the
/// time of a file's last change.
fn is_written(theirs: (&Fs, &Entry), ours: (&Fs, &Entry), since: u32) -> fs::Result<bool> {
    let changed = |(fs, entry): (&Fs, &Entry)| fs.getattr(entry.ino).map(|attr| attr.ctime);
    if theirs.1.kind != fs::Kind::File || changed(theirs)? == changed(ours)? {
        return Ok(false);
    }
    let bytes = theirs.0.written_before(theirs.1.ino, &[since, u32::MAX])?.unwrap_or_default();
    Ok(bytes.first() != bytes.last())
}

impl OnlyThere {
    fn add(&mut self, path: String) {
        self.count += 1;
        if self.paths.len() < PATHS_MAX {
            self.paths.push(path);
        }
    }
}

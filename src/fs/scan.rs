//! All extents of all files, for scrub, check and resync.

use std::collections::{BTreeMap, BTreeSet};

use super::{Error, Fs, Result};
use crate::{meta::ExtentRow, units::Ino};

/// An extent and the file that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// The file.
    pub ino: Ino,
    /// Where it is in the file and on the devices, and what proves its content. Without tags it was never written.
    pub extent: ExtentRow,
}

/// Names that are looked at without letting go of the metadata.
const NAMES_AT_ONCE: usize = 1024;

/// Deepest folder whose path is told.
const DEPTH_MAX: usize = 4096;

impl Fs {
    /// A path of each of these files that has one. Looks at every name of the filesystem once, and lets go of the
    /// metadata in between; ends early when `go_on` says no.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn paths(&self, files: &BTreeSet<Ino>, go_on: &dyn Fn() -> bool) -> Result<BTreeMap<Ino, Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut after = (Ino(0), 0);
        while found.len() < files.len() && go_on() {
            let names = self.view(|view| Ok(view.all_names(after.0, after.1, NAMES_AT_ONCE)?))?;
            let Some((folder, cookie, ..)) = names.last() else { break };
            after = (*folder, *cookie);
            for (folder, _, ino, name) in names {
                if files.contains(&ino) && !found.contains_key(&ino) {
                    found.insert(ino, self.path_below(folder, name)?);
                }
            }
        }
        Ok(found)
    }

    /// The path of what is called `name` in `folder`.
    fn path_below(&self, folder: Ino, name: Vec<u8>) -> Result<Vec<u8>> {
        let mut parts = vec![name];
        let mut at = folder;
        while at != Ino::ROOT && parts.len() < DEPTH_MAX {
            let above = Ino(self.existing(at)?.parent);
            let Some(name) = self.view(|view| Ok(view.name_of(above, at)?))? else { break };
            parts.push(name);
            at = above;
        }
        Ok(parts.iter().rev().flat_map(|part| std::iter::once(&b'/').chain(part)).copied().collect())
    }

    /// At most `limit` extents after `after` (`None`: from the beginning), by inode number and place in the file. An
    /// empty list means that there are no more.
    ///
    /// Files change between two calls: hold a [`ReadGuard`](crate::pages::ReadGuard) from before a call until its
    /// extents have been looked at.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn scan(&self, after: Option<&Scanned>, limit: usize) -> Result<Vec<Scanned>> {
        self.scan_behind(after.map(|last| (last.ino, last.extent.end() - 1)), limit)
    }

    /// As [`Fs::scan`], the extents that begin behind this block of this file.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn scan_behind(&self, after: Option<(Ino, u64)>, limit: usize) -> Result<Vec<Scanned>> {
        let (ino, lblock) = after.unwrap_or((Ino(0), 0));
        // Not by `view`, which counts what applications ask.
        let found = self.meta().read(|view| Ok::<_, Error>(view.all_extents(ino, lblock, limit)?))?;
        Ok(found.into_iter().map(|(ino, extent)| Scanned { ino, extent }).collect())
    }

    /// As [`Fs::scan_behind`], of one file alone.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn scan_file(&self, ino: Ino, after: Option<(Ino, u64)>, limit: usize) -> Result<Vec<Scanned>> {
        // No file has a block of the highest number.
        let before = (Ino(ino.0.saturating_sub(1)), u64::MAX);
        let mut found = self.scan_behind(after.or(Some(before)), limit)?;
        found.retain(|scanned| scanned.ino == ino);
        Ok(found)
    }
}

//! All extents of all files, for scrub, check and resync.

use super::{Fs, Result};
use crate::{meta::ExtentRow, units::Ino};

/// An extent and the file that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// The file.
    pub ino: Ino,
    /// Where it is in the file and on the devices, and what proves its content. Without tags it was never written.
    pub extent: ExtentRow,
}

impl Fs {
    /// At most `limit` extents after `after` (`None`: from the beginning), by inode number and place in the file. An
    /// empty list means that there are no more.
    ///
    /// Files change between two calls: hold a [`ReadGuard`](crate::pages::ReadGuard) from before a call until its
    /// extents have been looked at.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn scan(&self, after: Option<&Scanned>, limit: usize) -> Result<Vec<Scanned>> {
        let (ino, lblock) = after.map_or((Ino(0), 0), |last| (last.ino, last.extent.end() - 1));
        let found = self.view(|view| Ok(view.all_extents(ino, lblock, limit)?))?;
        Ok(found.into_iter().map(|(ino, extent)| Scanned { ino, extent }).collect())
    }
}

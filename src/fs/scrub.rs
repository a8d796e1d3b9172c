//! What a scrub asks of the tables: which files lie below a path, what is kept of it, and whether a block is still a
//! file's.

use std::collections::BTreeSet;

use super::{Error, Fs, Kind, Result, folder};
use crate::meta::{ExtentRow, KeptScrub, Weight};
use crate::units::{BlockAddr, Ino};

/// Names that are looked at without letting go of the metadata.
const NAMES_AT_ONCE: usize = 256;

impl Fs {
    /// What is kept of a scrub.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn kept_scrub(&self, of: KeptScrub) -> Result<Option<Vec<u8>>> {
        self.meta().read(|view| Ok(view.kept_scrub(of)?))
    }

    /// Keeps this of a scrub in place of what was kept, or nothing. It is durable with the next commit.
    ///
    /// # Errors
    /// When the volume can commit nothing, or has no room.
    pub fn keep_scrub(&self, of: KeptScrub, kept: Option<&[u8]>) -> Result<()> {
        self.store.committable()?;
        let weight = Weight { bytes: kept.map_or(0, <[u8]>::len) as u64, ..Weight::rows(2) };
        self.change_unmetered(weight, |tx| Ok(tx.keep_scrub(of, kept)?))?;
        Ok(())
    }

    /// Notes that no replica can give a block, if it is still the block `lblock` of this file. Returns whether it is.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn note_lost(&self, ino: Ino, lblock: u64, addr: BlockAddr) -> Result<bool> {
        // Under the lock of the tables, under which blocks are freed: what is freed later is forgotten then.
        self.meta().read(|view| {
            let now = view.extents(ino, lblock, lblock + 1, 1)?;
            let holds = |extent: &ExtentRow| extent.addr.add(lblock.saturating_sub(extent.lblock)) == addr;
            let is_its = now.first().is_some_and(holds);
            if is_its {
                self.store.note_lost(addr, Some(ino));
            }
            Ok(is_its)
        })
    }

    /// The files at and below a path, in the order of their numbers, and how many blocks they have. Looks at the names one
    /// folder after the other and lets go of the metadata in between; ends early when `go_on` says no.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotDirectory`], or of the metadata.
    pub fn files_below(&self, path: &[u8], go_on: &dyn Fn() -> bool) -> Result<(Vec<Ino>, u64)> {
        let mut at = (Ino::ROOT, true);
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
            at = self.meta().read(|view| {
                folder(view, at.0)?;
                let found = view.lookup(at.0, name)?.ok_or(Error::NotFound)?;
                Ok::<_, Error>((found.ino, found.is_dir()))
            })?;
        }
        let (mut files, mut blocks, mut folders) = (BTreeSet::new(), 0, Vec::new());
        if at.1 {
            folders.push(at.0);
        } else {
            files.insert(at.0);
            blocks = self.meta().read(|view| super::existing(view, at.0))?.blocks;
        }
        while let Some(folder) = folders.pop() {
            let mut cookie = Some(0);
            while let Some(after) = cookie.take().filter(|_| go_on()) {
                let mut looked = 0;
                self.meta().read(|view| {
                    view.list(folder, after, true, |listed| {
                        looked += 1;
                        let dentry = listed.dentry;
                        match dentry.kind {
                            Kind::Directory => folders.push(dentry.ino),
                            Kind::File if files.insert(dentry.ino) => {
                                blocks += listed.inode.map_or(0, |inode| inode.blocks);
                            }
                            _ => {}
                        }
                        cookie = (looked >= NAMES_AT_ONCE).then_some(dentry.cookie);
                        cookie.is_none()
                    })?;
                    Ok::<_, Error>(())
                })?;
            }
        }
        Ok((files.into_iter().collect(), blocks))
    }
}

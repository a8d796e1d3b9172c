//! Counts who holds an inode besides its names: the kernel, with its lookups. While a file is open, the kernel keeps
//! the inode, so opens need no count of their own.

use std::collections::{HashMap, hash_map::Entry};
use std::sync::atomic::Ordering;

use super::{Fs, Result, STEP, removal};
use crate::{
    meta::{FLAG_TRIM, FLAG_XATTR, Tx},
    units::Ino,
};

/// Most steps of freeing an orphan that a caller waits for who has others to serve: 1024 extents.
const SOON: usize = 8;

/// An inode without a name that nobody holds, and of which only a part is freed.
#[must_use]
#[derive(Debug)]
pub struct Orphan(Ino);

#[derive(Debug, Default)]
struct Counts {
    lookups: u64,
    /// The last name is gone: the call that takes back the last reference frees the inode.
    orphan: bool,
}

/// The counts of every inode that has any.
#[derive(Debug, Default)]
pub(super) struct References {
    counts: HashMap<Ino, Counts>,
    orphans: usize,
}

impl References {
    /// Counts a lookup.
    pub fn looked_up(&mut self, ino: Ino) {
        self.counts.entry(ino).or_default().lookups += 1;
    }

    /// Every inode that the kernel knows.
    pub fn known(&self) -> Vec<Ino> {
        self.counts.keys().copied().collect()
    }

    /// Whether anybody holds an orphan: a program has it open, or the kernel is about to forget it.
    pub fn hold_orphans(&self) -> bool {
        self.orphans > 0
    }

    /// Marks an inode that lost its last name. Returns whether nobody holds it, so that it can be freed.
    pub fn orphaned(&mut self, ino: Ino) -> bool {
        match self.counts.get_mut(&ino) {
            Some(counts) => {
                self.orphans += usize::from(!std::mem::replace(&mut counts.orphan, true));
                false
            }
            None => true,
        }
    }

    /// Whether anybody holds it.
    pub fn held(&self, ino: Ino) -> bool {
        self.counts.contains_key(&ino)
    }

    /// Takes back lookups. Returns whether an orphan lost its last one.
    fn forgotten(&mut self, ino: Ino, lookups: u64) -> bool {
        let Entry::Occupied(mut entry) = self.counts.entry(ino) else {
            return false;
        };
        let counts = entry.get_mut();
        counts.lookups = counts.lookups.saturating_sub(lookups);
        let orphan = counts.lookups == 0 && entry.remove().orphan;
        self.orphans -= usize::from(orphan);
        orphan
    }
}

impl Fs {
    /// Every inode that the kernel knows, in no order.
    pub fn known(&self) -> Vec<Ino> {
        self.references().known()
    }

    /// Takes back `n` lookups.
    pub fn forget(&self, ino: Ino, n: u64) {
        if let Some(orphan) = self.forget_soon(ino, n) {
            self.free_orphan(orphan);
        }
    }

    /// As [`Fs::forget`], but leaves an orphan with many extents to the caller, who frees it with [`Fs::free_orphan`].
    pub fn forget_soon(&self, ino: Ino, n: u64) -> Option<Orphan> {
        // Counted before the kernel holds it no more: whoever needs room sees it as one or the other.
        self.unfreed.fetch_add(1, Ordering::AcqRel);
        let last = self.references().forgotten(ino, n);
        if last && self.reap_some(ino, SOON) {
            return Some(Orphan(ino));
        }
        self.unfreed.fetch_sub(1, Ordering::AcqRel);
        None
    }

    /// Frees the rest of an orphan.
    pub fn free_orphan(&self, Orphan(ino): Orphan) {
        self.reap(ino);
        self.unfreed.fetch_sub(1, Ordering::AcqRel);
    }

    /// Frees an orphan that nobody holds.
    pub(super) fn reap(&self, ino: Ino) {
        self.reap_some(ino, usize::MAX);
    }

    /// Does some steps of that, and returns whether more are needed. If one fails, the next mount frees the orphan.
    fn reap_some(&self, ino: Ino, steps: usize) -> bool {
        self.try_reap(ino, steps).unwrap_or_else(|error| {
            log::warn!("inode {} stays without a name until the next mount: {error}", ino.0);
            false
        })
    }

    fn try_reap(&self, ino: Ino, steps: usize) -> Result<bool> {
        for _ in 0..steps {
            self.admit()?;
            let step = self.step();
            let more = self.change_at_most(removal(step), |tx| {
                let Some(mut inode) = tx.inode(ino)? else {
                    return Ok(false);
                };
                if inode.nlink > 0 || self.references().held(ino) {
                    return Ok(false);
                }
                let cleared = tx.clear(ino, 0, u64::MAX >> 1, step)?;
                let more = cleared.more || inode.has(FLAG_XATTR) && !tx.clear_xattr(ino)?;
                if more {
                    inode.blocks = inode.blocks.saturating_sub(cleared.blocks);
                    tx.put_inode(&inode);
                } else {
                    tx.delete_inode(&inode)?;
                }
                Ok(more)
            })?;
            if !more {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Frees the orphans that a crash left, and finishes the truncations that it interrupted.
    pub(super) fn finish_interrupted(&self) -> Result<()> {
        for (ino, lblock) in self.view(|view| Ok(view.trims()?))? {
            self.trim(ino, lblock)?;
        }
        loop {
            let orphans = self.view(|view| Ok(view.orphans(STEP)?))?;
            if orphans.is_empty() {
                return Ok(());
            }
            for ino in orphans {
                self.try_reap(ino, usize::MAX)?;
            }
        }
    }

    /// Frees the file's blocks from `lblock` on, in steps. The caller holds the file's stripe exclusively, or is alone.
    pub(super) fn trim(&self, ino: Ino, lblock: u64) -> Result<()> {
        loop {
            let step = self.step();
            if !self.change_at_most(removal(step), |tx| trim_step(tx, ino, lblock, step))? {
                return Ok(());
            }
            self.admit()?;
        }
    }
}

/// Does one step of a truncation, and returns whether more are needed. An inode that is gone needs none.
fn trim_step(tx: &mut Tx<'_>, ino: Ino, lblock: u64, step: usize) -> Result<bool> {
    let Some(mut inode) = tx.inode(ino)? else {
        tx.set_trim(ino, None)?;
        return Ok(false);
    };
    let cleared = tx.clear(ino, lblock, u64::MAX >> 1, step)?;
    inode.blocks = inode.blocks.saturating_sub(cleared.blocks);
    if !cleared.more {
        tx.set_trim(ino, None)?;
        inode.set(FLAG_TRIM, false);
    }
    tx.put_inode(&inode);
    Ok(cleared.more)
}

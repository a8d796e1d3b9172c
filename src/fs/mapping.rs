//! Remembers in memory where the blocks of recently read files are.
//!
//! Looking an extent up costs three queries under the one lock of the metadata. For a short read that is as much as all
//! the rest. So a lookup's result is kept, together with the file's version at that moment.
//!
//! The version is a counter. Every operation that changes the file's row or extents raises it, under the lock of the
//! metadata, before it returns. A reader registers with the store *before* it compares versions. If the version is
//! unchanged, the blocks that it reads are not freed yet, or not before the reader is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::{
    limits::EXTENT_BLOCKS_MAX,
    meta::ExtentRow,
    units::{Ino, to_usize},
};

/// How many stretches of files are kept: some 10 MiB of tags when all are extents of full length.
const STRETCHES: usize = 8192;

/// How many version counters there are; files share them.
const VERSIONS: usize = 1024;

/// A part of a file with all extents in it.
#[derive(Clone)]
pub(super) struct Stretch {
    /// Size of the file, in bytes.
    pub size: u64,
    /// The extents in it, in order; between them are holes.
    pub extents: Arc<[ExtentRow]>,
    ino: Ino,
    version: u64,
    from: u64,
    to: u64,
}

/// The stretches in memory.
pub(super) struct Mappings {
    versions: Box<[AtomicU64]>,
    stretches: Box<[Mutex<Option<Stretch>>]>,
}

impl Default for Mappings {
    fn default() -> Self {
        Self {
            versions: (0..VERSIONS).map(|_| AtomicU64::new(0)).collect(),
            stretches: (0..STRETCHES).map(|_| Mutex::new(None)).collect(),
        }
    }
}

impl Mappings {
    /// To be called under the metadata lock when the file's row or extents changed.
    pub fn changed(&self, ino: Ino) {
        self.version(ino).fetch_add(1, Ordering::Release);
    }

    /// The stretch that holds the file's blocks `from..to`, as they are at some moment of this call.
    pub fn find(&self, ino: Ino, from: u64, to: u64) -> Option<Stretch> {
        let version = self.version(ino).load(Ordering::Acquire);
        let place = self.place(ino, from).lock();
        let holds =
            |found: &&Stretch| found.ino == ino && found.version == version && found.from <= from && to <= found.to;
        place.as_ref().filter(holds).cloned()
    }

    /// Keeps all extents of the file that overlap its blocks `from..to`; `size` is the file's, in bytes. The caller
    /// still holds the metadata lock under which it read them.
    pub fn keep(&self, ino: Ino, size: u64, from: u64, to: u64, extents: Vec<ExtentRow>) -> Stretch {
        let version = self.version(ino).load(Ordering::Relaxed);
        let stretch = Stretch {
            size,
            ino,
            version,
            from: extents.first().map_or(from, |first| first.lblock.min(from)),
            to: extents.last().map_or(to, |last| last.end().max(to)),
            extents: extents.into(),
        };
        *self.place(ino, from).lock() = Some(stretch.clone());
        stretch
    }

    fn version(&self, ino: Ino) -> &AtomicU64 {
        &self.versions[to_usize(ino.0) % VERSIONS]
    }

    /// Where a stretch is kept. Extents of full length begin where a write did, mostly at a multiple of their length:
    /// so there is one place an extent.
    fn place(&self, ino: Ino, lblock: u64) -> &Mutex<Option<Stretch>> {
        let at = ino.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(lblock / EXTENT_BLOCKS_MAX);
        &self.stretches[to_usize(at) % STRETCHES]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::units::{BlockAddr, WriteId};

    fn extent(lblock: u64, blocks: u64) -> ExtentRow {
        ExtentRow { lblock, blocks, addr: BlockAddr(lblock), id: WriteId { epoch: 1, counter: 0 }, tags: None }
    }

    #[test]
    fn a_stretch_reaches_as_far_as_its_extents_and_the_question() {
        let mappings = Mappings::default();
        mappings.keep(Ino(7), 1 << 20, 10, 12, vec![extent(8, 3)]);
        assert!(mappings.find(Ino(7), 8, 12).is_some());
        assert!(mappings.find(Ino(7), 7, 9).is_none() && mappings.find(Ino(7), 11, 13).is_none());
        assert!(mappings.find(Ino(8), 8, 12).is_none());
        mappings.keep(Ino(7), 1 << 20, 40, 41, Vec::new());
        assert!(mappings.find(Ino(7), 40, 41).unwrap().extents.is_empty());
    }

    #[test]
    fn a_change_of_the_file_ends_it() {
        let mappings = Mappings::default();
        mappings.keep(Ino(7), 4096, 0, 1, vec![extent(0, 1)]);
        mappings.changed(Ino(8));
        assert!(mappings.find(Ino(7), 0, 1).is_some());
        mappings.changed(Ino(7));
        assert!(mappings.find(Ino(7), 0, 1).is_none());
    }
}

//! Sealed units: the blocks that a volume consists of, each with what proves it. Where units are found is the concern
//! of [`view`](super::view) and of the tables.

use std::sync::Arc;

use super::{Error, Page, Result, Store};
use crate::crypto::{Binding, Keys, Kind};
use crate::device::AlignedBuf;
use crate::label::{self, Root};
use crate::mirror::Incarnation;
use crate::space::Bitmap;
use crate::units::{BLOCK_SIZE, BlockAddr, Run, Tag, WriteId};

/// One sealed unit: where it is and what proves it.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    /// What it is bound to.
    pub at: Binding,
    /// Its write identity.
    pub id: WriteId,
    /// Its tag.
    pub tag: Tag,
}

impl Unit {
    /// Opens `sealed` into `plain`. Returns whether `sealed` is this unit.
    pub(super) fn open(&self, keys: &Keys, sealed: &[u8], plain: &mut Page) -> bool {
        let opened = match self.at.kind {
            Kind::Data => keys.data(self.id.epoch).open_block(&self.at, self.id, &self.tag, sealed, plain),
            _ => keys.page().open_block(&self.at, self.id, &self.tag, sealed, plain),
        };
        opened.is_ok()
    }
}

/// What one replica holds in the place of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The unit as it was written.
    Good,
    /// Something else.
    Damaged,
    /// The device failed the read.
    Unreadable(String),
}

impl Store {
    /// The unit of one block of file data.
    pub fn data_unit(&self, addr: BlockAddr, id: WriteId, tag: Tag) -> Unit {
        Unit { at: Binding::data(self.volume, addr), id, tag }
    }

    /// The allocated blocks as of the last commit.
    pub fn persisted(&self) -> Bitmap {
        self.commit.lock().persisted.clone()
    }

    /// Reads a unit from one replica and verifies it.
    pub fn examine(&self, unit: &Unit, replica: usize) -> Finding {
        match self.mirror.read_from(replica, Run::new(unit.at.addr, 1)) {
            Err(error) => Finding::Unreadable(error.to_string()),
            Ok(sealed) if self.opens(unit, &sealed) => Finding::Good,
            Ok(_) => Finding::Damaged,
        }
    }

    /// Reads a unit from a replica that has it, and queues it for `replica`, which is being resynced in this
    /// incarnation.
    ///
    /// # Errors
    /// When no replica that is read has the unit. A write that fails fences `replica` instead.
    pub fn copy_unit(&self, unit: &Unit, replica: usize, incarnation: Incarnation) -> Result<()> {
        let mut good = AlignedBuf::scratch(BLOCK_SIZE);
        self.mirror.read(Run::new(unit.at.addr, 1), &mut |_, sealed| {
            let opens = self.opens(unit, sealed);
            if opens {
                good.copy_from_slice(sealed);
            }
            opens
        })?;
        self.mirror.copy(replica, incarnation, unit.at.addr, Arc::new(good));
        Ok(())
    }

    /// A root, sealed for its slot.
    ///
    /// # Errors
    /// When the system has no random bytes for the seal.
    pub fn sealed_root(&self, root: &Root) -> Result<AlignedBuf> {
        root.sealed(&self.keys, self.volume).map_err(|error| Error::Io(error.to_string()))
    }

    /// The root that a block from a slot of a ring is, if it is one of this volume.
    pub fn root_in(&self, slot: u64, block: &[u8]) -> Option<Root> {
        label::open_root(&self.keys, self.volume, slot, block)
    }

    /// Gives a replica at the end of its resync the last root. The caller sees to it that no commit is under way. Returns
    /// whether the replica has it, and is still being resynced.
    ///
    /// # Errors
    /// When the system has no random bytes for the seal.
    pub fn give_last_root(&self, replica: usize, incarnation: Incarnation) -> Result<bool> {
        let root = self.root();
        let sealed = self.sealed_root(&root)?;
        let offsets = root.offsets(self.device_bytes(replica));
        Ok(self.mirror.publish_resynced(replica, incarnation, &Arc::new(sealed), offsets))
    }

    /// Whether these sealed bytes are the unit.
    pub fn opens(&self, unit: &Unit, sealed: &[u8]) -> bool {
        unit.open(&self.keys, sealed, &mut [0; BLOCK_SIZE])
    }
}

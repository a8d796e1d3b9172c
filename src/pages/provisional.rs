//! Provisional roots: a small commit costs one flush instead of two.
//!
//! This module says which commits may do that, and proves after a crash whether such a commit is whole. Which root the
//! volume then goes on from is decided in `volume::recovery`; how a root is written, in `pages::commit`.
//!
//! # How it works
//!
//! A root must not count unless all that it refers to is there. The plain way is to flush that first, and to write the
//! root then.
//!
//! A provisional root goes to the device together with its commit's blocks, in whatever order the device likes. One
//! flush makes all of it durable. Nothing is lost by that while the flush succeeds, and nobody is answered before it
//! has.
//!
//! When the power fails first, the newest root may lack some of its blocks. So whoever finds a provisional root looks
//! for those blocks ([`Proof`]). The root authenticates each of them, so a look suffices. Then:
//!
//! 1. A block that one replica has is given to the replicas that lack it.
//! 2. If no replica has some block, the commit is incomplete, and the root before it is the last one.
//!
//! # Why the root before is whole
//!
//! The root before a provisional one is whole on every replica that it names, and needs no proof:
//!
//! 1. It is of the same mount and names the same replicas. Otherwise the commit takes the plain way.
//! 2. Its own flush had succeeded on all of them before the next commit began. So only the newest commit can be
//!    incomplete.
//! 3. What the provisional commit freed is not used again before the next root is durable. Neither is what it wrote and
//!    freed itself. So what the root before refers to is still there, and so is all that this root needs for its own
//!    proof.
//!
//! # Which blocks are looked for
//!
//! They are few and known. Pages and nodes are those that the trees lead to and that were born with the root. Data
//! blocks are listed in the root, because their rows do not say when they were written. A commit of more blocks takes
//! the plain way ([`BLOCKS_MAX`], [`PROVISIONAL_BLOCKS_MAX`]).
//!
//! The first root of a mount takes the plain way, too: the mount's epoch depends on it. It is what an incomplete commit
//! falls back to at the latest, so an epoch is never used twice.
//!
//! # When the proof cannot be given
//!
//! A block may be on no device that can be read, while another device fails to read it. That block may be there, or the
//! power failure may have torn it. To go on from the root could seal half a commit; to drop the root could undo what
//! was answered for. The administrator decides ([`Unproven`](crate::volume::Error::Unproven)).
//!
//! A device that loses what it has flushed, within the second or so until the next root, looks like one that never had
//! it. Then the volume goes on from a state that was durable a commit earlier, and says so in the log and in the trail.
//! The witness of this host or of another refuses the volume when it has seen more
//! ([`witness`](crate::volume::witness)).
//!
//! ext4 does the same with its journal's commit block, which has a checksum over what it commits (ext4(5),
//! `journal_async_commit`).

use super::tree::{self, FANOUT, NodeId, Pointer, TreeKind};
use super::{Page, Unit};
use crate::crypto::{Binding, Keys};
use crate::device::{AlignedBuf, BlockDevice};
use crate::label::{PROVISIONAL_BLOCKS_MAX, Provisional, Root, TreeRef, WrittenBlock};
use crate::mirror::device_offset;
use crate::units::{BLOCK_SIZE, BlockAddr, Tag, Uuid, WriteId};

/// Most pages and nodes of a commit with a provisional root: 1 MiB to look at on each replica after a crash. Also the
/// most blocks that such a commit frees: so much is not free yet after it. A larger commit does not feel the second
/// flush.
pub const BLOCKS_MAX: usize = 256;

/// How often a device is asked for a block before the block counts as one that it fails to read.
const ATTEMPTS: usize = 3;

/// The data of a batch, as far as a provisional root can list it.
#[derive(Debug, Default)]
pub struct Written {
    blocks: Vec<WrittenBlock>,
    /// Whether there are more blocks than a root can list.
    more: bool,
}

impl Written {
    /// Adds one block a tag, the first at `addr` with identity `id`.
    pub fn add(&mut self, addr: BlockAddr, id: WriteId, tags: &[Tag]) {
        self.extend(tags.iter().enumerate().map(|(i, tag)| {
            let i = i as u64;
            WrittenBlock { addr: addr.add(i), counter: id.add(i).counter, tag: *tag }
        }));
    }

    /// Adds what another operation wrote.
    pub fn append(&mut self, other: &Self) {
        self.more |= other.more;
        self.extend(other.blocks.iter().copied());
    }

    fn extend(&mut self, blocks: impl ExactSizeIterator<Item = WrittenBlock>) {
        self.more |= self.blocks.len() + blocks.len() > PROVISIONAL_BLOCKS_MAX;
        if !self.more {
            self.blocks.extend(blocks);
        }
    }

    /// Leaves out the blocks that are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(BlockAddr) -> bool) {
        self.blocks.retain(|block| keep(block.addr));
    }

    /// The list for a provisional root; none when there are more blocks than it can list.
    pub fn listed(&self) -> Option<Provisional> {
        if self.more { None } else { Provisional::new(&self.blocks) }
    }
}

/// A block that some replicas lack.
pub struct Lacking {
    /// Where it belongs.
    pub addr: BlockAddr,
    /// The block, as another replica has it.
    pub sealed: AlignedBuf,
    /// The replicas that lack it: bit `i` for replica `i`.
    pub replicas: u64,
}

/// What has become of a root's commit: which of its blocks are where.
#[derive(Default)]
pub struct Proof {
    /// Blocks that not every replica has: the first ones, as many as a provisional commit has at most.
    pub lacking: Vec<Lacking>,
    /// The replicas that lack a block which another one has: bit `i` for replica `i`.
    pub lacking_replicas: u64,
    /// How many blocks no replica has. There may be more below those.
    pub lost: u64,
    /// The first block that no device which could be read has, and that at least one device failed to read, with the
    /// error. Whether this block is there or lost is not known, and neither is what lies below it.
    pub unread: Option<(BlockAddr, String)>,
}

impl Proof {
    /// Looks for the blocks of `root` on each of the replicas: for the pages and nodes that were born with it, and for
    /// the blocks of data that a provisional root lists.
    pub fn of(root: &Root, keys: &Keys, volume: Uuid, replicas: &[(usize, &dyn BlockDevice)]) -> Self {
        let mut search = Search { root, keys, volume, replicas, proof: Self::default() };
        search.tree(TreeKind::Space, &root.space);
        search.tree(TreeKind::Database, &root.db);
        if let Some(provisional) = &root.provisional {
            for WrittenBlock { addr, counter, tag } in provisional.blocks() {
                let id = WriteId { epoch: root.epoch(), counter: *counter };
                search.unit(&Unit { at: Binding::data(volume, *addr), id, tag: *tag });
            }
        }
        search.proof
    }

    /// Whether replica `index` is known to lack a block that another one has.
    pub fn lacks(&self, index: usize, addr: BlockAddr) -> bool {
        self.lacking.iter().any(|lacking| lacking.addr == addr && lacking.replicas >> index & 1 == 1)
    }
}

struct Search<'a> {
    root: &'a Root,
    keys: &'a Keys,
    volume: Uuid,
    replicas: &'a [(usize, &'a dyn BlockDevice)],
    proof: Proof,
}

impl Search<'_> {
    /// Looks for those nodes and pages of a tree that were born with the root.
    fn tree(&mut self, kind: TreeKind, at: &TreeRef) {
        let is_new = at.pages > 0 && at.birth == self.root.generation;
        if let Some(top) = at.height.checked_sub(1).filter(|_| is_new) {
            self.node(kind, (top, 0), &at.into());
        }
    }

    fn node(&mut self, kind: TreeKind, id: NodeId, entry: &Pointer) {
        let at = kind.node(self.volume, entry.addr, id);
        let Some(plain) = self.unit(&entry.unit(at)) else { return };
        for (i, entry) in (0..).zip(tree::decode(&plain).iter()) {
            let Some(entry) = entry.filter(|entry| entry.birth == self.root.generation) else { continue };
            let child = id.1 * FANOUT + i;
            if id.0 > 0 {
                self.node(kind, (id.0 - 1, child), &entry);
            } else {
                let at = kind.page(self.volume, entry.addr, child);
                self.unit(&entry.unit(at));
            }
        }
    }

    /// Looks for one unit on every replica. Returns what the unit holds; nothing when no replica has it.
    fn unit(&mut self, unit: &Unit) -> Option<Box<Page>> {
        let (mut good, mut lacking, mut failed) = (None, 0, None);
        for (index, device) in self.replicas {
            let mut sealed = AlignedBuf::scratch(BLOCK_SIZE);
            let mut plain = Box::new([0; BLOCK_SIZE]);
            let mut read = || device.read_at(device_offset(unit.at.addr), &mut sealed);
            let outcome = (1..ATTEMPTS).find_map(|_| read().ok()).map_or_else(read, Ok);
            let is_read = outcome.is_ok();
            failed = failed.or(outcome.err());
            if is_read && unit.open(self.keys, &sealed, &mut plain) {
                good = Some((sealed, plain));
            } else {
                lacking |= 1 << index;
            }
        }
        let Some((sealed, plain)) = good else {
            match failed {
                None => self.proof.lost += 1,
                Some(error) => {
                    self.proof.unread.get_or_insert_with(|| (unit.at.addr, error.to_string()));
                }
            }
            return None;
        };
        self.proof.lacking_replicas |= lacking;
        if lacking != 0 && self.proof.lacking.len() < BLOCKS_MAX + PROVISIONAL_BLOCKS_MAX {
            self.proof.lacking.push(Lacking { addr: unit.at.addr, sealed, replicas: lacking });
        }
        Some(plain)
    }
}

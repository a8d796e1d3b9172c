//! Provisional roots: a small commit costs one flush instead of two.
//!
//! A root must not count unless all that it refers to is there. The plain way is to flush that first, and to write the root then. A
//! provisional root goes to the device together with its commit's blocks, in whatever order the device likes, and one flush
//! makes all of it durable. Nothing is lost by that while the flush succeeds, and nobody is answered before it has. When the power
//! fails first, the newest root may lack some of its blocks. So whoever finds a provisional root looks at them
//! ([`Proof`]): each is authenticated by the root, that is why a look suffices. Blocks that one replica has are given to those that lack
//! them; if there is one that no replica has, the commit is incomplete, and the root before it is the last one.
//!
//! That one is whole, on every replica that it names, and needs no proof:
//! - It is of the same mount and names the same replicas; otherwise the commit takes the plain way.
//! - Its own flush had succeeded on all of them before the next commit began. So only the newest commit can be incomplete.
//! - What the provisional commit freed is not used again before the next root is durable, neither is what it wrote and freed
//!   itself. So what the root before it refers to is there still, and so is all that it needs for its proof.
//!
//! The blocks to look at are few and known: pages and nodes are those that the trees lead to and that were born with the root; data,
//! whose rows do not say when they were written, is listed in the root. A commit of more takes the plain way
//! ([`BLOCKS_MAX`], [`PROVISIONAL_BLOCKS_MAX`]). So does the first root of a mount, upon which its epoch depends, and it is what a
//! incomplete commit falls back to at the latest: an epoch is never used twice.
//!
//! A block that no device has, and that one of them fails to read, may be there or may have been torn by the power failure. To go on
//! from the root could seal half a commit, to drop it could undo what was answered for: the administrator decides
//! ([`Unproven`](crate::volume::Error::Unproven)).
//!
//! A device that loses what it has flushed, within the second or so until the next root, looks like one that never had it. Then the volume
//! goes on from a state that was durable a commit earlier, says so in the log and in the trail, and another host's or this
//! one's witness ([`witness`](crate::volume)) refuses it when it has seen more.
//!
//! ext4 does the same with its journal's commit block, which has a checksum over what it commits (ext4(5), `journal_async_commit`).

use super::tree::{self, FANOUT, NodeId, Pointer, TreeKind};
use super::{Page, Unit, data_binding};
use crate::crypto::Keys;
use crate::device::{AlignedBuf, BlockDevice};
use crate::label::{PROVISIONAL_BLOCKS_MAX, Provisional, Root, TreeRef, WrittenBlock};
use crate::mirror::device_offset;
use crate::units::{BLOCK_SIZE, BlockAddr, Run, Tag, Uuid, WriteId};

/// Pages and nodes of a commit with a provisional root, at most: 1 MiB to look at on each replica after a crash. And blocks that it
/// frees: so much is not free yet after it. A larger one does not feel the second flush.
pub const BLOCKS_MAX: usize = 256;

/// How often a device is asked for a block.
const ATTEMPTS: usize = 3;

/// The data of a batch, as far as a provisional root can list it.
#[derive(Debug, Default)]
pub struct Written {
    blocks: Vec<WrittenBlock>,
    /// There is more of it than that.
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

    /// The list, if it is all there is.
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

/// What has become of a root's commit.
#[derive(Default)]
pub struct Proof {
    /// Blocks that not every replica has.
    pub lacking: Vec<Lacking>,
    /// Blocks that none has; there may be more, below those.
    pub lost: u64,
    /// The first block that none of the devices that could be read has, and that one or more failed to read, with the
    /// error: neither is it known to be there nor to be lost, nor what is below it.
    pub unread: Option<(BlockAddr, String)>,
}

impl Proof {
    /// Looks for the blocks of `root` on each of the replicas. A root that is not provisional needs no proof.
    pub fn of(root: &Root, keys: &Keys, volume: Uuid, replicas: &[(usize, &dyn BlockDevice)]) -> Self {
        let mut search = Search { root, keys, volume, replicas, proof: Self::default() };
        if let Some(provisional) = &root.provisional {
            search.tree(TreeKind::Space, &root.space);
            search.tree(TreeKind::Database, &root.db);
            for WrittenBlock { addr, counter, tag } in provisional.blocks() {
                let id = WriteId { epoch: root.epoch(), counter: *counter };
                search.unit(&Unit { at: data_binding(volume, Run::new(*addr, 1), 0), id, tag: *tag });
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
    /// What of a tree was born with the root.
    fn tree(&mut self, kind: TreeKind, at: &TreeRef) {
        let is_new = at.pages > 0 && at.birth == self.root.generation;
        if let Some(top) = at.height.checked_sub(1).filter(|_| is_new) {
            self.node(kind, (top, 0), &Pointer { addr: at.addr, birth: at.birth, id: at.id, tag: at.tag });
        }
    }

    fn node(&mut self, kind: TreeKind, id: NodeId, entry: &Pointer) {
        let at = kind.node(self.volume, entry.addr, id);
        let Some(plain) = self.unit(&Unit { at, id: entry.id, tag: entry.tag }) else { return };
        for (i, entry) in (0..).zip(tree::decode(&plain).iter()) {
            let Some(entry) = entry.filter(|entry| entry.birth == self.root.generation) else { continue };
            let child = id.1 * FANOUT + i;
            if id.0 > 0 {
                self.node(kind, (id.0 - 1, child), &entry);
            } else {
                let at = kind.page(self.volume, entry.addr, child);
                self.unit(&Unit { at, id: entry.id, tag: entry.tag });
            }
        }
    }

    /// Looks for one unit on every replica. Returns what it holds.
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
        if lacking != 0 {
            self.proof.lacking.push(Lacking { addr: unit.at.addr, sealed, replicas: lacking });
        }
        Some(plain)
    }
}

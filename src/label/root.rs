//! The root record: what a commit publishes.
//!
//! A slot of the ring is one block of 4096 bytes, the same in both label areas. Generation `g` goes to slot `g % 64`.
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0  | 12   | random nonce |
//! | 12 | 4    | zero |
//! | 16 | 16   | tag |
//! | 32 | 4064 | the record, sealed with the root key, kind `Root`, address 0, context: slot, 0 |
//!
//! The record, integers little-endian:
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0   | 8  | generation |
//! | 8   | 4  | epoch: number of the mount that committed |
//! | 12  | 4  | zero |
//! | 16  | 8  | in-sync replicas: bit n for row n of the replica table |
//! | 24  | 8  | time of the commit, nanoseconds since 1970, signed |
//! | 32  | 8  | free blocks of the data area |
//! | 40  | 8  | random number of the mount that committed |
//! | 48  | 64 | tree of the database's pages |
//! | 112 | 64 | tree of the space bitmap |
//! | 176 | 64 | zero, reserved: tree of the configuration |
//! | 240 | 8  | version of the registry in force |
//! | 248 | 32 | digest of its document |
//! | 280 | 32 | digest of the trust anchors in force; zero: those pinned in the header |
//! | 312 | 8  | sequence of the header in force |
//! | 320 | 32 | its [digest](super::Fields::digest) |
//! | 352 | 16 | zero, reserved: the host that committed |
//! | 368 | 120 | zero, reserved |
//! | 488 | 8  | slots of the ring that hold a root on each of these replicas: bit n for slot n |
//! | 496 | 1280 | the mounts before that this history went through, the last one first: epoch (4 bytes), random number (8), generation of its last root (8); the rest is zero |
//! | 1776 | 1000 | zero, reserved |
//! | 2776 | 1  | 1: the root is provisional; else zero, and so is the rest |
//! | 2777 | 1  | data blocks listed |
//! | 2778 | 6  | zero |
//! | 2784 | 1280 | data blocks that were written together with the root: address (8 bytes), counter of the write identity (8), tag (16); the rest is zero |
//!
//! A reference to a tree:
//!
//! | offset | bytes | field |
//! |-------:|------:|-------|
//! | 0  | 8  | address of the top node, in blocks of the data area |
//! | 8  | 8  | birth: generation that wrote the top node |
//! | 16 | 8  | pages in the tree; 0: there is no tree, the rest is zero |
//! | 24 | 8  | write identity of the top node: counter |
//! | 32 | 4  | write identity of the top node: epoch |
//! | 36 | 1  | height: levels of nodes above the pages |
//! | 37 | 3  | zero |
//! | 40 | 16 | tag of the top node |
//! | 56 | 8  | zero |
//!
//! Generations, addresses and pages are below 2^48. A slot that was torn, was never written, or holds the root of
//! another slot does not open, and counts as empty.
//!
//! The nonce is random because a root is sealed once per commit: 2^32 roots leave a collision probability below 2^-32.
//! After a collision the cipher would only show whether two records are equal (RFC 8452 §9).

use crate::crypto::{self, Binding, Keys, Kind, random_bytes};
use crate::device::{AlignedBuf, BlockDevice};
use crate::limits::{DEVICE_SIZE_MAX, REPLICAS_MAX};
use crate::units::{BLOCK_SIZE, BlockAddr, Generation, Tag, Uuid, WriteId, to_usize};

use super::codec::{Reader, Writer};
use super::{Area, RING_BYTES, RING_OFFSET};

/// Slots of the root ring.
pub const ROOT_SLOTS: u64 = 64;

/// Bytes of a slot.
pub const ROOT_BYTES: usize = BLOCK_SIZE;

const RECORD_AT: usize = 32;
const DB_AT: usize = 48;
const SPACE_AT: usize = 112;
const DOCUMENTS_AT: usize = 240;
const RING_AT: usize = 488;
const LINEAGE_AT: usize = 496;
const PROVISIONAL_AT: usize = 2776;

/// Levels that a tree can have: 102^8 pages are more than any device holds.
const HEIGHT_MAX: u8 = 8;

/// Addresses in the data area, generations, and pages of a tree are below this number, because map entries keep them in
/// 48 bits. A thousand commits a second take 8900 years to get there.
const NUMBERS_END: u64 = 1 << 48;

const _: () = assert!(DEVICE_SIZE_MAX / (BLOCK_SIZE as u64) < NUMBERS_END);

/// Reference to the top of a Merkle tree of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeRef {
    /// Address of the top node.
    pub addr: BlockAddr,
    /// Write identity of the top node.
    pub id: WriteId,
    /// Tag of the top node.
    pub tag: Tag,
    /// Generation that wrote the top node.
    pub birth: Generation,
    /// Levels of nodes above the pages; zero when there is no tree.
    pub height: u8,
    /// Pages in the tree; zero: there is no tree.
    pub pages: u64,
}

/// One mount of a volume. The epoch alone does not tell two mounts apart: replicas that were mounted each by themselves
/// count on from the same number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountId {
    /// Number of the mount: greater than that of every mount before it in its history.
    pub epoch: u32,
    /// A random number.
    pub nonce: u64,
}

/// A mount that a history went through, and how far the history went in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// The mount.
    pub mount: MountId,
    /// Generation of the mount's last root that belongs to the history.
    pub last: Generation,
}

/// Mounts that a root remembers.
pub const LINEAGE_MAX: usize = 64;

/// The mounts before its own that a root's history went through, as far back as they are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lineage([Passed; LINEAGE_MAX]);

impl Default for Lineage {
    fn default() -> Self {
        Self([Passed::default(); LINEAGE_MAX])
    }
}

impl Lineage {
    /// The mounts, the last one first.
    pub fn iter(&self) -> impl Iterator<Item = &Passed> {
        // Epochs begin at 1.
        self.0.iter().take_while(|passed| passed.mount.epoch != 0)
    }

    /// How far the history went through a mount; `None` when it did not go through it, or when that is forgotten.
    pub fn last_of(&self, mount: MountId) -> Option<Generation> {
        self.iter().find(|passed| passed.mount == mount).map(|passed| passed.last)
    }

    /// Whether mounts of this epoch are so long ago that they are forgotten.
    pub fn forgot(&self, epoch: u32) -> bool {
        self.0.last().is_some_and(|oldest| epoch < oldest.mount.epoch)
    }
}

/// Data blocks that a provisional root can list.
pub const PROVISIONAL_BLOCKS_MAX: usize = 40;

const _: () = assert!(LINEAGE_AT + LINEAGE_MAX * 20 <= PROVISIONAL_AT);
const _: () = assert!(PROVISIONAL_AT + 8 + PROVISIONAL_BLOCKS_MAX * 32 == ROOT_BYTES - RECORD_AT);

/// A data block that was written together with a root, by the mount that committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WrittenBlock {
    /// Where it is.
    pub addr: BlockAddr,
    /// Counter of its write identity; the epoch is the root's.
    pub counter: u64,
    /// Its tag.
    pub tag: Tag,
}

/// What makes a root provisional: it was written together with its commit's blocks, in whatever order the device liked.
/// When the power fails before all of them are on stable storage, the root may be there and some of the blocks not. So
/// the root counts only if each block verifies: the pages and nodes that were born with it, which its trees lead to,
/// and the data blocks listed here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Provisional {
    blocks: [WrittenBlock; PROVISIONAL_BLOCKS_MAX],
    count: u8,
}

impl Provisional {
    /// Lists `blocks`; `None` when they are more than [`PROVISIONAL_BLOCKS_MAX`].
    pub fn new(blocks: &[WrittenBlock]) -> Option<Self> {
        let mut listed = [WrittenBlock::default(); PROVISIONAL_BLOCKS_MAX];
        listed.get_mut(..blocks.len())?.copy_from_slice(blocks);
        Some(Self { blocks: listed, count: u8::try_from(blocks.len()).ok()? })
    }

    /// The data blocks.
    pub fn blocks(&self) -> &[WrittenBlock] {
        &self.blocks[..usize::from(self.count)]
    }
}

impl std::fmt::Debug for Provisional {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.blocks()).finish()
    }
}

/// The header in force, as a root names it. An older one that somebody puts back on every device is recognised by that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LabelId {
    /// Its sequence.
    pub sequence: u64,
    /// What it says of the volume ([`Fields::digest`](super::Fields::digest)).
    pub digest: [u8; 32],
}

/// What a commit publishes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// Number of the commit.
    pub generation: Generation,
    /// The mount that committed.
    pub mount: MountId,
    /// Replicas that hold this generation: bit n for row n of the replica table.
    pub in_sync: u64,
    /// Slots of the ring that held a root on each of these replicas before this one was written: bit n for slot n. A slot
    /// once written opens for ever, unless it is damaged or its next root is torn.
    pub ring: u64,
    /// Time of the commit, in nanoseconds since 1970.
    pub committed_unix_ns: i64,
    /// Free blocks of the data area.
    pub free_blocks: u64,
    /// Version of the registry in force.
    pub registry_version: u64,
    /// Digest of its document; zero: none was in force yet.
    pub registry: [u8; 32],
    /// The header in force.
    pub label: LabelId,
    /// The database.
    pub db: TreeRef,
    /// The space bitmap.
    pub space: TreeRef,
    /// Digest of the trust anchors in force, when officers have replaced those of the header; else zero.
    pub trust: [u8; 32],
    /// The mounts that the volume went through before this one. By them a root that is found on a replica can be told
    /// from a root of another history.
    pub lineage: Lineage,
    /// What must verify before the root counts. `None`: all that the root refers to was on stable storage before the
    /// root was written.
    pub provisional: Option<Provisional>,
}

impl Root {
    /// Number of the mount that committed.
    pub fn epoch(&self) -> u32 {
        self.mount.epoch
    }

    /// Whether the root names the replica `index` as holding everything that the root refers to.
    pub fn names(&self, index: usize) -> bool {
        index < REPLICAS_MAX && self.in_sync >> index & 1 == 1
    }

    /// What the next root says of the ring, if it names these replicas. One that this root does not name was given this
    /// root, and what else is in its ring is not known.
    pub fn ring_after(&self, in_sync: u64) -> u64 {
        let kept = if in_sync & !self.in_sync == 0 { self.ring } else { 0 };
        // A new volume begins after a root 0 that is not on its devices.
        if self.generation.0 == 0 { 0 } else { kept | 1 << slot(self.generation) }
    }

    /// The root sealed for its slot, in a buffer that a device takes.
    ///
    /// # Errors
    /// As [`seal_root`].
    pub fn sealed(&self, keys: &Keys, volume: Uuid) -> Result<AlignedBuf, crypto::Error> {
        let mut block = AlignedBuf::scratch(ROOT_BYTES);
        block.copy_from_slice(&seal_root(keys, volume, self)?);
        Ok(block)
    }

    /// Byte offsets of its slot on a device of `device_bytes` bytes (of its header), in area A and area B.
    pub fn offsets(&self, device_bytes: u64) -> [u64; 2] {
        slot_offsets(slot(self.generation), device_bytes)
    }

    /// The lineage of a mount that goes on from this root.
    pub fn lineage_after(&self) -> Lineage {
        let mut lineage = self.lineage;
        if self.mount.epoch != 0 {
            lineage.0.rotate_right(1);
            lineage.0[0] = Passed { mount: self.mount, last: self.generation };
        }
        lineage
    }

    /// Whether the history of this root certainly went through `other`, or `other` is this root.
    pub fn went_through(&self, other: &Self) -> bool {
        let last = if other.mount == self.mount { Some(self.generation) } else { self.lineage.last_of(other.mount) };
        last.is_some_and(|last| other.generation <= last)
    }

    /// Digest of the trust anchors in force. `founding` is the digest of the anchors that the volume was created under.
    pub fn trust_in_force(&self, founding: [u8; 32]) -> [u8; 32] {
        if self.trust == [0; 32] { founding } else { self.trust }
    }
}

/// Slot of the ring for a generation.
pub const fn slot(generation: Generation) -> u64 {
    generation.0 % ROOT_SLOTS
}

/// The slots that these roots are in: bit n for slot n.
pub fn slots_of(roots: &[Root]) -> u64 {
    roots.iter().fold(0, |slots, root| slots | 1 << slot(root.generation))
}

/// Byte offsets of a slot on a device of `device_bytes` bytes (of its header), in area A and area B.
pub const fn slot_offsets(slot: u64, device_bytes: u64) -> [u64; 2] {
    let in_area = RING_OFFSET + slot * ROOT_BYTES as u64;
    [Area::A.offset(device_bytes) + in_area, Area::B.offset(device_bytes) + in_area]
}

/// Seals a root for its slot, [`slot`]`(root.generation)`.
///
/// # Errors
/// [`crypto::Error::Random`] when the system has no random bytes for the nonce.
pub fn seal_root(keys: &Keys, volume: Uuid, root: &Root) -> Result<[u8; ROOT_BYTES], crypto::Error> {
    Ok(seal_with_nonce(keys, volume, root, random_bytes()?))
}

pub(super) fn seal_with_nonce(keys: &Keys, volume: Uuid, root: &Root, nonce: [u8; 12]) -> [u8; ROOT_BYTES] {
    let mut block = [0; ROOT_BYTES];
    let record = &mut block[RECORD_AT..];
    Writer::new(record, 0)
        .put(&root.generation.0.to_le_bytes())
        .put(&root.mount.epoch.to_le_bytes())
        .skip(4)
        .put(&root.in_sync.to_le_bytes())
        .put(&root.committed_unix_ns.to_le_bytes())
        .put(&root.free_blocks.to_le_bytes())
        .put(&root.mount.nonce.to_le_bytes());
    put_tree(record, DB_AT, &root.db);
    put_tree(record, SPACE_AT, &root.space);
    Writer::new(record, DOCUMENTS_AT)
        .put(&root.registry_version.to_le_bytes())
        .put(&root.registry)
        .put(&root.trust)
        .put(&root.label.sequence.to_le_bytes())
        .put(&root.label.digest);
    Writer::new(record, RING_AT).put(&root.ring.to_le_bytes());
    let mut mounts = Writer::new(record, LINEAGE_AT);
    for passed in &root.lineage.0 {
        let Passed { mount, last } = passed;
        mounts.put(&mount.epoch.to_le_bytes()).put(&mount.nonce.to_le_bytes()).put(&last.0.to_le_bytes());
    }
    if let Some(provisional) = &root.provisional {
        let mut listed = Writer::new(record, PROVISIONAL_AT);
        listed.put(&[1, provisional.count]).skip(6);
        for WrittenBlock { addr, counter, tag } in provisional.blocks() {
            listed.put(&addr.0.to_le_bytes()).put(&counter.to_le_bytes()).put(tag);
        }
    }
    let tag = keys.root().seal_in_place(&binding(volume, slot(root.generation)), write_id(nonce), record);
    Writer::new(&mut block, 0).put(&nonce).skip(4).put(&tag);
    block
}

/// Opens the block found in slot `slot_found` of a ring: `None` unless it is whole, authentic, and belongs there.
pub fn open_root(keys: &Keys, volume: Uuid, slot_found: u64, block: &[u8]) -> Option<Root> {
    let mut block: [u8; ROOT_BYTES] = block.try_into().ok()?;
    let mut head = Reader::new(&block, 0);
    let nonce = head.array();
    let unused = head.u32();
    let tag = head.array();
    // These four bytes are outside the seal: a nonzero byte is damage.
    if unused != 0 {
        return None;
    }
    let record = &mut block[RECORD_AT..];
    keys.root().open_in_place(&binding(volume, slot_found), write_id(nonce), &tag, record).ok()?;
    let mut r = Reader::new(record, 0);
    let generation = Generation(r.u64());
    let epoch = r.u32();
    r.take(4);
    let provisional = provisional(record)?;
    let mut documents = Reader::new(record, DOCUMENTS_AT);
    let mut mounts = Reader::new(record, LINEAGE_AT);
    let (in_sync, committed_unix_ns, free_blocks) = (r.u64(), r.i64(), r.u64());
    let root = Root {
        generation,
        mount: MountId { epoch, nonce: r.u64() },
        in_sync,
        ring: Reader::new(record, RING_AT).u64(),
        committed_unix_ns,
        free_blocks,
        registry_version: documents.u64(),
        registry: documents.array(),
        trust: documents.array(),
        label: LabelId { sequence: documents.u64(), digest: documents.array() },
        db: tree(record, DB_AT),
        space: tree(record, SPACE_AT),
        lineage: Lineage(std::array::from_fn(|_| Passed {
            mount: MountId { epoch: mounts.u32(), nonce: mounts.u64() },
            last: Generation(mounts.u64()),
        })),
        provisional,
    };
    let in_bounds = |tree: &TreeRef| {
        tree.height <= HEIGHT_MAX && tree.addr.0 < NUMBERS_END && tree.pages < NUMBERS_END && tree.birth.0 < NUMBERS_END
    };
    let plausible = slot(generation) == slot_found
        && root.in_sync != 0
        && generation.0 < NUMBERS_END
        && [&root.db, &root.space].into_iter().all(in_bounds);
    plausible.then_some(root)
}

/// Orders roots by epoch, then by generation, the latest first. The generation alone does not do: a replica that had
/// committed alone and was then brought back keeps roots of an earlier epoch and a higher generation in its ring.
fn later_first(root: &Root) -> std::cmp::Reverse<(u32, Generation)> {
    std::cmp::Reverse((root.epoch(), root.generation))
}

/// All roots of a ring of [`RING_BYTES`] bytes, the newest first: by epoch, then by generation. A shorter ring is
/// looked at as far as it goes.
pub fn newest_roots(keys: &Keys, volume: Uuid, ring: &[u8]) -> Vec<Root> {
    let slots = ring.chunks_exact(ROOT_BYTES).take(to_usize(ROOT_SLOTS)).zip(0..);
    let mut roots: Vec<Root> = slots.filter_map(|(block, slot)| open_root(keys, volume, slot, block)).collect();
    roots.sort_by_key(later_first);
    roots
}

/// All roots of both rings of a device, the newest first; a root that is in both is listed once. A slot that cannot be
/// read counts as empty. It is an error only when not one slot of either area can be read.
///
/// Two *different* roots of one generation are both in the list: the caller has to refuse or to explain them.
pub fn read_roots(
    device: &dyn BlockDevice,
    device_bytes: u64,
    keys: &Keys,
    volume: Uuid,
) -> Result<Vec<Root>, crate::device::Error> {
    let mut roots: Vec<Root> = Vec::new();
    let mut failed = Vec::new();
    let mut ring = AlignedBuf::zeroed(RING_BYTES);
    for area in Area::BOTH {
        match device.read_at(area.offset(device_bytes) + RING_OFFSET, &mut ring) {
            Ok(()) => roots.extend(newest_roots(keys, volume, &ring)),
            // One unreadable sector must not hide the other roots.
            Err(e) => {
                let mut readable = false;
                for slot in 0..ROOT_SLOTS {
                    let block = &mut ring[..ROOT_BYTES];
                    if device.read_at(slot_offsets(slot, device_bytes)[area as usize], block).is_ok() {
                        readable = true;
                        roots.extend(open_root(keys, volume, slot, block));
                    }
                }
                if !readable {
                    failed.push(e);
                }
            }
        }
    }
    if failed.len() == Area::BOTH.len() {
        return Err(failed.swap_remove(0));
    }
    roots.sort_by_key(later_first);
    roots.dedup();
    Ok(roots)
}

fn binding(volume: Uuid, slot: u64) -> Binding {
    Binding { volume, kind: Kind::Root, addr: BlockAddr(0), context: [slot, 0] }
}

/// The write identity whose nonce is `nonce`.
fn write_id(nonce: [u8; 12]) -> WriteId {
    let mut r = Reader::new(&nonce, 0);
    WriteId { epoch: r.u32(), counter: r.u64() }
}

fn put_tree(record: &mut [u8], at: usize, tree: &TreeRef) {
    Writer::new(record, at)
        .put(&tree.addr.0.to_le_bytes())
        .put(&tree.birth.0.to_le_bytes())
        .put(&tree.pages.to_le_bytes())
        .put(&tree.id.counter.to_le_bytes())
        .put(&tree.id.epoch.to_le_bytes())
        .put(&[tree.height, 0, 0, 0])
        .put(&tree.tag);
}

/// Whether a record is provisional, and with which blocks. `None` when its fields contradict each other or their
/// bounds.
fn provisional(record: &[u8]) -> Option<Option<Provisional>> {
    let mut r = Reader::new(record, PROVISIONAL_AT);
    let (is_provisional, count) = (r.u8(), r.u8());
    r.take(6);
    match (is_provisional, usize::from(count)) {
        (0, 0) => Some(None),
        (1, listed @ 0..=PROVISIONAL_BLOCKS_MAX) => {
            let block =
                |r: &mut Reader<'_>| WrittenBlock { addr: BlockAddr(r.u64()), counter: r.u64(), tag: r.array() };
            let blocks: Vec<WrittenBlock> = (0..listed).map(|_| block(&mut r)).collect();
            if blocks.iter().any(|block| block.addr.0 >= NUMBERS_END) {
                return None;
            }
            Provisional::new(&blocks).map(Some)
        }
        _ => None,
    }
}

fn tree(record: &[u8], at: usize) -> TreeRef {
    let mut r = Reader::new(record, at);
    let (addr, birth, pages) = (BlockAddr(r.u64()), Generation(r.u64()), r.u64());
    let counter = r.u64();
    let id = WriteId { epoch: r.u32(), counter };
    let height = r.u8();
    r.take(3);
    TreeRef { addr, id, tag: r.array(), birth, height, pages }
}

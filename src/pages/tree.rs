//! The map from page numbers to sealed blocks: a tree of nodes that are themselves sealed blocks (scelle-format(5)).
//!
//! A node holds [`FANOUT`] entries of 40 bytes. Level 0 leads to pages, level `n` to nodes of level `n - 1`. Node
//! `(level, index)` covers the pages `index * FANOUT^(level+1)` and on. So its place needs no pointers to neighbours,
//! and a tree grows by a node on top. An entry holds the tag of what it leads to: the root authenticates everything.
//!
//! When nodes are written, and where, is decided in `pages::commit`.
//!
//! | offset | bytes | field of an entry |
//! |-------:|------:|-------|
//! | 0  | 6  | address in blocks; all ones: nothing there |
//! | 6  | 6  | birth: the generation that wrote it |
//! | 12 | 4  | write identity: epoch |
//! | 16 | 8  | write identity: counter |
//! | 24 | 16 | tag |

use std::collections::{BTreeSet, HashMap};

use super::{Error, Page, Result, Unit};
use crate::crypto::{Binding, Keys, Kind};
use crate::label::TreeRef;
use crate::mirror::Mirror;
use crate::units::{BLOCK_SIZE, BlockAddr, Generation, Run, Tag, Uuid, WriteId, to_usize};

/// Entries of a node.
pub const FANOUT: u64 = (BLOCK_SIZE / ENTRY_BYTES) as u64;

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 40;

const NOWHERE: u64 = (1 << 48) - 1;

/// Nodes that are kept in memory, 6 KiB each, before half of those of the lowest level are dropped. They are enough for
/// 4 GiB of metadata, some ten million files.
pub(super) const NODES_MAX: usize = if cfg!(test) { 4 } else { 12 << 10 };

/// Highest tree: more than 2^48 pages.
pub(super) const HEIGHT_MAX: u8 = 8;

/// Which of the volume's two trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeKind {
    /// Pages of the metadata database.
    Database,
    /// Regions of the space bitmap.
    Space,
}

impl TreeKind {
    /// What a page of this tree is bound to.
    pub fn page(self, volume: Uuid, addr: BlockAddr, no: u64) -> Binding {
        let kind = match self {
            Self::Database => Kind::Page,
            Self::Space => Kind::SpacePage,
        };
        Binding { volume, kind, addr, context: [no, 0] }
    }

    /// What a node of this tree is bound to.
    pub fn node(self, volume: Uuid, addr: BlockAddr, node: NodeId) -> Binding {
        let kind = match self {
            Self::Database => Kind::MapNode,
            Self::Space => Kind::SpaceNode,
        };
        Binding { volume, kind, addr, context: [node.1, u64::from(node.0)] }
    }
}

/// A block pointer: where a page or node is, and what proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Its block.
    pub addr: BlockAddr,
    /// The generation that wrote it.
    pub birth: Generation,
    /// Its write identity.
    pub id: WriteId,
    /// Its tag.
    pub tag: Tag,
}

/// To the top of a tree that has pages.
impl From<&TreeRef> for Pointer {
    fn from(at: &TreeRef) -> Self {
        Self { addr: at.addr, birth: at.birth, id: at.id, tag: at.tag }
    }
}

impl Pointer {
    /// The unit that it leads to, which is bound to `at`.
    pub fn unit(&self, at: Binding) -> Unit {
        Unit { at, id: self.id, tag: self.tag }
    }
}

/// Level and index of a node.
pub type NodeId = (u8, u64);

pub(super) type Node = Box<[Option<Pointer>; to_usize(FANOUT)]>;

fn empty_node() -> Node {
    Box::new([None; to_usize(FANOUT)])
}

/// Reads and verifies pages and nodes.
pub struct NodeReader<'a> {
    /// The replicas.
    pub mirror: &'a Mirror,
    /// The volume's keys.
    pub keys: &'a Keys,
    /// The volume.
    pub volume: Uuid,
}

impl NodeReader<'_> {
    /// Reads the page `no` that `entry` leads to.
    ///
    /// # Errors
    /// When no replica gives it as it was written.
    pub fn page(&self, tree: TreeKind, no: u64, entry: &Pointer, out: &mut Page) -> Result<()> {
        self.unit(&tree.page(self.volume, entry.addr, no), entry, out)
    }

    /// Reads the node `id` that `entry` leads to.
    ///
    /// # Errors
    /// When no replica gives it as it was written.
    pub fn node(&self, tree: TreeKind, id: NodeId, entry: &Pointer, out: &mut Page) -> Result<()> {
        self.unit(&tree.node(self.volume, entry.addr, id), entry, out)
    }

    fn unit(&self, at: &Binding, entry: &Pointer, out: &mut Page) -> Result<()> {
        let cipher = self.keys.page();
        let mut open = |_: usize, sealed: &[u8]| cipher.open_block(at, entry.id, &entry.tag, sealed, out).is_ok();
        Ok(self.mirror.read(Run::new(entry.addr, 1), &mut open)?)
    }
}

/// A tree, as much of it as has been read, with the changes that the next commit writes.
pub struct Tree {
    kind: TreeKind,
    root: Option<Pointer>,
    height: u8,
    pages: u64,
    nodes: HashMap<NodeId, Node>,
    /// A commit has begun to change nodes: all are kept until it is done.
    changing: bool,
}

impl Tree {
    /// The tree that a root record refers to. Nothing is read yet.
    pub fn from_ref(kind: TreeKind, at: &TreeRef) -> Self {
        let root = (at.pages > 0).then(|| at.into());
        Self { kind, root, height: at.height.min(HEIGHT_MAX), pages: at.pages, nodes: HashMap::new(), changing: false }
    }

    /// What the next root record says of the tree.
    pub fn to_ref(&self) -> TreeRef {
        match &self.root {
            None => TreeRef::default(),
            Some(e) => {
                TreeRef { addr: e.addr, id: e.id, tag: e.tag, birth: e.birth, height: self.height, pages: self.pages }
            }
        }
    }

    /// Which tree it is.
    pub fn kind(&self) -> TreeKind {
        self.kind
    }

    /// One more than the highest page number.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The entry of a page, if the nodes above it have been read: `Some(None)` is "there is no such page".
    pub fn known(&self, no: u64) -> Option<Option<Pointer>> {
        if no >= self.pages {
            return Some(None);
        }
        self.nodes.get(&(0, no / FANOUT)).map(|node| node[(no % FANOUT) as usize])
    }

    /// The entry of a page; reads the nodes above it as needed.
    ///
    /// # Errors
    /// When a node cannot be read.
    pub fn get(&mut self, no: u64, reader: &NodeReader<'_>) -> Result<Option<Pointer>> {
        if no >= self.pages {
            return Ok(None);
        }
        self.load((0, no / FANOUT), reader)?;
        Ok(self.known(no).flatten())
    }

    fn load(&mut self, id: NodeId, reader: &NodeReader<'_>) -> Result<()> {
        if self.nodes.contains_key(&id) {
            return Ok(());
        }
        if id.0 + 1 < self.height {
            self.load((id.0 + 1, id.1 / FANOUT), reader)?;
        }
        let node = match self.node_entry(id) {
            None => empty_node(),
            Some(entry) => {
                let mut bytes = [0; BLOCK_SIZE];
                reader.node(self.kind, id, &entry, &mut bytes)?;
                decode(&bytes)
            }
        };
        if id.0 == 0 && !self.changing && self.nodes.len() >= NODES_MAX {
            // Which half is dropped is as good as random: it follows the order of a hash map.
            let mut leaves = 0;
            self.nodes.retain(|(level, _), _| {
                leaves += usize::from(*level == 0);
                *level > 0 || leaves % 2 == 0
            });
        }
        self.nodes.insert(id, node);
        Ok(())
    }

    /// Nodes in memory.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.nodes.len()
    }

    /// Notes that every node is stored as it is here: nodes that are not needed need not be kept any more.
    pub fn stored(&mut self) {
        self.changing = false;
    }

    /// Where a node is stored at present; its parent has been read.
    pub fn node_entry(&self, id: NodeId) -> Option<Pointer> {
        if id.0 + 1 == self.height {
            return if id.1 == 0 { self.root } else { None };
        }
        let parent = self.nodes.get(&(id.0 + 1, id.1 / FANOUT))?;
        parent[(id.1 % FANOUT) as usize]
    }

    /// Makes room for `pages` pages: adds levels on top.
    pub fn grow(&mut self, pages: u64) {
        self.pages = self.pages.max(pages);
        while self.pages > 0 && (self.height == 0 || FANOUT.pow(u32::from(self.height)) < self.pages) {
            if self.height > 0 {
                let mut top = empty_node();
                top[0] = self.root;
                self.nodes.insert((self.height, 0), top);
                // The new top has never been stored.
                self.root = None;
            }
            self.height += 1;
        }
    }

    /// The nodes above `pages`, from the lowest level up; all of them are read, and kept until [`Tree::stored`].
    ///
    /// # Errors
    /// When a node cannot be read.
    pub fn nodes_above(&mut self, pages: &BTreeSet<u64>, reader: &NodeReader<'_>) -> Result<Vec<NodeId>> {
        self.changing = true;
        let mut level: BTreeSet<u64> = pages.iter().map(|no| no / FANOUT).collect();
        let mut above = Vec::new();
        for height in 0..self.height {
            // A node that growth put on top is stored even when no page below it changes: it leads to the old tree.
            if height > 0 && self.nodes.contains_key(&(height, 0)) && self.node_entry((height, 0)).is_none() {
                level.insert(0);
            }
            for index in &level {
                self.load((height, *index), reader)?;
                above.push((height, *index));
            }
            level = level.iter().map(|index| index / FANOUT).collect();
        }
        Ok(above)
    }

    /// Sets the entry of a page whose leaf has been read.
    ///
    /// # Errors
    /// When it has not: a mistake in the commit.
    pub fn set_page(&mut self, no: u64, entry: Pointer) -> Result<()> {
        let node = self.nodes.get_mut(&(0, no / FANOUT)).ok_or_else(|| unread((0, no / FANOUT)))?;
        node[(no % FANOUT) as usize] = Some(entry);
        Ok(())
    }

    /// Sets where a node is stored, in its parent or as the root.
    ///
    /// # Errors
    /// When the parent has not been read: a mistake in the commit.
    pub fn set_node(&mut self, id: NodeId, entry: Pointer) -> Result<()> {
        if id.0 + 1 == self.height {
            self.root = Some(entry);
            return Ok(());
        }
        let parent = (id.0 + 1, id.1 / FANOUT);
        let node = self.nodes.get_mut(&parent).ok_or_else(|| unread(parent))?;
        node[(id.1 % FANOUT) as usize] = Some(entry);
        Ok(())
    }

    /// The stored form of a node that has been read.
    ///
    /// # Errors
    /// When it has not.
    pub fn encode(&self, id: NodeId) -> Result<Page> {
        let node = self.nodes.get(&id).ok_or_else(|| unread(id))?;
        let mut bytes = [0; BLOCK_SIZE];
        for (out, entry) in bytes.chunks_exact_mut(ENTRY_BYTES).zip(node.iter()) {
            let Some(entry) = entry else {
                out[..6].copy_from_slice(&NOWHERE.to_le_bytes()[..6]);
                continue;
            };
            out[..6].copy_from_slice(&entry.addr.0.to_le_bytes()[..6]);
            out[6..12].copy_from_slice(&entry.birth.0.to_le_bytes()[..6]);
            out[12..16].copy_from_slice(&entry.id.epoch.to_le_bytes());
            out[16..24].copy_from_slice(&entry.id.counter.to_le_bytes());
            out[24..40].copy_from_slice(&entry.tag);
        }
        Ok(bytes)
    }
}

fn unread(id: NodeId) -> Error {
    Error::Corrupt(format!("map node {} of level {} was not read", id.1, id.0))
}

pub(super) fn decode(bytes: &Page) -> Node {
    let mut node = empty_node();
    for (slot, field) in node.iter_mut().zip(bytes.chunks_exact(ENTRY_BYTES)) {
        let u48 = |at: usize| (0..6).rev().fold(0u64, |n, i| n << 8 | u64::from(field[at + i]));
        let addr = u48(0);
        if addr == NOWHERE {
            continue;
        }
        let mut epoch = [0; 4];
        epoch.copy_from_slice(&field[12..16]);
        let mut counter = [0; 8];
        counter.copy_from_slice(&field[16..24]);
        let mut tag = [0; 16];
        tag.copy_from_slice(&field[24..40]);
        let id = WriteId { epoch: u32::from_le_bytes(epoch), counter: u64::from_le_bytes(counter) };
        *slot = Some(Pointer { addr: BlockAddr(addr), birth: Generation(u48(6)), id, tag });
    }
    node
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nodes_round_trip() {
        let mut tree = Tree::from_ref(TreeKind::Database, &TreeRef::default());
        tree.grow(FANOUT);
        tree.nodes.insert((0, 0), empty_node());
        let entry = Pointer {
            addr: BlockAddr(0x0123_4567_89ab),
            birth: Generation(0xba98_7654_3210),
            id: WriteId { epoch: u32::MAX - 1, counter: u64::MAX - 2 },
            tag: [9; 16],
        };
        tree.set_page(FANOUT - 1, entry).unwrap();
        tree.set_page(0, entry).unwrap();
        let node = decode(&tree.encode((0, 0)).unwrap());
        assert_eq!(node[0], Some(entry));
        assert_eq!(node[FANOUT as usize - 1], Some(entry));
        assert!(node[1..FANOUT as usize - 1].iter().all(Option::is_none));
    }

    /// Growth by two levels at once, with no change below the old top: the node between must be stored too.
    #[test]
    fn growth_keeps_the_old_tree_reachable() {
        let mut tree = Tree::from_ref(TreeKind::Space, &TreeRef::default());
        let entry = |n| Pointer { addr: BlockAddr(n), birth: Generation(1), id: WriteId::default(), tag: [1; 16] };
        tree.grow(1);
        tree.nodes.insert((0, 0), empty_node());
        tree.set_page(0, entry(7)).unwrap();
        tree.set_node((0, 0), entry(8)).unwrap();
        let far = FANOUT * FANOUT + 5;
        tree.grow(far + 1);
        for id in [(0, far / FANOUT), (1, 1)] {
            tree.nodes.insert(id, empty_node());
        }
        let mirror = Mirror::new(Vec::new()).unwrap();
        let keys = crate::crypto::VolumeKey::generate().unwrap().keys(Uuid::default());
        let reader = NodeReader { mirror: &mirror, keys: &keys, volume: Uuid::default() };
        let nodes = tree.nodes_above(&BTreeSet::from([far]), &reader).unwrap();
        assert_eq!(nodes, [(0, far / FANOUT), (1, 0), (1, 1), (2, 0)]);
        assert_eq!(tree.node_entry((0, 0)), Some(entry(8)));
    }

    #[test]
    fn a_tree_grows_on_top() {
        let mut tree = Tree::from_ref(TreeKind::Space, &TreeRef::default());
        assert_eq!((tree.height, tree.pages), (0, 0));
        for (pages, height) in [(1, 1), (FANOUT, 1), (FANOUT + 1, 2), (FANOUT * FANOUT, 2), (FANOUT * FANOUT + 1, 3)] {
            tree.grow(pages);
            assert_eq!((tree.height, tree.pages), (height, pages));
        }
    }
}

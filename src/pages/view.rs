//! Views: the trees as one root has them, read from the devices beside a store in use.
//!
//! A [`View`] takes no lock that a commit or an operation waits for. It reads nodes and pages by the references of one
//! published root. A [`ReadGuard`] sees to it that nothing which that root refers to is overwritten meanwhile. A view
//! keeps one node for each level of each tree in memory ([`Nodes`]), whatever the volume holds. It knows nothing of
//! files: what a page means is the tables' ([`meta`](crate::meta)).
//!
//! # A traversal pins one chunk at a time
//!
//! A guard keeps freed blocks from being used again. So a nearly full volume runs out of space under a guard that lives
//! for long. [`Units`] therefore visits every unit of both trees in chunks:
//!
//! * Each chunk is read by a view of its own, at the root that is the newest when the chunk begins. Between two chunks
//!   nothing is held.
//! * A chunk has at most [`CHUNK_UNITS`] units, and begins none after [`CHUNK_TIME`].
//! * It reads one node for each level of the tree to find its place again, and then at most one node for each unit.
//!
//! # What a traversal visits
//!
//! Units are told apart by their *place*: a page by its tree and its number, a node by its tree, its level and its
//! index. The order of places is the order in which a tree is walked from its top, a node before what is below it. That
//! order depends on no root ([`Place`]). So the place of the last visit says under any later root where to go on.
//!
//! The *first root* of a traversal is the one that its first chunk pins.
//!
//! * **Every place that has a unit in the first root is visited exactly once**, with the unit that is there in the root
//!   of its chunk. A place keeps a unit for ever: the database is never shortened, the map has a page for a region from
//!   its first change on, and trees only grow. So a unit of the first root that still exists when its chunk is reached
//!   is visited exactly once. In the place of a unit that does not exist any more, its successor is visited, where
//!   copy-on-write has put it.
//! * **No place is visited twice**, even when a commit rewrites it between two chunks or a tree grows in height. A node
//!   that growth puts on top comes before every other place of its tree, hence before the cursor.
//! * **A traversal ends**, however fast the volume grows: it visits nothing behind the last page that the first root's
//!   tree has. A place that got its first unit after the traversal began is visited when it lies between the cursor and
//!   that end, and else it is not.
//!
//! So everything that is not visited was written by commits that came after the first root. A caller that verifies may
//! leave that out: it was written and flushed a moment ago. A caller that copies must see to it by other means
//! (`volume::members::resync` does).

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use super::tree::{FANOUT, HEIGHT_MAX, Node, NodeId, Pointer, TreeKind, decode};
use super::{Page, ReadGuard, Result, Store, Unit};
use crate::label::{Root, TreeRef};
use crate::units::{BLOCK_SIZE, Generation, to_usize};

/// Most units of a chunk.
pub const CHUNK_UNITS: usize = 64;

/// How long after its beginning a chunk begins no further unit. A tenth of a second is less than an operation on a full
/// volume waits before it says that there is no space.
pub const CHUNK_TIME: Duration = Duration::from_millis(100);

/// A node that was read, and the entry that proves it.
struct Held {
    index: u64,
    entry: Pointer,
    node: Node,
}

/// The node of each level that was read last, of both trees. A node is recognised by the entry that leads to it. So a
/// node that one view has read serves the next view, too, as long as it is still in the tree.
#[derive(Default)]
pub struct Nodes {
    database: [Option<Held>; HEIGHT_MAX as usize],
    space: [Option<Held>; HEIGHT_MAX as usize],
}

impl Nodes {
    fn level(&mut self, kind: TreeKind, level: u8) -> &mut Option<Held> {
        match kind {
            TreeKind::Database => &mut self.database[usize::from(level)],
            TreeKind::Space => &mut self.space[usize::from(level)],
        }
    }
}

/// Where a unit stands in the order of its tree. The order of the fields is the order of places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The first page that the unit is, or leads to.
    first: u64,
    /// How far above the pages the unit is: 0 for a page, one more than its level for a node. The higher unit comes
    /// first.
    above: Reverse<u8>,
}

impl Place {
    fn new(first: u64, above: u8) -> Self {
        Self { first, above: Reverse(above) }
    }

    /// The node that is here; none when it is a page.
    fn node(self) -> Option<NodeId> {
        let level = self.above.0.checked_sub(1)?;
        Some((level, self.first / pages_below(self.above.0)))
    }
}

/// Pages below a node that is so far above them.
fn pages_below(above: u8) -> u64 {
    FANOUT.pow(u32::from(above))
}

/// The trees at one root, read-only. While it lives, nothing that the root refers to is overwritten.
pub struct View<'a> {
    store: &'a Store,
    root: Root,
    nodes: Nodes,
    _guard: ReadGuard<'a>,
}

impl<'a> View<'a> {
    /// Pins the newest durable root. `nodes` are those of an earlier view, or none.
    pub(super) fn pin(store: &'a Store, nodes: Nodes) -> Self {
        // The guard is taken first, the root read second. A commit does the reverse: it publishes its root first, its
        // generation second, and looks for readers last. So no block of the root R that is read here is used again
        // while the guard lives.
        //
        // Proof. A block of R is freed by a later commit C. It is used again only after C has seen, under the lock of
        // the readers, that each of them began in C's generation or later.
        // - If the guard enters before C looks, C finds it. The guard began before C: each generation is stored after
        //   its root, so the generation that the guard read is not newer than R, which was read after it; and R is
        //   older than C.
        // - If the guard enters after C has looked, C's root was published before that. What is read here is that root
        //   or a later one, not R.
        let guard = store.reader();
        let root = store.root();
        Self { store, root, nodes, _guard: guard }
    }

    /// Unpins, and keeps the nodes for the next view.
    fn release(self) -> Nodes {
        self.nodes
    }

    /// The generation of its root.
    pub fn generation(&self) -> Generation {
        self.root.generation
    }

    /// Pages of the metadata database.
    pub fn database_pages(&self) -> u64 {
        self.root.db.pages
    }

    /// Reads a page of the metadata database. A page that was never written is zero.
    ///
    /// # Errors
    /// When no replica gives the page, or a node above it, as it was written.
    pub fn read_page(&mut self, no: u64, out: &mut Page) -> Result<()> {
        match self.page_entry(TreeKind::Database, no)? {
            Some(entry) => self.store.node_reader().page(TreeKind::Database, no, &entry, out),
            None => {
                out.fill(0);
                Ok(())
            }
        }
    }

    /// A page of the metadata database, to be looked for; none when it was never written.
    ///
    /// # Errors
    /// When no replica gives a node above it.
    pub fn page_unit(&mut self, no: u64) -> Result<Option<Unit>> {
        let entry = self.page_entry(TreeKind::Database, no)?;
        Ok(entry.map(|entry| self.unit(TreeKind::Database, Place::new(no, 0), &entry)))
    }

    fn page_entry(&mut self, kind: TreeKind, no: u64) -> Result<Option<Pointer>> {
        let tree = self.tree(kind);
        let mut found = top(tree).filter(|_| no < tree.pages);
        for above in (1..=height(tree)).rev() {
            let Some(entry) = found else { break };
            let node = self.node(kind, (above - 1, no / pages_below(above)), &entry)?;
            found = node[(no / pages_below(above - 1) % FANOUT) as usize];
        }
        Ok(found)
    }

    fn tree(&self, kind: TreeKind) -> &TreeRef {
        match kind {
            TreeKind::Database => &self.root.db,
            TreeKind::Space => &self.root.space,
        }
    }

    /// The node `id`, which `entry` leads to.
    fn node(&mut self, kind: TreeKind, id: NodeId, entry: &Pointer) -> Result<&Node> {
        let (level, index) = id;
        let place = self.nodes.level(kind, level);
        let held = match place.take().filter(|held| held.index == index && held.entry == *entry) {
            Some(held) => held,
            None => {
                let mut bytes = [0; BLOCK_SIZE];
                self.store.node_reader().node(kind, id, entry, &mut bytes)?;
                Held { index, entry: *entry, node: decode(&bytes) }
            }
        };
        Ok(&place.insert(held).node)
    }

    /// The first unit of a tree behind the place `after`, or the first of all; none when there is no more.
    fn next(&mut self, kind: TreeKind, after: Option<Place>) -> Result<Option<(Place, Pointer)>> {
        let tree = self.tree(kind);
        let Some(entry) = top(tree) else { return Ok(None) };
        let place = Place::new(0, height(tree));
        match after {
            Some(after) if after >= place => self.next_below(kind, place, &entry, after),
            _ => Ok(Some((place, entry))),
        }
    }

    /// The first unit below the node at `above` that comes behind the place `after`.
    fn next_below(
        &mut self,
        kind: TreeKind,
        above: Place,
        entry: &Pointer,
        after: Place,
    ) -> Result<Option<(Place, Pointer)>> {
        let Some(id) = above.node() else { return Ok(None) };
        let (level, below) = (id.0, pages_below(id.0));
        // Children to the left of the one that the last place was in, or below, have been visited.
        for child in after.first.saturating_sub(above.first) / below..FANOUT {
            let Some(entry) = self.node(kind, id, entry)?[to_usize(child)] else { continue };
            let place = Place::new(above.first + child * below, level);
            if place > after {
                return Ok(Some((place, entry)));
            }
            if let Some(found) = self.next_below(kind, place, &entry, after)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn unit(&self, kind: TreeKind, place: Place, entry: &Pointer) -> Unit {
        let at = match place.node() {
            Some(id) => kind.node(self.store.volume, entry.addr, id),
            None => kind.page(self.store.volume, entry.addr, place.first),
        };
        entry.unit(at)
    }
}

fn top(tree: &TreeRef) -> Option<Pointer> {
    let is_there = tree.pages > 0 && tree.height > 0;
    is_there.then(|| tree.into())
}

fn height(tree: &TreeRef) -> u8 {
    tree.height.min(HEIGHT_MAX)
}

/// Where a traversal of the trees is between two chunks. It means the same under any later root, and in any later mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    /// Pages that the first root's tree of the database had; none when that tree has been walked to its end.
    database: Option<u64>,
    /// The same of the space map, which comes first.
    space: Option<u64>,
    /// The place that was visited last: the first page below, and how far above the pages it is.
    after: Option<(u64, u8)>,
}

/// A traversal of every unit of both trees, the space map first ([the module](self) says what it visits).
pub struct Units<'a> {
    store: &'a Store,
    nodes: Nodes,
    /// The trees that are still to be walked to their ends.
    left: Vec<(TreeKind, u64)>,
    begun: bool,
    /// The place in the first of them that was visited last.
    after: Option<Place>,
}

impl<'a> Units<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self { store, nodes: Nodes::default(), left: Vec::new(), begun: false, after: None }
    }

    /// A traversal that goes on where another one was.
    pub(super) fn behind(store: &'a Store, cursor: Cursor) -> Self {
        let ends = [(TreeKind::Database, cursor.database), (TreeKind::Space, cursor.space)];
        let left = ends.into_iter().filter_map(|(kind, end)| Some((kind, end?))).collect();
        let after = cursor.after.map(|(first, above)| Place::new(first, above.min(HEIGHT_MAX)));
        Self { left, begun: true, after, ..Self::new(store) }
    }

    /// Where it is; nothing before the first chunk.
    pub fn cursor(&self) -> Option<Cursor> {
        let end = |wanted| self.left.iter().find(|(kind, _)| *kind == wanted).map(|(_, end)| *end);
        let after = self.after.map(|place| (place.first, place.above.0));
        self.begun.then(|| Cursor { database: end(TreeKind::Database), space: end(TreeKind::Space), after })
    }

    /// Visits the next units under a view of the newest root, until the chunk is full or `visit` says that it is to
    /// end. A unit may be read until `visit` has returned. Returns whether there are more.
    ///
    /// # Errors
    /// When a node cannot be read from any replica, or what `visit` returns.
    pub fn chunk<E: From<super::Error>>(
        &mut self,
        visit: &mut dyn FnMut(&Unit) -> std::result::Result<bool, E>,
    ) -> std::result::Result<bool, E> {
        let mut view = View::pin(self.store, std::mem::take(&mut self.nodes));
        if !std::mem::replace(&mut self.begun, true) {
            // Taken from the back.
            self.left = vec![(TreeKind::Database, view.root.db.pages), (TreeKind::Space, view.root.space.pages)];
        }
        let begin = Instant::now();
        let mut visited = 0;
        while let Some((kind, end)) = self.left.last().copied() {
            let Some((place, entry)) = view.next(kind, self.after)?.filter(|(place, _)| place.first < end) else {
                self.left.pop();
                self.after = None;
                continue;
            };
            self.after = Some(place);
            visited += 1;
            let goes_on = visit(&view.unit(kind, place, &entry))?;
            if !goes_on || visited >= CHUNK_UNITS || begin.elapsed() >= CHUNK_TIME {
                break;
            }
        }
        self.nodes = view.release();
        Ok(!self.left.is_empty())
    }
}

//! The page store: everything of a volume that lies in the data area, and the commit that makes it durable.
//!
//! * **Pages** of the metadata database are written copy-on-write. A [`tree`] of map nodes holds each page's address,
//!   write identity, tag and birth generation, so the root authenticates every page.
//! * **Space** is a second such tree, whose pages are the regions of the [`Bitmap`].
//! * **Data** blocks are sealed one by one. Their tags lie in the extents' rows, hence in pages.
//! * A **commit** publishes all three at once.
//!
//! The store does not know what the tables mean ([`meta`](crate::meta), [`fs`](crate::fs)), nor what a replica is
//! ([`mirror`]).
//!
//! # What a commit does
//!
//! [`Store::stage`] takes, under the metadata lock, the pages that SQLite handed over and the runs that the batch put
//! in use or freed. [`Store::commit`] then, without that lock:
//!
//! 1. takes fresh blocks for the pages, for the map nodes above them, for the space pages that all of this changes, and
//!    for the nodes above those (until nothing changes any more: each is taken at most once). [`room`] has seen to it
//!    that there are enough;
//! 2. seals them from the leaves up, and queues them as few long runs behind the data;
//! 3. flushes every replica;
//! 4. writes the root, twice, to every replica, as writes that are durable when they are done.
//!
//! A small commit does steps 3 and 4 at once, with one flush ([`provisional`]).
//!
//! Nothing that the previous root refers to is overwritten. What the batch frees becomes available after step 4, and
//! only when no reader that began before the commit is left.
//!
//! A failure after step 1 poisons the store: it goes on for readers and refuses every change, because what reached the
//! devices is not known. Want of space in step 1 poisons nothing: what was planned is undone, and the batch waits for
//! the next commit.
//!
//! # Two ways of refusing changes
//!
//! | | poisoned | lacking ([`Quorum`]) |
//! |---|---|---|
//! | because | a commit failed midway, the metadata failed, or it was asked for | the policy asks for more replicas in sync |
//! | users' changes | refused | refused |
//! | what was answered before | lost with the memory of this mount | committed to the replicas in sync; metadata is kept in memory while there is none, and data is where the devices took it |
//! | ends | when the volume is opened again from the last root | when enough replicas are in sync |
//!
//! A store that lacks is poisoned when all replicas are back and what they took does not verify
//! (`volume::members::resync`).
//!
//! # Lock order
//!
//! metadata (in `fs`) → commit → staging → tree → space → readers; the published root; [`Quorum`] → the replica set. No
//! I/O happens under staging, space, readers, the published root or the quorum. A [`view`] takes only the locks of the
//! readers and of the published root, one after the other.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::crypto::{self, Keys, random_bytes};
use crate::label::{Lineage, MountId, Root};
use crate::mirror::quorum::{Quorum, Stamp};
use crate::mirror::{self, Mirror};
use crate::problem::Code;
use crate::space::{Allocator, Bitmap, Contradiction};
use crate::units::{BLOCK_SIZE, Generation, Run, Tag, Uuid, WriteId};

mod commit;
mod data;
mod lost;
pub mod provisional;
mod readers;
pub mod room;
#[cfg(test)]
mod tests;
pub mod tree;
mod unit;
mod vfs;
pub mod view;

pub use commit::StagedBatch;
pub use data::{Extent, Part};
pub use readers::ReadGuard;
pub use unit::{Finding, Unit};
pub use vfs::{describe, is_integrity, leave_out, unreadable_page};

use lost::Lost;
pub use lost::{LOST_MAX, LostList, SOME_NODE};
use provisional::Written;
use readers::Readers;
use room::Space;
use tree::{Tree, TreeKind};
use view::{Nodes, Units, View};

/// What went wrong below the metadata.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume is full.
    #[error("no space left on the volume")]
    NoSpace,
    /// The volume takes no changes.
    #[error("the volume is read-only: {0}")]
    ReadOnly(String),
    /// A block that no replica can give.
    #[error("integrity: {0}")]
    Integrity(String),
    /// No replica could be reached.
    #[error("input/output: {0}")]
    Io(String),
    /// The structures contradict each other.
    #[error("the volume's structures contradict each other: {0}")]
    Corrupt(String),
    /// The system has no random bytes.
    #[error(transparent)]
    Crypto(#[from] crypto::Error),
    /// SQLite refused to open the database.
    #[error("metadata database: {}", describe(.0))]
    Database(#[from] rusqlite::Error),
}

impl Error {
    /// Whether what was read is not what was written.
    pub fn is_integrity(&self) -> bool {
        match self {
            Self::Integrity(_) | Self::Corrupt(_) => true,
            Self::Database(error) => is_integrity(error),
            _ => false,
        }
    }
}

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, Error>;

impl From<mirror::Error> for Error {
    fn from(error: mirror::Error) -> Self {
        match error {
            mirror::Error::NoReplica(_) => Self::ReadOnly(error.to_string()),
            mirror::Error::Integrity { .. } => Self::Integrity(error.to_string()),
            mirror::Error::Unreadable { .. } => Self::Io(error.to_string()),
        }
    }
}

impl From<Contradiction> for Error {
    fn from(error: Contradiction) -> Self {
        Self::Corrupt(error.to_string())
    }
}

/// One page of the metadata database.
pub type Page = [u8; BLOCK_SIZE];

/// Space of the volume, in blocks of 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Blocks in the data area.
    pub total_blocks: u64,
    /// Blocks that can be taken now.
    pub free_blocks: u64,
    /// Of these, blocks kept back for metadata.
    pub reserved_blocks: u64,
}

/// On whose account blocks of data are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// Of whoever wants to write: what is kept back for metadata is not touched.
    Users,
    /// Of data that was accepted before: a quarter of what is kept back serves too, unless less than the least would be
    /// left.
    Accepted,
    /// Of data that takes the place of other data: half of what is kept back serves, unless less than the least would be
    /// left. The next commit gives it back.
    InPlace,
}

/// The store of an open volume.
pub struct Store {
    mirror: Arc<Mirror>,
    keys: Keys,
    volume: Uuid,
    /// This mount.
    mount: MountId,
    /// The mounts before it.
    lineage: Lineage,
    /// Size of each replica's device as its label says: where label area B is.
    device_bytes: Vec<AtomicU64>,
    counter: AtomicU64,
    /// Regions of the space map.
    regions: u64,
    space: Mutex<Space>,
    batch: Mutex<Batch>,
    staging: Mutex<Staging>,
    db: RwLock<Tree>,
    commit: Mutex<CommitState>,
    /// The newest durable root. Written by commits alone, and read without waiting for one.
    published: Mutex<Root>,
    /// Generation of the newest durable root. It is stored after the root, so whoever reads the generation first and
    /// the root second finds a root that is not older.
    generation: AtomicU64,
    readers: Readers,
    poisoned: OnceLock<(Code, String)>,
    quorum: Quorum,
    lost: Lost,
    /// Is told of a root that no longer names a replica, before anybody is answered.
    on_departure: OnceLock<OnDeparture>,
}

/// Makes sure that a replica which a root no longer names cannot pass for the volume. Says why it could not.
pub type OnDeparture = Box<dyn Fn(&Store) -> std::result::Result<(), String> + Send + Sync>;

/// Runs that the batch being filled put in use or freed.
#[derive(Default)]
struct Batch {
    published: Vec<Run>,
    freed: Vec<Run>,
    abandoned: Vec<Run>,
    written: Written,
}

/// Pages that SQLite handed over and that are not yet in the map.
struct Staging {
    /// Of the batch being filled.
    current: HashMap<u64, Arc<Page>>,
    /// Of the batch being committed.
    committing: Arc<HashMap<u64, Arc<Page>>>,
    /// Length of the database, in pages.
    db_pages: u64,
}

/// What only a commit touches.
struct CommitState {
    persisted: Bitmap,
    space_tree: Tree,
    /// Runs that a commit freed, with its generation: they wait for earlier readers to end.
    releasing: VecDeque<(u64, Vec<Run>)>,
}

/// How a store is opened.
pub struct StoreOptions {
    /// The volume's keys.
    pub keys: Keys,
    /// The volume.
    pub volume: Uuid,
    /// Blocks in the data area.
    pub total_blocks: u64,
    /// Size in bytes of each replica's device, as its label says.
    pub device_bytes: Vec<u64>,
    /// The root to go on from; generation 0 and empty trees for a new volume.
    pub root: Root,
    /// The epoch of this mount: greater than any that was ever used. It is durable before anything is written, but for
    /// the very first commit, which writes it.
    pub epoch: u32,
}

impl Store {
    /// Opens what `root` describes. When no replica has a part of the space tree, the store is poisoned, and can be read.
    ///
    /// # Errors
    /// When the space tree contradicts the volume's size.
    pub fn open(mirror: Arc<Mirror>, options: StoreOptions) -> Result<Arc<Self>> {
        let StoreOptions { keys, volume, total_blocks, mut device_bytes, root, epoch } = options;
        // A device may be enrolled later.
        device_bytes.resize(device_bytes.len().max(crate::limits::REPLICAS_MAX), 0);
        let mut persisted = Bitmap::new(total_blocks);
        let mut space_tree = Tree::from_ref(TreeKind::Space, &root.space);
        let (mut failed, mut lost) = (None, None);
        for region in 0..persisted.regions().min(space_tree.pages()) {
            let reader = tree::NodeReader { mirror: &mirror, keys: &keys, volume };
            let mut page = Box::new([0; BLOCK_SIZE]);
            let found = space_tree.get(region, &reader).and_then(|entry| {
                entry.map(|entry| reader.page(TreeKind::Space, region, &entry, &mut page)).transpose()
            });
            match found {
                Ok(None) => {}
                Ok(Some(())) => failed = persisted.load(region, page.as_slice()).err().or(failed),
                // Only what is written needs the map.
                Err(error @ (Error::Integrity(_) | Error::Io(_))) => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        let db = Tree::from_ref(TreeKind::Database, &root.db);
        let first_counter = u64::from_le_bytes(random_bytes()?) >> 1;
        let mount = MountId { epoch, nonce: u64::from_le_bytes(random_bytes()?) };
        let stamp = Stamp::of(&root);
        let quorum = Quorum::new(mirror.clone(), stamp);
        let staging = Staging { current: HashMap::new(), committing: Arc::default(), db_pages: db.pages() };
        let store = Self {
            mirror,
            keys,
            volume,
            mount,
            lineage: root.lineage_after(),
            device_bytes: device_bytes.into_iter().map(AtomicU64::new).collect(),
            // A random beginning, besides the epoch. Two histories may go on from one state, each by itself: both were
            // restored from one backup, say. They do not use one nonce twice either.
            counter: AtomicU64::new(first_counter),
            regions: persisted.regions(),
            space: Mutex::new(Space::new(Allocator::new(persisted.clone()))),
            batch: Mutex::default(),
            staging: Mutex::new(staging),
            db: RwLock::new(db),
            generation: AtomicU64::new(root.generation.0),
            published: Mutex::new(root),
            commit: Mutex::new(CommitState { persisted, space_tree, releasing: VecDeque::new() }),
            readers: Readers::default(),
            poisoned: OnceLock::new(),
            quorum,
            lost: Lost::default(),
            on_departure: OnceLock::new(),
        };
        if let Some(error) = lost {
            store.poison_because(Code::FilesystemDamaged, format!("which blocks are free is lost: {error}"));
        }
        Ok(Arc::new(store))
    }

    /// Opens the metadata database: SQLite over the pages of this store.
    ///
    /// # Errors
    /// SQLite's.
    pub fn open_database(self: &Arc<Self>) -> Result<rusqlite::Connection> {
        vfs::open(self)
    }

    /// The replica set.
    pub fn mirror(&self) -> &Arc<Mirror> {
        &self.mirror
    }

    /// Size of a replica's device as its label says; 0 when there is none.
    pub fn device_bytes(&self, index: usize) -> u64 {
        self.device_bytes.get(index).map_or(0, |bytes| bytes.load(Ordering::Acquire))
    }

    /// Notes the size that a label says, when its device is about to become replica `index`.
    pub fn set_device_bytes(&self, index: usize, bytes: u64) {
        if let Some(known) = self.device_bytes.get(index) {
            known.store(bytes, Ordering::Release);
        }
    }

    /// The last durable generation.
    pub fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// Space of the volume.
    pub fn usage(&self) -> Usage {
        self.space.lock().usage()
    }

    /// What the policy asks of the replicas together, and what the next root records of the documents in force.
    pub fn quorum(&self) -> &Quorum {
        &self.quorum
    }

    /// Whether users' changes are possible: the store is not poisoned, and the policy lets the replicas that are in
    /// sync at this moment take writes together. The policy's refusal ends by itself once enough replicas are in sync
    /// again.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] with the reason when not.
    pub fn writable(&self) -> Result<()> {
        self.unpoisoned()?;
        self.quorum.allows().map_err(Error::ReadOnly)
    }

    /// Whether the volume's own changes are possible. They do not wait for the policy's number of replicas: what was
    /// answered before is committed to the replicas that are left, and a resync is what brings the others back.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] with the reason when not.
    pub fn committable(&self) -> Result<()> {
        self.unpoisoned()?;
        if self.mirror.in_sync() == 0 { Err(Error::ReadOnly(self.mirror.nothing_in_sync())) } else { Ok(()) }
    }

    fn unpoisoned(&self) -> Result<()> {
        self.poisoned().map_or(Ok(()), |reason| Err(Error::ReadOnly(reason.to_owned())))
    }

    /// Why the volume takes no change until it is mounted again; nothing when what refuses changes can end by itself.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.get().map(|(_, reason)| reason.as_str())
    }

    /// The code of what refuses changes, when something does.
    pub fn read_only_code(&self) -> Code {
        self.poisoned.get().map_or(Code::ReadOnly, |(code, _)| *code)
    }

    /// Makes the volume read-only for good; the first reason stays.
    pub fn poison(&self, reason: String) {
        self.poison_because(Code::ReadOnly, reason);
    }

    /// As [`Store::poison`], for a reason that has a code of its own.
    pub fn poison_because(&self, code: Code, reason: String) {
        if self.poisoned.get().is_none() {
            log::error!("the volume is read-only until it is mounted again: {reason}");
        }
        // The first reason is the cause, later ones are consequences.
        let _ = self.poisoned.set((code, reason));
    }

    /// As [`Store::poison`], when being read-only is what was asked for.
    pub fn poison_quietly(&self, reason: String) {
        let _ = self.poisoned.set((Code::ReadOnly, reason));
    }

    /// From now on, a commit whose root no longer names a replica is answered only when `f` has agreed. If it does not,
    /// the store is poisoned.
    pub fn on_departure(&self, f: OnDeparture) {
        // Set once, by whoever opens the volume.
        let _ = self.on_departure.set(f);
    }

    /// Whether `error` says that no replica has something, although there are replicas that should.
    pub fn is_loss(&self, error: &Error) -> bool {
        match error {
            Error::Integrity(_) | Error::Corrupt(_) => true,
            Error::Io(_) => self.mirror.in_sync() != 0,
            _ => false,
        }
    }

    /// The newest durable root. Never waits for a commit.
    pub fn root(&self) -> Root {
        *self.published.lock()
    }

    /// Whether the newest durable root was written together with its commit's blocks ([`provisional`]).
    pub fn is_provisional(&self) -> bool {
        self.published.lock().provisional.is_some()
    }

    /// The trees at the newest durable root, read-only.
    pub fn view(&self) -> View<'_> {
        View::pin(self, Nodes::default())
    }

    /// A traversal of every node and page of both trees.
    pub fn units(&self) -> Units<'_> {
        Units::new(self)
    }

    /// The same, from where another one was.
    pub fn units_behind(&self, cursor: view::Cursor) -> Units<'_> {
        Units::behind(self, cursor)
    }

    /// Whether a commit would make blocks available that are taken at this moment.
    pub fn has_unreleased(&self) -> bool {
        let batch = self.batch.lock();
        !batch.freed.is_empty() || !batch.abandoned.is_empty() || self.readers.waiting()
    }

    /// A reader of extents: blocks freed from now on are not used again until the reader is dropped. To be taken before
    /// the extents are looked up.
    pub fn reader(&self) -> ReadGuard<'_> {
        self.readers.enter(&self.generation)
    }

    /// Identities for `count` units in a row.
    fn identities(&self, count: u64) -> WriteId {
        WriteId { epoch: self.mount.epoch, counter: self.counter.fetch_add(count, Ordering::Relaxed) }
    }

    fn node_reader(&self) -> tree::NodeReader<'_> {
        tree::NodeReader { mirror: &self.mirror, keys: &self.keys, volume: self.volume }
    }

    /// Reads a page of the database: from the batch being filled, from the one being committed, or from the devices.
    /// A page that was never written is zero.
    ///
    /// # Errors
    /// When no replica has the page, or the map leads nowhere.
    pub(crate) fn read_page(&self, no: u64, out: &mut Page) -> Result<()> {
        let _reader = self.reader();
        {
            let staging = self.staging.lock();
            if let Some(page) = staging.current.get(&no).or_else(|| staging.committing.get(&no)) {
                out.copy_from_slice(&page[..]);
                return Ok(());
            }
        }
        let reader = self.node_reader();
        let known = self.db.read().known(no);
        let entry = known.map_or_else(|| self.db.write().get(no, &reader), Ok);
        let read = match &entry {
            Ok(Some(entry)) => reader.page(TreeKind::Database, no, entry, out),
            Ok(None) => {
                out.fill(0);
                Ok(())
            }
            Err(_) => Ok(()),
        };
        // Where a node is lost, its block is not told.
        let addr = entry.as_ref().ok().and_then(|entry| entry.map(|entry| entry.addr));
        let read = entry.and(read);
        match (&read, addr) {
            (Err(error), addr) => {
                self.note_loss(error, Some(addr.unwrap_or(SOME_NODE)), None);
            }
            (Ok(()), Some(addr)) => self.forget_lost(Run::new(addr, 1)),
            (Ok(()), None) => {}
        }
        read
    }

    /// Takes a page from SQLite; it becomes durable with the batch.
    pub(crate) fn stage_page(&self, no: u64, page: Arc<Page>) {
        let mut staging = self.staging.lock();
        staging.db_pages = staging.db_pages.max(no + 1);
        staging.current.insert(no, page);
    }

    /// Length of the database in pages.
    pub(crate) fn database_pages(&self) -> u64 {
        self.staging.lock().db_pages
    }
}

/// A tag of zeros, for entries that are being filled.
const NO_TAG: Tag = [0; 16];

type Pages = BTreeMap<u64, Arc<Page>>;

//! The filesystem: inodes, names, attributes and the content of files, as POSIX has them.
//!
//! It knows nothing of FUSE, which is [`crate::fuse`]'s, nor of devices and replicas, which are below [`pages`].
//! Permissions are the kernel's (`default_permissions`); everything else of POSIX is here. The tables are
//! [`crate::meta`]'s.
//!
//! # Ownership and lifetimes
//!
//! An inode's row lives as long as the inode has a name or the kernel knows it. The kernel knows an inode while a file
//! is open, and counts lookups: each call that returns an [`Attr`] for a name counts one, and [`Fs::forget`] takes them
//! back. A table of references holds these counts.
//!
//! When the last name goes, the row stays with `nlink` 0, as an *orphan*. The call that takes back the last reference
//! frees the orphan (`reap`). References are not on the devices: after a crash nobody holds an orphan, so [`Fs::open`]
//! frees all of them.
//!
//! A file's blocks belong to the rows of `extent`. Blocks that were written but are not yet in a row belong to the
//! running call, which publishes them with the row or abandons them. A truncation that frees more than 128 extents
//! first commits itself to it with a row of `trim`; the next mount finishes what a crash interrupts.
//!
//! # Lock order
//!
//! 1. a **stripe** of `stripes`, chosen by inode number: content of the files in it. Shared: aligned writes of whole
//!    blocks. Exclusive: everything that must read before it writes (partial blocks, reserved blocks), truncation,
//!    allocation. Reads take none: they see the extents of one moment, and hold a [`pages::ReadGuard`].
//! 2. `commit`: held by the one commit in flight.
//! 3. `meta`: the tables, and "which blocks they refer to" in the page store.
//! 4. `references`.
//!
//! A call never waits for a lock that is above one it holds, and never holds two stripes. Sealing and device transfers
//! happen under no lock but a stripe. The order of all locks of the program is in the crate's own page ([`crate`]).
//!
//! # Times
//!
//! The access time is set when an inode is made and by utimensat(2). Reading does not change it, as with the mount
//! option `noatime`. Modification and change times are POSIX's.

pub mod acl;
mod attr;
mod audit;
mod commit;
mod data;
mod error;
mod lost;
mod mapping;
mod meters;
mod names;
mod provenance;
mod references;
mod rename;
mod resize;
pub mod room;
mod scan;
mod scrub;
#[cfg(test)]
mod tests;
mod xattr;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use crate::meta::{KEPT_SCRUB_BYTES_MAX, KeptScrub, Kind, Time};
pub use attr::{SetAttr, SetTime, StatFs};
pub use error::{Error, Result};
pub use meters::Meters;
pub use names::DirEntry;
pub use rename::RenameFlags;
pub use resize::{COPY_MAX, Seek};
pub use scan::Scanned;
pub use xattr::RESERVED as RESERVED_XATTRS;

use crate::{
    limits::XATTR_VALUE_MAX,
    meta::{Inode, Meta, S_IFMT, Tx, View, Weight},
    pages::{self, Account, Store},
    problem::Code,
    units::{BLOCK_SIZE, Ino, to_usize},
};
use commit::Committed;
use mapping::Mappings;
pub use references::Orphan;
use references::References;
use room::Refused;

/// Locks for the content of files: more than threads, so that two files seldom share one.
const STRIPES: usize = 1024;

/// Most extents that are freed without letting go of the metadata.
const STEP: usize = 128;

/// What every operation may change: a name, and the inodes of a few objects, each of which counts as two rows.
const FEW: Weight = Weight::rows(8);

/// What an operation may change that makes something, or that moves a name. A new object can inherit two ACLs, each of
/// which counts as four rows.
const ORDINARY: Weight = Weight { bytes: 2 * XATTR_VALUE_MAX as u64, ..Weight::rows(FEW.rows + 12) };

/// Most operations of a batch. What waits in memory is one batch, and the one that is being committed. While a device
/// does not answer, callers wait for the commit in flight instead of filling the memory. The wait ends when the device
/// is fenced.
const BATCH_OPERATIONS_MAX: u64 = 1 << 15;

/// Most bytes of long values in a batch.
const BATCH_BYTES_MAX: u64 = 64 << 20;

/// How often the filesystem waits for freed blocks that readers still hold, before the volume counts as full. It waits
/// a millisecond, then twice as long each time, two seconds in all. On a busy machine a reader's thread may not run for
/// some hundred milliseconds.
const SPACE_ATTEMPTS: u32 = 11;

/// How often of these it waits for removed files that the kernel still knows: a tenth of a second in all. The kernel
/// forgets a file a moment after it was removed, unless a program has it open.
const ORPHAN_ATTEMPTS: u32 = 6;

/// The same before a commit that has hardly any room; a quarter of a second in all.
const ROOM_ATTEMPTS: u32 = 8;

/// On whose behalf something is created.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// File mode creation mask, which a default ACL replaces.
    pub umask: u32,
}

/// What stat(2) says of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Number.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// `st_mode`: type and permission bits.
    pub mode: u32,
    /// Number of names (for a folder, 2 plus one for each folder in it).
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Bytes. A folder says one block, a symbolic link the length of its target.
    pub size: u64,
    /// Allocated space, in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
}

impl From<&Inode> for Attr {
    fn from(inode: &Inode) -> Self {
        Self {
            ino: inode.ino,
            kind: inode.kind(),
            mode: inode.mode,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            size: if inode.is_dir() { BLOCK_SIZE as u64 } else { inode.size },
            blocks: inode.blocks * (BLOCK_SIZE as u64 / 512),
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
            btime: inode.btime,
        }
    }
}

/// An open filesystem.
pub struct Fs {
    store: Arc<Store>,
    stripes: Box<[RwLock<()>]>,
    commit: Mutex<Committed>,
    meta: Mutex<Meta>,
    references: Mutex<References>,
    mappings: Mappings,
    /// Orphans that somebody is still freeing.
    unfreed: AtomicUsize,
    refused: Refused,
    /// Operations done since the mount. Written under `meta`.
    changes: AtomicU64,
    /// Number of the last operation that a user asked for; the volume's own operations do not count.
    asked: AtomicU64,
    /// `changes` when the last commit took the tables over. Written under `meta`.
    staged: AtomicU64,
    /// `changes` when the last durable commit took the tables over.
    durable: AtomicU64,
    /// When the first operation was done that no commit has taken over yet; none when there is no such operation.
    dirty_since: Mutex<Option<Instant>>,
    meters: Meters,
}

impl Fs {
    /// Makes the tables and the root folder on an empty store. Nothing is durable before [`Fs::sync`].
    ///
    /// # Errors
    /// Of the store or of SQLite.
    pub fn format(store: Arc<Store>, root_mode: u32, uid: u32, gid: u32) -> Result<Self> {
        let meta = Meta::create(store.open_database()?)?;
        let fs = Self::assemble(store, meta);
        let root = root_folder(root_mode, uid, gid, now());
        fs.change(|tx| Ok(tx.insert_inode(&root, None)?))?;
        Ok(fs)
    }

    /// Opens the filesystem on a store, and frees what a crash left without a name.
    ///
    /// If no replica has the row of the root folder, the volume can only be read, by root alone: everything but the owner
    /// and mode of that folder is there. Without the page for the rows of new inodes it can only be read, too.
    ///
    /// # Errors
    /// Of the store, of SQLite, or of damaged metadata.
    pub fn open(store: Arc<Store>) -> Result<Self> {
        let meta = Meta::open(store.open_database()?)?;
        let fs = Self::assemble(store, meta);
        match fs.existing(Ino::ROOT) {
            Err(error) if error.is_unreadable_page() => {
                let why = format!("the owner and mode of the root folder are lost: {error}");
                fs.store.poison_because(Code::FilesystemDamaged, why);
                fs.meta().stand_in(&root_folder(0o700, 0, 0, Time::default()));
            }
            found => found.map(|_| ())?,
        }
        // The rows of new inodes reach the table with a commit, and one that fails would be the end of all changes.
        match fs.view(|view| Ok(view.inode(Ino(u64::MAX >> 1))?)) {
            Err(error) if error.is_unreadable_page() => {
                let why = format!("the table of inodes has no place for a new one, because its end is lost: {error}");
                fs.store.poison_because(Code::FilesystemDamaged, why);
            }
            found => found.map(|_| ())?,
        }
        fs.recall_lost();
        if fs.store.writable().is_ok() {
            // Orphans and rows of `trim` cost only space, and the next mount tries again.
            if let Err(error) = fs.finish_interrupted() {
                log::error!("what an interrupted removal left is not freed yet: {error}");
            }
        }
        Ok(fs)
    }

    fn assemble(store: Arc<Store>, meta: Meta) -> Self {
        Self {
            store,
            stripes: (0..STRIPES).map(|_| RwLock::new(())).collect(),
            commit: Mutex::default(),
            meta: Mutex::new(meta),
            references: Mutex::default(),
            mappings: Mappings::default(),
            unfreed: AtomicUsize::new(0),
            refused: Refused::default(),
            changes: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            staged: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            dirty_since: Mutex::new(None),
            meters: Meters::default(),
        }
    }

    /// Compares the tables with each other. Returns what is wrong, one sentence each.
    ///
    /// # Errors
    /// Of SQLite.
    pub fn self_check(&self) -> Result<Vec<String>> {
        Ok(self.meta().self_check()?)
    }

    /// How long the filesystem's work has taken since it was opened.
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// The page store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The metadata. A panic while it was held left at worst an open savepoint, which the next operation's end takes
    /// along or the next commit refuses. A release build aborts instead.
    fn meta(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock()
    }

    fn stripe(&self, ino: Ino) -> &RwLock<()> {
        &self.stripes[to_usize(ino.0) % STRIPES]
    }

    fn shared(&self, ino: Ino) -> RwLockReadGuard<'_, ()> {
        self.stripe(ino).read()
    }

    fn exclusive(&self, ino: Ino) -> RwLockWriteGuard<'_, ()> {
        self.stripe(ino).write()
    }

    /// Returns when every write whose blocks were sealed before the call has put them in the file's rows, or abandoned
    /// them. That takes as long as the longest operation that holds a file's content. The caller holds no lock and no
    /// reader.
    pub fn wait_for_writers(&self) {
        for stripe in &self.stripes {
            drop(stripe.write());
        }
    }

    /// Reads the tables.
    fn view<T>(&self, f: impl FnOnce(&View<'_>) -> Result<T>) -> Result<T> {
        self.meters.lookup.time(0, || self.meta().read(f))
    }

    /// The inode's row.
    fn existing(&self, ino: Ino) -> Result<Inode> {
        self.view(|view| existing(view, ino))
    }

    /// To be called before an operation takes any lock. Refuses when the store takes no writes.
    fn admit(&self) -> Result<()> {
        Ok(self.store.writable()?)
    }

    /// As [`Fs::admit`], for an operation that takes space: some must be free beyond what is reserved.
    fn admit_growth(&self) -> Result<()> {
        self.admit()?;
        self.with_space(1, || Ok(()))
    }

    /// Takes `blocks` blocks of space with `take`, unless that would touch what is reserved.
    ///
    /// Freed blocks become available with the next commit that no reader outlives. So this commits, and tries again,
    /// before it says that the volume is full. It also waits for files that were removed and are not yet freed.
    fn with_space<T>(&self, blocks: u64, take: impl Fn() -> pages::Result<T>) -> Result<T> {
        self.with_space_of(Account::Users, blocks, take)
    }

    fn with_space_of<T>(&self, account: Account, blocks: u64, take: impl Fn() -> pages::Result<T>) -> Result<T> {
        let attempt = || if self.store.room_for_data(account) < blocks { Err(Error::NoSpace) } else { Ok(take()?) };
        let mut seen = self.store.generation();
        let mut outcome = attempt();
        for tried in 0..SPACE_ATTEMPTS {
            if !outcome.as_ref().is_err_and(Error::is_no_space) {
                break;
            }
            let comes = tried < ORPHAN_ATTEMPTS && self.references().hold_orphans();
            let released = self.release_space(account, seen)? || comes;
            if tried > 0 && released {
                // A reader outlived the commit. It ends when its blocks have come from a device.
                thread::sleep(Duration::from_millis(1 << tried));
            }
            // One more attempt in any case: a commit that was in flight at the last attempt is over now.
            seen = self.store.generation();
            outcome = attempt();
            if !released {
                break;
            }
        }
        outcome
    }

    /// Blocks that users may still take.
    fn available(&self) -> u64 {
        self.store.room_for_data(Account::Users)
    }

    /// Does one operation on the tables: all of it or, on an error, nothing. It is an operation on few rows
    /// ([`ORDINARY`]).
    ///
    /// # Errors
    /// Of `f`; [`Error::NoSpace`], before `f` is called.
    fn change<T>(&self, f: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> Result<T> {
        self.change_at_most(ORDINARY, f)
    }

    /// As [`Fs::change`], for an operation that changes at most this.
    fn change_at_most<T>(&self, weight: Weight, f: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> Result<T> {
        let (value, number) = self.change_numbered(weight, f)?;
        self.asked.fetch_max(number, Ordering::AcqRel);
        Ok(value)
    }

    /// As [`Fs::change_at_most`], and returns the number of the operation. Not for an operation that a user asked for:
    /// the user may ask whether it is on as many replicas as the policy wants, and only [`Fs::change_at_most`] notes that
    /// in `asked`.
    fn change_numbered<T>(&self, weight: Weight, f: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> Result<(T, u64)> {
        self.meters.change.time(0, || self.change_unmetered(weight, f))
    }

    /// As [`Fs::change_numbered`], for what the volume does by itself while it works for somebody: no application waits
    /// for it.
    fn change_unmetered<T>(&self, weight: Weight, f: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> Result<(T, u64)> {
        let mut meta = self.meta_with_room(weight)?;
        let before = meta.waiting(Weight::default());
        let (value, blocks) = meta.op(f)?;
        debug_assert!(meta.waiting(Weight::default()).is_within(before.plus(weight)), "more than {weight:?}");
        for run in blocks.published {
            self.store.publish(run);
        }
        for run in blocks.freed {
            self.store.free(run);
        }
        self.store.wrote(&blocks.written);
        for ino in blocks.files {
            self.mappings.changed(ino);
        }
        let before = self.changes.fetch_add(1, Ordering::Relaxed);
        if before == self.staged.load(Ordering::Relaxed) {
            *self.dirty_since.lock() = Some(Instant::now());
        }
        Ok((value, before + 1))
    }

    /// The tables, with room for an operation of this weight beside those that wait for a commit. When there is too
    /// little, commits first, and waits for readers that hold what commits have freed.
    fn meta_with_room(&self, weight: Weight) -> Result<MutexGuard<'_, Meta>> {
        let mut tried = 0;
        while tried <= ROOM_ATTEMPTS {
            let mut meta = self.meta();
            if self.is_batch_full(&meta) {
                drop(meta);
                self.relieve()?;
                continue;
            }
            if self.owe(&meta, weight) {
                return Ok(meta);
            }
            // Counted instead of guessed, it may fit.
            meta.settle()?;
            if self.owe(&meta, weight) {
                return Ok(meta);
            }
            drop(meta);
            if tried > 0 {
                if !self.store.has_unreleased() {
                    break;
                }
                thread::sleep(Duration::from_millis(1 << tried));
            }
            match self.checkpoint() {
                Err(error) if !error.is_no_space() => return Err(error),
                _ => tried += 1,
            }
        }
        Err(Error::NoSpace)
    }

    /// Whether so much waits for the next commit that nothing may be added.
    fn is_batch_full(&self, meta: &Meta) -> bool {
        let operations = self.changes.load(Ordering::Relaxed).saturating_sub(self.staged.load(Ordering::Relaxed));
        operations >= BATCH_OPERATIONS_MAX || meta.waiting(Weight::default()).bytes >= BATCH_BYTES_MAX
    }

    fn owe(&self, meta: &Meta, weight: Weight) -> bool {
        self.store.owe(|database| meta.waiting(weight).pages(database))
    }

    /// Most extents that one operation removes: fewer where room for metadata is short.
    fn step(&self) -> usize {
        let (room, database) = (self.store.room_for_a_step(), self.store.database_pages());
        let mut step = STEP;
        while step > 1 && removal(step).pages(database) > room {
            step /= 2;
        }
        step
    }

    fn references(&self) -> MutexGuard<'_, References> {
        self.references.lock()
    }
}

/// What an operation changes that removes at most `step` extents of a file.
fn removal(step: usize) -> Weight {
    FEW.plus(Weight::removed_extents(step as u64))
}

/// The row of an empty root folder.
fn root_folder(mode: u32, uid: u32, gid: u32, time: Time) -> Inode {
    Inode {
        ino: Ino::ROOT,
        mode: Kind::Directory.mode() | mode & 0o7777,
        uid,
        gid,
        nlink: 2,
        rdev: 0,
        parent: Ino::ROOT.0,
        flags: 0,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
    }
}

/// The inode's row, or [`Error::Stale`].
fn existing(view: &View<'_>, ino: Ino) -> Result<Inode> {
    view.inode(ino)?.ok_or(Error::Stale)
}

/// The row of a folder, or [`Error::NotDirectory`].
fn folder(view: &View<'_>, ino: Ino) -> Result<Inode> {
    let inode = existing(view, ino)?;
    if inode.is_dir() { Ok(inode) } else { Err(Error::NotDirectory) }
}

/// The row of a folder that still has a name, so that names may be added to it.
fn living_folder(view: &View<'_>, ino: Ino) -> Result<Inode> {
    let inode = folder(view, ino)?;
    if inode.nlink > 0 { Ok(inode) } else { Err(Error::NotFound) }
}

/// The row of a regular file.
fn file(view: &View<'_>, ino: Ino) -> Result<Inode> {
    let inode = existing(view, ino)?;
    match inode.mode & S_IFMT {
        mode if mode == Kind::File.mode() => Ok(inode),
        mode if mode == Kind::Directory.mode() => Err(Error::IsDirectory),
        _ => Err(Error::Invalid),
    }
}

/// The time of the clock that the kernel stamps with, which moves once a tick. A file's times come from the kernel
/// (with its writeback cache) or from here, and must be in the order of what happened.
fn now() -> Time {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Time { s: time.tv_sec, ns: u32::try_from(time.tv_nsec).unwrap_or_default() }
}

const _: () = assert!(pages_are_shared());

/// [`Fs`] is used by several threads at once.
const fn pages_are_shared() -> bool {
    const fn shared<T: Send + Sync>() {}
    shared::<Fs>();
    shared::<pages::Store>();
    true
}

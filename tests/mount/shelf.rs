//! Disks that forget, for the real daemon: files of a small FUSE filesystem, meant for loop devices.
//!
//! A disk keeps what it is written in memory until it is told to flush. The power of the whole shelf fails at a chosen
//! change, counted over all its disks. From then on nothing is answered, so that nobody who was answered is wrong. When the
//! power returns, a disk shows what it had flushed and any subset of the rest, torn at 512 bytes.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use scelle::device::memory::Disk;

use crate::support::images::Survival;
use crate::support::rng::Rng;

/// Nothing here ever changes its name or size.
const TTL: Duration = Duration::from_secs(1 << 20);

/// Files are numbered from here.
const FIRST: u64 = 2;

#[derive(Clone)]
struct Slot {
    shown: Disk,
    durable: Disk,
    pending: Vec<(u64, Arc<[u8]>)>,
}

/// An answer that is held back.
type Answer = Box<dyn FnOnce() + Send>;

enum Power {
    On,
    /// Nobody is answered.
    Failing(Vec<Answer>),
    /// Everybody is told that there is nothing.
    Off,
}

struct State {
    disks: Vec<Slot>,
    power: Power,
    changes: u64,
    fails_at: Option<u64>,
    lies: bool,
}

impl State {
    /// A write or a flush comes. Whether it is carried out.
    fn change(&mut self) -> bool {
        self.changes += 1;
        if self.fails_at.is_some_and(|at| self.changes >= at) && matches!(self.power, Power::On) {
            self.power = Power::Failing(Vec::new());
        }
        matches!(self.power, Power::On)
    }

    /// Whoever asks without power waits, or gets nothing.
    fn refuse(&mut self, answer: Answer) {
        match &mut self.power {
            Power::Failing(waiting) => waiting.push(answer),
            Power::On | Power::Off => answer(),
        }
    }
}

type Shared = Arc<Mutex<State>>;

fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all disks hold, and what of it is durable.
#[derive(Clone)]
pub struct Left(Vec<Slot>);

/// Some disks behind one power supply. They go when it is dropped.
pub struct Shelf {
    state: Shared,
    session: Option<BackgroundSession>,
    dir: tempfile::TempDir,
}

impl Shelf {
    pub fn new(count: usize, bytes: u64) -> Self {
        let empty = || Slot { shown: Disk::new(bytes), durable: Disk::new(bytes), pending: Vec::new() };
        let disks = (0..count).map(|_| empty()).collect();
        let state = State { disks, power: Power::On, changes: 0, fails_at: None, lies: false };
        let state = Arc::new(Mutex::new(state));
        let dir = tempfile::Builder::new().prefix("scelle-shelf").tempdir_in("/var/tmp").unwrap();
        let session = fuser::spawn_mount(Files { state: state.clone(), bytes }, dir.path(), &fuser::Config::default());
        Self { state, session: Some(session.unwrap()), dir }
    }

    pub fn images(&self) -> Vec<PathBuf> {
        (0..lock(&self.state).disks.len()).map(|index| self.dir.path().join(index.to_string())).collect()
    }

    /// From now on flushes are answered, and do nothing.
    pub fn lie(&self) {
        lock(&self.state).lies = true;
    }

    /// Writes and flushes so far.
    pub fn changes(&self) -> u64 {
        lock(&self.state).changes
    }

    /// How many writes a disk has not flushed.
    pub fn unflushed(&self, index: usize) -> usize {
        lock(&self.state).disks[index].pending.len()
    }

    /// The power fails after this many changes more.
    pub fn fail_after(&self, changes: u64) {
        let mut state = lock(&self.state);
        state.fails_at = Some(state.changes + 1 + changes);
    }

    /// The power fails now, unless it has.
    pub fn fail(&self) {
        let mut state = lock(&self.state);
        if matches!(state.power, Power::On) {
            state.power = Power::Failing(Vec::new());
        }
    }

    pub fn has_failed(&self) -> bool {
        !matches!(lock(&self.state).power, Power::On)
    }

    /// Whoever waits for an answer gets an error: to be called when nobody is left who could take it for one.
    pub fn let_go(&self) {
        let before = std::mem::replace(&mut lock(&self.state).power, Power::Off);
        if let Power::Failing(waiting) = before {
            waiting.into_iter().for_each(|answer| answer());
        }
    }

    /// What the disks hold, without power.
    pub fn left(&self) -> Left {
        Left(lock(&self.state).disks.clone())
    }

    /// The power returns: the disks have forgotten some of what they had not flushed. Returns what survived.
    pub fn power_on(&self, left: &Left, rng: &mut Rng) -> Vec<Survival> {
        let survival: Vec<Survival> = left.0.iter().map(|_| Survival::draw(rng)).collect();
        self.power_on_with(left, &survival, rng);
        survival
    }

    pub fn power_on_with(&self, left: &Left, survival: &[Survival], rng: &mut Rng) {
        let after = |(slot, survival): (&Slot, &Survival)| survival.apply(&slot.durable, &slot.pending, rng);
        let disks: Vec<Disk> = left.0.iter().zip(survival).map(after).collect();
        let whole = |disk: Disk| Slot { shown: disk.clone(), durable: disk, pending: Vec::new() };
        let mut state = lock(&self.state);
        state.disks = disks.into_iter().map(whole).collect();
        (state.power, state.fails_at) = (Power::On, None);
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.let_go();
        if let Some(Err(error)) = self.session.take().map(BackgroundSession::umount_and_join) {
            eprintln!("{}: {error}", self.dir.path().display());
        }
    }
}

struct Files {
    state: Shared,
    bytes: u64,
}

impl Files {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let is_folder = ino == INodeNo::ROOT;
        let (kind, perm) = if is_folder { (FileType::Directory, 0o700) } else { (FileType::RegularFile, 0o600) };
        let size = if is_folder { 0 } else { self.bytes };
        let times = [UNIX_EPOCH; 4];
        let [atime, mtime, ctime, crtime] = times;
        let (uid, gid, nlink, rdev, flags, blksize) = (0, 0, 1, 0, 0, 4096);
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime,
            mtime,
            ctime,
            crtime,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev,
            blksize,
            flags,
        }
    }
}

fn slot(state: &mut State, ino: INodeNo) -> &mut Slot {
    &mut state.disks[(ino.0 - FIRST) as usize]
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let disks = lock(&self.state).disks.len() as u64;
        match name.to_str().and_then(|name| name.parse::<u64>().ok()) {
            Some(index) if index < disks => {
                reply.entry(&TTL, &self.attr(INodeNo(FIRST + index)), fuser::Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    /// Nothing is kept by the kernel.
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = lock(&self.state);
        if !matches!(state.power, Power::On) {
            return state.refuse(Box::new(move || reply.error(Errno::EIO)));
        }
        let mut bytes = vec![0; u64::from(size).min(self.bytes.saturating_sub(offset)) as usize];
        slot(&mut state, ino).shown.read(offset, &mut bytes);
        reply.data(&bytes);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = lock(&self.state);
        if !state.change() {
            return state.refuse(Box::new(move || reply.error(Errno::EIO)));
        }
        if offset + data.len() as u64 > self.bytes {
            return reply.error(Errno::ENOSPC);
        }
        let disk = slot(&mut state, ino);
        disk.shown.write(offset, data);
        disk.pending.push((offset, data.into()));
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = lock(&self.state);
        if !state.change() {
            return state.refuse(Box::new(move || reply.error(Errno::EIO)));
        }
        if !state.lies {
            let disk = slot(&mut state, ino);
            disk.durable = disk.shown.clone();
            disk.pending.clear();
        }
        reply.ok();
    }
}

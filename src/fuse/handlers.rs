//! The handlers: one for each request of the kernel.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::attr::{
    LIFETIME, Loans, absent, file_attr, file_type, from_system, is_hollow, lifetime, reply_attributes, set_time,
    unknown,
};
use super::awake::Awake;
use super::long::{Long, SHORT_BYTES};
use super::place::{Locator, Placer};
use super::ration::Ration;
use super::recall::Recall;
use super::reply::{errno, sized};
use super::rights::{SET_ID, in_group_or_capable, keeps_set_id, owner_or_capable, sees_trusted, without_set_id};
use super::sync::Syncer;
use crate::fs::{self, Attr, Caller, Fs, Seek, SetAttr};
use crate::limits::REQUEST_BYTES_MAX;
use crate::units::Ino;

/// Inode numbers are never reused, so one generation is enough.
const GENERATION: Generation = Generation(0);

/// Requests that the kernel may have in flight beside the synchronous ones (write-back, read-ahead).
const BACKGROUND_MAX: u16 = 128;

/// What opening relies on (Linux 5.1): a kernel without them would fail every open.
const NEEDED: InitFlags = InitFlags::FUSE_NO_OPEN_SUPPORT.union(InitFlags::FUSE_NO_OPENDIR_SUPPORT);

const CAPABILITIES: [InitFlags; 8] = [
    InitFlags::FUSE_WRITEBACK_CACHE,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
];

thread_local! {
    /// The buffer in which a read is put together; each event loop has its own.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The filesystem as the library wants it.
pub(super) struct Adapter {
    fs: Arc<Fs>,
    placer: Placer,
    syncer: Syncer,
    recall: Recall,
    loans: Arc<Loans>,
    ration: Arc<Ration>,
    long: Long,
    awake: Awake,
    notifier: Arc<OnceLock<Notifier>>,
}

impl Adapter {
    /// `notifier` is to be set before the first request is served.
    pub(super) fn new(
        fs: Arc<Fs>,
        locator: Arc<dyn Locator>,
        loops: usize,
        powersave: bool,
        notifier: Arc<OnceLock<Notifier>>,
        ration: Ration,
    ) -> std::io::Result<Self> {
        let syncer = Syncer::start(Arc::clone(&fs), loops)?;
        let long = Long::start(&fs)?;
        let recall = Recall::start(Arc::clone(&fs), Arc::clone(&notifier))?;
        let (placer, awake, loans) = (Placer::start(locator)?, Awake::start(powersave), Arc::default());
        Ok(Self { fs, placer, syncer, recall, loans, ration: Arc::new(ration), long, awake, notifier })
    }

    /// The permission bits that a change by `request` leaves, if it takes any away. With `always` it takes them in any
    /// case, else only if the caller's process may not leave them as they are.
    fn mode_after(&self, request: &Request, number: INodeNo, always: bool) -> fs::Result<Option<u32>> {
        let attr = self.fs.getattr(ino(number))?;
        let set_id = attr.kind != fs::Kind::Directory && attr.mode & SET_ID != 0;
        if !set_id || !always && keeps_set_id(request) {
            return Ok(None);
        }
        Ok(without_set_id(attr.mode, || in_group_or_capable(request, attr.gid)))
    }

    /// The permission bits after a chown(2) that names neither owner nor group. The kernel lets everybody do that, but
    /// only a caller who may change the mode takes bits away by it.
    fn mode_after_nobody(&self, request: &Request, number: INodeNo) -> fs::Result<Option<u32>> {
        let mode = self.mode_after(request, number, true)?;
        if mode.is_some() && !owner_or_capable(request, self.fs.getattr(ino(number))?.uid) {
            return Err(fs::Error::NotPermitted);
        }
        Ok(mode)
    }

    /// Takes the set-user-id and set-group-id bits from a file whose content is about to be changed by `request`.
    fn drop_set_id(&self, request: &Request, number: INodeNo, always: bool) -> fs::Result<()> {
        let Some(mode) = self.mode_after(request, number, always)? else { return Ok(()) };
        self.fs.setattr(ino(number), &SetAttr { mode: Some(mode), ..SetAttr::default() })?;
        // The kernel keeps the mode it knows, and would execute the file by it.
        self.outdated(number);
        Ok(())
    }

    /// Replies with an inode that a name leads to.
    fn entry(&self, result: fs::Result<Attr>, reply: ReplyEntry) {
        match result {
            Ok(attr) => {
                let attr = self.lend_when_short(attr);
                reply.entry_with_ttls(&lifetime(&attr), &LIFETIME, &file_attr(&attr), GENERATION);
                self.forget(&attr);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    /// Near the end a file's attributes have a lifetime in any case, and are forgotten for another reason: see `ration`.
    fn lend_when_short(&self, attr: Attr) -> Attr {
        if self.ration.is_short() { self.loans.lend(attr) } else { attr }
    }

    /// To be called when the kernel was told these attributes, unless it was told by GETATTR.
    fn forget(&self, attr: &Attr) {
        if attr.kind == fs::Kind::File {
            self.ration.forget(INodeNo(attr.ino.0));
        }
    }

    /// Has the kernel forget the attributes that it knows of an inode.
    fn outdated(&self, number: INodeNo) {
        if let Some(Err(error)) = self.notifier.get().map(|notifier| notifier.inval_inode(number, -1, 0)) {
            log::debug!("the kernel does not know inode {number}: {error}");
        }
    }
}

const fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask }
}

fn empty(result: fs::Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        if let Err(missing) = config.add_capabilities(NEEDED) {
            let text = format!("the kernel's FUSE is too old, it lacks {missing:?}: Linux 5.1 or later is needed");
            return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, text));
        }
        for capability in CAPABILITIES.into_iter().chain([InitFlags::FUSE_CACHE_SYMLINKS]) {
            if config.add_capabilities(capability).is_err() {
                log::warn!("the kernel's FUSE lacks {capability:?}");
            }
        }
        // If the value is too large, the library returns the largest possible, which is then set.
        let _ = config
            .set_max_write(u32::try_from(REQUEST_BYTES_MAX).unwrap_or(u32::MAX))
            .or_else(|most| config.set_max_write(most));
        let _ = config.set_max_readahead(4 << 20).or_else(|most| config.set_max_readahead(most));
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.awake.touch();
        match self.fs.lookup(ino(parent), name.as_bytes()) {
            Err(fs::Error::NotFound) => reply.entry(&LIFETIME, &absent(), GENERATION),
            other => self.entry(other, reply),
        }
    }

    fn forget(&self, _: &Request, number: INodeNo, lookups: u64) {
        if let Some(orphan) = self.fs.forget_soon(ino(number), lookups) {
            self.long.run(&self.fs, false, move |fs| fs.free_orphan(orphan));
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        self.awake.touch();
        let mut found = self.fs.getattr(ino(number));
        let is_file = found.as_ref().is_ok_and(|attr| attr.kind == fs::Kind::File);
        if handle.is_some() && is_file {
            // The kernel is about to write, or to read beyond the end; stat(2) and open(2) ask without a handle.
            found = self.ration.may_write(number).and(found);
        }
        let hollow = found.as_ref().is_ok_and(is_hollow);
        if self.ration.is_short() && is_file && !(handle.is_some() && hollow) {
            // What the kernel is told after this it does not keep.
            self.outdated(number);
        }
        if handle.is_some() {
            reply_attributes(found.map(|attr| self.loans.lend(attr)), reply);
            if hollow {
                self.ration.forget(number);
            }
        } else if found.as_ref().is_ok_and(is_hollow) {
            self.recall.attributes(number, reply);
        } else {
            reply_attributes(found, reply);
        }
    }

    fn setattr(
        &self,
        request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.awake.touch();
        // A chown(2) that names neither owner nor group comes as a change of the change time alone.
        let others = [size.is_some(), atime.is_some(), mtime.is_some()].contains(&true);
        let mode = match mode {
            None if uid.or(gid).is_some() => self.mode_after(request, number, true),
            None if ctime.is_some() && !others => self.mode_after_nobody(request, number),
            None if size.is_some() => self.mode_after(request, number, false),
            mode => Ok(mode),
        };
        let mode = match mode {
            Ok(mode) => mode,
            Err(error) => return reply.error(errno(&error)),
        };
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(from_system),
        };
        let cut = |size: u64| self.fs.getattr(ino(number)).map_or(0, |attr| attr.size.saturating_sub(size));
        let short = size.is_none_or(|size| cut(size) <= SHORT_BYTES);
        // Without a handle: emptied by open(2), and soon to be written.
        let emptied = (size == Some(0) && handle.is_none()).then(|| Arc::clone(&self.loans));
        let ration = Arc::clone(&self.ration);
        self.long.run(&self.fs, short, move |fs| {
            let changed = fs.setattr(ino(number), &change);
            let lend = |attr| emptied.map_or(attr, |loans: Arc<Loans>| loans.lend(attr));
            let is_file = changed.as_ref().is_ok_and(|attr| attr.kind == fs::Kind::File);
            reply_attributes(changed.map(lend), reply);
            if is_file {
                ration.forget(number);
            }
        });
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        match self.fs.readlink(ino(number)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.awake.touch();
        let is_file = matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG);
        let roomy = !is_file || self.ration.may_create();
        match self.fs.mknod(&caller(request, umask), ino(parent), name.as_bytes(), mode, rdev) {
            Ok(attr) if !roomy => {
                // With no lifetime the kernel asks before the first write, and is refused.
                self.fs.refuse(attr.ino);
                reply.entry_with_ttls(&Duration::ZERO, &LIFETIME, &file_attr(&attr), GENERATION);
            }
            made => self.entry(made.map(|attr| self.loans.lend(attr)), reply),
        }
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.awake.touch();
        self.entry(self.fs.mkdir(&caller(request, umask), ino(parent), name.as_bytes(), mode), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.awake.touch();
        let target = target.as_os_str().as_bytes();
        self.entry(self.fs.symlink(&caller(request, 0), ino(parent), name.as_bytes(), target), reply);
    }

    fn link(&self, _: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.awake.touch();
        self.entry(self.fs.link(ino(number), ino(parent), name.as_bytes()), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.awake.touch();
        empty(self.fs.unlink(ino(parent), name.as_bytes()), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.awake.touch();
        empty(self.fs.rmdir(ino(parent), name.as_bytes()), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.awake.touch();
        // The kernel hands NOREPLACE over only when it has found the new name free. So of NOREPLACE with a whiteout
        // only the whiteout is left to do.
        let flags = match flags {
            RenameFlags::RENAME_EXCHANGE => fs::RenameFlags::Exchange,
            RenameFlags::RENAME_NOREPLACE => fs::RenameFlags::NoReplace,
            flags if flags.contains(RenameFlags::RENAME_WHITEOUT) => fs::RenameFlags::Whiteout,
            _ => fs::RenameFlags::Plain,
        };
        empty(self.fs.rename(ino(parent), name.as_bytes(), ino(new_parent), new_name.as_bytes(), flags), reply);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        // After this answer the kernel makes the node and opens it, and does not ask again: see `open`.
        reply.error(Errno::ENOSYS);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // After this answer the kernel opens files itself, keeps their pages over open and close, and does not ask
        // again (FUSE_NO_OPEN_SUPPORT): two requests less an open. It holds the inode as long as the file is open.
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.awake.touch();
        READ_BUFFER.with_borrow_mut(|scratch| match self.fs.read(ino(number), offset, size as usize, scratch) {
            Ok(content) => reply.data(content),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn write(
        &self,
        request: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.awake.touch();
        let written = if flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            self.fs.write_back(ino(number), offset, data)
        } else {
            let kill = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            let dropped = if kill { self.drop_set_id(request, number, true) } else { Ok(()) };
            dropped.and_then(|()| self.fs.write(ino(number), offset, data))
        };
        self.ration.look(Some(number));
        match written {
            Ok(count) => reply.written(u32::try_from(count).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn fallocate(
        &self,
        request: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let dropped = self.drop_set_id(request, number, false);
        let (mode, ration) = (mode.cast_unsigned(), Arc::clone(&self.ration));
        let work = move |fs: &Fs| {
            empty(dropped.and_then(|()| fs.fallocate(ino(number), offset, length, mode)), reply);
            ration.look(None);
        };
        self.long.run(&self.fs, length <= SHORT_BYTES, work);
    }

    fn lseek(&self, _: &Request, number: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let seek = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.recall.seek(number, offset, seek, reply);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _: FileHandle,
        to_offset: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let dropped = self.drop_set_id(request, to, false);
        let ration = Arc::clone(&self.ration);
        let copy = move |fs: &Fs| {
            let copied = fs.copy_range(ino(from), from_offset, ino(to), to_offset, length);
            ration.look(None);
            copied
        };
        let work = move |fs: &Fs| match dropped.and_then(|()| copy(fs)) {
            Ok(count) => reply.written(u32::try_from(count).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(&error)),
        };
        self.long.run(&self.fs, length <= SHORT_BYTES, work);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.awake.touch();
        // The kernel has written the file's pages back already, and does not ask again after this answer.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.awake.touch();
        if self.loans.end(number) {
            self.outdated(number);
        }
        self.syncer.sync(&self.fs, reply);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.syncer.sync(&self.fs, reply);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // As for files. The kernel keeps what it has listed once.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, cookie: u64, mut reply: ReplyDirectory) {
        self.awake.touch();
        let mut any = false;
        let listed = self.fs.readdir(ino(number), cookie, false, &mut |entry| {
            let kind = file_type(entry.kind);
            let taken = !reply.add(INodeNo(entry.ino.0), entry.next_cookie, kind, OsStr::from_bytes(entry.name));
            any |= taken;
            taken
        });
        match listed {
            Err(error) if !any => reply.error(errno(&error)),
            // The kernel asks again after the last entry, and gets the error then.
            _ => reply.ok(),
        }
    }

    fn readdirplus(&self, _: &Request, number: INodeNo, _: FileHandle, cookie: u64, mut reply: ReplyDirectoryPlus) {
        self.awake.touch();
        let (short, mut files) = (self.ration.is_short(), Vec::new());
        let mut any = false;
        let listed = self.fs.readdir(ino(number), cookie, true, &mut |entry| {
            let name = OsStr::from_bytes(entry.name);
            let attr = entry.attr.map(|attr| self.lend_when_short(attr));
            files.extend(attr.filter(|attr| short && attr.kind == fs::Kind::File));
            let lifetime = attr.as_ref().map_or(Duration::ZERO, lifetime);
            let attr = attr.as_ref().map_or_else(|| unknown(entry.ino, entry.kind), file_attr);
            let taken = !reply.add(INodeNo(entry.ino.0), entry.next_cookie, name, &lifetime, &attr, GENERATION);
            any |= taken;
            taken
        });
        match listed {
            Err(error) if !any => reply.error(errno(&error)),
            // The kernel asks again after the last entry, and gets the error then.
            _ => {
                reply.ok();
                files.iter().for_each(|attr| self.forget(attr));
            }
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let s = self.fs.statfs();
        let (free, available) = (s.blocks_free, s.blocks_available);
        reply.statfs(s.blocks, free, available, s.files, s.files_free, s.block_size, s.name_max, s.block_size);
    }

    fn setxattr(
        &self,
        request: &Request,
        number: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        self.awake.touch();
        let keeps_group_id = |gid| in_group_or_capable(request, gid);
        empty(self.fs.setxattr_as(ino(number), name.as_bytes(), value, flags, keeps_group_id), reply);
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.awake.touch();
        let name = name.as_bytes();
        if Placer::answers(name) {
            self.placer.ask(ino(number), size, reply);
        } else {
            sized(self.fs.getxattr(ino(number), name), size, reply);
        }
    }

    fn listxattr(&self, request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        sized(self.fs.listxattr_as(ino(number), || sees_trusted(request)), size, reply);
    }

    fn removexattr(&self, _: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.fs.removexattr(ino(number), name.as_bytes()), reply);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel never asks this with `default_permissions`.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        // After this answer the kernel takes files for always ready, as they are.
        reply.error(Errno::ENOSYS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With that setting, fs/fuse/dir.c drops the change of mode that should come with the truncation. A file that its
    /// owner, who is not root, emptied with `: >file` stayed set-user-id.
    #[test]
    fn regression_truncation_by_open_takes_set_user_id_bits() {
        assert!(!CAPABILITIES.contains(&InitFlags::FUSE_ATOMIC_O_TRUNC));
    }

    /// With that setting, the kernel would not drop pages that were read while an asynchronous direct write was under
    /// way. Whoever reads the file later, a backup say, would get what was there before.
    #[test]
    fn regression_a_direct_write_leaves_no_page_as_it_was() {
        assert!(!CAPABILITIES.contains(&InitFlags::FUSE_ASYNC_DIO));
    }
}

//! Names: looking them up, making and removing them, listing folders.

use libc::S_ISGID;

use super::{
    Attr, Caller, Error, FEW, Fs, Result,
    acl::{self, Acl},
    existing, folder, living_folder, now,
    xattr::{put_acl, stored_acl},
};
use crate::{
    limits::{LINK_MAX, NAME_MAX, SYMLINK_MAX},
    meta::{self, FLAG_ACL_DEFAULT, Inode, Kind, S_IFMT, Tx, View},
    pages,
    units::Ino,
};

/// Cookie that resumes a listing after ".".
const COOKIE_DOT: u64 = 1;
/// Cookie that resumes a listing after "..". The names' cookies are greater.
const COOKIE_DOT_DOT: u64 = 2;

/// Set in the cookies of a listing that has left names out. Cookies have 62 bits, and are positive as a `loff_t`.
const NAMES_LEFT_OUT: u64 = 1 << 62;

/// Most attempts of one call to find a name that can be read: two for each page that is left out.
const LEFT_OUT_MAX: usize = 128;

/// An entry of a listing.
#[derive(Debug)]
pub struct DirEntry<'a> {
    /// What the name leads to.
    pub ino: Ino,
    /// What that is.
    pub kind: Kind,
    /// The name.
    pub name: &'a [u8],
    /// Where to resume the listing after this entry.
    pub next_cookie: u64,
    /// Its attributes, in a listing that asks for them; none when no replica has them.
    pub attr: Option<Attr>,
}

impl Fs {
    /// What `name` in folder `parent` leads to. "." is the inode itself, whatever it is, and ".." a folder's folder, so
    /// that a file handle of NFS can be resolved. Counts a lookup.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotDirectory`], [`Error::NameTooLong`]; [`Error::Stale`] for "." of a removed
    /// inode.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        if name.len() > NAME_MAX {
            return Err(Error::NameTooLong);
        }
        self.view(|view| {
            let inode = match name {
                b"." => {
                    let inode = existing(view, parent)?;
                    if inode.nlink == 0 && !self.references().held(parent) {
                        return Err(Error::Stale);
                    }
                    inode
                }
                b".." => existing(view, Ino(folder(view, parent)?.parent))?,
                _ => match view.lookup(parent, name)? {
                    Some(inode) => inode,
                    None => return folder(view, parent).and(Err(Error::NotFound)),
                },
            };
            self.references().looked_up(inode.ino);
            Ok(Attr::from(&inode))
        })
    }

    /// Makes a file, pipe, socket or device node. Counts a lookup.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NotFound`] when the folder was removed, [`Error::NoSpace`]; [`Error::Invalid`] for
    /// another kind.
    pub fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Attr> {
        let kind = match mode & S_IFMT {
            0 => Kind::File,
            _ => Kind::from_mode(mode).ok_or(Error::Invalid)?,
        };
        match kind {
            Kind::CharDevice | Kind::BlockDevice => self.make(caller, parent, name, &New::node(kind, mode, rdev)),
            Kind::File | Kind::Fifo | Kind::Socket => self.make(caller, parent, name, &New::node(kind, mode, 0)),
            Kind::Directory | Kind::Symlink => Err(Error::Invalid),
        }
    }

    /// Makes a folder. Counts a lookup.
    ///
    /// # Errors
    /// As [`Fs::mknod`].
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        self.make(caller, parent, name, &New::node(Kind::Directory, mode, 0))
    }

    /// Makes a symbolic link. Counts a lookup.
    ///
    /// # Errors
    /// As [`Fs::mknod`]; [`Error::NameTooLong`] and [`Error::NotFound`] for a target that is too long or empty.
    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        match target.len() {
            0 => Err(Error::NotFound),
            1..=SYMLINK_MAX if target.contains(&0) => Err(Error::Invalid),
            1..=SYMLINK_MAX => {
                let new = New { target: Some(target), ..New::node(Kind::Symlink, 0o777, 0) };
                self.make(caller, parent, name, &new)
            }
            _ => Err(Error::NameTooLong),
        }
    }

    fn make(&self, caller: &Caller, parent: Ino, name: &[u8], new: &New<'_>) -> Result<Attr> {
        check_new_name(name)?;
        self.admit_growth()?;
        self.change(|tx| {
            let inode = make(tx, caller, parent, name, new)?;
            self.references().looked_up(inode.ino);
            Ok(Attr::from(&inode))
        })
    }

    /// Gives an inode another name. Counts a lookup.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::TooManyLinks`]; [`Error::NotPermitted`] for a folder; [`Error::NotFound`] for an
    /// orphan.
    pub fn link(&self, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Attr> {
        check_new_name(new_name)?;
        self.admit_growth()?;
        self.change(|tx| {
            let mut inode = existing(tx, ino)?;
            let mut parent = living_folder(tx, new_parent)?;
            if inode.is_dir() {
                return Err(Error::NotPermitted);
            }
            let slot = tx.slot(new_parent, new_name)?.ok_or(Error::Exists)?;
            match inode.nlink {
                0 => return Err(Error::NotFound),
                LINK_MAX.. => return Err(Error::TooManyLinks),
                _ => inode.nlink += 1,
            }
            let now = now();
            inode.ctime = now;
            tx.put_inode(&inode);
            tx.insert_dentry(new_parent, slot, new_name, ino, inode.kind())?;
            parent.mtime = now;
            parent.ctime = now;
            tx.put_inode(&parent);
            self.references().looked_up(ino);
            Ok(Attr::from(&inode))
        })
    }

    /// Removes a name of anything but a folder.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::IsDirectory`], [`Error::NotDirectory`].
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, false)
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// [`Error::NotEmpty`], [`Error::NotFound`], [`Error::NotDirectory`]; [`Error::Invalid`] for ".".
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: Ino, name: &[u8], directory: bool) -> Result<()> {
        check_old_name(name)?;
        self.admit()?;
        let unheld = self.change_at_most(FEW, |tx| {
            let mut dir = folder(tx, parent)?;
            let dentry = tx.find(parent, name)?.ok_or(Error::NotFound)?;
            match (dentry.kind == Kind::Directory, directory) {
                (true, false) => return Err(Error::IsDirectory),
                (false, true) => return Err(Error::NotDirectory),
                _ => {}
            }
            let now = now();
            tx.delete_dentry(parent, dentry.cookie)?;
            dir.mtime = now;
            dir.ctime = now;
            if directory {
                dir.nlink = dir.nlink.saturating_sub(1);
            }
            tx.put_inode(&dir);
            let mut inode = existing(tx, dentry.ino)?;
            inode.ctime = now;
            self.drop_name(tx, &mut inode)
        })?;
        if let Some(ino) = unheld {
            self.reap(ino);
        }
        Ok(())
    }

    /// Takes a name away from an inode and writes the inode's row; the caller removes the dentry. Returns the inode
    /// when nobody holds it any more: the caller then frees it after the operation.
    pub(super) fn drop_name(&self, tx: &mut Tx<'_>, inode: &mut Inode) -> Result<Option<Ino>> {
        if inode.is_dir() {
            if tx.any_entry(inode.ino)? {
                return Err(Error::NotEmpty);
            }
            inode.nlink = 0;
        } else {
            inode.nlink = inode.nlink.saturating_sub(1);
        }
        tx.put_inode(inode);
        Ok((inode.nlink == 0 && self.references().orphaned(inode.ino)).then_some(inode.ino))
    }

    /// Calls `emit` for the entries after `cookie` (0: all, "." and ".." first), until it returns false because it did
    /// not take the entry. With `plus` each entry comes with its attributes, and each entry taken counts a
    /// lookup, except "." and "..". `emit` runs while the metadata is locked: it must not call the filesystem.
    ///
    /// What cannot be read is left out: names whose page no replica has, attributes of a name. A listing that left names
    /// out fails at its end, after all others. Its cookies say so (`NAMES_LEFT_OUT`), so nothing is remembered here. A
    /// caller that lists in parts, and got entries and an error, goes on after the last entry, until it gets the error alone.
    ///
    /// # Errors
    /// [`Error::NotDirectory`], or of the metadata.
    pub fn readdir(&self, ino: Ino, cookie: u64, plus: bool, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        self.view(|view| {
            let dir = folder(view, ino)?;
            if cookie < COOKIE_DOT {
                let attr = plus.then(|| Attr::from(&dir));
                if !emit(DirEntry { ino, kind: Kind::Directory, name: b".", next_cookie: COOKIE_DOT, attr }) {
                    return Ok(());
                }
            }
            if cookie < COOKIE_DOT_DOT {
                let parent = Ino(dir.parent);
                // A removed folder may have outlived the folder that held it.
                let above = match view.inode(parent) {
                    Err(error) if error.unreadable_page().is_some() => None,
                    found => found?,
                };
                let attr = plus.then(|| Attr::from(&above.unwrap_or(dir)));
                let next_cookie = COOKIE_DOT_DOT;
                if !emit(DirEntry { ino: parent, kind: Kind::Directory, name: b"..", next_cookie, attr }) {
                    return Ok(());
                }
            }
            let mut listing = Listing {
                after: (cookie & !NAMES_LEFT_OUT).max(COOKIE_DOT_DOT),
                left_out: cookie & NAMES_LEFT_OUT,
                is_full: false,
            };
            self.list(view, ino, plus, &mut listing, emit)
        })
    }

    fn list(
        &self,
        view: &View<'_>,
        ino: Ino,
        plus: bool,
        listing: &mut Listing,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let mut references = self.references();
        let mut with_attr = plus;
        let mut left_out = None;
        for _ in 0..LEFT_OUT_MAX {
            let listed = view.list(ino, listing.after, with_attr, |listed| {
                let dentry = listed.dentry;
                let lone = || plus.then(|| view.inode(dentry.ino).ok().flatten()).flatten();
                let attr = listed.inode.or_else(lone).as_ref().map(Attr::from);
                let entry = DirEntry {
                    ino: dentry.ino,
                    kind: dentry.kind,
                    name: listed.name,
                    next_cookie: dentry.cookie | listing.left_out,
                    attr,
                };
                let taken = emit(entry);
                if taken {
                    listing.after = dentry.cookie;
                    if plus {
                        references.looked_up(dentry.ino);
                    }
                }
                listing.is_full = !taken;
                taken
            });
            let Err(error) = listed else { break };
            match error.unreadable_page() {
                None => return Err(error.into()),
                // It may be a page of attributes: from here on each name asks for its own.
                Some(page) if with_attr => {
                    with_attr = false;
                    left_out = Some(pages::leave_out(page));
                }
                Some(page) => {
                    drop(left_out.take());
                    listing.left_out = NAMES_LEFT_OUT;
                    listing.after = view.behind(page, ino, listing.after).ok_or(error)?;
                    with_attr = plus;
                }
            }
        }
        if !listing.is_full && listing.left_out != 0 {
            return Err(meta::Error::Corrupt("names of a folder cannot be read; the log has the pages").into());
        }
        Ok(())
    }
}

/// How far one call of a listing is.
struct Listing {
    after: u64,
    /// [`NAMES_LEFT_OUT`] or nothing.
    left_out: u64,
    /// Whether an entry was not taken.
    is_full: bool,
}

/// What to make.
pub(super) struct New<'a> {
    kind: Kind,
    mode: u32,
    rdev: u32,
    target: Option<&'a [u8]>,
}

impl New<'_> {
    pub fn node(kind: Kind, mode: u32, rdev: u32) -> Self {
        Self { kind, mode: mode & 0o7777, rdev, target: None }
    }
}

/// Makes an inode with a name in `parent`. Its group, mode and ACLs partly come from that folder.
fn make(tx: &mut Tx<'_>, caller: &Caller, parent: Ino, name: &[u8], new: &New<'_>) -> Result<Inode> {
    let mut dir = living_folder(tx, parent)?;
    let slot = tx.slot(parent, name)?.ok_or(Error::Exists)?;
    let mut inode = blank(tx, caller, new)?;
    if dir.mode & S_ISGID != 0 {
        inode.gid = dir.gid;
        if inode.is_dir() {
            inode.mode |= S_ISGID;
        }
    }
    if inode.is_dir() {
        inode.parent = parent.0;
        dir.nlink = dir.nlink.checked_add(1).ok_or(Error::TooManyLinks)?;
    }
    inherit(tx, &dir, caller, &mut inode)?;
    tx.insert_inode(&inode, new.target)?;
    tx.insert_dentry(parent, slot, name, inode.ino, new.kind)?;
    dir.mtime = inode.mtime;
    dir.ctime = inode.ctime;
    tx.put_inode(&dir);
    Ok(inode)
}

/// A new inode of `caller`, not yet in any table.
pub(super) fn blank(tx: &mut Tx<'_>, caller: &Caller, new: &New<'_>) -> Result<Inode> {
    let now = now();
    Ok(Inode {
        ino: tx.new_ino()?,
        mode: new.kind.mode() | new.mode,
        uid: caller.uid,
        gid: caller.gid,
        nlink: if new.kind == Kind::Directory { 2 } else { 1 },
        rdev: new.rdev,
        parent: 0,
        flags: 0,
        size: new.target.map_or(0, |target| target.len() as u64),
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
    })
}

/// Applies the folder's default ACL to the new inode, or without one the umask (posix_acl_create()).
fn inherit(tx: &mut Tx<'_>, dir: &Inode, caller: &Caller, inode: &mut Inode) -> Result<()> {
    if inode.kind() == Kind::Symlink {
        return Ok(());
    }
    let default: Option<Acl> = if dir.has(FLAG_ACL_DEFAULT) { stored_acl(tx, dir.ino, acl::DEFAULT)? } else { None };
    let Some(default) = default else {
        inode.mode &= !(caller.umask & 0o777);
        return Ok(());
    };
    let mut access = default.clone();
    let (mode, trivial) = access.create(inode.mode);
    inode.mode = mode;
    if !trivial {
        put_acl(tx, inode, acl::ACCESS, &access)?;
    }
    if inode.is_dir() {
        put_acl(tx, inode, acl::DEFAULT, &default)?;
    }
    Ok(())
}

/// Checks a name that is to be made.
pub(super) fn check_new_name(name: &[u8]) -> Result<()> {
    match name {
        b"." | b".." => Err(Error::Exists),
        _ => check_old_name(name),
    }
}

/// Checks a name that is to be removed.
pub(super) fn check_old_name(name: &[u8]) -> Result<()> {
    match name {
        b"" => Err(Error::NotFound),
        b"." => Err(Error::Invalid),
        b".." => Err(Error::NotEmpty),
        _ if name.len() > NAME_MAX => Err(Error::NameTooLong),
        _ if name.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Error::Invalid),
        _ => Ok(()),
    }
}

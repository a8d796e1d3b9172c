//! rename(2) and renameat2(2).

use super::{
    Caller, Error, Fs, Result, existing, folder, living_folder,
    names::{New, blank, check_new_name, check_old_name},
    now,
};
use crate::{
    meta::{Dentry, Inode, Kind, Tx, View},
    units::Ino,
};

/// Which kind of renaming (renameat2(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RenameFlags {
    /// The new name may exist, and is then replaced.
    #[default]
    Plain,
    /// The new name must not exist.
    NoReplace,
    /// The two names swap what they lead to.
    Exchange,
    /// A whiteout stays behind: a character device with number 0, which overlayfs takes for "removed".
    Whiteout,
}

/// How many folders up it is looked whether a folder would come to be inside itself. The kernel has looked at all of them
/// before it asks (`lock_rename()`, fs/namei.c), and others wait meanwhile.
const ANCESTORS: u32 = 64;

/// The two folders of a renaming, which may be one.
struct Folders {
    from: Inode,
    to: Option<Inode>,
}

impl Folders {
    fn to(&mut self) -> &mut Inode {
        self.to.as_mut().unwrap_or(&mut self.from)
    }

    fn swap(&mut self) {
        if let Some(to) = &mut self.to {
            std::mem::swap(&mut self.from, to);
        }
    }
}

impl Fs {
    /// Gives `name` in folder `parent` the name `new_name` in folder `new_parent`, in one step. Nothing happens when
    /// both lead to the same inode.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Exists`] with [`RenameFlags::NoReplace`]; [`Error::Invalid`] when a folder would
    /// come to be inside itself. [`Error::NotEmpty`], [`Error::IsDirectory`] and [`Error::NotDirectory`] when the new
    /// name exists and cannot be replaced.
    pub fn rename(&self, parent: Ino, name: &[u8], new_parent: Ino, new_name: &[u8], flags: RenameFlags) -> Result<()> {
        check_old_name(name)?;
        check_new_name(new_name)?;
        if flags == RenameFlags::Whiteout { self.admit_growth() } else { self.admit() }?;
        let unheld = self.change(|tx| {
            let mut folders = Folders {
                from: folder(tx, parent)?,
                to: if parent == new_parent { None } else { Some(living_folder(tx, new_parent)?) },
            };
            let source = tx.find(parent, name)?.ok_or(Error::NotFound)?;
            let target = tx.find(new_parent, new_name)?;
            match (flags, target) {
                (RenameFlags::NoReplace, Some(_)) => return Err(Error::Exists),
                (RenameFlags::Exchange, None) => return Err(Error::NotFound),
                (_, Some(target)) if target.ino == source.ino => return Ok(None),
                (RenameFlags::Exchange, Some(target)) => {
                    exchange(tx, &mut folders, source, target)?;
                    finish(tx, folders)?;
                    return Ok(None);
                }
                _ => {}
            }
            moved(tx, &mut folders, source)?;
            let unheld = match target {
                Some(target) => {
                    refuse_replacing(source.kind, target.kind)?;
                    self.replace(tx, &mut folders, source, target)?
                }
                None => {
                    let slot = tx.slot(new_parent, new_name)?.ok_or(Error::Exists)?;
                    tx.insert_dentry(new_parent, slot, new_name, source.ino, source.kind)?;
                    None
                }
            };
            if flags == RenameFlags::Whiteout {
                let root = Caller { uid: 0, gid: 0, umask: 0 };
                let whiteout = blank(tx, &root, &New::node(Kind::CharDevice, 0, 0))?;
                tx.insert_inode(&whiteout, None)?;
                tx.set_dentry(parent, source.cookie, whiteout.ino, Kind::CharDevice)?;
            } else {
                tx.delete_dentry(parent, source.cookie)?;
            }
            finish(tx, folders)?;
            Ok(unheld)
        })?;
        if let Some(ino) = unheld {
            self.reap(ino);
        }
        Ok(())
    }

    /// Makes the target's name lead to the source; the target loses it.
    fn replace(&self, tx: &mut Tx<'_>, folders: &mut Folders, source: Dentry, target: Dentry) -> Result<Option<Ino>> {
        let mut inode = existing(tx, target.ino)?;
        inode.ctime = now();
        if inode.is_dir() {
            folders.to().nlink = folders.to().nlink.saturating_sub(1);
        }
        let unheld = self.drop_name(tx, &mut inode)?;
        let new_parent = folders.to().ino;
        tx.set_dentry(new_parent, target.cookie, source.ino, source.kind)?;
        Ok(unheld)
    }
}

fn refuse_replacing(source: Kind, target: Kind) -> Result<()> {
    match (source == Kind::Directory, target == Kind::Directory) {
        (true, false) => Err(Error::NotDirectory),
        (false, true) => Err(Error::IsDirectory),
        _ => Ok(()),
    }
}

/// Makes each of the two names lead to what the other did.
fn exchange(tx: &mut Tx<'_>, folders: &mut Folders, source: Dentry, target: Dentry) -> Result<()> {
    moved(tx, folders, source)?;
    folders.swap();
    moved(tx, folders, target)?;
    folders.swap();
    tx.set_dentry(folders.from.ino, source.cookie, target.ino, target.kind)?;
    let new_parent = folders.to().ino;
    Ok(tx.set_dentry(new_parent, target.cookie, source.ino, source.kind)?)
}

/// Updates the inode that goes from one folder to the other, and for a folder the two folders' link counts.
fn moved(tx: &mut Tx<'_>, folders: &mut Folders, source: Dentry) -> Result<()> {
    let mut inode = existing(tx, source.ino)?;
    inode.ctime = now();
    if inode.is_dir()
        && let Some(to) = &mut folders.to
    {
        refuse_cycle(tx, source.ino, to)?;
        to.nlink = to.nlink.checked_add(1).ok_or(Error::TooManyLinks)?;
        folders.from.nlink = folders.from.nlink.saturating_sub(1);
        inode.parent = to.ino.0;
    }
    tx.put_inode(&inode);
    Ok(())
}

/// Refuses to move a folder to `to` when that is the folder itself or not far inside it.
fn refuse_cycle(view: &View<'_>, moving: Ino, to: &Inode) -> Result<()> {
    let mut at = (to.ino, Ino(to.parent));
    for _ in 0..ANCESTORS {
        match at.0 {
            Ino::ROOT => return Ok(()),
            ino if ino == moving => return Err(Error::Invalid),
            _ => at = folder(view, at.1).map(|dir| (dir.ino, Ino(dir.parent)))?,
        }
    }
    Ok(())
}

/// Stamps and writes the folders.
fn finish(tx: &mut Tx<'_>, folders: Folders) -> Result<()> {
    let now = now();
    for mut dir in [Some(folders.from), folders.to].into_iter().flatten() {
        dir.mtime = now;
        dir.ctime = now;
        tx.put_inode(&dir);
    }
    Ok(())
}

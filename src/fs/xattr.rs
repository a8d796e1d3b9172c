//! Extended attributes (xattr(7)), and the two of them that are access control lists.

use libc::S_ISGID;

use super::{Error, Fs, Result, acl, acl::Acl, existing, now};
use crate::{
    limits::{XATTR_BYTES_MAX, XATTR_LIST_MAX, XATTR_NAME_MAX, XATTR_VALUE_MAX},
    meta::{FLAG_XATTR, Inode, Kind, Tx, XattrUsage, xattr_flag},
    units::Ino,
};

/// Names that begin so are not stored: they are for what the daemon itself says of a file. They are never listed, so
/// that copies of a tree do not stumble over them.
pub const RESERVED: &[u8] = b"user.scelle.";

/// Namespaces that are stored; the kernel decides who may use them. Of `system.` there are only the ACLs.
const NAMESPACES: &[&[u8]] = &[b"user.", TRUSTED, b"security."];

/// Attributes for administrators, which others are not shown.
const TRUSTED: &[u8] = b"trusted.";

impl Fs {
    /// The attribute's value.
    ///
    /// # Errors
    /// [`Error::NoAttribute`] when there is none of that name, [`Error::Unsupported`] for an unknown namespace,
    /// [`Error::Invalid`] for a namespace alone.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        check_name(name)?;
        self.view(|view| {
            // The kernel asks this before every first write (security.capability), mostly in vain.
            if !existing(view, ino)?.has(own_flag(name)) {
                return Err(Error::NoAttribute);
            }
            view.xattr(ino, name)?.ok_or(Error::NoAttribute)
        })
    }

    /// The names of all attributes, each followed by NUL, as listxattr(2) returns them.
    ///
    /// # Errors
    /// [`Error::Stale`], or of the metadata.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        self.view(|view| if existing(view, ino)?.has(FLAG_XATTR) { Ok(view.xattr_names(ino)?) } else { Ok(Vec::new()) })
    }

    /// As [`Fs::listxattr`]. Names of `trusted.*` are left out unless `sees_trusted` says that the caller may see them.
    /// `sees_trusted` is called only when there are such names.
    ///
    /// # Errors
    /// As [`Fs::listxattr`].
    pub fn listxattr_as(&self, ino: Ino, sees_trusted: impl FnOnce() -> bool) -> Result<Vec<u8>> {
        let names = self.listxattr(ino)?;
        let each = || names.split_inclusive(|byte| *byte == 0);
        if !each().any(|name| name.starts_with(TRUSTED)) || sees_trusted() {
            return Ok(names);
        }
        Ok(each().filter(|name| !name.starts_with(TRUSTED)).flatten().copied().collect())
    }

    /// Sets an attribute. `flags` holds none, one or both of `XATTR_CREATE` (it must not exist) and `XATTR_REPLACE` (it
    /// must exist). With both nothing can be set, and the error says which of them it was, as with ext4.
    ///
    /// An access ACL also sets the permission bits, and is not stored when it says no more than they do.
    ///
    /// # Errors
    /// * [`Error::Exists`] and [`Error::NoAttribute`] for the flags;
    /// * [`Error::ValueTooLong`], [`Error::NameTooLong`], [`Error::NoSpace`] for the bounds (the list of names has one,
    ///   too, and so has the sum of all attributes);
    /// * [`Error::Invalid`] for an invalid ACL, [`Error::AccessDenied`] for a default ACL of something that is no folder,
    ///   [`Error::Unsupported`] for an ACL of a symbolic link or an unknown namespace;
    /// * [`Error::NotPermitted`] for a [`RESERVED`] name.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        self.setxattr_as(ino, name, value, flags, |_| true)
    }

    /// As [`Fs::setxattr`]. An access ACL takes the set-group-id bit away, as chmod(2) does (posix_acl_update_mode()).
    /// `keeps_group_id` prevents that: it says of the file's group that the caller is in it, or may act as if it were.
    ///
    /// # Errors
    /// As [`Fs::setxattr`].
    pub fn setxattr_as(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: i32,
        keeps_group_id: impl Fn(u32) -> bool,
    ) -> Result<()> {
        check_changeable(name)?;
        if value.len() > XATTR_VALUE_MAX {
            return Err(Error::ValueTooLong);
        }
        if flags & !(libc::XATTR_CREATE | libc::XATTR_REPLACE) != 0 {
            return Err(Error::Invalid);
        }
        self.admit_growth()?;
        self.change(|tx| {
            let mut inode = existing(tx, ino)?;
            inode.ctime = now();
            if is_acl(name) {
                set_acl(tx, &mut inode, name, value, &keeps_group_id)?;
            } else {
                let others = if inode.has(FLAG_XATTR) { tx.xattr_usage(ino, name)? } else { XattrUsage::default() };
                let exists = others.exists;
                if exists && flags & libc::XATTR_CREATE != 0 {
                    return Err(Error::Exists);
                }
                if !exists && flags & libc::XATTR_REPLACE != 0 {
                    return Err(Error::NoAttribute);
                }
                let list_bytes = others.list_bytes + name.len() as u64 + 1;
                let bytes = others.bytes + (name.len() + value.len()) as u64;
                if list_bytes > XATTR_LIST_MAX as u64 || bytes > XATTR_BYTES_MAX {
                    return Err(Error::NoSpace);
                }
                tx.put_xattr(ino, name, value)?;
                inode.set(FLAG_XATTR, true);
            }
            tx.put_inode(&inode);
            Ok(())
        })
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// [`Error::NoAttribute`] when there is none of that name, [`Error::NotPermitted`] for a [`RESERVED`] one.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        check_changeable(name)?;
        self.admit()?;
        self.change(|tx| {
            let mut inode = existing(tx, ino)?;
            if !inode.has(FLAG_XATTR) || !tx.delete_xattr(ino, name)? {
                // As ext4: an access ACL always exists, if only the one that the mode stands for.
                return if is_acl(name) { Ok(()) } else { Err(Error::NoAttribute) };
            }
            inode.ctime = now();
            removed(tx, &mut inode, name)?;
            tx.put_inode(&inode);
            Ok(())
        })
    }
}

fn is_acl(name: &[u8]) -> bool {
    name == acl::ACCESS || name == acl::DEFAULT
}

/// The flag of an ACL; no flag for another name.
fn acl_flag(name: &[u8]) -> u32 {
    xattr_flag(name) & !FLAG_XATTR
}

/// The flag that every inode with an attribute of that name has.
fn own_flag(name: &[u8]) -> u32 {
    if is_acl(name) { acl_flag(name) } else { FLAG_XATTR }
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > XATTR_NAME_MAX {
        return Err(Error::NameTooLong);
    }
    if NAMESPACES.contains(&name) {
        return Err(Error::Invalid);
    }
    let stored = NAMESPACES.iter().any(|space| name.starts_with(space));
    if !stored && !is_acl(name) {
        return Err(Error::Unsupported);
    }
    if name.contains(&0) { Err(Error::Invalid) } else { Ok(()) }
}

fn check_changeable(name: &[u8]) -> Result<()> {
    check_name(name)?;
    if name.starts_with(RESERVED) { Err(Error::NotPermitted) } else { Ok(()) }
}

/// Clears the flags that stood for a removed attribute.
fn removed(tx: &Tx<'_>, inode: &mut Inode, name: &[u8]) -> Result<()> {
    inode.set(acl_flag(name), false);
    let any = !tx.xattr_names(inode.ino)?.is_empty();
    inode.set(FLAG_XATTR, any);
    Ok(())
}

/// Sets, or with an empty value removes, one of the lists. The caller writes the inode.
fn set_acl(
    tx: &mut Tx<'_>,
    inode: &mut Inode,
    name: &[u8],
    value: &[u8],
    keeps_group_id: &impl Fn(u32) -> bool,
) -> Result<()> {
    if inode.kind() == Kind::Symlink {
        return Err(Error::Unsupported);
    }
    let mut list = Acl::parse(value)?;
    if name == acl::DEFAULT && !inode.is_dir() && list.is_some() {
        return Err(Error::AccessDenied);
    }
    if name == acl::ACCESS
        && let Some(access) = &list
    {
        let (mode, trivial) = access.mode(inode.mode);
        inode.mode = mode;
        if mode & S_ISGID != 0 && !keeps_group_id(inode.gid) {
            inode.mode &= !S_ISGID;
        }
        if trivial {
            list = None;
        }
    }
    match list {
        Some(list) => put_acl(tx, inode, name, &list),
        None => {
            if inode.has(acl_flag(name)) {
                tx.delete_xattr(inode.ino, name)?;
                removed(tx, inode, name)?;
            }
            Ok(())
        }
    }
}

/// Stores a list. The caller writes the inode.
pub(super) fn put_acl(tx: &mut Tx<'_>, inode: &mut Inode, name: &[u8], list: &Acl) -> Result<()> {
    tx.put_xattr(inode.ino, name, &list.encode())?;
    inode.set(xattr_flag(name), true);
    Ok(())
}

/// The list that the inode's flags say it has.
pub(super) fn stored_acl(tx: &Tx<'_>, ino: Ino, name: &[u8]) -> Result<Option<Acl>> {
    match tx.xattr(ino, name)? {
        Some(value) => Acl::parse(&value),
        None => Ok(None),
    }
}

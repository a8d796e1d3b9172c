//! Why a call failed, and the errno for it.

use crate::{meta, pages};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such name, or the folder was removed.
    #[error("no such file or folder")]
    NotFound,
    /// The name exists.
    #[error("the name exists")]
    Exists,
    /// A folder was needed.
    #[error("not a folder")]
    NotDirectory,
    /// Anything but a folder was needed.
    #[error("is a folder")]
    IsDirectory,
    /// The folder holds names.
    #[error("the folder is not empty")]
    NotEmpty,
    /// A name, a target or an attribute's name is too long.
    #[error("the name is too long")]
    NameTooLong,
    /// The call makes no sense.
    #[error("invalid argument")]
    Invalid,
    /// The operation is not for this kind of inode.
    #[error("operation not permitted")]
    NotPermitted,
    /// A default ACL is only for a folder.
    #[error("access denied")]
    AccessDenied,
    /// The file would be larger than any file may be.
    #[error("the file would be too big")]
    FileTooBig,
    /// Too many names for one inode.
    #[error("too many links")]
    TooManyLinks,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// An extended attribute's value is too long.
    #[error("the attribute's value is too long")]
    ValueTooLong,
    /// The filesystem does not know this.
    #[error("operation not supported")]
    Unsupported,
    /// No data, or no hole, at or after the offset.
    #[error("no such offset")]
    NoSuchOffset,
    /// The inode no longer exists.
    #[error("stale inode number")]
    Stale,
    /// No free block.
    #[error("no space left on the volume")]
    NoSpace,
    /// What was written cannot be made durable as the policy asks.
    #[error("what was written is not durable: {0}")]
    NotDurable(#[source] pages::Error),
    /// The page store refused or failed.
    #[error(transparent)]
    Store(#[from] pages::Error),
    /// The metadata refused or failed.
    #[error(transparent)]
    Meta(meta::Error),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl From<meta::Error> for Error {
    fn from(error: meta::Error) -> Self {
        match error {
            meta::Error::Full => Self::NoSpace,
            other => Self::Meta(other),
        }
    }
}

impl Error {
    /// The errno(3) of it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::Exists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::Invalid => libc::EINVAL,
            Self::NotPermitted => libc::EPERM,
            Self::AccessDenied => libc::EACCES,
            Self::FileTooBig => libc::EFBIG,
            Self::TooManyLinks => libc::EMLINK,
            Self::NoAttribute => libc::ENODATA,
            Self::ValueTooLong => libc::E2BIG,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::NoSuchOffset => libc::ENXIO,
            Self::Stale => libc::ESTALE,
            Self::NoSpace | Self::Store(pages::Error::NoSpace) => libc::ENOSPC,
            Self::Store(pages::Error::ReadOnly(_)) => libc::EROFS,
            Self::NotDurable(_) | Self::Store(_) | Self::Meta(_) => libc::EIO,
        }
    }

    /// The same error, of a call that makes durable what was accepted before. "Read-only" would be no answer there: it
    /// is a loss.
    pub(super) fn of_accepted(self) -> Self {
        match self {
            Self::Store(error @ pages::Error::ReadOnly(_)) => Self::NotDurable(error),
            other => other,
        }
    }

    /// Whether what was read is not what was written.
    pub fn is_integrity(&self) -> bool {
        match self {
            Self::Store(error) => error.is_integrity(),
            Self::Meta(meta::Error::Corrupt(_)) => true,
            Self::Meta(meta::Error::Sql(error)) => pages::is_integrity(error),
            _ => false,
        }
    }

    /// Whether it failed because no replica gives a page of the database. To be asked by the thread that it failed in.
    pub fn is_unreadable_page(&self) -> bool {
        matches!(self, Self::Meta(error) if error.unreadable_page().is_some())
    }

    /// Whether the call failed for want of space.
    pub fn is_no_space(&self) -> bool {
        self.errno() == libc::ENOSPC
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_of_the_layers_below() {
        assert_eq!(Error::from(pages::Error::NoSpace).errno(), libc::ENOSPC);
        assert_eq!(Error::from(pages::Error::ReadOnly(String::new())).errno(), libc::EROFS);
        assert_eq!(Error::from(pages::Error::Integrity(String::new())).errno(), libc::EIO);
        assert_eq!(Error::from(meta::Error::Full).errno(), libc::ENOSPC);
        assert_eq!(Error::from(meta::Error::Corrupt("")).errno(), libc::EIO);
    }
}

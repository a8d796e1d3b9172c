//! The FUSE adapter: turns requests of the kernel into calls of [`Fs`](crate::fs::Fs), and nothing else.
//!
//! It knows neither replicas nor the registry; where a file is, it asks a [`Locator`]. POSIX is [`crate::fs`]'s, and
//! the process around a mount is [`crate::daemon`]'s.
//!
//! What the connection is set to, and why:
//!
//! | setting | why |
//! |---|---|
//! | writeback cache | small writes cost no round trip; the kernel hands a file's data over at the latest on close |
//! | entry and attribute lifetimes of a year, names that do not exist included | we are the only writer |
//! | no lifetime for attributes of a file that has no blocks | the kernel may hold its first ones (`attr`) |
//! | `default_permissions`, POSIX ACLs | the kernel decides who may do what, from our modes and ACLs |
//! | `FUSE_DONT_MASK` | a default ACL replaces the umask, so the filesystem applies it |
//! | `FUSE_EXPORT_SUPPORT` | NFS servers find an inode by number: `lookup` of `.` and `..` |
//! | no `FUSE_ATOMIC_O_TRUNC` | with it the kernel forgets to take set-user-id bits from a file that is truncated so |
//! | `FUSE_HANDLE_KILLPRIV_V2` | set-user-id bits are taken here, so that the kernel need not ask before every write(2) whether there are any |
//! | no `FUSE_ASYNC_DIO` | with it, a page that somebody reads while an asynchronous direct write is under way stays in the page cache after it, as it was before (generic/451 of xfstests; without, `generic_file_direct_write()` drops the page) |
//! | readdirplus when the caller seems to want attributes | `ls -l` needs one request a page of names |
//! | requests of 1 MiB, 128 in the background | fewer round trips |
//! | `user.scelle.place` answered here, and never listed | who may read a file may ask where it is; copies do not carry it along |
//! | no more dirty pages than a quarter of the room, and near the end a question before each write | a write that was accepted finds its room (`ration`) |
//! | locks | left to the kernel: there is one host |

mod attr;
mod awake;
mod handlers;
mod long;
mod mount;
mod place;
mod ration;
mod recall;
mod reply;
mod rights;
mod session;
mod sync;
mod tune;

pub use mount::{MountConfig, OwnMount, UnmountError, available};
pub use place::{Locator, PLACE_XATTR};
pub use session::Session;
pub use tune::tune_readahead;

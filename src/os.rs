//! The services of the operating system, as safe functions.
//!
//! Asynchronous transfers; questions by ioctl(2); messages of the kernel; the system's log; calls about the own process;
//! memory for direct I/O and for keys; bounded reads of files; calls that may hang; what libblkid recognises on a device.
//!
//! Most system calls go through rustix, which has safe functions for them. What rustix lacks is called through libc,
//! and all `unsafe` code of the program is here for that reason. The one exception is SQLite's interface to files
//! ([`pages::vfs`](crate::pages)). Nothing in this module knows what a volume is.

pub mod aio;
pub mod blkid;
pub mod buffer;
mod devno;
pub mod events;
mod file;
pub mod ioctl;
mod locked;
mod patience;
pub mod process;
pub mod syslog;

pub use buffer::AlignedBuf;
pub use devno::DevNo;
pub use file::{absolute, list_bounded, mountpoint_path, read_bounded};
pub use locked::Locked;
pub use patience::Patience;

//! What the operating system offers, as safe functions: asynchronous transfers, questions by ioctl(2), messages of the
//! kernel, the own process, memory for direct I/O, files read with a bound.
//!
//! All `unsafe` code of the program is here, but for SQLite's interface to files ([`pages::vfs`](crate::pages)). Nothing
//! in this module knows what a volume is.

pub mod aio;
pub mod buffer;
mod devno;
pub mod events;
mod file;
pub mod ioctl;
pub mod process;

pub use buffer::AlignedBuf;
pub use devno::DevNo;
pub use file::{absolute, list_bounded, mountpoint_path, read_bounded};

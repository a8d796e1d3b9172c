//! Memory for keys: pages of their own that are not written to swap nor into core dumps, and are wiped before they are
//! given back.

use std::alloc::{Layout, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize;

/// Bytes that stay in memory. `Debug` shows none of them.
///
/// Locking and leaving out of dumps are tried here for each mapping. A process that holds keys locks all of its memory
/// ([`lock_memory`](super::process::lock_memory)) and has no dumps ([`harden`](super::process::harden)) or ends; so what
/// fails here is not an error. memfd_secret(2) would take the pages out of the kernel's own mapping too, but many
/// kernels have it switched off.
pub struct Locked {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to this value alone, as that of a `Box<[u8]>` does.
unsafe impl Send for Locked {}
// SAFETY: shared references only read.
unsafe impl Sync for Locked {}

impl Locked {
    /// Zeros, at least one.
    pub fn zeroed(len: usize) -> Self {
        let len = len.max(1);
        // SAFETY: a new private mapping, at an address that the kernel chooses, touches no other memory.
        let mapped =
            unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
        let Some(address) = mapped.ok().and_then(|address| NonNull::new(address.cast::<u8>())) else {
            handle_alloc_error(Layout::array::<u8>(len).unwrap_or(Layout::new::<u8>()))
        };
        // SAFETY: both calls are about the mapping that was just made, and change nothing of its content.
        unsafe {
            let _ = mlock(address.as_ptr().cast(), len);
            let _ = madvise(address.as_ptr().cast(), len, Advice::LinuxDontDump);
        }
        Self { address, len }
    }

    /// A copy of these bytes.
    pub fn copied(bytes: &[u8]) -> Self {
        let mut copy = Self::zeroed(bytes.len());
        copy[..bytes.len()].copy_from_slice(bytes);
        copy
    }
}

impl Deref for Locked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped from `address` on, for as long as this value lives.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.len) }
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has a reference.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.len) }
    }
}

impl Clone for Locked {
    fn clone(&self) -> Self {
        Self::copied(self)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.zeroize();
        // SAFETY: the mapping was made with this address and length, and nobody uses it after this.
        let _ = unsafe { munmap(self.address.as_ptr().cast(), self.len) };
    }
}

impl fmt::Debug for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Locked(..)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bytes_are_kept_copied_and_not_shown() {
        let mut one = Locked::copied(b"abc");
        let other = one.clone();
        one[0] = b'x';
        assert_eq!((&one[..], &other[..]), (&b"xbc"[..], &b"abc"[..]));
        assert_eq!(format!("{one:?}"), "Locked(..)");
        assert_eq!(&Locked::zeroed(0)[..], &[0]);
        assert_eq!(Locked::zeroed(100_000).iter().filter(|byte| **byte != 0).count(), 0);
    }

    /// The flags of the mapping at an address: `lo` locked, `dd` left out of dumps (proc_pid_smaps(5)).
    #[test]
    fn a_key_is_locked_and_left_out_of_dumps() {
        let key = Locked::copied(&[7; 32]);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", key.as_ptr().addr());
        let mapping = maps.split_once(&start).unwrap().1;
        let flags = mapping.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.contains(" lo") && flags.contains(" dd"), "{flags}");
    }
}

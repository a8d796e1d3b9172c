//! Memory for direct I/O, aligned to 4096 bytes.
//!
//! The memory of a [`AlignedBuf::scratch`] buffer is kept for the next scratch buffer of the same size. Without that,
//! the kernel would have to zero each page anew, in a page fault each, which costs nearly as much as sealing a block.

use std::ops::{Deref, DerefMut};

use parking_lot::Mutex;

use crate::limits::REQUEST_BYTES_MAX;
use crate::units::BLOCK_SIZE;

/// Most bytes of scratch buffers that are kept, for all threads together.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// How many sizes of scratch buffers there are: 4096 bytes times a power of two, up to [`REQUEST_BYTES_MAX`]. Larger
/// buffers are not kept.
const SIZES: usize = (REQUEST_BYTES_MAX / BLOCK_SIZE).ilog2() as usize + 1;

/// Scratch buffers that are not in use, by size.
static KEPT: Mutex<Kept> = Mutex::new(Kept { bytes: 0, buffers: [const { Vec::new() }; SIZES] });

struct Kept {
    bytes: usize,
    buffers: [Vec<AlignedBuf>; SIZES],
}

/// A buffer whose address and length are multiples of 4096 bytes, as direct I/O asks
/// (open(2), `O_DIRECT`; statx(2), `STATX_DIOALIGN`).
pub struct AlignedBuf {
    /// The buffer, and what precedes and follows it because an allocation has any address.
    memory: Vec<u8>,
    /// Where the buffer begins in `memory`.
    start: usize,
    len: usize,
    /// Bytes from `start` on that may be used: `len` or, for a scratch buffer, the size that it is kept under.
    capacity: usize,
    scratch: bool,
}

impl AlignedBuf {
    /// A zeroed buffer of `len` bytes, rounded up to a multiple of 4096 (at least 4096).
    pub fn zeroed(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(BLOCK_SIZE);
        Self::allocate(len, len, false)
    }

    /// A buffer of `len` bytes, rounded up to a multiple of 4096 (at least 4096). It holds zeros, or what an earlier
    /// scratch buffer held: it is for sealed bytes, never for secrets or plaintext.
    pub fn scratch(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(BLOCK_SIZE);
        let Some((class, capacity)) = size(len) else { return Self::allocate(len, len, false) };
        let mut kept = KEPT.lock();
        let reused = kept.buffers.get_mut(class).and_then(Vec::pop);
        if let Some(mut buffer) = reused {
            kept.bytes -= buffer.memory.len();
            buffer.len = len;
            return buffer;
        }
        drop(kept);
        Self::allocate(len, capacity, true)
    }

    fn allocate(len: usize, capacity: usize, scratch: bool) -> Self {
        // An aligned allocation would need unsafe code, and std fills it with zeros even where the system's pages are
        // zero.
        let memory = vec![0; capacity + (BLOCK_SIZE - 1)];
        let address = memory.as_ptr().addr();
        let start = address.next_multiple_of(BLOCK_SIZE) - address;
        Self { memory, start, len, capacity, scratch }
    }
}

/// The list that scratch buffers of `len` bytes are kept in, and the bytes that each of them has.
fn size(len: usize) -> Option<(usize, usize)> {
    let capacity = len.checked_next_power_of_two().filter(|capacity| *capacity <= REQUEST_BYTES_MAX)?;
    Some(((capacity / BLOCK_SIZE).ilog2() as usize, capacity))
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.scratch
            && let Some((class, capacity)) = size(self.capacity)
        {
            let mut kept = KEPT.lock();
            if kept.bytes + self.memory.len() <= KEPT_BYTES_MAX
                && let Some(buffers) = kept.buffers.get_mut(class)
            {
                let memory = std::mem::take(&mut self.memory);
                let bytes = memory.len();
                buffers.push(Self { memory, start: self.start, len: capacity, capacity, scratch: true });
                kept.bytes += bytes;
            }
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..][..self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.len]
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn scratch_buffers_have_the_length_asked_for_and_are_aligned() {
        let lens = [0, 1, 4096, 4097, 3 * 4096, REQUEST_BYTES_MAX, REQUEST_BYTES_MAX + 1, 3 << 20];
        for round in 0..3 {
            let buffers: Vec<AlignedBuf> = lens.iter().map(|len| AlignedBuf::scratch(*len)).collect();
            for (len, mut buffer) in lens.iter().zip(buffers) {
                assert_eq!(buffer.len(), (*len).max(1).next_multiple_of(BLOCK_SIZE));
                assert!(buffer.as_ptr().addr().is_multiple_of(BLOCK_SIZE));
                buffer.fill(round);
            }
        }
    }

    #[test]
    fn no_two_scratch_buffers_share_memory() {
        let fill = |byte: u8| {
            for len in [1, 2, 5, 16].repeat(50) {
                let mut buffer = AlignedBuf::scratch(len * BLOCK_SIZE);
                buffer.fill(byte);
                std::thread::yield_now();
                assert!(buffer.iter().all(|found| *found == byte));
            }
        };
        std::thread::scope(|scope| (0..8).for_each(|byte| drop(scope.spawn(move || fill(byte)))));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        drop((0..64).map(|_| AlignedBuf::scratch(REQUEST_BYTES_MAX)).collect::<Vec<_>>());
        assert!(KEPT.lock().bytes <= KEPT_BYTES_MAX);
    }
}

//! Memory for direct I/O, aligned to 4096 bytes.
//!
//! The memory of a [`AlignedBuf::scratch`] buffer goes to the next one of its size: the system would zero each of its pages
//! anew, in a page fault each, and a sealed block costs little more than that.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use parking_lot::Mutex;

use crate::limits::REQUEST_BYTES_MAX;
use crate::units::BLOCK_SIZE;

/// Most bytes kept for later, of all threads.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// Scratch buffers have 4096 bytes times a power of two, up to [`REQUEST_BYTES_MAX`]; larger ones are not kept.
const SIZES: usize = (REQUEST_BYTES_MAX / BLOCK_SIZE).ilog2() as usize + 1;

/// Buffers that nobody uses, by size.
static KEPT: Mutex<Kept> = Mutex::new(Kept { bytes: 0, buffers: [const { Vec::new() }; SIZES] });

struct Kept {
    bytes: usize,
    buffers: [Vec<AlignedBuf>; SIZES],
}

/// A buffer whose address and length are multiples of 4096 bytes, as direct I/O asks
/// (open(2), `O_DIRECT`; statx(2), `STATX_DIOALIGN`).
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
    /// Bytes allocated: `len` or, for a scratch buffer, the size that it is kept under.
    capacity: usize,
    scratch: bool,
}

// SAFETY: the buffer owns its memory; there is no interior mutability.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A zeroed buffer of `len` bytes, rounded up to a multiple of 4096 (at least 4096).
    pub fn zeroed(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(BLOCK_SIZE);
        Self::allocate(len, len, false)
    }

    /// A buffer of `len` bytes, rounded up to a multiple of 4096 (at least 4096), that holds zeros or what an earlier
    /// scratch buffer held: for sealed bytes, never for secrets or plaintext.
    pub fn scratch(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(BLOCK_SIZE);
        let Some((class, capacity)) = size(len) else { return Self::allocate(len, len, false) };
        let mut kept = KEPT.lock();
        let reused = kept.buffers.get_mut(class).and_then(Vec::pop);
        if let Some(mut buffer) = reused {
            kept.bytes -= capacity;
            buffer.len = len;
            return buffer;
        }
        drop(kept);
        Self::allocate(len, capacity, true)
    }

    fn allocate(len: usize, capacity: usize, scratch: bool) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len, capacity, scratch }
    }

    fn layout(len: usize) -> Layout {
        // Invariant: `len` is a multiple of 4096 that an allocation of this process can have, so no overflow.
        Layout::from_size_align(len, BLOCK_SIZE).expect("length of an aligned buffer")
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
            if kept.bytes + capacity <= KEPT_BYTES_MAX
                && let Some(buffers) = kept.buffers.get_mut(class)
            {
                buffers.push(Self { start: self.start, len: capacity, capacity, scratch: true });
                kept.bytes += capacity;
                return;
            }
        }
        // SAFETY: allocated in `allocate` with this same layout, and not handed on above.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `len` initialised bytes that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
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

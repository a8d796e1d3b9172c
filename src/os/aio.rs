//! Linux asynchronous I/O (io_submit(2)): several direct writes to one device at once, with one wait for all of them,
//! and reads that a thread need not await to their end.
//!
//! A thread that writes to two places one after the other sleeps and wakes twice. For small writes to a fast device
//! that takes longer than the writes.
//!
//! A thread in read(2) of a disk that does not answer sleeps until the kernel gives the disk up, which for some disks
//! takes minutes. Nothing can wake it. An asynchronous read takes as long as a plain one, and the thread can leave it
//! behind ([`Pending`]) when it takes too long.
//!
//! The submission itself is not bounded. It waits while a driver resets its device, and while the device has as many
//! requests as it accepts. Where the kernel has no asynchronous I/O, the caller carries out one transfer after the
//! other.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::AlignedBuf;
use crate::units::to_usize;

/// Most writes of one [`Context::write`] that the kernel carries out together.
pub const TOGETHER_MAX: usize = 32;

/// `IOCB_CMD_PREAD` of linux/aio_abi.h.
const PREAD: u16 = 0;
/// `IOCB_CMD_PWRITEV` of linux/aio_abi.h.
const PWRITEV: u16 = 8;

/// `struct io_event` of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// One of several writes: the concatenation of `bufs`, written at `offset`.
pub struct Write<'a> {
    /// Byte offset on the device.
    pub offset: u64,
    /// The bytes.
    pub bufs: Vec<IoSlice<'a>>,
}

impl Write<'_> {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bufs.iter().map(|buf| buf.len()).sum()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel did not accept the write.
    NotSubmitted,
    /// The write has written so many bytes.
    Wrote(u64),
    /// The write failed with this errno.
    Failed(i32),
}

/// A context of asynchronous I/O (`aio_context_t`).
pub struct Context(libc::c_ulong);

impl Context {
    /// A context for at least so many transfers.
    ///
    /// # Errors
    /// What io_setup(2) says: `ENOSYS` without support, `EAGAIN` beyond `fs.aio-max-nr`.
    pub fn new(transfers: usize) -> io::Result<Self> {
        let mut id: libc::c_ulong = 0;
        // SAFETY: the kernel writes one word to `id`.
        let done = unsafe { libc::syscall(libc::SYS_io_setup, transfers, &raw mut id) };
        if done == 0 { Ok(Self(id)) } else { Err(io::Error::last_os_error()) }
    }

    /// Carries out at most [`TOGETHER_MAX`] writes, in no order, and returns when the kernel is done with all of them.
    /// `durable`: each has reached stable storage when it is done (`RWF_DSYNC`, pwritev2(2): the block layer sets
    /// `REQ_FUA`, or flushes after the write where the device lacks it).
    pub fn write(&mut self, file: BorrowedFd<'_>, writes: &[Write<'_>], durable: bool) -> Vec<Outcome> {
        let mut outcomes = vec![Outcome::NotSubmitted; writes.len()];
        let mut blocks: Vec<libc::iocb> = writes
            .iter()
            .take(TOGETHER_MAX)
            .enumerate()
            .map(|(i, write)| write_block(i, write, file, durable))
            .collect();
        let mut list: Vec<*mut libc::iocb> = blocks.iter_mut().map(std::ptr::from_mut).collect();
        let submitted = self.submit(&mut list);
        // The buffers belong to the kernel until each write is done, whatever happens.
        let mut outstanding = submitted;
        let mut events = [Event::default(); TOGETHER_MAX];
        while outstanding > 0 {
            let done = self.wait(&mut events[..outstanding], None);
            outstanding -= done;
            for event in &events[..done] {
                if let Some(outcome) = outcomes.get_mut(to_usize(event.data)) {
                    *outcome = match u64::try_from(event.res) {
                        Ok(bytes) => Outcome::Wrote(bytes),
                        Err(_) => Outcome::Failed(errno(event.res)),
                    };
                }
            }
        }
        outcomes
    }

    /// Submits transfers. Returns how many of them the kernel accepted: these are the first ones of `list`.
    ///
    /// Each control block is valid, and the memory that it names belongs to the kernel until its transfer is done. Both
    /// callers see to that: [`write`](Self::write) returns only then, and [`read`] hands the memory to a [`Pending`].
    fn submit(&mut self, list: &mut [*mut libc::iocb]) -> usize {
        let mut taken = 0;
        while taken < list.len() {
            let rest = &mut list[taken..];
            // SAFETY: `rest` points to that many valid control blocks, and the callers keep what they name, as said
            // above.
            let n = unsafe { libc::syscall(libc::SYS_io_submit, self.0, rest.len(), rest.as_mut_ptr()) };
            match usize::try_from(n) {
                Ok(0) => break,
                Ok(n) => taken += n,
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        taken
    }

    /// Waits until `events` transfers are done, at most for `limit`. Returns how many are.
    fn wait(&mut self, events: &mut [Event], limit: Option<Duration>) -> usize {
        let count = events.len();
        let mut limit = limit.map(|limit| libc::timespec {
            tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let limit = limit.as_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut);
        // SAFETY: the kernel writes at most `count` events, as many as there is room for, and may write to `limit`.
        let n = unsafe { libc::syscall(libc::SYS_io_getevents, self.0, count, count, events.as_mut_ptr(), limit) };
        if n < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            // Invariant: the context and `events` are valid, so this does not happen. If it did, it would be worse to
            // return buffers that the kernel may still use than to wait: whoever waits for the replica has a limit.
            std::thread::sleep(Duration::from_millis(1));
        }
        usize::try_from(n).unwrap_or(0)
    }

    /// Waits for one transfer until `deadline`. Returns its result if it is done by then: a number of bytes, or a
    /// negative errno.
    fn wait_until(&mut self, deadline: Instant) -> Option<i64> {
        let mut events = [Event::default()];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.wait(&mut events, Some(left)) == 1 {
                return Some(events[0].res);
            }
            if left.is_zero() {
                return None;
            }
        }
    }
}

/// A read that is under way and that no thread waits for any more. The memory that it goes to is kept until the read is
/// done. If this is dropped before that, the memory is never freed.
pub struct Pending {
    /// The context and the buffer of the read. Dropping takes them away when the kernel may still use them.
    parts: Option<(Context, AlignedBuf)>,
    done: bool,
}

impl Pending {
    /// Whether the device has answered.
    pub fn is_done(&mut self) -> bool {
        let answered = |(context, _): &mut (Context, AlignedBuf)| context.wait_until(Instant::now()).is_some();
        self.done = self.done || self.parts.as_mut().is_none_or(answered);
        self.done
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_done() {
            std::mem::forget(self.parts.take());
        }
    }
}

/// The errno of a transfer that failed.
fn errno(result: i64) -> i32 {
    i32::try_from(-result).unwrap_or(libc::EIO)
}

/// How an asynchronous read ended.
pub enum Read {
    /// The read has read so many bytes, or failed.
    Done(AlignedBuf, io::Result<usize>),
    /// The read is still under way.
    Pending(Pending),
    /// The kernel did not accept the read.
    NotSubmitted(AlignedBuf),
}

thread_local! {
    /// The thread's context for reads, and the process that it belongs to: a forked process does not inherit it.
    static READS: RefCell<Option<(u32, Context)>> = const { RefCell::new(None) };
}

/// The thread's context for reads, with no read under way. `None` where the kernel offers none.
fn take_context() -> Option<Context> {
    match READS.with_borrow_mut(Option::take) {
        Some((process, context)) if process == std::process::id() => Some(context),
        foreign => {
            // A context of the process that forked this one is not destroyed: its number may be one of ours.
            std::mem::forget(foreign);
            Context::new(1).ok()
        }
    }
}

/// Reads from `offset` on into `buf` from its byte `from` on, and waits until `deadline`.
pub fn read(file: BorrowedFd<'_>, offset: u64, mut buf: AlignedBuf, from: usize, deadline: Instant) -> Read {
    let Some(mut context) = take_context() else { return Read::NotSubmitted(buf) };
    let part = &mut buf[from..];
    let mut block = block(PREAD, file, part.as_mut_ptr().expose_provenance(), part.len(), offset);
    let taken = context.submit(&mut [&raw mut block]);
    let outcome = if taken == 1 { context.wait_until(deadline) } else { Some(0) };
    let Some(result) = outcome else {
        return Read::Pending(Pending { parts: Some((context, buf)), done: false });
    };
    READS.set(Some((std::process::id(), context)));
    if taken == 0 {
        return Read::NotSubmitted(buf);
    }
    Read::Done(buf, usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(errno(result))))
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the number is that of a context of this process, which is not used again. No transfer is under way in
        // it.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// A control block. The operation says what `address` and `length` are. The address is an integer, so the memory is
/// exposed to whoever makes a pointer of it, here the kernel.
fn block(operation: u16, file: BorrowedFd<'_>, address: usize, length: usize, offset: u64) -> libc::iocb {
    // SAFETY: a control block of zeros is a valid one.
    let mut block: libc::iocb = unsafe { std::mem::zeroed() };
    block.aio_lio_opcode = operation;
    block.aio_fildes = file.as_raw_fd().cast_unsigned();
    block.aio_buf = address as u64;
    block.aio_nbytes = length as u64;
    block.aio_offset = i64::try_from(offset).unwrap_or(i64::MAX);
    block
}

fn write_block(index: usize, write: &Write<'_>, file: BorrowedFd<'_>, durable: bool) -> libc::iocb {
    // `IoSlice` has the layout of `iovec`.
    let list = write.bufs.as_ptr().expose_provenance();
    let mut block = block(PWRITEV, file, list, write.bufs.len(), write.offset);
    block.aio_data = index as u64;
    if durable {
        block.aio_rw_flags = libc::RWF_DSYNC as _;
    }
    block
}

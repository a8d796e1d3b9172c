//! Linux asynchronous I/O (io_submit(2)): several direct writes to one device under way at once, and one wait for all; and
//! reads that need not be waited for to the end.
//!
//! A thread that writes to two places one after the other sleeps and wakes twice, which for small writes to a fast device
//! takes longer than the writes. And a thread in read(2) of a disk that does not answer sleeps until the kernel gives the disk up, which
//! for some takes minutes; nothing can wake it. An asynchronous read takes as long as a plain one, and is left behind
//! ([`Pending`]) when it takes too long. Handing it to the kernel can take long too, which nothing here bounds: while a driver resets
//! its device, or when the device has as many requests as it takes. Where the kernel has no asynchronous I/O, the caller does one
//! transfer after the other, each to its end.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::AlignedBuf;

/// Most writes that are under way together.
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

/// One of several writes: the concatenation of `bufs` at `offset`.
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

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel did not take it.
    NotSubmitted,
    /// It wrote so many bytes.
    Wrote(u64),
    /// It failed with this errno.
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
        let done = unsafe { libc::syscall(libc::SYS_io_setup, transfers as libc::c_long, &raw mut id) };
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
        // The memory is the kernel's until each of them is done, whatever happens.
        let mut outstanding = submitted;
        let mut events = [Event::default(); TOGETHER_MAX];
        while outstanding > 0 {
            let done = self.wait(&mut events[..outstanding], None);
            outstanding -= done;
            for event in &events[..done] {
                if let Some(outcome) = outcomes.get_mut(event.data as usize) {
                    *outcome = match u64::try_from(event.res) {
                        Ok(bytes) => Outcome::Wrote(bytes),
                        Err(_) => Outcome::Failed(errno(event.res)),
                    };
                }
            }
        }
        outcomes
    }

    /// Returns how many the kernel took, the first ones.
    fn submit(&mut self, list: &mut [*mut libc::iocb]) -> usize {
        let mut taken = 0;
        while taken < list.len() {
            let rest = &mut list[taken..];
            // SAFETY: `rest` points to that many valid control blocks, whose memory the caller keeps until they are done.
            let n =
                unsafe { libc::syscall(libc::SYS_io_submit, self.0, rest.len() as libc::c_long, rest.as_mut_ptr()) };
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
        let count = events.len() as libc::c_long;
        let mut limit = limit.map(|limit| libc::timespec {
            tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let limit = limit.as_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut);
        // SAFETY: the kernel writes at most `count` events, as many as there is room for, and may write to `limit`.
        let n = unsafe { libc::syscall(libc::SYS_io_getevents, self.0, count, count, events.as_mut_ptr(), limit) };
        if n < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            // Invariant: the context is valid and the memory ours, so this does not happen. If it did, giving the memory back
            // would be worse than to wait: who waits for the replica has a limit.
            std::thread::sleep(Duration::from_millis(1));
        }
        usize::try_from(n).unwrap_or(0)
    }

    /// Waits for one transfer until `deadline`. Returns its result, a number of bytes or a negative errno, if it is done by then.
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

/// A read that is under way and that nobody waits for any more. The memory it goes to is kept until it is done: dropped before
/// that, it is never freed.
pub struct Pending {
    context: ManuallyDrop<Context>,
    buf: ManuallyDrop<AlignedBuf>,
    done: bool,
}

impl Pending {
    /// Whether it has been answered.
    pub fn is_done(&mut self) -> bool {
        self.done = self.done || self.context.wait_until(Instant::now()).is_some();
        self.done
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.is_done() {
            // SAFETY: each is dropped here and nowhere else, and neither is used afterwards.
            unsafe {
                ManuallyDrop::drop(&mut self.context);
                ManuallyDrop::drop(&mut self.buf);
            }
        }
    }
}

/// The errno of a transfer that failed.
fn errno(result: i64) -> i32 {
    i32::try_from(-result).unwrap_or(libc::EIO)
}

/// How an asynchronous read ended.
pub enum Read {
    /// So many bytes were read, or it failed.
    Done(AlignedBuf, io::Result<usize>),
    /// Not at all yet.
    Pending(Pending),
    /// The kernel did not take it.
    NotSubmitted(AlignedBuf),
}

thread_local! {
    /// The thread's context for reads, and the process that it is of: a forked one has none of it.
    static READS: RefCell<Option<(u32, Context)>> = const { RefCell::new(None) };
}

/// The thread's context for reads, which is free; `None` where the kernel has none for us.
fn take_context() -> Option<Context> {
    match READS.with_borrow_mut(Option::take) {
        Some((process, context)) if process == std::process::id() => Some(context),
        foreign => {
            // Another process's, or none.
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
        let (context, buf) = (ManuallyDrop::new(context), ManuallyDrop::new(buf));
        return Read::Pending(Pending { context, buf, done: false });
    };
    READS.set(Some((std::process::id(), context)));
    if taken == 0 {
        return Read::NotSubmitted(buf);
    }
    Read::Done(buf, usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(errno(result))))
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nothing is under way in it.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// A control block, with an address and a length as the operation wants them.
fn block(operation: u16, file: BorrowedFd<'_>, address: usize, length: usize, offset: u64) -> libc::iocb {
    // SAFETY: a control block of zeros is a valid one.
    let mut block: libc::iocb = unsafe { std::mem::zeroed() };
    block.aio_lio_opcode = operation;
    block.aio_fildes = file.as_raw_fd() as u32;
    block.aio_buf = address as u64;
    block.aio_nbytes = length as u64;
    block.aio_offset = offset as i64;
    block
}

fn write_block(index: usize, write: &Write<'_>, file: BorrowedFd<'_>, durable: bool) -> libc::iocb {
    // `IoSlice` has the layout of `iovec`.
    let mut block = block(PWRITEV, file, write.bufs.as_ptr().addr(), write.bufs.len(), write.offset);
    block.aio_data = index as u64;
    if durable {
        block.aio_rw_flags = libc::RWF_DSYNC as _;
    }
    block
}

//! Space of files: truncation, allocation, holes, copies.

use super::{Error, FEW, Fs, Result, STEP, data::BLOCK, file, now, removal};
use crate::{
    limits::{FILE_SIZE_MAX, REQUEST_BYTES_MAX},
    meta::{ExtentRow, FILE_BLOCKS_MAX, FLAG_RESERVED, FLAG_TAIL, FLAG_TRIM, Inode, Span, Tx, Weight},
    units::{Ino, Run, WriteId, to_usize},
};

/// Most bytes that one [`Fs::copy_range`] copies; for more the caller asks again.
pub const COPY_MAX: u64 = 8 << 20;

/// Most blocks that are reserved in one operation (1 GiB).
const RESERVED_MAX: u64 = 1 << 18;

/// What gives way to reserved blocks.
#[derive(Clone, Copy)]
enum Clear {
    /// Nothing is there.
    Nothing,
    /// Data of one extent.
    Data,
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// `SEEK_DATA`.
    Data,
    /// `SEEK_HOLE`: also reserved blocks, and the end of the file.
    Hole,
}

/// Sets the size, and frees blocks after it. Of the extents there, only the first `step` are freed; the result is then
/// the file block from which on the caller frees the rest, after the operation. The caller has prepared the inode for growth,
/// and writes it.
pub(super) fn resize(tx: &mut Tx<'_>, inode: &mut Inode, size: u64, step: usize) -> Result<Option<u64>> {
    let mut trim = None;
    if size <= inode.size {
        let keep = size.div_ceil(BLOCK);
        let cleared = tx.clear(inode.ino, keep, FILE_BLOCKS_MAX, step)?;
        inode.blocks = inode.blocks.saturating_sub(cleared.blocks);
        if cleared.more {
            tx.set_trim(inode.ino, Some(keep))?;
            inode.set(FLAG_TRIM, true);
            trim = Some(keep);
        }
        if inode.blocks == 0 {
            inode.set(FLAG_RESERVED, false);
        }
        if size < inode.size {
            inode.set(FLAG_TAIL, !size.is_multiple_of(BLOCK));
        }
    }
    inode.size = size;
    Ok(trim)
}

impl Fs {
    /// Allocates or gives back space of a file (fallocate(2)). `mode` is 0, `KEEP_SIZE`, `PUNCH_HOLE | KEEP_SIZE`, or
    /// `ZERO_RANGE` with or without `KEEP_SIZE`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another mode; [`Error::FileTooBig`]; [`Error::Invalid`] for an empty range. After
    /// [`Error::NoSpace`] the file has the same content and size as before.
    pub fn fallocate(&self, ino: Ino, offset: u64, len: u64, mode: u32) -> Result<()> {
        const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE as u32;
        const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE as u32;
        const ZERO_RANGE: u32 = libc::FALLOC_FL_ZERO_RANGE as u32;
        if len == 0 {
            return Err(Error::Invalid);
        }
        let end = offset.checked_add(len).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Error::FileTooBig)?;
        let keep_size = mode & KEEP_SIZE != 0;
        let (zero, allocate) = match mode & !KEEP_SIZE {
            0 => (false, true),
            PUNCH_HOLE if keep_size => (true, false),
            ZERO_RANGE => (true, true),
            _ => return Err(Error::Unsupported),
        };
        self.admit()?;
        let _content = self.exclusive(ino);
        let inode = self.view(|view| file(view, ino))?;
        let grows = !keep_size && end > inode.size;
        if grows {
            self.prepare_growth(&inode, u64::MAX)?;
        } else if inode.has(FLAG_TRIM) {
            self.trim(ino, inode.size.div_ceil(BLOCK))?;
        }
        if allocate {
            self.allocate(ino, offset / BLOCK, end.div_ceil(BLOCK))?;
        }
        if zero {
            self.zero_range(&inode, offset, end, allocate)?;
        }
        self.change(|tx| {
            let mut inode = file(tx, ino)?;
            let now = now();
            inode.ctime = now;
            if zero || grows {
                inode.mtime = now;
            }
            if grows {
                inode.size = end;
                inode.set(FLAG_TAIL, false);
            }
            tx.put_inode(&inode);
            Ok(())
        })
    }

    /// Reserves space for the holes in file blocks `first..end`: for all of them or, on an error, for some.
    fn allocate(&self, ino: Ino, first: u64, end: u64) -> Result<()> {
        let mut holes = Vec::new();
        let mut at = first;
        self.each_span(ino, first, end, |span| {
            if at < span.from {
                holes.push((at, span.from));
            }
            at = span.to;
            true
        })?;
        if at < end {
            holes.push((at, end));
        }
        let needed = holes.iter().map(|(from, to)| to - from).sum();
        self.with_space(needed, || Ok(()))?;
        for (mut from, to) in holes {
            while from < to {
                self.admit()?;
                let runs = self.reserve((to - from).min(RESERVED_MAX))?;
                from = self.put_reserved(ino, from, &runs, Clear::Nothing)?;
            }
        }
        Ok(())
    }

    fn reserve(&self, blocks: u64) -> Result<Vec<Run>> {
        self.with_space(blocks, || self.store.reserve(blocks))
    }

    /// Puts reserved runs in the rows, from file block `from` on; in several operations when they are many. Returns the
    /// first block after the runs.
    fn put_reserved(&self, ino: Ino, mut from: u64, runs: &[Run], clear: Clear) -> Result<u64> {
        for (i, part) in runs.chunks(STEP).enumerate() {
            let blocks: u64 = part.iter().map(|run| run.blocks).sum();
            let old = if matches!(clear, Clear::Data) { blocks } else { 0 };
            let weight = FEW.plus(Weight::replaced_blocks(old, part.len() as u64, 0));
            let done = self.change_at_most(weight, |tx| {
                let mut inode = file(tx, ino)?;
                if old > 0 {
                    let cleared = tx.clear(ino, from, from + blocks, usize::MAX >> 1)?;
                    inode.blocks = inode.blocks.saturating_sub(cleared.blocks);
                }
                inode.blocks += blocks;
                let mut lblock = from;
                for run in part {
                    let id = WriteId::default();
                    tx.add_extent(ino, &ExtentRow { lblock, blocks: run.blocks, addr: run.addr, id, tags: None })?;
                    lblock += run.blocks;
                }
                inode.set(FLAG_RESERVED, true);
                tx.put_inode(&inode);
                Ok(())
            });
            if let Err(error) = done {
                runs[i * STEP..].iter().for_each(|run| self.store.abandon(*run));
                return Err(error);
            }
            from += blocks;
        }
        Ok(from)
    }

    /// Makes bytes `offset..end` zeros: whole blocks become holes, or with `keep` reserved blocks.
    fn zero_range(&self, inode: &Inode, offset: u64, end: u64, keep: bool) -> Result<()> {
        let (first, last) = (offset.div_ceil(BLOCK), end / BLOCK);
        if first > last {
            return self.zero_in_block(inode, offset, end);
        }
        if !offset.is_multiple_of(BLOCK) {
            self.zero_in_block(inode, offset, first * BLOCK)?;
        }
        if !end.is_multiple_of(BLOCK) {
            self.zero_in_block(inode, last * BLOCK, end)?;
        }
        if !keep {
            return self.punch(inode.ino, first, last);
        }
        // Data gives way to reserved blocks, and reserved blocks stay. No hole is left after `allocate`.
        let mut written = Vec::new();
        self.each_span(inode.ino, first, last, |span| {
            if !span.reserved() {
                written.push((span.from, span.to));
            }
            true
        })?;
        for (from, to) in written {
            self.admit()?;
            let runs = self.reserve(to - from)?;
            self.put_reserved(inode.ino, from, &runs, Clear::Data)?;
        }
        Ok(())
    }

    /// Frees file blocks `first..end`, in steps.
    fn punch(&self, ino: Ino, first: u64, end: u64) -> Result<()> {
        loop {
            self.admit()?;
            let step = self.step();
            let more = self.change_at_most(removal(step), |tx| {
                let cleared = tx.clear(ino, first, end, step)?;
                let mut inode = file(tx, ino)?;
                inode.blocks = inode.blocks.saturating_sub(cleared.blocks);
                tx.put_inode(&inode);
                Ok(cleared.more)
            })?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Calls `f` for the extents in file blocks `from..to`, in order, until it returns false. The metadata is not
    /// locked while `f` runs.
    pub(super) fn each_span(&self, ino: Ino, mut from: u64, to: u64, mut f: impl FnMut(Span) -> bool) -> Result<()> {
        while from < to {
            let spans = self.view(|view| Ok(view.spans(ino, from, to, STEP)?))?;
            for span in &spans {
                if !f(*span) {
                    return Ok(());
                }
            }
            match spans.last() {
                Some(last) => from = last.to,
                None => break,
            }
        }
        Ok(())
    }

    /// The first offset, from `offset` on, of data or of a hole (lseek(2)).
    ///
    /// # Errors
    /// [`Error::NoSuchOffset`] when there is none, or `offset` is not before the end of the file.
    pub fn seek(&self, ino: Ino, offset: u64, seek: Seek) -> Result<u64> {
        let size = self.view(|view| file(view, ino))?.size;
        if offset >= size {
            return Err(Error::NoSuchOffset);
        }
        let (first, end) = (offset / BLOCK, size.div_ceil(BLOCK));
        let mut data = None;
        let mut hole = first;
        self.each_span(ino, first, end, |span| match seek {
            Seek::Data if span.reserved() => true,
            Seek::Data => {
                data = Some(span.from);
                false
            }
            Seek::Hole if span.reserved() || span.from > hole => false,
            Seek::Hole => {
                hole = span.to;
                true
            }
        })?;
        match seek {
            Seek::Data => data.map(|lblock| offset.max(lblock * BLOCK)).ok_or(Error::NoSuchOffset),
            Seek::Hole => Ok(offset.max(hole * BLOCK).min(size)),
        }
    }

    /// Copies up to `len` bytes, at most [`COPY_MAX`], between files or within one. Returns how many: fewer at the
    /// source's end.
    ///
    /// # Errors
    /// As reading and writing; [`Error::Invalid`] when the ranges overlap in one file. An error after the first bytes
    /// makes a short copy, not an error.
    pub fn copy_range(&self, from: Ino, from_offset: u64, to: Ino, to_offset: u64, len: u64) -> Result<u64> {
        if from == to && from_offset.abs_diff(to_offset) < len {
            return Err(Error::Invalid);
        }
        self.view(|view| file(view, to))?;
        let len = len.min(COPY_MAX);
        let mut scratch = Vec::new();
        let mut copied = 0;
        while copied < len {
            let chunk = to_usize((len - copied).min(REQUEST_BYTES_MAX as u64));
            let step = match self.read(from, from_offset + copied, chunk, &mut scratch) {
                Ok([]) => break,
                Ok(content) => self.write(to, to_offset + copied, content),
                Err(error) => Err(error),
            };
            match step {
                Ok(written) => copied += written as u64,
                Err(error) if copied == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(copied)
    }
}

//! Content of files: reading and writing.
//!
//! A write seals its blocks into fresh space without holding the metadata, then replaces the file's extents in one
//! operation. Whole blocks are sealed straight from the caller's bytes. A partial block is read, completed and written
//! under the file's exclusive stripe, so that no other write is lost.
//!
//! Bytes between the end of a file and the end of its last block are zeros, so that the file can grow without looking
//! at them. There are two exceptions: [`FLAG_TAIL`] says that a truncation left old bytes there, [`FLAG_TRIM`] that it
//! left whole blocks behind the end. `prepare_growth` clears either before the file grows.

use std::borrow::Cow;
use std::time::Instant;

use super::{Error, FEW, Fs, Result, file, mapping::Stretch, now};
use crate::{
    limits::FILE_SIZE_MAX,
    meta::{ExtentRow, FLAG_RESERVED, FLAG_TAIL, FLAG_TRIM, Inode, Span, Tx, Weight},
    pages::{self, Account, Extent, Part},
    units::{BLOCK_SIZE, Ino, to_usize},
};

/// [`BLOCK_SIZE`] for file offsets.
pub(super) const BLOCK: u64 = BLOCK_SIZE as u64;

/// Longest write, in bytes, whose partial and whole blocks are copied to make one piece. A longer write is sealed as up
/// to three pieces: one extent more costs less than the copy.
const COPIED_MAX: usize = 128 << 10;

/// How long the kernel holds written data back, in seconds: twice its default (`vm.dirty_expire_centisecs`). If a crash
/// comes between such data and its times, the file at least keeps no times that are older than that.
const HELD_BACK_S_MAX: i64 = 60;

/// What a write does to the times of modification and change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stamp {
    /// They become the clock's.
    Now,
    /// They become the clock's if they are older than any data that the kernel may still hold back.
    IfOld,
}

/// Blocks of a file that were sealed for a write and are not in any row yet.
#[derive(Default)]
struct Sealed {
    /// In fresh space.
    fresh: Vec<ExtentRow>,
    /// In space that a row has reserved.
    filled: Vec<ExtentRow>,
}

impl Sealed {
    /// What [`put`] changes at most. What is left of a reserved extent that is filled is a row more at either end.
    fn weight(&self) -> Weight {
        let rows = || self.fresh.iter().chain(&self.filled);
        let blocks = rows().map(|extent| extent.blocks).sum();
        let long = rows().filter(|extent| extent.blocks > 8).count() as u64;
        // A stretch in fresh space can lie on each side of a filled one, and cuts what was there, too.
        let cuts = 2 * self.filled.len() as u64 + 4;
        Weight::replaced_blocks(blocks, rows().count() as u64 + 2 * cuts, long + cuts)
    }
}

impl Fs {
    /// Reads up to `size` bytes of the file from `offset` on into `scratch`; fewer at the file's end. Holes read as
    /// zeros. What `scratch` held before does not matter, and its memory is used again.
    ///
    /// # Errors
    /// [`Error::IsDirectory`] for a folder, [`Error::Invalid`] for another inode without content; of the store when no
    /// replica has the right bytes.
    pub fn read<'a>(&self, ino: Ino, offset: u64, size: usize, scratch: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        let begin = Instant::now();
        let guard = self.store.reader();
        let (first, end) = (offset / BLOCK, offset.saturating_add(size as u64).div_ceil(BLOCK));
        let Stretch { size: file_size, extents, .. } = self.stretch(ino, first, end)?;
        let size = to_usize((size as u64).min(file_size.saturating_sub(offset)));
        let skip = (offset % BLOCK) as usize;
        let blocks = if size == 0 { 0 } else { (skip + size).div_ceil(BLOCK_SIZE) };
        // Resizing fills new bytes with zeros; bytes that `scratch` held before are overwritten below.
        scratch.resize(scratch.len().max(blocks * BLOCK_SIZE), 0);
        self.read_extents(&guard, ino, &extents, first, &mut scratch[..blocks * BLOCK_SIZE])?;
        self.meters.read.record(begin.elapsed(), size);
        Ok(scratch.get(skip..skip + size).unwrap_or_default())
    }

    /// The file's size, and its extents that overlap its blocks `from..to`.
    fn stretch(&self, ino: Ino, from: u64, to: u64) -> Result<Stretch> {
        if let Some(stretch) = self.mappings.find(ino, from, to) {
            return Ok(stretch);
        }
        self.view(|view| {
            let inode = file(view, ino)?;
            let end = to.min(inode.size.div_ceil(BLOCK));
            let extents = match end.saturating_sub(from) {
                0 => Vec::new(),
                _ if inode.blocks == 0 => Vec::new(),
                blocks => view.extents(ino, from, end, to_usize(blocks))?,
            };
            Ok(self.mappings.keep(ino, inode.size, from, to, extents))
        })
    }

    /// Fills `out`, which stands for blocks from `first` on, with the content of the extents, and with zeros between
    /// them.
    fn read_extents(
        &self,
        _guard: &pages::ReadGuard<'_>,
        ino: Ino,
        extents: &[ExtentRow],
        first: u64,
        out: &mut [u8],
    ) -> Result<()> {
        let end = first + (out.len() / BLOCK_SIZE) as u64;
        let bytes = |from: u64, to: u64| to_usize(from - first) * BLOCK_SIZE..to_usize(to - first) * BLOCK_SIZE;
        let mut parts: Vec<Part<'_>> = Vec::new();
        // The parts are of the blocks `begin..at`.
        let (mut begin, mut at) = (first, first);
        for extent in extents {
            let Some(tags) = &extent.tags else { continue };
            let (from, to) = (extent.lblock.max(at), extent.end().min(end));
            if from >= to {
                continue;
            }
            let skip = from - extent.lblock;
            let tags = &tags[to_usize(skip)..to_usize(to - extent.lblock)];
            let part = Part { addr: extent.addr.add(skip), id: extent.id.add(skip), tags };
            if from > at || parts.last().is_some_and(|last| last.end() != part.addr) {
                self.store.read_data(&parts, &mut out[bytes(begin, at)], ino)?;
                parts.clear();
                out[bytes(at, from)].fill(0);
                begin = from;
            }
            parts.push(part);
            at = to;
        }
        self.store.read_data(&parts, &mut out[bytes(begin, at)], ino)?;
        out[bytes(at, end)].fill(0);
        Ok(())
    }

    /// Writes all of `data` at `offset`, and returns its length.
    ///
    /// On a full volume it may still overwrite: what is kept back serves for the fresh blocks, which that needs for a while.
    ///
    /// # Errors
    /// [`Error::FileTooBig`], [`Error::NoSpace`], [`Error::IsDirectory`], [`Error::Invalid`]; of the store.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        match self.write_timed(ino, offset, data, Stamp::Now, Account::Users) {
            Err(error) if error.is_no_space() && self.overwrites(ino, offset, data.len())? => {
                self.write_timed(ino, offset, data, Stamp::Now, Account::InPlace)
            }
            other => other,
        }
    }

    /// Whether the file has a block for each of these bytes.
    fn overwrites(&self, ino: Ino, offset: u64, len: usize) -> Result<bool> {
        let (mut at, end) = (offset / BLOCK, offset.saturating_add(len as u64).div_ceil(BLOCK));
        self.each_span(ino, at, end, |span| {
            let follows = span.from <= at;
            at = if follows { span.to } else { at };
            follows
        })?;
        Ok(at >= end)
    }

    /// As [`Fs::write`], for data that the kernel's writeback cache held back.
    ///
    /// The kernel noted the times when it took the data, and sends them afterwards with a `setattr`. It sends none when
    /// the times have stayed the same for it, as with a second write within one tick of its clock. So times that can be
    /// the right ones are left alone.
    ///
    /// # Errors
    /// As [`Fs::write`]; but a store that takes no writes is [`Error::NotDurable`], because the writer was told that
    /// the write was done.
    pub fn write_back(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        let write = |account| self.write_timed(ino, offset, data, Stamp::IfOld, account);
        let written = match write(Account::Accepted) {
            Err(error) if error.is_no_space() && self.overwrites(ino, offset, data.len())? => write(Account::InPlace),
            other => other,
        };
        if written.as_ref().is_err_and(Error::is_no_space) {
            self.refuse(ino);
        }
        written.map_err(Error::of_accepted)
    }

    fn write_timed(&self, ino: Ino, offset: u64, data: &[u8], stamp: Stamp, account: Account) -> Result<usize> {
        self.meters.write.time(data.len(), || self.write_stamped(ino, offset, data, stamp, account))
    }

    fn write_stamped(&self, ino: Ino, offset: u64, data: &[u8], stamp: Stamp, account: Account) -> Result<usize> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Error::FileTooBig)?;
        self.admit()?;
        if offset.is_multiple_of(BLOCK) && end.is_multiple_of(BLOCK) {
            let _content = self.shared(ino);
            let inode = self.view(|view| file(view, ino))?;
            let stale_end = inode.has(FLAG_TAIL | FLAG_TRIM) && end > inode.size;
            if !inode.has(FLAG_RESERVED) && !stale_end {
                let sealed = Sealed { fresh: self.seal(account, offset / BLOCK, data)?, ..Sealed::default() };
                self.put(ino, sealed, end, stamp)?;
                return Ok(data.len());
            }
        }
        let _content = self.exclusive(ino);
        self.write_exclusive(ino, offset, data, stamp, account)?;
        Ok(data.len())
    }

    /// Writes under the exclusive stripe: partial blocks, and into reserved ones.
    fn write_exclusive(&self, ino: Ino, offset: u64, data: &[u8], stamp: Stamp, account: Account) -> Result<()> {
        let inode = self.view(|view| file(view, ino))?;
        if data.is_empty() {
            return Ok(());
        }
        let end = offset + data.len() as u64;
        if end > inode.size {
            self.prepare_growth(&inode, offset / BLOCK)?;
        }
        let pieces = self.whole_blocks(&inode, offset, data)?;
        let mut sealed = Sealed::default();
        for (lblock, bytes) in &pieces {
            if let Err(error) = self.seal_piece(account, &inode, *lblock, bytes, &mut sealed) {
                self.abandon(&sealed.fresh);
                return Err(error);
            }
        }
        self.put(ino, sealed, end, stamp)
    }

    /// Completes a write to whole blocks, with the bytes that the file holds around it: one piece, or up to three.
    fn whole_blocks<'a>(&self, inode: &Inode, offset: u64, data: &'a [u8]) -> Result<Vec<(u64, Cow<'a, [u8]>)>> {
        let end = offset + data.len() as u64;
        let (first, last) = (offset / BLOCK, (end - 1) / BLOCK);
        let (head, tail) = ((offset % BLOCK) as usize, (end % BLOCK) as usize);
        if head == 0 && tail == 0 {
            return Ok(vec![(first, Cow::Borrowed(data))]);
        }
        if data.len() <= COPIED_MAX {
            let mut bytes = vec![0; to_usize(last - first + 1) * BLOCK_SIZE];
            if head != 0 {
                self.old_block(inode, first, &mut bytes[..BLOCK_SIZE])?;
            }
            if tail != 0 && end < inode.size && (head == 0 || last != first) {
                let at = bytes.len() - BLOCK_SIZE;
                self.old_block(inode, last, &mut bytes[at..])?;
            }
            bytes[head..head + data.len()].copy_from_slice(data);
            return Ok(vec![(first, Cow::Owned(bytes))]);
        }
        let mut pieces = Vec::with_capacity(3);
        let mut rest = data;
        if head != 0 {
            let mut block = vec![0; BLOCK_SIZE];
            self.old_block(inode, first, &mut block)?;
            let (begin, after) = data.split_at(BLOCK_SIZE - head);
            block[head..].copy_from_slice(begin);
            pieces.push((first, Cow::Owned(block)));
            rest = after;
        }
        let (middle, ending) = rest.split_at(rest.len() - tail);
        pieces.push((offset.div_ceil(BLOCK), Cow::Borrowed(middle)));
        if tail != 0 {
            let mut block = vec![0; BLOCK_SIZE];
            if end < inode.size {
                self.old_block(inode, last, &mut block)?;
            }
            block[..tail].copy_from_slice(ending);
            pieces.push((last, Cow::Owned(block)));
        }
        Ok(pieces)
    }

    /// Fills `out`, one block of zeros, with the file's bytes there. Bytes after the file's end stay zeros.
    fn old_block(&self, inode: &Inode, lblock: u64, out: &mut [u8]) -> Result<()> {
        let inside = inode.size.saturating_sub(lblock * BLOCK).min(BLOCK) as usize;
        if inside == 0 {
            return Ok(());
        }
        let guard = self.store.reader();
        let extents = self.view(|view| Ok(view.extents(inode.ino, lblock, lblock + 1, 1)?))?;
        self.read_extents(&guard, inode.ino, &extents, lblock, out)?;
        out[inside..].fill(0);
        Ok(())
    }

    /// Seals a piece, into reserved blocks where the file has them.
    fn seal_piece(&self, account: Account, inode: &Inode, first: u64, bytes: &[u8], sealed: &mut Sealed) -> Result<()> {
        let blocks = (bytes.len() / BLOCK_SIZE) as u64;
        let mut at = first;
        if inode.has(FLAG_RESERVED) {
            let extents = self.view(|view| Ok(view.extents(inode.ino, first, first + blocks, blocks as usize)?))?;
            for extent in extents.iter().filter(|extent| extent.tags.is_none()) {
                let part = extent.slice(first, first + blocks);
                let range = |from: u64, to: u64| to_usize(from - first) * BLOCK_SIZE..to_usize(to - first) * BLOCK_SIZE;
                if at < part.lblock {
                    sealed.fresh.extend(self.seal(account, at, &bytes[range(at, part.lblock)])?);
                }
                self.fill_reserved(&part, &bytes[range(part.lblock, part.end())], sealed)?;
                at = part.end();
            }
        }
        if at < first + blocks {
            sealed.fresh.extend(self.seal(account, at, &bytes[to_usize(at - first) * BLOCK_SIZE..])?);
        }
        Ok(())
    }

    /// Seals into reserved blocks, in extents of the usual length.
    fn fill_reserved(&self, part: &ExtentRow, bytes: &[u8], sealed: &mut Sealed) -> Result<()> {
        let mut done = 0;
        for chunk in bytes.chunks(to_usize(crate::limits::EXTENT_BLOCKS_MAX) * BLOCK_SIZE) {
            let extent = self.store.write_reserved(part.addr.add(done), chunk)?;
            sealed.filled.push(row(part.lblock + done, extent));
            done += (chunk.len() / BLOCK_SIZE) as u64;
        }
        Ok(())
    }

    /// Seals whole blocks, for the file's blocks from `lblock` on, into fresh space.
    fn seal(&self, account: Account, mut lblock: u64, plain: &[u8]) -> Result<Vec<ExtentRow>> {
        if plain.is_empty() {
            return Ok(Vec::new());
        }
        let blocks = (plain.len() / BLOCK_SIZE) as u64;
        let extents = self.with_space_of(account, blocks, || self.store.write_data_of(account, plain))?;
        Ok(extents
            .into_iter()
            .map(|extent| {
                let row = row(lblock, extent);
                lblock = row.end();
                row
            })
            .collect())
    }

    /// Puts sealed blocks in the file's rows, in place of the extents that were there, and moves the file's end to at
    /// least `end`. On an error abandons the blocks in fresh space.
    fn put(&self, ino: Ino, sealed: Sealed, end: u64, stamp: Stamp) -> Result<()> {
        let done = self.change_at_most(FEW.plus(sealed.weight()), |tx| {
            let mut inode = file(tx, ino)?;
            let before = inode.blocks;
            put(tx, &mut inode, &sealed)?;
            if end > inode.size {
                inode.size = end;
                inode.set(FLAG_TAIL, false);
            }
            let now = now();
            if stamp == Stamp::Now || now.s.saturating_sub(inode.mtime.s) > HELD_BACK_S_MAX {
                inode.mtime = now;
                inode.ctime = now;
            }
            tx.put_inode(&inode);
            Ok(inode.blocks > before)
        });
        let grown = done.inspect_err(|_| self.abandon(&sealed.fresh))?;
        if grown {
            self.refused.grown(ino);
        }
        Ok(())
    }

    fn abandon(&self, fresh: &[ExtentRow]) {
        for extent in fresh {
            self.store.abandon(extent.run());
        }
    }

    /// Makes sure that a file which is about to grow has zeros after its present end. Blocks from `rewritten` on need
    /// none: the caller writes them whole. The caller holds the stripe exclusively.
    pub(super) fn prepare_growth(&self, inode: &Inode, rewritten: u64) -> Result<()> {
        if inode.has(FLAG_TRIM) {
            self.trim(inode.ino, inode.size.div_ceil(BLOCK))?;
        }
        if inode.has(FLAG_TAIL) && inode.size / BLOCK < rewritten {
            self.zero_in_block(inode, inode.size, (inode.size / BLOCK + 1) * BLOCK)?;
            self.change(|tx| {
                let mut inode = file(tx, inode.ino)?;
                inode.set(FLAG_TAIL, false);
                tx.put_inode(&inode);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Makes bytes `from..to`, which are in one block, zeros, if they are not. The caller holds the stripe exclusively.
    pub(super) fn zero_in_block(&self, inode: &Inode, from: u64, to: u64) -> Result<()> {
        let lblock = from / BLOCK;
        let spans = self.view(|view| Ok(view.spans(inode.ino, lblock, lblock + 1, 1)?))?;
        if spans.iter().all(Span::reserved) {
            return Ok(());
        }
        let mut block = vec![0; BLOCK_SIZE];
        self.old_block(inode, lblock, &mut block)?;
        block[to_usize(from - lblock * BLOCK)..to_usize(to - lblock * BLOCK)].fill(0);
        let sealed = Sealed { fresh: self.seal(Account::InPlace, lblock, &block)?, ..Sealed::default() };
        let done = self.change_at_most(FEW.plus(sealed.weight()), |tx| {
            let mut inode = file(tx, inode.ino)?;
            put(tx, &mut inode, &sealed)?;
            tx.put_inode(&inode);
            Ok(())
        });
        if done.is_err() {
            self.abandon(&sealed.fresh);
        }
        done
    }
}

fn row(lblock: u64, extent: Extent) -> ExtentRow {
    ExtentRow { lblock, blocks: extent.blocks, addr: extent.addr, id: extent.id, tags: Some(extent.tags) }
}

/// Puts sealed blocks in the rows. The caller writes the inode.
fn put(tx: &mut Tx<'_>, inode: &mut Inode, sealed: &Sealed) -> Result<()> {
    let ino = inode.ino;
    // A file has blocks past its end only if some were reserved, or a truncation is not finished.
    let end = if inode.has(FLAG_RESERVED | FLAG_TRIM) { u64::MAX } else { inode.size.div_ceil(BLOCK) };
    let mut at = 0;
    while let Some(first) = sealed.fresh.get(at) {
        // One search for each range of neighbours.
        let mut next = first.lblock;
        at += sealed.fresh[at..]
            .iter()
            .take_while(|extent| {
                let neighbour = extent.lblock == next;
                next = if neighbour { extent.end() } else { next };
                neighbour
            })
            .count();
        if first.lblock < end {
            let cleared = tx.clear(ino, first.lblock, next, usize::MAX >> 1)?;
            inode.blocks = inode.blocks.saturating_sub(cleared.blocks);
        }
        inode.blocks += next - first.lblock;
    }
    for extent in &sealed.fresh {
        tx.add_extent(ino, extent)?;
    }
    for extent in &sealed.filled {
        tx.fill_extent(ino, extent)?;
    }
    Ok(())
}

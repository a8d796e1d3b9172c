//! File data: blocks sealed one by one, written to fresh blocks, read back verified. Which file a block belongs to is
//! not known here: the tables say it ([`meta`](crate::meta)).

use std::sync::Arc;

use super::{Account, Error, NO_TAG, Result, Store, Written};
use crate::crypto::Binding;
use crate::device::AlignedBuf;
use crate::limits::{EXTENT_BLOCKS_MAX, REQUEST_BYTES_MAX};
use crate::units::{BLOCK_SIZE, BlockAddr, Ino, Run, Tag, WriteId, to_usize};

/// A run of blocks sealed in one write: what a row of the extent table holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block.
    pub addr: BlockAddr,
    /// Number of blocks, 1 to [`EXTENT_BLOCKS_MAX`].
    pub blocks: u64,
    /// Write identity of the first block; block `i` has `id.add(i)`.
    pub id: WriteId,
    /// One tag a block.
    pub tags: Vec<Tag>,
}

impl Extent {
    /// The blocks.
    pub fn run(&self) -> Run {
        Run::new(self.addr, self.blocks)
    }
}

/// Blocks of an extent that are to be read.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The first block.
    pub addr: BlockAddr,
    /// Its identity.
    pub id: WriteId,
    /// One for each block.
    pub tags: &'a [Tag],
}

impl Part<'_> {
    /// The block behind the last one.
    pub fn end(&self) -> BlockAddr {
        self.addr.add(self.tags.len() as u64)
    }
}

impl Store {
    /// Seals `plain` (a multiple of 4096 bytes) into fresh blocks and queues them for every replica.
    ///
    /// # Errors
    /// [`Error::NoSpace`]; [`Error::ReadOnly`]. Nothing stays taken then.
    pub fn write_data(&self, plain: &[u8]) -> Result<Vec<Extent>> {
        self.write_data_of(Account::Users, plain)
    }

    /// As [`Store::write_data`], on an account.
    ///
    /// # Errors
    /// As [`Store::write_data`].
    pub fn write_data_of(&self, account: Account, plain: &[u8]) -> Result<Vec<Extent>> {
        self.writable()?;
        debug_assert!(plain.len().is_multiple_of(BLOCK_SIZE));
        let mut extents = Vec::with_capacity(plain.len() / BLOCK_SIZE / to_usize(EXTENT_BLOCKS_MAX) + 1);
        for part in plain.chunks(REQUEST_BYTES_MAX) {
            let written = self.take_data(account, (part.len() / BLOCK_SIZE) as u64).and_then(|runs| {
                let mut rest = part;
                for (at, run) in runs.iter().enumerate() {
                    let (now, later) = rest.split_at(run.bytes());
                    if let Err(error) = self.seal_run(*run, now, &mut extents) {
                        runs[at..].iter().for_each(|run| self.abandon(*run));
                        return Err(error);
                    }
                    rest = later;
                }
                Ok(())
            });
            if let Err(error) = written {
                extents.iter().for_each(|extent| self.abandon(extent.run()));
                return Err(error);
            }
        }
        Ok(extents)
    }

    /// Seals `plain` into blocks that came from [`Store::reserve`] and were never written.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub fn write_reserved(&self, addr: BlockAddr, plain: &[u8]) -> Result<Extent> {
        self.writable()?;
        let blocks = (plain.len() / BLOCK_SIZE) as u64;
        debug_assert!(blocks <= EXTENT_BLOCKS_MAX && plain.len().is_multiple_of(BLOCK_SIZE));
        let mut extents = Vec::with_capacity(1);
        self.seal_run(Run::new(addr, blocks), plain, &mut extents)?;
        extents.pop().ok_or_else(|| Error::Corrupt("an empty write".to_owned()))
    }

    fn seal_run(&self, run: Run, plain: &[u8], extents: &mut Vec<Extent>) -> Result<()> {
        let mut sealed = AlignedBuf::scratch(plain.len());
        let first = self.identities(run.blocks);
        let cipher = self.keys.data(self.mount.epoch);
        let mut tags = vec![NO_TAG; to_usize(run.blocks)];
        let blocks = plain.chunks_exact(BLOCK_SIZE).zip(sealed.chunks_exact_mut(BLOCK_SIZE)).zip(&mut tags);
        for (i, ((plain, out), tag)) in blocks.enumerate() {
            let i = i as u64;
            *tag = cipher.seal_block(&Binding::data(self.volume, run.addr.add(i)), first.add(i), plain, out);
        }
        self.mirror.submit(run.addr, Arc::new(sealed))?;
        for (i, tags) in tags.chunks(to_usize(EXTENT_BLOCKS_MAX)).enumerate() {
            let skip = i as u64 * EXTENT_BLOCKS_MAX;
            extents.push(Extent {
                addr: run.addr.add(skip),
                blocks: tags.len() as u64,
                id: first.add(skip),
                tags: tags.to_vec(),
            });
        }
        Ok(())
    }

    /// Takes blocks without writing them (fallocate(2)).
    ///
    /// # Errors
    /// [`Error::NoSpace`]; nothing stays taken then.
    pub fn reserve(&self, blocks: u64) -> Result<Vec<Run>> {
        self.writable()?;
        self.take_data(Account::Users, blocks)
    }

    fn take_data(&self, account: Account, blocks: u64) -> Result<Vec<Run>> {
        let mut space = self.space.lock();
        if space.for_data(account) < blocks {
            return Err(Error::NoSpace);
        }
        let mut runs = Vec::with_capacity(1);
        let mut left = blocks;
        while left > 0 {
            // Invariant: the check above, under the same lock, says that so many are free.
            let Some(run) = space.take_for_data(left) else { return Err(Error::NoSpace) };
            left -= run.blocks;
            runs.push(run);
        }
        Ok(runs)
    }

    /// Reads blocks of extents that lie one after the other on the devices, in one piece. So a request of the kernel
    /// that spans several extents gives a device more to do at once. `out` takes as many blocks as the parts have
    /// together. `of` is the file that the blocks are part of, in case that no replica has one.
    ///
    /// # Errors
    /// [`Error::Integrity`] or [`Error::Io`] when no replica has a block as it was written.
    pub fn read_data(&self, parts: &[Part<'_>], out: &mut [u8], of: Ino) -> Result<()> {
        let Some(first) = parts.first() else { return Ok(()) };
        debug_assert!(parts.windows(2).all(|pair| pair[0].end() == pair[1].addr));
        let run = Run::new(first.addr, parts.iter().map(|part| part.tags.len() as u64).sum());
        let mut cipher = (first.id.epoch, self.keys.data(first.id.epoch));
        let read = self.mirror.read(run, &mut |i, sealed| {
            let addr = run.addr.add(i as u64);
            // Invariant: the mirror asks for blocks of the run alone, and the parts have all of these.
            let part = &parts[parts.partition_point(|part| part.end() <= addr)];
            let skip = addr.0 - part.addr.0;
            if cipher.0 != part.id.epoch {
                cipher = (part.id.epoch, self.keys.data(part.id.epoch));
            }
            let out = &mut out[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE];
            let at = Binding::data(self.volume, run.addr.add(i as u64));
            cipher.1.open_block(&at, part.id.add(skip), &part.tags[to_usize(skip)], sealed, out).is_ok()
        });
        let Err(error) = read else {
            self.forget_lost(run);
            return Ok(());
        };
        let addr = error.block();
        let error = Error::from(error);
        self.note_loss(&error, addr, Some(of));
        Err(error)
    }

    /// Notes that a row now refers to these blocks: the batch puts them in use. Under the metadata lock.
    pub fn publish(&self, run: Run) {
        self.batch.lock().published.push(run);
    }

    /// Notes that rows now refer to this data: the batch is whole only with it. Under the metadata lock.
    pub fn wrote(&self, written: &Written) {
        self.batch.lock().written.append(written);
    }

    /// Notes that no row refers to these blocks any more. Under the metadata lock.
    pub fn free(&self, run: Run) {
        self.forget_lost(run);
        self.batch.lock().freed.push(run);
    }

    /// Notes that no row will refer to these blocks, which were taken. They are available only after the next commit,
    /// because a write to them may still be in flight.
    pub fn abandon(&self, run: Run) {
        self.batch.lock().abandoned.push(run);
    }
}

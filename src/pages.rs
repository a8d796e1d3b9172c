//! In-memory stand-in of the page store, with the same signatures.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    limits::EXTENT_BLOCKS_MAX,
    units::{BLOCK_SIZE, BlockAddr, Generation, Run, Tag, WriteId},
};

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No free block.
    #[error("no space left")]
    NoSpace,
    /// The volume takes no writes.
    #[error("read-only: {0}")]
    ReadOnly(String),
    /// A block did not verify on any replica.
    #[error("integrity: {0}")]
    Integrity(String),
    /// Input or output failed.
    #[error("i/o: {0}")]
    Io(String),
    /// SQLite refused.
    #[error("sqlite: {0}")]
    Sql(#[from] rusqlite::Error),
}

/// Result of the store.
pub type Result<T> = std::result::Result<T, Error>;

/// A run of blocks sealed in one write.
#[derive(Clone, Debug)]
pub struct Extent {
    /// First block.
    pub addr: BlockAddr,
    /// Number of blocks.
    pub blocks: u64,
    /// Identity of the first unit.
    pub id: WriteId,
    /// One tag per block.
    pub tags: Vec<Tag>,
}

/// How full the volume is, in blocks.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// All blocks of the data area.
    pub total_blocks: u64,
    /// Free ones.
    pub free_blocks: u64,
    /// Free ones kept back.
    pub reserved_blocks: u64,
}

/// Keeps freed blocks from being reused.
pub struct ReadGuard<'a>(&'a Store);

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a commit takes along.
pub struct StagedBatch;

#[derive(Default)]
struct State {
    free: BTreeSet<u64>,
    reserved: BTreeSet<u64>,
    fresh: BTreeSet<u64>,
    live: BTreeSet<u64>,
    freed: Vec<u64>,
    data: BTreeMap<u64, (WriteId, Vec<u8>)>,
    counter: u64,
    generation: u64,
    read_only: bool,
}

/// The stand-in.
pub struct Store {
    path: PathBuf,
    total: u64,
    state: Mutex<State>,
    readers: AtomicU64,
}

fn tag(id: WriteId) -> Tag {
    let mut tag = [0x5a; 16];
    tag[..12].copy_from_slice(&id.nonce());
    tag
}

impl Store {
    /// A store of `total` blocks.
    pub fn stand_in(total: u64) -> Arc<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("scelle-stand-in-{}-{number}", std::process::id()));
        let state = State { free: (0..total).collect(), ..State::default() };
        Arc::new(Self { path, total, state: Mutex::new(state), readers: AtomicU64::new(0) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic holds it")
    }

    /// Makes it read-only or writable.
    pub fn set_read_only(&self, read_only: bool) {
        self.state().read_only = read_only;
    }

    fn take(&self, blocks: u64) -> Result<Vec<Run>> {
        let mut state = self.state();
        if (state.free.len() as u64) < blocks {
            return Err(Error::NoSpace);
        }
        let mut runs: Vec<Run> = Vec::new();
        for _ in 0..blocks {
            let at = state.free.pop_first().expect("counted");
            state.fresh.insert(at);
            match runs.last_mut() {
                Some(run) if run.end().0 == at && run.blocks < EXTENT_BLOCKS_MAX => run.blocks += 1,
                _ => runs.push(Run::new(BlockAddr(at), 1)),
            }
        }
        Ok(runs)
    }

    fn seal(&self, addr: BlockAddr, plain: &[u8]) -> Extent {
        let mut state = self.state();
        let blocks = (plain.len() / BLOCK_SIZE) as u64;
        let id = WriteId { epoch: 1, counter: state.counter };
        state.counter += blocks;
        let mut tags = Vec::new();
        for (i, block) in plain.chunks_exact(BLOCK_SIZE).enumerate() {
            state.data.insert(addr.0 + i as u64, (id.add(i as u64), block.to_vec()));
            tags.push(tag(id.add(i as u64)));
        }
        Extent { addr, blocks, id, tags }
    }

    /// The database.
    pub fn open_database(self: &Arc<Self>) -> Result<rusqlite::Connection> {
        Ok(rusqlite::Connection::open(&self.path)?)
    }

    /// Writes fresh blocks.
    pub fn write_data(&self, plain: &[u8]) -> Result<Vec<Extent>> {
        assert!(plain.len().is_multiple_of(BLOCK_SIZE));
        let mut at = 0;
        let runs = self.take((plain.len() / BLOCK_SIZE) as u64)?;
        Ok(runs
            .into_iter()
            .map(|run| {
                let bytes = run.blocks as usize * BLOCK_SIZE;
                at += bytes;
                self.seal(run.addr, &plain[at - bytes..at])
            })
            .collect())
    }

    /// Writes into reserved blocks.
    pub fn write_reserved(&self, addr: BlockAddr, plain: &[u8]) -> Result<Extent> {
        for i in 0..(plain.len() / BLOCK_SIZE) as u64 {
            assert!(self.state().reserved.remove(&(addr.0 + i)), "block is not reserved");
        }
        Ok(self.seal(addr, plain))
    }

    /// Allocates without writing.
    pub fn reserve(&self, blocks: u64) -> Result<Vec<Run>> {
        let runs = self.take(blocks)?;
        for run in &runs {
            self.state().reserved.extend(run.addr.0..run.end().0);
        }
        Ok(runs)
    }

    /// Reads blocks.
    pub fn read_data(&self, addr: BlockAddr, id: WriteId, tags: &[Tag], out: &mut [u8]) -> Result<()> {
        assert_eq!(out.len(), tags.len() * BLOCK_SIZE);
        let state = self.state();
        for (i, block) in out.chunks_exact_mut(BLOCK_SIZE).enumerate() {
            match state.data.get(&(addr.0 + i as u64)) {
                Some((found, data)) if *found == id.add(i as u64) && tags[i] == tag(*found) => {
                    block.copy_from_slice(data);
                }
                _ => return Err(Error::Integrity(format!("block {addr:?}+{i}"))),
            }
        }
        Ok(())
    }

    /// A row refers to these now.
    pub fn publish(&self, run: Run) {
        let mut state = self.state();
        for at in run.addr.0..run.end().0 {
            assert!(state.fresh.remove(&at), "published twice");
            state.live.insert(at);
        }
    }

    /// No row refers to these any more.
    pub fn free(&self, run: Run) {
        let mut state = self.state();
        for at in run.addr.0..run.end().0 {
            assert!(state.live.remove(&at), "freed twice");
            state.reserved.remove(&at);
            state.freed.push(at);
        }
    }

    /// Allocated but never published.
    pub fn abandon(&self, run: Run) {
        let mut state = self.state();
        for at in run.addr.0..run.end().0 {
            assert!(state.fresh.remove(&at), "abandoned twice");
            state.reserved.remove(&at);
            state.data.remove(&at);
            state.free.insert(at);
        }
    }

    /// Holds reuse back.
    pub fn reader(&self) -> ReadGuard<'_> {
        self.readers.fetch_add(1, Ordering::SeqCst);
        ReadGuard(self)
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        Usage { total_blocks: self.total, free_blocks: self.state().free.len() as u64, reserved_blocks: 8 }
    }

    /// Whether it takes writes.
    pub fn writable(&self) -> Result<()> {
        if self.state().read_only { Err(Error::ReadOnly("test".into())) } else { Ok(()) }
    }

    /// Takes the batch.
    pub fn stage(&self) -> StagedBatch {
        StagedBatch
    }

    /// Writes the batch.
    pub fn commit(&self, _batch: StagedBatch) -> Result<Generation> {
        let mut state = self.state();
        let freed = std::mem::take(&mut state.freed);
        if self.readers.load(Ordering::SeqCst) > 0 {
            state.freed = freed;
            return Ok(Generation(state.generation));
        }
        for at in freed {
            state.data.remove(&at);
            state.free.insert(at);
        }
        state.generation += 1;
        Ok(Generation(state.generation))
    }

    /// Whether a commit must come first.
    pub fn pressure(&self, ops_since_stage: u64) -> bool {
        ops_since_stage > 10_000
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

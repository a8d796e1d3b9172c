//! Sealed blocks that were read lately, kept in memory with their neighbours on the device.
//!
//! A device gives 64 KiB in hardly more time than 4 KiB, and what lies together was written together. So a short read
//! takes the whole cluster around it, and later reads of the neighbours need no device.
//!
//! The cache knows no keys: blocks stay sealed. Whoever reads a block opens it with the write identity that the
//! metadata names today. A block of a cluster that was written since does not verify, and is read anew from the device.
//! So the cache need not be told of writes.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::device::AlignedBuf;
use crate::units::{BLOCK_SIZE, BlockAddr, Run, to_usize};

/// Blocks of a cluster, which begins at a multiple of them.
pub(super) const CLUSTER_BLOCKS: u64 = 16;

/// Clusters that one set holds. Which set a cluster belongs to is fixed; the cluster of a set that was used longest ago
/// makes room.
const WAYS: usize = 8;

const SET_BYTES: u64 = WAYS as u64 * CLUSTER_BLOCKS * BLOCK_SIZE as u64;

/// The clusters in memory.
pub(super) struct Cache {
    sets: Box<[Mutex<Set>]>,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Default)]
struct Set {
    /// Counts the uses of the set.
    clock: u64,
    ways: Vec<Way>,
}

struct Way {
    cluster: u64,
    /// The set's clock when it was used last.
    used: u64,
    sealed: AlignedBuf,
}

/// The cluster that a block belongs to.
fn cluster(addr: BlockAddr) -> u64 {
    addr.0 / CLUSTER_BLOCKS
}

/// The cluster around `run`, which lies in one cluster, without the blocks from `end` on.
pub(super) fn around(run: Run, end: u64) -> Run {
    let first = cluster(run.addr) * CLUSTER_BLOCKS;
    let last = (first + CLUSTER_BLOCKS).min(end).max(run.end().0);
    Run::new(BlockAddr(first), last - first)
}

/// The parts of `run` that lie in different clusters.
pub(super) fn parts(run: Run) -> impl Iterator<Item = Run> {
    let mut at = run.addr.0;
    std::iter::from_fn(move || {
        let end = ((at / CLUSTER_BLOCKS + 1) * CLUSTER_BLOCKS).min(run.end().0);
        let part = (at < end).then(|| Run::new(BlockAddr(at), end - at));
        at = end;
        part
    })
}

impl Cache {
    /// A cache of at most `bytes`; none when that is less than one set (512 KiB).
    pub fn new(bytes: u64) -> Option<Self> {
        let sets: Box<[_]> = (0..bytes / SET_BYTES).map(|_| Mutex::default()).collect();
        (!sets.is_empty()).then_some(Self { sets, hits: AtomicU64::new(0), misses: AtomicU64::new(0) })
    }

    /// Opens the blocks of `run`, which lies in one cluster, if all of them are here and verify.
    pub fn open(&self, run: Run, open: &mut dyn FnMut(usize, &[u8]) -> bool) -> bool {
        let verified = self.try_open(run, open);
        let counter = if verified { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        verified
    }

    fn try_open(&self, run: Run, open: &mut dyn FnMut(usize, &[u8]) -> bool) -> bool {
        let wanted = cluster(run.addr);
        let mut set = self.set(wanted);
        let Some(at) = set.ways.iter().position(|way| way.cluster == wanted) else { return false };
        set.clock += 1;
        let now = set.clock;
        let way = &mut set.ways[at];
        way.used = now;
        let skip = (run.addr.0 % CLUSTER_BLOCKS) as usize * BLOCK_SIZE;
        let sealed = way.sealed.get(skip..skip + run.bytes());
        let verified =
            sealed.is_some_and(|sealed| sealed.chunks_exact(BLOCK_SIZE).enumerate().all(|(i, block)| open(i, block)));
        if !verified {
            set.ways.swap_remove(at);
        }
        verified
    }

    /// A buffer for the cluster `span`, from [`around`]. It is that of the cluster which makes room, if one has to.
    pub fn buffer(&self, span: Run) -> AlignedBuf {
        let mut set = self.set(cluster(span.addr));
        let len = span.bytes();
        let oldest = set.ways.iter().enumerate().min_by_key(|(_, way)| way.used).map(|(at, _)| at);
        match oldest {
            Some(at) if set.ways.len() >= WAYS => {
                let way = set.ways.swap_remove(at);
                if way.sealed.len() == len { way.sealed } else { AlignedBuf::scratch(len) }
            }
            _ => AlignedBuf::scratch(len),
        }
    }

    /// Keeps what was read of the cluster `span`.
    pub fn put(&self, span: Run, sealed: AlignedBuf) {
        let cluster = cluster(span.addr);
        let mut set = self.set(cluster);
        set.clock += 1;
        let used = set.clock;
        // Two threads may have read the same cluster: the later copy stays. Or different ones into the last place.
        set.ways.retain(|way| way.cluster != cluster);
        if set.ways.len() < WAYS {
            set.ways.push(Way { cluster, used, sealed });
        }
    }

    /// Short reads that needed no device, and those that did, since the beginning.
    pub fn counts(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    fn set(&self, cluster: u64) -> MutexGuard<'_, Set> {
        let set = &self.sets[to_usize(cluster % self.sets.len() as u64)];
        set.lock()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn run(addr: u64, blocks: u64) -> Run {
        Run::new(BlockAddr(addr), blocks)
    }

    /// A cluster whose blocks begin with their address.
    fn filled(cache: &Cache, span: Run) -> AlignedBuf {
        let mut buffer = cache.buffer(span);
        for (i, block) in buffer.chunks_exact_mut(BLOCK_SIZE).enumerate() {
            block[..8].copy_from_slice(&(span.addr.0 + i as u64).to_le_bytes());
        }
        buffer
    }

    fn opens(cache: &Cache, wanted: Run) -> bool {
        cache.open(wanted, &mut |i, block| block[..8] == (wanted.addr.0 + i as u64).to_le_bytes())
    }

    #[test]
    fn parts_lie_in_one_cluster_each_and_make_the_run() {
        let of = |addr, blocks| parts(run(addr, blocks)).map(|r| (r.addr.0, r.blocks)).collect::<Vec<_>>();
        assert_eq!(of(0, 16), [(0, 16)]);
        assert_eq!(of(15, 1), [(15, 1)]);
        assert_eq!(of(15, 2), [(15, 1), (16, 1)]);
        assert_eq!(of(3, 30), [(3, 13), (16, 16), (32, 1)]);
    }

    #[test]
    fn a_cluster_ends_where_the_data_area_ends() {
        assert_eq!(around(run(35, 2), 1000), run(32, 16));
        assert_eq!(around(run(35, 2), 40), run(32, 8));
        assert_eq!(around(run(35, 2), 36), run(32, 5));
    }

    #[test]
    fn what_was_put_is_opened_and_what_does_not_verify_is_forgotten() {
        let cache = Cache::new(SET_BYTES).unwrap();
        assert!(!opens(&cache, run(33, 2)));
        cache.put(run(32, 16), filled(&cache, run(32, 16)));
        assert!(opens(&cache, run(33, 2)) && opens(&cache, run(32, 16)) && !opens(&cache, run(16, 1)));
        assert!(!cache.open(run(34, 1), &mut |_, _| false));
        assert!(!opens(&cache, run(33, 2)));
        assert_eq!(cache.counts(), (2, 4));
    }

    #[test]
    fn a_short_cluster_at_the_end_has_no_block_beyond_it() {
        let cache = Cache::new(SET_BYTES).unwrap();
        cache.put(run(32, 3), filled(&cache, run(32, 3)));
        assert!(opens(&cache, run(34, 1)) && !opens(&cache, run(34, 2)));
    }

    #[test]
    fn the_one_used_longest_ago_makes_room_and_memory_is_bounded() {
        let cache = Cache::new(3 * SET_BYTES / 2).unwrap();
        for at in 0..=WAYS as u64 {
            cache.put(run(16 * at, 16), filled(&cache, run(16 * at, 16)));
            assert!(opens(&cache, run(3, 1)));
        }
        assert!(opens(&cache, run(0, 1)) && !opens(&cache, run(16, 1)) && opens(&cache, run(32, 1)));
        assert_eq!(cache.sets[0].lock().ways.len(), WAYS);
        assert!(Cache::new(SET_BYTES - 1).is_none());
    }
}

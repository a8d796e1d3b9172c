//! Space: which blocks of the data area are in use, and which to take next. Pure; no I/O.
//!
//! The module does not know what a block holds, nor when a freed block may be used again: [`pages`](crate::pages) does.
//!
//! [`Bitmap`] is the set of allocated blocks, cut into regions of [`REGION_BLOCKS`] blocks. Each region is a page of
//! the volume's space tree (scelle-format(5)). A set bit is an allocated block; a region that was never touched is not
//! stored and is all free.
//!
//! [`Allocator`] adds the choice of the next blocks. Data is taken next-fit, so that a batch of writes, random or not,
//! lands in consecutive blocks. Metadata is taken from **zones**, so that a commit's pages are one run and do not lie
//! between the data.

use crate::units::{BLOCK_SIZE, BlockAddr, Run, to_usize};

/// Blocks that one page of the bitmap describes: 32768, which is 128 MiB of data area.
pub const REGION_BLOCKS: u64 = BLOCK_SIZE as u64 * 8;

/// Blocks of a metadata zone: 4 MiB.
const ZONE_BLOCKS: u64 = 1024;

/// How many short free runs are looked at before the longest of them is taken.
const CANDIDATES_MAX: usize = 16;

const WORDS: usize = BLOCK_SIZE / 8;

/// The space map contradicts the metadata: a run that is freed was not wholly allocated, a run is allocated twice, or a
/// run lies outside the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("block {addr} is not {expected}: the space map contradicts the metadata", addr = addr.0)]
pub struct Contradiction {
    /// First block that is not as expected.
    pub addr: BlockAddr,
    /// What it should have been.
    pub expected: &'static str,
}

/// A region of which some is allocated. A region that is allocated to the last block keeps no bits: so a volume of
/// large files takes little memory, however large it is.
#[derive(Clone)]
struct Region {
    /// One bit per block; `None` when all blocks are allocated.
    words: Option<Box<[u64; WORDS]>>,
    used: u64,
}

impl Region {
    /// The 64 blocks of a word. Bits past the end of the data area are clear.
    fn word(&self, at: usize) -> u64 {
        match (&self.words, self.used.saturating_sub(at as u64 * 64)) {
            (Some(words), _) => words[at],
            // The whole region is allocated, so the number of used blocks is its length.
            (None, 64..) => u64::MAX,
            (None, rest) => (1 << rest) - 1,
        }
    }

    /// The words, to be changed.
    fn words_mut(&mut self) -> &mut [u64; WORDS] {
        let words = self.words.take().unwrap_or_else(|| Box::new(std::array::from_fn(|at| self.word(at))));
        self.words.insert(words)
    }
}

/// The set of allocated blocks.
#[derive(Clone)]
pub struct Bitmap {
    total: u64,
    used: u64,
    regions: Vec<Option<Region>>,
}

impl Bitmap {
    /// Everything free in a data area of `total` blocks.
    pub fn new(total: u64) -> Self {
        let count = to_usize(total.div_ceil(REGION_BLOCKS));
        Self { total, used: 0, regions: vec![None; count] }
    }

    /// Number of regions.
    pub fn regions(&self) -> u64 {
        self.regions.len() as u64
    }

    /// Blocks in the data area.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Blocks not allocated.
    pub fn free(&self) -> u64 {
        self.total - self.used
    }

    /// The region that describes `addr`.
    pub fn region_of(addr: BlockAddr) -> u64 {
        addr.0 / REGION_BLOCKS
    }

    /// Takes over a stored region. Bits past the end of the data area are ignored.
    ///
    /// # Errors
    /// When there is no such region, when it is loaded already, or when `page` is not one block long.
    pub fn load(&mut self, region: u64, page: &[u8]) -> Result<(), Contradiction> {
        let addr = BlockAddr(region.saturating_mul(REGION_BLOCKS));
        let outside = Contradiction { addr, expected: "part of this volume" };
        let limit = self.region_len(region);
        let slot = self.regions.get_mut(to_usize(region)).ok_or(outside)?;
        if slot.is_some() || page.len() != BLOCK_SIZE {
            return Err(Contradiction { addr, expected: "described once" });
        }
        let mut words = Box::new([0u64; WORDS]);
        for (word, bytes) in words.iter_mut().zip(page.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        for bit in limit..REGION_BLOCKS {
            words[(bit / 64) as usize] &= !(1 << (bit % 64));
        }
        let used = words.iter().map(|w| u64::from(w.count_ones())).sum();
        self.used += used;
        *slot = Some(Region { words: (used < limit).then_some(words), used });
        Ok(())
    }

    /// The stored form of a region.
    pub fn page(&self, region: u64) -> [u8; BLOCK_SIZE] {
        let mut page = [0; BLOCK_SIZE];
        if let Some(Some(region)) = self.regions.get(to_usize(region)) {
            for (at, bytes) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                *bytes = region.word(at).to_le_bytes();
            }
        }
        page
    }

    /// Blocks that `region` describes: fewer in the last one.
    fn region_len(&self, region: u64) -> u64 {
        self.total.saturating_sub(region.saturating_mul(REGION_BLOCKS)).min(REGION_BLOCKS)
    }

    /// Whether `addr` is allocated. Blocks outside the volume count as allocated.
    pub fn is_allocated(&self, addr: BlockAddr) -> bool {
        if addr.0 >= self.total {
            return true;
        }
        match &self.regions[to_usize(Self::region_of(addr))] {
            None => false,
            Some(region) => {
                let bit = addr.0 % REGION_BLOCKS;
                region.word((bit / 64) as usize) >> (bit % 64) & 1 == 1
            }
        }
    }

    /// Marks a free run as allocated.
    ///
    /// # Errors
    /// When part of it is outside the volume or allocated already; nothing has changed then.
    pub fn set(&mut self, run: Run) -> Result<(), Contradiction> {
        self.change(run, true)
    }

    /// Marks an allocated run as free.
    ///
    /// # Errors
    /// When part of it is outside the volume or free already; nothing has changed then.
    pub fn clear(&mut self, run: Run) -> Result<(), Contradiction> {
        self.change(run, false)
    }

    fn change(&mut self, run: Run, to: bool) -> Result<(), Contradiction> {
        let expected = if to { "free" } else { "allocated" };
        let inside = run.addr.0.checked_add(run.blocks).is_some_and(|end| end <= self.total);
        if !inside {
            return Err(Contradiction { addr: run.addr, expected: "part of this volume" });
        }
        let mut at = run.addr.0;
        while at < run.end().0 {
            if self.is_allocated(BlockAddr(at)) == to {
                return Err(Contradiction { addr: BlockAddr(at), expected });
            }
            at += 1;
        }
        at = run.addr.0;
        while at < run.end().0 {
            let len = self.region_len(at / REGION_BLOCKS);
            let region = self.regions[(at / REGION_BLOCKS) as usize]
                .get_or_insert_with(|| Region { words: Some(Box::new([0; WORDS])), used: 0 });
            let bit = at % REGION_BLOCKS;
            let in_word = (64 - bit % 64).min(run.end().0 - at);
            let mask = if in_word == 64 { u64::MAX } else { ((1 << in_word) - 1) << (bit % 64) };
            let word = &mut region.words_mut()[(bit / 64) as usize];
            if to {
                *word |= mask;
                region.used += in_word;
                self.used += in_word;
            } else {
                *word &= !mask;
                region.used -= in_word;
                self.used -= in_word;
            }
            if region.used == len {
                region.words = None;
            }
            at += in_word;
        }
        Ok(())
    }

    /// First free block at or after `from` and before `end`.
    fn next_free(&self, from: u64, end: u64) -> Option<u64> {
        let end = end.min(self.total);
        let mut at = from;
        while at < end {
            let Some(region) = &self.regions[(at / REGION_BLOCKS) as usize] else { return Some(at) };
            if region.words.is_none() {
                at = (at / REGION_BLOCKS + 1) * REGION_BLOCKS;
                continue;
            }
            let bit = at % REGION_BLOCKS;
            let free = !region.word((bit / 64) as usize) >> (bit % 64);
            if free != 0 {
                let found = at + u64::from(free.trailing_zeros());
                return (found < end).then_some(found);
            }
            at += 64 - bit % 64;
        }
        None
    }

    /// Number of free blocks from `at`, at most up to `end`.
    fn free_run(&self, at: u64, end: u64) -> u64 {
        let end = end.min(self.total);
        let mut to = at;
        while to < end {
            let Some(region) = &self.regions[(to / REGION_BLOCKS) as usize] else {
                to = ((to / REGION_BLOCKS + 1) * REGION_BLOCKS).min(end);
                continue;
            };
            let bit = to % REGION_BLOCKS;
            let used = region.word((bit / 64) as usize) >> (bit % 64);
            let span = 64 - bit % 64;
            let zeros = u64::from(used.trailing_zeros()).min(span);
            to += zeros;
            if zeros < span {
                break;
            }
        }
        to.min(end) - at
    }

    /// Every allocated run, in order.
    pub fn allocated_runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (index, region) in self.regions.iter().enumerate() {
            let Some(region) = region else { continue };
            for at in 0..WORDS {
                let mut word = region.word(at);
                let base = index as u64 * REGION_BLOCKS + at as u64 * 64;
                while word != 0 {
                    let start = u64::from(word.trailing_zeros());
                    let len = u64::from((word >> start).trailing_ones());
                    word &= if start + len == 64 { (1 << start) - 1 } else { u64::MAX << (start + len) };
                    match runs.last_mut() {
                        Some(last) if last.end().0 == base + start => last.blocks += len,
                        _ => runs.push(Run::new(BlockAddr(base + start), len)),
                    }
                }
            }
        }
        runs
    }

    /// Verifies the counts against the bits.
    ///
    /// # Errors
    /// Names the first region whose count is wrong.
    pub fn self_check(&self) -> Result<(), Contradiction> {
        let mut total = 0;
        for (index, region) in self.regions.iter().enumerate() {
            let Some(region) = region else { continue };
            let len = self.region_len(index as u64);
            let bits = |words: &[u64; WORDS]| words.iter().map(|w| u64::from(w.count_ones())).sum();
            let used: u64 = region.words.as_deref().map_or(len, bits);
            // A region that is allocated to the last block keeps no bits, and every other region keeps them.
            if used != region.used || used > len || (used == len) != region.words.is_none() {
                let addr = BlockAddr(index as u64 * REGION_BLOCKS);
                return Err(Contradiction { addr, expected: "counted once" });
            }
            total += used;
        }
        if total == self.used { Ok(()) } else { Err(Contradiction { addr: BlockAddr(0), expected: "counted once" }) }
    }
}

/// What blocks are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Extents of files: next-fit over the whole volume.
    Data,
    /// Pages and map: inside zones.
    Metadata,
}

/// The blocks in use at this moment, and where to look for the next.
pub struct Allocator {
    map: Bitmap,
    data_cursor: u64,
    zone_cursor: u64,
    /// First blocks of the zones taken since the mount; the last one is being filled.
    zones: Vec<u64>,
}

impl Allocator {
    /// Allocates around what `map` says is in use.
    pub fn new(map: Bitmap) -> Self {
        Self { map, data_cursor: 0, zone_cursor: 0, zones: Vec::new() }
    }

    /// The set itself.
    pub fn map(&self) -> &Bitmap {
        &self.map
    }

    /// Takes a run of at most `want` blocks (at least one), or nothing when the volume is full.
    pub fn take(&mut self, want: u64, goal: Goal) -> Option<Run> {
        let run = match goal {
            Goal::Data => self.find_data(want)?,
            Goal::Metadata => self.find_metadata(want)?,
        };
        // Invariant: the find functions return free runs inside the volume.
        self.map.set(run).ok()?;
        Some(run)
    }

    /// Gives a run back.
    ///
    /// # Errors
    /// When part of it was not allocated.
    pub fn give_back(&mut self, run: Run) -> Result<(), Contradiction> {
        self.map.clear(run)
    }

    fn find_data(&mut self, want: u64) -> Option<Run> {
        let total = self.map.total;
        let mut best: Option<Run> = None;
        let mut at = self.data_cursor;
        let mut wrapped = false;
        for _ in 0..CANDIDATES_MAX {
            let Some(found) = self.map.next_free(at, total) else {
                if wrapped {
                    break;
                }
                wrapped = true;
                at = 0;
                continue;
            };
            if let Some(zone) = self.zones.last().copied().filter(|zone| (*zone..zone + ZONE_BLOCKS).contains(&found)) {
                at = zone + ZONE_BLOCKS;
                continue;
            }
            let stop = self.zones.last().filter(|zone| **zone > found).map_or(total, |zone| *zone);
            let blocks = self.map.free_run(found, stop.min(found + want));
            if best.is_none_or(|b| b.blocks < blocks) {
                best = Some(Run::new(BlockAddr(found), blocks));
            }
            if blocks >= want {
                break;
            }
            at = found + blocks;
        }
        // Before the volume counts as full, data takes blocks of the current metadata zone too.
        let run = match best {
            Some(run) => run,
            None => {
                let found = self.map.next_free(0, total)?;
                Run::new(BlockAddr(found), self.map.free_run(found, found + want))
            }
        };
        self.data_cursor = run.end().0;
        Some(run)
    }

    fn find_metadata(&mut self, want: u64) -> Option<Run> {
        if let Some(zone) = self.zones.last().copied()
            && let Some(run) = self.in_zone(zone, want)
        {
            return Some(run);
        }
        // In this order: a zone of this mount that is at least half free again, a fresh zone, any hole.
        let half_free = |zone: &u64| self.zone_free(*zone) >= ZONE_BLOCKS / 2;
        if let Some(index) = self.zones.iter().position(half_free) {
            let zone = self.zones.remove(index);
            self.zones.push(zone);
        } else if let Some(zone) = self.fresh_zone() {
            self.zones.push(zone);
        } else {
            let found = self.map.next_free(0, self.map.total)?;
            return Some(Run::new(BlockAddr(found), self.map.free_run(found, found + want)));
        }
        let zone = self.zones.last().copied()?;
        self.in_zone(zone, want)
    }

    /// The next free run of the zone after the run that was taken last, so that a commit's pages stay in order. When
    /// nothing is free there, the first free run of the zone.
    fn in_zone(&mut self, zone: u64, want: u64) -> Option<Run> {
        let end = zone + ZONE_BLOCKS;
        let from = if (zone..end).contains(&self.zone_cursor) { self.zone_cursor } else { zone };
        let found = self.map.next_free(from, end).or_else(|| self.map.next_free(zone, end))?;
        let blocks = self.map.free_run(found, end.min(found + want));
        self.zone_cursor = found + blocks;
        Some(Run::new(BlockAddr(found), blocks))
    }

    fn zone_free(&self, zone: u64) -> u64 {
        let mut free = 0;
        let mut at = zone;
        while let Some(found) = self.map.next_free(at, zone + ZONE_BLOCKS) {
            let run = self.map.free_run(found, zone + ZONE_BLOCKS);
            free += run;
            at = found + run;
        }
        free
    }

    /// A wholly free zone. The search goes onward from the last zone taken, so that old zones get time to empty.
    fn fresh_zone(&self) -> Option<u64> {
        let zones = self.map.total / ZONE_BLOCKS;
        let first = self.zones.last().map_or(0, |zone| zone / ZONE_BLOCKS + 1);
        let wholly_free = |zone: &u64| self.map.free_run(*zone, zone + ZONE_BLOCKS) == ZONE_BLOCKS;
        let searched = zones.min(4096);
        (0..searched).map(|i| (first + i) % zones * ZONE_BLOCKS).find(wholly_free)
    }

    /// Verifies the map's counts.
    ///
    /// # Errors
    /// As [`Bitmap::self_check`].
    pub fn self_check(&self) -> Result<(), Contradiction> {
        self.map.self_check()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_volume_fills_to_the_last_block_and_empties_again() {
        for total in [1, 63, 64, 1500, REGION_BLOCKS + 77] {
            let mut space = Allocator::new(Bitmap::new(total));
            let mut runs = Vec::new();
            while let Some(run) = space.take(100, if runs.len() % 3 == 0 { Goal::Metadata } else { Goal::Data }) {
                runs.push(run);
            }
            assert_eq!(runs.iter().map(|r| r.blocks).sum::<u64>(), total);
            assert_eq!(space.map().free(), 0);
            space.self_check().unwrap();
            // A full volume takes no memory, and is read back as it was stored.
            assert!(space.map().regions.iter().flatten().all(|region| region.words.is_none()));
            let mut again = Bitmap::new(total);
            (0..again.regions()).for_each(|region| again.load(region, &space.map().page(region)).unwrap());
            again.self_check().unwrap();
            assert_eq!(again.allocated_runs(), [Run::new(BlockAddr(0), total)]);
            for run in runs {
                space.give_back(run).unwrap();
            }
            assert_eq!(space.map().free(), total);
        }
    }

    #[test]
    fn freeing_twice_is_noticed_and_changes_nothing() {
        let mut map = Bitmap::new(1000);
        map.set(Run::new(BlockAddr(10), 20)).unwrap();
        assert!(map.clear(Run::new(BlockAddr(25), 10)).is_err());
        assert!(map.set(Run::new(BlockAddr(29), 1)).is_err());
        assert!(map.set(Run::new(BlockAddr(990), 11)).is_err());
        assert!(map.clear(Run::new(BlockAddr(u64::MAX), 2)).is_err());
        assert_eq!(map.free(), 980);
        map.self_check().unwrap();
    }

    #[test]
    fn metadata_and_data_do_not_interleave() {
        let mut space = Allocator::new(Bitmap::new(100_000));
        let mut last = (0, 0);
        for _ in 0..100 {
            let meta = space.take(5, Goal::Metadata).unwrap();
            let data = space.take(50, Goal::Data).unwrap();
            assert_eq!((meta.blocks, data.blocks), (5, 50));
            if last != (0, 0) {
                assert_eq!((meta.addr.0, data.addr.0), last);
            }
            last = (meta.end().0, data.end().0);
        }
    }

    #[test]
    fn pages_round_trip() {
        let mut map = Bitmap::new(REGION_BLOCKS + 10);
        // Once all of the first region, and then most of it not any more.
        map.set(Run::new(BlockAddr(0), REGION_BLOCKS + 6)).unwrap();
        assert_eq!(map.page(0), [0xff; BLOCK_SIZE]);
        assert_eq!(map.page(1)[..2], [0x3f, 0]);
        map.clear(Run::new(BlockAddr(0), REGION_BLOCKS - 3)).unwrap();
        map.self_check().unwrap();
        let mut again = Bitmap::new(REGION_BLOCKS + 10);
        for region in 0..map.regions() {
            again.load(region, &map.page(region)).unwrap();
        }
        again.self_check().unwrap();
        assert_eq!(again.allocated_runs(), map.allocated_runs());
        assert_eq!(again.allocated_runs(), vec![Run::new(BlockAddr(REGION_BLOCKS - 3), 9)]);
        assert!(again.load(0, &[0; BLOCK_SIZE]).is_err());
        assert!(again.load(2, &[0; BLOCK_SIZE]).is_err());
    }

    proptest! {
        #[test]
        fn no_block_is_given_out_twice(ops in proptest::collection::vec((1u64..200, any::<bool>(), 0usize..20), 1..200)) {
            let mut space = Allocator::new(Bitmap::new(5000));
            let mut held: Vec<Run> = Vec::new();
            let mut model = vec![false; 5000];
            for (want, meta, drop) in ops {
                if drop < held.len() && drop % 2 == 0 {
                    let run = held.swap_remove(drop);
                    space.give_back(run).unwrap();
                    model[run.addr.0 as usize..run.end().0 as usize].fill(false);
                } else if let Some(run) = space.take(want, if meta { Goal::Metadata } else { Goal::Data }) {
                    prop_assert!(run.blocks >= 1 && run.blocks <= want);
                    prop_assert!(model[run.addr.0 as usize..run.end().0 as usize].iter().all(|b| !b));
                    model[run.addr.0 as usize..run.end().0 as usize].fill(true);
                    held.push(run);
                } else {
                    prop_assert!(model.iter().all(|b| *b));
                }
                space.self_check().unwrap();
                prop_assert_eq!(space.map().free() as usize, model.iter().filter(|b| !**b).count());
            }
        }
    }
}

//! Reading, and the repair of a copy that was wrong.
//!
//! A run is read from one replica, and the caller verifies it. When that replica is silent, fails the read, or gives a
//! block that does not verify, another one is read. Which replica comes first is decided in [`choice`]; how long each
//! may take, in the page of [`mirror`](super).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::cache::{self, CLUSTER_BLOCKS, Cache};
use super::choice::{self, Candidate};
use super::queue::Job;
use super::{Error, Mirror, Result, device_offset, mask};
use crate::device::{self, AlignedBuf};
use crate::limits::LABEL_SIZE;
use crate::units::{BLOCK_SIZE, BlockAddr, Run, to_usize};

impl Mirror {
    /// Reads a run. `open` is called with the index of each block in the run and its sealed bytes, and says whether the
    /// block verified. It may be called again for the same block with another replica's bytes.
    ///
    /// # Errors
    /// [`Error::Integrity`] or [`Error::Unreadable`] for the first block that no replica can give.
    pub fn read(&self, run: Run, open: &mut dyn FnMut(usize, &[u8]) -> bool) -> Result<()> {
        match self.cache.get() {
            Some(cache) if run.blocks <= CLUSTER_BLOCKS => cache::parts(run).try_for_each(|part| {
                let skip = to_usize(part.addr.0 - run.addr.0);
                self.read_cached(cache, part, &mut |i, sealed| open(skip + i, sealed))
            }),
            _ => self.read_run(self.read_order(run)?, run, open),
        }
    }

    /// Reads a run that lies in one cluster from memory, or else the whole cluster from a replica.
    fn read_cached(&self, cache: &Cache, run: Run, open: &mut dyn FnMut(usize, &[u8]) -> bool) -> Result<()> {
        if cache.open(run, open) {
            return Ok(());
        }
        let mut order = self.read_order(run)?;
        let span = cache::around(run, self.data_blocks(order[0]));
        let buf = match self.ask(order[0], span, cache.buffer(span), self.patience(order.len())[0]) {
            Ok(buf) => buf,
            Err(error) => {
                if let device::Error::Unanswered { .. } = error {
                    order.rotate_left(1);
                }
                // The unreadable block can be a neighbour: only what was asked for is read now.
                return self.read_run(order, run, open);
            }
        };
        let skip = to_usize(run.addr.0 - span.addr.0) * BLOCK_SIZE;
        let bad = self.verify(order[0], &buf[skip..skip + run.bytes()], open);
        if bad.is_empty() {
            cache.put(span, buf);
        }
        self.read_elsewhere(&order, run, &bad, open)
    }

    /// Reads a run from the first replica in `order` that answers, and the blocks that do not verify from the others.
    fn read_run(&self, mut order: Vec<usize>, run: Run, open: &mut dyn FnMut(usize, &[u8]) -> bool) -> Result<()> {
        let replicas = order.len();
        for patience in self.patience(replicas).into_iter().flat_map(|patience| std::iter::repeat_n(patience, replicas))
        {
            let buf = AlignedBuf::scratch(run.bytes());
            let bad = match self.ask(order[0], run, buf, patience) {
                Ok(buf) => self.verify(order[0], &buf, open),
                Err(device::Error::Unanswered { .. }) => {
                    order.rotate_left(1);
                    continue;
                }
                // One unreadable sector must not condemn its neighbours: block by block from here.
                Err(_) => (0..to_usize(run.blocks)).collect(),
            };
            return self.read_elsewhere(&order, run, &bad, open);
        }
        // Invariant: the last patience has no limit.
        Err(Error::Unreadable { addr: run.addr, last: "no answer".to_owned() })
    }

    /// How long each of so many replicas may take for a read, in three turns; `None` is without a limit.
    fn patience(&self, replicas: usize) -> [Option<Duration>; 3] {
        if replicas == 1 { [None; 3] } else { [Some(self.timeout / 30), Some(self.timeout), None] }
    }

    /// Opens the blocks in `sealed`, which `index` gave, and returns those that did not verify.
    fn verify(&self, index: usize, sealed: &[u8], open: &mut dyn FnMut(usize, &[u8]) -> bool) -> Vec<usize> {
        let mut bad = Vec::new();
        for (i, sealed) in sealed.chunks_exact(BLOCK_SIZE).enumerate() {
            if !open(i, sealed) {
                self.replicas[index].counters.integrity.fetch_add(1, Ordering::Relaxed);
                bad.push(i);
            }
        }
        bad
    }

    fn read_elsewhere(
        &self,
        order: &[usize],
        run: Run,
        bad: &[usize],
        open: &mut dyn FnMut(usize, &[u8]) -> bool,
    ) -> Result<()> {
        bad.iter()
            .try_for_each(|i| self.read_block_anywhere(order, run.addr.add(*i as u64), &mut |sealed| open(*i, sealed)))
    }

    /// Reads and verifies one block from any replica and repairs those that gave a wrong one.
    fn read_block_anywhere(&self, order: &[usize], addr: BlockAddr, open: &mut dyn FnMut(&[u8]) -> bool) -> Result<()> {
        let run = Run::new(addr, 1);
        let (mut damaged, mut wrong) = (0, Vec::new());
        let mut last = None;
        let mut left = order.to_vec();
        for patience in self.patience(order.len()) {
            left.sort_by_key(|index| self.is_silent(*index));
            for index in std::mem::take(&mut left) {
                match self.ask(index, run, AlignedBuf::scratch(BLOCK_SIZE), patience) {
                    Ok(buf) if open(&buf) => {
                        for damaged in wrong {
                            self.repair(damaged, addr, &buf);
                        }
                        return Ok(());
                    }
                    Ok(_) => {
                        if index != order[0] {
                            self.replicas[index].counters.integrity.fetch_add(1, Ordering::Relaxed);
                        }
                        damaged += 1;
                        wrong.push(index);
                    }
                    Err(device::Error::Unanswered { .. }) => left.push(index),
                    Err(error) => {
                        last = Some(error.to_string());
                        wrong.push(index);
                    }
                }
            }
        }
        log::error!("block {} verifies on none of {} replicas", addr.0, order.len());
        match last {
            Some(last) if damaged == 0 => Err(Error::Unreadable { addr, last }),
            _ => Err(Error::Integrity { addr, tried: damaged }),
        }
    }

    /// Reads a run from one replica as it is there, however long the device takes.
    ///
    /// # Errors
    /// The device's error.
    pub fn read_from(&self, index: usize, run: Run) -> device::Result<AlignedBuf> {
        self.ask(index, run, AlignedBuf::scratch(run.bytes()), None)
    }

    /// As [`Mirror::read_from`], into `buf`, which is as long as the run. The read is abandoned when `patience` is
    /// over.
    pub(super) fn ask(
        &self,
        index: usize,
        run: Run,
        buf: AlignedBuf,
        patience: Option<Duration>,
    ) -> device::Result<AlignedBuf> {
        self.ask_at(index, device_offset(run.addr), buf, patience)
    }

    /// As [`Mirror::ask`], at a byte offset of the device.
    pub(super) fn ask_at(
        &self,
        index: usize,
        offset: u64,
        mut buf: AlignedBuf,
        patience: Option<Duration>,
    ) -> device::Result<AlignedBuf> {
        let replica = &self.replicas[index];
        let Some(device) = self.device(index) else {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(device::Error::Io { action: "read", offset, bytes: buf.len(), source });
        };
        replica.reading.fetch_add(1, Ordering::Relaxed);
        let result = match patience {
            Some(limit) => device.read_within(offset, buf, limit),
            None => device.read_at(offset, &mut buf).map(|()| buf),
        };
        replica.reading.fetch_sub(1, Ordering::Relaxed);
        if let Err(error) = &result {
            replica.counters.read.fetch_add(1, Ordering::Relaxed);
            log::warn!("{}: {error}", device.name());
        }
        result
    }

    /// Has a block that verified written over a copy that did not.
    pub fn repair(&self, index: usize, addr: BlockAddr, sealed: &[u8]) {
        // A reader goes on all the same.
        let _ = self.rewrite(index, device_offset(addr), sealed);
    }

    /// Has something that was damaged written anew at a byte offset of a replica that takes writes. Waits for that for a
    /// moment only: a device that hangs holds neither the caller up nor what the caller keeps from being used again.
    /// Returns whether it was written. It is durable with the next flush.
    ///
    /// The write goes through the replica's queue. So what is written to the same place later comes later on the device,
    /// too, however long the device takes.
    pub fn rewrite(&self, index: usize, offset: u64, bytes: &[u8]) -> bool {
        // A replica that does not answer would not take a write either.
        if !self.repairing.load(Ordering::Acquire) || self.is_silent(index) {
            return false;
        }
        let Some(worker) = self.shared.worker(index) else { return false };
        let mut data = AlignedBuf::scratch(bytes.len());
        data.copy_from_slice(bytes);
        let mut inner = self.shared.lock();
        if !inner.takes_writes(index) {
            return false;
        }
        let ticket = inner.ticket(None, 1 << index);
        let job = Job::Repair { offset, data: Arc::new(data), ticket: Arc::clone(&ticket) };
        if worker.queue.push(job) {
            worker.queue.wake();
        }
        let deadline = Instant::now() + self.timeout / 30;
        while !inner.flushed(&ticket) {
            if self.shared.flushed.wait_until(&mut inner, deadline).timed_out() {
                break;
            }
        }
        inner.tickets.retain(|other| !Arc::ptr_eq(other, &ticket));
        ticket.done.load(Ordering::Acquire) >> index & 1 == 1
    }

    /// The replicas to read `run` from, best first and at least one, once nothing of the run is in flight any more.
    fn read_order(&self, run: Run) -> Result<Vec<usize>> {
        let silent = mask((0..self.len()).map(|index| self.is_silent(index)));
        let inner = self.wait_for_writes(|inner| !inner.overlaps(run));
        let candidates = inner.replicas.iter().enumerate().map(|(index, status)| Candidate {
            index,
            state: status.state,
            silent: silent >> index & 1 == 1,
            reading: self.replicas[index].reading.load(Ordering::Relaxed),
        });
        let mut order = choice::read_order(candidates, run.addr);
        if order.is_empty() {
            // Reads go on from the replicas that held the last root (promise P2); what they lack does not verify.
            let durable = self.durable.load(Ordering::Acquire);
            order = (0..self.len()).filter(|i| durable >> i & 1 == 1 && self.shared.worker(*i).is_some()).collect();
            order.sort_by_key(|index| silent >> index & 1 == 1);
        }
        if order.is_empty() {
            return Err(Error::Unreadable { addr: run.addr, last: inner.reasons() });
        }
        Ok(order)
    }

    /// Whether a replica has not yet answered a read that was abandoned.
    fn is_silent(&self, index: usize) -> bool {
        self.shared.worker(index).is_some_and(|worker| worker.device.is_silent())
    }

    /// Blocks of the data area of a replica's device.
    fn data_blocks(&self, index: usize) -> u64 {
        let bytes = self.shared.worker(index).map_or(0, |worker| worker.device.size_bytes());
        bytes.saturating_sub(2 * LABEL_SIZE) / BLOCK_SIZE as u64
    }
}

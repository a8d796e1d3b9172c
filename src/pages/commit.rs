//! Staging a batch and making it durable. The order, and the reasons for it, are in the documentation of [`super`];
//! what makes a root provisional, in [`provisional`].

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::tree::{NodeId, Pointer, Tree, TreeKind};
use super::{Batch, CommitState, Error, NO_TAG, Page, Pages, Result, Store, provisional};
use crate::crypto::Binding;
use crate::device::AlignedBuf;
use crate::label::{Provisional, Root};
use crate::limits::REQUEST_BYTES_MAX;
use crate::mirror::quorum::Stamp;
use crate::problem::Code;
use crate::space::Bitmap;
use crate::units::{BLOCK_SIZE, BlockAddr, Generation, Run, WriteId, to_usize};

/// A batch that was taken from the store under the metadata lock and waits for [`Store::commit`].
pub struct StagedBatch {
    pages: Pages,
    db_pages: u64,
    runs: Batch,
}

impl StagedBatch {
    /// How many pages of the database it changes.
    pub fn pages(&self) -> u64 {
        self.pages.len() as u64
    }
}

/// The blocks of a commit, in the buffers that are written.
struct Layout {
    runs: Vec<(Run, AlignedBuf)>,
}

impl Layout {
    fn new(mut blocks: Vec<BlockAddr>) -> Self {
        blocks.sort_unstable();
        let mut runs: Vec<Run> = Vec::new();
        for addr in blocks {
            match runs.last_mut() {
                Some(run) if run.end() == addr && run.blocks < (REQUEST_BYTES_MAX / BLOCK_SIZE) as u64 => {
                    run.blocks += 1
                }
                _ => runs.push(Run::new(addr, 1)),
            }
        }
        let buffer = |run: Run| (run, AlignedBuf::scratch(run.bytes()));
        Self { runs: runs.into_iter().map(buffer).collect() }
    }

    fn block(&mut self, addr: BlockAddr) -> Result<&mut [u8]> {
        let at = self.runs.partition_point(|(run, _)| run.end() <= addr);
        match self.runs.get_mut(at) {
            Some((run, buf)) if run.addr <= addr => {
                let offset = to_usize(addr.0 - run.addr.0) * BLOCK_SIZE;
                Ok(&mut buf[offset..offset + BLOCK_SIZE])
            }
            _ => Err(Error::Corrupt(format!("block {} was not laid out", addr.0))),
        }
    }
}

/// What a commit writes of one tree: the new place of every page and node, nodes from the lowest level up.
#[derive(Default)]
struct TreePlan {
    pages: Vec<(u64, BlockAddr)>,
    nodes: Vec<(NodeId, BlockAddr)>,
}

/// A commit that has all its blocks.
struct Planned {
    db_plan: TreePlan,
    space_plan: TreePlan,
    taken: Vec<Run>,
    freed: Vec<Run>,
}

/// Everything that a commit takes and frees, reflected in the bitmap that it will store.
struct Plan<'a> {
    store: &'a Store,
    persisted: &'a mut Bitmap,
    regions: BTreeSet<u64>,
    taken: Vec<Run>,
    spare: Option<Run>,
    freed: Vec<Run>,
}

impl Plan<'_> {
    fn put_in_use(&mut self, run: Run) -> Result<()> {
        self.persisted.set(run)?;
        self.touch(run);
        Ok(())
    }

    fn free(&mut self, run: Run) -> Result<()> {
        self.persisted.clear(run)?;
        self.touch(run);
        self.freed.push(run);
        Ok(())
    }

    fn touch(&mut self, run: Run) {
        self.regions.extend(Bitmap::region_of(run.addr)..=Bitmap::region_of(BlockAddr(run.end().0 - 1)));
    }

    /// Takes `want` blocks at once, so that the commit is one run where space allows.
    fn prepare(&mut self, want: u64) {
        if self.spare.is_none() && want > 0 {
            self.spare = self.store.space.lock().take_for_commit(want);
        }
    }

    /// Takes a fresh block, which is in use from now on.
    fn block(&mut self) -> Result<BlockAddr> {
        let run = match self.spare.take() {
            Some(run) => run,
            None => self.store.space.lock().take_for_commit(1).ok_or(Error::NoSpace)?,
        };
        if run.blocks > 1 {
            self.spare = Some(Run::new(run.addr.add(1), run.blocks - 1));
        }
        let block = Run::new(run.addr, 1);
        self.taken.push(block);
        self.put_in_use(block)?;
        Ok(run.addr)
    }

    /// New places for `pages` of `tree` and for the nodes above them that have none yet.
    fn place(&mut self, tree: &mut Tree, pages: &BTreeSet<u64>, plan: &mut TreePlan) -> Result<()> {
        let reader = self.store.node_reader();
        let placed: BTreeSet<NodeId> = plan.nodes.iter().map(|(id, _)| *id).collect();
        let nodes = tree.nodes_above(pages, &reader)?;
        self.prepare((pages.len() + nodes.len()) as u64);
        for no in pages {
            if let Some(old) = tree.get(*no, &reader)? {
                self.free(Run::new(old.addr, 1))?;
                self.store.forget_lost(Run::new(old.addr, 1));
            }
            plan.pages.push((*no, self.block()?));
        }
        for id in nodes.into_iter().filter(|id| !placed.contains(id)) {
            if let Some(old) = tree.node_entry(id) {
                self.free(Run::new(old.addr, 1))?;
            }
            plan.nodes.push((id, self.block()?));
        }
        // Parents are sealed after their children.
        plan.nodes.sort_unstable_by_key(|((level, index), _)| (*level, *index));
        Ok(())
    }

    /// Makes the bitmaps what they were before the commit was planned, of a batch that `published` these runs. The trees
    /// were only read, and perhaps grown: the same batch will grow them again.
    fn undo(self, published: &[Run]) -> Result<()> {
        let Self { store, persisted, taken, spare, freed, .. } = self;
        let mut space = store.space.lock();
        for run in &taken {
            persisted.clear(*run)?;
        }
        for run in taken.into_iter().chain(spare) {
            space.untake(run)?;
        }
        // What was published and freed in the same batch is in use again for a moment.
        freed.into_iter().try_for_each(|run| persisted.set(run))?;
        published.iter().try_for_each(|run| persisted.clear(*run))?;
        Ok(())
    }
}

impl Store {
    /// Takes what the batch changed. Under the metadata lock, right after SQLite's commit; the caller holds off the
    /// next `stage` until [`Store::commit`] has returned.
    pub fn stage(&self) -> StagedBatch {
        let runs = std::mem::take(&mut *self.batch.lock());
        let mut staging = self.staging.lock();
        let current = std::mem::take(&mut staging.current);
        // Now the pages are known, and no longer guessed.
        self.space.lock().promise(self.need(current.len() as u64, staging.db_pages));
        let pages = current.iter().map(|(no, page)| (*no, page.clone())).collect();
        if staging.committing.is_empty() {
            staging.committing = Arc::new(current);
        } else {
            // An earlier commit failed: its pages are the only copy that readers have.
            let mut all = HashMap::clone(&staging.committing);
            all.extend(current);
            staging.committing = Arc::new(all);
        }
        StagedBatch { pages, db_pages: staging.db_pages, runs }
    }

    /// The allocated blocks as of an earlier root. Its space map has to be whole still: nothing keeps it from being
    /// overwritten.
    ///
    /// # Errors
    /// When no replica that is read has a part of the map, or when the map contradicts the volume's size.
    pub fn allocated_at(&self, root: &Root) -> Result<Bitmap> {
        let mut map = Bitmap::new(self.commit.lock().persisted.total());
        let mut tree = Tree::from_ref(TreeKind::Space, &root.space);
        let reader = self.node_reader();
        let mut page = [0; BLOCK_SIZE];
        for region in 0..map.regions().min(tree.pages()) {
            if let Some(entry) = tree.get(region, &reader)? {
                reader.page(TreeKind::Space, region, &entry, &mut page)?;
                map.load(region, &page)?;
            }
        }
        Ok(map)
    }

    /// Takes back a batch that could not be planned: it waits for the next commit, with what was changed since.
    fn unstage(&self, batch: StagedBatch) {
        let StagedBatch { pages, runs, .. } = batch;
        let mut waiting = self.batch.lock();
        let later = std::mem::replace(&mut *waiting, runs);
        waiting.published.extend(later.published);
        waiting.freed.extend(later.freed);
        waiting.abandoned.extend(later.abandoned);
        waiting.written.append(&later.written);
        drop(waiting);
        let mut staging = self.staging.lock();
        for (no, page) in pages {
            staging.current.entry(no).or_insert(page);
        }
        staging.committing = Arc::default();
        self.space.lock().defer();
    }

    /// Makes a batch durable on every in-sync replica, and publishes it. No root is written when the batch is empty,
    /// and the last root is not provisional and still true: of the mount, of the replicas in sync, of registry and
    /// trust anchors.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] when the store is poisoned. [`Error::NoSpace`] when there was no room for the commit: then
    /// the batch waits for the next one. Anything else poisons the store. A caller that would rather keep the batch than
    /// lose it asks [`Store::committable`] before staging.
    pub fn commit(&self, batch: StagedBatch) -> Result<Generation> {
        self.unpoisoned()?;
        let mut state = self.commit.lock();
        let before = self.root();
        let outcome = self.commit_in(&mut state, batch);
        self.space.lock().settle();
        if outcome.is_ok() {
            self.cover_departure(&before)?;
        }
        if let Err(error) = &outcome
            && !matches!(error, Error::NoSpace)
        {
            self.poison(format!(
                "a commit failed, and how much of it reached the devices is not known: {error}. What was fsynced is safe; \
                 unmount and mount again, once enough replicas are approved and there"
            ));
        }
        outcome
    }

    /// When the newest root no longer names a replica that the root `before` named, has that remembered before anybody
    /// is answered. Else that replica, found alone after a power failure, would pass for the volume.
    fn cover_departure(&self, before: &Root) -> Result<()> {
        let has_left = before.in_sync & !self.root().in_sync != 0;
        let Some(remember) = self.on_departure.get().filter(|_| has_left) else {
            return Ok(());
        };
        remember(self).map_err(|why| {
            let why = format!(
                "a replica has left, and this host could not remember that: {why}. The last commit was not answered; it \
                 is on the replicas that are left"
            );
            self.poison_because(Code::WitnessUnavailable, why.clone());
            Error::ReadOnly(why)
        })
    }

    fn commit_in(&self, state: &mut CommitState, batch: StagedBatch) -> Result<Generation> {
        let Batch { published, freed, abandoned, .. } = &batch.runs;
        let nothing = batch.pages.is_empty() && published.is_empty() && freed.is_empty();
        let last = self.root();
        let root_is_true = last.provisional.is_none()
            && last.in_sync == self.mirror.in_sync()
            && last.mount == self.mount
            && Stamp::of(&last) == self.quorum.stamp();
        if nothing && root_is_true {
            if !abandoned.is_empty() {
                self.mirror.flush()?;
            }
            self.release(state, self.generation().0, batch.runs.abandoned)?;
            return Ok(self.generation());
        }
        let mut generation = last.generation.next();
        let Planned { db_plan, space_plan, taken, mut freed } = match self.plan(state, &batch) {
            Err(Error::NoSpace) => {
                self.unstage(batch);
                return Err(Error::NoSpace);
            }
            planned => planned?,
        };
        let Batch { abandoned, mut written, .. } = batch.runs;
        let mut layout = Layout::new(taken.iter().map(|run| run.addr).collect());
        self.seal_database(&mut layout, &db_plan, &batch.pages, generation)?;
        let persisted = &state.persisted;
        let content = |region: u64| persisted.page(region);
        self.seal_tree(&mut layout, &mut state.space_tree, &space_plan, generation, &content)?;
        // Two roots are never provisional. The first of a mount makes its epoch durable before anything that can be lost
        // is sealed in it. From one that names other replicas than the root before, the volume could not fall back.
        let can_be_provisional = last.mount == self.mount
            && last.in_sync == self.mirror.in_sync()
            && (1..=provisional::BLOCKS_MAX).contains(&taken.len())
            && freed.iter().map(|run| run.blocks).sum::<u64>() <= provisional::BLOCKS_MAX as u64;
        // A block that was freed again in the same batch is no part of the commit.
        written.retain(|addr| state.persisted.is_allocated(addr));
        let mut provisional = if can_be_provisional { written.listed() } else { None };
        for (run, buf) in layout.runs {
            self.mirror.submit(run.addr, Arc::new(buf))?;
        }
        if provisional.is_none() {
            self.mirror.flush()?;
        }
        // The root that is answered for must not name a replica that failed in the middle of this. Whoever mounts that
        // replica alone later would go on from an older state, and nothing would show that two histories exist. So
        // another root is published without it. A provisional root is flushed with all that it refers to: the one that
        // takes its place is none.
        while !self.publish_root(state, generation, provisional.take())? {
            generation = generation.next();
        }
        freed.extend(abandoned);
        self.release(state, generation.0, freed)?;
        Ok(generation)
    }

    /// Takes the blocks of a commit, and frees what it frees, in the bitmaps alone. When there are too few blocks, the
    /// bitmaps are what they were.
    fn plan(&self, state: &mut CommitState, batch: &StagedBatch) -> Result<Planned> {
        let CommitState { persisted, space_tree, .. } = state;
        let (regions, taken, freed) = (BTreeSet::new(), Vec::new(), Vec::new());
        let mut plan = Plan { store: self, persisted, regions, taken, spare: None, freed };
        batch.runs.published.iter().try_for_each(|run| plan.put_in_use(*run))?;
        batch.runs.freed.iter().try_for_each(|run| plan.free(*run))?;
        let db_plan = self.plan_database(&mut plan, &batch.pages, batch.db_pages);
        match db_plan.and_then(|db_plan| Ok((db_plan, plan_space(&mut plan, space_tree)?))) {
            Ok((db_plan, space_plan)) => {
                let Plan { taken, spare, freed, .. } = plan;
                debug_assert!(taken.len() as u64 <= self.need(batch.pages.len() as u64, batch.db_pages));
                if let Some(unused) = spare {
                    self.space.lock().untake(unused)?;
                }
                self.space.lock().settle();
                Ok(Planned { db_plan, space_plan, taken, freed })
            }
            Err(Error::NoSpace) => {
                plan.undo(&batch.runs.published)?;
                Err(Error::NoSpace)
            }
            Err(error) => Err(error),
        }
    }

    fn plan_database(&self, plan: &mut Plan<'_>, pages: &Pages, db_pages: u64) -> Result<TreePlan> {
        let mut placed = TreePlan::default();
        if pages.is_empty() {
            return Ok(placed);
        }
        let mut tree = self.db.write();
        tree.grow(db_pages);
        plan.place(&mut tree, &pages.keys().copied().collect(), &mut placed)?;
        Ok(placed)
    }

    fn seal_database(&self, layout: &mut Layout, plan: &TreePlan, pages: &Pages, birth: Generation) -> Result<()> {
        let mut entries = Vec::with_capacity(plan.pages.len());
        for (no, addr) in &plan.pages {
            let page = pages.get(no).ok_or_else(|| Error::Corrupt(format!("page {no} was not staged")))?;
            let at = TreeKind::Database.page(self.volume, *addr, *no);
            entries.push((*no, self.seal_unit(layout, &at, page, birth)?));
        }
        // Until the commit is done, readers find these pages in the staging map.
        let mut tree = self.db.write();
        for (no, entry) in entries {
            tree.set_page(no, entry)?;
        }
        self.seal_nodes(layout, &mut tree, plan, birth)
    }

    fn seal_tree(
        &self,
        layout: &mut Layout,
        tree: &mut Tree,
        plan: &TreePlan,
        birth: Generation,
        content: &dyn Fn(u64) -> Page,
    ) -> Result<()> {
        for (no, addr) in &plan.pages {
            let at = tree.kind().page(self.volume, *addr, *no);
            let entry = self.seal_unit(layout, &at, &content(*no), birth)?;
            tree.set_page(*no, entry)?;
        }
        self.seal_nodes(layout, tree, plan, birth)
    }

    fn seal_nodes(&self, layout: &mut Layout, tree: &mut Tree, plan: &TreePlan, birth: Generation) -> Result<()> {
        for (id, addr) in &plan.nodes {
            let at = tree.kind().node(self.volume, *addr, *id);
            let entry = self.seal_unit(layout, &at, &tree.encode(*id)?, birth)?;
            tree.set_node(*id, entry)?;
        }
        Ok(())
    }

    fn seal_unit(&self, layout: &mut Layout, at: &Binding, plain: &Page, birth: Generation) -> Result<Pointer> {
        let id: WriteId = self.identities(1);
        let tag = self.keys.page().seal_block(at, id, plain, layout.block(at.addr)?);
        debug_assert_ne!(tag, NO_TAG);
        Ok(Pointer { addr: at.addr, birth, id, tag })
    }

    /// Makes the root durable in both label areas of every replica: the commit point. Returns whether every replica
    /// that the root names has it.
    fn publish_root(
        &self,
        state: &mut CommitState,
        generation: Generation,
        provisional: Option<Provisional>,
    ) -> Result<bool> {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let in_sync = self.mirror.in_sync();
        if in_sync == 0 {
            return Err(Error::ReadOnly(self.mirror.nothing_in_sync()));
        }
        let Stamp { registry_version, registry, trust, label } = self.quorum.stamp();
        let root = Root {
            generation,
            mount: self.mount,
            in_sync,
            ring: self.root().ring_after(in_sync),
            lineage: self.lineage,
            committed_unix_ns: since_epoch.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)),
            free_blocks: state.persisted.free(),
            db: self.db.read().to_ref(),
            registry_version,
            registry,
            label,
            space: state.space_tree.to_ref(),
            trust,
            provisional,
        };
        let sealed = Arc::new(root.sealed(&self.keys, self.volume).map_err(|e| Error::Io(e.to_string()))?);
        let offsets = |index| root.offsets(self.device_bytes(index));
        let holders = match provisional {
            Some(_) => self.mirror.flush_with(&sealed, offsets)?,
            // What the root refers to was flushed before: only the root itself has to follow.
            None => self.mirror.publish(&sealed, offsets)?,
        };
        self.db.write().stored();
        state.space_tree.stored();
        self.mirror.set_durable(root.in_sync, generation);
        // The root is stored first: a reader that begins in this generation finds this root or a later one
        // (`View::pin`).
        *self.published.lock() = root;
        self.generation.store(generation.0, Ordering::Release);
        self.staging.lock().committing = Arc::default();
        Ok(holders & root.in_sync == root.in_sync)
    }

    /// Makes available the runs that generation `generation` and earlier ones freed, as far as no reader is left that
    /// may still look at them.
    ///
    /// What a provisional root freed stays as it is until the next root is durable. Until then, whoever opens the
    /// volume may have to go on from the root before it.
    fn release(&self, state: &mut CommitState, generation: u64, runs: Vec<Run>) -> Result<()> {
        if !runs.is_empty() {
            state.releasing.push_back((generation, runs));
        }
        let last = self.root();
        let settled = if last.provisional.is_some() { last.generation.0 } else { u64::MAX };
        let is_free = |(since, _): &(u64, Vec<Run>)| *since < settled && self.readers.none_before(*since);
        while state.releasing.front().is_some_and(is_free) {
            let Some((_, runs)) = state.releasing.pop_front() else { break };
            let mut space = self.space.lock();
            for run in runs {
                space.give_back(run)?;
            }
        }
        self.readers.set_waiting(!state.releasing.is_empty());
        Ok(())
    }
}

/// Takes new places for the space pages that the commit changes. Taking a place changes the bitmap again, so this goes
/// on until every changed region has a place. Each region gets one at most, so the loop ends.
fn plan_space(plan: &mut Plan<'_>, tree: &mut Tree) -> Result<TreePlan> {
    let mut placed = TreePlan::default();
    let mut done: BTreeSet<u64> = BTreeSet::new();
    loop {
        let todo: BTreeSet<u64> = plan.regions.difference(&done).copied().collect();
        let Some(highest) = todo.last() else { return Ok(placed) };
        tree.grow(tree.pages().max(highest + 1));
        // A tree that grew has a new top. Every later page is below it.
        plan.place(tree, &todo, &mut placed)?;
        done.extend(todo);
    }
}

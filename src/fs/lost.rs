//! The list of blocks that no replica can give, kept in the volume: it is known after the next mount before anybody reads
//! them, on whatever host. What is on the list is [`pages::lost`](crate::pages::LostList)'s.
//!
//! # The value `lost` of the table `volume`
//!
//! | bytes | field |
//! |------:|-------|
//! | 8  | how many blocks more are lost than are listed |
//! | 16 | for each block that is listed: its address (8 bytes), and the number of its file (8), 0 for metadata |
//!
//! A row of it is at most a second behind what is true. So a block may have been freed, and used again for something else.
//! Whoever tells of the list after a mount looks at it again ([`Fs::look_at_lost`]).

use std::collections::{BTreeMap, BTreeSet};

use super::{Error, Fs, Result};
use crate::meta::{FILE_BLOCKS_MAX, Weight};
use crate::pages::{LostList, Part};
use crate::units::{BLOCK_SIZE, BlockAddr, Ino, Run, shown, to_usize};

/// Extents whose rows are read at once.
const EXTENTS_AT_ONCE: usize = 64;

fn encode(list: &LostList) -> Vec<u8> {
    let mut value = list.more.to_le_bytes().to_vec();
    for (addr, file) in &list.blocks {
        value.extend(addr.0.to_le_bytes());
        value.extend(file.map_or(0, |ino| ino.0).to_le_bytes());
    }
    value
}

/// What is no row counts for nothing.
fn decode(value: &[u8]) -> LostList {
    let numbers: Vec<u64> = value.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    let Some((more, rows)) = numbers.split_first() else { return LostList::default() };
    let row = |[addr, ino]: &[u64; 2]| (BlockAddr(*addr), (*ino != 0).then_some(Ino(*ino)));
    LostList { blocks: rows.as_chunks::<2>().0.iter().map(row).collect(), more: *more }
}

impl Fs {
    /// Tells the store what earlier mounts knew to be lost.
    pub(super) fn recall_lost(&self) {
        match self.view(|view| Ok(view.lost()?)) {
            Ok(list) => list.iter().for_each(|list| self.store.remember_lost(decode(list))),
            // If a block of the metadata is why, the store has noted it.
            Err(error) => log::error!("which blocks are known to be lost cannot be read: {error}"),
        }
    }

    /// Puts the list into the tables, if it has changed. It is durable with the next commit.
    ///
    /// # Errors
    /// Of the store or of SQLite. Then the list counts as changed.
    pub fn keep_lost(&self) -> Result<()> {
        let Some(list) = self.store.take_lost_changes() else { return Ok(()) };
        let value = encode(&list);
        let weight = Weight { bytes: value.len() as u64, ..Weight::rows(2) };
        let kept = self.store.committable().map_err(Into::into);
        let kept = kept.and_then(|()| self.change_numbered(weight, |tx| Ok(tx.put_lost(&value)?)));
        kept.map(|_| ()).inspect_err(|_| self.store.keep_lost_changes())
    }

    /// Looks up what these files are called, and tells the store: one path, and how many other names there are. A file
    /// without a name keeps its number. Looks at every name of the filesystem, unless `go_on` ends that.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn name_lost(&self, files: &BTreeSet<Ino>, go_on: &dyn Fn() -> bool) -> Result<()> {
        let mut names = BTreeMap::new();
        for (ino, path) in self.paths(files, go_on)? {
            // A row that is lost says nothing of other names.
            let others = self.existing(ino).map_or(0, |inode| inode.nlink.saturating_sub(1));
            let path = shown(&String::from_utf8_lossy(&path));
            names.insert(ino, if others == 0 { path } else { format!("{path} (and {others} more names of it)") });
        }
        self.store.name_lost(names);
        Ok(())
    }

    /// Reads the listed blocks of a file again. Those that are readable or that the file does not have any more are no
    /// longer lost. `go_on` is asked before each step, and may take its time.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn look_at_lost(&self, ino: Ino, go_on: &dyn Fn() -> bool) -> Result<()> {
        let listed = self.store.lost_list().blocks;
        let mut left: BTreeSet<BlockAddr> =
            listed.iter().filter(|(_, file)| **file == Some(ino)).map(|(addr, _)| *addr).collect();
        let mut from = 0;
        let mut plain = [0; BLOCK_SIZE];
        loop {
            if left.is_empty() || !go_on() {
                return Ok(());
            }
            // The reader is taken before the rows are read: what they refer to then is not used again while it lives.
            let _reader = self.store.reader();
            // Not by `view`, which counts what applications ask.
            let extents = self
                .meta()
                .read(|view| Ok::<_, Error>(view.extents(ino, from, FILE_BLOCKS_MAX, EXTENTS_AT_ONCE)?))?;
            let Some(last) = extents.last() else { break };
            from = last.end();
            for extent in &extents {
                let run = extent.run();
                let found: Vec<BlockAddr> = left.range(run.addr..run.end()).copied().collect();
                for addr in found {
                    if !go_on() {
                        return Ok(());
                    }
                    left.remove(&addr);
                    let at = addr.0 - run.addr.0;
                    match extent.tags.as_ref().and_then(|tags| tags.get(to_usize(at))) {
                        // The store notes whether it could be read.
                        Some(tag) => {
                            let part = Part { addr, id: extent.id.add(at), tags: &[*tag] };
                            let _ = self.store.read_data(&[part], &mut plain, ino);
                        }
                        None => self.store.forget_lost(Run::new(addr, 1)),
                    }
                }
            }
        }
        left.iter().for_each(|addr| self.store.forget_lost(Run::new(*addr, 1)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written_and_rubbish_is_no_row() {
        let list = LostList { blocks: [(BlockAddr(7), None), (BlockAddr(9), Some(Ino(3)))].into(), more: 5 };
        assert_eq!(decode(&encode(&list)), list);
        assert_eq!(decode(&encode(&LostList::default())), LostList::default());
        assert_eq!((decode(&[]), decode(&[1; 7])), (LostList::default(), LostList::default()));
        assert_eq!(decode(&encode(&list)[..30]).blocks.len(), 1);
    }
}

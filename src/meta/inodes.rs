//! Rows of `inode` in memory: read once, and written once a commit however often they change.
//!
//! A folder's times change with every name made in it, a file's row changes with every write, and most requests ask for
//! some row. The database may hold an older state of the rows that [`Inodes::write`] has yet to write. So every
//! statement that reads the table must look here first, and every commit writes first.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, params};

use super::{Result, Weight, rows::Inode};
use crate::units::Ino;

/// How many rows are kept that are the same in the database.
const CLEAN_MAX: usize = 1 << 15;

/// How many changed rows make [`Inodes::write`] due, which takes some milliseconds.
const CHANGED_MAX: usize = 1 << 12;

/// One statement for new and changed rows. A symbolic link's target never changes.
const PUT: &str = "INSERT INTO inode VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19) \
     ON CONFLICT(ino) DO UPDATE SET mode = ?2, uid = ?3, gid = ?4, nlink = ?5, parent = ?7, flags = ?8, size = ?9, \
     blocks = ?10, atime_s = ?11, atime_ns = ?12, mtime_s = ?13, mtime_ns = ?14, ctime_s = ?15, ctime_ns = ?16";

/// A row that is different in the database, or absent there.
#[derive(Clone, Debug)]
struct Changed {
    inode: Inode,
    /// The database has no row of this number.
    new: bool,
}

/// The rows, and what undoes the running operation.
#[derive(Debug, Default)]
pub(super) struct Inodes {
    clean: HashMap<Ino, Inode>,
    /// In the order of the table, so that neighbours are written together.
    changed: BTreeMap<Ino, Changed>,
    /// What `changed` held before each change of this operation.
    undo: Vec<(Ino, Option<Changed>)>,
}

impl Inodes {
    /// The row, if it is here.
    pub fn get(&self, ino: Ino) -> Option<&Inode> {
        self.changed.get(&ino).map(|changed| &changed.inode).or_else(|| self.clean.get(&ino))
    }

    /// Keeps a row that was read from the database. The caller has seen that [`Inodes::get`] has none.
    pub fn keep(&mut self, inode: &Inode) {
        if self.clean.len() >= CLEAN_MAX {
            // The root's may be a stand-in, which no other reading brings back.
            self.clean.retain(|ino, _| *ino == Ino::ROOT);
        }
        self.clean.insert(inode.ino, inode.clone());
    }

    /// Begins an operation.
    pub fn begin(&mut self) {
        self.undo.clear();
    }

    /// Makes the changed rows what they were when the operation began.
    pub fn undo(&mut self) {
        while let Some((ino, before)) = self.undo.pop() {
            match before {
                Some(changed) => self.changed.insert(ino, changed),
                None => self.changed.remove(&ino),
            };
        }
    }

    /// Adds a new inode.
    pub fn insert(&mut self, inode: &Inode) {
        self.set(inode.ino, Some(Changed { inode: inode.clone(), new: true }));
    }

    /// Replaces the row of an inode that exists.
    pub fn put(&mut self, inode: &Inode) {
        let new = self.changed.get(&inode.ino).is_some_and(|changed| changed.new);
        self.set(inode.ino, Some(Changed { inode: inode.clone(), new }));
    }

    /// Drops the row. Returns whether the database has one, which the caller then deletes.
    pub fn remove(&mut self, ino: Ino) -> bool {
        !self.set(ino, None).is_some_and(|changed| changed.new)
    }

    fn set(&mut self, ino: Ino, changed: Option<Changed>) -> Option<Changed> {
        // If the operation is undone, the row is read again.
        self.clean.remove(&ino);
        let before = match changed {
            Some(changed) => self.changed.insert(ino, changed),
            None => self.changed.remove(&ino),
        };
        self.undo.push((ino, before.clone()));
        before
    }

    /// What [`Inodes::write`] changes: a row each, and its entry in the index of those without a name.
    pub fn weight(&self) -> Weight {
        Weight::rows(2 * self.changed.len() as u64)
    }

    /// Whether it is time for [`Inodes::write`].
    pub fn is_full(&self) -> bool {
        self.changed.len() >= CHANGED_MAX
    }

    /// Writes the changed rows to the database.
    ///
    /// # Errors
    /// Of SQLite; then it is not known which rows were written.
    pub fn write(&mut self, conn: &Connection) -> Result<()> {
        for changed in self.changed.values() {
            put(conn, &changed.inode, None)?;
        }
        for (_, Changed { inode, .. }) in std::mem::take(&mut self.changed) {
            self.keep(&inode);
        }
        Ok(())
    }
}

/// Writes a row; `target` is a new symbolic link's.
pub(super) fn put(conn: &Connection, inode: &Inode, target: Option<&[u8]>) -> Result<()> {
    let Inode { atime, mtime, ctime, btime, .. } = inode;
    let values = params![
        inode.ino.0,
        inode.mode,
        inode.uid,
        inode.gid,
        inode.nlink,
        inode.rdev,
        inode.parent,
        inode.flags,
        inode.size,
        inode.blocks,
        atime.s,
        atime.ns,
        mtime.s,
        mtime.ns,
        ctime.s,
        ctime.ns,
        btime.s,
        btime.ns,
        target
    ];
    conn.prepare_cached(PUT)?.execute(values)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::meta::{Error, Kind, Meta};

    fn inode(ino: u64, size: u64) -> Inode {
        Inode {
            ino: Ino(ino),
            mode: Kind::File.mode() | 0o600,
            uid: 1,
            gid: 2,
            nlink: 1,
            rdev: 0,
            parent: 0,
            flags: 0,
            size,
            blocks: 0,
            atime: Default::default(),
            mtime: Default::default(),
            ctime: Default::default(),
            btime: Default::default(),
        }
    }

    fn meta() -> Meta {
        Meta::create(Connection::open_in_memory().unwrap()).unwrap()
    }

    fn put(meta: &mut Meta, inode: &Inode) {
        let done = meta.op(|tx| {
            tx.put_inode(inode);
            Ok::<(), Error>(())
        });
        done.unwrap();
    }

    fn size(meta: &Meta, ino: u64) -> Option<u64> {
        meta.read(|view| view.inode(Ino(ino))).unwrap().map(|inode| inode.size)
    }

    fn in_table(meta: &Meta, ino: u64) -> Option<i64> {
        meta.conn.query_row("SELECT size FROM inode WHERE ino = ?", [ino as i64], |row| row.get(0)).ok()
    }

    #[test]
    fn rows_reach_the_table_with_the_commit_and_not_before() {
        let mut meta = meta();
        meta.op(|tx| tx.insert_inode(&inode(5, 1), None)).unwrap();
        put(&mut meta, &inode(5, 2));
        assert_eq!((size(&meta, 5), in_table(&meta, 5)), (Some(2), None));
        meta.commit(|| ()).unwrap();
        assert_eq!((size(&meta, 5), in_table(&meta, 5)), (Some(2), Some(2)));
        put(&mut meta, &inode(5, 3));
        assert_eq!((size(&meta, 5), in_table(&meta, 5)), (Some(3), Some(2)));
        meta.op(|tx| tx.delete_inode(&inode(5, 3))).unwrap();
        assert_eq!((size(&meta, 5), in_table(&meta, 5)), (None, None));
        meta.commit(|| ()).unwrap();
        assert_eq!((size(&meta, 5), in_table(&meta, 5)), (None, None));
    }

    #[test]
    fn an_operation_that_fails_changes_no_row() {
        let mut meta = meta();
        for (ino, committed) in [(5, true), (6, false)] {
            meta.op(|tx| tx.insert_inode(&inode(ino, 1), None)).unwrap();
            if committed {
                meta.commit(|| ()).unwrap();
            }
        }
        let failed = meta.op(|tx| {
            tx.put_inode(&inode(5, 2));
            tx.put_inode(&inode(6, 2));
            tx.insert_inode(&inode(7, 2), None)?;
            tx.insert_inode(&inode(8, 2), Some(b"target"))?;
            tx.put_inode(&inode(8, 3));
            tx.delete_inode(&inode(5, 2))?;
            tx.delete_inode(&inode(6, 2))?;
            Err::<(), Error>(Error::Full)
        });
        assert!(failed.is_err());
        for _ in 0..2 {
            assert_eq!([5, 6, 7, 8].map(|ino| size(&meta, ino)), [Some(1), Some(1), None, None]);
            meta.commit(|| ()).unwrap();
        }
        assert_eq!([5, 6, 7, 8].map(|ino| in_table(&meta, ino)), [Some(1), Some(1), None, None]);
    }

    #[test]
    fn however_many_rows_change_memory_is_bounded() {
        let mut meta = meta();
        for ino in 2..2 + 2 * CLEAN_MAX as u64 {
            meta.op(|tx| tx.insert_inode(&inode(ino, ino), None)).unwrap();
        }
        assert_eq!(in_table(&meta, 2), Some(2));
        let inodes = meta.inodes.borrow();
        assert!(inodes.changed.len() <= CHANGED_MAX && inodes.clean.len() <= CLEAN_MAX);
        drop(inodes);
        assert!((2..2 + 2 * CLEAN_MAX as u64).step_by(97).all(|ino| size(&meta, ino) == Some(ino)));
    }
}

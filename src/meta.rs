//! The metadata: one SQLite database with typed rows, and the one kind of transaction on it.
//!
//! This module knows rows, and neither POSIX nor devices. What rows mean is [`crate::fs`]'s, and where the database's
//! pages lie is [`crate::pages`]'. The tables are in `schema`.
//!
//! A SQLite transaction is always open. Each operation of the filesystem that changes the tables is a savepoint in it
//! ([`Meta::op`]). A commit of the volume closes the transaction, has the page store take the changed pages, and opens
//! the next transaction ([`Meta::commit`]). So an operation is whole or absent, and so is a commit, and operations
//! reach the devices in their order. Rows of inodes change in memory (`inodes`), and the commit writes them.
//!
//! Every statement is prepared once and kept in the connection's cache. Rows are checked when they are read
//! ([`Error::Corrupt`]); nothing in the database can make this module panic.

mod check;
mod inodes;
mod rows;
mod schema;
mod scrub;
mod siphash;
mod tx;
mod weight;

use std::cell::RefCell;

use rusqlite::{Connection, config::DbConfig};

pub use rows::{
    Dentry, ExtentRow, FILE_BLOCKS_MAX, FLAG_ACL_ACCESS, FLAG_ACL_DEFAULT, FLAG_RESERVED, FLAG_TAIL, FLAG_TRIM,
    FLAG_XATTR, Inode, Kind, S_IFMT, Slot, Time,
};
pub use scrub::{KEPT_SCRUB_BYTES_MAX, KeptScrub};
pub use tx::{Blocks, Cleared, Listed, Span, Tx, View, XattrUsage, xattr_flag};
pub use weight::Weight;

use crate::units::Ino;
use inodes::Inodes;
use siphash::HashKey;

/// Why the metadata could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The page store has no page left for the database.
    #[error("no space left for metadata")]
    Full,
    /// The database says something impossible.
    #[error("metadata is damaged: {0}")]
    Corrupt(&'static str),
    /// The schema is of another version than this program writes.
    #[error("the metadata has schema version {found}; this program knows versions up to {known}", known = schema::VERSION)]
    Version {
        /// What the database says.
        found: i64,
    },
    /// SQLite did not take a setting.
    #[error("SQLite did not accept pragma {0}")]
    Pragma(&'static str),
    /// An earlier failure left the open transaction in an unknown state.
    #[error("metadata is unusable after an earlier failure")]
    Poisoned,
    /// The system has no random bytes.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
    /// Anything else from SQLite.
    #[error("{}", crate::pages::describe(.0))]
    Sql(#[source] rusqlite::Error),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The page of the database for which a statement of this thread has just failed, if a page was the reason.
    pub fn unreadable_page(&self) -> Option<u64> {
        match self {
            Self::Sql(error) => crate::pages::unreadable_page(error),
            _ => None,
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            _ => Self::Sql(error),
        }
    }
}

impl From<rusqlite::types::FromSqlError> for Error {
    fn from(_: rusqlite::types::FromSqlError) -> Self {
        Self::Corrupt("a column is of another type")
    }
}

/// Page cache of SQLite, in KiB.
const CACHE_KIB: i64 = 64 << 10;

/// Prepared statements kept: more than this module has.
const STATEMENTS_MAX: usize = 128;

/// Inode numbers that a commit takes ahead of use, so that a number given out and then lost in a crash is not soon
/// given out again.
const INO_LEAP: u64 = 1 << 16;

/// Inode numbers stop here: SQLite's integers are signed.
const INO_MAX: u64 = i64::MAX as u64 - 2 * INO_LEAP;

/// Pragmas of every connection: each is set to its value, and must then have it.
const PRAGMAS: &[(&str, &str)] = &[
    ("page_size", "4096"),
    ("journal_mode", "memory"),
    ("locking_mode", "exclusive"),
    ("temp_store", "2"),
    // Pages go to the store with a commit, or when they are asked for ([`Meta::settle`]), and never by themselves.
    ("cache_spill", "2147483647"),
    ("foreign_keys", "0"),
    ("trusted_schema", "0"),
];

/// What the schema's making, or its migration, changes.
const SCHEMA_WEIGHT: Weight = Weight::rows(32);

/// What a commit changes by itself: the next inode number.
const COMMIT_WEIGHT: Weight = Weight::rows(1);

/// The metadata of an open volume.
pub struct Meta {
    conn: Connection,
    key: HashKey,
    inodes: RefCell<Inodes>,
    next_ino: u64,
    /// `volume.next_ino` as it is in the database.
    ino_ceiling: u64,
    /// What has been changed since the store had all pages, but for the rows of inodes in memory.
    changed: Weight,
    poisoned: bool,
}

impl Meta {
    /// Makes the schema in an empty database, and opens the first transaction. Nothing is committed yet.
    ///
    /// # Errors
    /// Of SQLite, of the page store below it, or of the system's random source.
    pub fn create(conn: Connection) -> Result<Self> {
        configure(&conn)?;
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(Error::Random)?;
        conn.execute_batch("BEGIN IMMEDIATE")?;
        conn.execute_batch(schema::SCHEMA)?;
        conn.pragma_update(None, "user_version", schema::VERSION)?;
        let put = "INSERT INTO volume(key, value) VALUES(?, ?)";
        conn.execute(put, ("name_hash_key", &key[..]))?;
        let first = Ino::ROOT.0 + 1;
        conn.execute(put, ("next_ino", &first.to_le_bytes()[..]))?;
        let mut meta = Self::new(conn, HashKey::new(&key), first);
        meta.changed = SCHEMA_WEIGHT;
        Ok(meta)
    }

    /// Opens an existing database, brings its schema up to date, and opens the first transaction.
    ///
    /// # Errors
    /// [`Error::Version`] for a schema of the future, [`Error::Corrupt`], or of SQLite.
    pub fn open(conn: Connection) -> Result<Self> {
        configure(&conn)?;
        conn.execute_batch("BEGIN IMMEDIATE")?;
        let migrated = migrate(&conn)?;
        let key = HashKey::new(&volume_value(&conn, "name_hash_key")?);
        let next_ino = u64::from_le_bytes(volume_value(&conn, "next_ino")?);
        if !(2..=INO_MAX).contains(&next_ino) {
            return Err(Error::Corrupt("the next inode number is out of bounds"));
        }
        let mut meta = Self::new(conn, key, next_ino);
        if migrated {
            meta.changed = SCHEMA_WEIGHT;
        }
        Ok(meta)
    }

    /// The number that the next inode gets. Every inode has a smaller one.
    pub fn next_ino(&self) -> u64 {
        self.next_ino
    }

    fn new(conn: Connection, key: HashKey, next_ino: u64) -> Self {
        let inodes = RefCell::default();
        Self { conn, key, inodes, next_ino, ino_ceiling: next_ino, changed: Weight::default(), poisoned: false }
    }

    /// From now on `inode` is read in place of a row that cannot be read.
    pub fn stand_in(&self, inode: &Inode) {
        self.inodes.borrow_mut().keep(inode);
    }

    /// Reads.
    ///
    /// # Errors
    /// [`Error::Poisoned`], or what `f` returns.
    pub fn read<T, E: From<Error>>(
        &self,
        f: impl FnOnce(&View<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        if self.poisoned {
            return Err(Error::Poisoned.into());
        }
        f(&View::new(&self.conn, self.key, &self.inodes))
    }

    /// Does one operation: all that `f` changes or, when it returns an error, nothing.
    ///
    /// Also returns which blocks the rows refer to from now on, and which no longer. The caller tells the page store
    /// before it lets go of this `Meta`.
    ///
    /// # Errors
    /// [`Error::Poisoned`], or what `f` returns.
    pub fn op<T, E: From<Error>>(
        &mut self,
        f: impl FnOnce(&mut Tx<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<(T, Blocks), E> {
        if self.poisoned {
            return Err(Error::Poisoned.into());
        }
        if self.inodes.get_mut().is_full() {
            self.write_inodes()?;
        }
        let mut tx = Tx::new(View::new(&self.conn, self.key, &self.inodes), &mut self.next_ino);
        let outcome = f(&mut tx);
        // What is undone has touched its pages all the same.
        self.changed = self.changed.plus(tx.weight());
        let (undone, error) = match outcome {
            Ok(value) => match tx.keep() {
                Ok(blocks) => return Ok((value, blocks)),
                Err(error) => (false, error.into()),
            },
            Err(error) => (tx.undo().is_ok(), error),
        };
        // On some failures SQLite itself ends the whole transaction. Then operations that were already answered are
        // lost.
        self.poisoned = !undone || self.conn.is_autocommit();
        Err(error)
    }

    /// What the store has not been given yet. An operation that changes `more` and the next commit together touch at
    /// most the pages of this sum.
    pub fn waiting(&self, more: Weight) -> Weight {
        self.changed.plus(self.inodes.borrow().weight()).plus(COMMIT_WEIGHT).plus(more)
    }

    /// Gives the store all pages that were changed, before the commit. So what the next commit touches is known instead
    /// of guessed. It takes some milliseconds.
    ///
    /// # Errors
    /// Of SQLite.
    pub fn settle(&mut self) -> Result<()> {
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        self.write_inodes()?;
        self.conn.cache_flush()?;
        self.changed = Weight::default();
        Ok(())
    }

    /// Brings the table of inodes up to date.
    fn write_inodes(&mut self) -> Result<()> {
        self.changed = self.changed.plus(self.inodes.get_mut().weight());
        let written = self.inodes.get_mut().write(&self.conn);
        self.poisoned |= written.is_err();
        written
    }

    /// Ends the SQLite transaction, calls `stage` to have its pages taken, and begins the next one.
    ///
    /// # Errors
    /// Of SQLite. Then the metadata is poisoned: what was answered to callers may not be what the database holds.
    pub fn commit<T>(&mut self, stage: impl FnOnce() -> T) -> Result<T> {
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        let staged = self.commit_inner(stage);
        self.poisoned = staged.is_err();
        staged
    }

    fn commit_inner<T>(&mut self, stage: impl FnOnce() -> T) -> Result<T> {
        self.write_inodes()?;
        if self.next_ino > self.ino_ceiling {
            let ceiling = self.next_ino + INO_LEAP;
            let mut update = self.conn.prepare_cached("UPDATE volume SET value = ? WHERE key = 'next_ino'")?;
            update.execute((&ceiling.to_le_bytes()[..],))?;
            self.ino_ceiling = ceiling;
        }
        self.run("COMMIT")?;
        self.changed = Weight::default();
        let staged = stage();
        self.run("BEGIN IMMEDIATE")?;
        Ok(staged)
    }

    /// Compares the tables with each other: link counts, parents, block counts, overlapping extents, tags. Returns what
    /// is wrong, one sentence each, at most a hundred.
    ///
    /// # Errors
    /// Of SQLite.
    pub fn self_check(&mut self) -> Result<Vec<String>> {
        self.write_inodes()?;
        check::self_check(&self.conn)
    }

    fn run(&self, sql: &'static str) -> Result<()> {
        self.conn.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}

/// Sets and asserts the pragmas.
fn configure(conn: &Connection) -> Result<()> {
    conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // Otherwise a range with parameters is planned, hence parsed, again each time that it is bound: ten times slower.
    if !conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)? {
        return Err(Error::Pragma("query planner stability"));
    }
    for (pragma, value) in PRAGMAS {
        conn.execute_batch(&format!("PRAGMA {pragma} = {value}"))?;
    }
    conn.execute_batch(&format!("PRAGMA cache_size = -{CACHE_KIB}"))?;
    for (pragma, value) in PRAGMAS {
        let found = conn.pragma_query_value(None, pragma, |row| row.get::<_, rusqlite::types::Value>(0))?;
        let same = match found {
            rusqlite::types::Value::Integer(number) => number.to_string() == *value,
            rusqlite::types::Value::Text(text) => text == *value,
            _ => false,
        };
        if !same {
            return Err(Error::Pragma(pragma));
        }
    }
    Ok(())
}

/// Brings the schema up to date. Returns whether that changed anything.
fn migrate(conn: &Connection) -> Result<bool> {
    let found: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let done = usize::try_from(found).ok().and_then(|found| found.checked_sub(1));
    let Some(migrations) = done.and_then(|done| schema::MIGRATIONS.get(done..)) else {
        return Err(Error::Version { found });
    };
    for migration in migrations {
        conn.execute_batch(migration)?;
    }
    if found != schema::VERSION {
        conn.pragma_update(None, "user_version", schema::VERSION)?;
    }
    Ok(found != schema::VERSION)
}

fn volume_value<const N: usize>(conn: &Connection, key: &str) -> Result<[u8; N]> {
    let missing = Error::Corrupt("table volume lacks a value");
    let mut select = conn.prepare("SELECT value FROM volume WHERE key = ?")?;
    let mut rows = select.query([key])?;
    match rows.next()? {
        Some(row) => row.get_ref(0)?.as_blob()?.try_into().map_err(|_| missing),
        None => Err(missing),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::units::{BlockAddr, WriteId};

    fn schema_of(conn: &Connection) -> Vec<String> {
        let mut select = conn.prepare("SELECT ifnull(sql, name) FROM sqlite_schema ORDER BY type, name").unwrap();
        select.query_map([], |row| row.get(0)).unwrap().map(|sql| sql.unwrap()).collect()
    }

    #[test]
    fn base_schema_plus_migrations_is_todays() {
        let (old, new) = (Connection::open_in_memory().unwrap(), Connection::open_in_memory().unwrap());
        old.execute_batch(schema::BASE).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        migrate(&old).unwrap();
        new.execute_batch(schema::SCHEMA).unwrap();
        assert_eq!(schema_of(&old), schema_of(&new));
        let version: i64 = old.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, schema::VERSION);
    }

    #[test]
    fn a_number_that_sqlite_cannot_hold_is_never_written_and_finds_nothing() {
        let mut meta = Meta::create(Connection::open_in_memory().unwrap()).unwrap();
        let extent = |lblock, counter| ExtentRow {
            lblock,
            blocks: 1,
            addr: BlockAddr(7 + lblock),
            id: WriteId { epoch: 1, counter },
            tags: Some(vec![[1; 16]]),
        };
        let refused = meta.op(|tx| tx.add_extent(Ino(5), &extent(0, 1 << 63)));
        assert!(matches!(refused, Err(Error::Sql(_))), "{refused:?}");
        meta.op(|tx| tx.add_extent(Ino(5), &extent(1, 1))).unwrap();
        let found = |ino| meta.read(|view| view.extents(Ino(ino), 0, u64::MAX, usize::MAX)).unwrap().len();
        assert_eq!((found(5), found(u64::MAX)), (1, 0));
        assert!(meta.read(|view| view.inode(Ino(u64::MAX))).unwrap().is_none());
    }

    #[test]
    fn a_database_of_version_1_opens_and_keeps_an_audit_trail() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(schema::BASE).unwrap();
        conn.pragma_update(None, "user_version", 1).unwrap();
        let put = "INSERT INTO volume(key, value) VALUES(?, ?)";
        conn.execute(put, ("name_hash_key", &[1u8; 16][..])).unwrap();
        conn.execute(put, ("next_ino", &2u64.to_le_bytes()[..])).unwrap();
        let mut meta = Meta::open(conn).unwrap();
        assert_eq!(meta.read(|view| view.audit_last(u64::MAX)).unwrap(), None);
        for (seq, record) in [(1, b"one"), (2, b"two")] {
            meta.op(|tx| tx.append_audit(seq, record)).unwrap();
        }
        assert!(meta.op(|tx| tx.append_audit(2, b"another")).is_err());
        assert!(meta.op(|tx| tx.append_audit(3, &vec![0; crate::limits::AUDIT_RECORD_BYTES_MAX + 1])).is_err());
        meta.commit(|| ()).unwrap();
        let found = meta.read(|view| view.audit(0, usize::MAX)).unwrap();
        assert_eq!(found, [(1, b"one".to_vec()), (2, b"two".to_vec())]);
        assert_eq!(meta.read(|view| view.audit(0, 3)).unwrap(), found[..1]);
        assert_eq!(meta.read(|view| view.audit(1, 3)).unwrap(), found[1..]);
        assert_eq!(meta.read(|view| view.audit_last(2)).unwrap().as_ref(), found.first());
        assert_eq!(meta.self_check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_schema_of_the_future_or_of_nobody_is_refused() {
        for version in [0, schema::VERSION + 1, -1] {
            let conn = Connection::open_in_memory().unwrap();
            conn.execute_batch(schema::SCHEMA).unwrap();
            conn.pragma_update(None, "user_version", version).unwrap();
            assert!(matches!(Meta::open(conn), Err(Error::Version { found }) if found == version));
        }
    }

    #[test]
    fn a_database_without_its_values_is_corrupt() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(schema::SCHEMA).unwrap();
        conn.pragma_update(None, "user_version", schema::VERSION).unwrap();
        assert!(matches!(Meta::open(conn), Err(Error::Corrupt(_))));
    }

    #[test]
    fn a_failed_operation_leaves_nothing() {
        let mut meta = Meta::create(Connection::open_in_memory().unwrap()).unwrap();
        let failed = meta.op(|tx| {
            tx.put_xattr(Ino::ROOT, b"user.a", b"1")?;
            Err::<(), Error>(Error::Full)
        });
        assert!(matches!(failed, Err(Error::Full)));
        assert_eq!(meta.read(|view| view.xattr(Ino::ROOT, b"user.a")).unwrap(), None);
        meta.op(|tx| tx.put_xattr(Ino::ROOT, b"user.a", b"2")).unwrap();
        meta.commit(|| ()).unwrap();
        assert_eq!(meta.read(|view| view.xattr(Ino::ROOT, b"user.a")).unwrap(), Some(b"2".to_vec()));
    }

    #[test]
    fn inode_numbers_leap_at_a_commit() {
        let mut meta = Meta::create(Connection::open_in_memory().unwrap()).unwrap();
        let (ino, _) = meta.op(|tx| tx.new_ino()).unwrap();
        assert_eq!(ino, Ino(2));
        meta.commit(|| ()).unwrap();
        let stored = u64::from_le_bytes(volume_value(&meta.conn, "next_ino").unwrap());
        assert_eq!(stored, 3 + INO_LEAP);
    }

    #[test]
    fn every_query_of_a_hot_table_uses_its_key() {
        let meta = Meta::create(Connection::open_in_memory().unwrap()).unwrap();
        for sql in tx::QUERIES {
            let mut explain = meta.conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let parameters = explain.parameter_count();
            let plan: Vec<String> = explain
                .query_map(rusqlite::params_from_iter(std::iter::repeat_n(1, parameters)), |row| row.get(3))
                .unwrap()
                .map(|line| line.unwrap())
                .collect();
            let by_key = |line: &String| !line.contains("SCAN") || line.contains("INDEX orphan");
            assert!(plan.iter().all(by_key), "{sql}: {plan:?}");
            assert!(!plan.iter().any(|line| line.contains("TEMP B-TREE")), "{sql}: {plan:?}");
        }
    }
}

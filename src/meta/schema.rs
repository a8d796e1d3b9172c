//! Schema of the metadata database, by version.
//!
//! | table | one row is | found by |
//! |---|---|---|
//! | `volume` | a named value: the key of the name hash, the next inode number, the blocks that no replica can give | key |
//! | `inode` | a file, folder or other object; `target` is a symbolic link's | number |
//! | `dentry` | a name in a folder; `cookie` is the name's hash, plus up to 15 for a collision | folder, cookie |
//! | `extent` | blocks of a file sealed in one write, or reserved (`tags` NULL) and never written | inode, first block |
//! | `tags` | the tags of an extent that is too long to keep them in its own row (`extent.tags` is then empty) | address |
//! | `xattr` | an extended attribute, POSIX ACLs included | inode, name |
//! | `trim` | a file whose blocks from `lblock` on are still to be freed | inode |
//! | `audit` | a record of the audit trail, as the bytes that are hashed; rows are only ever added | number, from 1 |
//! | `scrub` | what is kept of a scrub: 1 is the one that is to go on, 2 the report of the last one that has ended | number |
//!
//! Long tags live in a table of their own because a table without rowid is a B-tree of whole rows: with a kilobyte in
//! each, a page would hold four of them. `(epoch, counter)` grows with time, so it also says when an extent was born.

/// Version that this code writes, kept in `PRAGMA user_version`.
#[expect(clippy::cast_possible_wrap, reason = "a handful of steps")]
pub const VERSION: i64 = MIGRATIONS.len() as i64 + 1;

/// `MIGRATIONS[i]` leads from version `i + 1` to `i + 2`. Once released, a step stays as it is for ever.
pub const MIGRATIONS: &[&str] = &[
    "CREATE TABLE audit(seq INTEGER PRIMARY KEY, record BLOB NOT NULL);",
    "CREATE TABLE scrub(id INTEGER PRIMARY KEY, kept BLOB NOT NULL);",
];

/// Today's schema.
pub const SCHEMA: &str = "
CREATE TABLE volume(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE inode(
  ino INTEGER PRIMARY KEY,
  mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, nlink INTEGER NOT NULL, rdev INTEGER NOT NULL,
  parent INTEGER NOT NULL, flags INTEGER NOT NULL, size INTEGER NOT NULL, blocks INTEGER NOT NULL,
  atime_s INTEGER NOT NULL, atime_ns INTEGER NOT NULL, mtime_s INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  ctime_s INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, btime_s INTEGER NOT NULL, btime_ns INTEGER NOT NULL,
  target BLOB);
CREATE INDEX orphan ON inode(ino) WHERE nlink = 0;
CREATE TABLE dentry(
  parent INTEGER NOT NULL, cookie INTEGER NOT NULL, ino INTEGER NOT NULL, kind INTEGER NOT NULL, name BLOB NOT NULL,
  PRIMARY KEY(parent, cookie)) WITHOUT ROWID;
CREATE TABLE extent(
  ino INTEGER NOT NULL, lblock INTEGER NOT NULL, blocks INTEGER NOT NULL, addr INTEGER NOT NULL,
  epoch INTEGER NOT NULL, counter INTEGER NOT NULL, tags BLOB,
  PRIMARY KEY(ino, lblock)) WITHOUT ROWID;
CREATE TABLE tags(addr INTEGER PRIMARY KEY, tags BLOB NOT NULL);
CREATE TABLE xattr(
  ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL,
  PRIMARY KEY(ino, name)) WITHOUT ROWID;
CREATE TABLE trim(ino INTEGER PRIMARY KEY, lblock INTEGER NOT NULL);
CREATE TABLE audit(seq INTEGER PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE scrub(id INTEGER PRIMARY KEY, kept BLOB NOT NULL);
";

/// The schema of version 1, for ever.
#[cfg(test)]
pub const BASE: &str = "
CREATE TABLE volume(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE inode(
  ino INTEGER PRIMARY KEY,
  mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, nlink INTEGER NOT NULL, rdev INTEGER NOT NULL,
  parent INTEGER NOT NULL, flags INTEGER NOT NULL, size INTEGER NOT NULL, blocks INTEGER NOT NULL,
  atime_s INTEGER NOT NULL, atime_ns INTEGER NOT NULL, mtime_s INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  ctime_s INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, btime_s INTEGER NOT NULL, btime_ns INTEGER NOT NULL,
  target BLOB);
CREATE INDEX orphan ON inode(ino) WHERE nlink = 0;
CREATE TABLE dentry(
  parent INTEGER NOT NULL, cookie INTEGER NOT NULL, ino INTEGER NOT NULL, kind INTEGER NOT NULL, name BLOB NOT NULL,
  PRIMARY KEY(parent, cookie)) WITHOUT ROWID;
CREATE TABLE extent(
  ino INTEGER NOT NULL, lblock INTEGER NOT NULL, blocks INTEGER NOT NULL, addr INTEGER NOT NULL,
  epoch INTEGER NOT NULL, counter INTEGER NOT NULL, tags BLOB,
  PRIMARY KEY(ino, lblock)) WITHOUT ROWID;
CREATE TABLE tags(addr INTEGER PRIMARY KEY, tags BLOB NOT NULL);
CREATE TABLE xattr(
  ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL,
  PRIMARY KEY(ino, name)) WITHOUT ROWID;
CREATE TABLE trim(ino INTEGER PRIMARY KEY, lblock INTEGER NOT NULL);
";

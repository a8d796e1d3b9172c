//! Typed queries ([`View`]) and changes ([`Tx`]) of the tables, each one operation's.

use std::cell::{Cell, RefCell};
use std::ops::Deref;

use rusqlite::{CachedStatement, Connection, Params, Row};

use super::{
    Error, INO_MAX, Result, Weight,
    inodes::{self, Inodes},
    rows::{
        self, Dentry, ExtentRow, FLAG_ACL_ACCESS, FLAG_ACL_DEFAULT, FLAG_TRIM, FLAG_XATTR, Inode, Kind, Slot, TagPlace,
        inode_columns,
    },
    siphash::HashKey,
};
use crate::{
    limits::{AUDIT_RECORD_BYTES_MAX, XATTR_VALUE_MAX},
    pages::{self, provisional::Written},
    units::{BlockAddr, Ino, Run, Tag},
};

/// How many cookies a name may have, from its hash on: the length of a linear probe.
const PROBE: u64 = 16;

/// Smaller cookies are for "." and "..", and for the beginning of a folder.
const COOKIE_MIN: u64 = 16;

/// Cookies have 62 bits: they are positive as a `loff_t`, probe included.
const COOKIE_MASK: u64 = (1 << 62) - 1;

/// Longest list of tags, in blocks, that stays in the extent's own row.
const INLINE_TAGS_MAX: usize = 8;

const INODE: &str = concat!("SELECT ", inode_columns!(), " FROM inode i WHERE i.ino = ?");
const LOOKUP: &str = concat!(
    "SELECT d.ino, ",
    inode_columns!(),
    " FROM dentry d LEFT JOIN inode i ON i.ino = d.ino WHERE d.parent = ? AND d.cookie BETWEEN ? AND ? AND d.name = ?"
);
const FIND: &str = "SELECT cookie, ino, kind FROM dentry WHERE parent = ? AND cookie BETWEEN ? AND ? AND name = ?";
const PROBED: &str = "SELECT cookie, name FROM dentry WHERE parent = ? AND cookie BETWEEN ? AND ? ORDER BY cookie";
const ANY: &str = "SELECT 1 FROM dentry WHERE parent = ? LIMIT 1";
const LIST: &str = "SELECT cookie, ino, kind, name FROM dentry WHERE parent = ? AND cookie > ? ORDER BY cookie";
const NEXT: &str = "SELECT cookie FROM dentry WHERE parent = ? AND cookie > ? ORDER BY cookie LIMIT 1";
const LIST_PLUS: &str = concat!(
    "SELECT d.cookie, d.ino, d.kind, d.name, ",
    inode_columns!(),
    " FROM dentry d LEFT JOIN inode i ON i.ino = d.ino WHERE d.parent = ? AND d.cookie > ? ORDER BY d.cookie"
);
/// Extents of file ?1 up to block ?3, at most ?4. The first is the extent that holds block ?2; if none does, it is an
/// earlier one or the next.
const EXTENTS: &str = "SELECT lblock, blocks, addr, epoch, counter, tags FROM extent WHERE ino = ?1 AND lblock >= \
     ifnull((SELECT lblock FROM extent WHERE ino = ?1 AND lblock <= ?2 ORDER BY lblock DESC LIMIT 1), ?2) \
     AND lblock < ?3 ORDER BY lblock LIMIT ?4";
/// Extents of all files after block ?2 of file ?1, at most ?3.
const ALL_EXTENTS: &str = "SELECT lblock, blocks, addr, epoch, counter, tags, ino FROM extent \
     WHERE (ino, lblock) > (?1, ?2) ORDER BY ino, lblock LIMIT ?3";
/// Names of all folders after cookie ?2 of folder ?1, at most ?3.
const ALL_NAMES: &str =
    "SELECT parent, cookie, ino, name FROM dentry WHERE (parent, cookie) > (?1, ?2) ORDER BY parent, cookie LIMIT ?3";
/// Names in folder ?1 that lead to ?2.
const NAME_OF: &str = "SELECT name FROM dentry WHERE parent = ? AND ino = ? LIMIT 1";
/// What is known to be lost, as the filesystem writes it down.
const LOST: &str = "SELECT value FROM volume WHERE key = 'lost'";
const TAGS: &str = "SELECT tags FROM tags WHERE addr = ?";
const ORPHANS: &str = "SELECT ino FROM inode WHERE nlink = 0 ORDER BY ino LIMIT ?";
const XATTR: &str = "SELECT value FROM xattr WHERE ino = ? AND name = ?";
const XATTR_USAGE: &str = "SELECT ifnull(sum(iif(name = ?1, 0, length(name) + 1)), 0), \
    ifnull(sum(iif(name = ?1, 0, length(name) + length(value))), 0), ifnull(max(name = ?1), 0) FROM xattr WHERE ino = ?2";
const XATTRS: &str = "SELECT name FROM xattr WHERE ino = ? ORDER BY name";
/// The first attribute of an inode, and the one that says that there are more.
const XATTRS_FIRST: &str = "SELECT name FROM xattr WHERE ino = ? ORDER BY name LIMIT 2";
const TARGET: &str = "SELECT target FROM inode WHERE ino = ?";
const AUDIT: &str = "SELECT seq, record FROM audit WHERE seq > ? ORDER BY seq";
const AUDIT_LAST: &str = "SELECT seq, record FROM audit WHERE seq < ? ORDER BY seq DESC LIMIT 1";

/// Every query, for the test that each one is a search by key.
#[cfg(test)]
pub(super) const QUERIES: &[&str] = &[
    INODE,
    LOOKUP,
    FIND,
    PROBED,
    ANY,
    LIST,
    NEXT,
    LIST_PLUS,
    EXTENTS,
    ALL_EXTENTS,
    ALL_NAMES,
    NAME_OF,
    LOST,
    TAGS,
    ORPHANS,
    XATTR,
    XATTR_USAGE,
    XATTRS,
    XATTRS_FIRST,
    TARGET,
    AUDIT,
    AUDIT_LAST,
    super::scrub::KEPT,
];

/// A name with what it leads to: folder, cookie, inode, name.
pub type FoundName = (Ino, u64, Ino, Vec<u8>);

/// Reads the tables.
#[derive(Clone, Copy)]
pub struct View<'a> {
    conn: &'a Connection,
    key: HashKey,
    inodes: &'a RefCell<Inodes>,
}

/// An entry of a folder's listing.
#[derive(Debug)]
pub struct Listed<'a> {
    /// Where it is and what it leads to.
    pub dentry: Dentry,
    /// Its name.
    pub name: &'a [u8],
    /// The inode, when asked for.
    pub inode: Option<Inode>,
}

impl<'a> View<'a> {
    pub(super) fn new(conn: &'a Connection, key: HashKey, inodes: &'a RefCell<Inodes>) -> Self {
        Self { conn, key, inodes }
    }

    fn prepare(&self, sql: &'static str) -> Result<CachedStatement<'a>> {
        Ok(self.conn.prepare_cached(sql)?)
    }

    pub(super) fn one<T>(
        &self,
        sql: &'static str,
        by: impl Params,
        f: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query(by)?;
        rows.next()?.map(f).transpose()
    }

    fn all<T>(&self, sql: &'static str, by: impl Params, mut f: impl FnMut(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query(by)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(f(row)?);
        }
        Ok(found)
    }

    /// The inode, if it exists.
    ///
    /// # Errors
    /// [`Error::Corrupt`], or of SQLite; so for every method here.
    pub fn inode(&self, ino: Ino) -> Result<Option<Inode>> {
        if let Some(inode) = self.inodes.borrow().get(ino) {
            return Ok(Some(inode.clone()));
        }
        self.one(INODE, (asked(ino.0),), |row| self.joined(ino, row, 0))
    }

    /// The inode `ino`. The row in memory goes before `row`, which holds the database's columns from `first` on.
    fn joined(&self, ino: Ino, row: &Row<'_>, first: usize) -> Result<Inode> {
        if let Some(inode) = self.inodes.borrow().get(ino) {
            return Ok(inode.clone());
        }
        let inode = Inode::from_row(row, first)?;
        self.inodes.borrow_mut().keep(&inode);
        Ok(inode)
    }

    /// The inode that `name` in folder `parent` leads to.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Inode>> {
        let first = self.first_cookie(name);
        self.one(LOOKUP, (asked(parent.0), first, first + PROBE - 1, name), |row| {
            self.joined(Ino(rows::unsigned(row, 0)?), row, 1)
        })
    }

    /// The dentry of `name` in folder `parent`.
    pub fn find(&self, parent: Ino, name: &[u8]) -> Result<Option<Dentry>> {
        let first = self.first_cookie(name);
        self.one(FIND, (asked(parent.0), first, first + PROBE - 1, name), dentry)
    }

    /// A free place for `name` in folder `parent`: nothing when the name exists.
    ///
    /// # Errors
    /// [`Error::Full`] when other names have taken all places that this one may have, which needs sixteen colliding
    /// hashes.
    pub fn slot(&self, parent: Ino, name: &[u8]) -> Result<Option<Slot>> {
        let first = self.first_cookie(name);
        let mut statement = self.prepare(PROBED)?;
        let mut rows = statement.query((asked(parent.0), first, first + PROBE - 1))?;
        let mut free = first;
        while let Some(row) = rows.next()? {
            if rows::name(row, 1)? == name {
                return Ok(None);
            }
            if rows::unsigned(row, 0)? == free {
                free += 1;
            }
        }
        if free < first + PROBE { Ok(Some(Slot(free))) } else { Err(Error::Full) }
    }

    fn first_cookie(&self, name: &[u8]) -> u64 {
        (self.key.hash(name) & COOKIE_MASK).clamp(COOKIE_MIN, COOKIE_MASK - PROBE)
    }

    /// Whether folder `parent` holds any name.
    pub fn any_entry(&self, parent: Ino) -> Result<bool> {
        Ok(self.one(ANY, (asked(parent.0),), |_| Ok(()))?.is_some())
    }

    /// Calls `emit` with the entries of folder `parent` after `cookie`, in the order of their cookies, until it returns
    /// false.
    pub fn list(&self, parent: Ino, cookie: u64, inodes: bool, mut emit: impl FnMut(Listed<'_>) -> bool) -> Result<()> {
        let mut statement = self.prepare(if inodes { LIST_PLUS } else { LIST })?;
        let mut rows = statement.query((asked(parent.0), asked(cookie)))?;
        while let Some(row) = rows.next()? {
            let dentry = dentry(row)?;
            let inode = if inodes { Some(self.joined(dentry.ino, row, 4)?) } else { None };
            if !emit(Listed { dentry, name: rows::name(row, 3)?, inode }) {
                break;
            }
        }
        Ok(())
    }

    /// A listing of folder `parent` after `cookie` has just failed for `page`. Returns the least cookie after which it
    /// does not fail for that page; none when the page reaches to the folder's end.
    ///
    /// A page holds names whose cookies follow each other, and leads to such names. So that cookie is found by bisection,
    /// without the devices.
    pub fn behind(&self, page: u64, parent: Ino, cookie: u64) -> Option<u64> {
        let _left_out = pages::leave_out(page);
        let fails = |after: u64| {
            let next = self.one(NEXT, (asked(parent.0), asked(after)), |_| Ok(()));
            next.is_err_and(|error| error.unreadable_page() == Some(page))
        };
        let (mut low, mut high) = (cookie, COOKIE_MASK);
        if fails(high) {
            return None;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fails(middle) { low = middle } else { high = middle }
        }
        Some(high)
    }

    /// At most `limit` extents of the file that overlap blocks `from..to`, in order, with their tags.
    pub fn extents(&self, ino: Ino, from: u64, to: u64, limit: usize) -> Result<Vec<ExtentRow>> {
        let mut found = self.extents_without_tags(ino, from, to, limit)?;
        found.retain(|(extent, _)| extent.end() > from);
        found.into_iter().map(|(extent, place)| self.with_tags(extent, place)).collect()
    }

    /// At most `limit` extents of all files after block `lblock` of file `ino`, in order.
    pub fn all_extents(&self, ino: Ino, lblock: u64, limit: usize) -> Result<Vec<(Ino, ExtentRow)>> {
        let found = self.all(ALL_EXTENTS, (asked(ino.0), asked(lblock), asked(limit as u64)), |row| {
            Ok((Ino(rows::unsigned(row, 6)?), ExtentRow::from_row(row)?))
        })?;
        found.into_iter().map(|(ino, (extent, place))| Ok((ino, self.with_tags(extent, place)?))).collect()
    }

    /// At most `limit` names of all folders after `cookie` of `folder`, in order.
    pub fn all_names(&self, folder: Ino, cookie: u64, limit: usize) -> Result<Vec<FoundName>> {
        self.all(ALL_NAMES, (asked(folder.0), asked(cookie), asked(limit as u64)), |row| {
            let (folder, cookie) = (Ino(rows::unsigned(row, 0)?), rows::unsigned(row, 1)?);
            Ok((folder, cookie, Ino(rows::unsigned(row, 2)?), rows::name(row, 3)?.to_vec()))
        })
    }

    /// A name in `folder` that leads to `ino`. Looks at all names of the folder.
    pub fn name_of(&self, folder: Ino, ino: Ino) -> Result<Option<Vec<u8>>> {
        self.one(NAME_OF, (asked(folder.0), asked(ino.0)), |row| Ok(rows::name(row, 0)?.to_vec()))
    }

    /// The list of what is lost, as [`Tx::put_lost`] was given it; none when it never was.
    pub fn lost(&self) -> Result<Option<Vec<u8>>> {
        self.one(LOST, (), |row| Ok(row.get_ref(0)?.as_blob()?.to_vec()))
    }

    /// As [`View::extents`], but only where the extents are, without their tags.
    pub fn spans(&self, ino: Ino, from: u64, to: u64, limit: usize) -> Result<Vec<Span>> {
        let mut found = self.extents_without_tags(ino, from, to, limit)?;
        found.retain(|(extent, _)| extent.end() > from);
        let span = |(extent, place): (ExtentRow, TagPlace)| Span {
            from: extent.lblock.max(from),
            to: extent.end().min(to),
            epoch: if matches!(place, TagPlace::Reserved) { None } else { Some(extent.id.epoch) },
        };
        Ok(found.into_iter().map(span).collect())
    }

    /// As [`View::extents`], but without reading tags from the other table, and the first extent may end before `from`.
    fn extents_without_tags(&self, ino: Ino, from: u64, to: u64, limit: usize) -> Result<Vec<(ExtentRow, TagPlace)>> {
        let by = (asked(ino.0), asked(from), asked(to), asked(limit as u64));
        let found = self.all(EXTENTS, by, ExtentRow::from_row)?;
        if found.windows(2).any(|pair| pair[0].0.end() > pair[1].0.lblock) {
            return Err(Error::Corrupt("two extents of a file overlap"));
        }
        Ok(found)
    }

    fn with_tags(&self, mut extent: ExtentRow, place: TagPlace) -> Result<ExtentRow> {
        extent.tags = match place {
            TagPlace::Reserved => None,
            TagPlace::Inline(tags) => Some(tags),
            TagPlace::Table => Some(self.table_tags(extent.addr, extent.blocks)?),
        };
        Ok(extent)
    }

    fn table_tags(&self, addr: BlockAddr, blocks: u64) -> Result<Vec<Tag>> {
        self.one(TAGS, (asked(addr.0),), |row| rows::parse_tags(row.get_ref(0)?.as_blob()?, blocks))?
            .ok_or(Error::Corrupt("an extent has lost its tags"))
    }

    /// At most `limit` inodes without a name, of those that the database has: rows in memory are not looked at.
    pub fn orphans(&self, limit: usize) -> Result<Vec<Ino>> {
        self.all(ORPHANS, (asked(limit as u64),), |row| Ok(Ino(rows::unsigned(row, 0)?)))
    }

    /// Files whose blocks from the given one on are still to be freed.
    pub fn trims(&self) -> Result<Vec<(Ino, u64)>> {
        self.all("SELECT ino, lblock FROM trim", (), |row| Ok((Ino(rows::unsigned(row, 0)?), rows::unsigned(row, 1)?)))
    }

    /// An extended attribute's value.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.one(XATTR, (asked(ino.0), name), |row| {
            let value = row.get_ref(0)?.as_blob()?;
            if value.len() <= XATTR_VALUE_MAX {
                Ok(value.to_vec())
            } else {
                Err(Error::Corrupt("an extended attribute is too long"))
            }
        })
    }

    /// Names of the extended attributes, each followed by NUL.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<u8>> {
        let mut statement = self.prepare(XATTRS)?;
        let mut rows = statement.query((asked(ino.0),))?;
        let mut names = Vec::new();
        while let Some(row) = rows.next()? {
            names.extend_from_slice(rows::name(row, 0)?);
            names.push(0);
        }
        Ok(names)
    }

    /// What the extended attributes of an inode take beside the one called `name`, and whether there is that one.
    pub fn xattr_usage(&self, ino: Ino, name: &[u8]) -> Result<XattrUsage> {
        let usage = self.one(XATTR_USAGE, (name, asked(ino.0)), |row| {
            let (list, bytes) = (rows::unsigned(row, 0)?, rows::unsigned(row, 1)?);
            Ok(XattrUsage { list_bytes: list, bytes, exists: row.get(2)? })
        })?;
        usage.ok_or(Error::Corrupt("a sum has no row"))
    }

    /// A symbolic link's target.
    pub fn target(&self, ino: Ino) -> Result<Option<Vec<u8>>> {
        let target =
            self.one(TARGET, (asked(ino.0),), |row| Ok(row.get_ref(0)?.as_blob_or_null()?.map(<[u8]>::to_vec)))?;
        Ok(target.flatten())
    }
}

impl View<'_> {
    /// The records of the audit trail after number `after`, in order, until they are `bytes` long together.
    pub fn audit(&self, after: u64, bytes: usize) -> Result<Vec<(u64, Vec<u8>)>> {
        let mut statement = self.prepare(AUDIT)?;
        let mut rows = statement.query((asked(after),))?;
        let (mut found, mut length) = (Vec::new(), 0);
        while length < bytes
            && let Some(row) = rows.next()?
        {
            let record = audit_record(row)?;
            length += record.1.len();
            found.push(record);
        }
        Ok(found)
    }

    /// The last record of the audit trail before number `before`.
    pub fn audit_last(&self, before: u64) -> Result<Option<(u64, Vec<u8>)>> {
        self.one(AUDIT_LAST, (asked(before),), audit_record)
    }
}

fn audit_record(row: &Row<'_>) -> Result<(u64, Vec<u8>)> {
    let record = row.get_ref(1)?.as_blob()?;
    if record.len() > AUDIT_RECORD_BYTES_MAX {
        return Err(Error::Corrupt("a record of the audit trail is too long"));
    }
    Ok((rows::unsigned(row, 0)?, record.to_vec()))
}

fn dentry(row: &Row<'_>) -> Result<Dentry> {
    Ok(Dentry { cookie: rows::unsigned(row, 0)?, ino: Ino(rows::unsigned(row, 1)?), kind: rows::kind(row, 2)? })
}

/// What the extended attributes of an inode take, without one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XattrUsage {
    /// Length of the list of their names, in bytes.
    pub list_bytes: u64,
    /// Names and values, in bytes.
    pub bytes: u64,
    /// Whether the inode has the one that is left out.
    pub exists: bool,
}

/// Blocks of a file that an extent covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First block.
    pub from: u64,
    /// First block after.
    pub to: u64,
    /// Number of the mount that wrote it. None when it is reserved and was never written: it reads as zeros.
    pub epoch: Option<u32>,
}

impl Span {
    /// Whether it was reserved and never written.
    pub const fn reserved(&self) -> bool {
        self.epoch.is_none()
    }
}

/// Which blocks an operation began or ceased to refer to.
#[derive(Debug, Default)]
pub struct Blocks {
    /// A row refers to these now.
    pub published: Vec<Run>,
    /// No row refers to these any more.
    pub freed: Vec<Run>,
    /// Rows refer to this data for the first time.
    pub written: Written,
    /// Files whose row or extents changed, perhaps more than once.
    pub files: Vec<Ino>,
}

/// What [`Tx::clear`] did.
#[derive(Clone, Copy, Debug)]
pub struct Cleared {
    /// Blocks freed.
    pub blocks: u64,
    /// Whether extents of the range are left, because the limit was reached.
    pub more: bool,
}

/// One row.
const ROW: Weight = Weight::rows(1);

/// A row of an extended attribute, which may be a long one: its table can have twice as many levels. Replacing one
/// removes one.
const XATTR_ROW: Weight = Weight::rows(4);

fn exactly_one(changed: usize) -> Result<()> {
    if changed == 1 { Ok(()) } else { Err(Error::Corrupt("a row that was just read is gone")) }
}

/// Changes the tables: one operation of the filesystem.
pub struct Tx<'a> {
    view: View<'a>,
    next_ino: &'a mut u64,
    blocks: Blocks,
    /// Whether the database has a savepoint: from the first statement on that changes it.
    savepoint: Cell<bool>,
    weight: Cell<Weight>,
}

impl<'a> Deref for Tx<'a> {
    type Target = View<'a>;

    fn deref(&self) -> &View<'a> {
        &self.view
    }
}

impl<'a> Tx<'a> {
    pub(super) fn new(view: View<'a>, next_ino: &'a mut u64) -> Self {
        view.inodes.borrow_mut().begin();
        Self { view, next_ino, blocks: Blocks::default(), savepoint: Cell::new(false), weight: Cell::default() }
    }

    /// What it has changed so far, but for the rows of inodes in memory.
    pub(super) fn weight(&self) -> Weight {
        self.weight.get()
    }

    fn weigh(&self, more: Weight) {
        let Weight { rows, extents, removed_tags, bytes } = self.weight.get();
        // All extents of an operation are one file's, in one place of it.
        self.weight.set(Weight {
            rows: rows + more.rows,
            extents: extents + more.extents,
            removed_tags: removed_tags + more.removed_tags,
            bytes: bytes + more.bytes,
        });
    }

    /// Ends the operation. Returns what happened to blocks.
    pub(super) fn keep(self) -> Result<Blocks> {
        if self.savepoint.get() {
            self.view.prepare("RELEASE op")?.execute(())?;
        }
        Ok(self.blocks)
    }

    /// Undoes the operation.
    pub(super) fn undo(self) -> Result<()> {
        self.view.inodes.borrow_mut().undo();
        if self.savepoint.get() {
            self.view.prepare("ROLLBACK TO op")?.execute(())?;
            self.view.prepare("RELEASE op")?.execute(())?;
        }
        Ok(())
    }

    /// To be called before the operation's first change of the database.
    fn begin(&self) -> Result<()> {
        if !self.savepoint.replace(true) {
            self.view.prepare("SAVEPOINT op")?.execute(())?;
        }
        Ok(())
    }

    /// Runs a statement that changes at most `weight`, and returns how many rows it changed.
    pub(super) fn execute(&self, weight: Weight, sql: &'static str, values: impl Params) -> Result<usize> {
        self.begin()?;
        self.weigh(weight);
        Ok(self.view.prepare(sql)?.execute(values)?)
    }

    /// Runs a statement that must change exactly one row.
    fn execute_one(&self, sql: &'static str, values: impl Params) -> Result<()> {
        exactly_one(self.execute(ROW, sql, values)?)
    }

    /// As [`Tx::execute_one`], for the row of an extent.
    fn execute_extent(&self, sql: &'static str, values: impl Params) -> Result<()> {
        exactly_one(self.execute(Weight { extents: 1, ..Weight::default() }, sql, values)?)
    }

    /// An inode number that was never used.
    ///
    /// # Errors
    /// [`Error::Full`] after 2^63 of them. The other methods fail with errors of SQLite and [`Error::Corrupt`].
    pub fn new_ino(&mut self) -> Result<Ino> {
        if *self.next_ino > INO_MAX {
            return Err(Error::Full);
        }
        let ino = Ino(*self.next_ino);
        *self.next_ino += 1;
        Ok(ino)
    }

    /// Adds an inode; `target` is a symbolic link's.
    pub fn insert_inode(&mut self, inode: &Inode, target: Option<&[u8]>) -> Result<()> {
        if target.is_some() {
            self.begin()?;
            self.weigh(Weight { rows: 2, bytes: target.map_or(0, <[u8]>::len) as u64, ..Weight::default() });
            return inodes::put(self.view.conn, inode, target);
        }
        self.view.inodes.borrow_mut().insert(inode);
        Ok(())
    }

    /// Changes an inode's row.
    pub fn put_inode(&mut self, inode: &Inode) {
        self.touch(inode.ino);
        self.view.inodes.borrow_mut().put(inode);
    }

    /// Deletes an inode. Its extents and extended attributes must be gone.
    pub fn delete_inode(&mut self, inode: &Inode) -> Result<()> {
        self.touch(inode.ino);
        let ino = inode.ino.0;
        if inode.has(FLAG_TRIM) {
            self.execute(ROW, "DELETE FROM trim WHERE ino = ?", (ino,))?;
        }
        let written = self.view.inodes.borrow_mut().remove(inode.ino);
        if !written {
            return Ok(());
        }
        // And its entry in the index of those without a name.
        self.weigh(ROW);
        self.execute_one("DELETE FROM inode WHERE ino = ?", (ino,))
    }

    /// Adds a name to a folder, at a place from [`View::slot`].
    pub fn insert_dentry(&mut self, parent: Ino, slot: Slot, name: &[u8], ino: Ino, kind: Kind) -> Result<()> {
        self.execute_one(
            "INSERT INTO dentry(parent, cookie, ino, kind, name) VALUES(?, ?, ?, ?, ?)",
            (parent.0, slot.0, ino.0, kind.mode(), name),
        )
    }

    /// Makes a name lead elsewhere.
    pub fn set_dentry(&mut self, parent: Ino, cookie: u64, ino: Ino, kind: Kind) -> Result<()> {
        self.execute_one(
            "UPDATE dentry SET ino = ?, kind = ? WHERE parent = ? AND cookie = ?",
            (ino.0, kind.mode(), parent.0, cookie),
        )
    }

    /// Removes a name.
    pub fn delete_dentry(&mut self, parent: Ino, cookie: u64) -> Result<()> {
        self.execute_one("DELETE FROM dentry WHERE parent = ? AND cookie = ?", (parent.0, cookie))
    }

    /// Adds an extent where the file has none, and publishes its blocks.
    pub fn add_extent(&mut self, ino: Ino, extent: &ExtentRow) -> Result<()> {
        self.insert_extent(ino, extent)?;
        self.blocks.published.push(extent.run());
        self.wrote(extent);
        Ok(())
    }

    /// Turns reserved blocks that were now written into data. They are published already.
    pub fn fill_extent(&mut self, ino: Ino, extent: &ExtentRow) -> Result<()> {
        let freed = self.blocks.freed.len();
        self.clear(ino, extent.lblock, extent.end(), usize::MAX)?;
        let same = self.blocks.freed.drain(freed..).eq([extent.run()]);
        if !same {
            return Err(Error::Corrupt("reserved blocks moved while they were written"));
        }
        self.insert_extent(ino, extent)?;
        self.wrote(extent);
        Ok(())
    }

    fn wrote(&mut self, extent: &ExtentRow) {
        if let Some(tags) = &extent.tags {
            self.blocks.written.add(extent.addr, extent.id, tags);
        }
    }

    fn touch(&mut self, ino: Ino) {
        if self.blocks.files.last() != Some(&ino) {
            self.blocks.files.push(ino);
        }
    }

    fn insert_extent(&mut self, ino: Ino, extent: &ExtentRow) -> Result<()> {
        self.touch(ino);
        let tags = extent.tags.as_ref().map(|tags| tags.as_flattened());
        let inline = match tags {
            Some(bytes) if bytes.len() > INLINE_TAGS_MAX * size_of::<Tag>() => {
                self.execute_one("INSERT INTO tags(addr, tags) VALUES(?, ?)", (extent.addr.0, bytes))?;
                Some(&[][..])
            }
            other => other,
        };
        self.execute_extent(
            "INSERT INTO extent(ino, lblock, blocks, addr, epoch, counter, tags) VALUES(?, ?, ?, ?, ?, ?, ?)",
            (ino.0, extent.lblock, extent.blocks, extent.addr.0, extent.id.epoch, extent.id.counter, inline),
        )
    }

    /// Takes file blocks `from..to` out of at most `limit` extents, and frees them. Parts of those extents outside the
    /// range stay.
    pub fn clear(&mut self, ino: Ino, from: u64, to: u64, limit: usize) -> Result<Cleared> {
        self.touch(ino);
        // One more may be found that ends before the range, and one that says that there are more.
        let mut found = self.extents_without_tags(ino, from, to, limit.saturating_add(2))?;
        found.retain(|(extent, _)| extent.end() > from);
        let mut cleared = Cleared { blocks: 0, more: found.len() > limit };
        for (extent, place) in found.into_iter().take(limit) {
            self.execute_extent("DELETE FROM extent WHERE ino = ? AND lblock = ?", (ino.0, extent.lblock))?;
            let (in_table, addr) = (matches!(place, TagPlace::Table), extent.addr);
            let whole = from <= extent.lblock && extent.end() <= to;
            let extent = if whole { extent } else { self.with_tags(extent, place)? };
            if in_table {
                let weight = Weight { removed_tags: 1, ..Weight::default() };
                exactly_one(self.execute(weight, "DELETE FROM tags WHERE addr = ?", (addr.0,))?)?;
            }
            if extent.lblock < from {
                self.insert_extent(ino, &extent.slice(extent.lblock, from))?;
            }
            if extent.end() > to {
                self.insert_extent(ino, &extent.slice(to, extent.end()))?;
            }
            let (first, end) = (from.max(extent.lblock), to.min(extent.end()));
            self.blocks.freed.push(Run::new(extent.addr.add(first - extent.lblock), end - first));
            cleared.blocks += end - first;
        }
        Ok(cleared)
    }

    /// Remembers, or with `None` forgets, that the file's blocks from `lblock` on are to be freed.
    pub fn set_trim(&mut self, ino: Ino, lblock: Option<u64>) -> Result<()> {
        match lblock {
            Some(lblock) => {
                let put = "INSERT OR REPLACE INTO trim(ino, lblock) VALUES(?, ?)";
                self.execute(ROW, put, (ino.0, lblock))
            }
            None => self.execute(ROW, "DELETE FROM trim WHERE ino = ?", (ino.0,)),
        }?;
        Ok(())
    }

    /// Adds a record to the audit trail. `seq` is one more than the last record's number.
    pub fn append_audit(&mut self, seq: u64, record: &[u8]) -> Result<()> {
        if record.len() > AUDIT_RECORD_BYTES_MAX {
            return Err(Error::Corrupt("a record of the audit trail is too long"));
        }
        self.weigh(Weight { bytes: record.len() as u64, ..Weight::default() });
        self.execute_one("INSERT INTO audit(seq, record) VALUES(?, ?)", (seq, record))
    }

    /// Puts another list of what is lost in the place of the last one.
    pub fn put_lost(&mut self, list: &[u8]) -> Result<()> {
        let weight = Weight { bytes: list.len() as u64, ..Weight::rows(2) };
        self.execute(weight, "INSERT OR REPLACE INTO volume(key, value) VALUES('lost', ?)", (list,))?;
        Ok(())
    }

    /// Sets an extended attribute. The caller also sets the inode's flags ([`xattr_flag`]).
    pub fn put_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8]) -> Result<()> {
        let weight = Weight { bytes: value.len() as u64, ..XATTR_ROW };
        let put = "INSERT OR REPLACE INTO xattr(ino, name, value) VALUES(?, ?, ?)";
        self.execute(weight, put, (ino.0, name, value))?;
        Ok(())
    }

    /// Removes an extended attribute; says whether it was there.
    pub fn delete_xattr(&mut self, ino: Ino, name: &[u8]) -> Result<bool> {
        Ok(self.execute(XATTR_ROW, "DELETE FROM xattr WHERE ino = ? AND name = ?", (ino.0, name))? == 1)
    }

    /// Removes one of the extended attributes, if there are any; says whether it was the last.
    pub fn clear_xattr(&mut self, ino: Ino) -> Result<bool> {
        let two = self.all(XATTRS_FIRST, (asked(ino.0),), |row| Ok(rows::name(row, 0)?.to_vec()))?;
        if let Some(name) = two.first() {
            self.delete_xattr(ino, name)?;
        }
        Ok(two.len() < 2)
    }
}

/// A number to ask for. Those above `i64::MAX` find nothing and bound nothing: no row has one, since writing it fails.
fn asked(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The flags of an inode that has the extended attribute `name`.
pub fn xattr_flag(name: &[u8]) -> u32 {
    match name {
        b"system.posix_acl_access" => FLAG_XATTR | FLAG_ACL_ACCESS,
        b"system.posix_acl_default" => FLAG_XATTR | FLAG_ACL_DEFAULT,
        _ => FLAG_XATTR,
    }
}

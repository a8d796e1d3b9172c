//! SQLite over the page store: a VFS (sqlite.org/c3ref/vfs.html) with one file, the database.
//!
//! The connection runs with `journal_mode=MEMORY`, `temp_store=MEMORY` and `locking_mode=EXCLUSIVE`, so SQLite opens no
//! other file; it is refused if it tries. `xWrite` stages whole pages in memory, `xSync` does nothing: durability is
//! [`Store::commit`]'s. One VFS is registered for the process; a database's name is the number under which its store
//! waits in [`WAITING`], so that opening needs no global table of volumes and closing frees everything.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use rusqlite::{Connection, OpenFlags, ffi};

use super::{Error, Page, Result, Store};
use crate::units::{BLOCK_SHIFT, BLOCK_SIZE, to_usize};

/// Result codes for a page that no replica has as it was written, and for a page that no replica can give.
///
/// On `SQLITE_IOERR`, SQLite rolls a whole transaction back, even in a SELECT (`sqlite3VdbeHalt`), and with it
/// operations that were answered long ago. On `SQLITE_CORRUPT` only the statement fails. The plain code would make the
/// database read-only; an extended code of our own does not.
const INTEGRITY_CODE: c_int = ffi::SQLITE_CORRUPT | (101 << 8);
const UNREADABLE_CODE: c_int = ffi::SQLITE_CORRUPT | (102 << 8);

/// Whether SQLite failed because no replica has a page as it was written.
pub fn is_integrity(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|e| e.extended_code == INTEGRITY_CODE)
}

/// What SQLite's code says of the devices, in the words of those who have them; else SQLite's own.
pub fn describe(error: &rusqlite::Error) -> String {
    match error.sqlite_error().map(|e| e.extended_code) {
        Some(INTEGRITY_CODE) => {
            "a block of the metadata is damaged on every replica that could be read; the log names it".to_owned()
        }
        Some(UNREADABLE_CODE) => "a block of the metadata cannot be read from any replica; the log names it".to_owned(),
        _ => format!("SQLite: {error}"),
    }
}

thread_local! {
    /// The page that could not be read last. SQLite reads on the thread that runs the statement.
    static FAILED: Cell<Option<u64>> = const { Cell::new(None) };
    /// The page that is known to be unreadable, and is not read again.
    static LEFT_OUT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The page for which a statement of this thread has just failed, if a page was the reason.
pub fn unreadable_page(error: &rusqlite::Error) -> Option<u64> {
    let code = error.sqlite_error()?.extended_code;
    FAILED.get().filter(|_| matches!(code, INTEGRITY_CODE | UNREADABLE_CODE))
}

/// While it lives, statements of this thread that need a certain page fail without asking the devices.
pub struct LeftOut(());

/// Leaves page `no` out, which could not be read a moment ago.
pub fn leave_out(no: u64) -> LeftOut {
    LEFT_OUT.set(Some(no));
    LeftOut(())
}

impl Drop for LeftOut {
    fn drop(&mut self) {
        LEFT_OUT.set(None);
    }
}

const NAME: &CStr = c"scelle";

/// Stores whose database is about to be opened.
static WAITING: Mutex<Option<HashMap<u64, Arc<Store>>>> = Mutex::new(None);
static NEXT: AtomicU64 = AtomicU64::new(1);

/// What SQLite sees of an open file: its own header, then ours.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    /// From `Arc::into_raw`; null until `xOpen` has succeeded.
    store: *const Store,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(lock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

pub(super) fn open(store: &Arc<Store>) -> Result<Connection> {
    register()?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let waiting = || WAITING.lock();
    waiting().get_or_insert_default().insert(number, store.clone());
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags_and_vfs(number.to_string(), flags, NAME);
    waiting().get_or_insert_default().remove(&number);
    Ok(opened?)
}

fn register() -> Result<()> {
    static CODE: OnceLock<c_int> = OnceLock::new();
    let code = *CODE.get_or_init(|| {
        // SAFETY: no arguments; initialises the library, which finding a VFS requires.
        let code = unsafe { ffi::sqlite3_initialize() };
        if code != ffi::SQLITE_OK {
            return code;
        }
        // SAFETY: a null name asks for the default VFS.
        let default = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) };
        if default.is_null() {
            return ffi::SQLITE_ERROR;
        }
        // SAFETY: SQLite's default VFS lives as long as the process; the parts copied are plain function pointers.
        let (x_randomness, x_sleep, x_time) =
            unsafe { ((*default).xRandomness, (*default).xSleep, (*default).xCurrentTimeInt64) };
        let vfs = Box::leak(Box::new(ffi::sqlite3_vfs {
            iVersion: 2,
            szOsFile: c_int::try_from(size_of::<File>()).unwrap_or(c_int::MAX),
            mxPathname: 64,
            pNext: std::ptr::null_mut(),
            zName: NAME.as_ptr(),
            pAppData: std::ptr::null_mut(),
            xOpen: Some(open_file),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xDlOpen: None,
            xDlError: None,
            xDlSym: None,
            xDlClose: None,
            xRandomness: x_randomness,
            xSleep: x_sleep,
            xCurrentTime: None,
            xGetLastError: None,
            xCurrentTimeInt64: x_time,
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        }));
        // SAFETY: the structure is never freed, as SQLite asks.
        unsafe { ffi::sqlite3_vfs_register(vfs, 0) }
    });
    if code == ffi::SQLITE_OK {
        Ok(())
    } else {
        Err(Error::Io(format!("SQLite refused to register its file layer: code {code}")))
    }
}

/// The store of a file that `xOpen` has opened.
///
/// # Safety
/// `file` is a pointer that SQLite got from [`open_file`] and has not closed.
unsafe fn store<'a>(file: *mut ffi::sqlite3_file) -> &'a Store {
    // SAFETY: `File` begins with SQLite's header and `store` was set from a live `Arc` that `close` releases.
    unsafe { &*(*file.cast::<File>()).store }
}

unsafe extern "C" fn open_file(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let file = file.cast::<File>();
    // SAFETY: SQLite gives `szOsFile` bytes; no methods means "not open", as it asks on failure.
    unsafe { (*file).base.pMethods = std::ptr::null() };
    if name.is_null() || flags & ffi::SQLITE_OPEN_MAIN_DB == 0 {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: a file name of SQLite is a C string.
    let name = unsafe { CStr::from_ptr(name) };
    let number = name.to_str().ok().and_then(|n| n.parse::<u64>().ok());
    let mut waiting = WAITING.lock();
    let Some(store) = number.and_then(|n| waiting.as_mut()?.remove(&n)) else { return ffi::SQLITE_CANTOPEN };
    // SAFETY: as above; the `Arc` is handed to the file and taken back by `close`.
    unsafe {
        (*file).store = Arc::into_raw(store);
        (*file).base.pMethods = &raw const METHODS;
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let file = file.cast::<File>();
    // SAFETY: set by `open_file`, released once: SQLite closes a file once.
    unsafe { drop(Arc::from_raw((*file).store)) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, out: *mut c_void, len: c_int, offset: i64) -> c_int {
    let len = usize::try_from(len).unwrap_or(0);
    // SAFETY: `file` is open, `out` has room for `len` bytes, which may be uninitialised.
    let (store, out) = unsafe { (store(file), std::slice::from_raw_parts_mut(out.cast::<MaybeUninit<u8>>(), len)) };
    let Ok(offset) = u64::try_from(offset) else { return ffi::SQLITE_IOERR_READ };
    let end = store.database_pages() * BLOCK_SIZE as u64;
    let mut page: Page = [0; BLOCK_SIZE];
    let mut at = 0;
    while at < out.len() {
        let position = offset + at as u64;
        if position >= end {
            // SQLite asks that the rest be zeros.
            out[at..].fill(MaybeUninit::new(0));
            return ffi::SQLITE_IOERR_SHORT_READ;
        }
        let within = to_usize(position % BLOCK_SIZE as u64);
        let part = (BLOCK_SIZE - within).min(out.len() - at);
        let no = position / BLOCK_SIZE as u64;
        if LEFT_OUT.get() == Some(no) {
            FAILED.set(Some(no));
            return INTEGRITY_CODE;
        }
        if let Err(error) = store.read_page(no, &mut page) {
            log::error!("page {no} of the metadata database: {error}");
            FAILED.set(Some(no));
            return match error {
                Error::Integrity(_) | Error::Corrupt(_) => INTEGRITY_CODE,
                _ => UNREADABLE_CODE,
            };
        }
        out[at..at + part].write_copy_of_slice(&page[within..within + part]);
        at += part;
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, len: c_int, offset: i64) -> c_int {
    let len = usize::try_from(len).unwrap_or(0);
    // SAFETY: `file` is open, `from` has `len` bytes.
    let (store, from) = unsafe { (store(file), std::slice::from_raw_parts(from.cast::<u8>(), len)) };
    let Ok(offset) = u64::try_from(offset) else { return ffi::SQLITE_IOERR_WRITE };
    let (pages, rest) = from.as_chunks::<BLOCK_SIZE>();
    // The page size is pinned to the block size, so SQLite writes whole pages.
    if !rest.is_empty() || !offset.is_multiple_of(BLOCK_SIZE as u64) {
        return ffi::SQLITE_IOERR_WRITE;
    }
    for (i, page) in pages.iter().enumerate() {
        store.stage_page(offset / BLOCK_SIZE as u64 + i as u64, Arc::new(*page));
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: `file` is open.
    let pages = unsafe { store(file) }.database_pages();
    // The database is never vacuumed; anything but "as it is" would lose pages.
    if u64::try_from(size) == Ok(pages * BLOCK_SIZE as u64) { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_TRUNCATE }
}

extern "C" fn sync(_file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    // SAFETY: `file` is open, `size` is an out parameter.
    unsafe {
        *size = i64::try_from(store(file).database_pages().saturating_mul(BLOCK_SIZE as u64)).unwrap_or(i64::MAX)
    };
    ffi::SQLITE_OK
}

extern "C" fn lock(_file: *mut ffi::sqlite3_file, _level: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(_file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: an out parameter.
    unsafe { *out = 0 };
    ffi::SQLITE_OK
}

extern "C" fn file_control(_file: *mut ffi::sqlite3_file, _op: c_int, _arg: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

extern "C" fn sector_size(_file: *mut ffi::sqlite3_file) -> c_int {
    1 << BLOCK_SHIFT
}

extern "C" fn device_characteristics(_file: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_ATOMIC4K | ffi::SQLITE_IOCAP_SAFE_APPEND | ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

extern "C" fn delete(_vfs: *mut ffi::sqlite3_vfs, _name: *const c_char, _sync_dir: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn access(
    _vfs: *mut ffi::sqlite3_vfs,
    _name: *const c_char,
    _flags: c_int,
    out: *mut c_int,
) -> c_int {
    // No journal of an earlier run ever exists.
    // SAFETY: an out parameter.
    unsafe { *out = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    len: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: a C string in, `len` bytes of room out.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes_with_nul();
    if name.len() > usize::try_from(len).unwrap_or(0) {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: checked above; the regions do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(name.as_ptr(), out.cast(), name.len()) };
    ffi::SQLITE_OK
}

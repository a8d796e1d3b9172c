//! What whoever uses a volume was promised, beside the log of what its devices were written: what a crash at any point of the
//! log must leave.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::{Arc, Mutex};
use std::vec::IntoIter;

use scelle::device::memory::Disk;
use scelle::fs::{self, Fs};
use scelle::problem::Code;
use scelle::units::Ino;
use scelle::volume::{Error, Open, OpenOptions};

use super::Bench;
use super::support::court::Court;
use super::support::images::Log;

/// What a file holds, or that it is not there.
pub type Content = Option<Arc<[u8]>>;

/// From this number of events on, this file is one of these. With none of them, nothing is known of it.
struct Promise {
    from: usize,
    name: Vec<u8>,
    one_of: Vec<Content>,
}

/// The promises in their order, beside the log that they are about.
pub struct Book {
    pub log: Log,
    promises: Mutex<Vec<Promise>>,
}

impl Book {
    pub fn new() -> Self {
        Self { log: Log::default(), promises: Mutex::default() }
    }

    pub fn note(&self, name: &[u8], one_of: &[Content]) {
        // Under the lock of the log: the order of promises is that of their places in it.
        let log = self.log.lock().unwrap();
        let promise = Promise { from: log.len(), name: name.to_vec(), one_of: one_of.to_vec() };
        self.promises.lock().unwrap().push(promise);
    }

    pub fn close(self) -> Coming {
        Coming(self.promises.into_inner().unwrap().into_iter().peekable())
    }
}

/// What is promised as the events go by.
pub struct Coming(Peekable<IntoIter<Promise>>);

/// What each file must be, at one moment.
pub type Promised = BTreeMap<Vec<u8>, Vec<Content>>;

impl Coming {
    /// Adds what holds after this many events.
    pub fn after(&mut self, events: usize, promised: &mut Promised) {
        while let Some(promise) = self.0.next_if(|promise| promise.from <= events) {
            promised.insert(promise.name, promise.one_of);
        }
    }
}

pub fn find(fs: &Fs, name: &[u8]) -> fs::Result<Content> {
    let attr = match fs.lookup(Ino::ROOT, name) {
        Err(error) if error.errno() == libc::ENOENT => return Ok(None),
        found => found?,
    };
    let found = fs.read(attr.ino, 0, attr.size as usize, &mut Vec::new()).map(Arc::from);
    fs.forget(attr.ino, 1);
    Ok(Some(found?))
}

/// Every file is what was promised.
pub fn kept(open: &Open, promised: &Promised) -> Result<(), String> {
    for (name, one_of) in promised {
        let found = find(open.fs(), name).map_err(|error| format!("{}: {error}", String::from_utf8_lossy(name)))?;
        if !one_of.is_empty() && !one_of.contains(&found) {
            let length = |content: &Content| content.as_ref().map(|bytes| bytes.len());
            let allowed: Vec<_> = one_of.iter().map(length).collect();
            let name = String::from_utf8_lossy(name);
            return Err(format!("{name} has {:?} bytes, and may have {allowed:?}", length(&found)));
        }
    }
    Ok(())
}

/// Opens the volume on copies of these disks. One that does not know by itself whether its last commit was answered for is
/// told to go on, if that is accepted.
pub fn open_on(bench: &Bench, disks: &[Option<Disk>], accept: bool) -> Result<(Court, Open), Error> {
    let degraded = disks.iter().any(Option::is_none);
    let court = bench.court.on(disks, &Log::default());
    let options = OpenOptions { degraded, ..OpenOptions::default() };
    match court.open_with(&options) {
        Err(error) if accept && degraded && error.code() == Code::VolumeUnproven => {
            let court = bench.court.on(disks, &Log::default());
            let open = court.open_with(&OpenOptions { accept_rollback: error.acceptable(), ..options })?;
            Ok((court, open))
        }
        outcome => outcome.map(|open| (court, open)),
    }
}

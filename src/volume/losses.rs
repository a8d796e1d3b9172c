//! The blocks that no replica can give, of an open volume: what their files are called, and whether they are lost still. The
//! list itself is the page store's, and `fs` keeps it in the volume.
//!
//! A thread looks at the list after the mount, and every ten minutes as long as something is on it. A block that can be read
//! again, or that nothing refers to any more, is taken off. The thread rests as a traversal does ([`Pace`]), and ends when
//! the volume is closed, between two blocks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::{Error, System};
use super::traverse::{Item, Pace, Progress, Traversal};
use crate::fs::Fs;
use crate::limits::DEVICE_TIMEOUT_S;
use crate::mirror::State;
use crate::pages::{Finding, SOME_NODE, Store, Unit};
use crate::units::{BlockAddr, Ino, Run};

/// How long a mount looks for the names of files. Where there are very many, they are named a little later.
const NAMES_AT_MOUNT: Duration = Duration::from_secs(2);

/// How often the list is looked at.
const INTERVAL: Duration = Duration::from_mins(10);

/// How soon a file is named that has lost something.
const TICK: Duration = Duration::from_millis(200);

/// The thread that looks at the list.
pub(super) struct Losses {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Losses {
    /// Names what is on the list already, and starts the thread.
    ///
    /// # Errors
    /// The system's, when there is no thread.
    pub fn start(fs: &Arc<Fs>, store: &Arc<Store>) -> Result<Self, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let (fs, store, is_stopped) = (fs.clone(), store.clone(), stop.clone());
        let run = move || {
            // Whoever has no name is not looked for again and again.
            let (mut looked, mut asked) = (None, BTreeSet::new());
            while !is_stopped.load(Ordering::Acquire) {
                if looked.is_none_or(|at: Instant| at.elapsed() >= INTERVAL) {
                    look(&fs, &store, &|| !is_stopped.load(Ordering::Acquire));
                    looked = Some(Instant::now());
                }
                let unnamed: BTreeSet<Ino> = store.unnamed_lost().difference(&asked).copied().collect();
                name(&fs, &unnamed, &|| !is_stopped.load(Ordering::Acquire));
                asked.extend(unnamed);
                std::thread::park_timeout(TICK);
            }
        };
        let thread = std::thread::Builder::new().name("losses".to_owned()).spawn(run);
        let thread = thread.map_err(|source| System::error("starting the thread that looks at lost blocks", source))?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread. The wait is bounded: a thread that hangs in the kernel is left behind.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        let deadline = Instant::now() + Duration::from_secs(DEVICE_TIMEOUT_S);
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !self.thread.is_finished() {
            log::error!("the thread that looks at lost blocks does not end; it is left behind");
        } else if self.thread.join().is_err() {
            log::error!("the thread that looks at lost blocks panicked");
        }
    }
}

/// Names the files that a mount finds on the list, before it tells of them.
pub(super) fn name_at_mount(fs: &Fs, store: &Store) {
    let begin = Instant::now();
    name(fs, &store.unnamed_lost(), &|| begin.elapsed() < NAMES_AT_MOUNT);
}

fn name(fs: &Fs, files: &BTreeSet<Ino>, go_on: &dyn Fn() -> bool) {
    if files.is_empty() {
        return;
    }
    if let Err(error) = fs.name_lost(files, go_on) {
        log::warn!("files that have lost blocks cannot be named: {error}");
    }
}

/// Looks at everything on the list.
fn look(fs: &Fs, store: &Store, go_on: &dyn Fn() -> bool) {
    let list = store.lost_list();
    let pace = Pace::of(fs.meters());
    let go_on = || {
        pace.keep();
        go_on()
    };
    let files: BTreeSet<Ino> = list.blocks.values().flatten().copied().collect();
    for ino in &files {
        if let Err(error) = fs.look_at_lost(*ino, &go_on) {
            log::warn!("the file with inode number {}, which has lost blocks, cannot be looked at: {error}", ino.0);
        }
    }
    let metadata: BTreeSet<BlockAddr> =
        list.blocks.iter().filter(|(_, file)| file.is_none()).map(|(addr, _)| *addr).collect();
    if !metadata.is_empty() {
        look_at_metadata(store, metadata, &go_on);
    }
    // Files may have other names by now.
    let still: BTreeSet<Ino> = store.lost_list().blocks.values().flatten().copied().collect();
    name(fs, &still, &go_on);
}

/// Takes off the list what metadata does not refer to any more, or can be read again. While a node cannot be read, what is
/// below it is not known, and nothing is taken off.
fn look_at_metadata(store: &Store, mut listed: BTreeSet<BlockAddr>, go_on: &dyn Fn() -> bool) {
    let progress = Progress::default();
    let walk = Traversal::new(store, &progress, go_on).metadata(&mut |item| {
        if let Item::Unit(unit) = item
            && listed.contains(&unit.at.addr)
            && !is_readable(store, &unit)
        {
            listed.remove(&unit.at.addr);
        }
        Ok(())
    });
    match walk {
        Ok(true) => listed.iter().for_each(|addr| store.forget_lost(Run::new(*addr, 1))),
        Ok(false) => {}
        Err(Error::Store(error)) if store.is_loss(&error) => {
            store.note_lost(SOME_NODE, None);
        }
        Err(error) => log::warn!("the metadata cannot be looked at: {error}"),
    }
}

fn is_readable(store: &Store, unit: &Unit) -> bool {
    let mirror = store.mirror();
    let mut in_sync = (0..mirror.len()).filter(|index| mirror.state(*index).0 == State::InSync);
    in_sync.any(|index| store.examine(unit, index) == Finding::Good)
}

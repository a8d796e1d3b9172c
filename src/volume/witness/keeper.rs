//! The thread that writes the witness. The host's disk may hang for ever, so no other thread touches it. Whoever has to
//! know that the witness is durable waits here, with a bound.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::super::health::Health;
use super::{Record, write};
use crate::pages::Store;
use crate::units::{Generation, Uuid};

/// How often the witness is written while commits are made.
const INTERVAL: Duration = Duration::from_secs(1);

/// How soon it is tried again when somebody waits for it.
const RETRY: Duration = Duration::from_millis(100);

/// Writes the witness of an open volume.
pub struct Keeper {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    volume: Uuid,
    /// Keys of the file that this program does not know.
    other: toml::Table,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The newest root that is to be remembered.
    wanted: Option<(Generation, Record)>,
    /// The last generation that the host remembers for certain.
    written: Option<Generation>,
    /// What was remembered before this mount. What is known of the health is written with it while no root of this mount
    /// is to be remembered.
    before: Option<Record>,
    /// What is known of the health by now.
    health: Health,
    /// What the host remembers of it for certain.
    written_health: Health,
    /// How many wait for the newest root.
    waiting: usize,
    /// Why it could not be written, the last time.
    error: Option<String>,
    stopped: bool,
    ended: bool,
}

impl State {
    /// Returns the generation that is wanted now.
    fn want(&mut self, store: &Store) -> Generation {
        let root = store.root();
        if self.wanted.as_ref().is_none_or(|(generation, _)| *generation < root.generation) {
            let record = Record::of(&root).under(store.quorum().registry().as_deref());
            self.wanted = Some((root.generation, record));
        }
        root.generation
    }

    fn is_due(&self) -> bool {
        let is_newer = |generation: &Generation| self.written.is_none_or(|written| written < *generation);
        let knows_more = self.health != self.written_health && (self.wanted.is_some() || self.before.is_some());
        knows_more || self.wanted.as_ref().is_some_and(|(generation, _)| is_newer(generation))
    }

    /// The record that is to be written now, and the generation that it covers.
    fn due(&self) -> Option<(Option<Generation>, Record)> {
        let wanted = self.wanted.clone().map(|(generation, record)| (Some(generation), record));
        wanted.or_else(|| Some((None, self.before.clone()?)))
    }

    fn covers(&self, generation: Generation) -> bool {
        self.written.is_some_and(|written| written >= generation)
    }
}

impl Keeper {
    /// Starts the thread. `before` is what was remembered until now.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(folder: PathBuf, volume: Uuid, before: Option<&Record>) -> std::io::Result<Self> {
        let other = before.map(|record| record.other.clone()).unwrap_or_default();
        let health = before.map(|record| record.health.clone()).unwrap_or_default();
        let before = before.cloned();
        let state = Mutex::new(State { before, health: health.clone(), written_health: health, ..State::default() });
        let shared = Arc::new(Shared { folder, volume, other, state, changed: Condvar::new() });
        let run = shared.clone();
        std::thread::Builder::new().name("witness".to_owned()).spawn(move || run.run())?;
        Ok(Self { shared })
    }

    /// The store's last commit is to be remembered within about a second. Never waits.
    pub fn note(&self, store: &Store) {
        let mut state = self.shared.state.lock();
        state.want(store);
        if state.is_due() {
            self.shared.changed.notify_all();
        }
    }

    /// This is to be remembered within about a second, if it is something new. Never waits.
    pub fn remember(&self, health: Health) {
        let mut state = self.shared.state.lock();
        if state.health != health {
            state.health = health;
            self.shared.changed.notify_all();
        }
    }

    /// Returns when everything is remembered on stable storage, or when `patience` is over.
    pub fn finish(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state.lock();
        state.waiting += 1;
        self.shared.changed.notify_all();
        while state.is_due() && !state.ended && !self.shared.changed.wait_until(&mut state, deadline).timed_out() {}
        state.waiting -= 1;
    }

    /// Returns when the store's last commit, or a later one, is remembered on stable storage.
    ///
    /// # Errors
    /// Why it is not, after `patience` at the latest.
    pub fn cover(&self, store: &Store, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        let shared = &self.shared;
        let mut state = shared.state.lock();
        let generation = state.want(store);
        state.waiting += 1;
        shared.changed.notify_all();
        while !state.covers(generation) && !state.ended {
            if shared.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.waiting -= 1;
        if state.covers(generation) {
            return Ok(());
        }
        let why = state.error.clone().unwrap_or_else(|| "the host's disk does not answer".to_owned());
        Err(format!(
            "the witness of volume {} in {} could not be written within {} s: {why}",
            shared.volume,
            shared.folder.display(),
            patience.as_secs()
        ))
    }

    /// Has the thread end, once it has tried to write what is wanted. Does not wait for it: it may hang in the kernel,
    /// and holds nothing of the volume's.
    pub fn end(&self) {
        self.shared.state.lock().stopped = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn run(&self) {
        let mut last: Option<Instant> = None;
        while let Some((generation, record)) = self.next(last) {
            let health = self.state.lock().health.clone();
            let outcome = write(&self.folder, self.volume, &record.keeping(&self.other, health.clone()));
            last = Some(Instant::now());
            let mut state = self.state.lock();
            match outcome {
                Ok(()) => {
                    state.written = generation.or(state.written);
                    state.written_health = health;
                    if state.error.take().is_some() {
                        log::warn!("the witness of volume {} is written again", self.volume);
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    if state.error.as_ref() != Some(&error) {
                        let folder = self.folder.display();
                        log::error!("the witness of volume {} in {folder} cannot be written: {error}", self.volume);
                    }
                    state.error = Some(error);
                }
            }
            self.changed.notify_all();
        }
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits for something to write; nothing when the thread is to end.
    fn next(&self, last: Option<Instant>) -> Option<(Option<Generation>, Record)> {
        let mut state = self.state.lock();
        loop {
            let since = last.map(|last| last.elapsed());
            let failed = state.error.is_some();
            let pause = match () {
                () if failed && (state.waiting > 0 || state.stopped) => RETRY,
                () if state.waiting > 0 || state.stopped => Duration::ZERO,
                () => INTERVAL,
            };
            let left = since.map_or(Duration::ZERO, |since| pause.saturating_sub(since));
            match () {
                () if state.stopped && (failed || !state.is_due()) => return None,
                () if !state.is_due() => self.changed.wait(&mut state),
                () if left.is_zero() => return state.due(),
                () => drop(self.changed.wait_for(&mut state, left)),
            }
        }
    }
}

//! A mount: from the call of mount(2) until the kernel says it is over.

use std::io;
use std::sync::{Arc, OnceLock};

use fuser::{Config, SessionACL};

use super::handlers::Adapter;
use super::mount::{Detached, MountConfig, OwnMount};
use super::place::Locator;
use super::ration::Ration;
use super::tune::{self, bound_dirty};
use crate::fs::Fs;
use crate::os::process::Unmount;

/// How many event loops there are: enough that one waiting for a device does not stop the others.
const LOOPS: usize = 4;

/// A mounted filesystem whose requests are not yet served.
pub struct Session {
    inner: fuser::Session<Adapter>,
    mount: OwnMount,
}

impl Session {
    /// Mounts `fs`; `locator` says where its files are. From here on processes can use the folder. Their requests wait
    /// until [`run`](Session::run) is called.
    ///
    /// # Errors
    /// What the system calls and the FUSE handshake say. Then nothing is mounted.
    pub fn mount(fs: Arc<Fs>, locator: Arc<dyn Locator>, config: &MountConfig) -> io::Result<Self> {
        let mut library = Config::default();
        library.acl = SessionACL::All;
        library.n_threads = Some(LOOPS);
        library.clone_fd = true;
        let notifier = Arc::new(OnceLock::new());
        let ration = Ration::start(Arc::clone(&fs), Arc::clone(&notifier))?;
        let begin_rationing = ration.starter();
        let adapter = Adapter::new(fs, locator, LOOPS, config.powersave, Arc::clone(&notifier), ration)?;
        let (connection, detached) = Detached::make(config)?;
        // The library neither mounts nor unmounts. At its end it would unmount whatever is at the path then.
        let inner = fuser::Session::from_fd(adapter, connection, SessionACL::All, library)?;
        let _ = notifier.set(inner.notifier());
        let mount = detached.attach(&config.mountpoint)?;
        if let Err(error) = bound_dirty(&tune::bdi(&mount), None) {
            log::warn!("the kernel holds back little of what is written: {error}");
        }
        if !config.read_only {
            begin_rationing(tune::bdi(&mount));
        }
        Ok(Self { inner, mount })
    }

    /// The mount in the kernel's table.
    pub fn own_mount(&self) -> &OwnMount {
        &self.mount
    }

    /// Serves requests until the filesystem is unmounted.
    ///
    /// # Errors
    /// When the connection to the kernel broke. The mount is then taken away, because nobody serves it any more.
    pub fn run(self) -> io::Result<()> {
        let ended = self.inner.run();
        if ended.is_err()
            && let Err(error) = self.mount.unmount(Unmount::Lazy)
        {
            log::warn!("{} stays mounted and is dead: {error}", self.mount.mountpoint().display());
        }
        ended
    }
}

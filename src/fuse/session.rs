//! A mount: from the call of mount(2) until the kernel says it is over.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use fuser::{Config, MountOption, SessionACL};

use super::handlers::Adapter;
use super::place::Locator;
use crate::fs::Fs;

/// How many event loops there are: enough that one waiting for a device does not stop the others.
const LOOPS: usize = 4;

/// What a mount is to be like.
#[derive(Clone, Debug, Default)]
pub struct MountConfig {
    /// Where to mount; an absolute path.
    pub mountpoint: PathBuf,
    /// What `findmnt` shows as source.
    pub source: String,
    /// Refuse every change.
    pub read_only: bool,
    /// Let nobody execute anything.
    pub no_exec: bool,
    /// Honour set-user-id and set-group-id bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Every write is durable when it returns.
    pub sync: bool,
    /// Let processors sleep between requests, however short the pause.
    pub powersave: bool,
}

impl MountConfig {
    fn options(&self) -> Vec<MountOption> {
        let either = |yes, on, off| if yes { on } else { off };
        let mut options = vec![
            MountOption::FSName(self.source.clone()),
            // The library passes a subtype only to its helper program. The kernel takes it as an option of the mount.
            MountOption::CUSTOM("subtype=scelle".into()),
            MountOption::DefaultPermissions,
            MountOption::NoAtime,
            either(self.read_only, MountOption::RO, MountOption::RW),
            either(self.suid, MountOption::Suid, MountOption::NoSuid),
            either(self.dev, MountOption::Dev, MountOption::NoDev),
        ];
        options.extend(self.no_exec.then_some(MountOption::NoExec));
        options.extend(self.sync.then_some(MountOption::Sync));
        options
    }
}

/// A mounted filesystem whose requests are not yet served.
pub struct Session {
    inner: fuser::Session<Adapter>,
}

impl Session {
    /// Mounts `fs`; `locator` says where its files are. From here on processes can use the folder. Their requests wait
    /// until [`run`](Session::run) is called.
    ///
    /// # Errors
    /// What mount(2) and the FUSE handshake say.
    pub fn mount(fs: Arc<Fs>, locator: Arc<dyn Locator>, config: &MountConfig) -> io::Result<Self> {
        let mut library = Config::default();
        library.mount_options = config.options();
        library.acl = SessionACL::All;
        library.n_threads = Some(LOOPS);
        library.clone_fd = true;
        let notifier = Arc::new(OnceLock::new());
        let adapter = Adapter::new(fs, locator, LOOPS, config.powersave, Arc::clone(&notifier))?;
        let inner = fuser::Session::new(adapter, &config.mountpoint, &library)?;
        let _ = notifier.set(inner.notifier());
        Ok(Self { inner })
    }

    /// Serves requests until the filesystem is unmounted.
    ///
    /// # Errors
    /// When the connection to the kernel broke.
    pub fn run(self) -> io::Result<()> {
        self.inner.run()
    }
}

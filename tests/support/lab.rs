//! A laboratory for tests: sparse files behind loop devices, a registry that approves them, the `scelle` command. It cleans
//! up what it made, also when a test panics.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use super::wait_for;

pub const SCELLE: &str = env!("CARGO_BIN_EXE_scelle");
/// Both must sign.
pub const OFFICERS: [&str; 2] = ["officer-a", "officer-b"];
pub const PASSPHRASE: &str = "correct horse battery staple";

/// Held by whoever looks for a free loop device, or frees one that is not to be found.
pub static ATTACHING: Mutex<()> = Mutex::new(());

/// A sparse file and the loop device over it.
pub struct Disk {
    pub image: PathBuf,
    pub device: PathBuf,
    attached: AtomicBool,
    /// What `losetup` is told besides.
    options: Vec<String>,
}

impl Disk {
    pub fn new(image: PathBuf, bytes: u64) -> Self {
        File::create(&image).unwrap().set_len(bytes).unwrap();
        Self::of(image)
    }

    /// An image that is there already.
    pub fn of(image: PathBuf) -> Self {
        Self::with(image, &[])
    }

    /// An image that is there already, shown in logical blocks of this size.
    pub fn with_blocks(image: PathBuf, block: u32) -> Self {
        Self::with(image, &["--sector-size", &block.to_string()])
    }

    /// An image that is there already, attached with these options of losetup(8).
    pub fn with(image: PathBuf, options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let device = Self::attach(&image, &options);
        Self { image, device, attached: AtomicBool::new(true), options }
    }

    fn attach(image: &Path, options: &[String]) -> PathBuf {
        let alone = ATTACHING.lock().unwrap_or_else(PoisonError::into_inner);
        let out = run(Command::new("losetup").args(["--find", "--show"]).args(options).arg(image));
        drop(alone);
        assert!(out.status.success(), "losetup: these tests need root and loop devices: {}", stderr(&out));
        PathBuf::from(String::from_utf8(out.stdout).unwrap().trim())
    }

    /// What the image holds, through the device's own cache.
    pub fn bytes(&self) -> Vec<u8> {
        fs::read(&self.image).unwrap()
    }

    /// Once: by the second time the node may be another test's.
    pub fn detach(&self) {
        if self.attached.swap(false, Ordering::Relaxed) {
            run(Command::new("losetup").arg("-d").arg(&self.device));
        }
    }

    /// Attaches the image again, perhaps to another device node.
    pub fn reattach(&mut self) {
        self.device = Self::attach(&self.image, &self.options);
        self.attached.store(true, Ordering::Relaxed);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Something else that a test has mounted.
pub struct Mount(PathBuf);

impl Mount {
    /// `command` lacks only the mount point.
    pub fn new(command: &mut Command, mountpoint: &Path) -> Self {
        ok(&run(command.arg(mountpoint)));
        Self(mountpoint.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

pub struct Lab {
    pub dir: tempfile::TempDir,
    pub disks: Vec<Disk>,
    pub mountpoint: PathBuf,
}

impl Lab {
    /// `count` disks of `mib` MiB, all approved.
    pub fn new(count: usize, mib: u64) -> Self {
        Self::of(|dir| (0..count).map(|i| Disk::new(dir.join(format!("disk-{i}")), mib << 20)).collect())
    }

    /// With the disks that `make` makes, perhaps in the folder that it is given; all approved.
    pub fn of(make: impl FnOnce(&Path) -> Vec<Disk>) -> Self {
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse");
        let dir = tempfile::Builder::new().prefix("scelle-lab").tempdir_in("/var/tmp").unwrap();
        let mountpoint = dir.path().join("mnt");
        fs::create_dir(&mountpoint).unwrap();
        let mut passphrase =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.path().join("passphrase")).unwrap();
        passphrase.write_all(PASSPHRASE.as_bytes()).unwrap();
        let mut lab = Self { dir, disks: Vec::new(), mountpoint };
        lab.disks = make(lab.dir.path());
        lab.approve(&lab.devices());
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn devices(&self) -> Vec<PathBuf> {
        self.disks.iter().map(|disk| disk.device.clone()).collect()
    }

    /// Makes and signs a registry of exactly these devices.
    pub fn approve(&self, devices: &[PathBuf]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/laboratory");
        let out = run(Command::new(script).env("SCELLE", SCELLE).arg(self.dir.path()).args(devices));
        assert!(out.status.success(), "scripts/laboratory: {}", stderr(&out));
    }

    /// Has officers sign a document of the folder anew.
    #[track_caller]
    pub fn sign(&self, document: &str, officers: &[&str]) {
        for officer in officers {
            let _ = fs::remove_file(self.path(&format!("{document}.{officer}.minisig")));
            let key = self.path(&format!("{officer}.key"));
            ok(&run(Command::new(SCELLE).args(["registry", "sign"]).arg(self.path(document)).arg("--key").arg(key)));
        }
    }

    /// What the disks hold.
    pub fn images(&self) -> Vec<Vec<u8>> {
        self.disks.iter().map(Disk::bytes).collect()
    }

    /// Asserts that an attempt fails as it should and leaves every disk as it was.
    #[track_caller]
    pub fn refuses(&self, code: i32, reason: &str, attempt: impl FnOnce() -> Output) {
        let before = self.images();
        fails(&attempt(), code, reason);
        for (disk, before) in self.disks.iter().zip(before) {
            assert!(disk.bytes() == before, "{} was written to", disk.image.display());
        }
    }

    /// `scelle COMMAND --registry … --trust … --passphrase-file … ARGUMENTS`.
    pub fn with_documents(&self, command: &str, arguments: &[&OsStr]) -> Output {
        self.with_documents_of(&[command], arguments)
    }

    /// The same of a command of several words.
    pub fn with_documents_of(&self, command: &[&str], arguments: &[&OsStr]) -> Output {
        run(self.command(command).args(arguments))
    }

    /// `scelle COMMAND --registry … --trust … --passphrase-file …`, to be given arguments and run.
    pub fn command(&self, command: &[&str]) -> Command {
        let mut scelle = Command::new(SCELLE);
        scelle.args(command);
        for (option, file) in
            [("--registry", "registry.toml"), ("--trust", "trust.toml"), ("--passphrase-file", "passphrase")]
        {
            scelle.arg(option).arg(self.path(file));
        }
        scelle
    }

    pub fn create(&self) -> Output {
        let devices = self.devices();
        let arguments: Vec<&OsStr> = devices.iter().map(|device| device.as_os_str()).collect();
        self.with_documents("create", &arguments)
    }

    /// Mounts the given devices with `-o options`.
    pub fn mount_devices(&self, devices: &[PathBuf], options: &str) -> Output {
        let mut arguments: Vec<&OsStr> = vec!["-o".as_ref(), options.as_ref()];
        arguments.extend(devices.iter().map(|device| device.as_os_str()));
        arguments.push(self.mountpoint.as_os_str());
        self.with_documents("mount", &arguments)
    }

    pub fn mount(&self) -> Output {
        self.mount_devices(&self.devices(), "")
    }

    /// Unmounts. A program that another test starts holds copies of all descriptors of this process between its fork and
    /// its exec: a mount that only those keep busy is asked again.
    pub fn umount(&self) -> Output {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let out = self.umount_once();
            if out.status.code() != Some(7) || Instant::now() >= deadline {
                return out;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Unmounts, or says why not.
    pub fn umount_once(&self) -> Output {
        run(Command::new(SCELLE).arg("umount").arg(&self.mountpoint))
    }

    pub fn check(&self) -> Output {
        let devices = self.devices();
        let arguments: Vec<&OsStr> = devices.iter().map(|device| device.as_os_str()).collect();
        self.with_documents("check", &arguments)
    }

    /// A volume, mounted.
    pub fn mounted(count: usize, mib: u64) -> Self {
        let lab = Self::new(count, mib);
        ok(&lab.create());
        ok(&lab.mount());
        lab
    }

    /// The status of our volume, as JSON.
    pub fn status(&self) -> serde_json::Value {
        let out = run(Command::new(SCELLE).args(["status", "--json"]).arg(&self.mountpoint));
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        report["volumes"][0].clone()
    }

    pub fn daemon(&self) -> u64 {
        self.status()["pid"].as_u64().expect("the volume is mounted")
    }

    /// SIGKILL to the daemon, and waits until it is gone.
    pub fn kill_daemon(&self) {
        let pid = self.daemon();
        ok(&run(Command::new("kill").args(["-9", &pid.to_string()])));
        wait_for("the killed daemon to go away", || is_gone(pid));
    }
}

/// Gone, or a zombie whose every thread has ended.
pub fn is_gone(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let state = stat.rsplit(')').next().and_then(|after| after.trim_start().chars().next());
    matches!(state, None | Some('Z' | 'X')) && threads <= 1
}

impl Drop for Lab {
    fn drop(&mut self) {
        let pid = self.status()["pid"].as_u64();
        for _ in 0..4 {
            if !run(Command::new("umount").arg("-l").arg(&self.mountpoint)).status.success() {
                break;
            }
        }
        if let Some(pid) = pid {
            let deadline = Instant::now() + Duration::from_secs(20);
            while !is_gone(pid) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.disks.iter().for_each(Disk::detach);
        self.disks.iter().for_each(forget_volume);
    }
}

/// Where the host remembers the volume on a disk: its UUID is in the header (scelle-format(5)).
fn remembered(disk: &Disk) -> Vec<PathBuf> {
    let mut uuid = [0; 16];
    let read = File::open(&disk.image).and_then(|file| file.read_exact_at(&mut uuid, 48));
    let known = read.is_ok() && uuid != [0; 16];
    let path = |kind| PathBuf::from(format!("/var/lib/scelle/{}.{kind}", scelle::units::Uuid(uuid)));
    ["witness", "reports"].into_iter().filter(|_| known).map(path).collect()
}

fn forget_volume(disk: &Disk) {
    for path in remembered(disk) {
        let _ = fs::remove_file(path);
    }
}

/// What the host remembers of a volume at some moment.
pub struct Memory(Vec<(PathBuf, Option<Vec<u8>>)>);

impl Memory {
    /// Of the volume on this disk.
    pub fn of(disk: &Disk) -> Self {
        Self(remembered(disk).into_iter().map(|path| (path.clone(), fs::read(path).ok())).collect())
    }

    /// The host remembers that, and nothing of what came later.
    pub fn restore(&self) {
        for (path, bytes) in &self.0 {
            match bytes {
                Some(bytes) => fs::write(path, bytes).unwrap(),
                None => drop(fs::remove_file(path)),
            }
        }
    }
}

pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

pub fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Asserts success.
#[track_caller]
pub fn ok(out: &Output) {
    assert!(
        out.status.success(),
        "exit {:?}: {}{}",
        out.status.code(),
        String::from_utf8_lossy(&out.stdout),
        stderr(out)
    );
}

/// Asserts an exit code and the stable reason code in the message.
#[track_caller]
pub fn fails(out: &Output, code: i32, reason: &str) {
    let text = stderr(out);
    assert_eq!(out.status.code(), Some(code), "{text}");
    assert!(text.contains(&format!("[{reason}]")), "expected [{reason}] in: {text}");
}

//! Secrets outside of the daemon: no command leaves one in its memory for longer than it needs it, and none leaves a core.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::lab::{Lab, PASSPHRASE, SCELLE, ok, run, wait_for};
use crate::lifecycle::split_off;

/// Whether a process has these bytes anywhere in memory that it can write to.
fn holds(pid: u32, bytes: &[u8]) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let writable = maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw")));
    let mut is_there = false;
    for line in writable {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        // A stack's guard cannot be read, nor what was unmapped meanwhile.
        let mut found = vec![0; usize::try_from(end - start).unwrap()];
        let read = memory.read_at(&mut found, start).unwrap_or(0);
        is_there |= found[..read].windows(bytes.len()).any(|window| window == bytes);
    }
    is_there
}

#[test]
fn the_command_that_waits_for_its_daemon_has_forgotten_the_passphrase() {
    let lab = Lab::new(1, 64);
    ok(&lab.create());
    let mut command = lab.command(&["mount"]).args([&lab.disks[0].device, &lab.mountpoint]).spawn().unwrap();
    let daemon = split_off(command.id());
    assert!(holds(daemon, PASSPHRASE.as_bytes()), "the daemon derives the key from it: else this test sees nothing");
    assert!(!holds(command.id(), PASSPHRASE.as_bytes()));
    assert!(command.wait().unwrap().success());
    assert!(!holds(daemon, PASSPHRASE.as_bytes()), "the volume is open");
}

#[test]
fn no_command_leaves_a_core() {
    let lab = Lab::new(1, 64);
    let device = lab.disks[0].device.to_str().unwrap().to_owned();
    let mountpoint = lab.mountpoint.to_str().unwrap().to_owned();
    let documents = [format!("--registry={}", lab.path("registry.toml").display())];
    let documents = [&documents[..], &[format!("--trust={}", lab.path("trust.toml").display())]].concat();
    let asks = |words: &[&str]| {
        let words = words.iter().map(|word| (*word).to_owned());
        words.chain(documents.clone()).chain(["--passphrase-file=-".to_owned()]).collect::<Vec<_>>()
    };
    let create = asks(&["create", &device]);
    leaves_no_core(&create);
    ok(&lab.create());
    leaves_no_core(&asks(&["mount", &device, &mountpoint]));
    leaves_no_core(&asks(&["mount", "-f", &device, &mountpoint]));
    leaves_no_core(&asks(&["check", &device]));
    let keygen = ["registry", "keygen", "officer-c", "--password-file=-", "--out", lab.dir.path().to_str().unwrap()];
    leaves_no_core(&keygen.map(str::to_owned));
}

/// Aborts a command that was given the beginning of a passphrase, by a shell that would let it leave any core.
#[track_caller]
fn leaves_no_core(arguments: &[String]) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh")
        .args(["-c", "ulimit -c unlimited && exec \"$@\"", "sh", SCELLE])
        .args(arguments)
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut passphrase = command.stdin.take().unwrap();
    passphrase.write_all(PASSPHRASE.as_bytes()).unwrap();
    let pid = command.id();
    let limits = || fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let core = |limits: String| limits.lines().find(|line| line.starts_with("Max core file size")).map(str::to_owned);
    wait_for(&format!("{arguments:?} to be hardened"), || {
        assert!(command.try_wait().unwrap().is_none(), "{arguments:?} has ended");
        // The soft limit, which may be 0 before, and the hard one.
        core(limits()).is_some_and(|line| line.split_whitespace().skip(4).take(2).eq(["0", "0"]))
    });
    ok(&run(Command::new("kill").args(["-ABRT", &pid.to_string()])));
    let ended = command.wait().unwrap();
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(libc::SIGABRT), false), "{arguments:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{arguments:?}: a core");
}

/// A process whose files in /proc belong to root cannot be looked into by others of the same user.
#[test]
fn no_other_process_of_the_same_user_looks_into_a_command() {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::CommandExt;
    let nobody = 65_534;
    // Where anybody may execute it.
    let dir = tempfile::Builder::new().prefix("scelle-nobody").tempdir_in("/var/tmp").unwrap();
    ok(&run(Command::new("chmod").arg("755").arg(dir.path())));
    let program = dir.path().join("scelle");
    fs::copy(SCELLE, &program).unwrap();
    let mut command = Command::new(&program)
        .args(["registry", "keygen", "officer-c", "--password-file=-"])
        .uid(nobody)
        .gid(nobody)
        .current_dir("/")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let owner = || fs::metadata(Path::new("/proc").join(command.id().to_string()).join("environ")).unwrap().uid();
    wait_for("the command to be hardened", || owner() == 0);
    command.kill().unwrap();
    command.wait().unwrap();
}

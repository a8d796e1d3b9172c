//! Our program against a real kernel and emulated hardware.
//!
//! Debian's stock kernel is booted in QEMU, by software emulation: no KVM, no modules of this host. It has NVMe, SATA, SAS,
//! SCSI, USB and virtio disks of chosen identities, and on them nbd, NVMe/TCP, device-mapper and md are set up. Then disks
//! are pulled, swapped and put back under a mount. The devices with their expected verdicts are in devices.table, what is
//! tested in results.table; init, talk, guest-made and cases run in the guest.
//!
//! `scripts/hardware-test` builds and runs this, and says how. No plain `cargo test` does: it takes ten minutes.

mod cases;
mod cpio;
mod disks;
mod failure;
mod initramfs;
mod interrupt;
mod lines;
mod machine;
mod packages;
mod programs;
mod qmp;
mod registries;
mod results;
mod tables;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use tempfile::TempDir;

use cases::Ground;
use failure::{During, Failure, Result, failed};
use initramfs::Initramfs;
use packages::Packages;
use results::Results;
use tables::Tables;

/// Longest time for everything.
const ALL_MAX: Duration = Duration::from_secs(1800);

/// Programs that must be installed.
const PROGRAMS: [&str; 4] = ["dpkg-deb", "ldd", "setpriv", "date"];

/// What is asked of us.
#[derive(Default)]
struct Arguments {
    /// Print the cases and their results, and end.
    list: bool,
    /// Keep the folder with the images and the logs.
    keep: bool,
    /// Write what /sys shows of each device there.
    record: Option<PathBuf>,
    /// These cases alone; all when there are none.
    cases: Vec<String>,
}

/// The folder for images, sockets and logs. It goes with this value, unless it is to be kept.
struct Work {
    folder: TempDir,
    keep: bool,
}

impl Work {
    /// Makes the folder in $TMPDIR, else in /var/tmp.
    fn make(keep: bool) -> Result<Self> {
        let above = path_of("TMPDIR").unwrap_or_else(|| PathBuf::from("/var/tmp"));
        let mut folder = tempfile::Builder::new();
        // With keys, and with a socket that commands the machine: nobody else's.
        folder.prefix("scelle-hardware.").permissions(Permissions::from_mode(0o700)).disable_cleanup(keep);
        let made = folder.tempdir_in(&above);
        Ok(Self { folder: made.during(|| format!("make a folder in {}", above.display()))?, keep })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.keep {
            println!("kept: {}", self.folder.path().display());
        }
    }
}

fn main() -> ExitCode {
    interrupt::listen();
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Failure::Interrupted) => ExitCode::from(130),
        Err(Failure::Usage) => {
            eprintln!("{}", Failure::Usage);
            ExitCode::from(2)
        }
        Err(failure) => {
            eprintln!("hardware-test: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Does what is asked; true when every expected result came and is ok.
fn run() -> Result<bool> {
    let start = Instant::now();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tables = Tables::read(&here.join("tests/hardware"))?;
    let arguments = arguments(env::args().skip(1), &tables)?;
    if arguments.list {
        for row in &tables.rows {
            println!("{:<10} {:<30} {}", row.case, row.result, row.proves);
        }
        return Ok(true);
    }
    if let Some(missing) = PROGRAMS.into_iter().find(|name| programs::installed(name).is_none()) {
        return Err(failed(format!("missing: {missing}; install it, and run this again")));
    }
    let scelle = program(here)?;
    let cache = path_of("SCELLE_HARDWARE").unwrap_or_else(|| PathBuf::from("/var/tmp/scelle-hardware-test"));
    let packages = Packages::unpack(&cache)?;
    let work = Work::make(arguments.keep)?;
    let folder = work.folder.path();
    let initramfs = Initramfs::make(folder, &packages, &tables, &scelle, arguments.record.is_some())?;
    let (trees, until) = (arguments.record.clone(), start + ALL_MAX);
    let ground = Ground { work: folder, packages: &packages, tables: &tables, initramfs: &initramfs, trees, until };
    let mut results = Results::new(&tables);
    for boot in tables.boots() {
        let wanted = |case: &&str| arguments.cases.is_empty() || arguments.cases.iter().any(|name| name == case);
        let cases: Vec<&str> = tables.cases(boot).into_iter().filter(wanted).collect();
        if !cases.is_empty() {
            ground.run(boot, &cases, &mut results)?;
        }
        for case in cases {
            results.miss(case);
        }
    }
    let (failed, missing, seconds) = (results.failed(), results.missing(), start.elapsed().as_secs());
    let (count, minutes) = (results.count(), seconds / 60);
    println!("\n== {count} results, {failed} failed, {missing} of them missing; {minutes} min {} s", seconds % 60);
    Ok(failed == 0)
}

/// Reads the arguments.
fn arguments(mut words: impl Iterator<Item = String>, tables: &Tables) -> Result<Arguments> {
    let mut read = Arguments::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--list" => return Ok(Arguments { list: true, ..read }),
            "--keep" => read.keep = true,
            "--record" => {
                let folder = PathBuf::from(words.next().ok_or_else(|| failed("--record needs a folder"))?);
                fs::create_dir_all(&folder).during(|| format!("make {}", folder.display()))?;
                read.record = Some(folder);
            }
            "--case" => {
                let case = words.next().ok_or_else(|| failed("--case needs a name; see --list"))?;
                if !tables.rows.iter().any(|row| row.case == case) {
                    return Err(failed(format!("no case {case}; see --list")));
                }
                read.cases.push(case);
            }
            _ => return Err(Failure::Usage),
        }
    }
    Ok(read)
}

/// The program that is tested: $SCELLE, else the one of target/release.
fn program(here: &Path) -> Result<PathBuf> {
    let target = || path_of("CARGO_TARGET_DIR").unwrap_or_else(|| here.join("target"));
    let program = path_of("SCELLE").unwrap_or_else(|| target().join("release/scelle"));
    if !programs::is_program(&program) {
        return Err(failed(format!("no program {}: cargo build --release, or set SCELLE", program.display())));
    }
    program.canonicalize().during(|| format!("find {}", program.display()))
}

/// The path that a variable of the environment holds, if it is set and not empty.
fn path_of(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

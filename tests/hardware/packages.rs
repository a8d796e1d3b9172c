//! Debian's packages, unpacked beside each other: nothing of the host is changed. What the host has installed is used.

use std::fs::{self, File};
use std::path::{self, Path, PathBuf};
use std::process::Command;

use crate::failure::{During, Result, failed};
use crate::programs::{self, installed, is_program};

/// What the tests need beside the kernel.
const PACKAGES: [&str; 6] = ["qemu-system-x86", "busybox-static", "nbd-server", "nbd-client", "mdadm", "dmsetup"];

/// Bounds, in seconds: of a question to apt, of a download, of unpacking a package or looking into a program.
const QUESTION_MAX: u64 = 120;
const DOWNLOAD_MAX: u64 = 600;
const UNPACK_MAX: u64 = 300;

/// The unpacked packages.
pub struct Packages {
    /// The folder that holds them and their files, and stays.
    cache: PathBuf,
    /// Debian's kernel.
    pub kernel: PathBuf,
    /// The kernel's release, which its modules' folder is named for.
    pub release: String,
}

impl Packages {
    /// Downloads and unpacks what is not there yet.
    pub fn unpack(cache: &Path) -> Result<Self> {
        // Absolute: apt downloads into the folder it is started in.
        let cache = &path::absolute(cache).during(|| format!("find {}", cache.display()))?;
        let root = cache.join("root");
        for dir in [&root, &cache.join("packages")] {
            fs::create_dir_all(dir).during(|| format!("make {}", dir.display()))?;
        }
        let complete = cache.join("complete");
        if !complete.exists() {
            println!("\n== Debian's packages, into {}", cache.display());
            download_missing(&cache.join("packages"))?;
            for package in debs(&cache.join("packages"))? {
                programs::output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root), UNPACK_MAX)?;
            }
            File::create(&complete).during(|| format!("write {}", complete.display()))?;
        }
        let (kernel, release) = kernel(cache)?;
        Ok(Self { cache: cache.to_owned(), kernel, release })
    }

    /// The folder that the packages are unpacked in, as a system's root.
    pub fn root(&self) -> PathBuf {
        self.cache.join("root")
    }

    /// Where the unpacked programs find their libraries, for LD_LIBRARY_PATH.
    pub fn libraries(&self) -> String {
        let root = self.root();
        format!("{0}/usr/lib/x86_64-linux-gnu:{0}/lib/x86_64-linux-gnu", root.display())
    }

    /// The path of a program, unpacked or installed.
    pub fn tool(&self, name: &str) -> Result<PathBuf> {
        let unpacked = ["bin", "sbin", "usr/bin", "usr/sbin"].map(|dir| self.root().join(dir).join(name));
        let found = unpacked.into_iter().find(|file| is_program(file)).or_else(|| installed(name));
        let cache = self.cache.display();
        found.ok_or_else(|| {
            failed(format!("no {name}, neither in {cache} nor installed: remove {cache} and run this again"))
        })
    }
}

/// The kernel that was unpacked, and its release.
fn kernel(cache: &Path) -> Result<(PathBuf, String)> {
    let mut kernels = Vec::new();
    for file in files(&cache.join("root/boot"))? {
        if let Some(release) = name_of(&file).strip_prefix("vmlinuz-") {
            kernels.push((file.clone(), release.to_owned()));
        }
    }
    if kernels.len() != 1 {
        let (count, cache) = (kernels.len(), cache.display());
        return Err(failed(format!("{count} kernels in {cache} instead of one: remove {cache} and run this again")));
    }
    Ok(kernels.remove(0))
}

/// Downloads the kernel and the packages that are not installed, but for those that lie in `folder` already.
fn download_missing(folder: &Path) -> Result<()> {
    if installed("apt-get").is_none() {
        return Err(failed("this is not a Debian: no apt-get to fetch QEMU and the kernel with"));
    }
    let kernel = kernel_package()?;
    for package in missing_packages()?.into_iter().chain([kernel]) {
        let begin = format!("{package}_");
        if debs(folder)?.iter().any(|file| name_of(file).starts_with(&begin)) {
            continue;
        }
        let mut download = Command::new("apt-get");
        download.args(["download", "-qq", "-o", "APT::Sandbox::User=root", &package]).current_dir(folder);
        let said = programs::run(&mut download, DOWNLOAD_MAX)?;
        if !said.success {
            let (folder, errors) = (folder.display(), said.errors.trim_end());
            return Err(failed(format!(
                "cannot download {package}: without a network, put its .deb into {folder} and run this again\n{errors}"
            )));
        }
    }
    Ok(())
}

/// The name of the newest kernel's package. Asks for Debian's lists when apt knows none.
fn kernel_package() -> Result<String> {
    if let Some(name) = kernel_known()? {
        return Ok(name);
    }
    // Whether it worked shows in whether apt knows the kernel now.
    programs::run(Command::new("apt-get").args(["update", "-qq"]), DOWNLOAD_MAX)?;
    kernel_known()?.ok_or_else(|| {
        failed("apt knows no linux-image-amd64: is there a network, and Debian's main archive in the sources?")
    })
}

/// The package that stands behind linux-image-amd64, if apt knows it.
fn kernel_known() -> Result<Option<String>> {
    let said = programs::run(Command::new("apt-cache").args(["depends", "linux-image-amd64"]), QUESTION_MAX)?;
    Ok(said.output.lines().find_map(|line| line.trim_start().strip_prefix("Depends: ")).map(str::to_owned))
}

/// What apt would install anew, dependencies included; what it would only bring up to date shows its old version in
/// brackets.
fn missing_packages() -> Result<Vec<String>> {
    let mut question = Command::new("apt-get");
    question.args(["install", "-s", "--no-install-recommends"]).args(PACKAGES);
    let said = programs::run(&mut question, QUESTION_MAX)?;
    if !said.success {
        return Err(failed(format!("apt cannot resolve: {}\n{}", PACKAGES.join(" "), said.errors.trim_end())));
    }
    let new = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
        rest.starts_with('(').then(|| name.to_owned())
    };
    Ok(said.output.lines().filter_map(new).collect())
}

/// The packages in a folder.
fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(files(folder)?.into_iter().filter(|file| name_of(file).ends_with(".deb")).collect())
}

/// What lies in a folder, by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut files: Vec<PathBuf> = entries.during(|| format!("read {}", folder.display()))?;
    files.sort();
    Ok(files)
}

/// The last part of a path.
fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

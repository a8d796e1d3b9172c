//! Sets what the kernel keeps per mount in sysfs: read-ahead, and how much of the page cache may be dirty.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::mount::OwnMount;

/// Read-ahead of the mount, in KiB: four requests of the largest size in flight.
const READ_AHEAD_KIB: u32 = 4096;

/// Sets read-ahead of the mount. The kernel's default for FUSE is for daemons that nobody trusts: 128 KiB.
///
/// # Errors
/// What writing sysfs says; the mount works without.
pub fn tune_readahead(mount: &OwnMount) -> io::Result<()> {
    fs::write(bdi(mount).join("read_ahead_kb"), READ_AHEAD_KIB.to_string())
}

/// The folder of the mount in sysfs.
pub(super) fn bdi(mount: &OwnMount) -> PathBuf {
    Path::new("/sys/class/bdi").join(mount.dev().to_string())
}

/// Bounds the dirty pages of the mount in that folder, in bytes. Without a bound the mount may use what all may use
/// together; the kernel's default for FUSE is 1 % of that, and in force even when nothing else is dirty.
///
/// # Errors
/// What writing sysfs says. Kernels before 6.2 know no bound in bytes.
pub(super) fn bound_dirty(bdi: &Path, bytes: Option<u64>) -> io::Result<()> {
    let Some(bytes) = bytes else {
        // Older kernels do not have it.
        let _ = fs::write(bdi.join("strict_limit"), "0");
        return fs::write(bdi.join("max_ratio"), "100");
    };
    // More than all may use together is refused: then that is bound enough.
    if fs::write(bdi.join("max_bytes"), bytes.to_string()).is_err() {
        fs::write(bdi.join("max_ratio"), "100")?;
    }
    fs::write(bdi.join("strict_limit"), "1")
}

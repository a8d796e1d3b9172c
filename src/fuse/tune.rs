//! Sets what the kernel keeps per mount in sysfs: read-ahead, and the share of the page cache that may be dirty.

use std::fs;
use std::io;
use std::path::Path;

use super::mount::OwnMount;

/// Read-ahead of the mount, in KiB: four requests of the largest size in flight.
const READ_AHEAD_KIB: u32 = 4096;

/// Sets read-ahead and write-back limits of the mount. The kernel's defaults for FUSE are for daemons that nobody trusts:
/// 128 KiB, and 1 % of the page cache.
///
/// # Errors
/// What writing sysfs says; the mount works without.
pub fn tune_readahead(mount: &OwnMount) -> io::Result<()> {
    let bdi = Path::new("/sys/class/bdi").join(mount.dev().to_string());
    // strict_limit asks for throttling even far below the machine's limits; older kernels do not have it.
    let _ = fs::write(bdi.join("strict_limit"), "0");
    fs::write(bdi.join("max_ratio"), "100")?;
    fs::write(bdi.join("read_ahead_kb"), READ_AHEAD_KIB.to_string())
}

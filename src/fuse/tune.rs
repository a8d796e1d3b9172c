//! What the kernel keeps per mount in sysfs: read-ahead and the share of the page cache that may be dirty.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Read-ahead of the mount, in KiB: four requests of the largest size in flight.
const READ_AHEAD_KIB: u32 = 4096;

/// Sets read-ahead and write-back limits of the FUSE mount at `mountpoint` (absolute, without symbolic links). The
/// kernel's defaults for FUSE are for daemons that nobody trusts: 128 KiB, and 1 % of the page cache.
///
/// # Errors
/// What reading mountinfo or writing sysfs says; the mount works without.
pub fn tune_readahead(mountpoint: &Path) -> io::Result<()> {
    let table = fs::read("/proc/self/mountinfo")?;
    let device = device_of(&table, mountpoint)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the mount is not in /proc/self/mountinfo"))?;
    let bdi = Path::new("/sys/class/bdi").join(device);
    // strict_limit asks for throttling even far below the machine's limits; older kernels do not have it.
    let _ = fs::write(bdi.join("strict_limit"), "0");
    fs::write(bdi.join("max_ratio"), "100")?;
    fs::write(bdi.join("read_ahead_kb"), READ_AHEAD_KIB.to_string())
}

/// The device number `MAJ:MIN` of the topmost mount at `mountpoint` (proc_pid_mountinfo(5)).
fn device_of(table: &[u8], mountpoint: &Path) -> Option<String> {
    let wanted = escape(mountpoint.as_os_str().as_bytes());
    table.split(|&byte| byte == b'\n').rev().find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').take(5).collect();
        let found = fields.get(4).is_some_and(|field| *field == wanted.as_slice());
        let device = std::str::from_utf8(fields.get(2)?).ok()?;
        let numbers = device.split_once(':')?;
        let plain = [numbers.0, numbers.1].iter().all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
        (found && plain).then(|| device.to_string())
    })
}

/// Space, tab, newline and backslash are written in octal.
fn escape(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for &byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"25 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
        90 25 0:44 / /srv/pi\\303\\250ces rw - fuse.scelle x rw\n\
        91 25 0:45 / /srv/a\\040b rw,nosuid - fuse.scelle scelle:x rw\n\
        92 25 0:46 / /srv/a\\040b rw,nosuid - fuse.scelle scelle:y rw\nbroken\n";

    #[test]
    fn the_topmost_mount_is_found() {
        assert_eq!(device_of(TABLE, Path::new("/srv/a b")).as_deref(), Some("0:46"));
        assert_eq!(device_of(TABLE, Path::new("/")).as_deref(), Some("254:0"));
        assert_eq!(device_of(TABLE, Path::new("/srv")), None);
    }
}

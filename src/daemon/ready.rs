//! What a mount needs of the host, looked at before a device is opened: a mount that cannot end well changes nothing.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Access, access};

use super::WITNESS_DIR;
use crate::control::RUN_DIR;
use crate::fuse;
use crate::limits::HOST_DISK_TIMEOUT_S;
use crate::os::Patience;
use crate::problem::{Code, Problem};

/// Refuses a host on which a mount could not be served, or, unless it is `read_only`, would not be remembered.
pub fn check(read_only: bool) -> Result<(), Problem> {
    fuse::available().map_err(|error| Problem::new(Code::FuseUnavailable, error.to_string()))?;
    writable(RUN_DIR, "through a socket there, scelle status and scelle umount reach the mount")?;
    if read_only {
        return Ok(());
    }
    let remembered = "the host notes there which commit it has last answered for, so that a volume that was set back is \
                      recognised, and what the audit trail has to get later";
    writable(WITNESS_DIR, remembered)
}

/// Makes the folder, if it is not there, and refuses one that takes no new file. `what` it is for is said.
fn writable(folder: &'static str, what: &str) -> Result<(), Problem> {
    let look = move || -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        Ok(access(Path::new(folder), Access::WRITE_OK | Access::EXEC_OK)?)
    };
    Patience::new(Duration::from_secs(HOST_DISK_TIMEOUT_S))
        .call(look)
        .map_err(|error| Problem::new(Code::HostFolder, format!("{folder} cannot be written: {error}: {what}")))
}

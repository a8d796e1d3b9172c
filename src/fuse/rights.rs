//! What a caller may do, where the kernel's request does not say it.

use std::path::Path;

use fuser::Request;

use crate::device::sys::read_bounded;
use crate::limits::PROC_BYTES_MAX;

/// May change files of groups that it is not in without losing their set-group-id bit (linux/capability.h).
const CAP_FSETID: u32 = 4;

/// Whether the caller is in group `gid`, or may do as if it were (`in_group_or_capable()` of fs/inode.c). The kernel says so
/// itself with `FUSE_SETXATTR_EXT`, which the library does not know; so the caller's process is asked, and one that is gone
/// has no more rights than its request shows.
pub(super) fn in_group_or_capable(request: &Request, gid: u32) -> bool {
    let status = Path::new("/proc").join(request.pid().to_string()).join("status");
    let status = read_bounded(&status, PROC_BYTES_MAX).ok().flatten().unwrap_or_default();
    request.gid() == gid || says(&String::from_utf8_lossy(&status), gid)
}

/// The same, by proc_pid_status(5).
fn says(status: &str, gid: u32) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let groups = field("Groups").unwrap_or_default();
    let capabilities = u64::from_str_radix(field("CapEff").unwrap_or_default(), 16).unwrap_or(0);
    groups.split_whitespace().any(|group| group.parse() == Ok(gid)) || capabilities & 1 << CAP_FSETID != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_capabilities_are_found() {
        let member = "Name:\tGroups: 7\nGid:\t100\t100\t100\t100\nGroups:\t4 24 100 \nCapEff:\t0000000000000000\n";
        assert!(says(member, 24) && says(member, 100));
        assert!(!says(member, 2) && !says(member, 7) && !says("", 0) && !says("CapEff:\tx\nGroups:\t\n", 0));
        assert!(says("Groups:\t\nCapEff:\t0000000000000010\n", 7));
        assert!(!says("CapEff:\t000001ffffffffef\n", 7));
    }
}

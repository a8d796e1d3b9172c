//! What a caller may do, where the kernel's request does not say it.
//!
//! With `FUSE_HANDLE_KILLPRIV_V2` the filesystem, not the kernel, takes set-user-id and set-group-id bits from a file
//! that is written, truncated or given away. So the kernel need not ask before every write(2) whether there are any.
//!
//! A request to write says whether its caller keeps the bits. A request to truncate says so in a flag that the library
//! does not know (`FATTR_KILL_SUIDGID`); a request to allocate or to copy does not say it. In these cases the caller's
//! process is asked.

use std::path::Path;

use fuser::Request;
use libc::{S_ISGID, S_ISUID, S_IXGRP};

use crate::limits::PROC_BYTES_MAX;
use crate::os::read_bounded;

/// The bits that may have to go.
pub(super) const SET_ID: u32 = S_ISUID | S_ISGID;

/// May change files of groups that it is not in without losing their set-group-id bit (linux/capability.h).
const CAP_FSETID: u32 = 4;

/// May change the mode of files that are not its own.
const CAP_FOWNER: u32 = 3;

/// May see the extended attributes `trusted.*`, among much else.
const CAP_SYS_ADMIN: u32 = 21;

/// Whether the caller is in group `gid`, or may act as if it were (`in_group_or_capable()` of fs/inode.c). The kernel
/// says so itself with `FUSE_SETXATTR_EXT`, which the library does not know. So the caller's process is asked. A
/// process that is gone has no more rights than its request shows.
pub(super) fn in_group_or_capable(request: &Request, gid: u32) -> bool {
    request.gid() == gid || says(&status(request), gid)
}

/// Whether the caller may write to a file and leave its set-user-id and set-group-id bits.
pub(super) fn keeps_set_id(request: &Request) -> bool {
    capable_here(request, CAP_FSETID)
}

/// Whether the caller may change the mode of a file of `uid` (`inode_owner_or_capable()` of fs/inode.c).
pub(super) fn owner_or_capable(request: &Request, uid: u32) -> bool {
    request.uid() == uid || capable_here(request, CAP_FOWNER)
}

/// Whether the caller is shown that there are attributes `trusted.*`. The kernel itself keeps their values from others.
pub(super) fn sees_trusted(request: &Request) -> bool {
    capable_here(request, CAP_SYS_ADMIN)
}

/// Whether the caller has a capability on the host (`capable()` of kernel/capability.c). What a process may do in a
/// user namespace of its own does not count. A process that is gone, or that is not seen from here, does not have the
/// capability.
fn capable_here(request: &Request, capability: u32) -> bool {
    let namespace = |process: &str| std::fs::read_link(Path::new("/proc").join(process).join("ns/user")).ok();
    let theirs = namespace(&request.pid().to_string());
    theirs.is_some() && theirs == namespace("self") && capable(&status(request), capability)
}

/// The permission bits that a file has after its content or owner changed (`setattr_should_drop_suidgid()` of
/// fs/attr.c). `None` if there is nothing to take away. A set-group-id bit without execution by the group is an old
/// sign for mandatory locking: it stays if the caller could set it.
pub(super) fn without_set_id(mode: u32, keeps_group_id: impl FnOnce() -> bool) -> Option<u32> {
    let group = mode & S_ISGID != 0 && (mode & S_IXGRP != 0 || !keeps_group_id());
    let taken = mode & S_ISUID | if group { S_ISGID } else { 0 };
    (taken != 0).then_some(mode & 0o7777 & !taken)
}

/// What proc_pid_status(5) says of the caller. Empty when the caller acts for somebody else, as the kernel's file
/// servers do: then its own groups and capabilities say nothing of this request.
fn status(request: &Request) -> String {
    let status = Path::new("/proc").join(request.pid().to_string()).join("status");
    let status = read_bounded(&status, PROC_BYTES_MAX).ok().flatten().unwrap_or_default();
    let status = String::from_utf8_lossy(&status).into_owned();
    if acts_as(&status, request.uid(), request.gid()) { status } else { String::new() }
}

/// Whether the process accesses files as this user and group itself.
fn acts_as(status: &str, uid: u32, gid: u32) -> bool {
    let on_files = |name: &str| field(status, name).split_whitespace().nth(3).and_then(|id| id.parse().ok());
    on_files("Uid") == Some(uid) && on_files("Gid") == Some(gid)
}

/// The value of a field of proc_pid_status(5).
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim).unwrap_or_default()
}

fn capable(status: &str, capability: u32) -> bool {
    u64::from_str_radix(field(status, "CapEff"), 16).unwrap_or(0) & 1 << capability != 0
}

fn says(status: &str, gid: u32) -> bool {
    field(status, "Groups").split_whitespace().any(|group| group.parse() == Ok(gid)) || capable(status, CAP_FSETID)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_id_bits_go_as_the_kernel_has_them_go() {
        assert_eq!(without_set_id(0o104_755, || true), Some(0o755));
        assert_eq!(without_set_id(0o106_775, || true), Some(0o775));
        assert_eq!(without_set_id(0o102_765, || true), None);
        assert_eq!(without_set_id(0o102_765, || false), Some(0o765));
        assert_eq!(without_set_id(0o106_765, || true), Some(0o2765));
        assert_eq!(without_set_id(0o101_777, || false), None);
    }

    #[test]
    fn who_acts_for_somebody_else_is_not_asked() {
        let server = "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n";
        assert!(acts_as(server, 0, 0));
        assert!(!acts_as(server, 1001, 1001) && !acts_as(server, 0, 1001) && !acts_as("", 0, 0));
        // setfsuid(2): the last column counts.
        assert!(acts_as("Uid:\t0\t0\t0\t7\nGid:\t1\t1\t1\t8\n", 7, 8));
    }

    #[test]
    fn groups_and_capabilities_are_found() {
        let member = "Name:\tGroups: 7\nGid:\t100\t100\t100\t100\nGroups:\t4 24 100 \nCapEff:\t0000000000000000\n";
        assert!(says(member, 24) && says(member, 100));
        assert!(!says(member, 2) && !says(member, 7) && !says("", 0) && !says("CapEff:\tx\nGroups:\t\n", 0));
        assert!(says("Groups:\t\nCapEff:\t0000000000000010\n", 7));
        assert!(!says("CapEff:\t000001ffffffffef\n", 7));
    }
}

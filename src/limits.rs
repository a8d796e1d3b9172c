//! Every bound of the product, in one place, with the relations between them checked at compile time.

use crate::units::{BLOCK_SIZE, to_usize};

/// Bytes of each of the two label areas, at the beginning and at the end of a device.
pub const LABEL_SIZE: u64 = 1 << 20;

/// Smallest device that `create` accepts, in bytes.
pub const DEVICE_SIZE_MIN: u64 = 16 << 20;

/// Largest device: block addresses are kept in 48 bits.
pub const DEVICE_SIZE_MAX: u64 = 1 << 59;

/// Most replicas of a volume: the set of in-sync replicas is a 64-bit mask, the replica table has this many rows.
pub const REPLICAS_MAX: usize = 16;

/// Most key slots of a volume.
pub const KEY_SLOTS_MAX: usize = 8;

/// Longest volume label, in bytes of UTF-8.
pub const VOLUME_LABEL_MAX: usize = 64;

/// Longest identifier of a device or a site in the registry, in bytes.
pub const REGISTRY_ID_MAX: usize = 64;

/// Largest registry document, in bytes.
pub const REGISTRY_BYTES_MAX: usize = 4 << 20;

/// Most sites of a registry.
pub const SITES_MAX: usize = 4096;

/// Most devices of a registry.
pub const REGISTRY_DEVICES_MAX: usize = 1 << 16;

/// Longest text of a registry (name, owner, model, ...), in bytes.
pub const REGISTRY_TEXT_MAX: usize = 256;

/// Most values of one list of a registry.
pub const REGISTRY_LIST_MAX: usize = 64;

/// Longest validity of a registry or an inspection, in days: ten years.
pub const VALIDITY_DAYS_MAX: i64 = 3653;

/// Largest document of trust anchors, in bytes.
pub const TRUST_BYTES_MAX: usize = 64 << 10;

/// How long an approval holds unless it is renewed, in seconds.
pub const LEASE_S: u64 = 60;

/// Largest file of recognised trust anchors, in bytes.
pub const AUTHORITY_BYTES_MAX: usize = 64 << 10;

/// Latest version of the trust anchors. It bounds how often officers can be replaced in the life of a volume.
pub const TRUST_VERSIONS_MAX: u32 = 256;

/// Largest signature or key file, in bytes.
pub const SIGNATURE_BYTES_MAX: usize = 4096;

/// Most signature files that are looked at for one registry.
pub const SIGNATURES_MAX: usize = 64;

/// Most officers in the trust anchors.
pub const OFFICERS_MAX: usize = 32;

/// Deepest backing chain that is followed.
pub const CHAIN_DEPTH_MAX: usize = 8;

/// Most nodes of a backing chain.
pub const CHAIN_NODES_MAX: usize = 256;

/// Most block devices that `scelle device list` shows.
pub const DEVICES_LISTED_MAX: usize = 16 << 10;

/// Most PCI functions of the host that are looked at; a host with more counts as unknown.
pub const PCI_FUNCTIONS_MAX: usize = 16 << 10;

/// Most bytes read of one sysfs attribute.
pub const SYSFS_BYTES_MAX: usize = 4096;

/// Most bytes read of one file of proc (a mount table is long on some hosts).
pub const PROC_BYTES_MAX: usize = 4 << 20;

/// Longest passphrase or key file, in bytes.
pub const SECRET_BYTES_MAX: usize = 64 << 10;

/// Fewest characters of a new passphrase that a person typed.
pub const PASSPHRASE_CHARS_MIN: usize = 12;

/// Fewest bits that the bytes of a new key file may hold.
pub const KEY_FILE_BITS_MIN: u32 = 128;

/// Least memory of argon2id that a key slot may ask for, in KiB: the second recommended option of RFC 9106 §4.
pub const KDF_MEMORY_KIB_MIN: u32 = 64 << 10;

/// Most memory of argon2id that a key slot may ask for, in KiB. A host with little memory must survive a forged slot.
pub const KDF_MEMORY_KIB_MAX: u32 = 512 << 10;

/// Fewest passes of argon2id.
pub const KDF_PASSES_MIN: u32 = 3;

/// Most passes of argon2id.
pub const KDF_PASSES_MAX: u32 = 6;

/// Fewest lanes of argon2id.
pub const KDF_LANES_MIN: u32 = 4;

/// Most lanes of argon2id.
pub const KDF_LANES_MAX: u32 = 16;

/// Most work that the key slots of one label may ask for together, in KiB of memory times passes.
pub const KDF_LABEL_WORK_MAX: u64 = 8 << 20;

/// Most work that one attempt to open a volume may cost, over all slots of all labels. Honest labels never reach it,
/// because they all show the same slots.
pub const KDF_OPENING_WORK_MAX: u64 = 3 * KDF_LABEL_WORK_MAX;

/// Longest name in a folder, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// Longest symbolic link target, in bytes (`PATH_MAX` without the final NUL).
pub const SYMLINK_MAX: usize = 4095;

/// Largest value of one extended attribute, in bytes (`XATTR_SIZE_MAX`, limits.h).
pub const XATTR_VALUE_MAX: usize = 64 << 10;

/// Longest name of an extended attribute, in bytes (`XATTR_NAME_MAX`, limits.h).
pub const XATTR_NAME_MAX: usize = 255;

/// Longest answer of listxattr(2), in bytes (`XATTR_LIST_MAX`, limits.h).
pub const XATTR_LIST_MAX: usize = 64 << 10;

/// Largest sum of the lengths of an inode's extended attributes, names and values, in bytes. It bounds what removing the
/// inode does in one operation, during which everybody else waits.
pub const XATTR_BYTES_MAX: u64 = 1 << 20;

const _: () = assert!(XATTR_BYTES_MAX >= 4 * (XATTR_VALUE_MAX + XATTR_NAME_MAX) as u64);

/// Most hard links of one inode (as ext4's `EXT4_LINK_MAX` for files).
pub const LINK_MAX: u32 = 65_000;

/// Largest file, in bytes: the kernel's own bound (`MAX_LFS_FILESIZE`). FUSE has no way to give the kernel a smaller
/// one. With a smaller bound here, the kernel's writeback cache would take what lies beyond it, and lose it afterwards.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;

/// Most blocks in one extent row: its tags (16 bytes each) must fit well inside one SQLite page.
pub const EXTENT_BLOCKS_MAX: u64 = 64;

/// Largest single request from the kernel, in bytes.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Least memory for blocks that were read, in bytes, unless the mount says how much.
pub const CACHE_BYTES_DEFAULT_MIN: u64 = 64 << 20;

/// Most memory for blocks that were read, in bytes, unless the mount says how much.
pub const CACHE_BYTES_DEFAULT_MAX: u64 = 1 << 30;

/// Longest time between a change reaching the daemon and its commit, in milliseconds (promise P5).
pub const COMMIT_INTERVAL_MS: u64 = 1000;

/// Longest wait for one device to finish one write or flush before it is fenced, in seconds.
pub const DEVICE_TIMEOUT_S: u64 = 60;

/// Longest line or message on the control socket, in bytes.
pub const CONTROL_MESSAGE_MAX: usize = 1 << 20;

/// Most messages that are kept while the system's log cannot be written.
pub const LOG_LINES_WAITING_MAX: usize = 1024;

/// Longest record of the audit trail, in bytes.
pub const AUDIT_RECORD_BYTES_MAX: usize = 32 << 10;

/// Bytes of records of the audit trail that are read at once; the last record may go beyond.
pub const AUDIT_PAGE_BYTES_MAX: usize = 256 << 10;

/// Most tasks of a volume that are remembered after they have ended.
pub const TASKS_KEPT_MAX: usize = 64;

/// Longest text in a record of the audit trail (a reason, a label), in bytes; a longer text is cut.
pub const AUDIT_TEXT_MAX: usize = 512;

/// Most reasons in a record of the audit trail.
pub const AUDIT_REASONS_MAX: usize = 8;

/// Largest file of a host's witness, in bytes.
pub const WITNESS_BYTES_MAX: u64 = 64 << 10;

/// Longest wait for the host's own disk, where the witness and the reports are, in seconds.
pub const HOST_DISK_TIMEOUT_S: u64 = 5;

/// Largest file of reports that the host keeps until they can be written to the volume, in bytes.
pub const AUDIT_REPORTS_BYTES_MAX: usize = 256 << 10;

const _: () = assert!(DEVICE_SIZE_MIN > 2 * LABEL_SIZE);
const _: () = assert!(DEVICE_SIZE_MAX / (BLOCK_SIZE as u64) < 1 << 48);
const _: () = assert!(REPLICAS_MAX <= 64);
const _: () = assert!(to_usize(EXTENT_BLOCKS_MAX) * 16 * 2 < BLOCK_SIZE);
const _: () = assert!(REQUEST_BYTES_MAX.is_multiple_of(BLOCK_SIZE));
const _: () = assert!(KDF_MEMORY_KIB_MIN <= KDF_MEMORY_KIB_MAX && KDF_PASSES_MIN <= KDF_PASSES_MAX);
const _: () = assert!(KDF_LANES_MIN <= KDF_LANES_MAX);
// One slot may be as costly as a slot can be, and a volume may use up to all its slots at twice the least work.
const _: () = assert!(KDF_MEMORY_KIB_MAX as u64 * KDF_PASSES_MAX as u64 <= KDF_LABEL_WORK_MAX);
const _: () =
    assert!(KEY_SLOTS_MAX as u64 * 2 * KDF_MEMORY_KIB_MIN as u64 * KDF_PASSES_MIN as u64 <= KDF_LABEL_WORK_MAX);
const _: () = assert!(OFFICERS_MAX < 256 && REGISTRY_ID_MAX < 256 && OFFICERS_MAX <= SIGNATURES_MAX);
// A record is JSON text. As a string in an answer of the control socket its length at most doubles.
const _: () = assert!(2 * (AUDIT_PAGE_BYTES_MAX + AUDIT_RECORD_BYTES_MAX) + (64 << 10) < CONTROL_MESSAGE_MAX);
const _: () = assert!(AUDIT_REPORTS_BYTES_MAX > 4 * AUDIT_RECORD_BYTES_MAX);

//! What libblkid (util-linux) recognises on a device: filesystems, members of arrays and pools, encrypted volumes, swap
//! space, partition tables.
//!
//! The interface is that of `blkid/blkid.h`. The functions are declared here by hand: there are a dozen of them, and the
//! crate over them (libblkid-rs) runs bindgen, which needs libclang wherever scelle is built. libblkid.so.1 itself is
//! essential on Debian, and udev has the same code read every disk that appears.

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

/// Most signatures that are reported of one device. libblkid knows about a hundred kinds.
const SIGNATURES_MAX: usize = 32;
/// Most characters of a text that is taken over from a device.
const TEXT_MAX: usize = 64;

/// `BLKID_SUBLKS_LABEL`, `_TYPE`, `_USAGE`, `_MAGIC`, `_BADCSUM` of blkid/blkid.h: what is told of a superblock, and that
/// one whose checksum is wrong is told of too.
const SUBLKS: c_int = (1 << 1) | (1 << 5) | (1 << 7) | (1 << 9) | (1 << 10);
/// `BLKID_PARTS_FORCE_GPT`, `BLKID_PARTS_MAGIC`: a GPT is told of without its protective MBR too, e.g. when only the copy
/// at the end of the device is left.
const PARTS: c_int = (1 << 1) | (1 << 3);

/// Partition identifiers of the Atari's format that libblkid names too (partitions/atari.c).
const ATARI_IDS: [&[u8]; 7] = [b"GEM", b"BGM", b"LNX", b"SWP", b"RAW", b"XGM", b"UNX"];

/// `struct blkid_struct_probe`, which only the library looks into.
#[repr(C)]
struct Opaque {
    nothing: [u8; 0],
}

#[link(name = "blkid")]
unsafe extern "C" {
    fn blkid_new_probe() -> *mut Opaque;
    fn blkid_free_probe(probe: *mut Opaque);
    fn blkid_probe_set_device(probe: *mut Opaque, fd: c_int, offset: i64, size: i64) -> c_int;
    fn blkid_probe_set_sectorsize(probe: *mut Opaque, bytes: libc::c_uint) -> c_int;
    fn blkid_probe_enable_superblocks(probe: *mut Opaque, enable: c_int) -> c_int;
    fn blkid_probe_set_superblocks_flags(probe: *mut Opaque, flags: c_int) -> c_int;
    fn blkid_probe_enable_partitions(probe: *mut Opaque, enable: c_int) -> c_int;
    fn blkid_probe_set_partitions_flags(probe: *mut Opaque, flags: c_int) -> c_int;
    fn blkid_do_probe(probe: *mut Opaque) -> c_int;
    fn blkid_probe_lookup_value(
        probe: *mut Opaque,
        name: *const c_char,
        data: *mut *const c_char,
        len: *mut libc::size_t,
    ) -> c_int;
}

/// What a signature is a sign of (`BLKID_USAGE_*`, and partition tables, which have none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// A filesystem.
    Filesystem,
    /// A member of an array, a pool or a volume group.
    Raid,
    /// An encrypted volume.
    Crypto,
    /// A partition table.
    PartitionTable,
    /// Something else, e.g. swap space.
    Other,
}

/// A signature on a device. Its texts are printable ASCII, with everything else escaped: whoever wrote the device chose
/// them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// What it is a sign of.
    pub usage: Usage,
    /// libblkid's name of the format, e.g. `ext4` or `gpt`.
    pub kind: String,
    /// The label in it, when it has one.
    pub label: Option<String>,
    /// Byte offset of its magic number, when the library tells.
    pub offset: Option<u64>,
    /// Whether its checksum is wrong.
    pub damaged: bool,
}

/// Every signature on the file or block device `fd`, which has logical blocks of `block` bytes.
///
/// The descriptor must be one of its own, to read, without `O_DIRECT`: libblkid reads pieces of any length to memory of any
/// alignment, moves the descriptor's position and, in newer versions, changes its flags. It reads some hundred
/// kilobytes, at places that the signatures name.
///
/// # Errors
/// When a read fails or libblkid gives up: then nothing is known of the device.
pub fn signatures(fd: BorrowedFd<'_>, block: u32) -> io::Result<Vec<Signature>> {
    let mut probe = Probe::new(fd, block)?;
    let mut found = Vec::new();
    // blkid_do_safeprobe would stop at a RAID member, and call several signatures ambivalent (-2) without a word which:
    // each call of blkid_do_probe goes on where the last one stopped, as wipefs(8) does.
    while found.len() < SIGNATURES_MAX && probe.next()? {
        if !probe.is_chance() {
            found.push(probe.signature());
        }
    }
    Ok(found)
}

/// A `blkid_probe`.
struct Probe<'a> {
    raw: NonNull<Opaque>,
    /// It reads through the descriptor as long as it lives.
    _fd: BorrowedFd<'a>,
}

impl<'a> Probe<'a> {
    fn new(fd: BorrowedFd<'a>, block: u32) -> io::Result<Self> {
        // SAFETY: takes nothing; what it returns is owned by the caller, or null.
        let raw = NonNull::new(unsafe { blkid_new_probe() }).ok_or(io::ErrorKind::OutOfMemory)?;
        let this = Self { raw, _fd: fd };
        let probe = raw.as_ptr();
        // SAFETY: the probe is valid until it is dropped, and the descriptor is borrowed for longer. A size of 0 stands
        // for the whole device.
        done("blkid_probe_set_device", unsafe { blkid_probe_set_device(probe, fd.as_raw_fd(), 0, 0) })?;
        // SAFETY: the probe is valid.
        done("blkid_probe_set_sectorsize", unsafe { blkid_probe_set_sectorsize(probe, block) })?;
        // SAFETY: the probe is valid.
        done("blkid_probe_enable_superblocks", unsafe { blkid_probe_enable_superblocks(probe, 1) })?;
        // SAFETY: the probe is valid.
        done("blkid_probe_set_superblocks_flags", unsafe { blkid_probe_set_superblocks_flags(probe, SUBLKS) })?;
        // SAFETY: the probe is valid.
        done("blkid_probe_enable_partitions", unsafe { blkid_probe_enable_partitions(probe, 1) })?;
        // SAFETY: the probe is valid.
        done("blkid_probe_set_partitions_flags", unsafe { blkid_probe_set_partitions_flags(probe, PARTS) })?;
        Ok(this)
    }

    /// Goes on to the next signature; false when there is none any more.
    fn next(&mut self) -> io::Result<bool> {
        // SAFETY: the probe is valid and has a device.
        match unsafe { blkid_do_probe(self.raw.as_ptr()) } {
            0 => Ok(true),
            1 => Ok(false),
            other => done("blkid_do_probe", other).map(|()| false),
        }
    }

    /// A value of the signature at hand, without the zero byte at its end.
    fn value(&self, name: &CStr) -> Option<&[u8]> {
        let (mut data, mut len) = (ptr::null(), 0);
        // SAFETY: the probe is valid, the name ends with a zero byte, and both results have room.
        let code = unsafe { blkid_probe_lookup_value(self.raw.as_ptr(), name.as_ptr(), &raw mut data, &raw mut len) };
        if code != 0 || data.is_null() {
            return None;
        }
        // SAFETY: the library gives a pointer to `len` bytes of its own, which stay until the next blkid_do_probe; that one
        // takes the probe by `&mut`.
        let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) };
        Some(bytes.strip_suffix(&[0]).unwrap_or(bytes))
    }

    fn signature(&self) -> Signature {
        let text = |name| self.value(name).map(printable);
        let number = |name| text(name).and_then(|digits| digits.parse().ok());
        if let Some(kind) = text(c"PTTYPE") {
            let offset = number(c"PTMAGIC_OFFSET");
            return Signature { usage: Usage::PartitionTable, kind, label: None, offset, damaged: false };
        }
        let usage = match self.value(c"USAGE") {
            Some(b"filesystem") => Usage::Filesystem,
            Some(b"raid") => Usage::Raid,
            Some(b"crypto") => Usage::Crypto,
            _ => Usage::Other,
        };
        Signature {
            usage,
            kind: text(c"TYPE").unwrap_or_else(|| "unknown".to_owned()),
            label: text(c"LABEL").filter(|label| !label.is_empty()),
            offset: number(c"SBMAGIC_OFFSET"),
            damaged: self.value(c"SBBADCSUM").is_some(),
        }
    }

    /// Whether libblkid takes random bytes for something. The Atari's partition table has no magic number: any three
    /// letters and digits will do as an identifier. Of the disks of random bytes, one in some thousand has such a table.
    fn is_chance(&self) -> bool {
        self.value(c"PTTYPE") == Some(b"atari")
            && !self.value(c"PTMAGIC").is_some_and(|magic| magic.get(1..4).is_some_and(|id| ATARI_IDS.contains(&id)))
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        // SAFETY: the probe came from blkid_new_probe and is not used after this. The descriptor stays open: it was set by
        // the caller.
        unsafe { blkid_free_probe(self.raw.as_ptr()) }
    }
}

/// The library's convention: negative for an error, whose errno is set, or not.
fn done(function: &str, code: c_int) -> io::Result<()> {
    if code >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(error.kind(), format!("{function} of libblkid returned {code} ({error})")))
}

/// A text of a device that can be shown on a terminal.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().chars().take(TEXT_MAX).flat_map(char::escape_default).collect()
}

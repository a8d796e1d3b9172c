//! Answers that several requests have in common: an error, an attribute's value.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use fuser::{Errno, ReplyXattr};

use crate::fs;

/// At most one log line is written in this time: damaged or failing devices can produce an error a request.
const LOG_INTERVAL_MS: u64 = 1000;

/// The errno for the kernel. Failures that no caller has caused are logged.
pub(super) fn errno(error: &fs::Error) -> Errno {
    static LAST: AtomicU64 = AtomicU64::new(0);
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let code = error.errno();
    if code == libc::EIO {
        let since = START.get_or_init(Instant::now).elapsed().as_millis();
        let now = u64::try_from(since).unwrap_or(u64::MAX).saturating_add(1);
        let last = LAST.load(Ordering::Relaxed);
        if last == 0 || now.saturating_sub(last) >= LOG_INTERVAL_MS {
            LAST.store(now, Ordering::Relaxed);
            log::error!("a request failed: {error}");
        }
    }
    Errno::from_i32(code)
}

/// The two-step answer of getxattr(2) and listxattr(2): the length when asked for 0 bytes, else the bytes if they fit.
pub(super) fn sized(result: fs::Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(error) => reply.error(errno(&error)),
    }
}

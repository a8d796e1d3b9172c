//! Sends and receives one line, bounded in length and time.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::CONTROL_MESSAGE_MAX;

/// Connects to the socket at `path`. When as many clients wait for a daemon as the system lets wait
/// (`net.core.somaxconn`), connect(2) sleeps without end. So a thread of its own connects, and is left behind after
/// `wait`.
///
/// # Errors
/// `TimedOut`, `NotFound` and `ConnectionRefused` where nobody listens, or the socket's.
pub(super) fn connect(path: &Path, wait: Duration) -> io::Result<UnixStream> {
    let (path, (sender, receiver)) = (path.to_path_buf(), mpsc::channel());
    std::thread::Builder::new().name("connect".into()).spawn(move || sender.send(UnixStream::connect(path)))?;
    receiver.recv_timeout(wait).unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

/// Reads one line and decodes it. `wait` bounds the whole line, so that a peer which sends a byte now and then cannot
/// hold the reader. `None` waits as long as it takes.
///
/// # Errors
/// `TimedOut`, `UnexpectedEof`, `InvalidData` for a line that is too long or not what was expected, or the socket's.
pub(super) fn receive<T: DeserializeOwned>(stream: &mut UnixStream, wait: Option<Duration>) -> io::Result<T> {
    let deadline = wait.map(|wait| Instant::now() + wait);
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(left)?;
        // Looked at first: what follows the line belongs to whoever reads next.
        let count = match recv(&*stream, &mut chunk[..], RecvFlags::PEEK).map_err(io::Error::from) {
            Ok((0, _)) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok((count, _)) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        };
        let end = chunk[..count].iter().position(|&byte| byte == b'\n');
        let fresh = &mut chunk[..end.map_or(count, |end| end + 1)];
        stream.read_exact(fresh)?;
        if let Some(end) = end {
            line.extend_from_slice(&fresh[..end]);
            return serde_json::from_slice(&line).map_err(|error| io::Error::new(ErrorKind::InvalidData, error));
        }
        line.extend_from_slice(fresh);
        if line.len() >= CONTROL_MESSAGE_MAX {
            return Err(io::Error::new(ErrorKind::InvalidData, "the line is longer than the protocol allows"));
        }
    }
}

/// Encodes and sends one line.
///
/// # Errors
/// `InvalidData` when it would be too long, `WouldBlock` when the peer does not read within `wait`, or the socket's.
pub(super) fn send<T: Serialize>(stream: &mut UnixStream, message: &T, wait: Duration) -> io::Result<()> {
    let mut line = serde_json::to_vec(message).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    line.push(b'\n');
    if line.len() > CONTROL_MESSAGE_MAX {
        return Err(io::Error::new(ErrorKind::InvalidData, "the message is longer than the protocol allows"));
    }
    stream.set_write_timeout(Some(wait))?;
    stream.write_all(&line)
}

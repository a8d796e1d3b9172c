//! Conversations in lines over a Unix socket, with a time to wait for each of them.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::failure::{During, Result, failed};
use crate::interrupt::{self, TICK};

/// Longest line: no honest one comes near.
const LINE_MAX: usize = 1 << 20;

/// Longest wait until the other side takes what we say.
const WRITE_MAX: Duration = Duration::from_secs(60);

/// What came of waiting for a line.
pub enum Heard {
    /// A line, without its end.
    Line(String),
    /// Nothing, until the time was over.
    Silence,
    /// The other side has closed the conversation.
    End,
}

/// A conversation in lines.
pub struct Lines {
    stream: UnixStream,
    /// What has come, and is not yet a line.
    kept: Vec<u8>,
}

impl Lines {
    /// Begins to listen.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let bounded = stream.set_read_timeout(Some(TICK)).and_then(|()| stream.set_write_timeout(Some(WRITE_MAX)));
        bounded.during(|| "bound a conversation".to_owned())?;
        Ok(Self { stream, kept: Vec::new() })
    }

    /// Waits for the next line until `until`.
    pub fn next(&mut self, until: Instant) -> Result<Heard> {
        let mut piece = [0; 4096];
        loop {
            interrupt::check()?;
            if let Some(end) = self.kept.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.kept.drain(..=end).collect();
                return Ok(Heard::Line(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            if self.kept.len() > LINE_MAX {
                return Err(failed(format!("a line of more than {LINE_MAX} bytes: the machine talks nonsense")));
            }
            match self.stream.read(&mut piece) {
                Ok(0) => return Ok(Heard::End),
                Ok(count) => self.kept.extend_from_slice(&piece[..count]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset => return Ok(Heard::End),
                    _ => return Err(error).during(|| "hear the machine".to_owned()),
                },
            }
            if Instant::now() >= until && !self.kept.contains(&b'\n') {
                return Ok(Heard::Silence);
            }
        }
    }

    /// Says a line.
    pub fn say(&mut self, line: &str) -> Result<()> {
        self.stream.write_all(format!("{line}\n").as_bytes()).during(|| "speak to the machine".to_owned())
    }
}

//! Where log messages go: to the terminal of a command, to the system's log for a daemon.

use std::io::Write;
use std::os::unix::net::UnixDatagram;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Where the local syslog daemon or journald listens (syslog(3)).
const SYSLOG: &str = "/dev/log";

/// Facility "daemon" (RFC 5424 table 1), shifted as in a priority value.
const FACILITY_DAEMON: u8 = 3 << 3;

/// Longest message sent to the system's log, in bytes: what every syslogd takes (RFC 3164 §4.1).
const SYSLOG_BYTES_MAX: usize = 1024;

/// Sends messages to the terminal: warnings and errors, or what `SCELLE_LOG` asks for.
pub fn to_terminal() {
    let environment = env_logger::Env::new().filter_or("SCELLE_LOG", "warn");
    // A second call, from a test, changes nothing.
    let _ = env_logger::Builder::from_env(environment).format_target(false).try_init();
}

/// Sends messages to the system's log. Warnings and errors also go to standard error, as long as that leads anywhere.
pub fn to_system() {
    let socket = UnixDatagram::unbound().and_then(|socket| socket.connect(SYSLOG).map(|()| socket)).ok();
    if log::set_boxed_logger(Box::new(SystemLog { socket })).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

struct SystemLog {
    socket: Option<UnixDatagram>,
}

impl Log for SystemLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The FUSE library announces each request that it does not know. The messages that matter are our own.
        metadata.level() <= Level::Info && metadata.target().starts_with("scelle")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if let Some(socket) = &self.socket {
            let _ = socket.send(&line(record.level(), &record.args().to_string()));
        }
        // A mount that succeeds says nothing on the terminal.
        if record.level() <= Level::Warn {
            let _ = writeln!(std::io::stderr(), "scelle: {}", record.args());
        }
    }

    fn flush(&self) {}
}

fn line(level: Level, text: &str) -> Vec<u8> {
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let text = text.replace(['\n', '\r', '\0'], " ");
    let mut line = format!("<{}>scelle[{}]: {text}", FACILITY_DAEMON | severity, std::process::id()).into_bytes();
    line.truncate(SYSLOG_BYTES_MAX);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_bounded_line() {
        let text = line(Level::Warn, &format!("a\nb{}", "x".repeat(5000)));
        assert!(text.starts_with(b"<28>scelle["));
        assert!(text.len() == SYSLOG_BYTES_MAX && !text.contains(&b'\n'));
    }
}

//! Where log messages go: to the terminal of a command, to the system's log for a daemon.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::os::syslog::{Severity, Syslog};

/// Sends messages to the terminal: warnings and errors, or what `SCELLE_LOG` asks for.
pub fn to_terminal() {
    let environment = env_logger::Env::new().filter_or("SCELLE_LOG", "warn");
    // A second call, from a test, changes nothing.
    let _ = env_logger::Builder::from_env(environment).format_target(false).try_init();
}

/// Sends messages to the system's log. Warnings and errors also go to standard error, as long as that leads anywhere.
pub fn to_system() {
    if log::set_boxed_logger(Box::new(SystemLog(Syslog::of_system()))).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

struct SystemLog(&'static Syslog);

impl Log for SystemLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The FUSE library announces each request that it does not know. The messages that matter are our own.
        metadata.level() <= Level::Info && metadata.target().starts_with("scelle")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let severity = match record.level() {
            Level::Error => Severity::Error,
            Level::Warn => Severity::Warning,
            Level::Info => Severity::Info,
            Level::Debug | Level::Trace => Severity::Debug,
        };
        self.0.send(severity, &record.args().to_string());
        // A mount that succeeds says nothing on the terminal.
        if record.level() <= Level::Warn {
            let _ = writeln!(std::io::stderr(), "scelle: {}", record.args());
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

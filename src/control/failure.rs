//! How a command fails: exit code, what happened and why, what to do, and a stable reason code.

use std::fmt;

/// Exit codes of every command (scelle(8)). Retired codes would stay here as comments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Done = 0,
    /// Failed, for a reason that has no code of its own.
    Failed = 1,
    /// The command line, a configuration file or a document is not what it must be.
    Usage = 2,
    /// The policy refused a device, a registry or a host.
    Refused = 3,
    /// No key slot opens with this passphrase.
    WrongKey = 4,
    /// Something on a device did not authenticate.
    Integrity = 5,
    /// The volume works, but not as it should.
    Degraded = 6,
    /// Somebody else uses the device or the folder.
    Busy = 7,
}

impl ExitCode {
    /// The code that a daemon sent as a byte.
    pub fn from_byte(byte: u8) -> Self {
        [
            Self::Done,
            Self::Failed,
            Self::Usage,
            Self::Refused,
            Self::WrongKey,
            Self::Integrity,
            Self::Degraded,
            Self::Busy,
        ]
        .into_iter()
        .find(|&code| code as u8 == byte)
        .unwrap_or(Self::Failed)
    }
}

/// A command that did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit code.
    pub code: ExitCode,
    /// Stable reason code, in kebab case.
    pub reason: String,
    /// What happened and why.
    pub text: String,
    /// What to do about it; may be empty.
    pub advice: String,
}

impl Failure {
    /// A failure without advice.
    pub fn new(code: ExitCode, reason: impl Into<String>, text: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), text: text.into(), advice: String::new() }
    }

    /// Bad arguments or documents, exit code 2.
    pub fn usage(reason: &str, text: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, reason, text)
    }

    /// A failed system call or the like, exit code 1.
    pub fn failed(reason: &str, text: impl Into<String>) -> Self {
        Self::new(ExitCode::Failed, reason, text)
    }

    /// The same, with what to do.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.text, self.reason)?;
        if !self.advice.is_empty() {
            write!(f, "\n  {}", self.advice)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

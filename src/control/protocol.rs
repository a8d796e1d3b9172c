//! What travels over the control socket: the greeting, questions and answers, as plain data.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::os::DevNo;
use crate::problem::{Code, Problem};

/// Number of this form of the protocol. The greeting and the call `end` keep their form for ever, so that a daemon of
/// any version can be unmounted. A change of another call takes the next number.
pub const PROTOCOL: u32 = 3;

/// The call that is answered twice by the server itself: at once, and when the volume is closed.
pub(super) const END: &str = "end";

/// What a daemon says to every client that connects, before it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Number of its protocol.
    pub protocol: u32,
    /// Version of its program.
    pub program: String,
    /// The volume that it serves.
    pub volume: String,
    /// Its process number.
    pub pid: u32,
    /// Where it was asked to mount.
    #[serde(default)]
    pub mountpoint: String,
    /// Number of the mounted filesystem's device, as the mount table shows it (`0:46`); none until it is mounted. A mount
    /// point may have been taken away since, and may hold another mount: this number is no other's.
    #[serde(default)]
    pub filesystem: Option<String>,
}

impl Greeting {
    /// Whether the mounted filesystem with this number is the daemon's.
    pub fn serves(&self, dev: DevNo) -> bool {
        self.filesystem.as_deref().and_then(DevNo::parse) == Some(dev)
    }
}

/// A question, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Name of the call.
    pub call: String,
    /// The call's argument; left out by calls that are about the whole volume.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub with: Value,
}

/// An answer, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// What was asked for.
    Ok(Value),
    /// Why there is none.
    Problem(Problem),
}

/// What the answer to a call may have to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// The daemon has the answer at hand.
    ForNothing,
    /// A device, perhaps one that does not answer.
    ForDevices,
}

/// How many of a call may be under way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtOnce {
    /// As many as there are.
    Any,
    /// One: another is refused while it lasts.
    One,
}

/// The problem of a question that cannot be understood.
pub(super) fn not_understood(why: &str) -> Problem {
    Problem::new(Code::ControlRequest, format!("not a request: {why}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn requests_have_the_documented_form() {
        let form = |call: &str, with: Value| serde_json::to_string(&Request { call: call.into(), with }).unwrap();
        assert_eq!(form("status", Value::Null), r#"{"call":"status"}"#);
        assert_eq!(form("audit", 7.into()), r#"{"call":"audit","with":7}"#);
        let answer = serde_json::to_string(&Answer::Ok(Value::Null)).unwrap();
        assert_eq!(answer, r#"{"ok":null}"#);
        let answer = serde_json::to_string(&Answer::Problem(not_understood("x"))).unwrap();
        assert!(answer.starts_with(r#"{"problem":{"code":"control-request","text":"not a request: x","advice":"#));
        for bad in ["{}", "[]", "null", "", r#"{"call":7}"#] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }
}

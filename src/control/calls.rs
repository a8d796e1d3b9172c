//! What a daemon can be asked. A call is one row here, and nothing anywhere else but the daemon's answer to it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::{Client, ClientError};
use super::protocol::{AtOnce, Waits, not_understood};
use super::scrub::{ScrubAnswer, ScrubWanted};
use super::status::{TaskReport, VolumeStatus};
use crate::problem::{Code, Problem};

/// Makes from each row: the call, the daemon's side of it ([`Handler`]), the client's side, and what joins the two.
macro_rules! calls {
    ($(
        $(#[$doc:meta])*
        $variant:ident $method:ident($($question:ident: $kind:ty)?) -> $answer:ty, waits $waits:ident, at once $at_once:ident;
    )*) => {
        /// The calls, in the order of their rows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Call {$(
            $(#[$doc])*
            $variant,
        )*}

        impl Call {
            /// Every call.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name on the socket.
            pub const fn name(self) -> &'static str {
                match self {$(Self::$variant => stringify!($method),)*}
            }

            /// What its answer may have to wait for.
            pub const fn waits(self) -> Waits {
                match self {$(Self::$variant => Waits::$waits,)*}
            }

            /// How many of it may be under way at once.
            pub const fn at_once(self) -> AtOnce {
                match self {$(Self::$variant => AtOnce::$at_once,)*}
            }

            /// Has the daemon answer it.
            ///
            /// # Errors
            /// The daemon's, and [`Code::ControlRequest`] when the question is none of this call.
            pub fn answer(self, handler: &dyn Handler, with: Value) -> Result<Value, Problem> {
                match self {$(
                    Self::$variant => {
                        calls!(@question with $($question: $kind)?);
                        encoded(&handler.$method($($question)?)?)
                    }
                )*}
            }
        }

        /// What a daemon can be asked. A call that waits for nothing must not wait for a device, because everybody else
        /// waits for it. Each other call is answered on a thread of its own.
        pub trait Handler: Send + Sync + 'static {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// Why not.
                fn $method(&self, $($question: $kind)?) -> Result<$answer, Problem>;
            )*
        }

        impl Client {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// See [`ClientError`]; `NotFound` and `ConnectionRefused` mean that no daemon runs.
                pub fn $method(&self, $($question: $kind)?) -> Result<$answer, ClientError> {
                    self.call(stringify!($method), Waits::$waits, calls!(@value $($question)?))
                }
            )*
        }
    };
    (@question $with:ident) => {
        if !$with.is_null() {
            return Err(not_understood("this call is about the whole volume"));
        }
    };
    (@question $with:ident $question:ident: $kind:ty) => {
        let $question: $kind = serde_json::from_value($with).map_err(|error| not_understood(&error.to_string()))?;
    };
    (@value) => { Value::Null };
    (@value $question:ident) => { serde_json::to_value($question).unwrap_or_default() };
}

calls! {
    /// The volume's status now.
    Status status() -> VolumeStatus, waits ForNothing, at once Any;

    /// Makes durable what has reached the daemon.
    Sync sync() -> (), waits ForDevices, at once Any;

    /// The records of the audit trail after number `after`, as many as fit into a message; none at its end.
    Audit audit(after: u64) -> Vec<String>, waits ForDevices, at once Any;

    /// Where the audit trail ends, signed.
    Seal seal() -> SealedTrail, waits ForDevices, at once Any;

    /// Brings back the replica that is named; without a name, all
    /// that are not in use. Ends before what they lack is copied.
    Resync resync(wanted: ResyncWanted) -> ResyncAnswer, waits ForDevices, at once One;

    /// Adds, removes or exchanges a replica. Ends before what a new replica lacks is copied.
    Table table(wanted: TableWanted) -> TableAnswer, waits ForDevices, at once One;

    /// Begins a scrub or has one go on, wait or end. Ends before anything is looked at.
    Scrub scrub(wanted: ScrubWanted) -> ScrubAnswer, waits ForDevices, at once One;

    /// Every task under way, and the last that have ended; the oldest first.
    Tasks tasks() -> Vec<TaskReport>, waits ForNothing, at once Any;

    /// Has the task of this number stop. It may go on for a moment after the answer.
    Cancel cancel(task: u64) -> (), waits ForNothing, at once Any;
}

fn encoded<T: Serialize>(answer: &T) -> Result<Value, Problem> {
    serde_json::to_value(answer).map_err(|error| Problem::new(Code::Json, error.to_string()))
}

/// Where the audit trail ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedTrail {
    /// The line that is signed, with its line feed.
    pub seal: String,
    /// Content of a minisign signature file.
    pub signature: String,
}

/// What is to be brought back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncWanted {
    /// A device node or an identifier in the registry; all that are not in use if there is none.
    pub replica: Option<String>,
    /// The last generation of a history that the replica went on to elsewhere, and that is discarded.
    pub discard: Option<u64>,
}

/// How the replica table is to be changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableWanted {
    /// The change.
    pub change: TableChange,
    /// Only say what would be done.
    pub plan: bool,
}

/// A change of the replica table. A device is a device node, a replica its identifier in the registry or its device node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableChange {
    /// A device becomes a replica.
    Add {
        /// The device.
        device: String,
    },
    /// A replica leaves the volume.
    Remove {
        /// The replica.
        replica: String,
    },
    /// A device becomes a replica and, when it has everything, takes another's place.
    Replace {
        /// The replica that leaves then.
        old: String,
        /// The device.
        device: String,
    },
}

/// What was done, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableAnswer {
    /// With `plan`, the steps, in words.
    pub steps: Vec<String>,
    /// The replica that is new, or that has left; by its identifier in the registry.
    pub registry_id: String,
    /// Its device node; empty when there is none.
    pub device: String,
    /// The task that gives a new replica everything.
    pub task: Option<u64>,
    /// Why the label and the key slots of a replica that has left could not be overwritten.
    pub not_wiped: Option<String>,
}

/// A replica that went on elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WentOn {
    /// Which, with its generation, time and host, in words.
    pub what: String,
    /// Files and folders that only it has; at most a thousand.
    pub only_there: Vec<String>,
    /// How many there are.
    pub count: u64,
    /// Why there may be more.
    pub incomplete: Option<String>,
}

/// Which replicas came back, and why others did not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncAnswer {
    /// Those that are in use now.
    pub returned: Vec<Returned>,
    /// Why others are not in use, one problem for each.
    pub problems: Vec<Problem>,
    /// Replicas that went on elsewhere, and what only they have or had.
    #[serde(default)]
    pub went_on: Vec<WentOn>,
}

/// A replica that is in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returned {
    /// Its identifier in the registry.
    pub registry_id: String,
    /// Its device node.
    pub device: String,
    /// The task that resyncs it; nothing when the replica lacks nothing.
    pub task: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::super::protocol::END;
    use super::*;

    #[test]
    fn each_call_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<&str> = Call::ALL.iter().map(|call| call.name()).collect();
        assert!(names.len() == Call::ALL.len() && !names.contains(END));
    }
}

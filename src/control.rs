//! The control socket of a mounted volume: the protocol as plain data, its server and its client, and how a
//! command fails. Knows no volume.
//!
//! `/run/scelle/UUID.sock` is a Unix stream socket that only root can open. The client sends one JSON object on one
//! line, the daemon answers with one on one line and closes. Every line is at most
//! [`CONTROL_MESSAGE_MAX`](crate::limits::CONTROL_MESSAGE_MAX) bytes, every wait is bounded. What may have to wait for a device
//! (all but `status` and `await-end`) holds no other client up; beyond sixteen such questions at once it is refused.
//!
//! | request | answer |
//! |---|---|
//! | `{"request":"status"}` | `{"status":{…}}`, the volume's part of `scelle status --json` |
//! | `{"request":"sync"}` | `{"done":null}` once everything that reached the daemon is durable |
//! | `{"request":"await-end"}` | `{"waiting":{"pid":N}}` at once; `{"done":null}` when the volume is closed |
//! | `{"request":"audit","after":N}` | `{"records":["…",…]}`, the audit trail after record N, a part that fits; `[]` at its end |
//! | `{"request":"seal"}` | `{"sealed":{"seal":"…","signature":"…"}}`, where the audit trail ends, signed |
//! | `{"request":"resync","replica":"…"}` | `{"resync":{…}}` with what came back and why others did not; `replica` may be left out |
//! | anything else | `{"error":{"code":"…","text":"…"}}` |

pub mod ask;
mod client;
mod failure;
mod line;
mod place;
mod protocol;
mod server;

pub use client::{Client, ClientError, EndWatch, daemons};
pub use failure::{ExitCode, Failure};
pub use place::{Copy, FilePlace, PlaceRegistry, PlaceReplica, PlaceVolume};
pub use protocol::{
    Answer, AuditStatus, CacheStatus, Capacity, DeviceIo, Errors, Latency, NotReturned, Performance, Problem, Reason,
    RegistryStatus, Replica, Request, Resync, ResyncAnswer, Returned, Scrub, State, StatusReport, Transfers, Verdict,
    VolumeStatus, WatchStatus,
};
pub use server::{Handler, Server};

/// Where the daemons' sockets are.
pub const RUN_DIR: &str = "/run/scelle";

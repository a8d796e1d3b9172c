//! The control socket of a mounted volume: the protocol as plain data, its server and its client. Knows no volume.
//!
//! `/run/scelle/UUID.sock` is a Unix stream socket that only root can open. Who connects is greeted with one line of
//! JSON, which says the version of the protocol and the process that speaks ([`Greeting`]). The client then sends one
//! object on one line, the daemon answers with one on one line and closes. Every line is at most
//! [`CONTROL_MESSAGE_MAX`](crate::limits::CONTROL_MESSAGE_MAX) bytes, every wait is bounded.
//!
//! | line | |
//! |---|---|
//! | `{"protocol":2,"program":"0.1.0","volume":"UUID","pid":N}` | the greeting |
//! | `{"call":"NAME"}`, `{"call":"NAME","with":…}` | a question |
//! | `{"ok":…}` | its answer |
//! | `{"problem":{"code":"…","text":"…","advice":"…"}}` | why there is none |
//!
//! The calls are rows of one table (`calls.rs`), each with what its answer may have to wait for. One that may wait for a
//! device is answered on a thread of its own and holds no other client up; beyond sixteen of them at once another is refused.
//! The call `end` is none of the table: it is answered twice, at once and when the volume is closed.

pub mod ask;
mod calls;
mod client;
mod line;
mod place;
mod protocol;
mod server;
mod status;

pub use calls::{Handler, ResyncAnswer, Returned, SealedTrail};
pub use client::{Client, ClientError, EndWatch, daemons};
pub use place::{Copy, FilePlace, PlaceRegistry, PlaceReplica, PlaceVolume};
pub use protocol::{Answer, Greeting, PROTOCOL, Request};
pub use server::Server;
pub use status::{
    AuditStatus, CacheStatus, Capacity, DeviceIo, Errors, Latency, Performance, RegistryStatus, Replica, Resync, Scrub,
    StatusReport, TaskReport, TaskState, Transfers, Verdict, VolumeState, VolumeStatus, WatchStatus,
};

/// Where the daemons' sockets are.
pub const RUN_DIR: &str = "/run/scelle";

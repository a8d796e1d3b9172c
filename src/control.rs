//! The control socket of a mounted volume: the protocol as plain data, its server and its client.
//!
//! It knows no volume. What a daemon answers is [`crate::daemon`]'s, and what a command prints is [`crate::cli`]'s.
//!
//! `/run/scelle/UUID.sock` is a Unix stream socket that only root can open. A client that connects is greeted with one
//! line of JSON, which says the version of the protocol and the process that speaks ([`Greeting`]). The client then
//! sends one object on one line; the daemon answers with one object on one line, and closes. Every line is at most
//! [`CONTROL_MESSAGE_MAX`](crate::limits::CONTROL_MESSAGE_MAX) bytes, and every wait is bounded.
//!
//! | line | |
//! |---|---|
//! | `{"protocol":2,"program":"0.1.0","volume":"UUID","pid":N}` | the greeting |
//! | `{"call":"NAME"}`, `{"call":"NAME","with":…}` | a question |
//! | `{"ok":…}` | its answer |
//! | `{"problem":{"code":"…","text":"…","advice":"…"}}` | why there is none |
//!
//! The calls are rows of one table (`calls.rs`), each with what its answer may have to wait for. A call that may wait
//! for a device is answered on a thread of its own, and holds no other client up. While sixteen such calls are under
//! way, another is refused. The call `end` is not in the table: it is answered twice, at
//! once and when the volume is closed.

pub mod ask;
mod calls;
mod client;
mod line;
mod place;
mod protocol;
mod scrub;
mod server;
mod status;

pub use calls::{
    Handler, ResyncAnswer, ResyncWanted, Returned, SealedTrail, TableAnswer, TableChange, TableWanted, WentOn,
};
pub use client::{Client, ClientError, EndWatch, daemons};
pub use place::{Copy, FilePlace, PlaceRegistry, PlaceReplica, PlaceVolume};
pub use protocol::{Answer, Greeting, PROTOCOL, Request};
pub use scrub::{Scrub, ScrubAction, ScrubAnswer, ScrubBytes, ScrubFinding, ScrubWanted};
pub use server::Server;
pub use status::{
    AuditStatus, CacheStatus, Capacity, DeadMount, DeviceIo, ErrorTotal, Errors, Latency, LogStatus, Officers,
    Performance, RegistryStatus, Replica, Resync, Site, StatusReport, TaskReport, TaskState, Transfers, Verdict,
    VolumeState, VolumeStatus, WatchStatus,
};

/// Where the daemons' sockets are.
pub const RUN_DIR: &str = "/run/scelle";

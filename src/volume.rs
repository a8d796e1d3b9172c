//! The life of a volume: labels read ([`Sealed`]), key found ([`Assembled`]), in use ([`Open`]).
//!
//! Each step consumes the one before it. So nothing can be written before the labels agree, the key is right, the
//! policy has approved every device, and the newest root is known.
//!
//! Which process holds the volume, and what asks it for something, is not known here ([`daemon`](crate::daemon)). Which
//! root a volume goes on from is decided in [`recovery`]; which replicas come and go while it is in use, in `members`.
//!
//! # What is done with every combination found at start-up
//!
//! | found | done |
//! |---|---|
//! | a device that is another, or no longer approved, when the first byte is about to be written | refused |
//! | a replica on another device than the one it was enrolled with | refused, unless it is to be enrolled anew |
//! | labels of two volumes, none of them that of most devices; one replica twice, a device that the table does not name | refused |
//! | one label copy damaged, or forged | the other is used, the damaged one rewritten |
//! | no label copy of a device can be read or authenticates | the device is left out and named; its replica counts as absent, and as faulty in the status |
//! | wrong secret | refused after the full cost of every key slot |
//! | registry of another kind, other trust anchors, or an older version than the volume has seen | refused |
//! | registry of the version that the trail names last, and another document | refused |
//! | trust anchors that the officers of those in force have signed as their successors | in force from this mount's first commit |
//! | every replica of the newest root present, at most one root behind | mounted |
//! | one of them lacks pages or nodes of the last commit, which had been flushed | `stale`, and resynced when mounted for writing |
//! | blocks of the last commit are on no replica that is here, and one that is here never showed that commit | refused unless `accept_rollback` names that generation or the one before |
//! | blocks of the last commit are on no replica that is here, and one is absent | refused unless `accept_rollback` names the generation that is gone on from |
//! | roots are lost on every replica in sync, and a newer one than is seen may have been among them | refused unless `accept_rollback` names what is seen |
//! | one of them absent or further behind | refused unless `degraded` |
//! | a replica the newest root does not name | left behind: not read; resynced when mounted for writing, else `stale` |
//! | two replicas that each went on without the other, or one that has the whole of a commit which the others went on without | refused, both named, until somebody discards one of them |
//! | a clock that shows an earlier time than the newest root or the host's witness | refused unless `accept_clock` |
//! | a newest root whose history did not go through what the host's witness has answered for | refused: rolled back, or a replica that was left behind |
//! | the witness cannot be read, or not within five seconds | refused |

mod assembled;
mod check;
mod compare;
mod content;
mod create;
mod destroy;
mod diverged;
mod doubt;
mod error;
pub mod health;
mod losses;
mod members;
mod open;
mod place;
pub mod recovery;
mod sample;
mod scrub;
mod sealed;
mod side;
mod status;
mod task;
mod traverse;
pub mod witness;

pub use assembled::{Assembled, OpenOptions, Swapped};
pub use check::{CheckReport, Damage};
pub use compare::{Compared, Difference, RUNS_MAX};
pub use create::{CreateOptions, create};
pub use destroy::{Claims, Doomed};
pub use diverged::{OnlyThere, PATHS_MAX};
pub use error::Error;
pub use members::{Findings, Members, Plan, Removed};
pub use open::Open;
pub use place::{Holding, Place, Portion};
pub use scrub::{FINDINGS_MAX, Scope, ScrubFinding, ScrubReport, ScrubState, ScrubbedReplica, Scrubs};
pub use sealed::Sealed;
pub use side::Side;
pub use status::{ReplicaStatus, Status};
pub use task::{Outcome, TaskKind, TaskStatus, Tasks};
pub use traverse::{Cursor, Item, Progress, Traversal};

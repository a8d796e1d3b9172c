//! scelle: an encrypted, replicated filesystem that writes only to devices a signed registry approves.
//!
//! This page is the front door. It says what lies on which floor, follows four things through the house (a write, a commit,
//! a verdict, a status), and lists the threads, the locks and the words. scelle-internals(7) says the same for those who
//! run the program, with what becomes of each part in a crash; `.github/CONTRIBUTING.md` says how to change it.
//!
//! # Floors
//!
//! The modules below are listed from the bottom up, and a module uses only those above it in the list. No two files of a
//! module use each other. `tests/house.rs` enforces both.
//!
//! | floor | modules | what they know |
//! |---|---|---|
//! | words | [`units`], [`limits`], [`problem`] | numbers with their units, every bound, every code with its text |
//! | ground | [`os`], [`space`], [`crypto`] | the system, free blocks, keys: each for itself, without the others |
//! | place | [`registry`], [`probe`], [`device`], [`policy`] | who may hold a replica; what a device is; the verdict, and the only [`ApprovedDevice`](policy::ApprovedDevice) |
//! | blocks | [`label`], [`mirror`], [`pages`] | headers and roots, all replicas as one, sealed blocks and the commit |
//! | files | [`meta`], [`fs`], [`audit`] | the tables, POSIX, the trail |
//! | volume | [`volume`] | the life of a volume: opened, in use, its replicas coming and going, checked, closed |
//! | outside | [`fuse`], [`control`], [`daemon`], [`cli`] | the kernel, the socket, the process behind a mount, the commands |
//!
//! # The walk of a write
//!
//! 1. The kernel hands a write over to an event loop of `fuse::handlers`, which calls [`Fs::write_back`](fs::Fs::write_back).
//! 2. [`fs`] takes the file's stripe, and no other lock. Blocks that are not whole are read and completed.
//! 3. **A block is sealed** in `pages::data` ([`Store::write_data`](pages::Store::write_data)): fresh blocks from
//!    [`space`], a fresh write identity each, [`Cipher::seal_block`](crypto::Cipher::seal_block) with volume, address and
//!    identity bound in.
//! 4. [`Mirror::submit`](mirror::Mirror::submit) puts the sealed run into the queue of every replica that takes writes, and
//!    returns. Each replica's worker writes it, through the gate of its
//!    [`ApprovedDevice`](policy::ApprovedDevice), to a [`RawDevice`](device::raw::RawDevice).
//! 5. [`fs`] takes the lock of the tables for a moment and replaces the file's extents by the new ones, in one savepoint.
//!
//! Nothing is durable yet, and nothing that was durable was overwritten.
//!
//! # The walk of a commit
//!
//! 1. `fsync`, or the commit thread once a second, calls [`Fs::sync`](fs::Fs::sync). One caller commits for all who wait.
//! 2. Under the lock of the tables SQLite commits, and [`Store::stage`](pages::Store::stage) takes its pages over: from here on
//!    operations go on.
//! 3. [`Store::commit`](pages::Store::commit) plans fresh blocks for the pages, for the nodes of the map above them and for the
//!    map of free space; seals them from the leaves up; submits them behind the data.
//! 4. It flushes every replica, writes the root, and flushes it. **The root on stable storage is the commit**
//!    (`pages::commit`, `publish_root`). A small commit does both with one flush ([`pages::provisional`]).
//! 5. Blocks that the commit freed may be used again, once nobody reads them any more.
//!
//! # The walk of a verdict
//!
//! 1. The daemon's watch (`daemon::watch`) wakes: the kernel said something, a document changed, or thirty seconds are over.
//! 2. [`policy::load`] reads the registry, its signatures and the trust anchors; [`registry::verify`] makes a
//!    [`VerifiedRegistry`](registry::VerifiedRegistry) of them, or nothing.
//! 3. [`probe::chain`] reads what each device is, down to the last device below it; [`probe::live`] has the device confirm it.
//! 4. **A device is refused** in [`policy::examine`], which is pure: every rule, on every node. Whatever is not known is a
//!    refusal.
//! 5. The gate of the [`ApprovedDevice`](policy::ApprovedDevice) closes at once, [`mirror`] fences the replica, and the next root
//!    no longer names it.
//! 6. An approval is a lease of sixty seconds: each look renews it, and the gate itself looks at it.
//!
//! # The walk of a status
//!
//! 1. [`control::ask`] connects to every daemon's socket at once; each greets, and answers the call `status`.
//! 2. `daemon::report` makes the answer of what the open volume says at that moment, and of the verdicts in force. Nothing in it
//!    waits for a device.
//! 3. [`cli`] prints it, or its JSON.
//!
//! # Threads
//!
//! | thread | started by | may wait for |
//! |---|---|---|
//! | event loops | `fuser`, several a mount | locks of [`fs`], a read of a device (bounded, [`mirror`]), a commit when room is short or for an `fsync`, all but one of them |
//! | `fsync` | `fuse::sync` | a commit, for the last event loop that is free: one always is |
//! | `ration` | `fuse` | nothing: it has the kernel forget attributes, and sets how much it holds back |
//! | `recall`, `place` | `fuse` | what would hold an event loop up: a write of the kernel's, a device |
//! | `awake` | `fuse::awake` | nothing: it keeps a processor from sleeping between requests |
//! | `replica-N` | [`mirror`], one a replica | its own device, without a bound; everybody else goes on without it |
//! | `commit` | [`volume`] | a commit |
//! | `witness` | [`volume`], one a mount | the host's disk, without a bound; only a commit that leaves a replica behind waits for it, five seconds |
//! | `losses` | [`volume`], one a mount | reads of replicas, while blocks are known to be lost |
//! | `resync-N` | [`volume`], while one runs | reads of other replicas, room in a queue |
//! | `facts-N` | [`volume`], one a device that is examined | that device's answers about itself |
//! | `scrub` | [`volume`], while one runs; for long runs one more for each replica | reads of each device, ten seconds at most; a moment for a queue; a commit |
//! | `label-N` | [`volume`], one a replica whose label is looked at | that device, without a bound; then a moment for its queue |
//! | `patience` | `os`, for a call that may hang | the host's disk, without a bound; whoever called goes on after five seconds |
//! | `watch` | [`daemon`] | events; never for a transfer |
//! | `apply` | [`daemon`] | what comes of a check's findings: commits, devices |
//! | `signals`, `idle` | [`daemon`] | a signal; the clock |
//! | `control` | [`control`], serves the socket | clients, two seconds each |
//! | `question` | [`control`], one a question that may have to wait | whatever the question waits for |
//! | `ask`, `connect`, `where` | the commands | a daemon's answer, bounded |
//!
//! # Lock order
//!
//! A thread takes locks from the left to the right and never back:
//!
//! stripe of a file → commit → tables ([`fs`]) → references → commit state → staging → map → free space → readers
//! ([`pages`]) → state of the replicas → a queue ([`mirror`]) → gate of a device ([`policy`]).
//!
//! Sealing and transfers happen under no lock but a stripe. The modules' own pages have the details: [`fs`], [`pages`],
//! [`mirror`].
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | volume, replica | one filesystem; one device's copy of it |
//! | label | what a device says of itself: two copies of a header, and the ring of roots |
//! | root | what a commit publishes: where the two trees begin, who is in sync |
//! | generation | the number of a commit |
//! | epoch | the number of a mount; part of every write identity, so that no two writes share a nonce |
//! | extent | a run of a file's blocks sealed in one write |
//! | page, node, map | a page of the database; a node of the tree that says where each page is, and what proves it |
//! | seal, open | encrypt and authenticate; verify and decrypt |
//! | registry, trust anchors | the signed list of approved devices; the keys that it is verified with |
//! | verdict | approved, or refused with reasons |
//! | fence | to let nothing more be written to a device |
//! | worker | the thread of a replica, with its queue |
//! | incarnation | a replica between two times that it was taken back: what was begun for one is void for the next |
//! | dirty-time log | when each part of the data area was last written: what a replica that was away for a while lacks |
//! | findings | what a check of registry and devices has found, and what is still to be done about it |
//! | task | long work with a number: it makes progress, can be cancelled, and ends |
//! | view | the trees at one root, read beside a store in use |
//! | witness | the host's own note of the last commit that it has answered for |
//! | provisional root | a root that was flushed together with what it refers to |
#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "tests make bytes and rows from small counters"
    )
)]

pub mod units;

pub mod limits;

pub mod problem;

pub mod os;

pub mod space;

pub mod crypto;

pub mod registry;

pub mod probe;

pub mod device;

pub mod policy;

pub mod label;

pub mod mirror;

pub mod pages;

pub mod meta;

pub mod fs;

pub mod audit;

pub mod volume;

pub mod fuse;

pub mod control;

pub mod daemon;

pub mod cli;

//! Promises P4 and P6 when more than a byte is wrong: a write that went to another's place, a region that is lost or shows what
//! it held before, both headers, half a ring of roots. The other replica is honest, one commit behind, or away.
//!
//! `SCELLE_SEED` repeats which blocks are hit, on disks that may differ from run to run in where a commit's blocks lie.

use scelle::device::memory::Disk;
use scelle::label::{ROOT_SLOTS, slot_offsets};
use scelle::limits::LABEL_SIZE;
use scelle::mirror::State;
use scelle::problem::{Code, ExitCode};
use scelle::units::{BLOCK_SIZE, Generation};
use scelle::volume::{Error, OpenOptions};

use super::court::states;
use super::promises::find;
use super::support::court::{content, put};
use super::support::images::Log;
use super::support::rng::{self, Rng};
use super::support::wait_for;
use super::{Bench, SIZE};

const BLOCK: u64 = BLOCK_SIZE as u64;
const REGION: u64 = 1 << 20;

/// What is wrong with replica 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// What was meant for one block is in another, and the one is as it was before.
    Misdirected,
    /// Zeros.
    Lost,
    /// Some sectors are as they were a commit before.
    Stale,
    BothHeaders,
    /// Half the slots, in both copies.
    HalfRing,
}

use Wrong::{BothHeaders, HalfRing, Lost, Misdirected, Stale};

/// What replica 1 shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    Honest,
    OneBehind,
    Absent,
}

use Other::{Absent, Honest, OneBehind};

/// A volume with files, and a last commit that was answered for.
struct Case {
    bench: Bench,
    before: Vec<Disk>,
    after: Vec<Disk>,
    files: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Case {
    fn new(last: usize) -> Self {
        let bench = Bench::new(2);
        let (open, devices) = bench.start(&Log::default());
        let mut files = Vec::new();
        let mut add = |name: String, len| {
            let bytes = content(len as u64, len);
            put(open.fs(), name.as_bytes(), &bytes).unwrap();
            files.push((name.into_bytes(), bytes));
        };
        (0..40).for_each(|number| add(format!("file-{number}"), 20_000 + 1000 * number));
        // Every slot of the ring has been written.
        for _ in 0..ROOT_SLOTS {
            put(open.fs(), b"busy", b"busy").unwrap();
            open.fs().sync().unwrap();
        }
        open.fs().checkpoint().unwrap();
        open.fs().checkpoint().unwrap();
        let disks = || devices.iter().map(|device| device.disk()).collect();
        let before = disks();
        add("last".to_owned(), last);
        open.fs().sync().unwrap();
        let after = disks();
        drop(open);
        Self { bench, before, after, files }
    }

    /// The generation that a replica shows.
    fn generation(&self, disks: &[Option<Disk>]) -> u64 {
        let court = self.bench.court.on(disks, &Log::default());
        let options = OpenOptions { degraded: true, read_only: true, ..OpenOptions::default() };
        court.open_with(&options).unwrap().status().generation.0
    }

    fn wrong(&self, wrong: Wrong, rng: &mut Rng) -> Disk {
        let mut disk = self.after[0].clone();
        let (labels, size) = (LABEL_SIZE / BLOCK, SIZE / BLOCK);
        let used: Vec<u64> =
            disk.blocks().into_iter().filter(|block| (labels..size - labels).contains(block)).collect();
        let read = |disk: &Disk, at: u64, len: usize| {
            let mut bytes = vec![0; len];
            disk.read(at, &mut bytes);
            bytes
        };
        let region = rng.pick(&used) * BLOCK / REGION * REGION;
        match wrong {
            Misdirected => {
                let is_new =
                    |block: &&u64| read(&self.before[0], **block * BLOCK, 4096) != read(&disk, **block * BLOCK, 4096);
                let new: Vec<u64> = used.iter().filter(is_new).copied().collect();
                let (meant, hit) = (rng.pick(&new), rng.pick(&used));
                let bytes = read(&self.after[0], meant * BLOCK, 4096);
                disk.write(meant * BLOCK, &read(&self.before[0], meant * BLOCK, 4096));
                disk.write(hit * BLOCK, &bytes);
            }
            Lost => disk.write(region, &[0; REGION as usize]),
            Stale => {
                for at in (region..region + REGION).step_by(512).filter(|_| rng.one_in(2)) {
                    disk.write(at, &read(&self.before[0], at, 512));
                }
            }
            BothHeaders => [0, SIZE - LABEL_SIZE].iter().for_each(|at| disk.write(*at, &[0xff; BLOCK_SIZE])),
            HalfRing => {
                for slot in (0..ROOT_SLOTS).filter(|_| rng.one_in(2)) {
                    slot_offsets(slot, SIZE).iter().for_each(|at| disk.write(*at, &[0; BLOCK_SIZE]));
                }
            }
        }
        disk
    }

    /// What comes of a mount: which files are missing or not to be read. Whatever is resynced has ended.
    fn mount(&self, disks: &[Option<Disk>]) -> Result<Found, Error> {
        self.mount_with(disks, None)
    }

    /// The same, and goes on from this generation.
    fn mount_with(&self, disks: &[Option<Disk>], accept_rollback: Option<Generation>) -> Result<Found, Error> {
        let options = |degraded| OpenOptions { degraded, accept_rollback, ..OpenOptions::default() };
        let mount = |degraded| {
            let court = self.bench.court.on(disks, &Log::default());
            let open = court.open_with(&options(degraded))?;
            Ok::<_, Error>((court, open))
        };
        let (court, open) = match mount(disks.iter().any(Option::is_none)) {
            // A device that says nothing of itself is one that is not there.
            Err(error) if error.code() == Code::VolumeIncomplete => mount(true)?,
            outcome => outcome?,
        };
        if accept_rollback.is_some() {
            let mounted = super::audit::trail(&open).into_iter().rfind(|record| record.event == "mounted").unwrap();
            let is_told = mounted.reasons.iter().any(|reason| reason.code == Code::VolumeUnproven.to_string());
            assert!(is_told, "what was accepted is not in the trail: {mounted:?}");
        }
        wait_for("the end of the resync", || !states(&open).contains(&State::Resyncing));
        let in_sync = states(&open).iter().map(|state| *state == State::InSync).collect();
        let mut found = Found { in_sync, missing: Vec::new(), unreadable: Vec::new(), disks: Vec::new() };
        for (name, bytes) in &self.files {
            let text = String::from_utf8_lossy(name).into_owned();
            match find(open.fs(), name) {
                Ok(Some(read)) if read[..] == bytes[..] => {}
                // A root from before the file was whole: the volume commits by itself, too.
                Ok(Some(read)) => {
                    let differs = read.iter().zip(bytes).position(|(one, other)| one != other);
                    let lengths = (read.len(), bytes.len());
                    assert!(differs.is_none() && lengths.0 < lengths.1, "{text}: wrong bytes: {differs:?} {lengths:?}");
                    found.missing.push(text);
                }
                Ok(None) => found.missing.push(text),
                Err(error) => {
                    assert_eq!(error.errno(), libc::EIO, "{text}: {error}");
                    found.unreadable.push(text);
                }
            }
        }
        open.close()?;
        let mut left = court.disks().into_iter();
        found.disks = disks.iter().map(|disk| disk.as_ref().and_then(|_| left.next())).collect();
        Ok(found)
    }

    /// The other replica is honest: nothing is missed, and it is the whole volume by itself afterwards.
    fn beside_an_honest_one(&self, disks: &[Option<Disk>]) -> Result<(), String> {
        let found = self.mount(disks).map_err(|error| error.to_string())?;
        found.expect(&[], &[])?;
        if found.in_sync == [true, true] {
            let report = self.bench.check(&found.disks);
            let first = report.damages.iter().find(|damage| !damage.recoverable);
            first.map_or(Ok(()), |damage| Err(format!("{damage:?}")))?;
        }
        let alone = self.mount(&[None, found.disks[1].clone()]).map_err(|error| error.to_string())?;
        alone.expect(&[], &[])
    }

    /// The other lacks the last commit, which may be lost with the blocks that replica 0 had of it, and nothing else. If it
    /// was flushed before its root, somebody has to say so.
    fn beside_one_behind(&self, disks: &[Option<Disk>]) -> Result<(), String> {
        let found = match self.mount(disks) {
            Err(error) if error.code() == Code::VolumeUnproven => {
                self.mount_with(disks, error.acceptable()).map_err(|error| format!("the rollback: {error}"))?
            }
            Err(error) => return integrity(&error),
            Ok(found) => found,
        };
        match found.in_sync[1] {
            true => found.expect(&["last"], &["last"]),
            // Something older than the commit is damaged, too. Nothing is promised but that no byte is wrong.
            false => Ok(()),
        }
    }

    /// By itself: what it cannot give is an error. When the newest root is lost with half the ring, somebody has to accept it.
    fn alone(&self, wrong: Wrong, disks: &[Option<Disk>]) -> Result<(), String> {
        let found = match self.mount(disks) {
            Err(error) if error.code() == Code::NotAVolume && wrong == BothHeaders => return Ok(()),
            Err(error) if error.code() == Code::VolumeUnproven && wrong == HalfRing => {
                let found = self.mount_with(disks, error.acceptable()).map_err(|error| error.to_string())?;
                return self.returned(&found, true);
            }
            Err(error) if error.code() == Code::VolumeUnproven => return Ok(()),
            Err(error) => return integrity(&error),
            Ok(found) => found,
        };
        if !found.missing.is_empty() {
            return Err(format!("{:?} are missing", found.missing));
        }
        self.returned(&found, false)
    }

    /// The honest one comes back: it is never overwritten without a question.
    fn returned(&self, found: &Found, was_accepted: bool) -> Result<(), String> {
        match self.mount(&[found.disks[0].clone(), Some(self.after[1].clone())]) {
            Err(error) if error.code() == Code::VolumeDiverged && was_accepted => Ok(()),
            Err(error) => Err(format!("the return: {error}")),
            Ok(back) => back.expect(&[], &found.unreadable.iter().map(String::as_str).collect::<Vec<_>>()),
        }
    }
}

/// An error that says what it is.
fn integrity(error: &Error) -> Result<(), String> {
    if error.code().exit() == ExitCode::Integrity { Ok(()) } else { Err(error.to_string()) }
}

struct Found {
    in_sync: Vec<bool>,
    missing: Vec<String>,
    unreadable: Vec<String>,
    disks: Vec<Option<Disk>>,
}

impl Found {
    /// Nothing else is missing, and nothing else cannot be read.
    fn expect(&self, missing: &[&str], unreadable: &[&str]) -> Result<(), String> {
        let within = |found: &[String], allowed: &[&str]| found.iter().all(|name| allowed.contains(&name.as_str()));
        if within(&self.missing, missing) && within(&self.unreadable, unreadable) {
            return Ok(());
        }
        Err(format!("in sync {:?}, missing {:?}, unreadable {:?}", self.in_sync, self.missing, self.unreadable))
    }
}

#[test]
fn p4_more_than_a_byte_is_wrong_beside_any_other_replica() {
    let seed = rng::seed();
    let (mut rng, mut tried) = (Rng::new(seed), 0);
    for last in [30_000, 600_000] {
        let case = Case::new(last);
        for wrong in [Misdirected, Lost, Stale, BothHeaders, HalfRing] {
            for other in [Honest, OneBehind, Absent] {
                for draw in 0..6 * rng::soak() {
                    let damaged = Some(case.wrong(wrong, &mut rng));
                    let done = match other {
                        Honest => case.beside_an_honest_one(&[damaged, Some(case.after[1].clone())]),
                        OneBehind => case.beside_one_behind(&[damaged, Some(case.before[1].clone())]),
                        Absent => case.alone(wrong, &[damaged, None]),
                    };
                    let what = || format!("SCELLE_SEED={seed}, {last} bytes, {wrong:?}, {other:?}, draw {draw}");
                    done.unwrap_or_else(|error| panic!("{}: {error}", what()));
                    tried += 1;
                }
            }
        }
    }
    println!("{tried} damaged volumes");
}

/// A replica by itself, with what is told apart: roots that are lost, a root that a power failure tore, slots that never had one.
#[test]
fn p4_a_newest_root_that_may_be_lost_is_not_passed_over_silently() {
    let case = Case::new(30_000);
    let newest = case.after[0].clone();
    let generation = case.generation(&[Some(newest.clone()), None]);
    let without = |disk: &Disk, generations: &[u64]| {
        let mut disk = disk.clone();
        for generation in generations {
            slot_offsets(generation % ROOT_SLOTS, SIZE).iter().for_each(|at| disk.write(*at, &[7; BLOCK_SIZE]));
        }
        disk
    };
    let alone = |disk: Disk| case.mount(&[Some(disk), None]);
    // Torn, or an old root lost: nothing newer can be missing.
    assert_eq!(alone(without(&newest, &[generation])).unwrap().missing, ["last"]);
    assert_eq!(alone(without(&newest, &[generation - 1, generation - 40])).unwrap().missing, [""; 0]);
    let hit = without(&newest, &[generation, generation - 40]);
    let disks = [Some(hit.clone()), None];
    let court = case.bench.court.on(&disks, &Log::default());
    let refused = court.open_with(&OpenOptions { degraded: true, ..OpenOptions::default() }).err().unwrap();
    assert_eq!((refused.code(), refused.acceptable()), (Code::VolumeUnproven, Some(Generation(generation - 1))));
    assert!(court.disks() == [hit.clone()], "something was written");
    // Beside another one that shows what is newest, nobody is asked.
    let beside = case.mount(&[Some(hit.clone()), Some(case.after[1].clone())]).unwrap();
    assert_eq!((beside.missing.len(), beside.in_sync), (0, vec![true, true]));
    // What was accepted is not asked again, also after a power failure that tears the next root.
    let accepted = case.mount_with(&disks, refused.acceptable()).unwrap();
    assert_eq!(accepted.missing, ["last"]);
    let left = accepted.disks[0].clone().unwrap();
    let now = case.generation(&[Some(left.clone()), None]);
    assert_eq!(alone(without(&left, &[now + 1])).unwrap().missing, ["last"]);
    assert_eq!(alone(without(&left, &[now])).unwrap().missing, ["last"]);
}

/// Its ring was empty before the resync, and most of it still is.
#[test]
fn p4_a_ring_that_was_never_full_is_no_damaged_one() {
    let case = Case::new(30_000);
    let mut emptied = case.after[1].clone();
    for slot in 0..ROOT_SLOTS {
        slot_offsets(slot, SIZE).iter().for_each(|at| emptied.write(*at, &[7; BLOCK_SIZE]));
    }
    let both = case.mount(&[Some(case.after[0].clone()), Some(emptied)]).unwrap();
    assert_eq!(both.in_sync, [true, true]);
    let now = case.generation(&both.disks);
    let torn = |generation: u64| {
        let mut disk = both.disks[1].clone().unwrap();
        slot_offsets(generation % ROOT_SLOTS, SIZE).iter().for_each(|at| disk.write(*at, &[7; BLOCK_SIZE]));
        disk
    };
    for disk in [both.disks[1].clone().unwrap(), torn(now), torn(now + 1)] {
        assert_eq!(case.mount(&[None, Some(disk)]).unwrap().missing, [""; 0]);
    }
    assert_eq!(case.mount(&both.disks).unwrap().in_sync, [true, true]);
}

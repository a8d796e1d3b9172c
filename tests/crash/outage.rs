//! Replicas leave and come back at any moment of a volume in use, all of them at once too, and what they had not flushed may be
//! lost with them. Whoever is in sync afterwards has everything, by itself; and what a sync has answered for is there.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use scelle::device::faulty::Effect;
use scelle::fs::Fs;
use scelle::mirror::State;
use scelle::units::Ino;
use scelle::volume::Open;

use super::court::{Court, OTHER_FACES, Plan, assert_whole, content, get, put, states};
use super::support::rng::{self, Rng};
use super::support::{BOUND, Ending};

/// What a writer may count on: the content that a sync has answered for.
type Promised = Mutex<Vec<(Vec<u8>, u64, usize)>>;

/// Writes large and small, syncs, and remembers what was synced. A file that is being overwritten is promised nothing.
fn writer(fs: &Fs, thread: u64, seed: u64, ended: &AtomicBool, promised: &Promised) {
    let mut rng = Rng::new(seed + thread);
    let mut round = 0;
    while !ended.load(Ordering::Relaxed) {
        round += 1;
        let name = format!("{thread}-{}", round % 3).into_bytes();
        promised.lock().unwrap().retain(|(other, ..)| *other != name);
        let (content_seed, len) = (rng.next(), if thread == 0 { 1 << 20 } else { 1 + rng.below(60_000) as usize });
        let truncated = fs.lookup(Ino::ROOT, &name).and_then(|attr| {
            fs.forget(attr.ino, 1);
            fs.unlink(Ino::ROOT, &name)
        });
        let done = match truncated {
            Err(error) if error.errno() != libc::ENOENT => Err(error),
            _ => put(fs, &name, &content(content_seed, len)).and_then(|_| fs.sync()),
        };
        match done {
            Ok(()) => promised.lock().unwrap().push((name, content_seed, len)),
            Err(error) => {
                assert!(matches!(error.errno(), libc::EROFS | libc::EIO), "{error}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Has replicas leave by `leave` and come back by `come_back`, while three threads write.
fn outages(leave: impl Fn(&Court, &Open, &[usize], &mut Rng), come_back: impl Fn(&Court, &Open, &[usize])) {
    let seed = rng::seed();
    let mut rng = Rng::new(seed);
    let (mut flips, mut remounts, mut all_at_once) = (0, 0, 0);
    for round in 0..3u64 {
        let delay = Duration::from_micros(rng.pick(&[0, 50]));
        let court = Court::of(Plan { replicas: 3, min_replicas: 1 + (round % 2) as u32, delay, ..Plan::default() });
        let mut open = court.open();
        let promised = Promised::default();
        for _ in 0..6 {
            let ended = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let _ending = Ending(&ended);
                for thread in 0..3 {
                    let (fs, ended, promised, seed) = (open.fs(), &ended, &promised, seed + 100 * round);
                    scope.spawn(move || writer(fs, thread, seed, ended, promised));
                }
                for _ in 0..60 {
                    let mut out: Vec<usize> = (0..3).filter(|_| rng.one_in(3)).collect();
                    if rng.one_in(20) {
                        out = vec![0, 1, 2];
                        all_at_once += 1;
                    }
                    leave(&court, &open, &out, &mut rng);
                    flips += out.len();
                    std::thread::sleep(Duration::from_micros(rng.below(4000)));
                    come_back(&court, &open, &out);
                    std::thread::sleep(Duration::from_micros(rng.below(4000)));
                }
            });
            if open.status().needs_remount || !states(&open).contains(&State::InSync) {
                // All of them left while something was on its way: that is not durable, and only what was promised is.
                remounts += 1;
                let _ = open.close();
                open = court.open();
            }
            // The watch looks every now and then: a resync that ended early begins again.
            let begin = Instant::now();
            while states(&open).iter().any(|state| *state != State::InSync) {
                assert!(begin.elapsed() < BOUND, "not in sync: {:?}", open.status().replicas);
                come_back(&court, &open, &[]);
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_whole(&open);
            for (name, content_seed, len) in promised.lock().unwrap().iter() {
                assert!(get(open.fs(), name) == content(*content_seed, *len), "{}", String::from_utf8_lossy(name));
            }
        }
        open.close().unwrap();
        court.check();
    }
    println!("{flips} times out, {all_at_once} of all at once, {remounts} remounts");
    assert!(flips > 500);
}

#[test]
fn p2_refusals_at_any_moment_of_a_volume_in_use() {
    let leave = |court: &Court, open: &Open, out: &[usize], rng: &mut Rng| {
        court.refuse(open, out, rng.pick(&OTHER_FACES));
        for device in out.iter().map(|index| &court.devices[*index]) {
            if rng.one_in(2) {
                device.lose(rng.below(device.unflushed() as u64 + 1) as usize).unwrap();
            }
        }
    };
    outages(leave, |court, open, back| court.restore(open, back));
}

#[test]
fn p5_faults_at_any_moment_of_a_volume_in_use() {
    let leave = |court: &Court, _: &Open, out: &[usize], _: &mut Rng| {
        out.iter().for_each(|index| court.devices[*index].inject_in_changes(Effect::Forgotten));
    };
    let come_back = |court: &Court, open: &Open, back: &[usize]| {
        back.iter().for_each(|index| court.devices[*index].heal());
        for index in open.members().absent() {
            // Not while the last write has not come back, or nobody has what it lacks.
            let _ = open.members().rejoin(index);
        }
    };
    outages(leave, come_back);
}

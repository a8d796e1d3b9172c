#![allow(clippy::unwrap_used)]
use super::*;
use crate::device::faulty::{Effect, Fault, FaultyDevice, Operation};
use crate::device::memory::MemoryDevice;
use crate::policy::laboratory;

fn approved(device: &Arc<FaultyDevice>) -> Arc<ApprovedDevice> {
    laboratory::approve(std::slice::from_ref(device)).remove(0)
}

fn device(name: &str) -> Arc<FaultyDevice> {
    Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::new(name, 4 * LABEL_SIZE))))
}

/// The flush that the replica had been asked for was dropped with its queue. As the replica took writes again, the
/// flush was waited for without end.
#[test]
fn regression_a_replica_that_left_and_came_back_is_not_waited_for() {
    let [slow, lost, back] = ["slow", "lost", "back"].map(device);
    for hangs in [&slow, &lost] {
        hangs.inject(Fault::always(Operation::Flush, Effect::Hang));
    }
    let rows = [&slow, &lost].map(|device| (Some(approved(device)), State::InSync));
    let mirror = Arc::new(Mirror::new(rows.into()).unwrap());
    let waiter = {
        let mirror = mirror.clone();
        std::thread::spawn(move || mirror.flush())
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while slow.counts().flushes + lost.counts().flushes < 2 {
        assert!(Instant::now() < deadline, "nobody flushes");
        std::thread::sleep(Duration::from_millis(1));
    }
    mirror.fence(1, State::Refused, "revoked");
    assert_eq!(mirror.rejoin(1, Some(approved(&back)), false, None), Ok((State::Resyncing, Incarnation(1))));
    slow.heal();
    while !waiter.is_finished() {
        assert!(Instant::now() < deadline, "the flush does not return");
        std::thread::sleep(Duration::from_millis(1));
    }
    // The one that came back has not done this flush.
    assert_eq!(waiter.join().unwrap().unwrap(), 1);
    // Nor has it when the device that it had before answers at last.
    lost.heal();
    assert_eq!(mirror.flush().unwrap(), 1);
    assert!(mirror.flush_resynced(1, Incarnation(1)) && back.counts().flushes == 1);
    mirror.close();
}

/// What the first resync had copied was dropped with the queue, and the resync never saw the replica away. So it put
/// the replica in sync without those blocks.
#[test]
fn regression_a_resync_ends_with_the_incarnation_that_it_began_in() {
    let [source, away] = ["source", "away"].map(device);
    let rows = vec![(Some(approved(&source)), State::InSync), (Some(approved(&away)), State::Stale)];
    let mirror = Mirror::new(rows).unwrap();
    let first = mirror.rejoin(1, None, false, None).unwrap().1;
    mirror.fence(1, State::Refused, "revoked");
    let deadline = Instant::now() + Duration::from_secs(20);
    let second = loop {
        match mirror.rejoin(1, None, false, None) {
            Ok((State::Resyncing, incarnation)) => break incarnation,
            outcome => assert_eq!(outcome, Err(RejoinError::StillWriting)),
        }
        assert!(Instant::now() < deadline, "it does not come to rest");
    };
    assert!(!mirror.is_resyncing(1, first) && mirror.is_resyncing(1, second));
    mirror.copy(1, first, BlockAddr(0), Arc::new(AlignedBuf::zeroed(BLOCK_SIZE)));
    assert!(!mirror.flush_resynced(1, first) && mirror.flush_resynced(1, second));
    assert_eq!(away.counts().writes, 0);
    assert!(!mirror.promote(1, first));
    mirror.abandon(1, first, "late");
    assert_eq!(mirror.state(1).0, State::Resyncing);
    mirror.copy(1, second, BlockAddr(0), Arc::new(AlignedBuf::zeroed(BLOCK_SIZE)));
    assert!(mirror.flush_resynced(1, second));
    assert_eq!(away.counts().writes, 1);
    assert!(mirror.promote(1, second));
    mirror.close();
}

/// Two replicas of which the first takes no more reads, and a mirror with this limit over them that holds forty blocks.
fn silent(timeout: Duration) -> ([Arc<FaultyDevice>; 2], Mirror) {
    let devices = ["silent", "living"].map(device);
    let rows = devices.each_ref().map(|device| (Some(approved(device)), State::InSync));
    let mirror = Mirror::with_timeout(rows.into(), timeout).unwrap();
    mirror.cache_reads(1 << 20);
    let mut buf = AlignedBuf::zeroed(40 * BLOCK_SIZE);
    buf.chunks_mut(BLOCK_SIZE).zip(1..).for_each(|(block, byte)| block.fill(byte));
    mirror.submit(BlockAddr(0), Arc::new(buf)).unwrap();
    assert_eq!(mirror.flush().unwrap(), 3);
    devices[0].inject(Fault::always(Operation::Read, Effect::Hang));
    (devices, mirror)
}

/// Reads blocks and looks at what is in them.
fn read(mirror: &Mirror, first: u64, blocks: u64) -> Result<()> {
    let whole = |i: usize, sealed: &[u8]| sealed.iter().all(|byte| u64::from(*byte) == first + i as u64 + 1);
    mirror.read(Run::new(BlockAddr(first), blocks), &mut |i, sealed| whole(i, sealed))
}

#[test]
fn a_replica_that_does_not_answer_a_read_holds_nobody_up() {
    // A short read, which goes through the cache, and a long one.
    for blocks in [1, 40] {
        let ([silent, living], mirror) = silent(Duration::from_secs(6));
        let writes = silent.counts().writes;
        let begin = Instant::now();
        read(&mirror, 0, blocks).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(200), "the first replica was not asked");
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
        assert_eq!((silent.counts().reads, living.counts().reads), (1, 1));
        assert_eq!(mirror.errors(0).read, 1);
        // It is not asked again, nor written to, and it is still in sync: it may have been slow once.
        mirror.repair(0, BlockAddr(0), &AlignedBuf::zeroed(BLOCK_SIZE));
        for first in 0..24 {
            read(&mirror, first, 16).unwrap();
        }
        assert_eq!((silent.counts().reads, silent.counts().writes), (1, writes));
        assert_eq!(mirror.state(0).0, State::InSync);
        silent.heal();
        read(&mirror, 0, 20).unwrap();
        assert_eq!(silent.counts().reads, 2);
        mirror.close();
    }
}

#[test]
fn a_block_that_only_a_silent_replica_has_right_is_waited_for() {
    let ([silent, living], mirror) = silent(Duration::from_secs(6));
    living.inject(Fault::always(Operation::Read, Effect::Corrupt(1)));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&mirror, 0, 20));
        // Once for the run, then block by block behind the other.
        let deadline = Instant::now() + Duration::from_secs(20);
        while silent.counts().reads < 2 {
            assert!(Instant::now() < deadline, "it is not asked again");
            std::thread::sleep(Duration::from_millis(1));
        }
        silent.heal();
        reader.join().unwrap().unwrap();
    });
    assert_eq!(mirror.errors(1).repaired, 20);
    mirror.close();
}

#[test]
fn when_nobody_answers_the_first_who_does_is_heard() {
    // Blocks that go through the cache, and a long run; and the first and the second replica.
    for (blocks, slow) in [(1, 0), (40, 0), (1, 1), (40, 1)] {
        let ([first, second], mirror) = silent(Duration::from_millis(300));
        second.inject(Fault::always(Operation::Read, Effect::Hang));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read(&mirror, 0, blocks));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!reader.is_finished());
            [&first, &second][slow].heal();
            let deadline = Instant::now() + Duration::from_secs(20);
            while !reader.is_finished() {
                assert!(Instant::now() < deadline, "{blocks} blocks, replica {slow}");
                std::thread::sleep(Duration::from_millis(1));
            }
            reader.join().unwrap().unwrap();
        });
        // Only the one who still does not answer is asked last.
        let reads = [first.counts().reads, second.counts().reads];
        read(&mirror, 0, 40).unwrap();
        assert_eq!([first.counts().reads, second.counts().reads][1 - slow], reads[1 - slow]);
        mirror.close();
    }
}

#[test]
fn one_that_falls_silent_in_the_middle_is_not_waited_for_block_by_block() {
    let ([first, second], mirror) = silent(Duration::from_secs(6));
    first.heal();
    // The run as a whole verifies nowhere in the first one's copy, and then it is gone.
    first.inject(Fault { times: 1, ..Fault::always(Operation::Read, Effect::Corrupt(1)) });
    first.inject(Fault::always(Operation::Read, Effect::Hang));
    let begin = Instant::now();
    read(&mirror, 0, 40).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    assert_eq!((first.counts().reads, second.counts().reads), (2, 40));
    mirror.close();
}

#[test]
fn what_is_damaged_is_written_anew_and_a_silent_replica_is_not_written_to() {
    let devices = ["damaged", "silent", "living"].map(device);
    let rows = devices.each_ref().map(|device| (Some(approved(device)), State::InSync));
    let mirror = Mirror::with_timeout(rows.into(), Duration::from_secs(6)).unwrap();
    mirror.submit(BlockAddr(0), Arc::new(AlignedBuf::zeroed(BLOCK_SIZE))).unwrap();
    assert_eq!(mirror.flush().unwrap(), 7);
    let [damaged, silent, living] = &devices;
    damaged.inject(Fault::always(Operation::Read, Effect::Corrupt(1)));
    silent.inject(Fault::always(Operation::Read, Effect::Hang));
    let before = devices.each_ref().map(|device| device.counts());
    mirror.read(Run::new(BlockAddr(0), 1), &mut |_, sealed| sealed.iter().all(|byte| *byte == 0)).unwrap();
    assert_eq!((damaged.counts().writes, mirror.errors(0).repaired), (before[0].writes + 1, 1));
    assert_eq!((silent.counts().reads, silent.counts().writes), (before[1].reads + 1, before[1].writes));
    assert_eq!(living.counts().reads, before[2].reads + 1);
    mirror.close();
}

#[test]
fn a_replica_that_does_not_answer_a_flush_is_fenced_in_time_and_the_others_go_on() {
    let devices = ["silent", "living"].map(device);
    let rows = devices.each_ref().map(|device| (Some(approved(device)), State::InSync));
    let mirror = Mirror::with_timeout(rows.into(), Duration::from_secs(1)).unwrap();
    devices[0].inject(Fault::always(Operation::Flush, Effect::Hang));
    let begin = Instant::now();
    assert_eq!(mirror.flush().unwrap(), 2);
    assert!((1..20).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    let (state, reason) = mirror.state(0);
    assert_eq!((state, reason.as_deref()), (State::Faulty, Some("did not answer for 1 s")));
    assert_eq!(mirror.flush().unwrap(), 2);
    devices[0].heal();
    mirror.close();
}

/// The block is written anew once the device answers, and before whatever is written there later.
#[test]
fn a_repair_that_hangs_holds_no_reader_up() {
    let [hung, living] = ["hung", "living"].map(device);
    let rows = [&hung, &living].map(|device| (Some(approved(device)), State::InSync));
    let mirror = Mirror::with_timeout(rows.into(), Duration::from_secs(6)).unwrap();
    let filled = |byte: u8| {
        let mut buf = AlignedBuf::zeroed(BLOCK_SIZE);
        buf.fill(byte);
        Arc::new(buf)
    };
    mirror.submit(BlockAddr(0), filled(1)).unwrap();
    assert_eq!(mirror.flush().unwrap(), 3);
    // The read, and the second look at the block.
    hung.inject(Fault { times: 2, ..Fault::always(Operation::Read, Effect::Corrupt(1)) });
    hung.inject(Fault::always(Operation::Write, Effect::Hang));
    let begin = Instant::now();
    read(&mirror, 0, 1).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!((mirror.state(0).0, mirror.errors(0).repaired), (State::InSync, 0));
    mirror.submit(BlockAddr(0), filled(2)).unwrap();
    hung.heal();
    assert_eq!(mirror.flush().unwrap(), 3);
    assert_eq!(mirror.errors(0).repaired, 1);
    assert_eq!(mirror.read_from(0, Run::new(BlockAddr(0), 1)).unwrap()[0], 2);
    mirror.close();
}

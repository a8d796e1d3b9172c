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

/// The flush that it had been asked for was dropped with its queue: as it took writes again, it was waited for without end.
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
    assert_eq!(mirror.rejoin(1, Some(approved(&back)), false, None), Ok((State::Resyncing, Stay(1))));
    slow.heal();
    while !waiter.is_finished() {
        assert!(Instant::now() < deadline, "the flush does not return");
        std::thread::sleep(Duration::from_millis(1));
    }
    // The one that came back has not done this flush.
    assert_eq!(waiter.join().unwrap().unwrap(), 1);
    // Nor has it when the device that it had before answers at last.
    lost.heal();
    assert_eq!(mirror.flush().unwrap(), 3);
    mirror.close();
}

/// What it had copied was dropped with the queue, and it never saw the replica away: it made it in sync without that.
#[test]
fn regression_a_resync_ends_with_the_stay_that_it_began_in() {
    let [source, away] = ["source", "away"].map(device);
    let rows = vec![(Some(approved(&source)), State::InSync), (Some(approved(&away)), State::Stale)];
    let mirror = Mirror::new(rows).unwrap();
    let first = mirror.rejoin(1, None, false, None).unwrap().1;
    mirror.fence(1, State::Refused, "revoked");
    let deadline = Instant::now() + Duration::from_secs(20);
    let second = loop {
        match mirror.rejoin(1, None, false, None) {
            Ok((State::Resyncing, stay)) => break stay,
            outcome => assert_eq!(outcome, Err(RejoinError::StillWriting)),
        }
        assert!(Instant::now() < deadline, "it does not come to rest");
    };
    assert!(!mirror.is_resyncing(1, first) && mirror.is_resyncing(1, second));
    mirror.copy(1, first, BlockAddr(0), Arc::new(AlignedBuf::zeroed(BLOCK_SIZE)));
    assert_eq!(mirror.flush_resynced(), 3);
    assert_eq!(away.counts().writes, 0);
    assert!(!mirror.promote(1, first));
    mirror.give_up(1, first, "late");
    assert_eq!(mirror.state(1).0, State::Resyncing);
    mirror.copy(1, second, BlockAddr(0), Arc::new(AlignedBuf::zeroed(BLOCK_SIZE)));
    assert_eq!(mirror.flush_resynced(), 3);
    assert_eq!(away.counts().writes, 1);
    assert!(mirror.promote(1, second));
    mirror.close();
}

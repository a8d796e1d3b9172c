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
    assert_eq!(mirror.rejoin(1, Some(approved(&back)), false), Ok(State::Resyncing));
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

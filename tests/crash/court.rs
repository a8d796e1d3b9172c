//! A volume in use whose devices are refused and come back.

use std::time::{Duration, Instant};

use scelle::device::BlockDevice;
use scelle::device::faulty::{Face, FaultyDevice};
use scelle::mirror::State;
use scelle::pages::Finding;
use scelle::volume::{Item, Open, Progress, Traversal};

use crate::support::BOUND;
pub use crate::support::court::{Court, Plan, content, get, put, shut_after};

/// Of a device that takes more than may be in flight (64 MiB).
pub const LARGE: u64 = 160 << 20;

pub const OTHER_FACES: [Face; 3] = [Face::Swapped, Face::Changed, Face::Gone];

#[track_caller]
pub fn assert_untouched(device: &FaultyDevice, what: &str) {
    assert_eq!(device.late(), 0, "{what}: {} was written to after its refusal", device.name());
}

impl Court {
    pub fn recheck(&self, open: &Open) {
        let documents = &self.documents;
        open.members().recheck(&documents.registry, &documents.host, documents.today);
    }

    /// The devices `out` show another face, the policy looks, and from then on they are watched.
    pub fn refuse(&self, open: &Open, out: &[usize], face: Face) {
        out.iter().for_each(|index| self.devices[*index].show(face));
        self.recheck(open);
        for index in out {
            let gate = open.members().device(*index).unwrap();
            assert!(!gate.verdict().approved && gate.fence_reason().is_some());
            shut_after(&gate, || self.devices[*index].shut());
        }
    }

    /// They are themselves again, and nobody watches them.
    pub fn repair(&self, back: &[usize]) {
        for device in back.iter().map(|index| &self.devices[*index]) {
            device.reopen();
            device.show(Face::Itself);
        }
    }

    /// They are themselves again, and the policy looks.
    pub fn restore(&self, open: &Open, back: &[usize]) {
        back.iter().for_each(|index| assert_untouched(&self.devices[*index], "while it was refused"));
        self.repair(back);
        self.recheck(open);
    }
}

pub fn states(open: &Open) -> Vec<State> {
    open.status().replicas.iter().map(|replica| replica.state).collect()
}

pub fn wait_in_sync(open: &Open) {
    let begin = Instant::now();
    while states(open).iter().any(|state| *state != State::InSync) {
        assert!(begin.elapsed() < BOUND, "not in sync: {:?}", open.status().replicas);
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Every replica by itself has every unit that the metadata names at this moment, without help from another.
///
/// A replica that has just come back is waited for until a root names it: what the last commit wrote while it was being
/// resynced may still be in its queue.
pub fn assert_whole(open: &Open) {
    let (store, progress) = (open.store(), Progress::default());
    let begin = Instant::now();
    while !(0..store.mirror().len()).all(|index| store.root().names(index)) {
        assert!(begin.elapsed() < BOUND, "no root names all replicas: {:b}", store.root().in_sync);
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut units = 0;
    let mut visit = |item: Item| {
        if let Item::Unit(unit) = item {
            units += 1;
            for index in 0..store.mirror().len() {
                assert_eq!(store.examine(&unit, index), Finding::Good, "{unit:?} on replica {index}");
            }
        }
        Ok(())
    };
    let traversal = Traversal::new(store, &progress, &|| true);
    assert!(traversal.metadata(&mut visit).unwrap() && traversal.data(open.fs(), &mut visit).unwrap());
    assert!(units > 0);
}

#![allow(clippy::unwrap_used)]
use super::*;
use crate::device::memory::MemoryDevice;
use crate::mirror::State;
use crate::policy::laboratory;
use crate::problem::{Code, Problem};
use crate::units::{BlockAddr, Ino};

mod view;

const BLOCKS: u64 = 3000;

struct Lab {
    devices: Vec<Arc<MemoryDevice>>,
    key: crate::crypto::VolumeKey,
    blocks: u64,
}

impl Lab {
    fn new(replicas: usize) -> Self {
        Self::of(replicas, BLOCKS)
    }

    fn of(replicas: usize, blocks: u64) -> Self {
        let size = blocks * BLOCK_SIZE as u64 + 2 * crate::limits::LABEL_SIZE;
        let devices = (0..replicas).map(|i| Arc::new(MemoryDevice::new(&format!("m{i}"), size))).collect();
        Self { devices, key: crate::crypto::VolumeKey::generate().unwrap(), blocks }
    }

    fn open(&self, root: Root, epoch: u32) -> Arc<Store> {
        let approved = laboratory::approve(&self.devices);
        let rows = approved.into_iter().map(|device| (Some(device), State::InSync)).collect();
        let volume = Uuid([1; 16]);
        let options = StoreOptions {
            keys: self.key.keys(volume),
            volume,
            total_blocks: self.blocks,
            device_bytes: self.devices.iter().map(|d| crate::device::BlockDevice::size_bytes(&**d)).collect(),
            root,
            epoch,
        };
        Store::open(Arc::new(Mirror::new(rows).unwrap()), options).unwrap()
    }

    fn root(&self) -> Root {
        let keys = self.key.keys(Uuid([1; 16]));
        let size = crate::device::BlockDevice::size_bytes(&*self.devices[0]);
        crate::label::read_roots(&*self.devices[0], size, &keys, Uuid([1; 16])).unwrap()[0]
    }
}

fn commit(store: &Store, sql: &rusqlite::Connection) {
    sql.execute_batch("COMMIT").unwrap();
    let batch = store.stage();
    sql.execute_batch("BEGIN IMMEDIATE").unwrap();
    store.commit(batch).unwrap();
}

fn part(extent: &Extent) -> Part<'_> {
    Part { addr: extent.addr, id: extent.id, tags: &extent.tags }
}

fn spoil(device: &MemoryDevice, addr: BlockAddr) {
    let (at, mut block) = (mirror::device_offset(addr), vec![0; BLOCK_SIZE]);
    crate::device::BlockDevice::read_at(device, at, &mut block).unwrap();
    block[17] ^= 1;
    crate::device::BlockDevice::write_at(device, at, &[std::io::IoSlice::new(&block)]).unwrap();
}

fn begin(store: &Arc<Store>) -> rusqlite::Connection {
    let sql = store.open_database().unwrap();
    sql.execute_batch(
        "PRAGMA page_size=4096; PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=MEMORY; PRAGMA temp_store=MEMORY;
         PRAGMA cache_spill=OFF; PRAGMA cache_size=-200; BEGIN IMMEDIATE",
    )
    .unwrap();
    sql
}

fn sum(sql: &rusqlite::Connection) -> (i64, i64) {
    sql.query_row("SELECT count(*), total(length(b)) FROM t", [], |row| Ok((row.get(0)?, row.get::<_, f64>(1)? as i64)))
        .unwrap()
}

/// Every node and page of both trees.
fn metadata_units(store: &Store) -> Vec<Unit> {
    let (mut units, mut found) = (store.units(), Vec::new());
    let mut visit = |unit: &Unit| {
        found.push(*unit);
        Ok::<bool, Error>(true)
    };
    while units.chunk(&mut visit).unwrap() {}
    found
}

/// Every unit of the trees and the given data verifies on every replica, and the space map is exactly their union.
fn verify(store: &Store, data: &[Extent]) {
    let mut used = Bitmap::new(BLOCKS);
    let mut units = metadata_units(store);
    for extent in data {
        units.extend(
            (0..).zip(&extent.tags).map(|(i, tag)| store.data_unit(extent.addr.add(i), extent.id.add(i), *tag)),
        );
    }
    for unit in units {
        used.set(Run::new(unit.at.addr, 1)).unwrap();
        for replica in 0..store.mirror().len() {
            assert_eq!(store.examine(&unit, replica), Finding::Good, "{unit:?}");
        }
    }
    assert_eq!(used.allocated_runs(), store.persisted().allocated_runs());
}

#[test]
fn sqlite_lives_in_the_volume_across_reopenings() {
    let lab = Lab::new(2);
    let mut root = Root::default();
    let mut expected = 0;
    for epoch in 1..6 {
        let store = lab.open(root, epoch);
        let sql = begin(&store);
        sql.execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b BLOB)").unwrap();
        for round in 0..4 {
            for _ in 0..300 {
                sql.execute("INSERT INTO t(b) VALUES(randomblob(abs(random()) % 900))", []).unwrap();
            }
            sql.execute("DELETE FROM t WHERE a % 7 = ?1", [round]).unwrap();
            commit(&store, &sql);
            verify(&store, &[]);
        }
        let (count, bytes) = sum(&sql);
        if epoch > 1 {
            assert!(count > expected);
        }
        expected = count;
        drop(sql);
        drop(store);
        root = lab.root();
        let store = lab.open(root, epoch);
        let sql = begin(&store);
        assert_eq!(sum(&sql), (count, bytes));
        let ok: String = sql.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(ok, "ok");
    }
}

#[test]
fn data_round_trips_and_freed_blocks_come_back() {
    let lab = Lab::new(3);
    let store = lab.open(Root::default(), 1);
    let sql = begin(&store);
    sql.execute_batch("CREATE TABLE t(a, b)").unwrap();
    let plain: Vec<u8> = (0..300 * BLOCK_SIZE).map(|i| (i % 251) as u8).collect();
    let before = store.usage().free_blocks;
    for _ in 0..30 {
        let extents = store.write_data(&plain).unwrap();
        assert!(extents.iter().all(|e| e.blocks <= 64 && e.tags.len() as u64 == e.blocks));
        extents.iter().for_each(|e| store.publish(e.run()));
        sql.execute("INSERT INTO t VALUES(1, zeroblob(100))", []).unwrap();
        let mut out = vec![0; 64 * BLOCK_SIZE];
        let first = &extents[0];
        store.read_data(&[part(first)], &mut out[..first.blocks as usize * BLOCK_SIZE], Ino::ROOT).unwrap();
        assert_eq!(out[..first.blocks as usize * BLOCK_SIZE], plain[..first.blocks as usize * BLOCK_SIZE]);
        commit(&store, &sql);
        verify(&store, &extents);
        extents.iter().for_each(|e| store.free(e.run()));
        commit(&store, &sql);
        verify(&store, &[]);
    }
    assert!(before - store.usage().free_blocks < 20);
}

/// Whoever finds half of a provisional commit goes on from the root before it. That root is of the same mount, and
/// names the same replicas.
#[test]
fn only_a_commit_that_can_be_fallen_back_from_is_provisional() {
    let lab = Lab::new(3);
    let store = lab.open(Root::default(), 1);
    let sql = begin(&store);
    sql.execute_batch("CREATE TABLE t(a, b)").unwrap();
    commit(&store, &sql);
    drop((sql, store));
    let store = lab.open(lab.root(), 2);
    let sql = begin(&store);
    let small = || {
        sql.execute("INSERT INTO t VALUES(1, 1)", []).unwrap();
        commit(&store, &sql);
        store.is_provisional()
    };
    assert!(!small(), "the first of a mount");
    assert!(small() && small());
    store.mirror().fence(2, State::Refused, "revoked");
    assert!(!small(), "the first without a replica");
    assert!(small() && small());
    // This one leaves when the commit is written: its root is published again, without it.
    let before = store.generation().0;
    store.mirror().device(1).unwrap().fence(Problem::new(Code::Fenced, "revoked"));
    assert!(!small(), "published again");
    assert_eq!((store.mirror().in_sync(), store.generation().0), (1, before + 2));
    assert!(small());
    drop(sql);
    assert_eq!(sum(&begin(&lab.open(lab.root(), 3))), (8, 8));
}

#[test]
fn a_full_volume_refuses_data_and_still_commits() {
    let lab = Lab::new(1);
    let store = lab.open(Root::default(), 1);
    let sql = begin(&store);
    sql.execute_batch("CREATE TABLE t(a, b)").unwrap();
    let mut extents = Vec::new();
    let plain = vec![7; 256 * BLOCK_SIZE];
    loop {
        match store.write_data(&plain) {
            Ok(more) => extents.extend(more),
            Err(Error::NoSpace) => break,
            Err(other) => panic!("{other}"),
        }
    }
    extents.iter().for_each(|e| store.publish(e.run()));
    commit(&store, &sql);
    verify(&store, &extents);
    let usage = store.usage();
    assert!(usage.free_blocks >= usage.reserved_blocks && usage.free_blocks < usage.reserved_blocks + 256);
    extents.iter().for_each(|e| store.free(e.run()));
    commit(&store, &sql);
    assert!(store.write_data(&plain).is_ok());
}

#[test]
fn a_reader_keeps_freed_blocks_from_being_used_again() {
    let lab = Lab::new(1);
    let store = lab.open(Root::default(), 1);
    let sql = begin(&store);
    sql.execute_batch("CREATE TABLE t(a, b)").unwrap();
    let old = store.write_data(&vec![1; 200 * BLOCK_SIZE]).unwrap();
    old.iter().for_each(|e| store.publish(e.run()));
    commit(&store, &sql);
    let reader = store.reader();
    old.iter().for_each(|e| store.free(e.run()));
    commit(&store, &sql);
    let free = store.usage().free_blocks;
    let mut out = vec![0; BLOCK_SIZE];
    while let Ok(new) = store.write_data(&vec![2; 100 * BLOCK_SIZE]) {
        new.iter().for_each(|e| store.publish(e.run()));
    }
    commit(&store, &sql);
    store.read_data(&[Part { tags: &old[0].tags[..1], ..part(&old[0]) }], &mut out, Ino::ROOT).unwrap();
    assert!(out.iter().all(|b| *b == 1));
    drop(reader);
    sql.execute("INSERT INTO t VALUES(1, 1)", []).unwrap();
    commit(&store, &sql);
    assert!(store.usage().free_blocks > store.usage().reserved_blocks + 150, "{free} {:?}", store.usage());
}

#[test]
fn damage_on_one_replica_is_repaired_and_on_all_is_an_error() {
    let lab = Lab::new(2);
    let store = lab.open(Root::default(), 1);
    let extents = store.write_data(&vec![5; 8 * BLOCK_SIZE]).unwrap();
    store.mirror().flush().unwrap();
    let extent = &extents[0];
    let spoil = |device| spoil(device, extent.addr.add(3));
    let read = || {
        let mut out = vec![0; 8 * BLOCK_SIZE];
        store.read_data(&[part(extent)], &mut out, Ino::ROOT).map(|()| out)
    };
    spoil(&lab.devices[0]);
    assert!(read().unwrap().iter().all(|b| *b == 5));
    assert_eq!(store.mirror().errors(0).repaired, 1);
    assert_eq!(lab.devices[0].image(), lab.devices[1].image());
    spoil(&lab.devices[0]);
    spoil(&lab.devices[1]);
    assert!(matches!(read(), Err(Error::Integrity(_))));
}

#[test]
fn extents_that_lie_one_after_the_other_are_read_in_one_piece() {
    let lab = Lab::new(2);
    let store = lab.open(Root::default(), 1);
    let sql = begin(&store);
    sql.execute_batch("CREATE TABLE t(a, b)").unwrap();
    let plain: Vec<u8> = (0..160 * BLOCK_SIZE).map(|i| (i / 1000 % 251) as u8).collect();
    let (former, latter) = plain.split_at(100 * BLOCK_SIZE);
    let mut extents = store.write_data(former).unwrap();
    extents.iter().for_each(|e| store.publish(e.run()));
    commit(&store, &sql);
    drop((sql, store));
    // Written in two epochs, so with two keys.
    let store = lab.open(lab.root(), 2);
    extents.extend(store.write_data(latter).unwrap());
    assert_eq!(extents.iter().map(|e| e.blocks).collect::<Vec<_>>(), [64, 36, 60]);
    assert!(extents.windows(2).all(|pair| pair[0].run().end() == pair[1].addr));
    store.mirror().flush().unwrap();
    let parts: Vec<_> = extents.iter().map(part).collect();
    let reads = || -> u64 { (0..2).map(|i| store.mirror().device(i).unwrap().meters().read.reading().count).sum() };
    let (before, mut out) = (reads(), vec![0; plain.len()]);
    store.read_data(&parts, &mut out, Ino::ROOT).unwrap();
    assert!(out == plain);
    assert_eq!(reads() - before, 1);
    // What is damaged in one of them is read elsewhere, and repaired.
    spoil(&lab.devices[0], extents[1].addr.add(35));
    spoil(&lab.devices[1], extents[2].addr);
    out.fill(0);
    store.read_data(&parts, &mut out, Ino::ROOT).unwrap();
    assert!(out == plain);
    assert_eq!((0..2).map(|i| store.mirror().errors(i).repaired).sum::<u64>(), 1);
    store.read_data(&[], &mut [], Ino::ROOT).unwrap();
}

/// A thousand pages are ten nodes and one above, of which four are kept. Nodes come and go between commits, and never
/// during one.
#[test]
fn however_large_the_database_few_of_its_nodes_are_kept() {
    const ROWS: u64 = 1000;
    let lab = Lab::new(1);
    let store = lab.open(Root::default(), 1);
    let sql = begin(&store);
    sql.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, version INTEGER NOT NULL, filling BLOB NOT NULL)")
        .unwrap();
    for id in 0..ROWS {
        sql.execute("INSERT INTO t VALUES(?, 0, zeroblob(3000))", [id as i64]).unwrap();
    }
    commit(&store, &sql);
    drop((sql, store));
    let store = lab.open(lab.root(), 2);
    let sql = begin(&store);
    let held = || store.db.read().held();
    let mut versions = vec![0; ROWS as usize];
    let mut random = 1u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % ROWS
    };
    let version = |id: u64| -> i64 {
        sql.query_row("SELECT version FROM t WHERE id = ?", [id as i64], |row| row.get(0)).unwrap()
    };
    // Who only reads keeps to the bound.
    for _ in 0..400 {
        assert_eq!(version(next()), 0);
        assert!(held() <= tree::NODES_MAX, "{} nodes are kept", held());
    }
    let mut dropped = 0;
    for round in 1..40 {
        for _ in 0..6 {
            let id = next();
            versions[id as usize] = round;
            sql.execute("UPDATE t SET version = ? WHERE id = ?", [round, id as i64]).unwrap();
        }
        commit(&store, &sql);
        // What a commit needed it kept.
        let kept = held();
        for _ in 0..40 {
            let id = next();
            assert_eq!(version(id), versions[id as usize]);
        }
        dropped += u32::from(held() < kept);
        if round % 10 == 0 {
            verify(&store, &[]);
        }
    }
    assert!(dropped > 10, "only {dropped} times was anything dropped");
    drop(sql);
    let sql = begin(&lab.open(lab.root(), 3));
    let mut select = sql.prepare("SELECT version FROM t ORDER BY id").unwrap();
    let found: Vec<i64> = select.query_map([], |row| row.get(0)).unwrap().map(|row| row.unwrap()).collect();
    assert_eq!(found, versions);
}

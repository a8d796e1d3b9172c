//! What the parts of the engine cost, without FUSE and without disks: `cargo bench --bench engine`, in about a minute.
//!
//! Replicas are memory, so a flush costs nothing: the figures are the processor's part. `cargo bench --bench engine -- seal` runs
//! those whose name contains "seal"; two runs one after the other are compared by criterion.
#![allow(clippy::unwrap_used)]
#![allow(clippy::cast_possible_truncation, reason = "bytes and places are made from small numbers")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use scelle::crypto::{Binding, VolumeKey};
use scelle::device::{IdentifiedDevice, memory::MemoryDevice};
use scelle::fs::{Caller, Fs};
use scelle::label::Root;
use scelle::limits::LABEL_SIZE;
use scelle::meta::{ExtentRow, Meta};
use scelle::pages::{Part, Store, StoreOptions};
use scelle::space::{Allocator, Bitmap, Goal};
use scelle::units::meter::Meter;
use scelle::units::{BLOCK_SIZE, BlockAddr, Ino, Run, Uuid, WriteId};

const VOLUME: Uuid = Uuid([1; 16]);

/// Blocks of a volume: 128 MiB on each replica.
const BLOCKS: u64 = 32 << 10;

/// Blocks of 1 MiB.
const LONG: u64 = 256;

const USER: Caller = Caller { uid: 1000, gid: 100, umask: 0o022 };

/// An empty store on two replicas in memory.
fn store() -> Arc<Store> {
    let bytes = BLOCKS * BLOCK_SIZE as u64 + 2 * LABEL_SIZE;
    let devices: Vec<Arc<dyn IdentifiedDevice>> =
        ["m0", "m1"].into_iter().map(|name| Arc::new(MemoryDevice::new(name, bytes)) as _).collect();
    let documents = support::documents::Documents::of(&devices);
    let mirror = documents.mirror(&devices);
    mirror.cache_reads(16 << 20);
    let options = StoreOptions {
        keys: VolumeKey::generate().unwrap().keys(VOLUME),
        volume: VOLUME,
        total_blocks: BLOCKS,
        device_bytes: devices.iter().map(|device| device.size_bytes()).collect(),
        root: Root::default(),
        epoch: 1,
    };
    Store::open(Arc::new(mirror), options).unwrap()
}

/// An empty filesystem on such a store, made durable.
fn fs() -> Fs {
    let fs = Fs::format(store(), 0o755, 0, 0).unwrap();
    fs.sync().unwrap();
    fs
}

fn seal(c: &mut Criterion) {
    let keys = VolumeKey::generate().unwrap().keys(VOLUME);
    let cipher = keys.data(1);
    let mut group = c.benchmark_group("seal");
    for (name, blocks) in [("4 KiB", 1), ("1 MiB", LONG)] {
        let plain = vec![7; blocks as usize * BLOCK_SIZE];
        let mut sealed = vec![0; plain.len()];
        let mut tags = vec![[0; 16]; blocks as usize];
        group.throughput(Throughput::Bytes(plain.len() as u64));
        let at = |i: usize| Binding::data(VOLUME, BlockAddr(i as u64));
        let id = |i: usize| WriteId { epoch: 1, counter: i as u64 };
        let mut seal = || {
            let blocks = plain.chunks_exact(BLOCK_SIZE).zip(sealed.chunks_exact_mut(BLOCK_SIZE));
            for (i, (plain, sealed)) in blocks.enumerate() {
                tags[i] = cipher.seal_block(&at(i), id(i), plain, sealed);
            }
        };
        // Once, for a run of the others alone.
        seal();
        group.bench_function(format!("seal {name}"), |b| b.iter(&mut seal));
        let mut opened = vec![0; plain.len()];
        group.bench_function(format!("open {name}"), |b| {
            b.iter(|| {
                let blocks = sealed.chunks_exact(BLOCK_SIZE).zip(opened.chunks_exact_mut(BLOCK_SIZE));
                for (i, (sealed, opened)) in blocks.enumerate() {
                    cipher.open_block(&at(i), id(i), &tags[i], sealed, opened).unwrap();
                }
            });
            assert!(opened == plain);
        });
    }
}

fn pages(c: &mut Criterion) {
    let mut group = c.benchmark_group("page store");
    let store = store();
    let database = store.open_database().unwrap();
    let pragmas = "PRAGMA page_size = 4096; PRAGMA journal_mode = memory; PRAGMA locking_mode = exclusive;
                   CREATE TABLE t(id INTEGER PRIMARY KEY, bytes BLOB NOT NULL)";
    database.execute_batch(pragmas).unwrap();
    // Two rows of this length do not fit on a page: a row is a page.
    for id in 0..1024 {
        database.execute("INSERT INTO t VALUES(?, ?)", (id, vec![0u8; 3000])).unwrap();
    }
    store.commit(store.stage()).unwrap();
    let mut round = 0u8;
    for pages in [1, 64] {
        group.throughput(Throughput::Elements(pages));
        group.bench_function(format!("commit {pages} pages"), |b| {
            b.iter(|| {
                round = round.wrapping_add(1);
                database.execute_batch("BEGIN").unwrap();
                for i in 0..pages {
                    let mut update = database.prepare_cached("UPDATE t SET bytes = ? WHERE id = ?").unwrap();
                    update.execute((vec![round; 3000], i * 16)).unwrap();
                }
                database.execute_batch("COMMIT").unwrap();
                store.commit(store.stage()).unwrap()
            });
        });
    }
    let plain = vec![9; LONG as usize * BLOCK_SIZE];
    group.throughput(Throughput::Bytes(plain.len() as u64));
    group.bench_function("write 1 MiB to two replicas", |b| {
        b.iter(|| {
            let extents = store.write_data(&plain).unwrap();
            store.mirror().flush().unwrap();
            extents.iter().for_each(|extent| store.abandon(extent.run()));
            store.commit(store.stage()).unwrap();
        });
    });
    let extents = store.write_data(&plain).unwrap();
    let mut read = vec![0; plain.len()];
    // A run of fresh space, so one piece.
    let parts: Vec<_> = extents.iter().map(|e| Part { addr: e.addr, id: e.id, tags: &e.tags }).collect();
    group.bench_function("read 1 MiB", |b| {
        b.iter(|| store.read_data(&parts, &mut read, Ino::ROOT).unwrap());
        assert!(read == plain);
    });
}

fn allocator(c: &mut Criterion) {
    let mut group = c.benchmark_group("allocator");
    // 16 GiB, of which every other run of 8 blocks is in use.
    let mut map = Bitmap::new(4 << 20);
    for addr in (0..map.total()).step_by(16) {
        map.set(Run::new(BlockAddr(addr), 8)).unwrap();
    }
    let mut space = Allocator::new(map);
    for (name, want, goal) in
        [("data 4 KiB", 1, Goal::Data), ("data 1 MiB", LONG, Goal::Data), ("a page", 1, Goal::Metadata)]
    {
        group.bench_function(format!("take and give back {name}, fragmented"), |b| {
            b.iter(|| {
                let mut left = want;
                while left > 0 {
                    let run = space.take(left, goal).unwrap();
                    left -= run.blocks;
                    space.give_back(black_box(run)).unwrap();
                }
            });
        });
    }
    space.self_check().unwrap();
}

fn extents(c: &mut Criterion) {
    let mut group = c.benchmark_group("extent map");
    let store = store();
    let mut meta = Meta::create(store.open_database().unwrap()).unwrap();
    let row = |lblock: u64, blocks: u64| ExtentRow {
        lblock,
        blocks,
        addr: BlockAddr(lblock),
        id: WriteId { epoch: 1, counter: 1 + lblock },
        tags: Some(vec![[3; 16]; blocks as usize]),
    };
    // A file of 4096 extents, a block each, of which those in the middle are replaced: a random 4 KiB write's part.
    let ino = Ino(2);
    let fill = |tx: &mut scelle::meta::Tx<'_>| (0..4096).try_for_each(|lblock| tx.add_extent(ino, &row(lblock, 1)));
    meta.op(fill).unwrap();
    meta.commit(|| store.stage()).unwrap();
    let mut at = 0;
    group.bench_function("replace a block's extent", |b| {
        b.iter(|| {
            at = (at * 5 + 1) % 4096;
            let replace = |tx: &mut scelle::meta::Tx<'_>| {
                tx.clear(ino, at, at + 1, 8)?;
                tx.add_extent(ino, &row(at, 1))
            };
            meta.op(replace).unwrap();
        });
    });
    group.bench_function("put and clear an extent of 64 blocks", |b| {
        b.iter(|| {
            let put = |tx: &mut scelle::meta::Tx<'_>| {
                tx.add_extent(Ino(3), &row(0, 64))?;
                tx.clear(Ino(3), 0, 64, 8)
            };
            meta.op(put).unwrap();
        });
    });
    group.bench_function("find 32 extents", |b| {
        b.iter(|| meta.read(|view| view.extents(ino, 1000, 1032, 64)).unwrap());
    });
}

fn filesystem(c: &mut Criterion) {
    let mut group = c.benchmark_group("filesystem");
    let fs = fs();
    let file = |name: &str| fs.mknod(&USER, Ino::ROOT, name.as_bytes(), 0o644, 0).unwrap().ino;
    (0..10_000).for_each(|i| fs.forget(file(&format!("other-{i}")), 1));
    fs.sync().unwrap();
    group.bench_function("create and unlink", |b| {
        b.iter(|| {
            let ino = file("deed");
            fs.unlink(Ino::ROOT, b"deed").unwrap();
            fs.forget(ino, 1);
        });
    });
    fs.sync().unwrap();
    let mut at = 0;
    group.bench_function("lookup among 10 000", |b| {
        b.iter_batched(
            || {
                at = (at * 5 + 1) % 10_000;
                format!("other-{at}")
            },
            |name| {
                let attr = fs.lookup(Ino::ROOT, name.as_bytes()).unwrap();
                fs.forget(attr.ino, 1);
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("create, fsync, unlink", |b| {
        b.iter(|| {
            let ino = file("deed");
            fs.sync().unwrap();
            fs.unlink(Ino::ROOT, b"deed").unwrap();
            fs.forget(ino, 1);
        });
    });
    let ino = file("content");
    let block = [5; BLOCK_SIZE];
    (0..1024).for_each(|i| assert_eq!(fs.write(ino, i * BLOCK_SIZE as u64, &block).unwrap(), BLOCK_SIZE));
    fs.sync().unwrap();
    let mut scratch = Vec::new();
    group.throughput(Throughput::Bytes(BLOCK_SIZE as u64));
    let mut next = move || {
        at = (at * 5 + 1) % 1024;
        at * BLOCK_SIZE as u64
    };
    group.bench_function("read 4 KiB", |b| {
        b.iter(|| assert!(fs.read(ino, next(), BLOCK_SIZE, &mut scratch).unwrap() == block));
    });
    group.bench_function("write 4 KiB", |b| b.iter(|| fs.write(ino, next(), &block).unwrap()));
    fs.sync().unwrap();
    assert!(fs.self_check().unwrap().is_empty());
}

/// What measuring costs each time.
fn meter(c: &mut Criterion) {
    let meter = Meter::default();
    c.bench_function("meter", |b| b.iter(|| meter.time(BLOCK_SIZE, || Ok::<_, ()>(black_box(1)))));
}

criterion_group! {
    name = engine;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = meter, seal, pages, allocator, extents, filesystem
}
criterion_main!(engine);

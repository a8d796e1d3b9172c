//! Views and traversals against a model: the trees of each root, read whole.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::crypto::{Binding, Kind};
use crate::label::TreeRef;
use crate::pages::tree::{FANOUT, NodeId, Pointer, decode};
use crate::pages::view::CHUNK_UNITS;
use crate::units::WriteId;

/// A place in a tree: what the unit in it is, and its number or index and level.
type Place = (Kind, [u64; 2]);

/// What is in each place of both trees at one root.
type Places = BTreeMap<(u64, [u64; 2]), (Place, BlockAddr, WriteId)>;

/// A place as the key of a map.
fn key(place: &Place) -> (u64, [u64; 2]) {
    (u64::from(place.0 as u8), place.1)
}

fn places(store: &Store, root: &Root) -> Places {
    fn node(store: &Store, kind: TreeKind, id: NodeId, entry: &Pointer, out: &mut Places) {
        let mut add = |at: Binding| {
            let place = (at.kind, at.context);
            out.insert(key(&place), (place, entry.addr, entry.id));
        };
        add(kind.node(store.volume, entry.addr, id));
        let mut bytes = [0; BLOCK_SIZE];
        store.node_reader().node(kind, id, entry, &mut bytes).unwrap();
        for (i, entry) in (0..).zip(decode(&bytes).iter()) {
            let Some(entry) = entry else { continue };
            let child = id.1 * FANOUT + i;
            if id.0 > 0 {
                node(store, kind, (id.0 - 1, child), entry, out);
            } else {
                let at = kind.page(store.volume, entry.addr, child);
                let place = (at.kind, at.context);
                out.insert(key(&place), (place, entry.addr, entry.id));
            }
        }
    }
    let mut out = Places::new();
    let mut tree = |kind, at: &TreeRef| {
        let entry = Pointer { addr: at.addr, birth: at.birth, id: at.id, tag: at.tag };
        if at.pages > 0 {
            node(store, kind, (at.height - 1, 0), &entry, &mut out);
        }
    };
    tree(TreeKind::Space, &root.space);
    tree(TreeKind::Database, &root.db);
    out
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// A database of which a row is a page, and a volume that grows into fresh regions of space.
struct Model {
    store: Arc<Store>,
    sql: rusqlite::Connection,
    rows: u64,
    reserved: Vec<Run>,
}

impl Model {
    fn new(lab: &Lab, rows: u64) -> Self {
        let store = lab.open(Root::default(), 1);
        let sql = begin(&store);
        sql.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, version INTEGER NOT NULL, filling BLOB NOT NULL)")
            .unwrap();
        let mut model = Self { store, sql, rows: 0, reserved: Vec::new() };
        model.insert(rows);
        model.commit();
        model
    }

    fn insert(&mut self, rows: u64) {
        for id in self.rows..self.rows + rows {
            self.sql.execute("INSERT INTO t VALUES(?, 0, zeroblob(3000))", [id as i64]).unwrap();
        }
        self.rows += rows;
    }

    fn commit(&self) {
        commit(&self.store, &self.sql);
    }

    /// Some commits: rows change, rows are added, space is taken and freed.
    fn go_on(&mut self, random: &mut Random) {
        for _ in 0..random.below(4) {
            for _ in 0..random.below(5) {
                let id = random.below(self.rows) as i64;
                self.sql.execute("UPDATE t SET version = version + 1 WHERE id = ?", [id]).unwrap();
            }
            self.insert(random.below(4));
            match random.below(4) {
                0 => {
                    let runs = self.store.reserve(random.below(40_000)).unwrap_or_default();
                    runs.iter().for_each(|run| self.store.publish(*run));
                    self.reserved.extend(runs);
                }
                1 => self.reserved.drain(..).for_each(|run| self.store.free(run)),
                _ => {}
            }
            self.commit();
        }
    }
}

/// What a traversal promises, with commits between its chunks and within them.
#[test]
fn a_traversal_beside_commits_visits_every_place_of_its_first_root_once() {
    let (mut grown, mut moved, mut regions) = (0, 0, 0);
    for seed in 0..30 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let lab = Lab::of(2, 130_000);
        // Some trees get a level more while they are traversed.
        let rows = if seed % 2 == 0 { 80 + random.below(20) } else { 30 + random.below(300) };
        let mut model = Model::new(&lab, rows);
        let first_root = model.store.root();
        let first = places(&model.store, &first_root);
        let store = model.store.clone();
        let mut units = store.units();
        let mut visited = BTreeSet::new();
        loop {
            // The chunk begins at this root, whatever is committed while it lasts.
            let now = places(&store, &store.root());
            let mut left = 1 + random.below(20);
            let more = units.chunk(&mut |unit| {
                let place = (unit.at.kind, unit.at.context);
                assert!(visited.insert(key(&place)), "{place:?} twice");
                assert_eq!(now.get(&key(&place)), Some(&(place, unit.at.addr, unit.id)), "{place:?}");
                moved += u32::from(first.get(&key(&place)).is_none_or(|(_, _, id)| *id != unit.id));
                if random.below(8) == 0 {
                    model.go_on(&mut random);
                }
                // Also when it was freed a moment ago.
                (0..2).for_each(|replica| assert_eq!(store.examine(unit, replica), Finding::Good));
                left -= 1;
                Ok::<bool, Error>(left > 0)
            });
            if !more.unwrap() {
                break;
            } else if seed % 3 == 0 {
                // As after a restart.
                let kept = serde_json::to_string(&units.cursor().unwrap()).unwrap();
                units = store.units_behind(serde_json::from_str(&kept).unwrap());
            }
            if random.below(2) == 0 {
                model.go_on(&mut random);
            }
        }
        let missed: Vec<_> = first.keys().filter(|place| !visited.contains(place)).collect();
        assert!(missed.is_empty(), "{missed:?}");
        let last_root = store.root();
        grown += u32::from(last_root.db.height > first_root.db.height);
        regions += u32::from(last_root.space.pages > first_root.space.pages);
        // It ends where the first root's trees end.
        let pages = [(Kind::Page, first_root.db.pages), (Kind::SpacePage, first_root.space.pages)];
        assert!(pages.iter().all(|(kind, end)| !visited.contains(&key(&(*kind, [*end, 0])))));
    }
    println!("{moved} units had moved, {grown} trees got a level, {regions} a region");
    assert!(moved > 500 && grown > 5 && regions > 5);
}

/// Nobody writes: each chunk finds its way again, and each unit is visited once, in the order of the tree.
#[test]
fn a_traversal_of_a_store_at_rest_visits_each_unit_once_in_order() {
    let lab = Lab::new(1);
    let model = Model::new(&lab, 230);
    let all = places(&model.store, &model.store.root());
    let found = metadata_units(&model.store);
    assert_eq!(found.len(), all.len());
    let known: BTreeSet<_> = all.values().map(|(_, addr, _)| addr.0).collect();
    assert_eq!(found.iter().map(|unit| unit.at.addr.0).collect::<BTreeSet<_>>(), known);
    let kinds: Vec<Kind> = found.iter().map(|unit| unit.at.kind).collect();
    assert_eq!(kinds[..4], [Kind::SpaceNode, Kind::SpacePage, Kind::MapNode, Kind::MapNode]);
    let pages: Vec<u64> = found.iter().filter(|u| u.at.kind == Kind::Page).map(|u| u.at.context[0]).collect();
    assert!(pages.is_sorted() && pages.len() as u64 == model.store.root().db.pages);
    let chunks = |store: &Store| {
        let (mut units, mut chunks) = (store.units(), 1);
        while units.chunk(&mut |_| Ok::<bool, Error>(true)).unwrap() {
            chunks += 1;
        }
        chunks
    };
    // A machine that is busy ends some of them earlier.
    assert!(chunks(&model.store) >= found.len().div_ceil(CHUNK_UNITS));
    // A volume without a commit has nothing to visit.
    assert!(metadata_units(&Lab::new(1).open(Root::default(), 1)).is_empty());
}

#[test]
fn a_view_reads_the_pages_of_its_root() {
    let lab = Lab::new(2);
    let mut model = Model::new(&lab, 150);
    let read = |view: &mut View<'_>, no| {
        let mut page = [0; BLOCK_SIZE];
        view.read_page(no, &mut page).unwrap();
        page
    };
    let store = model.store.clone();
    let mut old = store.view();
    let pages = old.database_pages();
    let before: Vec<Page> = (0..pages).map(|no| read(&mut old, no)).collect();
    let generation = old.generation();
    for _ in 0..3 {
        model.sql.execute("UPDATE t SET version = version + 1, filling = randomblob(3000)", []).unwrap();
        model.insert(1);
        model.commit();
    }
    assert!((0..pages).all(|no| read(&mut old, no) == before[no as usize]));
    assert_eq!((old.generation(), old.database_pages()), (generation, pages));
    assert!(read(&mut old, pages).iter().all(|byte| *byte == 0));
    let mut new = store.view();
    assert!(new.generation() > generation && new.database_pages() > pages);
    let differs = |no: &u64| read(&mut new, *no) != before[*no as usize];
    assert!((0..pages).filter(differs).count() as u64 > 140);
    let mut staged = [0; BLOCK_SIZE];
    for no in 0..new.database_pages() {
        store.read_page(no, &mut staged).unwrap();
        assert!(read(&mut new, no) == staged);
    }
}

/// A commit holds these locks while it flushes.
#[test]
fn a_traversal_waits_for_no_commit() {
    let lab = Lab::new(1);
    let model = Model::new(&lab, 150);
    let _in_progress = (model.store.commit.lock(), model.store.db.write(), model.store.staging.lock());
    let mut page = [0; BLOCK_SIZE];
    model.store.view().read_page(3, &mut page).unwrap();
    assert!(metadata_units(&model.store).len() > 150);
}

/// What keeps blocks from being used again ends with each chunk.
#[test]
fn nothing_is_pinned_between_two_chunks() {
    let lab = Lab::new(1);
    let mut model = Model::new(&lab, 200);
    let store = model.store.clone();
    let mut units = store.units();
    let mut is_last = false;
    while !is_last {
        is_last = !units.chunk(&mut |_| Ok::<bool, Error>(true)).unwrap();
        model.go_on(&mut Random(1));
        model.sql.execute("UPDATE t SET version = version + 1 WHERE id = 7", []).unwrap();
        model.commit();
        assert!(store.readers.none_before(u64::MAX), "a reader is left");
    }
}

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Db, Durable, Opened, Table, write::Staged};
use crate::error::Error;

#[derive(Clone, Debug)]
enum Step {
    Put {
        key: u8,
        value: u32,
        now: bool,
    },
    /// A record that dies with the host; its keys are others.
    PutEphemeral {
        key: u8,
        value: u32,
    },
    Delete {
        key: u8,
        ephemeral: bool,
        now: bool,
    },
    Flush,
    /// The process dies: what returned stays.
    Kill,
    /// The host dies: what was flushed stays.
    PowerCut,
    /// A write that fails changes nothing.
    Fail {
        key: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..6_u8;
    prop_oneof![
        4 => (key.clone(), any::<u32>(), any::<bool>())
            .prop_map(|(key, value, now)| Step::Put { key, value, now }),
        3 => (key.clone(), any::<u32>()).prop_map(|(key, value)| Step::PutEphemeral { key, value }),
        3 => (key.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(key, ephemeral, now)| Step::Delete { key, ephemeral, now }),
        1 => Just(Step::Flush),
        1 => Just(Step::Kill),
        1 => Just(Step::PowerCut),
        1 => key.prop_map(|key| Step::Fail { key }),
    ]
}

fn name(key: u8, ephemeral: bool) -> String {
    format!("{}{key}", if ephemeral { "e" } else { "d" })
}

struct Ground {
    directory: tempfile::TempDir,
    db: Option<Db>,
}

impl Ground {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        crate::make_directories(&directory.path().join("root"), &directory.path().join("state"))
            .unwrap();
        let mut ground = Self { directory, db: None };
        assert_eq!(ground.open(), Opened::Created);
        ground
    }

    fn open(&mut self) -> Opened {
        self.db = None;
        let path = self.directory.path();
        let (db, opened) = Db::open(&path.join("root"), &path.join("state")).unwrap();
        db.unsynced.store(true, std::sync::atomic::Ordering::Relaxed);
        self.db = Some(db);
        opened
    }

    fn db(&self) -> &Db {
        self.db.as_ref().unwrap()
    }

    fn all(&self) -> BTreeMap<String, u32> {
        let list = self.db().list::<u32>(Table::Images, "ns").unwrap();
        for (name, value) in &list {
            assert_eq!(self.db().get::<u32>(Table::Images, "ns", name).unwrap(), Some(*value));
        }
        list.into_iter().collect()
    }
}

fn put(db: &Db, durable: Durable, name: &str, value: u32) {
    db.write(durable, |tx| {
        tx.put(Table::Images, "ns", name, &value)?;
        assert_eq!(tx.get::<u32>(Table::Images, "ns", name)?, Some(value));
        assert!(tx.names(Table::Images, "ns", "")?.contains(&name.to_string()));
        Ok(())
    })
    .unwrap();
}

fn run(steps: &[Step]) {
    let mut ground = Ground::new();
    let mut present: BTreeMap<String, u32> = BTreeMap::new();
    let mut flushed: BTreeMap<String, u32> = BTreeMap::new();
    for step in steps {
        let durable = |now: bool| if now { Durable::Now } else { Durable::Soon };
        let mut flush = false;
        match step {
            Step::Put { key, value, now } => {
                put(ground.db(), durable(*now), &name(*key, false), *value);
                present.insert(name(*key, false), *value);
                flush = *now;
            }
            Step::PutEphemeral { key, value } => {
                put(ground.db(), Durable::Ephemeral, &name(*key, true), *value);
                present.insert(name(*key, true), *value);
            }
            Step::Delete { key, ephemeral, now } => {
                let name = name(*key, *ephemeral);
                ground
                    .db()
                    .write(durable(*now), |tx| {
                        tx.delete(Table::Images, "ns", &name);
                        assert_eq!(tx.get::<u32>(Table::Images, "ns", &name)?, None);
                        Ok(())
                    })
                    .unwrap();
                present.remove(&name);
                flush = *now;
            }
            Step::Flush => {
                ground.db().flush().unwrap();
                flush = true;
            }
            Step::Kill => {
                super::finish_rebuild(&ground.directory.path().join("root")).unwrap();
                assert_eq!(ground.open(), Opened::Existing);
            }
            Step::PowerCut => {
                ground.db = None;
                std::fs::remove_file(ground.directory.path().join("state/journal")).unwrap();
                ground.open();
                present.clone_from(&flushed);
            }
            Step::Fail { key } => {
                let failed = ground.db().write(Durable::Now, |tx| {
                    tx.put(Table::Images, "ns", &name(*key, false), &0_u32)?;
                    Err::<(), _>(crate::error::Error::invalid("planted"))
                });
                assert!(failed.is_err());
            }
        }
        if flush {
            flushed = present.clone();
            flushed.retain(|name, _| name.starts_with('d'));
        }
        assert_eq!(ground.all(), present, "after {step:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_a_map(steps in prop::collection::vec(step(), 1..40)) {
        run(&steps);
    }
}

/// Writes that are to be on the disk, several at once, of which some do not get there.
#[derive(Clone, Debug)]
enum Race {
    /// A write of keys with values; `None`: they are deleted.
    Begin(BTreeMap<u8, Option<u32>>),
    /// Somebody's flush succeeds.
    Flush,
    /// The flush of one of those that are under way, counted from the first, fails.
    Fail(usize),
}

fn race() -> impl Strategy<Value = Race> {
    let changes = prop::collection::btree_map(0..3_u8, any::<Option<u32>>(), 1..3);
    prop_oneof![
        4 => changes.prop_map(Race::Begin),
        1 => Just(Race::Flush),
        4 => any::<prop::sample::Index>().prop_map(|index| Race::Fail(index.index(8))),
    ]
}

/// What the keys hold after these writes.
fn shown<'c>(writes: impl Iterator<Item = &'c BTreeMap<u8, Option<u32>>>) -> BTreeMap<String, u32> {
    let mut shown = BTreeMap::new();
    for (key, value) in writes.flatten() {
        match value {
            Some(value) => shown.insert(name(*key, false), *value),
            None => shown.remove(&name(*key, false)),
        };
    }
    shown
}

fn stage<'d>(db: &'d Db, changes: &BTreeMap<u8, Option<u32>>) -> Staged<'d> {
    let staged = db.stage(Durable::Now, |tx| {
        for (key, value) in changes {
            match value {
                Some(value) => tx.put(Table::Images, "ns", &name(*key, false), value)?,
                None => tx.delete(Table::Images, "ns", &name(*key, false)),
            }
        }
        Ok(())
    });
    staged.unwrap().1.unwrap()
}

fn raced(steps: &[Race]) {
    let mut ground = Ground::new();
    // In the order in which they began: what was refused is nowhere, what was not shows.
    let (mut done, mut on_disk) = (Vec::<BTreeMap<u8, Option<u32>>>::new(), BTreeMap::new());
    {
        let db = ground.db();
        // With the place that each has in `done`.
        let mut open: Vec<(usize, Staged<'_>, bool)> = Vec::new();
        for step in steps {
            match step {
                Race::Begin(changes) => {
                    open.push((done.len(), stage(db, changes), false));
                    done.push(changes.clone());
                }
                Race::Flush => {
                    db.flush().unwrap();
                    open.iter_mut().for_each(|(_, _, flushed)| *flushed = true);
                    on_disk = shown(done.iter());
                }
                Race::Fail(_) if open.is_empty() => {}
                Race::Fail(n) => {
                    let (place, staged, flushed) = open.remove(n % open.len());
                    let undone = staged.promised.undo(Error::invalid("planted"));
                    assert_eq!(undone.is_ok(), flushed, "the answer to write {place}");
                    if !flushed {
                        done[place].clear();
                    }
                }
            }
            assert_eq!(ground.all(), shown(done.iter()), "after {step:?}");
        }
    }
    ground.open();
    assert_eq!(ground.all(), shown(done.iter()), "after the daemon's death");
    ground.db = None;
    std::fs::remove_file(ground.directory.path().join("state/journal")).unwrap();
    ground.open();
    assert_eq!(ground.all(), on_disk, "after a power cut");
}

/// A write over one that is refused later, and refused itself, does not bring that one back; one that
/// stands over it does not make it acknowledged.
#[test]
fn refused_one_over_the_other() {
    let one = |value| Race::Begin(BTreeMap::from([(0, Some(value))]));
    for order in [[0, 0], [1, 0]] {
        let [first, second] = order.map(Race::Fail);
        raced(&[one(1), Race::Flush, Race::Fail(0), one(2), one(3), first, second]);
    }
    let both = Race::Begin(BTreeMap::from([(0, Some(2)), (1, None)]));
    raced(&[one(1), both, one(3), Race::Fail(1), Race::Flush, Race::Fail(1), Race::Fail(0)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn refused_ones_are_nowhere(steps in prop::collection::vec(race(), 1..30)) {
        raced(&steps);
    }
}

/// Where no other file can be made, a rewritten journal is behind the old one: cut anywhere, it gives back
/// one or the other. One that was not broken stays, and takes more.
#[test]
fn rewritten_in_place() {
    let mut ground = Ground::new();
    let journal = ground.directory.path().join("state/journal");
    std::fs::create_dir(journal.with_extension("new")).unwrap();
    put(ground.db(), Durable::Soon, "kept", 1);
    put(ground.db(), Durable::Soon, "gone", 2);
    let both = ground.all();
    let old = usize::try_from(std::fs::metadata(&journal).unwrap().len()).unwrap();
    let change = |value: u32| {
        let value = format!(r#"{{"v":1,"r":{value}}}"#).into_bytes();
        super::Change { value: Some(value.into()), ephemeral: true }
    };
    let key = |name: &str| (Table::Images, format!("ns\0{name}"));
    let rest = BTreeMap::from([(key("kept"), change(3))]);
    {
        let mut writer = super::lock(&ground.db().writer);
        let writer = writer.as_mut().unwrap();
        writer.rewrite(&rest).unwrap_err();
        assert!(!writer.is_broken());
        writer.break_for_test();
        writer.append(&rest).unwrap_err();
        writer.rewrite(&rest).unwrap();
        assert!(!writer.is_broken());
    }
    ground.db = None;
    let whole = std::fs::read(&journal).unwrap();
    assert!(old < whole.len());
    for cut in old..=whole.len() {
        std::fs::write(&journal, &whole[..cut]).unwrap();
        ground.open();
        let expected = BTreeMap::from([("kept".to_string(), 3)]);
        assert_eq!(ground.all(), if cut == whole.len() { expected } else { both.clone() });
        ground.db = None;
    }
}

/// A whole frame of another version's is not skipped, and the journal stays.
#[test]
fn journal_of_another_version() {
    let mut ground = Ground::new();
    put(ground.db(), Durable::Soon, "k", 1);
    ground.db = None;
    let path = ground.directory.path();
    let journal = path.join("state/journal");
    let whole = std::fs::read(&journal).unwrap();
    let table: Vec<u8> = Table::Images.name().bytes().map(|b| b ^ 1).collect();
    for (from, to) in [(&b"images"[..], &table[..]), (b"\x02\x06\0\0\0", b"\x42\x06\0\0\0")] {
        let at = whole.windows(from.len()).position(|bytes| bytes == from).unwrap();
        let mut other = whole.clone();
        other[at..at + to.len()].copy_from_slice(to);
        // The last frame's sum, and nothing but its payload after that.
        let begin = whole.windows(5).position(|bytes| bytes == b"\x02\x06\0\0\0").unwrap();
        let sum = super::journal::checksum(&other[begin..]).to_le_bytes();
        other[begin - 4..begin].copy_from_slice(&sum);
        std::fs::write(&journal, &other).unwrap();
        let opened = Db::open(&path.join("root"), &path.join("state"));
        let error = opened.err().unwrap().to_string();
        assert!(error.contains(env!("CARGO_PKG_VERSION")), "{error}");
        assert!(error.contains(journal.to_str().unwrap()), "{error}");
        assert_eq!(std::fs::read(&journal).unwrap(), other);
    }
    std::fs::write(&journal, &whole).unwrap();
    ground.open();
    assert_eq!(ground.all().len(), 1);
}

/// A journal whose last frame was cut anywhere gives back every write before it.
#[test]
fn torn_journal() {
    let mut ground = Ground::new();
    let journal = ground.directory.path().join("state/journal");
    let mut ends = Vec::new();
    for i in 0..5_u32 {
        put(ground.db(), Durable::Soon, &format!("k{i}"), i);
        ends.push(std::fs::metadata(&journal).unwrap().len());
    }
    ground.db = None;
    let whole = std::fs::read(&journal).unwrap();
    for cut in (ends[0]..=ends[4]).step_by(7) {
        std::fs::write(&journal, &whole[..usize::try_from(cut).unwrap()]).unwrap();
        ground.open();
        let kept = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(ground.all().len(), kept, "cut at {cut}");
        ground.db = None;
    }
}

/// What another boot left is not believed.
#[test]
fn journal_of_another_boot() {
    let mut ground = Ground::new();
    put(ground.db(), Durable::Soon, "k", 1);
    ground.db = None;
    let journal = ground.directory.path().join("state/journal");
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[8] ^= 1; // the first letter of the boot id; its checksum is wrong then, too
    std::fs::write(&journal, bytes).unwrap();
    ground.open();
    assert!(ground.all().is_empty());
    put(ground.db(), Durable::Soon, "k", 2);
    ground.open();
    assert_eq!(ground.all().len(), 1);
}

/// A database that cannot be opened now is not a damaged one.
#[test]
fn unopenable_is_not_damaged() {
    let mut ground = Ground::new();
    put(ground.db(), Durable::Now, "k", 1);
    ground.db = None;
    let root = ground.directory.path().join("root");
    super::finish_rebuild(&root).unwrap();
    let database = root.join("meta.db");
    std::fs::rename(&database, root.join("kept")).unwrap();
    std::fs::create_dir(&database).unwrap();
    assert!(Db::open(&root, &ground.directory.path().join("state")).is_err());
    assert!(database.is_dir());
    std::fs::remove_dir(&database).unwrap();
    std::fs::rename(root.join("kept"), &database).unwrap();
    assert_eq!(ground.open(), Opened::Existing);
    assert_eq!(ground.all().len(), 1);
}

/// A database counts as new until its rebuild has ended, and so does an empty file.
#[test]
fn unfinished_until_it_is_said() {
    let mut ground = Ground::new();
    put(ground.db(), Durable::Now, "k", 1);
    assert_eq!(ground.open(), Opened::Created);
    let root = ground.directory.path().join("root");
    super::finish_rebuild(&root).unwrap();
    assert_eq!(ground.open(), Opened::Existing);
    ground.db = None;
    std::fs::write(root.join("meta.db"), b"").unwrap();
    assert_eq!(ground.open(), Opened::Created);
    assert_eq!(ground.open(), Opened::Created);
}

/// A file that was written for a commit which the power cut came before is what the database says again.
#[test]
fn files_after_a_power_cut() {
    let mut ground = Ground::new();
    put(ground.db(), Durable::Now, "k", 1);
    super::finish_rebuild(&ground.directory.path().join("root")).unwrap();
    let directory = ground.directory.path().join("root/records/images");
    let file = std::fs::read_dir(directory).unwrap().next().unwrap().unwrap().path();
    let right = std::fs::read(&file).unwrap();
    std::fs::write(&file, "{}").unwrap();
    ground.open();
    ground.db().correct_files().unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"{}", "the host has not started again");
    ground.db = None;
    std::fs::remove_file(ground.directory.path().join("state/journal")).unwrap();
    ground.open();
    ground.db().correct_files().unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), right);
}

/// A record whose file cannot be made for want of its directory is not acknowledged; a snapshot that has
/// gone with its own needs none.
#[test]
fn no_directory_for_a_record() {
    #[derive(serde::Serialize)]
    struct Snapshot {
        id: u64,
    }
    let ground = Ground::new();
    let records = ground.directory.path().join("root/records/images");
    std::fs::remove_dir(&records).unwrap();
    let put = || ground.db().write(Durable::Now, |tx| tx.put(Table::Images, "ns", "k", &1));
    let error = put().unwrap_err();
    assert!(error.to_string().contains(records.to_str().unwrap()), "{error}");
    assert!(ground.all().is_empty());
    std::fs::create_dir(&records).unwrap();
    put().unwrap();
    let gone = Snapshot { id: 7 };
    ground.db().write(Durable::Now, |tx| tx.put(Table::Snapshots, "ns", "s", &gone)).unwrap();
}

/// A database that a power cut left half made is made anew; a damaged one is kept.
#[test]
fn half_made() {
    let mut ground = Ground::new();
    put(ground.db(), Durable::Now, "k", 1);
    let root = ground.directory.path().join("root");
    let aside = |ground: &mut Ground| {
        ground.db = None;
        std::fs::write(root.join("meta.db"), vec![7; 1 << 20]).unwrap();
        assert_eq!(ground.open(), Opened::Created);
        let names = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("meta.damaged-")).count()
    };
    assert_eq!(aside(&mut ground), 0, "its making had not ended");
    super::finish_rebuild(&root).unwrap();
    assert_eq!(aside(&mut ground), 1);
}

/// Records that are never flushed do not make the journal grow without end.
#[test]
fn journal_of_ephemeral_records_is_bounded() {
    let mut ground = Ground::new();
    let journal = ground.directory.path().join("state/journal");
    let text = "x".repeat(10_000);
    for _ in 0..500 {
        for value in [Some(&text), None] {
            ground
                .db()
                .write(Durable::Ephemeral, |tx| match value {
                    Some(text) => tx.put(Table::Images, "ns", "e", text),
                    None => {
                        tx.delete(Table::Images, "ns", "e");
                        Ok(())
                    }
                })
                .unwrap();
        }
        assert!(std::fs::metadata(&journal).unwrap().len() < 2 << 20);
    }
    put(ground.db(), Durable::Ephemeral, "kept", 1);
    ground.open();
    assert_eq!(ground.all().len(), 1);
}

/// A journal of which only a part could be read is refused, and left as it is.
#[test]
fn oversized_journal() {
    let mut ground = Ground::new();
    ground.db = None;
    let journal = ground.directory.path().join("state/journal");
    let bytes = (256 << 20) + 1;
    std::fs::OpenOptions::new().write(true).open(&journal).unwrap().set_len(bytes).unwrap();
    let path = ground.directory.path();
    assert!(Db::open(&path.join("root"), &path.join("state")).is_err());
    assert_eq!(std::fs::metadata(&journal).unwrap().len(), bytes);
}

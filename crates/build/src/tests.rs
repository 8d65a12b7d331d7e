#![allow(clippy::unwrap_used)]
use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use types::Platform;

use crate::{
    api::BuildEvent,
    cache::{Cache, Record, Slots},
    copy::{self, Writing},
    graph::{BaseOf, Plan},
    hashes::Memo,
    key::{self, Earlier, Inputs, Parent},
    print::Printer,
    select::{self, Root, Wanted},
    stubs, tree,
    users::{self, Chmod, Owner},
    vars::Globals,
};

fn root(dir: &Path, memo: Option<PathBuf>) -> Root {
    let fd = std::fs::File::open(dir).unwrap().into();
    let ignore = dockerfile::ignore::Matcher::default();
    Root { fd, ignore, memo: Memo::open(memo), stage: None }
}

fn digest(dir: &Path, sources: &[&str]) -> String {
    let sources: Vec<String> = sources.iter().map(|source| (*source).to_string()).collect();
    let wanted = Wanted { command: "COPY", sources: &sources, exclude: &[], parents: false };
    select::select(&root(dir, None), &wanted).unwrap().digest().to_string()
}

#[test]
fn content_decides_not_time() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("d/a");
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(&file, "1").unwrap();
    let first = digest(dir.path(), &["d"]);
    let handle = std::fs::File::options().write(true).open(&file).unwrap();
    handle.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(digest(dir.path(), &["d/"]), first);
    std::fs::write(&file, "2").unwrap();
    assert_ne!(digest(dir.path(), &["d"]), first);
    std::fs::write(&file, "1").unwrap();
    assert_eq!(digest(dir.path(), &["/d"]), first);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, mode).unwrap();
    assert_ne!(digest(dir.path(), &["d"]), first);
    std::fs::rename(&file, dir.path().join("d/b")).unwrap();
    assert_ne!(digest(dir.path(), &["d"]), first);
}

#[test]
fn hashes_are_remembered_and_forgotten() {
    let dir = TempDir::new().unwrap();
    let memo = dir.path().join("memo");
    let context = dir.path().join("c");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("a"), "1").unwrap();
    let sources = ["a".to_string()];
    let wanted = Wanted { command: "COPY", sources: &sources, exclude: &[], parents: false };
    let select = || {
        select::select(&root(&context, Some(memo.clone())), &wanted).unwrap().digest().to_string()
    };
    let first = select();
    // So new a file is not remembered: it could change within the clock's tick.
    assert!(!memo.exists());
    std::fs::write(context.join("a"), "2").unwrap();
    assert_ne!(select(), first);
    // A damaged memory counts as none.
    std::fs::write(&memo, "gantry-hashes-1\nnonsense").unwrap();
    assert_ne!(select(), first);
}

#[test]
fn nothing_leads_out_of_a_tree() {
    let dir = TempDir::new().unwrap();
    let inner = dir.path().join("root");
    std::fs::create_dir_all(inner.join("etc")).unwrap();
    std::fs::write(dir.path().join("secret"), "x").unwrap();
    std::fs::write(inner.join("etc/secret"), "mine").unwrap();
    for (name, target) in [
        ("up", "../../secret"),
        ("abs", "/etc/secret"),
        ("dir", "/etc"),
        ("proc", "/proc/self/exe"),
    ] {
        std::os::unix::fs::symlink(target, inner.join(name)).unwrap();
    }
    let root = std::fs::File::open(&inner).unwrap();
    let found = |path: &str| tree::resolve(root.as_fd(), Path::new(path), true);
    assert!(found("up").is_err());
    assert_eq!(found("abs").unwrap().0, Path::new("etc/secret"));
    assert_eq!(found("dir/../dir/secret").unwrap().0, Path::new("etc/secret"));
    assert!(found("proc").is_err());
    assert_eq!(tree::inside("../../a/./b/"), Path::new("a/b"));
    // A link in place of a directory that was resolved is not followed.
    assert!(tree::open_dir(root.as_fd(), Path::new("dir")).is_err());
    assert!(tree::open_file(root.as_fd(), Path::new("abs")).is_err());
}

fn write_into(dest_root: &Path, source: &Path, sources: &[&str], dest: &str) -> crate::Result<()> {
    let sources: Vec<String> = sources.iter().map(|source| (*source).to_string()).collect();
    let wanted = Wanted { command: "COPY", sources: &sources, exclude: &[], parents: false };
    let from = root(source, None);
    let selection = select::select(&from, &wanted)?;
    let target = std::fs::File::open(dest_root).unwrap();
    let how = Writing {
        command: "COPY",
        root: target.as_fd(),
        dest,
        owner: Some(Owner::default()),
        chmod: None,
        unpack: None,
        cancelled: &|| false,
        others: 0,
    };
    copy::copy(&selection, &from, &how)
}

/// Directories below the top look as the source's, and names of one file stay names of one file.
#[test]
fn copies_are_like_their_source() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = TempDir::new().unwrap();
    let (source, target) = (dir.path().join("s"), dir.path().join("t"));
    std::fs::create_dir_all(source.join("d/kept/deep")).unwrap();
    std::fs::create_dir_all(target.join("kept/deep")).unwrap();
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(&source.join("d"), 0o711);
    set(&source.join("d/kept/deep"), 0o1777);
    set(&target, 0o750);
    std::fs::write(source.join("d/one"), "same").unwrap();
    std::fs::hard_link(source.join("d/one"), source.join("d/kept/two")).unwrap();
    std::fs::write(target.join("one"), "old").unwrap();
    write_into(&target, &source, &["d"], "/").unwrap();
    let look = |path: &str| std::fs::metadata(target.join(path)).unwrap();
    assert_eq!(look("").mode() & 0o7777, 0o750, "the top keeps its own");
    assert_eq!(look("kept/deep").mode() & 0o7777, 0o1777);
    assert_eq!(look("one").ino(), look("kept/two").ino());
    assert_eq!(look("one").nlink(), 2);
    assert_eq!(std::fs::read_to_string(target.join("kept/two")).unwrap(), "same");
}

#[test]
fn copies_stay_within_the_root() {
    let dir = TempDir::new().unwrap();
    let (source, target) = (dir.path().join("s"), dir.path().join("t"));
    std::fs::create_dir_all(source.join("d/in")).unwrap();
    std::fs::create_dir_all(target.join("real")).unwrap();
    std::fs::write(source.join("d/in/f"), "new").unwrap();
    let canary = dir.path().join("canary");
    std::fs::write(&canary, "canary").unwrap();
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, target.join(at)).unwrap();
    link("../..", "out");
    link("/real", "in");
    write_into(&target, &source, &["d"], "/out/x/").unwrap();
    assert!(target.join("x/in/f").exists() && !dir.path().join("x").exists());
    // The directory `in` of the source meets a link to a directory of the root.
    write_into(&target, &source, &["d"], "/").unwrap();
    assert_eq!(std::fs::read_to_string(target.join("real/f")).unwrap(), "new");
    // A link where the file goes is replaced, not followed.
    std::os::unix::fs::symlink(&canary, target.join("file")).unwrap();
    write_into(&target, &source, &["d/in/f"], "/file").unwrap();
    assert_eq!(std::fs::read_to_string(&canary).unwrap(), "canary");
    assert_eq!(std::fs::read_to_string(target.join("file")).unwrap(), "new");
    link("nowhere", "dangling");
    assert!(write_into(&target, &source, &["d"], "/dangling/").is_err());
    assert!(write_into(&target, &source, &["d/in/f"], "/").is_ok());
    assert!(write_into(&target, &source, &["d"], "/file").is_err());
}

/// Swaps two names until `work` has ended.
fn while_swapping(dir: &Path, one: &str, two: &str, work: impl FnOnce()) {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let fd = std::fs::File::open(dir).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&fd, one, &fd, two, exchange).unwrap();
            }
        });
        work();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn trees_that_change_lead_nowhere() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    for made in ["source/d", "target/d", "outside"] {
        std::fs::create_dir_all(path(made)).unwrap();
    }
    std::fs::write(path("source/d/f"), "mine").unwrap();
    std::fs::write(path("outside/f"), "canary").unwrap();
    for tree in ["source", "target"] {
        let link = path(tree).join("link");
        std::os::unix::fs::symlink("../outside", &link).unwrap();
        std::os::unix::fs::symlink(path("outside"), path(tree).join("absolute")).unwrap();
    }
    let mut copied = 0;
    while_swapping(&path("source"), "d", "link", || {
        for number in 0..100_000 {
            // One at least gets through: how the two threads alternate is the scheduler's.
            if number >= 300 && copied > 0 {
                break;
            }
            let dest = format!("/out/{number}/");
            // A tree that changes may fail; what arrives must be its own.
            copied +=
                usize::from(write_into(&path("target"), &path("source"), &["d"], &dest).is_ok());
            if let Ok(text) = std::fs::read_to_string(path(&format!("target{dest}f"))) {
                assert_eq!(text, "mine");
            }
        }
    });
    assert!(copied > 0);
    while_swapping(&path("target"), "d", "absolute", || {
        for _ in 0..300 {
            let _either = write_into(&path("target"), &path("source"), &["d/f", "link/f"], "/d/");
        }
    });
    assert_eq!(std::fs::read_to_string(path("outside/f")).unwrap(), "canary");
    assert_eq!(std::fs::read_dir(path("outside")).unwrap().count(), 1);
}

#[test]
fn owners() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    std::fs::write(
        dir.path().join("etc/passwd"),
        "me:x:5:6::\n1000:x:0:0::\nbig:x:4294967296:1::\n",
    )
    .unwrap();
    std::fs::write(dir.path().join("etc/group"), "us:x:7:\n").unwrap();
    let root = std::fs::File::open(dir.path()).unwrap();
    let resolve = |spec: &str| users::resolve(spec, root.as_fd());
    for (spec, uid, gid) in [
        ("me", 5, 6),
        ("me:us", 5, 7),
        ("1000", 1000, 1000),
        ("3:us", 3, 7),
        ("3:", 3, 3),
        ("me:9", 5, 9),
        ("2147483647", 2_147_483_647, 2_147_483_647),
    ] {
        assert_eq!(resolve(spec).unwrap(), Owner { uid, gid }, "{spec}");
    }
    for spec in ["nobody", "me:nobody", "2147483648", "4294967296", "-1", "+0", "big", "0:-1"] {
        assert!(resolve(spec).is_err(), "{spec}");
    }
    // A huge or special file is refused without being read.
    std::fs::File::create(dir.path().join("etc/group")).unwrap().set_len(5 << 30).unwrap();
    let error = resolve("me:us").unwrap_err().to_string();
    assert_eq!(error, "/etc/group of the image cannot be used: it is larger than 4 MiB");
    std::fs::remove_file(dir.path().join("etc/passwd")).unwrap();
    let path = dir.path().join("etc/passwd");
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o644.into(), 0)
        .unwrap();
    let error = resolve("me").unwrap_err().to_string();
    assert_eq!(error, "/etc/passwd of the image cannot be used: it is not a regular file");
}

#[test]
fn modes() {
    let cases = [
        ("755", 0o600, false, 0o755),
        ("7777", 0, true, 0o7777),
        ("u=rwX,go=rX", 0o600, false, 0o644),
        ("u=rwX,go=rX", 0o700, true, 0o755),
        ("+x", 0o644, false, 0o755),
        ("a-w", 0o666, false, 0o444),
        ("go=", 0o777, false, 0o700),
        ("u+s,+t", 0o755, false, 0o5755),
        ("g=u", 0o740, false, 0o770),
        ("u=rw+x", 0o000, false, 0o700),
    ];
    for (text, mode, is_dir, want) in cases {
        assert_eq!(Chmod::parse(text).unwrap().apply(mode, is_dir), want, "{text}");
    }
    for bad in ["", "8", "10000", "x", "u=q", "z+x", "u"] {
        assert!(Chmod::parse(bad).is_err(), "{bad}");
    }
}

fn plan(text: &str, target: Option<&str>) -> crate::Result<Plan> {
    let file = dockerfile::parse(text).unwrap();
    let given = BTreeMap::new();
    let globals = Globals::new(given, &file.global_args, '\\', &Platform::host(), "").unwrap();
    Plan::new(&file, target, &globals)
}

#[test]
fn stages_that_count() {
    let text = "ARG B=base\nFROM $B AS a\nFROM a AS b\nFROM x AS c\nRUN --mount=from=b,target=/m y\nFROM 0\nFROM scratch\nCOPY --from=c / /\n";
    let all = plan(text, None).unwrap();
    assert_eq!(all.needed.iter().copied().collect::<Vec<_>>(), [0, 1, 2, 4]);
    assert_eq!(all.bases[0], BaseOf::Image("base".into()));
    assert_eq!(all.bases[1], BaseOf::Stage(0));
    assert_eq!(all.bases[3], BaseOf::Image("0".into()));
    assert_eq!(all.bases[4], BaseOf::Scratch);
    assert_eq!((all.total, all.number(4, 1), all.number(3, 0)), (6, Some(6), None));
    assert_eq!(plan(text, Some("A")).unwrap().total, 1);
    assert_eq!(plan(text, Some("2")).unwrap().target, 2);
    assert!(plan("FROM a\nCOPY --from=0 / /\n", None).is_err());
    assert!(plan("FROM a\nCOPY --from=99999999999999999999 / /\n", None).is_err());
}

fn inputs(instruction: &str, parent: &str, args: &[(&str, &str)]) -> Inputs {
    Inputs {
        instruction: instruction.into(),
        parent: parent.into(),
        args: args.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        ..Inputs::default()
    }
}

#[test]
fn reasons_name_their_cause() {
    let parent = Parent { name: "the parent step 2/3 (COPY . .)".into() };
    let why = |old: &Inputs, new: &Inputs, manifests: (&str, &str)| {
        let memory = key::Memory::default();
        let kept = |inputs: &Inputs| {
            memory.learn(inputs, "salt");
            memory.recall(&inputs.redacted("salt"))
        };
        let (old, new) = (kept(old), kept(new));
        let earlier = Earlier { inputs: &old, manifest: Some(manifests.0.into()) };
        key::reason(&new, Some(manifests.1), &parent, Some(&earlier))
    };
    let base = inputs("RUN x", "p", &[("V", "1"), ("TOKEN", "a")]);
    assert_eq!(why(&base, &base, ("", "")), "its cached result was removed");
    let other = inputs("RUN x", "q", &[("V", "2"), ("TOKEN", "b"), ("W", "")]);
    assert_eq!(
        why(&base, &other, ("", "")),
        "build argument TOKEN changed; build argument V changed from \"1\" to \"2\"; build argument W is new; the parent step 2/3 (COPY . .) changed"
    );
    let (mut one, mut two) = (base.clone(), base.clone());
    (one.files, two.files) = ("1".into(), "2".into());
    assert_eq!(
        why(&one, &two, ("1 a\n1 b\n1 c\n1 d\n1 e\n", "2 a\n1 c\n1 f\n1 g\n2 d\n")),
        "file a changed, file d changed, file f added, and 3 more files"
    );
    assert_eq!(key::reason(&base, None, &parent, None), "never built before");
    assert!(!serde_json::to_string(&other.redacted("s")).unwrap().contains("\"b\""));
    let kept = base.redacted("salt");
    assert!(!serde_json::to_string(&kept).unwrap().contains("\"=1\""), "an argument is kept");
    let reason = key::reason(
        &kept,
        None,
        &parent,
        Some(&Earlier { inputs: &other.redacted("salt"), manifest: None }),
    );
    assert!(reason.contains("build argument V changed;"), "{reason}");
}

#[test]
fn the_cache_survives_damage() {
    let dir = TempDir::new().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let inputs = inputs("RUN x", "", &[]);
    let key = inputs.key();
    let record = Record {
        key: key.clone(),
        inputs,
        layer: None,
        description: String::new(),
        created: store_api::Timestamp::default(),
        last_used: store_api::Timestamp::default(),
        uses: 1,
        bytes: 0,
        pruned: false,
    };
    let slots = Slots::new("lineage", "project", "stage", 1, "RUN x");
    cache.put(&record, Some("1 a\n"), &slots).unwrap();
    let again = Cache::open(dir.path()).unwrap();
    assert_eq!(again.salt(), cache.salt());
    let (found, manifest) = again.predecessor(&slots).unwrap();
    assert_eq!((found.key.as_str(), manifest.as_deref()), (key.as_str(), Some("1 a\n")));
    std::fs::write(dir.path().join(format!("records/{key}.json")), "{").unwrap();
    assert!(again.get(&key).is_none() && again.all().unwrap().is_empty());
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(dir.path().join("records")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn output_comes_in_order() {
    let (sender, mut receiver) = mpsc::channel(100);
    let printer = Printer::new(sender, CancellationToken::new(), 4, |index| index == 1);
    let (first, third, last) = (printer.voice(0), printer.voice(2), printer.voice(3));
    third.text("c1 ").await;
    first.text("a1 ").await;
    last.text("d1 ").await;
    last.finish().await;
    first.text("a2 ").await;
    first.finish().await;
    third.text("c2 ").await;
    third.finish().await;
    drop((first, third, last, printer));
    let mut text = String::new();
    while let Some(BuildEvent::Stream(part)) = receiver.recv().await {
        text.push_str(&part);
    }
    assert_eq!(text, "a1 a2 c1 c2 d1 ");
}

#[test]
fn mount_points_go_if_they_are_empty() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    std::fs::write(dir.path().join("etc/hosts"), "").unwrap();
    let root = std::fs::File::open(dir.path()).unwrap();
    let before = std::fs::metadata(dir.path().join("etc")).unwrap().modified().unwrap();
    let targets = ["/a/b/c".to_string(), "/full/x".to_string()];
    let missing = stubs::missing(root.as_fd(), &targets);
    for made in ["a/b/c", "full/x", "proc"] {
        std::fs::create_dir_all(dir.path().join(made)).unwrap();
    }
    std::fs::write(dir.path().join("full/kept"), "").unwrap();
    std::fs::write(dir.path().join("etc/resolv.conf"), "").unwrap();
    stubs::remove(root.as_fd(), &missing).unwrap();
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["etc", "full"]);
    assert!(dir.path().join("etc/hosts").exists() && !dir.path().join("full/x").exists());
    assert_eq!(std::fs::metadata(dir.path().join("etc")).unwrap().modified().unwrap(), before);
}

proptest! {
    #[test]
    fn keys_differ_when_inputs_do(a in "[a-z=;\"]{0,6}", b in "[a-z=;\"]{0,6}", c in "[a-z]{0,4}") {
        let one = inputs(&a, &b, &[("x", &c)]);
        let two = inputs(&b, &a, &[("x", &c)]);
        prop_assert_eq!(one.key() == two.key(), a == b);
        prop_assert_ne!(one.key(), inputs(&a, &b, &[("y", &c)]).key());
    }

    #[test]
    fn chmod_never_panics(text in "[ugoa=+,rwxXst0-9ä-]{0,12}", mode in 0_u32..0o10000) {
        if let Ok(chmod) = Chmod::parse(&text) {
            prop_assert!(chmod.apply(mode, false) <= 0o7777);
        }
    }

    #[test]
    fn paths_stay_inside(path in "[a./]{0,20}") {
        let inside = tree::inside(&path);
        prop_assert!(inside.is_relative() && !inside.components().any(|part| part.as_os_str() == ".."));
    }
}

#[test]
fn a_cache_mount_in_use_is_not_pruned() {
    let locks = std::sync::Arc::new(crate::build::Locks::default());
    let (one, two) = (locks.use_mount("m"), locks.use_mount("m"));
    assert!(locks.unless_used("m", || ()).is_none());
    drop(one);
    assert!(locks.unless_used("m", || ()).is_none());
    assert!(locks.unless_used("other", || ()).is_some());
    drop(two);
    assert!(locks.unless_used("m", || ()).is_some());
}

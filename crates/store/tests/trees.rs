//! Random images (`testkit::fixtures::trees`) in the three forms of layers, which have to show the same
//! file system, entry by entry, and the one that GNU tar makes of them.
//!
//! `make test` takes a sample; `FUZZ_SECONDS` goes on for so long, as in `make fuzz`. Each case has a
//! number, which a failure prints and with which `FUZZ_SEED` begins again. A failing case is made smaller
//! before it is shown.
#![allow(clippy::unwrap_used)]

mod suite;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use store::{Config, LayerForm, Store};
use store_api::{Namespaces as _, Services};
use suite::{labels, snapshots::mounted, transfer};
use testkit::fixtures::{
    oci::{Image, Layer},
    trees::{self, Draws, Reader, gnu, walk},
};

/// What `make test` takes, and the fewest cases that it takes on a slow machine.
const SAMPLE: Duration = Duration::from_secs(8);
const CASES_MIN: u64 = 4;
/// For making a failing case smaller.
const SHRINK: Duration = Duration::from_secs(30);
const FORMS: [(&str, LayerForm); 3] = [
    ("extracted", LayerForm::Directories),
    ("packed", LayerForm::Index),
    ("copied", LayerForm::Copy),
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn forms_and_gnu_tar_show_the_same() {
    suite::forms::in_form("index", "forms_and_gnu_tar_show_the_same", async || {
        let first =
            number("FUZZ_SEED").unwrap_or_else(|| u64::from(testkit::random::number(1..u32::MAX)));
        let time = number("FUZZ_SECONDS").map_or(SAMPLE, Duration::from_secs);
        eprintln!("trees: FUZZ_SEED={first}");
        let begin = Instant::now();
        let mut count = Count::default();
        for seed in first.. {
            if begin.elapsed() >= time && seed - first >= CASES_MIN {
                break;
            }
            let mut tree = trees::case(seed);
            if let Some(why) = failure(&tree.current(), &mut count) {
                eprintln!("trees: FUZZ_SEED={seed} fails: {why}");
                let fails = |draws: &Draws| failure(draws, &mut Count::default());
                let (draws, why) = trees::shrink(&mut *tree, SHRINK, fails)
                    .unwrap_or_else(|| (trees::case(seed).current(), why));
                let layers = trees::describe(&draws.build(Reader::Ours));
                panic!("FUZZ_SEED={seed}: {why}\n{layers}");
            }
        }
        eprintln!("trees: {count:?} in {:?}", begin.elapsed());
        assert!(count.packed * 10 >= count.layers * 9, "few layers stay packed: {count:?}");
    });
}

#[derive(Debug, Default)]
struct Count {
    cases: u64,
    layers: usize,
    entries: usize,
    /// Layers that the packed form kept as they are.
    packed: usize,
    /// Cases that GNU tar was asked about.
    gnu: u64,
}

/// Why a case fails, if it does.
fn failure(draws: &Draws, count: &mut Count) -> Option<String> {
    let layers = draws.build(Reader::Ours);
    count.cases += 1;
    count.layers += layers.len();
    count.entries += layers.iter().map(|layer| layer.entries.len()).sum::<usize>();
    let ground = tempfile::tempdir().unwrap();
    let image = image(&layers);
    let (ours, gnu) = std::thread::scope(|scope| {
        let forms = FORMS.map(|(name, form)| {
            let (root, image) = (ground.path().join(name), &image);
            (name, scope.spawn(move || runtime().block_on(shown(&root, form, image))))
        });
        let gnu = (!draws.wild).then(|| by_gnu_tar(&layers, &ground.path().join("gnu")));
        (forms.map(|(name, form)| (name, form.join())), gnu)
    });
    count.gnu += u64::from(gnu.is_some());
    count.packed += packed_layers(&ground.path().join("packed"));
    let mut wanted: Option<(&str, walk::Walked)> = None;
    let ours = ours.map(|(name, found)| (name, found.unwrap_or_else(|_| Err("a panic".into()))));
    for (name, found) in gnu.map(|found| ("GNU tar", found)).into_iter().chain(ours) {
        match (&wanted, found) {
            (_, Err(error)) => return Some(format!("{name}: {error}")),
            (None, Ok(found)) => wanted = Some((name, found)),
            (Some((other, wanted)), Ok(found)) => {
                if let Some(difference) = wanted.difference(&found) {
                    return Some(format!("wanted: {other}, found: {name}: {difference}"));
                }
            }
        }
    }
    None
}

fn by_gnu_tar(layers: &[trees::Layer], root: &Path) -> Result<walk::Walked, String> {
    std::fs::create_dir(root).unwrap();
    gnu::apply(layers, root).map_err(|error| error.to_string())?;
    walk::walk(root).map_err(|error| error.to_string())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn image(layers: &[trees::Layer]) -> Image {
    let layers = layers.iter().enumerate().map(|(i, layer)| {
        if i % 2 == 0 { Layer::plain(layer.tar()) } else { Layer::gzipped(layer.tar()) }
    });
    Image::new(layers.collect(), &serde_json::json!({ "Cmd": ["/x"] }))
}

async fn open(root: &Path, layers: LayerForm) -> (Arc<Store>, Services) {
    let config = Config { layers, ..Config::new(root.join("root"), root.join("state")) };
    let store = Store::open(config).await.unwrap();
    let services = store.open("moby").unwrap();
    (store, services)
}

/// What a store of its own shows of an image.
async fn shown(root: &Path, form: LayerForm, image: &Image) -> Result<walk::Walked, String> {
    let (_store, services) = open(root, form).await;
    let name = "docker.io/library/tree:v1";
    let found = transfer::import(&services, image.oci_archive(name)).await;
    let found = found.map_err(|error| format!("import: {error}"))?;
    let unpacked = services.extras.unpack(&found[0].target, None).await;
    let unpacked = unpacked.map_err(|error| format!("unpack: {error}"))?;
    let top = unpacked.chain_ids.last().map(ToString::to_string);
    let mounts = services.snapshots.view("shown", top.as_deref(), labels(&[])).await;
    let mounts = mounts.map_err(|error| format!("view: {error}"))?;
    let viewed = mounted(&mounts, walk::walk);
    // A container's file system is the same to begin with.
    let mounts = services.snapshots.prepare("used", top.as_deref(), labels(&[])).await;
    let mounts = mounts.map_err(|error| format!("prepare: {error}"))?;
    match viewed.difference(&mounted(&mounts, walk::walk)) {
        Some(difference) => {
            Err(format!("wanted: a view, found: what can be written: {difference}"))
        }
        None => Ok(viewed),
    }
}

fn packed_layers(root: &Path) -> usize {
    let snapshots = std::fs::read_dir(root.join("root/snapshots"));
    // Where an import failed there are none.
    let Ok(snapshots) = snapshots else { return 0 };
    snapshots.filter(|entry| entry.as_ref().unwrap().path().join("layer.tar").exists()).count()
}

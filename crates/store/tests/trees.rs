//! Random images (`testkit::fixtures::trees`) in the three forms of layers, which have to show the same
//! file system, entry by entry, and the one that GNU tar makes of them. The same random changes in a
//! container of each form have to become the same layer, byte for byte, which turns the image into what the
//! container shows; and what an image's layer changes is that layer.
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
use store_api::{DiffRequest, Mount, Namespaces as _, Services, UnpackedImage, media_type};
use suite::{labels, snapshots::mounted, transfer};
use testkit::fixtures::{
    oci::{Image, Layer},
    trees::{self, Draws, Reader, changes, gnu, walk},
};
use types::Digest;

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
    let mut layer: Option<(&str, Vec<u8>)> = None;
    let ours = ours.map(|(name, found)| (name, found.unwrap_or_else(|_| Err("a panic".into()))));
    let gnu = gnu.map(|found| ("GNU tar", found.map(|tree| Shown { tree, layer: None })));
    for (name, found) in gnu.into_iter().chain(ours) {
        let found = match found {
            Ok(found) => found,
            Err(error) => return Some(format!("{name}: {error}")),
        };
        if let Some((other, wanted)) = &wanted {
            if let Some(difference) = wanted.difference(&found.tree) {
                return Some(format!("wanted: {other}, found: {name}: {difference}"));
            }
        } else {
            wanted = Some((name, found.tree));
        }
        match (&layer, found.layer) {
            (Some((other, layer)), Some(found)) if *layer != found => {
                let difference = tars_differ(layer, &found);
                return Some(format!("a container's layer in {other} and {name}: {difference}"));
            }
            (None, Some(found)) => layer = Some((name, found)),
            _ => {}
        }
    }
    None
}

/// What a form, or GNU tar, makes of an image.
struct Shown {
    tree: walk::Walked,
    /// The tar of what was changed in a container.
    layer: Option<Vec<u8>>,
}

/// The first entry in which two tars differ.
fn tars_differ(one: &[u8], other: &[u8]) -> String {
    let entries = |tar: &[u8]| {
        let mut reader = archive::TarReader::new(tar, archive::Limits::default());
        let mut entries = Vec::new();
        while let Some(mut entry) = reader.next_entry().unwrap() {
            entry.position = archive::Position::default();
            entries.push(format!("{entry:?}"));
        }
        entries
    };
    let (one, other) = (entries(one), entries(other));
    for i in 0..one.len().max(other.len()) {
        let (a, b) = (one.get(i), other.get(i));
        if a != b {
            return format!("entry {i}\n  {a:?}\n  {b:?}");
        }
    }
    "the entries are the same, their data or padding is not".into()
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
async fn shown(root: &Path, form: LayerForm, image: &Image) -> Result<Shown, String> {
    let (_store, services) = open(root, form).await;
    let name = "docker.io/library/tree:v1";
    let found = transfer::import(&services, image.oci_archive(name)).await;
    let found = found.map_err(|error| format!("import: {error}"))?;
    let unpacked = services.extras.unpack(&found[0].target, None).await;
    let unpacked = unpacked.map_err(|error| format!("unpack: {error}"))?;
    let top = unpacked.chain_ids.last().map(ToString::to_string);
    let below = services.snapshots.view("shown", top.as_deref(), labels(&[])).await;
    let below = below.map_err(|error| format!("view: {error}"))?;
    let viewed = mounted(&below, walk::walk);
    // A container's file system is the same to begin with.
    let used = services.snapshots.prepare("used", top.as_deref(), labels(&[])).await;
    let used = used.map_err(|error| format!("prepare: {error}"))?;
    if let Some(difference) = viewed.difference(&mounted(&used, walk::walk)) {
        return Err(format!("wanted: a view, found: what can be written: {difference}"));
    }
    layers_are_what_they_change(&services, &unpacked).await?;
    let seed =
        u64::from_le_bytes(unpacked.manifest.digest.hex().as_bytes()[..8].try_into().unwrap());
    let plan = changes::plan(&viewed, seed);
    let planned = plan.clone();
    mounted(&used, move |root| changes::apply(root, &planned));
    let layer = diff(&services, &below, &used).await?;
    if diff(&services, &below, &used).await? != layer {
        return Err("a second layer of the same changes is another".into());
    }
    let applied = services.snapshots.prepare("applied", top.as_deref(), labels(&[])).await;
    let applied = applied.map_err(|error| format!("prepare: {error}"))?;
    services.diffs.apply(&layer, &applied).await.map_err(|error| format!("apply: {error}"))?;
    let (wanted, found) = (mounted(&used, walk::walk), mounted(&applied, walk::walk));
    if let Some(difference) = in_a_layer(wanted).difference(&in_a_layer(found)) {
        return Err(format!("wanted: a container, found: its layer: {difference}\n{plan:?}"));
    }
    let layer = suite::get(&services, &layer.digest).await;
    committed_is_whole(&services, image, &unpacked, &layer).await?;
    Ok(Shown { tree: viewed, layer: Some(layer) })
}

/// The container becomes an image with the layer that was made of it, as `commit` and builds do it: for `fsck`
/// its directory is that layer, however overlay says things in it.
async fn committed_is_whole(
    services: &Services,
    image: &Image,
    unpacked: &UnpackedImage,
    layer: &[u8],
) -> Result<(), String> {
    let diff_id = Digest::sha256(layer);
    let chain_id = match unpacked.chain_ids.last() {
        None => diff_id,
        Some(below) => Digest::sha256(format!("{below} {diff_id}")),
    };
    let committed = services.snapshots.commit(&chain_id.to_string(), "used", labels(&[])).await;
    committed.map_err(|error| format!("commit: {error}"))?;
    let layers = image.layers.iter().cloned().chain([Layer::plain(layer.to_vec())]).collect();
    let image = Image::new(layers, &serde_json::json!({ "Cmd": ["/x"] }));
    let imported = transfer::import(services, image.oci_archive("docker.io/library/made:v1")).await;
    imported.map_err(|error| format!("import of what was committed: {error}"))?;
    let report = services.extras.fsck(store_api::FsckRequest::default()).await;
    let report = report.map_err(|error| format!("fsck: {error}"))?;
    match report.findings.first() {
        Some(finding) => Err(format!("fsck: {finding:?}")),
        None => Ok(()),
    }
}

async fn diff(
    services: &Services,
    lower: &[Mount],
    upper: &[Mount],
) -> Result<store_api::Descriptor, String> {
    let request = DiffRequest {
        lower: lower.to_vec(),
        upper: upper.to_vec(),
        media_type: media_type::OCI_LAYER.into(),
        ..DiffRequest::default()
    };
    services.diffs.diff(request).await.map_err(|error| format!("diff: {error}"))
}

/// What a layer of ours holds of a tree: no sockets, no fractions of seconds.
fn in_a_layer(mut tree: walk::Walked) -> walk::Walked {
    tree.0.retain(|_, seen| seen.kind != '?');
    for seen in tree.0.values_mut() {
        seen.mtime = seen.mtime.map(|(seconds, _)| (seconds, 0));
    }
    tree
}

async fn layers_are_what_they_change(
    services: &Services,
    image: &UnpackedImage,
) -> Result<(), String> {
    let mut below: Option<(String, Vec<Mount>)> = None;
    for (chain_id, diff_id) in image.chain_ids.iter().zip(&image.diff_ids) {
        let (key, name) = (format!("view {chain_id}"), chain_id.to_string());
        let view = services.snapshots.view(&key, Some(&name), labels(&[])).await;
        let view = view.map_err(|error| format!("view: {error}"))?;
        let lower = below.as_ref().map_or(&[][..], |(_, mounts)| mounts);
        let found: Digest = diff(services, lower, &view).await?.digest;
        if found != *diff_id {
            return Err(format!("layer {diff_id} changes what {found} does"));
        }
        if let Some((key, _)) = below.replace((key, view)) {
            services.snapshots.remove(&key).await.map_err(|error| format!("remove: {error}"))?;
        }
    }
    Ok(())
}

fn packed_layers(root: &Path) -> usize {
    let snapshots = std::fs::read_dir(root.join("root/snapshots"));
    // Where an import failed there are none.
    let Ok(snapshots) = snapshots else { return 0 };
    snapshots.filter(|entry| entry.as_ref().unwrap().path().join("layer.tar").exists()).count()
}

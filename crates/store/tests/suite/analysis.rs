//! The analysis of an image whose every file is known.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::json;
use store_api::{
    AnalysisRequest, Cache, Descriptor, EXAMPLES_MAX, Fate, ImageAnalysis, ImportRequest, Services,
    WasteKind,
};
use testkit::{
    fixtures::{
        oci::{Image, Layer},
        tar::{Header, TarStream},
    },
    random,
};
use tokio::sync::mpsc;
use types::{Digest, ErrorKind};

use super::{assert_kind, transfer::stream};

const DIRECTORIES: [&str; 4] = ["bin", "srv", "opt", "tmp"];
const LAYERS: usize = 6;
/// Smaller copies are not told of.
const COPY_BYTES: usize = 4096;

#[derive(Clone)]
struct Known {
    layer: usize,
    path: String,
    content: Vec<u8>,
    owner: u64,
    mode: u64,
    fate: Fate,
    /// The file that was written over it.
    successor: Option<usize>,
}

impl Known {
    fn bytes(&self) -> u64 {
        u64::try_from(self.content.len()).unwrap()
    }
}

/// A plain model of layers: paths and who stands at them.
#[derive(Default)]
struct Model {
    files: Vec<Known>,
    now: BTreeMap<String, usize>,
    removals: Vec<u64>,
}

fn chance(percent: u32) -> bool {
    random::number(0..100) < percent
}

fn pick<T: Clone>(list: &[T]) -> T {
    list[usize::try_from(random::number(0..u32::try_from(list.len()).unwrap())).unwrap()].clone()
}

impl Model {
    /// Makes the next layer at random.
    fn layer(&mut self) -> Vec<u8> {
        let layer = self.removals.len();
        let before = self.now.clone();
        let (mut marks, mut written, mut removals) = (TarStream::new(), TarStream::new(), 0);
        let mut fresh: BTreeMap<String, usize> = BTreeMap::new();
        for dir in DIRECTORIES {
            written = written.dir(dir);
            let inside = format!("{dir}/");
            let old: Vec<&String> =
                before.keys().filter(|path| path.starts_with(&inside)).collect();
            let mut gone: BTreeSet<String> = BTreeSet::new();
            if !old.is_empty() && chance(15) {
                marks = marks.file(&format!("{dir}/.wh..wh..opq"), 0o644, b"");
                removals += 1;
                gone.extend(old.iter().map(|path| (*path).clone()));
            } else {
                for path in old.iter().filter(|_| chance(20)) {
                    marks = marks.whiteout(path);
                    removals += 1;
                    gone.insert((*path).clone());
                }
            }
            for number in 0..8 {
                if !chance(45) {
                    continue;
                }
                let path = format!("{dir}/f{number}");
                let size = usize::try_from(random::number(1..9000)).unwrap();
                let mut file = Known {
                    layer,
                    path: path.clone(),
                    content: random::bytes(size),
                    owner: 0,
                    mode: 0o644,
                    fate: Fate::Seen,
                    successor: None,
                };
                match before.get(&path).map(|old| self.files[*old].clone()) {
                    Some(old) if chance(50) => {
                        file = Known { layer, fate: Fate::Seen, successor: None, ..old };
                        file.owner += u64::from(random::number(0..2));
                        file.mode ^= if chance(30) { 0o111 } else { 0 };
                    }
                    _ if !self.files.is_empty() && chance(20) => {
                        file.content = pick(&self.files).content;
                    }
                    _ => {}
                }
                let length = u64::try_from(file.content.len()).unwrap();
                let header = Header::new(&path, b'0', length);
                // Two whole trees can only be told apart by what differs.
                let time = u64::try_from(layer).unwrap() + 1;
                let header = header.mode(file.mode).owner(file.owner, file.owner).mtime(time);
                written = written.entry(header, &file.content);
                fresh.insert(path, self.files.len());
                self.files.push(file);
            }
            for path in gone {
                self.lose(&path, layer, fresh.get(&path).copied());
            }
        }
        for (path, file) in fresh {
            self.lose(&path, layer, Some(file));
            self.now.insert(path, file);
        }
        self.removals.push(removals);
        // The order of a layer's entries says nothing.
        let (marks, written) = (marks.unfinished(), written.unfinished());
        let parts = if chance(50) { [marks, written] } else { [written, marks] };
        TarStream::new().raw(&parts.concat()).finish()
    }

    fn lose(&mut self, path: &str, by: usize, successor: Option<usize>) {
        let Some(file) = self.now.remove(path) else { return };
        let file = &mut self.files[file];
        file.successor = successor;
        file.fate = match successor {
            Some(_) => Fate::Overwritten { by },
            None => Fate::Deleted { by },
        };
    }

    /// Bytes and files of each kind of waste.
    fn waste(&self) -> BTreeMap<(WasteKind, usize, Option<usize>), (u64, u64)> {
        let mut found = BTreeMap::new();
        let mut add = |key: (WasteKind, usize, Option<usize>), bytes: u64| {
            let entry: &mut (u64, u64) = found.entry(key).or_default();
            entry.0 += bytes;
            entry.1 += 1;
        };
        let mut seen: BTreeMap<&[u8], BTreeSet<(usize, &str)>> = BTreeMap::new();
        // What changed is said of all that one layer wrote again over another.
        let mut changed: BTreeMap<(usize, usize), (bool, bool)> = BTreeMap::new();
        for file in &self.files {
            if let (Fate::Overwritten { by }, Some(new)) = (file.fate, file.successor)
                && self.files[new].content == file.content
            {
                let entry = changed.entry((file.layer, by)).or_default();
                entry.0 |= self.files[new].owner != file.owner;
                entry.1 |= self.files[new].mode != file.mode;
            }
        }
        for file in &self.files {
            match file.fate {
                Fate::Deleted { by } => {
                    add((WasteKind::Deleted, file.layer, Some(by)), file.bytes());
                }
                Fate::Overwritten { by } => {
                    let same = file.successor.map(|new| &self.files[new].content);
                    let kind = if same == Some(&file.content) {
                        let (owner, mode) = changed[&(file.layer, by)];
                        WasteKind::Rewritten { owner, mode }
                    } else {
                        WasteKind::Overwritten
                    };
                    add((kind, file.layer, Some(by)), file.bytes());
                }
                Fate::Seen if file.path.starts_with("tmp/") => {
                    add((WasteKind::Cache(Cache::Temporary), file.layer, None), file.bytes());
                }
                Fate::Seen if file.content.len() >= COPY_BYTES => {
                    seen.entry(&file.content).or_default().insert((file.layer, &file.path));
                }
                Fate::Seen => {}
            }
        }
        for (content, files) in seen {
            let original = files.first().unwrap().0;
            for (layer, _) in files.iter().skip(1) {
                let bytes = u64::try_from(content.len()).unwrap();
                add((WasteKind::Copied, *layer, Some(original)), bytes);
            }
        }
        found
    }

    fn compare(&self, found: &ImageAnalysis, with_removals: bool) {
        let sum = |wanted: &dyn Fn(&Known) -> bool| -> u64 {
            self.files.iter().filter(|file| wanted(file)).map(Known::bytes).sum()
        };
        assert_eq!(found.layers.len(), self.removals.len());
        for (i, layer) in found.layers.iter().enumerate() {
            assert_eq!(layer.added_bytes, sum(&|file| file.layer == i), "layer {i}");
            let overwritten = |file: &Known| matches!(file.fate, Fate::Overwritten { .. });
            let deleted = |file: &Known| matches!(file.fate, Fate::Deleted { .. });
            let of_layer = |file: &Known| file.layer == i;
            assert_eq!(layer.overwritten_bytes, sum(&|f| of_layer(f) && overwritten(f)));
            assert_eq!(layer.deleted_bytes, sum(&|f| of_layer(f) && deleted(f)));
            let known: Vec<&Known> = self.files.iter().filter(|f| of_layer(f)).collect();
            assert_eq!(layer.files, u64::try_from(known.len()).unwrap());
            if with_removals {
                assert_eq!(layer.removals, self.removals[i], "layer {i}");
            }
            let wanted: BTreeSet<(PathBuf, u64, String)> = known
                .iter()
                .map(|f| (PathBuf::from(&f.path), f.bytes(), format!("{:?}", f.fate)))
                .collect();
            let largest: BTreeSet<(PathBuf, u64, String)> = layer
                .largest
                .iter()
                .map(|f| (f.path.clone(), f.bytes, format!("{:?}", f.fate)))
                .collect();
            assert_eq!(largest, wanted, "layer {i}");
            assert!(layer.largest.is_sorted_by(|a, b| a.bytes >= b.bytes));
        }
        assert_eq!(found.seen_bytes, sum(&|file| file.fate == Fate::Seen));
        assert_eq!(found.seen_files, u64::try_from(self.now.len()).unwrap());
        let mut waste = BTreeMap::new();
        for one in &found.waste {
            waste.insert((one.kind, one.layer, one.by), (one.bytes, one.files));
            let named: u64 = one.examples.iter().map(|example| example.bytes).sum();
            assert_eq!(named, one.bytes, "all files are named, being so few");
        }
        assert_eq!(waste, self.waste());
        assert!(found.waste.is_sorted_by(|a, b| a.bytes >= b.bytes));
    }
}

async fn load(services: &Services, image: &Image) -> Descriptor {
    let (progress, mut reports) = mpsc::channel(16);
    let drain = tokio::spawn(async move { while reports.recv().await.is_some() {} });
    let name = format!("docker.io/library/{}:1", random::name("known"));
    let archive = stream(image.oci_archive(&name));
    let mut found =
        services.transfer.import(ImportRequest::default(), archive, progress).await.unwrap();
    drain.await.unwrap();
    found.remove(0).target
}

async fn analyse(services: &Services, target: &Digest, examples: usize) -> ImageAnalysis {
    let request = AnalysisRequest { target: target.clone(), platform: None, examples };
    services.extras.analyse(request).await.unwrap()
}

/// From blobs alone, from what they were unpacked to, and from that alone.
pub async fn analysed(services: &Services) {
    let mut model = Model::default();
    let layers: Vec<Layer> = (0..LAYERS)
        .map(|i| {
            let tar = model.layer();
            if i % 2 == 0 { Layer::gzipped(tar) } else { Layer::plain(tar) }
        })
        .collect();
    let target = load(services, &Image::new(layers, &json!({}))).await;
    model.compare(&analyse(services, &target.digest, EXAMPLES_MAX).await, true);
    let few = analyse(services, &target.digest, 2).await;
    assert!(few.layers.iter().all(|layer| layer.largest.len() <= 2));
    assert!(few.waste.iter().all(|waste| waste.examples.len() <= 2));
    let unpacked = services.extras.unpack(&target, None).await.unwrap();
    model.compare(&analyse(services, &target.digest, EXAMPLES_MAX).await, true);
    for blob in &unpacked.layers {
        services.content.delete(&blob.digest).await.unwrap();
    }
    // An extracted directory has no marks for what it has anew.
    model.compare(&analyse(services, &target.digest, EXAMPLES_MAX).await, false);
    for chain_id in unpacked.chain_ids.iter().rev() {
        services.snapshots.remove(&chain_id.to_string()).await.unwrap();
    }
    let request = AnalysisRequest { target: target.digest, platform: None, examples: 1 };
    assert_kind(services.extras.analyse(request).await, ErrorKind::NotFound);
}

/// A file goes with its last name, a replaced directory with all that is in it, and holes take nothing.
pub async fn analysed_links(services: &Services) {
    let (linked, inner) = (random::bytes(5000), random::bytes(700));
    let layers = vec![
        TarStream::new()
            .dir("a")
            .file("a/one", 0o644, &linked)
            .hardlink("a/two", "a/one")
            .hardlink("./a/three", "/a/two")
            .dir("b")
            .dir("b/deep")
            .file("b/deep/inner", 0o644, &inner)
            .file("b/.wh.nothing", 0o644, b"")
            .finish(),
        TarStream::new().whiteout("a/one").file("b/deep", 0o644, b"now a file").finish(),
        TarStream::new().file("a/two", 0o644, b"another").whiteout("b").finish(),
        TarStream::new().whiteout("a").finish(),
    ];
    let image = Image::new(layers.into_iter().map(Layer::plain).collect(), &json!({}));
    let target = load(services, &image).await;
    let found = analyse(services, &target.digest, 10).await;
    let numbers: Vec<_> = found
        .layers
        .iter()
        .map(|l| (l.added_bytes, l.files, l.removals, l.overwritten_bytes, l.deleted_bytes))
        .collect();
    assert_eq!(
        numbers,
        [(5700, 2, 1, 0, 5700), (10, 1, 1, 0, 10), (7, 1, 1, 0, 7), (0, 0, 1, 0, 0)]
    );
    assert_eq!((found.seen_bytes, found.seen_files), (0, 0));
    let fate = |layer: usize, path: &str| {
        let file = found.layers[layer].largest.iter().find(|f| f.path == Path::new(path));
        file.unwrap_or_else(|| panic!("no {path}: {found:?}")).fate
    };
    assert_eq!(fate(0, "a/three"), Fate::Deleted { by: 3 });
    assert_eq!(fate(0, "b/deep/inner"), Fate::Deleted { by: 1 });
    assert_eq!(fate(1, "b/deep"), Fate::Deleted { by: 2 });
    assert_eq!(fate(2, "a/two"), Fate::Deleted { by: 3 });
}

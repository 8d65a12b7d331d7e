//! Bytes that an image could do without, by cause.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

use store_api::{Fate, Waste, WasteKind, WastedFile};

use super::{
    caches,
    tree::{File, Hash, Tree},
};

/// Smaller copies are not worth a word: a file takes at least so much of a disk.
const COPY_BYTES: u64 = 4096;

/// One kind of waste, with what is found while it is gathered left out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    kind: WasteKind,
    layer: usize,
    by: Option<usize>,
}

struct Gatherer {
    found: BTreeMap<Key, Waste>,
    examples: usize,
}

/// `by_size`: the tree's files, the largest first.
pub(super) fn of(tree: &Tree, by_size: &[usize], examples: usize) -> Vec<Waste> {
    let mut gatherer = Gatherer { found: BTreeMap::new(), examples };
    let mut copies: HashMap<(Hash, u64), Vec<usize>> = HashMap::new();
    for (index, file) in by_size.iter().map(|index| (*index, &tree.files[*index])) {
        if file.bytes == 0 {
            continue;
        }
        let path = tree.path(file);
        match file.fate {
            Fate::Deleted { by } => {
                gatherer.add((WasteKind::Deleted, Some(by)), file, path);
            }
            Fate::Overwritten { by } => gatherer.overwritten(tree, file, by, path),
            Fate::Seen => match caches::of(&path) {
                Some(cache) => {
                    gatherer.add((WasteKind::Cache(cache), None), file, path);
                }
                None if file.bytes >= COPY_BYTES => {
                    copies.entry((file.hash, file.bytes)).or_default().push(index);
                }
                None => {}
            },
        }
    }
    gatherer.copies(tree, copies);
    let mut list: Vec<Waste> = gatherer.found.into_values().collect();
    list.sort_by_key(|waste| Reverse(waste.bytes));
    list
}

impl Gatherer {
    fn overwritten(&mut self, tree: &Tree, file: &File, by: usize, path: PathBuf) {
        let successor = file.successor.map(|successor| &tree.files[successor]);
        let same = successor.filter(|new| new.hash == file.hash && new.bytes == file.bytes);
        let kind = match same {
            None => WasteKind::Overwritten,
            // Which of the two changed is said of all such files together.
            Some(_) => WasteKind::Rewritten { owner: false, mode: false },
        };
        let waste = self.add((kind, Some(by)), file, path);
        if let (Some(new), WasteKind::Rewritten { owner, mode }) = (same, &mut waste.kind) {
            *owner |= new.owner != file.owner;
            *mode |= new.mode != file.mode;
        }
    }

    /// The original is the one that came first.
    fn copies(&mut self, tree: &Tree, copies: HashMap<(Hash, u64), Vec<usize>>) {
        let mut groups: Vec<(u64, Vec<usize>)> = copies
            .into_iter()
            .filter(|(_, files)| files.len() > 1)
            .map(|((_, bytes), mut files)| {
                files.sort_unstable();
                (bytes, files)
            })
            .collect();
        groups.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        for (bytes, files) in groups {
            let mut files = files.into_iter().map(|file| &tree.files[file]);
            let Some(original) = files.next() else { continue };
            for file in files {
                let (layer, by) = (file.layer, Some(original.layer));
                let key = Key { kind: WasteKind::Copied, layer, by };
                let named = || WastedFile {
                    path: tree.path(file),
                    bytes,
                    original: Some(tree.path(original)),
                };
                self.count(key, bytes, named);
            }
        }
    }

    fn add(
        &mut self,
        (kind, by): (WasteKind, Option<usize>),
        file: &File,
        path: PathBuf,
    ) -> &mut Waste {
        let key = Key { kind, layer: file.layer, by };
        let named = || WastedFile { path, bytes: file.bytes, original: None };
        self.count(key, file.bytes, named)
    }

    /// `named` is called for what is reported only.
    fn count(&mut self, key: Key, bytes: u64, named: impl FnOnce() -> WastedFile) -> &mut Waste {
        let Key { kind, layer, by } = key;
        let empty = || Waste { kind, layer, by, bytes: 0, files: 0, examples: Vec::new() };
        let waste = self.found.entry(key).or_insert_with(empty);
        waste.bytes += bytes;
        waste.files += 1;
        // They come the largest first.
        if waste.examples.len() < self.examples {
            waste.examples.push(named());
        }
        waste
    }
}

//! The tree that an image's layers make, one after the other, and what became of each of their files.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    rc::Rc,
};

use archive::{Entry, Kind, Meaning};
use store_api::Fate;

use crate::error::{Error, Result};

/// Memory for the names and files of all layers together: for some ten times as many as the largest
/// images have.
pub(super) const TREE_BYTES_MAX: usize = 512 << 20;
/// Bytes of a name's place among its directory's and of what counts its references.
const SLOT_BYTES: usize = 64;
const ROOT: u32 = 0;

/// The first bytes of the SHA-256 of a file's content.
pub(super) type Hash = [u8; 16];

/// A regular file of a layer, under all its names.
pub(super) struct File {
    pub(super) layer: usize,
    /// Data bytes in the layer's tar.
    pub(super) bytes: u64,
    pub(super) hash: Hash,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    /// How many names of it are seen.
    names: u32,
    /// Its first name, or the last one that went.
    node: u32,
    pub(super) fate: Fate,
    /// What stands at the place of the last name that went, if that is a file too.
    pub(super) successor: Option<usize>,
}

struct Node {
    parent: u32,
    name: Rc<[u8]>,
    /// The layer that made it or last had an entry in it.
    layer: usize,
    /// A directory: the last layer of which it is known that nothing from below it is left in here.
    emptied: Option<usize>,
    what: What,
}

enum What {
    Directory(BTreeMap<Rc<[u8]>, u32>),
    File(usize),
    Other,
}

/// What one layer added besides its files.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) removals: u64,
}

pub(super) struct Tree {
    /// As errors name it.
    image: Rc<str>,
    bytes: usize,
    limit_bytes: usize,
    nodes: Vec<Node>,
    pub(super) files: Vec<File>,
    layer: usize,
    /// Files that lost their last name in this layer.
    gone: Vec<usize>,
    counts: Counts,
    /// Names that were looked at to empty directories.
    #[cfg(test)]
    visited: usize,
}

impl Tree {
    /// `image`: as errors name it; `limit_bytes`: memory that the tree may take, about.
    pub(super) fn new(image: &str, limit_bytes: usize) -> Self {
        let what = What::Directory(BTreeMap::new());
        let root = Node { parent: ROOT, name: Rc::from(&b""[..]), layer: 0, emptied: None, what };
        Self {
            image: Rc::from(image),
            bytes: 0,
            limit_bytes,
            #[cfg(test)]
            visited: 0,
            nodes: vec![root],
            files: Vec::new(),
            layer: 0,
            gone: Vec::new(),
            counts: Counts::default(),
        }
    }

    pub(super) fn begin(&mut self, layer: usize) {
        self.layer = layer;
        self.counts = Counts::default();
    }

    /// Takes the layer's next entry; `hash`: of a regular file's data.
    pub(super) fn add(&mut self, entry: &Entry, hash: Hash) -> Result<()> {
        let (layer, image) = (self.layer + 1, self.image.clone());
        let failed = move |error| {
            Error::archive("read", format_args!("layer {layer} of image {image}"))(error)
        };
        let path = entry.relative_path().map_err(&failed)?;
        let Some(name) = path.file_name() else { return Ok(()) };
        let bad = |problem| failed(archive::Error::Entry { name: entry.name.clone(), problem });
        let dir = path.parent().unwrap_or(Path::new(""));
        for component in dir {
            if archive::meaning(component).map_err(bad)? != Meaning::Plain {
                return Ok(());
            }
        }
        match archive::meaning(name).map_err(bad)? {
            Meaning::Ignore => return Ok(()),
            Meaning::Remove(name) => {
                self.counts.removals += 1;
                let parent = self.directory(dir)?;
                self.whiteout(parent, name.as_bytes());
                return Ok(());
            }
            Meaning::Opaque => {
                self.counts.removals += 1;
                let parent = self.directory(dir)?;
                self.empty(parent);
                return Ok(());
            }
            Meaning::Plain => {}
        }
        // A link to itself, or to something that goes with the name, must be looked up first.
        let target = match &entry.kind {
            Kind::HardLink { target } => self.find(&relative(target)),
            _ => None,
        };
        let parent = self.directory(dir)?;
        match &entry.kind {
            Kind::Directory => {
                let old = self.child(parent, name.as_bytes());
                match old.filter(|old| self.is_directory(*old)) {
                    Some(old) => self.node_mut(old).layer = self.layer,
                    None => {
                        let what = What::Directory(BTreeMap::new());
                        self.put(parent, name, what)?;
                    }
                }
            }
            Kind::File { .. } => {
                self.charge(size_of::<File>())?;
                let file = self.files.len();
                let node = self.put(parent, name, What::File(file))?;
                self.files.push(File {
                    layer: self.layer,
                    bytes: entry.position.stored,
                    hash,
                    mode: entry.mode,
                    owner: (entry.uid, entry.gid),
                    names: 1,
                    node,
                    fate: Fate::Seen,
                    successor: None,
                });
            }
            Kind::HardLink { .. } => self.link(parent, name, target)?,
            _ => {
                self.put(parent, name, What::Other)?;
            }
        }
        Ok(())
    }

    fn link(&mut self, parent: u32, name: &OsStr, target: Option<u32>) -> Result<()> {
        let what = match target.map(|node| &self.node(node).what) {
            Some(&What::File(file)) => {
                // First counted, so that a link in the place of its own target keeps it.
                self.files[file].names += 1;
                What::File(file)
            }
            _ => What::Other,
        };
        self.put(parent, name, what).map(drop)
    }

    /// Ends the layer: what was both deleted and made anew in it was overwritten, in whatever order.
    pub(super) fn end(&mut self) -> Counts {
        for file in std::mem::take(&mut self.gone) {
            let now = self.find(&self.path_of(self.files[file].node));
            let successor = match now.map(|now| &self.node(now).what) {
                None | Some(What::Directory(_)) => continue,
                Some(What::File(successor)) => Some(*successor),
                Some(What::Other) => None,
            };
            self.files[file].fate = Fate::Overwritten { by: self.layer };
            self.files[file].successor = successor.filter(|successor| *successor != file);
        }
        std::mem::take(&mut self.counts)
    }

    /// A name of a file, without a leading "/".
    pub(super) fn path(&self, file: &File) -> PathBuf {
        self.path_of(file.node)
    }

    fn path_of(&self, mut node: u32) -> PathBuf {
        let mut names = Vec::new();
        while node != ROOT {
            names.push(&self.node(node).name);
            node = self.node(node).parent;
        }
        names.iter().rev().map(|name| OsStr::from_bytes(name)).collect()
    }

    fn node(&self, node: u32) -> &Node {
        &self.nodes[index(node)]
    }

    fn node_mut(&mut self, node: u32) -> &mut Node {
        &mut self.nodes[index(node)]
    }

    fn is_directory(&self, node: u32) -> bool {
        matches!(self.node(node).what, What::Directory(_))
    }

    fn child(&self, parent: u32, name: &[u8]) -> Option<u32> {
        match &self.node(parent).what {
            What::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn find(&self, path: &Path) -> Option<u32> {
        path.iter().try_fold(ROOT, |node, name| self.child(node, name.as_bytes()))
    }

    /// The directory of this path, made where it is missing.
    fn directory(&mut self, path: &Path) -> Result<u32> {
        let mut node = ROOT;
        for name in path {
            let below = self.child(node, name.as_bytes());
            node = match below.filter(|below| self.is_directory(*below)) {
                Some(below) => below,
                None => self.put(node, name, What::Directory(BTreeMap::new()))?,
            };
            self.node_mut(node).layer = self.layer;
        }
        Ok(node)
    }

    /// Puts something at a name, in the place of what had it.
    fn put(&mut self, parent: u32, name: &OsStr, what: What) -> Result<u32> {
        self.charge(size_of::<Node>() + SLOT_BYTES + name.len())?;
        let name: Rc<[u8]> = Rc::from(name.as_bytes());
        if let Some(old) = self.child(parent, &name) {
            self.drop_node(old);
        }
        let node = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        // What this layer makes has nothing of those below.
        let (layer, emptied) = (self.layer, Some(self.layer));
        self.nodes.push(Node { parent, name: Rc::clone(&name), layer, emptied, what });
        if let What::Directory(children) = &mut self.node_mut(parent).what {
            children.insert(name, node);
        }
        Ok(node)
    }

    fn charge(&mut self, bytes: usize) -> Result<()> {
        self.bytes += bytes;
        if self.bytes <= self.limit_bytes {
            return Ok(());
        }
        Err(Error::Api(store_api::Error::new(
            types::ErrorKind::ResourceExhausted,
            format!(
                "image {}: its layers have too many files to be analysed: their names take more than {} MiB",
                self.image,
                self.limit_bytes >> 20
            ),
        )))
    }

    /// Takes a name away from what came from the layers below.
    fn whiteout(&mut self, parent: u32, name: &[u8]) {
        let Some(node) = self.child(parent, name) else { return };
        if self.is_directory(node) {
            self.empty(node);
        }
        if self.node(node).layer < self.layer {
            self.drop_node(node);
            if let What::Directory(children) = &mut self.node_mut(parent).what {
                children.remove(name);
            }
        }
    }

    /// Takes away all that came into a directory from the layers below. Each directory is gone through
    /// once in a layer, however many marks the layer has.
    fn empty(&mut self, directory: u32) {
        let mut open = vec![directory];
        while let Some(directory) = open.pop() {
            let layer = self.layer;
            let node = self.node_mut(directory);
            if node.emptied == Some(layer) {
                continue;
            }
            let What::Directory(children) = &mut node.what else { continue };
            let mut children = std::mem::take(children);
            node.emptied = Some(layer);
            children.retain(|_, child| {
                #[cfg(test)]
                {
                    self.visited += 1;
                }
                if self.node(*child).layer < layer {
                    self.drop_node(*child);
                    return false;
                }
                // This layer's own; what it left alone in there goes too.
                open.push(*child);
                true
            });
            self.node_mut(directory).what = What::Directory(children);
        }
    }

    /// All names from here on are no longer seen.
    fn drop_node(&mut self, node: u32) {
        let mut open = vec![node];
        while let Some(node) = open.pop() {
            let file = match &self.node(node).what {
                What::Directory(children) => {
                    open.extend(children.values());
                    continue;
                }
                What::Other => continue,
                What::File(file) => *file,
            };
            let gone = &mut self.files[file];
            gone.names = gone.names.saturating_sub(1);
            if gone.names == 0 {
                gone.fate = Fate::Deleted { by: self.layer };
                gone.node = node;
                self.gone.push(file);
            }
        }
    }
}

fn index(node: u32) -> usize {
    usize::try_from(node).unwrap_or(usize::MAX)
}

/// A link's target as a path below the root; where it cannot be one nothing is found.
fn relative(target: &Path) -> PathBuf {
    Entry::new(target, Kind::Directory).relative_path().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn add(tree: &mut Tree, path: &str, kind: Kind) -> Result<()> {
        tree.add(&Entry::new(path, kind), Hash::default())
    }

    fn fate(tree: &Tree, path: &str) -> Option<Fate> {
        let file = tree.files.iter().find(|file| tree.path(file) == Path::new(path))?;
        Some(file.fate)
    }

    #[test]
    fn a_directory_is_emptied_once_in_a_layer() {
        const FILES: usize = 1000;
        let file = || Kind::File { sparse: None };
        let mut tree = Tree::new("i", TREE_BYTES_MAX);
        tree.begin(0);
        for n in 0..FILES {
            add(&mut tree, &format!("a/b/old{n}"), file()).unwrap();
        }
        tree.end();
        tree.begin(1);
        for n in 0..FILES {
            add(&mut tree, &format!("a/b/c/new{n}"), file()).unwrap();
            add(&mut tree, "a/.wh..wh..opq", file()).unwrap();
            add(&mut tree, "a/.wh.b", file()).unwrap();
            add(&mut tree, "a/b/.wh..wh..opq", file()).unwrap();
        }
        assert_eq!(tree.end().removals, 3 * FILES as u64);
        assert!(tree.visited <= FILES + 3, "{}", tree.visited);
        let fates = |wanted: Fate| tree.files.iter().filter(|file| file.fate == wanted).count();
        assert_eq!((fates(Fate::Deleted { by: 1 }), fates(Fate::Seen)), (FILES, FILES));
        // The next layer begins anew.
        tree.begin(2);
        add(&mut tree, "a/b/c/kept", file()).unwrap();
        add(&mut tree, "a/.wh..wh..opq", file()).unwrap();
        tree.end();
        assert_eq!(fate(&tree, "a/b/c/new7"), Some(Fate::Deleted { by: 2 }));
        assert_eq!(fate(&tree, "a/b/c/kept"), Some(Fate::Seen));
    }

    #[test]
    fn memory_has_a_limit() {
        let mut tree = Tree::new("sha256:abc", 1 << 20);
        tree.begin(0);
        let name = |n: usize| format!("{n}/{}", "x".repeat(200));
        let mut count = 0;
        let error = loop {
            if let Err(error) = add(&mut tree, &name(count), Kind::Directory) {
                break error.to_string();
            }
            count += 1;
            assert!(count < 5000, "there is no limit");
        };
        assert!(count > 1000, "{count}");
        assert!(error.starts_with("image sha256:abc: ") && error.contains("1 MiB"), "{error}");
    }
}

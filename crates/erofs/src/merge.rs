use crate::{
    error::{Error, Result},
    tree::{Body, Bytes, DEPTH, Directory, Layer, Node, Part},
};

/// What lies below the layers of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing: what the layers hide is simply not there.
    Nothing,
    /// Other layers of an overlay, for which whiteouts and opaque marks are kept. Directories that are
    /// only implied look as nobody described them.
    Layers,
}

/// Layers merged into one tree, as an overlay mount of them would show it.
#[derive(Debug)]
pub struct Tree {
    pub(crate) nodes: Vec<Node>,
    base: Base,
    /// The sizes of each layer's two files.
    layers: Vec<(u64, u64)>,
}

impl Tree {
    /// A tree of no layers: an empty root.
    pub fn new(base: Base) -> Self {
        Self { nodes: vec![Node::implied()], base, layers: Vec::new() }
    }

    /// Puts a layer on top.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for more layers than an image can have devices, or an opaque root with
    /// layers below, which no overlay can express.
    pub fn add(&mut self, layer: Layer) -> Result<()> {
        let number = u32::try_from(self.layers.len()).ok().filter(|n| *n < 1 << 12);
        let number = number.ok_or_else(|| Error::unsupported("so many layers", "/"))?;
        self.layers.push((layer.tar_bytes, layer.extra_bytes));
        let mut moved = vec![None; layer.nodes.len()];
        if moved.is_empty() {
            return Err(Error::Contents("it has no root"));
        }
        moved[0] = Some(0);
        let mut merge = Merge { tree: self, from: layer.nodes, moved, number };
        let root = merge.take(0)?;
        if let Body::Directory(directory) = &root.body
            && directory.opaque
            && merge.tree.base == Base::Layers
        {
            return Err(Error::unsupported("an opaque root", "/"));
        }
        merge.directory(0, root, 0)
    }

    /// The image's devices beside the index itself, in the order in which a mount names them: number
    /// of the layer (the lowest is 0), and which of its files.
    pub fn devices(&self) -> Vec<(usize, Part)> {
        let mut devices = Vec::new();
        for (i, (_, extra_bytes)) in self.layers.iter().enumerate() {
            devices.push((i, Part::Tar));
            if *extra_bytes > 0 {
                devices.push((i, Part::Extra));
            }
        }
        devices
    }

    pub(crate) fn device_bytes(&self, (layer, part): (usize, Part)) -> u64 {
        let (tar, extra) = self.layers.get(layer).copied().unwrap_or_default();
        match part {
            Part::Tar => tar,
            Part::Extra => extra,
        }
    }

    fn directory(&mut self, id: u32) -> Option<&mut Directory> {
        match self.nodes.get_mut(id as usize).map(|node| &mut node.body) {
            Some(Body::Directory(directory)) => Some(directory),
            _ => None,
        }
    }

    fn add_node(&mut self, node: Node) -> Result<u32> {
        let id = u32::try_from(self.nodes.len());
        let id = id.map_err(|_| Error::unsupported("so many entries", "/"))?;
        self.nodes.push(node);
        Ok(id)
    }
}

struct Merge<'t> {
    tree: &'t mut Tree,
    from: Vec<Node>,
    /// Where a node went that has more than one name.
    moved: Vec<Option<u32>>,
    number: u32,
}

impl Merge<'_> {
    fn take(&mut self, id: u32) -> Result<Node> {
        let node = self.from.get_mut(id as usize);
        let node = node.ok_or(Error::Contents("a name leads nowhere"))?;
        Ok(std::mem::replace(node, Node::whiteout()))
    }

    /// Merges the layer's directory `node` into the tree's directory `target`.
    fn directory(&mut self, target: u32, node: Node, depth: usize) -> Result<()> {
        let Body::Directory(upper) = node.body else {
            return Err(Error::Contents("a directory is none"));
        };
        if depth > DEPTH {
            return Err(Error::Contents("its directories lie too deep"));
        }
        let below = self.tree.base == Base::Layers;
        if let Some(lower) = self.tree.directory(target) {
            if upper.opaque {
                lower.opaque = below;
                lower.children.clear();
            }
            lower.implied &= upper.implied;
        }
        if !upper.implied {
            self.tree.nodes[target as usize].meta = node.meta;
        }
        for (name, id) in upper.children {
            self.child(target, name, id, depth)?;
        }
        Ok(())
    }

    fn child(&mut self, target: u32, name: Bytes, id: u32, depth: usize) -> Result<()> {
        let present = self.tree.directory(target).and_then(|d| d.children.get(&name).copied());
        if let Some(Some(id)) = self.moved.get(id as usize).copied() {
            return self.name(target, name, id);
        }
        let mut node = self.take(id)?;
        match &mut node.body {
            Body::Whiteout => {
                let keep = self.tree.base == Base::Layers
                    && !self.tree.directory(target).is_some_and(|d| d.opaque);
                if keep {
                    let id = self.tree.add_node(node)?;
                    return self.name(target, name, id);
                }
                if let Some(directory) = self.tree.directory(target) {
                    directory.children.remove(&name);
                }
                Ok(())
            }
            Body::Directory(_) => {
                let into = match present.filter(|id| self.tree.directory(*id).is_some()) {
                    Some(id) => id,
                    None => self.fresh(target, name, present.is_some())?,
                };
                self.directory(into, node, depth + 1)
            }
            body => {
                if let Body::File { layer, .. } = body {
                    *layer = self.number;
                }
                let new = self.tree.add_node(node)?;
                if let Some(slot) = self.moved.get_mut(id as usize) {
                    *slot = Some(new);
                }
                self.name(target, name, new)
            }
        }
    }

    /// Makes a directory that looks as nobody described it until its entry is known.
    fn fresh(&mut self, target: u32, name: Bytes, hides: bool) -> Result<u32> {
        let mut fresh = Node::implied();
        if let Body::Directory(directory) = &mut fresh.body {
            // It must not merge with what a whiteout or a file hid until now.
            directory.opaque = hides && self.tree.base == Base::Layers;
        }
        let id = self.tree.add_node(fresh)?;
        self.name(target, name, id)?;
        Ok(id)
    }

    fn name(&mut self, target: u32, name: Bytes, id: u32) -> Result<()> {
        let directory = self.tree.directory(target);
        directory.ok_or(Error::Contents("a directory is none"))?.children.insert(name, id);
        Ok(())
    }
}

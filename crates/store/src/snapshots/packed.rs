//! Layers that are never unpacked: each is its tar, kept as one file, and a table of contents beside
//! it; the topmost of an image has an EROFS index too, which shows all layers from itself down and
//! points into their tars. That is mounted once, below the state, and shared by all that stand on it.
//!
//! `snapshots/N/layer.tar`, `layer.extra` (what an index cannot point at in the tar, if anything),
//! `layer.toc` and `index` (both end with their hash, and are made anew when that does not match).

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{BufReader, BufWriter, Read, Write},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Mutex,
};

use erofs::{Base, Layer, Tree};
use rustix::{
    io::Errno,
    mount::{self as m, FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags},
};
use sha2::{Digest as _, Sha256};
use store_api::{Descriptor, Usage};
use types::Digest;

use super::{Disk, PackedLayer, SnapshotRecord, sparse::Sparse};
use crate::{
    Config, Core, LayerForm, Purpose,
    content::{BUFFER_BYTES, open_regular},
    db::{Table, lock},
    diffs::is_layer,
    error::{Error, Result},
    found,
    hashing::Hashing,
    streams::Watched,
};

pub(super) const TAR: &str = "layer.tar";
pub(super) const EXTRA: &str = "layer.extra";
pub(super) const CONTENTS: &str = "layer.toc";
pub(super) const INDEX: &str = "index";
const HASH_BYTES: usize = 32;
/// What the probe's file holds.
const PROBE: &[u8] = b"never unpacked\n";

/// Where a layer goes.
pub(crate) struct Place<'a> {
    pub(crate) expected: &'a Digest,
    pub(crate) parent: Option<&'a str>,
    pub(crate) chain_id: &'a str,
}

/// The mounts of layers that are never unpacked.
pub(crate) struct Packed {
    /// `STATE/layers`.
    directory: PathBuf,
    /// Do new layers take this form?
    enabled: bool,
    mounted: Mutex<BTreeMap<u64, Mounted>>,
    purpose: Purpose,
}

/// How a mount is reached.
enum Mounted {
    /// At `STATE/layers/N`.
    Attached,
    /// By a descriptor of this process, with which it goes: `fsck` makes no mount points.
    Own(OwnedFd),
}

impl Packed {
    pub(crate) fn open(config: &Config) -> Result<Self> {
        let directory = config.state.join("layers");
        if config.purpose != Purpose::Serve {
            let mounted = Mutex::default();
            return Ok(Self { directory, enabled: false, mounted, purpose: config.purpose });
        }
        fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        // Mounts are told by their paths, which others may know in another form.
        let directory = directory.canonicalize().map_err(Error::io("resolve", &directory))?;
        let mut packed = Self {
            directory,
            enabled: matches!(config.layers, LayerForm::Index | LayerForm::Best),
            mounted: Mutex::default(),
            purpose: config.purpose,
        };
        packed.clear()?;
        if !packed.enabled {
            return Ok(packed);
        }
        // Mounts of containers name what is mounted below the state.
        let tried = crate::check_root(&config.state).and_then(|()| probe(&config.root));
        match tried {
            Ok(()) => Ok(packed),
            Err(error) if config.layers == LayerForm::Best => {
                let error = store_api::Error::from(error);
                tracing::info!(reason = %error, "layers are extracted: their index cannot be mounted");
                packed.enabled = false;
                Ok(packed)
            }
            Err(error) => Err(error),
        }
    }

    /// Do new layers stay packed, where what they stand on is?
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Takes away what an earlier store mounted. Nobody needs it: what is mounted on it holds it.
    fn clear(&self) -> Result<()> {
        let entries = fs::read_dir(&self.directory).map_err(Error::io("list", &self.directory))?;
        for entry in entries.filter_map(|entry| entry.ok()) {
            unmount(&entry.path())?;
        }
        Ok(())
    }

    fn point(&self, id: u64) -> PathBuf {
        self.directory.join(id.to_string())
    }

    /// Whose mount a path is.
    pub(super) fn id_of(&self, path: &Path) -> Option<u64> {
        path.strip_prefix(&self.directory).ok()?.to_str()?.parse().ok()
    }

    /// Detaches a layer's mount, if it has one.
    pub(crate) fn release(&self, id: u64) -> Result<()> {
        match lock(&self.mounted).remove(&id) {
            Some(Mounted::Attached) => unmount(&self.point(id)),
            Some(Mounted::Own(_)) | None => Ok(()),
        }
    }

    /// The root of a layer that is mounted.
    fn root(&self, id: u64) -> Option<PathBuf> {
        lock(&self.mounted).get(&id).map(|mounted| match mounted {
            Mounted::Attached => self.point(id),
            // The dot: what is opened is the directory, not the link that leads there.
            Mounted::Own(fd) => PathBuf::from(format!("/proc/self/fd/{}/.", fd.as_raw_fd())),
        })
    }

    /// Are the files of a layer there in full?
    ///
    /// # Errors
    /// When that cannot be told.
    fn is_whole_at(directory: &Path, layer: &PackedLayer) -> Result<bool> {
        let has = |name: &str, bytes: u64| {
            let found = found::metadata(&directory.join(name))?;
            Ok::<_, Error>(found.is_some_and(|file| file.is_file() && file.len() == bytes))
        };
        Ok(has(TAR, layer.tar_bytes)? && (layer.extra_bytes == 0 || has(EXTRA, layer.extra_bytes)?))
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        let mounted: Vec<u64> = lock(&self.mounted).keys().copied().collect();
        for id in mounted {
            if let Err(error) = self.release(id) {
                let error = store_api::Error::from(error);
                tracing::warn!(error = %error, "a mount of layers stays behind");
            }
        }
    }
}

/// Detaches everything at a mount point and removes it.
fn unmount(point: &Path) -> Result<()> {
    loop {
        match m::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(errno) => return Err(Error::sys("unmount", point)(errno)),
        }
    }
    match fs::remove_dir(point) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", point)(error))
        }
        _ => Ok(()),
    }
}

/// Makes a mount of an index and its devices that is not attached anywhere yet.
fn mount(index: &Path, devices: &[PathBuf]) -> Result<OwnedFd> {
    let failed = |op| Error::sys(op, index);
    let context =
        m::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("open erofs for"))?;
    let set = |key: &str, path: &Path| {
        m::fsconfig_set_string(context.as_fd(), key, path)
            .map_err(Error::sys("name to erofs", path))
    };
    set("source", index)?;
    for device in devices {
        set("device", device)?;
    }
    m::fsconfig_set_flag(context.as_fd(), "ro").map_err(failed("mount read-only"))?;
    m::fsconfig_create(context.as_fd()).map_err(failed("mount erofs of"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    m::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(failed("mount erofs of"))
}

/// Tries whether this kernel mounts an index that is a file and points into a file, both where the
/// store's are.
fn probe(root: &Path) -> Result<()> {
    let scratch = tempfile::Builder::new()
        .prefix("probe-")
        .tempdir_in(root.join("tmp"))
        .map_err(Error::io("create a directory in", root.join("tmp")))?;
    let mut entry = archive::Entry::new("probe", archive::Kind::File { sparse: None });
    entry.size = u64::try_from(PROBE.len()).unwrap_or(0);
    let mut tar = archive::TarWriter::new(Vec::new());
    let tar = tar.append(&entry, PROBE).and_then(|()| tar.finish());
    let tar = tar.map_err(Error::archive("make", "a layer to try erofs with"))?;
    let path = scratch.path().join(TAR);
    fs::write(&path, &tar).map_err(Error::io("write", &path))?;
    let failed = || Error::index("make", "an index to try erofs with");
    let mut tree = Tree::new(Base::Nothing);
    let scanned = erofs::scan(&tar[..], &mut std::io::sink()).map_err(failed())?;
    tree.add(scanned.layer).map_err(failed())?;
    let index = scratch.path().join(INDEX);
    write_index(&tree, &index)?;
    let mounted = mount(&index, std::slice::from_ref(&path))?;
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::openat(&mounted, "probe", flags, rustix::fs::Mode::empty())
        .map_err(Error::sys("open a file through", &index))?;
    let mut found = Vec::new();
    File::from(file).read_to_end(&mut found).map_err(Error::io("read through", &index))?;
    if found != PROBE {
        return Err(Error::precondition("erofs shows other bytes than its device has"));
    }
    Ok(())
}

/// Writes an index and its hash under a temporary name, and puts it into place.
pub(super) fn write_index(tree: &Tree, path: &Path) -> Result<()> {
    let temporary = path.with_extension("new");
    faults::write("index.write").map_err(Error::io("write", &temporary))?;
    let file = create(&temporary)?;
    let mut out =
        Summing { inner: BufWriter::with_capacity(BUFFER_BYTES, file), sum: Sha256::new() };
    erofs::write(tree, &mut out).map_err(Error::index("write", temporary.display()))?;
    let Summing { mut inner, sum } = out;
    inner
        .write_all(&sum.finalize())
        .and_then(|()| inner.flush())
        .map_err(Error::io("write", &temporary))?;
    faults::write("index.rename")
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(Error::io("rename", path))
}

/// Does a file end with the hash of what comes before?
fn is_intact(path: &Path) -> bool {
    let Ok(bytes) = read_regular(path) else { return false };
    let Some(split) = bytes.len().checked_sub(HASH_BYTES) else { return false };
    let (body, hash) = bytes.split_at(split);
    Sha256::digest(body)[..] == *hash
}

fn create(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).map_err(Error::io("create", path))
}

struct Summing<W> {
    inner: W,
    sum: Sha256,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.sum.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Writes what is read through it to a file. A layer may have any number of zeros after its archive's end:
/// they are a part of it, and only their number is kept.
struct Tee<'f, R> {
    inner: R,
    file: Sparse<'f>,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.file.put(&buffer[..n])?;
        Ok(n)
    }
}

/// A layer's extra file, which most do without: made with its first byte.
struct Extra {
    path: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Write for Extra {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(true).mode(0o600);
                self.file.insert(BufWriter::new(options.open(&self.path)?))
            }
        };
        file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.as_mut().map_or(Ok(()), BufWriter::flush)
    }
}

/// Reads a tar into the table of contents and the extra file of a layer's directory.
pub(super) fn scan<R: Read>(tar: R, directory: &Path) -> Result<(Layer, R), erofs::Error> {
    let failed = |what| move |source| erofs::Error::Write { what, source };
    let mut extra = Extra { path: directory.join(EXTRA), file: None };
    let scanned = erofs::scan(tar, &mut extra)?;
    extra.flush().map_err(failed("a layer's extra data"))?;
    faults::write("packed.contents").map_err(failed("a table of contents"))?;
    let contents = File::create(directory.join(CONTENTS)).map_err(failed("a table of contents"))?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, contents);
    scanned.layer.encode(&mut out)?;
    out.flush().map_err(failed("a table of contents"))?;
    Ok((scanned.layer, scanned.reader))
}

/// All of a file, if it is one.
pub(super) fn read_regular(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Gives a file a second name. What else lies there gets none.
fn link_regular(from: &Path, to: &Path) -> bool {
    if open_regular(from).is_err() || fs::hard_link(from, to).is_err() {
        return false;
    }
    if open_regular(to).is_ok() {
        return true;
    }
    // It has been exchanged since; what cannot be removed stands in the way of the copy, which says so.
    drop(fs::remove_file(to));
    false
}

impl Disk {
    /// A layer's contents, from the tar itself if its table is damaged.
    fn contents(&self, record: &SnapshotRecord) -> Result<Layer> {
        let directory = self.directory(record.id);
        let path = directory.join(CONTENTS);
        let damage = match read_regular(&path) {
            Ok(bytes) => match Layer::decode(&bytes) {
                Ok(layer) => return Ok(layer),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        tracing::warn!(path = %path.display(), error = damage, "a table of contents is made again");
        let tar = directory.join(TAR);
        let file = open_regular(&tar).map_err(Error::io("open", &tar))?;
        self.clear_way(&path)?;
        let scanned = scan(file, &directory);
        Ok(scanned.map_err(Error::index("read", tar.display()))?.0)
    }

    /// Blocks and inodes of a packed layer's own files.
    pub(crate) fn usage_packed(&self, id: u64) -> Result<Usage> {
        let directory = self.directory(id);
        let mut usage = Usage::default();
        for entry in fs::read_dir(&directory).map_err(Error::io("list", &directory))? {
            let metadata = entry.and_then(|entry| entry.metadata());
            usage.bytes += metadata.map_err(Error::io("stat", &directory))?.blocks() * 512;
            usage.inodes += 1;
        }
        Ok(usage)
    }

    /// The tar of a layer that is kept as one.
    pub(crate) fn packed_tar(&self, id: u64) -> PathBuf {
        self.directory(id).join(TAR)
    }

    /// Makes sure of the index of a layer and those below it; `records`: the topmost first.
    pub(super) fn index(&self, records: &[SnapshotRecord]) -> Result<PathBuf> {
        let Some(top) = records.first() else {
            return Err(Error::invalid("an index of no layers"));
        };
        let path = self.directory(top.id).join(INDEX);
        if !is_intact(&path) {
            if self.packed.purpose == Purpose::Check {
                return Err(Error::data_loss(format!("{} is damaged", path.display())));
            }
            let mut tree = Tree::new(Base::Nothing);
            for record in records.iter().rev() {
                let layer = self.contents(record)?;
                tree.add(layer).map_err(Error::index("index", record.id))?;
            }
            self.clear_way(&path)?;
            write_index(&tree, &path)?;
        }
        Ok(path)
    }

    /// Mounts a layer with those below it, if that is not done yet.
    fn mount_packed(&self, records: &[SnapshotRecord]) -> Result<PathBuf> {
        let Some(top) = records.first() else {
            return Err(Error::invalid("a mount of no layers"));
        };
        if let Some(root) = self.packed.root(top.id) {
            return Ok(root);
        }
        let index = self.index(records)?;
        let mut devices = Vec::new();
        for record in records.iter().rev() {
            let directory = self.directory(record.id);
            devices.push(directory.join(TAR));
            if record.packed.as_ref().is_some_and(|layer| layer.extra_bytes > 0) {
                devices.push(directory.join(EXTRA));
            }
        }
        for device in &devices {
            // The kernel would wait for a FIFO's writer.
            open_regular(device).map_err(Error::io("open", device))?;
        }
        let mounted = mount(&index, &devices)?;
        faults::pass("packed.mount");
        // Nobody else is here: the caller is alone with this layer.
        if self.packed.purpose == Purpose::Serve {
            let point = self.packed.point(top.id);
            let mut all = lock(&self.packed.mounted);
            fs::create_dir_all(&point).map_err(Error::io("create", &point))?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            m::move_mount(&mounted, "", rustix::fs::CWD, &point, flags)
                .map_err(Error::sys("mount on", &point))?;
            all.insert(top.id, Mounted::Attached);
            faults::pass("packed.mounted");
        } else {
            lock(&self.packed.mounted).insert(top.id, Mounted::Own(mounted));
        }
        let gone = || Error::not_found("mount of layer", top.id);
        self.packed.root(top.id).ok_or_else(gone)
    }

    /// Extracts a layer that is kept as its tar into a new directory on `lowers`, topmost first.
    pub(crate) fn extract_packed(
        &self,
        record: &SnapshotRecord,
        path: &Path,
        lowers: &[PathBuf],
    ) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        fs::create_dir(path).map_err(Error::io("create", path))?;
        let mut mode = 0o755;
        if let Some(below) = lowers.first() {
            let below = fs::metadata(below).map_err(Error::io("stat", below))?;
            std::os::unix::fs::chown(path, Some(below.uid()), Some(below.gid()))
                .map_err(Error::io("chown", path))?;
            mode = below.mode() & 0o7777;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(Error::io("chmod", path))?;
        let tar = self.directory(record.id).join(TAR);
        let file = open_regular(&tar).map_err(Error::io("open", &tar))?;
        let root = super::open_directory(path)?;
        let below = super::open_all(lowers)?;
        let below = super::borrow(&below);
        let mut options = crate::diffs::layer_options(&below, self.userxattr);
        archive::extract(file, root.as_fd(), &mut options)
            .map_err(Error::archive("extract", tar.display()))?;
        Ok(())
    }
}

impl SnapshotRecord {
    /// Is what the record needs on the disk there?
    ///
    /// # Errors
    /// When that cannot be told.
    pub(crate) fn is_whole(&self, directory: &Path) -> Result<bool> {
        self.packed.as_ref().map_or(Ok(true), |layer| Packed::is_whole_at(directory, layer))
    }
}

impl Core {
    /// Does a layer on this parent stay packed? Only on ones that are so too.
    pub(crate) fn takes_packed(&self, ns: &str, parent: Option<&str>) -> Result<bool> {
        if !self.disk.packed.enabled {
            return Ok(false);
        }
        parent.map_or(Ok(true), |parent| Ok(self.committed(ns, parent)?.packed.is_some()))
    }

    /// Stores a layer as its tar with a table of contents. `false`: it must be extracted, because an
    /// index cannot express it, or something is wrong with it that extraction tells better.
    pub(crate) fn pack_layer(
        &self,
        ns: &str,
        layer: &Descriptor,
        place: &Place<'_>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<bool> {
        if !is_layer(&layer.media_type) {
            return Ok(false);
        }
        let id = self.disk.create_empty()?;
        let directory = self.disk.directory(id);
        let packed = self.pack_into(ns, layer, place.expected, &directory, progress);
        let done = packed.and_then(|packed| {
            let Some(packed) = packed else { return Ok(false) };
            faults::pass("packed.written");
            self.commit_made(ns, place, id, Some(packed))?;
            faults::pass("packed.committed");
            Ok(true)
        });
        if !matches!(done, Ok(true)) {
            self.disk.discard(id)?;
        }
        done
    }

    /// Makes the files of a packed layer in a directory. `None`: it must be extracted.
    pub(super) fn pack_into(
        &self,
        ns: &str,
        layer: &Descriptor,
        expected: &Digest,
        directory: &Path,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Option<PackedLayer>> {
        let (blob, blob_bytes) = self.open_blob(ns, &layer.digest)?;
        let watched = Watched::new(BufReader::with_capacity(BUFFER_BYTES, blob), progress);
        let inflate = |input| Ok(self.inflation.inflate(input, blob_bytes)? as Box<dyn Read>);
        let packed = self.pack_stream(layer, expected, watched, inflate, true, directory)?;
        if let Some(packed) = &packed {
            self.check_layer(ns, layer, &packed.diff_id, expected)?;
        }
        Ok(packed)
    }

    /// The same from a stream, whose digest is not looked at. `share`: the layer's blob is here, and
    /// where it is the tar itself it is linked, not copied.
    pub(crate) fn pack_stream<'a, R: Read + 'a>(
        &self,
        layer: &Descriptor,
        expected: &Digest,
        input: R,
        inflate: impl FnOnce(R) -> std::io::Result<Box<dyn Read + 'a>>,
        share: bool,
        directory: &Path,
    ) -> Result<Option<PackedLayer>> {
        let path = directory.join(TAR);
        // What is not compressed is here already: its bytes are only read and hashed.
        let linked = share
            && layer.digest == *expected
            && link_regular(&self.blob_path(&layer.digest), &path);
        let (contents, diff_id) = if linked {
            match scan(Hashing::new(input), directory) {
                Ok((contents, tar)) => (contents, tar.finish().0),
                Err(error) => return unpackable(layer, error),
            }
        } else {
            faults::write("packed.tar").map_err(Error::io("create", &path))?;
            let mut file = create(&path)?;
            let tar = inflate(input).map_err(Error::stream("inflate layer", &layer.digest))?;
            let tee = Tee { inner: Hashing::new(tar), file: Sparse::new(&mut file) };
            match scan(tee, directory) {
                Ok((contents, tee)) => {
                    tee.file.finish().map_err(Error::io("write", &path))?;
                    (contents, tee.inner.finish().0)
                }
                Err(error) => return unpackable(layer, error),
            }
        };
        let (tar_bytes, extra_bytes) = (contents.tar_bytes(), contents.extra_bytes());
        Ok(Some(PackedLayer { diff_id, tar_bytes, extra_bytes }))
    }

    pub(super) fn packed_records(&self, ns: &str, chain: &[String]) -> Result<Vec<SnapshotRecord>> {
        chain.iter().map(|key| self.snapshot_record(ns, key)).collect()
    }

    /// The mounted root of packed layers; `chain`: the topmost first.
    pub(super) fn packed_root(&self, ns: &str, chain: &[String]) -> Result<PathBuf> {
        let records = self.packed_records(ns, chain)?;
        let id = records.first().map_or(0, |record| record.id);
        let point =
            self.flights.alone(&format!("layers {id}"), || self.disk.mount_packed(&records))?;
        // Who removed the layer meanwhile found no mount to take away.
        let top = chain.first().map_or("", String::as_str);
        match self.snapshot_record(ns, top) {
            Ok(record) if record.id == id => Ok(point),
            Ok(_) => {
                self.disk.packed.release(id)?;
                Err(Error::not_found("snapshot", top))
            }
            Err(error) => {
                if error.is_not_found() {
                    self.disk.packed.release(id)?;
                }
                Err(error)
            }
        }
    }

    /// Makes an image's index when its layers come, not when it is first used.
    pub(crate) fn prepare_index(&self, ns: &str, top: &str) -> Result<()> {
        let record = match self.snapshot_record(ns, top) {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        if record.packed.is_none() || self.disk.directory(record.id).join(INDEX).exists() {
            return Ok(());
        }
        let mut chain = vec![top.to_string()];
        chain.extend(self.snapshot_parents(ns, top)?);
        let records = self.packed_records(ns, &chain)?;
        self.flights.alone(&format!("layers {}", record.id), || self.disk.index(&records))?;
        Ok(())
    }

    /// The tar whose layer is all the difference between two sets of directories, if there is one.
    pub(crate) fn packed_difference(
        &self,
        ns: &str,
        below: &[PathBuf],
        above: &[PathBuf],
    ) -> Result<Option<PathBuf>> {
        let [above] = above else { return Ok(None) };
        let Some(id) = self.disk.packed.id_of(above) else { return Ok(None) };
        let below = match below {
            [] => None,
            [below] => match self.disk.packed.id_of(below) {
                Some(below) => Some(below),
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        let all = self.db.list::<SnapshotRecord>(Table::Snapshots, ns)?;
        let Some((_, record)) = all.iter().find(|(_, record)| record.id == id) else {
            return Ok(None);
        };
        let parent = record.parent.as_ref();
        let parent = parent.map(|parent| self.snapshot_record(ns, parent)).transpose()?;
        Ok((parent.map(|parent| parent.id) == below).then(|| self.disk.directory(id).join(TAR)))
    }
}

/// A failure that more room or another try can heal is one, and so is a layer that is too large in any form;
/// anything else is left to extraction.
fn unpackable(layer: &Descriptor, error: erofs::Error) -> Result<Option<PackedLayer>> {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let is_final =
        |io: &std::io::Error| matches!(io.kind(), StorageFull | QuotaExceeded | FileTooLarge);
    if error.io().is_some_and(is_final) {
        return Err(Error::index("keep layer", &layer.digest)(error));
    }
    tracing::debug!(layer = %layer.digest, error = %error, "a layer is extracted");
    Ok(None)
}

//! Layers onto directories and back.

use std::{
    io::BufReader,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use archive::{Below, Encoding, ExtractOptions, PackOptions, Whiteouts};
use store_api::{Descriptor, DiffRequest, Labels, Mount, media_type};
use types::Digest;

use crate::{
    Core,
    content::BUFFER_BYTES,
    error::{Error, Result},
    hashing::Hashing,
    snapshots::{Directories, borrow, open_all, open_directory},
    streams::Watched,
};

/// The label under which containerd keeps a compressed layer's diffID.
pub(crate) const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// gzip of new layers. dockerd takes 6; a build waits for this, so it is quicker and a little larger.
const GZIP_LEVEL: u32 = 3;
const ZSTD_LEVEL: i32 = 3;

/// What an extraction found the layer to be.
pub(crate) struct Extracted {
    pub(crate) diff_id: Digest,
    /// Bytes of the uncompressed tar.
    pub(crate) bytes: u64,
}

enum Difference {
    None,
    /// A directory on those below it, topmost first.
    Layer(OwnedFd, Vec<OwnedFd>),
    Trees(OwnedFd, OwnedFd),
    /// A layer that is kept as the tar that it came as.
    Tar(PathBuf),
    /// A layer that is here as it came.
    Blob(Digest),
}

impl Core {
    pub(crate) fn apply(
        &self,
        ns: &str,
        layer: &Descriptor,
        mounts: &[Mount],
    ) -> Result<Descriptor> {
        let read_only =
            || Error::invalid(format!("apply layer {}: the mounts are not writable", layer.digest));
        let done = match Directories::of(mounts)? {
            Some(Directories { upper: Some(upper), lowers, .. }) => {
                self.extract(ns, layer, &upper, &lowers, &|_| {})?
            }
            Some(_) => return Err(read_only()),
            None => {
                let root = self.mounted(mounts)?;
                self.extract_at(ns, layer, root.as_fd(), &[], &|_| {})?
            }
        };
        Ok(Descriptor::new(media_type::OCI_LAYER, done.diff_id, done.bytes))
    }

    /// Syncs what writes to these mounts go to.
    pub(crate) fn sync_mounts(&self, mounts: &[Mount]) -> Result<()> {
        let (name, root) = match Directories::of(mounts)? {
            Some(Directories { upper: Some(upper), .. }) => {
                let root = open_directory(&upper)?;
                (upper, root)
            }
            // Nothing can be written there.
            Some(_) => return Ok(()),
            None => (PathBuf::from("the mounts"), self.mounted(mounts)?),
        };
        rustix::fs::syncfs(&root).map_err(Error::sys("sync the file system of", name))
    }

    /// Makes mounts where nobody else sees them; they are gone with the descriptor.
    pub(crate) fn mounted(&self, mounts: &[Mount]) -> Result<OwnedFd> {
        let scratch = tempfile::Builder::new()
            .prefix("mount-")
            .tempdir_in(self.root.join("tmp"))
            .map_err(Error::io("create a directory in", self.root.join("tmp")))?;
        let specs = mounts
            .iter()
            .map(|mount| sys::private_mount::MountSpec {
                kind: mount.kind.clone(),
                source: mount.source.clone(),
                options: mount.options.clone(),
            })
            .collect();
        let path = scratch.path().to_path_buf();
        sys::private_mount::open_tree(specs, path).map_err(Error::io("mount on", scratch.path()))
    }

    /// Extracts a layer into `upper`, which lies on `lowers` (topmost first).
    pub(crate) fn extract(
        &self,
        ns: &str,
        layer: &Descriptor,
        upper: &std::path::Path,
        lowers: &[PathBuf],
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Extracted> {
        let root = open_directory(upper)?;
        let below = open_all(lowers)?;
        self.extract_at(ns, layer, root.as_fd(), &borrow(&below), progress)
    }

    pub(crate) fn extract_at(
        &self,
        ns: &str,
        layer: &Descriptor,
        root: BorrowedFd<'_>,
        below: &[BorrowedFd<'_>],
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Extracted> {
        if !is_layer(&layer.media_type) {
            return Err(Error::invalid(format!(
                "layer {}: media type {:?} is not supported",
                layer.digest, layer.media_type
            )));
        }
        let (blob, blob_bytes) = self.open_blob(ns, &layer.digest)?;
        let watched = Watched::new(BufReader::with_capacity(BUFFER_BYTES, blob), progress);
        let tar = self.inflation.inflate(watched, blob_bytes);
        let tar = tar.map_err(Error::stream("inflate layer", &layer.digest))?;
        let mut tar = Hashing::new(tar);
        let mut options = layer_options(below, self.disk.userxattr);
        archive::extract(&mut tar, root, &mut options)
            .map_err(Error::archive("extract layer", &layer.digest))?;
        let (diff_id, bytes, _) = tar.finish();
        Ok(Extracted { diff_id, bytes })
    }

    pub(crate) fn diff(&self, ns: &str, request: &DiffRequest) -> Result<Descriptor> {
        let kind = match request.media_type.as_str() {
            "" => media_type::OCI_LAYER_GZIP,
            other => other,
        };
        let difference = match request.clamp_mtime {
            // Layers that are here already have the times that they have.
            Some(_) => {
                Difference::Trees(self.mounted(&request.lower)?, self.mounted(&request.upper)?)
            }
            None => self.difference(ns, &request.lower, &request.upper)?,
        };
        let mut labels = request.labels.clone();
        self.write_layer(ns, kind, &request.reference, &mut labels, |writer| {
            let clamp_mtime = request.clamp_mtime;
            let mut options = PackOptions { clamp_mtime, ..PackOptions::default() };
            let failed = || Error::archive("diff", "the snapshot");
            match &difference {
                Difference::Layer(top, below) => {
                    let below = borrow(below);
                    let below = Below::Layers(&below);
                    archive::diff_overlay(top.as_fd(), below, &mut options, writer)
                        .map_err(failed())?;
                }
                Difference::Trees(lower, upper) => {
                    let (lower, upper) = (lower.as_fd(), upper.as_fd());
                    archive::diff_directories(lower, upper, &mut options, writer)
                        .map_err(failed())?;
                }
                Difference::Tar(path) => {
                    let mut tar = std::fs::File::open(path).map_err(Error::io("open", path))?;
                    std::io::copy(&mut tar, writer).map_err(Error::io("copy", path))?;
                }
                Difference::Blob(digest) => {
                    let failed = || Error::stream("copy layer", digest);
                    let (blob, blob_bytes) = self.open_blob(ns, digest)?;
                    let blob = BufReader::with_capacity(BUFFER_BYTES, blob);
                    let mut tar = self.inflation.inflate(blob, blob_bytes).map_err(failed())?;
                    std::io::copy(&mut tar, writer).map_err(failed())?;
                }
                Difference::None => {
                    archive::TarWriter::new(writer).finish().map_err(failed())?;
                }
            }
            Ok(())
        })
    }

    /// Of a committed layer and what it lies on the difference is the layer itself, of any other snapshot
    /// and its parent it is in the writable layer; other mounts are made and compared. Which of these it is
    /// makes no difference to what is written, but for layers that others wrote in a way of their own.
    fn difference(&self, ns: &str, lower: &[Mount], upper: &[Mount]) -> Result<Difference> {
        if let (Some(below), Some(above)) = (Directories::of(lower)?, Directories::of(upper)?) {
            let (below, above) = (below.all(), above.all());
            if above == below {
                return Ok(Difference::None);
            }
            if let Some(tar) = self.packed_difference(ns, &below, &above)? {
                return Ok(Difference::Tar(tar));
            }
            if let Some(layer) = self.layer_between(ns, &below, &above)? {
                return Ok(Difference::Blob(layer));
            }
            if let Some((top, rest)) = above.split_first()
                && rest == below
            {
                return Ok(Difference::Layer(open_directory(top)?, open_all(rest)?));
            }
        }
        Ok(Difference::Trees(self.mounted(lower)?, self.mounted(upper)?))
    }

    /// Stores the tar that `pack` writes as a layer of a media type; `labels` get its diffID.
    pub(crate) fn write_layer(
        &self,
        ns: &str,
        kind: &str,
        reference: &str,
        labels: &mut Labels,
        pack: impl FnOnce(&mut dyn std::io::Write) -> Result<()>,
    ) -> Result<Descriptor> {
        let encoding = match kind {
            media_type::OCI_LAYER | media_type::DOCKER_LAYER => Encoding::None,
            media_type::OCI_LAYER_GZIP | media_type::DOCKER_LAYER_GZIP => {
                Encoding::Gzip { level: GZIP_LEVEL }
            }
            media_type::OCI_LAYER_ZSTD => Encoding::Zstd { level: ZSTD_LEVEL },
            other => {
                return Err(store_api::Error::not_implemented(format!(
                    "a layer of type {other:?}"
                ))
                .into());
            }
        };
        let writer = if reference.is_empty() {
            self.ingest_anonymous(ns)?
        } else {
            self.ingest_named(ns, reference)?
        };
        let buffered = std::io::BufWriter::with_capacity(BUFFER_BYTES, writer);
        let failed = |op| Error::stream(op, "layer");
        let compressor = archive::compress(buffered, encoding).map_err(failed("compress"))?;
        let mut hashing = Hashing::new(std::io::BufWriter::with_capacity(BUFFER_BYTES, compressor));
        pack(&mut hashing)?;
        let (diff_id, _, compressor) = hashing.finish();
        let compressor = compressor.into_inner().map_err(|e| failed("write")(e.into_error()))?;
        let buffered = compressor.finish().map_err(failed("compress"))?;
        let writer = buffered.into_inner().map_err(|e| failed("write")(e.into_error()))?;
        let size = writer.len();
        labels.insert(UNCOMPRESSED.into(), diff_id.to_string());
        faults::pass("diff.packed");
        let digest = writer.commit(None, labels.clone())?;
        Ok(Descriptor::new(kind, digest, size))
    }
}

/// How a layer is extracted on the roots of those below it, topmost first.
pub(crate) fn layer_options<'a>(
    below: &'a [BorrowedFd<'a>],
    userxattr: bool,
) -> ExtractOptions<'a> {
    ExtractOptions {
        whiteouts: if below.is_empty() {
            Whiteouts::Remove
        } else {
            Whiteouts::Overlay { userxattr }
        },
        root_metadata: true,
        lowers: below,
        ..ExtractOptions::default()
    }
}

/// Layers in tar form, whatever their compression: it is told from their bytes.
pub(crate) fn is_layer(kind: &str) -> bool {
    kind.starts_with(media_type::OCI_LAYER)
        || kind.starts_with("application/vnd.oci.image.layer.nondistributable.v1.tar")
        || matches!(
            kind,
            media_type::DOCKER_LAYER
                | media_type::DOCKER_LAYER_GZIP
                | media_type::DOCKER_FOREIGN_LAYER_GZIP
                | "application/vnd.docker.image.rootfs.diff.tar.zstd"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar"
        )
}

use std::path::PathBuf;

use types::{Digest, Platform};

use crate::Descriptor;

/// Files named per layer and per kind of waste at most.
pub const EXAMPLES_MAX: usize = 1000;

#[derive(Clone, Debug)]
pub struct AnalysisRequest {
    /// Manifest or index.
    pub target: Digest,
    pub platform: Option<Platform>,
    /// Files named per layer and per kind of waste, at most [`EXAMPLES_MAX`].
    pub examples: usize,
}

/// What each layer of an image brings, and what of it is of no use. Bytes are those of regular files as
/// the layers' tars have them: without holes, and once for all names of a file. Of every layer's added
/// bytes each is either seen in the image, or was overwritten, or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageAnalysis {
    pub manifest: Descriptor,
    pub config: Descriptor,
    /// Bottom first.
    pub layers: Vec<LayerAnalysis>,
    /// The largest first. No byte is counted by two of them.
    pub waste: Vec<Waste>,
    /// What is seen in the image.
    pub seen_bytes: u64,
    pub seen_files: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerAnalysis {
    pub blob: Descriptor,
    pub diff_id: Digest,
    pub added_bytes: u64,
    /// Regular files, not counting further names.
    pub files: u64,
    /// Whiteouts and opaque marks.
    pub removals: u64,
    /// Of the added bytes those that this or a later layer wrote anew.
    pub overwritten_bytes: u64,
    /// Of the added bytes those that a later layer deleted.
    pub deleted_bytes: u64,
    /// The largest first.
    pub largest: Vec<LayerFile>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFile {
    pub path: PathBuf,
    pub bytes: u64,
    pub fate: Fate,
}

/// What became of a layer's file; layers are counted from 0, the bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Seen,
    Overwritten { by: usize },
    Deleted { by: usize },
}

/// Bytes that an image could do without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waste {
    pub kind: WasteKind,
    /// The layer whose bytes these are.
    pub layer: usize,
    /// The layer that made them useless, or has the original of a copy.
    pub by: Option<usize>,
    pub bytes: u64,
    pub files: u64,
    /// The largest first.
    pub examples: Vec<WastedFile>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WastedFile {
    pub path: PathBuf,
    pub bytes: u64,
    /// [`WasteKind::Copied`]: the other file.
    pub original: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WasteKind {
    /// Deleted by a later layer.
    Deleted,
    /// Written anew with other content.
    Overwritten,
    /// Written anew with the same content; what changed between the two at some file.
    Rewritten { owner: bool, mode: bool },
    /// The same content under another name, both seen.
    Copied,
    /// What a tool keeps for its next run.
    Cache(Cache),
}

/// Whose files are not needed to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cache {
    AptLists,
    Apt,
    Apk,
    Dnf,
    Pip,
    Npm,
    Yarn,
    Go,
    Cargo,
    Temporary,
}

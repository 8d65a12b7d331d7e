use std::{io, path::PathBuf};

/// What is wrong with a header or an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("the checksum does not match")]
    Checksum,
    #[error("the {0} field is not a number")]
    Number(&'static str),
    #[error("the {0} is out of range")]
    Range(&'static str),
    #[error("a single zero block is followed by data")]
    LoneZeroBlock,
    #[error("entry type {0:#04x} is not supported")]
    Type(u8),
    #[error("{0} entries are not supported")]
    Unsupported(&'static str),
    #[error("an entry of this type has no data, but its size is not zero")]
    SizeOfDataless,
    #[error("two extension headers of the same type describe one entry")]
    DuplicateExtension,
    #[error("an extension header is not followed by an entry")]
    DanglingExtension,
    #[error("the extended header is malformed")]
    Pax,
    #[error("the global extended header sets {0}, which only one entry can have")]
    PaxGlobal(&'static str),
    #[error("the sparse map is malformed")]
    Sparse,
    #[error("the name is empty")]
    EmptyName,
    #[error("the name holds a zero byte")]
    NulInName,
    #[error("the name holds \"..\"")]
    ParentInName,
    #[error("the root is not a directory in this archive")]
    RootNotDirectory,
    #[error("the link has no target")]
    EmptyLink,
    #[error("the link target holds \"..\"")]
    ParentInLink,
    #[error("a whiteout names nothing that can be removed")]
    WhiteoutName,
    #[error("a 0:0 character device would act as a whiteout")]
    WhiteoutDevice,
    #[error("device nodes are not allowed here")]
    DeviceRefused,
    #[error("its owner {0} has no place in the id map")]
    UnmappedOwner(u32),
    #[error("cannot overwrite directory with non-directory")]
    NonDirectoryOverDirectory,
    #[error("cannot overwrite non-directory with directory")]
    DirectoryOverNonDirectory,
    #[error("overlay attribute {0:?} means that the directory is not complete by itself")]
    OverlayFeature(&'static str),
    #[error("its type cannot be stored in a tar")]
    FileType,
    #[error("its data has another length than its size says")]
    DataLength,
}

/// Why an archive was not read, written, extracted or packed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading the archive at byte {offset}")]
    Read { offset: u64, source: io::Error },
    #[error("the archive ends in the middle of an entry, at byte {offset}")]
    Truncated { offset: u64 },
    #[error("archive header at byte {offset}: {problem}")]
    Header { offset: u64, problem: Problem },
    #[error("archive entry {}: {problem}", name.display())]
    Entry { name: PathBuf, problem: Problem },
    #[error("the archive exceeds the limit of {limit} {what}")]
    Limit { what: &'static str, limit: u64 },
    #[error("{operation} {}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("writing the archive")]
    Write { source: io::Error },
    #[error("reading the data of {}", name.display())]
    Data { name: PathBuf, source: io::Error },
}

impl Error {
    pub(crate) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::File { operation, path: path.into(), source: source.into() }
    }

    pub(crate) fn entry(name: impl Into<PathBuf>, problem: Problem) -> Self {
        Self::Entry { name: name.into(), problem }
    }

    /// The failed system call's error, if there is one (for ENOSPC and the like).
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Read { source, .. }
            | Self::File { source, .. }
            | Self::Write { source }
            | Self::Data { source, .. } => Some(source),
            _ => None,
        }
    }
}

//! The build context: opened, or unpacked from a tar; its Dockerfile and `.dockerignore`.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use dockerfile::ignore::{FILE_BYTES, Matcher};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::{
    api::Context,
    cache::Cache,
    error::{Error, Result},
    files,
    hashes::Memo,
    key,
    select::Root,
    tree::{self, Kind},
};

/// An opened context.
pub(crate) struct Opened {
    pub(crate) root: Root,
    pub(crate) dockerfile: String,
    /// What tells this context from others; `None` for one that comes as a tar each time.
    pub(crate) identity: Option<String>,
}

/// Opens the context and reads what steers the build. `scratch` is this build's own directory.
///
/// # Errors
/// A missing Dockerfile, a malformed `.dockerignore`, a tar that cannot be unpacked.
pub(crate) fn open(
    context: &Context,
    dockerfile: &str,
    scratch: &Path,
    cache: &Cache,
) -> Result<Opened> {
    let (fd, lasting) = match context {
        Context::None => {
            return Err(Error::Invalid("the build has no context and no Dockerfile".into()));
        }
        Context::Dir(path) => {
            let fd = rustix::fs::open(path, directory(), Mode::empty());
            (fd.map_err(Error::errno("open build context", path))?, true)
        }
        Context::Fd(fd) => {
            let fd = rustix::fs::openat(fd, ".", directory(), Mode::empty());
            (fd.map_err(Error::errno("open build context", "."))?, true)
        }
        Context::Tar(path) => (unpack(path, &scratch.join("context"))?, false),
    };
    let (name, text) = read_dockerfile(fd.as_fd(), dockerfile)?;
    let ignore = read_ignore(fd.as_fd(), &name)?;
    let node = tree::node(fd.as_fd(), Path::new("")).map_err(Error::errno("look up", "."))?;
    let identity = lasting.then(|| format!("{}:{}", node.dev, node.ino));
    let memo = identity.as_deref().map(|id| cache.dir("hashes").join(key::fingerprint(&[id])));
    let root = Root { fd, ignore, memo: Memo::open(memo), stage: None };
    Ok(Opened { root, dockerfile: text, identity })
}

fn directory() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

fn unpack(tar: &Path, to: &Path) -> Result<OwnedFd> {
    files::private_dir(to).map_err(Error::io("create", to))?;
    let root = rustix::fs::open(to, directory(), Mode::empty())
        .map_err(Error::errno("open directory", to))?;
    let file = File::open(tar).map_err(Error::io("open build context", tar))?;
    let stream = archive::decompress(std::io::BufReader::with_capacity(1 << 18, file))
        .map_err(Error::io("read build context", tar))?;
    let mut options = archive::ExtractOptions {
        owner: archive::Owner::Ignore,
        devices: archive::Devices::Skip,
        root_metadata: false,
        ..archive::ExtractOptions::default()
    };
    archive::extract(stream, root.as_fd(), &mut options).map_err(|source| Error::Archive {
        op: "unpack build context",
        path: tar.into(),
        source,
    })?;
    Ok(root)
}

/// Answers the file's path and text. `dockerfile` serves where `Dockerfile` is asked for and missing.
fn read_dockerfile(root: BorrowedFd<'_>, name: &str) -> Result<(String, String)> {
    let name = if name.is_empty() { "Dockerfile" } else { name };
    let mut found = read_text(root, name, dockerfile::FILE_BYTES)?;
    let mut used = name;
    if found.is_none() && name == "Dockerfile" {
        used = "dockerfile";
        found = read_text(root, used, dockerfile::FILE_BYTES)?;
    }
    match found {
        Some(text) => Ok((used.into(), text)),
        None => Err(Error::NoDockerfile(name.into())),
    }
}

/// `NAME.dockerignore` beside the Dockerfile wins.
fn read_ignore(root: BorrowedFd<'_>, dockerfile: &str) -> Result<Matcher> {
    for name in [format!("{dockerfile}.dockerignore"), ".dockerignore".into()] {
        if let Some(text) = read_text(root, &name, FILE_BYTES)? {
            return Matcher::parse(&text).map_err(|source| Error::Ignore(name, source));
        }
    }
    Ok(Matcher::default())
}

/// A text file within the context; `None` if it is not there.
fn read_text(root: BorrowedFd<'_>, name: &str, limit: usize) -> Result<Option<String>> {
    let (path, node) = match tree::resolve(root, &tree::inside(name), true) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(Error::errno("look up", name)(errno)),
    };
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    if node.kind != Kind::File || node.size > limit {
        return Err(Error::DockerfileText(name.into()));
    }
    let file = tree::open_file(root, &path).map_err(Error::errno("open", name))?;
    let mut bytes = Vec::new();
    File::from(file).take(limit).read_to_end(&mut bytes).map_err(Error::io("read", name))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

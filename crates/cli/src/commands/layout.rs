//! OCI image layouts (image-spec 1.1 "Image Layout") as directories: `load -i DIR` and
//! `save --format oci-dir -o DIR`. Docker's client reads and writes archives alone.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use archive::{Entry, Kind, Limits, TarReader, TarWriter};
use bytes::Bytes;
use client::{Body, ByteStream};
use futures_util::StreamExt;
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};
use tokio::sync::mpsc;
use types::{Digest, Digester, limits};

use crate::commands::transfer::writer_body;
use crate::error::{Error, Result};

/// Files of a layout at most: the engine reads no more of one archive.
const FILES: usize = 16 << 10;
/// Blobs that are named when they are left out; of more only the number is told.
const NAMED: usize = 5;
/// Pieces that wait for the disk.
const QUEUE_CHUNKS: usize = 8;
const COPY_BYTES: usize = 128 << 10;
/// The files beside the blobs.
const OWN: [&str; 2] = ["index.json", "oci-layout"];

/// A layout that is to be sent.
pub(crate) struct Layout {
    root: OwnedFd,
    path: PathBuf,
    /// In the order in which they are sent, always the same.
    files: Vec<String>,
    /// What has no name of a blob and is left out.
    pub(crate) skipped: Vec<String>,
}

/// Looks what is in a layout. Links are not followed: a layout that somebody else made could lead to any
/// file of who loads it.
///
/// # Errors
/// For a directory that is no layout, and for links, devices and the like in it.
pub(crate) fn open(path: &Path) -> Result<Layout> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| Error::file("open", path)(errno.into()))?;
    let mut layout = Layout { root, path: path.to_owned(), files: Vec::new(), skipped: Vec::new() };
    for name in OWN {
        if !layout.has(name)? {
            return Err(Error::Invalid(format!(
                "{} is no OCI image layout: it has no {name} (other archives are read from a file, not from a directory)",
                path.display()
            )));
        }
        layout.files.push(name.to_owned());
    }
    for algorithm in layout.names("blobs")? {
        let directory = format!("blobs/{algorithm}");
        for hex in layout.names(&directory)? {
            let file = format!("{directory}/{hex}");
            if format!("{algorithm}:{hex}").parse::<Digest>().is_err() {
                layout.skipped.push(file);
            } else if layout.has(&file)? {
                layout.files.push(file);
            }
            if layout.files.len() > FILES {
                return Err(Error::Invalid(format!(
                    "{} has more than {FILES} files",
                    path.display()
                )));
            }
        }
    }
    Ok(layout)
}

impl Layout {
    /// The directory that a name is in, reached without a link, and the name in it. `O_NOFOLLOW` says
    /// something of a path's last component alone.
    fn parent<'n>(&self, name: &'n str) -> rustix::io::Result<(OwnedFd, &'n str)> {
        let (directories, last) = name.rsplit_once('/').unwrap_or(("", name));
        let mut parent = rustix::io::fcntl_dupfd_cloexec(&self.root, 0)?;
        for directory in directories.split('/').filter(|part| !part.is_empty()) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            parent = rustix::fs::openat(&parent, directory, flags, Mode::empty())?;
        }
        Ok((parent, last))
    }

    fn stat(&self, name: &str) -> rustix::io::Result<rustix::fs::Stat> {
        let (parent, last) = self.parent(name)?;
        rustix::fs::statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Links are not followed.
    fn open(&self, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let (parent, last) = self.parent(name)?;
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&parent, last, flags, Mode::empty())
    }

    /// Is there a file of this name?
    fn has(&self, name: &str) -> Result<bool> {
        let stat = match self.stat(name) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(Error::file("stat", &self.path.join(name))(errno.into())),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(true),
            kind => Err(self.refused(name, kind)),
        }
    }

    fn refused(&self, name: &str, kind: FileType) -> Error {
        let what = match kind {
            FileType::Symlink => "a symbolic link",
            FileType::Directory => "a directory",
            _ => "a device, socket or pipe",
        };
        let path = self.path.join(name);
        Error::Invalid(format!(
            "{} is {what}: of an OCI image layout only regular files are read (cp -rL makes a copy of it without links)",
            path.display()
        ))
    }

    /// What is in a directory below the root, sorted.
    fn names(&self, directory: &str) -> Result<Vec<String>> {
        let failed = |errno: rustix::io::Errno| {
            Error::file("read", &self.path.join(directory))(errno.into())
        };
        let stat = self.stat(directory).map_err(failed)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {}
            FileType::RegularFile => return Ok(Vec::new()),
            kind => return Err(self.refused(directory, kind)),
        }
        let open = self.open(directory, OFlags::DIRECTORY).map_err(failed)?;
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(&open).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.insert(name);
            }
            if names.len() > FILES {
                return Err(Error::Invalid(format!(
                    "{} has more than {FILES} files",
                    self.path.join(directory).display()
                )));
            }
        }
        Ok(names.into_iter().collect())
    }

    /// What is told of files that are left out.
    pub(crate) fn left_out(&self) -> Option<String> {
        let names = self.skipped.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        match self.skipped.len() {
            0 => None,
            n if n <= NAMED => Some(format!("left out, since they are no blobs: {names}")),
            n => Some(format!("left out, since they are no blobs: {names} and {} more", n - NAMED)),
        }
    }

    /// The layout as a tar, with nothing of the files' owners, modes and times.
    pub(crate) fn body(self) -> Body {
        writer_body(move |writer| {
            let mut tar = TarWriter::new(writer);
            for name in &self.files {
                let path = || self.path.join(name).display().to_string();
                let file = self.open(name, OFlags::NONBLOCK);
                let file = File::from(file.map_err(|errno| named("open", path(), errno.into()))?);
                let meta = file.metadata().map_err(|error| named("stat", path(), error))?;
                if !meta.is_file() {
                    let error = io::Error::other("it is no regular file any more");
                    return Err(named("open", path(), error));
                }
                let mut entry = Entry::new(name.as_str(), Kind::File { sparse: None });
                entry.size = meta.len();
                tar.append(&entry, file.take(meta.len()))
                    .map_err(|error| io::Error::other(format!("send {}: {error}", path())))?;
            }
            tar.finish().map(drop).map_err(io::Error::other)
        })
    }
}

fn named(op: &str, path: String, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{op} {path}: {}", crate::error::plain(&error)))
}

/// Writes the layout that an archive is, without docker's own files, to a directory that appears only
/// when it is complete. A directory that is there must be empty.
///
/// # Errors
/// Also when the archive is no layout (as dockerd before 25 saves), or a blob is not what it is called.
pub(crate) async fn write(
    archive: impl Future<Output = client::Result<ByteStream>>,
    path: &Path,
) -> Result<()> {
    let target = Target::new(path)?;
    let mut body = archive.await?;
    let made = target.create()?;
    let (queue, chunks) = mpsc::channel::<io::Result<Bytes>>(QUEUE_CHUNKS);
    let worker = tokio::task::spawn_blocking(move || {
        unpack(Chunks { queue: chunks, current: Bytes::new() }, &made.target.temporary)
            .and_then(|()| made.finish())
    });
    while let Some(chunk) = body.next().await {
        let (chunk, failed) = match chunk {
            Ok(chunk) => (Ok(chunk), None),
            // The reader stops there, and what it made goes away; this is why.
            Err(error) => (Err(io::Error::other("the engine's answer broke off")), Some(error)),
        };
        let gone = queue.send(chunk).await.is_err();
        if let Some(error) = failed {
            drop(queue);
            drop(worker.await);
            return Err(error.into());
        }
        if gone {
            break;
        }
    }
    drop(queue);
    worker.await.map_err(|error| Error::Invalid(format!("unpacking was given up: {error}")))?
}

/// The blocking end of a stream.
struct Chunks {
    queue: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.queue.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let n = out.len().min(self.current.len());
        out[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}

/// What of a layout lies at its top.
const TOP: [&str; 3] = ["blobs", "index.json", "oci-layout"];

/// A directory that is wanted, and one beside it, `.NAME.PID`, that is to take its place in the end.
struct Target {
    path: PathBuf,
    temporary: PathBuf,
    /// All names of such directories begin with this, and a process id follows.
    prefix: OsString,
}

/// The one beside is there. It is locked as long as somebody works on it.
struct Made {
    target: Target,
    _lock: OwnedFd,
}

impl Target {
    fn new(path: &Path) -> Result<Target> {
        match std::fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => {
                return Err(Error::Invalid(format!(
                    "invalid output path: directory {:?} is not empty",
                    path.display().to_string()
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("invalid output path", path)(error)),
        }
        // Also of `out/`, and of `.`, which has no name of its own.
        let absolute = match path.canonicalize() {
            Ok(path) => path,
            Err(_) => {
                std::path::absolute(path).map_err(Error::file("invalid output path", path))?
            }
        };
        let Some(name) = absolute.file_name() else {
            return Err(Error::Invalid(format!(
                "invalid output path: {:?}",
                path.display().to_string()
            )));
        };
        if let Some(parent) = absolute.parent().filter(|parent| !parent.is_dir()) {
            return Err(Error::Invalid(format!(
                "invalid output path: directory {:?} does not exist",
                parent.display().to_string()
            )));
        }
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let mut hidden = prefix.clone();
        hidden.push(std::process::id().to_string());
        let temporary = absolute.with_file_name(hidden);
        Ok(Target { path: absolute, temporary, prefix })
    }

    /// Makes the directory beside it; those that processes left which were killed go.
    fn create(self) -> Result<Made> {
        for entry in self.path.parent().and_then(|dir| dir.read_dir().ok()).into_iter().flatten() {
            let Ok(name) = entry.map(|entry| entry.file_name()) else { continue };
            let rest = name.as_bytes().strip_prefix(self.prefix.as_bytes()).unwrap_or_default();
            if !rest.is_empty() && rest.iter().all(u8::is_ascii_digit) {
                remove_abandoned(&self.path.with_file_name(&name));
            }
        }
        std::fs::create_dir(&self.temporary).map_err(Error::file("create", &self.temporary))?;
        let lock = match lock(&self.temporary) {
            Ok(lock) => lock,
            Err(errno) => {
                drop(std::fs::remove_dir(&self.temporary));
                return Err(Error::file("lock", &self.temporary)(errno.into()));
            }
        };
        Ok(Made { target: self, _lock: lock })
    }
}

/// While the descriptor is open, nobody else gets the lock of this directory.
fn lock(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let open = rustix::fs::open(path, flags, Mode::empty())?;
    rustix::fs::flock(&open, FlockOperation::NonBlockingLockExclusive)?;
    Ok(open)
}

/// Removes a directory in which nobody works any more, if there is nothing in it but a layout's parts. One
/// that stays is in nobody's way.
fn remove_abandoned(path: &Path) {
    let Ok(_lock) = lock(path) else { return };
    let Ok(mut entries) = path.read_dir() else { return };
    let is_own = |name: OsString| TOP.iter().any(|own| name == *own);
    if entries.all(|entry| entry.is_ok_and(|entry| is_own(entry.file_name()))) {
        drop(std::fs::remove_dir_all(path));
    }
}

impl Made {
    /// A directory that was there stays the same one. It becomes a layout with the last file.
    fn finish(&self) -> Result<()> {
        let Target { path, temporary, .. } = &self.target;
        if !path.is_dir() {
            return std::fs::rename(temporary, path).map_err(Error::file("rename", temporary));
        }
        for name in TOP {
            let from = temporary.join(name);
            match std::fs::rename(&from, path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::file("rename", &from)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // After a success it is not there any more.
        drop(std::fs::remove_dir_all(&self.target.temporary));
    }
}

/// Of an archive what belongs to a layout, under names that are made here and not by the archive.
fn unpack(archive: impl Read, into: &Path) -> Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let root = rustix::fs::open(into, flags, Mode::empty())
        .map_err(|errno| Error::file("open", into)(errno.into()))?;
    let failed = |source| Error::Archive { op: "read the engine's archive", source };
    let mut reader = TarReader::new(archive, Limits::default());
    let mut seen = BTreeSet::new();
    let mut index = Vec::new();
    while let Some(entry) = reader.next_entry().map_err(failed)? {
        let Kind::File { sparse: None } = entry.kind else { continue };
        let path = entry.relative_path().map_err(failed)?;
        let Some(name) = path.to_str() else { continue };
        let digest = digest_of(name);
        if digest.is_none() && !OWN.contains(&name) {
            continue;
        }
        if seen.len() >= FILES {
            return Err(Error::Invalid(format!("the archive has more than {FILES} files")));
        }
        if !seen.insert(name.to_owned()) {
            return Err(Error::Invalid(format!("the archive has {name} twice")));
        }
        if name == OWN[0] {
            let limit = u64::try_from(limits::MANIFEST_BYTES).unwrap_or(u64::MAX);
            let read = reader.data().take(limit + 1).read_to_end(&mut index);
            read.map_err(|source| Error::Stream { what: "read the engine's archive", source })?;
            if index.len() > limits::MANIFEST_BYTES {
                return Err(Error::Invalid(format!("the archive's {name} is too large")));
            }
            store(&root, into, name, None, index.as_slice())?;
        } else {
            store(&root, into, name, digest.as_ref(), reader.data())?;
        }
    }
    reader.finish().map_err(failed)?;
    complete(&seen, &index)
}

fn digest_of(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// Is it a layout, with all that its index names?
fn complete(seen: &BTreeSet<String>, index: &[u8]) -> Result<()> {
    if OWN.iter().any(|name| !seen.contains(*name)) {
        return Err(Error::Invalid(
            "the engine saves no OCI image layout (dockerd does since version 25): save to a file instead".into(),
        ));
    }
    let index: serde_json::Value = serde_json::from_slice(index)
        .map_err(|error| Error::Invalid(format!("index.json of the archive: {error}")))?;
    for entry in index["manifests"].as_array().into_iter().flatten() {
        let digest = entry["digest"].as_str().unwrap_or_default();
        let file = format!("blobs/{}", digest.replacen(':', "/", 1));
        if !seen.contains(&file) {
            return Err(Error::Invalid(format!(
                "the archive is not complete: its index.json names {digest}, which is not in it"
            )));
        }
    }
    Ok(())
}

fn store(
    root: &OwnedFd,
    shown: &Path,
    name: &str,
    digest: Option<&Digest>,
    mut data: impl Read,
) -> Result<()> {
    let path = shown.join(name);
    let failed = |op| Error::file(op, &path);
    if let Some(digest) = digest {
        for directory in ["blobs".to_owned(), format!("blobs/{}", digest.algorithm().name())] {
            match rustix::fs::mkdirat(root, &directory, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(failed("create the directory of")(errno.into())),
            }
        }
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(root.as_fd(), name, flags, Mode::from_raw_mode(0o644));
    let mut file = File::from(file.map_err(|errno| failed("create")(errno.into()))?);
    let mut digester = digest.map(|digest| Digester::new(digest.algorithm()));
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let n = match data.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(source) => {
                return Err(Error::Stream { what: "read the engine's archive", source });
            }
        };
        if let Some(digester) = &mut digester {
            digester.update(&buffer[..n]);
        }
        file.write_all(&buffer[..n]).map_err(failed("write"))?;
    }
    let real = digester.map(Digester::finish);
    if real.as_ref() != digest {
        return Err(Error::Invalid(format!(
            "the archive's {name} has other content than its name says"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A directory with one blob in it that its index names.
    fn layout(dir: &Path) -> Digest {
        let blob = Digest::sha256(b"blob");
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        std::fs::write(dir.join("blobs/sha256").join(blob.hex()), b"blob").unwrap();
        std::fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{blob}"}}]}}"#);
        std::fs::write(dir.join("index.json"), index).unwrap();
        blob
    }

    async fn sent(dir: &Path) -> io::Result<Vec<u8>> {
        let Body::Stream(mut stream) = open(dir).map_err(io::Error::other)?.body() else {
            panic!("a layout is a stream")
        };
        let mut all = Vec::new();
        while let Some(piece) = stream.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }

    fn refused(dir: &Path) -> String {
        open(dir).map(|_| ()).unwrap_err().to_string()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_layout_goes_out_and_comes_back_the_same() {
        let ground = tempfile::tempdir().unwrap();
        let (one, two) = (ground.path().join("one"), ground.path().join("two"));
        let blob = layout(&one);
        let archive = sent(&one).await.unwrap();
        layout(&two);
        std::fs::write(two.join("blobs/sha256/.tmp-1"), b"x").unwrap();
        std::fs::write(two.join("blobs/readme"), b"x").unwrap();
        std::fs::write(two.join("readme"), b"x").unwrap();
        assert!(sent(&two).await.unwrap() == archive, "times and order say nothing");
        let said = open(&two).unwrap().left_out().unwrap();
        assert!(said.ends_with("no blobs: blobs/sha256/.tmp-1"), "{said}");
        assert_eq!(open(&one).unwrap().left_out(), None);

        let path = ground.path().join("back");
        let target = Target::new(&path).unwrap().create().unwrap();
        unpack(archive.as_slice(), &target.target.temporary).unwrap();
        assert!(!path.exists(), "nothing is seen before the end");
        target.finish().unwrap();
        drop(target);
        assert_eq!(std::fs::read(path.join("blobs/sha256").join(blob.hex())).unwrap(), b"blob");
        assert!(sent(&path).await.unwrap() == archive);
        // An empty directory is filled, one with something in it is left alone.
        let empty = ground.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let target = Target::new(&empty).unwrap().create().unwrap();
        unpack(archive.as_slice(), &target.target.temporary).unwrap();
        target.finish().unwrap();
        drop(target);
        assert!(sent(&empty).await.unwrap() == archive);
        let error = Target::new(&path).err().unwrap().to_string();
        assert!(error.contains("is not empty"), "{error}");
        let error = Target::new(&ground.path().join("no/where")).err().unwrap().to_string();
        assert!(error.contains("does not exist"), "{error}");
        assert_eq!(std::fs::read_dir(ground.path()).unwrap().count(), 4, "something is left over");
    }

    #[test]
    fn links_and_devices_are_refused() {
        let ground = tempfile::tempdir().unwrap();
        let dir = ground.path().join("layout");
        std::fs::create_dir(&dir).unwrap();
        assert!(refused(&dir).contains("it has no index.json"), "{}", refused(&dir));
        let blob = layout(&dir);
        let file = dir.join("blobs/sha256").join(blob.hex());
        let link = |to: &Path, from: &Path| std::os::unix::fs::symlink(to, from).unwrap();
        std::fs::remove_file(&file).unwrap();
        link(Path::new("/etc/shadow"), &file);
        assert!(refused(&dir).contains("is a symbolic link"), "{}", refused(&dir));
        std::fs::remove_file(&file).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &file, FileType::Fifo, mode, 0).unwrap();
        assert!(refused(&dir).contains("is a device, socket or pipe"), "{}", refused(&dir));
        std::fs::remove_dir_all(dir.join("blobs")).unwrap();
        link(Path::new("/etc"), &dir.join("blobs"));
        assert!(refused(&dir).contains("is a symbolic link"), "{}", refused(&dir));
        std::fs::remove_file(dir.join("index.json")).unwrap();
        link(Path::new("/etc/passwd"), &dir.join("index.json"));
        assert!(refused(&dir).contains("index.json is a symbolic link"), "{}", refused(&dir));
    }

    /// A directory becomes a link after it was looked at.
    #[tokio::test(flavor = "multi_thread")]
    async fn no_link_is_followed_on_the_way() {
        for swapped in ["blobs", "blobs/sha256"] {
            let ground = tempfile::tempdir().unwrap();
            let (dir, other) = (ground.path().join("layout"), ground.path().join("other"));
            layout(&dir);
            let hex = layout(&other).hex().to_string();
            std::fs::write(other.join("blobs/sha256").join(hex), "secret").unwrap();
            let opened = open(&dir).unwrap();
            std::fs::rename(dir.join(swapped), ground.path().join("away")).unwrap();
            std::os::unix::fs::symlink(other.join(swapped), dir.join(swapped)).unwrap();
            let Body::Stream(mut stream) = opened.body() else { panic!("a layout is a stream") };
            let (mut all, mut failed) = (Vec::new(), false);
            while let Some(piece) = stream.next().await {
                match piece {
                    Ok(piece) => all.extend_from_slice(&piece),
                    Err(_) => failed = true,
                }
            }
            assert!(failed, "{swapped}");
            assert!(!all.windows(6).any(|window| window == b"secret"), "{swapped}");
        }
    }

    /// What a killed process left goes with the next save; what is worked on, or somebody else's, stays.
    #[tokio::test]
    async fn nothing_is_left_of_a_save_that_was_killed() {
        let ground = tempfile::tempdir().unwrap();
        let path = ground.path().join("out");
        let answer = async {
            assert_eq!(std::fs::read_dir(ground.path()).unwrap().count(), 0, "made too early");
            Err(client::Error::TooLarge { what: "save".into(), limit_bytes: 1 })
        };
        write(answer, &path).await.unwrap_err();
        let names = |name: &str| ground.path().join(name);
        std::fs::create_dir_all(names(".out.1/blobs/sha256")).unwrap();
        std::fs::create_dir_all(names(".out.2/blobs")).unwrap();
        std::fs::create_dir_all(names(".out.3/mine")).unwrap();
        std::fs::create_dir_all(names(".out.x/blobs")).unwrap();
        let working = lock(&names(".out.2")).unwrap();
        drop(Target::new(&path).unwrap().create().unwrap());
        let mut left: Vec<_> = std::fs::read_dir(ground.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [".out.2", ".out.3", ".out.x"]);
        drop(working);
    }

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = TarWriter::new(Vec::new());
        for (name, data) in files {
            let mut entry = Entry::new(*name, Kind::File { sparse: None });
            entry.size = u64::try_from(data.len()).unwrap();
            tar.append(&entry, *data).unwrap();
        }
        tar.finish().unwrap()
    }

    #[test]
    fn an_archive_writes_nothing_but_a_whole_layout() {
        let (blob, other) = (Digest::sha256(b"blob"), Digest::sha256(b"other"));
        let index = format!(r#"{{"manifests":[{{"digest":"{blob}"}}]}}"#);
        let (blob, other) =
            (format!("blobs/sha256/{}", blob.hex()), format!("blobs/sha256/{}", other.hex()));
        let own = [("index.json", index.as_bytes()), ("oci-layout", b"{}".as_slice())];
        let unpacked = |more: &[(&str, &[u8])]| {
            let ground = tempfile::tempdir().unwrap();
            let files: Vec<_> = own.iter().chain(more).copied().collect();
            let outcome = unpack(tar(&files).as_slice(), ground.path());
            let mut names: Vec<_> = std::fs::read_dir(ground.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            (outcome.map_err(|error| error.to_string()), names)
        };
        let (outcome, names) =
            unpacked(&[("manifest.json", b"[]"), ("a/../../b", b""), (&blob, b"blob")]);
        assert!(outcome.is_err() && !names.contains(&"b".to_owned()), "{names:?}");
        let (outcome, names) =
            unpacked(&[("manifest.json", b"[]"), ("x/VERSION", b"1"), (&blob, b"blob")]);
        assert_eq!((outcome, names.join(" ")), (Ok(()), "blobs index.json oci-layout".into()));
        let said = |more: &[(&str, &[u8])]| unpacked(more).0.unwrap_err();
        assert!(said(&[(&blob, b"blub")]).contains("other content than its name says"));
        assert!(said(&[(&other, b"other")]).contains("not complete"));
        assert!(said(&[(&blob, b"blob"), (&blob, b"blob")]).contains("twice"));
        let ground = tempfile::tempdir().unwrap();
        let docker = tar(&[("manifest.json", b"[]")]);
        let error = unpack(docker.as_slice(), ground.path()).unwrap_err().to_string();
        assert!(error.contains("saves no OCI image layout"), "{error}");
    }
}

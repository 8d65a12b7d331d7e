//! `cp`.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api_types::PathStat;
use archive::{Entry, ExtractOptions, Kind, Owner, PackOptions, Source, extract, pack};
use client::{ByteStream, Client};
use futures_util::StreamExt;

use crate::commands::transfer::writer_body;
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::fmt::units;
use crate::stream::{copy_out, stdin_body};

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Local(String),
    Container { name: String, path: String },
}

/// `CONTAINER:PATH`, or a local path; a path that begins with `/` or `.` is local.
fn place(text: &str) -> Place {
    match text.split_once(':') {
        Some((name, path)) if !text.starts_with(['/', '.']) && !name.is_empty() => {
            Place::Container { name: name.to_owned(), path: path.to_owned() }
        }
        _ => Place::Local(text.to_owned()),
    }
}

pub(crate) async fn cp(ctx: &Ctx, m: Matches) -> Result<()> {
    let (source, target) = (&m.args[0], &m.args[1]);
    if source.is_empty() {
        return Err("source can not be empty".into());
    }
    if target.is_empty() {
        return Err("destination can not be empty".into());
    }
    match (place(source), place(target)) {
        (Place::Container { name, path }, Place::Local(local)) => {
            from_container(ctx, &m, &name, &path, &local).await
        }
        (Place::Local(local), Place::Container { name, path }) => {
            to_container(ctx, &m, &local, &name, &path).await
        }
        (Place::Container { .. }, Place::Container { .. }) => {
            Err("copying between containers is not supported".into())
        }
        (Place::Local(_), Place::Local(_)) => {
            Err("must specify at least one container source".into())
        }
    }
}

fn quiet(ctx: &Ctx, m: &Matches) -> bool {
    if m.changed("quiet") { m.flag("quiet") } else { !ctx.stdout_is_tty() }
}

fn done(ctx: &Ctx, m: &Matches, bytes: u64, to: &str) {
    if !quiet(ctx, m) {
        let size = units::size3(i64::try_from(bytes).unwrap_or(i64::MAX));
        ctx.note(&format!("Successfully copied {size} to {to}"));
    }
}

/// The path says that it is a directory.
fn asserts_directory(path: &str) -> bool {
    path.ends_with('/') || path.ends_with("/.") || path == "."
}

/// Only the contents of the directory are meant.
fn is_contents(path: &str) -> bool {
    path.ends_with("/.") || path == "."
}

/// The last name of a path; empty for the root and for `.`.
fn base(path: &str) -> String {
    let path = path.trim_end_matches('/');
    match path.rsplit('/').next() {
        Some("." | "..") | None => String::new(),
        Some(name) => name.to_owned(),
    }
}

/// The directory of a path, `/` at least.
fn parent(path: &str) -> String {
    match path.trim_end_matches('/').rsplit_once('/') {
        Some(("", _)) | None => "/".to_owned(),
        Some((dir, _)) => dir.to_owned(),
    }
}

/// Where a link of the container leads: from the root, or from the link's directory.
fn follow(path: &str, target: &str) -> String {
    if target.starts_with('/') {
        return target.to_owned();
    }
    format!("{}/{target}", parent(path).trim_end_matches('/'))
}

async fn from_container(ctx: &Ctx, m: &Matches, name: &str, path: &str, local: &str) -> Result<()> {
    if local != "-" {
        parent_directory(local)?;
    }
    let client = ctx.client()?;
    let mut path = path.to_owned();
    if m.flag("follow-link") {
        let stat = client.container_stat(name, &path).await?;
        if stat.is_symlink() {
            path = follow(&path, &stat.link_target);
        }
    }
    let (body, stat) = client.container_archive_get(name, &path).await?;
    if local == "-" {
        return copy_out(body, false).await;
    }
    let plan = local_target(local, &stat, &path)?;
    let bytes = unpack(body, plan).await?;
    done(ctx, m, bytes, local);
    Ok(())
}

/// Where entries go: into a directory, their first name changed.
struct Target {
    dir: PathBuf,
    /// First component in the archive, and what becomes of it; `None` keeps all names.
    rename: Option<(String, String)>,
}

/// How `cp -a` would see it: into an existing directory, over an existing file, or to a new name.
fn local_target(local: &str, stat: &PathStat, path: &str) -> Result<Target> {
    let absolute = std::path::absolute(local).map_err(Error::file("resolve", Path::new(local)))?;
    let target = absolute.as_path();
    let existing = std::fs::metadata(target);
    if existing.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
        return Ok(Target { dir: target.to_owned(), rename: None });
    }
    if existing.is_ok() {
        if stat.is_dir() {
            return Err("cannot copy directory".into());
        }
        if asserts_directory(local) {
            return Err("not a directory".into());
        }
    } else if !stat.is_dir() && asserts_directory(local) {
        return Err("no such directory".into());
    }
    let (dir, name) = parent_directory(local)?;
    let from = if is_contents(path) { String::new() } else { base(path) };
    Ok(Target { dir, rename: Some((from, name)) })
}

/// The directory that a local path lies in, which must exist, and the path's last name.
fn parent_directory(local: &str) -> Result<(PathBuf, String)> {
    let absolute = std::path::absolute(local).map_err(Error::file("resolve", Path::new(local)))?;
    let shown = absolute.display().to_string();
    let clean = shown.trim_end_matches("/.").trim_end_matches('/');
    let dir = Path::new(clean).parent().unwrap_or(Path::new("/")).to_owned();
    if !dir.is_dir() {
        return Err(Error::Invalid(format!(
            "invalid output path: directory {:?} does not exist",
            dir.display().to_string()
        )));
    }
    Ok((dir, base(clean)))
}

/// Renames the first component; an empty `from` puts everything below `to`.
fn renamed(name: &Path, from: &str, to: &str) -> PathBuf {
    let clean: PathBuf =
        name.components().filter(|c| matches!(c, std::path::Component::Normal(_))).collect();
    if from.is_empty() {
        return Path::new(to).join(clean);
    }
    match clean.strip_prefix(from) {
        Ok(rest) if rest.as_os_str().is_empty() => to.into(),
        Ok(rest) => Path::new(to).join(rest),
        Err(_) => name.to_owned(),
    }
}

/// The blocking end of a stream.
struct Chunks {
    queue: tokio::sync::mpsc::Receiver<bytes::Bytes>,
    current: bytes::Bytes,
    total: Arc<AtomicU64>,
}

impl Read for Chunks {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.queue.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let n = out.len().min(self.current.len());
        out[..n].copy_from_slice(&self.current.split_to(n));
        self.total.fetch_add(u64::try_from(n).unwrap_or(0), Ordering::Relaxed);
        Ok(n)
    }
}

fn open_directory(path: &Path) -> Result<std::fs::File> {
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(Error::file("open", path))
}

/// Unpacks a tar that comes from the engine; gives the bytes received. Files belong to who copies,
/// as docker's do.
async fn unpack(mut body: ByteStream, target: Target) -> Result<u64> {
    let root = open_directory(&target.dir)?;
    let total = Arc::new(AtomicU64::new(0));
    let (queue, chunks) = tokio::sync::mpsc::channel(8);
    let reader = Chunks { queue: chunks, current: bytes::Bytes::new(), total: Arc::clone(&total) };
    let worker = tokio::task::spawn_blocking(move || {
        let rename = target.rename;
        let mut filter = move |entry: &mut Entry| {
            if let Some((from, to)) = &rename {
                entry.name = renamed(&entry.name, from, to);
                if let Kind::HardLink { target } = &mut entry.kind {
                    *target = renamed(target, from, to);
                }
            }
            true
        };
        let mut options = ExtractOptions {
            owner: Owner::Ignore,
            no_overwrite_dir_non_dir: true,
            filter: Some(&mut filter),
            ..ExtractOptions::default()
        };
        extract(reader, root.as_fd(), &mut options)
    });
    let mut broken = None;
    while let Some(chunk) = body.next().await {
        match chunk {
            Ok(chunk) => {
                if queue.send(chunk).await.is_err() {
                    break;
                }
            }
            Err(e) => {
                broken = Some(e);
                break;
            }
        }
    }
    drop(queue);
    let result =
        worker.await.map_err(|e| Error::Invalid(format!("unpacking was given up: {e}")))?;
    if let Some(e) = broken {
        return Err(e.into());
    }
    result.map_err(|source| Error::Archive { op: "unpack", source })?;
    Ok(total.load(Ordering::Relaxed))
}

/// What stands at the destination in the container, links followed once.
async fn container_target(
    client: &Client,
    name: &str,
    path: &str,
) -> Result<(String, Option<PathStat>)> {
    let stat = match client.container_stat(name, path).await {
        Ok(stat) => stat,
        // The copy itself tells if the container is missing.
        Err(e) if e.is_not_found() => return Ok((path.to_owned(), None)),
        Err(e) => return Err(e.into()),
    };
    if !stat.is_symlink() {
        return Ok((path.to_owned(), Some(stat)));
    }
    let path = follow(path, &stat.link_target);
    match client.container_stat(name, &path).await {
        Ok(stat) => Ok((path, Some(stat))),
        Err(e) if e.is_not_found() => Ok((path, None)),
        Err(e) => Err(e.into()),
    }
}

async fn to_container(ctx: &Ctx, m: &Matches, local: &str, name: &str, path: &str) -> Result<()> {
    let client = ctx.client()?;
    let archive = m.flag("archive");
    let (path, stat) =
        container_target(client, name, if path.is_empty() { "/" } else { path }).await?;
    let is_dir = stat.as_ref().is_some_and(PathStat::is_dir);
    if local == "-" {
        if !is_dir {
            return Err(Error::Invalid(format!(
                "destination \"{name}:{path}\" must be a directory"
            )));
        }
        client.container_archive_put(name, &path, archive, stdin_body()).await?;
        return Ok(());
    }
    let mut source =
        std::path::absolute(local).map_err(Error::file("resolve", Path::new(local)))?;
    if m.flag("follow-link") {
        source = std::fs::canonicalize(&source).map_err(Error::file("lstat", Path::new(local)))?;
    }
    // A trailing slash means what the link points to.
    let meta = match asserts_directory(local) {
        true => std::fs::metadata(&source),
        false => std::fs::symlink_metadata(&source),
    };
    let source_is_dir = meta.map_err(Error::file("lstat", &source))?.is_dir();
    if asserts_directory(local) && !source_is_dir {
        return Err("not a directory".into());
    }
    let source_base = base(&source.display().to_string());
    let contents = is_contents(local);
    let (dir, as_name) = match (&stat, is_dir) {
        (Some(_), true) => (path.clone(), if contents { String::new() } else { source_base }),
        (Some(_), false) if source_is_dir => return Err("cannot copy directory".into()),
        (None, _) if !source_is_dir && asserts_directory(&path) => {
            return Err("no such directory".into());
        }
        _ => {
            let clean = path.trim_end_matches("/.");
            (parent(clean), base(clean))
        }
    };
    let total = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&total);
    let body =
        writer_body(move |writer| pack_local(&source, &as_name, source_is_dir, writer, &counter));
    client.container_archive_put(name, &dir, archive, body).await?;
    done(ctx, m, total.load(Ordering::Relaxed), &format!("{name}:{path}"));
    Ok(())
}

/// Counts what goes through.
struct Counting<'a, W> {
    inner: W,
    total: &'a AtomicU64,
}

impl<W: io::Write> io::Write for Counting<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(data)?;
        self.total.fetch_add(u64::try_from(n).unwrap_or(0), Ordering::Relaxed);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn pack_local(
    source: &Path,
    as_name: &str,
    is_dir: bool,
    writer: impl io::Write,
    total: &AtomicU64,
) -> io::Result<()> {
    let (root, path) = match is_dir {
        true => (source.to_owned(), PathBuf::new()),
        false => {
            let dir =
                source.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
            (dir.to_owned(), source.file_name().map(PathBuf::from).unwrap_or_default())
        }
    };
    let root = open_directory(&root).map_err(io::Error::other)?;
    let mut options = PackOptions {
        sources: vec![Source { path, name: as_name.into() }],
        include_root: true,
        ..PackOptions::default()
    };
    pack(root.as_fd(), &mut options, Counting { inner: writer, total })
        .map_err(io::Error::other)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let c = |name: &str, path: &str| Place::Container { name: name.into(), path: path.into() };
        assert_eq!(place("c:/a"), c("c", "/a"));
        assert_eq!(place("c:a:b"), c("c", "a:b"));
        for local in ["/a:b", "./a:b", "a", ":a", "-"] {
            assert_eq!(place(local), Place::Local(local.into()), "{local}");
        }
    }

    #[test]
    fn names() {
        assert_eq!((base("/a/b/"), parent("/a/b/")), ("b".into(), "/a".into()));
        assert_eq!((base("/"), parent("/a")), (String::new(), "/".into()));
        assert_eq!(follow("/a/b", "../c"), "/a/../c");
        assert_eq!(follow("/a/b", "/c"), "/c");
        let r = |name: &str, from: &str, to: &str| renamed(Path::new(name), from, to);
        assert_eq!(r("src/x", "src", "dst"), Path::new("dst/x"));
        assert_eq!(r("src/", "src", "dst"), Path::new("dst"));
        assert_eq!(r("./x", "", "dst"), Path::new("dst/x"));
        assert_eq!(r("./", "", "dst"), Path::new("dst/"));
    }
}

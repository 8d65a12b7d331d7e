//! Which files a COPY or ADD takes, and what they contain.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use dockerfile::{
    glob::{Glob, Style},
    ignore::Matcher,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use types::Digest;

use crate::{
    error::{Error, Result},
    hashes::{self, Hash, Memo},
    tree::{self, Kind, Node},
};

/// Files of one COPY: a context or stage with more is refused.
const ENTRIES: usize = 2_000_000;

/// A tree to copy from.
pub(crate) struct Root {
    pub(crate) fd: OwnedFd,
    /// What `.dockerignore` leaves out.
    pub(crate) ignore: Matcher,
    pub(crate) memo: Memo,
    /// `None`: the build context; otherwise what errors call it.
    pub(crate) stage: Option<String>,
}

/// One file, directory or link to copy.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Below the root, without links.
    pub(crate) source: PathBuf,
    /// Below the group's place; empty for the group's own file or directory.
    pub(crate) relative: PathBuf,
    pub(crate) node: Node,
    /// Of regular files.
    pub(crate) hash: Option<Hash>,
}

/// Where a group goes, below the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A directory's contents: directly into the destination.
    Contents,
    /// A file: the destination itself, or its name in it.
    Named(OsString),
    /// `--parents`: this path in it.
    Under(PathBuf),
}

/// What one source came to.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) place: Place,
    /// As written in the Dockerfile.
    pub(crate) written: String,
    pub(crate) is_dir: bool,
    /// Directories before what is in them.
    pub(crate) entries: Vec<Entry>,
}

/// All that one COPY takes from one root.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub(crate) groups: Vec<Group>,
    pub(crate) skipped_sockets: u64,
}

pub(crate) struct Wanted<'a> {
    pub(crate) command: &'static str,
    pub(crate) sources: &'a [String],
    pub(crate) exclude: &'a [String],
    pub(crate) parents: bool,
}

struct Walk<'a> {
    root: &'a Root,
    exclude: Matcher,
    command: &'static str,
    count: usize,
    skipped_sockets: u64,
}

/// Finds and hashes everything that `wanted` names.
///
/// # Errors
/// A path that is not there or ignored; nothing found at all; what cannot be copied or read.
pub(crate) fn select(root: &Root, wanted: &Wanted<'_>) -> Result<Selection> {
    let pattern_error = |pattern: &str| {
        let (command, pattern) = (wanted.command, pattern.to_string());
        move |source| Error::Pattern { command, pattern, source }
    };
    let exclude = Matcher::from_patterns(wanted.exclude)
        .map_err(|source| pattern_error(&source.0.clone())(source))?;
    let mut walk = Walk { root, exclude, command: wanted.command, count: 0, skipped_sockets: 0 };
    let mut groups = Vec::new();
    for written in wanted.sources {
        let (pivot, pattern) = pivot(written, wanted.parents);
        let path = tree::inside(&pattern);
        let text = path.to_string_lossy();
        let glob = Glob::compile(&text, Style::Match).map_err(pattern_error(written))?;
        let wild = glob.is_wild();
        let found = if wild { expand(root, &text)? } else { vec![literal(&glob, path)] };
        for path in found {
            let place = wanted
                .parents
                .then(|| Place::Under(path.strip_prefix(&pivot).unwrap_or(&path).to_path_buf()));
            match group(&mut walk, &path, written, place)? {
                Some(group) => groups.push(group),
                None if wild => {}
                None => return Err(missing(root, wanted.command, written)),
            }
        }
    }
    if groups.is_empty() {
        return Err(Error::NoSources { command: wanted.command });
    }
    let skipped_sockets = walk.skipped_sockets;
    fill_hashes(root, &mut groups)?;
    Ok(Selection { groups, skipped_sockets })
}

/// A pattern without wildcards may still hold escapes.
fn literal(glob: &Glob, path: PathBuf) -> PathBuf {
    glob.literal().map_or(path, PathBuf::from)
}

/// `--parents` keeps what comes after `/./`.
fn pivot(written: &str, parents: bool) -> (PathBuf, String) {
    match written.split_once("/./") {
        Some((before, after)) if parents => (tree::inside(before), format!("{before}/{after}")),
        _ => (PathBuf::new(), written.to_string()),
    }
}

fn missing(root: &Root, command: &'static str, written: &str) -> Error {
    let path = written.trim_start_matches('/').to_string();
    match &root.stage {
        None => Error::NotInContext { command, path },
        Some(from) => Error::NotInStage { command, path, from: from.clone() },
    }
}

/// The paths that match a pattern, component by component, sorted.
fn expand(root: &Root, pattern: &str) -> Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.split('/') {
        let glob = Glob::compile(component, Style::Match).map_err(|source| Error::Pattern {
            command: "COPY",
            pattern: pattern.into(),
            source,
        })?;
        let mut next = Vec::new();
        for dir in found {
            if let Some(name) = glob.literal() {
                next.push(dir.join(name));
                continue;
            }
            for name in names_of(root, &dir)? {
                if glob.matches(&name.to_string_lossy()) {
                    next.push(dir.join(name));
                }
            }
        }
        if next.len() > ENTRIES {
            return Err(too_many());
        }
        found = next;
    }
    Ok(found)
}

/// The names in a directory; none if it is no directory.
fn names_of(root: &Root, dir: &Path) -> Result<Vec<OsString>> {
    let open = || {
        let (path, node) = tree::resolve(root.fd.as_fd(), dir, true)?;
        match node.kind {
            Kind::Dir => tree::names(tree::open_dir(root.fd.as_fd(), &path)?.as_fd()),
            _ => Ok(Vec::new()),
        }
    };
    match open() {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Vec::new()),
        other => other.map_err(Error::errno("read directory", dir)),
    }
}

fn too_many() -> Error {
    Error::Limit { what: "files of one instruction", limit: 2_000_000 }
}

/// What is at `path`; `None` if there is nothing or it is left out.
fn group(
    walk: &mut Walk<'_>,
    path: &Path,
    written: &str,
    place: Option<Place>,
) -> Result<Option<Group>> {
    let root = walk.root;
    let (source, node) = match tree::resolve(root.fd.as_fd(), path, true) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(Errno::LOOP) => return Err(Error::BadPath(walk.command, written.into())),
        Err(errno) => return Err(Error::errno("look up", path)(errno)),
    };
    let is_dir = node.kind == Kind::Dir;
    let hidden = |path: &Path| {
        root.ignore.is_ignored(path) && !(is_dir && root.ignore.may_contain_exception_below(path))
    };
    if hidden(path) || hidden(&source) {
        return Ok(None);
    }
    let name = path.file_name().unwrap_or(OsStr::new("")).to_os_string();
    let mut entries = Vec::new();
    if is_dir {
        let dir = tree::open_dir(root.fd.as_fd(), &source)
            .map_err(Error::errno("open directory", &source))?;
        entries.push(Entry { source: source.clone(), relative: PathBuf::new(), node, hash: None });
        descend(walk, dir.as_fd(), &source, Path::new(""), &mut entries, 0)?;
        let place = place.unwrap_or(Place::Contents);
        return Ok(Some(Group { place, written: written.into(), is_dir, entries }));
    }
    if node.kind != Kind::File {
        let problem = format!("it is {}", describe(&node.kind));
        return Err(Error::Copy { command: walk.command, path: written.into(), problem });
    }
    if walk.exclude.is_ignored(Path::new(&name)) {
        return Ok(None);
    }
    entries.push(Entry { source, relative: PathBuf::new(), node, hash: None });
    let place = place.unwrap_or(Place::Named(name));
    Ok(Some(Group { place, written: written.into(), is_dir, entries }))
}

fn describe(kind: &Kind) -> &'static str {
    match kind {
        Kind::File => "a file",
        Kind::Dir => "a directory",
        Kind::Symlink(_) => "a symbolic link",
        Kind::Fifo => "a FIFO",
        Kind::Device { char: true, .. } => "a character device",
        Kind::Device { char: false, .. } => "a block device",
        Kind::Socket => "a socket",
    }
}

fn descend(
    walk: &mut Walk<'_>,
    dir: BorrowedFd<'_>,
    source: &Path,
    relative: &Path,
    entries: &mut Vec<Entry>,
    depth: usize,
) -> Result<()> {
    if depth > tree::DEPTH {
        let limit = u64::try_from(tree::DEPTH).unwrap_or(u64::MAX);
        return Err(Error::Limit { what: "directories within each other", limit });
    }
    let names = tree::names(dir).map_err(Error::errno("read directory", source))?;
    for name in names {
        let below = source.join(&name);
        let node = match tree::node_at(dir, &name) {
            Ok(node) => node,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(Error::errno("look up", below)(errno)),
        };
        let is_dir = node.kind == Kind::Dir;
        let relative = relative.join(&name);
        let ignored = left_out(walk, &below, &relative);
        if ignored && !(is_dir && may_hold_exceptions(walk, &below, &relative)) {
            continue;
        }
        if node.kind == Kind::Socket {
            walk.skipped_sockets += 1;
            continue;
        }
        walk.count += 1;
        if walk.count > ENTRIES {
            return Err(too_many());
        }
        let before = entries.len();
        let entry = Entry { source: below.clone(), relative: relative.clone(), node, hash: None };
        entries.push(entry);
        if is_dir {
            let flags = rustix::fs::OFlags::RDONLY
                | rustix::fs::OFlags::DIRECTORY
                | rustix::fs::OFlags::NOFOLLOW
                | rustix::fs::OFlags::CLOEXEC;
            let inner = rustix::fs::openat(dir, &name, flags, rustix::fs::Mode::empty())
                .map_err(Error::errno("open directory", &below))?;
            descend(walk, inner.as_fd(), &below, &relative, entries, depth + 1)?;
            // An ignored directory comes along only for what is kept in it.
            if ignored && entries.len() == before + 1 {
                entries.pop();
            }
        }
    }
    Ok(())
}

fn left_out(walk: &Walk<'_>, source: &Path, relative: &Path) -> bool {
    walk.root.ignore.is_ignored(source) || walk.exclude.is_ignored(relative)
}

fn may_hold_exceptions(walk: &Walk<'_>, source: &Path, relative: &Path) -> bool {
    let one = |matcher: &Matcher, path: &Path| {
        !matcher.is_ignored(path) || matcher.may_contain_exception_below(path)
    };
    one(&walk.root.ignore, source) && one(&walk.exclude, relative)
}

fn fill_hashes(root: &Root, groups: &mut [Group]) -> Result<()> {
    let files: Vec<(&Path, &Node)> = groups
        .iter()
        .flat_map(|group| &group.entries)
        .filter(|entry| entry.node.kind == Kind::File)
        .map(|entry| (entry.source.as_path(), &entry.node))
        .collect();
    let hashes = hashes::hash_all(root.fd.as_fd(), &files, &root.memo)?;
    let targets = groups
        .iter_mut()
        .flat_map(|group| &mut group.entries)
        .filter(|entry| entry.node.kind == Kind::File);
    for (entry, hash) in targets.zip(hashes) {
        entry.hash = Some(hash);
    }
    root.memo.save();
    Ok(())
}

impl Selection {
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.groups.iter().flat_map(|group| &group.entries)
    }

    /// Names, kinds, modes, contents and link targets; neither times nor owners.
    pub(crate) fn digest(&self) -> Digest {
        let mut hasher = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(bytes);
        };
        for group in &self.groups {
            match &group.place {
                Place::Contents => part(b"contents"),
                Place::Named(name) => part(&[b"named ", name.as_bytes()].concat()),
                Place::Under(path) => part(&[b"under ", path.as_os_str().as_bytes()].concat()),
            }
            for entry in &group.entries {
                // A copied directory's own name and mode do not matter: only its contents come.
                if group.place == Place::Contents && entry.relative.as_os_str().is_empty() {
                    continue;
                }
                part(entry.relative.as_os_str().as_bytes());
                part(&entry.fingerprint());
            }
        }
        let hex = hashes::hex(&hasher.finalize());
        // 64 lower-case digits behind the algorithm's name are a digest.
        format!("sha256:{hex}").parse().unwrap_or_else(|_| Digest::sha256(hex))
    }

    /// One line per entry, to tell later what changed: fingerprint, blank, path.
    pub(crate) fn manifest(&self) -> String {
        let mut lines = String::new();
        for entry in self.entries().filter(|entry| !entry.source.as_os_str().is_empty()) {
            let short = &hashes::hex(&Sha256::digest(entry.fingerprint()))[..24];
            let path = entry.source.to_string_lossy().replace('\n', "?");
            lines.push_str(short);
            lines.push(' ');
            lines.push_str(&path);
            lines.push('\n');
        }
        lines
    }
}

impl Entry {
    fn fingerprint(&self) -> Vec<u8> {
        let mut out = self.node.mode.to_le_bytes().to_vec();
        match &self.node.kind {
            Kind::File => {
                out.push(b'f');
                out.extend(self.hash.iter().flatten());
            }
            Kind::Dir => out.push(b'd'),
            Kind::Symlink(target) => {
                out.push(b'l');
                out.extend(target.as_bytes());
            }
            Kind::Fifo => out.push(b'p'),
            Kind::Device { char, rdev } => {
                out.push(if *char { b'c' } else { b'b' });
                out.extend(rdev.to_le_bytes());
            }
            Kind::Socket => out.push(b's'),
        }
        out
    }
}

/// How two manifests differ: paths that are new, gone, or have other contents, in words; at most
/// `limit` of them and a count of the others.
pub(crate) fn differences(old: &str, new: &str, limit: usize) -> Vec<String> {
    let read = |text: &str| -> std::collections::BTreeMap<String, String> {
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.map(|(hash, path)| (path.to_string(), hash.to_string())).collect()
    };
    let (old, new) = (read(old), read(new));
    let mut found = Vec::new();
    for (path, hash) in &new {
        match old.get(path) {
            None => found.push(format!("file {path} added")),
            Some(before) if before != hash => found.push(format!("file {path} changed")),
            Some(_) => {}
        }
    }
    found.extend(
        old.keys().filter(|path| !new.contains_key(*path)).map(|p| format!("file {p} removed")),
    );
    if found.len() > limit {
        let more = found.len() - limit;
        found.truncate(limit);
        found.push(format!("and {more} more files"));
    }
    found
}

//! COPY and ADD.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use dockerfile::{AddOptions, Transfer};
use store_api::Mount;
use types::{Algorithm, Digest, Digester};

use crate::{
    api::FetchRequest,
    build::Build,
    copy::{self, Writing},
    error::{Error, Result},
    files,
    key::{self, Inputs},
    run::SourceOf,
    select::{self, Entry, Root, Selection, Wanted},
    session::blocking,
    stage::{Place, Stage, Step, Work, chain_text, join},
    tree,
    users::{self, Chmod},
};

/// Bytes of what an URL of ADD may give.
const FETCH_BYTES: u64 = 16 << 30;

/// A COPY or ADD, ready to be executed.
pub(crate) struct CopyWork {
    command: &'static str,
    /// Absolute, with a slash at the end where it is written as a directory.
    dest: String,
    chown: Option<String>,
    chmod: Option<Chmod>,
    source: Option<Source>,
    heredocs: Vec<(String, String)>,
    fetched: Vec<Remote>,
    unpack: bool,
}

/// Files of a context or stage; not looked at yet if their digest was known.
struct Source {
    of: Option<SourceOf>,
    context: Arc<Root>,
    wanted: Names,
    selection: Option<Arc<Selection>>,
}

#[derive(Clone)]
struct Names {
    command: &'static str,
    sources: Vec<String>,
    exclude: Vec<String>,
    parents: bool,
}

struct Remote {
    path: PathBuf,
    name: String,
    digest: Digest,
    mtime: Option<i64>,
}

fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

fn is_git(source: &str) -> bool {
    let path = source.split(['#', '?']).next().unwrap_or(source);
    source.starts_with("git@")
        || source.starts_with("git://")
        || source.starts_with("ssh://")
        || (is_url(source) && path.ends_with(".git"))
}

impl Build {
    pub(crate) async fn prepare_transfer(
        self: &Arc<Self>,
        stage: &Stage,
        place: &Place<'_>,
        transfer: &Transfer,
    ) -> Result<Step> {
        let command = if transfer.add.is_some() { "ADD" } else { "COPY" };
        let add = transfer.add.clone().unwrap_or_default();
        let dest = destination(stage, &transfer.dest);
        let chmod = transfer.chmod.as_deref().map(Chmod::parse).transpose()?;
        let (remote, local) = remote_and_local(transfer, &add)?;
        let fetched = self.fetch_all(&remote, &add).await?;
        let mut contents: Vec<String> =
            fetched.iter().map(|file| format!("{} {}", file.name, file.digest)).collect();
        let mut manifest = None;
        let mut source = None;
        if !local.is_empty() {
            let wanted = Names {
                command,
                sources: local,
                exclude: transfer.exclude.clone(),
                parents: transfer.parents,
            };
            let found = self.source(stage, place, transfer.from.as_deref(), wanted).await?;
            contents.push(found.1);
            manifest = found.2;
            source = Some(found.0);
        }
        let unpack = transfer.add.is_some() && add.unpack.unwrap_or(true);
        let mut chown = transfer.chown.clone();
        if transfer.link
            && let Some(spec) = &mut chown
        {
            *spec = self.owner_of_stage(stage, spec.clone()).await?;
        }
        let instruction = instruction(command, &dest, transfer, chown.as_deref(), unpack);
        let parts: Vec<&str> = contents.iter().map(String::as_str).collect();
        let inputs = Inputs {
            instruction,
            parent: if transfer.link { String::new() } else { chain_text(stage) },
            files: if parts.is_empty() { String::new() } else { key::fingerprint(&parts) },
            args: BTreeMap::new(),
            env: BTreeMap::new(),
            settings: BTreeMap::new(),
        };
        let heredocs = transfer.heredocs.iter();
        let work = CopyWork {
            command,
            dest,
            chown,
            chmod,
            source,
            heredocs: heredocs.map(|one| (one.name.clone(), one.content.clone())).collect(),
            fetched,
            unpack,
        };
        let history = history(command, transfer);
        let work = Work::Copy(Box::new(work));
        Ok(Step { inputs, manifest, history, work, alone: transfer.link })
    }

    /// `--chown` as numbers, for a layer that is made without the stage's files.
    async fn owner_of_stage(&self, stage: &Stage, spec: String) -> Result<String> {
        let root = self.session.view(stage.chain.as_ref(), "the stage").await?;
        let owner = blocking(move || users::resolve(&spec, root.fd.as_fd())).await?;
        Ok(format!("{}:{}", owner.uid, owner.gid))
    }

    /// Looks the sources up; answers them, their digest, and the list of files to explain a miss by.
    async fn source(
        self: &Arc<Self>,
        stage: &Stage,
        place: &Place<'_>,
        from: Option<&str>,
        wanted: Names,
    ) -> Result<(Source, String, Option<String>)> {
        let of = match from {
            None => None,
            Some(from) => Some(self.source_root(from, stage, place).await?),
        };
        let mut source = Source { of, context: self.context.clone(), wanted, selection: None };
        let known = source.memory(self);
        if let Some(path) = &known
            && let Ok(text) = std::fs::read_to_string(path)
            && let Some((digest, manifest)) = text.split_once('\n')
        {
            let (digest, manifest) = (digest.to_string(), manifest.to_string());
            return Ok((source, digest, Some(manifest)));
        }
        let selection = source.select(self).await?;
        if selection.skipped_sockets > 0 {
            let text = format!(" ---> {} sockets are not copied\n", selection.skipped_sockets);
            place.voice.text(text).await;
        }
        let (digest, manifest) = (selection.digest().to_string(), selection.manifest());
        if let Some(path) = known
            && let Err(error) = files::replace(&path, format!("{digest}\n{manifest}").as_bytes())
        {
            tracing::debug!(error = %error, "digest of a stage's files is not remembered");
        }
        Ok((source, digest, Some(manifest)))
    }

    async fn fetch_all(self: &Arc<Self>, urls: &[String], add: &AddOptions) -> Result<Vec<Remote>> {
        let mut fetched = Vec::new();
        for url in urls {
            let path = self.session.scratch.join(format!("url-{}", files::random_hex(8)));
            let request =
                FetchRequest { url: url.clone(), to: path.clone(), limit_bytes: FETCH_BYTES };
            let answer = tokio::select! {
                answer = self.host.fetch(request) => answer,
                () = self.failed.cancelled() => return Err(Error::Cancelled),
            };
            let answer = answer.map_err(Error::store(format!("ADD failed: {url}")))?;
            let wanted = match &add.checksum {
                None => None,
                Some(text) => Some(text.parse::<Digest>().map_err(|error| {
                    Error::Invalid(format!("invalid --checksum {text:?}: {error}"))
                })?),
            };
            let algorithm = wanted.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
            let file = path.clone();
            let digest = blocking(move || digest_of(&file, algorithm)).await?;
            if let Some(wanted) = wanted.filter(|wanted| *wanted != digest) {
                return Err(Error::Invalid(format!(
                    "ADD failed: digest mismatch of {url}: {digest}, expected {wanted}"
                )));
            }
            let name = answer.file_name.filter(|name| is_plain(name)).or_else(|| base_name(url));
            let name = name.unwrap_or_else(|| "__unnamed__".into());
            fetched.push(Remote { path, name, digest, mtime: answer.last_modified });
        }
        Ok(fetched)
    }

    pub(crate) async fn execute_copy(
        self: &Arc<Self>,
        place: &Place<'_>,
        mounts: Vec<Mount>,
        mut work: CopyWork,
    ) -> Result<()> {
        let mut selected = None;
        if let Some(source) = &mut work.source {
            let selection = match source.selection.take() {
                Some(selection) => selection,
                None => source.select(self).await?,
            };
            selected = Some((source.root(self).await?, selection));
        }
        let root = self.session.open_tree(mounts).await?;
        let cancel = self.failed.clone();
        let line = place.located.lines.start;
        tracing::debug!(line, dest = work.dest, "copying");
        blocking(move || write_all(&work, selected.as_ref(), root, &|| cancel.is_cancelled())).await
    }
}

impl Source {
    /// Where the digest of these files is remembered: a stage's layers never change.
    fn memory(&self, build: &Build) -> Option<PathBuf> {
        let SourceOf::Chain { chain, .. } = self.of.as_ref()?;
        let Names { sources, exclude, parents, .. } = &self.wanted;
        let chain = chain.as_ref()?.to_string();
        let mut parts = vec!["selection", &chain, if *parents { "parents" } else { "" }];
        parts.extend(sources.iter().map(String::as_str));
        parts.push("exclude");
        parts.extend(exclude.iter().map(String::as_str));
        let name = format!("selection-{}", key::fingerprint(&parts));
        Some(build.cache.dir("hashes").join(name))
    }

    async fn root(&self, build: &Build) -> Result<Arc<Root>> {
        match &self.of {
            None => Ok(self.context.clone()),
            Some(of) => of.open(build).await,
        }
    }

    async fn select(&mut self, build: &Build) -> Result<Arc<Selection>> {
        let root = self.root(build).await?;
        let names = self.wanted.clone();
        let selection = blocking(move || {
            let Names { command, sources, exclude, parents } = &names;
            let wanted = Wanted { command, sources, exclude, parents: *parents };
            select::select(&root, &wanted)
        });
        let selection = Arc::new(selection.await?);
        self.selection = Some(selection.clone());
        Ok(selection)
    }
}

/// URLs first, then paths; what is not built yet is refused by name.
fn remote_and_local(transfer: &Transfer, add: &AddOptions) -> Result<(Vec<String>, Vec<String>)> {
    let is_add = transfer.add.is_some();
    if let Some(git) = transfer.sources.iter().find(|source| is_add && is_git(source)) {
        return Err(Error::Unsupported(format!("ADD of a git repository ({git})")));
    }
    let (remote, local): (Vec<String>, Vec<String>) =
        transfer.sources.iter().cloned().partition(|source| is_add && is_url(source));
    if add.checksum.is_some() && (remote.len() != 1 || !local.is_empty()) {
        return Err(Error::Invalid(
            "checksum can't be specified for multiple or non-HTTP sources".into(),
        ));
    }
    if add.unpack == Some(true) && !remote.is_empty() {
        return Err(Error::Unsupported("ADD --unpack of an URL".into()));
    }
    if add.keep_git_dir {
        return Err(Error::Unsupported("ADD --keep-git-dir".into()));
    }
    Ok((remote, local))
}

fn destination(stage: &Stage, written: &str) -> String {
    let mut dest = join(&stage.config.working_dir(), written);
    let as_dir = matches!(written, "." | "..")
        || written.ends_with('/')
        || written.ends_with("/.")
        || written.ends_with("/..");
    if as_dir && !dest.ends_with('/') {
        dest.push('/');
    }
    dest
}

/// What of the instruction, beside files, decides on the result.
fn instruction(
    command: &str,
    dest: &str,
    transfer: &Transfer,
    chown: Option<&str>,
    unpack: bool,
) -> String {
    let mut text = command.to_string();
    if transfer.link {
        text.push_str(" --link");
    }
    for (flag, value) in [("chown", chown), ("chmod", transfer.chmod.as_deref())] {
        if let Some(value) = value {
            text.push_str(&format!(" --{flag}={value}"));
        }
    }
    if transfer.parents {
        text.push_str(" --parents");
    }
    if transfer.add.is_some() && !unpack {
        text.push_str(" --unpack=false");
    }
    for heredoc in &transfer.heredocs {
        text.push_str(&format!(" <<{}", heredoc.name));
    }
    text.push_str(" to ");
    text.push_str(dest);
    for heredoc in &transfer.heredocs {
        text.push('\n');
        text.push_str(&heredoc.content);
    }
    text
}

fn history(command: &str, transfer: &Transfer) -> String {
    let mut words = vec![command.to_string()];
    words.extend(transfer.from.iter().map(|from| format!("--from={from}")));
    words.extend(transfer.chown.iter().map(|chown| format!("--chown={chown}")));
    words.extend(transfer.chmod.iter().map(|chmod| format!("--chmod={chmod}")));
    words.extend(transfer.sources.iter().cloned());
    words.extend(transfer.heredocs.iter().map(|heredoc| heredoc.name.clone()));
    words.push(transfer.dest.clone());
    words.join(" ")
}

fn digest_of(path: &Path, algorithm: Algorithm) -> Result<Digest> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut digester = Digester::new(algorithm);
    std::io::copy(&mut file, &mut digester).map_err(Error::io("read", path))?;
    Ok(digester.finish())
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

fn base_name(url: &str) -> Option<String> {
    let path = url.split(['?', '#']).next()?;
    let path = path.split_once("://")?.1;
    let (_, name) =
        path.split_once('/')?.1.rsplit_once('/').unwrap_or(("", path.split_once('/')?.1));
    is_plain(name).then(|| name.to_string())
}

fn write_all(
    work: &CopyWork,
    selected: Option<&(Arc<Root>, Arc<Selection>)>,
    root: std::os::fd::OwnedFd,
    cancelled: &dyn Fn() -> bool,
) -> Result<()> {
    let owner = match &work.chown {
        None => users::Owner::default(),
        Some(spec) => users::resolve(spec, root.as_fd())?,
    };
    let archive_owner = work.chown.as_ref().map(|_| owner);
    let unpack = |source: &Root, entry: &Entry, dest: &Path| {
        unpack(source, entry, root.as_fd(), dest, archive_owner)
    };
    let own_files = work.heredocs.len() + work.fetched.len();
    let how = Writing {
        command: work.command,
        root: root.as_fd(),
        dest: &work.dest,
        owner: Some(owner),
        chmod: work.chmod.as_ref(),
        unpack: if work.unpack { Some(&unpack) } else { None },
        cancelled,
        others: own_files,
    };
    let count = own_files + selected.map_or(0, |(_, selection)| selection.groups.len());
    if let Some((source, selection)) = selected {
        copy::copy(selection, source, &how)?;
    }
    if own_files == 0 {
        return Ok(());
    }
    let dest = tree::inside(&work.dest);
    let is_dir = copy::dest_is_dir(&how, &dest, count)?;
    let place = |name: &str| if is_dir { dest.join(name) } else { dest.clone() };
    for (name, content) in &work.heredocs {
        let name = name.rsplit('/').next().unwrap_or(name);
        copy::write_new(&how, &place(name), 0o644, &mut content.as_bytes(), None)?;
    }
    for remote in &work.fetched {
        let mut file = File::open(&remote.path).map_err(Error::io("open", &remote.path))?;
        copy::write_new(&how, &place(&remote.name), 0o600, &mut file, remote.mtime)?;
    }
    Ok(())
}

/// Unpacks a local archive for ADD; false if the file is none. What it is shows by its contents.
fn unpack(
    source: &Root,
    entry: &Entry,
    root: std::os::fd::BorrowedFd<'_>,
    dest: &Path,
    owner: Option<users::Owner>,
) -> Result<bool> {
    let fd = tree::open_file(source.fd.as_fd(), &entry.source)
        .map_err(Error::errno("open", &entry.source))?;
    let mut file = File::from(fd);
    if !is_archive(&file) {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(0)).map_err(Error::io("read", &entry.source))?;
    let stream = archive::decompress(BufReader::with_capacity(1 << 18, file))
        .map_err(Error::io("decompress", &entry.source))?;
    let owner = match owner {
        None => archive::Owner::Keep,
        Some(users::Owner { uid, gid }) => archive::Owner::Fixed { uid, gid },
    };
    let mut options = archive::ExtractOptions {
        dest: dest.to_path_buf(),
        owner,
        ..archive::ExtractOptions::default()
    };
    archive::extract(stream, root, &mut options).map_err(|error| Error::Archive {
        op: "unpack",
        path: entry.source.clone(),
        source: error,
    })?;
    Ok(true)
}

/// A tar, compressed or not, whose first entry can be read.
fn is_archive(file: &File) -> bool {
    let Ok(file) = file.try_clone() else { return false };
    let limited = file.take(8 << 20);
    let Ok(stream) = archive::decompress(BufReader::new(limited)) else { return false };
    let mut reader = archive::TarReader::new(stream, archive::Limits::default());
    matches!(reader.next_entry(), Ok(Some(_)))
}

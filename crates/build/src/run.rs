//! RUN.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
};

use dockerfile::{
    Run, RunForm, RunNetwork,
    expand::Expander,
    mount::{CacheMount, MountKind, Sharing},
};
use store_api::Mount;
use tokio::sync::{OwnedMutexGuard, mpsc};

use crate::{
    api::{Output, RunStep, StepMount, StepMountSource},
    build::{Build, Use},
    config::DEFAULT_PATH,
    copy::{self, Writing},
    error::{Error, Result},
    files, graph,
    key::{self, Inputs},
    select::{self, Root, Selection, Wanted},
    session::blocking,
    stage::{Place, Stage, Step, Work, chain_text, join},
    stubs,
};

/// Cache mounts of one `private` id in use at once.
const PRIVATE_CACHES: usize = 64;

/// One command, ready to run.
pub(crate) struct RunWork {
    argv: Vec<String>,
    /// Docker's words for it in errors.
    shown: String,
    env: Vec<String>,
    cwd: String,
    user: String,
    network_mode: String,
    insecure: bool,
    platform: types::Platform,
    script: Option<(String, String)>,
    mounts: Vec<WantedMount>,
}

struct WantedMount {
    target: String,
    kind: WantedKind,
}

enum WantedKind {
    Bind { root: Arc<Root>, selection: Arc<Selection>, read_only: bool },
    Cache(CacheMount),
    Tmpfs { size_bytes: Option<u64> },
}

/// What must live as long as the command: locks on caches, and directories to remove after it.
#[derive(Default)]
struct Held {
    locks: Vec<OwnedMutexGuard<()>>,
    uses: Vec<Use>,
    scratch: Vec<PathBuf>,
}

impl Build {
    pub(crate) async fn prepare_run(
        self: &Arc<Self>,
        stage: &Stage,
        place: &Place<'_>,
        run: &Run,
    ) -> Result<Step> {
        let network_mode = self.network(run)?;
        let (argv, script) = command(stage, run);
        let env = stage.config.env();
        let args = stage.scope.visible(&env);
        let (mounts, files, manifest) = self.wanted_mounts(stage, place, run).await?;
        let mut settings = BTreeMap::from([
            ("user".to_string(), stage.config.user().to_string()),
            ("the working directory".into(), stage.config.working_dir()),
            ("the shell".into(), stage.config.shell().join(" ")),
            ("the network".into(), network_mode.clone()),
            ("the platform".into(), stage.platform.to_string()),
        ]);
        let names = self.run.extra_hosts.iter().filter_map(|host| host.split([':', '=']).next());
        let hosts: Vec<&str> = names.collect();
        if !hosts.is_empty() {
            settings.insert("the extra hosts".into(), hosts.join(" "));
        }
        let mut instruction = place.located.text.clone();
        for heredoc in &run.heredocs {
            instruction.push('\n');
            instruction.push_str(&heredoc.content);
        }
        let inputs = Inputs {
            instruction,
            parent: chain_text(stage),
            args: args.iter().cloned().collect(),
            env: env.iter().cloned().collect(),
            settings,
            files,
        };
        let history = format!("RUN {}", argv.join(" "));
        let work = RunWork {
            shown: argv.join(" "),
            argv,
            env: environment(env, args, self.globals.proxies(&stage.scope)),
            cwd: stage.config.working_dir(),
            user: stage.config.user().to_string(),
            network_mode,
            insecure: run.insecure,
            platform: stage.platform.clone(),
            script,
            mounts,
        };
        let work = Work::Run(Box::new(work));
        Ok(Step { inputs, manifest, history, work, alone: false })
    }

    fn network(&self, run: &Run) -> Result<String> {
        if run.insecure && !self.allow_insecure {
            return Err(Error::Denied("RUN --security=insecure".into()));
        }
        if !run.devices.is_empty() {
            return Err(Error::Unsupported("RUN --device".into()));
        }
        match run.network {
            RunNetwork::Default => Ok(self.run.network_mode.clone()),
            RunNetwork::None => Ok("none".into()),
            RunNetwork::Host if self.run.network_mode == "host" || self.allow_host_network => {
                Ok("host".into())
            }
            RunNetwork::Host => Err(Error::Denied("RUN --network=host".into())),
        }
    }

    /// Reads `--mount`s; answers them, the content of what they show, and the list of its files.
    async fn wanted_mounts(
        self: &Arc<Self>,
        stage: &Stage,
        place: &Place<'_>,
        run: &Run,
    ) -> Result<(Vec<WantedMount>, String, Option<String>)> {
        let mut mounts = Vec::new();
        let mut contents = Vec::new();
        let mut manifest = String::new();
        let cwd = stage.config.working_dir();
        for text in &run.mounts {
            let mount = self.parse_mount(stage, place, text)?;
            let target = join(&cwd, &mount.target);
            let kind = match mount.kind {
                MountKind::Tmpfs { size_bytes } => WantedKind::Tmpfs { size_bytes },
                MountKind::Cache(cache) if cache.from.is_some() || cache.source != "/" => {
                    return Err(Error::Unsupported(
                        "RUN --mount=type=cache with from or source".into(),
                    ));
                }
                MountKind::Cache(cache) => WantedKind::Cache(cache),
                MountKind::Bind { from, source, read_only } => {
                    let (root, selection) = self.bound(stage, place, from, &source).await?;
                    contents.push(selection.digest().to_string());
                    manifest.push_str(&selection.manifest());
                    WantedKind::Bind { root, selection, read_only }
                }
                // A secret that is not required and not given is not mounted.
                MountKind::Secret { required: false, .. }
                | MountKind::Ssh { required: false, .. } => {
                    continue;
                }
                MountKind::Secret { id, .. } => {
                    return Err(Error::Invalid(format!("secret {id}: not found")));
                }
                MountKind::Ssh { id, .. } => {
                    return Err(Error::Invalid(format!("unset ssh forward key {id}")));
                }
            };
            if target == "/" {
                return Err(Error::Invalid("invalid mount target \"/\"".into()));
            }
            mounts.push(WantedMount { target, kind });
        }
        let files = if contents.is_empty() {
            String::new()
        } else {
            let parts: Vec<&str> = contents.iter().map(String::as_str).collect();
            key::fingerprint(&parts)
        };
        let manifest = Some(manifest).filter(|_| !contents.is_empty());
        Ok((mounts, files, manifest))
    }

    fn parse_mount(
        &self,
        stage: &Stage,
        place: &Place<'_>,
        text: &str,
    ) -> Result<dockerfile::mount::Mount> {
        let env = stage.config.env();
        let lookup = |name: &str| stage.scope.lookup(&env, name);
        let mut expander = Expander::new(self.globals.escape(), &lookup);
        dockerfile::mount::parse(text, &mut expander)
            .map_err(|source| Error::Expand { line: place.located.lines.start, source })
    }

    async fn bound(
        self: &Arc<Self>,
        stage: &Stage,
        place: &Place<'_>,
        from: Option<String>,
        source: &str,
    ) -> Result<(Arc<Root>, Arc<Selection>)> {
        let root = match from {
            None => self.context.clone(),
            Some(from) => self.source_root(&from, stage, place).await?.open(self).await?,
        };
        let sources = vec![escaped(source)];
        let looked = root.clone();
        let selection = blocking(move || {
            let wanted =
                Wanted { command: "RUN --mount", sources: &sources, exclude: &[], parents: false };
            select::select(&looked, &wanted)
        });
        Ok((root, Arc::new(selection.await?)))
    }

    pub(crate) async fn execute_run(
        self: &Arc<Self>,
        place: &Place<'_>,
        snapshot: &str,
        mounts: Vec<Mount>,
        work: RunWork,
    ) -> Result<()> {
        let id = files::random_hex(32);
        let short = id[..12].to_string();
        place.voice.text(format!(" ---> Running in {short}\n")).await;
        let mut held = Held::default();
        let ready = self.ready_mounts(&work, &mut held).await;
        let result = match ready {
            Ok(step_mounts) => {
                self.run_container(place, snapshot, mounts, work, id, step_mounts).await
            }
            Err(error) => Err(error),
        };
        let scratch = std::mem::take(&mut held.scratch);
        let removed = blocking(move || {
            for dir in scratch {
                files::remove_tree(&dir).map_err(Error::io("remove", dir))?;
            }
            Ok(())
        });
        result.and(removed.await)?;
        place.voice.text(format!(" ---> Removed intermediate container {short}\n")).await;
        Ok(())
    }

    async fn run_container(
        self: &Arc<Self>,
        place: &Place<'_>,
        snapshot: &str,
        mounts: Vec<Mount>,
        work: RunWork,
        id: String,
        step_mounts: Vec<StepMount>,
    ) -> Result<()> {
        let targets: Vec<String> = step_mounts.iter().map(|mount| mount.target.clone()).collect();
        let before = self.session.open_tree(mounts).await?;
        let missing = blocking(move || Ok(stubs::missing(before.as_fd(), &targets))).await?;
        let step = RunStep {
            hostname: id[..12].to_string(),
            id,
            snapshot_key: snapshot.into(),
            args: work.argv,
            env: work.env,
            cwd: work.cwd,
            user: work.user,
            platform: work.platform,
            network_mode: work.network_mode,
            insecure: work.insecure,
            mounts: step_mounts,
            options: self.run.clone(),
        };
        let (sender, receiver) = mpsc::channel(64);
        let running = self.host.run_step(step, sender, self.failed.child_token());
        let (status, ()) = tokio::join!(running, tell(place, receiver));
        let status = status.map_err(Error::host)?;
        if status != 0 {
            return Err(Error::Exit { command: work.shown, code: status });
        }
        let after = self.session.mounts(snapshot).await?;
        let after = self.session.open_tree(after).await?;
        blocking(move || {
            stubs::remove(after.as_fd(), &missing)
                .map_err(Error::errno("remove mount points in", "/"))
        })
        .await
    }

    async fn ready_mounts(
        self: &Arc<Self>,
        work: &RunWork,
        held: &mut Held,
    ) -> Result<Vec<StepMount>> {
        let mut ready = Vec::new();
        if let Some((name, content)) = &work.script {
            let dir = self.scratch_dir(held)?;
            let path = dir.join("script");
            std::fs::write(&path, content).map_err(Error::io("write", &path))?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&path, mode).map_err(Error::io("write", &path))?;
            let target = format!("/dev/pipes/{name}");
            ready.push(StepMount { target, read_only: true, source: StepMountSource::Bind(path) });
        }
        self.lock_caches(work, held).await?;
        for mount in &work.mounts {
            let (source, read_only) = match &mount.kind {
                WantedKind::Tmpfs { size_bytes } => {
                    (StepMountSource::Tmpfs { size_bytes: *size_bytes }, false)
                }
                WantedKind::Cache(cache) => {
                    let dir = self.cache_mount(cache, held).await?;
                    (StepMountSource::Bind(dir), cache.read_only)
                }
                WantedKind::Bind { root, selection, read_only } => {
                    let dir = self.scratch_dir(held)?;
                    let path = self.materialise(root, selection, dir).await?;
                    (StepMountSource::Bind(path), *read_only)
                }
            };
            ready.push(StepMount { target: mount.target.clone(), read_only, source });
        }
        Ok(ready)
    }

    fn scratch_dir(&self, held: &mut Held) -> Result<PathBuf> {
        let dir = self.session.scratch.join(format!("m-{}", files::random_hex(8)));
        files::private_dir(&dir).map_err(Error::io("create", &dir))?;
        held.scratch.push(dir.clone());
        Ok(dir)
    }

    /// A copy for a bind mount: what a stage's path leads to is settled here, not while containers run,
    /// and writes go nowhere else.
    async fn materialise(
        &self,
        root: &Arc<Root>,
        selection: &Arc<Selection>,
        dir: PathBuf,
    ) -> Result<PathBuf> {
        let (root, selection) = (root.clone(), selection.clone());
        let cancel = self.failed.clone();
        blocking(move || {
            let target = std::fs::File::open(&dir).map_err(Error::io("open", &dir))?;
            let is_dir = selection.groups.iter().any(|group| group.is_dir);
            let dest = if is_dir { "/root/" } else { "/file" };
            let how = Writing {
                command: "RUN --mount",
                root: target.as_fd(),
                dest,
                owner: None,
                chmod: None,
                unpack: None,
                cancelled: &|| cancel.is_cancelled(),
                others: 0,
            };
            copy::copy(&selection, &root, &how)?;
            Ok(dir.join(dest.trim_matches('/')))
        })
        .await
    }

    /// Waits for the caches that are used by one command at a time: each once, and always in the same
    /// order, so that no two commands wait for each other.
    async fn lock_caches(&self, work: &RunWork, held: &mut Held) -> Result<()> {
        let names: BTreeSet<String> = work
            .mounts
            .iter()
            .filter_map(|mount| match &mount.kind {
                WantedKind::Cache(cache) if cache.sharing == Sharing::Locked => {
                    Some(cache_name(cache))
                }
                _ => None,
            })
            .collect();
        for name in names {
            held.locks.push(self.lock(&format!("cache mount {name}")).await?);
        }
        Ok(())
    }

    async fn cache_mount(&self, cache: &CacheMount, held: &mut Held) -> Result<PathBuf> {
        let name = cache_name(cache);
        let base = self.cache.dir("mounts");
        let name = match cache.sharing {
            Sharing::Shared | Sharing::Locked => name,
            Sharing::Private => {
                let free = (0..PRIVATE_CACHES).find_map(|number| {
                    let lock = self.locks.get(&format!("private cache mount {name} {number}"));
                    lock.try_lock_owned().ok().map(|guard| (guard, number))
                });
                let (guard, number) = free.ok_or(Error::Limit {
                    what: "users of one private cache at once",
                    limit: 64,
                })?;
                held.locks.push(guard);
                format!("{name}-{number}")
            }
        };
        held.uses.push(self.locks.use_mount(&name));
        let dir = base.join(name);
        let (mode, uid, gid) = (cache.mode, cache.uid, cache.gid);
        let id = cache.id.clone();
        blocking(move || make_cache_dir(&dir, mode, (uid, gid), &id)).await
    }
}

fn cache_name(cache: &CacheMount) -> String {
    key::fingerprint(&["cache mount", &cache.id])
}

/// `DIR/data` is what is mounted; `DIR` itself stays private to the builder.
fn make_cache_dir(dir: &std::path::Path, mode: u32, ids: (u32, u32), id: &str) -> Result<PathBuf> {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    files::private_dir(dir).map_err(Error::io("create", dir))?;
    let data = dir.join("data");
    match std::fs::create_dir(&data) {
        Ok(()) => {
            chown(&data, Some(ids.0), Some(ids.1)).map_err(Error::io("change owner of", &data))?;
            std::fs::set_permissions(&data, std::fs::Permissions::from_mode(mode))
                .map_err(Error::io("change mode of", &data))?;
            files::replace(&dir.join("id"), id.as_bytes()).map_err(Error::io("write", dir))?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io("create", data)(error)),
    }
    // When it was used last.
    files::touch(&dir.join("used")).map_err(Error::io("write", dir))?;
    Ok(data)
}

/// A path as a pattern that matches only itself.
fn escaped(path: &str) -> String {
    let mut out = String::new();
    for c in path.chars() {
        if "*?[\\".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// What is executed, and the script to be mounted for it.
fn command(stage: &Stage, run: &Run) -> (Vec<String>, Option<(String, String)>) {
    match run.form() {
        RunForm::Exec(words) => (words, None),
        RunForm::Shell(line) => {
            let mut words = stage.config.shell();
            words.push(line);
            (words, None)
        }
        RunForm::Script { name, content } => {
            (vec![format!("/dev/pipes/{name}")], Some((name, content)))
        }
    }
}

/// `NAME=value`, later ones over earlier ones, and a PATH.
fn environment(
    env: Vec<(String, String)>,
    args: Vec<(String, String)>,
    proxies: Vec<(String, String)>,
) -> Vec<String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    all.insert("PATH".into(), DEFAULT_PATH.into());
    all.extend(proxies);
    all.extend(args);
    all.extend(env);
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Prints a command's output; characters that arrive in two pieces stay whole.
async fn tell(place: &Place<'_>, mut output: mpsc::Receiver<Output>) {
    let mut rest: Vec<u8> = Vec::new();
    while let Some(piece) = output.recv().await {
        rest.extend_from_slice(&piece.bytes);
        let keep = incomplete(&rest);
        let tail = rest.split_off(rest.len() - keep);
        let text = String::from_utf8_lossy(&rest).into_owned();
        rest = tail;
        if !text.is_empty() {
            place.voice.text(text).await;
        }
    }
    if !rest.is_empty() {
        place.voice.text(String::from_utf8_lossy(&rest).into_owned()).await;
    }
}

/// Bytes at the end that begin a character and do not finish it.
fn incomplete(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let needed = match byte {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if needed > back { back } else { 0 };
    }
    0
}

/// The stage or image that a `from` means.
pub(crate) enum SourceOf {
    Chain { chain: Option<types::Digest>, name: String },
}

impl SourceOf {
    pub(crate) async fn open(&self, build: &Build) -> Result<Arc<Root>> {
        let Self::Chain { chain, name } = self;
        build.session.view(chain.as_ref(), name).await
    }
}

impl Build {
    /// Waits for the stage, or finds the image, that `from` names.
    pub(crate) async fn source_root(
        self: &Arc<Self>,
        from: &str,
        stage: &Stage,
        place: &Place<'_>,
    ) -> Result<SourceOf> {
        if let Some(index) = graph::stage_of(&self.file, from, place.stage)? {
            let source = self.stage(index).await?;
            let name = self.stage_name(index);
            return Ok(SourceOf::Chain { chain: source.chain.clone(), name });
        }
        let (image, _) = self.resolve_image(from, &stage.platform, place.voice).await?;
        Ok(SourceOf::Chain {
            chain: image.chain_ids.last().cloned(),
            name: format!("image {from}"),
        })
    }
}

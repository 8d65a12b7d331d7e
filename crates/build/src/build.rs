//! One build from request to image: what its stages share, and how they are started.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use dockerfile::{Dockerfile, checks};
use store_api::{Credentials, Timestamp};
use tokio::{
    sync::{OnceCell, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use types::{ImageRef, Platform};

use crate::{
    Builder,
    api::{BuildEvent, BuildRequest, Built, Context, Host, RunOptions},
    cache::Cache,
    context,
    error::{Error, Result},
    graph::Plan,
    key,
    print::Printer,
    select::Root,
    session::{Session, blocking},
    stage::{self, Shared},
    vars::Globals,
};

/// Locks by name; those that nobody holds or waits for go away.
#[derive(Default)]
pub(crate) struct Locks {
    map: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// How many commands use a cache mount, by the name of its directory.
    users: Mutex<HashMap<String, usize>>,
}

/// Keeps a cache mount from being pruned.
pub(crate) struct Use {
    locks: Arc<Locks>,
    name: String,
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut users = self.locks.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = users.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.name);
            }
        }
    }
}

impl Locks {
    pub(crate) fn get(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = map.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        map.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        map.insert(name.into(), Arc::downgrade(&lock));
        lock
    }

    pub(crate) fn use_mount(self: &Arc<Self>, name: &str) -> Use {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        *users.entry(name.into()).or_default() += 1;
        Use { locks: self.clone(), name: name.into() }
    }

    /// Runs `act` while nobody can begin to use a cache mount; `None` if somebody uses it.
    pub(crate) fn unless_used<T>(&self, name: &str, act: impl FnOnce() -> T) -> Option<T> {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        (!users.contains_key(name)).then(act)
    }

    pub(crate) fn is_held(&self, name: &str) -> bool {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(name).is_some_and(|lock| lock.strong_count() > 0)
    }
}

/// What all stages of one build share.
pub(crate) struct Build {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) cache: Cache,
    pub(crate) locks: Arc<Locks>,
    pub(crate) session: Arc<Session>,
    pub(crate) context: Arc<Root>,
    pub(crate) file: Dockerfile,
    pub(crate) plan: Plan,
    pub(crate) globals: Globals,
    pub(crate) stages: Vec<OnceCell<Shared>>,
    pub(crate) printer: Arc<Printer>,
    /// Cancelled with the build, and when a stage fails.
    pub(crate) failed: CancellationToken,
    /// What tells this build's Dockerfile from others, for explanations.
    pub(crate) project: String,
    /// `SOURCE_DATE_EPOCH` as RFC 3339.
    pub(crate) epoch: Option<String>,
    pub(crate) platform: Platform,
    pub(crate) tags: Vec<ImageRef>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) no_cache: bool,
    pub(crate) pull: bool,
    pub(crate) credentials: Arc<BTreeMap<String, Credentials>>,
    pulled: Mutex<BTreeSet<String>>,
    pub(crate) squash: bool,
    pub(crate) run: RunOptions,
    pub(crate) allow_insecure: bool,
    pub(crate) allow_host_network: bool,
}

impl Build {
    /// Takes a lock by name, unless the build ends first.
    pub(crate) async fn lock(&self, name: &str) -> Result<tokio::sync::OwnedMutexGuard<()>> {
        let lock = self.locks.get(name);
        tokio::select! {
            guard = lock.lock_owned() => Ok(guard),
            () = self.failed.cancelled() => Err(Error::Cancelled),
        }
    }

    pub(crate) fn check_cancelled(&self) -> Result<()> {
        if self.failed.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    pub(crate) fn now(&self) -> String {
        self.epoch.clone().unwrap_or_else(|| stage::rfc3339(Timestamp::now()))
    }

    /// `--pull` asks the registry once per image and build.
    pub(crate) fn first_pull(&self, name: &str, platform: &Platform) -> bool {
        let mut pulled = self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
        pulled.insert(format!("{name} {platform}"))
    }

    /// Runs all needed stages side by side, then exports the target.
    async fn run(self: Arc<Self>) -> Result<Built> {
        let mut tasks = JoinSet::new();
        for index in self.plan.needed.iter().copied() {
            let build = self.clone();
            tasks.spawn(async move { build.stage(index).await.map(drop) });
        }
        let mut failure: Option<Error> = None;
        while let Some(ended) = tasks.join_next().await {
            let Err(error) = ended.map_err(Error::Task).and_then(|result| result) else { continue };
            self.failed.cancel();
            // The cancellation of the other stages only follows from the first failure.
            if failure.is_none() || error.kind() != types::ErrorKind::Cancelled {
                let better = failure
                    .as_ref()
                    .is_none_or(|present| present.kind() == types::ErrorKind::Cancelled);
                if better {
                    failure = Some(error);
                }
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        let unused = self.globals.unused();
        if !unused.is_empty() {
            let text = format!(
                "[Warning] One or more build-args [{}] were not consumed\n",
                unused.join(" ")
            );
            self.printer.plain(BuildEvent::Stream(text)).await;
        }
        let target = self.stage(self.plan.target).await?;
        self.export(&target).await
    }
}

impl Builder {
    pub(crate) async fn build_in(
        &self,
        request: BuildRequest,
        events: mpsc::Sender<BuildEvent>,
        cancel: CancellationToken,
        session: Arc<Session>,
    ) -> Result<Built> {
        refuse(&request)?;
        let (given, name) = (request.context.clone(), request.dockerfile.clone());
        let (scratch, cache) = (session.scratch.clone(), self.cache.clone());
        let opened = blocking(move || context::open(&given, &name, &scratch, &cache)).await?;
        let file = dockerfile::parse(&opened.dockerfile)?;
        check_syntax(&file)?;
        report_checks(&file, &events).await?;
        let platform = request.platform.clone().unwrap_or_else(Platform::host);
        let target = request.target.as_deref().filter(|target| !target.is_empty());
        let globals = Globals::new(
            request.build_args.clone(),
            &file.global_args,
            file.directives.escape,
            &platform,
            target.unwrap_or("default"),
        )?;
        let plan = Plan::new(&file, target, &globals)?;
        let failed = cancel.child_token();
        let silent = |index| !plan.needed.contains(&index);
        let printer = Printer::new(events, failed.clone(), file.stages.len(), silent);
        let epoch = globals.source_date_epoch()?;
        let epoch = epoch.map(|seconds| stage::rfc3339(Timestamp { seconds, nanos: 0 }));
        let identity = match (&opened.identity, &request.context, request.tags.first()) {
            (_, Context::Dir(path), _) => path.display().to_string(),
            (Some(identity), _, _) => identity.clone(),
            (None, _, Some(tag)) => tag.to_string(),
            (None, _, None) => String::new(),
        };
        let build = Arc::new(Build {
            host: self.host.clone(),
            cache: self.cache.clone(),
            locks: self.locks.clone(),
            session,
            context: Arc::new(opened.root),
            stages: file.stages.iter().map(|_| OnceCell::new()).collect(),
            project: key::fingerprint(&["project", &identity, &request.dockerfile]),
            file,
            plan,
            globals,
            printer,
            failed,
            epoch,
            platform,
            tags: request.tags.into_iter().map(ImageRef::with_default_tag).collect(),
            labels: request.labels,
            no_cache: request.no_cache,
            pull: request.pull,
            credentials: request.credentials.clone(),
            pulled: Mutex::default(),
            squash: request.squash,
            run: request.run,
            allow_insecure: request.allow_insecure,
            allow_host_network: request.allow_host_network,
        });
        build.run().await
    }
}

/// What is known and not built yet.
fn refuse(request: &BuildRequest) -> Result<()> {
    if !request.cache_from.is_empty() {
        return Err(Error::Unsupported("--cache-from".into()));
    }
    if let Some(platform) = request.platform.as_ref().filter(|platform| platform.os != "linux") {
        return Err(Error::Unsupported(format!("a build for {platform}")));
    }
    Ok(())
}

/// This builder speaks the language of `docker/dockerfile:1`; other frontends are images to run.
fn check_syntax(file: &Dockerfile) -> Result<()> {
    let Some(syntax) = &file.directives.syntax else { return Ok(()) };
    let name = syntax.strip_prefix("docker.io/").unwrap_or(syntax);
    let (name, version) = name.split_once([':', '@']).unwrap_or((name, "1"));
    let known = matches!(name, "docker/dockerfile" | "docker/dockerfile-upstream")
        && (version == "latest"
            || version == "master"
            || version.split(['.', '-']).next() == Some("1")
            || version.starts_with("sha256:"));
    if known {
        return Ok(());
    }
    Err(Error::Unsupported(format!("the Dockerfile frontend {syntax} (# syntax)")))
}

async fn report_checks(file: &Dockerfile, events: &mpsc::Sender<BuildEvent>) -> Result<()> {
    let warnings = checks::check(file);
    for warning in &warnings {
        let text =
            format!("[Warning] {}: {} (line {})\n", warning.rule, warning.message, warning.line);
        // A receiver that is gone cancels the build by its token.
        let _gone = events.send(BuildEvent::Stream(text)).await;
    }
    let options = file.directives.check.as_deref().map(checks::CheckOptions::parse);
    if !warnings.is_empty() && options.is_some_and(|options| options.error) {
        let rules: BTreeSet<&str> = warnings.iter().map(|warning| warning.rule).collect();
        let rules: Vec<&str> = rules.into_iter().collect();
        return Err(Error::Invalid(format!(
            "lint violation found for rules: {}",
            rules.join(", ")
        )));
    }
    Ok(())
}

//! Builds: the engine as the builder's host. A RUN is a container that only the builder knows.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use api_types::{
    AuthConfig, BuildCachePruneReport, BuildOptions, Config, Filters, HostConfig, JsonMessage, Map,
    Resources, Ulimit,
};
use async_trait::async_trait;
use build::{
    Base, BaseRequest, BuildEvent, BuildRequest, CancellationToken, Context, FetchRequest, Fetched,
    Host, Output, PruneRequest, RunStep, StdStream, StepMountSource,
};
use store_api::{ByteStream, CreateTask, ProcessId, Progress, PullRequest, Stdio};
use tokio::sync::mpsc;
use types::{ContainerId, ErrorKind, ImageRef, Platform};

use crate::{
    Engine, Error, Result,
    container::{
        Container,
        record::{ImageUse, MountKind, MountUse, NewRecord, Record},
        wanted_outputs,
    },
    image::{Failure, MessageSender, Messages, Teller, auth, failure},
    pipe::receive,
    util::{make_dir, random_id},
};

const QUEUE: usize = 64;
/// Bytes of a build context: what a spool directory may be asked to take.
const CONTEXT_BYTES: u64 = 64 << 30;
/// Of the file that a build's context is received into.
pub(crate) const CONTEXT_PREFIX: &str = "context-";
/// Bytes kept of a quiet build's output, in case it fails.
const UNSAID_BYTES: usize = 4 << 20;
/// What a message takes besides its text.
const MESSAGE_BYTES: usize = 512;
/// How long a killed step may take to end.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// What the builder sees of the engine. Weak, since the engine owns the builder.
pub(crate) struct BuildHost {
    pub(crate) engine: Weak<Engine>,
}

impl BuildHost {
    fn engine(&self) -> store_api::Result<Arc<Engine>> {
        self.engine.upgrade().ok_or_else(|| {
            store_api::Error::new(ErrorKind::Unavailable, "the engine is shutting down")
        })
    }
}

fn to_store(error: Error) -> store_api::Error {
    store_api::Error::new(error.kind, error.message)
}

#[async_trait]
impl Host for BuildHost {
    async fn fetch(&self, request: FetchRequest) -> store_api::Result<Fetched> {
        let engine = self.engine()?;
        let transfer = &engine.services.transfer;
        let access = engine.registry_access(None);
        let (url, limit) = (&request.url, request.limit_bytes);
        let got = transfer.fetch(url, &request.to, limit, &access).await?;
        Ok(Fetched { last_modified: got.last_modified, file_name: got.file_name })
    }

    async fn resolve_base(
        &self,
        request: BaseRequest,
        progress: mpsc::Sender<Progress>,
        cancel: CancellationToken,
    ) -> store_api::Result<Base> {
        let engine = self.engine()?;
        let reference = request.name.parse::<ImageRef>().ok().map(ImageRef::with_default_tag);
        if !request.pull || reference.is_none() {
            match engine.find_image(&request.name).await {
                Ok(known) => {
                    let here = engine
                        .services
                        .extras
                        .resolve_image(&known.target, Some(&request.platform));
                    if here.await.is_ok() || reference.is_none() {
                        return Ok(Base { reference, target: known.target });
                    }
                }
                Err(error) if error.is_not_found() && reference.is_some() => {}
                Err(error) => return Err(to_store(error)),
            }
        }
        let reference = reference.ok_or_else(|| to_store(Error::no_such_image(&request.name)))?;
        let mut access = engine.registry_access(None);
        access.credentials = auth::of_image(&request.credentials, &reference).cloned();
        let before = engine.services.images.get(&reference.to_string()).await.ok();
        let pull = engine.services.transfer.pull(
            PullRequest {
                reference: reference.clone(),
                platform: Some(request.platform),
                all_platforms: false,
                all_metadata: false,
                access,
                unpack: true,
                records: Default::default(),
            },
            progress,
        );
        tokio::select! {
            pulled = pull => {
                let target = pulled?.target;
                if let Some(old) = before.filter(|old| old.target.digest != target.digest) {
                    engine.ensure_record(&old.target).await.map_err(to_store)?;
                }
                engine.drop_dangling(&target.digest).await.map_err(to_store)?;
                Ok(Base { reference: Some(reference), target })
            }
            () = cancel.cancelled() => Err(cancelled()),
        }
    }

    async fn run_step(
        &self,
        step: RunStep,
        output: mpsc::Sender<Output>,
        cancel: CancellationToken,
    ) -> store_api::Result<i32> {
        let engine = self.engine()?;
        engine.run_build_step(step, output, cancel).await.map_err(to_store)
    }
}

fn cancelled() -> store_api::Error {
    store_api::Error::new(ErrorKind::Cancelled, "the build was cancelled")
}

impl Engine {
    async fn run_build_step(
        self: &Arc<Self>,
        step: RunStep,
        output: mpsc::Sender<Output>,
        cancel: CancellationToken,
    ) -> Result<i32> {
        let dir = self.config.exec_root.join("build").join(&step.id);
        make_dir(&dir)?;
        let record = self.step_record(&step)?;
        let container = Container::new(dir.clone(), record);
        let result = self.run_step_container(&container, &step, output, cancel).await;
        self.networks.tear_down(self, &container).await;
        match self.services.containers.delete(&step.id).await {
            Err(error) if !error.is_not_found() => {
                tracing::warn!(step = %step.id, %error, "a step's record was left behind");
            }
            _ => {}
        }
        if let Err(error) = std::fs::remove_dir_all(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "a step's directory was left behind");
        }
        result
    }

    fn step_record(&self, step: &RunStep) -> Result<Record> {
        let id: ContainerId = step.id.parse()?;
        let options = &step.options;
        let limits = &options.limits;
        let shares = limits.cpu_shares.and_then(|n| i64::try_from(n).ok()).unwrap_or(0);
        let period = limits.cpu_period.and_then(|n| i64::try_from(n).ok()).unwrap_or(0);
        let ulimits = options.ulimits.iter().map(|u| Ulimit {
            name: u.name.clone(),
            hard: u.hard,
            soft: u.soft,
        });
        let mut host = HostConfig {
            network_mode: step.network_mode.clone(),
            privileged: step.insecure,
            extra_hosts: options.extra_hosts.clone(),
            shm_size: options
                .shm_bytes
                .and_then(|n| i64::try_from(n).ok())
                .unwrap_or(self.config.default_shm_bytes),
            ipc_mode: "private".into(),
            cgroupns_mode: if self.facts.cgroup_v2 { "private".into() } else { "host".into() },
            resources: Resources {
                memory: limits.memory_bytes.unwrap_or(0),
                memory_swap: limits.memory_swap_bytes.unwrap_or(0),
                cpu_shares: shares,
                cpu_quota: limits.cpu_quota.unwrap_or(0),
                cpu_period: period,
                cpuset_cpus: limits.cpuset_cpus.clone(),
                cpuset_mems: limits.cpuset_mems.clone(),
                cgroup_parent: options.cgroup_parent.clone(),
                ulimits: ulimits.collect(),
                ..Resources::default()
            },
            ..HostConfig::default()
        };
        let config = Config {
            hostname: step.hostname.clone(),
            user: step.user.clone(),
            env: step.env.clone(),
            cmd: Some(api_types::StrSlice(step.args.clone())),
            working_dir: step.cwd.clone(),
            ..Config::default()
        };
        let networks = self.wanted_networks(&config, &mut host, Map::new())?;
        let nothing = types::Digest::sha256("");
        let unused = store_api::Descriptor::new("", nothing.clone(), 0);
        Ok(Record::new(NewRecord {
            name: format!("build-{}", id.short()),
            id,
            image: ImageUse { id: nothing, target: unused.clone(), manifest: unused, parent: None },
            config,
            host_config: host,
            mounts: step.mounts.iter().map(step_mount).collect(),
            networks,
        }))
    }

    async fn run_step_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        step: &RunStep,
        output: mpsc::Sender<Output>,
        cancel: CancellationToken,
    ) -> Result<i32> {
        self.networks.set_up(self, container).await?;
        let record = container.snapshot();
        let upstreams = self.write_files(container, &record)?;
        self.networks.start_dns(container, &record, upstreams).await?;
        let user = self.user_on(&step.snapshot_key, &record).await?;
        let spec = self.container_spec(container, &record, user)?;
        self.put_store_record(&record, &spec, (&step.snapshot_key, true)).await?;
        let init = ProcessId::init(step.id.as_str());
        let stdio = Stdio {
            stdout: "gantry://none".into(),
            stderr: "gantry://none".into(),
            ..Stdio::default()
        };
        let create = CreateTask { container_id: step.id.clone(), stdio, ..CreateTask::default() };
        self.services.tasks.create(create).await.map_err(crate::container::create_failed)?;
        let ran = self.run_step_task(container, &init, output, cancel).await;
        if ran.is_err() {
            self.kill_step(&init).await;
        }
        match self.services.tasks.delete(&init).await {
            Err(error) if !error.is_not_found() => {
                tracing::warn!(step = %step.id, %error, "a step's task was left behind");
            }
            _ => {}
        }
        ran
    }

    async fn run_step_task(
        self: &Arc<Self>,
        container: &Arc<Container>,
        init: &ProcessId,
        output: mpsc::Sender<Output>,
        cancel: CancellationToken,
    ) -> Result<i32> {
        let (mut session, backend) = crate::container::session(false);
        let wanted = wanted_outputs();
        let connection = self.connect(init, &wanted).await?;
        self.services.tasks.start(init).await.map_err(crate::container::create_failed)?;
        self.pump(container.clone(), connection, backend, wanted, None);
        let forward = async {
            while let Some(item) = session.output.recv().await {
                let (stream, bytes) = match item {
                    crate::container::Output::Stdout(bytes) => (StdStream::Stdout, bytes),
                    crate::container::Output::Stderr(bytes) => (StdStream::Stderr, bytes),
                    crate::container::Output::Failure(text) => (StdStream::Stderr, text.into()),
                };
                // The step runs on when nobody reads: its result is still wanted.
                drop(output.send(Output { stream, bytes }).await);
            }
        };
        tokio::select! {
            (exit, ()) = async { tokio::join!(self.services.tasks.wait(init), forward) } => {
                Ok(i32::try_from(exit?.status).unwrap_or(255))
            }
            () = cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "the build was cancelled")),
        }
    }

    async fn kill_step(&self, init: &ProcessId) {
        if let Err(error) = self.services.tasks.kill(init, crate::container::SIGKILL, true).await {
            tracing::debug!(%error, "a step had nothing to kill");
        }
        if tokio::time::timeout(KILL_WAIT, self.services.tasks.wait(init)).await.is_err() {
            tracing::warn!(step = %init.container_id, "a step does not die");
        }
    }

    /// Builds an image from a context that is a tar stream.
    pub async fn build(
        self: &Arc<Self>,
        options: BuildOptions,
        body: ByteStream,
        auth: BTreeMap<String, AuthConfig>,
    ) -> Result<Messages> {
        let mut request = build_request(&options)?;
        request.credentials = Arc::new(auth::by_registry(&auth));
        let (sender, messages) = mpsc::channel(QUEUE);
        let engine = self.clone();
        tokio::spawn(async move {
            let result = engine.build_telling(request, body, options.quiet, &sender).await;
            if let Err((error, code)) = result {
                let failure = Failure { error, code: code.map_or(0, i64::from) };
                drop(sender.send(Err(failure)).await);
            }
        });
        Ok(messages)
    }

    async fn build_telling(
        self: &Arc<Self>,
        mut request: BuildRequest,
        body: ByteStream,
        quiet: bool,
        sender: &MessageSender,
    ) -> Result<(), (Error, Option<i32>)> {
        let plain = |error: Error| (error, None);
        let spool = self.spool_context(body).await.map_err(plain)?;
        request.context = Context::Tar(spool.0.clone());
        let builder = self.builder().map_err(plain)?;
        let cancel = CancellationToken::new();
        let (events, mut received) = mpsc::channel(QUEUE);
        let built = builder.build(request, events, cancel.clone());
        let mut unsaid = Unsaid::default();
        let tell = async {
            let mut teller = Teller::new(false);
            while let Some(event) = received.recv().await {
                for message in messages_of(event, &mut teller) {
                    if quiet {
                        unsaid.keep(message);
                    } else if sender.send(Ok(message)).await.is_err() {
                        // Nobody reads any more: docker ends the build then.
                        cancel.cancel();
                    }
                }
            }
        };
        let gone = async {
            sender.closed().await;
            cancel.cancel();
            std::future::pending::<()>().await;
        };
        let (built, ()) = tokio::select! {
            both = async { tokio::join!(built, tell) } => both,
            () = gone => unreachable!("it never ends"),
        };
        drop(spool);
        let built = match built {
            Ok(built) => built,
            Err(error) => {
                // What a quiet build has to show for its failure, as with dockerd.
                for message in unsaid.messages {
                    drop(sender.send(Ok(message)).await);
                }
                let code = error.exit_code();
                return Err((Error::new(error.kind(), failure(&error)), code));
            }
        };
        if quiet {
            let text = format!("{}\n", built.target.digest);
            drop(sender.send(Ok(JsonMessage { stream: text, ..JsonMessage::default() })).await);
        }
        self.image_event("build", &built.target.digest.to_string(), "");
        Ok(())
    }

    /// Writes the context to a file of its own, which goes with the guard.
    async fn spool_context(&self, body: ByteStream) -> Result<Spool> {
        let dir = self.config.data_root.join("tmp");
        make_dir(&dir)?;
        let path = dir.join(format!("{CONTEXT_PREFIX}{}", random_id()));
        let spool = Spool(path.clone());
        receive(std::sync::Arc::default(), body, move |reader| {
            let mut file =
                std::fs::File::create_new(&path).map_err(|e| Error::io("create", &path, &e))?;
            let mut reader = std::io::Read::take(reader, CONTEXT_BYTES);
            std::io::copy(&mut reader, &mut file)
                .map_err(|e| Error::io("receive the build context into", &path, &e))?;
            if reader.limit() == 0 {
                return Err(Error::invalid(format!(
                    "the build context has over {CONTEXT_BYTES} bytes"
                )));
            }
            Ok(())
        })
        .await?;
        Ok(spool)
    }

    /// What a web server has, as a stream.
    pub(crate) async fn download(&self, url: &str) -> Result<ByteStream> {
        let dir = self.config.data_root.join("tmp");
        make_dir(&dir)?;
        let spool = Spool(dir.join(format!("{CONTEXT_PREFIX}{}", random_id())));
        let access = self.registry_access(None);
        self.services.transfer.fetch(url, &spool.0, CONTEXT_BYTES, &access).await?;
        crate::pipe::produce(Arc::default(), move |mut writer| {
            let mut file =
                std::fs::File::open(&spool.0).map_err(|e| Error::io("open", &spool.0, &e))?;
            std::io::copy(&mut file, &mut writer)
                .and_then(|_| std::io::Write::flush(&mut writer))
                .map_err(|e| Error::io("read", &spool.0, &e))
        })
    }

    pub async fn build_prune(
        &self,
        all: bool,
        keep_bytes: u64,
        filters: &Filters,
    ) -> Result<BuildCachePruneReport> {
        filters.validate(&["until", "unused-for"])?;
        let until = filters.get("until").chain(filters.get("unused-for")).next();
        let unused_for = match until {
            Some(text) => {
                let nanos = types::parse_duration(text).ok().and_then(|n| u64::try_from(n).ok());
                Some(nanos.map(Duration::from_nanos).ok_or_else(|| {
                    Error::invalid(format!("invalid value for the filter until: {text:?}"))
                })?)
            }
            None => None,
        };
        let pruned = self
            .builder()?
            .prune(PruneRequest { all, keep_bytes, unused_for })
            .await
            .map_err(|e| Error::new(e.kind(), failure(&e)))?;
        let attributes = Map::from([("reclaimed".into(), pruned.bytes.to_string())]);
        self.events.publish("builder", "prune", "", attributes);
        Ok(BuildCachePruneReport { caches_deleted: pruned.ids, space_reclaimed: pruned.bytes })
    }
}

/// A temporary file.
struct Spool(PathBuf);

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.0.display(), %error, "a build context was left behind");
        }
    }
}

fn step_mount(mount: &build::StepMount) -> MountUse {
    let (kind, source, options) = match &mount.source {
        StepMountSource::Bind(path) => (MountKind::Bind, path.clone(), vec!["rbind".to_string()]),
        StepMountSource::Tmpfs { size_bytes } => {
            let size = size_bytes.map(|bytes| format!("size={bytes}"));
            (MountKind::Tmpfs, PathBuf::new(), size.into_iter().collect())
        }
    };
    MountUse {
        kind,
        name: String::new(),
        source,
        target: mount.target.clone(),
        read_only: mount.read_only,
        propagation: "rprivate".into(),
        mode: String::new(),
        options,
        anonymous: false,
        no_copy: true,
        subpath: String::new(),
        from_mounts: true,
        read_only_non_recursive: false,
    }
}

fn build_request(options: &BuildOptions) -> Result<BuildRequest> {
    let refuse = |set: bool, name: &str| {
        if set {
            Err(Error::not_implemented(format!("build parameter \"{name}\"")))
        } else {
            Ok(())
        }
    };
    refuse(options.version == "2", "version=2")?;
    refuse(!options.remote.is_empty(), "remote")?;
    refuse(!options.outputs.is_empty(), "outputs")?;
    refuse(!options.security_opt.is_empty(), "securityopt")?;
    refuse(!matches!(options.isolation.as_str(), "" | "default"), "isolation")?;
    let mut tags = Vec::new();
    for tag in &options.tags {
        tags.push(tag.parse::<ImageRef>()?.with_default_tag());
    }
    let platform = match options.platform.as_str() {
        "" => None,
        text => Some(text.parse::<Platform>().map_err(|e| Error::invalid(e.to_string()))?),
    };
    let given = |n: i64| (n != 0).then_some(n);
    let positive = |n: i64| u64::try_from(n).ok().filter(|n| *n != 0);
    Ok(BuildRequest {
        context: Context::None,
        credentials: Arc::default(),
        dockerfile: options.dockerfile.clone(),
        tags,
        build_args: options.build_args.clone(),
        labels: options.labels.clone(),
        target: (!options.target.is_empty()).then(|| options.target.clone()),
        no_cache: options.no_cache,
        pull: options.pull,
        platform,
        squash: options.squash,
        cache_from: options.cache_from.clone(),
        run: build::RunOptions {
            network_mode: match options.network_mode.as_str() {
                "default" => String::new(),
                mode => mode.into(),
            },
            extra_hosts: options.extra_hosts.clone(),
            shm_bytes: positive(options.shm_size),
            ulimits: options
                .ulimits
                .iter()
                .map(|u| build::Ulimit { name: u.name.clone(), soft: u.soft, hard: u.hard })
                .collect(),
            cgroup_parent: options.cgroup_parent.clone(),
            limits: build::Limits {
                memory_bytes: given(options.memory),
                memory_swap_bytes: given(options.memory_swap),
                cpu_shares: positive(options.cpu_shares),
                cpu_quota: given(options.cpu_quota),
                cpu_period: positive(options.cpu_period),
                cpuset_cpus: options.cpuset_cpus.clone(),
                cpuset_mems: options.cpuset_mems.clone(),
            },
        },
        allow_insecure: false,
        allow_host_network: options.network_mode == "host",
    })
}

/// The newest messages of a quiet build.
#[derive(Default)]
struct Unsaid {
    messages: VecDeque<JsonMessage>,
    bytes: usize,
}

impl Unsaid {
    fn keep(&mut self, message: JsonMessage) {
        let size = |message: &JsonMessage| message.stream.len() + MESSAGE_BYTES;
        self.bytes += size(&message);
        self.messages.push_back(message);
        while self.bytes > UNSAID_BYTES {
            let Some(oldest) = self.messages.pop_front() else { return };
            self.bytes -= size(&oldest);
        }
    }
}

fn messages_of(event: BuildEvent, teller: &mut Teller) -> Vec<JsonMessage> {
    match event {
        BuildEvent::Stream(stream) => vec![JsonMessage { stream, ..JsonMessage::default() }],
        BuildEvent::Progress(step) => teller.tell(&step),
        BuildEvent::Aux { id } => {
            let aux = serde_json::json!({ "ID": id.to_string() });
            vec![JsonMessage { aux: Some(aux), ..JsonMessage::default() }]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_quiet_build_the_newest_output_is_kept() {
        let mut unsaid = Unsaid::default();
        for number in 0..10 {
            let stream = format!("{number}{}", "x".repeat(UNSAID_BYTES / 4));
            unsaid.keep(JsonMessage { stream, ..JsonMessage::default() });
        }
        let kept: Vec<&str> = unsaid.messages.iter().map(|m| &m.stream[..1]).collect();
        assert_eq!(kept, ["7", "8", "9"]);
        assert!(unsaid.bytes <= UNSAID_BYTES);
    }
}

//! A real store, a context, and a host that runs commands by chroot in a mount namespace of its own.
#![allow(dead_code)]

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use build::{
    Base, BaseRequest, BuildEvent, BuildRequest, Builder, Built, CancellationToken, Context, Error,
    Host, Output, RunStep, StdStream, StepMountSource,
};
use bytes::Bytes;
use serde_json::{Value, json};
use store::{Config, Store};
use store_api::{Descriptor, ImportRequest, Namespaces as _, Progress, Services};
use tempfile::TempDir;
use testkit::fixtures::{
    busybox,
    oci::{Image, Layer},
};
use tokio::sync::mpsc;
use types::ImageRef;

/// Runs steps by chroot; keeps what it was asked.
pub(crate) struct ChrootHost {
    services: Services,
    scratch: PathBuf,
    pub(crate) steps: Mutex<Vec<RunStep>>,
}

#[async_trait]
impl Host for ChrootHost {
    async fn resolve_base(
        &self,
        request: BaseRequest,
        _progress: mpsc::Sender<Progress>,
        _cancel: CancellationToken,
    ) -> store_api::Result<Base> {
        let reference: ImageRef = request.name.parse().unwrap();
        let reference = reference.with_default_tag();
        let image = self.services.images.get(&reference.to_string()).await?;
        Ok(Base { reference: Some(reference), target: image.target })
    }

    async fn run_step(
        &self,
        step: RunStep,
        output: mpsc::Sender<Output>,
        cancel: CancellationToken,
    ) -> store_api::Result<i32> {
        self.steps.lock().unwrap().push(step.clone());
        let mounts = self.services.snapshots.mounts(&step.snapshot_key).await?;
        let dir = self.scratch.clone();
        let done = tokio::task::spawn_blocking(move || {
            sys::private_mount::on_thread(move || run(&step, &mounts, &dir, &cancel))
        });
        match done.await.unwrap() {
            Ok(None) => {
                Err(store_api::Error::new(types::ErrorKind::Cancelled, "the step was cancelled"))
            }
            Ok(Some((status, text))) => {
                let bytes = Bytes::from(text);
                output.send(Output { stream: StdStream::Stdout, bytes }).await.unwrap();
                Ok(status)
            }
            Err(error) => Err(store_api::Error::internal(error.to_string())),
        }
    }
}

fn mount(kind: &str, source: &Path, target: &Path, options: &[String]) -> std::io::Result<()> {
    let (flags, data) = sys::private_mount::parse_options(options);
    let data = std::ffi::CString::new(data.join(","))?;
    rustix::mount::mount(source, target, kind, flags, Some(data.as_c_str()))?;
    Ok(())
}

fn run(
    step: &RunStep,
    mounts: &[store_api::Mount],
    root: &Path,
    cancel: &CancellationToken,
) -> std::io::Result<Option<(i32, Vec<u8>)>> {
    for one in mounts {
        mount(&one.kind, Path::new(&one.source), root, &one.options)?;
    }
    // What a runtime leaves behind.
    for dir in ["etc", "dev", "proc", "sys"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    std::fs::OpenOptions::new().create(true).append(true).open(root.join("etc/resolv.conf"))?;
    mount("tmpfs", Path::new("tmpfs"), &root.join("dev"), &[])?;
    for one in &step.mounts {
        let target = root.join(one.target.trim_start_matches('/'));
        match &one.source {
            StepMountSource::Tmpfs { .. } => {
                std::fs::create_dir_all(&target)?;
                mount("tmpfs", Path::new("tmpfs"), &target, &[])?;
            }
            StepMountSource::Bind(source) => {
                if source.is_dir() {
                    std::fs::create_dir_all(&target)?;
                } else {
                    std::fs::create_dir_all(target.parent().unwrap())?;
                    std::fs::File::create(&target)?;
                }
                mount("", source, &target, &["bind".into()])?;
            }
        }
    }
    let mut command = Command::new("/usr/sbin/chroot");
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.envs(step.env.iter().filter_map(|line| line.split_once('=')));
    command.arg(root).args(["/bin/sh", "-c", "cd \"$0\" && exec \"$@\"", &step.cwd]);
    let mut child = command.args(&step.args).spawn()?;
    while child.try_wait()?.is_none() {
        if cancel.is_cancelled() {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::yield_now();
    }
    let output = child.wait_with_output()?;
    let mut text = output.stdout;
    text.extend(output.stderr);
    Ok(Some((output.status.code().unwrap_or(128), text)))
}

pub(crate) struct Ground {
    pub(crate) directory: TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) services: Services,
    pub(crate) host: Arc<ChrootHost>,
    pub(crate) builder: Arc<Builder>,
    /// Name of the base image.
    pub(crate) base: String,
}

/// What a build came to.
pub(crate) struct Outcome {
    pub(crate) result: Result<Built, Error>,
    pub(crate) text: String,
    pub(crate) events: Vec<BuildEvent>,
}

impl Outcome {
    pub(crate) fn ok(self) -> (Built, String) {
        match self.result {
            Ok(built) => (built, self.text),
            Err(error) => panic!("{}\n{}", chain(&error), self.text),
        }
    }

    pub(crate) fn error(&self) -> String {
        chain(self.result.as_ref().unwrap_err())
    }
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

impl Ground {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::new(directory.path().join("root"), directory.path().join("state"));
        let store = Store::open(config).await.unwrap();
        let services = store.open("moby").unwrap();
        let scratch = directory.path().join("container");
        std::fs::create_dir(&scratch).unwrap();
        std::fs::create_dir(directory.path().join("context")).unwrap();
        let steps = Mutex::default();
        let host = Arc::new(ChrootHost { services: services.clone(), scratch, steps });
        let root = directory.path().join("build");
        let builder = Arc::new(Builder::new(services.clone(), host.clone(), root).unwrap());
        let base = testkit::random::name("base");
        let ground = Self { directory, store, services, host, builder, base };
        ground.import(&ground.base, json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] })).await;
        ground
    }

    /// Imports a busybox image.
    pub(crate) async fn import(&self, name: &str, run: Value) {
        let tar = busybox::rootfs("marker", "here").unwrap();
        let image = Image::new(vec![Layer::gzipped(tar)], &run);
        let archive = image.docker_archive(&format!("{name}:latest"));
        let (sender, stream) = mpsc::channel(1);
        let feed = tokio::spawn(async move {
            sender.send(Ok(Bytes::from(archive))).await.unwrap();
        });
        let (progress, mut reports) = mpsc::channel(16);
        let drain = tokio::spawn(async move { while reports.recv().await.is_some() {} });
        let request = ImportRequest { unpack: true, ..ImportRequest::default() };
        self.services.transfer.import(request, stream, progress).await.unwrap();
        feed.await.unwrap();
        drain.await.unwrap();
    }

    pub(crate) fn context(&self) -> PathBuf {
        self.directory.path().join("context")
    }

    pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.context().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Writes a Dockerfile in which `BASE` stands for the base image.
    pub(crate) fn dockerfile(&self, text: &str) {
        self.write("Dockerfile", text.replace("BASE", &self.base));
    }

    pub(crate) fn request(&self) -> BuildRequest {
        BuildRequest { context: Context::Dir(self.context()), ..BuildRequest::default() }
    }

    pub(crate) async fn build(&self, request: BuildRequest) -> Outcome {
        self.build_until(request, CancellationToken::new()).await
    }

    pub(crate) async fn build_until(
        &self,
        request: BuildRequest,
        cancel: CancellationToken,
    ) -> Outcome {
        let (sender, mut receiver) = mpsc::channel(4);
        let listen = tokio::spawn(async move {
            let mut events = Vec::new();
            while let Some(event) = receiver.recv().await {
                events.push(event);
            }
            events
        });
        let result = self.builder.build(request, sender, cancel).await;
        let events = listen.await.unwrap();
        let text = events.iter().filter_map(|event| match event {
            BuildEvent::Stream(text) => Some(text.as_str()),
            _ => None,
        });
        Outcome { result, text: text.collect(), events }
    }

    /// Builds the context's Dockerfile with default options.
    pub(crate) async fn again(&self) -> (Built, String) {
        self.build(self.request()).await.ok()
    }

    pub(crate) async fn config(&self, built: &Built) -> Value {
        let bytes = self.services.content.read_at(&built.config, 0, 1 << 20).await.unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// The image's files, at the path of a descriptor.
    pub(crate) async fn files(&self, target: &Descriptor) -> Files {
        let image = self.services.extras.unpack(target, None).await.unwrap();
        let key = testkit::random::name("look");
        let chain = image.chain_ids.last().unwrap().to_string();
        let labels =
            store_api::Labels::from([("containerd.io/gc.root".to_string(), "now".to_string())]);
        let mounts = self.services.snapshots.view(&key, Some(&chain), labels).await.unwrap();
        let specs = mounts.into_iter().map(|mount| sys::private_mount::MountSpec {
            kind: mount.kind,
            source: mount.source,
            options: mount.options,
        });
        let point = self.directory.path().join("look");
        std::fs::create_dir_all(&point).unwrap();
        let fd = sys::private_mount::open_tree(specs.collect(), point).unwrap();
        self.services.snapshots.remove(&key).await.unwrap();
        Files { fd }
    }

    /// Nothing of a build is left but its results.
    pub(crate) async fn assert_clean(&self) {
        let snapshots = self.services.snapshots.list(&[]).await.unwrap();
        for info in snapshots {
            assert_eq!(info.kind, store_api::SnapshotKind::Committed, "{}", info.name);
            assert!(!info.labels.contains_key("io.gantry.build"), "{info:?}");
            assert!(!info.labels.contains_key("containerd.io/gc.root"), "{info:?}");
        }
        for info in self.services.content.list(&[]).await.unwrap() {
            assert!(!info.labels.contains_key("containerd.io/gc.root"), "{info:?}");
        }
        for lease in self.services.leases.list(&[]).await.unwrap() {
            assert!(!lease.id.starts_with("gantry-build-run-"), "{lease:?}");
        }
        let tmp = self.directory.path().join("build/tmp");
        assert_eq!(std::fs::read_dir(tmp).unwrap().count(), 0);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.directory.path().to_str().unwrap()), "{mounts}");
    }
}

pub(crate) struct Files {
    fd: OwnedFd,
}

impl Files {
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        use std::os::fd::AsRawFd as _;
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd())).join(path)
    }

    pub(crate) fn read(&self, path: &str) -> String {
        let full = self.path(path);
        std::fs::read_to_string(&full).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        std::fs::symlink_metadata(self.path(path)).is_ok()
    }

    /// Mode, owner and group.
    pub(crate) fn look(&self, path: &str) -> (u32, u32, u32) {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = std::fs::symlink_metadata(self.path(path)).unwrap();
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    }

    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(path)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

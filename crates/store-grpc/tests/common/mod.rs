//! A store that is served on a socket in a directory of its own, and `ctr` in front of it.
#![allow(clippy::unwrap_used, dead_code)]

pub(crate) mod client;

use std::{
    path::{Path, PathBuf},
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use store::{Config, LayerForm, Store};
use store_api::{Namespaces as _, Services};
use tempfile::TempDir;
use tokio::{net::UnixListener, process::Command, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// For a command to end and for conditions to come true; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Served {
    pub(crate) directory: TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) clients: Arc<AtomicUsize>,
    shutdown: CancellationToken,
    server: Option<JoinHandle<Result<(), store_grpc::Error>>>,
}

impl Served {
    pub(crate) async fn new() -> Self {
        Self::of(LayerForm::default()).await
    }

    pub(crate) async fn of(layers: LayerForm) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (root, state) = (directory.path().join("root"), directory.path().join("state"));
        let config = Config { layers, ..Config::new(root, state) };
        let store = Store::open(config.clone()).await.unwrap();
        let listener = UnixListener::bind(&config.grpc_address).unwrap();
        let (shutdown, clients) = (CancellationToken::new(), Arc::default());
        let serving =
            store_grpc::serve(store.clone(), listener, shutdown.clone(), Arc::clone(&clients));
        let server = Some(tokio::spawn(serving));
        Self { directory, store, clients, shutdown, server }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("state/containerd.sock")
    }

    pub(crate) fn services(&self, namespace: &str) -> Services {
        self.store.open(namespace).unwrap()
    }

    pub(crate) fn command(&self, namespace: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", namespace]).args(args);
        command.kill_on_drop(true);
        command
    }

    pub(crate) async fn output(&self, namespace: &str, args: &[&str]) -> Output {
        let output = self.command(namespace, args).output();
        tokio::time::timeout(LIMIT, output).await.unwrap().unwrap()
    }

    /// What `ctr` says on standard output; it must succeed.
    pub(crate) async fn ctr(&self, namespace: &str, args: &[&str]) -> String {
        let output = self.output(namespace, args).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {args:?}: {}: {said}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// What `ctr` says on standard error; it must fail.
    pub(crate) async fn fails(&self, namespace: &str, args: &[&str]) -> String {
        let output = self.output(namespace, args).await;
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "ctr {args:?} succeeded: {said}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Ends the server and waits for it.
    pub(crate) async fn end(mut self) {
        self.shutdown.cancel();
        let server = self.server.take().unwrap();
        tokio::time::timeout(LIMIT, server).await.unwrap().unwrap().unwrap();
        assert_eq!(self.clients.load(Ordering::Relaxed), 0);
    }
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(LIMIT, wait).await.is_ok(), "{what}");
}

/// A layer's files in a snapshot's mounts, wherever they lie.
pub(crate) fn lies_in(mounts: &[store_api::Mount], path: &str) -> bool {
    let options = mounts.iter().flat_map(|mount| &mount.options);
    let lower = options.filter_map(|option| option.strip_prefix("lowerdir="));
    let sources = mounts.iter().map(|mount| mount.source.as_str());
    lower
        .flat_map(|dirs| dirs.split(':'))
        .chain(sources)
        .any(|dir| Path::new(dir).join(path).exists())
}

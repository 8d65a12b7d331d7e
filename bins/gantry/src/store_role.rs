//! The store's role: its socket, beside the engine in the daemon or alone as containerd.

use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use anyhow::{Context as _, bail};
use store_api::Namespaces;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::daemon::{self, Signals, log, notify};
use crate::{Persona, fsck};

/// Who may use the socket: root, as with containerd.
const SOCKET_MODE: u32 = 0o660;

/// What `gantry containerd` is told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Options {
    address: PathBuf,
    root: PathBuf,
    state: PathBuf,
    level: log::Level,
    action: Action,
    fsck: fsck::Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Serve,
    /// Look at everything in the store, while nothing else has it open.
    Fsck,
    Help,
    Version,
}

impl Options {
    /// The daemon's own store, so that its images are there; the socket is containerd's under
    /// containerd's name.
    fn defaults(persona: Persona) -> Self {
        let address = match persona {
            Persona::Gantry => "/run/gantry/containerd/containerd.sock",
            Persona::Docker => "/run/containerd/containerd.sock",
        };
        Self {
            address: address.into(),
            root: "/var/lib/gantry/store".into(),
            state: "/run/gantry/containerd".into(),
            level: log::Level::Info,
            action: Action::Serve,
            fsck: fsck::Options::default(),
        }
    }

    fn parse(args: Vec<OsString>, persona: Persona) -> Result<Self, String> {
        let mut options = Self::defaults(persona);
        let mut words = args.into_iter();
        while let Some(word) = words.next() {
            let word = word.into_string().map_err(|w| format!("not UTF-8: {w:?}"))?;
            let (name, mut given) = match word.split_once('=') {
                Some((name, value)) => (name, Some(OsString::from(value))),
                None => (word.as_str(), None),
            };
            let mut value = || {
                let value = given.take().or_else(|| words.next());
                value.ok_or_else(|| format!("flag needs an argument: {name}"))
            };
            match name {
                "-a" | "--address" => options.address = value()?.into(),
                "--root" => options.root = value()?.into(),
                "--state" => options.state = value()?.into(),
                "-l" | "--log-level" => {
                    options.level = log::Level::parse(&value()?.to_string_lossy())?;
                }
                "-h" | "--help" | "help" => options.action = Action::Help,
                "-v" | "--version" => options.action = Action::Version,
                "fsck" => options.action = Action::Fsck,
                _ if options.action == Action::Fsck && options.fsck.flag(name, &mut value)? => {}
                "-c" | "--config" => {
                    return Err(format!("{name} is not supported by gantry yet"));
                }
                _ if name.starts_with('-') => {
                    return Err(format!("flag provided but not defined: {name}"));
                }
                _ => return Err(format!("the command {name} is not supported by gantry yet")),
            }
            if given.is_some() {
                return Err(format!("{name} takes no value"));
            }
        }
        options.fsck.check()?;
        for path in [&mut options.address, &mut options.root, &mut options.state] {
            *path = std::path::absolute(&*path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Ok(options)
    }

    fn help(&self) -> String {
        format!(
            "\nUsage:  gantry containerd [OPTIONS]\n        gantry containerd [OPTIONS] fsck [FSCK OPTIONS]\n\nThe \
             store alone: images, snapshots and tasks, by containerd's API. fsck, while no daemon runs: \
             look at all that is stored, and repair it from the registry.\n\nOptions:\n  -a, --address string     Socket (default {:?})\n      \
             --root string        Directory of persistent state (default {:?})\n      --state string       \
             Directory of state that dies with the host (default {:?})\n  -l, --log-level string   Level of \
             the log (default \"info\")\n  -h, --help               Print usage\n  -v, --version            \
             Print version information and quit\n{}",
            self.address,
            self.root,
            self.state,
            fsck::HELP
        )
    }
}

/// containerd's command line, `args` without the program's name; the exit code.
pub(crate) fn main(args: Vec<OsString>, persona: Persona) -> i32 {
    let options = match Options::parse(args, persona) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("gantry containerd: {error}");
            return 1;
        }
    };
    match options.action {
        Action::Help => return daemon::say(&Options::defaults(persona).help()),
        Action::Version => {
            return daemon::say(&format!("containerd gantry {}\n", env!("CARGO_PKG_VERSION")));
        }
        Action::Serve | Action::Fsck => {}
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("gantry containerd needs to be started with root privileges");
        return 1;
    }
    daemon::prepare_process();
    log::start(options.level, log::Format::Text);
    let ended = match options.action {
        Action::Fsck => fsck::run((&options.root, &options.state), &options.fsck, persona),
        _ => run(&options).map(|()| 0),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            1
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = daemon::runtime()?;
    let result = runtime.block_on(alone(options));
    runtime.shutdown_timeout(daemon::LAST_TASKS);
    result
}

/// The store and its socket, until a signal.
async fn alone(options: &Options) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let layers = store::LayerForm::Best;
    let store = open(&options.root, &options.state, &options.address, layers).await?;
    let socket = Socket::bind(&options.address).await?;
    let shutdown = CancellationToken::new();
    let serving = socket.serve(store.clone(), shutdown.clone(), Arc::default());
    let mut serving = tokio::spawn(serving);
    notify::notify(notify::State::Ready);
    tracing::info!(address = %options.address.display(), "containerd successfully booted");
    tokio::select! {
        ended = &mut serving => {
            ended.context("the store's server")??;
            bail!("the store's server ended by itself");
        }
        () = signals.end() => {}
    }
    notify::notify(notify::State::Stopping);
    shutdown.cancel();
    tokio::select! {
        ended = serving => ended.context("the store's server")??,
        () = signals.end() => daemon::forced(),
    }
    store.flush().await.map_err(daemon::failed("flush the store"))
}

/// Opens the store; shims are told the socket's address.
pub(crate) async fn open(
    root: &Path,
    state: &Path,
    address: &Path,
    layers: store::LayerForm,
) -> anyhow::Result<Arc<store::Store>> {
    let mut config = store::Config { layers, ..store::Config::new(root, state) };
    config.grpc_address = address.display().to_string();
    store::Store::open(config).await.map_err(daemon::failed("open the store"))
}

/// The store's socket; its file goes with it.
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// The socket appears under its name only once it listens, with the right mode.
    ///
    /// # Errors
    /// Another store answers there, or the system refuses.
    pub(crate) async fn bind(path: &Path) -> anyhow::Result<Self> {
        if tokio::net::UnixStream::connect(path).await.is_ok() {
            bail!("another containerd answers at {}", path.display());
        }
        let doing = || format!("listen at {}", path.display());
        if let Some(parent) = path.parent() {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o711).create(parent).with_context(doing)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}", std::process::id()));
        let early = path.with_file_name(name);
        let listener = UnixListener::bind(&early).with_context(doing)?;
        std::fs::set_permissions(&early, std::fs::Permissions::from_mode(SOCKET_MODE))
            .and_then(|()| std::fs::rename(&early, path))
            .with_context(doing)?;
        Ok(Self { listener, path: path.into() })
    }

    /// Serves containerd's API until the shutdown.
    pub(crate) async fn serve(
        self,
        namespaces: Arc<dyn Namespaces>,
        shutdown: CancellationToken,
        clients: Arc<AtomicUsize>,
    ) -> anyhow::Result<()> {
        let ended = store_grpc::serve(namespaces, self.listener, shutdown, clients).await;
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "a socket is left behind");
        }
        Ok(ended?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, String> {
        Options::parse(words.iter().map(OsString::from).collect(), Persona::Gantry)
    }

    #[test]
    fn options_of_containerd() {
        let defaults = Options::defaults(Persona::Gantry);
        assert_eq!(parse(&[]), Ok(defaults.clone()));
        let given = parse(&["-a", "/a", "--root=/r", "--state", "/s", "-l", "debug"]).unwrap();
        let level = log::Level::Debug;
        let wanted = Options {
            address: "/a".into(),
            root: "/r".into(),
            state: "/s".into(),
            level,
            ..defaults
        };
        assert_eq!(given, wanted);
        assert_eq!(parse(&["--version"]).unwrap().action, Action::Version);
        let fsck = parse(&["fsck"]).unwrap();
        assert_eq!((fsck.action, fsck.fsck), (Action::Fsck, fsck::Options::default()));
        let repair = parse(&["--root", "/r", "fsck", "--repair", "-u=a:b", "--registry", "r:1"]);
        let repair = repair.unwrap();
        assert_eq!((repair.action, repair.fsck.repair), (Action::Fsck, true));
        assert_eq!((repair.fsck.user.as_str(), repair.fsck.registry.as_str()), ("a:b", "r:1"));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(parse(&["--config", "/x"]).unwrap_err().contains("not supported"));
        assert!(parse(&["--foo"]).unwrap_err().contains("not defined: --foo"));
        assert!(parse(&["config", "default"]).unwrap_err().contains("command config"));
        assert!(parse(&["-a"]).unwrap_err().contains("needs an argument"));
        assert!(parse(&["--repair"]).unwrap_err().contains("not defined: --repair"));
        assert!(parse(&["fsck", "--plain-http"]).unwrap_err().contains("only with --repair"));
        let refused = |words: &[&str]| parse(&[&["fsck", "--repair"], words].concat()).unwrap_err();
        assert!(refused(&["-u", "a:b"]).contains("--registry"));
        assert!(refused(&["--registry", "r:1"]).contains("--user"));
        assert!(refused(&["-u", "a", "--registry", "r:1"]).contains("--password-stdin"));
        assert!(refused(&["-u", "a:b", "--password-stdin", "--registry", "r:1"]).contains("twice"));
        assert!(refused(&["--repair=yes"]).contains("takes no value"));
    }
}

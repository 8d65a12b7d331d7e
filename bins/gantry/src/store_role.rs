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

use crate::Persona;
use crate::daemon::{self, Signals, log, notify};

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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Serve,
    /// Look at everything in the store, while nothing else has it open.
    Fsck {
        repair: bool,
    },
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
        }
    }

    fn parse(args: Vec<OsString>, persona: Persona) -> Result<Self, String> {
        let mut options = Self::defaults(persona);
        let mut words = args.into_iter();
        while let Some(word) = words.next() {
            let word = word.into_string().map_err(|w| format!("not UTF-8: {w:?}"))?;
            let (name, mut value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(OsString::from(value))),
                None => (word.as_str(), None),
            };
            let mut value = || {
                let value = value.take().or_else(|| words.next());
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
                "fsck" => options.action = Action::Fsck { repair: false },
                "--repair" if matches!(options.action, Action::Fsck { .. }) => {
                    options.action = Action::Fsck { repair: true };
                }
                "-c" | "--config" => {
                    return Err(format!("{name} is not supported by gantry yet"));
                }
                _ if name.starts_with('-') => {
                    return Err(format!("flag provided but not defined: {name}"));
                }
                _ => return Err(format!("the command {name} is not supported by gantry yet")),
            }
        }
        for path in [&mut options.address, &mut options.root, &mut options.state] {
            *path = std::path::absolute(&*path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Ok(options)
    }

    fn help(&self) -> String {
        format!(
            "\nUsage:  gantry containerd [OPTIONS]\n        gantry containerd [OPTIONS] fsck [--repair]\n\nThe \
             store alone: images, snapshots and tasks, by containerd's API. fsck, while no daemon runs: \
             look at all that is stored, and repair it from the registry.\n\nOptions:\n  -a, --address string     Socket (default {:?})\n      \
             --root string        Directory of persistent state (default {:?})\n      --state string       \
             Directory of state that dies with the host (default {:?})\n  -l, --log-level string   Level of \
             the log (default \"info\")\n  -h, --help               Print usage\n  -v, --version            \
             Print version information and quit\n",
            self.address, self.root, self.state
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
        Action::Serve | Action::Fsck { .. } => {}
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("gantry containerd needs to be started with root privileges");
        return 1;
    }
    daemon::prepare_process();
    log::start(options.level, log::Format::Text);
    let ended = match options.action {
        Action::Fsck { repair } => run_fsck(&options, repair),
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

/// Checks the store and prints what was found; the exit code: 1 if something is not as it should be.
fn run_fsck(options: &Options, repair: bool) -> anyhow::Result<i32> {
    let runtime = daemon::runtime()?;
    let report = runtime.block_on(async {
        let purpose = if repair { store::Purpose::Repair } else { store::Purpose::Check };
        let config = store::Config { purpose, ..store::Config::new(&options.root, &options.state) };
        let store = store::Store::open(config).await.map_err(daemon::failed("open the store"))?;
        // One check goes through all namespaces.
        let services = store.open("moby").map_err(daemon::failed("open the namespace moby"))?;
        let request = store_api::FsckRequest { repair, ..store_api::FsckRequest::default() };
        services.extras.fsck(request).await.map_err(daemon::failed("fsck"))
    });
    runtime.shutdown_timeout(daemon::LAST_TASKS);
    let report = report?;
    let code = daemon::say(&fsck_text(&report));
    Ok(if code == 0 && !report.is_clean() { 1 } else { code })
}

fn fsck_text(report: &store_api::FsckReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let (object, problem) = (&finding.object, &finding.problem);
        if finding.repaired {
            text.push_str(&format!("{object}: {problem}: repaired\n"));
        } else {
            text.push_str(&format!("{object}: {problem}\n    {}\n", finding.remedy));
        }
    }
    if report.more > 0 {
        text.push_str(&format!("and {} more\n", report.more));
    }
    let left = report.findings.iter().filter(|finding| !finding.repaired).count();
    text.push_str(&format!(
        "{} images, {} snapshots, {} blobs with {} bytes; found: {}, repaired: {}\n",
        report.images,
        report.snapshots,
        report.blobs,
        report.bytes,
        report.findings.len(),
        report.findings.len() - left,
    ));
    text
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
        assert_eq!(parse(&["fsck"]).unwrap().action, Action::Fsck { repair: false });
        let repair = parse(&["--root", "/r", "fsck", "--repair"]).unwrap();
        assert_eq!(repair.action, Action::Fsck { repair: true });
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(parse(&["--config", "/x"]).unwrap_err().contains("not supported"));
        assert!(parse(&["--foo"]).unwrap_err().contains("not defined: --foo"));
        assert!(parse(&["config", "default"]).unwrap_err().contains("command config"));
        assert!(parse(&["-a"]).unwrap_err().contains("needs an argument"));
        assert!(parse(&["--repair"]).unwrap_err().contains("not defined: --repair"));
    }
}

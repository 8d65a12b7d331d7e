//! What every command works with: configuration, the engine, output.

use std::cell::{OnceCell, RefCell};
use std::io::{IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use api_types::ApiVersion;
use client::{Client, Endpoint, Options, TlsFiles, TlsOptions};

use crate::Hooks;
use crate::config::Config;
use crate::contexts::{DEFAULT, Store};
use crate::error::{Error, Result};
use crate::flags::Matches;

/// The state of one command line.
pub(crate) struct Ctx {
    /// `docker` or `gantry`: how this program was called.
    pub(crate) prog: String,
    /// The command being run, `docker container ls`.
    pub(crate) path: RefCell<String>,
    pub(crate) global: Matches,
    pub(crate) config: RefCell<Config>,
    hooks: Hooks,
    lookup: Option<client::Lookup>,
    client: OnceCell<Client>,
}

/// Which engine the command line means.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) tls: Option<TlsOptions>,
    /// Nobody named a host: the default socket, which may be started on demand.
    pub(crate) implied: bool,
}

impl Ctx {
    pub(crate) fn new(
        prog: String,
        global: Matches,
        config: Config,
        hooks: Hooks,
        lookup: Option<client::Lookup>,
    ) -> Ctx {
        let path = RefCell::new(prog.clone());
        Ctx {
            prog,
            path,
            global,
            config: RefCell::new(config),
            hooks,
            lookup,
            client: OnceCell::new(),
        }
    }

    /// Writes to stdout.
    pub(crate) fn out(&self, text: &str) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::output)
    }

    /// Writes a line to stdout.
    pub(crate) fn line(&self, text: &str) -> Result<()> {
        self.out(&format!("{text}\n"))
    }

    /// Writes a line to stderr.
    pub(crate) fn note(&self, text: &str) {
        note(text);
    }

    /// Stdin is a terminal.
    pub(crate) fn stdin_is_tty(&self) -> bool {
        std::io::stdin().is_terminal()
    }

    /// Stdout is a terminal.
    pub(crate) fn stdout_is_tty(&self) -> bool {
        std::io::stdout().is_terminal()
    }

    pub(crate) fn contexts(&self) -> Store {
        Store::new(&self.config.borrow().dir)
    }

    /// The name of the context in use.
    pub(crate) fn current_context(&self) -> String {
        let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        if let Some(name) = self.global.given("context").filter(|n| !n.is_empty()) {
            return name.to_owned();
        }
        if self.global.changed("host") || env("DOCKER_HOST").is_some() {
            return DEFAULT.to_owned();
        }
        if let Some(name) = env("DOCKER_CONTEXT") {
            return name;
        }
        match self.config.borrow().text("currentContext") {
            "" => DEFAULT.to_owned(),
            name => name.to_owned(),
        }
    }

    /// Finds the engine by flags, environment, contexts, and the default.
    pub(crate) fn target(&self) -> Result<Target> {
        if self.global.list("host").len() > 1 {
            return Err("specify only one -H".into());
        }
        let context = self.current_context();
        if context != DEFAULT {
            let store = self.contexts();
            let endpoint = store.get(&context)?.docker();
            let files = store.tls_files(&context);
            let tls = (files.ca.is_some() || files.cert.is_some() || endpoint.skip_tls_verify)
                .then_some(TlsOptions { files, skip_verify: endpoint.skip_tls_verify });
            if endpoint.host.is_empty() {
                return Ok(self.default_target());
            }
            return Ok(Target { host: endpoint.host, tls, implied: false });
        }
        let host = self.global.given("host").map(str::to_owned);
        let host = host.or_else(|| std::env::var("DOCKER_HOST").ok()).unwrap_or_default();
        if host.is_empty() {
            return Ok(self.default_target());
        }
        let host = match host.contains("://") {
            true => host,
            // What docker understands as tcp.
            false => format!("tcp://{host}"),
        };
        Ok(Target { host, tls: self.tls_from_flags(), implied: false })
    }

    /// The default socket as a host.
    pub(crate) fn default_host(&self) -> String {
        format!("unix://{}", self.hooks.default_socket.display())
    }

    fn default_target(&self) -> Target {
        let host = self.default_host();
        Target { host, tls: None, implied: true }
    }

    fn tls_from_flags(&self) -> Option<TlsOptions> {
        let env_on = |name: &str| std::env::var(name).is_ok_and(|v| !v.is_empty());
        let verify = match self.global.changed("tlsverify") {
            true => self.global.flag("tlsverify"),
            false => env_on("DOCKER_TLS_VERIFY"),
        };
        let on = verify
            || self.global.flag("tls")
            || self.global.changed("tlsverify")
            || env_on("DOCKER_TLS");
        if !on {
            return None;
        }
        let dir = std::env::var_os("DOCKER_CERT_PATH")
            .filter(|d| !d.is_empty())
            .map_or_else(|| self.config.borrow().dir.clone(), PathBuf::from);
        let file = |flag: &str, name: &str| match self.global.given(flag) {
            Some(path) => Some(PathBuf::from(path)),
            None => Some(dir.join(name)).filter(|path| path.exists()),
        };
        let files = TlsFiles {
            ca: file("tlscacert", "ca.pem"),
            cert: file("tlscert", "cert.pem"),
            key: file("tlskey", "key.pem"),
        };
        Some(TlsOptions { files, skip_verify: !verify })
    }

    /// From what this program was built.
    pub(crate) fn build(&self) -> &crate::Build {
        &self.hooks.build
    }

    /// The engine; made, and started if that is wanted, at the first call.
    pub(crate) fn client(&self) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        if self.global.changed("context") && self.global.changed("host") {
            return Err("conflicting options: cannot specify both --host and --context".into());
        }
        let unresolved = |e: String| {
            Error::Invalid(format!("Failed to initialize: unable to resolve docker endpoint: {e}"))
        };
        let target = self.target().map_err(|e| unresolved(e.to_string()))?;
        let endpoint = Endpoint::parse(&target.host, target.tls.is_some())
            .map_err(|e| unresolved(e.to_string()))?;
        if let (true, Endpoint::Unix(path), Some(ensure)) =
            (target.implied, &endpoint, &self.hooks.ensure_daemon)
            && !has_listener(path)
        {
            ensure(path).map_err(Error::Invalid)?;
        }
        let api_version = match std::env::var("DOCKER_API_VERSION") {
            Ok(text) if !text.is_empty() => Some(
                text.trim_start_matches('v')
                    .parse::<ApiVersion>()
                    .map_err(|e| Error::Invalid(e.to_string()))?,
            ),
            _ => None,
        };
        let options = Options {
            endpoint,
            tls: target.tls,
            api_version,
            user_agent: format!("Docker-Client/{} (linux)", crate::VERSION),
            headers: self.config.borrow().string_map("HttpHeaders"),
            lookup: self.lookup.clone(),
        };
        Ok(self.client.get_or_init(|| Client::new(options)))
    }
}

pub(crate) fn note(text: &str) {
    // There is nowhere else to tell.
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// Something answers at the socket, or it may not be opened (which is told by the call itself).
fn has_listener(path: &Path) -> bool {
    match UnixStream::connect(path) {
        Ok(_) => true,
        Err(e) => e.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

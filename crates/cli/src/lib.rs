//! gantry-cli: docker's command line on our client.
//!
//! Owns: commands, flags, help, output formats, progress, credentials and contexts of the user,
//! the terminal. Does not own: any decision about containers; whatever the engine knows is asked.
//!
//! On disk (the user's, docker's layout): `~/.docker/config.json`, `~/.docker/contexts/`.
//!
//! Tasks: one current-thread runtime; one thread each for reading stdin and for writing output
//! while a container is attached. Locks: none held across awaits.

mod cmd;
mod commands;
mod config;
mod contexts;
mod ctx;
mod error;
pub mod flags;
mod fmt;
mod opts;
mod plugins;
mod progress;
mod rates;
mod stream;
mod term;
mod tree;
mod values;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use ctx::note;
use error::Error;

/// The version that `version` and `--version` tell.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Starts a daemon that listens at the socket, and waits until it does.
pub type EnsureDaemon = Box<dyn Fn(&Path) -> Result<(), String>>;

/// What the program around the command line decides.
pub struct Hooks {
    /// Where to connect when no host is named.
    pub default_socket: PathBuf,
    /// Called before the first connection when no host was named and nothing listens at
    /// `default_socket`.
    pub ensure_daemon: Option<EnsureDaemon>,
    /// What `version` tells of this program.
    pub build: Build,
}

/// From what the program was built; empty is unknown.
#[derive(Debug, Clone, Default)]
pub struct Build {
    pub commit: String,
    /// RFC 3339.
    pub time: String,
    /// Name and version.
    pub compiler: String,
}

/// What a registry is told of its user; empty is nothing. Its debug output hides the secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    pub username: String,
    pub password: String,
    pub identity_token: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The credentials that `pull` would use for a registry (`HOST[:PORT]`, `docker.io`): those of docker's
/// `config.json`, in `$DOCKER_CONFIG` or `~/.docker`, or of the credential helper that it names.
///
/// # Errors
/// A file that cannot be read, a helper that fails.
pub fn login_of(registry: &str) -> Result<Option<Login>, String> {
    let (config, warning) = config::Config::load(config::default_dir());
    if let Some(warning) = warning {
        return Err(warning.trim_start_matches("WARNING: ").to_owned());
    }
    let auth =
        config.credentials(&config::server_key(registry)).map_err(|error| error.to_string())?;
    let login = Login {
        username: auth.username,
        password: auth.password,
        identity_token: auth.identity_token,
    };
    Ok(Some(login).filter(|login| *login != Login::default()))
}

/// Runs one command line; `args[0]` is the name we were called by. Gives the exit code.
pub fn main(args: Vec<OsString>, hooks: Hooks) -> i32 {
    main_with_lookup(args, hooks, None)
}

/// As [`main`], with a resolver for the names of `tcp://` hosts that are not in `/etc/hosts`.
pub fn main_with_lookup(args: Vec<OsString>, hooks: Hooks, lookup: Option<client::Lookup>) -> i32 {
    let mut words = Vec::with_capacity(args.len());
    for arg in args {
        match arg.into_string() {
            Ok(word) => words.push(word),
            Err(arg) => {
                note(&format!("argument is not UTF-8: {}", arg.to_string_lossy()));
                return 1;
            }
        }
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            note(&format!("cannot start: {e}"));
            return 1;
        }
    };
    let result = runtime.block_on(cmd::run(words, hooks, lookup));
    // A thread that still reads stdin must not hold us.
    runtime.shutdown_background();
    match result {
        Ok(()) => 0,
        Err(error) => report(&error),
    }
}

/// Tells an error, and gives the exit code that it means.
fn report(error: &Error) -> i32 {
    match error {
        Error::Exit(code) => *code,
        Error::Status { code, text } => {
            if !text.is_empty() {
                note(text);
            }
            *code
        }
        other => {
            note(&other.to_string());
            1
        }
    }
}

/// All commands with their flags, for checks of completeness: path, aliases, flag sets.
pub fn catalogue() -> Vec<(String, Vec<String>, flags::FlagSets)> {
    tree::catalogue()
}

/// The help page of a command, `["container", "ls"]`, at 80 columns; `None` if there is none.
pub fn help_page(prog: &str, path: &[&str]) -> Option<String> {
    cmd::help_page(prog, path)
}

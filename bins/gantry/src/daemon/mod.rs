//! The engine's role: dockerd's command line and configuration, and the wiring of the process.
//!
//! Owns: flags, daemon.json, the pid file, the lock of the data root, the log, signals. Does not
//! own: what containers are (engine), HTTP (engine-api), images and tasks (store).
//!
//! On disk: `DATA_ROOT/gantry.lock`, `EXEC_ROOT/gantry.lock` and the pid file, all locked as long as
//! the daemon runs;
//! `DATA_ROOT/store` and `EXEC_ROOT/containerd` are the store's, the rest of both is the engine's.
//!
//! Tasks: one for the API's listeners, one for the store's socket; the first one waits for signals
//! and, on a daemon started on demand, for idleness.

mod config;
mod file;
mod flags;
mod host_shutdown;
mod hosts;
pub(crate) mod locks;
pub(crate) mod log;
pub(crate) mod notify;
mod run;
mod tls;

use std::ffi::OsString;
use std::path::PathBuf;

use crate::Persona;
use config::Places;
use flags::{Given, Value};
pub(crate) use run::{LAST_TASKS, Signals, failed, forced, prepare_process, runtime};

/// What a start is made of; kept for reloads.
struct Start {
    persona: Persona,
    given: Given,
    config_file: PathBuf,
    /// It was named, so it has to exist.
    required: bool,
}

impl Start {
    fn settle(&self) -> Result<(file::Settings, config::Daemon), String> {
        let settings = file::settle(&self.given, &self.config_file, self.required)?;
        let daemon = config::daemon(&settings, self.persona)?;
        Ok((settings, daemon))
    }
}

/// How a daemon without flags reaches registries: its configuration's mirrors, proxies and insecure ones.
///
/// # Errors
/// A configuration with which no daemon would start.
pub(crate) fn usual_registry_access(persona: Persona) -> Result<store_api::RegistryAccess, String> {
    let config_file = Places::of(persona).config_file.into();
    let start = Start { persona, given: Given::new(), config_file, required: false };
    let engine = start.settle()?.1.engine;
    Ok(store_api::RegistryAccess {
        insecure: engine.insecure_registries,
        mirrors: engine.registry_mirrors,
        attempts: engine.max_download_attempts,
        proxy: store_api::ProxyAccess {
            http: engine.http_proxy,
            https: engine.https_proxy,
            except: engine.no_proxy,
        },
        ..store_api::RegistryAccess::default()
    })
}

/// The pid file and the exec root of a daemon without flags; where its configuration is no good,
/// they are the usual ones, and its start will tell.
pub(crate) fn usual_places(persona: Persona) -> (PathBuf, PathBuf) {
    let places = Places::of(persona);
    let config_file = places.config_file.into();
    let start = Start { persona, given: Given::new(), config_file, required: false };
    match start.settle() {
        Ok((_, daemon)) => (daemon.pidfile, daemon.engine.exec_root),
        Err(_) => (places.pidfile.into(), places.exec_root.into()),
    }
}

/// The name in messages.
fn program(persona: Persona) -> &'static str {
    match persona {
        Persona::Gantry => "gantry daemon",
        Persona::Docker => "dockerd",
    }
}

/// dockerd's command line, `args` without the program's name; the exit code.
pub(crate) fn main(args: Vec<OsString>, persona: Persona) -> i32 {
    let program = program(persona);
    let given = match parse(args) {
        Ok(given) => given,
        Err(error) => {
            eprintln!("{program}: {error}\nSee '{program} --help'.");
            return 1;
        }
    };
    let on = |name: &str| given.get(name) == Some(&Value::Bool(true));
    let places = Places::of(persona);
    if on("help") {
        return say(&flags::help(program, &defaults(&places)));
    }
    if on("version") {
        return say(&format!("Gantry version {}\n", env!("CARGO_PKG_VERSION")));
    }
    let named = match given.get("config-file") {
        Some(Value::Text(path)) => Some(PathBuf::from(path)),
        _ => None,
    };
    let start = Start {
        persona,
        required: named.is_some(),
        config_file: named.unwrap_or_else(|| places.config_file.into()),
        given,
    };
    let validate = start.given.get("validate") == Some(&Value::Bool(true));
    match start.settle() {
        Ok(_) if validate => say("configuration OK\n"),
        Ok((settings, daemon)) if daemon.stop_containers => {
            host_shutdown::main(start, settings, daemon)
        }
        Ok((settings, daemon)) => run::main(start, settings, daemon),
        Err(error) => {
            eprintln!("{program}: {error}");
            1
        }
    }
}

fn parse(args: Vec<OsString>) -> Result<Given, String> {
    let words: Result<Vec<String>, _> = args.into_iter().map(OsString::into_string).collect();
    flags::parse(words.map_err(|word| format!("not UTF-8: {}", word.to_string_lossy()))?)
}

fn defaults(places: &Places) -> [(&'static str, &'static str); 5] {
    [
        ("bridge", places.bridge),
        ("config-file", places.config_file),
        ("data-root", places.data_root),
        ("exec-root", places.exec_root),
        ("pidfile", places.pidfile),
    ]
}

/// Prints what was asked for; a reader who has gone is no failure.
pub(crate) fn say(text: &str) -> i32 {
    use std::io::Write as _;
    drop(std::io::stdout().lock().write_all(text.as_bytes()));
    0
}

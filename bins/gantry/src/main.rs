//! gantry: one binary that plays every role of a Docker installation.
//!
//! Owns: which role is played, and the wiring of each. Does not own: any of the roles.
//!
//! The role is chosen by the name the program is called under, else by the first argument, before
//! there is any flag, descriptor, log or second thread: the runtime and the shim must have a single
//! thread, and must not be reachable from a container (see [`runtime::selfexe`]).

mod build_info;
mod cgroups;
mod daemon;
mod fsck;
mod on_demand;
mod store_role;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// What this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// docker's command line.
    Client,
    /// dockerd.
    Daemon,
    /// containerd.
    Store,
    /// containerd-shim-runc-v2.
    Shim,
    /// runc.
    Runtime,
    /// The first process of a container with `--init`.
    Init,
}

/// Under whose names and places this process works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persona {
    /// Our own.
    Gantry,
    /// Docker's (and containerd's) socket, configuration and bridge; the data stays ours.
    Docker,
}

impl Persona {
    /// Where the daemon listens and the client connects unless told otherwise.
    pub(crate) fn socket(self) -> &'static Path {
        Path::new(match self {
            Self::Gantry => "/run/gantry/gantry.sock",
            Self::Docker => "/var/run/docker.sock",
        })
    }
}

fn main() {
    let args: Vec<OsString> = std::env::args_os().collect();
    let (role, persona, skip) = role(&args);
    let rest = || args.iter().skip(skip).cloned().collect::<Vec<_>>();
    let code = match role {
        Role::Client => client(args, persona),
        Role::Shim => shim(rest()),
        Role::Runtime => runtime::cli::main(rest()),
        Role::Init => shim::init::main(rest()),
        Role::Daemon => daemon::main(rest(), persona),
        Role::Store => store_role::main(rest(), persona),
    };
    std::process::exit(code);
}

/// The role, its persona, and how many words of the command line said so.
fn role(args: &[OsString]) -> (Role, Persona, usize) {
    let called = args.first().map(PathBuf::from);
    let name = called.as_deref().and_then(Path::file_name).and_then(OsStr::to_str);
    match name {
        Some("docker") => return (Role::Client, Persona::Docker, 1),
        Some("dockerd") => return (Role::Daemon, Persona::Docker, 1),
        Some("containerd") => return (Role::Store, Persona::Docker, 1),
        Some("runc") => return (Role::Runtime, Persona::Gantry, 1),
        Some(shim::PROGRAM_NAME) => return (Role::Shim, Persona::Gantry, 1),
        Some(shim::init::PROGRAM_NAME) => return (Role::Init, Persona::Gantry, 1),
        _ => {}
    }
    let role = match args.get(1).and_then(|arg| arg.to_str()) {
        Some("daemon") => Role::Daemon,
        Some("containerd") => Role::Store,
        Some("shim") => Role::Shim,
        Some("runtime") => Role::Runtime,
        _ => return (Role::Client, Persona::Gantry, 1),
    };
    (role, Persona::Gantry, 2)
}

/// Follows the command line's own help page, which is docker's.
const ROLES_HELP: &str = "
Other parts of this program:
  daemon      The engine, dockerd's part (also called as dockerd)
  containerd  The store alone (also called as containerd)
  shim        What stands beside each container (also called as containerd-shim-gantry-v2)
  runtime     The OCI runtime (also called as runc)

Run 'gantry PART --help' for more information on one of them.
";

const SHIM_HELP: &str = "
Usage:  gantry shim -namespace NAME -id ID -address SOCKET [OPTIONS] [start|delete]

The shim: stands beside a container, keeps its streams, log and exit status, and outlives the daemon.
A store (the daemon's own, or containerd for the runtime io.containerd.gantry.v2) runs it; there is
nothing to do with it by hand.

Options:
  -namespace string       Namespace of the store
  -id string              Container, or the group of containers
  -address string         The store's socket
  -publish-binary string  Program that passes events on to the store
  -bundle string          Directory of the container (default: the current one)
  -debug                  Tell more in the shim's log
";

/// The command line asks for the page of all commands.
fn asks_for_all_help(args: &[OsString]) -> bool {
    let words: Vec<_> = args.iter().skip(1).map(|word| word.to_str()).collect();
    matches!(words[..], [] | [Some("help" | "--help" | "-h")])
}

/// The shim and what it clones run from a file that no container can write to.
fn shim(args: Vec<OsString>) -> i32 {
    if args.first().is_some_and(|word| ["-h", "-help", "--help"].iter().any(|help| word == help)) {
        return daemon::say(SHIM_HELP);
    }
    if let Err(error) = runtime::selfexe::protect() {
        eprintln!("{}: {}", shim::PROGRAM_NAME, chain(&error));
        return 1;
    }
    shim::main(args)
}

fn client(args: Vec<OsString>, persona: Persona) -> i32 {
    let ensure_daemon = Box::new(move |socket: &Path| on_demand::ensure(persona, socket));
    let build = cli::Build {
        commit: build_info::COMMIT.into(),
        time: build_info::time(),
        compiler: build_info::COMPILER.into(),
    };
    let hooks = cli::Hooks {
        default_socket: persona.socket().into(),
        ensure_daemon: Some(ensure_daemon),
        build,
    };
    let lookup = client::Lookup::new(|name: String| async move {
        let addresses = registry::dns::Resolver::system().lookup(&name).await;
        addresses.map_err(std::io::Error::other)
    });
    let roles = persona == Persona::Gantry && asks_for_all_help(&args);
    let code = cli::main_with_lookup(args, hooks, Some(lookup));
    if roles && code == 0 {
        daemon::say(ROLES_HELP);
    }
    code
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(words: &[&str]) -> (Role, Persona, usize) {
        role(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_name_counts_before_the_argument() {
        assert_eq!(of(&["/usr/bin/docker", "daemon"]), (Role::Client, Persona::Docker, 1));
        assert_eq!(of(&["dockerd", "runtime"]), (Role::Daemon, Persona::Docker, 1));
        assert_eq!(of(&["/x/runc", "shim"]), (Role::Runtime, Persona::Gantry, 1));
        assert_eq!(of(&["/x/containerd"]), (Role::Store, Persona::Docker, 1));
        let shim = of(&["containerd-shim-gantry-v2", "-namespace", "moby"]);
        assert_eq!(shim, (Role::Shim, Persona::Gantry, 1));
        let init = of(&["/sbin/docker-init", "--", "daemon"]);
        assert_eq!(init, (Role::Init, Persona::Gantry, 1));
    }

    #[test]
    fn the_page_of_all_commands_names_the_other_parts() {
        let asks = |words: &[&str]| {
            asks_for_all_help(&words.iter().map(OsString::from).collect::<Vec<_>>())
        };
        assert!(asks(&["gantry"]) && asks(&["gantry", "--help"]) && asks(&["gantry", "help"]));
        assert!(!asks(&["gantry", "run", "--help"]) && !asks(&["gantry", "help", "run"]));
        for part in ["daemon", "containerd", "shim", "runtime"] {
            assert!(ROLES_HELP.contains(&format!("\n  {part} ")));
            assert_ne!(of(&["gantry", part]).0, Role::Client);
        }
    }

    #[test]
    fn the_first_argument_counts_under_any_other_name() {
        assert_eq!(of(&["gantry", "daemon", "-D"]), (Role::Daemon, Persona::Gantry, 2));
        assert_eq!(of(&["/proc/self/exe", "shim", "start"]), (Role::Shim, Persona::Gantry, 2));
        assert_eq!(of(&["g", "runtime", "state"]), (Role::Runtime, Persona::Gantry, 2));
        assert_eq!(of(&["g", "containerd"]), (Role::Store, Persona::Gantry, 2));
        assert_eq!(of(&["g", "-D", "daemon"]), (Role::Client, Persona::Gantry, 1));
        assert_eq!(of(&["g", "run", "daemon"]), (Role::Client, Persona::Gantry, 1));
        assert_eq!(of(&[]), (Role::Client, Persona::Gantry, 1));
    }
}

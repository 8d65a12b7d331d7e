//! `sandbox [--uplink] [--peer bookworm|trixie] [--gantry] COMMAND ARG…`: runs a command in a sandbox
//! of its own, as the tests do, with a Debian dockerd or the engine under test running in it if
//! wanted (`DOCKER_HOST` is set then). `sandbox bash` looks around in one. Output goes through;
//! exit code as the command's.

use std::process::ExitCode;
use testkit::Result;
use testkit::engine::Daemon;
use testkit::peer::{self, Release};
use testkit::sandbox::{Net, Options, Sandbox};

const USAGE: &str = "usage: sandbox [--uplink] [--peer bookworm|trixie | --gantry] COMMAND [ARG…]";

#[derive(Default)]
struct Wanted {
    net: Net,
    peer: Option<Release>,
    gantry: bool,
    command: Vec<String>,
}

fn main() -> ExitCode {
    let Some(wanted) = parse(std::env::args().skip(1).collect()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&wanted) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("sandbox: {error:?}");
            ExitCode::from(125)
        }
    }
}

fn parse(mut args: Vec<String>) -> Option<Wanted> {
    let mut wanted = Wanted::default();
    while args.first().is_some_and(|arg| arg.starts_with("--")) {
        match args.remove(0).as_str() {
            "--uplink" => wanted.net = Net::Uplink,
            "--gantry" => wanted.gantry = true,
            "--peer" if args.first().is_some_and(|name| name == "bookworm") => {
                wanted.peer = Some(Release::Bookworm);
                args.remove(0);
            }
            "--peer" if args.first().is_some_and(|name| name == "trixie") => {
                wanted.peer = Some(Release::Trixie);
                args.remove(0);
            }
            _ => return None,
        }
    }
    wanted.command = args;
    (!wanted.command.is_empty()).then_some(wanted)
}

fn run(wanted: &Wanted) -> Result<i32> {
    let sandbox = Sandbox::with(&Options { net: wanted.net, ..Options::default() })?;
    let daemon = match wanted.peer {
        Some(release) => Some(peer::dockerd(&sandbox, release, &serde_json::Value::Null)?),
        None if wanted.gantry => Some(Daemon::gantry(&sandbox, &[])?),
        None => None,
    };
    let (program, args) = wanted
        .command
        .split_first()
        .map_or(("true", &[][..]), |(program, args)| (program.as_str(), args));
    let mut command = match &daemon {
        Some(daemon) => daemon.client(program, args.iter().cloned()),
        None => sandbox.command(program, args.iter().cloned()),
    };
    if let Ok(dir) = std::env::current_dir() {
        command = command.cwd(dir);
    }
    if let Ok(term) = std::env::var("TERM") {
        command = command.env("TERM", term);
    }
    let code = command.inherited()?;
    if let Some(mut daemon) = daemon {
        daemon.stop()?;
    }
    sandbox.close()?;
    Ok(code)
}

//! The shim's command line: `start`, `delete`, and serving.
//!
//! ```text
//! containerd ── runs ──► SHIM -namespace N -id ID … start     (cwd: the bundle)
//!                          │ binds the sockets, clones
//!                          ├──────────► child: own session, serves
//!                          └ prints unix:///…/s/HASH, ends
//! ```
//! The sockets listen before `start` ends, so that a client never comes too early.

use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use prost::Message;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sha2::{Digest, Sha256};

use crate::bundle;
use crate::diagnostics::Diagnostics;
use crate::error::{Context, Error, Result, ignore};
use crate::oci::Oci;
use crate::service::SpecView;
use crate::shim::{Setup, Shim, attach_path};

/// Where sockets are made, below containerd: its own place for them.
const SOCKET_DIR: &str = "/run/containerd/s";
/// Overrides [`SOCKET_DIR`]; our store sets it to a place in its own state directory.
pub const SOCKET_DIR_VARIABLE: &str = "GANTRY_SHIM_SOCKET_DIR";
/// Pods: containers whose annotation has the same value share a shim.
const SANDBOX_ANNOTATION: &str = "io.kubernetes.cri.sandbox-id";
/// The same, for anybody (containerd's runc shim knows both).
const GROUP_ANNOTATION: &str = "io.containerd.runc.v2.group";
/// Options on standard input; they are a few paths.
const OPTIONS_BYTES_MAX: u64 = 1 << 20;
const BACKLOG: i32 = 1024;
/// Status of a container that was killed because its shim is gone.
const KILLED: u32 = 137;

#[derive(Debug, Default, PartialEq, Eq)]
struct Flags {
    namespace: String,
    id: String,
    address: String,
    publish_binary: String,
    bundle: String,
    socket: String,
    debug: bool,
    version: bool,
    info: bool,
    action: String,
}

/// Runs the command line.
pub(crate) fn run(arguments: Vec<OsString>) -> Result<()> {
    if let [flag, path] = &arguments[..]
        && flag == crate::logfile::COMPRESS_FLAG
    {
        return crate::logfile::compress(Path::new(path));
    }
    let flags = parse(arguments)?;
    if flags.version {
        let text = format!(
            "{}:\n  Version:  {}\n  Revision: \n\n",
            crate::PROGRAM_NAME,
            env!("CARGO_PKG_VERSION")
        );
        return std::io::stdout().write_all(text.as_bytes()).context("print", || "version");
    }
    if flags.info {
        return info();
    }
    match flags.action.as_str() {
        "start" => start(&flags),
        "delete" => delete(&flags),
        "" => {
            let setup = setup(&flags, &current_dir()?)?;
            let (listener, attach) = bind(&setup.socket)?;
            serve(&flags, setup, listener, attach)
        }
        other => Err(Error::invalid(format!("unknown action {other:?}"))),
    }
}

/// Go's flags: one dash or two, the value as the next word or after `=`.
fn parse(arguments: Vec<OsString>) -> Result<Flags> {
    let mut flags = Flags::default();
    let mut words = arguments.into_iter().map(|word| {
        word.into_string().map_err(|word| Error::invalid(format!("not UTF-8: {word:?}")))
    });
    while let Some(word) = words.next() {
        let word = word?;
        let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            if !flags.action.is_empty() {
                return Err(Error::invalid(format!("more than one action: {word}")));
            }
            flags.action = word;
            continue;
        };
        let (name, inline) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let mut value = || match &inline {
            Some(value) => Ok(value.clone()),
            None => words
                .next()
                .unwrap_or_else(|| Err(Error::invalid(format!("flag needs an argument: -{name}")))),
        };
        match name {
            "namespace" => flags.namespace = value()?,
            "id" => flags.id = value()?,
            "address" => flags.address = value()?,
            "publish-binary" => flags.publish_binary = value()?,
            "bundle" => flags.bundle = value()?,
            "socket" => flags.socket = value()?,
            "v" => flags.version = is_true(inline.as_deref()),
            "info" => flags.info = is_true(inline.as_deref()),
            "debug" => flags.debug = is_true(inline.as_deref()),
            _ => {
                return Err(Error::invalid(format!("flag provided but not defined: -{name}")));
            }
        }
    }
    if flags.version || flags.info {
        return Ok(flags);
    }
    if flags.namespace.is_empty() {
        return Err(Error::invalid("shim namespace cannot be empty"));
    }
    for (name, value) in [("namespace", &flags.namespace), ("id", &flags.id)] {
        if value.contains('/') || value == ".." {
            return Err(Error::invalid(format!("-{name} {value:?}: not an identifier")));
        }
    }
    Ok(flags)
}

fn is_true(value: Option<&str>) -> bool {
    value.is_none_or(|value| value == "true" || value == "1")
}

/// What containerd 2 asks before it uses a runtime; the options on standard input come back.
fn info() -> Result<()> {
    let bytes = options_on_stdin()?;
    let options = (!bytes.is_empty())
        .then(|| protos::Any::decode(&bytes[..]))
        .transpose()
        .map_err(|source| Error::Decode { object: "options on standard input", source })?;
    let info = protos::shim::RuntimeInfo {
        name: "io.containerd.gantry.v2".to_owned(),
        version: Some(protos::shim::RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: String::new(),
        }),
        options,
        features: None,
    };
    std::io::stdout().write_all(&info.encode_to_vec()).context("print", || "RuntimeInfo")
}

fn current_dir() -> Result<PathBuf> {
    std::env::current_dir().context("getcwd", || "bundle")
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn setup(flags: &Flags, bundle: &Path) -> Result<Setup> {
    let annotations = SpecView::of(bundle).annotations.unwrap_or_default();
    let group = [GROUP_ANNOTATION, SANDBOX_ANNOTATION]
        .iter()
        .find_map(|key| annotations.get(*key).filter(|value| !value.is_empty()));
    let group = group.unwrap_or(&flags.id);
    if group.is_empty() {
        return Err(Error::invalid("shim id cannot be empty"));
    }
    let directory = environment(SOCKET_DIR_VARIABLE).unwrap_or_else(|| SOCKET_DIR.to_owned());
    let name = format!("{}/{}/{group}", flags.address, flags.namespace);
    // 96 bits are enough to be unique; a socket's path has no room for more.
    let hash = Sha256::digest(name);
    let hash: String = hash.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    Ok(Setup {
        namespace: flags.namespace.clone(),
        ttrpc_address: environment("TTRPC_ADDRESS").map(PathBuf::from),
        socket: match flags.socket.as_str() {
            "" => Path::new(&directory).join(hash),
            given => PathBuf::from(given.strip_prefix("unix://").unwrap_or(given)),
        },
    })
}

fn start(flags: &Flags) -> Result<()> {
    sys::shim::close_inherited().context("close_range", || "inherited descriptors")?;
    let bundle = current_dir()?;
    let cgroup = shim_cgroup()?;
    let setup = setup(flags, &bundle)?;
    let address = format!("unix://{}", setup.socket.display());
    if connects(&setup.socket) {
        // The group's shim runs already.
        return announce(&bundle, &address);
    }
    let (listener, attach) = bind(&setup.socket)?;
    let socket = setup.socket.clone();
    let child = sys::clone::clone_process(&sys::clone::CloneOptions::default(), || {
        match detach().and_then(|()| serve(flags, setup, listener, attach)) {
            Ok(()) => 0,
            Err(error) => {
                Diagnostics::open(&bundle, false).error(&error.chain());
                1
            }
        }
    })
    .context("clone", || "shim")?;
    let started = match &cgroup {
        Some(cgroup) => join_cgroup(cgroup, child.pid),
        None => Ok(()),
    };
    if let Err(error) = started.and_then(|()| announce(&bundle, &address)) {
        // Nobody will know of it. ESRCH would mean that it has ended by itself.
        ignore(sys::shim::pidfd_kill(&child.pidfd, 9));
        remove_sockets(&socket);
        return Err(error);
    }
    Ok(())
}

fn announce(bundle: &Path, address: &str) -> Result<()> {
    bundle::write_atomic(&bundle.join("address"), address.as_bytes())?;
    std::io::stdout().write_all(address.as_bytes()).context("print", || "address")
}

fn connects(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

fn remove_sockets(socket: &Path) {
    for path in [socket.to_owned(), attach_path(socket)] {
        // Absent is as good.
        drop(std::fs::remove_file(path));
    }
}

fn bind(socket: &Path) -> Result<(OwnedFd, OwnedFd)> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(directory) = socket.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(directory)
            .context("mkdir", || directory.display().to_string())?;
    }
    remove_sockets(socket);
    // 0600 from the first moment, not by a later chmod.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listen = |path: &Path| -> Result<OwnedFd, rustix::io::Errno> {
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&fd, &address)?;
        rustix::net::listen(&fd, BACKLOG)?;
        Ok(fd)
    };
    let bound = listen(socket).and_then(|main| Ok((main, listen(&attach_path(socket))?)));
    rustix::process::umask(before);
    bound.context("listen", || socket.display().to_string())
}

/// Out of the caller's session, terminal, environment and descriptors.
fn detach() -> Result<()> {
    rustix::process::setsid().context("setsid", || "shim")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("open", || "/dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("dup2", || "/dev/null")?;
    rustix::stdio::dup2_stdout(&null).context("dup2", || "/dev/null")?;
    rustix::stdio::dup2_stderr(&null).context("dup2", || "/dev/null")
}

fn serve(flags: &Flags, setup: Setup, listener: OwnedFd, attach: OwnedFd) -> Result<()> {
    let bundle = current_dir()?;
    let diagnostics = Diagnostics::open(&bundle, flags.debug);
    sys::shim::clear_environment().context("clear", || "environment")?;
    // For those who look at ps; it has no other effect. The kernel keeps 15 bytes.
    ignore(rustix::thread::set_name(c"containerd-shim"));
    if flags.action == "start" {
        let Flags { namespace, id, address, .. } = flags;
        let words = ["-namespace", namespace, "-id", id, "-address", address];
        ignore(sys::title::set(&[&[crate::PROGRAM_NAME], &words[..]].concat()));
    }
    prefer_as_victim();
    let mut shim = Shim::new(setup, listener, attach, diagnostics)?;
    // The bundle is removed while the shim may still linger.
    rustix::process::chdir("/").context("chdir", || "/")?;
    shim.run()
}

/// One more than the starter's, as containerd does: when memory runs out, rather the shim than
/// the daemon. Cannot fail for a higher value, and would not matter.
fn prefer_as_victim() {
    const PATH: &str = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(PATH).ok().and_then(|s| s.trim().parse::<i32>().ok());
    if let Some(score) = score {
        drop(std::fs::write(PATH, (score + 1).min(1000).to_string()));
    }
}

fn options_on_stdin() -> Result<Vec<u8>> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    stdin
        .lock()
        .take(OPTIONS_BYTES_MAX)
        .read_to_end(&mut bytes)
        .context("read", || "options on standard input")?;
    Ok(bytes)
}

/// The cgroup that the runtime options on standard input name for the shim.
fn shim_cgroup() -> Result<Option<String>> {
    let bytes = options_on_stdin()?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let any = protos::Any::decode(&bytes[..])
        .map_err(|source| Error::Decode { object: "options on standard input", source })?;
    if !protos::shim::is_type(&any, protos::shim::RUNC_OPTIONS) {
        return Ok(None);
    }
    let cgroup = crate::service::runc_options(&any)?.shim_cgroup;
    Ok((!cgroup.is_empty()).then_some(cgroup))
}

/// Puts the shim into a cgroup that exists: of the unified hierarchy, and of every v1 one.
fn join_cgroup(cgroup: &str, pid: i32) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")
        .context("read", || "/proc/self/mountinfo")?;
    let relative = cgroup.trim_start_matches('/');
    let mut joined = false;
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let kind = after.split(' ').next().unwrap_or_default();
        if kind != "cgroup" && kind != "cgroup2" {
            continue;
        }
        let Some(point) = before.split(' ').nth(4) else { continue };
        let procs = Path::new(point).join(relative).join("cgroup.procs");
        if procs.exists() {
            std::fs::write(&procs, pid.to_string())
                .context("join cgroup", || procs.display().to_string())?;
            joined = true;
        }
    }
    if joined { Ok(()) } else { Err(Error::not_found(format!("shim cgroup {cgroup}: not found"))) }
}

/// Cleans up after a shim that died without Shutdown: kills the container, unmounts, removes the
/// runtime's state, and prints how it ended.
fn delete(flags: &Flags) -> Result<()> {
    let bundle =
        if flags.bundle.is_empty() { current_dir()? } else { PathBuf::from(&flags.bundle) };
    let mut failures = Vec::new();
    if let Some(file) = bundle::read_shim(&bundle)? {
        if let Err(error) = Oci::from_file(&file, &bundle).delete(&flags.id, true) {
            failures.push(error);
        }
        if file.mounted
            && let Err(error) = crate::rootfs::unmount_all(&bundle.join("rootfs"))
        {
            failures.push(error);
        }
    }
    if let Ok(setup) = setup(flags, &bundle)
        && !connects(&setup.socket)
    {
        remove_sockets(&setup.socket);
    }
    let recorded = bundle::read_exit(&bundle)?;
    let answer = match recorded {
        Some(file) => protos::shim::DeleteResponse {
            pid: file.pid,
            exit_status: file.status,
            exited_at: Some(file.exit().at),
        },
        None => protos::shim::DeleteResponse {
            pid: 0,
            exit_status: KILLED,
            exited_at: Some(protos::shim::now()),
        },
    };
    std::io::stdout().write_all(&answer.encode_to_vec()).context("print", || "DeleteResponse")?;
    match failures.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn containerds_command_line() {
        let flags = parse(words(
            "-namespace moby -address /run/c.sock -publish-binary /bin/c -id abc -debug start",
        ))
        .unwrap();
        assert_eq!(flags.namespace, "moby");
        assert_eq!(flags.id, "abc");
        assert!(flags.debug);
        assert_eq!(flags.action, "start");
        assert_eq!(parse(words("--namespace=n -id=x delete")).unwrap().action, "delete");
        // Those of containerd 2.
        assert!(parse(words("-v")).unwrap().version);
        assert!(parse(words("-info")).unwrap().info);
        let flags = parse(words("-namespace n -id x -socket unix:///run/s -debug start")).unwrap();
        let setup = setup(&flags, Path::new("/nowhere")).unwrap();
        assert_eq!(setup.socket, Path::new("/run/s"));
    }

    #[test]
    fn refusals() {
        for text in ["-id x start", "-namespace n -colour start", "-namespace n start delete"] {
            assert!(parse(words(text)).is_err(), "{text}");
        }
        assert!(parse(words("-namespace ../x -id y start")).is_err());
        assert!(parse(words("-namespace n -id")).is_err());
    }
}

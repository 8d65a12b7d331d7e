//! create, run, start, exec.

use std::os::fd::AsFd;
use std::path::PathBuf;

use super::activation::{self, Notify};
use super::flags::Parsed;
use super::{Context, Failure, Outcome, debug, foreground, one_id};
use crate::spec::{Capabilities, ConsoleSize, Process};
use crate::start::start_with;
use crate::state::Container;
use crate::{ContainerId, CreateOptions, Created, ExecOptions, Stdio, process, selfexe, state};

fn create_options(parsed: &Parsed, foreground: bool) -> Result<CreateOptions, Failure> {
    let bundle = match parsed.value("bundle") {
        Some(dir) => PathBuf::from(dir),
        None => std::env::current_dir().map_err(|e| format!("current directory: {e}"))?,
    };
    let mut options = CreateOptions::new(bundle);
    options.stdio = console(parsed, foreground)?;
    if foreground && matches!(options.stdio, Stdio::Inherit) {
        let (spec, _) = state::parse_spec(&options.bundle.join(state::CONFIG))?;
        if spec.process.as_ref().is_some_and(|p| p.terminal) {
            options.stdio = Stdio::Console;
        }
    }
    options.pid_file = parsed.value("pid-file").map(PathBuf::from);
    options.pidfd_socket = parsed.value("pidfd-socket").map(PathBuf::from);
    options.no_pivot = parsed.is_set("no-pivot");
    options.no_new_keyring = parsed.is_set("no-new-keyring");
    // Those that systemd gives come first.
    options.listen_fds = activation::listen_fds();
    let more: u32 = parsed.number("preserve-fds")?.unwrap_or(0);
    options.preserve_fds = more.saturating_add(options.listen_fds);
    // Before descriptors of our own take such numbers.
    process::check_preserved(options.preserve_fds)?;
    options.notify = activation::notify_socket().is_some();
    Ok(options)
}

/// In the foreground the terminal is this process's own.
fn console(parsed: &Parsed, foreground: bool) -> Result<Stdio, String> {
    match parsed.value("console-socket") {
        Some(_) if foreground => {
            Err("cannot use console socket if runc will not detach or allocate tty".to_owned())
        }
        Some(path) => Ok(Stdio::ConsoleSocket(path.into())),
        None => Ok(Stdio::Inherit),
    }
}

/// A user or group id: digits only, no sign, no space.
fn id_number(text: &str) -> Result<u32, String> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse::<u32>()
        .ok()
        .filter(|n| digits && *n <= i32::MAX.unsigned_abs())
        .ok_or_else(|| format!("bad user or group id {text:?}"))
}

fn warn(cx: &Context, created: &Created) {
    created.warnings.iter().for_each(|warning| cx.log.warning(warning));
}

pub(super) fn create(cx: &Context, parsed: &Parsed) -> Outcome {
    let id = one_id(parsed)?;
    selfexe::protect()?;
    let options = create_options(parsed, false)?;
    debug::create(cx, &id, &options);
    let created = crate::create(&cx.options, &id, options)?;
    warn(cx, &created);
    debug::created(cx, &id);
    Ok(0)
}

pub(super) fn start(cx: &Context, parsed: &Parsed) -> Outcome {
    let id = one_id(parsed)?;
    let notify = start_with(&cx.options, &id, Notify::new)?;
    if let Some(notify) = notify {
        let container = Container::load(&cx.options, &id)?;
        if let Some(pidfd) = container.pidfd()? {
            warn_of(cx, notify.wait(pidfd.as_fd(), container.record.pid));
        }
    }
    Ok(0)
}

/// The container runs, whether its manager hears of it or not.
fn warn_of(cx: &Context, told: crate::Result<()>) {
    if let Err(e) = told {
        cx.log.warning(&format!("readiness was not passed on: {}", e.chain()));
    }
}

pub(super) fn run(cx: &Context, parsed: &Parsed) -> Outcome {
    let id = one_id(parsed)?;
    selfexe::protect()?;
    let detach = parsed.is_set("detach");
    let options = create_options(parsed, !detach)?;
    if !detach && !parsed.is_set("no-subreaper") {
        // Processes of the container that lose their parent come to us and are reaped, where the
        // container has no pid namespace with an init of its own.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|e| format!("prctl subreaper: {e}"))?;
    }
    // Blocked before the process exists, so that no signal is lost.
    let signals = if detach { None } else { Some(foreground::Signals::new()?) };
    debug::create(cx, &id, &options);
    let created = crate::create(&cx.options, &id, options)?;
    warn(cx, &created);
    debug::created(cx, &id);
    let mut notify = match start_with(&cx.options, &id, Notify::new) {
        Ok(notify) => notify,
        Err(e) => {
            drop(crate::delete(&cx.options, &id, true));
            return Err(e.into());
        }
    };
    cx.log.debug(&format!("started {id}"));
    let Some(signals) = signals else {
        if let Some(notify) = notify {
            warn_of(cx, notify.wait(created.pidfd.as_fd(), created.pid));
        }
        return Ok(0);
    };
    let kill = |signal| crate::kill(&cx.options, &id, signal, false);
    let warn = |told| warn_of(cx, told);
    let tell = notify.as_mut().map(|notify| (notify, &warn as foreground::Told<'_>));
    let code = foreground::wait(&signals, &created, &kill, tell);
    if !parsed.is_set("keep") {
        for warning in crate::delete_with_warnings(&cx.options, &id, true)? {
            cx.log.warning(&warning.chain());
        }
    }
    Ok(code?)
}

pub(super) fn exec(cx: &Context, parsed: &Parsed) -> Outcome {
    let id = one_id(parsed)?;
    let command = parsed.rest.get(1..).unwrap_or_default();
    selfexe::protect()?;
    let preserve_fds = parsed.number("preserve-fds")?.unwrap_or(0);
    process::check_preserved(preserve_fds)?;
    let process = exec_process(cx, &id, parsed, command)?;
    let detach = parsed.is_set("detach");
    let mut stdio = console(parsed, !detach)?;
    if !detach && process.terminal && matches!(stdio, Stdio::Inherit) {
        stdio = Stdio::Console;
    }
    let signals = if detach { None } else { Some(foreground::Signals::new()?) };
    let options = ExecOptions {
        process,
        stdio,
        pid_file: parsed.value("pid-file").map(PathBuf::from),
        pidfd_socket: parsed.value("pidfd-socket").map(PathBuf::from),
        preserve_fds,
        cgroup: Some(parsed.all("cgroup").join("\n")).filter(|p| !p.is_empty()),
        ignore_paused: parsed.is_set("ignore-paused"),
    };
    debug::exec(cx, &id, &options);
    let created = crate::exec(&cx.options, &id, options)?;
    cx.log.debug(&format!("exec in {id}: process {}", created.pid));
    warn(cx, &created);
    let Some(signals) = signals else { return Ok(0) };
    let kill = |signal| {
        sys::process::pidfd_kill(&created.pidfd, signal).map_err(|source| crate::Error::Sys {
            op: "kill",
            object: created.pid.to_string(),
            source,
        })
    };
    Ok(foreground::wait(&signals, &created, &kill, None)?)
}

/// From `--process`, or the container's own process with what the flags change.
fn exec_process(
    cx: &Context,
    id: &ContainerId,
    parsed: &Parsed,
    command: &[String],
) -> Result<Process, Failure> {
    if let Some(path) = parsed.value("process") {
        let limit = usize::try_from(crate::spec::CONFIG_LIMIT_BYTES).unwrap_or(usize::MAX);
        let bytes = state::read_file(path.as_ref(), limit)?;
        return Ok(state::from_json(&bytes, path.as_ref())?);
    }
    let spec = crate::spec_of(&cx.options, id)?;
    let mut p = spec.process.unwrap_or_default();
    if command.is_empty() {
        return Err("process args cannot be empty".to_owned().into());
    }
    p.args = command.to_vec();
    p.terminal = parsed.is_set("tty");
    p.console_size = if p.terminal { own_size() } else { None };
    if let Some(cwd) = parsed.value("cwd") {
        p.cwd = cwd.to_owned();
    }
    if let Some(label) = parsed.value("process-label") {
        p.selinux_label = label.to_owned();
    }
    if let Some(profile) = parsed.value("apparmor") {
        p.apparmor_profile = profile.to_owned();
    }
    if parsed.is_set("no-new-privs") {
        p.no_new_privileges = true;
    }
    let added = parsed.all("cap");
    if !added.is_empty() {
        let caps = p.capabilities.get_or_insert_with(Capabilities::default);
        for set in [&mut caps.bounding, &mut caps.effective, &mut caps.permitted] {
            set.extend(added.iter().cloned());
        }
    }
    p.env.extend(parsed.all("env").iter().cloned());
    if let Some(user) = parsed.value("user") {
        let (uid, gid) = match user.split_once(':') {
            Some((uid, gid)) => (uid, Some(gid)),
            None => (user, None),
        };
        p.user.uid = id_number(uid)?;
        if let Some(gid) = gid {
            p.user.gid = id_number(gid)?;
        }
    }
    for gid in parsed.all("additional-gids") {
        p.user.additional_gids.push(id_number(gid)?);
    }
    Ok(p)
}

fn own_size() -> Option<ConsoleSize> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdin()).ok()?;
    Some(ConsoleSize { height: size.ws_row, width: size.ws_col })
}

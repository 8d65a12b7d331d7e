//! `create`, `run`, `start`, `attach`.

use std::io::Write;
use std::path::{Path, PathBuf};

use api_types::{ContainerCreateBody, WaitResponse};
use client::{AttachOptions, ByteStream, Client, Hijacked};

use crate::commands::pull;
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::opts::{CreateInput, create_body};
use crate::stream::{End, Resize, Session, Signals, follow_size, pump};
use crate::term;

/// What detaches if nothing else is said.
const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// Errors of a program that could not be started have codes of their own.
pub(crate) fn start_code(text: &str) -> i32 {
    let text = text.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
    if has(&[
        "executable file not found",
        "no such file or directory",
        "system cannot find the file specified",
    ]) {
        127
    } else if has(&["permission denied", "is a directory"]) {
        126
    } else {
        125
    }
}

/// Adds the program's name and the hint to an error of what was asked for; code 125.
fn with_help(ctx: &Ctx, error: Error) -> Error {
    helped(ctx, error, |_| 125)
}

/// The same for `run`'s errors of making and starting the container, with [`start_code`].
fn not_run(ctx: &Ctx, error: Error) -> Error {
    helped(ctx, error, start_code)
}

fn helped(ctx: &Ctx, error: Error, code: fn(&str) -> i32) -> Error {
    match error {
        Error::Exit(code) => Error::Exit(code),
        other => {
            let text = other.to_string();
            let path = ctx.path.borrow();
            Error::Status {
                code: code(&text),
                text: format!("{}: {text}\n\nRun '{path} --help' for more information", ctx.prog),
            }
        }
    }
}

/// The keys that detach, as the engine wants them and as bytes.
pub(crate) fn detach_keys(ctx: &Ctx, m: &Matches) -> Result<(String, Vec<u8>)> {
    let text = match m.given("detach-keys") {
        Some(keys) => keys.to_owned(),
        None => ctx.config.borrow().text("detachKeys").to_owned(),
    };
    let bytes = term::keys(if text.is_empty() { DETACH_KEYS } else { &text })
        .map_err(|e| Error::Invalid(format!("invalid detach keys ({text}): {e}")))?;
    Ok((text, bytes))
}

/// A terminal in the container wants one here, if it is typed into.
pub(crate) fn check_tty(ctx: &Ctx, attach_stdin: bool, tty: bool) -> Result<()> {
    if attach_stdin && tty && !ctx.stdin_is_tty() {
        return Err("the input device is not a TTY".into());
    }
    Ok(())
}

/// What the flags ask for; an error has docker's form already.
fn body(ctx: &Ctx, m: &Matches, console: bool) -> Result<ContainerCreateBody> {
    checked_pull(m).and_then(|()| parsed_body(ctx, m, console)).map_err(|e| with_help(ctx, e))
}

fn checked_pull(m: &Matches) -> Result<()> {
    match m.text("pull") {
        "always" | "missing" | "never" => Ok(()),
        other => Err(Error::Invalid(format!(
            "invalid pull option: '{other}': must be one of \"always\", \"missing\" or \"never\""
        ))),
    }
}

fn parsed_body(ctx: &Ctx, m: &Matches, console: bool) -> Result<ContainerCreateBody> {
    let cwd = std::env::current_dir()
        .map_err(|source| Error::Stream { what: "find the current directory", source })?;
    let host = ctx.target()?.host;
    let proxies = ctx.config.borrow().proxies(&host, &|_| false);
    let console_size = if console { term::size() } else { [0, 0] };
    Ok(create_body(m, &CreateInput { cwd: &cwd, proxies, console_size })?)
}

/// The file of `--cidfile`, which must not exist, and is gone if no container was made.
struct IdFile(Option<PathBuf>);

impl IdFile {
    fn new(path: &str) -> Result<IdFile> {
        if path.is_empty() {
            return Ok(IdFile(None));
        }
        let path = PathBuf::from(path);
        let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
        match made {
            Ok(_) => Ok(IdFile(Some(path))),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Error::Invalid(format!(
                    "container ID file found, make sure the other container isn't running or delete {}",
                    path.display()
                )))
            }
            Err(e) => Err(Error::file("failed to create the container ID file: open", &path)(e)),
        }
    }

    fn write(mut self, id: &str) -> Result<()> {
        match self.0.take() {
            Some(path) => std::fs::write(&path, id).map_err(Error::file("write", &path)),
            None => Ok(()),
        }
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Made by us a moment ago; who took it away has done the work.
            drop(std::fs::remove_file(path));
        }
    }
}

/// Makes a container, pulling its image if that is wanted, and gives its id.
async fn create_container(ctx: &Ctx, m: &Matches, body: &ContainerCreateBody) -> Result<String> {
    let client = ctx.client()?;
    let id_file = IdFile::new(m.text("cidfile"))?;
    let image = &body.config.image;
    let reference = pull::parse_any(image)?;
    let policy = m.text("pull");
    let platform = platform(m);
    let fetch = async || {
        let reference = reference.clone().ok_or("cannot pull an image by its ID")?;
        pull::for_create(ctx, &reference, &platform, m.flag("quiet")).await
    };
    if policy == "always" {
        fetch().await?;
    }
    let name = m.text("name");
    let reply = match client.container_create(body, name, &platform).await {
        Err(e)
            if e.is_not_found()
                && policy == "missing"
                && reference.is_some()
                && names_image(&e) =>
        {
            if !m.flag("quiet") {
                let shown = reference.clone().map(|r| r.with_default_tag().familiar());
                ctx.note(&format!("Unable to find image '{}' locally", shown.unwrap_or_default()));
            }
            fetch().await?;
            client.container_create(body, name, &platform).await?
        }
        other => other?,
    };
    for warning in &reply.warnings {
        ctx.note(&format!("WARNING: {warning}"));
    }
    id_file.write(&reply.id)?;
    Ok(reply.id)
}

/// A 404 of create can also be about a network or a container.
fn names_image(error: &client::Error) -> bool {
    error.message().is_some_and(|text| text.to_ascii_lowercase().contains("no such image"))
}

/// `--platform`, or what the environment says.
pub(crate) fn platform(m: &Matches) -> String {
    match m.given("platform") {
        Some(platform) => platform.to_owned(),
        None => std::env::var("DOCKER_DEFAULT_PLATFORM").unwrap_or_default(),
    }
}

pub(crate) async fn create(ctx: &Ctx, m: Matches) -> Result<()> {
    let body = body(ctx, &m, false)?;
    let id = create_container(ctx, &m, &body).await?;
    ctx.line(&id)
}

pub(crate) async fn run(ctx: &Ctx, m: Matches) -> Result<()> {
    let detach = m.flag("detach");
    let mut body = body(ctx, &m, true)?;
    let (keys, key_bytes) = detach_keys(ctx, &m).map_err(|e| with_help(ctx, e))?;
    if detach {
        if m.changed("attach") {
            return Err("conflicting options: cannot specify both --attach and --detach".into());
        }
        let config = &mut body.config;
        (config.attach_stdin, config.attach_stdout, config.attach_stderr) = (false, false, false);
        config.stdin_once = false;
    } else {
        check_tty(ctx, body.config.attach_stdin, body.config.tty)?;
    }
    let id = create_container(ctx, &m, &body).await.map_err(|e| not_run(ctx, e))?;
    let client = ctx.client()?;
    if detach {
        client.container_start(&id, &keys).await.map_err(|e| not_run(ctx, e.into()))?;
        return ctx.line(&id);
    }
    let auto_remove = body.host_config.as_ref().is_some_and(|h| h.auto_remove);
    let session = Session {
        tty: body.config.tty,
        stdin: body.config.attach_stdin,
        stdout: body.config.attach_stdout,
        stderr: body.config.attach_stderr,
        detach_keys: key_bytes,
    };
    let start = Start { id: &id, keys: &keys, auto_remove, sig_proxy: m.flag("sig-proxy") };
    foreground(ctx, client, start, session).await
}

/// A container that is started in the foreground.
struct Start<'a> {
    id: &'a str,
    keys: &'a str,
    auto_remove: bool,
    sig_proxy: bool,
}

async fn foreground(ctx: &Ctx, client: &Client, start: Start<'_>, session: Session) -> Result<()> {
    let id = start.id;
    let signals = start.sig_proxy.then(Signals::catch);
    let attach = AttachOptions {
        stdin: session.stdin,
        stdout: session.stdout,
        stderr: session.stderr,
        logs: false,
        detach_keys: start.keys.to_owned(),
    };
    let started = async {
        // Attached and waiting before it runs, so that nothing is missed.
        let conn = client.container_attach(id, &attach).await?;
        let condition = if start.auto_remove { "removed" } else { "next-exit" };
        let wait = client.container_wait(id, condition).await?;
        match client.container_start(id, start.keys).await {
            Ok(()) => Ok((conn, wait)),
            Err(e) => {
                drop(conn);
                if start.auto_remove {
                    // The engine removes what it could not start; be sure that it has.
                    drop(exit_status(wait).await);
                }
                Err(e.into())
            }
        }
    };
    let (conn, wait) = started.await.map_err(|e| not_run(ctx, e))?;
    let work = follow(client, id, conn, session, wait);
    let code = match signals {
        Some(signals) => tokio::select! {
            code = work => code?,
            () = signals.forward(client, id) => 0,
        },
        None => work.await?,
    };
    if code == 0 { Ok(()) } else { Err(Error::Exit(code)) }
}

/// Passes output until it ends, and gives the exit code; 0 after detaching.
async fn follow(
    client: &Client,
    id: &str,
    conn: Hijacked,
    session: Session,
    wait: ByteStream,
) -> Result<i32> {
    let tty = session.tty;
    let resize = async {
        match tty {
            true => follow_size(client, Resize::Container(id)).await,
            false => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        end = pump(conn, session) => end?,
        () = resize => End::Closed,
    };
    match end {
        End::Detached => Ok(0),
        End::Closed => exit_status(wait).await,
    }
}

/// The exit code that a wait ends with.
pub(crate) async fn exit_status(wait: ByteStream) -> Result<i32> {
    let reply = wait.json_lines::<WaitResponse>().next().await?.unwrap_or_default();
    if let Some(error) = reply.error.filter(|e| !e.message.is_empty()) {
        return Err(Error::Status {
            code: 125,
            text: format!("Error waiting for container: {}", error.message),
        });
    }
    Ok(i32::try_from(reply.status_code).unwrap_or(125))
}

pub(crate) async fn start(ctx: &Ctx, m: Matches) -> Result<()> {
    if m.changed("checkpoint") || m.changed("checkpoint-dir") {
        return Err("checkpoints are not supported".into());
    }
    if m.flag("attach") || m.flag("interactive") {
        return start_attached(ctx, &m).await;
    }
    let (keys, _) = detach_keys(ctx, &m)?;
    let client = ctx.client()?;
    let mut failed = Vec::new();
    for name in &m.args {
        match client.container_start(name, &keys).await {
            Ok(()) => ctx.line(name)?,
            Err(e) => {
                ctx.note(&e.to_string());
                failed.push(name.as_str());
            }
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => {
            Err(Error::Invalid(format!("Error: failed to start containers: {}", failed.join(", "))))
        }
    }
}

async fn start_attached(ctx: &Ctx, m: &Matches) -> Result<()> {
    let [name] = m.args.as_slice() else {
        return Err("you cannot start and attach multiple containers at once".into());
    };
    let client = ctx.client()?;
    let container = client.container_inspect(name).await?;
    let (keys, key_bytes) = detach_keys(ctx, m)?;
    let session = Session {
        tty: container.config.tty,
        stdin: m.flag("interactive") && container.config.open_stdin,
        stdout: true,
        stderr: true,
        detach_keys: key_bytes,
    };
    let auto_remove = container.host_config.auto_remove;
    let start = Start { id: &container.id, keys: &keys, auto_remove, sig_proxy: !session.tty };
    foreground(ctx, client, start, session).await.map_err(|e| match e {
        // Without the hint that `run` gives.
        Error::Status { text, .. } => {
            let text = text.split("\n\nRun '").next().unwrap_or_default();
            let text = text.strip_prefix(&format!("{}: ", ctx.prog)).unwrap_or(text).to_owned();
            ctx.note(&text);
            Error::Invalid(format!("Error: failed to start containers: {name}"))
        }
        other => other,
    })
}

pub(crate) async fn attach(ctx: &Ctx, m: Matches) -> Result<()> {
    let client = ctx.client()?;
    let name = &m.args[0];
    let container = client.container_inspect(name).await?;
    let state = &container.state;
    if !state.running {
        return Err("cannot attach to a stopped container, start it first".into());
    }
    if state.paused {
        return Err("cannot attach to a paused container, unpause it first".into());
    }
    if state.restarting {
        return Err("cannot attach to a restarting container, wait until it is running".into());
    }
    let (keys, key_bytes) = detach_keys(ctx, &m)?;
    let stdin = !m.flag("no-stdin") && container.config.open_stdin;
    let tty = container.config.tty;
    check_tty(ctx, stdin, tty)?;
    let options =
        AttachOptions { stdin, stdout: true, stderr: true, logs: false, detach_keys: keys };
    let wait = client.container_wait(&container.id, "").await?;
    let conn = client.container_attach(&container.id, &options).await?;
    let session = Session { tty, stdin, stdout: true, stderr: true, detach_keys: key_bytes };
    let signals = (m.flag("sig-proxy") && !tty).then(Signals::catch);
    let work = follow(client, &container.id, conn, session, wait);
    let code = match signals {
        Some(signals) => tokio::select! {
            code = work => code?,
            () = signals.forward(client, &container.id) => 0,
        },
        None => work.await?,
    };
    if code == 0 { Ok(()) } else { Err(Error::Exit(code)) }
}

/// Writes a file that a command leaves behind (`--iidfile`).
pub(crate) fn leave_file(path: &Path, text: &str) -> Result<()> {
    let mut file = std::fs::File::create(path).map_err(Error::file("create", path))?;
    file.write_all(text.as_bytes()).map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn codes_of_programs_that_do_not_start() {
        for (text, code) in [
            ("exec: \"x\": executable file not found in $PATH: unknown", 127),
            ("exec /x: no such file or directory", 127),
            ("exec: \"/etc\": permission denied", 126),
            ("exec: \"/etc\": is a directory: unknown", 126),
            ("No such image: x", 125),
        ] {
            assert_eq!(start_code(text), code, "{text}");
        }
    }

    #[test]
    fn id_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cid").display().to_string();
        drop(IdFile::new(&path).unwrap());
        assert!(!Path::new(&path).exists());
        IdFile::new(&path).unwrap().write("abc").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "abc");
        assert!(IdFile::new(&path).is_err());
    }
}

//! Running shims: which program, its command line, and the two actions `start` and `delete`.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use prost::Message;
use protos::shim as api;
use store_api::{Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use types::ErrorKind;

use super::{TasksConfig, bundle};

/// How long `start` and `delete` of a shim may take (containerd: 5 s; hosts can be slow).
const ACTION_LIMIT: Duration = Duration::from_secs(60);
/// Bytes kept of what an action prints: an address, an error, or a description.
const PRINTED_BYTES: u64 = 1 << 20;
/// The name that our own shim is called under.
const OWN_NAME: &str = "containerd-shim-gantry-v2";
/// Names under which our own shim is asked for.
const OURS: [&str; 3] = ["", "io.containerd.gantry.v2", "io.containerd.runc.v2"];
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest line taken from a foreign shim's log.
const LOG_LINE_BYTES_MAX: u64 = 16 << 10;

/// The program that a runtime's name means; `None`: our own shim.
///
/// # Errors
/// `NotFound`, in containerd's words, when there is no such program.
pub(super) fn program(runtime: &str) -> Result<Option<PathBuf>> {
    if OURS.contains(&runtime) {
        return Ok(None);
    }
    if runtime.starts_with('/') {
        return Ok(Some(PathBuf::from(runtime)));
    }
    let parts: Vec<&str> = runtime.split('.').collect();
    let [.., name, version] = parts[..] else {
        return Err(Error::invalid(format!("invalid runtime name {runtime}")));
    };
    if runtime.contains('/') {
        return Err(Error::invalid(format!("invalid runtime name {runtime}")));
    }
    let program = format!("containerd-shim-{name}-{version}");
    let found = PATH.split(':').map(|dir| Path::new(dir).join(&program)).find(|p| p.is_file());
    found.map(Some).ok_or_else(|| {
        let text =
            format!("runtime {runtime:?} binary not installed {program:?}: file does not exist");
        Error::new(ErrorKind::NotFound, text)
    })
}

/// The shim's command without arguments: its streams are pipes, its environment has `PATH` alone.
fn command_of(config: &TasksConfig, program: Option<&Path>) -> Result<tokio::process::Command> {
    let mut words: Vec<OsString> = match program {
        Some(program) => vec![program.into()],
        None => config.shim_command.clone(),
    };
    if words.is_empty() {
        return Err(Error::internal("the shim's command is empty"));
    }
    let mut command = tokio::process::Command::new(words.remove(0));
    if program.is_none() {
        command.arg0(OWN_NAME);
    }
    command
        .args(words)
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Ok(command)
}

fn name_of(program: Option<&Path>) -> String {
    program.map_or_else(|| OWN_NAME.to_owned(), |program| program.display().to_string())
}

/// What a runtime's shim says of itself, as containerd 2 asks it: a `containerd.types.RuntimeInfo`.
/// `options`: the runtime's.
pub(super) async fn info(
    config: &TasksConfig,
    runtime: &str,
    options: Option<&protos::Any>,
) -> Result<Vec<u8>> {
    let program = program(runtime)?;
    let mut command = command_of(config, program.as_deref())?;
    command.arg("-info").current_dir(&config.state_dir);
    let input = options.map(Message::encode_to_vec).unwrap_or_default();
    run(&name_of(program.as_deref()), command, &input).await
}

/// Runs an action to its end; what it printed.
async fn run(name: &str, mut command: tokio::process::Command, input: &[u8]) -> Result<Vec<u8>> {
    let mut child = command
        .spawn()
        .map_err(|error| Error::internal(format!("execute shim {name}: {error}")))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let give = async {
        if let Some(mut stdin) = stdin {
            // A shim that does not read its options closes the pipe.
            drop(stdin.write_all(input).await);
        }
    };
    let to_its_end = async {
        let (read, said, ()) = tokio::join!(printed(stdout), printed(stderr), give);
        Ok((child.wait().await?, read?, said?))
    };
    let (status, read, said): (_, Vec<u8>, Vec<u8>) =
        tokio::time::timeout(ACTION_LIMIT, to_its_end)
            .await
            .map_err(|_| {
                let text = format!("shim {name}: no end within {ACTION_LIMIT:?}");
                Error::new(ErrorKind::DeadlineExceeded, text)
            })?
            .map_err(|error: std::io::Error| {
                Error::internal(format!("wait for shim {name}: {error}"))
            })?;
    if status.success() {
        return Ok(read);
    }
    let said = String::from_utf8_lossy(&said);
    Err(Error::internal(format!("shim {name}: {status}: {}", said.trim())))
}

/// All that comes through one of its pipes, [`PRINTED_BYTES`] of which are kept: the rest is read so that
/// nobody waits.
async fn printed(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let Some(pipe) = pipe else { return Ok(Vec::new()) };
    let mut kept = pipe.take(PRINTED_BYTES);
    let mut bytes = Vec::new();
    kept.read_to_end(&mut bytes).await?;
    tokio::io::copy(&mut kept.into_inner(), &mut tokio::io::sink()).await?;
    Ok(bytes)
}

/// One task's shim, as a program.
pub(super) struct Launch<'a> {
    pub(super) config: &'a TasksConfig,
    pub(super) namespace: &'a str,
    pub(super) id: &'a str,
    pub(super) bundle: &'a Path,
    /// `None`: our own.
    pub(super) program: Option<&'a Path>,
}

impl Launch<'_> {
    fn command(&self) -> Result<tokio::process::Command> {
        let mut command = command_of(self.config, self.program)?;
        command
            .args(["-namespace", self.namespace, "-address", &self.config.grpc_address])
            .args(["-publish-binary", "/proc/self/exe", "-id", self.id])
            .current_dir(self.bundle)
            .env("TTRPC_ADDRESS", &self.config.ttrpc_socket)
            .env("GRPC_ADDRESS", &self.config.grpc_address)
            .env("NAMESPACE", self.namespace)
            .env("MAX_SHIM_VERSION", "2")
            .env("GANTRY_SHIM_SOCKET_DIR", self.config.state_dir.join("s"));
        Ok(command)
    }

    /// Starts the shim; its socket. `options`: the runtime's, on standard input.
    pub(super) async fn start(&self, options: Option<&protos::Any>) -> Result<PathBuf> {
        if self.program.is_some() {
            let work = self.config.root_dir.join(bundle::DIRECTORY);
            let work = work.join(self.namespace).join(self.id);
            bundle::prepare_foreign(self.bundle, &work)?;
            self.read_log()?;
        }
        let mut command = self.command()?;
        command.arg("start");
        let input = options.map(Message::encode_to_vec).unwrap_or_default();
        let output = run(&self.name(), command, &input).await?;
        let text = String::from_utf8_lossy(&output);
        let address = text.trim().strip_prefix("unix://").ok_or_else(|| {
            Error::internal(format!("start shim {}: answered {:?}", self.name(), text.trim()))
        })?;
        Ok(PathBuf::from(address))
    }

    /// Cleans up after a shim that is gone; what it says of the exit.
    pub(super) async fn delete(&self) -> Result<api::DeleteResponse> {
        let mut command = self.command()?;
        command.arg("-bundle").arg(self.bundle).arg("delete");
        let output = run(&self.name(), command, &[]).await?;
        api::DeleteResponse::decode(&output[..])
            .map_err(|error| Error::internal(format!("delete with {}: {error}", self.name())))
    }

    fn name(&self) -> String {
        name_of(self.program)
    }

    /// Reads a foreign shim's messages until it ends; it opens the FIFO and waits for a reader.
    fn read_log(&self) -> Result<()> {
        use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
        let path = self.bundle.join("log");
        let receiver = tokio::net::unix::pipe::OpenOptions::new()
            .open_receiver(&path)
            .map_err(|error| bundle::failed("open", &path, &error))?;
        let id = self.id.to_owned();
        tokio::spawn(async move {
            let mut reader = BufReader::new(receiver);
            let mut line = Vec::new();
            loop {
                line.clear();
                let mut limited = (&mut reader).take(LOG_LINE_BYTES_MAX);
                match limited.read_until(b'\n', &mut line).await {
                    Ok(n) if n > 0 => {
                        let text = String::from_utf8_lossy(&line);
                        tracing::debug!(shim = id, "{}", text.trim_end());
                    }
                    _ => return,
                }
            }
        });
        Ok(())
    }
}

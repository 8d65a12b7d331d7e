//! Images and containers as tars: `save`, `load`, `import`, `export`.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use client::{Body, ByteStream, ImportOptions};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use crate::commands::layout;
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::progress::{Sink, show};
use crate::stream::{copy_out, reader_body, receiver_body, stdin_body};

/// Size of one piece of a body.
const CHUNK_BYTES: usize = 128 << 10;
/// Pieces that wait for the connection.
const QUEUE_CHUNKS: usize = 4;

/// The writing end of a body.
pub(crate) struct BodyWriter {
    queue: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for BodyWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        self.queue.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// What `write` produces, in a thread of its own.
pub(crate) fn writer_body(
    write: impl FnOnce(&mut BodyWriter) -> io::Result<()> + Send + 'static,
) -> Body {
    let (queue, chunks) = mpsc::channel(QUEUE_CHUNKS);
    std::thread::spawn(move || {
        let mut writer = BodyWriter { queue: queue.clone(), buffer: Vec::new() };
        if let Err(e) = write(&mut writer).and_then(|()| writer.flush()) {
            // If nobody reads the body any more, its reader knows why.
            drop(queue.blocking_send(Err(e)));
        }
    });
    receiver_body(chunks)
}

/// Writes a body to a file that appears only when it is complete; special files are written to
/// directly.
async fn to_file(mut body: ByteStream, path: &Path) -> Result<()> {
    let special = std::fs::metadata(path).is_ok_and(|m| !m.is_file());
    let temporary = match special {
        true => path.to_owned(),
        false => {
            let name = path.file_name().ok_or_else(|| {
                Error::Invalid(format!("invalid output path: {:?}", path.display().to_string()))
            })?;
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{}", std::process::id()));
            path.with_file_name(hidden)
        }
    };
    let mut file = File::create(&temporary).map_err(Error::file("invalid output path", path))?;
    let copied = async {
        while let Some(chunk) = body.next().await {
            file.write_all(&chunk?).map_err(Error::file("write", path))?;
        }
        Ok(())
    };
    let result = copied.await.and_then(|()| match special {
        true => Ok(()),
        false => std::fs::rename(&temporary, path).map_err(Error::file("rename", &temporary)),
    });
    if result.is_err() && !special {
        // The first error counts.
        drop(std::fs::remove_file(&temporary));
    }
    result
}

async fn write_out(
    ctx: &Ctx,
    m: &Matches,
    body: impl Future<Output = client::Result<ByteStream>>,
) -> Result<()> {
    let output = m.text("output");
    if output.is_empty() {
        if ctx.stdout_is_tty() {
            return Err(
                "cowardly refusing to save to a terminal. Use the -o flag or redirect".into()
            );
        }
        return copy_out(body.await?, false).await;
    }
    let path = PathBuf::from(output);
    if path.parent().is_some_and(|dir| !dir.as_os_str().is_empty() && !dir.is_dir()) {
        return Err(Error::Invalid(format!(
            "invalid output path: directory {:?} does not exist",
            path.parent().unwrap_or(&path).display().to_string()
        )));
    }
    to_file(body.await?, &path).await
}

pub(crate) async fn export(ctx: &Ctx, m: Matches) -> Result<()> {
    let client = ctx.client()?;
    write_out(ctx, &m, client.container_export(&m.args[0])).await
}

pub(crate) async fn save(ctx: &Ctx, m: Matches) -> Result<()> {
    let client = ctx.client()?;
    let platforms = m.slice("platform");
    let archive = client.image_save(&m.args, &platforms);
    match m.text("format") {
        // One archive is both.
        "" | "docker-archive" | "oci-archive" => write_out(ctx, &m, archive).await,
        "oci-dir" => match m.text("output") {
            "" => Err("--format oci-dir needs a directory to write to: -o DIRECTORY".into()),
            path => layout::write(archive, Path::new(path)).await,
        },
        other => Err(Error::Invalid(format!(
            "unknown format {other:?}: docker-archive, oci-archive (the same archive is both) or oci-dir"
        ))),
    }
}

pub(crate) async fn load(ctx: &Ctx, m: Matches) -> Result<()> {
    let body = match m.given("input") {
        Some(path) if Path::new(path).is_dir() => {
            let layout = layout::open(Path::new(path))?;
            if let Some(text) = layout.left_out() {
                ctx.note(&text);
            }
            layout.body()
        }
        Some(path) => {
            let path = Path::new(path);
            reader_body(File::open(path).map_err(Error::file("open", path))?)
        }
        None if ctx.stdin_is_tty() => {
            return Err("requested load from stdin, but stdin is empty".into());
        }
        None => stdin_body(),
    };
    let quiet = m.flag("quiet") || !ctx.stdout_is_tty();
    let reply = ctx.client()?.image_load(quiet, &m.slice("platform"), body).await?;
    if reply.header("content-type").is_some_and(|t| t.starts_with("application/json")) {
        return show(reply.json_lines(), Sink::Stdout, |_, _| {}).await;
    }
    copy_out(reply, false).await
}

pub(crate) async fn import(ctx: &Ctx, m: Matches) -> Result<()> {
    let source = &m.args[0];
    let (source, body) = if source == "-" {
        ("-", stdin_body())
    } else if source.starts_with("http://") || source.starts_with("https://") {
        (source.as_str(), Body::Empty)
    } else {
        let path = Path::new(source);
        ("-", reader_body(File::open(path).map_err(Error::file("open", path))?))
    };
    let mut options = ImportOptions {
        source: source.to_owned(),
        message: m.string("message"),
        changes: m.list("change"),
        platform: crate::commands::run::platform(&m),
        ..ImportOptions::default()
    };
    if let Some(name) = m.args.get(1).filter(|n| !n.is_empty()) {
        let reference: types::ImageRef =
            name.parse().map_err(|e: types::ReferenceError| Error::Invalid(e.to_string()))?;
        options.repo = reference.familiar_name();
        options.tag = reference.tag().unwrap_or_default().to_owned();
    }
    let messages = ctx.client()?.image_import(&options, body).await?;
    show(messages, Sink::Stdout, |_, _| {}).await
}

//! Images and containers as tars: `save`, `load`, `import`, `export`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use client::{Body, ByteStream, ImportOptions};
use futures_util::{Stream, StreamExt};
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

/// Files of other processes with this one's number that a new one's name avoids.
const LEFTOVERS: u32 = 100;

/// Looks at the name that is to be written to, before anything is asked for. Links are refused, as docker's
/// client does since version 28 (moby/sys `atomicwriter`): what they lead to is not what was named, and
/// instead of `/dev/stdout` it would be the link itself that is replaced.
///
/// Answers whether it is a device, pipe or the like, which is written to directly (docker's refuses them).
fn is_special(path: &Path) -> Result<bool> {
    let refuse = |why: &str| {
        Err(Error::Invalid(format!("invalid output path: {:?}: {why}", path.display().to_string())))
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::file("invalid output path", path)(error)),
        Ok(found) if found.is_symlink() => refuse(
            "cannot write to a symbolic link directly: name what it leads to, or leave out -o to write to stdout",
        ),
        Ok(found) if found.is_dir() => refuse("cannot write to a directory"),
        Ok(found) => Ok(!found.is_file()),
    }
}

/// A new file beside `path`, for its owner alone, as docker's client makes it: nobody else's file or link is
/// opened, whatever its name.
fn temporary(path: &Path) -> Result<(PathBuf, File)> {
    let name = path.file_name().ok_or_else(|| {
        Error::Invalid(format!("invalid output path: {:?}", path.display().to_string()))
    })?;
    let mut last = io::ErrorKind::AlreadyExists.into();
    for n in 0..LEFTOVERS {
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.{n}", std::process::id()));
        let hidden = path.with_file_name(hidden);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&hidden) {
            Ok(file) => return Ok((hidden, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(Error::file("invalid output path", path)(error)),
        }
    }
    Err(Error::file("invalid output path", path)(last))
}

/// Writes a body to a file that appears only when it is complete; special files are written to
/// directly.
async fn to_file(
    mut body: impl Stream<Item = client::Result<Bytes>> + Unpin,
    path: &Path,
) -> Result<()> {
    let special = is_special(path)?;
    let (temporary, mut file) = match special {
        true => {
            // What came in its place meanwhile is not followed either.
            let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
            let file = OpenOptions::new().write(true).custom_flags(flags).open(path);
            (path.to_owned(), file.map_err(Error::file("invalid output path", path))?)
        }
        false => temporary(path)?,
    };
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
    is_special(&path)?;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};

    use super::*;

    async fn save(path: &Path, text: &'static str) -> std::result::Result<(), String> {
        let chunks = [Ok(Bytes::from_static(text.as_bytes()))];
        to_file(futures_util::stream::iter(chunks), path).await.map_err(|error| error.to_string())
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// As docker's client: what a link leads to is neither written nor made, nor is the link replaced.
    #[tokio::test]
    async fn links_and_directories_are_not_written_to() {
        let ground = tempfile::tempdir().unwrap();
        let at = |name: &str| ground.path().join(name);
        std::fs::write(at("precious"), "old").unwrap();
        std::fs::create_dir(at("dir")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        symlink("precious", at("link")).unwrap();
        symlink("/dev/null", at("null")).unwrap();
        let before = names(ground.path());
        for name in ["dangling", "link", "null"] {
            let error = save(&at(name), "new").await.unwrap_err();
            assert!(error.contains("cannot write to a symbolic link directly"), "{error}");
            assert!(error.contains(&at(name).display().to_string()), "{error}");
            assert!(std::fs::symlink_metadata(at(name)).unwrap().is_symlink(), "{name}");
        }
        let error = save(&at("dir"), "new").await.unwrap_err();
        assert!(error.contains("cannot write to a directory"), "{error}");
        assert_eq!(names(ground.path()), before);
        assert_eq!(std::fs::read_to_string(at("precious")).unwrap(), "old");
    }

    /// Whatever another user put beside it beforehand is not opened; the file is its owner's alone.
    #[tokio::test]
    async fn nothing_planted_beside_a_file_is_followed() {
        let ground = tempfile::tempdir().unwrap();
        let at = |name: &str| ground.path().join(name);
        std::fs::write(at("precious"), "old").unwrap();
        for planted in ["", ".0", ".1"] {
            symlink("precious", at(&format!(".out.{}{planted}", std::process::id()))).unwrap();
        }
        std::fs::write(at("out"), "before").unwrap();
        save(&at("out"), "new").await.unwrap();
        assert_eq!(std::fs::read_to_string(at("precious")).unwrap(), "old");
        assert_eq!(std::fs::read_to_string(at("out")).unwrap(), "new");
        let mode = std::fs::symlink_metadata(at("out")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(names(ground.path()).len(), 5);
        // A failure leaves what was there.
        let failure = client::Error::TooLarge { what: "save".into(), limit_bytes: 1 };
        let chunks = [Ok(Bytes::from_static(b"half")), Err(failure)];
        to_file(futures_util::stream::iter(chunks), &at("out")).await.unwrap_err();
        assert_eq!(std::fs::read_to_string(at("out")).unwrap(), "new");
        assert_eq!(names(ground.path()).len(), 5);
        // A device is written to as it is.
        save(Path::new("/dev/null"), "gone").await.unwrap();
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }
}

//! The context of a build: where it comes from, what of it is sent, and the Dockerfile.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use archive::{Encoding, Entry, Kind, Owner, PackOptions, TarWriter, Verdict, compress, pack_into};
use client::Body;
use dockerfile::ignore::Matcher;

use crate::commands::transfer::writer_body;
use crate::error::{Error, Result};
use crate::stream::reader_body;

/// A Dockerfile may not be larger.
const MAX_DOCKERFILE_BYTES: u64 = 16 << 20;
/// Enough of a stream to tell a tar from a text: one tar header.
const SNIFF_BYTES: usize = 512;

/// What the engine gets.
pub(crate) struct Context {
    pub(crate) body: Body,
    /// The name of the Dockerfile inside the context; empty for the default.
    pub(crate) dockerfile: String,
    /// A URL that the engine fetches instead of the body.
    pub(crate) remote: String,
}

/// How a context is made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// `PATH | URL | -`.
    pub(crate) source: String,
    /// `-f`.
    pub(crate) file: String,
    pub(crate) compress: bool,
}

/// A Dockerfile that is not inside the context, and the name it gets there.
struct Extra {
    name: String,
    text: Vec<u8>,
}

fn is_url(text: &str) -> bool {
    ["http://", "https://", "git://", "github.com/", "git@", "ssh://"]
        .iter()
        .any(|p| text.starts_with(p))
}

fn limited(reader: impl Read, what: &str) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = reader.take(MAX_DOCKERFILE_BYTES + 1).read_to_end(&mut text);
    let size = read.map_err(|source| Error::File { op: "read", path: what.to_owned(), source })?;
    if u64::try_from(size).unwrap_or(u64::MAX) > MAX_DOCKERFILE_BYTES {
        return Err(Error::Invalid(format!("{what} is larger than {MAX_DOCKERFILE_BYTES} bytes")));
    }
    Ok(text)
}

/// A name that no file of the context has.
fn hidden_name() -> Result<String> {
    let mut random = [0_u8; 10];
    File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut random))
        .map_err(Error::file("read", Path::new("/dev/urandom")))?;
    let hex: String = random.iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!(".dockerfile.{hex}"))
}

/// Finds the context and prepares to send it.
pub(crate) fn prepare(request: &Request) -> Result<Context> {
    if request.source == "-" {
        if request.file == "-" {
            return Err(
                "invalid argument: can't use stdin for both build context and dockerfile".into()
            );
        }
        return from_stdin(request);
    }
    if is_url(&request.source) && !Path::new(&request.source).exists() {
        if request.file == "-" {
            return Err("a Dockerfile from stdin cannot be combined with a remote context".into());
        }
        let (dockerfile, remote) = (request.file.clone(), request.source.clone());
        return Ok(Context { body: Body::Empty, dockerfile, remote });
    }
    from_directory(request)
}

/// A tar on stdin is the context; anything else is the Dockerfile of an empty one.
fn from_stdin(request: &Request) -> Result<Context> {
    let mut first = vec![0; SNIFF_BYTES];
    let mut filled = 0;
    let mut stdin = io::stdin();
    while filled < first.len() {
        match stdin.read(&mut first[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::Stream { what: "read stdin", source }),
        }
    }
    first.truncate(filled);
    let is_tar = first.get(257..262) == Some(b"ustar")
        || archive::sniff(&first) != archive::Compression::None;
    let whole = io::Cursor::new(first).chain(stdin);
    if is_tar {
        let dockerfile = request.file.clone();
        return Ok(Context { body: reader_body(whole), dockerfile, remote: String::new() });
    }
    if !request.file.is_empty() {
        return Err(
            "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles".into()
        );
    }
    let extra = Extra { name: hidden_name()?, text: limited(whole, "the Dockerfile from stdin")? };
    let (dockerfile, gzip) = (extra.name.clone(), request.compress);
    let body = writer_body(move |writer| send(None, Some(extra), gzip, writer));
    Ok(Context { body, dockerfile, remote: String::new() })
}

/// `path` seen from `root`, if it is below it, links resolved.
fn below(root: &Path, path: &Path) -> Result<Option<PathBuf>> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real = std::fs::canonicalize(dir)
        .map_err(Error::file("unable to evaluate symlinks in Dockerfile path:", path))?;
    let name = path.file_name().ok_or_else(|| {
        Error::Invalid(format!("{} is not the name of a Dockerfile", path.display()))
    })?;
    Ok(real.join(name).strip_prefix(root).ok().map(Path::to_owned))
}

fn from_directory(request: &Request) -> Result<Context> {
    let given = Path::new(&request.source);
    let root = std::fs::canonicalize(given).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::Invalid(format!(
            "unable to prepare context: path {:?} not found",
            request.source
        )),
        _ => Error::file("unable to prepare context:", given)(e),
    })?;
    if !root.is_dir() {
        return Err(Error::Invalid(format!(
            "unable to prepare context: context must be a directory: {}",
            root.display()
        )));
    }
    let mut extra = None;
    let dockerfile = match request.file.as_str() {
        "-" => {
            let text = limited(io::stdin().lock(), "the Dockerfile from stdin")?;
            extra = Some(Extra { name: hidden_name()?, text });
            PathBuf::new()
        }
        file => {
            let path = match file {
                "" => default_dockerfile(&root),
                file => PathBuf::from(file),
            };
            match below(&root, &path)? {
                Some(inside) => {
                    std::fs::metadata(root.join(&inside))
                        .map_err(Error::file("failed to read dockerfile: open", &path))?;
                    inside
                }
                None => {
                    let open = File::open(&path)
                        .map_err(Error::file("failed to read dockerfile: open", &path))?;
                    let text = limited(open, &path.display().to_string())?;
                    extra = Some(Extra { name: hidden_name()?, text });
                    PathBuf::new()
                }
            }
        }
    };
    let matcher = ignored(&root, &dockerfile)?;
    let name = match &extra {
        Some(extra) => extra.name.clone(),
        None => dockerfile.display().to_string(),
    };
    let gzip = request.compress;
    let body = writer_body(move |writer| send(Some((&root, &matcher)), extra, gzip, writer));
    Ok(Context { body, dockerfile: name, remote: String::new() })
}

/// `Dockerfile`, or the same in small letters where only that exists.
fn default_dockerfile(root: &Path) -> PathBuf {
    let small = root.join("dockerfile");
    let usual = root.join("Dockerfile");
    if !usual.exists() && small.exists() { small } else { usual }
}

/// The rules of `DOCKERFILE.dockerignore`, else of `.dockerignore`; never about those files.
fn ignored(root: &Path, dockerfile: &Path) -> Result<Matcher> {
    let own = PathBuf::from(format!("{}.dockerignore", dockerfile.display()));
    for name in [own, PathBuf::from(".dockerignore")] {
        let path = root.join(&name);
        let text = match File::open(&path) {
            Ok(file) => limited(file, &path.display().to_string())?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::file("open", &path)(e)),
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut matcher = Matcher::parse(&text)
            .map_err(|e| Error::Invalid(format!("cannot read {}: {e}", path.display())))?;
        if !matcher.is_empty() {
            matcher.keep(&name);
            if !dockerfile.as_os_str().is_empty() {
                matcher.keep(dockerfile);
            }
        }
        return Ok(matcher);
    }
    Ok(Matcher::default())
}

/// Writes the tar of a context.
fn send(
    directory: Option<(&Path, &Matcher)>,
    extra: Option<Extra>,
    gzip: bool,
    writer: &mut impl Write,
) -> io::Result<()> {
    let encoding = if gzip { Encoding::Gzip { level: 6 } } else { Encoding::None };
    let mut tar = TarWriter::new(compress(writer, encoding)?);
    if let Some((root, matcher)) = directory {
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let root = OpenOptions::new()
            .read(true)
            .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
            .open(root)?;
        let mut filter = |path: &Path, entry: &Entry| verdict(matcher, path, entry);
        let mut options = PackOptions {
            owner: Owner::Fixed { uid: 0, gid: 0 },
            filter: Some(&mut filter),
            ..PackOptions::default()
        };
        pack_into(root.as_fd(), &mut options, &mut tar).map_err(io::Error::other)?;
    }
    if let Some(extra) = extra {
        let mut entry = Entry::new(&extra.name, Kind::File { sparse: None });
        entry.mode = 0o600;
        entry.size = u64::try_from(extra.text.len()).unwrap_or(0);
        tar.append(&entry, extra.text.as_slice()).map_err(io::Error::other)?;
    }
    tar.finish().map_err(io::Error::other)?.finish()?;
    Ok(())
}

fn verdict(matcher: &Matcher, path: &Path, entry: &Entry) -> Verdict {
    let clean: PathBuf = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    let is_dir = entry.kind == Kind::Directory;
    if clean.as_os_str().is_empty() || !matcher.is_ignored(&clean) {
        return Verdict::Keep;
    }
    match is_dir && matcher.may_contain_exception_below(&clean) {
        true => Verdict::SkipSelf,
        false => Verdict::Skip,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures_util::StreamExt;

    async fn names(request: Request) -> (Vec<String>, String) {
        let context = prepare(&request).unwrap();
        let Body::Stream(mut stream) = context.body else { panic!("a stream was expected") };
        let mut tar = Vec::new();
        while let Some(chunk) = stream.next().await {
            tar.extend_from_slice(&chunk.unwrap());
        }
        let plain = archive::decompress(tar.as_slice()).unwrap();
        let mut reader = archive::TarReader::new(plain, archive::Limits::default());
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            assert_eq!((entry.uid, entry.gid), (0, 0));
            names.push(entry.name.display().to_string());
        }
        (names, context.dockerfile)
    }

    #[tokio::test]
    async fn ignore_rules_and_dockerfiles() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("ctx");
        std::fs::create_dir_all(root.join("skip/deep")).unwrap();
        for (name, text) in [
            ("Dockerfile", "FROM scratch"),
            (".dockerignore", "skip\n!skip/deep/keep\nDockerfile\n*.log\n"),
            ("a.log", ""),
            ("b.txt", ""),
            ("skip/gone", ""),
            ("skip/deep/keep", ""),
            ("skip/deep/gone", ""),
        ] {
            std::fs::write(root.join(name), text).unwrap();
        }
        let source = root.display().to_string();
        let (got, dockerfile) =
            names(Request { source: source.clone(), ..Default::default() }).await;
        assert_eq!(got, [".dockerignore", "Dockerfile", "b.txt", "skip/deep/keep"]);
        assert_eq!(dockerfile, "Dockerfile");
        let outside = dir.path().join("Other");
        std::fs::write(&outside, "FROM scratch").unwrap();
        let file = outside.display().to_string();
        let (got, dockerfile) =
            names(Request { source: source.clone(), file, compress: true }).await;
        assert!(dockerfile.starts_with(".dockerfile."));
        assert_eq!(got.last(), Some(&dockerfile));
        assert!(prepare(&Request { source: "/nonexistent".into(), ..Default::default() }).is_err());
        let missing =
            Request { source, file: root.join("Nope").display().to_string(), compress: false };
        assert!(prepare(&missing).is_err());
    }
}

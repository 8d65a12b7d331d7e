//! Where clients come in.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Mode of a socket file, as dockerd makes it.
const SOCKET_MODE: u32 = 0o660;

/// How long a TLS handshake may take.
const TLS_WAIT: Duration = Duration::from_secs(10);
/// A peer that vanished is asked for after so long, and so often again (Go's listeners do the same).
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// An address to listen at.
#[derive(Debug)]
pub enum Listener {
    Unix {
        path: PathBuf,
        /// Owner group, a gid; `None` leaves the daemon's own.
        group: Option<u32>,
    },
    /// A listening Unix socket handed over by the service manager.
    UnixFd(OwnedFd),
    Tcp(SocketAddr),
    TcpTls(SocketAddr, Arc<rustls::ServerConfig>),
    /// A listening TCP socket handed over by the service manager; with TLS if there is a configuration.
    TcpFd(OwnedFd, Option<Arc<rustls::ServerConfig>>),
}

/// Why nothing listens at an address.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen at unix://{}", path.display())]
    Unix { path: PathBuf, source: io::Error },
    #[error("listen at unix://{}: another daemon answers there; stop it or choose another -H", .0.display())]
    Taken(PathBuf),
    #[error("listen at the socket that was handed over")]
    Inherited(#[source] io::Error),
    #[error("listen at tcp://{address}")]
    Tcp { address: SocketAddr, source: io::Error },
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
}

/// A socket that listens; clients queue from now on. A Unix socket's file goes with it.
pub struct Bound {
    socket: Socket,
    address: String,
    file: Option<OwnFile>,
}

/// A socket that is ours. A Unix socket's file has no name yet at which clients would look: it gets it by
/// [`Prepared::publish`], and goes when this is dropped instead.
pub struct Prepared {
    bound: Bound,
    /// The name it shall have.
    name: Option<PathBuf>,
}

/// The socket's file, removed only while it is still ours.
struct OwnFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(socket = %self.path.display(), %error, "a socket is left behind");
        }
    }
}

fn inode(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::symlink_metadata(path)?.ino())
}

impl Listener {
    /// Starts to listen; must be called within a tokio runtime. A Unix socket appears under its name only
    /// once it listens, and replaces one that nobody answers at.
    ///
    /// # Errors
    /// `Taken` when another process answers at the socket; everything that the system refuses.
    pub async fn bind(self) -> Result<Bound, Error> {
        self.prepare().await?.publish()
    }

    /// As [`Listener::bind`], but for the name of a Unix socket: a daemon that has yet to become ready finds
    /// out that an address is taken, and clients do not wait for one that fails.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub async fn prepare(self) -> Result<Prepared, Error> {
        let (socket, address) = match self {
            Self::Unix { path, group } => return prepare_unix(path, group).await,
            Self::UnixFd(fd) => inherited_unix(fd)?,
            Self::Tcp(address) => {
                let (socket, address) = bind_tcp(address).await?;
                (Socket::Tcp(socket), address)
            }
            Self::TcpTls(address, config) => {
                let (socket, address) = bind_tcp(address).await?;
                (Socket::Tls(socket, TlsAcceptor::from(config)), address)
            }
            Self::TcpFd(fd, config) => inherited_tcp(fd, config)?,
        };
        Ok(Prepared { bound: Bound { socket, address, file: None }, name: None })
    }
}

fn inherited_unix(fd: OwnedFd) -> Result<(Socket, String), Error> {
    let std = std::os::unix::net::UnixListener::from(fd);
    std.set_nonblocking(true).map_err(Error::Inherited)?;
    let path = std.local_addr().ok().and_then(|at| at.as_pathname().map(Path::to_path_buf));
    let address =
        path.map_or_else(|| "fd://".to_string(), |path| format!("unix://{}", path.display()));
    let socket = UnixListener::from_std(std).map_err(Error::Inherited)?;
    Ok((Socket::Unix(socket), address))
}

fn inherited_tcp(
    fd: OwnedFd,
    config: Option<Arc<rustls::ServerConfig>>,
) -> Result<(Socket, String), Error> {
    let std = std::net::TcpListener::from(fd);
    std.set_nonblocking(true).map_err(Error::Inherited)?;
    let address = format!("tcp://{}", std.local_addr().map_err(Error::Inherited)?);
    let socket = TcpListener::from_std(std).map_err(Error::Inherited)?;
    let socket = match config {
        None => Socket::Tcp(socket),
        Some(config) => Socket::Tls(socket, TlsAcceptor::from(config)),
    };
    Ok((socket, address))
}

impl Prepared {
    /// Where it will listen, as [`Bound::address`].
    pub fn address(&self) -> &str {
        &self.bound.address
    }

    /// Gives a Unix socket its name.
    ///
    /// # Errors
    /// The system refuses.
    pub fn publish(mut self) -> Result<Bound, Error> {
        if let (Some(name), Some(file)) = (self.name.take(), &mut self.bound.file) {
            if let Err(source) = std::fs::rename(&file.path, &name) {
                return Err(Error::Unix { path: name, source });
            }
            file.path = name;
        }
        Ok(self.bound)
    }
}

async fn bind_tcp(address: SocketAddr) -> Result<(TcpListener, String), Error> {
    let failed = |source| Error::Tcp { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok((listener, format!("tcp://{local}")))
}

async fn prepare_unix(path: PathBuf, group: Option<u32>) -> Result<Prepared, Error> {
    match UnixStream::connect(&path).await {
        Ok(_) => return Err(Error::Taken(path)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Error::Taken(path)),
        Err(_) => {}
    }
    let failed = |source| Error::Unix { path: path.clone(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    if std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    // Bound under another name and renamed: whoever sees the name can connect, and mode and owner are
    // right from the first moment.
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}", std::process::id()));
    let early = path.with_file_name(name);
    drop(std::fs::remove_file(&early));
    let prepare = || -> io::Result<(UnixListener, u64)> {
        let listener = UnixListener::bind(&early)?;
        std::os::unix::fs::chown(&early, None, group)?;
        std::fs::set_permissions(&early, std::fs::Permissions::from_mode(SOCKET_MODE))?;
        let inode = inode(&early)?;
        Ok((listener, inode))
    };
    let (listener, inode) = prepare().map_err(|source| {
        drop(std::fs::remove_file(&early));
        failed(source)
    })?;
    let address = format!("unix://{}", path.display());
    let file = Some(OwnFile { path: early, inode });
    Ok(Prepared {
        bound: Bound { socket: Socket::Unix(listener), address, file },
        name: Some(path),
    })
}

/// A connection that was accepted; TLS is yet to be shaken.
pub(crate) enum Accepted {
    Ready(Connection),
    Tls(TcpStream, TlsAcceptor),
}

impl Accepted {
    pub(crate) async fn ready(self) -> io::Result<Connection> {
        match self {
            Self::Ready(connection) => Ok(connection),
            Self::Tls(stream, acceptor) => {
                let stream = tokio::time::timeout(TLS_WAIT, acceptor.accept(stream)).await;
                Ok(Connection::Tls(Box::new(stream.map_err(|_| io::ErrorKind::TimedOut)??)))
            }
        }
    }
}

impl Bound {
    /// `unix:///run/gantry/gantry.sock`, `tcp://127.0.0.1:2375` (the port that was really taken).
    pub fn address(&self) -> &str {
        &self.address
    }

    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Unix(socket) => Ok(Accepted::Ready(Connection::Unix(socket.accept().await?.0))),
            Socket::Tcp(socket) => Ok(Accepted::Ready(Connection::Tcp(tcp(socket).await?))),
            Socket::Tls(socket, acceptor) => {
                Ok(Accepted::Tls(tcp(socket).await?, acceptor.clone()))
            }
        }
    }

    /// The socket's file goes; open connections stay.
    pub(crate) fn remove_file(&mut self) {
        self.file = None;
    }
}

async fn tcp(socket: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = socket.accept().await?;
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(&stream, KEEP_ALIVE)?;
    rustix::net::sockopt::set_tcp_keepintvl(&stream, KEEP_ALIVE)?;
    Ok(stream)
}

/// A client's stream.
pub(crate) enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    /// Waits until the client has sent something, or has left.
    pub(crate) async fn first_byte(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.readable().await,
            Self::Tcp(stream) => stream.readable().await,
            // What came with the end of the handshake has been read already.
            Self::Tls(stream) if !stream.get_ref().1.wants_read() => Ok(()),
            Self::Tls(stream) => stream.get_ref().0.readable().await,
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
            Self::Tls(stream) => stream.get_ref().0.as_fd(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A directory of this test alone.
    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn names(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[tokio::test]
    async fn a_unix_socket_has_its_name_from_its_publication_on() {
        let dir = directory("publish");
        let path = dir.join("s.sock");
        let unix = || Listener::Unix { path: path.clone(), group: None };
        let prepared = unix().prepare().await.unwrap();
        assert!(UnixStream::connect(&path).await.is_err());
        assert_eq!(prepared.address(), format!("unix://{}", path.display()));
        drop(prepared);
        assert_eq!(names(&dir), 0, "a socket is left behind");
        let bound = unix().prepare().await.unwrap().publish().unwrap();
        UnixStream::connect(&path).await.unwrap();
        assert!(matches!(unix().prepare().await, Err(Error::Taken(_))));
        assert_eq!(names(&dir), 1);
        drop(bound);
        assert_eq!(names(&dir), 0, "a socket is left behind");
        std::fs::remove_dir(&dir).unwrap();
    }

    #[tokio::test]
    async fn a_directory_in_the_sockets_place_is_named() {
        let dir = directory("taken");
        let error = Listener::Unix { path: dir.clone(), group: None }.prepare().await.err();
        assert!(matches!(error, Some(Error::Unix { path, .. }) if path == dir));
        std::fs::remove_dir(&dir).unwrap();
    }

    #[tokio::test]
    async fn a_passed_tcp_socket_takes_connections() {
        let passed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = passed.local_addr().unwrap();
        let bound = Listener::TcpFd(passed.into(), None).bind().await.unwrap();
        assert_eq!(bound.address(), format!("tcp://{address}"));
        let (client, accepted) = tokio::join!(TcpStream::connect(address), bound.accept());
        client.unwrap();
        assert!(matches!(accepted.unwrap(), Accepted::Ready(Connection::Tcp(_))));
    }
}

//! Where clients come in.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Mode of a socket file, as dockerd makes it.
const SOCKET_MODE: u32 = 0o660;

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
        match self {
            Self::Unix { path, group } => bind_unix(path, group).await,
            Self::UnixFd(fd) => {
                let std = std::os::unix::net::UnixListener::from(fd);
                std.set_nonblocking(true).map_err(Error::Inherited)?;
                let address = std
                    .local_addr()
                    .ok()
                    .and_then(|address| address.as_pathname().map(Path::to_path_buf))
                    .map_or_else(
                        || "fd://".to_string(),
                        |path| format!("unix://{}", path.display()),
                    );
                let socket = UnixListener::from_std(std).map_err(Error::Inherited)?;
                Ok(Bound { socket: Socket::Unix(socket), address, file: None })
            }
            Self::Tcp(address) => {
                let (socket, address) = bind_tcp(address).await?;
                Ok(Bound { socket: Socket::Tcp(socket), address, file: None })
            }
            Self::TcpTls(address, config) => {
                let (socket, address) = bind_tcp(address).await?;
                let socket = Socket::Tls(socket, TlsAcceptor::from(config));
                Ok(Bound { socket, address, file: None })
            }
        }
    }
}

async fn bind_tcp(address: SocketAddr) -> Result<(TcpListener, String), Error> {
    let failed = |source| Error::Tcp { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok((listener, format!("tcp://{local}")))
}

async fn bind_unix(path: PathBuf, group: Option<u32>) -> Result<Bound, Error> {
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
        std::fs::rename(&early, &path)?;
        Ok((listener, inode))
    };
    let (listener, inode) = prepare().map_err(|source| {
        drop(std::fs::remove_file(&early));
        failed(source)
    })?;
    let address = format!("unix://{}", path.display());
    let file = Some(OwnFile { path, inode });
    Ok(Bound { socket: Socket::Unix(listener), address, file })
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
                Ok(Connection::Tls(Box::new(acceptor.accept(stream).await?)))
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
    Ok(stream)
}

/// A client's stream.
pub(crate) enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
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

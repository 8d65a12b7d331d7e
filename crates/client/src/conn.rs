//! Reaching an engine: the forms of `DOCKER_HOST` and the byte streams behind them.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::hosts;
use crate::tls::TlsOptions;

/// Docker's client gives up on a tcp host after this.
const TCP_CONNECT_TIMEOUT: Duration = Duration::from_secs(32);

/// Where an engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    Tcp {
        host: String,
        port: u16,
    },
    /// Through `ssh … docker system dial-stdio`; `path` is a socket on the other side.
    Ssh {
        user: Option<String>,
        host: String,
        port: Option<u16>,
        path: Option<String>,
    },
}

/// A host that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("unable to parse docker host `{0}`")]
    NoScheme(String),
    #[error("protocol not available: {0}")]
    Protocol(String),
    #[error("invalid port in docker host `{0}`")]
    Port(String),
    #[error("invalid docker host `{0}`")]
    Invalid(String),
}

impl Endpoint {
    /// Parses `unix://PATH`, `tcp://HOST[:PORT]`, `http(s)://…`, `ssh://[USER@]HOST[:PORT][/PATH]`.
    /// The port of tcp is 2376 with `tls` and 2375 without, if none is given.
    pub fn parse(text: &str, tls: bool) -> Result<Endpoint, HostError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(HostError::NoScheme(text.to_owned()));
        };
        match scheme {
            "unix" if rest.is_empty() => Ok(Endpoint::Unix("/var/run/docker.sock".into())),
            "unix" => Ok(Endpoint::Unix(rest.into())),
            "tcp" | "http" | "https" => {
                let authority = rest.split('/').next().unwrap_or_default();
                let (host, port) = host_port(authority, text)?;
                let default = if tls || scheme == "https" { 2376 } else { 2375 };
                let host = if host.is_empty() { "localhost".to_owned() } else { host };
                Ok(Endpoint::Tcp { host, port: port.unwrap_or(default) })
            }
            "ssh" => parse_ssh(rest, text),
            other => Err(HostError::Protocol(other.to_owned())),
        }
    }
}

fn host_port(authority: &str, whole: &str) -> Result<(String, Option<u16>), HostError> {
    let bad_port = || HostError::Port(whole.to_owned());
    let (host, port) = match authority.strip_prefix('[').and_then(|a| a.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(bad_port)?)),
        None => match authority.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => (host, Some(port)),
            _ => (authority, None),
        },
    };
    let port = match port {
        None | Some("") => None,
        Some(port) => Some(port.parse().map_err(|_| bad_port())?),
    };
    Ok((host.to_owned(), port))
}

fn parse_ssh(rest: &str, whole: &str) -> Result<Endpoint, HostError> {
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, format!("/{path}")),
        None => (rest, String::new()),
    };
    let (user, authority) = match authority.rsplit_once('@') {
        Some((user, authority)) => (Some(user.to_owned()), authority),
        None => (None, authority),
    };
    let (host, port) = host_port(authority, whole)?;
    // A password cannot be handed to ssh, and a leading dash would be an option of ssh's.
    let user_ok =
        user.as_deref().is_none_or(|u| !u.is_empty() && !u.contains(':') && !u.starts_with('-'));
    if host.is_empty() || host.starts_with('-') || !user_ok {
        return Err(HostError::Invalid(whole.to_owned()));
    }
    let path = (path.len() > 1).then_some(path);
    Ok(Endpoint::Ssh { user, host, port, path })
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
            Endpoint::Tcp { host, port } if host.contains(':') => {
                write!(f, "tcp://[{host}]:{port}")
            }
            Endpoint::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Endpoint::Ssh { user, host, port, path } => {
                f.write_str("ssh://")?;
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                f.write_str(host)?;
                if let Some(port) = port {
                    write!(f, ":{port}")?;
                }
                f.write_str(path.as_deref().unwrap_or_default())
            }
        }
    }
}

type Addresses = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Finds the addresses of host names that no literal and no hosts file gives.
#[derive(Clone)]
pub struct Lookup(Arc<dyn Fn(String) -> Addresses + Send + Sync>);

impl Lookup {
    /// `find` is called with the name; an empty list means that there is no such host.
    pub fn new<Fut>(find: impl Fn(String) -> Fut + Send + Sync + 'static) -> Lookup
    where
        Fut: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        Lookup(Arc::new(move |name| Box::pin(find(name))))
    }
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lookup")
    }
}

/// One open byte stream to an engine.
#[derive(Debug)]
pub(crate) enum Conn {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Ssh(Box<SshPipe>),
}

/// The two pipes of a running ssh; the process ends with this value.
#[derive(Debug)]
pub(crate) struct SshPipe {
    stdout: ChildStdout,
    /// Gone after a shutdown: closing the pipe is how ssh learns of the end.
    stdin: Option<ChildStdin>,
    _child: Child,
}

/// Opens a stream to `endpoint`.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    tls: Option<&TlsOptions>,
    lookup: Option<&Lookup>,
) -> io::Result<Conn> {
    match endpoint {
        Endpoint::Unix(path) => Ok(Conn::Unix(UnixStream::connect(path).await?)),
        Endpoint::Tcp { host, port } => {
            let stream = connect_tcp(host, *port, lookup).await?;
            let Some(tls) = tls else { return Ok(Conn::Tcp(stream)) };
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            let connector = TlsConnector::from(Arc::clone(&tls.config()?));
            Ok(Conn::Tls(Box::new(connector.connect(name, stream).await?)))
        }
        Endpoint::Ssh { user, host, port, path } => {
            spawn_ssh(user.as_deref(), host, *port, path.as_deref())
                .map(|pipe| Conn::Ssh(Box::new(pipe)))
        }
    }
}

async fn connect_tcp(host: &str, port: u16, lookup: Option<&Lookup>) -> io::Result<TcpStream> {
    let mut addresses = hosts::lookup(host)?;
    if let (true, Some(Lookup(find))) = (addresses.is_empty(), lookup) {
        addresses = find(host.to_owned()).await?;
    }
    let mut last = match lookup {
        Some(_) => io::Error::other(format!("lookup {host}: no such host")),
        None => io::Error::other(format!(
            "lookup {host}: not in /etc/hosts, and no resolver is built in"
        )),
    };
    for ip in addresses {
        match tokio::time::timeout(TCP_CONNECT_TIMEOUT, TcpStream::connect((ip, port))).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(e)) => last = e,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

fn spawn_ssh(
    user: Option<&str>,
    host: &str,
    port: Option<u16>,
    path: Option<&str>,
) -> io::Result<SshPipe> {
    let mut command = Command::new("ssh");
    command.args(["-o", "ConnectTimeout=30", "-T"]);
    if let Some(user) = user {
        command.args(["-l", user]);
    }
    if let Some(port) = port {
        command.args(["-p", &port.to_string()]);
    }
    command.args(["--", host, "docker"]);
    if let Some(path) = path {
        // The other side's shell reads this word.
        command.args(["--host", &format!("'unix://{}'", path.replace('\'', r"'\''"))]);
    }
    command.args(["system", "dial-stdio"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    // An interrupt at the terminal is ours to handle.
    command.process_group(0);
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().ok_or_else(|| io::Error::other("ssh without stdout"))?;
    let stdin = child.stdin.take();
    Ok(SshPipe { stdout, stdin, _child: child })
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Conn::Unix(s) => Pin::new(s).poll_read(cx, buf),
            Conn::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Conn::Tls(s) => Pin::new(s).poll_read(cx, buf),
            Conn::Ssh(s) => Pin::new(&mut s.stdout).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Conn::Unix(s) => Pin::new(s).poll_write(cx, buf),
            Conn::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Conn::Tls(s) => Pin::new(s).poll_write(cx, buf),
            Conn::Ssh(s) => match &mut s.stdin {
                Some(stdin) => Pin::new(stdin).poll_write(cx, buf),
                None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            },
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Conn::Unix(s) => Pin::new(s).poll_flush(cx),
            Conn::Tcp(s) => Pin::new(s).poll_flush(cx),
            Conn::Tls(s) => Pin::new(s).poll_flush(cx),
            Conn::Ssh(s) => match &mut s.stdin {
                Some(stdin) => Pin::new(stdin).poll_flush(cx),
                None => Poll::Ready(Ok(())),
            },
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Conn::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Conn::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Conn::Tls(s) => Pin::new(s).poll_shutdown(cx),
            Conn::Ssh(s) => {
                s.stdin = None;
                Poll::Ready(Ok(()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn endpoints() {
        let tcp = |host: &str, port| Endpoint::Tcp { host: host.into(), port };
        for (text, tls, want) in [
            ("unix:///a/b.sock", false, Endpoint::Unix("/a/b.sock".into())),
            ("tcp://h", false, tcp("h", 2375)),
            ("tcp://h", true, tcp("h", 2376)),
            ("tcp://1.2.3.4:9/x", false, tcp("1.2.3.4", 9)),
            ("tcp://[::1]:9", false, tcp("::1", 9)),
            ("tcp://:9", false, tcp("localhost", 9)),
            (
                "ssh://me@h:22/run/x.sock",
                false,
                Endpoint::Ssh {
                    user: Some("me".into()),
                    host: "h".into(),
                    port: Some(22),
                    path: Some("/run/x.sock".into()),
                },
            ),
        ] {
            assert_eq!(Endpoint::parse(text, tls).unwrap(), want, "{text}");
        }
        for bad in [
            "",
            "h:1",
            "ftp://h",
            "tcp://h:x",
            "ssh://-oProxyCommand=x",
            "ssh://-l@h",
            "ssh://u:p@h",
        ] {
            assert!(Endpoint::parse(bad, false).is_err(), "{bad}");
        }
        assert_eq!(Endpoint::parse("tcp://[::1]:9", false).unwrap().to_string(), "tcp://[::1]:9");
    }
}

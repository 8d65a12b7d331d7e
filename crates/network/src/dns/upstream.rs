//! Asking other servers, from the engine's namespace. Queries are passed on as
//! they are, under a random id and from a random port.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::message::Transport;

/// How long one server is waited for; Docker's.
const TIMEOUT: Duration = Duration::from_secs(4);
/// The largest DNS message.
pub(super) const MAX_MESSAGE: usize = 65_535;
const HEADER: usize = 12;
const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;

/// The first useful answer of the servers, asked one after the other; the last
/// useless one (server failure, refused) if there is no other.
pub(super) async fn ask(
    query: &[u8],
    transport: Transport,
    servers: &[SocketAddr],
) -> Option<Vec<u8>> {
    let mut useless = None;
    for server in servers {
        let attempt = async {
            match transport {
                Transport::Udp => over_udp(query, *server).await,
                Transport::Tcp => over_tcp(query, *server).await,
            }
        };
        match tokio::time::timeout(TIMEOUT, attempt).await {
            Ok(Ok(answer)) if matches!(answer[3] & 0xf, SERVFAIL | REFUSED) => {
                useless = Some(answer)
            }
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%server, %error, "DNS server not asked"),
            Err(_) => tracing::debug!(%server, "DNS server silent"),
        }
    }
    useless
}

/// The query under another id, and that id.
fn renamed(query: &[u8]) -> io::Result<(Vec<u8>, [u8; 2])> {
    if query.len() < HEADER {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let id = crate::util::random::<2>()?;
    let mut out = query.to_vec();
    out[..2].copy_from_slice(&id);
    Ok((out, id))
}

/// Whether this answers the query: its id, a response, the same question.
fn answers(answer: &[u8], sent: &[u8], id: [u8; 2]) -> bool {
    if answer.len() < HEADER || answer[..2] != id || answer[2] & 0x80 == 0 {
        return false;
    }
    // Refusals may come without the question.
    let questions = [answer[4], answer[5]];
    questions == [0, 0] || question(answer).is_some_and(|q| question(sent) == Some(q))
}

/// The one question, in lower case (some servers change the case).
fn question(message: &[u8]) -> Option<Vec<u8>> {
    let mut at = HEADER;
    loop {
        let len = usize::from(*message.get(at)?);
        if len & 0xc0 != 0 {
            return None;
        }
        at += 1 + len;
        if len == 0 {
            return Some(message.get(HEADER..at + 4)?.to_ascii_lowercase());
        }
    }
}

async fn over_udp(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let (sent, id) = renamed(query)?;
    socket.send(&sent).await?;
    let mut buf = vec![0u8; MAX_MESSAGE];
    loop {
        let len = socket.recv(&mut buf).await?;
        if answers(&buf[..len], &sent, id) {
            buf.truncate(len);
            buf[..2].copy_from_slice(&query[..2]);
            return Ok(buf);
        }
    }
}

async fn over_tcp(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let (sent, id) = renamed(query)?;
    write_message(&mut stream, &sent).await?;
    let mut answer = read_message(&mut stream).await?;
    if !answers(&answer, &sent, id) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    answer[..2].copy_from_slice(&query[..2]);
    Ok(answer)
}

/// Reads one message with its two bytes of length.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0u8; usize::from(len)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes one message with its two bytes of length.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&len.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

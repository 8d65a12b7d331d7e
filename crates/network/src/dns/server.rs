//! The tasks that serve one namespace.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use super::message::{Decision, Transport, decide, server_failure};
use super::upstream::{self, MAX_MESSAGE};
use super::{DnsSockets, EndpointScope, Resolver};
use crate::error::{Error, system};
use crate::resolv::MAX_UPSTREAMS;

/// Forwarded queries under way per container; more are answered "server failure".
const MAX_IN_FLIGHT: usize = 256;
/// TCP connections per container; more wait.
const MAX_TCP: usize = 32;
/// A TCP connection that asks nothing is closed after this.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// After a failed accept (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How a namespace is served.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Who asks.
    pub scope: EndpointScope,
    /// Whom to ask about other names; the first three count.
    pub upstreams: Vec<SocketAddr>,
    /// False when all its networks are internal: nothing leaves, other names
    /// are answered "server failure".
    pub forward: bool,
}

/// A running server; dropping it ends its tasks and closes its sockets.
#[derive(Debug)]
pub struct Server {
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Shared {
    config: ServerConfig,
    resolver: Arc<dyn Resolver>,
    in_flight: Semaphore,
    udp: UdpSocket,
}

/// Starts to serve. Must be called inside a tokio runtime with I/O and time.
///
/// # Errors
/// When the sockets cannot be registered with the runtime.
pub fn serve(
    sockets: DnsSockets,
    mut config: ServerConfig,
    resolver: Arc<dyn Resolver>,
) -> Result<Server, Error> {
    config.upstreams.truncate(MAX_UPSTREAMS);
    let udp = UdpSocket::from_std(sockets.udp).map_err(system("serve", "DNS over UDP"))?;
    let tcp = TcpListener::from_std(sockets.tcp).map_err(system("serve", "DNS over TCP"))?;
    let shared =
        Arc::new(Shared { config, resolver, in_flight: Semaphore::new(MAX_IN_FLIGHT), udp });
    Ok(Server { task: tokio::spawn(run(shared, tcp)) })
}

async fn run(shared: Arc<Shared>, tcp: TcpListener) {
    // Both sets end with this task.
    let mut queries = JoinSet::new();
    let mut connections = JoinSet::new();
    let mut packet = vec![0u8; MAX_MESSAGE];
    loop {
        tokio::select! {
            received = shared.udp.recv_from(&mut packet) => match received {
                Ok((len, peer)) => on_packet(&shared, &packet[..len], peer, &mut queries).await,
                // An ICMP error about an earlier answer.
                Err(error) => tracing::debug!(%error, "DNS packet not received"),
            },
            accepted = tcp.accept(), if connections.len() < MAX_TCP => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(Arc::clone(&shared), stream));
                }
                Err(error) => {
                    tracing::debug!(%error, "DNS connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = queries.join_next(), if !queries.is_empty() => {}
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn on_packet(
    shared: &Arc<Shared>,
    packet: &[u8],
    peer: SocketAddr,
    queries: &mut JoinSet<()>,
) {
    let decision = decide(packet, Transport::Udp, &shared.config.scope, &*shared.resolver);
    match decision {
        Decision::Ignore => {}
        Decision::Reply(answer) => send(shared, &answer, peer).await,
        Decision::Forward if queries.len() >= MAX_IN_FLIGHT => {
            if let Some(answer) = server_failure(packet) {
                send(shared, &answer, peer).await;
            }
        }
        Decision::Forward => {
            let (shared, packet) = (Arc::clone(shared), packet.to_vec());
            queries.spawn(async move {
                if let Some(answer) = forward(&shared, &packet, Transport::Udp).await {
                    send(&shared, &answer, peer).await;
                }
            });
        }
    }
}

async fn send(shared: &Shared, answer: &[u8], peer: SocketAddr) {
    if let Err(error) = shared.udp.send_to(answer, peer).await {
        tracing::debug!(%error, "DNS answer not sent");
    }
}

async fn forward(shared: &Shared, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let answer = match (shared.config.forward, shared.in_flight.try_acquire()) {
        (true, Ok(_permit)) => upstream::ask(packet, transport, &shared.config.upstreams).await,
        _ => None,
    };
    answer.or_else(|| server_failure(packet))
}

async fn connection(shared: Arc<Shared>, mut stream: TcpStream) {
    loop {
        match tokio::time::timeout(TCP_IDLE, exchange(&shared, &mut stream)).await {
            Ok(Ok(())) => {}
            // Closed by the client, broken, or idle.
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

async fn exchange(shared: &Shared, stream: &mut TcpStream) -> io::Result<()> {
    let packet = upstream::read_message(stream).await?;
    let decision = decide(&packet, Transport::Tcp, &shared.config.scope, &*shared.resolver);
    let answer = match decision {
        Decision::Reply(answer) => Some(answer),
        Decision::Forward => forward(shared, &packet, Transport::Tcp).await,
        Decision::Ignore => None,
    };
    upstream::write_message(stream, &answer.ok_or(io::ErrorKind::InvalidData)?).await
}

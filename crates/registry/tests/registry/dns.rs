//! The resolver against a name server of the test.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use registry::dns::{DnsError, Resolver};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
};

/// Answers `big.*` over TCP only, `bad.*` with a failure, `none.*` with no such name.
fn answer(query: &[u8], tcp: bool) -> Vec<u8> {
    let end = 12 + query[12..].iter().position(|b| *b == 0).unwrap() + 5;
    let name = String::from_utf8_lossy(&query[13..end - 5]).into_owned();
    let is_a = query[end - 4..end - 2] == [0, 1];
    let mut out = query[..end].to_vec();
    out[2] = 0x81;
    out[3] = 0x80;
    out[10..12].fill(0);
    if name.starts_with("none") {
        out[3] |= 3;
    } else if name.starts_with("bad") {
        out[3] |= 2;
    } else if name.starts_with("big") && !tcp {
        out[2] |= 2;
    } else if is_a {
        out[7] = 1;
        let last = if tcp { 2 } else { 1 };
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, last]);
    }
    out
}

#[tokio::test]
async fn names_are_asked_for() {
    // A loopback address of this test's own, since name servers have a fixed port.
    let seed = crate::hostile::random(3);
    let address = Ipv4Addr::new(127, seed[0] | 1, seed[1] | 1, seed[2] | 1);
    let server: SocketAddr = (address, 53).into();
    let udp = UdpSocket::bind(server).await.unwrap();
    let tcp = TcpListener::bind(server).await.unwrap();
    let task = tokio::spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            tokio::select! {
                got = udp.recv_from(&mut buffer) => {
                    let (n, from) = got.unwrap();
                    // A forged answer first: another id.
                    let mut forged = answer(&buffer[..n], false);
                    forged[0] ^= 1;
                    udp.send_to(&forged, from).await.unwrap();
                    udp.send_to(&answer(&buffer[..n], false), from).await.unwrap();
                }
                got = tcp.accept() => {
                    let (mut stream, _) = got.unwrap();
                    let n = usize::from(stream.read_u16().await.unwrap());
                    stream.read_exact(&mut buffer[..n]).await.unwrap();
                    let answer = answer(&buffer[..n], true);
                    let length = u16::try_from(answer.len()).unwrap();
                    stream.write_u16(length).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            }
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let (hosts, conf) = (dir.path().join("hosts"), dir.path().join("resolv.conf"));
    std::fs::write(&hosts, "192.0.2.77 Filed.example\n").unwrap();
    let text = format!("nameserver {address}\nsearch lan\noptions timeout:1 attempts:1\n");
    std::fs::write(&conf, text).unwrap();
    let resolver = Resolver::with_files(hosts, conf);
    let ip = |text: &str| -> Vec<IpAddr> { vec![text.parse().unwrap()] };
    assert_eq!(resolver.lookup("small.example").await.unwrap(), ip("192.0.2.1"));
    assert_eq!(resolver.lookup("big.example").await.unwrap(), ip("192.0.2.2"));
    assert_eq!(resolver.lookup("filed.example").await.unwrap(), ip("192.0.2.77"));
    assert_eq!(resolver.lookup("[2001:db8::1]").await.unwrap(), ip("2001:db8::1"));
    assert!(resolver.lookup("x.localhost").await.unwrap().iter().all(IpAddr::is_loopback));
    let error = resolver.lookup("none.example").await.unwrap_err();
    assert_eq!(error.to_string(), "lookup none.example: no such host");
    let error = resolver.lookup("bad.example").await.unwrap_err();
    assert!(matches!(error, DnsError::Server { code: 2, .. }), "{error:?}");
    task.abort();
    let error = resolver.lookup("small.example").await;
    assert!(error.is_err(), "{error:?}");
}

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use network::dns::{self, Answer, EndpointScope, Resolver, ServerConfig, serve};
use network::ns::Namespace;

use crate::bed::{PATIENCE, isolated, program, random};

struct Names {
    db: Ipv4Addr,
}

impl Resolver for Names {
    fn lookup(&self, scope: &EndpointScope, name: &str) -> Answer {
        match name {
            "db" if scope.networks == ["net1"] => {
                Answer::Addresses { v4: vec![self.db], v6: Vec::new() }
            }
            "six" => Answer::Addresses { v4: Vec::new(), v6: vec![Ipv6Addr::LOCALHOST] },
            _ => Answer::Unknown,
        }
    }

    fn reverse(&self, _: &EndpointScope, address: IpAddr) -> Option<String> {
        (address == IpAddr::V4(self.db)).then(|| "db.net1".to_owned())
    }
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn over_udp(name: &str, kind: RecordType) -> Message {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect((Ipv4Addr::new(127, 0, 0, 11), 53)).unwrap();
    let sent = query(name, kind);
    socket.send(&sent).unwrap();
    let mut buf = [0u8; 2000];
    let len = socket.recv(&mut buf).unwrap();
    assert_eq!(buf[..2], sent[..2]);
    Message::from_vec(&buf[..len]).unwrap()
}

fn over_tcp(name: &str, kind: RecordType) -> Message {
    let mut stream = TcpStream::connect((Ipv4Addr::new(127, 0, 0, 11), 53)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = query(name, kind);
    stream.write_all(&u16::try_from(sent.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&sent).unwrap();
    let mut len = [0u8; 2];
    stream.read_exact(&mut len).unwrap();
    let mut answer = vec![0u8; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut answer).unwrap();
    Message::from_vec(&answer).unwrap()
}

/// A server on the host that knows one address for every name, and counts.
fn upstream(address: Ipv4Addr) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = socket.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut buf = [0u8; 2000];
        loop {
            let (len, peer) = socket.recv_from(&mut buf).unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            let mut message = Message::from_vec(&buf[..len]).unwrap().into_response();
            let name = message.queries[0].name().clone();
            message.add_answer(Record::from_rdata(name, 5, RData::A(A(address))));
            socket.send_to(&message.to_vec().unwrap(), peer).unwrap();
        }
    });
    (at, count)
}

#[test]
fn names_inside_and_out() {
    isolated(|| {
        let b = u8::try_from(random(250)).unwrap();
        let (db, far) = (Ipv4Addr::new(10, b, 0, 2), Ipv4Addr::new(198, 51, 100, b));
        let (server, asked) = upstream(far);
        // A dead server first: the next one is asked.
        let upstreams = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), server];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ns = Namespace::create_unbound().unwrap();
        let scope = EndpointScope { container: "c".to_owned(), networks: vec!["net1".to_owned()] };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let sockets = dns::open(&ns).unwrap();
        // Again, as after a restart of the engine: the new sockets count.
        drop(sockets);
        let sockets = dns::open(&ns).unwrap();
        let inner = Namespace::create_unbound().unwrap();
        let inner_sockets = dns::open(&inner).unwrap();
        let in_thread = scope.clone();
        let running = std::thread::spawn(move || {
            runtime.block_on(async {
                let resolver: Arc<dyn Resolver> = Arc::new(Names { db });
                let config = ServerConfig { scope: in_thread, upstreams, forward: true };
                let internal = ServerConfig { forward: false, ..config.clone() };
                let one = serve(sockets, config, Arc::clone(&resolver)).unwrap();
                let two = serve(inner_sockets, internal, resolver).unwrap();
                stopped.await.ok();
                drop((one, two));
            });
        });
        ns.run(|| {
            for ask in [over_udp, over_tcp] {
                let answer = ask("db.", RecordType::A);
                assert_eq!(answer.answers[0].data, RData::A(A(db)));
                assert_eq!(answer.answers[0].ttl, 600);
                let answer = ask("db.", RecordType::AAAA);
                assert!(
                    answer.answers.is_empty()
                        && answer.metadata.response_code == ResponseCode::NoError
                );
                assert_eq!(ask("six.", RecordType::AAAA).answers.len(), 1);
            }
            let [_, second, _, _] = db.octets();
            let ptr = over_udp(&format!("2.0.{second}.10.in-addr.arpa."), RecordType::PTR);
            assert_eq!(ptr.answers.len(), 1);
        })
        .unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 0, "known names are not asked of others");
        let answer = ns.run(|| over_udp("example.org.", RecordType::A)).unwrap();
        assert_eq!(answer.answers[0].data, RData::A(A(far)));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        inner
            .run(|| {
                assert_eq!(over_udp("db.", RecordType::A).answers.len(), 1);
                let answer = over_udp("example.org.", RecordType::A);
                assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
            })
            .unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 1, "nothing leaves an internal network");
        let rules = ns.run(|| program(&["nft", "list", "ruleset"])).unwrap();
        assert_eq!(rules.matches("dnat").count(), 2, "{rules}");
        // The container's own server on port 53 is not in the way.
        ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap()).unwrap();
        stop.send(()).unwrap();
        running.join().unwrap();
    });
}

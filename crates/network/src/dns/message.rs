//! Answers to queries. Pure but for the order of addresses, which is random.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::{Answer, EndpointScope, Resolver, TTL_SECONDS};

/// The largest UDP answer to who did not say more (RFC 1035).
const PLAIN_UDP_BYTES: usize = 512;
/// What is sent at most over UDP (the DNS flag day's size).
const MAX_UDP_BYTES: usize = 1232;

/// What to do with a query.
#[derive(Debug)]
pub(super) enum Decision {
    /// Send this.
    Reply(Vec<u8>),
    /// Ask others.
    Forward,
    /// Not a query: say nothing.
    Ignore,
}

/// The transport's limit on an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Decides about a query.
pub(super) fn decide(
    packet: &[u8],
    transport: Transport,
    scope: &EndpointScope,
    resolver: &dyn Resolver,
) -> Decision {
    let Ok(query) = Message::from_vec(packet) else {
        return failure(packet, ResponseCode::FormErr);
    };
    if query.metadata.message_type != MessageType::Query {
        return Decision::Ignore;
    }
    let question = match query.queries.as_slice() {
        [one] if query.metadata.op_code == OpCode::Query => one,
        [_] => return failure(packet, ResponseCode::NotImp),
        _ => return failure(packet, ResponseCode::FormErr),
    };
    match records(question, scope, resolver) {
        Some(records) => reply(&query, records, transport),
        None => Decision::Forward,
    }
}

/// The records for a name of ours; none if it is not ours.
fn records(
    question: &Query,
    scope: &EndpointScope,
    resolver: &dyn Resolver,
) -> Option<Vec<Record>> {
    if question.query_class() != DNSClass::IN {
        return None;
    }
    let name = question.name();
    let record = |data: RData| Record::from_rdata(name.clone(), TTL_SECONDS, data);
    if question.query_type() == RecordType::PTR {
        let address = name.parse_arpa_name().ok()?;
        let target =
            resolver.reverse(scope, full_address(address.addr(), address.prefix_len())?)?;
        let target = Name::from_ascii(format!("{}.", target.trim_end_matches('.'))).ok()?;
        return Some(vec![record(RData::PTR(PTR(target)))]);
    }
    let text = name.to_ascii().to_ascii_lowercase();
    match resolver.lookup(scope, text.trim_end_matches('.')) {
        Answer::Unknown => None,
        Answer::Addresses { v4, v6 } => {
            let mut records: Vec<Record> = match question.query_type() {
                RecordType::A => v4.into_iter().map(|a| record(RData::A(A(a)))).collect(),
                RecordType::AAAA => v6.into_iter().map(|a| record(RData::AAAA(AAAA(a)))).collect(),
                _ => Vec::new(),
            };
            rotate(&mut records);
            Some(records)
        }
    }
}

fn full_address(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    let full = if address.is_ipv4() { 32 } else { 128 };
    (prefix == full).then_some(address)
}

/// Spreads clients over the addresses of one name.
fn rotate(records: &mut [Record]) {
    if records.len() > 1 {
        // Without randomness the order stays as it is.
        let random = crate::util::random::<4>().map(u32::from_ne_bytes).unwrap_or(0);
        let by = usize::try_from(random).unwrap_or(0) % records.len();
        records.rotate_left(by);
    }
}

fn reply(query: &Message, records: Vec<Record>, transport: Transport) -> Decision {
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.queries.clone_from(&query.queries);
    answer.answers = records;
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(u16::try_from(MAX_UDP_BYTES).expect("1232 is a u16"));
        answer.set_edns(edns);
    }
    let limit = match transport {
        Transport::Tcp => usize::from(u16::MAX),
        Transport::Udp => {
            let asked =
                query.edns.as_ref().map_or(PLAIN_UDP_BYTES, |e| usize::from(e.max_payload()));
            asked.clamp(PLAIN_UDP_BYTES, MAX_UDP_BYTES)
        }
    };
    let Ok(mut bytes) = answer.to_vec() else { return Decision::Ignore };
    if bytes.len() > limit {
        match answer.truncate().to_vec() {
            Ok(short) => bytes = short,
            Err(_) => return Decision::Ignore,
        }
    }
    Decision::Reply(bytes)
}

fn failure(packet: &[u8], code: ResponseCode) -> Decision {
    failed(packet, code).map_or(Decision::Ignore, Decision::Reply)
}

/// The answer "server failure" to a query that could not be forwarded.
pub(super) fn server_failure(packet: &[u8]) -> Option<Vec<u8>> {
    failed(packet, ResponseCode::ServFail)
}

/// A negative answer, with the question where it can be read.
fn failed(packet: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes(packet.get(..2)?.try_into().ok()?);
    // The top bit of the third byte: a response is never answered.
    if packet.get(2)? & 0x80 != 0 {
        return None;
    }
    let mut answer = Message::error_msg(id, OpCode::Query, code);
    answer.metadata.recursion_available = true;
    if let Ok(query) = Message::from_vec(packet) {
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.queries = query.queries;
    }
    answer.to_vec().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::str::FromStr;

    use proptest::prelude::*;

    use super::*;

    struct Table;

    impl Resolver for Table {
        fn lookup(&self, scope: &EndpointScope, name: &str) -> Answer {
            assert_eq!(scope.container, "c");
            match name {
                "db" => Answer::Addresses { v4: vec![Ipv4Addr::new(10, 0, 0, 2)], v6: Vec::new() },
                "many" => Answer::Addresses {
                    v4: (0..200).map(|n| Ipv4Addr::new(10, 0, 1, n)).collect(),
                    v6: vec![Ipv6Addr::LOCALHOST],
                },
                _ => Answer::Unknown,
            }
        }

        fn reverse(&self, _: &EndpointScope, address: IpAddr) -> Option<String> {
            (address == IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2))).then(|| "db.net".to_owned())
        }
    }

    fn ask(name: &str, kind: RecordType, transport: Transport) -> Decision {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        let scope = EndpointScope { container: "c".to_owned(), networks: Vec::new() };
        decide(&query.to_vec().unwrap(), transport, &scope, &Table)
    }

    fn answers(name: &str, kind: RecordType) -> Vec<Record> {
        match ask(name, kind, Transport::Tcp) {
            Decision::Reply(bytes) => {
                let message = Message::from_vec(&bytes).unwrap();
                assert_eq!(message.metadata.response_code, ResponseCode::NoError);
                message.answers
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn known_names() {
        let records = answers("DB.", RecordType::A);
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].ttl, TTL_SECONDS);
        assert_eq!(records[0].data, RData::A(A(Ipv4Addr::new(10, 0, 0, 2))));
        assert!(answers("db.", RecordType::AAAA).is_empty(), "known name, no IPv6: empty");
        assert!(answers("db.", RecordType::MX).is_empty());
        let ptr = answers("2.0.0.10.in-addr.arpa.", RecordType::PTR);
        assert_eq!(ptr[0].data, RData::PTR(PTR(Name::from_str("db.net.").unwrap())));
    }

    #[test]
    fn unknown_names_are_forwarded() {
        for (name, kind) in
            [("example.org.", RecordType::A), ("3.0.0.10.in-addr.arpa.", RecordType::PTR)]
        {
            assert!(matches!(ask(name, kind, Transport::Udp), Decision::Forward));
        }
    }

    #[test]
    fn a_large_answer_is_truncated_on_udp_only() {
        let Decision::Reply(bytes) = ask("many.", RecordType::A, Transport::Udp) else { panic!() };
        assert!(bytes.len() <= PLAIN_UDP_BYTES);
        assert!(Message::from_vec(&bytes).unwrap().metadata.truncation);
        assert_eq!(answers("many.", RecordType::A).len(), 200);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            let scope = EndpointScope { container: "c".to_owned(), networks: Vec::new() };
            let _ = decide(&packet, Transport::Udp, &scope, &Table);
            let _ = server_failure(&packet);
        }
    }
}

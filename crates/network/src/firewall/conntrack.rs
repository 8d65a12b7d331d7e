//! Forgetting UDP flows. The kernel keeps where a flow went for as long as
//! packets come, so a client that sends on and on would never get to a port
//! that was published (or moved to another container) meanwhile.

use std::net::IpAddr;

use super::{Error, Proto, PublishedPort, Socket};
use crate::netlink::{Event, attributes, be16, flags};

const SUBSYSTEM: u16 = 1;
const MSG_GET: u16 = 1;
const MSG_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// Protocol number and destination port, of the bits that a filter may have.
const FILTER_PROTO_AND_DST_PORT: u32 = (1 << 3) | (1 << 5);
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const UDP: u8 = 17;

/// Forgets flows to these ports. A kernel without this interface keeps them.
pub(super) fn forget(socket: &mut Socket, ports: &[PublishedPort]) -> Result<(), Error> {
    for port in ports.iter().filter(|p| p.proto == Proto::Udp) {
        match forget_one(socket, port) {
            Err(error) if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "UDP flows kept");
            }
            other => other?,
        }
    }
    Ok(())
}

fn family(ip: IpAddr) -> [u8; 4] {
    [if ip.is_ipv4() { 2 } else { 10 }, 0, 0, 0]
}

fn forget_one(socket: &mut Socket, port: &PublishedPort) -> Result<(), Error> {
    let operation = format!("list flows to UDP port {}", port.host_port);
    // Kernels before 5.8 ignore the filter and tell all flows.
    let events =
        socket.dump((SUBSYSTEM << 8) | MSG_GET, &family(port.host_ip), &operation, |b| {
            b.nest(CTA_TUPLE_ORIG, |b| {
                b.nest(CTA_TUPLE_PROTO, |b| {
                    b.attr(CTA_PROTO_NUM, &[UDP]);
                    b.attr(CTA_PROTO_DST_PORT, &port.host_port.to_be_bytes());
                });
            });
            b.nest(CTA_FILTER, |b| {
                b.u32(CTA_FILTER_ORIG_FLAGS, FILTER_PROTO_AND_DST_PORT);
                b.u32(CTA_FILTER_REPLY_FLAGS, 0);
            });
        })?;
    for event in events.iter().filter(|e| goes_to(e, port)) {
        delete(socket, event, port)?;
    }
    Ok(())
}

fn goes_to(event: &Event, port: &PublishedPort) -> bool {
    let to = || -> Option<bool> {
        let tuple = attributes(attributes(event.payload.get(4..)?).get(CTA_TUPLE_ORIG)?);
        let proto = attributes(tuple.get(CTA_TUPLE_PROTO)?);
        let same_port = proto.get(CTA_PROTO_NUM)? == [UDP]
            && proto.get(CTA_PROTO_DST_PORT).and_then(be16) == Some(port.host_port);
        let ip = attributes(tuple.get(CTA_TUPLE_IP)?);
        let to = match port.host_ip {
            IpAddr::V4(_) => ip.get(CTA_IP_V4_DST)?,
            IpAddr::V6(_) => ip.get(CTA_IP_V6_DST)?,
        };
        let same_ip = port.host_ip.is_unspecified() || to == crate::link::octets(port.host_ip);
        Some(same_port && same_ip)
    };
    to().unwrap_or(false)
}

fn delete(socket: &mut Socket, event: &Event, port: &PublishedPort) -> Result<(), Error> {
    let all = attributes(event.payload.get(4..).unwrap_or_default());
    let mut batch = socket.batch();
    let operation = format!("forget a flow to UDP port {}", port.host_port);
    batch.begin((SUBSYSTEM << 8) | MSG_DELETE, flags::ACK, &family(port.host_ip), operation);
    for kind in [CTA_TUPLE_ORIG, CTA_ID] {
        if let Some(data) = all.get(kind) {
            let nested = if kind == CTA_TUPLE_ORIG { 0x8000 } else { 0 };
            batch.attr(kind | nested, data);
        }
    }
    match socket.request(&mut batch) {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

//! `linux.netDevices`: network interfaces of the caller's namespace that move into the container's,
//! over rtnetlink. Their permanent addresses of global scope go with them, and they are up there. If one
//! of them cannot move, all are given back as they were, but for routes.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};
use sys::clone::{self as flag, CloneOptions, clone_process};

use crate::error::{Context, Error, Result, Step};
use crate::namespaces;
use crate::spec::NetDevice;
use crate::sync::{Message, Sync};

/// The kernel sends answers of up to 32 KiB where it may.
const ANSWER_LIMIT_BYTES: usize = 32 << 10;
/// IFNAMSIZ, with the NUL.
const NAME_LIMIT_BYTES: usize = 16;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;
const MSG_ERROR: u16 = 2;
const MSG_DONE: u16 = 3;
const NEWLINK: u16 = 16;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_PID: u16 = 19;
const IFA_LABEL: u16 = 3;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFF_UP: u32 = 1;
const IFA_F_PERMANENT: u32 = 0x80;
const SCOPE_GLOBAL: u8 = 0;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct ifinfomsg`.
const LINK: usize = 16;
/// Length of `struct ifaddrmsg`.
const ADDR: usize = 8;

/// Interfaces to move, checked: (name here, name there).
#[derive(Debug, Default)]
pub(crate) struct NetDevices(Vec<(String, String)>);

impl NetDevices {
    pub(crate) fn parse(list: &BTreeMap<String, NetDevice>) -> Result<NetDevices> {
        let mut out = Vec::new();
        for (name, device) in list {
            let inside = if device.name.is_empty() { name } else { &device.name };
            for name in [name, inside] {
                check_name(name)?;
            }
            if out.iter().any(|(_, taken)| taken == inside) {
                let problem = format!("two devices are to be {inside:?}");
                return Err(Error::config("linux.netDevices", problem));
            }
            out.push((name.clone(), inside.clone()));
        }
        Ok(NetDevices(out))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Moves them into the network namespace of a process that the caller has made and not waited for.
    /// `None` if there are none.
    pub(crate) fn give(&self, pid: i32) -> Result<Option<Given>> {
        if self.is_empty() {
            return Ok(None);
        }
        let path = format!("/proc/{pid}/ns/net");
        let network = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .ctx("open namespace", || path)?;
        let mut given = Given { network, devices: Vec::new() };
        match self.move_all(&mut given, pid) {
            Ok(()) => Ok(Some(given)),
            Err(e) => given.take_back_after(Err(e)),
        }
    }

    fn move_all(&self, given: &mut Given, pid: i32) -> Result<()> {
        let mut netlink = Netlink::open()?;
        for (name, inside) in &self.0 {
            let step = || format!("linux.netDevices: move {name:?} into the container");
            let mut device = Device::find(&mut netlink, name).step(step)?;
            let result = device.move_to(&mut netlink, pid, inside).step(step);
            given.devices.push(device);
            result?;
        }
        in_network(&given.network, || set_up(&given.devices))
            .step(|| "linux.netDevices: set up in the container")
    }
}

/// Interfaces that were moved.
#[derive(Debug)]
pub(crate) struct Given {
    /// Lives as long as this, also when its processes have ended: they go with it.
    network: OwnedFd,
    devices: Vec<Device>,
}

impl Given {
    /// Brings them back as they were, because of an error.
    pub(crate) fn take_back_after<T>(&self, failed: Result<T>) -> Result<T> {
        match give_back(&self.network, &self.devices) {
            Ok(()) => failed,
            Err(back) => failed.step(|| {
                format!("linux.netDevices: some were not given back to the host ({})", back.chain())
            }),
        }
    }
}

/// One of them, as it was on the host.
#[derive(Debug)]
struct Device {
    name: String,
    index: i32,
    is_up: bool,
    /// As messages that add them.
    addresses: Vec<Vec<u8>>,
    /// Its name in the container, if it is there.
    inside: Option<String>,
}

impl Device {
    fn find(netlink: &mut Netlink, name: &str) -> Result<Device> {
        let (index, flags) = netlink.link(name)?;
        let addresses = netlink.addresses(index)?;
        Ok(Device {
            name: name.to_owned(),
            index,
            is_up: flags & IFF_UP != 0,
            addresses,
            inside: None,
        })
    }

    /// The kernel sets it down itself, once it has found that it can move: one that cannot is left
    /// alone.
    fn move_to(&mut self, netlink: &mut Netlink, pid: i32, inside: &str) -> Result<()> {
        let mut body = link_of(self.index);
        attribute(&mut body, IFLA_NET_NS_PID, &pid.to_ne_bytes());
        attribute(&mut body, IFLA_IFNAME, &text(inside));
        let moved = netlink.request(NEWLINK, ACK, &body);
        if moved.is_ok() {
            self.inside = Some(inside.to_owned());
        } else if netlink.request(GETLINK, 0, &link_of(self.index)) == Err(Errno::NODEV) {
            // It has moved, and its new name is taken there.
            self.inside = Some(self.name.clone());
        }
        moved.ctx("change the namespace of", || self.name.as_str()).map(drop)
    }

    /// What is there in the calling process's namespace, under this name.
    fn configure(&self, netlink: &mut Netlink, name: &str, is_up: bool, on_old: u16) -> Result<()> {
        let index = netlink.index(name)?;
        for address in &self.addresses {
            let mut address = address.clone();
            address[4..8].copy_from_slice(&index.to_ne_bytes());
            match netlink.request(NEWADDR, ACK | CREATE | on_old, &address) {
                Err(Errno::EXIST) if on_old == EXCLUSIVE => {}
                other => drop(other.ctx("add an address to", || name)?),
            }
        }
        if is_up {
            netlink.request(NEWLINK, ACK, &link(index, IFF_UP)).ctx("set up", || name)?;
        }
        Ok(())
    }
}

fn set_up(devices: &[Device]) -> Result<()> {
    let mut netlink = Netlink::open()?;
    for device in devices {
        let name = device.inside.as_ref().unwrap_or(&device.name);
        device.configure(&mut netlink, name, true, REPLACE)?;
    }
    Ok(())
}

/// Brings them back under their old names, with their addresses, and up if they were; the first error,
/// after every one has been tried.
fn give_back(network: &OwnedFd, devices: &[Device]) -> Result<()> {
    let mut netlink = Netlink::open()?;
    // Of the calling thread, whose namespace it is.
    let here = rustix::thread::gettid().as_raw_nonzero().get();
    let returned = match devices.iter().any(|d| d.inside.is_some()) {
        true => in_network(network, || return_to(here, devices)),
        false => Ok(()),
    };
    let restore = |d: &Device| d.configure(&mut netlink, &d.name, d.is_up, EXCLUSIVE);
    let restored = every(devices, restore);
    returned.and(restored)
}

/// In the container's namespace: into that of the thread `to`.
fn return_to(to: i32, devices: &[Device]) -> Result<()> {
    let mut netlink = Netlink::open()?;
    every(devices, |device| {
        let Some(inside) = device.inside.as_deref() else { return Ok(()) };
        let mut body = link_of(netlink.index(inside)?);
        attribute(&mut body, IFLA_NET_NS_PID, &to.to_ne_bytes());
        attribute(&mut body, IFLA_IFNAME, &text(&device.name));
        netlink.request(NEWLINK, ACK, &body).ctx("change the namespace of", || inside).map(drop)
    })
}

/// The first error, after all.
fn every(devices: &[Device], f: impl FnMut(&Device) -> Result<()>) -> Result<()> {
    devices.iter().map(f).fold(Ok(()), Result::and)
}

fn check_name(name: &str) -> Result<()> {
    let bad = name.is_empty()
        || name.len() >= NAME_LIMIT_BYTES
        || name == "."
        || name == ".."
        || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    match bad {
        true => Err(Error::config("linux.netDevices", format!("{name:?} is no interface's name"))),
        false => Ok(()),
    }
}

/// Runs `f` in a network namespace; in a process of its own, for the calling one never changes its
/// namespaces.
fn in_network(network: &OwnedFd, f: impl Fn() -> Result<()>) -> Result<()> {
    let (ours, theirs) = Sync::pair()?;
    let child = clone_process(&CloneOptions::default(), || {
        ours.close_in_child();
        let entered = namespaces::set_ns(network, flag::CLONE_NEWNET);
        match entered.ctx("setns", || "the container's network").and_then(|()| f()) {
            Ok(()) => 0,
            Err(e) => {
                theirs.failed(&e);
                1
            }
        }
    })
    .ctx("clone3", || "for network devices")?;
    drop(theirs);
    let answer = ours.receive();
    crate::process::reap(&child.pidfd)?;
    match answer? {
        Message::Failed(text) => Err(Error::Init(text)),
        _ => Ok(()),
    }
}

/// Brings up `lo` of the calling process's new network namespace.
pub(crate) fn loopback_up() -> Result<()> {
    /// The first interface of every namespace.
    const LO: i32 = 1;
    let set = Netlink::open()?.request(NEWLINK, ACK, &link(LO, IFF_UP));
    set.ctx("set up", || "lo of the network namespace").map(drop)
}

/// A route netlink socket.
struct Netlink {
    socket: OwnedFd,
    serial: u32,
}

impl Netlink {
    fn open() -> Result<Netlink> {
        // Protocol 0: NETLINK_ROUTE.
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
                .ctx("socket", || "netlink")?;
        Ok(Netlink { socket, serial: 0 })
    }

    /// Sends a message; the messages of the answer: (type, body).
    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
    ) -> Result<Vec<(u16, Vec<u8>)>, Errno> {
        self.serial += 1;
        let length = u32::try_from(HEADER + body.len()).map_err(|_| Errno::MSGSIZE)?;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | REQUEST).to_ne_bytes());
        message.extend(self.serial.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        send(&self.socket, &message, SendFlags::empty())?;
        let mut out = Vec::new();
        let mut buf = vec![0u8; ANSWER_LIMIT_BYTES];
        loop {
            let (n, _) = recv(&self.socket, &mut buf[..], RecvFlags::empty())?;
            let mut rest = &buf[..n];
            while let Some((kind, body, next)) = split(rest) {
                rest = next;
                match kind {
                    MSG_ERROR => {
                        let code = body.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
                        return match code {
                            0 => Ok(out),
                            code => Err(Errno::from_raw_os_error(-code)),
                        };
                    }
                    MSG_DONE => return Ok(out),
                    kind => out.push((kind, body.to_vec())),
                }
            }
            if flags & (DUMP | ACK) == 0 {
                return Ok(out);
            }
        }
    }

    fn index(&mut self, name: &str) -> Result<i32> {
        self.link(name).map(|(index, _)| index)
    }

    /// Index and flags.
    fn link(&mut self, name: &str) -> Result<(i32, u32)> {
        let mut body = link_of(0);
        attribute(&mut body, IFLA_IFNAME, &text(name));
        let answer = self.request(GETLINK, 0, &body).ctx("look up interface", || name)?;
        let found = answer.iter().find(|(kind, _)| *kind == NEWLINK).and_then(|(_, body)| {
            let index = i32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
            Some((index, u32::from_ne_bytes(body.get(8..12)?.try_into().ok()?)))
        });
        found.ok_or(Errno::NODEV).ctx("look up interface", || name)
    }

    /// Permanent addresses of global scope, each as the body of a message that adds it.
    fn addresses(&mut self, index: i32) -> Result<Vec<Vec<u8>>> {
        let answer = self.request(GETADDR, DUMP, &[0; ADDR]).ctx("list addresses", || "")?;
        Ok(answer
            .into_iter()
            .filter(|(kind, body)| *kind == NEWADDR && body.get(4..8) == Some(&index.to_ne_bytes()))
            .filter_map(|(_, body)| permanent(&body))
            .collect())
    }
}

/// The message without what only tells of the old place; `None` for an address that stays behind.
fn permanent(body: &[u8]) -> Option<Vec<u8>> {
    let (fixed, mut rest) = body.split_at_checked(ADDR)?;
    let mut flags = u32::from(fixed[2]);
    let mut out = fixed.to_vec();
    while let Some((kind, value, next)) = split_attribute(rest) {
        rest = next;
        match kind {
            IFA_FLAGS => flags = value.try_into().ok().map(u32::from_ne_bytes)?,
            // A label is the old name, mostly.
            IFA_CACHEINFO | IFA_LABEL => {}
            kind => attribute(&mut out, kind, value),
        }
    }
    attribute(&mut out, IFA_FLAGS, &flags.to_ne_bytes());
    (flags & IFA_F_PERMANENT != 0 && fixed[3] == SCOPE_GLOBAL).then_some(out)
}

/// The first message: type, body, and what follows.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn split_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
    let value = bytes.get(4..length)?;
    Some((kind, value, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// `struct ifinfomsg` with an index alone.
fn link_of(index: i32) -> Vec<u8> {
    let mut out = vec![0u8; LINK];
    out[4..8].copy_from_slice(&index.to_ne_bytes());
    out
}

/// The same, to change whether it is up.
fn link(index: i32, up: u32) -> Vec<u8> {
    let mut out = link_of(index);
    out[8..12].copy_from_slice(&up.to_ne_bytes());
    out[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    out
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Names and addresses: far below 64 KiB.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names() {
        let list = |json: &str| NetDevices::parse(&serde_json::from_str(json).unwrap());
        let got = list(r#"{"eth0": {}, "eth1": {"name": "in"}}"#).unwrap();
        assert_eq!(got.0[1], ("eth1".to_owned(), "in".to_owned()));
        for bad in [
            r#"{"eth0": {"name": "a/b"}}"#,
            r#"{"": {}}"#,
            r#"{"eth0": {"name": "sixteen-long-now"}}"#,
            r#"{"a": {"name": "x"}, "b": {"name": "x"}}"#,
        ] {
            assert!(list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_permanent_global_addresses_go_along() {
        let body = |scope: u8, flags: u32| {
            let mut out = vec![2, 24, 0, scope, 9, 0, 0, 0];
            attribute(&mut out, 2, &[10, 1, 2, 3]);
            attribute(&mut out, IFA_CACHEINFO, &[0; 16]);
            attribute(&mut out, IFA_FLAGS, &flags.to_ne_bytes());
            out
        };
        let kept = permanent(&body(0, 0x80)).unwrap();
        assert_eq!(kept.len(), ADDR + 8 + 8);
        assert!(permanent(&body(253, 0x80)).is_none() && permanent(&body(0, 0)).is_none());
        assert!(permanent(&[1, 2]).is_none());
    }
}

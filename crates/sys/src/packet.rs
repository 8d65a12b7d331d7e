//! UDP datagrams with the local address that they were sent to, so that an
//! answer from a wildcard socket has that address as its source
//! (`IP_PKTINFO`, `IPV6_RECVPKTINFO`), which rustix does not offer.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

/// Room for one `in6_pktinfo` control message, aligned as headers must be.
type Control = [u64; 16];

/// `AF_INET` and `AF_INET6` as addresses hold them.
const FAMILY4: libc::sa_family_t = 2;
const FAMILY6: libc::sa_family_t = 10;

/// A datagram's length, sender, and the local address that it was sent to.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Bytes in the buffer.
    pub len: usize,
    /// Sender.
    pub peer: SocketAddr,
    /// The local address, if the kernel told.
    pub local: Option<IpAddr>,
}

/// Asks the kernel to tell local addresses. `ipv6` is the socket's family.
///
/// # Errors
/// The errno of setsockopt(2).
pub fn enable_info(fd: impl AsFd, ipv6: bool) -> io::Result<()> {
    let (level, name) = match ipv6 {
        false => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        true => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    crate::netns::set_int_option(fd, level, name, 1)
}

fn len_of(len: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(len).unwrap_or(libc::socklen_t::MAX)
}

/// Receives one datagram, without waiting.
///
/// # Errors
/// The errno of recvmsg(2): EAGAIN when none waits; EAFNOSUPPORT for a sender
/// that is neither IPv4 nor IPv6.
pub fn receive(fd: impl AsFd, buf: &mut [u8]) -> io::Result<Received> {
    let mut control: Control = [0; 16];
    // SAFETY: all-zero bytes are valid values of these C structs.
    let (mut storage, mut message) =
        unsafe { (mem::zeroed::<libc::sockaddr_storage>(), mem::zeroed::<libc::msghdr>()) };
    let mut part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    message.msg_name = std::ptr::from_mut(&mut storage).cast();
    message.msg_namelen = len_of(size_of_val(&storage));
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer in `message` is to a live local or to `buf`, each
    // writable for the length that stands beside it.
    let got =
        unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let len = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let peer = peer_of(&storage).ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
    Ok(Received { len, peer, local: local_of(&message) })
}

fn peer_of(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let start = std::ptr::from_ref(storage);
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: sockaddr_storage is at least as large and as aligned as
            // sockaddr_in, and any bytes are a valid sockaddr_in.
            let v4 = unsafe { start.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for sockaddr_in6.
            let v6 = unsafe { start.cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn local_of(message: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: `message` was filled by recvmsg, so its control part is a valid
    // list of headers inside the buffer that `receive` still holds.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, so it points to a whole header in that buffer; the
        // kernel wrote a whole pktinfo behind a header of that type. It need not
        // be aligned for the struct.
        unsafe {
            let data = libc::CMSG_DATA(header);
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    // A packet that came before the option was set has no
                    // spec_dst, only what stands in its header.
                    let told = match info.ipi_spec_dst.s_addr {
                        0 => info.ipi_addr.s_addr,
                        set => set,
                    };
                    return Some(Ipv4Addr::from(told.to_ne_bytes()).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    return Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                _ => header = libc::CMSG_NXTHDR(message, header),
            }
        }
    }
    None
}

/// Sends one datagram to `peer`, from `local` where that is given and of the
/// same family; without waiting.
///
/// # Errors
/// The errno of sendmsg(2).
pub fn send(
    fd: impl AsFd,
    data: &[u8],
    peer: SocketAddr,
    local: Option<IpAddr>,
) -> io::Result<usize> {
    let mut control: Control = [0; 16];
    // SAFETY: all-zero bytes are valid values of these C structs.
    let (mut v4, mut v6, mut message) = unsafe {
        (
            mem::zeroed::<libc::sockaddr_in>(),
            mem::zeroed::<libc::sockaddr_in6>(),
            mem::zeroed::<libc::msghdr>(),
        )
    };
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    match peer {
        SocketAddr::V4(peer) => {
            v4.sin_family = FAMILY4;
            v4.sin_port = peer.port().to_be();
            v4.sin_addr.s_addr = u32::from_ne_bytes(peer.ip().octets());
            message.msg_name = std::ptr::from_mut(&mut v4).cast();
            message.msg_namelen = len_of(size_of_val(&v4));
        }
        SocketAddr::V6(peer) => {
            v6.sin6_family = FAMILY6;
            v6.sin6_port = peer.port().to_be();
            v6.sin6_addr.s6_addr = peer.ip().octets();
            v6.sin6_scope_id = peer.scope_id();
            message.msg_name = std::ptr::from_mut(&mut v6).cast();
            message.msg_namelen = len_of(size_of_val(&v6));
        }
    }
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    put_local(&mut message, &mut control, peer, local);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: every pointer in `message` is to a live local, to `control`, or to
    // `data`, which sendmsg only reads; the lengths beside them are theirs.
    let sent = unsafe { libc::sendmsg(fd.as_fd().as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn put_local(
    message: &mut libc::msghdr,
    control: &mut Control,
    peer: SocketAddr,
    local: Option<IpAddr>,
) {
    // SAFETY: `in_pktinfo` and `in6_pktinfo` are plain integers.
    let (mut info4, mut info6) =
        unsafe { (mem::zeroed::<libc::in_pktinfo>(), mem::zeroed::<libc::in6_pktinfo>()) };
    let (level, kind, source, len): (_, _, *const u8, _) = match (peer, local) {
        (SocketAddr::V4(_), Some(IpAddr::V4(ip))) => {
            info4.ipi_spec_dst.s_addr = u32::from_ne_bytes(ip.octets());
            let source = std::ptr::from_ref(&info4).cast();
            (libc::IPPROTO_IP, libc::IP_PKTINFO, source, size_of_val(&info4))
        }
        (SocketAddr::V6(peer), Some(IpAddr::V6(ip))) => {
            info6.ipi6_addr.s6_addr = ip.octets();
            info6.ipi6_ifindex = peer.scope_id();
            let source = std::ptr::from_ref(&info6).cast();
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, source, size_of_val(&info6))
        }
        _ => return,
    };
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute. CMSG_FIRSTHDR gives the
    // start of `control`, as `msg_controllen` is larger than a header; behind
    // the header are more than 100 bytes of `control`, and pktinfo has at most
    // 20, which `source` is readable for.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(len_of(len)) as usize;
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(len_of(len)) as usize;
        std::ptr::copy_nonoverlapping(source, libc::CMSG_DATA(header), len);
    }
}

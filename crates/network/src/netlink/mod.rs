//! A small synchronous netlink: messages built into one buffer, sent in one
//! call, their acknowledgements collected; dumps; event sockets.
//!
//! A socket belongs to the namespace of the thread that opened it and may then
//! be used from any thread.

mod message;
mod socket;

pub(crate) use message::{Attributes, Batch, attributes, be16, be32, ne32, text};
pub(crate) use socket::{Event, Socket};

/// Message flags of linux/netlink.h.
pub(crate) mod flags {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const REPLACE: u16 = 0x100;
    pub(crate) const EXCL: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
    pub(crate) const DUMP_INTR: u16 = 0x10;
    pub(crate) const CAPPED: u16 = 0x100;
    pub(crate) const ACK_TLVS: u16 = 0x200;
}

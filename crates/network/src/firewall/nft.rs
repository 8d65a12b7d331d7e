//! Encoding nftables objects into nfnetlink batches.
//!
//! Numbers are those of linux/netfilter/nf_tables.h; the data types of sets are
//! those by which nft(8) shows them.

#[cfg(feature = "dns")]
use std::net::IpAddr;

#[cfg(feature = "dns")]
use crate::link::octets;
use crate::netlink::{Batch, flags};

pub(crate) const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Message types, without the subsystem.
pub(crate) mod msg {
    pub(crate) const NEWTABLE: u16 = 0;
    pub(crate) const GETTABLE: u16 = 1;
    pub(crate) const DELTABLE: u16 = 2;
    pub(crate) const NEWCHAIN: u16 = 3;
    pub(crate) const GETCHAIN: u16 = 4;
    pub(crate) const DELCHAIN: u16 = 5;
    pub(crate) const NEWRULE: u16 = 6;
    pub(crate) const GETRULE: u16 = 7;
    pub(crate) const DELRULE: u16 = 8;
    pub(crate) const NEWSET: u16 = 9;
    pub(crate) const NEWSETELEM: u16 = 12;
    pub(crate) const DELSETELEM: u16 = 14;
}

/// Protocol families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6 together.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Family {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Inet),
            2 => Some(Self::Ip),
            10 => Some(Self::Ip6),
            _ => None,
        }
    }

    /// As nft(8) writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

/// Hooks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hook {
    Prerouting,
    Forward,
    Output,
    Postrouting,
}

impl Hook {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

/// A base chain's place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Base {
    pub(crate) kind: &'static str,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
    pub(crate) drop: bool,
}

/// Kind of a set's field: nft's type number and its length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Ip4,
    Ip6,
    Proto,
    Port,
    Ifname,
}

impl Field {
    fn nft_type(self) -> u32 {
        match self {
            Self::Ip4 => 7,
            Self::Ip6 => 8,
            Self::Proto => 12,
            Self::Port => 13,
            Self::Ifname => 41,
        }
    }

    /// Length in a concatenation, where fields fill whole registers.
    fn padded(self) -> u32 {
        match self {
            Self::Ip4 | Self::Proto | Self::Port => 4,
            Self::Ip6 | Self::Ifname => 16,
        }
    }
}

fn nft_type(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |t, f| (t << 6) | f.nft_type())
}

fn key_len(fields: &[Field]) -> u32 {
    fields.iter().map(|f| f.padded()).sum()
}

/// A named set or map.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetSpec {
    pub(crate) name: &'static str,
    pub(crate) key: &'static [Field],
    /// What a map's elements hold; empty for a set.
    pub(crate) data: &'static [Field],
    pub(crate) interval: bool,
}

/// One element: key, data, and whether it ends an interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) end: bool,
}

const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const ELEM_INTERVAL_END: u32 = 0x1;
/// Elements per message, so that their list stays below an attribute's 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 512;

fn header(family: u8, res: u16) -> [u8; 4] {
    let [hi, lo] = res.to_be_bytes();
    [family, 0, hi, lo]
}

/// The fixed part of a request about `family` (0: all).
pub(crate) fn nfgen(family: u8) -> [u8; 4] {
    header(family, 0)
}

/// The full type of a message.
pub(crate) fn kind(message: u16) -> u16 {
    (SUBSYSTEM << 8) | message
}

/// Writes one transaction about one table.
pub(crate) struct Transaction<'a> {
    batch: &'a mut Batch,
    family: Family,
    table: &'a str,
    next_set_id: u32,
}

/// Begins a transaction; [`end`] finishes it.
pub(crate) fn begin(batch: &mut Batch) {
    batch.begin(BATCH_BEGIN, 0, &header(0, SUBSYSTEM), "begin an nftables transaction");
}

/// Finishes a transaction: the last message but this asks for the answer.
pub(crate) fn end(batch: &mut Batch) {
    batch.or_flags(flags::ACK);
    batch.begin(BATCH_END, 0, &header(0, SUBSYSTEM), "commit an nftables transaction");
    // The end message itself is not acknowledged on older kernels, so the
    // answer to the message before it is what the socket waits for.
    batch.pending.pop();
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(batch: &'a mut Batch, family: Family, table: &'a str) -> Self {
        Self { batch, family, table, next_set_id: 1 }
    }

    fn message(&mut self, message: u16, message_flags: u16, what: &str) {
        let operation = format!("{what} nftables table {} {}", self.family.as_str(), self.table);
        self.batch.begin(kind(message), message_flags, &nfgen(self.family.number()), operation);
    }

    /// Adds the table; one that is there stays.
    pub(crate) fn add_table(&mut self) {
        self.message(msg::NEWTABLE, flags::CREATE, "create");
        self.batch.str(1, self.table);
        self.batch.be32(2, 0);
    }

    /// Deletes the table with all in it.
    pub(crate) fn delete_table(&mut self) {
        self.message(msg::DELTABLE, 0, "delete");
        self.batch.str(1, self.table);
    }

    /// Adds a chain.
    pub(crate) fn add_chain(&mut self, name: &str, base: Option<Base>) {
        self.message(msg::NEWCHAIN, flags::CREATE, "add a chain to");
        self.batch.str(1, self.table);
        self.batch.str(3, name);
        if let Some(base) = base {
            self.batch.nest(4, |b| {
                b.be32(1, base.hook.number());
                b.attr(2, &base.priority.to_be_bytes());
            });
            self.batch.be32(5, u32::from(!base.drop));
            self.batch.str(7, base.kind);
        }
    }

    /// Adds a set or map.
    pub(crate) fn add_set(&mut self, set: &SetSpec) {
        self.message(msg::NEWSET, flags::CREATE, "add a set to");
        let mut set_flags = 0;
        if set.interval {
            set_flags |= SET_INTERVAL;
        }
        if !set.data.is_empty() {
            set_flags |= SET_MAP;
        }
        self.batch.str(1, self.table);
        self.batch.str(2, set.name);
        self.batch.be32(3, set_flags);
        self.batch.be32(4, nft_type(set.key));
        self.batch.be32(5, key_len(set.key));
        if !set.data.is_empty() {
            self.batch.be32(6, nft_type(set.data));
            self.batch.be32(7, key_len(set.data));
        }
        self.batch.be32(10, self.next_set_id);
        self.batch.attr(13, &set_udata(set));
        self.next_set_id += 1;
    }

    /// Adds or deletes elements; none is no message.
    pub(crate) fn elements(&mut self, set: &str, elements: &[Element], add: bool) {
        let (message, message_flags) =
            if add { (msg::NEWSETELEM, flags::CREATE) } else { (msg::DELSETELEM, 0) };
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.message(message, message_flags, "change elements in");
            self.batch.str(1, self.table);
            self.batch.str(2, set);
            self.batch.nest(3, |b| {
                for element in chunk {
                    b.nest(1, |b| {
                        b.nest(1, |b| b.attr(1, &element.key));
                        if !element.data.is_empty() && !element.end {
                            b.nest(2, |b| b.attr(1, &element.data));
                        }
                        if element.end {
                            b.be32(3, ELEM_INTERVAL_END);
                        }
                    });
                }
            });
        }
    }

    /// Appends a rule.
    pub(crate) fn rule(&mut self, chain: &str, body: impl FnOnce(&mut Rule<'_>)) {
        self.rule_at(chain, Place::End, None, body);
    }

    /// Adds a rule at a place, with a comment.
    pub(crate) fn rule_at(
        &mut self,
        chain: &str,
        place: Place,
        comment: Option<&str>,
        body: impl FnOnce(&mut Rule<'_>),
    ) {
        let append = match place {
            Place::Head => 0,
            Place::End | Place::After(_) => flags::APPEND,
        };
        self.message(
            msg::NEWRULE,
            flags::CREATE | append,
            &format!("add a rule to chain {chain} of"),
        );
        self.batch.str(1, self.table);
        self.batch.str(2, chain);
        self.batch.nest(4, |b| body(&mut Rule { batch: b }));
        if let Place::After(handle) = place {
            self.batch.attr(6, &handle.to_be_bytes());
        }
        if let Some(comment) = comment {
            self.batch.attr(7, &comment_udata(comment));
        }
    }

    /// Deletes a rule by its handle.
    pub(crate) fn delete_rule(&mut self, chain: &str, handle: u64) {
        self.message(msg::DELRULE, 0, &format!("delete a rule in chain {chain} of"));
        self.batch.str(1, self.table);
        self.batch.str(2, chain);
        self.batch.attr(3, &handle.to_be_bytes());
    }
}

/// nft's user data of a set: the byte order in which it shows keys (0) and data
/// (1): 1 is the host's (strings too), 2 is big-endian; of concatenations it
/// knows by their types.
fn set_udata(set: &SetSpec) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, fields) in [(0u8, set.key), (1, set.data)] {
        let order: u32 = match fields {
            [Field::Ifname] => 1,
            [_] => 2,
            _ => continue,
        };
        out.extend_from_slice(&[kind, 4]);
        out.extend_from_slice(&order.to_ne_bytes());
    }
    out
}

/// Where a new rule goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Head,
    End,
    After(u64),
}

/// nft's user data for a comment: type 0, length, text with its zero.
pub(crate) fn comment_udata(comment: &str) -> Vec<u8> {
    let text = comment.as_bytes();
    let text = &text[..text.len().min(200)];
    let len = u8::try_from(text.len() + 1).expect("cut to 200 bytes");
    let mut out = vec![0, len];
    out.extend_from_slice(text);
    out.push(0);
    out
}

/// meta keys.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Meta {
    Iifname,
    Oifname,
    Nfproto,
    L4proto,
}

impl Meta {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Iifname => 6,
            Self::Oifname => 7,
            Self::Nfproto => 15,
            Self::L4proto => 16,
        }
    }
}

/// The first 4-byte register; the others follow.
pub(crate) const REG: u32 = 8;
/// Connection states and status bits (nf_conntrack_common.h).
pub(crate) const CT_ESTABLISHED_RELATED: u32 = 0x2 | 0x4;
pub(crate) const CT_STATUS_DNAT: u32 = 1 << 5;
const CT_KEY_STATE: u32 = 0;
const CT_KEY_STATUS: u32 = 2;
const RTN_LOCAL: u32 = 2;

/// A verdict.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict<'a> {
    Accept,
    Drop,
    Return,
    Jump(&'a str),
}

/// Writes a rule's expressions.
pub(crate) struct Rule<'a> {
    batch: &'a mut Batch,
}

impl Rule<'_> {
    fn expression(&mut self, name: &str, body: impl FnOnce(&mut Batch)) -> &mut Self {
        self.batch.nest(1, |b| {
            b.str(1, name);
            b.nest(2, body);
        });
        self
    }

    pub(crate) fn meta(&mut self, key: Meta, reg: u32) -> &mut Self {
        self.expression("meta", |b| {
            b.be32(2, key.number());
            b.be32(1, reg);
        })
    }

    fn payload(&mut self, base: u32, offset: u32, len: u32, reg: u32) -> &mut Self {
        self.expression("payload", |b| {
            b.be32(1, reg);
            b.be32(2, base);
            b.be32(3, offset);
            b.be32(4, len);
        })
    }

    /// Compares a register; `equal` or not.
    pub(crate) fn cmp(&mut self, reg: u32, equal: bool, value: &[u8]) -> &mut Self {
        self.expression("cmp", |b| {
            b.be32(1, reg);
            b.be32(2, u32::from(!equal));
            b.nest(3, |b| b.attr(1, value));
        })
    }

    fn mask(&mut self, reg: u32, mask: &[u8]) -> &mut Self {
        let len = u32::try_from(mask.len()).expect("at most 16 bytes");
        self.expression("bitwise", |b| {
            b.be32(1, reg);
            b.be32(2, reg);
            b.be32(3, len);
            b.nest(4, |b| b.attr(1, mask));
            b.nest(5, |b| b.attr(1, &vec![0; mask.len()]));
        })
    }

    /// Only packets of this family.
    pub(crate) fn family(&mut self, family: Family) -> &mut Self {
        self.meta(Meta::Nfproto, REG).cmp(REG, true, &[family.number()])
    }

    /// Looks a key up; the rule ends unless it is found (or not, for `inverted`).
    pub(crate) fn lookup(&mut self, set: &str, inverted: bool) -> &mut Self {
        self.expression("lookup", |b| {
            b.str(1, set);
            b.be32(2, REG);
            if inverted {
                b.be32(5, 1);
            }
        })
    }

    /// Looks a key up in a map; its data replaces the key in the registers.
    pub(crate) fn lookup_map(&mut self, map: &str) -> &mut Self {
        self.expression("lookup", |b| {
            b.str(1, map);
            b.be32(2, REG);
            b.be32(3, REG);
        })
    }

    /// `iifname @set` or `oifname @set`.
    pub(crate) fn ifname_in(&mut self, key: Meta, set: &str, inside: bool) -> &mut Self {
        self.meta(key, REG).lookup(set, !inside)
    }

    /// `iifname NAME` or `oifname NAME`, in the form iptables-nft understands.
    pub(crate) fn ifname_is(&mut self, key: Meta, name: &str, equal: bool) -> &mut Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(0);
        self.meta(key, REG_1).cmp(REG_1, equal, &bytes)
    }

    /// Loads source or destination address into `reg`.
    pub(crate) fn address(&mut self, family: Family, source: bool, reg: u32) -> &mut Self {
        let (offset, len) = match (family, source) {
            (Family::Ip6, true) => (8, 16),
            (Family::Ip6, false) => (24, 16),
            (_, true) => (12, 4),
            (_, false) => (16, 4),
        };
        self.payload(1, offset, len, reg)
    }

    /// Loads `l4proto` and the destination port into `reg` and the next one.
    pub(crate) fn proto_port(&mut self, reg: u32) -> &mut Self {
        self.meta(Meta::L4proto, reg).payload(2, 2, 2, reg + 1)
    }

    /// Only this destination address and port.
    #[cfg(feature = "dns")]
    pub(crate) fn destination(
        &mut self,
        family: Family,
        proto: u8,
        ip: IpAddr,
        port: u16,
    ) -> &mut Self {
        self.meta(Meta::L4proto, REG)
            .cmp(REG, true, &[proto])
            .address(family, false, REG)
            .cmp(REG, true, &octets(ip))
            .payload(2, 2, 2, REG)
            .cmp(REG, true, &port.to_be_bytes())
    }

    /// `ip daddr 127.0.0.0/8`.
    pub(crate) fn loopback4_destination(&mut self) -> &mut Self {
        self.address(Family::Ip, false, REG).mask(REG, &[255, 0, 0, 0]).cmp(
            REG,
            true,
            &[127, 0, 0, 0],
        )
    }

    /// `fib daddr type local`.
    pub(crate) fn local_destination(&mut self) -> &mut Self {
        self.expression("fib", |b| {
            b.be32(1, REG);
            b.be32(2, 3);
            b.be32(3, 1 << 1);
        })
        .cmp(REG, true, &RTN_LOCAL.to_ne_bytes())
    }

    fn ct_bits(&mut self, key: u32, bits: u32) -> &mut Self {
        self.expression("ct", |b| {
            b.be32(2, key);
            b.be32(1, REG);
        })
        .mask(REG, &bits.to_ne_bytes())
        .cmp(REG, false, &[0; 4])
    }

    /// `ct state established,related`.
    pub(crate) fn established(&mut self) -> &mut Self {
        self.ct_bits(CT_KEY_STATE, CT_ESTABLISHED_RELATED)
    }

    /// `ct status dnat`.
    pub(crate) fn was_dnat(&mut self) -> &mut Self {
        self.ct_bits(CT_KEY_STATUS, CT_STATUS_DNAT)
    }

    pub(crate) fn counter(&mut self) -> &mut Self {
        self.expression("counter", |b| {
            b.attr(1, &[0; 8]);
            b.attr(2, &[0; 8]);
        })
    }

    pub(crate) fn verdict(&mut self, verdict: Verdict<'_>) -> &mut Self {
        let (code, chain) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Return => (-5, None),
            Verdict::Jump(chain) => (-3i32, Some(chain)),
        };
        self.expression("immediate", |b| {
            b.be32(1, 0);
            b.nest(2, |b| {
                b.nest(2, |b| {
                    b.attr(1, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        b.str(2, chain);
                    }
                });
            });
        })
    }

    #[cfg(feature = "dns")]
    fn value(&mut self, reg: u32, value: &[u8]) -> &mut Self {
        self.expression("immediate", |b| {
            b.be32(1, reg);
            b.nest(2, |b| b.attr(1, value));
        })
    }

    /// DNAT (or SNAT) to the address and port in registers.
    pub(crate) fn nat(
        &mut self,
        source: bool,
        family: Family,
        address: u32,
        port: Option<u32>,
    ) -> &mut Self {
        self.expression("nat", |b| {
            b.be32(1, u32::from(!source));
            b.be32(2, u32::from(family.number()));
            b.be32(3, address);
            if let Some(port) = port {
                b.be32(5, port);
            }
        })
    }

    /// DNAT to a fixed address and port.
    #[cfg(feature = "dns")]
    pub(crate) fn dnat_to(&mut self, family: Family, ip: IpAddr, port: u16) -> &mut Self {
        self.value(REG, &octets(ip)).value(REG + 4, &port.to_be_bytes()).nat(
            false,
            family,
            REG,
            Some(REG + 4),
        )
    }

    pub(crate) fn masquerade(&mut self) -> &mut Self {
        self.expression("masq", |_| {})
    }
}

/// The first 16-byte register, which iptables-nft uses.
const REG_1: u32 = 1;

/// An interface name as a set's key: 16 bytes, filled with zeros.
pub(crate) fn ifname_key(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(16, 0);
    key
}

/// Protocol and port as key fields.
pub(crate) fn proto_port_key(proto: u8, port: u16) -> [u8; 8] {
    let [hi, lo] = port.to_be_bytes();
    [proto, 0, 0, 0, hi, lo, 0, 0]
}

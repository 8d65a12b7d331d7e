//! Building and reading netlink messages.

use super::flags;

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`: without the nested and byte-order flags.
const TYPE_MASK: u16 = 0x3fff;

/// Rounds up to netlink's alignment of 4.
pub(crate) fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// One message of a batch, as the acknowledgement refers to it.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) seq: u32,
    /// What it asks for, in words, for the error.
    pub(crate) operation: String,
}

/// Messages that are sent together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    buf: Vec<u8>,
    /// Where the message that is being written starts.
    start: Option<usize>,
    next_seq: u32,
    pub(crate) pending: Vec<Pending>,
}

impl Batch {
    /// A batch whose messages are numbered from `first_seq`.
    pub(crate) fn new(first_seq: u32) -> Self {
        Self { next_seq: first_seq, ..Self::default() }
    }

    /// Starts a message; `fixed` is the family's header (ifinfomsg, nfgenmsg …).
    pub(crate) fn begin(
        &mut self,
        kind: u16,
        message_flags: u16,
        fixed: &[u8],
        operation: impl Into<String>,
    ) {
        self.finish();
        let start = self.buf.len();
        self.buf.extend_from_slice(&[0u8; 4]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&(message_flags | flags::REQUEST).to_ne_bytes());
        self.buf.extend_from_slice(&self.next_seq.to_ne_bytes());
        self.buf.extend_from_slice(&[0u8; 4]);
        self.buf.extend_from_slice(fixed);
        self.pad();
        self.start = Some(start);
        self.pending.push(Pending { seq: self.next_seq, operation: operation.into() });
        self.next_seq = self.next_seq.wrapping_add(1);
    }

    /// Adds flags to the message that is being written.
    pub(crate) fn or_flags(&mut self, more: u16) {
        if let Some(start) = self.start {
            let old = ne16(&self.buf[start + 6..]).unwrap_or(0);
            self.buf[start + 6..start + 8].copy_from_slice(&(old | more).to_ne_bytes());
        }
    }

    fn pad(&mut self) {
        self.buf.resize(align(self.buf.len()), 0);
    }

    fn finish(&mut self) {
        if let Some(start) = self.start.take() {
            let len = u32::try_from(self.buf.len() - start).expect("a message is far below 4 GiB");
            self.buf[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        }
    }

    /// The finished bytes.
    pub(crate) fn bytes(&mut self) -> &[u8] {
        self.finish();
        &self.buf
    }

    /// Adds an attribute.
    pub(crate) fn attr(&mut self, kind: u16, data: &[u8]) {
        let len = u16::try_from(data.len() + 4).expect("callers keep attributes below 64 KiB");
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(data);
        self.pad();
    }

    /// Adds a host-order u32.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Adds a big-endian u32, as nfnetlink wants them.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Adds a string with its terminating zero.
    pub(crate) fn str(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes);
    }

    /// Adds an attribute whose content `body` writes; without the nested flag,
    /// as `IFLA_*` attributes were before that flag existed.
    pub(crate) fn plain_nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let at = self.buf.len();
        self.buf.extend_from_slice(&[0u8; 2]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        body(self);
        let len = u16::try_from(self.buf.len() - at).expect("callers keep attributes below 64 KiB");
        self.buf[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self.pad();
    }

    /// Adds a nested attribute.
    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.plain_nest(kind | NESTED, body);
    }

    /// Adds raw bytes (a fixed header inside a nested attribute).
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        self.pad();
    }
}

/// Iterates over attributes; stops at the first that is cut short.
#[derive(Debug, Clone)]
pub(crate) struct Attributes<'a>(&'a [u8]);

/// The attributes in `bytes`.
pub(crate) fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes(bytes)
}

impl<'a> Attributes<'a> {
    /// The first attribute of this kind.
    pub(crate) fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find(|(k, _)| *k == kind).map(|(_, d)| d)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(ne16(self.0)?);
        let kind = ne16(self.0.get(2..)?)? & TYPE_MASK;
        let data = self.0.get(4..len)?;
        self.0 = self.0.get(align(len)..).unwrap_or(&[]);
        Some((kind, data))
    }
}

/// A host-order u16 at the start of `b`.
pub(crate) fn ne16(b: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(b.get(..2)?.try_into().ok()?))
}

/// A host-order u32 at the start of `b`.
pub(crate) fn ne32(b: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(b.get(..4)?.try_into().ok()?))
}

/// A big-endian u32 at the start of `b`.
pub(crate) fn be32(b: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(b.get(..4)?.try_into().ok()?))
}

/// A big-endian u16 at the start of `b`.
pub(crate) fn be16(b: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(b.get(..2)?.try_into().ok()?))
}

/// A zero-terminated string.
pub(crate) fn text(b: &[u8]) -> String {
    let end = b.iter().position(|c| *c == 0).unwrap_or(b.len());
    String::from_utf8_lossy(&b[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let n = attributes(&bytes).count();
            prop_assert!(n <= bytes.len() / 4 + 1);
        }

        #[test]
        fn round_trip(items in proptest::collection::vec((0u16..100, proptest::collection::vec(any::<u8>(), 0..40)), 0..10)) {
            let mut batch = Batch::new(7);
            batch.begin(1, 0, &[], "test");
            for (kind, data) in &items {
                batch.attr(*kind, data);
            }
            let bytes = batch.bytes();
            prop_assert_eq!(usize::try_from(ne32(bytes).unwrap()).unwrap(), bytes.len());
            let back: Vec<_> = attributes(&bytes[HEADER..]).map(|(k, d)| (k, d.to_vec())).collect();
            prop_assert_eq!(back, items);
        }
    }

    #[test]
    fn a_zero_length_attribute_ends_the_iteration() {
        assert_eq!(attributes(&[0, 0, 1, 0, 9, 9]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
    }
}

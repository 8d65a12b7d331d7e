//! The few parts of a DNS message (RFC 1035 section 4) that an address look-up needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) const NO_ERROR: u8 = 0;
/// The name does not exist.
pub(super) const NAME_ERROR: u8 = 3;

const HEADER_BYTES: usize = 12;
const NAME_BYTES_MAX: usize = 255;
const LABEL_BYTES_MAX: usize = 63;
/// Aliases followed within one answer.
const ALIASES_MAX: usize = 16;
const ADDRESSES_MAX: usize = 64;
const CLASS_IN: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_OPT: u16 = 41;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordType {
    A,
    Aaaa,
}

impl RecordType {
    fn code(self) -> u16 {
        match self {
            Self::A => 1,
            Self::Aaaa => 28,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) code: u8,
    pub(super) truncated: bool,
    pub(super) addresses: Vec<IpAddr>,
}

/// Whether a name (without a dot at the end) can be asked for.
pub(super) fn is_name(name: &str) -> bool {
    // One byte for each label's length and one for the root.
    name.len() + 2 <= NAME_BYTES_MAX
        && name.split('.').all(|label| {
            (1..=LABEL_BYTES_MAX).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

/// A query for one record type, recursion desired, with the UDP size that we take (RFC 6891).
/// `None` for what is no name.
pub(super) fn encode(id: u16, name: &str, record: RecordType, udp: usize) -> Option<Vec<u8>> {
    if !is_name(name) {
        return None;
    }
    let mut out = Vec::with_capacity(HEADER_BYTES + NAME_BYTES_MAX + 15);
    let flags = 0x0100u16;
    // One question, one additional record.
    for word in [id, flags, 1, 0, 0, 1] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for label in name.split('.') {
        out.push(u8::try_from(label.len()).ok()?);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&record.code().to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out.push(0);
    out.extend_from_slice(&TYPE_OPT.to_be_bytes());
    out.extend_from_slice(&u16::try_from(udp).ok()?.to_be_bytes());
    out.extend_from_slice(&[0; 6]);
    Some(out)
}

/// The answer to a query; `None` if the message is malformed or answers something else.
pub(super) fn decode(message: &[u8], id: u16, name: &str, record: RecordType) -> Option<Answer> {
    let mut reader = Reader { message, at: 0 };
    let got = reader.word()?;
    let flags = reader.word()?;
    let (questions, answers) = (reader.word()?, reader.word()?);
    reader.at = HEADER_BYTES;
    let is_response = flags & 0x8000 != 0;
    if got != id || !is_response {
        return None;
    }
    let code = u8::try_from(flags & 0xf).ok()?;
    let truncated = flags & 0x0200 != 0;
    // Some servers leave the question out of a refusal.
    if questions == 0 && code != NO_ERROR {
        return Some(Answer { code, truncated: false, addresses: Vec::new() });
    }
    let question = (reader.name()?, reader.word()?, reader.word()?);
    if questions != 1 || question != (name.to_ascii_lowercase(), record.code(), CLASS_IN) {
        return None;
    }
    let mut aliases = Vec::new();
    let mut found = Vec::new();
    if !truncated {
        for _ in 0..answers {
            let owner = reader.name()?;
            let (rtype, class) = (reader.word()?, reader.word()?);
            reader.take(4)?;
            let length = usize::from(reader.word()?);
            let data_at = reader.at;
            let data = reader.take(length)?;
            if class != CLASS_IN {
                continue;
            }
            if rtype == TYPE_CNAME && aliases.len() < ALIASES_MAX {
                let target = Reader { message, at: data_at }.name()?;
                aliases.push((owner, target));
            } else if rtype == record.code() && found.len() < ADDRESSES_MAX {
                found.push((owner, address(data, record)?));
            }
        }
    }
    let owner = follow(&question.0, &aliases);
    let addresses = found.into_iter().filter(|(o, _)| *o == owner).map(|(_, a)| a).collect();
    Some(Answer { code, truncated, addresses })
}

/// Where the aliases lead from a name.
fn follow(name: &str, aliases: &[(String, String)]) -> String {
    let mut current = name.to_owned();
    for _ in 0..ALIASES_MAX {
        match aliases.iter().find(|(owner, _)| *owner == current) {
            Some((_, target)) => current.clone_from(target),
            None => break,
        }
    }
    current
}

fn address(data: &[u8], record: RecordType) -> Option<IpAddr> {
    match record {
        RecordType::A => Some(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into()),
        RecordType::Aaaa => Some(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into()),
    }
}

struct Reader<'m> {
    message: &'m [u8],
    at: usize,
}

impl<'m> Reader<'m> {
    fn take(&mut self, count: usize) -> Option<&'m [u8]> {
        let end = self.at.checked_add(count)?;
        let bytes = self.message.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    fn word(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    /// A name in lower case. A pointer may only lead backwards, so that there is an end.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        let mut at = self.at;
        let mut bound = self.message.len();
        let mut resume = None;
        loop {
            let length = *self.message.get(at)?;
            match length {
                0 => {
                    self.at = resume.unwrap_or(at + 1);
                    return Some(name);
                }
                1..=63 => {
                    let label = self.message.get(at + 1..at + 1 + usize::from(length))?;
                    if !name.is_empty() {
                        name.push('.');
                    }
                    name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
                    if name.len() > NAME_BYTES_MAX * 2 {
                        return None;
                    }
                    at += 1 + usize::from(length);
                }
                192.. => {
                    let low = *self.message.get(at + 1)?;
                    let target = usize::from(length & 0x3f) << 8 | usize::from(low);
                    resume.get_or_insert(at + 2);
                    if target >= at.min(bound) {
                        return None;
                    }
                    bound = target;
                    at = target;
                }
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn answer(records: &[(&[u8], u16, &[u8])]) -> Vec<u8> {
        let mut message = encode(7, "a.b", RecordType::A, 512).unwrap();
        message.truncate(message.len() - 11);
        message[2..4].copy_from_slice(&0x8180u16.to_be_bytes());
        message[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap().to_be_bytes());
        message[10..12].fill(0);
        for (owner, rtype, data) in records {
            message.extend_from_slice(owner);
            message.extend_from_slice(&rtype.to_be_bytes());
            message.extend_from_slice(&[0, 1, 0, 0, 0, 9]);
            message.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
            message.extend_from_slice(data);
        }
        message
    }

    #[test]
    fn aliases_lead_to_addresses() {
        let question = &[0xc0, 12][..];
        let message = answer(&[
            (b"\x01c\x00", 1, &[1, 2, 3, 4]),
            (question, TYPE_CNAME, b"\x01C\x00"),
            (b"\x01d\x00", 1, &[9, 9, 9, 9]),
        ]);
        let got = decode(&message, 7, "A.b", RecordType::A).unwrap();
        assert_eq!(got.addresses, ["1.2.3.4".parse::<IpAddr>().unwrap()]);
        assert!(decode(&message, 8, "a.b", RecordType::A).is_none(), "another id");
        assert!(decode(&message, 7, "x.b", RecordType::A).is_none(), "another question");
        for cut in 0..message.len() {
            assert!(decode(&message[..cut], 7, "a.b", RecordType::A).is_none());
        }
    }

    #[test]
    fn pointers_that_lead_in_circles_are_refused() {
        let mut message = answer(&[]);
        message[6..8].copy_from_slice(&1u16.to_be_bytes());
        let here = u8::try_from(message.len()).unwrap();
        message.extend_from_slice(&[0xc0, here, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert!(decode(&message, 7, "a.b", RecordType::A).is_none());
    }

    #[test]
    fn names() {
        assert!(is_name("registry-1.docker.io") && is_name("a_b"));
        for bad in ["", "a..b", "a b", &"x".repeat(64), &"abc.".repeat(64), "ä"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}

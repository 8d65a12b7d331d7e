//! The keys by which a client leaves a container without ending it: `ctrl-p,ctrl-q` unless it names
//! others (moby/term `ToBytes`).

use crate::{Error, Result};

/// At most this many keys; nobody types more.
const KEYS: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

/// Follows a client's input and notices the sequence.
pub(crate) struct Matcher {
    keys: Vec<u8>,
    held: usize,
}

impl DetachKeys {
    /// Comma-separated keys: a character, or `ctrl-` and one of `a-z@[\]^_`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self(vec![16, 17]));
        }
        let mut keys = Vec::new();
        for key in text.split(',') {
            let byte = match key.as_bytes() {
                [byte] => *byte,
                [b'c', b't', b'r', b'l', b'-', byte] => match byte {
                    b'a'..=b'z' => byte - b'a' + 1,
                    b'@' => 0,
                    b'[' => 27,
                    b'\\' => 28,
                    b']' => 29,
                    b'^' => 30,
                    b'_' => 31,
                    _ => return Err(invalid(key)),
                },
                _ => return Err(invalid(key)),
            };
            keys.push(byte);
        }
        if keys.len() > KEYS {
            return Err(Error::invalid(format!("at most {KEYS} detach keys are taken")));
        }
        Ok(Self(keys))
    }

    pub(crate) fn matcher(self) -> Matcher {
        Matcher { keys: self.0, held: 0 }
    }
}

fn invalid(key: &str) -> Error {
    Error::invalid(format!("Unknown character: '{key}'"))
}

impl Matcher {
    /// What of `bytes` goes on to the container, and whether the sequence was completed. A beginning of
    /// the sequence is held back until it is clear what it is.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(bytes.len() + self.held);
        for byte in bytes {
            if *byte == self.keys[self.held] {
                self.held += 1;
                if self.held == self.keys.len() {
                    self.held = 0;
                    return (out, true);
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.held]);
            self.held = 0;
            if *byte == self.keys[0] {
                self.held = 1;
                if self.keys.len() == 1 {
                    return (out, true);
                }
            } else {
                out.push(*byte);
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn default_keys_across_chunks() {
        let mut matcher = DetachKeys::parse("").unwrap().matcher();
        assert_eq!(matcher.feed(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(matcher.feed(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(matcher.feed(b"\x10"), (vec![], false));
        assert_eq!(matcher.feed(b"\x11rest"), (vec![], true));
    }

    #[test]
    fn other_keys() {
        assert_eq!(DetachKeys::parse("ctrl-a,x,ctrl-[").unwrap(), DetachKeys(vec![1, b'x', 27]));
        for text in ["ctrl-", "ctrl-A", "ab", "ctrl-1", ","] {
            assert!(DetachKeys::parse(text).is_err(), "{text}");
        }
        assert!(DetachKeys::parse("x").unwrap().matcher().feed(b"ax").1);
    }
}

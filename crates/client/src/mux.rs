//! The framing of output without a terminal: `[channel, 0, 0, 0, length as u32 big-endian]`.

/// Where a piece of output belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Channels 0 and 1.
    Stdout,
    Stderr,
    /// An error of the engine's, which ends the stream.
    System,
}

/// The stream is not framed as it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DemuxError {
    #[error("Unrecognized input header: {0}")]
    Channel(u8),
}

/// Takes a framed stream apart, without buffering payloads.
#[derive(Debug, Default)]
pub struct Demux {
    header: [u8; 8],
    have: usize,
    left: usize,
}

impl Demux {
    /// Takes what can be taken from the front of `input`: the piece and how much was used up.
    /// `None` as the piece means that more input is needed.
    pub fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<(Channel, &'a [u8])>, DemuxError> {
        while self.left == 0 {
            if input.is_empty() {
                return Ok(None);
            }
            let n = (8 - self.have).min(input.len());
            self.header[self.have..self.have + n].copy_from_slice(&input[..n]);
            *input = &input[n..];
            self.have += n;
            if self.have == 8 {
                let [_, _, _, _, length @ ..] = self.header;
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.have = 0;
                self.channel()?;
            }
        }
        if input.is_empty() {
            return Ok(None);
        }
        let (piece, rest) = input.split_at(self.left.min(input.len()));
        self.left -= piece.len();
        *input = rest;
        Ok(Some((self.channel()?, piece)))
    }

    fn channel(&self) -> Result<Channel, DemuxError> {
        match self.header[0] {
            0 | 1 => Ok(Channel::Stdout),
            2 => Ok(Channel::Stderr),
            3 => Ok(Channel::System),
            other => Err(DemuxError::Channel(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn frame(channel: u8, text: &[u8]) -> Vec<u8> {
        let mut f = vec![channel, 0, 0, 0];
        f.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        f.extend(text);
        f
    }

    #[test]
    fn any_split_gives_the_same() {
        let whole =
            [frame(1, b"hello "), frame(2, b""), frame(2, b"oops"), frame(1, b"world")].concat();
        for size in 1..whole.len() {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let mut demux = Demux::default();
            for mut chunk in whole.chunks(size) {
                while let Some((channel, piece)) = demux.next(&mut chunk).unwrap() {
                    match channel {
                        Channel::Stdout => out.extend_from_slice(piece),
                        Channel::Stderr => err.extend_from_slice(piece),
                        Channel::System => panic!("no such frame"),
                    }
                }
            }
            assert_eq!((out.as_slice(), err.as_slice()), (&b"hello world"[..], &b"oops"[..]));
        }
    }

    #[test]
    fn garbage_is_refused() {
        let bytes = frame(9, b"x");
        assert!(Demux::default().next(&mut bytes.as_slice()).is_err());
    }
}

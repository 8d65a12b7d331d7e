//! zstd, frame by frame (RFC 8878 section 3): the window of each is known, and has its leave, before memory is
//! taken for it.

use std::io::{self, BufRead, Read};

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use crate::compression::Leave;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The longest frame header, with its magic number.
const HEADER_MAX_BYTES: u64 = 18;

/// Reads what one frame after the other holds.
pub(crate) struct FrameReader<'a, R> {
    input: R,
    decoder: Decoder<'static>,
    /// What was read of the input to look at a header, and how much of it is decoded.
    head: Vec<u8>,
    at: usize,
    /// The next byte begins a frame.
    fresh: bool,
    window_log: u32,
    leave: Leave<'a>,
}

fn new_decoder(window_log: u32) -> io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(window_log))?;
    Ok(decoder)
}

impl<'a, R: BufRead> FrameReader<'a, R> {
    /// `window_log`: windows have 2 to this power bytes at most.
    pub(crate) fn new(input: R, window_log: u32, leave: Leave<'a>) -> io::Result<Self> {
        let (decoder, head) = (new_decoder(window_log)?, Vec::new());
        Ok(Self { input, decoder, head, at: 0, fresh: true, window_log, leave })
    }

    /// Looks at a frame's header; `false` at the end of the input.
    fn begin(&mut self) -> io::Result<bool> {
        self.head.drain(..self.at);
        self.at = 0;
        let missing = HEADER_MAX_BYTES.saturating_sub(self.head.len() as u64);
        self.input.by_ref().take(missing).read_to_end(&mut self.head)?;
        if self.head.is_empty() {
            return Ok(false);
        }
        let window = window_bytes(&self.head).unwrap_or(0);
        let most = 1 << self.window_log;
        if window > most {
            return Err(io::Error::other(format!(
                "a zstd frame needs a window of {window} bytes, at most {most} are possible"
            )));
        }
        if self.leave.is_needed(window) {
            // It keeps the window of the frame before until then.
            self.decoder = new_decoder(self.window_log)?;
            self.leave.take(window)?;
        }
        self.fresh = false;
        Ok(true)
    }
}

impl<R: BufRead> Read for FrameReader<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while !buf.is_empty() {
            if self.fresh && !self.begin()? {
                return Ok(0);
            }
            let is_ahead = self.at < self.head.len();
            let input = if is_ahead { &self.head[self.at..] } else { self.input.fill_buf()? };
            let at_end = input.is_empty();
            let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(&mut *buf));
            // 0: the frame is decoded and written out.
            let rest = self.decoder.run(&mut from, &mut to)?;
            let (used, made) = (from.pos(), to.pos());
            match is_ahead {
                true => self.at += used,
                false => self.input.consume(used),
            }
            self.fresh = rest == 0;
            if made > 0 {
                return Ok(made);
            }
            if at_end && rest != 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(0)
    }
}

/// What a frame's header says of its window; `None` for what is no such header, or not all of one.
fn window_bytes(head: &[u8]) -> Option<u64> {
    let (descriptor, rest) = head.strip_prefix(&MAGIC)?.split_first()?;
    if descriptor & 0x20 == 0 {
        let window = u64::from(*rest.first()?);
        let base = 1 << (10 + (window >> 3));
        return Some(base + base / 8 * (window & 7));
    }
    // A single segment: its window is its content.
    let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size_bytes = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let field = rest.get(dictionary_bytes..dictionary_bytes + size_bytes)?;
    let size = field.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte));
    Some(if size_bytes == 2 { size + 256 } else { size })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn windows_are_what_zstd_wrote() {
        use std::io::Write as _;
        for log in 10..=27 {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(&[7; 100]).unwrap();
            let frame = encoder.finish().unwrap();
            assert_eq!(window_bytes(&frame), Some(1 << log), "{log}");
            for len in 0..6 {
                assert_eq!(window_bytes(&frame[..len]), None, "{len}");
            }
        }
        for size in [0, 1, 255, 256, 70_000, 1 << 20] {
            let frame = zstd::bulk::compress(&vec![7; size], 3).unwrap();
            assert_eq!(window_bytes(&frame), Some(size as u64), "{size}");
        }
        assert_eq!(window_bytes(&[0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff]), None);
    }
}

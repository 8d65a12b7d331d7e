//! Compression by first bytes, and deterministic compressors.

use std::io::{self, BufRead, BufReader, Cursor, Read, Write};

use crate::frames::FrameReader;

/// A zstd frame may ask for a window of this many bits at most (128 MiB).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// xz may use this much memory for its dictionary; `xz -9` needs 65 MiB.
const XZ_MEMORY_MAX_BYTES: u64 = 128 << 20;
/// The longest magic number (xz).
const MAGIC_LEN: usize = 6;
const BUFFER_BYTES: usize = 128 << 10;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

/// The compression that `first` begins; give at least 6 bytes, or all there are.
pub fn sniff(first: &[u8]) -> Compression {
    match first {
        [0x1f, 0x8b, 8, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A skippable frame (RFC 8878 section 3.1.2).
        [m, 0x2a, 0x4d, 0x18, ..] if m & 0xf0 == 0x50 => Compression::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Compression::Bzip2,
        _ => Compression::None,
    }
}

/// A stream that yields the decompressed bytes.
pub struct Decompressor<'a> {
    compression: Compression,
    inner: Box<dyn Read + Send + 'a>,
}

impl Decompressor<'_> {
    /// What was found at the start of the stream, or asked for.
    pub fn compression(&self) -> Compression {
        self.compression
    }
}

impl Read for Decompressor<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf)
    }
}

/// Decompresses whatever `reader` turns out to hold; several gzip members, zstd frames, xz or
/// bzip2 streams in a row are one stream.
///
/// # Errors
/// When the first bytes cannot be read. A truncated or damaged stream is an error of a later read.
pub fn decompress<'a, R: Read + Send + 'a>(mut reader: R) -> io::Result<Decompressor<'a>> {
    let magic = magic(&mut reader)?;
    let compression = sniff(&magic);
    decompress_as(Cursor::new(magic).chain(reader), compression)
}

/// As [`decompress`], with less memory: a zstd window of so many bytes at most (rounded down to a power
/// of two), so many for xz.
///
/// # Errors
/// As of [`decompress`]. A stream that needs more is an error of a later read.
pub fn decompress_within<'a, R: Read + Send + 'a>(
    mut reader: R,
    window_bytes: u64,
) -> io::Result<Decompressor<'a>> {
    let magic = magic(&mut reader)?;
    let compression = sniff(&magic);
    let window = Window {
        zstd_log: window_bytes.max(1).ilog2().min(ZSTD_WINDOW_LOG_MAX),
        xz_bytes: window_bytes.min(XZ_MEMORY_MAX_BYTES),
        leave: Leave::needless(),
    };
    decoder(Cursor::new(magic).chain(reader), compression, window)
}

/// Answers once so many bytes may be used, with what is dropped when they are not used any more; or an error,
/// which is one of the read that needed them.
pub type AskLeave<'a> = Box<dyn FnMut(u64) -> io::Result<Box<dyn Send + 'a>> + Send + 'a>;

/// As [`decompress`], with leave for each window of more than `free_bytes`: `ask` is called with the window's
/// size, for one window at a time. xz needs leave for the most that it may use before anything is read.
///
/// # Errors
/// As of [`decompress`], and of `ask`.
pub fn decompress_with_leave<'a, R: Read + Send + 'a>(
    mut reader: R,
    free_bytes: u64,
    ask: AskLeave<'a>,
) -> io::Result<Decompressor<'a>> {
    let magic = magic(&mut reader)?;
    let compression = sniff(&magic);
    let window = Window {
        zstd_log: ZSTD_WINDOW_LOG_MAX,
        xz_bytes: XZ_MEMORY_MAX_BYTES,
        leave: Leave { free_bytes, ask: Some(ask), held: None },
    };
    decoder(Cursor::new(magic).chain(reader), compression, window)
}

/// Memory that a decoder has leave to use.
pub(crate) struct Leave<'a> {
    free_bytes: u64,
    ask: Option<AskLeave<'a>>,
    held: Option<(u64, Box<dyn Send + 'a>)>,
}

impl Leave<'_> {
    /// For whom nobody asks.
    fn needless() -> Self {
        Self { free_bytes: u64::MAX, ask: None, held: None }
    }

    /// Has nobody given leave for so much yet?
    pub(crate) fn is_needed(&self, bytes: u64) -> bool {
        self.ask.is_some() && bytes > self.held.as_ref().map_or(self.free_bytes, |(held, _)| *held)
    }

    /// Asks for so much, if that is needed. What was held before is given back first: who waits for more holds
    /// nothing, and has dropped what it had.
    pub(crate) fn take(&mut self, bytes: u64) -> io::Result<()> {
        let is_needed = self.is_needed(bytes);
        if let Some(ask) = self.ask.as_mut().filter(|_| is_needed) {
            self.held = None;
            self.held = Some((bytes, ask(bytes)?));
        }
        Ok(())
    }
}

/// As [`decompress`], for a compression that is known.
///
/// # Errors
/// When the decoder cannot be set up.
pub fn decompress_as<'a, R: Read + Send + 'a>(
    reader: R,
    compression: Compression,
) -> io::Result<Decompressor<'a>> {
    let window = Window {
        zstd_log: ZSTD_WINDOW_LOG_MAX,
        xz_bytes: XZ_MEMORY_MAX_BYTES,
        leave: Leave::needless(),
    };
    decoder(reader, compression, window)
}

/// What a decoder may use.
struct Window<'a> {
    zstd_log: u32,
    xz_bytes: u64,
    leave: Leave<'a>,
}

fn magic(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut magic = Vec::with_capacity(MAGIC_LEN);
    let limit = u64::try_from(MAGIC_LEN).expect("a small constant");
    reader.by_ref().take(limit).read_to_end(&mut magic)?;
    Ok(magic)
}

fn decoder<'a, R: Read + Send + 'a>(
    reader: R,
    compression: Compression,
    window: Window<'a>,
) -> io::Result<Decompressor<'a>> {
    let buffered = BufReader::with_capacity(BUFFER_BYTES, reader);
    let inner: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => Box::new(buffered),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(buffered)),
        Compression::Zstd => Box::new(FrameReader::new(buffered, window.zstd_log, window.leave)?),
        Compression::Xz => Box::new(XzReader::new(buffered, window.xz_bytes, window.leave)?),
    };
    Ok(Decompressor { compression, inner })
}

/// xz2's own reader takes the end of its input inside a block for the end of the data in some
/// cases; this one asks the decoder.
struct XzReader<'a, R> {
    input: R,
    stream: xz2::stream::Stream,
    done: bool,
    /// Held as long as the stream is.
    _leave: Leave<'a>,
}

impl<'a, R: BufRead> XzReader<'a, R> {
    /// liblzma cannot go on with a stream that it has refused memory: all of it is asked for at once.
    fn new(input: R, memory_bytes: u64, mut leave: Leave<'a>) -> io::Result<Self> {
        leave.take(memory_bytes)?;
        let stream =
            xz2::stream::Stream::new_stream_decoder(memory_bytes, xz2::stream::CONCATENATED)?;
        Ok(Self { input, stream, done: false, _leave: leave })
    }
}

impl<R: BufRead> Read for XzReader<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        use xz2::stream::{Action, Status};
        while !self.done && !buf.is_empty() {
            let input = self.input.fill_buf()?;
            let at_end = input.is_empty();
            let (before_in, before_out) = (self.stream.total_in(), self.stream.total_out());
            let action = if at_end { Action::Finish } else { Action::Run };
            let status = self.stream.process(input, buf, action)?;
            let used = usize::try_from(self.stream.total_in() - before_in).expect("below input");
            let made = usize::try_from(self.stream.total_out() - before_out).expect("below buf");
            self.input.consume(used);
            match status {
                Status::StreamEnd => self.done = true,
                Status::MemNeeded if made == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ if at_end && made == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
            if made > 0 {
                return Ok(made);
            }
        }
        Ok(0)
    }
}

/// How to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    None,
    /// Levels 0 to 9; higher ones count as 9.
    Gzip {
        level: u32,
    },
    /// zstd's levels, negative ones included.
    Zstd {
        level: i32,
    },
}

/// A sink that compresses into another. [`Compressor::finish`] must be called.
pub struct Compressor<W: Write>(Inner<W>);

enum Inner<W: Write> {
    None(W),
    Gzip(flate2::write::GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

/// Compresses into `writer`. Equal input and encoding give equal bytes: no time, no name.
///
/// # Errors
/// When the encoder cannot be set up.
pub fn compress<W: Write>(writer: W, encoding: Encoding) -> io::Result<Compressor<W>> {
    Ok(Compressor(match encoding {
        Encoding::None => Inner::None(writer),
        Encoding::Gzip { level } => Inner::Gzip(
            flate2::GzBuilder::new()
                .mtime(0)
                .operating_system(255)
                .write(writer, flate2::Compression::new(level.min(9))),
        ),
        Encoding::Zstd { level } => {
            let mut encoder = zstd::stream::write::Encoder::new(writer, level)?;
            encoder.include_checksum(true)?;
            Inner::Zstd(encoder)
        }
    }))
}

impl<W: Write> Compressor<W> {
    /// Writes what is left and gives the sink back.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Inner::None(mut w) => {
                w.flush()?;
                Ok(w)
            }
            Inner::Gzip(w) => w.finish(),
            Inner::Zstd(w) => w.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::None(w) => w.write(buf),
            Inner::Gzip(w) => w.write(buf),
            Inner::Zstd(w) => w.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Inner::None(w) => w.flush(),
            Inner::Gzip(w) => w.flush(),
            Inner::Zstd(w) => w.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_window_that_is_too_large_is_an_error() {
        let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(23).unwrap();
        encoder.write_all(&bytes).unwrap();
        let zstd = encoder.finish().unwrap();
        let mut encoder = xz2::write::XzEncoder::new(Vec::new(), 6);
        encoder.write_all(&bytes).unwrap();
        let xz = encoder.finish().unwrap();
        for (name, compressed) in [("zstd", zstd), ("xz", xz)] {
            let read = |window_bytes| {
                let mut read = Vec::new();
                let mut tar = decompress_within(&compressed[..], window_bytes).unwrap();
                tar.read_to_end(&mut read).map(|_| read)
            };
            assert!(read(16 << 20).unwrap() == bytes, "{name}");
            assert!(read(4 << 20).is_err(), "{name}: more memory than it may have");
        }
    }

    /// What was asked for, and what is held; it may be one thing at a time.
    #[derive(Default)]
    struct Asked {
        sizes: Vec<u64>,
        held: usize,
    }

    struct Held(Arc<Mutex<Asked>>);

    impl Drop for Held {
        fn drop(&mut self) {
            self.0.lock().unwrap().held -= 1;
        }
    }

    fn read_with_leave(compressed: &[u8], free_bytes: u64) -> (io::Result<Vec<u8>>, Vec<u64>) {
        let asked = Arc::new(Mutex::new(Asked::default()));
        let ask = |bytes| {
            let mut all = asked.lock().unwrap();
            if bytes == 1 << 27 && all.sizes.contains(&(1 << 26)) {
                return Err(io::Error::other("not that much"));
            }
            all.sizes.push(bytes);
            all.held += 1;
            assert_eq!(all.held, 1, "one after the other");
            Ok(Box::new(Held(Arc::clone(&asked))) as Box<dyn Send>)
        };
        let mut tar = decompress_with_leave(compressed, free_bytes, Box::new(ask)).unwrap();
        let mut read = Vec::new();
        let outcome = tar.read_to_end(&mut read).map(|_| read);
        drop(tar);
        let asked = asked.lock().unwrap();
        assert_eq!(asked.held, 0, "it is given back");
        (outcome, asked.sizes.clone())
    }

    #[test]
    fn leave_is_asked_for_large_windows() {
        let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let frame = |log| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(&bytes).unwrap();
            encoder.finish().unwrap()
        };
        let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"any"].concat();
        let empty = zstd::bulk::compress(b"", 1).unwrap();
        let parts = [frame(20), empty, frame(23), skippable, frame(21), frame(25), frame(21)];
        let (read, asked) = read_with_leave(&parts.concat(), 1 << 20);
        assert!(read.unwrap() == [&bytes[..]; 5].concat());
        assert_eq!(asked, [1 << 23, 1 << 25]);
        let (read, asked) = read_with_leave(&frame(22), 4 << 20);
        assert!(read.unwrap() == bytes && asked.is_empty());
        let (read, asked) = read_with_leave(&[frame(26), frame(27)].concat(), 0);
        assert_eq!(asked, [1 << 26]);
        assert_eq!(read.unwrap_err().to_string(), "not that much");
        let whole = frame(23);
        let (read, _) = read_with_leave(&whole[..whole.len() - 5], 0);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let mut encoder = xz2::write::XzEncoder::new(Vec::new(), 6);
        encoder.write_all(&bytes).unwrap();
        let xz = encoder.finish().unwrap();
        let (read, asked) = read_with_leave(&xz, 1 << 20);
        assert!(read.unwrap() == bytes);
        assert_eq!(asked, [XZ_MEMORY_MAX_BYTES]);
        assert!(read_with_leave(&xz, XZ_MEMORY_MAX_BYTES).1.is_empty());
    }

    #[test]
    fn a_window_beyond_all_is_named() {
        // A frame that asks for 2 GiB: RFC 8878 section 3.1.1.1.2, exponent 21.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0];
        let mut read = Vec::new();
        let error = decompress(&frame[..]).unwrap().read_to_end(&mut read).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a zstd frame needs a window of 2147483648 bytes, at most 134217728 are possible"
        );
    }
}

//! The 512-byte block: numbers, checksums, fields (POSIX.1-1988 ustar, GNU variants).

use crate::error::Problem;

pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCK_U64: u64 = 512;

pub(crate) type Block = [u8; BLOCK];

/// Rounds up to whole blocks; `None` on overflow.
pub(crate) fn padded(size: u64) -> Option<u64> {
    size.checked_add(BLOCK_U64 - 1).map(|n| n / BLOCK_U64 * BLOCK_U64)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// No magic: no prefix, no device numbers that count.
    V7,
    Ustar,
    Gnu,
}

/// A header block whose checksum is right.
pub(crate) struct Header<'a>(pub(crate) &'a Block);

impl<'a> Header<'a> {
    /// Checks the sum; both unsigned and (historic) signed bytes are accepted.
    pub(crate) fn parse(block: &'a Block) -> Result<Self, Problem> {
        let told = number(&block[148..156], "checksum")?;
        let mut unsigned = 0i128;
        let mut signed = 0i128;
        for (i, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&i) { b' ' } else { *byte };
            unsigned += i128::from(byte);
            signed += i128::from(byte.cast_signed());
        }
        if told != unsigned && told != signed {
            return Err(Problem::Checksum);
        }
        Ok(Self(block))
    }

    pub(crate) fn format(&self) -> Format {
        match &self.0[257..265] {
            b"ustar  \0" => Format::Gnu,
            m if m.starts_with(b"ustar\0") => Format::Ustar,
            _ => Format::V7,
        }
    }

    pub(crate) fn typeflag(&self) -> u8 {
        self.0[156]
    }

    /// The name, with ustar's prefix in front.
    pub(crate) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = text(&self.0[345..500]);
        if self.format() != Format::Ustar || prefix.is_empty() {
            return name.to_vec();
        }
        let mut full = prefix.to_vec();
        full.push(b'/');
        full.extend_from_slice(name);
        full
    }

    pub(crate) fn link(&self) -> &[u8] {
        text(&self.0[157..257])
    }

    pub(crate) fn user(&self) -> &[u8] {
        if self.format() == Format::V7 { b"" } else { text(&self.0[265..297]) }
    }

    pub(crate) fn group(&self) -> &[u8] {
        if self.format() == Format::V7 { b"" } else { text(&self.0[297..329]) }
    }

    pub(crate) fn mode(&self) -> Result<u32, Problem> {
        let mode = number(&self.0[100..108], "mode")?;
        let mode = u32::try_from(mode).map_err(|_| Problem::Range("mode"))?;
        Ok(mode & 0o7777)
    }

    pub(crate) fn uid(&self) -> Result<i128, Problem> {
        number(&self.0[108..116], "uid")
    }

    pub(crate) fn gid(&self) -> Result<i128, Problem> {
        number(&self.0[116..124], "gid")
    }

    pub(crate) fn size(&self) -> Result<u64, Problem> {
        size(&self.0[124..136])
    }

    pub(crate) fn mtime(&self) -> Result<i64, Problem> {
        let n = number(&self.0[136..148], "mtime")?;
        i64::try_from(n).map_err(|_| Problem::Range("mtime"))
    }

    pub(crate) fn device(&self) -> Result<(u32, u32), Problem> {
        let get = |range: &[u8]| {
            number(range, "device number")
                .and_then(|n| u32::try_from(n).map_err(|_| Problem::Range("device number")))
        };
        Ok((get(&self.0[329..337])?, get(&self.0[337..345])?))
    }
}

/// The bytes before the first zero byte.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A size or offset field.
pub(crate) fn size(field: &[u8]) -> Result<u64, Problem> {
    let n = number(field, "size")?;
    // Positions are added up: leave the top bit alone so that a stream's offset cannot wrap.
    u64::try_from(n).ok().filter(|n| *n <= i64::MAX.unsigned_abs()).ok_or(Problem::Range("size"))
}

/// Octal text with optional blanks around it, or GNU's base-256 two's complement form.
pub(crate) fn number(field: &[u8], what: &'static str) -> Result<i128, Problem> {
    let first = field.first().copied().unwrap_or_default();
    if first & 0x80 != 0 {
        // GNU tar writes 0x80 for positive and 0xff for negative numbers and reads no others.
        let negative = first == 0xff;
        if !negative && first != 0x80 {
            return Err(Problem::Number(what));
        }
        let mut value: i128 = if negative { -1 } else { 0 };
        for byte in &field[1..] {
            value = (value << 8) | i128::from(*byte);
        }
        return Ok(value);
    }
    if first == 0 && field.iter().any(|b| b.is_ascii_digit()) {
        // GNU tar skips one leading zero byte, others end the text there.
        return Err(Problem::Number(what));
    }
    let trimmed = text(field).trim_ascii();
    let mut value: i128 = 0;
    for digit in trimmed {
        if !(b'0'..=b'7').contains(digit) {
            return Err(Problem::Number(what));
        }
        value = value * 8 + i128::from(digit - b'0');
    }
    Ok(value)
}

/// Writes `value` as octal digits that fill `field` but for a closing zero byte.
/// False when it does not fit.
pub(crate) fn put_octal(field: &mut [u8], value: u64) -> bool {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    if text.len() > digits {
        return false;
    }
    field[..digits].copy_from_slice(text.as_bytes());
    field[digits] = 0;
    true
}

/// Fills in the checksum of a block that is otherwise complete.
pub(crate) fn seal(block: &mut Block) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    // Six digits, a zero byte, a space: 512 * 255 has six octal digits.
    let fits = put_octal(&mut block[148..155], sum);
    debug_assert!(fits, "a block's sum has at most six octal digits");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0", "x"), Ok(0o644));
        assert_eq!(number(b"   644 \0", "x"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0", "x"), Ok(0));
        assert_eq!(number(b"64x\0", "x"), Err(Problem::Number("x")));
        assert_eq!(number(b"-1\0", "x"), Err(Problem::Number("x")));
        assert_eq!(number(&[0x80, 0, 0, 0, 1, 0, 0, 0], "x"), Ok(1 << 24));
        assert_eq!(number(&[0xff; 12], "x"), Ok(-1));
        assert_eq!(size(&[0xff; 12]), Err(Problem::Range("size")));
    }
}

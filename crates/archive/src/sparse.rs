//! Maps of sparse files.

use crate::{
    entry::Chunk,
    error::Problem,
    header::{self, BLOCK_U64, Block},
    pax::decimal,
};

/// Checks that chunks ascend, do not overlap and end within the file, and drops empty ones.
/// Gives the map and the bytes stored for it. All but the last are whole blocks: GNU tar 1.34 begins each
/// at a block, others read them one right after the other.
pub(crate) fn checked(chunks: Vec<Chunk>, real_size: u64) -> Result<(Vec<Chunk>, u64), Problem> {
    let mut end = 0u64;
    let mut stored = 0u64;
    for chunk in &chunks {
        if chunk.offset < end {
            return Err(Problem::Sparse);
        }
        end = chunk.offset.checked_add(chunk.len).ok_or(Problem::Sparse)?;
        let broken = chunk.len > 0 && !stored.is_multiple_of(BLOCK_U64);
        if end > real_size || broken {
            return Err(Problem::Sparse);
        }
        stored += chunk.len;
    }
    let kept = chunks.into_iter().filter(|c| c.len > 0).collect();
    Ok((kept, stored))
}

/// Reads offset and length pairs of 12 bytes each out of a GNU header; false when the list ended.
fn pairs(area: &[u8], chunks: &mut Vec<Chunk>, max: usize) -> Result<bool, Problem> {
    for pair in area.chunks_exact(24) {
        if pair[12] == 0 {
            return Ok(false);
        }
        if chunks.len() >= max {
            return Err(Problem::Range("number of sparse chunks"));
        }
        let offset = header::size(&pair[..12])?;
        let len = header::size(&pair[12..])?;
        chunks.push(Chunk { offset, len });
    }
    Ok(true)
}

/// The old GNU format's main header: chunks, logical size, and whether more blocks follow.
pub(crate) fn gnu_header(
    block: &Block,
    chunks: &mut Vec<Chunk>,
    max: usize,
) -> Result<(u64, bool), Problem> {
    let full = pairs(&block[386..482], chunks, max)?;
    let extended = block[482] != 0;
    if extended && !full {
        return Err(Problem::Sparse);
    }
    Ok((header::size(&block[483..495])?, extended))
}

/// One extension block of the old GNU format; true when another one follows.
pub(crate) fn gnu_extension(
    block: &Block,
    chunks: &mut Vec<Chunk>,
    max: usize,
) -> Result<bool, Problem> {
    let full = pairs(&block[..504], chunks, max)?;
    let extended = block[504] != 0;
    if extended && !full {
        return Err(Problem::Sparse);
    }
    Ok(extended)
}

/// The map of format 1.0, which stands in front of the data: a count, then offset and length
/// for each chunk, each number on its line; fed block by block.
#[derive(Default)]
pub(crate) struct MapParser {
    line: Vec<u8>,
    count: Option<usize>,
    offset: Option<u64>,
    chunks: Vec<Chunk>,
}

impl MapParser {
    /// Takes one block; true when the map is complete.
    pub(crate) fn feed(&mut self, block: &Block, max: usize) -> Result<bool, Problem> {
        for byte in block {
            if self.is_complete() {
                return Ok(true);
            }
            if *byte != b'\n' {
                // A 64-bit number has at most 20 digits.
                if self.line.len() >= 20 {
                    return Err(Problem::Sparse);
                }
                self.line.push(*byte);
                continue;
            }
            let number = decimal(&self.line).map_err(|_| Problem::Sparse)?;
            self.line.clear();
            self.number(number, max)?;
        }
        Ok(self.is_complete())
    }

    fn number(&mut self, number: u64, max: usize) -> Result<(), Problem> {
        if self.count.is_none() {
            let count = usize::try_from(number).map_err(|_| Problem::Sparse)?;
            if count > max {
                return Err(Problem::Range("number of sparse chunks"));
            }
            self.count = Some(count);
        } else if let Some(offset) = self.offset.take() {
            self.chunks.push(Chunk { offset, len: number });
        } else {
            self.offset = Some(number);
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.count == Some(self.chunks.len())
    }

    pub(crate) fn into_chunks(self) -> Vec<Chunk> {
        self.chunks
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn maps_that_overlap_or_overflow_are_refused() {
        let chunk = |offset, len| Chunk { offset, len };
        assert_eq!(checked(vec![chunk(0, 5), chunk(10, 0)], 10).unwrap(), (vec![chunk(0, 5)], 5));
        assert!(checked(vec![chunk(0, 5), chunk(4, 1)], 10).is_err());
        assert!(checked(vec![chunk(0, 11)], 10).is_err());
        assert!(checked(vec![chunk(u64::MAX, 2)], 10).is_err());
        // Where the second one's data begins is not clear.
        assert!(checked(vec![chunk(0, 5), chunk(600, 5)], 1000).is_err());
        assert!(checked(vec![chunk(0, 512), chunk(600, 5), chunk(1000, 0)], 1000).is_ok());
    }
}

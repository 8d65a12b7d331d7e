use std::path::Path;

use archive::Kind;

use crate::error::{Error, Result};

/// Files and links of an archive at most: an image has two or three per layer, an archive some images.
const FILES: usize = 16 << 10;
/// Bytes of what is kept of their names at most: each path has some 80.
const NAME_BYTES: usize = 8 << 20;

/// The files and links of an archive so far, also those of a path that came before.
#[derive(Default)]
pub(super) struct Count {
    files: usize,
    name_bytes: usize,
}

impl Count {
    /// One more, unless it is of a kind that is passed over.
    ///
    /// # Errors
    /// `InvalidArgument` beyond [`FILES`] and [`NAME_BYTES`].
    pub(super) fn add(&mut self, path: &Path, kind: &Kind) -> Result<()> {
        let len = |path: &Path| path.as_os_str().len();
        let name_bytes = match kind {
            Kind::File { .. } => len(path),
            // Its target is kept with the link's directory in front.
            Kind::Symlink { target } => 2 * len(path) + len(target),
            Kind::HardLink { target } => len(path) + len(target),
            _ => return Ok(()),
        };
        self.files += 1;
        if self.files > FILES {
            return Err(Error::invalid(format!("the archive has more than {FILES} files")));
        }
        self.name_bytes += name_bytes;
        if self.name_bytes > NAME_BYTES {
            return Err(Error::invalid(format!(
                "the paths of the archive's files and links have more than {NAME_BYTES} bytes together"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file() -> Kind {
        Kind::File { sparse: None }
    }

    #[test]
    fn a_path_that_comes_again_is_one_more() {
        let mut count = Count::default();
        for _ in 0..FILES {
            count.add(Path::new("f"), &file()).unwrap();
            // Not kept.
            count.add(Path::new("d"), &Kind::Directory).unwrap();
        }
        let error = count.add(Path::new("f"), &file()).unwrap_err();
        assert!(error.to_string().contains("files"), "{error}");
    }

    #[test]
    fn names_have_so_many_bytes_together() {
        let path = "p".repeat(4096);
        let target = || path.clone().into();
        for (kind, each) in [
            (file(), 1),
            (Kind::HardLink { target: target() }, 2),
            (Kind::Symlink { target: target() }, 3),
        ] {
            let mut count = Count::default();
            for i in 0..NAME_BYTES / (each * path.len()) {
                count.add(Path::new(&path), &kind).unwrap_or_else(|error| panic!("{i}: {error}"));
            }
            let error = count.add(Path::new(&path), &kind).unwrap_err();
            assert!(error.to_string().contains("bytes"), "{error}");
        }
    }
}

//! Files of the builder's own directory.

use std::{
    io::{self, Write},
    path::Path,
};

use rand::RngCore as _;

/// A random name of `bytes` × 2 hexadecimal digits.
pub(crate) fn random_hex(bytes: usize) -> String {
    let mut raw = vec![0; bytes];
    rand::rng().fill_bytes(&mut raw);
    crate::hashes::hex(&raw)
}

/// Replaces a file in one step. Nothing is synced: what is lost in a crash is only cache.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.new", random_hex(6)));
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = std::fs::File::create_new(&temporary)?;
        file.write_all(bytes)?;
        std::fs::rename(&temporary, path)
    };
    write().inspect_err(|_| {
        // The error that matters is the first one.
        let _best_effort = std::fs::remove_file(&temporary);
    })
}

/// Makes a private directory (0700) if it is not there.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes a directory and all in it; absent is fine.
/// Makes an empty file, or gives the one that is there the present time.
pub(crate) fn touch(path: &Path) -> io::Result<()> {
    let file = std::fs::File::options().create(true).append(true).open(path)?;
    file.set_modified(std::time::SystemTime::now())
}

pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    Ok(sys::tree::remove(path)?)
}

//! Fixtures for end-to-end tests.
//!
//! Owns: the [`sandbox`] an engine under test lives in, the [`leak`] check that proves that it left
//! nothing behind, [`fixtures`] (images and tar streams with byte-by-byte control), a [`registry`]
//! on loopback, the [`peer`]s to compare with, the [`engine`] under test as a process, the conformance
//! suite for runtimes with the attacks on them ([`oci`]), the power cuts ([`power`]), and the waiting
//! ([`wait`]), running ([`command`]) and naming ([`random`]) that these share.
//!
//! Does not own: the tests of the product, which live beside it, and the installation of the peers
//! (`scripts/deps`).
//!
//! On disk: `${GANTRY_TEST_DIR:-/var/tmp}/gantry-test-*`, one directory per sandbox, gone with it;
//! `${GANTRY_CACHE:-/var/cache/gantry-test}`, filled by `scripts/deps`, never by a test except for
//! the Debian base, which is made once.
//!
//! Locks: `$GANTRY_CACHE/rootfs.lock` (flock) while the Debian base is made.
//!
//! Threads: two per running command (its output); no async runtime, so that a test of any kind can
//! use it.

pub mod command;
pub mod engine;
mod error;
pub mod fixtures;
pub mod leak;
pub mod oci;
pub mod peer;
pub mod power;
pub mod random;
pub mod registry;
pub mod sandbox;
pub mod single;
pub mod terminal;
pub mod wait;

pub use error::{Error, Result};

use std::path::{Path, PathBuf};

/// Where `scripts/deps` puts what is not installed on the machine.
pub fn cache_dir() -> PathBuf {
    std::env::var_os("GANTRY_CACHE")
        .map_or_else(|| PathBuf::from("/var/cache/gantry-test"), PathBuf::from)
}

/// The top of the source tree that this crate was built from.
pub fn source_dir() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).map_or_else(|| manifest.to_path_buf(), Path::to_path_buf)
}

/// A file of the tree of trixie's packages, for example `usr/sbin/dockerd`.
pub fn trixie(path: &str) -> Result<PathBuf> {
    let file = cache_dir().join("trixie/root").join(path);
    if file.exists() { Ok(file) } else { Err(Error::MissingPeer { path: file }) }
}

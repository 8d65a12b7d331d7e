//! The nouns that every part of Gantry shares.
//!
//! Owns: digests, image references, platforms, container ids and names, Go's durations, the closed set of error
//! kinds. Does not own: any I/O, any wire format, any state.

mod digest;
mod duration;
mod error_kind;
mod id;
mod platform;
mod reference;

pub use digest::{Algorithm, Digest, DigestError, Digester};
pub use duration::{DurationError, parse_duration};
pub use error_kind::ErrorKind;
pub use id::{ContainerId, IdError, validate_name};
pub use platform::{Platform, PlatformError};
pub use reference::{DEFAULT_DOMAIN, ImageRef, ReferenceError};

/// Resource limits of setrlimit(2) that docker names (docker/go-units `ulimit.go`).
pub const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Limits that more than one part of Gantry keeps.
pub mod limits {
    /// Bytes of a manifest or image index. distribution/distribution 2.8 refuses larger ones.
    pub const MANIFEST_BYTES: usize = 4 << 20;
    /// Bytes of an image configuration. containerd 1.6 reads at most 8 MiB.
    pub const IMAGE_CONFIG_BYTES: usize = 8 << 20;
    /// Bytes of an Engine API request body that is one JSON document: a container's
    /// configuration with a large environment fits, a hostile client does not fill memory.
    pub const JSON_BODY_BYTES: usize = 8 << 20;
    /// Layers of an image: overlay takes 500 lower directories (Linux `OVL_MAX_STACK`), two of which are
    /// for a container's own layer once it is committed, and a build step's.
    pub const LAYERS: usize = 498;
    /// Layers of an image that a build makes: dockerd's overlay2 runs none of more.
    pub const BUILT_LAYERS: usize = 128;
}

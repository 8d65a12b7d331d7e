//! gantry-api-types: the JSON of the Docker Engine API (1.40 to 1.50), as plain structs.
//!
//! Owns: names, order, null and omission rules of every JSON body, the two forms of `filters`,
//! and the query of `POST /build`. Both the engine (which writes these) and the client (which
//! reads them) use the same types.
//!
//! Does not own: HTTP, validation, defaults of the engine, domain types. Strings stay strings
//! here; they become domain types at the edge of the engine or of the command line.
//!
//! Rules that hold for every struct here:
//! - a missing field and a JSON `null` both read as the field's default;
//! - unknown fields are ignored;
//! - field order is dockerd's; maps are sorted, as Go's encoder sorts them;
//! - an empty list is written as `null` where dockerd's Go value is a nil slice, as `[]` where
//!   dockerd makes an empty one, and left out where Go says `omitempty`.
//!
//! Tasks, channels, locks, on-disk layout: none.

#[macro_use]
mod wire;

mod auth;
mod build;
mod config;
mod exec;
mod filters;
mod host_config;
mod image;
mod inspect;
mod network;
mod progress;
mod query;
mod stats;
mod system;
mod volume;

pub use auth::*;
pub use build::*;
pub use config::*;
pub use exec::*;
pub use filters::*;
pub use host_config::*;
pub use image::*;
pub use inspect::*;
pub use network::*;
pub use progress::*;
pub use query::*;
pub use stats::*;
pub use system::*;
pub use volume::*;
pub use wire::{Empty, Map, StrSlice};

/// The newest API version whose response shapes these types follow.
pub const API_VERSION: &str = "1.50";
/// The oldest API version that is spoken.
pub const MIN_API_VERSION: &str = "1.40";
/// How Go prints the zero `time.Time`; dockerd uses it for "never".
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

wire! {
    /// The body of every error reply: `{"message": "…"}`.
    #[derive(Eq)]
    pub struct ErrorBody {
        #[serde(rename = "message")]
        pub message: String,
    }

    /// Reply of the calls that make something and return only its id (commit, exec create).
    #[derive(Eq)]
    pub struct IdResponse {
        pub id: String,
    }
}

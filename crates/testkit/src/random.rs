//! Inputs that differ from run to run, so that a fixed answer cannot pass.

use rand::Rng;
use rand::distr::{Alphanumeric, SampleString};

/// `prefix-` and ten lower-case letters and digits: good for containers, images, volumes, hosts.
pub fn name(prefix: &str) -> String {
    format!("{prefix}-{}", token(10))
}

/// Lower-case letters and digits, the first one a letter.
pub fn token(length: usize) -> String {
    let mut text = Alphanumeric.sample_string(&mut rand::rng(), length).to_lowercase();
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        text.replace_range(..1, "g");
    }
    text
}

/// A number in the half-open range.
pub fn number(range: std::ops::Range<u32>) -> u32 {
    rand::rng().random_range(range)
}

/// An exit code that no engine or shell makes up by itself: 3..=119.
pub fn exit_code() -> i32 {
    rand::rng().random_range(3..120)
}

/// A port outside the ephemeral range. Each sandbox has a network of its own, so that two tests
/// with the same port do not meet.
pub fn port() -> u16 {
    rand::rng().random_range(10_000..32_000)
}

pub fn bytes(length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    rand::rng().fill(&mut data[..]);
    data
}

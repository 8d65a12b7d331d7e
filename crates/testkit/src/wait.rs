//! Waiting on a condition, never on time.

use crate::{Error, Result};
use std::time::{Duration, Instant};

/// Between two looks at a condition: short beside what is waited for, long beside a look.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks until `condition` gives a value; after `limit` an error that names `what`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    until_ok(what, limit, || condition().ok_or_else(|| "not yet".to_owned()))
}

/// Like [`until`], for conditions that can say what they saw instead.
pub fn until_ok<T, E: std::fmt::Display>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> std::result::Result<T, E>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(Error::Wait { what: what.to_owned(), limit, last: error.to_string() });
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

//! From what this program was built; the build script finds it out.

/// The commit, or nothing.
pub(crate) const COMMIT: &str = env!("GANTRY_COMMIT");
/// `rustc` and its version.
pub(crate) const COMPILER: &str = env!("GANTRY_COMPILER");

/// When the commit was made (or what `SOURCE_DATE_EPOCH` said), in RFC 3339; empty if that is not
/// known.
pub(crate) fn time() -> String {
    rfc3339(env!("GANTRY_BUILD_SECONDS")).unwrap_or_default()
}

fn rfc3339(seconds: &str) -> Option<String> {
    let time = jiff::Timestamp::from_second(seconds.parse().ok()?).ok()?;
    Some(time.strftime("%Y-%m-%dT%H:%M:%S.000000000+00:00").to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_dockers() {
        let time = rfc3339("1700000000").unwrap();
        assert_eq!(time, "2023-11-14T22:13:20.000000000+00:00");
        assert_eq!(rfc3339(""), None);
    }

    #[test]
    fn the_compiler_is_named() {
        assert!(COMPILER.starts_with("rustc 1."), "{COMPILER}");
    }
}

//! Which files a tool keeps for its next run only.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

use store_api::Cache;

/// Directories from the root.
const FIXED: &[(&str, Cache)] = &[
    ("var/lib/apt/lists", Cache::AptLists),
    ("var/cache/apt", Cache::Apt),
    ("var/cache/apk", Cache::Apk),
    ("etc/apk/cache", Cache::Apk),
    ("var/cache/dnf", Cache::Dnf),
    ("var/cache/yum", Cache::Dnf),
    ("var/cache/libdnf5", Cache::Dnf),
    ("usr/local/share/.cache/yarn", Cache::Yarn),
    ("usr/local/cargo/registry", Cache::Cargo),
    ("tmp", Cache::Temporary),
    ("var/tmp", Cache::Temporary),
];

/// Directories in anybody's home, or wherever a tool took its home to be.
const ANYWHERE: &[(&[&str], Cache)] = &[
    (&[".cache", "pip"], Cache::Pip),
    (&[".npm", "_cacache"], Cache::Npm),
    (&[".cache", "yarn"], Cache::Yarn),
    (&[".cache", "go-build"], Cache::Go),
    (&["go", "pkg", "mod", "cache"], Cache::Go),
    (&[".cargo", "registry"], Cache::Cargo),
];

/// Whose cache a file lies in; `path`: without a leading "/".
pub(super) fn of(path: &Path) -> Option<Cache> {
    let parent = path.parent()?;
    for (directory, cache) in FIXED {
        if parent.starts_with(directory) {
            return Some(*cache);
        }
    }
    let names: Vec<&[u8]> = parent.iter().map(OsStr::as_bytes).collect();
    for (directory, cache) in ANYWHERE {
        let same = |names: &[&[u8]]| {
            names.iter().zip(*directory).all(|(name, wanted)| *name == wanted.as_bytes())
        };
        if names.windows(directory.len()).any(same) {
            return Some(*cache);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_known_by_their_places() {
        for (path, cache) in [
            ("var/lib/apt/lists/deb.debian.org_Packages", Some(Cache::AptLists)),
            ("var/lib/apt/listset", None),
            ("var/lib/apt/lists", None),
            ("root/.cache/pip/http/a/b", Some(Cache::Pip)),
            (".cache/pip/x", Some(Cache::Pip)),
            ("srv/pip/.cache/x", None),
            ("home/u/go/pkg/mod/cache/download/x", Some(Cache::Go)),
            ("home/u/go/pkg/mod/x", None),
            ("tmp/x", Some(Cache::Temporary)),
            ("srv/tmp/x", None),
        ] {
            assert_eq!(of(Path::new(path)), cache, "{path}");
        }
    }
}

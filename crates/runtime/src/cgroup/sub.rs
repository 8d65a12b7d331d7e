//! `exec --cgroup`: a cgroup below the container's.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Where a joining process goes, relative to the container's cgroups.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct SubCgroup {
    /// For every hierarchy that is not named; empty is the container's own.
    all: String,
    /// v1: by controller.
    by_controller: BTreeMap<String, String>,
}

impl SubCgroup {
    /// runc's form: `path`, or `controller[,controller…]:path`; several, a line each.
    pub(crate) fn parse(text: &str) -> Result<SubCgroup> {
        let mut out = SubCgroup::default();
        for line in text.lines().filter(|l| !l.is_empty()) {
            match line.split_once(':') {
                None => out.all = below(line)?,
                Some((controllers, path)) => {
                    for controller in controllers.split(',') {
                        out.by_controller.insert(controller.to_owned(), below(path)?);
                    }
                }
            }
        }
        Ok(out)
    }

    /// The path on a v2 host, where controllers share one tree.
    pub(super) fn unified(&self) -> Result<&str> {
        if self.by_controller.is_empty() {
            return Ok(&self.all);
        }
        Err(Error::config("--cgroup", "cgroup v2 has one tree: give a path without controllers"))
    }

    pub(super) fn of(&self, controllers: &[String]) -> &str {
        let named = controllers.iter().find_map(|c| self.by_controller.get(c));
        named.unwrap_or(&self.all)
    }

    /// A controller that is named and is in none of these.
    pub(super) fn unknown<'a>(&'a self, known: &[&[String]]) -> Option<&'a str> {
        let named = self.by_controller.keys().map(String::as_str);
        let is_known = |name: &str| known.iter().any(|list| list.iter().any(|c| c == name));
        named.into_iter().find(|name| !is_known(name))
    }
}

fn below(path: &str) -> Result<String> {
    let path = path.trim_start_matches('/');
    if path.split('/').any(|p| p == "..") {
        return Err(Error::config("--cgroup", "leads out of the container's cgroup"));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_for_all_and_for_controllers() {
        let s = SubCgroup::parse("/a/b\ncpu,memory:c").unwrap();
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(s.of(&list(&["pids"])), "a/b");
        assert_eq!(s.of(&list(&["cpu", "cpuacct"])), "c");
        assert!(s.unified().is_err());
        assert_eq!(s.unknown(&[&list(&["cpu", "cpuacct"])]), Some("memory"));
        assert_eq!(SubCgroup::parse("x").unwrap().unified().unwrap(), "x");
        assert!(SubCgroup::parse("a/../../b").is_err());
        assert_eq!(SubCgroup::parse("").unwrap(), SubCgroup::default());
    }
}

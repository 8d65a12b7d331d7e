//! Edges between crates, against the list of those that were decided on.

use crate::config::Config;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The graph of normal dependencies by package id, and the packages' names without our prefix.
struct Graph {
    names: BTreeMap<String, String>,
    uses: BTreeMap<String, Vec<String>>,
    ours: BTreeSet<String>,
}

pub(crate) fn check(config: &Config, metadata: &Value) -> Result<Vec<String>> {
    let graph = Graph::read(metadata)?;
    let mut complaints = Vec::new();
    for id in &graph.ours {
        let name = graph.name(id);
        let Some(allowed) = config.edges.get(name) else {
            complaints.push(format!("tidy.toml: crate {name} is not listed under [edges]"));
            continue;
        };
        for used in graph.uses(id).iter().filter(|used| graph.ours.contains(*used)) {
            if !allowed.contains(graph.name(used)) {
                complaints
                    .push(format!("edge: {name} uses {}, which is not listed", graph.name(used)));
            }
        }
    }
    for ban in &config.ban {
        for start in graph.ours.iter().filter(|id| ban.crates.iter().any(|c| c == graph.name(id))) {
            for path in graph.paths_to(start, &ban.reach) {
                let path = path.join(" → ");
                complaints.push(format!("edge: {path} is banned: {}", ban.reason));
            }
        }
    }
    Ok(complaints)
}

impl Graph {
    fn read(metadata: &Value) -> Result<Self> {
        let list = |value: &Value, key: &str| -> Result<Vec<Value>> {
            let found = value.get(key).and_then(Value::as_array);
            Ok(found.with_context(|| format!("cargo metadata has no {key}"))?.clone())
        };
        let text = |value: &Value, key: &str| -> Result<String> {
            let found = value.get(key).and_then(Value::as_str);
            Ok(found.with_context(|| format!("cargo metadata has no {key}"))?.to_owned())
        };
        let mut names = BTreeMap::new();
        for package in list(metadata, "packages")? {
            let name = text(&package, "name")?;
            let short = name.strip_prefix("gantry-").unwrap_or(&name).to_owned();
            names.insert(text(&package, "id")?, short);
        }
        let ours = list(metadata, "workspace_members")?
            .iter()
            .filter_map(|id| id.as_str().map(str::to_owned))
            .collect();
        let mut uses = BTreeMap::new();
        let resolve = metadata.get("resolve").context("cargo metadata has no resolve")?;
        for node in list(resolve, "nodes")? {
            let mut used = Vec::new();
            for dependency in list(&node, "deps")? {
                // "kind" is null for normal ones, else "dev" or "build".
                let kinds = list(&dependency, "dep_kinds")?;
                if kinds.iter().any(|kind| kind.get("kind").is_some_and(Value::is_null)) {
                    used.push(text(&dependency, "pkg")?);
                }
            }
            uses.insert(text(&node, "id")?, used);
        }
        Ok(Self { names, uses, ours })
    }

    fn name(&self, id: &str) -> &str {
        self.names.get(id).map_or("?", String::as_str)
    }

    fn uses(&self, id: &str) -> &[String] {
        self.uses.get(id).map_or(&[], Vec::as_slice)
    }

    /// A shortest way to each of the banned packages that can be reached.
    fn paths_to(&self, start: &str, banned: &[String]) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::from([start.to_owned()]);
        let mut queue = std::collections::VecDeque::from([vec![start.to_owned()]]);
        while let Some(path) = queue.pop_front() {
            let Some(last) = path.last() else { continue };
            for next in self.uses(last) {
                if !seen.insert(next.clone()) {
                    continue;
                }
                let mut longer = path.clone();
                longer.push(next.clone());
                if banned.iter().any(|name| name == self.name(next)) {
                    found.push(longer.iter().map(|id| self.name(id).to_owned()).collect());
                } else {
                    queue.push_back(longer);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn metadata(runtime_kind: Value) -> Value {
        let package = |name: &str| json!({ "id": name, "name": name });
        let dependency =
            |name: &str, kind: &Value| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        json!({
            "packages": (["gantry-runtime", "gantry-sys", "mid", "tokio"].map(package)),
            "workspace_members": ["gantry-runtime", "gantry-sys"],
            "resolve": { "nodes": [
                { "id": "gantry-runtime", "deps": [dependency("gantry-sys", &Value::Null), dependency("mid", &runtime_kind)] },
                { "id": "gantry-sys", "deps": [] },
                { "id": "mid", "deps": [dependency("tokio", &Value::Null)] },
                { "id": "tokio", "deps": [] },
            ]},
        })
    }

    fn config(edges: &str) -> Config {
        toml::from_str(&format!(
            "edges = {{ {edges} }}
limits = {{ file_lines = 1, function_lines = 1, binary_bytes = 1 }}
exempt = {{ tables = [] }}
ratchet = {{ files = {{}}, functions = {{}} }}
[[ban]]
crates = ['runtime']
reach = ['tokio']
reason = 'small'"
        ))
        .unwrap()
    }

    #[test]
    fn a_ban_holds_through_others_but_not_for_tests() {
        let config = config("runtime = ['sys'], sys = []");
        let found = check(&config, &metadata(Value::Null)).unwrap();
        assert_eq!(found, ["edge: runtime → mid → tokio is banned: small"]);
        assert!(check(&config, &metadata(json!("dev"))).unwrap().is_empty());
    }

    #[test]
    fn an_unlisted_edge_and_an_unlisted_crate_are_found() {
        let found = check(&config("runtime = []"), &metadata(json!("dev"))).unwrap();
        assert!(found[0].starts_with("edge: runtime uses sys"), "{found:?}");
        assert!(found[1].contains("sys is not listed"), "{found:?}");
    }
}

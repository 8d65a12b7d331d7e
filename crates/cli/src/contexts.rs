//! Docker contexts: named engines under the configuration directory.
//!
//! Layout: `contexts/meta/SHA256(NAME)/meta.json`, `contexts/tls/SHA256(NAME)/docker/{ca,cert,key}.pem`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

/// The name of what `DOCKER_HOST` or the default socket means.
pub(crate) const DEFAULT: &str = "default";

/// One context as its `meta.json` has it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Meta {
    pub(crate) name: String,
    pub(crate) metadata: serde_json::Map<String, Value>,
    pub(crate) endpoints: std::collections::BTreeMap<String, Endpoint>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Endpoint {
    #[serde(rename = "Host", skip_serializing_if = "String::is_empty")]
    pub(crate) host: String,
    #[serde(rename = "SkipTLSVerify")]
    pub(crate) skip_tls_verify: bool,
}

impl Meta {
    pub(crate) fn description(&self) -> &str {
        self.metadata.get("Description").and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn docker(&self) -> Endpoint {
        self.endpoints.get("docker").cloned().unwrap_or_default()
    }
}

/// The contexts of a configuration directory.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

fn id(name: &str) -> String {
    types::Digest::sha256(name.as_bytes()).hex().to_owned()
}

/// Letters, digits and `+.-_`, beginning with a letter or digit.
pub(crate) fn valid_name(name: &str) -> bool {
    name.len() > 1
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "+.-_".contains(c))
}

impl Store {
    pub(crate) fn new(config_dir: &Path) -> Store {
        Store { root: config_dir.join("contexts") }
    }

    pub(crate) fn meta_dir(&self, name: &str) -> PathBuf {
        self.root.join("meta").join(id(name))
    }

    pub(crate) fn tls_dir(&self, name: &str) -> PathBuf {
        self.root.join("tls").join(id(name))
    }

    pub(crate) fn get(&self, name: &str) -> Result<Meta> {
        let path = self.meta_dir(name).join("meta.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::Invalid(format!(
                    "context {name:?}: context not found: open {}: no such file or directory",
                    path.display()
                )));
            }
            Err(e) => return Err(Error::file("read", &path)(e)),
        };
        serde_json::from_slice(&text)
            .map_err(|e| Error::Invalid(format!("cannot read {}: {e}", path.display())))
    }

    pub(crate) fn list(&self) -> Result<Vec<Meta>> {
        let dir = self.root.join("meta");
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::file("read", &dir)(e)),
        };
        let mut metas = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::file("read", &dir))?.path().join("meta.json");
            let Ok(text) = std::fs::read(&path) else { continue };
            let meta: Meta = serde_json::from_slice(&text)
                .map_err(|e| Error::Invalid(format!("cannot read {}: {e}", path.display())))?;
            metas.push(meta);
        }
        metas.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(metas)
    }

    pub(crate) fn put(&self, meta: &Meta) -> Result<()> {
        let dir = self.meta_dir(&meta.name);
        std::fs::create_dir_all(&dir).map_err(Error::file("create directory", &dir))?;
        let path = dir.join("meta.json");
        let temporary = dir.join("meta.json.tmp");
        let text = serde_json::json!(meta).to_string();
        std::fs::write(&temporary, text).map_err(Error::file("write", &temporary))?;
        std::fs::rename(&temporary, &path).map_err(Error::file("write", &path))
    }

    /// Copies PEM files into a context.
    pub(crate) fn put_tls(&self, name: &str, files: &[(&str, PathBuf)]) -> Result<()> {
        let dir = self.tls_dir(name).join("docker");
        for (as_name, from) in files {
            std::fs::create_dir_all(&dir).map_err(Error::file("create directory", &dir))?;
            std::fs::copy(from, dir.join(as_name)).map_err(Error::file("copy", from))?;
        }
        Ok(())
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        for dir in [self.meta_dir(name), self.tls_dir(name)] {
            match std::fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::file("remove", &dir)(e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The PEM files that a context has.
    pub(crate) fn tls_files(&self, name: &str) -> client::TlsFiles {
        let dir = self.tls_dir(name).join("docker");
        let file = |name: &str| Some(dir.join(name)).filter(|path| path.exists());
        client::TlsFiles { ca: file("ca.pem"), cert: file("cert.pem"), key: file("key.pem") }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stored_where_docker_looks() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let mut meta = Meta { name: "one".into(), ..Meta::default() };
        meta.endpoints
            .insert("docker".into(), Endpoint { host: "tcp://h:1".into(), skip_tls_verify: false });
        store.put(&meta).unwrap();
        // sha256("one")
        let hash = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
        assert!(dir.path().join("contexts/meta").join(hash).join("meta.json").exists());
        assert_eq!(store.get("one").unwrap().docker().host, "tcp://h:1");
        assert_eq!(store.list().unwrap().len(), 1);
        store.remove("one").unwrap();
        assert!(store.get("one").is_err());
        assert!(valid_name("a-b") && !valid_name("-a") && !valid_name("a/b") && !valid_name("a"));
    }
}

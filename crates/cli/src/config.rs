//! `config.json` of docker's client, and credentials.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use api_types::{AuthConfig, Map};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::error::{Error, Result};

/// The key of Docker Hub among credentials.
pub(crate) const HUB: &str = "https://index.docker.io/v1/";
/// A configuration file may not be larger.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The configuration directory and what its `config.json` says. Keys that are not ours are kept.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) dir: PathBuf,
    json: serde_json::Map<String, Value>,
}

/// `~/.docker`; without a home, under `/`.
pub(crate) fn default_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("DOCKER_CONFIG").filter(|d| !d.is_empty()) {
        return dir.into();
    }
    Path::new(&home()).join(".docker")
}

fn home() -> std::ffi::OsString {
    std::env::var_os("HOME").filter(|h| !h.is_empty()).unwrap_or_else(|| "/".into())
}

impl Config {
    /// Reads `dir/config.json`. A file that cannot be read is a warning, as docker has it.
    pub(crate) fn load(dir: PathBuf) -> (Config, Option<String>) {
        let path = dir.join("config.json");
        let mut config = Config { dir, json: serde_json::Map::new() };
        let text = match std::fs::metadata(&path) {
            Ok(meta) if meta.len() <= MAX_CONFIG_BYTES => std::fs::read(&path),
            Ok(_) => Err(std::io::Error::other("the file is too large")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return (config, None),
            Err(e) => Err(e),
        };
        let warning = match text
            .map(|t| serde_json::from_slice::<serde_json::Map<String, Value>>(&t))
        {
            Ok(Ok(json)) => {
                config.json = json;
                None
            }
            Ok(Err(e)) => {
                Some(format!("WARNING: Error loading config file: {}: {e}", path.display()))
            }
            Err(e) => Some(format!("WARNING: Error loading config file: {}: {e}", path.display())),
        };
        (config, warning)
    }

    /// Writes the file anew, readable by its owner only.
    pub(crate) fn save(&self) -> Result<()> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(Error::file("create directory", &self.dir))?;
        // Through a link, so that a configuration kept elsewhere stays there.
        let path = self.dir.join("config.json");
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        let temporary = path.with_file_name(format!("config.json.{}", std::process::id()));
        let text = serde_json::to_string_pretty(&self.json)
            .expect("a JSON map always serialises")
            .replace("\n  ", "\n\t");
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)
        };
        write().map_err(|e| {
            // The first error counts; a left-over is harmless.
            drop(std::fs::remove_file(&temporary));
            Error::file("write", &path)(e)
        })
    }

    pub(crate) fn text(&self, key: &str) -> &str {
        self.json.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn set_text(&mut self, key: &str, value: &str) {
        if value.is_empty() {
            self.json.shift_remove(key);
        } else {
            self.json.insert(key.to_owned(), value.into());
        }
    }

    pub(crate) fn strings(&self, key: &str) -> Vec<String> {
        let list = self.json.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    pub(crate) fn string_map(&self, key: &str) -> Map<String> {
        let map = self.json.get(key).and_then(Value::as_object);
        map.into_iter()
            .flatten()
            .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
            .collect()
    }

    /// Proxy variables for containers, `NAME=value`, both cases, for this host or `default`.
    pub(crate) fn proxies(&self, host: &str, overridden: &dyn Fn(&str) -> bool) -> Vec<String> {
        const NAMES: [(&str, &str); 5] = [
            ("httpProxy", "HTTP_PROXY"),
            ("httpsProxy", "HTTPS_PROXY"),
            ("noProxy", "NO_PROXY"),
            ("ftpProxy", "FTP_PROXY"),
            ("allProxy", "ALL_PROXY"),
        ];
        let all = self.json.get("proxies");
        let Some(proxy) = all.and_then(|p| p.get(host).or_else(|| p.get("default"))) else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for (key, name) in NAMES {
            let Some(value) = proxy.get(key).and_then(Value::as_str).filter(|v| !v.is_empty())
            else {
                continue;
            };
            for name in [name.to_owned(), name.to_ascii_lowercase()] {
                if !overridden(&name) {
                    out.push(format!("{name}={value}"));
                }
            }
        }
        out
    }

    fn helper_for(&self, server: &str) -> Option<String> {
        let helpers = self.string_map("credHelpers");
        let helper =
            helpers.get(server).cloned().or_else(|| Some(self.text("credsStore").to_owned()));
        helper.filter(|h| !h.is_empty())
    }

    /// The credentials of a server; empty ones if there are none.
    pub(crate) fn credentials(&self, server: &str) -> Result<AuthConfig> {
        if let Some(helper) = self.helper_for(server) {
            return helper_get(&helper, server);
        }
        let env = std::env::var("DOCKER_AUTH_CONFIG").unwrap_or_default();
        if let Ok(json) = serde_json::from_str::<Value>(&env)
            && let Some(auth) = json.get("auths").and_then(|a| stored(a, server))
        {
            return Ok(auth);
        }
        Ok(self.json.get("auths").and_then(|auths| stored(auths, server)).unwrap_or_default())
    }

    /// All credentials, by server, for a build.
    pub(crate) fn all_credentials(&self) -> Result<Map<AuthConfig>> {
        let mut out = Map::new();
        let auths = self.json.get("auths").and_then(Value::as_object);
        let mut servers: Vec<String> =
            auths.into_iter().flatten().map(|(k, _)| k.clone()).collect();
        servers.extend(self.string_map("credHelpers").into_keys());
        let store = self.text("credsStore");
        if !store.is_empty() {
            let list = helper(store, "list", "")?;
            let list: HashMap<String, String> = serde_json::from_slice(&list).map_err(|e| {
                Error::Invalid(format!(
                    "cannot read the list of the credential helper {store}: {e}"
                ))
            })?;
            servers.extend(list.into_keys());
        }
        servers.sort();
        servers.dedup();
        for server in servers {
            let auth = self.credentials(&server)?;
            out.insert(server, auth);
        }
        Ok(out)
    }

    /// Keeps credentials, in the helper if there is one. Tells whether they lie in the file.
    pub(crate) fn store_credentials(&mut self, auth: &AuthConfig) -> Result<bool> {
        let server = auth.server_address.clone();
        if let Some(name) = self.helper_for(&server) {
            let (user, secret) = match auth.identity_token.as_str() {
                "" => (auth.username.as_str(), auth.password.as_str()),
                token => ("<token>", token),
            };
            let json = serde_json::json!({"ServerURL": server, "Username": user, "Secret": secret});
            helper(&name, "store", &json.to_string())?;
            self.auths().insert(server, serde_json::json!({}));
            self.save()?;
            return Ok(false);
        }
        let mut entry = serde_json::Map::new();
        if !auth.username.is_empty() || !auth.password.is_empty() {
            let both = format!("{}:{}", auth.username, auth.password);
            entry.insert("auth".to_owned(), STANDARD.encode(both).into());
        }
        if !auth.identity_token.is_empty() {
            entry.insert("identitytoken".to_owned(), auth.identity_token.clone().into());
        }
        self.auths().insert(server, Value::Object(entry));
        self.save()?;
        Ok(true)
    }

    /// Forgets credentials; tells whether there were any.
    pub(crate) fn erase_credentials(&mut self, server: &str) -> Result<bool> {
        let known = self.auths().shift_remove(server).is_some();
        if let Some(name) = self.helper_for(server) {
            helper(&name, "erase", server)?;
        }
        if known {
            self.save()?;
        }
        Ok(known)
    }

    fn auths(&mut self) -> &mut serde_json::Map<String, Value> {
        let slot =
            self.json.entry("auths").or_insert_with(|| Value::Object(serde_json::Map::new()));
        if !slot.is_object() {
            *slot = Value::Object(serde_json::Map::new());
        }
        slot.as_object_mut().expect("made an object one line above")
    }
}

/// `https://host/v1/` and `host` are the same registry.
fn host_of(server: &str) -> &str {
    let bare = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://"));
    bare.unwrap_or(server).split('/').next().unwrap_or_default()
}

fn stored(auths: &Value, server: &str) -> Option<AuthConfig> {
    let auths = auths.as_object()?;
    let entry = auths.get(server).or_else(|| {
        auths.iter().find(|(key, _)| host_of(key) == host_of(server)).map(|(_, v)| v)
    })?;
    let mut auth: AuthConfig = serde_json::from_value(entry.clone()).ok()?;
    if !auth.auth.is_empty() {
        let both = STANDARD.decode(&auth.auth).ok()?;
        let both = String::from_utf8(both).ok()?;
        let (user, password) = both.split_once(':')?;
        auth.username = user.to_owned();
        auth.password = password.trim_end_matches('\0').to_owned();
        auth.auth.clear();
    }
    auth.server_address = server.to_owned();
    Some(auth)
}

fn helper_get(name: &str, server: &str) -> Result<AuthConfig> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Got {
        username: String,
        secret: String,
    }
    let out = match helper(name, "get", server) {
        Ok(out) => out,
        Err(Error::Invalid(text)) if text.contains("credentials not found") => {
            return Ok(AuthConfig::default());
        }
        Err(e) => return Err(e),
    };
    let got: Got = serde_json::from_slice(&out).map_err(|e| {
        Error::Invalid(format!("cannot read the answer of the credential helper {name}: {e}"))
    })?;
    let mut auth = AuthConfig { server_address: server.to_owned(), ..AuthConfig::default() };
    if got.username == "<token>" {
        auth.identity_token = got.secret;
    } else {
        auth.username = got.username;
        auth.password = got.secret;
    }
    Ok(auth)
}

/// Runs `docker-credential-NAME ACTION` with `input` on its stdin.
fn helper(name: &str, action: &'static str, input: &str) -> Result<Vec<u8>> {
    let program = format!("docker-credential-{name}");
    let failed = |e: std::io::Error| {
        Error::Invalid(format!("error getting credentials - err: {program} {action}: {e}"))
    };
    let mut child = Command::new(&program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => return Err(failed(e)),
            _ => {}
        }
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        return Err(Error::Invalid(format!(
            "error getting credentials - err: {}, out: `{text}`",
            output.status
        )));
    }
    Ok(output.stdout)
}

/// The key under which a registry's credentials are kept.
pub(crate) fn server_key(domain: &str) -> String {
    match domain {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => HUB.to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn credentials_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(
            &path,
            r#"{"psFormat":"x","auths":{"https://reg.example/v1/":{"auth":"dTpwOnc="}}}"#,
        )
        .unwrap();
        let (mut config, warning) = Config::load(dir.path().into());
        assert!(warning.is_none());
        let auth = config.credentials("reg.example").unwrap();
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("u", "p:w"));
        let new = AuthConfig {
            username: "a".into(),
            password: "b".into(),
            server_address: "other:5000".into(),
            ..Default::default()
        };
        assert!(config.store_credentials(&new).unwrap());
        let (mut config, _) = Config::load(dir.path().into());
        assert_eq!(config.credentials("other:5000").unwrap().password, "b");
        assert_eq!(config.text("psFormat"), "x");
        assert!(config.erase_credentials("other:5000").unwrap());
        assert!(!config.erase_credentials("other:5000").unwrap());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn proxies() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("config.json"),
            r#"{"proxies":{"default":{"httpProxy":"http://p"}}}"#,
        )
        .unwrap();
        let (config, _) = Config::load(dir.path().into());
        assert_eq!(config.proxies("unix:///x", &|n| n == "http_proxy"), ["HTTP_PROXY=http://p"]);
    }
}

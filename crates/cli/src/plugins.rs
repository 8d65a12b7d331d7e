//! Plugins of docker's command line: programs named `docker-NAME` that add a command.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::Config;
use crate::ctx::Ctx;
use crate::error::{Error, Result};

/// A plugin that answers as one.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) description: String,
    pub(crate) vendor: String,
    pub(crate) version: String,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct Metadata {
    #[serde(rename = "SchemaVersion")]
    schema_version: String,
    #[serde(rename = "Vendor")]
    vendor: String,
    #[serde(rename = "Version")]
    version: String,
    #[serde(rename = "ShortDescription")]
    short_description: String,
    #[serde(rename = "Hidden")]
    hidden: bool,
}

/// Where plugins are looked for, the most important first.
fn directories(config: &Config) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> =
        config.strings("cliPluginsExtraDirs").into_iter().map(PathBuf::from).collect();
    dirs.insert(0, config.dir.join("cli-plugins"));
    for dir in [
        "/usr/local/lib/docker/cli-plugins",
        "/usr/local/libexec/docker/cli-plugins",
        "/usr/lib/docker/cli-plugins",
        "/usr/libexec/docker/cli-plugins",
    ] {
        dirs.push(dir.into());
    }
    dirs
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Letters and digits, beginning with a letter.
fn valid_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
}

/// The program of a plugin.
pub(crate) fn find(config: &Config, name: &str) -> Option<PathBuf> {
    if !valid_name(name) {
        return None;
    }
    let program = format!("docker-{name}");
    directories(config).into_iter().map(|dir| dir.join(&program)).find(|path| is_executable(path))
}

/// All plugins that answer, by name.
pub(crate) fn list(config: &Config) -> Vec<Plugin> {
    let mut found: std::collections::BTreeMap<String, PathBuf> = std::collections::BTreeMap::new();
    for dir in directories(config) {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let Some(name) = file.strip_prefix("docker-").filter(|n| valid_name(n)) else {
                continue;
            };
            if is_executable(&entry.path()) {
                found.entry(name.to_owned()).or_insert_with(|| entry.path());
            }
        }
    }
    found.into_iter().filter_map(|(name, path)| describe(name, path)).collect()
}

fn describe(name: String, path: PathBuf) -> Option<Plugin> {
    let output = Command::new(&path).arg("docker-cli-plugin-metadata").output().ok()?;
    let meta: Metadata = serde_json::from_slice(&output.stdout).ok()?;
    let ours = meta.schema_version.starts_with("0.") && !meta.vendor.is_empty() && !meta.hidden;
    ours.then_some(Plugin {
        name,
        path,
        description: meta.short_description,
        vendor: meta.vendor,
        version: meta.version,
    })
}

/// Becomes the plugin. It parses the global flags again by itself; a default engine that is not
/// docker's is told by `DOCKER_HOST`.
pub(crate) fn execute(ctx: &Ctx, argv0: &str, path: &Path, words: &[String]) -> Result<()> {
    let mut command = Command::new(path);
    command.args(words);
    let original = std::env::current_exe().map_or_else(|_| argv0.into(), PathBuf::into_os_string);
    command.env("DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND", original);
    let target = ctx.target()?;
    if target.implied && target.host != "unix:///var/run/docker.sock" {
        command.env("DOCKER_HOST", &target.host);
        // Starts the daemon if that is wanted.
        ctx.client()?;
    }
    let source = command.exec();
    Err(Error::File { op: "execute", path: path.display().to_string(), source })
}

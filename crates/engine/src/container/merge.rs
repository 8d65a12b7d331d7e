//! How an image's defaults and a client's wishes become one configuration
//! (moby `daemon/commit.go` `merge`).

use api_types::{Config, Empty, HealthConfig, ImageConfig, StrSlice};

use crate::{Error, Result};

/// `PATH` where neither image nor client set one (moby `oci.DefaultPathEnv`).
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Fills what the client left open from the image.
pub(crate) fn merge(config: &mut Config, image: &ImageConfig) {
    if config.user.is_empty() {
        config.user.clone_from(&image.user);
    }
    for port in image.exposed_ports.keys() {
        config.exposed_ports.entry(port.clone()).or_insert(Empty {});
    }
    merge_env(&mut config.env, &image.env);
    for (key, value) in &image.labels {
        config.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    merge_command(config, image);
    merge_health(config, image.healthcheck.as_ref());
    if config.working_dir.is_empty() {
        config.working_dir.clone_from(&image.working_dir);
    }
    for volume in image.volumes.keys() {
        config.volumes.entry(volume.clone()).or_insert(Empty {});
    }
    if config.stop_signal.is_empty() {
        config.stop_signal.clone_from(&image.stop_signal);
    }
    if config.shell.is_none() {
        config.shell.clone_from(&image.shell);
    }
    if config.on_build.is_empty() {
        config.on_build.clone_from(&image.on_build);
    }
}

/// The image's variables follow the client's; one that the client names anew is left out, and a name alone
/// removes it.
fn merge_env(env: &mut Vec<String>, image: &[String]) {
    let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_string();
    let own: Vec<String> = env.iter().map(|entry| key(entry)).collect();
    env.retain(|entry| entry.contains('='));
    env.extend(image.iter().filter(|entry| !own.contains(&key(entry))).cloned());
}

fn merge_command(config: &mut Config, image: &ImageConfig) {
    let given = |list: &Option<StrSlice>| list.as_ref().is_some_and(|list| !list.0.is_empty());
    if !given(&config.entrypoint) {
        let cleared = config.entrypoint.is_some();
        if !given(&config.cmd) {
            config.cmd.clone_from(&image.cmd);
            config.args_escaped = image.args_escaped;
        }
        if !cleared {
            config.entrypoint.clone_from(&image.entrypoint);
        }
    }
    // `--entrypoint ""` arrives as one empty word and means none.
    if config.entrypoint.as_ref().is_some_and(|list| list.0.len() == 1 && list.0[0].is_empty()) {
        config.entrypoint = None;
    }
}

fn merge_health(config: &mut Config, image: Option<&HealthConfig>) {
    let Some(image) = image else { return };
    let Some(own) = &mut config.healthcheck else {
        config.healthcheck = Some(image.clone());
        return;
    };
    if own.test.is_empty() {
        own.test.clone_from(&image.test);
    }
    for (own, image) in [
        (&mut own.interval, image.interval),
        (&mut own.timeout, image.timeout),
        (&mut own.start_period, image.start_period),
        (&mut own.start_interval, image.start_interval),
        (&mut own.retries, image.retries),
    ] {
        if *own == 0 {
            *own = image;
        }
    }
}

/// The environment of the process: defaults, then the container's own (moby
/// `container.CreateDaemonEnvironment`).
pub(crate) fn process_env(config: &Config, hostname: &str, links: Vec<String>) -> Vec<String> {
    let mut defaults = vec![DEFAULT_PATH.to_string(), format!("HOSTNAME={hostname}")];
    if config.tty {
        defaults.push("TERM=xterm".into());
    }
    defaults.extend(links);
    merge_env_over(defaults, &config.env)
}

/// `over` replaces variables of `base` in place and adds the rest.
pub(crate) fn merge_env_over(mut base: Vec<String>, over: &[String]) -> Vec<String> {
    for entry in over {
        let Some((key, _)) = entry.split_once('=') else {
            base.retain(|have| have.split('=').next() != Some(entry));
            continue;
        };
        match base.iter_mut().find(|have| have.split('=').next() == Some(key)) {
            Some(have) => have.clone_from(entry),
            None => base.push(entry.clone()),
        }
    }
    base
}

/// What docker refuses in a configuration before anything is made.
pub(crate) fn validate(config: &Config) -> Result<()> {
    for entry in &config.env {
        if entry.is_empty() || entry.starts_with('=') {
            return Err(Error::invalid(format!("invalid environment variable: {entry}")));
        }
    }
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(Error::invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        )));
    }
    if !config.stop_signal.is_empty() {
        super::signal::parse(&config.stop_signal)?;
    }
    if config.hostname.len() > 63
        || config.hostname.bytes().any(|b| !b.is_ascii_alphanumeric() && !b"-._".contains(&b))
    {
        return Err(Error::invalid(format!("invalid hostname format: {}", config.hostname)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(list: &[&str]) -> Option<StrSlice> {
        Some(StrSlice(list.iter().map(|w| (*w).to_string()).collect()))
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: words(&["/entry"]),
            cmd: words(&["serve"]),
            env: vec!["A=1".into(), "B=2".into()],
            ..ImageConfig::default()
        }
    }

    #[test]
    fn entrypoint_of_the_client_drops_the_images_command() {
        let mut config = Config { entrypoint: words(&["sh"]), ..Config::default() };
        merge(&mut config, &image());
        assert_eq!(config.entrypoint, words(&["sh"]));
        assert_eq!(config.cmd, None);
    }

    #[test]
    fn command_of_the_client_keeps_the_images_entrypoint() {
        let mut config = Config { cmd: words(&["x"]), ..Config::default() };
        merge(&mut config, &image());
        assert_eq!(config.entrypoint, words(&["/entry"]));
        assert_eq!(config.cmd, words(&["x"]));
    }

    #[test]
    fn one_empty_word_clears_the_entrypoint() {
        let mut config =
            Config { entrypoint: words(&[""]), cmd: words(&["ls"]), ..Config::default() };
        merge(&mut config, &image());
        assert_eq!(config.entrypoint, None);
        assert_eq!(config.cmd, words(&["ls"]));
    }

    #[test]
    fn variables_merge_by_name() {
        let mut config = Config { env: vec!["B=9".into(), "C=3".into()], ..Config::default() };
        merge(&mut config, &image());
        assert_eq!(config.env, ["B=9", "C=3", "A=1"]);
        let mut config = Config { env: vec!["A".into()], ..Config::default() };
        merge(&mut config, &image());
        assert_eq!(config.env, ["B=2"]);
    }
}

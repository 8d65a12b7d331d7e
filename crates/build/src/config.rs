//! The image configuration that a stage builds up. Fields that this crate does not know stay as the
//! base image has them.

use dockerfile::{Command, HealthTimes, Healthcheck};
use serde_json::{Map, Value, json};
use types::{Digest, Platform};

use crate::error::{Error, Result};

/// What a container has when its image sets no PATH.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An OCI image configuration as a JSON object, whose `config` is always an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ImageConfig {
    image: Map<String, Value>,
}

impl ImageConfig {
    /// `FROM scratch`.
    pub(crate) fn scratch(platform: &Platform) -> Self {
        let mut image = Map::new();
        image.insert("architecture".into(), platform.architecture.clone().into());
        image.insert("os".into(), platform.os.clone().into());
        if !platform.variant.is_empty() {
            image.insert("variant".into(), platform.variant.clone().into());
        }
        let mut config = Self { image };
        config.normalise();
        config.set("Env", json!([format!("PATH={DEFAULT_PATH}")]));
        config
    }

    /// # Errors
    /// [`Error::Json`] for anything that is not an object.
    pub(crate) fn parse(bytes: &[u8], name: &str) -> Result<Self> {
        let image = serde_json::from_slice(bytes)
            .map_err(|source| Error::Json(format!("image configuration of {name}"), source))?;
        let mut config = Self { image };
        config.normalise();
        Ok(config)
    }

    /// Images with `"config": null` and the like are seen as empty.
    fn normalise(&mut self) {
        for key in ["config", "rootfs"] {
            if !self.image.get(key).is_some_and(Value::is_object) {
                self.image.insert(key.into(), json!({}));
            }
        }
        if !self.image.get("history").is_some_and(Value::is_array) {
            self.image.insert("history".into(), json!([]));
        }
    }

    fn config(&self) -> Option<&Map<String, Value>> {
        self.image.get("config").and_then(Value::as_object)
    }

    fn config_mut(&mut self) -> Option<&mut Map<String, Value>> {
        self.image.get_mut("config").and_then(Value::as_object_mut)
    }

    pub(crate) fn set(&mut self, key: &str, value: Value) {
        if let Some(config) = self.config_mut() {
            config.insert(key.into(), value);
        }
    }

    pub(crate) fn remove(&mut self, key: &str) {
        if let Some(config) = self.config_mut() {
            config.remove(key);
        }
    }

    fn text(&self, key: &str) -> &str {
        self.config().and_then(|config| config.get(key)).and_then(Value::as_str).unwrap_or("")
    }

    fn texts(&self, key: &str) -> Vec<String> {
        let values = self.config().and_then(|config| config.get(key)).and_then(Value::as_array);
        let texts = values.into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_string).collect()
    }

    pub(crate) fn user(&self) -> &str {
        self.text("User")
    }

    /// Absolute; `/` where none is set.
    pub(crate) fn working_dir(&self) -> String {
        match self.text("WorkingDir") {
            "" => "/".into(),
            dir => dockerfile::glob::clean(&format!("/{dir}")),
        }
    }

    pub(crate) fn shell(&self) -> Vec<String> {
        let shell = self.texts("Shell");
        if shell.is_empty() { vec!["/bin/sh".into(), "-c".into()] } else { shell }
    }

    pub(crate) fn triggers(&self) -> Vec<String> {
        self.texts("OnBuild")
    }

    /// Name and value, in order.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        let split = |line: String| match line.split_once('=') {
            Some((name, value)) => (name.to_string(), value.to_string()),
            None => (line, String::new()),
        };
        self.texts("Env").into_iter().map(split).collect()
    }

    pub(crate) fn set_env(&mut self, pairs: &[(String, String)]) {
        let mut env = self.env();
        for (name, value) in pairs {
            match env.iter_mut().find(|(present, _)| present == name) {
                Some(entry) => entry.1.clone_from(value),
                None => env.push((name.clone(), value.clone())),
            }
        }
        let lines: Vec<String> =
            env.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        self.set("Env", json!(lines));
    }

    /// Adds keys to an object such as `Labels`, `ExposedPorts` or `Volumes`.
    pub(crate) fn extend(&mut self, key: &str, entries: impl IntoIterator<Item = (String, Value)>) {
        let Some(config) = self.config_mut() else { return };
        let entry = config.entry(key).or_insert_with(|| json!({}));
        if !entry.is_object() {
            *entry = json!({});
        }
        if let Some(object) = entry.as_object_mut() {
            object.extend(entries);
        }
    }

    /// Shell form goes through the stage's shell.
    pub(crate) fn command_line(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(line) => {
                let mut words = self.shell();
                words.push(line.clone());
                words
            }
        }
    }

    pub(crate) fn set_healthcheck(&mut self, check: &Healthcheck) {
        let value = match check {
            Healthcheck::None => json!({ "Test": ["NONE"] }),
            Healthcheck::Command { command, times } => {
                let test = match command {
                    Command::Shell(line) => vec!["CMD-SHELL".to_string(), line.clone()],
                    Command::Exec(words) => {
                        std::iter::once("CMD".to_string()).chain(words.iter().cloned()).collect()
                    }
                };
                let mut value = Map::new();
                value.insert("Test".into(), json!(test));
                let HealthTimes { interval, timeout, start_period, start_interval, retries } =
                    times;
                for (key, number) in [
                    ("Interval", interval),
                    ("Timeout", timeout),
                    ("StartPeriod", start_period),
                    ("StartInterval", start_interval),
                    ("Retries", retries),
                ] {
                    if let Some(number) = number.filter(|number| number != &0) {
                        value.insert(key.into(), json!(number));
                    }
                }
                Value::Object(value)
            }
        };
        self.set("Healthcheck", value);
    }

    pub(crate) fn add_trigger(&mut self, text: &str) {
        let mut triggers = self.triggers();
        triggers.push(text.into());
        self.set("OnBuild", json!(triggers));
    }

    pub(crate) fn set_author(&mut self, author: &str) {
        self.image.insert("author".into(), author.into());
    }

    pub(crate) fn created(&self) -> Option<String> {
        self.image.get("created").and_then(Value::as_str).map(str::to_string)
    }

    /// Adds what `docker history` shows of one instruction.
    pub(crate) fn add_history(&mut self, created: &str, created_by: &str, empty_layer: bool) {
        let mut entry = Map::new();
        entry.insert("created".into(), created.into());
        entry.insert("created_by".into(), created_by.into());
        entry.insert("comment".into(), "gantry.dockerfile.v0".into());
        if empty_layer {
            entry.insert("empty_layer".into(), true.into());
        }
        if let Some(history) = self.image.get_mut("history").and_then(Value::as_array_mut) {
            history.push(Value::Object(entry));
        }
        self.image.insert("created".into(), created.into());
    }

    /// The configuration's JSON with these layers.
    ///
    /// # Errors
    /// [`Error::Json`], which memory running out aside cannot happen.
    pub(crate) fn to_bytes(&self, diff_ids: &[Digest]) -> Result<Vec<u8>> {
        let mut image = self.image.clone();
        image.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
        serde_json::to_vec(&image)
            .map_err(|source| Error::Json("image configuration".into(), source))
    }
}

//! `--change` of import and commit: Dockerfile instructions that alter a configuration.

use dockerfile::{Command, Instruction};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// Applies each line to the `config` object of an image configuration.
pub(super) fn apply(config: &mut Map<String, Value>, lines: &[String]) -> Result<()> {
    for line in lines {
        let located = dockerfile::parse_trigger(line, '\\')
            .map_err(|e| Error::invalid(format!("change {line:?}: {e}")))?;
        let mut expander = dockerfile::expand::Expander::new('\\', &|_| None);
        let instruction = located
            .instruction
            .expand(&mut expander)
            .map_err(|e| Error::invalid(format!("change {line:?}: {e}")))?;
        one(config, instruction, line)?;
    }
    Ok(())
}

fn command(config: &Map<String, Value>, command: Command) -> Value {
    match command {
        Command::Exec(words) => json!(words),
        Command::Shell(line) => {
            let mut words: Vec<Value> = match config.get("Shell").and_then(Value::as_array) {
                Some(shell) if !shell.is_empty() => shell.clone(),
                _ => SHELL.iter().map(|word| json!(word)).collect(),
            };
            words.push(json!(line));
            Value::Array(words)
        }
    }
}

fn one(config: &mut Map<String, Value>, instruction: Instruction, line: &str) -> Result<()> {
    match instruction {
        Instruction::Cmd(text) => {
            let value = command(config, text);
            config.insert("Cmd".into(), value);
        }
        Instruction::Entrypoint(text) => {
            let value = command(config, text);
            config.insert("Entrypoint".into(), value);
        }
        Instruction::Env(pairs) => {
            let mut env: Vec<Value> =
                config.get("Env").and_then(Value::as_array).cloned().unwrap_or_default();
            for (key, value) in pairs {
                let prefix = format!("{key}=");
                env.retain(|have| !have.as_str().is_some_and(|have| have.starts_with(&prefix)));
                env.push(json!(format!("{prefix}{value}")));
            }
            config.insert("Env".into(), Value::Array(env));
        }
        Instruction::Label(pairs) => {
            let entries = pairs.into_iter().map(|(key, value)| (key, json!(value)));
            extend(config, "Labels", entries);
        }
        Instruction::Expose(words) => {
            let ports = dockerfile::exposed_ports(&words)
                .map_err(|e| Error::invalid(format!("change {line:?}: {e}")))?;
            extend(config, "ExposedPorts", ports.into_iter().map(|port| (port, json!({}))));
        }
        Instruction::Volume(paths) => {
            extend(config, "Volumes", paths.into_iter().map(|path| (path, json!({}))));
        }
        Instruction::User(user) => drop(config.insert("User".into(), json!(user))),
        Instruction::Workdir(dir) => {
            let base = config.get("WorkingDir").and_then(Value::as_str).unwrap_or("/");
            let dir = if dir.starts_with('/') {
                dir
            } else {
                format!("{}/{dir}", base.trim_end_matches('/'))
            };
            config.insert("WorkingDir".into(), json!(dir));
        }
        Instruction::Onbuild(trigger) => {
            let mut list: Vec<Value> =
                config.get("OnBuild").and_then(Value::as_array).cloned().unwrap_or_default();
            list.push(json!(trigger));
            config.insert("OnBuild".into(), Value::Array(list));
        }
        Instruction::StopSignal(signal) => drop(config.insert("StopSignal".into(), json!(signal))),
        Instruction::Shell(words) => drop(config.insert("Shell".into(), json!(words))),
        other => {
            return Err(Error::invalid(format!("{} is not a valid change command", other.name())));
        }
    }
    Ok(())
}

fn extend(
    config: &mut Map<String, Value>,
    key: &str,
    entries: impl Iterator<Item = (String, Value)>,
) {
    let value = config.entry(key.to_string()).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    if let Some(object) = value.as_object_mut() {
        object.extend(entries);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_change_the_configuration() {
        let mut config = Map::new();
        let lines = [
            "ENV A=1 B=\"two words\"",
            "CMD [\"sh\", \"-x\"]",
            "ENTRYPOINT run me",
            "EXPOSE 80 53/udp",
            "LABEL k=v",
            "WORKDIR a",
            "WORKDIR b",
            "USER 7",
            "ENV A=2",
        ];
        apply(&mut config, &lines.map(Into::into)).unwrap();
        assert_eq!(config["Env"], json!(["B=two words", "A=2"]));
        assert_eq!(config["Cmd"], json!(["sh", "-x"]));
        assert_eq!(config["Entrypoint"], json!(["/bin/sh", "-c", "run me"]));
        assert_eq!(config["ExposedPorts"], json!({"80/tcp": {}, "53/udp": {}}));
        assert_eq!(config["WorkingDir"], json!("/a/b"));
        assert!(apply(&mut config, &["RUN x".into()]).is_err());
        assert!(apply(&mut config, &["NONSENSE".into()]).is_err());
    }
}

//! Devices of the host in a container: the nodes, and what the device cgroup lets through.

use std::path::Path;

use api_types::HostConfig;
use serde_json::{Value, json};

use crate::{Error, Result};

/// Major, minor and kind (`c` or `b`) of a device on the host.
pub(super) fn device_number(path: &str) -> Result<(u32, u32, char)> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = std::fs::metadata(path).map_err(|e| {
        let why = e.to_string();
        let why = why.split(" (os error").next().unwrap_or_default().to_lowercase();
        Error::invalid(format!(
            "error gathering device information while adding custom device \"{path}\": {why}"
        ))
    })?;
    let kind = if meta.file_type().is_char_device() {
        'c'
    } else if meta.file_type().is_block_device() {
        'b'
    } else {
        return Err(Error::invalid(format!(
            "error gathering device information while adding custom device \"{path}\": not a device node"
        )));
    };
    Ok((rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()), kind))
}

/// Every device node at a path: itself, or those of a directory.
fn host_devices(path: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else { return vec![path.to_string()] };
    let mut list = Vec::new();
    for entry in entries.flatten() {
        let child = entry.path().to_string_lossy().into_owned();
        let name = entry.file_name();
        if ["pts", "shm", "fd", "mqueue", "console", "core"].iter().any(|skip| name == *skip) {
            continue;
        }
        if entry.path().is_dir() {
            list.extend(host_devices(&child));
        } else if device_number(&child).is_ok() {
            list.push(child);
        }
    }
    list
}

/// (host path, path inside, permissions)
fn wanted_devices(host: &HostConfig) -> Vec<(String, String, String)> {
    let mut list = Vec::new();
    if host.privileged {
        let all = host_devices("/dev").into_iter();
        list.extend(all.map(|path| (path.clone(), path, "rwm".to_string())));
    }
    let given = list.len();
    for mapping in &host.resources.devices {
        let inside = if mapping.path_in_container.is_empty() {
            &mapping.path_on_host
        } else {
            &mapping.path_in_container
        };
        let access = if mapping.cgroup_permissions.is_empty() {
            "rwm"
        } else {
            mapping.cgroup_permissions.as_str()
        };
        for path in host_devices(&mapping.path_on_host) {
            let rest = path.strip_prefix(&mapping.path_on_host).unwrap_or_default();
            let inside = format!("{inside}{rest}");
            if !list[..given].iter().any(|(_, have, _)| *have == inside) {
                list.push((path.clone(), inside, access.to_string()));
            }
        }
    }
    list
}

pub(super) fn devices(host: &HostConfig) -> Result<Value> {
    use std::os::unix::fs::MetadataExt;
    let mut list = Vec::new();
    for (path, inside, _) in wanted_devices(host) {
        let (major, minor, kind) = device_number(&path)?;
        let meta =
            std::fs::metadata(&path).map_err(|e| Error::io("look at", Path::new(&path), &e))?;
        list.push(json!({
            "path": inside, "type": kind.to_string(), "major": major, "minor": minor,
            "fileMode": meta.mode() & 0o7777, "uid": meta.uid(), "gid": meta.gid(),
        }));
    }
    Ok(Value::Array(list))
}

/// The device cgroup: nothing but what every container has, and what was asked for.
pub(super) fn device_rules(host: &HostConfig) -> Result<Value> {
    if host.privileged {
        return Ok(json!([{ "allow": true, "access": "rwm" }]));
    }
    let rule = |kind: &str, major: i64, minor: Option<i64>, access: &str| {
        let mut rule = json!({ "allow": true, "type": kind, "access": access });
        if major >= 0 {
            rule["major"] = json!(major);
        }
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rule
    };
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    // moby `oci.DefaultSpec`: null, random, full, tty, zero, urandom, console, ptys, any mknod.
    for (major, minor) in [(1, 5), (1, 3), (1, 9), (1, 8), (1, 7), (5, 0), (5, 1), (5, 2)] {
        rules.push(rule("c", major, Some(minor), "rwm"));
    }
    rules.push(rule("c", 136, None, "rwm"));
    rules.push(rule("c", -1, None, "m"));
    rules.push(rule("b", -1, None, "m"));
    for (path, _, access) in wanted_devices(host) {
        let (major, minor, kind) = device_number(&path)?;
        rules.push(rule(&kind.to_string(), major.into(), Some(minor.into()), &access));
    }
    for text in &host.resources.device_cgroup_rules {
        rules.push(parse_device_rule(text)?);
    }
    Ok(Value::Array(rules))
}

/// `c 42:* rmw`
fn parse_device_rule(text: &str) -> Result<Value> {
    let bad = || Error::invalid(format!("invalid device cgroup rule format: '{text}'"));
    let parts: Vec<&str> = text.split(' ').collect();
    let [kind, numbers, access] = parts.as_slice() else { return Err(bad()) };
    let (major, minor) = numbers.split_once(':').ok_or_else(bad)?;
    if !["a", "b", "c"].contains(kind)
        || access.is_empty()
        || !access.bytes().all(|b| b"rwm".contains(&b))
    {
        return Err(bad());
    }
    let number = |text: &str| -> Result<Value> {
        if text == "*" {
            return Ok(Value::Null);
        }
        text.parse::<i64>().map(Value::from).map_err(|_| bad())
    };
    let mut rule = json!({ "allow": true, "type": kind, "access": access });
    for (key, text) in [("major", major), ("minor", minor)] {
        let value = number(text)?;
        if !value.is_null() {
            rule[key] = value;
        }
    }
    Ok(rule)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn device_rules_parse() {
        assert_eq!(
            parse_device_rule("c 42:* rw").unwrap(),
            json!({"allow": true, "type": "c", "access": "rw", "major": 42})
        );
        for text in ["", "c 1:2", "x 1:2 r", "c 1 r", "c a:b r", "c 1:2 q"] {
            assert!(parse_device_rule(text).is_err(), "{text}");
        }
    }
}

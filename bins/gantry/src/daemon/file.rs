//! daemon.json, and how it and the command line become one set of settings.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::Value as Json;

use super::flags::{FLAGS, Flag, Given, Kind, Support, Value, parse_size};

/// A configuration file is a few keys; more is a mistake.
const FILE_LIMIT_BYTES: u64 = 1 << 20;
/// Objects that stay one value; others are only groups of keys (`proxies`).
const WHOLE: [&str; 6] =
    ["default-network-opts", "log-opts", "runtimes", "default-ulimits", "features", "builder"];

/// What flags and file say together, by the key in daemon.json, or by the flag's name where there
/// is no key.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    values: BTreeMap<&'static str, Value>,
    /// What was accepted although it changes nothing, in words for the log.
    pub(crate) notes: Vec<String>,
}

impl Settings {
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    pub(crate) fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(on) => Some(*on),
            _ => None,
        }
    }

    pub(crate) fn int(&self, key: &str) -> Option<i64> {
        match self.get(key)? {
            Value::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// An empty text is none: so docker means it.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(text) => Some(text.as_str()).filter(|text| !text.is_empty()),
            _ => None,
        }
    }

    pub(crate) fn list(&self, key: &str) -> &[String] {
        match self.get(key) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }

    /// Takes over these keys' values.
    pub(crate) fn take_from(&mut self, other: &Self, keys: &[&'static str]) {
        for key in keys {
            match other.get(key) {
                Some(value) => drop(self.values.insert(key, value.clone())),
                None => drop(self.values.remove(key)),
            }
        }
    }

    /// Keys whose values differ.
    pub(crate) fn changed<'a>(&'a self, other: &'a Self) -> Vec<&'static str> {
        let keys: std::collections::BTreeSet<_> =
            self.values.keys().chain(other.values.keys()).copied().collect();
        keys.into_iter().filter(|key| self.get(key) != other.get(key)).collect()
    }
}

/// Puts the file under the flags, and refuses what is not built.
///
/// # Errors
/// dockerd's words: a file that cannot be read (that it does not exist, only if `required`),
/// unknown keys, keys that the flags set as well; the name of what is not built.
pub(crate) fn settle(given: &Given, path: &Path, required: bool) -> Result<Settings, String> {
    let whole = |error: String| {
        format!("unable to configure the Docker daemon with file {}: {error}", path.display())
    };
    let file = match read(path) {
        Ok(text) => load(&text, given).map_err(whole)?,
        Err(error) if error.kind() == ErrorKind::NotFound && !required => BTreeMap::new(),
        Err(error) => return Err(whole(format!("open {}: {}", path.display(), words(&error)))),
    };
    merge(given, file)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_LIMIT_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_LIMIT_BYTES {
        return Err(std::io::Error::other("the file is longer than 1 MiB"));
    }
    Ok(text)
}

/// An error of the system without its number, as Go writes it.
fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}

/// The file's keys and values.
fn load(text: &str, given: &Given) -> Result<BTreeMap<&'static str, Value>, String> {
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.is_empty() {
        return Ok(BTreeMap::new());
    }
    let top: serde_json::Map<String, Json> =
        serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut flat: BTreeMap<String, Json> = BTreeMap::new();
    for (key, value) in top {
        match value {
            Json::Object(group) if !WHOLE.contains(&key.as_str()) => flat.extend(group),
            value => drop(flat.insert(key, value)),
        }
    }
    let mut unknown = Vec::new();
    let mut found: Vec<(&'static Flag, Json)> = Vec::new();
    for (key, value) in flat {
        match FLAGS.iter().find(|f| f.key == key && !key.is_empty()) {
            Some(flag) => found.push((flag, value)),
            None => unknown.push(key),
        }
    }
    if !unknown.is_empty() {
        return Err(format!(
            "the following directives don't match any configuration option: {}",
            unknown.join(", ")
        ));
    }
    check_conflicts(given, &found)?;
    found.into_iter().map(|(flag, value)| Ok((flag.key, typed(flag, value)?))).collect()
}

fn check_conflicts(given: &Given, file: &[(&'static Flag, Json)]) -> Result<(), String> {
    let conflicts: Vec<String> = file
        .iter()
        // Runtimes of both are taken together.
        .filter(|(flag, _)| flag.key != "runtimes")
        .filter_map(|(flag, value)| {
            let by_flag = go_value(given.get(flag.name)?);
            Some(format!("{}: (from flag: {by_flag}, from file: {})", flag.key, go_json(value)))
        })
        .collect();
    if conflicts.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the following directives are specified both as a flag and in the configuration file: {}",
        conflicts.join(", ")
    ))
}

/// A value of the file in the shape that its key has.
fn typed(flag: &Flag, value: Json) -> Result<Value, String> {
    let wrong = |value: &Json, wanted: &str| {
        let found = match value {
            Json::Null => "null",
            Json::Bool(_) => "bool",
            Json::Number(_) => "number",
            Json::String(_) => "string",
            Json::Array(_) => "array",
            Json::Object(_) => "object",
        };
        format!(
            "json: cannot unmarshal {found} into Go struct field Config.{} of type {wanted}",
            flag.key
        )
    };
    let text = |value: Json, wanted: &str| match value {
        Json::String(text) => Ok(text),
        other => Err(wrong(&other, wanted)),
    };
    match (flag.kind, value) {
        // As absent, for Go.
        (_, Json::Null) => flag_default(flag),
        (Kind::Bool, Json::Bool(on)) => Ok(Value::Bool(on)),
        (Kind::Bool, other) => Err(wrong(&other, "bool")),
        (Kind::Int | Kind::Size, Json::Number(number)) => {
            let wrong = || wrong(&Json::Number(number.clone()), "int");
            Ok(Value::Int(number.as_i64().ok_or_else(wrong)?))
        }
        (Kind::Size, Json::String(text)) => Ok(Value::Int(parse_size(&text)?)),
        (Kind::Int | Kind::Size, other) => Err(wrong(&other, "int")),
        (Kind::Text, value) => Ok(Value::Text(text(value, "string")?)),
        (Kind::List, Json::Array(items)) => {
            let items: Result<_, _> = items.into_iter().map(|v| text(v, "string")).collect();
            Ok(Value::List(items?))
        }
        (Kind::List, other) => Err(wrong(&other, "[]string")),
        (Kind::Map, Json::Object(items)) => {
            let items: Result<_, String> =
                items.into_iter().map(|(k, v)| Ok((k, text(v, "string")?))).collect();
            Ok(Value::Map(items?))
        }
        (Kind::Map, other) => Err(wrong(&other, "map[string]string")),
        (Kind::Custom(_), value) => Ok(Value::Json(value)),
    }
}

fn flag_default(flag: &Flag) -> Result<Value, String> {
    Ok(match flag.kind {
        Kind::Bool => Value::Bool(flag.default == "true"),
        Kind::Int | Kind::Size => Value::Int(flag.default.parse().unwrap_or_default()),
        Kind::Text => Value::Text(flag.default.into()),
        Kind::List => Value::List(Vec::new()),
        Kind::Map => Value::Map(BTreeMap::new()),
        Kind::Custom(_) => Value::Json(Json::Null),
    })
}

fn merge(given: &Given, file: BTreeMap<&'static str, Value>) -> Result<Settings, String> {
    let mut settings = Settings::default();
    for flag in FLAGS {
        let by_flag = given.get(flag.name).filter(|_| !flag.name.is_empty());
        let by_file = file.get(flag.key).filter(|_| !flag.key.is_empty());
        let said = if by_flag.is_some() {
            format!("--{}", flag.name)
        } else {
            format!("the configuration key {:?}", flag.key)
        };
        let value = match (by_flag, by_file) {
            (Some(Value::Json(a)), Some(Value::Json(b))) => Value::Json(both(a, b)),
            (Some(value), _) | (None, Some(value)) => value.clone(),
            (None, None) => continue,
        };
        match flag.support {
            Support::Unbuilt if !flag.is_default(&value) => {
                return Err(format!("{said} is not supported by gantry yet"));
            }
            Support::Only(values) => {
                if let Value::Text(text) = &value
                    && !values.contains(&text.as_str())
                {
                    return Err(format!("{said}: {text:?} is not supported by gantry yet"));
                }
            }
            Support::NoEffect(why) if !flag.is_default(&value) || flag.key == "live-restore" => {
                settings.notes.push(format!("{said} changes nothing: {why}"));
            }
            _ => {}
        }
        let key = if flag.key.is_empty() { flag.name } else { flag.key };
        settings.values.insert(key, value);
    }
    Ok(settings)
}

/// Objects of flags and file taken together.
fn both(flags: &Json, file: &Json) -> Json {
    match (flags, file) {
        (Json::Object(a), Json::Object(b)) => {
            Json::Object(b.iter().chain(a).map(|(k, v)| (k.clone(), v.clone())).collect())
        }
        (flags, _) => flags.clone(),
    }
}

/// As Go's `%v` prints it.
fn go_value(value: &Value) -> String {
    match value {
        Value::Bool(on) => on.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Text(text) => text.clone(),
        Value::List(list) => format!("[{}]", list.join(" ")),
        Value::Map(map) => {
            let pairs: Vec<_> = map.iter().map(|(k, v)| format!("{k}:{v}")).collect();
            format!("map[{}]", pairs.join(" "))
        }
        Value::Json(json) => go_json(json),
    }
}

fn go_json(json: &Json) -> String {
    match json {
        Json::Null => "<nil>".into(),
        Json::String(text) => text.clone(),
        Json::Array(items) => {
            format!("[{}]", items.iter().map(go_json).collect::<Vec<_>>().join(" "))
        }
        Json::Object(map) => {
            let pairs: Vec<_> = map.iter().map(|(k, v)| format!("{k}:{}", go_json(v))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::flags;
    use super::*;

    fn settle_text(words: &[&str], file: &str) -> Result<Settings, String> {
        let given = flags::parse(words.iter().map(|&w| w.to_owned()))?;
        merge(&given, load(file, &given)?)
    }

    #[test]
    fn the_file_counts_where_no_flag_does() {
        let settings = settle_text(
            &["-H", "fd://", "--mtu=1400"],
            r#"{"debug": true, "dns": ["1.1.1.1"], "log-opts": {"max-size": "1m"},
                "default-shm-size": "32M", "proxies": {}}"#,
        )
        .unwrap();
        assert_eq!(settings.bool("debug"), Some(true));
        assert_eq!(settings.list("dns"), ["1.1.1.1"]);
        assert_eq!(settings.list("hosts"), ["fd://"]);
        assert_eq!(settings.int("default-shm-size"), Some(32 << 20));
        assert_eq!(settings.int("mtu"), Some(1400));
        assert_eq!(settings.bool("icc"), None);
    }

    #[test]
    fn dockerds_errors() {
        let cases = [
            (
                &["-D", "-H", "unix:///y"][..],
                r#"{"debug":true,"hosts":["unix:///x","fd://"],"log-level":"info"}"#,
                "the following directives are specified both as a flag and in the configuration file: debug: (from flag: true, from file: true), hosts: (from flag: [unix:///y], from file: [unix:///x fd://])",
            ),
            (
                &[],
                r#"{"foo":1,"debug":true,"bar":{"baz":2}}"#,
                "the following directives don't match any configuration option: baz, foo",
            ),
            (
                &[],
                r#"{"debug":"x"}"#,
                "json: cannot unmarshal string into Go struct field Config.debug of type bool",
            ),
            (
                &[],
                r#"{"dns":"1.1.1.1"}"#,
                "json: cannot unmarshal string into Go struct field Config.dns of type []string",
            ),
        ];
        for (words, file, wanted) in cases {
            assert_eq!(settle_text(words, file).unwrap_err(), wanted);
        }
        assert!(settle_text(&[], "{\"debug\":true").is_err());
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let cases = [
            (
                &["--userns-remap", "default"][..],
                "{}",
                "--userns-remap is not supported by gantry yet",
            ),
            (&["--ipv6"], "{}", "--ipv6 is not supported by gantry yet"),
            (
                &[],
                r#"{"metrics-addr": "127.0.0.1:9323"}"#,
                "the configuration key \"metrics-addr\" is not supported by gantry yet",
            ),
            (
                &["--log-driver", "syslog"],
                "{}",
                "--log-driver: \"syslog\" is not supported by gantry yet",
            ),
            (
                &[],
                r#"{"storage-driver": "btrfs"}"#,
                "the configuration key \"storage-driver\": \"btrfs\" is not supported by gantry yet",
            ),
        ];
        for (words, file, wanted) in cases {
            assert_eq!(settle_text(words, file).unwrap_err(), wanted);
        }
        let at_default = r#"{"ipv6": false, "ip6tables": true, "userns-remap": "",
            "builder": {}, "authorization-plugins": []}"#;
        assert!(settle_text(&[], at_default).unwrap().notes.is_empty());
    }

    #[test]
    fn what_changes_nothing_is_noted() {
        let notes =
            settle_text(&["--userland-proxy=false"], r#"{"live-restore": false}"#).unwrap().notes;
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes.iter().any(|note| note.contains("live-restore")));
    }

    #[test]
    fn runtimes_of_flags_and_file_are_taken_together() {
        let settings =
            settle_text(&["--add-runtime", "a=/a"], r#"{"runtimes": {"b": {"path": "/b"}}}"#)
                .unwrap();
        let wanted = serde_json::json!({ "b": { "path": "/b" }, "a": { "path": "/a" } });
        assert_eq!(settings.get("runtimes"), Some(&Value::Json(wanted)));
    }

    #[test]
    fn differences() {
        let a = settle_text(&[], r#"{"debug": true, "mtu": 1400}"#).unwrap();
        let b = settle_text(&[], r#"{"mtu": 1400, "labels": ["a=b"]}"#).unwrap();
        assert_eq!(a.changed(&b), ["debug", "labels"]);
    }

    #[test]
    fn only_the_default_file_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.json");
        let error = settle(&Given::new(), &path, true).unwrap_err();
        assert!(error.ends_with("daemon.json: no such file or directory"), "{error}");
        assert!(error.starts_with("unable to configure the Docker daemon with file "), "{error}");
        assert_eq!(settle(&Given::new(), &path, false), Ok(Settings::default()));
        std::fs::write(&path, "\u{feff} \n").unwrap();
        assert_eq!(settle(&Given::new(), &path, true), Ok(Settings::default()));
    }
}

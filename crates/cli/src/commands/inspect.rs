//! `inspect` of anything, and of one kind of object.

use bytes::Bytes;
use gotmpl::Value;
use serde_json::{Map, Value as Json};

use crate::commands::fail_with;
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::fmt::template::Format;

/// Exit code for a template that is none (docker's, and sysexits.h's for wrong usage).
const BAD_TEMPLATE: i32 = 64;

/// What can be inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Container,
    Image,
    Network,
    Volume,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Container, "container"),
    (Kind::Image, "image"),
    (Kind::Network, "network"),
    (Kind::Volume, "volume"),
];

async fn fetch(ctx: &Ctx, kind: Kind, name: &str, m: &Matches) -> Result<Bytes> {
    let client = ctx.client()?;
    let bytes = match kind {
        Kind::Container => client.container_inspect_raw(name, m.flag("size")).await,
        Kind::Image => client.image_inspect_raw(name, m.text("platform")).await,
        Kind::Network => client.network_inspect_raw(name, m.flag("verbose")).await,
        Kind::Volume => client.volume_inspect_raw(name).await,
    };
    Ok(bytes?)
}

pub(crate) async fn container(ctx: &Ctx, m: Matches) -> Result<()> {
    inspect(ctx, &m, &[Kind::Container], true).await
}

pub(crate) async fn image(ctx: &Ctx, m: Matches) -> Result<()> {
    inspect(ctx, &m, &[Kind::Image], true).await
}

pub(crate) async fn network(ctx: &Ctx, m: Matches) -> Result<()> {
    inspect(ctx, &m, &[Kind::Network], true).await
}

pub(crate) async fn volume(ctx: &Ctx, m: Matches) -> Result<()> {
    inspect(ctx, &m, &[Kind::Volume], true).await
}

pub(crate) async fn any(ctx: &Ctx, m: Matches) -> Result<()> {
    let kinds: Vec<Kind> = match m.given("type") {
        None => KINDS.iter().map(|(kind, _)| *kind).collect(),
        Some(wanted) => match KINDS.iter().find(|(_, name)| *name == wanted) {
            Some((kind, _)) => vec![*kind],
            None if ["config", "node", "plugin", "secret", "service", "task"].contains(&wanted) => {
                return Err(Error::Invalid(format!("inspecting objects of type {wanted:?} is not supported")));
            }
            None if wanted.is_empty() => return Err("type is empty: must be one of \"config\", \"container\", \"image\", \"network\", \"node\", \"plugin\", \"secret\", \"service\", \"task\", \"volume\"".into()),
            None => {
                return Err(Error::Invalid(format!("unknown type: {wanted:?}: must be one of \"config\", \"container\", \"image\", \"network\", \"node\", \"plugin\", \"secret\", \"service\", \"task\", \"volume\"")));
            }
        },
    };
    inspect(ctx, &m, &kinds, m.changed("type")).await
}

/// The first kind that knows the name.
async fn find(
    ctx: &Ctx,
    name: &str,
    m: &Matches,
    kinds: &[Kind],
    exact: bool,
) -> Result<(Kind, Bytes)> {
    for &kind in kinds {
        match fetch(ctx, kind, name, m).await {
            Ok(bytes) => return Ok((kind, bytes)),
            Err(Error::Client(e)) if !exact && not_of_this_kind(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Error::Invalid(format!("Error: No such object: {name}")))
}

/// Names that one kind cannot have at all are refused as invalid by some engines.
fn not_of_this_kind(e: &client::Error) -> bool {
    e.is_not_found()
        || e.status().is_some_and(|s| s.as_u16() == 400)
        || e.message()
            .is_some_and(|t| t.contains("not supported") || t.contains("invalid reference format"))
}

async fn inspect(ctx: &Ctx, m: &Matches, kinds: &[Kind], exact: bool) -> Result<()> {
    let source = m.text("format");
    let format = match source {
        "" | "json" => None,
        source => Some(Format::parse(source).map_err(|e| Error::Status {
            code: BAD_TEMPLATE,
            text: format!("template parsing error: {e}"),
        })?),
    };
    let mut shown: Vec<String> = Vec::new();
    let mut errors = Vec::new();
    for name in &m.args {
        let (kind, bytes) = match find(ctx, name, m, kinds, exact).await {
            Ok(found) => found,
            Err(e) => {
                errors.push(e.to_string());
                continue;
            }
        };
        match &format {
            None => shown.push(String::from_utf8_lossy(&bytes).trim().to_owned()),
            Some(format) => {
                let json: Json = serde_json::from_slice(&bytes).map_err(|e| {
                    Error::Invalid(format!("cannot read the description of {name}: {e}"))
                })?;
                match format.run(&json, &|at, map| go_names(kind, at, map)) {
                    Ok(text) => shown.push(text),
                    Err(e) => errors.push(format!("template parsing error: {e}")),
                }
            }
        }
    }
    let text = match (format.is_some(), source) {
        (true, _) => shown.iter().map(|line| format!("{line}\n")).collect(),
        (false, "json") => format!("[{}]\n", shown.join(",")),
        (false, _) if shown.is_empty() => "[]\n".to_owned(),
        (false, _) => format!("{}\n", indent(&format!("[{}]", shown.join(",")))),
    };
    // With a format, docker ends even an empty output with a line end.
    let text = if text.is_empty() { "\n".to_owned() } else { text };
    ctx.out(&text)?;
    fail_with(errors)
}

/// Indents JSON by four spaces without changing how its values are written.
pub(crate) fn indent(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let mut chars = json.chars().peekable();
    let newline = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("    ", depth));
    };
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                out.push(c);
                while let Some(c) = chars.next() {
                    out.push(c);
                    match c {
                        '\\' => out.extend(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '{' | '[' => {
                out.push(c);
                while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
                match chars.next_if(|c| matches!(c, '}' | ']')) {
                    Some(close) => out.push(close),
                    None => {
                        depth += 1;
                        newline(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                newline(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                newline(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => out.push(c),
        }
    }
    out
}

/// What templates may name beside the JSON keys: docker's templates see Go structs first, whose
/// names differ here and there, and whose empty fields exist.
fn go_names(kind: Kind, at: &str, map: &Map<String, Json>) -> Vec<(String, Value)> {
    const ALIASES: [(&str, &str); 9] = [
        ("Id", "ID"),
        ("ParentId", "ParentID"),
        ("CpuShares", "CPUShares"),
        ("NanoCpus", "NanoCPUs"),
        ("CpuPeriod", "CPUPeriod"),
        ("CpuQuota", "CPUQuota"),
        ("Dns", "DNS"),
        ("DnsOptions", "DNSOptions"),
        ("DnsSearch", "DNSSearch"),
    ];
    let mut out = Vec::new();
    for (json, go) in ALIASES {
        if let Some(value) = map.get(json) {
            out.push((go.to_owned(), plain(value)));
        }
    }
    let nil: &[&str] = match (kind, at) {
        (Kind::Container, "") => &["SizeRw", "SizeRootFs", "ImageManifestDescriptor"],
        (Kind::Container, "/State") => &["Health"],
        (Kind::Container, "/Config") => &["Healthcheck", "ExposedPorts", "StopTimeout", "Shell"],
        (Kind::Container, "/HostConfig") => {
            &["Init", "Mounts", "Tmpfs", "Sysctls", "StorageOpt", "Annotations"]
        }
        (Kind::Image, "") => &["Descriptor", "Manifests"],
        (Kind::Image, "/Config") => &[
            "ExposedPorts",
            "Env",
            "Entrypoint",
            "Cmd",
            "Volumes",
            "Labels",
            "Healthcheck",
            "OnBuild",
            "Shell",
        ],
        (Kind::Volume, "") => &["Status", "UsageData", "ClusterVolume"],
        _ => &[],
    };
    out.extend(nil.iter().map(|name| ((*name).to_owned(), Value::Nil)));
    let empty: &[&str] = match (kind, at) {
        (Kind::Container, "/Config") => &["StopSignal", "MacAddress"],
        (Kind::Container, "/HostConfig") => &["Runtime"],
        (Kind::Image, "") => &["Variant", "OsVersion", "Created"],
        (Kind::Image, "/Config") => &["User", "WorkingDir", "StopSignal"],
        (Kind::Volume, "") => &["CreatedAt"],
        (Kind::Container, at) if at.starts_with("/Mounts/") => &["Type", "Name", "Driver"],
        _ => &[],
    };
    out.extend(empty.iter().map(|name| ((*name).to_owned(), Value::String("".into()))));
    out
}

/// A value without its origin; `json` writes maps sorted then.
fn plain(json: &Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => {
            n.as_i64().map_or_else(|| Value::Float(n.as_f64().unwrap_or(0.0)), Value::Int)
        }
        Json::String(s) => Value::String(s.as_str().into()),
        Json::Array(items) => Value::List(items.iter().map(plain).collect()),
        Json::Object(map) => Value::Map(std::sync::Arc::new(
            map.iter().map(|(k, v)| (k.as_str().into(), plain(v))).collect(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indented() {
        assert_eq!(
            indent(r#"[{"a":"x:\"{,}","b":[],"c":{ },"d":[1,2]}]"#),
            "[\n    {\n        \"a\": \"x:\\\"{,}\",\n        \"b\": [],\n        \"c\": {},\n        \"d\": [\n            1,\n            2\n        ]\n    }\n]"
        );
    }
}

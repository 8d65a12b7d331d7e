//! RUN's `--mount`.

use crate::{error::ParseErrorKind, expand::Expander, words};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    #[default]
    Shared,
    Private,
    Locked,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    Bind { from: Option<String>, source: String, read_only: bool },
    Cache(CacheMount),
    Tmpfs { size_bytes: Option<u64> },
    Secret { id: String, env: Option<String>, required: bool, mode: u32, uid: u32, gid: u32 },
    Ssh { id: String, required: bool, mode: u32, uid: u32, gid: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMount {
    /// Default: the target.
    pub id: String,
    pub from: Option<String>,
    pub source: String,
    pub sharing: Sharing,
    pub read_only: bool,
    /// Permission bits of a new cache's directory.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub kind: MountKind,
    /// As written; relative ones are below the working directory. Empty for secrets as variables.
    pub target: String,
}

#[derive(Default)]
struct Fields {
    kind: Option<String>,
    target: Option<String>,
    source: Option<String>,
    from: Option<String>,
    id: Option<String>,
    env: Option<String>,
    read_only: Option<bool>,
    required: bool,
    sharing: Sharing,
    mode: Option<u32>,
    uid: u32,
    gid: u32,
    size_bytes: Option<u64>,
}

/// Reads one `--mount` value; variables are replaced in all values but that of `from`.
///
/// # Errors
/// [`ParseErrorKind::Mount`] naming the field, or a failed expansion.
pub fn parse(text: &str, expander: &mut Expander<'_>) -> Result<Mount, ParseErrorKind> {
    let mut fields = Fields::default();
    for field in words::csv(text) {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value)),
            None => (field.trim(), None),
        };
        let key = key.to_ascii_lowercase();
        let value = match value {
            Some(value) if key != "from" => Some(expander.text(value)?),
            other => other.map(str::to_string),
        };
        set(&mut fields, &key, value)?;
    }
    finish(fields)
}

fn bad(text: impl Into<String>) -> ParseErrorKind {
    ParseErrorKind::Mount(text.into())
}

fn set(fields: &mut Fields, key: &str, value: Option<String>) -> Result<(), ParseErrorKind> {
    let flag = |value: &Option<String>| match value.as_deref() {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(bad(format!("invalid value for {key}: {other}"))),
    };
    match key {
        "readonly" | "ro" => fields.read_only = Some(flag(&value)?),
        "readwrite" | "rw" => fields.read_only = Some(!flag(&value)?),
        "required" => fields.required = flag(&value)?,
        _ => {
            let value =
                value.ok_or_else(|| bad(format!("field {key:?} must be a key=value pair")))?;
            set_value(fields, key, value)?;
        }
    }
    Ok(())
}

fn set_value(fields: &mut Fields, key: &str, value: String) -> Result<(), ParseErrorKind> {
    let number = |value: &str, radix| {
        u32::from_str_radix(value, radix).map_err(|_| bad(format!("invalid {key}: {value:?}")))
    };
    match key {
        "type" => fields.kind = Some(value.to_ascii_lowercase()),
        "target" | "dst" | "destination" => fields.target = Some(value),
        "source" | "src" => fields.source = Some(value),
        "from" => fields.from = Some(value),
        "id" => fields.id = Some(value),
        "env" => fields.env = Some(value),
        "mode" => fields.mode = Some(number(&value, 8)?),
        "uid" => fields.uid = number(&value, 10)?,
        "gid" => fields.gid = number(&value, 10)?,
        "size" => {
            fields.size_bytes =
                Some(bytes(&value).ok_or_else(|| bad(format!("invalid size: {value:?}")))?);
        }
        "sharing" => {
            fields.sharing = match value.as_str() {
                "shared" => Sharing::Shared,
                "private" => Sharing::Private,
                "locked" => Sharing::Locked,
                other => return Err(bad(format!("unsupported sharing value {other:?}"))),
            }
        }
        other => return Err(bad(format!("unexpected key {other:?}"))),
    }
    Ok(())
}

fn finish(fields: Fields) -> Result<Mount, ParseErrorKind> {
    let kind = fields.kind.as_deref().unwrap_or("bind");
    let target = fields.target.clone().unwrap_or_default();
    if target.is_empty() && !matches!(kind, "secret" | "ssh") {
        return Err(bad(format!("mount type {kind:?} requires a target")));
    }
    let source = fields.source.clone().unwrap_or_else(|| "/".into());
    let kind = match kind {
        "bind" => MountKind::Bind {
            from: fields.from,
            source,
            read_only: fields.read_only.unwrap_or(true),
        },
        "cache" => MountKind::Cache(CacheMount {
            id: fields.id.unwrap_or_else(|| crate::glob::clean(&target)),
            from: fields.from,
            source,
            sharing: fields.sharing,
            read_only: fields.read_only.unwrap_or(false),
            mode: fields.mode.unwrap_or(0o755),
            uid: fields.uid,
            gid: fields.gid,
        }),
        "tmpfs" => MountKind::Tmpfs { size_bytes: fields.size_bytes },
        "secret" => {
            let base = target.rsplit('/').next().unwrap_or_default().to_string();
            let id = fields.id.or(fields.source).unwrap_or(base);
            if id.is_empty() {
                return Err(bad("mount type \"secret\" requires an id or a target"));
            }
            MountKind::Secret {
                id,
                env: fields.env,
                required: fields.required,
                mode: fields.mode.unwrap_or(0o400),
                uid: fields.uid,
                gid: fields.gid,
            }
        }
        "ssh" => MountKind::Ssh {
            id: fields.id.unwrap_or_else(|| "default".into()),
            required: fields.required,
            mode: fields.mode.unwrap_or(0o600),
            uid: fields.uid,
            gid: fields.gid,
        },
        other => return Err(bad(format!("unsupported mount type {other:?}"))),
    };
    Ok(Mount { kind, target })
}

/// A size with docker's binary suffixes: `64m`, `1g`, `4096`.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix('b').unwrap_or(&text);
    let (number, shift) = match text.chars().last()? {
        'k' => (&text[..text.len() - 1], 10),
        'm' => (&text[..text.len() - 1], 20),
        'g' => (&text[..text.len() - 1], 30),
        't' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

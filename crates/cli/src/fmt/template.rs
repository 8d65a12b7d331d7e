//! Go templates with docker's functions, on JSON values.

use std::collections::HashMap;
use std::sync::Arc;

use gotmpl::{MissingKey, Template, TemplateError, Value};
use serde_json::Value as Json;

/// A parsed template.
pub(crate) struct Format {
    template: Template,
    source: String,
    origins: Arc<std::sync::Mutex<Origins>>,
}

/// Where composite values came from, by their address, so that `json` can write them in the order
/// of the source: template values are sorted maps.
#[derive(Default)]
struct Origins {
    root: Json,
    pointers: HashMap<usize, String>,
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Format")
    }
}

impl Format {
    /// Parses a template; `\t` and `\n` in words stand for a tab and a line end.
    pub(crate) fn parse(source: &str) -> Result<Format, String> {
        let source = methods_to_calls(&source.replace("\\t", "\t").replace("\\n", "\n"));
        let origins = Arc::new(std::sync::Mutex::new(Origins::default()));
        let shared = Arc::clone(&origins);
        let template = Template::new("")
            .missing_key(MissingKey::Error)
            .func("json", move |args: &[Value]| json_function(&shared, args))
            .func("split", |args: &[Value]| {
                let (text, sep) = (text_arg(args, 0, "split")?, text_arg(args, 1, "split")?);
                let parts: Vec<Value> = match sep {
                    "" => text.chars().map(|c| Value::String(c.to_string().into())).collect(),
                    sep => text.split(sep).map(|p| Value::String(p.into())).collect(),
                };
                Ok(Value::List(parts.into()))
            })
            .func("join", |args: &[Value]| {
                let sep = text_arg(args, 1, "join")?;
                let Some(Value::List(items)) = args.first() else {
                    return Err(wrong("join", "a list is wanted"));
                };
                let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                Ok(Value::String(items.join(sep).into()))
            })
            .func("title", |args: &[Value]| {
                Ok(Value::String(title(text_arg(args, 0, "title")?).into()))
            })
            .func("lower", |args: &[Value]| {
                Ok(Value::String(text_arg(args, 0, "lower")?.to_lowercase().into()))
            })
            .func("upper", |args: &[Value]| {
                Ok(Value::String(text_arg(args, 0, "upper")?.to_uppercase().into()))
            })
            .func("pad", |args: &[Value]| {
                let text = text_arg(args, 0, "pad")?;
                if text.is_empty() {
                    return Ok(Value::String("".into()));
                }
                let (before, after) = (count_arg(args, 1, "pad")?, count_arg(args, 2, "pad")?);
                Ok(Value::String(
                    format!("{}{text}{}", " ".repeat(before), " ".repeat(after)).into(),
                ))
            })
            .func("truncate", |args: &[Value]| {
                let text = text_arg(args, 0, "truncate")?;
                let limit = count_arg(args, 1, "truncate")?;
                Ok(Value::String(text.chars().take(limit).collect::<String>().into()))
            })
            .parse(&source)
            .map_err(|e| parse_error(&e))?;
        Ok(Format { template, source, origins })
    }

    /// Runs the template on a value. Objects get further entries from `extra` (called with the
    /// JSON pointer of each object), which templates can name but `json` does not write.
    pub(crate) fn run(&self, data: &Json, extra: Extra<'_>) -> Result<String, String> {
        let mut pointers = HashMap::new();
        let value = convert(data, "", &mut pointers, extra);
        *self.origins.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Origins { root: data.clone(), pointers };
        self.template.execute_to_string(&value).map_err(|e| run_error(&self.source, &e))
    }
}

/// Only the line is told, as Go does while it parses.
fn parse_error(e: &TemplateError) -> String {
    match e {
        TemplateError::Parse { line, message, .. } | TemplateError::Lex { line, message, .. } => {
            format!("template: :{line}: {message}")
        }
        other => other.to_string(),
    }
}

/// Go tells where in the template a field is missing; here it is looked up by its name.
fn run_error(source: &str, e: &TemplateError) -> String {
    let text = e.to_string();
    let Some(key) = text.strip_prefix("map has no entry for key: ") else { return text };
    let field = format!(".{key}");
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let found = source
        .match_indices(&field)
        .map(|(at, _)| at)
        .find(|at| !source[at + field.len()..].starts_with(word));
    let Some(at) = found else { return text };
    let start = source[..at].rfind(|c: char| !word(c) && c != '.').map_or(0, |i| i + 1);
    let line = source[..at].matches('\n').count() + 1;
    let column = at - source[..at].rfind('\n').map_or(0, |i| i + 1);
    let chain = &source[start..at + field.len()];
    format!(
        "template: :{line}:{column}: executing \"\" at <{chain}>: map has no entry for key {key:?}"
    )
}

/// Further entries for the object at a JSON pointer.
pub(crate) type Extra<'a> =
    &'a dyn Fn(&str, &serde_json::Map<String, Json>) -> Vec<(String, Value)>;

/// No further entries.
pub(crate) fn nothing_more(_: &str, _: &serde_json::Map<String, Json>) -> Vec<(String, Value)> {
    Vec::new()
}

fn wrong(function: &str, why: &str) -> TemplateError {
    TemplateError::Exec(format!("error calling {function}: {why}"))
}

fn text_arg<'a>(args: &'a [Value], at: usize, function: &str) -> Result<&'a str, TemplateError> {
    args.get(at).and_then(Value::as_str).ok_or_else(|| wrong(function, "a string is wanted"))
}

fn count_arg(args: &[Value], at: usize, function: &str) -> Result<usize, TemplateError> {
    args.get(at)
        .and_then(Value::as_int)
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| wrong(function, "a number is wanted"))
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut start = true;
    for c in text.chars() {
        if start {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
        start = !(c.is_alphanumeric() || c == '_' || c == '\'');
    }
    out
}

fn json_function(
    origins: &std::sync::Mutex<Origins>,
    args: &[Value],
) -> Result<Value, TemplateError> {
    let value = args.first().ok_or_else(|| wrong("json", "a value is wanted"))?;
    let origins = origins.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let known =
        address(value).and_then(|a| origins.pointers.get(&a)).and_then(|p| origins.root.pointer(p));
    let text = match known {
        Some(json) => json.to_string(),
        None => to_json(value).to_string(),
    };
    Ok(Value::String(text.into()))
}

fn address(value: &Value) -> Option<usize> {
    match value {
        Value::Map(map) => Some(Arc::as_ptr(map).addr()),
        Value::List(list) => Some(list.as_ptr().addr()),
        _ => None,
    }
}

fn to_json(value: &Value) -> Json {
    match value {
        Value::Nil | Value::Function(_) => Json::Null,
        Value::Bool(b) => (*b).into(),
        Value::Int(n) => (*n).into(),
        Value::Uint(n) => (*n).into(),
        Value::Float(n) => (*n).into(),
        Value::String(s) => Json::String(s.to_string()),
        Value::List(items) => items.iter().map(to_json).collect(),
        Value::Map(map) => map.iter().map(|(k, v)| (k.to_string(), to_json(v))).collect(),
    }
}

fn convert(
    json: &Json,
    at: &str,
    pointers: &mut HashMap<usize, String>,
    extra: Extra<'_>,
) -> Value {
    let value = match json {
        Json::Null => Value::Nil,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::Int(n),
            (None, Some(n)) => Value::Uint(n),
            (None, None) => Value::Float(n.as_f64().unwrap_or(0.0)),
        },
        Json::String(s) => Value::String(s.as_str().into()),
        Json::Array(items) => {
            let items: Vec<Value> = items
                .iter()
                .enumerate()
                .map(|(i, item)| convert(item, &format!("{at}/{i}"), pointers, extra))
                .collect();
            Value::List(items.into())
        }
        Json::Object(map) => {
            let mut out: std::collections::BTreeMap<Arc<str>, Value> = map
                .iter()
                .map(|(key, item)| {
                    let escaped = key.replace('~', "~0").replace('/', "~1");
                    (
                        key.as_str().into(),
                        convert(item, &format!("{at}/{escaped}"), pointers, extra),
                    )
                })
                .collect();
            for (key, value) in extra(at, map) {
                out.entry(key.as_str().into()).or_insert(value);
            }
            Value::Map(Arc::new(out))
        }
    };
    if let Some(address) = address(&value) {
        pointers.insert(address, at.to_owned());
    }
    value
}

/// Rewrites `.Label "x"`, a method with an argument in docker's templates, to `call .Label "x"`.
fn methods_to_calls(source: &str) -> String {
    const METHOD: &str = ".Label";
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find(METHOD) {
        let (before, tail) = rest.split_at(at);
        let after = &tail[METHOD.len()..];
        let argument =
            after.starts_with(' ') && after.trim_start().starts_with(['"', '`', '$', '(', '.']);
        let alone =
            !before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | ')'));
        out.push_str(before);
        out.push_str(if argument && alone { "call .Label" } else { METHOD });
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn run(source: &str, data: &Json) -> Result<String, String> {
        Format::parse(source)?.run(data, &nothing_more)
    }

    #[test]
    fn functions() {
        let data = json!({"Zed": {"b": 1, "a": [2, {"y": 1, "x": "<&>"}]}, "Name": "/web one", "N": 3_u64});
        for (source, want) in [
            ("{{.Name}}", "/web one"),
            ("{{json .Zed}}", r#"{"b":1,"a":[2,{"y":1,"x":"<&>"}]}"#),
            ("{{json .Zed.a}}", r#"[2,{"y":1,"x":"<&>"}]"#),
            ("{{json .Name}}", "\"/web one\""),
            ("{{upper .Name}} {{.Name | lower}} {{title .Name}}", "/WEB ONE /web one /Web One"),
            ("{{join (split .Name \" \") \"-\"}}", "/web-one"),
            ("{{pad .Name 1 2}}|", " /web one  |"),
            ("{{truncate .Name 4}}", "/web"),
            ("{{if eq .N 3}}three{{else}}no{{end}}", "three"),
            ("{{range $k, $v := .Zed}}{{$k}} {{end}}", "a b "),
            ("a\\tb\\n", "a\tb\n"),
            ("{{len .Zed.a}} {{index .Zed.a 0}} {{printf \"%05d\" .N}}", "2 2 00003"),
        ] {
            assert_eq!(run(source, &data).unwrap(), want, "{source}");
        }
        assert!(run("{{.Nope}}", &data).is_err());
        assert_eq!(
            run("a {{.Zed.Nope}}", &data).unwrap_err(),
            "template: :1:8: executing \"\" at <.Zed.Nope>: map has no entry for key \"Nope\""
        );
        assert_eq!(run("{{", &data).unwrap_err(), "template: :1: unclosed action");
    }

    #[test]
    fn method_calls() {
        assert_eq!(
            methods_to_calls("{{.Label \"a\"}} {{.Labels}} {{.Label}}"),
            "{{call .Label \"a\"}} {{.Labels}} {{.Label}}"
        );
    }
}

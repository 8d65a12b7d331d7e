//! Lists with `--format`: a table of fixed columns, a table by template, JSON, or a template.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::Value;
use serde_json::Value as Json;

use super::table::{LIST, align};
use super::template::{Format, nothing_more};

/// One row: every field that templates may name. `json` writes them sorted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    fields: BTreeMap<&'static str, Json>,
    /// What `.Label "name"` looks up, where there is that method.
    labels: Option<api_types::Map<String>>,
}

impl Row {
    pub(crate) fn new<const N: usize>(fields: [(&'static str, Json); N]) -> Row {
        Row { fields: fields.into_iter().collect(), labels: None }
    }

    pub(crate) fn with_labels(mut self, labels: api_types::Map<String>) -> Row {
        self.labels = Some(labels);
        self
    }

    fn cell(&self, field: &str) -> String {
        match self.fields.get(field) {
            Some(Json::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }

    fn json(&self) -> Json {
        self.fields.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect()
    }
}

/// What a list command can show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns {
    /// Field and header of every field that has a header.
    pub(crate) headers: &'static [(&'static str, &'static str)],
    /// The fields of the default table.
    pub(crate) default: &'static [&'static str],
}

/// `map[k:v]` of labels as docker's lists write them: `k=v,k=v`.
pub(crate) fn labels_text(labels: &api_types::Map<String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(",")
}

/// Writes the rows as `format` says; an empty format is `table`.
pub(crate) fn render(format: &str, columns: Columns, rows: &[Row]) -> Result<String, String> {
    let format = format.trim();
    match format {
        "" | "table" => Ok(default_table(columns, rows)),
        "json" => Ok(rows
            .iter()
            .map(|row| format!("{}\n", escape_html(&row.json().to_string())))
            .collect()),
        _ => match format.strip_prefix("table") {
            Some(source) => template_table(source.trim_start(), columns, rows),
            None => {
                let template = parse(format)?;
                let mut out = String::new();
                for row in rows {
                    out.push_str(&run(&template, row)?);
                    out.push('\n');
                }
                Ok(out)
            }
        },
    }
}

/// Go's encoder writes rows so that they can stand inside HTML.
fn escape_html(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

fn parse(source: &str) -> Result<Format, String> {
    Format::parse(source).map_err(|e| format!("failed to parse template: {e}"))
}

fn run(template: &Format, row: &Row) -> Result<String, String> {
    let text = template.run(&row.json(), &|at, _| match (&row.labels, at) {
        (Some(labels), "") => vec![("Label".to_owned(), label_method(labels.clone()))],
        _ => Vec::new(),
    });
    text.map_err(|e| format!("failed to execute template: {e}"))
}

fn label_method(labels: api_types::Map<String>) -> Value {
    Value::Function(Arc::new(move |args: &[Value]| {
        let name = args.first().and_then(Value::as_str).unwrap_or_default();
        Ok(Value::String(labels.get(name).map_or("", String::as_str).into()))
    }))
}

/// The header of a label's column is the last part of its name.
fn label_header() -> Value {
    Value::Function(Arc::new(|args: &[Value]| {
        let name = args.first().and_then(Value::as_str).unwrap_or_default();
        let last = name.rsplit('.').next().unwrap_or_default();
        Ok(Value::String(last.replace(['-', '_'], " ").into()))
    }))
}

fn default_table(columns: Columns, rows: &[Row]) -> String {
    let header = |field: &str| {
        columns.headers.iter().find(|(f, _)| *f == field).map_or("", |(_, header)| *header)
    };
    let mut text = columns.default.iter().map(|f| header(f)).collect::<Vec<_>>().join("\t");
    text.push('\n');
    for row in rows {
        let cells: Vec<String> = columns.default.iter().map(|f| row.cell(f)).collect();
        text.push_str(&cells.join("\t"));
        text.push('\n');
    }
    align(&text, LIST)
}

fn template_table(source: &str, columns: Columns, rows: &[Row]) -> Result<String, String> {
    let template = parse(source)?;
    let mut headers: serde_json::Map<String, Json> = serde_json::Map::new();
    if let Some(row) = rows.first() {
        headers.extend(row.fields.keys().map(|k| ((*k).to_owned(), Json::String(String::new()))));
    }
    headers.extend(columns.headers.iter().map(|(f, h)| ((*f).to_owned(), Json::from(*h))));
    // A template that cannot run on words (arithmetic, `len`) has no header.
    let header = template
        .run(&Json::Object(headers), &|at, _| match at {
            "" => vec![("Label".to_owned(), label_header())],
            _ => Vec::new(),
        })
        .unwrap_or_default();
    let mut text = format!("{header}\n");
    for row in rows {
        text.push_str(&run(&template, row)?);
        text.push('\n');
    }
    Ok(align(&text, LIST))
}

/// A single value in `--format`: `json` or a template.
pub(crate) fn render_value(format: &str, value: &Json) -> Result<String, String> {
    if format.trim() == "json" {
        return Ok(format!("{value}\n"));
    }
    let text = parse(format)?.run(value, &nothing_more);
    let text = text.map_err(|e| format!("failed to execute template: {e}"))?;
    Ok(format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const COLUMNS: Columns = Columns {
        headers: &[("ID", "THING ID"), ("Name", "NAME"), ("Labels", "LABELS")],
        default: &["ID", "Name"],
    };

    #[test]
    fn all_forms() {
        let labels: api_types::Map<String> = [("a.b-c".to_owned(), "v".to_owned())].into();
        let rows = [Row::new([
            ("Name", "one".into()),
            ("ID", "1".into()),
            ("Labels", labels_text(&labels).into()),
        ])
        .with_labels(labels)];
        let r = |format: &str| render(format, COLUMNS, &rows).unwrap();
        assert_eq!(r(""), "THING ID   NAME\n1          one\n");
        assert_eq!(r("table {{.Name}}\\t{{.ID}}"), "NAME      THING ID\none       1\n");
        assert_eq!(r("json"), "{\"ID\":\"1\",\"Labels\":\"a.b-c=v\",\"Name\":\"one\"}\n");
        assert_eq!(r("{{.ID}}={{.Label \"a.b-c\"}}"), "1=v\n");
        assert_eq!(r("table {{.Label \"a.b-c\"}}"), "b c\nv\n");
        assert!(render("{{.Nope}}", COLUMNS, &rows).is_err());
    }
}

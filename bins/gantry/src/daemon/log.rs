//! The daemon's own log, on stderr, in dockerd's two formats.

use std::fmt;

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

/// dockerd's levels. `fatal` and `panic` are above all that is logged before the end: errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    /// # Errors
    /// dockerd's words.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" => Self::Warn,
            "error" | "fatal" | "panic" => Self::Error,
            _ => return Err(format!("invalid logging level: {text}")),
        })
    }

    /// Libraries below us tell every frame at `debug`: they are asked for at `trace` alone.
    fn filter(self) -> Targets {
        let own = match self {
            Self::Trace => return Targets::new().with_default(LevelFilter::TRACE),
            Self::Debug => LevelFilter::DEBUG,
            Self::Info => LevelFilter::INFO,
            Self::Warn => LevelFilter::WARN,
            Self::Error => LevelFilter::ERROR,
        };
        let foreign = ["hyper", "hyper_util", "h2", "tonic", "tower", "rustls", "hickory_proto"];
        let foreign = foreign.map(|name| (name, own.min(LevelFilter::INFO)));
        Targets::new().with_default(own).with_targets(foreign)
    }
}

/// dockerd's formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl Format {
    /// # Errors
    /// dockerd's words.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("invalid log format: {text}")),
        }
    }
}

/// Changes the level of a running daemon.
pub(crate) struct Control(reload::Handle<Targets, Registry>);

impl Control {
    pub(crate) fn set(&self, level: Level) {
        // Fails only once the log is gone, with the process.
        drop(self.0.reload(level.filter()));
    }
}

/// Starts the log. To be called once.
pub(crate) fn start(level: Level, format: Format) -> Control {
    let (filter, handle) = reload::Layer::new(level.filter());
    let layer =
        tracing_subscriber::fmt::layer().event_format(Lines(format)).with_writer(std::io::stderr);
    // An error would mean a second start, and is of no consequence.
    drop(Registry::default().with(filter).with(layer).try_init());
    Control(handle)
}

/// A line per event: `time="…" level=info msg="…" key=value`, or a JSON object with these.
struct Lines(Format);

/// An event's fields in the order in which they are given.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Fields {
    fn put(&mut self, field: &Field, text: String) {
        if field.name() == "message" {
            self.message = text;
        } else {
            self.others.push((field.name(), text));
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, crate::chain(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

fn name(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warning",
        tracing::Level::INFO => "info",
        tracing::Level::DEBUG => "debug",
        tracing::Level::TRACE => "trace",
    }
}

fn line(format: Format, time: &str, level: tracing::Level, fields: &Fields) -> String {
    let level = name(level);
    if format == Format::Json {
        let mut object = serde_json::Map::new();
        for (key, value) in &fields.others {
            object.insert((*key).into(), value.as_str().into());
        }
        object.insert("level".into(), level.into());
        object.insert("msg".into(), fields.message.as_str().into());
        object.insert("time".into(), time.into());
        return serde_json::Value::Object(object).to_string();
    }
    let mut text = format!("time=\"{time}\" level={level} msg={:?}", fields.message);
    for (key, value) in &fields.others {
        let plain = !value.is_empty()
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/@^+:".contains(&b));
        text.push_str(&if plain { format!(" {key}={value}") } else { format!(" {key}={value:?}") });
    }
    text
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let time = format!("{:.9}", Timestamp::now());
        writeln!(writer, "{}", line(self.0, &time, *event.metadata().level(), &fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        let others = vec![("id", "ab/c".to_owned()), ("error", "it \"broke\"".to_owned())];
        Fields { message: "a \"b\"\nc".into(), others }
    }

    #[test]
    fn text_lines_are_logrus_lines() {
        let text = line(Format::Text, "T", tracing::Level::WARN, &fields());
        let wanted = r#"time="T" level=warning msg="a \"b\"\nc" id=ab/c error="it \"broke\"""#;
        assert_eq!(text, wanted);
    }

    #[test]
    fn json_lines_are_objects() {
        let text = line(Format::Json, "T", tracing::Level::INFO, &fields());
        let wanted =
            r#"{"id":"ab/c","error":"it \"broke\"","level":"info","msg":"a \"b\"\nc","time":"T"}"#;
        assert_eq!(text, wanted);
    }

    #[test]
    fn levels() {
        assert_eq!(Level::parse("DEBUG"), Ok(Level::Debug));
        assert_eq!(Level::parse("fatal"), Ok(Level::Error));
        assert_eq!(Level::parse("loud"), Err("invalid logging level: loud".into()));
    }
}

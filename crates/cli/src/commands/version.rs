//! `version`.

use api_types::{API_VERSION, Version};
use serde_json::json;

use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::fmt::table::{Layout, align};
use crate::fmt::template::Format;
use crate::fmt::units;

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What `--version` says.
pub(crate) fn line(ctx: &Ctx) -> String {
    let name = if ctx.prog == "docker" { "Docker" } else { "Gantry" };
    let commit = match ctx.build().commit.as_str() {
        "" => "unknown",
        commit => commit,
    };
    format!("{name} version {}, build {commit}", crate::VERSION)
}

/// A time as Go's `ANSIC` writes it; what is no time stays.
fn ansic(text: &str) -> String {
    match units::parse_rfc3339(text).and_then(|s| jiff::Timestamp::from_second(s).ok()) {
        Some(t) => t.strftime("%a %b %e %H:%M:%S %Y").to_string(),
        None => text.to_owned(),
    }
}

fn push(out: &mut String, indent: usize, name: &str, value: &str) {
    if !value.is_empty() {
        out.push_str(&format!("{:indent$}{name}:\t{value}\n", ""));
    }
}

fn client_text(ctx: &Ctx, api: &str) -> String {
    let mut out = "Client:\n".to_owned();
    push(&mut out, 1, "Version", crate::VERSION);
    let downgraded = if api == API_VERSION {
        String::new()
    } else {
        format!(" (downgraded from {API_VERSION})")
    };
    push(&mut out, 1, "API version", &format!("{api}{downgraded}"));
    push(&mut out, 1, "Git commit", &ctx.build().commit);
    push(&mut out, 1, "Built", &ansic(&ctx.build().time));
    push(&mut out, 1, "OS/Arch", &format!("linux/{}", arch()));
    push(&mut out, 1, "Context", &ctx.current_context());
    out
}

fn server_text(v: &Version) -> String {
    let title = match v.platform.name.as_str() {
        "" => "Server:".to_owned(),
        name => format!("Server: {name}"),
    };
    let mut out = format!("\n{title}\n");
    for component in &v.components {
        out.push_str(&format!(" {}:\n", component.name));
        push(&mut out, 2, "Version", &component.version);
        let detail = |name: &str| component.details.get(name).map_or("", String::as_str);
        if component.name != "Engine" {
            for (name, value) in &component.details {
                out.push_str(&format!("  {name}:\t{value}\n"));
            }
            continue;
        }
        push(
            &mut out,
            2,
            "API version",
            &format!("{} (minimum version {})", detail("ApiVersion"), detail("MinAPIVersion")),
        );
        // The field's name is docker's; another engine's compiler need not be Go's.
        let compiler = detail("GoVersion");
        let name = if compiler.starts_with("rustc") { "Compiler" } else { "Go version" };
        push(&mut out, 2, name, compiler);
        push(&mut out, 2, "Git commit", detail("GitCommit"));
        push(&mut out, 2, "Built", &ansic(detail("BuildTime")));
        push(&mut out, 2, "OS/Arch", &format!("{}/{}", detail("Os"), detail("Arch")));
        push(&mut out, 2, "Experimental", detail("Experimental"));
    }
    out
}

/// Engines that tell no components are one.
fn with_engine(mut v: Version) -> Version {
    if v.components.is_empty() {
        let details = [
            ("ApiVersion", v.api_version.clone()),
            ("MinAPIVersion", v.min_api_version.clone()),
            ("GitCommit", v.git_commit.clone()),
            ("GoVersion", v.go_version.clone()),
            ("Os", v.os.clone()),
            ("Arch", v.arch.clone()),
            ("BuildTime", v.build_time.clone()),
            ("Experimental", v.experimental.to_string()),
        ];
        v.components.push(api_types::VersionComponent {
            name: "Engine".to_owned(),
            version: v.version.clone(),
            details: details.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        });
    }
    v
}

pub(crate) async fn version(ctx: &Ctx, m: Matches) -> Result<()> {
    let answer = match ctx.client() {
        Ok(client) => client.version().await.map_err(Error::from),
        Err(e) => Err(e),
    };
    let (server, failed) = match answer {
        Ok(v) => (Some(v), None),
        Err(e) => (None, Some(e)),
    };
    let api =
        ctx.client().map_or_else(|_| API_VERSION.to_owned(), |c| c.known_api_version().to_string());
    let format = m.text("format");
    if format.is_empty() {
        let mut text = client_text(ctx, &api);
        if let Some(v) = server {
            text.push_str(&server_text(&with_engine(v)));
        }
        ctx.out(&align(&text, Layout { min_width: 20, padding: 1 }))?;
    } else {
        let value = json!({
            "Client": {
                "Version": crate::VERSION,
                "ApiVersion": api,
                "DefaultAPIVersion": API_VERSION,
                "GitCommit": ctx.build().commit,
                "GoVersion": ctx.build().compiler,
                "Os": "linux",
                "Arch": arch(),
                "BuildTime": ansic(&ctx.build().time),
                "Context": ctx.current_context(),
            },
            "Server": server,
        });
        let text = match format {
            "json" => value.to_string(),
            format => Format::parse(format)?.run(&value, &|_, map| {
                let api = map.get("ApiVersion").and_then(|v| v.as_str());
                api.map(|v| ("APIVersion".to_owned(), gotmpl::Value::String(v.into())))
                    .into_iter()
                    .collect()
            })?,
        };
        ctx.line(&text)?;
    }
    failed.map_or(Ok(()), Err)
}

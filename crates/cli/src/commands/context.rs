//! `context`.

use std::path::PathBuf;

use serde_json::json;

use crate::contexts::{DEFAULT, Endpoint, Meta, valid_name};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::fmt::rows::{Columns, Row, render};
use crate::fmt::template::{Format, nothing_more};
use crate::values;

const COLUMNS: Columns = Columns {
    headers: &[
        ("Name", "NAME"),
        ("Shown", "NAME"),
        ("Description", "DESCRIPTION"),
        ("DockerEndpoint", "DOCKER ENDPOINT"),
        ("Current", ""),
        ("Error", "ERROR"),
    ],
    default: &["Shown", "Description", "DockerEndpoint", "Error"],
};

/// What stands for "no context": the environment, or the default socket.
fn default_meta(ctx: &Ctx) -> Meta {
    let host = match std::env::var("DOCKER_HOST") {
        Ok(host) if !host.is_empty() => host,
        _ => ctx.default_host(),
    };
    let mut meta = Meta { name: DEFAULT.to_owned(), ..Meta::default() };
    meta.endpoints.insert("docker".to_owned(), Endpoint { host, skip_tls_verify: false });
    meta
}

pub(crate) async fn ls(ctx: &Ctx, m: Matches) -> Result<()> {
    let current = ctx.current_context();
    let mut metas = vec![default_meta(ctx)];
    metas.extend(ctx.contexts().list()?);
    metas.sort_by(|a, b| crate::commands::network::natural(&a.name, &b.name));
    let rows: Vec<Row> = metas
        .iter()
        .map(|meta| {
            let description = match meta.name.as_str() {
                DEFAULT => "Current DOCKER_HOST based configuration",
                _ => meta.description(),
            };
            let mark = if meta.name == current { " *" } else { "" };
            Row::new([
                ("Name", meta.name.as_str().into()),
                ("Shown", format!("{}{mark}", meta.name).into()),
                ("Description", description.into()),
                ("DockerEndpoint", meta.docker().host.into()),
                ("Current", (meta.name == current).into()),
                ("Error", "".into()),
            ])
        })
        .collect();
    let format = if m.flag("quiet") { "{{.Name}}" } else { m.text("format") };
    ctx.out(&render(format, COLUMNS, &rows)?)?;
    if std::env::var("DOCKER_HOST").is_ok_and(|h| !h.is_empty()) && !m.flag("quiet") {
        ctx.note("Warning: DOCKER_HOST environment variable overrides the active context. To use a context, either set the global --context flag, or unset DOCKER_HOST environment variable.");
    }
    Ok(())
}

pub(crate) async fn show(ctx: &Ctx, _m: Matches) -> Result<()> {
    ctx.line(&ctx.current_context())
}

pub(crate) async fn switch(ctx: &Ctx, m: Matches) -> Result<()> {
    let name = &m.args[0];
    if name != DEFAULT {
        ctx.contexts().get(name)?;
    }
    let kept = if name == DEFAULT { "" } else { name };
    if ctx.config.borrow().text("currentContext") != kept {
        ctx.config.borrow_mut().set_text("currentContext", kept);
        ctx.config.borrow().save()?;
    }
    ctx.line(name)?;
    ctx.note(&format!("Current context is now {name:?}"));
    if std::env::var("DOCKER_HOST").is_ok_and(|h| !h.is_empty()) {
        ctx.note(&format!(
            "Warning: DOCKER_HOST environment variable overrides the active context. To use {name:?}, either set the global --context flag, or unset DOCKER_HOST environment variable."
        ));
    }
    Ok(())
}

pub(crate) async fn inspect(ctx: &Ctx, m: Matches) -> Result<()> {
    let names = if m.args.is_empty() { vec![ctx.current_context()] } else { m.args.clone() };
    let store = ctx.contexts();
    let mut shown = Vec::new();
    for name in &names {
        let default = name == DEFAULT;
        let meta = if default { default_meta(ctx) } else { store.get(name)? };
        let files = store.tls_files(name);
        let has: Vec<&str> =
            [("ca.pem", &files.ca), ("cert.pem", &files.cert), ("key.pem", &files.key)]
                .into_iter()
                .filter(|(_, path)| !default && path.is_some())
                .map(|(name, _)| name)
                .collect();
        let path = |dir: PathBuf| {
            if default { "<IN MEMORY>".to_owned() } else { dir.display().to_string() }
        };
        shown.push(json!({
            "Name": meta.name,
            "Metadata": meta.metadata,
            "Endpoints": meta.endpoints,
            "TLSMaterial": if has.is_empty() { json!({}) } else { json!({"docker": has}) },
            "Storage": {"MetadataPath": path(store.meta_dir(name)), "TLSPath": path(store.tls_dir(name))},
        }));
    }
    match m.given("format") {
        None | Some("") => {
            let text = serde_json::to_string(&shown)
                .expect("JSON values always serialise")
                .replace('<', "\\u003c")
                .replace('>', "\\u003e");
            ctx.line(&crate::commands::inspect::indent(&text))
        }
        Some(format) => {
            let template = Format::parse(format)?;
            for value in &shown {
                ctx.line(&template.run(value, &nothing_more)?)?;
            }
            Ok(())
        }
    }
}

/// Reads `host=…,ca=…,cert=…,key=…,skip-tls-verify=…` into a context.
fn apply_docker(ctx: &Ctx, m: &Matches, meta: &mut Meta) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut endpoint = meta.docker();
    let mut files = Vec::new();
    for text in m.list("docker") {
        for pair in values::csv(&text)? {
            let (key, value) = values::key_value(&pair);
            match key.as_str() {
                "host" => endpoint.host = value,
                "ca" => files.push(("ca.pem", PathBuf::from(value))),
                "cert" => files.push(("cert.pem", PathBuf::from(value))),
                "key" => files.push(("key.pem", PathBuf::from(value))),
                "skip-tls-verify" => endpoint.skip_tls_verify = values::boolean(&value)?,
                "from" => {
                    let from = if value == DEFAULT {
                        default_meta(ctx)
                    } else {
                        ctx.contexts().get(&value)?
                    };
                    endpoint = from.docker();
                }
                other => return Err(Error::Invalid(format!("unrecognized config key: {other}"))),
            }
        }
    }
    if !endpoint.host.is_empty() {
        client::Endpoint::parse(&endpoint.host, !files.is_empty())
            .map_err(|e| Error::Invalid(e.to_string()))?;
    }
    meta.endpoints.insert("docker".to_owned(), endpoint);
    Ok(files)
}

pub(crate) async fn create(ctx: &Ctx, m: Matches) -> Result<()> {
    let name = &m.args[0];
    if name == DEFAULT {
        return Err("\"default\" is a reserved context name".into());
    }
    if !valid_name(name) {
        return Err(Error::Invalid(format!(
            "context name {name:?} is invalid, names are validated against regexp \"^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$\""
        )));
    }
    let store = ctx.contexts();
    if store.get(name).is_ok() {
        return Err(Error::Invalid(format!("context {name:?} already exists")));
    }
    let mut files = Vec::new();
    let mut meta = match m.given("from") {
        Some(DEFAULT) => default_meta(ctx),
        Some(from) => {
            let tls = store.tls_files(from);
            for (name, path) in [("ca.pem", tls.ca), ("cert.pem", tls.cert), ("key.pem", tls.key)] {
                files.extend(path.map(|path| (name, path)));
            }
            store.get(from)?
        }
        None if m.list("docker").is_empty() => {
            return Err("docker endpoint configuration is required".into());
        }
        None => Meta::default(),
    };
    meta.name = name.clone();
    if let Some(description) = m.given("description") {
        meta.metadata.insert("Description".to_owned(), description.into());
    }
    files.extend(apply_docker(ctx, &m, &mut meta)?);
    store.put(&meta)?;
    store.put_tls(name, &files)?;
    ctx.line(name)?;
    ctx.note(&format!("Successfully created context {name:?}"));
    Ok(())
}

pub(crate) async fn update(ctx: &Ctx, m: Matches) -> Result<()> {
    let name = &m.args[0];
    let store = ctx.contexts();
    let mut meta = store.get(name)?;
    if let Some(description) = m.given("description") {
        meta.metadata.insert("Description".to_owned(), description.into());
    }
    let files = apply_docker(ctx, &m, &mut meta)?;
    store.put(&meta)?;
    store.put_tls(name, &files)?;
    ctx.line(name)?;
    ctx.note(&format!("Successfully updated context {name:?}"));
    Ok(())
}

pub(crate) async fn rm(ctx: &Ctx, m: Matches) -> Result<()> {
    let store = ctx.contexts();
    let current = ctx.config.borrow().text("currentContext").to_owned();
    let mut errors = Vec::new();
    for name in &m.args {
        if name == DEFAULT {
            errors.push("context \"default\" cannot be removed".to_owned());
        } else if *name == current && !m.flag("force") {
            errors.push(format!("context {name:?} is in use, set -f flag to force remove"));
        } else if store.get(name).is_err() && !m.flag("force") {
            errors.push(format!("context {name:?} not found"));
        } else {
            store.remove(name)?;
            if *name == current {
                ctx.config.borrow_mut().set_text("currentContext", "");
                ctx.config.borrow().save()?;
            }
            ctx.line(name)?;
        }
    }
    crate::commands::fail_with(errors)
}

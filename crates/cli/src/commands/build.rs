//! `build`, on the engine's `POST /build`.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use api_types::{BuildOptions, BuildResult};
use client::Body;
use futures_util::StreamExt;

use crate::commands::build_context::{Request, prepare};
use crate::commands::run::{leave_file, platform};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::fmt::units;
use crate::opts::{extra_host, label_map, ulimit};
use crate::progress::{Sink, capture, show};

fn options(ctx: &Ctx, m: &Matches) -> Result<BuildOptions> {
    let mut build_args = api_types::Map::new();
    let host = ctx.target()?.host;
    let given = m.list("build-arg");
    let named = |name: &str| given.iter().any(|arg| arg.split('=').next() == Some(name));
    for proxy in ctx.config.borrow().proxies(&host, &named) {
        let (name, value) = crate::values::key_value(&proxy);
        build_args.insert(name, Some(value));
    }
    for arg in &given {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            // Without a value: ours, or none at all.
            None => (arg.as_str(), std::env::var(arg).ok()),
        };
        build_args.insert(name.to_owned(), value);
    }
    let tags = m.list("tag");
    for tag in &tags {
        tag.parse::<types::ImageRef>().map_err(|e| {
            Error::Invalid(format!("invalid argument {tag:?} for \"-t, --tag\" flag: {e}"))
        })?;
    }
    let hosts: std::result::Result<Vec<String>, String> =
        m.list("add-host").iter().map(|h| extra_host(h)).collect();
    let ulimits: std::result::Result<Vec<_>, String> =
        m.list("ulimit").iter().map(|u| ulimit(u)).collect();
    Ok(BuildOptions {
        tags,
        quiet: m.flag("quiet"),
        no_cache: m.flag("no-cache"),
        cache_from: m.slice("cache-from"),
        pull: m.flag("pull"),
        remove: m.flag("rm"),
        force_remove: m.flag("force-rm"),
        memory: m.bytes("memory"),
        memory_swap: m.bytes("memory-swap"),
        cpu_shares: m.int("cpu-shares"),
        cpuset_cpus: m.string("cpuset-cpus"),
        cpuset_mems: m.string("cpuset-mems"),
        cpu_period: m.int("cpu-period"),
        cpu_quota: m.int("cpu-quota"),
        cgroup_parent: m.string("cgroup-parent"),
        build_args,
        labels: label_map(&[], &m.list("label"))?,
        shm_size: m.bytes("shm-size"),
        ulimits: ulimits?,
        network_mode: m.string("network"),
        extra_hosts: hosts?,
        security_opt: m.slice("security-opt"),
        squash: m.flag("squash"),
        target: m.string("target"),
        platform: platform(m),
        isolation: m.string("isolation"),
        ..BuildOptions::default()
    })
}

/// Tells how much was sent: while it goes on a terminal, once at its end elsewhere.
fn told(body: Body, terminal: bool) -> Body {
    let Body::Stream(stream) = body else { return body };
    // Bytes between two drawings.
    const STEP: i64 = 1 << 20;
    let sent = Arc::new(AtomicI64::new(0));
    let counter = Arc::clone(&sent);
    let counted = stream.inspect(move |chunk| {
        let Ok(chunk) = chunk else { return };
        let size = i64::try_from(chunk.len()).unwrap_or(0);
        let before = counter.fetch_add(size, Ordering::Relaxed);
        if terminal && (before + size) / STEP != before / STEP {
            announce(before + size, "\r");
        }
    });
    let end = futures_util::stream::once(async move {
        announce(sent.load(Ordering::Relaxed), "\r\r\n");
        Ok(bytes::Bytes::new())
    });
    // The empty chunk of the end must not reach hyper, which would take it for the last one.
    let end = end.filter(|chunk| {
        let keep = chunk.as_ref().is_ok_and(|c| !c.is_empty());
        async move { keep }
    });
    Body::Stream(Box::pin(counted.chain(end)))
}

fn announce(sent: i64, end: &str) {
    let text = format!("Sending build context to Docker daemon  {}{end}", units::size4(sent));
    let mut out = std::io::stdout().lock();
    // The build itself fails soon if nobody reads.
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

pub(crate) async fn build(ctx: &Ctx, m: Matches) -> Result<()> {
    let mut options = options(ctx, &m)?;
    let request =
        Request { source: m.args[0].clone(), file: m.string("file"), compress: m.flag("compress") };
    let id_file = m.given("iidfile").map(Path::new);
    if let Some(path) = id_file {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("remove", path)(e));
            }
            _ => {}
        }
    }
    let client = ctx.client()?;
    let context = prepare(&request)?;
    options.dockerfile = context.dockerfile;
    options.remote = context.remote;
    let auths = ctx.config.borrow().all_credentials()?;
    let quiet = options.quiet;
    let body = if quiet { context.body } else { told(context.body, ctx.stdout_is_tty()) };
    let messages = client.build(&options, &auths, body).await?;
    let mut id = String::new();
    let aux = |_: &api_types::JsonMessage, value: &serde_json::Value| {
        if let Ok(result) = serde_json::from_value::<BuildResult>(value.clone())
            && !result.id.is_empty()
        {
            id = result.id;
        }
    };
    if quiet {
        let mut text = String::new();
        if let Err(e) = capture(messages, &mut text, aux).await {
            ctx.note(text.trim_end());
            return Err(e);
        }
        // A quiet engine sends nothing but the ID.
        if id.is_empty() {
            id = text.trim().to_owned();
        }
        ctx.line(&id)?;
    } else {
        show(messages, Sink::Stdout, aux).await?;
    }
    match id_file {
        Some(_) if id.is_empty() => Err(Error::Invalid(format!(
            "server did not provide an image ID. Cannot write {}",
            m.text("iidfile")
        ))),
        Some(path) => leave_file(path, &id),
        None => Ok(()),
    }
}

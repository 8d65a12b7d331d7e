//! The smaller container commands.

use api_types::{ContainerInspect, UpdateBody};
use client::{CommitOptions, LogsOptions};

use crate::commands::{confirm_prune, each, prune_filters, run};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::fmt::table::{WIDE, align};
use crate::fmt::units;
use crate::opts;
use crate::stream::copy_out;

/// `--timeout`, or `--time` as it was called before.
fn timeout(m: &Matches) -> Result<Option<i64>> {
    if m.changed("time") && m.changed("timeout") {
        return Err("conflicting options: cannot specify both --timeout and --time".into());
    }
    Ok(m.given_int("timeout").or_else(|| m.given_int("time")))
}

pub(crate) async fn stop(ctx: &Ctx, m: Matches) -> Result<()> {
    let (client, signal, timeout) = (ctx.client()?, m.string("signal"), timeout(&m)?);
    each(ctx, &m.args, async |name| {
        client.container_stop(&name, &signal, timeout).await?;
        Ok(name)
    })
    .await
}

pub(crate) async fn restart(ctx: &Ctx, m: Matches) -> Result<()> {
    let (client, signal, timeout) = (ctx.client()?, m.string("signal"), timeout(&m)?);
    each(ctx, &m.args, async |name| {
        client.container_restart(&name, &signal, timeout).await?;
        Ok(name)
    })
    .await
}

pub(crate) async fn kill(ctx: &Ctx, m: Matches) -> Result<()> {
    let (client, signal) = (ctx.client()?, m.string("signal"));
    each(ctx, &m.args, async |name| {
        client.container_kill(&name, &signal).await?;
        Ok(name)
    })
    .await
}

pub(crate) async fn pause(ctx: &Ctx, m: Matches) -> Result<()> {
    let client = ctx.client()?;
    each(ctx, &m.args, async |name| {
        client.container_pause(&name).await?;
        Ok(name)
    })
    .await
}

pub(crate) async fn unpause(ctx: &Ctx, m: Matches) -> Result<()> {
    let client = ctx.client()?;
    each(ctx, &m.args, async |name| {
        client.container_unpause(&name).await?;
        Ok(name)
    })
    .await
}

pub(crate) async fn rm(ctx: &Ctx, m: Matches) -> Result<()> {
    let client = ctx.client()?;
    let (volumes, link, force) = (m.flag("volumes"), m.flag("link"), m.flag("force"));
    each(ctx, &m.args, async |name| {
        let path = name.trim_matches('/');
        if path.is_empty() {
            return Err("container name cannot be empty".into());
        }
        match client.container_remove(path, volumes, link, force).await {
            // By force, what is gone is gone.
            Err(e) if force && e.is_not_found() => {
                ctx.note(&e.to_string());
                Ok(String::new())
            }
            other => other.map(|()| name.clone()).map_err(Error::from),
        }
    })
    .await
}

pub(crate) async fn wait(ctx: &Ctx, m: Matches) -> Result<()> {
    let client = ctx.client()?;
    each(ctx, &m.args, async |name| {
        let code = run::exit_status(client.container_wait(&name, "").await?).await?;
        Ok(code.to_string())
    })
    .await
}

pub(crate) async fn rename(ctx: &Ctx, m: Matches) -> Result<()> {
    let (old, new) = (m.args[0].trim(), m.args[1].trim());
    if old.is_empty() || new.is_empty() {
        return Err("Error: Neither old nor new names may be empty".into());
    }
    ctx.client()?.container_rename(old, new).await.map_err(|e| {
        ctx.note(&e.to_string());
        Error::Invalid(format!("Error: failed to rename container named {old}"))
    })
}

pub(crate) async fn update(ctx: &Ctx, m: Matches) -> Result<()> {
    if m.given_flags().next().is_none() {
        return Err("you must provide one or more flags when using this command".into());
    }
    let body = UpdateBody {
        restart_policy: opts::restart_policy(m.text("restart"))?,
        resources: opts::resources(&m)?,
    };
    let client = ctx.client()?;
    each(ctx, &m.args, async |name| {
        let reply = client.container_update(&name, &body).await?;
        for warning in &reply.warnings {
            ctx.note(warning);
        }
        Ok(name)
    })
    .await
}

pub(crate) async fn logs(ctx: &Ctx, m: Matches) -> Result<()> {
    let client = ctx.client()?;
    let container = client.container_inspect(&m.args[0]).await?;
    let time = |name: &str| {
        units::timestamp(m.text(name))
            .map_err(|e| Error::Invalid(format!("invalid value for {name:?}: {e}")))
    };
    let options = LogsOptions {
        follow: m.flag("follow"),
        timestamps: m.flag("timestamps"),
        details: m.flag("details"),
        since: time("since")?,
        until: time("until")?,
        tail: m.string("tail"),
    };
    let body = client.container_logs(&container.id, &options).await?;
    copy_out(body, !container.config.tty).await
}

pub(crate) async fn top(ctx: &Ctx, m: Matches) -> Result<()> {
    let reply = ctx.client()?.container_top(&m.args[0], &m.args[1..].join(" ")).await?;
    let mut text = format!("{}\n", reply.titles.join("\t"));
    for process in &reply.processes {
        text.push_str(&process.join("\t"));
        text.push('\n');
    }
    ctx.out(&align(&text, WIDE))
}

/// What a container publishes, sorted by port: `80/tcp`, `0.0.0.0:8080`.
fn published(container: &ContainerInspect) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for (port, bindings) in &container.network_settings.ports {
        for binding in bindings.iter().flatten() {
            let ip = match binding.host_ip.contains(':') {
                true => format!("[{}]", binding.host_ip),
                false => binding.host_ip.clone(),
            };
            out.push((port.clone(), format!("{ip}:{}", binding.host_port)));
        }
    }
    let number = |p: &str| p.split('/').next().and_then(|n| n.parse::<u16>().ok()).unwrap_or(0);
    out.sort_by(|a, b| number(&a.0).cmp(&number(&b.0)).then_with(|| a.0.cmp(&b.0)));
    out
}

pub(crate) async fn port(ctx: &Ctx, m: Matches) -> Result<()> {
    let container = ctx.client()?.container_inspect(&m.args[0]).await?;
    let all = published(&container);
    let Some(wanted) = m.args.get(1) else {
        let text: String = all.iter().map(|(port, at)| format!("{port} -> {at}\n")).collect();
        return ctx.out(&text);
    };
    let (number, proto) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
    if number.parse::<u16>().is_err() {
        return Err(Error::Invalid(format!("invalid port '{wanted}'")));
    }
    let key = format!("{number}/{proto}");
    let lines: String =
        all.iter().filter(|(port, _)| *port == key).map(|(_, at)| format!("{at}\n")).collect();
    if lines.is_empty() {
        return Err(Error::Invalid(format!(
            "Error: No public port '{wanted}' published for {}",
            m.args[0]
        )));
    }
    ctx.out(&lines)
}

pub(crate) async fn diff(ctx: &Ctx, m: Matches) -> Result<()> {
    let changes = ctx.client()?.container_changes(&m.args[0]).await?;
    let text: String = changes
        .iter()
        .map(|change| {
            let kind = match change.kind {
                0 => 'C',
                1 => 'A',
                _ => 'D',
            };
            format!("{kind} {}\n", change.path)
        })
        .collect();
    ctx.out(&text)
}

pub(crate) async fn commit(ctx: &Ctx, m: Matches) -> Result<()> {
    let (mut repo, mut tag) = (String::new(), String::new());
    if let Some(name) = m.args.get(1).filter(|n| !n.is_empty()) {
        let reference: types::ImageRef =
            name.parse().map_err(|e: types::ReferenceError| Error::Invalid(e.to_string()))?;
        if reference.digest().is_some() {
            return Err("refusing to create a tag with a digest reference".into());
        }
        repo = reference.familiar_name();
        tag = reference.tag().unwrap_or_default().to_owned();
    }
    let pause = if m.changed("no-pause") { !m.flag("no-pause") } else { m.flag("pause") };
    let options = CommitOptions {
        container: m.args[0].clone(),
        repo,
        tag,
        comment: m.string("message"),
        author: m.string("author"),
        pause,
        changes: m.list("change"),
    };
    ctx.line(&ctx.client()?.commit(&options).await?)
}

pub(crate) async fn prune(ctx: &Ctx, m: Matches) -> Result<()> {
    if !confirm_prune(&m, "This will remove all stopped containers.")? {
        return Ok(());
    }
    let report = ctx.client()?.container_prune(&prune_filters(ctx, &m)).await?;
    if !report.containers_deleted.is_empty() {
        ctx.out(&format!("Deleted Containers:\n{}\n\n", report.containers_deleted.join("\n")))?;
    }
    ctx.line(&reclaimed(report.space_reclaimed))
}

/// The last line of a prune.
pub(crate) fn reclaimed(bytes: u64) -> String {
    format!("Total reclaimed space: {}", units::size4(i64::try_from(bytes).unwrap_or(i64::MAX)))
}

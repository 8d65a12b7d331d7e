//! `system prune`, `events`, `system dial-stdio`.

use api_types::{Event, Filters};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::commands::container::reclaimed;
use crate::commands::image::deleted_images;
use crate::commands::network::deleted_networks;
use crate::commands::volume::deleted_volumes;
use crate::commands::{confirm, prune_filters};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::fmt::rows::render_value;
use crate::fmt::template::{Format, nothing_more};
use crate::fmt::units;

fn warning(m: &Matches) -> String {
    let mut things =
        vec!["all stopped containers", "all networks not used by at least one container"];
    if m.flag("volumes") {
        things.push("all anonymous volumes not used by at least one container");
    }
    things.push(match m.flag("all") {
        true => "all images without at least one container associated to them",
        false => "all dangling images",
    });
    things.push(if m.flag("all") { "all build cache" } else { "unused build cache" });
    let mut text = "WARNING! This will remove:\n".to_owned();
    for thing in things {
        text.push_str(&format!("  - {thing}\n"));
    }
    let filters = m.list("filter");
    if !filters.is_empty() {
        text.push_str("\n  Items to be pruned will be filtered with:\n");
        for filter in filters {
            text.push_str(&format!("  - {filter}\n"));
        }
    }
    format!("{text}\nAre you sure you want to continue?")
}

pub(crate) async fn prune(ctx: &Ctx, m: Matches) -> Result<()> {
    let filters = prune_filters(ctx, &m);
    if m.flag("volumes") && filters.contains("until") {
        return Err("ERROR: The \"until\" filter is not supported with \"--volumes\"".into());
    }
    if !m.flag("force") && !confirm(&warning(&m))? {
        return Ok(());
    }
    let client = ctx.client()?;
    let all = m.flag("all");
    let mut total: u64 = 0;
    let containers = client.container_prune(&filters).await?;
    total += containers.space_reclaimed;
    if !containers.containers_deleted.is_empty() {
        ctx.out(&format!("Deleted Containers:\n{}\n\n", containers.containers_deleted.join("\n")))?;
    }
    let networks = client.network_prune(&filters).await?;
    ctx.out(&deleted_networks(&networks.networks_deleted))?;
    if m.flag("volumes") {
        let volumes = client.volume_prune(&filters).await?;
        total += volumes.space_reclaimed;
        ctx.out(&deleted_volumes(&volumes.volumes_deleted))?;
    }
    let mut image_filters = filters.clone();
    image_filters.add("dangling", if all { "false" } else { "true" });
    let images = client.image_prune(&image_filters).await?;
    total += images.space_reclaimed;
    ctx.out(&deleted_images(&images))?;
    let cache = client.build_prune(all, 0, &filters).await?;
    total += cache.space_reclaimed;
    if !cache.caches_deleted.is_empty() {
        ctx.out(&format!("Deleted build cache objects:\n{}\n\n", cache.caches_deleted.join("\n")))?;
    }
    ctx.line(&reclaimed(total))
}

fn event_line(event: &Event) -> String {
    let mut text = String::new();
    let nanos = match event.time_nano {
        0 => event.time.saturating_mul(1_000_000_000),
        nanos => nanos,
    };
    if nanos != 0 {
        text.push_str(&format!("{} ", units::rfc3339_nano(nanos)));
    }
    text.push_str(&format!("{} {} {}", event.r#type, event.action, event.actor.id));
    if !event.actor.attributes.is_empty() {
        let pairs: Vec<String> =
            event.actor.attributes.iter().map(|(k, v)| format!("{k}={v}")).collect();
        text.push_str(&format!(" ({})", pairs.join(", ")));
    }
    text.push('\n');
    text
}

pub(crate) async fn events(ctx: &Ctx, m: Matches) -> Result<()> {
    let filters: Filters = m.filters("filter");
    let (since, until) = (units::timestamp(m.text("since"))?, units::timestamp(m.text("until"))?);
    let format = m.text("format");
    let template = match format {
        "" | "json" => None,
        format => Some(Format::parse(format)?),
    };
    let mut events = ctx.client()?.events(&since, &until, &filters).await?;
    while let Some(event) = events.next().await? {
        let text = match (&template, format) {
            (_, "json") => render_value("json", &serde_json::json!(event))?,
            (Some(template), _) => {
                let json = serde_json::json!(event);
                format!("{}\n", template.run(&json, &|at, map| go_event(at, map, &event))?)
            }
            (None, _) => event_line(&event),
        };
        ctx.out(&text)?;
    }
    Ok(())
}

/// Templates see Go's names of an event.
fn go_event(
    at: &str,
    map: &serde_json::Map<String, serde_json::Value>,
    event: &Event,
) -> Vec<(String, gotmpl::Value)> {
    let mut out = nothing_more(at, map);
    if at.is_empty() {
        for (name, value) in [
            ("Status", &event.status),
            ("ID", &event.id),
            ("From", &event.from),
            ("Scope", &event.scope),
        ] {
            out.push((name.to_owned(), gotmpl::Value::String(value.as_str().into())));
        }
        out.push(("Time".to_owned(), gotmpl::Value::Int(event.time)));
        out.push(("TimeNano".to_owned(), gotmpl::Value::Int(event.time_nano)));
    }
    out
}

/// Passes stdin and stdout to the engine's socket, each direction closed by itself: the other end
/// of an `ssh://` host.
pub(crate) async fn dial_stdio(ctx: &Ctx, _m: Matches) -> Result<()> {
    let (mut from, mut to) = tokio::io::split(ctx.client()?.dial().await?);
    let input = async {
        let mut body = tokio::io::stdin();
        let mut buffer = vec![0; 32 << 10];
        loop {
            match body.read(&mut buffer).await {
                Ok(0) => break,
                Ok(n) => to.write_all(&buffer[..n]).await?,
                Err(e) => return Err(e),
            }
        }
        to.shutdown().await?;
        // Answers may still come.
        std::future::pending().await
    };
    let output = async {
        let mut stdout = tokio::io::stdout();
        tokio::io::copy(&mut from, &mut stdout).await?;
        stdout.flush().await
    };
    let result: std::io::Result<()> = tokio::select! {
        result = input => result,
        result = output => result,
    };
    result.map_err(Error::output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_lines() {
        let mut event =
            Event { r#type: "container".into(), action: "start".into(), ..Event::default() };
        event.actor.id = "abc".into();
        assert_eq!(event_line(&event), "container start abc\n");
        event.actor.attributes = [("b".into(), "2".into()), ("a".into(), "1".into())].into();
        assert_eq!(event_line(&event), "container start abc (a=1, b=2)\n");
    }
}

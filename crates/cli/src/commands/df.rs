//! `system df`.

use api_types::DiskUsage;
use serde_json::Value as Json;

use crate::commands::{ellipsis, short_id};
use crate::ctx::Ctx;
use crate::error::Result;
use crate::flags::Matches;
use crate::fmt::rows::{Columns, Row, render};
use crate::fmt::table::{LIST, align};
use crate::fmt::units;

const COLUMNS: Columns = Columns {
    headers: &[
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    ],
    default: &["Type", "TotalCount", "Active", "Size", "Reclaimable"],
};

/// One line: what there is, what is used, how large, how much of it could go.
struct Summary {
    name: &'static str,
    total: usize,
    active: usize,
    size: i64,
    reclaimable: i64,
    percent: bool,
}

fn row(s: &Summary) -> Row {
    let mut reclaimable = units::size4(s.reclaimable);
    if s.percent && s.size > 0 {
        reclaimable = format!("{reclaimable} ({}%)", s.reclaimable.saturating_mul(100) / s.size);
    }
    Row::new([
        ("Type", s.name.into()),
        ("TotalCount", s.total.to_string().into()),
        ("Active", s.active.to_string().into()),
        ("Size", units::size4(s.size).into()),
        ("Reclaimable", reclaimable.into()),
    ])
}

fn summaries(usage: &DiskUsage) -> [Summary; 4] {
    let used_images: i64 = usage
        .images
        .iter()
        .filter(|i| i.containers > 0 && i.size >= 0 && i.shared_size >= 0)
        .map(|i| i.size - i.shared_size)
        .sum();
    let running = |state: &str| matches!(state, "running" | "paused" | "restarting");
    let stopped: i64 =
        usage.containers.iter().filter(|c| !running(&c.state)).map(|c| c.size_rw).sum();
    let volume = |unused: bool| {
        let sizes = usage.volumes.iter().filter_map(|v| v.usage_data.as_ref());
        sizes.filter(|u| u.size >= 0 && (!unused || u.ref_count == 0)).map(|u| u.size).sum()
    };
    let cache = |unused: bool| {
        usage
            .build_cache
            .iter()
            .filter(|r| !r.shared && (!unused || !r.in_use))
            .map(|r| r.size)
            .sum()
    };
    [
        Summary {
            name: "Images",
            total: usage.images.len(),
            active: usage.images.iter().filter(|i| i.containers > 0).count(),
            size: usage.layers_size,
            reclaimable: usage.layers_size - used_images,
            percent: true,
        },
        Summary {
            name: "Containers",
            total: usage.containers.len(),
            active: usage.containers.iter().filter(|c| running(&c.state)).count(),
            size: usage.containers.iter().map(|c| c.size_rw).sum(),
            reclaimable: stopped,
            percent: true,
        },
        Summary {
            name: "Local Volumes",
            total: usage.volumes.len(),
            active: usage
                .volumes
                .iter()
                .filter(|v| v.usage_data.as_ref().is_some_and(|u| u.ref_count > 0))
                .count(),
            size: volume(false),
            reclaimable: volume(true),
            percent: true,
        },
        Summary {
            name: "Build Cache",
            total: usage.build_cache.len(),
            active: usage.build_cache.iter().filter(|r| r.in_use).count(),
            size: cache(false),
            reclaimable: cache(true),
            percent: false,
        },
    ]
}

pub(crate) async fn df(ctx: &Ctx, m: Matches) -> Result<()> {
    let usage = ctx.client()?.disk_usage().await?;
    let format = m.text("format");
    if !m.flag("verbose") {
        let rows: Vec<Row> = summaries(&usage).iter().map(row).collect();
        return ctx.out(&render(format, COLUMNS, &rows)?);
    }
    if !matches!(format, "" | "table") {
        let json: Json = serde_json::json!({
            "Images": usage.images, "Containers": usage.containers,
            "Volumes": usage.volumes, "BuildCache": usage.build_cache,
        });
        return ctx.out(&crate::fmt::rows::render_value(format, &json)?);
    }
    ctx.out(&verbose(&usage))
}

fn verbose(usage: &DiskUsage) -> String {
    let size = |n: i64| if n < 0 { "N/A".to_owned() } else { units::size4(n) };
    let mut out = "Images space usage:\n\n".to_owned();
    let mut text =
        "REPOSITORY\tTAG\tIMAGE ID\tCREATED\tSIZE\tSHARED SIZE\tUNIQUE SIZE\tCONTAINERS\n"
            .to_owned();
    for image in &usage.images {
        let name = image.repo_tags.first().and_then(|n| n.rsplit_once(':'));
        let (repo, tag) = name.unwrap_or(("<none>", "<none>"));
        let unique = image.size - image.shared_size.max(0);
        text.push_str(&format!(
            "{repo}\t{tag}\t{}\t{}\t{}\t{}\t{}\t{}\n",
            short_id(&image.id),
            units::ago(image.created),
            units::size3(image.size),
            size(image.shared_size),
            size(unique),
            image.containers
        ));
    }
    out.push_str(&align(&text, LIST));
    out.push_str("\nContainers space usage:\n\n");
    let mut text =
        "CONTAINER ID\tIMAGE\tCOMMAND\tLOCAL VOLUMES\tSIZE\tCREATED\tSTATUS\tNAMES\n".to_owned();
    for c in &usage.containers {
        let local = c.mounts.iter().filter(|mount| mount.driver == "local").count();
        let names: Vec<&str> = c.names.iter().map(|n| n.trim_start_matches('/')).collect();
        text.push_str(&format!(
            "{}\t{}\t{:?}\t{local}\t{}\t{}\t{}\t{}\n",
            short_id(&c.id),
            c.image,
            ellipsis(&c.command, 20),
            size(c.size_rw),
            units::ago(c.created),
            c.status,
            names.join(",")
        ));
    }
    out.push_str(&align(&text, LIST));
    out.push_str("\nLocal Volumes space usage:\n\n");
    let mut text = "VOLUME NAME\tLINKS\tSIZE\n".to_owned();
    for v in &usage.volumes {
        let used = v.usage_data.clone().unwrap_or_default();
        text.push_str(&format!("{}\t{}\t{}\n", v.name, used.ref_count, size(used.size)));
    }
    out.push_str(&align(&text, LIST));
    let total: i64 = usage.build_cache.iter().filter(|r| !r.shared).map(|r| r.size).sum();
    out.push_str(&format!("\nBuild cache usage: {}\n\n", size(total)));
    let mut text = "CACHE ID\tCACHE TYPE\tSIZE\tCREATED\tLAST USED\tUSAGE\tSHARED\n".to_owned();
    for r in &usage.build_cache {
        let ago = |t: &str| units::parse_rfc3339(t).map(units::ago).unwrap_or_default();
        text.push_str(&format!(
            "{}\t{}\t{}\t{}\t{}\t{}\t{}\n",
            short_id(&r.id),
            r.r#type,
            size(r.size),
            ago(&r.created_at),
            r.last_used_at.as_deref().map(ago).unwrap_or_default(),
            r.usage_count,
            r.shared
        ));
    }
    out.push_str(&align(&text, LIST));
    out
}

//! Volumes.

use api_types::VolumeCreate;

use crate::commands::container::reclaimed;
use crate::commands::network::natural;
use crate::commands::{confirm_prune, list_format, prune_filters};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::fmt::rows::{Columns, Row, labels_text, render};
use crate::fmt::units;

const COLUMNS: Columns = Columns {
    headers: &[
        ("Driver", "DRIVER"),
        ("Name", "VOLUME NAME"),
        ("Scope", "SCOPE"),
        ("Mountpoint", "MOUNTPOINT"),
        ("Labels", "LABELS"),
        ("Links", "LINKS"),
        ("Size", "SIZE"),
        ("Availability", "AVAILABILITY"),
        ("Group", "GROUP"),
        ("Status", "STATUS"),
    ],
    default: &["Driver", "Name"],
};

pub(crate) async fn ls(ctx: &Ctx, m: Matches) -> Result<()> {
    if m.flag("cluster") {
        return Err("--cluster is not supported: there is no swarm".into());
    }
    let mut volumes = ctx.client()?.volume_list(&m.filters("filter")).await?.volumes;
    volumes.sort_by(|a, b| natural(&a.name, &b.name));
    let rows: Vec<Row> = volumes
        .iter()
        .map(|v| {
            let (links, size) = match &v.usage_data {
                Some(usage) => (usage.ref_count.to_string(), units::size4(usage.size)),
                None => ("N/A".to_owned(), "N/A".to_owned()),
            };
            Row::new([
                ("Driver", v.driver.as_str().into()),
                ("Name", v.name.as_str().into()),
                ("Scope", v.scope.as_str().into()),
                ("Mountpoint", v.mountpoint.as_str().into()),
                ("Labels", labels_text(&v.labels).into()),
                ("Links", links.into()),
                ("Size", size.into()),
                ("Availability", "N/A".into()),
                ("Group", "N/A".into()),
                ("Status", "N/A".into()),
            ])
            .with_labels(v.labels.clone())
        })
        .collect();
    let format = list_format(ctx, &m, "volumesFormat");
    let quiet = m.flag("quiet") && (!m.changed("format") || format == "table");
    ctx.out(&render(if quiet { "{{.Name}}" } else { &format }, COLUMNS, &rows)?)
}

pub(crate) async fn create(ctx: &Ctx, m: Matches) -> Result<()> {
    const SWARM: [&str; 10] = [
        "availability",
        "group",
        "limit-bytes",
        "required-bytes",
        "scope",
        "secret",
        "sharing",
        "topology-preferred",
        "topology-required",
        "type",
    ];
    if let Some(flag) = SWARM.iter().find(|flag| m.changed(flag)) {
        return Err(Error::Invalid(format!("--{flag} is not supported: there is no swarm")));
    }
    let name = match (m.args.first(), m.given("name")) {
        (Some(_), Some(_)) => {
            return Err("conflicting options: cannot specify a volume-name through both --name and as a positional arg".into());
        }
        (Some(name), None) => name.clone(),
        (None, name) => name.unwrap_or_default().to_owned(),
    };
    let body = VolumeCreate {
        name,
        driver: m.string("driver"),
        driver_opts: m.map("opt"),
        labels: m.map("label"),
        cluster_volume_spec: None,
    };
    ctx.line(&ctx.client()?.volume_create(&body).await?.name)
}

pub(crate) async fn rm(ctx: &Ctx, m: Matches) -> Result<()> {
    let client = ctx.client()?;
    let mut errors = Vec::new();
    for name in &m.args {
        match client.volume_remove(name, m.flag("force")).await {
            Ok(()) => ctx.line(name)?,
            Err(e) => errors.push(e.to_string()),
        }
    }
    crate::commands::fail_with(errors)
}

pub(crate) async fn update(_ctx: &Ctx, _m: Matches) -> Result<()> {
    Err("volume update works on cluster volumes only, and there is no swarm".into())
}

pub(crate) async fn prune(ctx: &Ctx, m: Matches) -> Result<()> {
    let all = m.flag("all");
    let warning = match all {
        true => "This will remove all local volumes not used by at least one container.",
        false => "This will remove anonymous local volumes not used by at least one container.",
    };
    if !confirm_prune(&m, warning)? {
        return Ok(());
    }
    let mut filters = prune_filters(ctx, &m);
    if all {
        if filters.contains("all") {
            return Err("conflicting options: cannot specify both --all and --filter all=1".into());
        }
        filters.add("all", "true");
    }
    let report = ctx.client()?.volume_prune(&filters).await?;
    ctx.out(&deleted_volumes(&report.volumes_deleted))?;
    ctx.line(&reclaimed(report.space_reclaimed))
}

/// The list of what a volume prune removed.
pub(crate) fn deleted_volumes(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => format!("Deleted Volumes:\n{}\n\n", names.join("\n")),
    }
}

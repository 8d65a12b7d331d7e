//! `images`, `tag`, `rmi`, `history`, `search`, `image prune`.

use std::collections::BTreeMap;

use api_types::{HistoryItem, ImageSummary};
use client::SquashOptions;

use crate::commands::container::reclaimed;
use crate::commands::{confirm_prune, ellipsis, list_format, prune_filters, short_id};
use crate::config::HUB;
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::fmt::rows::{Columns, Row, render};
use crate::fmt::units;

const IMAGE_HEADERS: &[(&str, &str)] = &[
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
];
const IMAGES: Columns = Columns {
    headers: IMAGE_HEADERS,
    default: &["Repository", "Tag", "ID", "CreatedSince", "Size"],
};
const IMAGES_DIGESTS: Columns = Columns {
    headers: IMAGE_HEADERS,
    default: &["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"],
};

pub(crate) async fn ls(ctx: &Ctx, m: Matches) -> Result<()> {
    if m.flag("tree") {
        return Err("--tree is not supported".into());
    }
    let mut filters = m.filters("filter");
    if let Some(reference) = m.args.first() {
        filters.add("reference", reference.clone());
    }
    let images = ctx.client()?.image_list(m.flag("all"), false, &filters).await?;
    let format = list_format(ctx, &m, "imagesFormat");
    let digests = m.flag("digests") || format.contains(".Digest");
    let trunc = !m.flag("no-trunc");
    let mut rows = Vec::new();
    for image in &images {
        for name in names(image, digests) {
            rows.push(image_row(image, &name, trunc));
        }
    }
    let table = format.is_empty() || format == "table";
    let text = match m.flag("quiet") && (table || !m.changed("format")) {
        true => render("{{.ID}}", IMAGES, &rows),
        false if m.flag("digests") => render(&format, IMAGES_DIGESTS, &rows),
        false => render(&format, IMAGES, &rows),
    };
    ctx.out(&text?)
}

/// Repository, tag and digest of one line.
type Name = (String, String, String);

/// The lines that an image has: one for each name.
fn names(image: &ImageSummary, digests: bool) -> Vec<Name> {
    const NONE: &str = "<none>";
    let mut by_repo: BTreeMap<&str, (Vec<&str>, Vec<&str>)> = BTreeMap::new();
    let mut order = Vec::new();
    for name in &image.repo_tags {
        // A colon of a port stands before a slash.
        if let Some((repo, tag)) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))
            && repo != NONE
        {
            by_repo
                .entry(repo)
                .or_insert_with(|| {
                    order.push(repo);
                    Default::default()
                })
                .0
                .push(tag);
        }
    }
    for name in &image.repo_digests {
        if let Some((repo, digest)) = name.split_once('@').filter(|(repo, _)| *repo != NONE) {
            by_repo
                .entry(repo)
                .or_insert_with(|| {
                    order.push(repo);
                    Default::default()
                })
                .1
                .push(digest);
        }
    }
    let mut out = Vec::new();
    for repo in order {
        let (tags, all) = &by_repo[repo];
        let shown: &[&str] = if digests && !all.is_empty() { all } else { &[NONE] };
        let tags: &[&str] = if tags.is_empty() { &[NONE] } else { tags };
        for tag in tags {
            for digest in shown {
                out.push((repo.to_owned(), (*tag).to_owned(), (*digest).to_owned()));
            }
        }
    }
    if out.is_empty() {
        out.push((NONE.to_owned(), NONE.to_owned(), NONE.to_owned()));
    }
    out
}

fn image_row(image: &ImageSummary, (repo, tag, digest): &Name, trunc: bool) -> Row {
    let count = |n: i64| if n < 0 { "N/A".to_owned() } else { n.to_string() };
    let size = |n: i64| if n < 0 { "N/A".to_owned() } else { units::size4(n) };
    let unique = if image.shared_size < 0 { -1 } else { image.size - image.shared_size };
    Row::new([
        ("ID", if trunc { short_id(&image.id) } else { image.id.as_str() }.into()),
        ("Repository", repo.as_str().into()),
        ("Tag", tag.as_str().into()),
        ("Digest", digest.as_str().into()),
        // docker's client has no age for Go's zero time alone; 0, which is 1970, has one.
        (
            "CreatedSince",
            if image.created == GO_ZERO { String::new() } else { units::ago(image.created) }.into(),
        ),
        ("CreatedAt", units::go_time(image.created).into()),
        ("Size", units::size3(image.size).into()),
        ("Containers", count(image.containers).into()),
        ("VirtualSize", units::size4(image.size).into()),
        ("SharedSize", size(image.shared_size).into()),
        ("UniqueSize", size(unique).into()),
    ])
}

pub(crate) async fn squash(ctx: &Ctx, m: Matches) -> Result<()> {
    let options = SquashOptions {
        tag: m.string("tag"),
        from: m.string("from"),
        platform: m.string("platform"),
        comment: m.string("message"),
    };
    let id = ctx.client()?.image_squash(&m.args[0], &options).await?;
    ctx.line(&id)
}

pub(crate) async fn tag(ctx: &Ctx, m: Matches) -> Result<()> {
    let target: types::ImageRef = m.args[1].parse().map_err(|e: types::ReferenceError| {
        Error::Invalid(format!(
            "Error parsing reference: {:?} is not a valid repository/tag: {e}",
            m.args[1]
        ))
    })?;
    if target.digest().is_some() {
        return Err("refusing to create a tag with a digest reference".into());
    }
    let target = target.with_default_tag();
    let client = ctx.client()?;
    client.image_tag(&m.args[0], &target.familiar_name(), target.tag().unwrap_or_default()).await?;
    Ok(())
}

pub(crate) async fn rm(ctx: &Ctx, m: Matches) -> Result<()> {
    let client = ctx.client()?;
    let force = m.flag("force");
    let platforms = m.slice("platform");
    let (mut errors, mut fatal) = (Vec::new(), false);
    for name in &m.args {
        match client.image_remove(name, force, m.flag("no-prune"), &platforms).await {
            Ok(items) => {
                for item in items {
                    match item.deleted.is_empty() {
                        false => ctx.line(&format!("Deleted: {}", item.deleted))?,
                        true => ctx.line(&format!("Untagged: {}", item.untagged))?,
                    }
                }
            }
            Err(e) => {
                fatal |= !e.is_not_found();
                errors.push(e.to_string());
            }
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    let text = errors.join("\n");
    if force && !fatal {
        ctx.note(&text);
        return Ok(());
    }
    Err(Error::Invalid(text))
}

const HISTORY: Columns = Columns {
    headers: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
    default: &["ID", "CreatedSince", "CreatedBy", "Size", "Comment"],
};
const HISTORY_EXACT: Columns = Columns {
    headers: HISTORY.headers,
    default: &["ID", "CreatedAt", "CreatedBy", "Size", "Comment"],
};

pub(crate) async fn history(ctx: &Ctx, m: Matches) -> Result<()> {
    let items = ctx.client()?.image_history(&m.args[0], m.text("platform")).await?;
    let (human, trunc) = (m.flag("human"), !m.flag("no-trunc"));
    let rows: Vec<Row> = items.iter().map(|item| history_row(item, human, trunc)).collect();
    let format = if m.flag("quiet") { "{{.ID}}" } else { m.text("format") };
    ctx.out(&render(format, if human { HISTORY } else { HISTORY_EXACT }, &rows)?)
}

/// docker's `history` shows no age of what says to be older than 2000 (docker/cli 28
/// `cli/command/image/formatter_history.go`): steps without a time are told as made in 1970.
const MILLENNIUM: i64 = 946_684_800;
/// Go's zero time, January 1 of the year 1.
const GO_ZERO: i64 = -62_135_596_800;

fn history_row(item: &HistoryItem, human: bool, trunc: bool) -> Row {
    let by = item.created_by.replace('\t', " ");
    let (since, size) = match human {
        true => (units::ago(item.created), units::size3(item.size)),
        false => (units::rfc3339(item.created), item.size.to_string()),
    };
    let since = if human && item.created <= MILLENNIUM { "N/A".to_owned() } else { since };
    Row::new([
        ("ID", if trunc { short_id(&item.id) } else { item.id.as_str() }.into()),
        ("CreatedSince", since.into()),
        ("CreatedAt", units::rfc3339(item.created).into()),
        ("CreatedBy", if trunc { ellipsis(&by, 45) } else { by }.into()),
        ("Size", size.into()),
        ("Comment", item.comment.as_str().into()),
    ])
}

const SEARCH: Columns = Columns {
    headers: &[
        ("Name", "NAME"),
        ("Description", "DESCRIPTION"),
        ("StarCount", "STARS"),
        ("IsOfficial", "OFFICIAL"),
    ],
    default: &["Name", "Description", "StarCount", "IsOfficial"],
};

pub(crate) async fn search(ctx: &Ctx, m: Matches) -> Result<()> {
    let term = &m.args[0];
    let server = match term.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host.to_owned(),
        _ => HUB.to_owned(),
    };
    let auth = ctx.config.borrow().credentials(&server)?;
    let client = ctx.client()?;
    let found =
        client.image_search(term, m.given_int("limit"), &m.filters("filter"), Some(&auth)).await?;
    let trunc = !m.flag("no-trunc");
    let rows: Vec<Row> = found
        .iter()
        .map(|result| {
            let description = result.description.replace(['\n', '\r'], " ");
            let description = if trunc { ellipsis(&description, 45) } else { description };
            Row::new([
                ("Name", result.name.as_str().into()),
                ("Description", description.into()),
                ("StarCount", result.star_count.to_string().into()),
                ("IsOfficial", if result.is_official { "[OK]" } else { "" }.into()),
            ])
        })
        .collect();
    ctx.out(&render(m.text("format"), SEARCH, &rows)?)
}

pub(crate) async fn prune(ctx: &Ctx, m: Matches) -> Result<()> {
    let all = m.flag("all");
    let warning = match all {
        true => "This will remove all images without at least one container associated to them.",
        false => "This will remove all dangling images.",
    };
    if !confirm_prune(&m, warning)? {
        return Ok(());
    }
    let mut filters = prune_filters(ctx, &m);
    filters.add("dangling", if all { "false" } else { "true" });
    let report = ctx.client()?.image_prune(&filters).await?;
    ctx.out(&deleted_images(&report))?;
    ctx.line(&reclaimed(report.space_reclaimed))
}

/// The list of what an image prune removed.
pub(crate) fn deleted_images(report: &api_types::ImagesPruneReport) -> String {
    if report.images_deleted.is_empty() {
        return String::new();
    }
    let mut text = "Deleted Images:\n".to_owned();
    for item in &report.images_deleted {
        match item.untagged.is_empty() {
            false => text.push_str(&format!("untagged: {}\n", item.untagged)),
            true => text.push_str(&format!("deleted: {}\n", item.deleted)),
        }
    }
    text.push('\n');
    text
}

pub(crate) async fn builder_prune(ctx: &Ctx, m: Matches) -> Result<()> {
    let warning = match m.flag("all") {
        true => "This will remove all build cache.",
        false => "This will remove all dangling build cache.",
    };
    if !confirm_prune(&m, warning)? {
        return Ok(());
    }
    let filters = prune_filters(ctx, &m);
    let report =
        ctx.client()?.build_prune(m.flag("all"), m.bytes("keep-storage"), &filters).await?;
    if !report.caches_deleted.is_empty() {
        ctx.out(&format!(
            "Deleted build cache objects:\n{}\n\n",
            report.caches_deleted.join("\n")
        ))?;
    }
    ctx.line(&reclaimed(report.space_reclaimed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_an_image() {
        let name = |r: &str, t: &str, d: &str| (r.to_owned(), t.to_owned(), d.to_owned());
        let mut image = ImageSummary {
            repo_tags: vec!["h:5000/a:1".into(), "h:5000/a:2".into(), "b:latest".into()],
            repo_digests: vec!["h:5000/a@sha256:x".into(), "c@sha256:y".into()],
            ..Default::default()
        };
        assert_eq!(
            names(&image, false),
            [
                name("h:5000/a", "1", "<none>"),
                name("h:5000/a", "2", "<none>"),
                name("b", "latest", "<none>"),
                name("c", "<none>", "<none>"),
            ]
        );
        assert_eq!(names(&image, true)[0], name("h:5000/a", "1", "sha256:x"));
        image.repo_tags = vec!["<none>:<none>".into()];
        image.repo_digests = vec!["<none>@<none>".into()];
        assert_eq!(names(&image, true), [name("<none>", "<none>", "<none>")]);
    }

    /// docker/cli 28: `images` has no age for Go's zero time, `history` none for what is older than 2000.
    #[test]
    fn ages() {
        let row = |created| {
            let image = ImageSummary { created, ..Default::default() };
            let row = image_row(&image, &("r".into(), "t".into(), "d".into()), true);
            render("{{.CreatedSince}}|", HISTORY, &[row]).unwrap_or_else(|e| e.to_string())
        };
        let step = |created, human| {
            let item = HistoryItem { created, ..Default::default() };
            let row = history_row(&item, human, true);
            render("{{.CreatedSince}}|", HISTORY, &[row]).unwrap_or_else(|e| e.to_string())
        };
        assert_eq!(row(GO_ZERO), "|\n");
        assert!(row(0).ends_with(" years ago|\n"), "{}", row(0));
        for created in [GO_ZERO, 0, MILLENNIUM] {
            assert_eq!(step(created, true), "N/A|\n");
        }
        assert!(step(MILLENNIUM + 1, true).ends_with(" years ago|\n"));
        assert!(
            step(0, false).starts_with("1970-01-01T") || step(0, false).starts_with("1969-12-31T")
        );
    }
}

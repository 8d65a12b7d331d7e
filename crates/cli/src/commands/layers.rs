//! `image layers`: what each layer brings, and what would shrink the image.

use api_types::{ImageLayer, ImageLayers, LayerAdvice, LayerFile};

use crate::commands::ellipsis;
use crate::ctx::Ctx;
use crate::error::Result;
use crate::flags::Matches;
use crate::fmt::rows::{Columns, Row, render, render_value};
use crate::fmt::table::{LIST, align};
use crate::fmt::units::size3;

const COLUMNS: Columns = Columns {
    headers: &[
        ("Layer", "LAYER"),
        ("Added", "ADDED"),
        ("Overwritten", "OVERWRITTEN"),
        ("Deleted", "DELETED"),
        ("Files", "FILES"),
        ("Removals", "REMOVALS"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Digest", "DIGEST"),
        ("DiffID", "DIFF ID"),
    ],
    default: &["Layer", "Added", "Overwritten", "Deleted", "Files", "CreatedBy"],
};
/// Columns of an instruction's text that are shown.
const CREATED_BY: usize = 60;
/// Files named per advice, unless everything is wanted in full.
const EXAMPLES: usize = 3;

pub(crate) async fn layers(ctx: &Ctx, m: Matches) -> Result<()> {
    let client = ctx.client()?;
    let found = client.image_layers(&m.args[0], m.text("platform"), m.int("top")).await?;
    let (format, trunc) = (m.text("format"), !m.flag("no-trunc"));
    if format == "json" {
        return ctx.out(&render_value(format, &serde_json::json!(found))?);
    }
    let rows: Vec<Row> =
        found.layers.iter().zip(1..).map(|(layer, number)| row(layer, number, trunc)).collect();
    let table = render(format, COLUMNS, &rows)?;
    if !matches!(format, "" | "table") {
        return ctx.out(&table);
    }
    let mut text = format!(
        "{table}\nSeen in the image: {} in {} files\n",
        size3(found.seen),
        found.seen_files
    );
    let top = usize::try_from(m.int("top")).unwrap_or(0);
    text.push_str(&largest(&found, top));
    text.push_str(&advice(&found.advice, found.saving, trunc));
    ctx.out(&text)
}

fn row(layer: &ImageLayer, number: i64, trunc: bool) -> Row {
    let by = match layer.created_by.as_str() {
        "" => "<missing>".to_owned(),
        by => by.replace(['\t', '\n'], " "),
    };
    Row::new([
        ("Layer", number.into()),
        ("Added", size3(layer.added).into()),
        ("Overwritten", size3(layer.overwritten).into()),
        ("Deleted", size3(layer.deleted).into()),
        ("Files", layer.files.into()),
        ("Removals", layer.removals.into()),
        ("CreatedBy", if trunc { ellipsis(&by, CREATED_BY) } else { by }.into()),
        ("Size", size3(layer.size).into()),
        ("Digest", layer.digest.as_str().into()),
        ("DiffID", layer.diff_id.as_str().into()),
    ])
}

/// The largest files of all layers.
fn largest(found: &ImageLayers, top: usize) -> String {
    let mut files: Vec<(i64, &LayerFile)> = found
        .layers
        .iter()
        .zip(1..)
        .flat_map(|(layer, number)| layer.largest.iter().map(move |file| (number, file)))
        .collect();
    files.sort_by_key(|(number, file)| (std::cmp::Reverse(file.size), *number));
    files.truncate(top);
    if files.is_empty() {
        return String::new();
    }
    let mut text = "SIZE\tLAYER\tFATE\tPATH\n".to_owned();
    for (number, file) in files {
        let fate = match file.by {
            0 => file.fate.clone(),
            by => format!("{} by {by}", file.fate),
        };
        text.push_str(&format!("{}\t{number}\t{fate}\t{}\n", size3(file.size), plain(&file.path)));
    }
    format!("\nLargest files:\n\n{}", align(&text, LIST))
}

fn advice(list: &[LayerAdvice], saving: i64, trunc: bool) -> String {
    if list.is_empty() {
        return "\nNothing was found that would shrink it.\n".to_owned();
    }
    let mut text = format!("\nWhat would shrink it, by {} at most:\n", size3(saving));
    for one in list {
        let files = if one.files == 1 { "file" } else { "files" };
        text.push_str(&format!(
            "\nLayer {}: {} in {} {files}: {}\n",
            one.layer,
            size3(one.size),
            one.files,
            one.advice
        ));
        let shown = if trunc { EXAMPLES } else { usize::MAX };
        for example in one.examples.iter().take(shown) {
            let original = match example.original.as_str() {
                "" => String::new(),
                original => format!(" (as {})", plain(original)),
            };
            text.push_str(&format!(
                "  {}  {}{original}\n",
                size3(example.size),
                plain(&example.path)
            ));
        }
    }
    text
}

/// A path of an image, which a terminal must not take for more than text.
fn plain(path: &str) -> String {
    path.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_all_layers_come_first() {
        let file =
            |path: &str, size| LayerFile { path: path.into(), size, fate: "seen".into(), by: 0 };
        let layer = |largest| ImageLayer { largest, ..ImageLayer::default() };
        let found = ImageLayers {
            layers: vec![layer(vec![file("/b", 2), file("/d", 1)]), layer(vec![file("/a\x1b", 3)])],
            ..ImageLayers::default()
        };
        let text = largest(&found, 2);
        let paths: Vec<&str> =
            text.lines().filter_map(|line| line.rsplit_once(' ').map(|(_, path)| path)).collect();
        assert_eq!(paths, ["files:", "PATH", "/a?", "/b"]);
    }
}

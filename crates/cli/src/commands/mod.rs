//! The commands.

pub(crate) mod build;
pub(crate) mod build_context;
pub(crate) mod container;
pub(crate) mod context;
pub(crate) mod cp;
pub(crate) mod df;
pub(crate) mod exec;
pub(crate) mod image;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod layers;
pub(crate) mod layout;
pub(crate) mod login;
pub(crate) mod network;
pub(crate) mod ps;
pub(crate) mod pull;
pub(crate) mod run;
pub(crate) mod stats;
pub(crate) mod system;
pub(crate) mod transfer;
pub(crate) mod version;
pub(crate) mod volume;

use std::io::Write;

use futures_util::StreamExt;

use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;

/// Objects of one command line handled at the same time.
const PARALLEL: usize = 50;

/// Calls `f` for each name, several at a time; prints in the order given what each gives, and
/// fails at the end if any failed.
pub(crate) async fn each<F, Fut>(ctx: &Ctx, names: &[String], f: F) -> Result<()>
where
    F: Fn(String) -> Fut,
    Fut: Future<Output = Result<String>>,
{
    let mut results = futures_util::stream::iter(names.iter().cloned().map(f)).buffered(PARALLEL);
    let mut errors = Vec::new();
    while let Some(result) = results.next().await {
        match result {
            Ok(text) if text.is_empty() => {}
            Ok(text) => ctx.line(&text)?,
            Err(e) => errors.push(e.to_string()),
        }
    }
    fail_with(errors)
}

/// One error out of several, each on a line.
pub(crate) fn fail_with(errors: Vec<String>) -> Result<()> {
    if errors.is_empty() { Ok(()) } else { Err(Error::Invalid(errors.join("\n"))) }
}

/// Asks a question on the terminal; anything but `y` is no, and so is the end of the input.
pub(crate) fn confirm(question: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    write!(out, "{question} [y/N] ").and_then(|()| out.flush()).map_err(Error::output)?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|source| Error::Stream { what: "read stdin", source })?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}

/// Asks before something is pruned, unless `--force`. A no ends the command.
pub(crate) fn confirm_prune(m: &Matches, warning: &str) -> Result<bool> {
    if m.flag("force") {
        return Ok(true);
    }
    confirm(&format!("WARNING! {warning}\nAre you sure you want to continue?"))
}

/// The filters of a prune command: its flags, and `pruneFilters` of config.json.
pub(crate) fn prune_filters(ctx: &Ctx, m: &Matches) -> api_types::Filters {
    let mut filters = m.filters("filter");
    for filter in ctx.config.borrow().strings("pruneFilters") {
        let Some((key, value)) = filter.split_once('=') else { continue };
        // What was said on the command line counts more.
        if key == "until" && filters.contains("until") {
            continue;
        }
        filters.add(key, value);
    }
    filters
}

/// The format of a list: `--format`, or the one of config.json.
pub(crate) fn list_format(ctx: &Ctx, m: &Matches, key: &str) -> String {
    match m.given("format") {
        Some(format) => format.to_owned(),
        None => ctx.config.borrow().text(key).to_owned(),
    }
}

/// The first twelve digits of an id, without the algorithm.
pub(crate) fn short_id(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id)
}

/// Cuts a text to `width` characters, the last being an ellipsis.
pub(crate) fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortened() {
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("abc"), "abc");
        assert_eq!(ellipsis("twenty characters!!!", 20), "twenty characters!!!");
        assert_eq!(ellipsis("twenty-one characters", 20), "twenty-one characte…");
    }
}

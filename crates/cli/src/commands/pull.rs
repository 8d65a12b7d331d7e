//! `pull`, `push`, and credentials for both.

use api_types::AuthConfig;
use types::ImageRef;

use crate::commands::run::platform;
use crate::config::server_key;
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::progress::{Sink, show};

/// A reference, or `None` for what can only be an image ID.
pub(crate) fn parse_any(text: &str) -> Result<Option<ImageRef>> {
    match text.parse::<ImageRef>() {
        Ok(reference) => Ok(Some(reference)),
        Err(types::ReferenceError::LooksLikeId(_)) => Ok(None),
        Err(e) => Err(Error::Invalid(e.to_string())),
    }
}

fn parse(text: &str) -> Result<ImageRef> {
    text.parse().map_err(|e: types::ReferenceError| Error::Invalid(e.to_string()))
}

/// The credentials for the registry of a reference.
pub(crate) fn credentials(ctx: &Ctx, reference: &ImageRef) -> Result<AuthConfig> {
    ctx.config.borrow().credentials(&server_key(reference.domain()))
}

/// Tag or digest, as the API's `tag` parameter wants it.
fn api_tag(reference: &ImageRef) -> String {
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or_default().to_owned(),
    }
}

async fn fetch(ctx: &Ctx, reference: &ImageRef, platform: &str, sink: Sink) -> Result<()> {
    let auth = credentials(ctx, reference)?;
    let client = ctx.client()?;
    let messages = client
        .image_pull(&reference.familiar_name(), &api_tag(reference), platform, Some(&auth))
        .await?;
    show(messages, sink, |_, _| {}).await
}

/// The pull before a create: progress goes to stderr.
pub(crate) async fn for_create(
    ctx: &Ctx,
    reference: &ImageRef,
    platform: &str,
    quiet: bool,
) -> Result<()> {
    let reference = reference.clone().with_default_tag();
    fetch(ctx, &reference, platform, if quiet { Sink::Nowhere } else { Sink::Stderr }).await
}

pub(crate) async fn pull(ctx: &Ctx, m: Matches) -> Result<()> {
    let mut reference = parse(&m.args[0])?;
    let quiet = m.flag("quiet");
    let bare = reference.tag().is_none() && reference.digest().is_none();
    if m.flag("all-tags") {
        if !bare {
            return Err("tag can't be used with --all-tags/-a".into());
        }
    } else if bare {
        reference = reference.with_default_tag();
        if !quiet {
            ctx.line(&format!("Using default tag: {}", reference.tag().unwrap_or_default()))?;
        }
    }
    let sink = if quiet { Sink::Nowhere } else { Sink::Stdout };
    fetch(ctx, &reference, &platform(&m), sink).await?;
    ctx.line(&reference.to_string())
}

pub(crate) async fn push(ctx: &Ctx, m: Matches) -> Result<()> {
    let mut reference = parse(&m.args[0])?;
    let quiet = m.flag("quiet");
    if m.flag("all-tags") {
        if reference.tag().is_some() || reference.digest().is_some() {
            return Err("tag can't be used with --all-tags/-a".into());
        }
    } else if reference.tag().is_none() && reference.digest().is_none() {
        reference = reference.with_default_tag();
        if !quiet {
            ctx.line(&format!("Using default tag: {}", reference.tag().unwrap_or_default()))?;
        }
    }
    let auth = credentials(ctx, &reference)?;
    let client = ctx.client()?;
    let tag = reference.tag().unwrap_or_default();
    let messages =
        client.image_push(&reference.familiar_name(), tag, m.text("platform"), &auth).await?;
    show(messages, if quiet { Sink::Nowhere } else { Sink::Stdout }, |_, _| {}).await?;
    if quiet { ctx.line(&reference.to_string()) } else { Ok(()) }
}

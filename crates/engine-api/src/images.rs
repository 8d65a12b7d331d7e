//! Images and builds.

use api_types::{BuildOptions, IdResponse};
use bytes::Bytes;
use engine::{Messages, SquashOptions};
use http::StatusCode;
use serde_json::{Value, json};
use types::{ErrorKind, ImageRef, Platform};

use crate::{
    body::{bytes_reply, json as json_reply, ok, stream},
    error::{ApiError, Reply, empty},
    request::Context,
    route::Route,
    server::misrouted,
};

/// Files that are named per layer where the client does not say how many.
const LARGEST: usize = 5;

pub(crate) async fn dispatch(route: Route, context: &mut Context) -> Reply {
    let engine = context.engine.clone();
    match route {
        Route::ImageList => list(context).await,
        Route::ImageCreate => create(context).await,
        Route::ImageInspect => {
            refuse_manifests(context)?;
            let platform = context.query.platform()?;
            let mut image = engine.image_inspect(&context.name, platform.as_ref()).await?;
            if !context.version.at_least(44) {
                image.virtual_size = image.size;
            }
            if !context.version.at_least(48) {
                image.descriptor = None;
            }
            let mut image = serde_json::to_value(&image)
                .map_err(|e| ApiError::new(ErrorKind::Internal, e.to_string()))?;
            legacy_config(&mut image["Config"], |minor| context.version.at_least(minor));
            ok(&image)
        }
        Route::ImageHistory => {
            let platform = context.query.platform()?;
            ok(&engine.image_history(&context.name, platform.as_ref()).await?)
        }
        Route::ImageSquash => squash(context).await,
        // An extension: docker has no such call.
        Route::ImageLayers => {
            let platform = context.query.platform()?;
            let top = context.query.number("top")?.unwrap_or(LARGEST);
            ok(&engine.image_layers(&context.name, platform.as_ref(), top).await?)
        }
        Route::ImagePush => {
            let (platform, auth) = (context.query.platform()?, context.registry_auth());
            let tag = context.query.get("tag");
            reply(engine.image_push(&context.name, tag, (platform, auth)).await?).await
        }
        Route::ImageTag => {
            let (repository, tag) = (context.query.get("repo"), context.query.get("tag"));
            engine.image_tag(&context.name, repository, tag).await?;
            Ok(empty(StatusCode::CREATED))
        }
        Route::ImageDelete => {
            if context.query.has("platforms") {
                return Err(ApiError::not_implemented("removing single platforms of an image"));
            }
            // `noprune` keeps parents without a name: no image here has such parents.
            ok(&engine.image_remove(&context.name, context.query.flag("force")).await?)
        }
        Route::ImageSearch => Err(ApiError::not_implemented("searching a registry for images")),
        Route::Attestations => Err(ApiError::not_implemented("attestations of an image")),
        Route::ImagesPrune => ok(&engine.image_prune(&context.query.filters()?).await?),
        Route::ImageSave | Route::ImagesSave => save(route, context).await,
        Route::ImageLoad => load(context).await,
        Route::Build => build(context).await,
        Route::BuildPrune => build_prune(context).await,
        Route::BuildCancel => {
            Err(ApiError::not_implemented("cancelling a BuildKit build by its id"))
        }
        other => misrouted(other),
    }
}

/// Sends messages on. A failure before the first one becomes the HTTP status, as in dockerd; a later one
/// is the last message.
async fn reply(mut messages: Messages) -> Reply {
    let first = match messages.recv().await {
        Some(Err(failure)) => return Err(failure.error.into()),
        first => first,
    };
    let (sender, response) = stream("application/json");
    tokio::spawn(async move {
        let mut next = first;
        while let Some(item) = next {
            let message = item.unwrap_or_else(|failure| failure.message());
            let Ok(mut line) = serde_json::to_vec(&message) else { return };
            line.extend_from_slice(b"\r\n");
            if sender.send(Ok(Bytes::from(line))).await.is_err() {
                return;
            }
            next = tokio::select! {
                biased;
                () = sender.closed() => None,
                item = messages.recv() => item,
            };
        }
    });
    Ok(response)
}

/// Since 1.47; without them the reply would say that an image has none.
fn refuse_manifests(context: &Context) -> Result<(), ApiError> {
    if context.version.at_least(47) && context.query.flag("manifests") {
        return Err(ApiError::not_implemented("telling an image's manifests (manifests=1)"));
    }
    Ok(())
}

async fn list(context: &Context) -> Reply {
    refuse_manifests(context)?;
    let mut filters = context.query.filters()?;
    // Gone since 1.41; older clients' `filter` was a reference.
    if !context.version.at_least(41)
        && let Some(reference) = context.query.optional("filter")
    {
        filters.add("reference", reference);
    }
    let mut images = context.engine.image_list(&filters).await?;
    if context.query.flag("shared-size") {
        let shared = context.engine.image_shared_sizes().await?;
        for image in &mut images {
            image.shared_size = shared.get(&image.id).copied().unwrap_or(0);
        }
    }
    for image in &mut images {
        if !context.version.at_least(44) {
            image.virtual_size = image.size;
        }
        if !context.version.at_least(48) {
            image.descriptor = None;
        }
    }
    ok(&images)
}

/// Fields that older clients find in an image's `Config` though they are empty: all that a container has
/// below 1.50, an image's own below 1.52 (moby `imageInspect`).
fn legacy_config(config: &mut Value, at_least: impl Fn(u16) -> bool) {
    let (Some(config), false) = (config.as_object_mut(), at_least(52)) else { return };
    let mut empty = vec![("User", json!("")), ("WorkingDir", json!(""))];
    let nulls = ["Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "Volumes"];
    empty.extend(nulls.map(|name| (name, Value::Null)));
    if !at_least(50) {
        empty.extend(["Domainname", "Hostname", "Image"].map(|name| (name, json!(""))));
        let flags =
            ["AttachStderr", "AttachStdin", "AttachStdout", "OpenStdin", "StdinOnce", "Tty"];
        empty.extend(flags.map(|name| (name, json!(false))));
    }
    for (name, value) in empty {
        config.entry(name).or_insert(value);
    }
}

/// `fromImage` pulls, `fromSrc` imports.
async fn create(context: &mut Context) -> Reply {
    let platform = context.query.platform()?;
    let query = &context.query;
    if let Some(name) = query.optional("fromImage").map(str::to_owned) {
        return pull(context, &name, platform).await;
    }
    let Some(source) = query.optional("fromSrc").map(str::to_owned) else {
        return Err(ApiError::bad("either fromImage or fromSrc is needed"));
    };
    // moby `builder/remotecontext/urlutil`: a name without a scheme is one of http.
    let url = match source.as_str() {
        "-" => None,
        url if url.starts_with("http://") || url.starts_with("https://") => Some(url.to_owned()),
        name => Some(format!("http://{name}")),
    };
    let reference = match query.optional("repo") {
        None => None,
        Some(repository) => {
            let reference: ImageRef = repository.parse()?;
            Some(match query.optional("tag") {
                Some(tag) => reference.with_tag(tag)?,
                None => reference.with_default_tag(),
            })
        }
    };
    let lines = query.all("changes").iter().flat_map(|c| c.lines().map(str::to_owned)).collect();
    let message = query.get("message").to_owned();
    let archive = context.upload();
    let id = context
        .engine
        .image_import((archive, url.as_deref()), reference, (message, lines, platform))
        .await?;
    let (sender, response) = stream("application/json");
    let line = serde_json::json!({ "status": id.to_string() });
    drop(sender.send(Ok(Bytes::from(format!("{line}\r\n")))).await);
    Ok(response)
}

async fn pull(context: &Context, name: &str, platform: Option<Platform>) -> Reply {
    let engine = &context.engine;
    let auth = context.registry_auth();
    let reference: ImageRef = name.parse()?;
    let reference = match context.query.optional("tag") {
        Some(tag) if tag.contains(':') => format!("{name}@{tag}").parse()?,
        Some(tag) => reference.with_tag(tag)?,
        None if reference.tag().is_none() && reference.digest().is_none() => {
            return reply(engine.image_pull_all(reference, platform, auth).await?).await;
        }
        None => reference,
    };
    reply(engine.image_pull(reference, platform, auth).await?).await
}

async fn save(route: Route, context: &Context) -> Reply {
    let names = match route {
        Route::ImageSave => vec![context.name.clone()],
        _ => context.query.all("names"),
    };
    if names.is_empty() {
        return Err(ApiError::bad("names of images are needed"));
    }
    let tar = context.engine.image_save(&names, context.query.platforms()?).await?;
    Ok(bytes_reply("application/x-tar", tar))
}

/// An extension: docker has no such call.
async fn squash(context: &Context) -> Reply {
    let query = &context.query;
    let options = SquashOptions {
        tag: query.get("t").into(),
        from: query.get("from").into(),
        platform: query.platform()?,
        comment: query.get("comment").into(),
    };
    let id = context.engine.image_squash(&context.name, options).await?.to_string();
    json_reply(StatusCode::CREATED, &IdResponse { id })
}

async fn load(context: &mut Context) -> Reply {
    let platforms = context.query.platforms()?;
    let archive = context.upload();
    reply(context.engine.image_load(archive, platforms).await?).await
}

async fn build(context: &mut Context) -> Reply {
    let options = BuildOptions::from_query(context.query.pairs())
        .map_err(|error| ApiError::bad(error.to_string()))?;
    if options.version == "2" || !options.session.is_empty() {
        return Err(ApiError::not_implemented(
            "building through a BuildKit session (set DOCKER_BUILDKIT=0: the same Dockerfile features are offered there)",
        ));
    }
    let auth = context.registry_config();
    let body = context.upload();
    reply(context.engine.build(options, body, auth).await?).await
}

async fn build_prune(context: &Context) -> Reply {
    let query = &context.query;
    for name in ["max-used-space", "min-free-space"] {
        if query.optional(name).is_some_and(|value| value != "0") {
            return Err(ApiError::new(
                ErrorKind::NotImplemented,
                format!("build/prune: {name} is not supported by this engine yet"),
            ));
        }
    }
    let keep: Option<u64> = match query.number("reserved-space")? {
        None => query.number("keep-storage")?,
        some => some,
    };
    let filters = query.filters()?;
    ok(&context.engine.build_prune(query.flag("all"), keep.unwrap_or(0), &filters).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(version: u16) -> Vec<String> {
        let mut config = json!({ "Cmd": ["sh"] });
        legacy_config(&mut config, |minor| version >= minor);
        assert_eq!(config["Cmd"], json!(["sh"]));
        config.as_object().into_iter().flat_map(|config| config.keys().cloned()).collect()
    }

    #[test]
    fn older_clients_find_empty_fields_too() {
        assert_eq!(keys(52), ["Cmd"]);
        let image =
            ["Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "User", "Volumes", "WorkingDir"];
        let mut found = keys(51);
        found.sort();
        assert_eq!(found, image);
        assert_eq!(keys(49).len(), 17);
    }
}

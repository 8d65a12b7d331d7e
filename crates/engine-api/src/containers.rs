//! Containers, execs, and files in containers.

use api_types::{
    ContainerCreateBody, ContainerCreateResponse, ExecCreate, IdResponse, PathStat, UpdateBody,
};
use base64::Engine as _;
use engine::{ArchivePut, CommitOptions, ListOptions, RemoveOptions};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::{BodyExt, Limited};

use crate::{
    body::{bytes_reply, json, ok},
    error::{ApiError, Reply, empty},
    request::{Context, parse_platform},
    route::Route,
    server::misrouted,
};

const TAR: &str = "application/x-tar";
/// Bytes that a start's body may have: moby takes no more for empty.
const START_BODY_BYTES: usize = 7;

pub(crate) async fn dispatch(route: Route, context: &mut Context) -> Reply {
    match route {
        Route::ContainerList => list(context).await,
        Route::ContainerCreate => create(context).await,
        Route::ContainersPrune => {
            ok(&context.engine.container_prune(&context.query.filters()?).await?)
        }
        Route::ContainerInspect => {
            let size = context.query.flag("size");
            ok(&context.engine.container_inspect(&context.name, size).await?)
        }
        Route::ContainerTop => {
            let arguments = context.query.optional("ps_args").unwrap_or("-ef");
            ok(&context.engine.container_top(&context.name, arguments).await?)
        }
        Route::ContainerChanges => ok(&context.engine.container_changes(&context.name).await?),
        Route::ContainerExport => {
            let tar = context.engine.container_export(&context.name).await?;
            Ok(bytes_reply("application/octet-stream", tar))
        }
        Route::ContainerResize | Route::ExecResize => resize(route, context).await,
        Route::ContainerUpdate => {
            let body: UpdateBody = context.json().await?;
            ok(&context.engine.container_update(&context.name, body).await?)
        }
        Route::ContainerDelete => {
            let query = &context.query;
            let options = RemoveOptions {
                force: query.flag("force"),
                volumes: query.flag("v"),
                link: query.flag("link"),
            };
            context.engine.container_remove(&context.name, options).await?;
            no_content()
        }
        Route::ArchiveStat | Route::ArchiveGet | Route::ArchivePut => archive(route, context).await,
        Route::Checkpoints => Err(ApiError::not_implemented("checkpoints")),
        Route::ExecCreate => {
            let body: ExecCreate = context.json().await?;
            let id = context.engine.exec_create(&context.name, body)?;
            json(StatusCode::CREATED, &IdResponse { id })
        }
        Route::ExecInspect => ok(&context.engine.exec_inspect(&context.name)?),
        Route::Commit => commit(context).await,
        other => lifecycle(other, context).await,
    }
}

fn no_content() -> Reply {
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn lifecycle(route: Route, context: &mut Context) -> Reply {
    let engine = context.engine.clone();
    let (name, query) = (context.name.clone(), &context.query);
    match route {
        Route::ContainerStart => {
            if query.optional("checkpoint").is_some() {
                return Err(ApiError::not_implemented("starting from a checkpoint"));
            }
            if let Some(body) = context.body.take() {
                Limited::new(body, START_BODY_BYTES).collect().await.map_err(|_| {
                    ApiError::bad("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
                })?;
            }
            engine.container_start(&name).await?;
        }
        Route::ContainerStop => {
            engine.container_stop(&name, signal(context), query.number("t")?).await?;
        }
        Route::ContainerRestart => {
            engine.container_restart(&name, signal(context), query.number("t")?).await?;
        }
        Route::ContainerKill => engine.container_kill(&name, query.get("signal")).await?,
        Route::ContainerRename => engine.container_rename(&name, query.get("name")).await?,
        Route::ContainerPause => engine.container_pause(&name).await?,
        Route::ContainerUnpause => engine.container_unpause(&name).await?,
        other => return misrouted(other),
    }
    no_content()
}

/// The parameter exists since 1.42; older clients' is ignored as it was then.
fn signal(context: &Context) -> Option<&str> {
    context.query.optional("signal").filter(|_| context.version.at_least(42))
}

async fn list(context: &Context) -> Reply {
    let query = &context.query;
    let limit: i64 = query.number("limit")?.unwrap_or(0);
    let options = ListOptions {
        all: query.flag("all"),
        limit: usize::try_from(limit).unwrap_or(0),
        size: query.flag("size"),
        filters: query.filters()?,
    };
    ok(&context.engine.container_list(options).await?)
}

async fn create(context: &mut Context) -> Reply {
    let Some(body) = context.json::<Option<ContainerCreateBody>>().await? else {
        return Err(ApiError::bad("config cannot be empty in order to create a container"));
    };
    let name = context.query.optional("name").map(str::to_owned);
    let platform = context.query.optional("platform").map(parse_platform).transpose()?;
    let created = context.engine.container_create(name.as_deref(), platform, body).await?;
    let reply = ContainerCreateResponse { id: created.id.to_string(), warnings: created.warnings };
    json(StatusCode::CREATED, &reply)
}

async fn resize(route: Route, context: &Context) -> Reply {
    let side = |key: &str| -> Result<u16, ApiError> {
        match context.query.number(key)? {
            Some(cells) => Ok(cells),
            None => Err(ApiError::bad(format!(
                "invalid resize {key}: \"\": a number of cells is needed"
            ))),
        }
    };
    let (height, width) = (side("h")?, side("w")?);
    match route {
        Route::ExecResize => context.engine.exec_resize(&context.name, width, height).await?,
        _ => context.engine.container_resize(&context.name, width, height).await?,
    }
    Ok(empty(StatusCode::OK))
}

fn put_stat(headers: &mut HeaderMap, stat: &PathStat) -> Result<(), ApiError> {
    let failed =
        |e: String| ApiError::new(types::ErrorKind::Internal, format!("encode the stat: {e}"));
    let text = serde_json::to_vec(stat).map_err(|e| failed(e.to_string()))?;
    let text = base64::engine::general_purpose::STANDARD.encode(text);
    let value = HeaderValue::from_str(&text).map_err(|e| failed(e.to_string()))?;
    headers.insert("x-docker-container-path-stat", value);
    Ok(())
}

async fn archive(route: Route, context: &mut Context) -> Reply {
    let engine = context.engine.clone();
    let Some(path) = context.query.optional("path").map(str::to_owned) else {
        return Err(ApiError::bad("bad parameter: path cannot be empty"));
    };
    match route {
        Route::ArchiveStat => {
            let stat = engine.archive_stat(&context.name, &path).await?;
            let mut response = empty(StatusCode::OK);
            put_stat(response.headers_mut(), &stat)?;
            Ok(response)
        }
        Route::ArchiveGet => {
            let found = engine.archive_get(&context.name, &path).await?;
            let mut response = bytes_reply(TAR, found.tar);
            put_stat(response.headers_mut(), &found.stat)?;
            Ok(response)
        }
        _ => {
            let put = ArchivePut {
                path,
                no_overwrite_dir_non_dir: context.query.flag("noOverwriteDirNonDir"),
                copy_uid_gid: context.query.flag("copyUIDGID"),
            };
            let body = context.upload();
            engine.archive_put(&context.name, put, body).await?;
            Ok(empty(StatusCode::OK))
        }
    }
}

async fn commit(context: &mut Context) -> Reply {
    let body = context.json().await?;
    let query = &context.query;
    let changes = query.all("changes").iter().flat_map(|c| c.lines().map(str::to_owned)).collect();
    let options = CommitOptions {
        container: query.get("container").into(),
        repository: query.get("repo").into(),
        tag: query.get("tag").into(),
        comment: query.get("comment").into(),
        author: query.get("author").into(),
        pause: query.flag_or_yes("pause"),
        changes,
    };
    let id = context.engine.commit(options, body).await?.to_string();
    json(StatusCode::CREATED, &IdResponse { id })
}

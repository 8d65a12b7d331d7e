//! The engine itself: ping, version, info, events, disk usage; and what is not offered.

use api_types::AuthConfig;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use types::ErrorKind;

use crate::{
    body::{full, ok, stream},
    error::{ApiError, Reply, empty},
    request::Context,
    route::Route,
    server::{insert, misrouted},
};

const NO_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm \
                        join\" to connect this node to swarm and try again.";
/// What `GET /system/df?type=` may name.
const USAGE_TYPES: &[&str] = &["container", "image", "volume", "build-cache"];

pub(crate) async fn dispatch(route: Route, context: &mut Context) -> Reply {
    let engine = context.engine.clone();
    match route {
        Route::Ping => Ok(ping(context)),
        Route::Info => ok(&engine.info().await?),
        Route::Version => ok(&engine.version()),
        Route::Events => events(context),
        Route::DiskUsage => disk_usage(context).await,
        Route::Auth => {
            let auth: AuthConfig = context.json().await?;
            ok(&engine.auth(auth).await?)
        }
        Route::Distribution => {
            ok(&engine.distribution(&context.name, context.registry_auth()).await?)
        }
        Route::PluginList => ok(&[(); 0]),
        Route::Plugins => Err(ApiError::not_implemented("the plugin interface")),
        Route::Swarm => Err(ApiError::new(ErrorKind::Unavailable, NO_SWARM)),
        Route::Session => Err(ApiError::not_implemented("BuildKit's session")),
        Route::Grpc => Err(ApiError::not_implemented("BuildKit's gRPC interface")),
        other => misrouted(other),
    }
}

fn ping(context: &Context) -> http::Response<crate::body::Body> {
    let mut response = if context.parts.method == Method::HEAD {
        empty(StatusCode::OK)
    } else {
        let mut response = empty(StatusCode::OK);
        *response.body_mut() = full("OK");
        response
    };
    let headers = response.headers_mut();
    insert(headers, "builder-version", "1");
    insert(headers, "swarm", "inactive");
    insert(headers, "pragma", "no-cache");
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, must-revalidate"),
    );
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if context.parts.method == Method::HEAD {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    response
}

fn events(context: &Context) -> Reply {
    let query = &context.query;
    let time = |key: &str| query.optional(key).map(engine::parse_time).transpose();
    let mut events = context.engine.events(time("since")?, time("until")?, query.filters()?)?;
    let (sender, response) = stream("application/json");
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                biased;
                () = sender.closed() => return,
                event = events.next() => event,
            };
            let Some(mut line) = event.and_then(|event| serde_json::to_vec(&event).ok()) else {
                return;
            };
            line.push(b'\n');
            if sender.send(Ok(Bytes::from(line))).await.is_err() {
                return;
            }
        }
    });
    Ok(response)
}

async fn disk_usage(context: &Context) -> Reply {
    let types = context.query.all("type");
    if let Some(bad) = types.iter().find(|name| !USAGE_TYPES.contains(&name.as_str())) {
        return Err(ApiError::bad(format!("unknown object type: {bad}")));
    }
    let mut usage = context.engine.disk_usage().await?;
    if !types.is_empty() {
        let wanted = |name: &str| types.iter().any(|t| t == name);
        if !wanted("container") {
            usage.containers.clear();
        }
        if !wanted("image") {
            usage.images.clear();
            usage.layers_size = 0;
        }
        if !wanted("volume") {
            usage.volumes.clear();
        }
        if !wanted("build-cache") {
            usage.build_cache.clear();
        }
    }
    ok(&usage)
}

//! Networks and volumes.

use api_types::{NetworkConnect, NetworkCreate, NetworkDisconnect, VolumeCreate, VolumeList};
use http::StatusCode;
use types::ErrorKind;

use crate::{
    body::{json, ok},
    error::{ApiError, Reply, empty},
    request::Context,
    route::Route,
    server::misrouted,
};

pub(crate) async fn dispatch(route: Route, context: &mut Context) -> Reply {
    let engine = context.engine.clone();
    match route {
        Route::NetworkList => ok(&engine.network_list(&context.query.filters()?)?),
        Route::NetworkCreate => {
            let body: NetworkCreate = context.json().await?;
            json(StatusCode::CREATED, &engine.network_create(body).await?)
        }
        Route::NetworkInspect => {
            let scope = context.query.get("scope");
            if !scope.is_empty() && scope != "local" {
                return Err(ApiError::new(
                    ErrorKind::NotFound,
                    format!("network {} not found", context.name),
                ));
            }
            ok(&engine.network_inspect(&context.name)?)
        }
        Route::NetworkDelete => {
            engine.network_remove(&context.name).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        Route::NetworkConnect => {
            let body: NetworkConnect = context.json().await?;
            engine.network_connect(&context.name, body).await?;
            Ok(empty(StatusCode::OK))
        }
        Route::NetworkDisconnect => {
            let body: NetworkDisconnect = context.json().await?;
            engine.network_disconnect(&context.name, body).await?;
            Ok(empty(StatusCode::OK))
        }
        Route::NetworksPrune => ok(&engine.network_prune(&context.query.filters()?).await?),
        other => volumes(other, context).await,
    }
}

async fn volumes(route: Route, context: &mut Context) -> Reply {
    let engine = context.engine.clone();
    match route {
        Route::VolumeList => {
            let volumes = engine.volume_list(&context.query.filters()?)?;
            ok(&VolumeList { volumes, warnings: Vec::new() })
        }
        Route::VolumeCreate => {
            let body: VolumeCreate = context.json().await?;
            json(StatusCode::CREATED, &engine.volume_create(body)?)
        }
        Route::VolumeInspect => ok(&engine.volume_inspect(&context.name)?),
        Route::VolumeUpdate => Err(ApiError::new(
            ErrorKind::Unavailable,
            "only volumes of a swarm can be updated, and this engine offers no swarm",
        )),
        Route::VolumeDelete => {
            engine.volume_remove(&context.name, context.query.flag("force")).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        Route::VolumesPrune => {
            let all_by_default = !context.version.at_least(42);
            ok(&engine.volume_prune(&context.query.filters()?, all_by_default).await?)
        }
        other => misrouted(other),
    }
}

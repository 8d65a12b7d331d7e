use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use tonic::{Request, Response, Status};

use crate::{
    context::Context,
    grpc::BoxStream,
    services::health::{self as api, serving_status},
};

/// The server as a whole is the one service that there is: containerd registers no other.
pub(crate) struct Health(pub(crate) Arc<Context>);

impl api::Health for Health {
    async fn check(
        &self,
        request: Request<api::HealthCheckRequest>,
    ) -> Result<Response<api::HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(api::HealthCheckResponse { status: serving_status::SERVING }))
    }

    async fn watch(
        &self,
        request: Request<api::HealthCheckRequest>,
    ) -> Result<Response<BoxStream<api::HealthCheckResponse>>, Status> {
        let (first, last) = if request.get_ref().service.is_empty() {
            (serving_status::SERVING, serving_status::NOT_SERVING)
        } else {
            (serving_status::SERVICE_UNKNOWN, serving_status::SERVICE_UNKNOWN)
        };
        let shutdown = self.0.shutdown.clone();
        let end = stream::once(async move {
            shutdown.cancelled().await;
            Ok(api::HealthCheckResponse { status: last })
        });
        let start = stream::iter([Ok(api::HealthCheckResponse { status: first })]);
        Ok(Response::new(start.chain(end).boxed()))
    }
}

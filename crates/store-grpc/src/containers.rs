use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use store_api::{Container, ContainerPatch, RuntimeInfo, Timestamp};
use tonic::{Request, Response, Status};

use crate::{
    context::{Context, status},
    convert::{any_in, any_out, paths, required, timestamp},
    grpc::BoxStream,
    services::containers as api,
};

pub(crate) struct Containers(pub(crate) Arc<Context>);

fn container_out(container: Container) -> api::Container {
    api::Container {
        id: container.id,
        labels: container.labels,
        image: container.image,
        runtime: Some(api::Runtime {
            name: container.runtime.name,
            options: container.runtime.options.map(any_out),
        }),
        spec: container.spec.map(any_out),
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        created_at: timestamp(container.created_at),
        updated_at: timestamp(container.updated_at),
        extensions: container.extensions.into_iter().map(|(k, v)| (k, any_out(v))).collect(),
        sandbox: container.sandbox_id,
    }
}

/// The times are the store's to set.
fn container_in(container: Option<api::Container>) -> Result<Container, Status> {
    let container = required("container", container)?;
    let runtime = container.runtime.unwrap_or_default();
    Ok(Container {
        id: container.id,
        labels: container.labels,
        image: container.image,
        runtime: RuntimeInfo { name: runtime.name, options: runtime.options.map(any_in) },
        spec: container.spec.map(any_in),
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
        extensions: container.extensions.into_iter().map(|(k, v)| (k, any_in(v))).collect(),
        sandbox_id: container.sandbox,
    })
}

impl api::Containers for Containers {
    async fn get(
        &self,
        request: Request<api::GetContainerRequest>,
    ) -> Result<Response<api::GetContainerResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let found = services.containers.get(&request.get_ref().id).await.map_err(status)?;
        let container = Some(container_out(found));
        Ok(Response::new(api::GetContainerResponse { container }))
    }

    async fn list(
        &self,
        request: Request<api::ListContainersRequest>,
    ) -> Result<Response<api::ListContainersResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let all = services.containers.list(&request.get_ref().filters).await.map_err(status)?;
        let containers = all.into_iter().map(container_out).collect();
        Ok(Response::new(api::ListContainersResponse { containers }))
    }

    async fn list_stream(
        &self,
        request: Request<api::ListContainersRequest>,
    ) -> Result<Response<BoxStream<api::ListContainerMessage>>, Status> {
        let services = self.0.services(request.metadata())?;
        let all = services.containers.list(&request.get_ref().filters).await.map_err(status)?;
        let messages = stream::iter(all)
            .map(|c| Ok(api::ListContainerMessage { container: Some(container_out(c)) }));
        Ok(Response::new(messages.boxed()))
    }

    async fn create(
        &self,
        request: Request<api::CreateContainerRequest>,
    ) -> Result<Response<api::CreateContainerResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let new = container_in(request.into_inner().container)?;
        let container = Some(container_out(services.containers.create(new).await.map_err(status)?));
        Ok(Response::new(api::CreateContainerResponse { container }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateContainerRequest>,
    ) -> Result<Response<api::UpdateContainerResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let request = request.into_inner();
        let patch = ContainerPatch {
            container: container_in(request.container)?,
            field_paths: paths(request.update_mask),
        };
        let updated = services.containers.update(patch).await.map_err(status)?;
        let container = Some(container_out(updated));
        Ok(Response::new(api::UpdateContainerResponse { container }))
    }

    async fn delete(
        &self,
        request: Request<api::DeleteContainerRequest>,
    ) -> Result<Response<()>, Status> {
        let services = self.0.services(request.metadata())?;
        services.containers.delete(&request.get_ref().id).await.map_err(status)?;
        Ok(Response::new(()))
    }
}

use std::sync::Arc;

use store_api::{Lease, Resource, ResourceKind, Services};
use tonic::{Request, Response, Status};

use crate::{
    context::{Context, status},
    convert::{digest, required, timestamp, unimplemented},
    services::leases as api,
};

pub(crate) struct Leases(pub(crate) Arc<Context>);

fn lease_out(lease: Lease) -> api::Lease {
    api::Lease { id: lease.id, created_at: timestamp(lease.created_at), labels: lease.labels }
}

/// containerd's types: `content`, `ingests`, `snapshots/SNAPSHOTTER`.
fn resource_in(services: &Services, resource: Option<api::Resource>) -> Result<Resource, Status> {
    let resource = required("resource", resource)?;
    let kind = match resource.kind.split_once('/') {
        None if resource.kind == "content" => {
            digest(&resource.id)?;
            ResourceKind::Content
        }
        None if resource.kind == "ingests" => ResourceKind::Ingest,
        Some(("snapshots", name)) if name == services.snapshots.name() => ResourceKind::Snapshot,
        _ => return Err(unimplemented(format!("the resource type {:?}", resource.kind))),
    };
    Ok(Resource { kind, id: resource.id })
}

fn resource_out(services: &Services, resource: Resource) -> api::Resource {
    let kind = match resource.kind {
        ResourceKind::Content => "content".to_owned(),
        ResourceKind::Ingest => "ingests".to_owned(),
        ResourceKind::Snapshot => format!("snapshots/{}", services.snapshots.name()),
    };
    api::Resource { id: resource.id, kind }
}

impl api::Leases for Leases {
    async fn create(
        &self,
        request: Request<api::CreateRequest>,
    ) -> Result<Response<api::CreateResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let request = request.into_inner();
        let lease = services.leases.create(&request.id, request.labels).await.map_err(status)?;
        Ok(Response::new(api::CreateResponse { lease: Some(lease_out(lease)) }))
    }

    async fn delete(&self, request: Request<api::DeleteRequest>) -> Result<Response<()>, Status> {
        let services = self.0.services(request.metadata())?;
        let request = request.into_inner();
        services.leases.delete(&request.id, request.sync).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn list(
        &self,
        request: Request<api::ListRequest>,
    ) -> Result<Response<api::ListResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let all = services.leases.list(&request.get_ref().filters).await.map_err(status)?;
        let leases = all.into_iter().map(lease_out).collect();
        Ok(Response::new(api::ListResponse { leases }))
    }

    async fn add_resource(
        &self,
        request: Request<api::AddResourceRequest>,
    ) -> Result<Response<()>, Status> {
        let services = self.0.services(request.metadata())?;
        let request = request.into_inner();
        let resource = resource_in(&services, request.resource)?;
        services.leases.add_resource(&request.id, resource).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn delete_resource(
        &self,
        request: Request<api::DeleteResourceRequest>,
    ) -> Result<Response<()>, Status> {
        let services = self.0.services(request.metadata())?;
        let request = request.into_inner();
        let resource = resource_in(&services, request.resource)?;
        services.leases.delete_resource(&request.id, resource).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn list_resources(
        &self,
        request: Request<api::ListResourcesRequest>,
    ) -> Result<Response<api::ListResourcesResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let all = services.leases.resources(&request.get_ref().id).await.map_err(status)?;
        let resources = all.into_iter().map(|resource| resource_out(&services, resource)).collect();
        Ok(Response::new(api::ListResourcesResponse { resources }))
    }
}

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use store_api::{Resource, ResourceKind, Services, SnapshotInfo, SnapshotKind};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::{
    context::{Context, status},
    convert::{label_keys, mounts_out, required, size_out, timestamp, unimplemented},
    grpc::BoxStream,
    services::snapshots::{self as api, kind},
};

/// Entries in one message of a list, as containerd sends them.
const BATCH: usize = 100;

pub(crate) struct Snapshots(pub(crate) Arc<Context>);

impl Snapshots {
    /// The services, if the call asks for the snapshotter that there is.
    fn services(&self, headers: &MetadataMap, snapshotter: &str) -> Result<Services, Status> {
        let services = self.0.services(headers)?;
        if snapshotter.is_empty() {
            return Err(Status::invalid_argument("snapshotter argument missing: invalid argument"));
        }
        if snapshotter != services.snapshots.name() {
            return Err(Status::invalid_argument(format!(
                "snapshotter not loaded: {snapshotter}: invalid argument"
            )));
        }
        Ok(services)
    }
}

fn snapshot(key: &str) -> Resource {
    Resource { kind: ResourceKind::Snapshot, id: key.to_owned() }
}

fn parent(name: &str) -> Option<&str> {
    (!name.is_empty()).then_some(name)
}

fn info_out(info: SnapshotInfo) -> api::Info {
    api::Info {
        name: info.name,
        parent: info.parent.unwrap_or_default(),
        kind: match info.kind {
            SnapshotKind::View => kind::VIEW,
            SnapshotKind::Active => kind::ACTIVE,
            SnapshotKind::Committed => kind::COMMITTED,
        },
        created_at: timestamp(info.created_at),
        updated_at: timestamp(info.updated_at),
        labels: info.labels,
    }
}

impl api::Snapshots for Snapshots {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        let services = self.services(request.metadata(), &request.get_ref().snapshotter)?;
        let headers = request.metadata().clone();
        let request = request.into_inner();
        self.0.hold(&headers, &services, || snapshot(&request.key)).await?;
        let (key, below) = (&request.key, parent(&request.parent));
        let mounts =
            services.snapshots.prepare(key, below, request.labels).await.map_err(status)?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts: mounts_out(mounts) }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        let services = self.services(request.metadata(), &request.get_ref().snapshotter)?;
        let headers = request.metadata().clone();
        let request = request.into_inner();
        self.0.hold(&headers, &services, || snapshot(&request.key)).await?;
        let (key, below) = (&request.key, parent(&request.parent));
        let mounts = services.snapshots.view(key, below, request.labels).await.map_err(status)?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts: mounts_out(mounts) }))
    }

    async fn mounts(
        &self,
        request: Request<api::MountsRequest>,
    ) -> Result<Response<api::MountsResponse>, Status> {
        let services = self.services(request.metadata(), &request.get_ref().snapshotter)?;
        let mounts = services.snapshots.mounts(&request.get_ref().key).await.map_err(status)?;
        Ok(Response::new(api::MountsResponse { mounts: mounts_out(mounts) }))
    }

    async fn commit(
        &self,
        request: Request<api::CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let services = self.services(request.metadata(), &request.get_ref().snapshotter)?;
        let headers = request.metadata().clone();
        let request = request.into_inner();
        if !request.parent.is_empty() {
            return Err(unimplemented(format!(
                "a commit onto another parent ({:?})",
                request.parent
            )));
        }
        self.0.hold(&headers, &services, || snapshot(&request.name)).await?;
        let snapshots = &services.snapshots;
        snapshots.commit(&request.name, &request.key, request.labels).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<api::RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let services = self.services(request.metadata(), &request.get_ref().snapshotter)?;
        services.snapshots.remove(&request.get_ref().key).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        let services = self.services(request.metadata(), &request.get_ref().snapshotter)?;
        let info = services.snapshots.stat(&request.get_ref().key).await.map_err(status)?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(info_out(info)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        let services = self.services(request.metadata(), &request.get_ref().snapshotter)?;
        let request = request.into_inner();
        let new = required("snapshot info", request.info)?;
        let keys = label_keys(&format!("snapshot {:?}", new.name), request.update_mask)?;
        let updated =
            services.snapshots.update(&new.name, new.labels, &keys).await.map_err(status)?;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(info_out(updated)) }))
    }

    async fn list(
        &self,
        request: Request<api::ListSnapshotsRequest>,
    ) -> Result<Response<BoxStream<api::ListSnapshotsResponse>>, Status> {
        let services = self.services(request.metadata(), &request.get_ref().snapshotter)?;
        let all = services.snapshots.list(&request.get_ref().filters).await.map_err(status)?;
        let batches = stream::iter(all)
            .map(info_out)
            .chunks(BATCH)
            .map(|info| Ok(api::ListSnapshotsResponse { info }));
        Ok(Response::new(batches.boxed()))
    }

    async fn usage(
        &self,
        request: Request<api::UsageRequest>,
    ) -> Result<Response<api::UsageResponse>, Status> {
        let services = self.services(request.metadata(), &request.get_ref().snapshotter)?;
        let usage = services.snapshots.usage(&request.get_ref().key).await.map_err(status)?;
        Ok(Response::new(api::UsageResponse {
            size: size_out(usage.bytes),
            inodes: size_out(usage.inodes),
        }))
    }

    /// Everything that nothing refers to, at once: the store has no narrower broom.
    async fn cleanup(&self, request: Request<api::CleanupRequest>) -> Result<Response<()>, Status> {
        let services = self.services(request.metadata(), &request.get_ref().snapshotter)?;
        services.extras.collect_garbage().await.map_err(status)?;
        Ok(Response::new(()))
    }
}

use std::sync::Arc;

use store_api::DiffRequest;
use tonic::{Request, Response, Status};

use crate::{
    context::{Context, status},
    convert::{descriptor_in, descriptor_out, epoch_in, mounts_in, unimplemented},
    services::diff as api,
};

pub(crate) struct Diff(pub(crate) Arc<Context>);

impl api::Diff for Diff {
    async fn apply(
        &self,
        request: Request<api::ApplyRequest>,
    ) -> Result<Response<api::ApplyResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let request = request.into_inner();
        if let Some(kind) = request.payloads.keys().next() {
            return Err(unimplemented(format!("a payload for the processor of {kind:?}")));
        }
        let layer = descriptor_in("diff", request.diff)?;
        let mounts = mounts_in(request.mounts)?;
        let applied = services.diffs.apply(&layer, &mounts).await.map_err(status)?;
        if request.sync_fs {
            services.diffs.sync(&mounts).await.map_err(status)?;
        }
        Ok(Response::new(api::ApplyResponse { applied: descriptor_out(applied) }))
    }

    async fn diff(
        &self,
        request: Request<api::DiffRequest>,
    ) -> Result<Response<api::DiffResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let headers = request.metadata().clone();
        let request = request.into_inner();
        let wanted = DiffRequest {
            lower: mounts_in(request.left)?,
            upper: mounts_in(request.right)?,
            media_type: request.media_type,
            reference: request.reference,
            labels: request.labels,
            clamp_mtime: epoch_in(request.source_date_epoch)?.map(|at| at.seconds),
        };
        let made = services.diffs.diff(wanted).await.map_err(status)?;
        let content = || store_api::Resource {
            kind: store_api::ResourceKind::Content,
            id: made.digest.to_string(),
        };
        self.0.hold(&headers, &services, content).await?;
        Ok(Response::new(api::DiffResponse { diff: descriptor_out(made) }))
    }
}

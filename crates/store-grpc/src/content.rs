use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use store_api::{ContentInfo, IngestStatus, Services};
use tonic::{Request, Response, Status, Streaming};
use types::Digest;

use crate::{
    context::{Context, status},
    convert::{digest, label_keys, required, size_in, size_out, timestamp},
    grpc::BoxStream,
    services::content as api,
    writer::Writer,
};

/// Entries in one message of a list, as containerd sends them.
const BATCH: usize = 100;
/// Bytes of content in one message.
const CHUNK_BYTES: usize = 1 << 20;

pub(crate) struct Content(pub(crate) Arc<Context>);

fn info_out(info: ContentInfo) -> api::Info {
    api::Info {
        digest: info.digest.to_string(),
        size: size_out(info.size),
        created_at: timestamp(info.created_at),
        updated_at: timestamp(info.updated_at),
        labels: info.labels,
    }
}

fn status_out(ingest: IngestStatus) -> api::Status {
    api::Status {
        started_at: timestamp(ingest.started_at),
        updated_at: timestamp(ingest.updated_at),
        reference: ingest.reference,
        offset: size_out(ingest.offset),
        total: size_out(ingest.total),
        expected: ingest.expected.map(|digest| digest.to_string()).unwrap_or_default(),
    }
}

/// A blob that is being sent.
struct Reading {
    services: Services,
    digest: Digest,
    offset: u64,
    end: u64,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(api::ReadContentResponse, Self)>, Status> {
        if self.offset >= self.end {
            return Ok(None);
        }
        let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        let limit = left.min(CHUNK_BYTES);
        let read = self.services.content.read_at(&self.digest, self.offset, limit).await;
        let data: Bytes = read.map_err(status)?;
        if data.is_empty() {
            let text = format!("content {} is shorter than its record says", self.digest);
            return Err(Status::data_loss(text));
        }
        let offset = size_out(self.offset);
        self.offset += u64::try_from(data.len()).unwrap_or(0);
        Ok(Some((api::ReadContentResponse { offset, data }, self)))
    }
}

impl api::Content for Content {
    async fn info(
        &self,
        request: Request<api::InfoRequest>,
    ) -> Result<Response<api::InfoResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let digest = digest(&request.get_ref().digest)?;
        let info = services.content.info(&digest).await.map_err(status)?;
        Ok(Response::new(api::InfoResponse { info: Some(info_out(info)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateRequest>,
    ) -> Result<Response<api::UpdateResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let request = request.into_inner();
        let new = required("content info", request.info)?;
        let digest = digest(&new.digest)?;
        let keys = label_keys(&format!("content {digest}"), request.update_mask)?;
        let updated = services.content.update(&digest, new.labels, &keys).await.map_err(status)?;
        Ok(Response::new(api::UpdateResponse { info: Some(info_out(updated)) }))
    }

    async fn list(
        &self,
        request: Request<api::ListContentRequest>,
    ) -> Result<Response<BoxStream<api::ListContentResponse>>, Status> {
        let services = self.0.services(request.metadata())?;
        let all = services.content.list(&request.get_ref().filters).await.map_err(status)?;
        let batches = stream::iter(all)
            .map(info_out)
            .chunks(BATCH)
            .map(|info| Ok(api::ListContentResponse { info }));
        Ok(Response::new(batches.boxed()))
    }

    async fn delete(
        &self,
        request: Request<api::DeleteContentRequest>,
    ) -> Result<Response<()>, Status> {
        let services = self.0.services(request.metadata())?;
        let digest = digest(&request.get_ref().digest)?;
        services.content.delete(&digest).await.map_err(status)?;
        Ok(Response::new(()))
    }

    async fn read(
        &self,
        request: Request<api::ReadContentRequest>,
    ) -> Result<Response<BoxStream<api::ReadContentResponse>>, Status> {
        let services = self.0.services(request.metadata())?;
        let request = request.into_inner();
        let digest = digest(&request.digest)?;
        let total = services.content.info(&digest).await.map_err(status)?.size;
        let offset = size_in("offset", request.offset)?;
        let size = match size_in("size", request.size)? {
            0 => total.saturating_sub(offset),
            size => size,
        };
        let end = offset.checked_add(size).filter(|end| offset <= total && *end <= total);
        let Some(end) = end else {
            let text = format!("read past object length {total} bytes: out of range");
            return Err(Status::out_of_range(text));
        };
        let reading = Reading { services, digest, offset, end };
        Ok(Response::new(stream::try_unfold(reading, Reading::next).boxed()))
    }

    async fn status(
        &self,
        request: Request<api::StatusRequest>,
    ) -> Result<Response<api::StatusResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let reference = &request.get_ref().reference;
        let all = services.content.ingests(&[]).await.map_err(status)?;
        let found = all
            .into_iter()
            .find(|ingest| ingest.reference == *reference)
            .ok_or_else(|| status(store_api::Error::not_found("ingest", reference)))?;
        Ok(Response::new(api::StatusResponse { status: Some(status_out(found)) }))
    }

    async fn list_statuses(
        &self,
        request: Request<api::ListStatusesRequest>,
    ) -> Result<Response<api::ListStatusesResponse>, Status> {
        let services = self.0.services(request.metadata())?;
        let all = services.content.ingests(&request.get_ref().filters).await.map_err(status)?;
        let statuses = all.into_iter().map(status_out).collect();
        Ok(Response::new(api::ListStatusesResponse { statuses }))
    }

    async fn write(
        &self,
        request: Request<Streaming<api::WriteContentRequest>>,
    ) -> Result<Response<BoxStream<api::WriteContentResponse>>, Status> {
        let services = self.0.services(request.metadata())?;
        let (headers, _, requests) = request.into_parts();
        let writer = Writer::open(&self.0, services, &headers, requests).await?;
        Ok(Response::new(stream::try_unfold(writer, Writer::next).boxed()))
    }

    async fn abort(&self, request: Request<api::AbortRequest>) -> Result<Response<()>, Status> {
        let services = self.0.services(request.metadata())?;
        services.content.abort(&request.get_ref().reference).await.map_err(status)?;
        Ok(Response::new(()))
    }
}

//! A content write: a stream of requests, each answered once it is done.
//!
//! The first request names the reference. `STAT` tells how far the write is; `WRITE` appends (at
//! offset 0: begins anew); `COMMIT` appends what it brings, then commits and ends the stream. A
//! stream that ends without a commit leaves an ingest that can be taken up again.

use protos::containerd::content::{self as api, write_action};
use store_api::{Resource, ResourceKind, Services, Timestamp, WriteRequest};
use tonic::{Status, Streaming, metadata::MetadataMap};
use types::{Digest, ErrorKind};

use crate::{
    context::{Context, Lock, status},
    convert::{optional_digest, size_in, size_out, timestamp},
};

pub(crate) struct Writer {
    services: Services,
    requests: Streaming<api::WriteContentRequest>,
    first: Option<api::WriteContentRequest>,
    reference: String,
    expected: Option<Digest>,
    /// Bytes; 0: unknown.
    total: u64,
    offset: u64,
    started: Timestamp,
    updated: Timestamp,
    committed: bool,
    _lock: Lock,
}

/// Other bytes than were told of are a failed precondition to containerd's clients.
fn refused(error: store_api::Error) -> Status {
    match error.kind {
        ErrorKind::DataLoss => {
            Status::failed_precondition(format!("{}: failed precondition", error.message))
        }
        _ => status(error),
    }
}

impl Writer {
    /// Reads the first request and opens the write that it names.
    pub(crate) async fn open(
        context: &Context,
        services: Services,
        headers: &MetadataMap,
        mut requests: Streaming<api::WriteContentRequest>,
    ) -> Result<Self, Status> {
        let first = requests.message().await?.ok_or_else(|| {
            Status::invalid_argument("a write without a request: invalid argument")
        })?;
        if first.reference.is_empty() {
            let text = "first message must have a reference: invalid argument";
            return Err(Status::invalid_argument(text));
        }
        let reference = first.reference.clone();
        let lock = context.writers.lock(&services.namespace, &reference)?;
        let expected = optional_digest(&first.expected)?;
        let total = size_in("total", first.total)?;
        let ingest = || Resource { kind: ResourceKind::Ingest, id: reference.clone() };
        context.hold(headers, &services, ingest).await?;
        let request =
            WriteRequest { reference: reference.clone(), total, expected: expected.clone() };
        let opened = match services.content.open_writer(request).await {
            Ok(opened) => opened,
            Err(error) => {
                if let (true, Some(digest)) = (error.is_already_exists(), &expected) {
                    // The content that is there is what the lease is to hold.
                    let id = digest.to_string();
                    let content = || Resource { kind: ResourceKind::Content, id };
                    context.hold(headers, &services, content).await?;
                    // There is nothing to write.
                    let ingest = || Resource { kind: ResourceKind::Ingest, id: reference.clone() };
                    context.release(headers, &services, ingest).await?;
                }
                return Err(status(error));
            }
        };
        Ok(Self {
            services,
            requests,
            first: Some(first),
            reference,
            expected: expected.or(opened.expected),
            total: if total > 0 { total } else { opened.total },
            offset: opened.offset,
            started: opened.started_at,
            updated: opened.updated_at,
            committed: false,
            _lock: lock,
        })
    }

    /// The answer to the next request; `None` after the last.
    pub(crate) async fn next(
        mut self,
    ) -> Result<Option<(api::WriteContentResponse, Self)>, Status> {
        if self.committed {
            return Ok(None);
        }
        let next = match self.first.take() {
            Some(first) => Some(first),
            None => self.requests.message().await?,
        };
        let Some(request) = next else { return Ok(None) };
        let answer = self.answer(request).await?;
        Ok(Some((answer, self)))
    }

    async fn answer(
        &mut self,
        request: api::WriteContentRequest,
    ) -> Result<api::WriteContentResponse, Status> {
        self.learn(&request)?;
        let action = request.action;
        // containerd answers the digest so far: its clients take it for that of the blob where COMMIT
        // ends in `AlreadyExists`, which brings none.
        let digest = match action {
            write_action::STAT => self.so_far().await?,
            write_action::WRITE => {
                self.append(request).await?;
                self.so_far().await?
            }
            write_action::COMMIT => {
                let labels = request.labels.clone();
                self.append(request).await?;
                let (total, expected) = (self.total, self.expected.as_ref());
                let committed =
                    self.services.content.commit(&self.reference, total, expected, labels).await;
                self.committed = true;
                committed.map_err(refused)?
            }
            other => {
                let text = format!("write action {other} is unknown: invalid argument");
                return Err(Status::invalid_argument(text));
            }
        };
        Ok(api::WriteContentResponse {
            action,
            started_at: timestamp(self.started),
            updated_at: timestamp(self.updated),
            offset: size_out(self.offset),
            total: size_out(self.total),
            digest: digest.to_string(),
        })
    }

    async fn so_far(&self) -> Result<Digest, Status> {
        self.services.content.digest(&self.reference).await.map_err(status)
    }

    /// Size and digest may be told late, but not changed.
    fn learn(&mut self, request: &api::WriteContentRequest) -> Result<(), Status> {
        if !request.reference.is_empty() && request.reference != self.reference {
            let text = format!(
                "ref cannot be changed: {:?} != {:?}: invalid argument",
                self.reference, request.reference
            );
            return Err(Status::invalid_argument(text));
        }
        if let Some(told) = optional_digest(&request.expected)? {
            match &self.expected {
                Some(known) if *known != told => {
                    let text = format!(
                        "commit digest differs from writer digest: {told} != {known}: invalid argument"
                    );
                    return Err(Status::invalid_argument(text));
                }
                _ => self.expected = Some(told),
            }
        }
        let told = size_in("total", request.total)?;
        if told > 0 {
            if self.total > 0 && self.total != told {
                let text = format!(
                    "commit size differs from writer size: {told} != {}: invalid argument",
                    self.total
                );
                return Err(Status::invalid_argument(text));
            }
            self.total = told;
        }
        Ok(())
    }

    async fn append(&mut self, request: api::WriteContentRequest) -> Result<(), Status> {
        let at = size_in("offset", request.offset)?;
        if at > 0 && at != self.offset {
            let text =
                format!("write @{at} must occur at current offset {}: out of range", self.offset);
            return Err(Status::out_of_range(text));
        }
        if at == self.offset && request.data.is_empty() {
            return Ok(());
        }
        let written = self.services.content.write(&self.reference, at, request.data).await;
        self.offset = written.map_err(status)?;
        self.updated = Timestamp::now();
        Ok(())
    }
}

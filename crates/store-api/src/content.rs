use async_trait::async_trait;
use bytes::Bytes;
use types::Digest;

use crate::{Labels, Result, Timestamp};

/// A committed blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentInfo {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub labels: Labels,
}

/// An unfinished write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestStatus {
    pub reference: String,
    /// Bytes written so far.
    pub offset: u64,
    /// Bytes expected in all; 0 when unknown.
    pub total: u64,
    pub expected: Option<Digest>,
    pub started_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What is known of a write before it starts.
#[derive(Clone, Debug, Default)]
pub struct WriteRequest {
    pub reference: String,
    /// Bytes expected in all; 0 when unknown.
    pub total: u64,
    pub expected: Option<Digest>,
}

/// Blobs by digest: containerd's content service.
#[async_trait]
pub trait Content: Send + Sync {
    async fn info(&self, digest: &Digest) -> Result<ContentInfo>;
    async fn list(&self, filters: &[String]) -> Result<Vec<ContentInfo>>;
    /// Sets the labels whose keys are given (all of them when `keys` is empty); an empty value removes.
    async fn update(&self, digest: &Digest, labels: Labels, keys: &[String])
    -> Result<ContentInfo>;
    async fn delete(&self, digest: &Digest) -> Result<()>;
    /// At most `limit_bytes` from `offset`; an empty answer is the end.
    async fn read_at(&self, digest: &Digest, offset: u64, limit_bytes: usize) -> Result<Bytes>;
    /// Opens or re-opens a write. `AlreadyExists` when the expected blob is there.
    async fn open_writer(&self, request: WriteRequest) -> Result<IngestStatus>;
    /// Appends at `offset`, which must be the ingest's present end; an `offset` below it truncates.
    async fn write(&self, reference: &str, offset: u64, bytes: Bytes) -> Result<u64>;
    /// The digest of what was written to an ingest so far.
    async fn digest(&self, reference: &str) -> Result<Digest>;
    /// Verifies size (unless 0) and digest (if given) and makes the blob visible. It is durable at
    /// the latest when an image record that leads to it is: one sync covers all of an image's blobs.
    async fn commit(
        &self,
        reference: &str,
        size: u64,
        expected: Option<&Digest>,
        labels: Labels,
    ) -> Result<Digest>;
    async fn abort(&self, reference: &str) -> Result<()>;
    async fn ingests(&self, filters: &[String]) -> Result<Vec<IngestStatus>>;
}

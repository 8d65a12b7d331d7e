use async_trait::async_trait;

use crate::{Descriptor, Labels, Result, Timestamp};

/// A name for a piece of content: containerd's image record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// A full reference (`docker.io/library/alpine:latest`), or whatever a client chose.
    pub name: String,
    pub target: Descriptor,
    pub labels: Labels,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// containerd's images service. An image's content is kept for as long as its record is.
#[async_trait]
pub trait Images: Send + Sync {
    async fn get(&self, name: &str) -> Result<Image>;
    /// Filters in containerd's language (`name==x`, `labels."k"==v`, `target.digest~=re`); none: all.
    async fn list(&self, filters: &[String]) -> Result<Vec<Image>>;
    /// `AlreadyExists` if the name is taken.
    async fn create(&self, image: Image) -> Result<Image>;
    /// Replaces what `field_paths` names (everything when empty); `NotFound` without a record.
    async fn update(&self, image: Image, field_paths: &[String]) -> Result<Image>;
    /// Creates or replaces in one step.
    async fn put(&self, image: Image) -> Result<Image>;
    /// `sync` waits for the garbage collection that follows.
    async fn delete(&self, name: &str, sync: bool) -> Result<()>;
}

use async_trait::async_trait;

use crate::{Descriptor, Error, Labels, Result, Timestamp};

/// Bytes of an image's name: a reference has 255 and a tag or digest, clients' own names little more.
pub const IMAGE_NAME_BYTES: usize = 1024;

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

impl Image {
    /// Whether an image may have this name.
    ///
    /// # Errors
    /// `InvalidArgument`, with the name's beginning.
    pub fn check_name(name: &str) -> Result<()> {
        if (1..=IMAGE_NAME_BYTES).contains(&name.len()) && !name.contains('\0') {
            return Ok(());
        }
        let begin: String = name.chars().take(64).collect();
        Err(Error::invalid(format!(
            "image name {begin:?}: a name has 1 to {IMAGE_NAME_BYTES} bytes and no zero byte"
        )))
    }
}

/// containerd's images service. An image's content is kept for as long as its record is.
#[async_trait]
pub trait Images: Send + Sync {
    async fn get(&self, name: &str) -> Result<Image>;
    /// Filters in containerd's language (`name==x`, `labels."k"==v`, `target.digest~=re`); none: all.
    async fn list(&self, filters: &[String]) -> Result<Vec<Image>>;
    /// `AlreadyExists` if the name is taken. `at` is the record's time (SOURCE_DATE_EPOCH); `None`: now.
    async fn create(&self, image: Image, at: Option<Timestamp>) -> Result<Image>;
    /// Replaces what `field_paths` names (everything when empty); `NotFound` without a record. `at`: as of
    /// `create`, for the change.
    async fn update(
        &self,
        image: Image,
        field_paths: &[String],
        at: Option<Timestamp>,
    ) -> Result<Image>;
    /// Creates or replaces in one step.
    async fn put(&self, image: Image) -> Result<Image>;
    /// `sync` waits for the garbage collection that follows.
    async fn delete(&self, name: &str, sync: bool) -> Result<()>;
}

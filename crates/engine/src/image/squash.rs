//! `image squash`: an image of fewer layers out of one that is stored.

use std::sync::Arc;

use store_api::{SquashBase, SquashRequest};
use types::{Digest, ImageRef, Platform};

use crate::{Engine, Error, Result};

/// Query of `POST /images/{name}/squash`, which Docker does not have.
#[derive(Clone, Debug, Default)]
pub struct SquashOptions {
    /// The new image's name; empty: it has none.
    pub tag: String,
    /// The image whose layers stay; empty: all layers become one.
    pub from: String,
    /// Of several the image for this platform alone.
    pub platform: Option<Platform>,
    /// Of the entry in the history.
    pub comment: String,
}

impl Engine {
    /// Makes a new image; the old one stays, and loses its name if the new one takes it.
    ///
    /// # Errors
    /// `NotFound` when an image, or what is wanted of it, is not here; `InvalidArgument` for a bad name,
    /// a base that it does not stand on, or nothing above the base.
    pub async fn image_squash(
        self: &Arc<Self>,
        name: &str,
        options: SquashOptions,
    ) -> Result<Digest> {
        let tag = match options.tag.as_str() {
            "" => None,
            tag => Some(tag.parse::<ImageRef>()?),
        };
        if tag.as_ref().is_some_and(|tag| tag.digest().is_some()) {
            return Err(Error::invalid("refusing to create a tag with a digest reference"));
        }
        let tag = tag.map(ImageRef::with_default_tag);
        let known = self.find_image(name).await?;
        let base = match options.from.as_str() {
            "" => SquashBase::Layers(0),
            from => SquashBase::Image(self.find_image(from).await?.target.digest),
        };
        let request = SquashRequest {
            target: known.target.digest,
            base,
            platform: options.platform,
            comment: options.comment,
        };
        // What is there is kept when the client goes away in the middle: a name, or none.
        let engine = self.clone();
        let made = tokio::spawn(async move {
            let target = engine.services.extras.squash(request).await?;
            // Held while it is unpacked, and what is left of it without a name if that fails: the name
            // moves only to an image that is ready to run, and whose size is that of its files.
            engine.ensure_record(&target).await?;
            let shown = target.digest.to_string();
            match engine.unpack_for(&shown, &target, None).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
            if let Some(tag) = &tag {
                engine.put_image(&tag.to_string(), &target).await?;
                engine.drop_dangling(&target.digest).await?;
                engine.image_event("tag", &target.digest.to_string(), &tag.familiar());
            }
            Ok(target.digest)
        });
        made.await.map_err(|error| Error::internal(format!("squash {name}: {error}")))?
    }
}

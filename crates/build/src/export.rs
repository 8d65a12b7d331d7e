//! From a finished stage to an image: configuration, manifest, records.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use store_api::{
    Descriptor, Image, Labels, ResourceKind, Services, SquashBase, SquashRequest, Timestamp,
    WriteRequest, media_type,
};
use types::{Digest, limits};

use crate::{
    api::{BuildEvent, Built, DANGLING_PREFIX},
    build::Build,
    error::{Error, Result},
    files,
    session::Session,
    stage::Stage,
};

const REF_CONTENT: &str = "containerd.io/gc.ref.content";
const REF_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot";
/// Bytes asked for at once.
const READ_BYTES: usize = 1 << 20;

/// Reads a small blob whole and verifies it.
///
/// # Errors
/// Larger than `limit`, missing, or not what its digest says.
pub(crate) async fn read_blob(
    services: &Services,
    descriptor: &Descriptor,
    limit: usize,
) -> Result<Vec<u8>> {
    let digest = &descriptor.digest;
    let mut bytes = Vec::new();
    loop {
        let offset = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let piece = services.content.read_at(digest, offset, READ_BYTES).await;
        let piece = piece.map_err(Error::store(format!("read {digest}")))?;
        if piece.is_empty() {
            break;
        }
        bytes.extend_from_slice(&piece);
        if bytes.len() > limit {
            let limit = u64::try_from(limit).unwrap_or(u64::MAX);
            return Err(Error::Limit { what: "bytes of an image's configuration", limit });
        }
    }
    if !digest.matches(&bytes) {
        return Err(Error::Damaged(digest.clone()));
    }
    Ok(bytes)
}

async fn write_blob(
    session: &Session,
    media: &str,
    bytes: Vec<u8>,
    labels: Labels,
) -> Result<Descriptor> {
    let digest = Digest::sha256(&bytes);
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let content = &session.services.content;
    session.pin(ResourceKind::Content, digest.to_string()).await?;
    let reference = format!("gantry-build-{}", files::random_hex(16));
    let request =
        WriteRequest { reference: reference.clone(), total: size, expected: Some(digest.clone()) };
    let failed = |op: &str| Error::store(format!("{op} {digest}"));
    match content.open_writer(request).await {
        Ok(_) => {
            content.write(&reference, 0, Bytes::from(bytes)).await.map_err(failed("write"))?;
            match content.commit(&reference, size, Some(&digest), labels.clone()).await {
                Ok(_) => {}
                Err(error) if error.is_already_exists() => {
                    relabel(session, &digest, labels).await?;
                }
                Err(error) => return Err(failed("commit")(error)),
            }
        }
        Err(error) if error.is_already_exists() => relabel(session, &digest, labels).await?,
        Err(error) => return Err(failed("write")(error)),
    }
    Ok(Descriptor::new(media, digest, size))
}

async fn relabel(session: &Session, digest: &Digest, labels: Labels) -> Result<()> {
    let keys: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let updated = session.services.content.update(digest, labels, &keys).await;
    updated.map(drop).map_err(Error::store(format!("label {digest}")))
}

/// The OCI name of a layer's media type: Docker's mean the same bytes.
fn oci_layer(media: &str) -> &str {
    match media {
        media_type::DOCKER_LAYER_GZIP => media_type::OCI_LAYER_GZIP,
        media_type::DOCKER_LAYER => media_type::OCI_LAYER,
        other => other,
    }
}

/// The manifest of an image, whose digest is the image's id.
fn manifest(config: &Descriptor, layers: &[Descriptor]) -> Result<Vec<u8>> {
    let plain = |layer: &Descriptor| Descriptor {
        media_type: oci_layer(&layer.media_type).into(),
        ..layer.clone()
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": config,
        "layers": layers.iter().map(plain).collect::<Vec<_>>(),
    });
    serde_json::to_vec(&manifest).map_err(|source| Error::Json("manifest".into(), source))
}

/// The id that an image of these would have.
pub(crate) fn image_id(config: &[u8], layers: &[Descriptor]) -> Result<Digest> {
    let size = u64::try_from(config.len()).unwrap_or(u64::MAX);
    let config = Descriptor::new(media_type::OCI_CONFIG, Digest::sha256(config), size);
    manifest(&config, layers).map(Digest::sha256)
}

impl Build {
    /// Writes the target's image and its names, and says so in docker's words.
    pub(crate) async fn export(self: &Arc<Self>, stage: &Stage) -> Result<Built> {
        let mut config = stage.config.clone();
        let labels = self.labels.iter().map(|(name, value)| (name.clone(), json!(value)));
        if !self.labels.is_empty() {
            config.extend("Labels", labels);
        }
        let bytes = config.to_bytes(&stage.diff_ids)?;
        if bytes.len() > limits::IMAGE_CONFIG_BYTES {
            let limit = u64::try_from(limits::IMAGE_CONFIG_BYTES).unwrap_or(u64::MAX);
            return Err(Error::Limit { what: "bytes of an image's configuration", limit });
        }
        let session = &self.session;
        let mut labels = Labels::new();
        if let Some(chain) = &stage.chain {
            let name = session.services.snapshots.name();
            labels.insert(format!("{REF_SNAPSHOT}.{name}"), chain.to_string());
        }
        let config = write_blob(session, media_type::OCI_CONFIG, bytes, labels).await?;
        let mut target = self.write_manifest(&config, &stage.layers).await?;
        let mut config = config.digest;
        if self.squash && stage.layers.len() > stage.base_layers {
            (target, config) = self.squashed(&target, stage).await?;
        }
        self.check_cancelled()?;
        let names = self.name(&target).await?;
        let printer = &self.printer;
        printer.plain(BuildEvent::Aux { id: target.digest.clone() }).await;
        let built = format!("Successfully built {}\n", target.digest.short());
        printer.plain(BuildEvent::Stream(built)).await;
        for tag in &self.tags {
            let text = format!("Successfully tagged {}\n", tag.familiar());
            printer.plain(BuildEvent::Stream(text)).await;
        }
        Ok(Built { target, config, names })
    }

    async fn write_manifest(
        &self,
        config: &Descriptor,
        layers: &[Descriptor],
    ) -> Result<Descriptor> {
        let mut labels =
            Labels::from([(format!("{REF_CONTENT}.config"), config.digest.to_string())]);
        for (index, layer) in layers.iter().enumerate() {
            labels.insert(format!("{REF_CONTENT}.l.{index}"), layer.digest.to_string());
        }
        let bytes = manifest(config, layers)?;
        write_blob(&self.session, media_type::OCI_MANIFEST, bytes, labels).await
    }

    async fn squashed(&self, target: &Descriptor, stage: &Stage) -> Result<(Descriptor, Digest)> {
        let request = SquashRequest {
            target: target.digest.clone(),
            base: SquashBase::Layers(stage.base_layers),
            platform: Some(stage.platform.clone()),
            comment: String::new(),
        };
        let extras = &self.session.services.extras;
        let squashed = extras.squash(request).await.map_err(Error::store("squash the image"))?;
        self.session.pin(ResourceKind::Content, squashed.digest.to_string()).await?;
        let image = extras.resolve_image(&squashed, Some(&stage.platform)).await;
        let config = image.map_err(Error::store("look up the squashed image"))?.config.digest;
        Ok((squashed, config))
    }

    /// Puts the image records; an image whose last name a tag takes away keeps a nameless one.
    async fn name(&self, target: &Descriptor) -> Result<Vec<String>> {
        let images = &self.session.services.images;
        let mut names = Vec::new();
        for tag in &self.tags {
            let name = tag.to_string();
            let before = match images.get(&name).await {
                Ok(image) => Some(image),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(Error::store(format!("look up image {name}"))(error)),
            };
            self.put(&name, target).await?;
            names.push(name);
            if let Some(before) = before.filter(|image| image.target.digest != target.digest)
                && !self.has_record(&before.target.digest).await?
            {
                let name = format!("{DANGLING_PREFIX}{}", before.target.digest);
                self.put(&name, &before.target).await?;
            }
        }
        if names.is_empty() && !self.has_record(&target.digest).await? {
            let name = format!("{DANGLING_PREFIX}{}", target.digest);
            self.put(&name, target).await?;
            names.push(name);
        }
        // A name makes the nameless record superfluous.
        if !self.tags.is_empty() {
            let nameless = format!("{DANGLING_PREFIX}{}", target.digest);
            match images.delete(&nameless, false).await {
                Err(error) if !error.is_not_found() => {
                    return Err(Error::store(format!("remove image record {nameless}"))(error));
                }
                _ => {}
            }
        }
        Ok(names)
    }

    async fn put(&self, name: &str, target: &Descriptor) -> Result<()> {
        let now = Timestamp::now();
        let image = Image {
            name: name.into(),
            target: target.clone(),
            labels: Labels::new(),
            created_at: now,
            updated_at: now,
        };
        let put = self.session.services.images.put(image).await;
        put.map(drop).map_err(Error::store(format!("name the image {name}")))
    }

    async fn has_record(&self, digest: &Digest) -> Result<bool> {
        let filter = format!("target.digest=={digest}");
        let found = self.session.services.images.list(&[filter]).await;
        Ok(!found.map_err(Error::store("list images"))?.is_empty())
    }
}

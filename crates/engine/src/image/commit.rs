use std::sync::Arc;

use api_types::CommitBody;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use store_api::{ByteStream, Descriptor, DiffRequest, Labels, Timestamp, WriteRequest, media_type};
use types::{Digest, ImageRef, Platform, limits};

use super::{DANGLING_PREFIX, changes};
use crate::{
    Engine, Error, Result,
    util::{random_id, rfc3339},
};

/// Where containerd notes a layer's diffID.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// Query of `POST /commit`.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    pub container: String,
    pub repository: String,
    pub tag: String,
    pub comment: String,
    pub author: String,
    pub pause: bool,
    pub changes: Vec<String>,
}

impl Engine {
    /// Makes an image of a container's file system: its image's layers and one of its own.
    pub async fn commit(
        self: &Arc<Self>,
        options: CommitOptions,
        body: CommitBody,
    ) -> Result<Digest> {
        let container = self.containers.find(&options.container)?;
        let record = container.snapshot();
        let name = target_name(&options.repository, &options.tag)?;
        let running = matches!(
            record.status,
            crate::container::record::Status::Running { paused: false, .. }
        );
        let freeze = options.pause && running;
        // As moby does: told and on record, so that whatever happens it can be unpaused.
        if freeze {
            self.container_pause(record.id.as_str()).await?;
        }
        let layer = self.container_layer(&record).await;
        if freeze && let Err(error) = self.container_unpause(record.id.as_str()).await {
            tracing::warn!(container = %record.id, %error, "a container was not unpaused after a commit");
        }
        let (layer, diff_id) = layer?;
        let manifest = self.read_json(&record.image.manifest.digest).await?;
        let base_config: Digest = text(&manifest["config"]["digest"])?
            .parse()
            .map_err(|e| Error::internal(format!("manifest of {}: {e}", record.image.id)))?;
        let mut config = self.read_json(&base_config).await?;
        // What is given goes over what the container has (moby `daemon/commit.go` `merge`).
        let mut merged = body.config.clone();
        let own = serde_json::from_value(Value::Object(image_config(&record.config)?))
            .map_err(|e| Error::internal(format!("configuration of {}: {e}", record.id)))?;
        crate::container::merge(&mut merged, &own);
        let mut inner = image_config(&merged)?;
        changes::apply(&mut inner, &options.changes)?;
        let now = rfc3339(Some(Timestamp::now()));
        config["config"] = Value::Object(inner);
        config["created"] = json!(now);
        if !options.author.is_empty() {
            config["author"] = json!(options.author);
        }
        push(&mut config["rootfs"]["diff_ids"], json!(diff_id));
        let mut words = vec![record.path.clone()];
        words.extend(record.args.iter().cloned());
        let entry = json!({
            "created": now, "created_by": words.join(" "), "author": options.author,
            "comment": options.comment,
        });
        push(&mut config["history"], entry);
        let mut layers: Vec<Descriptor> = serde_json::from_value(manifest["layers"].clone())
            .map_err(|e| Error::internal(format!("manifest of {}: {e}", record.image.id)))?;
        layers.push(layer);
        faults::pass("commit.layer");
        let target = self.write_image(&config, &layers).await?;
        faults::pass("commit.image");
        let name = name.unwrap_or_else(|| format!("{DANGLING_PREFIX}{}", target.digest));
        self.put_image(&name, &target).await?;
        let shown = name.parse::<ImageRef>().map_or(name, |reference| reference.familiar());
        if !shown.starts_with(DANGLING_PREFIX) {
            self.image_event("tag", &target.digest.to_string(), &shown);
        }
        let mut attributes = record.attributes();
        attributes.insert("comment".into(), options.comment);
        attributes.insert("imageID".into(), target.digest.to_string());
        attributes.insert("imageRef".into(), shown);
        self.events.publish("container", "commit", record.id.as_str(), attributes);
        Ok(target.digest)
    }

    async fn container_layer(
        &self,
        record: &crate::container::record::Record,
    ) -> Result<(Descriptor, Digest)> {
        let upper = self.services.snapshots.mounts(record.id.as_str()).await?;
        let key = format!("commit-{}", random_id());
        let parent = record.image.parent.as_ref().map(ToString::to_string);
        let lower = self.services.snapshots.view(&key, parent.as_deref(), Labels::new()).await?;
        let made = self
            .services
            .diffs
            .diff(DiffRequest {
                lower,
                upper,
                media_type: media_type::OCI_LAYER_GZIP.into(),
                labels: gc_root(),
                ..DiffRequest::default()
            })
            .await;
        if let Err(error) = self.services.snapshots.remove(&key).await {
            tracing::warn!(key, %error, "a temporary view was left behind");
        }
        let layer = made?;
        let info = self.services.content.info(&layer.digest).await?;
        let diff_id = info
            .labels
            .get(UNCOMPRESSED)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Error::internal(format!("layer {} has no diffID", layer.digest)))?;
        Ok((layer, diff_id))
    }

    /// Imports a root file system's tar.
    /// `url`: where the archive comes from, in place of a client.
    pub async fn image_import(
        self: &Arc<Self>,
        (archive, url): (ByteStream, Option<&str>),
        reference: Option<ImageRef>,
        (message, lines, platform): (String, Vec<String>, Option<Platform>),
    ) -> Result<Digest> {
        let platform = platform.unwrap_or_else(Platform::host);
        let mut inner = Map::new();
        changes::apply(&mut inner, &lines)?;
        let now = rfc3339(Some(Timestamp::now()));
        let source = url.unwrap_or("-");
        let comment = if message.is_empty() { format!("Imported from {source}") } else { message };
        let mut config = json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "created": now,
            "config": inner,
            "history": [{ "created": now, "comment": comment }],
        });
        if !platform.variant.is_empty() {
            config["variant"] = json!(platform.variant);
        }
        let bytes = serde_json::to_vec(&config)
            .map_err(|e| Error::internal(format!("encode image configuration: {e}")))?;
        let archive = match url {
            None => archive,
            Some(url) => self.download(url).await?,
        };
        let target = self.services.extras.import_rootfs(archive, bytes, "").await?;
        let name = match &reference {
            Some(reference) => reference.to_string(),
            None => format!("{DANGLING_PREFIX}{}", target.digest),
        };
        self.put_image(&name, &target).await?;
        // As with dockerd it is ready to run then, and its size is that of its files.
        self.services.extras.unpack(&target, Some(&platform)).await?;
        let shown = reference.map(|r| r.familiar()).unwrap_or_default();
        self.image_event("import", &target.digest.to_string(), &shown);
        Ok(target.digest)
    }

    async fn read_json(&self, digest: &Digest) -> Result<Value> {
        let bytes = self.read_blob(digest, limits::IMAGE_CONFIG_BYTES).await?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::internal(format!("{digest} is not the JSON that it must be: {e}")))
    }

    async fn write_image(&self, config: &Value, layers: &[Descriptor]) -> Result<Descriptor> {
        let config = self.write_json(config, media_type::OCI_CONFIG, gc_root()).await?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": config, "layers": layers,
        });
        // Labels lead garbage collection from the manifest to what it names.
        let mut labels = gc_root();
        labels.insert("containerd.io/gc.ref.content.config".into(), config.digest.to_string());
        for (index, layer) in layers.iter().enumerate() {
            let key = format!("containerd.io/gc.ref.content.l.{index}");
            labels.insert(key, layer.digest.to_string());
        }
        let target = self.write_json(&manifest, media_type::OCI_MANIFEST, labels).await?;
        for digest in
            layers.iter().map(|layer| &layer.digest).chain([&config.digest, &target.digest])
        {
            // From here on the image's record holds it.
            let keys = ["labels.containerd.io/gc.root".to_string()];
            let keep = self.services.content.update(digest, Labels::new(), &keys).await;
            if let Err(error) = keep {
                tracing::warn!(%digest, %error, "a mark against garbage collection stays");
            }
        }
        Ok(target)
    }

    async fn write_json(
        &self,
        value: &Value,
        media_type: &str,
        labels: Labels,
    ) -> Result<Descriptor> {
        let bytes = serde_json::to_vec(value)
            .map_err(|e| Error::internal(format!("encode {media_type}: {e}")))?;
        let digest = Digest::sha256(&bytes);
        let size = bytes.len() as u64;
        let descriptor = Descriptor::new(media_type, digest.clone(), size);
        let content = &self.services.content;
        let reference = format!("engine-{digest}");
        let request = WriteRequest {
            reference: reference.clone(),
            total: size,
            expected: Some(digest.clone()),
        };
        match content.open_writer(request).await {
            Err(error) if error.is_already_exists() => {
                content.update(&digest, labels, &[]).await?;
                return Ok(descriptor);
            }
            other => drop(other?),
        }
        content.write(&reference, 0, Bytes::from(bytes)).await?;
        match content.commit(&reference, size, Some(&digest), labels).await {
            Err(error) if !error.is_already_exists() => Err(error.into()),
            _ => Ok(descriptor),
        }
    }
}

/// Keeps content until its image's record exists.
fn gc_root() -> Labels {
    Labels::from([("containerd.io/gc.root".into(), rfc3339(Some(Timestamp::now())))])
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().ok_or_else(|| Error::internal("a manifest lacks its configuration's digest"))
}

fn push(list: &mut Value, entry: Value) {
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.push(entry);
    }
}

fn target_name(repository: &str, tag: &str) -> Result<Option<String>> {
    if repository.is_empty() {
        return Ok(None);
    }
    let reference: ImageRef = repository.parse()?;
    let reference =
        if tag.is_empty() { reference.with_default_tag() } else { reference.with_tag(tag)? };
    Ok(Some(reference.to_string()))
}

/// What of a container's configuration belongs into an image.
fn image_config(config: &api_types::Config) -> Result<Map<String, Value>> {
    let shape = api_types::ImageConfig {
        user: config.user.clone(),
        exposed_ports: config.exposed_ports.clone(),
        env: config.env.clone(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        volumes: config.volumes.clone(),
        working_dir: config.working_dir.clone(),
        labels: config.labels.clone(),
        stop_signal: config.stop_signal.clone(),
        healthcheck: config.healthcheck.clone(),
        on_build: config.on_build.clone(),
        shell: config.shell.clone(),
        ..api_types::ImageConfig::default()
    };
    match serde_json::to_value(shape) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Ok(Map::new()),
        Err(e) => Err(Error::internal(format!("encode configuration: {e}"))),
    }
}

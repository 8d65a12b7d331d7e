use archive::{Entry, Kind, TarWriter};
use serde_json::json;
use store_api::{Descriptor, Image, Labels, Timestamp, media_type};
use types::ImageRef;

use crate::{
    Core,
    error::{Error, Result},
};

/// A static program that says that everything works and what happened on the way (hello/hello.rs).
static HELLO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));
/// When the image last changed: a fixed time, so that every build of it has the same digest.
const CREATED: &str = "2026-11-24T00:00:00Z";
/// The image's repository on docker.io; its only tag is `latest`.
const REPOSITORY: &str = "gantry/hello";

impl Core {
    /// Makes the embedded image if `name` means it, and its record.
    pub(crate) fn embedded_image(&self, ns: &str, name: &str) -> Result<Descriptor> {
        let missing = || Error::not_found("embedded image", name);
        let reference: ImageRef =
            name.parse::<ImageRef>().map_err(|_| missing())?.with_default_tag();
        let ours = reference.domain() == types::DEFAULT_DOMAIN
            && reference.path() == REPOSITORY
            && reference.tag() == Some("latest")
            && reference.digest().is_none();
        if !ours {
            return Err(missing());
        }
        let mut entry = Entry::new("hello", Kind::File { sparse: None });
        entry.mode = 0o755;
        entry.size = u64::try_from(HELLO.len()).unwrap_or(0);
        let mut tar = TarWriter::new(Vec::new());
        tar.append(&entry, HELLO).map_err(Error::archive("make the layer of", REPOSITORY))?;
        let tar = tar.finish().map_err(Error::archive("make the layer of", REPOSITORY))?;
        let size = u64::try_from(tar.len()).unwrap_or(0);
        let diff_id = self.put_blob(ns, &tar, Labels::new())?;
        let layer = Descriptor::new(media_type::OCI_LAYER, diff_id.clone(), size);
        let platform = types::Platform::host();
        let config = json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "created": CREATED,
            "config": {
                "Cmd": ["/hello"],
                "WorkingDir": "/",
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": { "type": "layers", "diff_ids": [diff_id.to_string()] },
            "history": [{ "created": CREATED, "created_by": "COPY hello /hello # embedded in gantry" }],
        });
        let config = serde_json::to_vec(&config).map_err(Error::json("encode", REPOSITORY))?;
        let target = self.put_image(ns, &config, vec![layer])?;
        let now = Timestamp::now();
        self.image_put(
            ns,
            Image {
                name: reference.to_string(),
                target: target.clone(),
                labels: Labels::new(),
                created_at: now,
                updated_at: now,
            },
        )?;
        Ok(target)
    }
}

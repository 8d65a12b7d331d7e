use std::io::{Read, Write as _};

use archive::{Compression, Limits, TarReader};
use serde_json::{Value, json};
use store_api::{ByteStream, Descriptor, Image, Labels, Timestamp, media_type};
use types::{Digest, limits};

use crate::{
    Core,
    content::BUFFER_BYTES,
    diffs::UNCOMPRESSED,
    error::{Error, Result},
    hashing::Hashing,
    streams::StreamReader,
};

impl Core {
    pub(crate) fn import_rootfs(
        &self,
        ns: &str,
        stream: ByteStream,
        config: &[u8],
        name: &str,
    ) -> Result<Descriptor> {
        let mut config: Value = match config {
            [] => json!({}),
            config if config.len() > limits::IMAGE_CONFIG_BYTES => {
                return Err(Error::invalid("import: the image configuration is too large"));
            }
            config => serde_json::from_slice(config)
                .map_err(Error::json("read", "the image configuration of an import"))?,
        };
        let Some(fields) = config.as_object_mut() else {
            return Err(Error::invalid("import: the image configuration is no JSON object"));
        };
        let (layer, diff_id) = self.rootfs_layer(ns, stream)?;
        let platform = types::Platform::host();
        fields.entry("architecture").or_insert_with(|| json!(platform.architecture));
        fields.entry("os").or_insert_with(|| json!(platform.os));
        let entry = match fields.get("created") {
            Some(created) => json!({ "created": created, "comment": "imported from a tar" }),
            None => json!({ "comment": "imported from a tar" }),
        };
        fields.entry("history").or_insert_with(|| json!([entry]));
        fields.insert(
            "rootfs".into(),
            json!({ "type": "layers", "diff_ids": [diff_id.to_string()] }),
        );
        let config =
            serde_json::to_vec(&config).map_err(Error::json("encode", "an image configuration"))?;
        faults::pass("rootfs.layer");
        let target = self.put_image(ns, &config, vec![layer])?;
        faults::pass("rootfs.image");
        if !name.is_empty() {
            let now = Timestamp::now();
            self.image_put(
                ns,
                Image {
                    name: name.into(),
                    target: target.clone(),
                    labels: Labels::new(),
                    created_at: now,
                    updated_at: now,
                },
            )?;
        }
        Ok(target)
    }

    /// Stores the tar as it came (gzip, zstd or plain) or, from xz and bzip2, which no engine's layers
    /// may have, as gzip; and reads it through once, so that only a real tar becomes a layer.
    fn rootfs_layer(&self, ns: &str, stream: ByteStream) -> Result<(Descriptor, Digest)> {
        let mut reader = StreamReader::new(stream);
        let failed = || Error::stream("read", "the archive");
        let mut first = [0; 6];
        let mut filled = 0;
        while filled < first.len() {
            match reader.read(&mut first[filled..]).map_err(failed())? {
                0 => break,
                n => filled += n,
            }
        }
        let kind = match archive::sniff(&first[..filled]) {
            Compression::None => media_type::OCI_LAYER,
            Compression::Zstd => media_type::OCI_LAYER_ZSTD,
            _ => media_type::OCI_LAYER_GZIP,
        };
        let recode =
            matches!(archive::sniff(&first[..filled]), Compression::Xz | Compression::Bzip2);
        let mut whole = first[..filled].chain(reader);
        let mut labels = Labels::new();
        if recode {
            let mut tar = archive::decompress(whole).map_err(failed())?;
            let layer = self.write_layer(ns, kind, "", &mut labels, |writer| {
                std::io::copy(&mut tar, writer).map_err(failed())?;
                Ok(())
            })?;
            let diff_id = self.read_through(ns, &layer.digest)?;
            return Ok((layer, diff_id));
        }
        let mut writer = self.ingest_anonymous(ns)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match whole.read(&mut buffer).map_err(failed())? {
                0 => break,
                n => writer.write_all(&buffer[..n])?,
            }
        }
        writer.flush().map_err(failed())?;
        let size = writer.len();
        let digest = writer.commit(None, labels)?;
        let diff_id = self.read_through(ns, &digest)?;
        let labels = Labels::from([(UNCOMPRESSED.to_string(), diff_id.to_string())]);
        self.content_add_labels(ns, &digest, &labels)?;
        Ok((Descriptor::new(kind, digest, size), diff_id))
    }

    /// The diffID of a stored layer; an error if it is no tar.
    pub(crate) fn read_through(&self, ns: &str, digest: &Digest) -> Result<Digest> {
        let (blob, _) = self.open_blob(ns, digest)?;
        let blob = std::io::BufReader::with_capacity(BUFFER_BYTES, blob);
        let tar = archive::decompress(blob).map_err(Error::stream("inflate layer", digest))?;
        let mut reader = TarReader::new(Hashing::new(tar), Limits::default());
        while reader.next_entry().map_err(Error::archive("read layer", digest))?.is_some() {}
        let hashing = reader.finish().map_err(Error::archive("read layer", digest))?;
        Ok(hashing.finish().0)
    }
}

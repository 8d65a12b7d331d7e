//! What images lead to: where each blob comes from, and whether all of it is here.

use store_api::{Descriptor, media_type};
use types::{Digest, ImageRef};

use super::{Fault, check::Checked};
use crate::{
    Core, content::ContentRecord, db::Table, diffs::UNCOMPRESSED, error::Result,
    images::ImageRecord, manifest::Document, snapshots::LayerSource, transfer::SOURCE,
};

/// Documents of one image that are followed: an index within indexes of all platforms has fewer.
const DOCUMENTS: usize = 8192;

impl Checked {
    /// What a content record tells: its size, and the repositories that it came from.
    pub(super) fn origin(&mut self, digest: &Digest, ns: &str, record: &ContentRecord) {
        let origin = self.origins.entry(digest.clone()).or_default();
        origin.size = record.size;
        origin.namespaces.insert(ns.into());
        for (key, paths) in &record.labels {
            let Some(host) = key.strip_prefix(SOURCE).and_then(|rest| rest.strip_prefix('.'))
            else {
                continue;
            };
            for path in paths.split(',').filter(|path| !path.is_empty()) {
                origin.repositories.insert(format!("{host}/{path}"));
            }
        }
        if let Some(diff_id) = record.labels.get(UNCOMPRESSED).and_then(|text| text.parse().ok()) {
            let layer = Descriptor::new(media_type::OCI_LAYER, digest.clone(), record.size);
            self.source(ns, layer, diff_id);
        }
    }

    fn source(&mut self, ns: &str, layer: Descriptor, diff_id: Digest) {
        let key = (ns.to_string(), diff_id.clone());
        self.sources.entry(key).or_insert(LayerSource { layer, diff_id });
    }

    /// An image's name tells a repository too.
    fn named(&mut self, ns: &str, descriptor: &Descriptor, repository: Option<&str>) {
        let origin = self.origins.entry(descriptor.digest.clone()).or_default();
        origin.size = descriptor.size;
        origin.namespaces.insert(ns.into());
        origin.repositories.extend(repository.map(String::from));
        origin.is_document = media_type::is_index(&descriptor.media_type)
            || media_type::is_manifest(&descriptor.media_type);
    }
}

impl Core {
    /// Follows every image of a namespace as far as its documents can be read.
    pub(super) fn trace_images(&self, ns: &str, checked: &mut Checked) -> Result<()> {
        for (name, image) in self.db.list::<ImageRecord>(Table::Images, ns)? {
            checked.images += 1;
            let repository = name.parse::<ImageRef>().ok();
            let repository = repository.map(|r| format!("{}/{}", r.domain(), r.path()));
            let mut open = vec![image.target];
            for _ in 0..DOCUMENTS {
                let Some(descriptor) = open.pop() else { break };
                checked.named(ns, &descriptor, repository.as_deref());
                let Ok(document) = self.document(ns, &descriptor) else { continue };
                for child in document.children() {
                    checked.named(ns, child, repository.as_deref());
                }
                match document {
                    Document::Index(index) => open.extend(index.manifests),
                    Document::Manifest(_) => {
                        // What is no container image, or not here, has no layers to look for.
                        let Ok(image) = self.resolve_image(ns, &descriptor, None) else { continue };
                        for (layer, diff_id) in image.layers.into_iter().zip(image.diff_ids) {
                            checked.source(ns, layer, diff_id);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// What was brought back is led to again, so that garbage collection leaves it alone.
    pub(super) fn relabel(&self) -> Result<()> {
        for ns in self.namespaces() {
            for (_, image) in self.db.list::<ImageRecord>(Table::Images, &ns)? {
                if let Err(error) = self.label_tree(&ns, &image.target) {
                    // The next look tells what is wrong with it.
                    let error = store_api::Error::from(error);
                    tracing::debug!(digest = %image.target.digest, error = %error, "not labelled");
                }
            }
        }
        Ok(())
    }

    /// What records name and is not here.
    pub(super) fn check_references(&self, ns: &str, checked: &mut Checked) -> Result<()> {
        for (name, image) in self.db.list::<ImageRecord>(Table::Images, ns)? {
            let object = format!("image {ns}/{name}");
            self.check_image(ns, &object, &image.target, true, checked)?;
        }
        for (name, record) in self.db.list::<ContentRecord>(Table::Content, ns)? {
            for (key, target) in &record.labels {
                let lost = key.starts_with(crate::gc::REF_SNAPSHOT)
                    && key.ends_with(&format!(".{}", crate::snapshots::SNAPSHOTTER))
                    && !self.has_snapshot(ns, target)?;
                if lost {
                    checked.add(
                        Fault::Other,
                        format!("content {name}"),
                        format!("it leads to snapshot {target}, which is missing"),
                        "the next use of its image makes it again",
                    );
                }
            }
        }
        self.check_holders(ns, checked)
    }

    /// `whole`: all of it must be here, as of an image's own manifest. Of an index's manifests those are
    /// looked at whose configuration is here: others were not asked for.
    fn check_image(
        &self,
        ns: &str,
        object: &str,
        target: &Descriptor,
        whole: bool,
        checked: &mut Checked,
    ) -> Result<()> {
        if !self.has_content(ns, &target.digest)? {
            if whole {
                missing(checked, object, "its manifest", &target.digest);
            }
            return Ok(());
        }
        // One that cannot be read is damaged, and told of as such.
        let Ok(document) = self.document(ns, target) else { return Ok(()) };
        match document {
            Document::Index(index) => {
                for entry in &index.manifests {
                    let known = media_type::is_manifest(&entry.media_type)
                        || media_type::is_index(&entry.media_type);
                    if known {
                        self.check_image(ns, object, entry, false, checked)?;
                    }
                }
            }
            Document::Manifest(manifest) => {
                if !whole && !self.has_content(ns, &manifest.config.digest)? {
                    return Ok(());
                }
                for (i, child) in
                    std::iter::once(&manifest.config).chain(&manifest.layers).enumerate()
                {
                    if !self.has_content(ns, &child.digest)? {
                        let what = if i == 0 {
                            "its configuration".into()
                        } else {
                            format!("its layer {i}")
                        };
                        missing(checked, object, &what, &child.digest);
                    }
                }
            }
        }
        Ok(())
    }
}

fn missing(checked: &mut Checked, object: &str, what: &str, digest: &Digest) {
    checked.add(
        Fault::Blob(digest.clone()),
        object,
        format!("{what} {digest} is missing"),
        "repair fetches it, as does the next pull",
    );
}

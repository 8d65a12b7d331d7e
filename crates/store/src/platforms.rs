//! The images of several platforms below one manifest or index.

use store_api::{Descriptor, ImagePlatform};
use types::{ErrorKind, Platform};

use crate::{
    Core,
    error::{Error, Result},
    manifest::{Document, INDEX_LEVELS, is_artifact, is_image_entry},
};

/// Images below one index that are looked at, those of indexes within it among them.
const MEMBERS: usize = 4096;

impl Core {
    /// The images below `target`, in the order in which the index names them; of a manifest itself alone.
    pub(crate) fn platforms_of(&self, ns: &str, target: &Descriptor) -> Result<Vec<ImagePlatform>> {
        let mut found = Vec::new();
        self.add_platforms(ns, target, 0, &mut found)?;
        Ok(found)
    }

    fn add_platforms(
        &self,
        ns: &str,
        target: &Descriptor,
        level: usize,
        found: &mut Vec<ImagePlatform>,
    ) -> Result<()> {
        if found.len() >= MEMBERS {
            return Err(Error::invalid(format!(
                "index {}: more than {MEMBERS} images",
                target.digest
            )));
        }
        let declared = target.platform.clone();
        let absent = |platform: Option<Platform>| ImagePlatform {
            manifest: target.clone(),
            platform: platform.unwrap_or_else(unknown),
            whole: false,
        };
        let document = match self.document(ns, target) {
            Err(error) if error.is_not_found() && level > 0 => {
                found.push(absent(declared));
                return Ok(());
            }
            other => other?,
        };
        match document {
            Document::Index(index) => {
                if level >= INDEX_LEVELS {
                    return Err(Error::invalid(format!(
                        "index {}: nested more than {INDEX_LEVELS} levels deep",
                        target.digest
                    )));
                }
                for entry in index.manifests.iter().filter(|entry| is_image_entry(entry)) {
                    self.add_platforms(ns, entry, level + 1, found)?;
                }
            }
            Document::Manifest(ref manifest) if is_artifact(target, manifest, level) => {}
            Document::Manifest(ref manifest) => {
                let own = match self.image_config(ns, &manifest.config.digest) {
                    Err(error) if error.is_not_found() => {
                        found.push(absent(declared));
                        return Ok(());
                    }
                    other => other?.0.platform(),
                };
                let mut whole = true;
                for child in document.children() {
                    whole = whole && self.has_content(ns, &child.digest)?;
                }
                let platform = declared.unwrap_or(own);
                found.push(ImagePlatform { manifest: target.clone(), platform, whole });
            }
        }
        Ok(())
    }
}

fn unknown() -> Platform {
    Platform { os: String::new(), architecture: String::new(), variant: String::new() }
}

/// Is this image made for `wanted`? One that says no platform fits all.
pub(crate) fn fits(image: &ImagePlatform, wanted: &Platform) -> bool {
    image.platform.os.is_empty() || wanted.rank(&image.platform).is_some()
}

/// Of the images that are wholly here the one that fits best.
pub(crate) fn best_here<'a>(
    images: &'a [ImagePlatform],
    wanted: Option<&Platform>,
) -> Option<&'a ImagePlatform> {
    let here = images.iter().filter(|image| image.whole);
    let ranked = here.filter_map(|image| rank(image, wanted).map(|rank| (rank, image)));
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, image)| image)
}

/// One that says no platform fits all, behind those that do.
fn rank(image: &ImagePlatform, wanted: Option<&Platform>) -> Option<u8> {
    match wanted {
        Some(wanted) if !image.platform.os.is_empty() => wanted.rank(&image.platform),
        _ => Some(u8::MAX),
    }
}

/// Of the images below one target those that fit `wanted` as well as the best that is wholly here; none, if
/// there is none such.
pub(crate) fn all_best<'a>(
    images: &'a [ImagePlatform],
    wanted: &Platform,
) -> Vec<&'a ImagePlatform> {
    let Some(best) = best_here(images, Some(wanted)) else { return Vec::new() };
    let best = rank(best, Some(wanted));
    images.iter().filter(|image| rank(image, Some(wanted)) == best).collect()
}

/// `linux/amd64 and linux/arm64`, each once.
pub(crate) fn listed<'a>(images: impl IntoIterator<Item = &'a ImagePlatform>) -> String {
    let mut names: Vec<String> = Vec::new();
    for image in images {
        let name = match image.platform.os.as_str() {
            "" => "an unknown platform".to_string(),
            _ => image.platform.to_string(),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    match names.pop() {
        None => "none".into(),
        Some(only) if names.is_empty() => only,
        Some(last) => format!("{} and {last}", names.join(", ")),
    }
}

/// What is wanted of an image is not here: says why, and what is.
pub(crate) fn not_here(
    target: &Descriptor,
    wanted: Option<&Platform>,
    images: &[ImagePlatform],
) -> Error {
    let here = listed(images.iter().filter(|image| image.whole));
    let text = match wanted {
        Some(wanted) if images.iter().any(|image| fits(image, wanted)) => format!(
            "image {} has {wanted}, which is not all here: pull it with --platform {wanted} (here: {here})",
            target.digest
        ),
        Some(wanted) => {
            format!("image {} is not made for {wanted}: it has {}", target.digest, listed(images))
        }
        None => format!(
            "of image {} no platform is all here: pull it first (it has {})",
            target.digest,
            listed(images)
        ),
    };
    Error::Api(store_api::Error::new(ErrorKind::NotFound, text))
}

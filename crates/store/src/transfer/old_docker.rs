//! Archives of docker before 1.10: a directory per layer with `json`, `VERSION` and `layer.tar`, and
//! `repositories`, which names the topmost ones (moby `image/spec/spec.md`, v1.0).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use serde_json::{Map, Value, json};
use store_api::{Descriptor, Imported, ResourceKind, media_type};
use types::{Digest, limits};

use super::{
    import::{Archive, IMAGES, Layers, tagged},
    verify::went_away,
};
use crate::{
    Core,
    error::{Error, Result},
    guard::Pins,
};

/// Fields of a layer's description that no image configuration has (moby `image/v1/imagev1.go`).
const OWN_FIELDS: [&str; 6] = ["id", "parent", "Size", "parent_id", "layer_id", "throwaway"];

/// What is needed of each layer's description; the rest is only read of those that name an image.
#[derive(Deserialize)]
struct V1 {
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    author: Option<String>,
    #[serde(default)]
    comment: Option<String>,
    #[serde(default)]
    container_config: Option<ContainerConfig>,
}

#[derive(Deserialize)]
struct ContainerConfig {
    #[serde(default, rename = "Cmd")]
    cmd: Option<Words>,
}

/// A list of words, joined by spaces as it is read: a list of strings takes many times its JSON.
struct Words(String);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Join;
        impl<'de> Visitor<'de> for Join {
            type Value = Words;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of words")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut words: A,
            ) -> std::result::Result<Words, A::Error> {
                let mut joined = String::new();
                while let Some(word) = words.next_element::<String>()? {
                    if !joined.is_empty() {
                        joined.push(' ');
                    }
                    joined.push_str(&word);
                }
                Ok(Words(joined))
            }
        }
        deserializer.deserialize_seq(Join)
    }
}

/// An archive's descriptions, and what is known of its layers.
struct Old<'a> {
    archive: &'a Archive,
    all: BTreeMap<&'a str, V1>,
    layers: Layers,
    /// diffIDs of compressed layers, by the layers' digests.
    diff_ids: BTreeMap<Digest, Digest>,
    /// The images that were made, by the ids of their topmost layers.
    images: BTreeMap<String, Descriptor>,
}

pub(super) fn load(core: &Core, ns: &str, archive: &Archive, pins: &Pins) -> Result<Vec<Imported>> {
    let mut all: BTreeMap<&str, V1> = BTreeMap::new();
    for (id, bytes) in &archive.descriptions {
        all.insert(id, parse(id, bytes)?);
    }
    let mut wanted: Vec<(String, String)> = Vec::new();
    if let Some(bytes) = &archive.repositories {
        let named: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_slice(bytes)
            .map_err(Error::json("read", "repositories of the archive"))?;
        for (name, tags) in named {
            wanted.extend(tags.into_iter().map(|(tag, id)| (format!("{name}:{tag}"), id)));
        }
    }
    if wanted.is_empty() {
        let parents: BTreeSet<&str> = all.values().filter_map(|v1| v1.parent.as_deref()).collect();
        let heads = all.keys().filter(|id| !parents.contains(*id));
        wanted.extend(heads.map(|id| (String::new(), (*id).to_string())));
    }
    if wanted.len() > IMAGES {
        return Err(Error::invalid(format!("the archive has more than {IMAGES} images")));
    }
    let (layers, diff_ids, images) = (Layers::new(), BTreeMap::new(), BTreeMap::new());
    let mut old = Old { archive, all, layers, diff_ids, images };
    let mut found = Vec::new();
    for (name, id) in wanted {
        let target = match old.images.get(&id) {
            Some(target) => target.clone(),
            None => image(core, ns, &mut old, &id, pins)?,
        };
        let name = match name.as_str() {
            "" => name,
            name => tagged(name, "repositories", &target.digest)?,
        };
        old.images.insert(id, target.clone());
        found.push(Imported { name, target });
    }
    Ok(found)
}

fn parse<T: serde::de::DeserializeOwned>(id: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(Error::json("read", format!("{id}/json of the archive")))
}

fn image(core: &Core, ns: &str, old: &mut Old<'_>, id: &str, pins: &Pins) -> Result<Descriptor> {
    let Old { archive, all, layers: known, diff_ids: known_diff_ids, .. } = old;
    let mut chain = Vec::new();
    let mut next = Some(id);
    while let Some(id) = next {
        if chain.len() >= limits::LAYERS {
            return Err(Error::invalid(format!(
                "an image of the archive has more than {} layers",
                limits::LAYERS
            )));
        }
        let Some(v1) = all.get(id) else {
            return Err(Error::invalid(format!(
                "the archive is not complete: it names layer {id}, and has no {id}/json"
            )));
        };
        chain.push((id, v1));
        next = v1.parent.as_deref().filter(|parent| !parent.is_empty());
    }
    chain.reverse();
    let (mut layers, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for (id, v1) in &chain {
        let blob = archive.blob(&Path::new(id).join("layer.tar"))?;
        let layer = super::import::layer_of(core, ns, blob, known)?;
        pins.add(ResourceKind::Content, &layer.digest);
        let diff_id = match known_diff_ids.get(&layer.digest) {
            _ if layer.media_type == media_type::OCI_LAYER => layer.digest.clone(),
            Some(known) => known.clone(),
            None => {
                let diff_id = core.read_through(ns, &layer.digest)?;
                known_diff_ids.insert(layer.digest.clone(), diff_id.clone());
                diff_id
            }
        };
        diff_ids.push(json!(diff_id.to_string()));
        layers.push(layer);
        history.push(history_of(v1));
    }
    let top = archive.descriptions.get(id).ok_or_else(|| Error::not_found("image", id))?;
    let mut config: Map<String, Value> = parse(id, top)?;
    config.retain(|key, _| !OWN_FIELDS.contains(&key.as_str()));
    config.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
    config.insert("history".into(), Value::Array(history));
    let config =
        serde_json::to_vec(&config).map_err(Error::json("encode", "an image configuration"))?;
    let target = core.put_image(ns, &config, layers)?;
    pins.add(ResourceKind::Content, &target.digest);
    if core.whole_images(ns, &target)? == 0 {
        // Removed by a garbage collection between its arrival and its pin.
        return Err(went_away(core, ns, &target));
    }
    Ok(target)
}

/// moby `image/v1.HistoryFromConfig`.
fn history_of(v1: &V1) -> Value {
    let cmd = v1.container_config.as_ref().and_then(|config| config.cmd.as_ref());
    let mut entry = json!({ "created_by": cmd.map_or("", |words| words.0.as_str()) });
    for (key, value) in [("created", &v1.created), ("author", &v1.author), ("comment", &v1.comment)]
    {
        if let Some(value) = value {
            entry[key] = value.as_str().into();
        }
    }
    entry
}

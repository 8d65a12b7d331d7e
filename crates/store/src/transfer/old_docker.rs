//! Archives of docker before 1.10: a directory per layer with `json`, `VERSION` and `layer.tar`, and
//! `repositories`, which names the topmost ones (moby `image/spec/spec.md`, v1.0).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::{Map, Value, json};
use store_api::{Descriptor, Imported, ResourceKind, media_type};
use types::limits;

use super::import::{Archive, full_name};
use crate::{
    Core,
    error::{Error, Result},
    guard::Pins,
};

/// Fields of a layer's description that no image configuration has (moby `image/v1/imagev1.go`).
const OWN_FIELDS: [&str; 6] = ["id", "parent", "Size", "parent_id", "layer_id", "throwaway"];

pub(super) fn load(core: &Core, ns: &str, archive: &Archive, pins: &Pins) -> Result<Vec<Imported>> {
    let mut all: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for (id, bytes) in &archive.descriptions {
        let read = Error::json("read", format!("{id}/json of the archive"));
        all.insert(id, serde_json::from_slice(bytes).map_err(read)?);
    }
    let mut wanted: Vec<(String, String)> = Vec::new();
    if let Some(bytes) = &archive.repositories {
        let named: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_slice(bytes)
            .map_err(Error::json("read", "repositories of the archive"))?;
        for (name, tags) in named {
            let tags = tags.into_iter().map(|(tag, id)| (full_name(&format!("{name}:{tag}")), id));
            wanted.extend(tags);
        }
    }
    if wanted.is_empty() {
        let parents: BTreeSet<&str> =
            all.values().filter_map(|v1| v1.get("parent").and_then(Value::as_str)).collect();
        let heads = all.keys().filter(|id| !parents.contains(*id));
        wanted.extend(heads.map(|id| (String::new(), (*id).to_string())));
    }
    let mut found = Vec::new();
    for (name, id) in wanted {
        let target = image(core, ns, (archive, &all), &id, pins)?;
        found.push(Imported { name, target });
    }
    Ok(found)
}

fn image(
    core: &Core,
    ns: &str,
    (archive, all): (&Archive, &BTreeMap<&str, Map<String, Value>>),
    id: &str,
    pins: &Pins,
) -> Result<Descriptor> {
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
        next = v1.get("parent").and_then(Value::as_str).filter(|parent| !parent.is_empty());
    }
    chain.reverse();
    let (mut layers, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for (id, v1) in &chain {
        let blob = archive.blob(&Path::new(id).join("layer.tar"))?;
        let layer = super::import::layer_of(core, ns, blob)?;
        pins.add(ResourceKind::Content, &layer.digest);
        let diff_id = match layer.media_type.as_str() {
            media_type::OCI_LAYER => layer.digest.clone(),
            _ => core.read_through(ns, &layer.digest)?,
        };
        diff_ids.push(json!(diff_id.to_string()));
        layers.push(layer);
        history.push(history_of(v1));
    }
    let Some((_, top)) = chain.last() else { return Err(Error::not_found("image", id)) };
    let mut config: Map<String, Value> = (*top).clone();
    config.retain(|key, _| !OWN_FIELDS.contains(&key.as_str()));
    config.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
    config.insert("history".into(), Value::Array(history));
    let config =
        serde_json::to_vec(&config).map_err(Error::json("encode", "an image configuration"))?;
    let target = core.put_image(ns, &config, layers)?;
    pins.add(ResourceKind::Content, &target.digest);
    if core.whole_images(ns, &target)? == 0 {
        // Removed by a garbage collection between its arrival and its pin.
        return Err(Error::not_found("content of image", &target.digest));
    }
    Ok(target)
}

/// moby `image/v1.HistoryFromConfig`.
fn history_of(v1: &Map<String, Value>) -> Value {
    let words = v1.get("container_config").and_then(|config| config.get("Cmd"));
    let words: Vec<&str> =
        words.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let mut entry = json!({ "created_by": words.join(" ") });
    for key in ["created", "author", "comment"] {
        if let Some(value) = v1.get(key) {
            entry[key] = value.clone();
        }
    }
    entry
}

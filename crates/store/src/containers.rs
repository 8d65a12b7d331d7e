use std::{borrow::Cow, collections::BTreeMap};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use store_api::{
    Any, Container, ContainerPatch, Event, Labels, ResourceKind, RuntimeInfo, Timestamp,
};
use types::ContainerId;

use crate::{
    Core,
    db::{Durable, Table},
    error::{Error, Result},
    filters::{Fields, Filters, label},
    gc, labels,
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    #[serde(default)]
    pub(crate) labels: Labels,
    image: String,
    runtime: String,
    runtime_options: Option<Typed>,
    spec: Option<Typed>,
    snapshotter: String,
    pub(crate) snapshot_key: String,
    created: Timestamp,
    updated: Timestamp,
    #[serde(default)]
    extensions: BTreeMap<String, Typed>,
    sandbox: String,
}

/// [`Any`] in JSON: most values are JSON themselves and stay readable; others are bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Typed {
    url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<Vec<u8>>,
}

impl From<&Any> for Typed {
    fn from(any: &Any) -> Self {
        let text = std::str::from_utf8(&any.value).ok().map(ToString::to_string);
        let bytes = text.is_none().then(|| any.value.to_vec());
        Self { url: any.type_url.clone(), text, bytes }
    }
}

impl From<Typed> for Any {
    fn from(typed: Typed) -> Self {
        let value = match (typed.text, typed.bytes) {
            (Some(text), _) => Bytes::from(text),
            (None, bytes) => Bytes::from(bytes.unwrap_or_default()),
        };
        Self { type_url: typed.url, value }
    }
}

impl ContainerRecord {
    fn new(container: &Container) -> Self {
        let typed = |any: &Option<Any>| any.as_ref().map(Typed::from);
        Self {
            labels: container.labels.clone(),
            image: container.image.clone(),
            runtime: container.runtime.name.clone(),
            runtime_options: typed(&container.runtime.options),
            spec: typed(&container.spec),
            snapshotter: container.snapshotter.clone(),
            snapshot_key: container.snapshot_key.clone(),
            created: container.created_at,
            updated: container.updated_at,
            extensions: container.extensions.iter().map(|(k, v)| (k.clone(), v.into())).collect(),
            sandbox: container.sandbox_id.clone(),
        }
    }

    fn container(self, id: String) -> Container {
        Container {
            id,
            labels: self.labels,
            image: self.image,
            runtime: RuntimeInfo {
                name: self.runtime,
                options: self.runtime_options.map(Into::into),
            },
            spec: self.spec.map(Into::into),
            snapshotter: self.snapshotter,
            snapshot_key: self.snapshot_key,
            created_at: self.created,
            updated_at: self.updated,
            extensions: self.extensions.into_iter().map(|(k, v)| (k, v.into())).collect(),
            sandbox_id: self.sandbox,
        }
    }

    fn durable(&self) -> Durable {
        if labels::is_volatile(&self.labels) { Durable::Ephemeral } else { Durable::Soon }
    }
}

impl Fields for Container {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id"] => Some(self.id.as_str().into()),
            ["image"] => Some(self.image.as_str().into()),
            ["runtime", "name"] => Some(self.runtime.name.as_str().into()),
            ["sandbox_id"] => Some(self.sandbox_id.as_str().into()),
            ["snapshotter"] => Some(self.snapshotter.as_str().into()),
            ["snapshotkey"] => Some(self.snapshot_key.as_str().into()),
            ["labels", rest @ ..] => label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Core {
    pub(crate) fn container_get(&self, ns: &str, id: &str) -> Result<Container> {
        self.db
            .get::<ContainerRecord>(Table::Containers, ns, id)?
            .map(|record| record.container(id.into()))
            .ok_or_else(|| missing(ns, id))
    }

    pub(crate) fn container_list(&self, ns: &str, filters: &[String]) -> Result<Vec<Container>> {
        let filters = Filters::parse(filters)?;
        let all = self.db.list::<ContainerRecord>(Table::Containers, ns)?;
        let containers = all.into_iter().map(|(id, record)| record.container(id));
        Ok(containers.filter(|container| filters.matches(container)).collect())
    }

    pub(crate) fn container_create(&self, ns: &str, mut container: Container) -> Result<Container> {
        validate(&container)?;
        self.ensure_namespace(ns)?;
        container.created_at = Timestamp::now();
        container.updated_at = container.created_at;
        let record = ContainerRecord::new(&container);
        self.db.write(record.durable(), |tx| {
            if tx.get::<ContainerRecord>(Table::Containers, ns, &container.id)?.is_some() {
                return Err(Error::already_exists("container", &container.id));
            }
            tx.put(Table::Containers, ns, &container.id, &record)
        })?;
        faults::pass("container.recorded");
        self.settle(ns, vec![(ResourceKind::Snapshot, container.snapshot_key.clone())])?;
        self.bus.publish(
            ns,
            Event::ContainerCreate {
                id: container.id.clone(),
                image: container.image.clone(),
                runtime: container.runtime.clone(),
            },
        );
        Ok(container)
    }

    pub(crate) fn container_update(&self, ns: &str, change: &ContainerPatch) -> Result<Container> {
        let id = &change.container.id;
        let present: ContainerRecord =
            self.db.get(Table::Containers, ns, id)?.ok_or_else(|| missing(ns, id))?;
        let updated = self.db.write(present.durable(), |tx| {
            let record: ContainerRecord =
                tx.get(Table::Containers, ns, id)?.ok_or_else(|| missing(ns, id))?;
            let mut container = record.container(id.clone());
            patch(&mut container, change)?;
            validate(&container)?;
            container.updated_at = Timestamp::now();
            tx.put(Table::Containers, ns, id, &ContainerRecord::new(&container))?;
            Ok(container)
        })?;
        self.bus.publish(
            ns,
            Event::ContainerUpdate {
                id: id.clone(),
                image: updated.image.clone(),
                labels: updated.labels.clone(),
                snapshot_key: updated.snapshot_key.clone(),
            },
        );
        Ok(updated)
    }

    pub(crate) fn container_delete(&self, ns: &str, id: &str) -> Result<()> {
        self.db.write(Durable::Soon, |tx| {
            let record: ContainerRecord =
                tx.get(Table::Containers, ns, id)?.ok_or_else(|| missing(ns, id))?;
            tx.delete(Table::Containers, ns, id);
            Ok(record)
        })?;
        self.bus.publish(ns, Event::ContainerDelete { id: id.into() });
        self.schedule.after(gc::AFTER_CONTAINER);
        Ok(())
    }
}

/// In containerd's words.
fn missing(ns: &str, id: &str) -> Error {
    let text = format!("container {id:?} in namespace {ns:?}: not found");
    Error::Api(store_api::Error::new(types::ErrorKind::NotFound, text))
}

fn validate(container: &Container) -> Result<()> {
    container
        .id
        .parse::<ContainerId>()
        .map_err(|error| Error::invalid(format!("container: {error}")))?;
    if container.runtime.name.is_empty() {
        return Err(Error::invalid(format!(
            "container {:?}: runtime name is required",
            container.id
        )));
    }
    if !container.snapshot_key.is_empty() && container.snapshotter.is_empty() {
        return Err(Error::invalid(format!(
            "container {:?}: a snapshot key needs a snapshotter",
            container.id
        )));
    }
    labels::validate(&container.labels)
}

/// containerd 1.6's rules: without paths labels, spec, extensions, image and snapshot key are
/// replaced; runtime and snapshotter never change by that.
fn patch(container: &mut Container, change: &ContainerPatch) -> Result<()> {
    let new = &change.container;
    let all = ["labels", "spec", "extensions", "image", "snapshotkey"].map(String::from);
    let paths = if change.field_paths.is_empty() { &all[..] } else { &change.field_paths[..] };
    for path in paths {
        match path.as_str() {
            "labels" => container.labels = new.labels.clone(),
            "spec" => container.spec = new.spec.clone(),
            "extensions" => container.extensions = new.extensions.clone(),
            "image" => container.image = new.image.clone(),
            "snapshotkey" | "snapshot_key" => container.snapshot_key = new.snapshot_key.clone(),
            "snapshotter" => container.snapshotter = new.snapshotter.clone(),
            "runtime" => container.runtime = new.runtime.clone(),
            "sandbox_id" | "sandbox" => container.sandbox_id = new.sandbox_id.clone(),
            path if path.starts_with("labels.") => {
                labels::merge(&mut container.labels, &new.labels, &[path.to_string()]);
            }
            path if path.starts_with("extensions.") => {
                let key = &path["extensions.".len()..];
                match new.extensions.get(key) {
                    Some(value) => container.extensions.insert(key.into(), value.clone()),
                    None => container.extensions.remove(key),
                };
            }
            other => {
                return Err(Error::invalid(format!(
                    "cannot update {other:?} field on container {:?}",
                    container.id
                )));
            }
        }
    }
    Ok(())
}

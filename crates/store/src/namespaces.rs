use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use store_api::{Event, Labels, Namespaces, Services};
use types::ContainerId;

use std::sync::Arc;

use crate::{
    Core, Store,
    db::{Durable, Table, lock},
    error::{Error, Result},
    labels,
    snapshots::SNAPSHOTTER,
};

#[derive(Serialize, Deserialize)]
pub(crate) struct NamespaceRecord {
    #[serde(default)]
    labels: Labels,
}

impl Core {
    pub(crate) fn load_namespaces(&self) -> Result<()> {
        let found = self.db.namespaces()?;
        lock(&self.known).extend(found);
        Ok(())
    }

    /// Every namespace that holds anything.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        lock(&self.known).iter().cloned().collect()
    }

    /// Makes a namespace known when something is first written to it.
    pub(crate) fn ensure_namespace(&self, ns: &str) -> Result<()> {
        if lock(&self.known).contains(ns) {
            return Ok(());
        }
        match self.namespace_insert(ns, Labels::new()) {
            Err(error) if error.is_already_exists() => Ok(()),
            other => other,
        }
    }

    /// containerd tells of those alone that were asked for, as this does.
    fn namespace_create(&self, ns: &str, new: Labels) -> Result<()> {
        self.namespace_insert(ns, new.clone())?;
        self.bus.publish(ns, Event::NamespaceCreate { name: ns.into(), labels: new });
        Ok(())
    }

    fn namespace_insert(&self, ns: &str, new: Labels) -> Result<()> {
        labels::validate(&new)?;
        self.db.write(Durable::Soon, |tx| {
            if tx.get::<NamespaceRecord>(Table::Namespaces, ns, "")?.is_some() {
                return Err(Error::already_exists("namespace", ns));
            }
            tx.put(Table::Namespaces, ns, "", &NamespaceRecord { labels: new })
        })?;
        lock(&self.known).insert(ns.into());
        Ok(())
    }

    /// Sets the labels; makes the namespace if there is none, as containerd does.
    fn namespace_update(&self, ns: &str, new: Labels) -> Result<()> {
        labels::validate(&new)?;
        let record = NamespaceRecord { labels: new.clone() };
        self.db.write(Durable::Soon, |tx| tx.put(Table::Namespaces, ns, "", &record))?;
        lock(&self.known).insert(ns.into());
        self.bus.publish(ns, Event::NamespaceUpdate { name: ns.into(), labels: new });
        Ok(())
    }

    /// Removes a namespace in which nothing is left but leases and unfinished writes, which go with it, as
    /// with containerd.
    fn namespace_delete(&self, ns: &str) -> Result<()> {
        self.db.write(Durable::Soon, |tx| {
            if tx.get::<NamespaceRecord>(Table::Namespaces, ns, "")?.is_none() {
                return Err(Error::not_found("namespace", ns));
            }
            let snapshots = format!("snapshots on \"{SNAPSHOTTER}\" snapshotter");
            let mut held = Vec::new();
            for (table, name) in [
                (Table::Images, "images"),
                (Table::Content, "blobs"),
                (Table::Containers, "containers"),
                (Table::Snapshots, &snapshots),
            ] {
                if !tx.names(table, ns, "")?.is_empty() {
                    held.push(name);
                }
            }
            if !held.is_empty() {
                return Err(Error::precondition(format!(
                    "namespace \"{ns}\" must be empty, but it still has {}",
                    held.join(", ")
                )));
            }
            for table in [Table::Leases, Table::Children] {
                for name in tx.names(table, ns, "")? {
                    tx.delete(table, ns, &name);
                }
            }
            tx.delete(Table::Namespaces, ns, "");
            lock(&self.known).remove(ns);
            Ok(())
        })?;
        self.drop_ingests(ns);
        self.bus.publish(ns, Event::NamespaceDelete { name: ns.into() });
        Ok(())
    }
}

fn validate(namespace: &str) -> store_api::Result<()> {
    match namespace.parse::<ContainerId>() {
        Ok(_) => Ok(()),
        Err(error) => Err(store_api::Error::invalid(format!("namespace: {error}"))),
    }
}

#[async_trait]
impl Namespaces for Store {
    fn open(&self, namespace: &str) -> store_api::Result<Services> {
        validate(namespace)?;
        let local = Arc::new(self.local(namespace));
        Ok(Services {
            namespace: namespace.into(),
            content: local.clone(),
            images: local.clone(),
            snapshots: local.clone(),
            diffs: local.clone(),
            leases: local.clone(),
            containers: local.clone(),
            tasks: self.tasks.tasks(namespace),
            events: local.clone(),
            transfer: local.clone(),
            extras: local,
        })
    }

    async fn list(&self) -> store_api::Result<Vec<(String, Labels)>> {
        self.pool
            .quick(&self.core, |core| {
                let mut list = Vec::new();
                for ns in core.namespaces() {
                    let record: Option<NamespaceRecord> =
                        core.db.get(Table::Namespaces, &ns, "")?;
                    list.push((ns, record.map(|record| record.labels).unwrap_or_default()));
                }
                Ok(list)
            })
            .await
    }

    async fn create(&self, namespace: &str, labels: Labels) -> store_api::Result<()> {
        validate(namespace)?;
        let ns = namespace.to_string();
        self.pool.quick(&self.core, move |core| core.namespace_create(&ns, labels)).await
    }

    async fn update(&self, namespace: &str, labels: Labels) -> store_api::Result<()> {
        validate(namespace)?;
        let ns = namespace.to_string();
        self.pool.quick(&self.core, move |core| core.namespace_update(&ns, labels)).await
    }

    async fn delete(&self, namespace: &str) -> store_api::Result<()> {
        if self.tasks.has_tasks(namespace) {
            return Err(store_api::Error::new(
                types::ErrorKind::FailedPrecondition,
                format!("namespace \"{namespace}\" must be empty, but it still has tasks"),
            ));
        }
        let ns = namespace.to_string();
        self.pool.quick(&self.core, move |core| core.namespace_delete(&ns)).await
    }
}

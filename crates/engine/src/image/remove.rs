use std::sync::Arc;

use api_types::{Filters, ImageDeleteItem, ImagesPruneReport, Map};
use store_api::{Descriptor, Image, Timestamp};
use types::{Digest, ErrorKind, ImageRef};

use super::{DANGLING_PREFIX, Known};
use crate::{
    Engine, Error, Result,
    util::{parse_time, unix_nanos},
};

const PRUNE_FILTERS: &[&str] = &["dangling", "label", "label!", "until"];

impl Engine {
    pub async fn image_tag(&self, name: &str, repository: &str, tag: &str) -> Result<()> {
        let known = self.find_image(name).await?;
        let reference: ImageRef = repository.parse()?;
        if reference.digest().is_some() {
            return Err(Error::invalid("refusing to create a tag with a digest reference"));
        }
        let reference = if tag.is_empty() {
            reference.with_default_tag()
        } else {
            reference.with_tag(tag).map_err(|_| Error::invalid("invalid tag format"))?
        };
        self.put_image(&reference.to_string(), &known.target).await?;
        self.drop_dangling(&known.target.digest).await?;
        self.image_event("tag", &known.target.digest.to_string(), &reference.familiar());
        Ok(())
    }

    /// Points a name to an image. An image that loses its last name by this stays as a dangling one.
    pub(crate) async fn put_image(&self, name: &str, target: &store_api::Descriptor) -> Result<()> {
        if let Ok(old) = self.services.images.get(name).await
            && old.target.digest != target.digest
        {
            self.keep_dangling(&old).await?;
        }
        let now = Timestamp::now();
        self.services
            .images
            .put(Image {
                name: name.into(),
                target: target.clone(),
                labels: store_api::Labels::new(),
                created_at: now,
                updated_at: now,
            })
            .await?;
        Ok(())
    }

    async fn keep_dangling(&self, old: &Image) -> Result<()> {
        let known = self.known_images().await?;
        let others = known.get(&old.target.digest).map_or(0, |known| known.records.len());
        if others > 1 {
            return Ok(());
        }
        let name = format!("{DANGLING_PREFIX}{}", old.target.digest);
        self.services.images.put(Image { name, ..old.clone() }).await?;
        Ok(())
    }

    /// Sees to it that an image is one, with or without a name.
    pub(crate) async fn ensure_record(&self, target: &Descriptor) -> Result<()> {
        if self.known_images().await?.contains_key(&target.digest) {
            return Ok(());
        }
        let name = format!("{DANGLING_PREFIX}{}", target.digest);
        let now = Timestamp::now();
        self.services
            .images
            .put(Image {
                name,
                target: target.clone(),
                labels: store_api::Labels::new(),
                created_at: now,
                updated_at: now,
            })
            .await?;
        Ok(())
    }

    /// An image that has a name again needs no dangling record.
    pub(crate) async fn drop_dangling(&self, digest: &Digest) -> Result<()> {
        let name = format!("{DANGLING_PREFIX}{digest}");
        match self.services.images.delete(&name, false).await {
            Err(error) if error.kind != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Containers made of an image: running ones, others.
    fn image_users(&self, id: &Digest) -> (Vec<String>, Vec<String>) {
        let (mut running, mut stopped) = (Vec::new(), Vec::new());
        for container in self.containers.all() {
            let record = container.record();
            if record.image.id == *id {
                let list = if record.status.is_running() { &mut running } else { &mut stopped };
                list.push(record.id.short().to_string());
            }
        }
        (running, stopped)
    }

    /// `docker rmi`: untags, and with the last name removes the image.
    pub async fn image_remove(
        self: &Arc<Self>,
        name: &str,
        force: bool,
    ) -> Result<Vec<ImageDeleteItem>> {
        let known = self.find_image(name).await?;
        let id = known.target.digest.clone();
        let by_reference = name
            .parse::<ImageRef>()
            .ok()
            .map(ImageRef::with_default_tag)
            .filter(|reference| known.names.contains(reference));
        let (running, stopped) = self.image_users(&id);
        let short = id.short();
        let Some(reference) = by_reference else {
            if known.repo_tags().len() > 1 && !force {
                return Err(Error::conflict(format!(
                    "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
                )));
            }
            if let Some(user) = running.first() {
                return Err(Error::conflict(format!(
                    "conflict: unable to delete {short} (cannot be forced) - image is being used by running container {user}"
                )));
            }
            if let (Some(user), false) = (stopped.first(), force) {
                return Err(Error::conflict(format!(
                    "conflict: unable to delete {short} (must be forced) - image is being used by stopped container {user}"
                )));
            }
            return self.delete_records(&known, &known.records, true).await;
        };
        let last = known.records.len() == 1;
        if last
            && !force
            && let Some(user) = running.first().or(stopped.first())
        {
            return Err(Error::conflict(format!(
                "conflict: unable to remove repository reference \"{name}\" (must force) - container {user} is using its referenced image {short}"
            )));
        }
        if last && !running.is_empty() {
            // docker unties the name and keeps what a running container is made of.
            self.keep_dangling(&Image {
                name: reference.to_string(),
                target: known.target.clone(),
                labels: store_api::Labels::new(),
                created_at: known.updated,
                updated_at: known.updated,
            })
            .await?;
            self.services.images.delete(&reference.to_string(), false).await?;
            self.image_event("untag", &id.to_string(), &reference.familiar());
            return Ok(vec![untagged(&reference)]);
        }
        self.delete_records(&known, &[reference.to_string()], true).await
    }

    /// With `sync` an image that goes with its last name has given its space back when this returns, as
    /// with dockerd.
    async fn delete_records(
        &self,
        known: &Known,
        records: &[String],
        sync: bool,
    ) -> Result<Vec<ImageDeleteItem>> {
        let id = known.target.digest.to_string();
        let mut items = Vec::new();
        for (index, record) in records.iter().enumerate() {
            let last = index + 1 == known.records.len();
            self.services.images.delete(record, sync && last).await?;
            if let Ok(reference) = record.parse::<ImageRef>()
                && !record.starts_with(DANGLING_PREFIX)
            {
                self.image_event("untag", &id, &reference.familiar());
                items.push(untagged(&reference));
            }
        }
        if known.records.iter().all(|record| records.contains(record)) {
            self.image_event("delete", &id, &id);
            items.push(ImageDeleteItem { deleted: id, ..ImageDeleteItem::default() });
        }
        Ok(items)
    }

    pub async fn image_prune(self: &Arc<Self>, filters: &Filters) -> Result<ImagesPruneReport> {
        filters.validate(PRUNE_FILTERS)?;
        let only_dangling = filters.get_bool("dangling")?.unwrap_or(true);
        let until = match filters.get("until").next() {
            Some(text) => Some(parse_time(text)?),
            None => None,
        };
        let mut report = ImagesPruneReport::default();
        for known in self.known_images().await?.into_values() {
            let (running, stopped) = self.image_users(&known.target.digest);
            let (_, config) = self.details(&known, None).await;
            let unwanted =
                filters.contains("label!") && filters.match_labels("label!", &config.config.labels);
            if (only_dangling && !known.repo_tags().is_empty())
                || !running.is_empty()
                || !stopped.is_empty()
                || unwanted
                || !filters.match_labels("label", &config.config.labels)
                || until.is_some_and(|until| unix_nanos(known.updated) > unix_nanos(until))
            {
                continue;
            }
            match self.delete_records(&known, &known.records, false).await {
                Ok(deleted) => report.images_deleted.extend(deleted),
                // Somebody else was quicker.
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    tracing::warn!(image = %known.target.digest, %error, "an image was not pruned");
                }
            }
        }
        report.space_reclaimed = self.services.extras.collect_garbage().await?;
        let reclaimed = Map::from([("reclaimed".into(), report.space_reclaimed.to_string())]);
        self.events.publish("image", "prune", "", reclaimed);
        Ok(report)
    }
}

fn untagged(reference: &ImageRef) -> ImageDeleteItem {
    ImageDeleteItem { untagged: reference.familiar(), ..ImageDeleteItem::default() }
}

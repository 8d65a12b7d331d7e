use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use store_api::{Descriptor, Event, Image, Labels, ResourceKind, Timestamp};

use crate::{
    Core,
    db::{Durable, Table},
    error::{Error, Result},
    filters::{Fields, Filters, label},
    gc, labels,
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) target: Descriptor,
    #[serde(default)]
    pub(crate) labels: Labels,
    created: Timestamp,
    updated: Timestamp,
}

impl ImageRecord {
    fn image(self, name: String) -> Image {
        Image {
            name,
            target: self.target,
            labels: self.labels,
            created_at: self.created,
            updated_at: self.updated,
        }
    }
}

impl Fields for Image {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["name"] => Some(self.name.as_str().into()),
            ["target", "digest"] => Some(self.target.digest.to_string().into()),
            ["target", "mediatype"] => Some(self.target.media_type.as_str().into()),
            ["labels", rest @ ..] => label(&self.labels, rest),
            ["annotations", rest @ ..] => label(&self.target.annotations, rest),
            _ => None,
        }
    }
}

/// Must the name be free, taken, or neither?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    Free,
    Taken,
    Any,
    /// As `Any`; who loses the name stays for a while.
    Moved,
}

impl Core {
    pub(crate) fn image_get(&self, ns: &str, name: &str) -> Result<Image> {
        self.db
            .get::<ImageRecord>(Table::Images, ns, name)?
            .map(|record| record.image(name.into()))
            .ok_or_else(|| Error::not_found("image", name))
    }

    pub(crate) fn image_list(&self, ns: &str, filters: &[String]) -> Result<Vec<Image>> {
        let filters = Filters::parse(filters)?;
        let all = self.db.list::<ImageRecord>(Table::Images, ns)?;
        let images = all.into_iter().map(|(name, record)| record.image(name));
        Ok(images.filter(|image| filters.matches(image)).collect())
    }

    pub(crate) fn image_create(
        &self,
        ns: &str,
        image: Image,
        at: Option<Timestamp>,
    ) -> Result<Image> {
        self.image_write(ns, image, Name::Free, (&[], at))
    }

    pub(crate) fn image_put(&self, ns: &str, image: Image) -> Result<Image> {
        self.image_write(ns, image, Name::Any, (&[], None))
    }

    /// Names a transferred image. One that loses the name by this stays for a while, so that whoever
    /// asked for the transfer can give it another name.
    pub(crate) fn image_take_name(
        &self,
        ns: &str,
        name: &str,
        target: Descriptor,
        labels: Labels,
    ) -> Result<Image> {
        let now = Timestamp::now();
        let name = name.into();
        let image = Image { name, target, labels, created_at: now, updated_at: now };
        self.image_write(ns, image, Name::Moved, (&[], None))
    }

    pub(crate) fn image_update(
        &self,
        ns: &str,
        image: Image,
        paths: &[String],
        at: Option<Timestamp>,
    ) -> Result<Image> {
        self.image_write(ns, image, Name::Taken, (paths, at))
    }

    /// `paths`: what of a record that is there changes, none: all; `at`: when, `None`: now.
    fn image_write(
        &self,
        ns: &str,
        image: Image,
        wanted: Name,
        (paths, at): (&[String], Option<Timestamp>),
    ) -> Result<Image> {
        validate(&image)?;
        self.ensure_namespace(ns)?;
        let name = image.name.clone();
        let (record, replaced) = self.db.write(Durable::Now, |tx| {
            let present: Option<ImageRecord> = tx.get(Table::Images, ns, &name)?;
            match (wanted, &present) {
                (Name::Free, Some(_)) => return Err(Error::already_exists("image", &name)),
                (Name::Taken, None) => return Err(Error::not_found("image", &name)),
                _ => {}
            }
            let now = at.unwrap_or_else(Timestamp::now);
            let created = present.as_ref().map_or(now, |present| present.created);
            let record = match &present {
                Some(present) if !paths.is_empty() => {
                    let mut record = present.clone();
                    patch(&mut record, &image, paths)?;
                    record.updated = now;
                    record
                }
                _ => ImageRecord {
                    target: image.target,
                    labels: image.labels,
                    created,
                    updated: now,
                },
            };
            tx.put(Table::Images, ns, &name, &record)?;
            if wanted == Name::Moved
                && let Some(old) =
                    present.as_ref().filter(|p| p.target.digest != record.target.digest)
            {
                let left = vec![(ResourceKind::Content, old.target.digest.to_string())];
                self.guard.linger(ns, self.closure(ns, left)?);
            }
            Ok((record, present.is_some()))
        })?;
        faults::pass("image.named");
        self.settle(ns, vec![(ResourceKind::Content, record.target.digest.to_string())])?;
        let event = if replaced {
            self.schedule.after(gc::AFTER_IMAGE);
            Event::ImageUpdate { name: name.clone(), labels: record.labels.clone() }
        } else {
            Event::ImageCreate { name: name.clone(), labels: record.labels.clone() }
        };
        self.bus.publish(ns, event);
        Ok(record.image(name))
    }

    pub(crate) fn image_delete(&self, ns: &str, name: &str, sync: bool) -> Result<()> {
        let left = self.db.write(Durable::Soon, |tx| {
            let record: ImageRecord =
                tx.get(Table::Images, ns, name)?.ok_or_else(|| Error::not_found("image", name))?;
            tx.delete(Table::Images, ns, name);
            // Now: a collection right after this write takes what tells.
            self.closure(ns, vec![(ResourceKind::Content, record.target.digest.to_string())])
        })?;
        self.guard.forget_all(ns, &left);
        self.bus.publish(ns, Event::ImageDelete { name: name.into() });
        if sync {
            self.collect_or_warn();
        } else {
            self.schedule.after(gc::AFTER_IMAGE);
        }
        Ok(())
    }
}

fn validate(image: &Image) -> Result<()> {
    Image::check_name(&image.name)?;
    labels::validate(&image.labels)
}

fn patch(record: &mut ImageRecord, image: &Image, paths: &[String]) -> Result<()> {
    for path in paths {
        match path.as_str() {
            "labels" => record.labels = image.labels.clone(),
            "target" => record.target = image.target.clone(),
            "annotations" => record.target.annotations = image.target.annotations.clone(),
            path if path.starts_with("labels.") => {
                labels::merge(&mut record.labels, &image.labels, &[path.to_string()]);
            }
            path if path.starts_with("annotations.") => {
                let key = &path["annotations.".len()..];
                let new = &image.target.annotations;
                let keys = [key.to_string()];
                labels::merge(&mut record.target.annotations, new, &keys);
            }
            other => {
                return Err(Error::invalid(format!(
                    "cannot update {other:?} field on image {:?}",
                    image.name
                )));
            }
        }
    }
    Ok(())
}

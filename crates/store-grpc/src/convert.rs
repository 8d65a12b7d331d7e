//! Messages into the seam's structs and back.

use bytes::Bytes;
use protos::containerd::types as api;
use store_api::{Any, Descriptor, Labels, Mount, Timestamp};
use tonic::Status;
use types::Digest;

pub(crate) fn timestamp(at: Timestamp) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp {
        seconds: at.seconds,
        nanos: i32::try_from(at.nanos).unwrap_or(0),
    })
}

/// SOURCE_DATE_EPOCH, where a client gives it.
pub(crate) fn epoch_in(at: Option<prost_types::Timestamp>) -> Result<Option<Timestamp>, Status> {
    let Some(at) = at else { return Ok(None) };
    match u32::try_from(at.nanos) {
        Ok(nanos) if nanos < 1_000_000_000 => Ok(Some(Timestamp { seconds: at.seconds, nanos })),
        _ => {
            let text = format!("source_date_epoch: {} nanoseconds: invalid argument", at.nanos);
            Err(Status::invalid_argument(text))
        }
    }
}

pub(crate) fn any_out(any: Any) -> prost_types::Any {
    prost_types::Any { type_url: any.type_url, value: any.value.to_vec() }
}

pub(crate) fn any_in(any: prost_types::Any) -> Any {
    Any { type_url: any.type_url, value: Bytes::from(any.value) }
}

/// Sizes are never negative and never beyond 2^63.
pub(crate) fn size_out(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

pub(crate) fn size_in(what: &str, size: i64) -> Result<u64, Status> {
    u64::try_from(size).map_err(|_| {
        Status::invalid_argument(format!("{what} {size} is negative: invalid argument"))
    })
}

pub(crate) fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|error: types::DigestError| Status::invalid_argument(error.to_string()))
}

/// A digest that may be left out.
pub(crate) fn optional_digest(text: &str) -> Result<Option<Digest>, Status> {
    if text.is_empty() { Ok(None) } else { digest(text).map(Some) }
}

pub(crate) fn descriptor_out(descriptor: Descriptor) -> Option<api::Descriptor> {
    Some(api::Descriptor {
        media_type: descriptor.media_type,
        digest: descriptor.digest.to_string(),
        size: size_out(descriptor.size),
        annotations: descriptor.annotations,
    })
}

pub(crate) fn descriptor_in(
    what: &str,
    descriptor: Option<api::Descriptor>,
) -> Result<Descriptor, Status> {
    let descriptor = required(what, descriptor)?;
    let size = size_in("size", descriptor.size)?;
    let digest = digest(&descriptor.digest)?;
    let mut out = Descriptor::new(&descriptor.media_type, digest, size);
    out.annotations = descriptor.annotations;
    Ok(out)
}

pub(crate) fn mounts_out(mounts: Vec<Mount>) -> Vec<api::Mount> {
    mounts
        .into_iter()
        .map(|mount| api::Mount {
            kind: mount.kind,
            source: mount.source,
            target: String::new(),
            options: mount.options,
        })
        .collect()
}

pub(crate) fn mounts_in(mounts: Vec<api::Mount>) -> Result<Vec<Mount>, Status> {
    let convert = |mount: api::Mount| {
        if !mount.target.is_empty() {
            return Err(unimplemented(format!("a mount with the target {:?}", mount.target)));
        }
        Ok(Mount { kind: mount.kind, source: mount.source, options: mount.options })
    };
    mounts.into_iter().map(convert).collect()
}

/// The paths of a field mask; none: everything.
pub(crate) fn paths(mask: Option<prost_types::FieldMask>) -> Vec<String> {
    mask.map(|mask| mask.paths).unwrap_or_default()
}

/// The labels that a field mask names, for objects of which only labels can change. Empty: all.
pub(crate) fn label_keys(
    what: &str,
    mask: Option<prost_types::FieldMask>,
) -> Result<Vec<String>, Status> {
    let mut keys = Vec::new();
    let mut all = false;
    for path in paths(mask) {
        match path.strip_prefix("labels.") {
            Some(key) => keys.push(key.to_owned()),
            None if path == "labels" => all = true,
            None => {
                return Err(Status::invalid_argument(format!(
                    "cannot update {path:?} field on {what}: invalid argument"
                )));
            }
        }
    }
    Ok(if all { Vec::new() } else { keys })
}

/// Applies a change of labels: those of `keys`, or all if there are none; an empty value removes.
pub(crate) fn merge_labels(present: &mut Labels, new: Labels, keys: &[String]) {
    if keys.is_empty() {
        *present = new;
    } else {
        for key in keys {
            match new.get(key) {
                Some(value) => present.insert(key.clone(), value.clone()),
                None => present.remove(key),
            };
        }
    }
    present.retain(|_, value| !value.is_empty());
}

pub(crate) fn required<T>(what: &str, value: Option<T>) -> Result<T, Status> {
    value.ok_or_else(|| Status::invalid_argument(format!("{what} is required: invalid argument")))
}

/// Names what this server does not offer.
pub(crate) fn unimplemented(what: impl std::fmt::Display) -> Status {
    Status::unimplemented(format!("{what} is not implemented"))
}

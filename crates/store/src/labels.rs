use store_api::Labels;

use crate::error::{Error, Result};

/// Bytes of a key and its value together (containerd 1.6 `labels.Validate`).
const LABEL_BYTES: usize = 4096;

/// Keeps the snapshot or container only for as long as the host is up: its record is never written
/// to disk, its writable layer is never synced.
pub(crate) const VOLATILE: &str = "gantry.io/volatile";

pub(crate) fn validate(labels: &Labels) -> Result<()> {
    for (key, value) in labels {
        if key.len() + value.len() > LABEL_BYTES {
            return Err(Error::invalid(format!(
                "label key and value length ({} bytes) greater than maximum size ({LABEL_BYTES} bytes), key: {}",
                key.len() + value.len(),
                key.chars().take(64).collect::<String>(),
            )));
        }
    }
    Ok(())
}

/// Sets the labels named by `keys` (with or without containerd's `labels.` in front), or replaces all
/// of them if there are none; an empty value removes.
pub(crate) fn merge(present: &mut Labels, new: &Labels, keys: &[String]) {
    if keys.is_empty() || keys.iter().any(|key| key == "labels") {
        *present = new.clone();
        present.retain(|_, value| !value.is_empty());
        return;
    }
    for key in keys {
        let key = key.strip_prefix("labels.").unwrap_or(key);
        match new.get(key).filter(|value| !value.is_empty()) {
            Some(value) => present.insert(key.to_string(), value.clone()),
            None => present.remove(key),
        };
    }
}

pub(crate) fn is_volatile(labels: &Labels) -> bool {
    labels.get(VOLATILE).is_some_and(|value| value == "true")
}

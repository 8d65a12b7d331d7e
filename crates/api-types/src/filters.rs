//! The `filters` query parameter.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// Conditions by key. Values of one key are alternatives, keys are all required, except `label`
/// and `label!`, whose values are all required.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

/// Why a `filters` parameter was refused; all of these are HTTP 400.
#[derive(Debug, thiserror::Error)]
pub enum FiltersError {
    #[error("invalid filter")]
    Json(#[source] serde_json::Error),
    #[error("invalid filter '{0}'")]
    UnknownKey(String),
    #[error("invalid filter '{key}={values:?}'")]
    NotBool { key: String, values: Vec<String> },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    Map(BTreeMap<String, bool>),
    List(Vec<String>),
    One(String),
    Null(()),
}

impl Filters {
    /// Parses both forms, `{"k":{"v":true}}` and `{"k":["v"]}`; the empty string is no filter.
    pub fn parse(text: &str) -> Result<Filters, FiltersError> {
        if text.is_empty() {
            return Ok(Filters::default());
        }
        let raw: Option<BTreeMap<String, Values>> =
            serde_json::from_str(text).map_err(FiltersError::Json)?;
        let mut filters = Filters::default();
        for (key, values) in raw.unwrap_or_default() {
            let set = filters.0.entry(key).or_default();
            match values {
                Values::Map(map) => {
                    set.extend(map.into_iter().filter(|(_, on)| *on).map(|(v, _)| v))
                }
                Values::List(list) => set.extend(list),
                Values::One(value) => set.extend([value]),
                Values::Null(()) => {}
            }
        }
        Ok(filters)
    }

    /// The form that every server since 1.22 reads; empty when there is no filter.
    pub fn to_json(&self) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let map: serde_json::Map<String, serde_json::Value> = self
            .0
            .iter()
            .map(|(key, values)| {
                let values = values.iter().map(|v| (v.clone(), true.into())).collect();
                (key.clone(), serde_json::Value::Object(values))
            })
            .collect();
        serde_json::Value::Object(map).to_string()
    }

    /// Adds one condition.
    pub fn add(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.0.entry(key.into()).or_default().insert(value.into());
    }

    /// The values of a key, sorted.
    pub fn get<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.0.get(key).into_iter().flatten().map(String::as_str)
    }

    /// The key was given.
    pub fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Drops a key.
    pub fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// No condition at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys given, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Refuses keys outside `accepted`.
    pub fn validate(&self, accepted: &[&str]) -> Result<(), FiltersError> {
        match self.keys().find(|key| !accepted.contains(key)) {
            Some(key) => Err(FiltersError::UnknownKey(key.to_owned())),
            None => Ok(()),
        }
    }

    /// The key as a boolean; `None` when it was not given.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, FiltersError> {
        let Some(values) = self.0.get(key) else { return Ok(None) };
        let is = |names: &[&str]| names.iter().any(|n| values.contains(*n));
        let (yes, no) = (is(&["1", "true"]), is(&["0", "false"]));
        if yes == no {
            let values = values.iter().cloned().collect();
            return Err(FiltersError::NotBool { key: key.to_owned(), values });
        }
        Ok(Some(yes))
    }

    /// No value for the key, or one that is `source`.
    pub fn exact_match(&self, key: &str, source: &str) -> bool {
        self.0.get(key).is_none_or(|values| values.is_empty() || values.contains(source))
    }

    /// Every value (`name` or `name=value`) of the key holds for `labels`.
    pub fn match_labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.get(key).all(|want| match want.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|have| have == value),
            None => labels.contains_key(want),
        })
    }
}

use std::{borrow::Cow, collections::BTreeSet};

use serde::{Deserialize, Serialize};
use store_api::{Labels, Lease, Resource, ResourceKind, Timestamp};

use crate::{
    Core,
    db::{Durable, Table, Tx},
    error::{Error, Result},
    filters::{Fields, Filters, label},
    gc, labels,
};

const EXPIRE: &str = "containerd.io/gc.expire";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    created: Timestamp,
    #[serde(default)]
    pub(crate) labels: Labels,
    #[serde(default, with = "resources")]
    pub(crate) resources: BTreeSet<gc::Node>,
}

impl LeaseRecord {
    pub(crate) fn expired(&self) -> bool {
        let until = self.labels.get(EXPIRE).and_then(|text| parse_rfc3339(text));
        until.is_some_and(|until| until < Timestamp::now().seconds)
    }

    fn lease(self, id: String) -> Lease {
        Lease { id, created_at: self.created, labels: self.labels }
    }
}

impl Fields for Lease {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id"] => Some(self.id.as_str().into()),
            ["labels", rest @ ..] => label(&self.labels, rest),
            _ => None,
        }
    }
}

impl Core {
    pub(crate) fn lease_create(&self, ns: &str, id: &str, new: Labels) -> Result<Lease> {
        labels::validate(&new)?;
        self.ensure_namespace(ns)?;
        let id = if id.is_empty() { crate::random_name() } else { id.to_string() };
        let record =
            LeaseRecord { created: Timestamp::now(), labels: new, resources: BTreeSet::new() };
        self.db.write(Durable::Soon, |tx| {
            if tx.get::<LeaseRecord>(Table::Leases, ns, &id)?.is_some() {
                return Err(Error::already_exists("lease", &id));
            }
            tx.put(Table::Leases, ns, &id, &record)
        })?;
        Ok(record.lease(id))
    }

    pub(crate) fn lease_delete(&self, ns: &str, id: &str, sync: bool) -> Result<()> {
        let left = self.db.write(Durable::Soon, |tx| {
            let record: LeaseRecord =
                tx.get(Table::Leases, ns, id)?.ok_or_else(|| Error::not_found("lease", id))?;
            tx.delete(Table::Leases, ns, id);
            // Now: a collection right after this write takes what tells.
            self.closure(ns, record.resources.into_iter().collect())
        })?;
        faults::pass("lease.deleted");
        self.guard.forget_all(ns, &left);
        if sync {
            self.collect_or_warn();
        } else {
            self.schedule.after(gc::AFTER_IMAGE);
        }
        Ok(())
    }

    pub(crate) fn lease_list(&self, ns: &str, filters: &[String]) -> Result<Vec<Lease>> {
        let filters = Filters::parse(filters)?;
        let all = self.db.list::<LeaseRecord>(Table::Leases, ns)?;
        let leases = all.into_iter().map(|(id, record)| record.lease(id));
        Ok(leases.filter(|lease| filters.matches(lease)).collect())
    }

    pub(crate) fn lease_change(
        &self,
        ns: &str,
        id: &str,
        resource: Resource,
        add: bool,
    ) -> Result<()> {
        let node = (resource.kind, resource.id);
        self.db.write(Durable::Soon, |tx| {
            let mut record: LeaseRecord =
                tx.get(Table::Leases, ns, id)?.ok_or_else(|| Error::not_found("lease", id))?;
            if add {
                record.resources.insert(node.clone());
            } else {
                record.resources.remove(&node);
            }
            tx.put(Table::Leases, ns, id, &record)
        })?;
        faults::pass("lease.changed");
        if add { self.settle(ns, vec![node]) } else { Ok(()) }
    }

    pub(crate) fn lease_resources(&self, ns: &str, id: &str) -> Result<Vec<Resource>> {
        let record: LeaseRecord =
            self.db.get(Table::Leases, ns, id)?.ok_or_else(|| Error::not_found("lease", id))?;
        Ok(record.resources.into_iter().map(|(kind, id)| Resource { kind, id }).collect())
    }

    /// The leases that hold `from` hold `to` from now on: a blob takes over from its ingest, a
    /// committed snapshot from its active one. Answers whether any does. The write must not have changed
    /// leases yet.
    pub(crate) fn inherit_leases(
        &self,
        tx: &mut Tx<'_>,
        ns: &str,
        from: (ResourceKind, &str),
        to: (ResourceKind, &str),
    ) -> Result<bool> {
        let from = (from.0, from.1.to_string());
        let to = (to.0, to.1.to_string());
        let leases = self.db.list::<LeaseRecord>(Table::Leases, ns)?;
        let mut held = false;
        for (id, mut lease) in leases {
            if lease.resources.remove(&from) {
                lease.resources.insert(to.clone());
                tx.put(Table::Leases, ns, &id, &lease)?;
            }
            held |= lease.resources.contains(&to);
        }
        Ok(held)
    }

    pub(crate) fn leased_ingests(&self, ns: &str) -> Result<BTreeSet<String>> {
        let leases = self.db.list::<LeaseRecord>(Table::Leases, ns)?;
        let all = leases.into_iter().flat_map(|(_, lease)| lease.resources);
        Ok(all
            .filter(|(kind, _)| *kind == ResourceKind::Ingest)
            .map(|(_, reference)| reference)
            .collect())
    }
}

/// Seconds since 1970 of `2026-01-31T12:00:00[.fraction](Z|±hh:mm)`.
fn parse_rfc3339(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let zone = text.get(19..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match zone.as_bytes() {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), rest @ ..] if rest.len() == 5 => {
            let hours: i64 = zone.get(1..3)?.parse().ok()?;
            let minutes: i64 = zone.get(4..6)?.parse().ok()?;
            let seconds = (hours * 60 + minutes) * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970-01-01 in the proleptic Gregorian calendar, years counted from March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second - offset)
}

mod resources {
    use std::collections::BTreeSet;

    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};
    use store_api::ResourceKind;

    use crate::gc::Node;

    pub(super) fn serialize<S: Serializer>(
        nodes: &BTreeSet<Node>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let named: Vec<(&str, &str)> = nodes
            .iter()
            .map(|(kind, id)| {
                let kind = match kind {
                    ResourceKind::Content => "content",
                    ResourceKind::Ingest => "ingest",
                    ResourceKind::Snapshot => "snapshot",
                };
                (kind, id.as_str())
            })
            .collect();
        named.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeSet<Node>, D::Error> {
        let named = Vec::<(String, String)>::deserialize(deserializer)?;
        named
            .into_iter()
            .map(|(kind, id)| match kind.as_str() {
                "content" => Ok((ResourceKind::Content, id)),
                "ingest" => Ok((ResourceKind::Ingest, id)),
                "snapshot" => Ok((ResourceKind::Snapshot, id)),
                other => Err(serde::de::Error::custom(format!("resource kind {other:?}"))),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::parse_rfc3339;

    #[test]
    fn times() {
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse_rfc3339("2024-02-29T12:30:00.5+01:00"), Some(1_709_206_200));
        assert_eq!(parse_rfc3339("2000-03-01T00:00:00-00:30"), Some(951_870_600));
        assert_eq!(parse_rfc3339("tomorrow"), None);
        assert_eq!(parse_rfc3339("2024-13-01T00:00:00Z"), None);
    }
}

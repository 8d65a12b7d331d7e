use std::sync::Arc;

use api_types::{
    ContainerSummary, Filters, Map, PortSummary, SummaryHostConfig, SummaryNetworkSettings,
};
use store_api::Timestamp;

use super::{
    Container,
    inspect::{descriptor_shape, mount_shape},
    record::{Record, Status},
};
use crate::{Engine, Error, Result, util::expression_matches};

/// moby `daemon/list.go` `acceptedPsFilterTags`.
const FILTERS: &[&str] = &[
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "isolation",
    "is-task",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];
const STATES: &[&str] =
    &["created", "running", "paused", "restarting", "removing", "exited", "dead"];

/// Query of `GET /containers/json`.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub all: bool,
    /// 0: no limit.
    pub limit: usize,
    pub size: bool,
    pub filters: Filters,
}

impl Engine {
    pub async fn container_list(
        self: &Arc<Self>,
        options: ListOptions,
    ) -> Result<Vec<ContainerSummary>> {
        let filters = &options.filters;
        filters.validate(FILTERS)?;
        if let Some(bad) = filters.get("status").find(|status| !STATES.contains(status)) {
            return Err(Error::invalid(format!("invalid filter 'status={bad}'")));
        }
        for code in filters.get("exited") {
            code.parse::<i64>()
                .map_err(|_| Error::invalid(format!("invalid filter 'exited={code}'")))?;
        }
        let created_of = |key: &str| -> Result<Option<Timestamp>> {
            match filters.get(key).next() {
                Some(name) => Ok(Some(self.containers.find(name)?.record().created)),
                None => Ok(None),
            }
        };
        let (before, since) = (created_of("before")?, created_of("since")?);
        let mut containers: Vec<(Record, Arc<Container>)> =
            self.containers.all().into_iter().map(|c| (c.snapshot(), c)).collect();
        containers.sort_by_key(|(record, _)| std::cmp::Reverse(record.created));
        // A filter by state, and a limit, mean all containers.
        let everything = options.all
            || options.limit > 0
            || ["status", "exited", "before", "since"].iter().any(|key| filters.contains(key));
        containers.retain(|(record, container)| {
            (everything || record.status.is_running())
                && before.is_none_or(|before| record.created < before)
                && since.is_none_or(|since| record.created > since)
                && self.matches(filters, record, container)
        });
        if options.limit > 0 {
            containers.truncate(options.limit);
        }
        let mut list = Vec::with_capacity(containers.len());
        let known = match self.known_images().await {
            Ok(known) => Some(known),
            // Containers can be told without their images.
            Err(error) => {
                tracing::warn!(%error, "names of images are not checked");
                None
            }
        };
        for (record, container) in containers {
            let mut summary = self.summary(&record, &container);
            // moby `daemon/list.go`: a name that now means another image, or none, says nothing.
            let means_it = known.as_ref().is_none_or(|known| {
                crate::image::find_in(known, &summary.image)
                    .is_ok_and(|image| image.target.digest == record.image.id)
            });
            if !means_it {
                summary.image.clone_from(&summary.image_id);
            }
            if options.size {
                let (own, all) = self.container_size(&record).await;
                summary.size_rw = i64::try_from(own).unwrap_or(i64::MAX);
                summary.size_root_fs = i64::try_from(all).unwrap_or(i64::MAX);
            }
            list.push(summary);
        }
        Ok(list)
    }

    fn matches(&self, filters: &Filters, record: &Record, container: &Container) -> bool {
        let any = |key: &str, test: &dyn Fn(&str) -> bool| {
            !filters.contains(key) || filters.get(key).any(test)
        };
        let health = || {
            self.health_shape(container).map_or_else(|| "none".to_string(), |health| health.status)
        };
        any("id", &|want| record.id.as_str().starts_with(want))
            && any("name", &|want| name_matches(&record.name, want))
            && any("status", &|want| record.status.name() == want)
            && any("exited", &|want| {
                !record.status.is_running()
                    && record.status.ended().is_some_and(|ended| ended.code.to_string() == want)
            })
            && filters.match_labels("label", &record.config.labels)
            && any("ancestor", &|want| self.is_ancestor(record, want))
            && any("network", &|want| {
                record.networks.iter().any(|(name, attachment)| {
                    name == want || attachment.settings.network_id.starts_with(want)
                })
            })
            && any("volume", &|want| {
                record.mounts.iter().any(|mount| {
                    mount.name == want || mount.target == want || mount.source.as_os_str() == want
                })
            })
            && any("health", &|want| health() == want)
            && any("isolation", &|want| matches!(want, "" | "default"))
            && any("is-task", &|want| matches!(want, "false" | "0"))
            && any("publish", &|want| port_matches(record, want, true))
            && any("expose", &|want| port_matches(record, want, false))
    }

    fn is_ancestor(&self, record: &Record, want: &str) -> bool {
        let id = record.image.id.to_string();
        let hex = record.image.id.hex();
        let named = |text: &str| {
            let parse = |text: &str| {
                text.parse::<types::ImageRef>().ok().map(types::ImageRef::with_default_tag)
            };
            matches!((parse(text), parse(&record.config.image)), (Some(a), Some(b)) if a == b)
        };
        id == want || (want.len() >= 4 && hex.starts_with(want)) || named(want)
    }

    fn summary(&self, record: &Record, container: &Container) -> ContainerSummary {
        let mut command = record.path.clone();
        for word in &record.args {
            command.push(' ');
            // moby `daemon/container/view.go`: for the eye, not for a shell.
            if word.contains(' ') {
                command.push_str(&format!("'{word}'"));
            } else {
                command.push_str(word);
            }
        }
        let networks: Map<_> = record
            .networks
            .iter()
            .map(|(name, attachment)| (name.clone(), attachment.settings.clone()))
            .collect();
        ContainerSummary {
            id: record.id.to_string(),
            names: vec![format!("/{}", record.name)],
            image: record.config.image.clone(),
            image_id: record.image.id.to_string(),
            image_manifest_descriptor: Some(descriptor_shape(&record.image.manifest)),
            command,
            created: record.created.seconds,
            ports: port_summaries(record),
            labels: record.config.labels.clone(),
            state: record.status.name().into(),
            status: self.status_text(record, container),
            host_config: SummaryHostConfig {
                network_mode: record.host_config.network_mode.clone(),
                annotations: record.host_config.annotations.clone(),
            },
            network_settings: SummaryNetworkSettings { networks },
            mounts: record.mounts.iter().filter_map(mount_shape).collect(),
            ..ContainerSummary::default()
        }
    }

    /// moby `container.(*State).String`.
    fn status_text(&self, record: &Record, container: &Container) -> String {
        let ago = |time: Timestamp| human_duration(Timestamp::now().seconds - time.seconds);
        match &record.status {
            Status::Created => "Created".into(),
            Status::Running { started_at, paused: true, .. } => {
                format!("Up {} (Paused)", ago(*started_at))
            }
            Status::Running { started_at, .. } => {
                let up = format!("Up {}", ago(*started_at));
                match self.health_shape(container) {
                    Some(health) if health.status == "starting" => {
                        format!("{up} (health: starting)")
                    }
                    Some(health) => format!("{up} ({})", health.status),
                    None => up,
                }
            }
            Status::Restarting { ended, .. } => {
                format!("Restarting ({}) {} ago", ended.code, ago(ended.at))
            }
            Status::Exited { ended, started_at: None } if !ended.error.is_empty() => {
                "Created".into()
            }
            Status::Exited { ended, .. } => {
                format!("Exited ({}) {} ago", ended.code, ago(ended.at))
            }
            Status::Dead { .. } => "Dead".into(),
        }
    }
}

/// With or without docker's leading `/`.
fn name_matches(name: &str, want: &str) -> bool {
    expression_matches(name, want) || expression_matches(&format!("/{name}"), want)
}

/// `80`, `80/udp`, `8000-8010/tcp`
fn port_matches(record: &Record, want: &str, published: bool) -> bool {
    let (range, proto) = want.split_once('/').unwrap_or((want, "tcp"));
    let (low, high) = range.split_once('-').unwrap_or((range, range));
    let (Ok(low), Ok(high)) = (low.parse::<u16>(), high.parse::<u16>()) else { return false };
    port_summaries(record).iter().any(|port| {
        let number = if published { port.public_port } else { port.private_port };
        port.r#type == proto && (low..=high).contains(&number)
    })
}

fn port_summaries(record: &Record) -> Vec<PortSummary> {
    let mut list = Vec::new();
    let exposed = record.config.exposed_ports.keys();
    let mut seen: Vec<&String> = Vec::new();
    for (port, bindings) in &record.ports {
        seen.push(port);
        let (number, proto) = split_port(port);
        match bindings {
            Some(bindings) if !bindings.is_empty() => {
                for binding in bindings {
                    list.push(PortSummary {
                        ip: binding.host_ip.clone(),
                        private_port: number,
                        public_port: binding.host_port.parse().unwrap_or(0),
                        r#type: proto.into(),
                    });
                }
            }
            _ => list.push(PortSummary {
                private_port: number,
                r#type: proto.into(),
                ..PortSummary::default()
            }),
        }
    }
    if record.status.is_running() {
        for port in exposed.filter(|port| !seen.contains(port)) {
            let (number, proto) = split_port(port);
            list.push(PortSummary {
                private_port: number,
                r#type: proto.into(),
                ..PortSummary::default()
            });
        }
    }
    list
}

fn split_port(port: &str) -> (u16, &str) {
    let (number, proto) = port.split_once('/').unwrap_or((port, "tcp"));
    (number.parse().unwrap_or(0), proto)
}

/// go-units `HumanDuration`.
pub(crate) fn human_duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        _ if seconds < 60 => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ => match (seconds + 1800) / 3600 {
            1 => "About an hour".into(),
            rounded if rounded < 48 => format!("{rounded} hours"),
            _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
            _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
            _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
            _ => format!("{} years", hours / 24 / 365),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_docker_words_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (120, "2 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (172_800, "2 days"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
    }

    #[test]
    fn names_match_with_anchors() {
        assert!(name_matches("web-1", "web"));
        assert!(name_matches("web-1", "^/web-1$"));
        assert!(name_matches("web-1", "^web"));
        assert!(name_matches("web-1", "w.b-[0-9]$"));
        assert!(!name_matches("web-1", "^eb"));
        assert!(!name_matches("web-1", "("));
    }
}

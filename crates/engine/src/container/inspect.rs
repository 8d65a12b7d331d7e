use std::{sync::Arc, sync::PoisonError};

use api_types::{
    ContainerInspect, GraphDriverData, Map, MountPoint, MountType, NetworkSettings, OciDescriptor,
    OciPlatform, State,
};
use store_api::Descriptor;

use super::{
    Container,
    record::{MountKind, MountUse, Record, Status},
};
use crate::{Engine, Result, util::rfc3339};

impl Engine {
    pub async fn container_inspect(
        self: &Arc<Self>,
        name: &str,
        size: bool,
    ) -> Result<ContainerInspect> {
        let container = self.containers.find(name)?;
        let record = container.snapshot();
        let (size_rw, size_root_fs) = if size {
            let (own, all) = self.container_size(&record).await;
            (i64::try_from(own).ok(), i64::try_from(all).ok())
        } else {
            (None, None)
        };
        let file = |name: &str| container.dir.join(name).to_string_lossy().into_owned();
        let execs = container.execs.lock().unwrap_or_else(PoisonError::into_inner);
        let exec_ids: Vec<String> = execs.values().filter_map(|exec| exec.id_if_live()).collect();
        drop(execs);
        let log_path = if record.host_config.log_config.r#type == "json-file" {
            container.log_file().to_string_lossy().into_owned()
        } else {
            String::new()
        };
        Ok(ContainerInspect {
            id: record.id.to_string(),
            created: rfc3339(Some(record.created)),
            path: record.path.clone(),
            args: record.args.clone(),
            state: self.state_shape(&container, &record),
            image: record.image.id.to_string(),
            resolv_conf_path: file("resolv.conf"),
            hostname_path: file("hostname"),
            hosts_path: file("hosts"),
            log_path,
            name: format!("/{}", record.name),
            restart_count: i64::from(record.restart_count),
            driver: self.services.snapshots.name().into(),
            platform: "linux".into(),
            exec_ids,
            graph_driver: GraphDriverData {
                data: Map::new(),
                name: self.services.snapshots.name().into(),
            },
            size_rw,
            size_root_fs,
            image_manifest_descriptor: Some(descriptor_shape(&record.image.manifest)),
            mounts: record.mounts.iter().filter_map(mount_shape).collect(),
            network_settings: self.network_shape(&record),
            config: {
                let mut config = record.config.clone();
                config.hostname = record.hostname();
                config
            },
            host_config: api_types::HostConfig {
                links: self.shown_links(&record),
                ..record.host_config.clone()
            },
            ..ContainerInspect::default()
        })
    }

    fn state_shape(&self, container: &Container, record: &Record) -> State {
        let status = &record.status;
        let ended = status.ended();
        State {
            status: status.name().into(),
            running: status.is_running(),
            paused: matches!(status, Status::Running { paused: true, .. }),
            restarting: matches!(status, Status::Restarting { .. }),
            oom_killed: ended.is_some_and(|ended| ended.oom)
                || (status.pid().is_some()
                    && container.oom_killed.load(std::sync::atomic::Ordering::Relaxed)),
            dead: matches!(status, Status::Dead { .. }),
            pid: status.pid().map_or(0, i64::from),
            exit_code: ended.map_or(0, |ended| ended.code),
            error: ended.map(|ended| ended.error.clone()).unwrap_or_default(),
            started_at: rfc3339(status.started_at()),
            finished_at: rfc3339(
                ended.filter(|_| status.name() != "created").map(|ended| ended.at),
            ),
            health: self.health_shape(container),
        }
    }

    fn network_shape(&self, record: &Record) -> NetworkSettings {
        let running = record.status.pid().is_some();
        let networks: Map<_> = record
            .networks
            .iter()
            .map(|(name, attachment)| {
                let mut settings = attachment.settings.clone();
                if self.networks.has_dns(name) {
                    settings.dns_names = crate::net::dns_names(record, &settings);
                }
                (name.clone(), settings)
            })
            .collect();
        let main = networks.get("bridge").cloned().unwrap_or_default();
        let sandbox = if running && record.has_own_network() { record.id.as_str() } else { "" };
        NetworkSettings {
            sandbox_id: sandbox.into(),
            sandbox_key: if sandbox.is_empty() {
                String::new()
            } else {
                self.networks.namespace_file(self, record).to_string_lossy().into_owned()
            },
            ports: record.ports.clone(),
            endpoint_id: main.endpoint_id,
            gateway: main.gateway,
            global_ipv6_address: main.global_ipv6_address,
            global_ipv6_prefix_len: main.global_ipv6_prefix_len,
            ip_address: main.ip_address,
            ip_prefix_len: main.ip_prefix_len,
            ipv6_gateway: main.ipv6_gateway,
            mac_address: main.mac_address,
            networks,
            ..NetworkSettings::default()
        }
    }

    /// Bytes of the writable layer, and with the image's layers.
    pub(crate) async fn container_size(&self, record: &Record) -> (u64, u64) {
        match self.services.extras.usage_with_parents(record.id.as_str()).await {
            Ok((own, parents)) => (own.bytes, own.bytes.saturating_add(parents.bytes)),
            Err(error) => {
                tracing::debug!(container = %record.id, %error, "the size of a container is unknown");
                (0, 0)
            }
        }
    }
}

/// tmpfs mounts given as `Tmpfs` are not shown, as in docker.
pub(super) fn mount_shape(mount: &MountUse) -> Option<MountPoint> {
    let r#type = match mount.kind {
        MountKind::Bind => MountType::Bind,
        MountKind::Volume => MountType::Volume,
        MountKind::Tmpfs if mount.from_mounts => MountType::Tmpfs,
        MountKind::Tmpfs => return None,
    };
    let volume = mount.kind == MountKind::Volume;
    Some(MountPoint {
        r#type,
        name: mount.name.clone(),
        source: mount.source.to_string_lossy().into_owned(),
        destination: mount.target.clone(),
        driver: if volume { "local".into() } else { String::new() },
        mode: if volume && mount.mode.is_empty() && !mount.anonymous {
            "z".into()
        } else {
            mount.mode.clone()
        },
        rw: !mount.read_only,
        propagation: mount.propagation.clone(),
    })
}

pub(crate) fn descriptor_shape(descriptor: &Descriptor) -> OciDescriptor {
    OciDescriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        urls: descriptor.urls.clone(),
        annotations: descriptor.annotations.clone(),
        platform: descriptor.platform.as_ref().map(|platform| OciPlatform {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            variant: platform.variant.clone(),
            ..OciPlatform::default()
        }),
        ..OciDescriptor::default()
    }
}

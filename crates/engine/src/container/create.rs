use std::{collections::BTreeMap, sync::Arc};

use api_types::{ContainerCreateBody, EndpointSettings, HostConfig, Map};
use store_api::{Labels, Timestamp};
use types::{ContainerId, Platform, validate_name};

use super::{
    Container, dir_of, links, merge,
    record::{Attachment, ImageUse, NewRecord, Record},
    spec, validate,
};
use crate::{
    Engine, Error, Result,
    util::{make_dir_mode, random_id, rfc3339},
};

/// Attempts at a random name that is free.
const NAME_ATTEMPTS: u32 = 10;
/// Label that tells the snapshotter that a power cut may take this layer.
const VOLATILE: &str = "gantry.io/volatile";
/// Label of a container's snapshot: the container's id. The store does not collect what has it.
pub(crate) const CONTAINER_LABEL: &str = "gantry.io/container";
const GC_ROOT: &str = "containerd.io/gc.root";

/// A container that was made, and what the user should know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    pub id: ContainerId,
    pub warnings: Vec<String>,
}

impl Engine {
    /// Makes a container: a record and a writable layer on its image.
    ///
    /// # Errors
    /// `NotFound` when the image is not here, `Conflict` when the name is taken, `InvalidArgument` for a
    /// configuration that cannot be, `NotImplemented` for one that is not offered yet.
    pub async fn container_create(
        self: &Arc<Self>,
        name: Option<&str>,
        platform: Option<Platform>,
        body: ContainerCreateBody,
    ) -> Result<Created> {
        let mut config = body.config;
        let mut host_config = body.host_config.unwrap_or_default();
        let endpoints = body.networking_config.unwrap_or_default().endpoints_config;
        if config.image.is_empty() {
            return Err(Error::invalid("no image specified"));
        }
        merge::validate(&config)?;
        validate::conflicts(&config, &host_config)?;
        validate::health(&config)?;
        let mut warnings = self.check_host_config(&mut host_config)?;
        let found = self.image_for_container(&config.image, platform.as_ref()).await?;
        warnings.extend(found.warning);
        merge::merge(&mut config, &found.config);
        let image = found.image;
        let no_command =
            |list: &Option<api_types::StrSlice>| list.as_ref().is_none_or(|list| list.0.is_empty());
        if no_command(&config.entrypoint) && no_command(&config.cmd) {
            return Err(Error::invalid("no command specified"));
        }
        spec::capabilities(&host_config)?;
        crate::net::validate_ports(&host_config, &config)?;
        let id: ContainerId =
            random_id().parse().map_err(|e| Error::internal(format!("random id: {e}")))?;
        let networks = self.wanted_networks(&config, &mut host_config, endpoints)?;
        let name = self.take_name(name, &id)?;
        let new = NewRecord { id, name, image, config, host_config, mounts: Vec::new(), networks };
        match self.make_container(new).await {
            Ok(id) => Ok(Created { id, warnings }),
            Err((id, name, error)) => {
                self.containers.release_name(&name, &id);
                Err(error)
            }
        }
    }

    fn take_name(&self, name: Option<&str>, id: &ContainerId) -> Result<String> {
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            let name = name.strip_prefix('/').unwrap_or(name);
            validate_name(name)?;
            self.containers.reserve_name(name, id)?;
            return Ok(name.into());
        }
        for attempt in 0..NAME_ATTEMPTS {
            let name = crate::names::random(attempt);
            if self.containers.reserve_name(&name, id).is_ok() {
                return Ok(name);
            }
        }
        let name = id.short().to_string();
        self.containers.reserve_name(&name, id)?;
        Ok(name)
    }

    async fn make_container(
        self: &Arc<Self>,
        mut new: NewRecord,
    ) -> Result<ContainerId, (ContainerId, String, Error)> {
        let (id, name) = (new.id.clone(), new.name.clone());
        let dir = dir_of(&self.config.data_root, &id);
        let made = async {
            let (mounts, holds) = self.resolve_mounts(&new.config, &new.host_config)?;
            new.mounts = mounts;
            make_dir_mode(&dir, 0o710)?;
            let record = Record::new(new);
            let mut labels = snapshot_labels(&id);
            if record.host_config.auto_remove {
                labels.insert(VOLATILE.into(), "true".into());
            }
            let parent = record.image.parent.as_ref().map(ToString::to_string);
            self.services.snapshots.prepare(id.as_str(), parent.as_deref(), labels).await?;
            faults::pass("create.snapshot");
            Ok((Container::new(dir.clone(), record), holds))
        };
        // From the insertion on, the container itself keeps its volumes from removal.
        let (container, _volumes) = match made.await {
            Ok(made) => made,
            Err(error) => {
                remove_dir(&dir);
                return Err((id, name, error));
            }
        };
        let saved = container.record().save(&dir);
        if let Err(error) = saved {
            if let Err(cause) = self.services.snapshots.remove(id.as_str()).await {
                tracing::warn!(container = %id, %cause, "a snapshot was left behind");
            }
            remove_dir(&dir);
            return Err((id, name, error));
        }
        self.containers.insert(container.clone());
        self.container_event(&container, "create");
        Ok(id)
    }

    /// Refuses what is not offered, fills in docker's defaults, answers warnings.
    fn check_host_config(&self, host: &mut HostConfig) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        refuse_unsupported(host)?;
        let resources = &host.resources;
        if resources.memory_swap > 0
            && (resources.memory == 0 || resources.memory_swap < resources.memory)
        {
            return Err(Error::invalid(if resources.memory == 0 {
                "You should always set the Memory limit when using Memoryswap limit, see usage"
            } else {
                "Minimum memoryswap limit should be larger than memory limit, see usage"
            }));
        }
        if resources.nano_cpus > 0 && (resources.cpu_period > 0 || resources.cpu_quota > 0) {
            return Err(Error::invalid(
                "Conflicting options: Nano CPUs and CPU Period/Quota cannot both be set",
            ));
        }
        if host.auto_remove && !matches!(host.restart_policy.name.as_str(), "" | "no") {
            return Err(Error::invalid("can't create 'AutoRemove' container with restart policy"));
        }
        check_restart_policy(&host.restart_policy)?;
        validate::ranges(host, super::online_cpus())?;
        self.fill_defaults(host)?;
        if host.network_mode == "host" && (!host.port_bindings.is_empty() || host.publish_all_ports)
        {
            warnings.push("Published ports are discarded when using host network mode".into());
        }
        if self.facts.cgroup_v2 && host.resources.kernel_memory_tcp != 0 {
            return Err(Error::invalid("KernelMemoryTCP: cgroup v2 has no such limit"));
        }
        if host.resources.oom_kill_disable == Some(true) {
            if self.facts.cgroup_v2 {
                warnings.push("OomKillDisable is discarded: cgroup v2 does not have it.".into());
            } else if host.resources.memory == 0 {
                warnings.push("OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.".into());
            }
        }
        if self.config.on_demand && !matches!(host.restart_policy.name.as_str(), "" | "no") {
            warnings.push(format!(
                "Restart policy {:?}: a client started this daemon, and nothing starts it after a reboot: \
                 enable it as a service (systemctl enable --now gantry.socket gantry.service).",
                host.restart_policy.name
            ));
        }
        Ok(warnings)
    }

    fn fill_defaults(&self, host: &mut HostConfig) -> Result<()> {
        if host.log_config.r#type.is_empty() {
            host.log_config.r#type.clone_from(&self.config.log_driver);
            if host.log_config.config.is_empty() {
                host.log_config.config = self.config.log_options.clone();
            }
        }
        if !matches!(host.log_config.r#type.as_str(), "json-file" | "none") {
            return Err(Error::not_implemented(format!(
                "log driver \"{}\"",
                host.log_config.r#type
            )));
        }
        if host.log_config.r#type == "json-file" {
            super::logopts::check(&host.log_config.config)?;
        }
        if host.resources.memory > 0 && host.resources.memory_swap == 0 {
            // docker: swap as much again.
            host.resources.memory_swap = host.resources.memory.saturating_mul(2);
        }
        if host.shm_size == 0 {
            host.shm_size = self.config.default_shm_bytes;
        }
        if host.ipc_mode.is_empty() {
            host.ipc_mode.clone_from(&self.config.default_ipc);
        }
        if host.cgroupns_mode.is_empty() {
            host.cgroupns_mode = self.default_cgroupns(host.privileged);
        }
        if host.runtime.is_empty() {
            host.runtime.clone_from(&self.config.default_runtime);
        }
        if !self.config.runtimes.contains_key(&host.runtime) {
            return Err(Error::invalid(format!(
                "unknown or invalid runtime name: {}",
                host.runtime
            )));
        }
        if host.restart_policy.name.is_empty() {
            host.restart_policy.name = "no".into();
        }
        spec::fill_masked_paths(host);
        let resources = &mut host.resources;
        // What clients send for "not set".
        resources.memory_swappiness = resources.memory_swappiness.filter(|n| *n != -1);
        resources.pids_limit = resources.pids_limit.filter(|n| *n > 0);
        Ok(())
    }

    fn default_cgroupns(&self, privileged: bool) -> String {
        let default = || if self.facts.cgroup_v2 && !privileged { "private" } else { "host" };
        self.config.default_cgroupns.clone().unwrap_or_else(|| default().into())
    }

    /// Which networks the container joins, by name.
    pub(crate) fn wanted_networks(
        &self,
        config: &api_types::Config,
        host: &mut HostConfig,
        mut endpoints: Map<Option<EndpointSettings>>,
    ) -> Result<BTreeMap<String, Attachment>> {
        if config.network_disabled {
            host.network_mode = "none".into();
        }
        if matches!(host.network_mode.as_str(), "" | "default") {
            // docker: the endpoint given by name decides when no mode is given.
            host.network_mode = match endpoints.keys().next() {
                Some(only) if endpoints.len() == 1 && only != "default" => only.clone(),
                _ if self.config.bridge_disabled => "none".into(),
                _ => "bridge".into(),
            };
        }
        if let Some(other) = host.network_mode.strip_prefix("container:") {
            let other = self.containers.find(other).map_err(named_only)?;
            host.network_mode = format!("container:{}", other.id);
            return Ok(BTreeMap::new());
        }
        let main = self.networks.find(&host.network_mode).map_err(named_only)?;
        let links = self.settle_links(host)?;
        let mut networks = BTreeMap::new();
        let own = [host.network_mode.clone(), main.name.clone(), main.id.clone(), "default".into()];
        let given = own.iter().find_map(|key| endpoints.remove(key)).flatten();
        let mut given = given.unwrap_or_default();
        if given.mac_address.is_empty() {
            // Where clients below API 1.44 put it.
            given.mac_address.clone_from(&config.mac_address);
        }
        // The CLI gives links of a user network twice.
        for link in links {
            let (id, alias) = links::parse(&link)?;
            let has = |have: &String| links::parse(have).is_ok_and(|(_, known)| known == alias);
            if !given.links.iter().any(has) {
                given.links.push(format!("{id}:{alias}"));
            }
        }
        networks.insert(main.name.clone(), attachment(&main, given)?);
        for (name, settings) in endpoints {
            let network = self.networks.find(&name).map_err(named_only)?;
            networks
                .insert(network.name.clone(), attachment(&network, settings.unwrap_or_default())?);
        }
        Ok(networks)
    }
}

/// A 404 of create says that the image is not here, upon which clients pull it: whatever else is missing
/// has to be another failure.
pub(super) fn named_only(error: Error) -> Error {
    if error.is_not_found() { Error::invalid(error.message) } else { error }
}

/// What a container asks of a network, checked; also by `network connect`.
pub(crate) fn attachment(
    network: &crate::net::Network,
    settings: EndpointSettings,
) -> Result<Attachment> {
    let addresses = settings.ipam_config.clone().unwrap_or_default();
    for (set, field) in [
        (!settings.driver_opts.is_empty(), "DriverOpts"),
        (settings.gw_priority != 0, "GwPriority"),
        (!addresses.link_local_ips.is_empty(), "IPAMConfig.LinkLocalIPs"),
    ] {
        if set {
            return Err(Error::not_implemented(format!(
                "EndpointSettings.{field} (network {})",
                network.name
            )));
        }
    }
    let fixed = !addresses.ipv4_address.is_empty() || !addresses.ipv6_address.is_empty();
    if fixed {
        fixed_addresses(network, [&addresses.ipv4_address, &addresses.ipv6_address])?;
    }
    if !settings.aliases.is_empty() && network.name == "bridge" {
        return Err(Error::invalid(
            "network-scoped alias is supported only for containers in user defined networks",
        ));
    }
    if !settings.links.is_empty() && network.is_predefined() {
        return Err(Error::invalid(format!(
            "links of an endpoint are for user defined networks, not for {}",
            network.name
        )));
    }
    for link in &settings.links {
        links::parse(link)?;
    }
    let settings = EndpointSettings { network_id: network.id.clone(), ..settings };
    Ok(Attachment {
        wanted_mac: settings.mac_address.clone(),
        settings,
        ifname: String::new(),
        host_ifname: String::new(),
        gateway: false,
    })
}

/// Addresses that a user asked for have to be in a subnet that a user configured (moby
/// `api/types/network.(*EndpointIPAMConfig).IsInRange`).
fn fixed_addresses(network: &crate::net::Network, addresses: [&String; 2]) -> Result<()> {
    let refuse = |why: String| {
        Err(Error::invalid(format!(
            "invalid config for network {}: invalid endpoint settings:\n{why}",
            network.name
        )))
    };
    const SUBNETS: &str = "user specified IP address is supported only when connecting to networks with user configured subnets";
    if network.is_predefined() {
        return refuse(format!(
            "* user specified IP address is supported on user defined networks only\n* {SUBNETS}"
        ));
    }
    if !network.has_user_subnet {
        return refuse(SUBNETS.into());
    }
    for text in addresses.into_iter().filter(|text| !text.is_empty()) {
        let Ok(address) = text.parse() else {
            return refuse(format!("invalid IP address: {text}"));
        };
        let inside = network.pools.iter().any(|pool| pool.subnet.contains(address));
        if !inside {
            return refuse(format!(
                "no configured subnet or ip-range contain the IP address {text}"
            ));
        }
    }
    Ok(())
}

/// Fields of docker's that this engine does not offer yet, at any value but their default.
fn refuse_unsupported(host: &HostConfig) -> Result<()> {
    let refuse = |set: bool, field: &str| {
        if set { Err(Error::not_implemented(format!("HostConfig.{field}"))) } else { Ok(()) }
    };
    let resources = &host.resources;
    refuse(!host.storage_opt.is_empty(), "StorageOpt")?;
    refuse(!matches!(host.userns_mode.as_str(), "" | "host"), "UsernsMode")?;
    if !matches!(host.isolation.as_str(), "" | "default") {
        return Err(Error::invalid(format!(
            "Invalid isolation: \"{}\" - linux only supports 'default'",
            host.isolation
        )));
    }
    refuse(!resources.device_requests.is_empty(), "DeviceRequests")?;
    refuse(!matches!(host.volume_driver.as_str(), "" | "local"), "VolumeDriver")?;
    refuse(!host.cgroup.is_empty(), "Cgroup")?;
    refuse(resources.kernel_memory != 0, "KernelMemory")?;
    refuse(resources.cpu_count != 0 || resources.cpu_percent != 0, "CpuCount")?;
    refuse(
        resources.io_maximum_iops != 0 || resources.io_maximum_bandwidth != 0,
        "IOMaximumBandwidth",
    )?;
    let ipc = host.ipc_mode.as_str();
    if !matches!(ipc, "" | "private" | "shareable" | "host" | "none")
        && !ipc.starts_with("container:")
    {
        return Err(Error::invalid(format!("invalid IPC mode: {ipc}")));
    }
    let pid = host.pid_mode.as_str();
    if !matches!(pid, "" | "host") && !pid.starts_with("container:") {
        return Err(Error::invalid(format!("invalid PID mode: {pid}")));
    }
    if !matches!(host.uts_mode.as_str(), "" | "host") {
        return Err(Error::invalid(format!("invalid UTS mode: {}", host.uts_mode)));
    }
    if !matches!(host.cgroupns_mode.as_str(), "" | "host" | "private") {
        return Err(Error::invalid(format!(
            "invalid cgroup namespace mode: {}",
            host.cgroupns_mode
        )));
    }
    Ok(())
}

pub(super) fn check_restart_policy(policy: &api_types::RestartPolicy) -> Result<()> {
    match policy.name.as_str() {
        "" | "no" | "always" | "unless-stopped" if policy.maximum_retry_count != 0 => {
            Err(Error::invalid(
                "invalid restart policy: maximum retry count can only be used with 'on-failure'",
            ))
        }
        "" | "no" | "always" | "unless-stopped" => Ok(()),
        "on-failure" if policy.maximum_retry_count >= 0 => Ok(()),
        "on-failure" => {
            Err(Error::invalid("invalid restart policy: maximum retry count cannot be negative"))
        }
        other => Err(Error::invalid(format!(
            "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        ))),
    }
}

/// Labels of a container's snapshot.
pub(crate) fn snapshot_labels(id: &ContainerId) -> Labels {
    Labels::from([
        (CONTAINER_LABEL.into(), id.to_string()),
        // The engine alone removes it, with its own record.
        (GC_ROOT.into(), rfc3339(Some(Timestamp::now()))),
    ])
}

fn remove_dir(dir: &std::path::Path) {
    if let Err(error) = std::fs::remove_dir_all(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "a directory was left behind");
    }
}

/// What creating a container needs to know of its image.
pub(crate) struct ImageForContainer {
    /// What the client is told of it.
    pub(crate) warning: Option<String>,
    pub(crate) image: ImageUse,
    pub(crate) config: api_types::ImageConfig,
}

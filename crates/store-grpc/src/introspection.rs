use std::{borrow::Cow, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use ::types::{Digest, Platform};
use prost::Message as _;
use protos::{containerd::types, shim};
use store_api::filters::{Fields, Filters};
use tonic::{Request, Response, Status};

use crate::{
    context::{Context, status},
    convert::{any_in, any_out, unimplemented},
    services::introspection as api,
};

/// Services that are served, by the names of containerd's plugins of type `io.containerd.grpc.v1`.
const SERVICES: [&str; 14] = [
    "containers",
    "content",
    "diff",
    "events",
    "healthcheck",
    "images",
    "introspection",
    "leases",
    "namespaces",
    "snapshots",
    "streaming",
    "tasks",
    "transfer",
    "version",
];

const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
const RUNTIME: &str = "io.containerd.runtime.v2";
/// What a client asks the runtime's plugin with.
const RUNTIME_REQUEST: &str = "containerd.types.RuntimeRequest";

struct PluginFields<'a>(&'a api::Plugin);

impl Fields for PluginFields<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["type"] => Some(self.0.kind.as_str().into()),
            ["id"] => Some(self.0.id.as_str().into()),
            ["capabilities"] => Some(self.0.capabilities.join(",").into()),
            _ => None,
        }
    }
}

pub(crate) struct Introspection(pub(crate) Arc<Context>);

/// What containerd would call the parts that there are. `root`: the snapshotter's directory, which clients
/// ask for to know its file system.
fn plugins(snapshotter: &str, root: &Path) -> Vec<api::Plugin> {
    let host = Platform::host();
    let platform =
        types::Platform { os: host.os, architecture: host.architecture, variant: host.variant };
    let on_host =
        [(SNAPSHOTTER, snapshotter), ("io.containerd.differ.v1", "walking"), (RUNTIME, "task")];
    let anywhere = [("io.containerd.content.v1", "content"), ("io.containerd.gc.v1", "scheduler")];
    let services = SERVICES.map(|name| ("io.containerd.grpc.v1", name));
    let plugin = |(kind, id): (&str, &str), platforms: &[types::Platform]| {
        let mut plugin = api::Plugin {
            kind: kind.to_owned(),
            id: id.to_owned(),
            platforms: platforms.to_vec(),
            ..api::Plugin::default()
        };
        if kind == SNAPSHOTTER {
            plugin.exports.insert("root".to_owned(), root.display().to_string());
        }
        plugin
    };
    let bound = on_host.into_iter().map(|of| plugin(of, std::slice::from_ref(&platform)));
    let free = anywhere.into_iter().chain(services).map(|of| plugin(of, &[]));
    bound.chain(free).collect()
}

impl api::Introspection for Introspection {
    async fn plugins(
        &self,
        request: Request<api::PluginsRequest>,
    ) -> Result<Response<api::PluginsResponse>, Status> {
        let filters = Filters::parse(&request.get_ref().filters).map_err(status)?;
        let services = self.0.namespaces.open("default").map_err(status)?;
        let snapshots = &services.snapshots;
        let mut plugins = plugins(snapshots.name(), &snapshots.root());
        plugins.retain(|plugin| filters.matches(&PluginFields(plugin)));
        Ok(Response::new(api::PluginsResponse { plugins }))
    }

    /// The plugin; of the runtime, if asked, what its shim says of itself (`ctr plugins inspect-runtime`).
    async fn plugin_info(
        &self,
        request: Request<api::PluginInfoRequest>,
    ) -> Result<Response<api::PluginInfoResponse>, Status> {
        let services = self.0.namespaces.open("default").map_err(status)?;
        let api::PluginInfoRequest { kind, id, options } = request.into_inner();
        let all = plugins(services.snapshots.name(), &services.snapshots.root());
        let plugin = all.into_iter().find(|plugin| plugin.kind == kind && plugin.id == id);
        let plugin = plugin.ok_or_else(|| {
            status(store_api::Error::not_found("plugin", format_args!("{kind}.{id}")))
        })?;
        let extra = match options {
            None => None,
            Some(options) if kind == RUNTIME && shim::is_type(&options, RUNTIME_REQUEST) => {
                let request = api::RuntimeRequest::decode(&options.value[..]).map_err(|error| {
                    Status::invalid_argument(format!("options: {error}: invalid argument"))
                })?;
                let runtime = request.runtime_path;
                let options = request.options.map(any_in);
                let info = services.tasks.runtime_info(&runtime, options).await.map_err(status)?;
                Some(any_out(info))
            }
            Some(options) => {
                let what =
                    format!("options of type {:?} for the plugin {kind}.{id}", options.type_url);
                return Err(unimplemented(what));
            }
        };
        Ok(Response::new(api::PluginInfoResponse { plugin: Some(plugin), extra }))
    }

    async fn server(&self, _: Request<()>) -> Result<Response<api::ServerResponse>, Status> {
        let failed = |error| Status::internal(format!("look at the pid namespace: {error}"));
        let pidns = std::fs::metadata("/proc/self/ns/pid").map_err(failed)?.ino();
        Ok(Response::new(api::ServerResponse {
            uuid: uuid()?,
            pid: u64::from(std::process::id()),
            pidns,
        }))
    }
}

/// The same for as long as the machine is the same, as machine-id(5) wants it made: not the id itself.
/// Without one, the same until the next boot.
fn uuid() -> Result<String, Status> {
    let read = |path| std::fs::read_to_string(path);
    let id = match read("/etc/machine-id") {
        Ok(id) if !id.trim().is_empty() => id,
        _ => read("/proc/sys/kernel/random/boot_id")
            .map_err(|error| Status::internal(format!("read the boot id: {error}")))?,
    };
    let digest = Digest::sha256(format!("gantry store {}", id.trim()));
    let hex = digest.hex();
    // The form of a random UUID (RFC 9562, version 8: of one's own making).
    Ok(format!(
        "{}-{}-8{}-8{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..32]
    ))
}

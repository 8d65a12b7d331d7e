//! `info`.

use api_types::Info;
use serde_json::{Value as Json, json};

use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::fmt::template::Format;
use crate::fmt::units;
use crate::plugins;

fn line(out: &mut String, indent: usize, name: &str, value: &str) {
    if !value.is_empty() {
        out.push_str(&format!("{:indent$}{name}: {value}\n", ""));
    }
}

fn client_text(ctx: &Ctx, plugins: &[plugins::Plugin]) -> String {
    let mut out = "Client:\n".to_owned();
    out.push_str(&format!(" Version:    {}\n", crate::VERSION));
    out.push_str(&format!(" Context:    {}\n", ctx.current_context()));
    out.push_str(&format!(" Debug Mode: {}\n", ctx.global.flag("debug")));
    if !plugins.is_empty() {
        out.push_str(" Plugins:\n");
    }
    for p in plugins {
        out.push_str(&format!("  {}: {} ({})\n", p.name, p.description, p.vendor));
        out.push_str(&format!("    Version:  {}\n", p.version));
        out.push_str(&format!("    Path:     {}\n", p.path.display()));
    }
    out
}

fn server_text(i: &Info) -> String {
    let mut o = String::new();
    for (indent, name, value) in [
        (1, "Containers", i.containers),
        (2, "Running", i.containers_running),
        (2, "Paused", i.containers_paused),
        (2, "Stopped", i.containers_stopped),
        (1, "Images", i.images),
    ] {
        line(&mut o, indent, name, &value.to_string());
    }
    line(&mut o, 1, "Server Version", &i.server_version);
    line(&mut o, 1, "Storage Driver", &i.driver);
    for [name, value] in &i.driver_status {
        line(&mut o, 2, name, value);
    }
    line(&mut o, 1, "Logging Driver", &i.logging_driver);
    line(&mut o, 1, "Cgroup Driver", &i.cgroup_driver);
    line(&mut o, 1, "Cgroup Version", &i.cgroup_version);
    o.push_str(" Plugins:\n");
    line(&mut o, 2, "Volume", &i.plugins.volume.join(" "));
    line(&mut o, 2, "Network", &i.plugins.network.join(" "));
    line(&mut o, 2, "Authorization", &i.plugins.authorization.join(" "));
    line(&mut o, 2, "Log", &i.plugins.log.join(" "));
    if let Some(containerd) = i.discovered_devices.first() {
        line(&mut o, 1, "Discovered Devices", &format!("{}: {}", containerd.source, containerd.id));
    }
    line(&mut o, 1, "Swarm", &i.swarm.local_node_state);
    let runtimes: Vec<&str> = i.runtimes.keys().map(String::as_str).collect();
    line(&mut o, 1, "Runtimes", &runtimes.join(" "));
    line(&mut o, 1, "Default Runtime", &i.default_runtime);
    line(&mut o, 1, "Init Binary", &i.init_binary);
    line(&mut o, 1, "containerd version", &i.containerd_commit.id);
    line(&mut o, 1, "runc version", &i.runc_commit.id);
    o.push_str(&format!(" init version: {}\n", i.init_commit.id));
    security_text(&mut o, &i.security_options);
    line(&mut o, 1, "Kernel Version", &i.kernel_version);
    line(&mut o, 1, "Operating System", &i.operating_system);
    line(&mut o, 1, "OSType", &i.os_type);
    line(&mut o, 1, "Architecture", &i.architecture);
    line(&mut o, 1, "CPUs", &i.ncpu.to_string());
    line(&mut o, 1, "Total Memory", &units::bytes(i.mem_total));
    line(&mut o, 1, "Name", &i.name);
    line(&mut o, 1, "ID", &i.id);
    line(&mut o, 1, "Docker Root Dir", &i.docker_root_dir);
    line(&mut o, 1, "Debug Mode", &i.debug.to_string());
    line(&mut o, 1, "HTTP Proxy", &i.http_proxy);
    line(&mut o, 1, "HTTPS Proxy", &i.https_proxy);
    line(&mut o, 1, "No Proxy", &i.no_proxy);
    rest_text(&mut o, i);
    o
}

fn security_text(o: &mut String, options: &[String]) {
    if options.is_empty() {
        return;
    }
    o.push_str(" Security Options:\n");
    for option in options {
        let mut pairs = option.split(',').filter_map(|p| p.split_once('='));
        match pairs.clone().find(|(k, _)| *k == "name") {
            None => o.push_str(&format!("  {option}\n")),
            Some((_, name)) => {
                o.push_str(&format!("  {name}\n"));
                for (key, value) in pairs.by_ref().filter(|(k, _)| *k != "name") {
                    let key = if key == "profile" { "Profile" } else { key };
                    o.push_str(&format!("   {key}: {value}\n"));
                }
            }
        }
    }
}

fn rest_text(o: &mut String, i: &Info) {
    if !i.labels.is_empty() {
        o.push_str(" Labels:\n");
        o.extend(i.labels.iter().map(|label| format!("  {label}\n")));
    }
    line(o, 1, "Experimental", &i.experimental_build.to_string());
    if let Some(config) = &i.registry_config {
        o.push_str(" Insecure Registries:\n");
        let insecure = config.index_configs.iter().filter(|(_, index)| !index.secure);
        o.extend(insecure.map(|(name, _)| format!("  {name}\n")));
        o.extend(config.insecure_registry_cidrs.iter().map(|net| format!("  {net}\n")));
        if !config.mirrors.is_empty() {
            o.push_str(" Registry Mirrors:\n");
            o.extend(config.mirrors.iter().map(|mirror| format!("  {mirror}\n")));
        }
    }
    line(o, 1, "Live Restore Enabled", &i.live_restore_enabled.to_string());
    line(o, 1, "Product License", &i.product_license);
    if !i.default_address_pools.is_empty() {
        o.push_str(" Default Address Pools:\n");
        let pools = i.default_address_pools.iter();
        o.extend(pools.map(|p| format!("   Base: {}, Size: {}\n", p.base, p.size)));
    }
    if let Some(firewall) = &i.firewall_backend {
        line(o, 1, "Firewall Backend", &firewall.driver);
        o.extend(firewall.info.iter().map(|[k, v]| format!("  {k}: {v}\n")));
    }
    o.push('\n');
}

/// Templates see Go's names of the fields.
fn go_names(at: &str, map: &serde_json::Map<String, Json>) -> Vec<(String, gotmpl::Value)> {
    const ALIASES: [(&str, &str); 5] = [
        ("HttpProxy", "HTTPProxy"),
        ("HttpsProxy", "HTTPSProxy"),
        ("CpuCfsPeriod", "CPUCfsPeriod"),
        ("CpuCfsQuota", "CPUCfsQuota"),
        ("NGoroutines", "NGoroutines"),
    ];
    if !at.is_empty() {
        return Vec::new();
    }
    let value = |json: &Json| match json {
        Json::String(s) => gotmpl::Value::String(s.as_str().into()),
        Json::Bool(b) => gotmpl::Value::Bool(*b),
        _ => gotmpl::Value::Nil,
    };
    ALIASES.iter().filter_map(|(j, go)| Some(((*go).to_owned(), value(map.get(*j)?)))).collect()
}

pub(crate) async fn info(ctx: &Ctx, m: Matches) -> Result<()> {
    let plugins = plugins::list(&ctx.config.borrow());
    let answer = match ctx.client() {
        Ok(client) => client.info().await.map_err(Error::from),
        Err(e) => Err(e),
    };
    let format = m.text("format");
    if format.is_empty() {
        ctx.out(&format!("{}\nServer:\n", client_text(ctx, &plugins)))?;
        let info = match answer {
            Ok(info) => info,
            Err(e) => {
                ctx.note(&e.to_string());
                return Err(Error::Exit(1));
            }
        };
        ctx.out(&server_text(&info))?;
        for warning in &info.warnings {
            ctx.note(warning);
        }
        return Ok(());
    }
    let (info, failed) = match answer {
        Ok(info) => (info, None),
        Err(e) => (Info::default(), Some(e)),
    };
    let mut value = json!(info);
    let listed: Vec<Json> = plugins
        .iter()
        .map(|p| {
            json!({
                "Name": p.name, "Path": p.path.display().to_string(), "Vendor": p.vendor,
                "Version": p.version, "ShortDescription": p.description, "SchemaVersion": "0.1.0",
            })
        })
        .collect();
    if let Some(map) = value.as_object_mut() {
        if let Some(e) = &failed {
            map.insert("ServerErrors".to_owned(), json!([e.to_string()]));
        }
        map.insert(
            "ClientInfo".to_owned(),
            json!({
                "Debug": ctx.global.flag("debug"), "Version": crate::VERSION,
                "Context": ctx.current_context(), "Plugins": listed, "Warnings": null,
            }),
        );
    }
    let text = match format {
        "json" => value.to_string(),
        format => Format::parse(format)?.run(&value, &go_names)?,
    };
    ctx.line(&text)?;
    failed.map_or(Ok(()), Err)
}

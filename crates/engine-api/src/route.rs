//! Which handler a path means.

use http::Method;

/// Every operation that is answered. One variant a route, so that dispatch is a total match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Ping,
    Info,
    Version,
    Events,
    DiskUsage,
    Auth,
    ContainerList,
    ContainerCreate,
    ContainersPrune,
    ContainerInspect,
    ContainerTop,
    ContainerLogs,
    ContainerChanges,
    ContainerExport,
    ContainerStats,
    ContainerResize,
    ContainerStart,
    ContainerStop,
    ContainerRestart,
    ContainerKill,
    ContainerUpdate,
    ContainerRename,
    ContainerPause,
    ContainerUnpause,
    ContainerAttach,
    ContainerAttachWs,
    ContainerWait,
    ContainerDelete,
    ArchiveStat,
    ArchiveGet,
    ArchivePut,
    Checkpoints,
    ExecCreate,
    ExecStart,
    ExecResize,
    ExecInspect,
    ImageList,
    ImageCreate,
    ImageInspect,
    ImageHistory,
    ImageLayers,
    ImageSquash,
    ImagePush,
    ImageTag,
    ImageDelete,
    ImageSearch,
    ImagesPrune,
    ImageSave,
    ImagesSave,
    ImageLoad,
    Commit,
    Build,
    BuildPrune,
    BuildCancel,
    Distribution,
    Attestations,
    Session,
    Grpc,
    VolumeList,
    VolumeCreate,
    VolumeInspect,
    VolumeUpdate,
    VolumeDelete,
    VolumesPrune,
    NetworkList,
    NetworkCreate,
    NetworkInspect,
    NetworkDelete,
    NetworkConnect,
    NetworkDisconnect,
    NetworksPrune,
    PluginList,
    Plugins,
    Swarm,
}

/// Method, pattern, route. `{}` takes one or more segments, as moby's `{name:.*}` does; patterns without
/// it win over patterns with it.
const TABLE: &[(&str, &str, Route)] = &[
    ("GET", "/_ping", Route::Ping),
    ("HEAD", "/_ping", Route::Ping),
    ("GET", "/info", Route::Info),
    ("GET", "/version", Route::Version),
    ("GET", "/events", Route::Events),
    ("GET", "/system/df", Route::DiskUsage),
    ("POST", "/auth", Route::Auth),
    ("GET", "/containers/json", Route::ContainerList),
    ("POST", "/containers/create", Route::ContainerCreate),
    ("POST", "/containers/prune", Route::ContainersPrune),
    ("GET", "/containers/{}/json", Route::ContainerInspect),
    ("GET", "/containers/{}/top", Route::ContainerTop),
    ("GET", "/containers/{}/logs", Route::ContainerLogs),
    ("GET", "/containers/{}/changes", Route::ContainerChanges),
    ("GET", "/containers/{}/export", Route::ContainerExport),
    ("GET", "/containers/{}/stats", Route::ContainerStats),
    ("POST", "/containers/{}/resize", Route::ContainerResize),
    ("POST", "/containers/{}/start", Route::ContainerStart),
    ("POST", "/containers/{}/stop", Route::ContainerStop),
    ("POST", "/containers/{}/restart", Route::ContainerRestart),
    ("POST", "/containers/{}/kill", Route::ContainerKill),
    ("POST", "/containers/{}/update", Route::ContainerUpdate),
    ("POST", "/containers/{}/rename", Route::ContainerRename),
    ("POST", "/containers/{}/pause", Route::ContainerPause),
    ("POST", "/containers/{}/unpause", Route::ContainerUnpause),
    ("POST", "/containers/{}/attach", Route::ContainerAttach),
    ("GET", "/containers/{}/attach/ws", Route::ContainerAttachWs),
    ("POST", "/containers/{}/wait", Route::ContainerWait),
    ("DELETE", "/containers/{}", Route::ContainerDelete),
    ("HEAD", "/containers/{}/archive", Route::ArchiveStat),
    ("GET", "/containers/{}/archive", Route::ArchiveGet),
    ("PUT", "/containers/{}/archive", Route::ArchivePut),
    ("GET", "/containers/{}/checkpoints", Route::Checkpoints),
    ("POST", "/containers/{}/checkpoints", Route::Checkpoints),
    ("DELETE", "/containers/{}/checkpoints/{}", Route::Checkpoints),
    ("POST", "/containers/{}/exec", Route::ExecCreate),
    ("POST", "/exec/{}/start", Route::ExecStart),
    ("POST", "/exec/{}/resize", Route::ExecResize),
    ("GET", "/exec/{}/json", Route::ExecInspect),
    ("GET", "/images/json", Route::ImageList),
    ("POST", "/images/create", Route::ImageCreate),
    ("GET", "/images/search", Route::ImageSearch),
    ("POST", "/images/prune", Route::ImagesPrune),
    ("GET", "/images/get", Route::ImagesSave),
    ("POST", "/images/load", Route::ImageLoad),
    ("GET", "/images/{}/json", Route::ImageInspect),
    ("GET", "/images/{}/history", Route::ImageHistory),
    ("GET", "/images/{}/layers", Route::ImageLayers),
    ("GET", "/images/{}/attestations", Route::Attestations),
    ("GET", "/images/{}/get", Route::ImageSave),
    ("POST", "/images/{}/push", Route::ImagePush),
    ("POST", "/images/{}/tag", Route::ImageTag),
    ("POST", "/images/{}/squash", Route::ImageSquash),
    ("DELETE", "/images/{}", Route::ImageDelete),
    ("POST", "/commit", Route::Commit),
    ("POST", "/build", Route::Build),
    ("POST", "/build/prune", Route::BuildPrune),
    ("POST", "/build/cancel", Route::BuildCancel),
    ("GET", "/distribution/{}/json", Route::Distribution),
    ("POST", "/session", Route::Session),
    ("POST", "/grpc", Route::Grpc),
    ("GET", "/volumes", Route::VolumeList),
    ("POST", "/volumes/create", Route::VolumeCreate),
    ("POST", "/volumes/prune", Route::VolumesPrune),
    ("GET", "/volumes/{}", Route::VolumeInspect),
    ("PUT", "/volumes/{}", Route::VolumeUpdate),
    ("DELETE", "/volumes/{}", Route::VolumeDelete),
    ("GET", "/networks", Route::NetworkList),
    ("GET", "/networks/", Route::NetworkList),
    ("POST", "/networks/create", Route::NetworkCreate),
    ("POST", "/networks/prune", Route::NetworksPrune),
    ("GET", "/networks/{}", Route::NetworkInspect),
    ("DELETE", "/networks/{}", Route::NetworkDelete),
    ("POST", "/networks/{}/connect", Route::NetworkConnect),
    ("POST", "/networks/{}/disconnect", Route::NetworkDisconnect),
    ("GET", "/plugins", Route::PluginList),
];

/// The route of a path without its version, and what stands for `{}`.
pub(crate) fn find(method: &Method, path: &str) -> Option<(Route, String)> {
    for (verb, pattern, route) in TABLE {
        if *verb == method.as_str() && !pattern.contains("{}") && *pattern == path {
            return Some((*route, String::new()));
        }
    }
    for (verb, pattern, route) in TABLE {
        if *verb == method.as_str()
            && let Some(name) = matches(pattern, path)
        {
            return Some((*route, name.to_string()));
        }
    }
    let first = path.split('/').nth(1).unwrap_or_default();
    match first {
        "plugins" => Some((Route::Plugins, String::new())),
        "swarm" | "nodes" | "services" | "tasks" | "secrets" | "configs" => {
            Some((Route::Swarm, String::new()))
        }
        _ => None,
    }
}

fn matches<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    let (prefix, suffix) = pattern.split_once("{}")?;
    let rest = path.strip_prefix(prefix)?;
    if let Some((middle, _)) = suffix.split_once("{}") {
        let (name, _) = rest.split_once(middle)?;
        return (!name.is_empty()).then_some(name);
    }
    let name = rest.strip_suffix(suffix)?;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Method and path of every operation of the Engine API 1.56's description.
    const OPERATIONS: &str = include_str!("../tests/operations.txt");

    #[test]
    fn every_operation_has_a_route() {
        let mut seen = 0;
        for line in OPERATIONS.lines().filter(|line| !line.is_empty()) {
            let (method, path) = line.split_once(' ').unwrap();
            let mut concrete = String::new();
            let mut inside = false;
            for c in path.chars() {
                match c {
                    '{' => {
                        inside = true;
                        concrete.push_str("some/name:tag");
                    }
                    '}' => inside = false,
                    c if !inside => concrete.push(c),
                    _ => {}
                }
            }
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert!(find(&method, &concrete).is_some(), "{line}");
            seen += 1;
        }
        assert_eq!(seen, 108);
    }

    #[test]
    fn names_take_slashes_and_static_paths_win() {
        let find = |method: &str, path: &str| {
            find(&Method::from_bytes(method.as_bytes()).unwrap(), path).unwrap()
        };
        assert_eq!(find("GET", "/images/json").0, Route::ImageList);
        assert_eq!(
            find("GET", "/images/localhost:5000/a/b:1/json"),
            (Route::ImageInspect, "localhost:5000/a/b:1".into())
        );
        assert_eq!(find("DELETE", "/images/a/b"), (Route::ImageDelete, "a/b".into()));
        assert_eq!(find("GET", "/containers/x/attach/ws").0, Route::ContainerAttachWs);
        assert_eq!(find("POST", "/swarm/init").0, Route::Swarm);
    }

    #[test]
    fn unknown_paths_have_none() {
        for (method, path) in
            [("GET", "/"), ("GET", "/nope"), ("PATCH", "/info"), ("GET", "/containers//json")]
        {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert!(find(&method, path).is_none(), "{path}");
        }
    }
}

//! What `--debug` writes: what a command is about to do, and what it has done.

use super::Context;
use crate::cgroup::Cgroup;
use crate::spec::Spec;
use crate::state::{CONFIG, Container, parse_spec};
use crate::{ContainerId, CreateOptions, ExecOptions};

pub(super) fn create(cx: &Context, id: &ContainerId, options: &CreateOptions) {
    if !cx.log.debug {
        return;
    }
    let bundle = options.bundle.display();
    cx.log.debug(&format!("create {id}: bundle {bundle}, state in {}", cx.options.root.display()));
    // What is wrong with it is told by create itself.
    let Ok((spec, _)) = parse_spec(&options.bundle.join(CONFIG)) else { return };
    for line in plan(&spec) {
        cx.log.debug(&format!("create {id}: {line}"));
    }
}

/// What a specification asks for, a line each.
fn plan(spec: &Spec) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(root) = &spec.root {
        let kind = if root.readonly { "read-only" } else { "writable" };
        lines.push(format!("root file system {}, {kind}", root.path.display()));
    }
    for mount in &spec.mounts {
        let (kind, source) = (&mount.kind, &mount.source);
        let options = mount.options.join(",");
        lines.push(format!("mount {kind:?} {source:?} at {:?} ({options})", mount.destination));
    }
    for namespace in spec.linux.iter().flat_map(|l| &l.namespaces) {
        lines.push(match &namespace.path {
            None => format!("new {} namespace", namespace.kind),
            Some(path) => format!("{} namespace of {}", namespace.kind, path.display()),
        });
    }
    let hooks = &spec.hooks;
    for (kind, list) in [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ] {
        lines.extend(list.iter().map(|hook| format!("{kind} hook {}", hook.path.display())));
    }
    if spec.linux.as_ref().is_some_and(|l| l.seccomp.is_some()) {
        lines.push("seccomp filter".to_owned());
    }
    if let Some(process) = &spec.process {
        let user = &process.user;
        lines.push(format!("process {:?} as {}:{}", process.args, user.uid, user.gid));
    }
    lines
}

/// After a create: what came of it.
pub(super) fn created(cx: &Context, id: &ContainerId) {
    if !cx.log.debug {
        return;
    }
    // It may have ended and be gone.
    let Ok(container) = Container::load(&cx.options, id) else { return };
    let r = &container.record;
    cx.log.debug(&format!("created {id}: process {}", r.pid));
    let (dirs, unified): (Vec<_>, _) = match &r.cgroup {
        Cgroup::None => (Vec::new(), None),
        Cgroup::V2 { dir } => (vec![dir], None),
        Cgroup::V1 { dirs, unified } => (dirs.iter().map(|d| &d.dir).collect(), unified.as_ref()),
    };
    for dir in dirs.into_iter().chain(unified) {
        cx.log.debug(&format!("created {id}: cgroup {}", dir.display()));
    }
    if let Some(unit) = &r.unit {
        cx.log.debug(&format!("created {id}: systemd unit {unit:?}"));
    }
}

pub(super) fn exec(cx: &Context, id: &ContainerId, options: &ExecOptions) {
    let p = &options.process;
    cx.log.debug(&format!("exec in {id}: {:?} as {}:{}", p.args, p.user.uid, p.user.gid));
}

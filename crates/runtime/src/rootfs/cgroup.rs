//! cgroup file systems inside the container, for v1 (and the hybrid) and for v2.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, OFlags, ResolveFlags, symlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, MountAttr, mount_setattr};

use super::Root;
use super::mounts::{attach, detached, propagate};
use super::options::Options;
use super::resolve::{Leaf, clean, ensure_in, open_in};
use crate::cgroup::{View, ViewHierarchy};
use crate::error::{Context, Error, Result};
use crate::spec::Mount;

const HARDENED: u64 = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;

pub(super) fn mount(root: &mut Root<'_>, m: &Mount, options: &Options) -> Result<()> {
    // Even without a namespace: what is bound here is made by the caller meanwhile.
    (root.cgroup_ready)()?;
    let made = match root.view {
        View::V1 { hierarchies } if m.kind == "cgroup2" => unified(root, m, options, hierarchies)?,
        View::None => return Err(Error::config("mounts.type", "cgroup: the host has no cgroups")),
        View::V2 { .. } => version_2(root, m, options)?,
        View::V1 { .. } => version_1(root, m, options)?,
    };
    for (flags, recursive) in &options.propagation {
        propagate(&made, flags.bits().into(), *recursive)
            .ctx("change propagation", || m.destination.as_str())?;
    }
    Ok(())
}

fn target(root: &Root<'_>, path: &Path) -> Result<OwnedFd> {
    ensure_in(root.fd(), path, Leaf::Directory)
        .map(|(fd, _)| fd)
        .ctx("create mountpoint", || path.display().to_string())
}

fn version_2(root: &Root<'_>, m: &Mount, options: &Options) -> Result<OwnedFd> {
    let View::V2 { dir } = root.view else {
        return Err(Error::config("mounts.type", "cgroup2 on another host"));
    };
    let at = target(root, &clean(&m.destination))?;
    let made = match detached("cgroup2", "cgroup", &[], &options.data, options.one.set) {
        Ok(made) => made,
        // In a user namespace without a cgroup namespace the kernel refuses a new instance: the
        // container sees its own cgroup alone, and without a namespace cannot write to it.
        Err(e) if matches!(e.errno(), Some(Errno::PERM | Errno::BUSY)) => {
            let ro = if root.rootless && !root.cgroupns { ATTR_RDONLY } else { 0 };
            match bound(dir, options.one.set | ro) {
                // None could be made: there is nothing to be seen.
                Err(e) if root.rootless && e.errno() == Some(Errno::NOENT) => {
                    detached("tmpfs", "tmpfs", &[], &[], HARDENED | ATTR_RDONLY)?
                }
                other => other?,
            }
        }
        Err(e) => return Err(e),
    };
    attach(&made, &at).ctx("move_mount", || m.destination.as_str())?;
    Ok(made)
}

fn bound(dir: &Path, attrs: u64) -> Result<OwnedFd> {
    let text = || dir.display().to_string();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let copy = open_tree(CWD, dir, flags).ctx("open_tree", text)?;
    let attr = MountAttr { set: attrs, ..MountAttr::default() };
    mount_setattr(&copy, &attr).ctx("mount_setattr", text)?;
    Ok(copy)
}

/// v2 beside v1: the container's own cgroup, or what its namespace shows. It may write only to its own.
fn unified(
    root: &Root<'_>,
    m: &Mount,
    options: &Options,
    hierarchies: &[ViewHierarchy],
) -> Result<OwnedFd> {
    let at = target(root, &clean(&m.destination))?;
    let own = hierarchies.iter().find(|h| h.controllers.is_empty()).and_then(|h| h.dir.as_ref());
    // Without one of its own its root there is its caller's cgroup.
    let writable = own.is_some() && (root.cgroupns || !root.rootless);
    let attrs = options.one.set | if writable { 0 } else { ATTR_RDONLY };
    let made = match own {
        Some(dir) if !root.cgroupns => bound(dir, attrs),
        _ => detached("cgroup2", "cgroup", &[], &options.data, attrs),
    };
    let made = match made {
        // In a user namespace without a cgroup namespace, or where none could be made.
        Err(e) if matches!(e.errno(), Some(Errno::PERM | Errno::BUSY | Errno::NOENT)) => {
            detached("tmpfs", "tmpfs", &[], &[], HARDENED | ATTR_RDONLY)?
        }
        other => other?,
    };
    attach(&made, &at).ctx("move_mount", || m.destination.as_str())?;
    Ok(made)
}

/// A tmpfs with one directory per hierarchy, and links for controllers that share one.
fn version_1(root: &Root<'_>, m: &Mount, options: &Options) -> Result<OwnedFd> {
    let View::V1 { hierarchies } = root.view else {
        return Err(Error::config("mounts.type", "cgroup on another host"));
    };
    let base = clean(&m.destination);
    let at = target(root, &base)?;
    let data: Vec<String> = std::iter::once("mode=755".to_owned()).chain(root.context()).collect();
    let attrs = HARDENED | (options.one.set & !ATTR_RDONLY);
    let tmpfs = detached("tmpfs", "tmpfs", &[], &data, attrs)?;
    attach(&tmpfs, &at).ctx("move_mount", || m.destination.as_str())?;

    for hierarchy in hierarchies {
        let at = target(root, &base.join(&hierarchy.name))?;
        let attrs = HARDENED | options.one.set;
        let made = if root.cgroupns {
            let (kind, data) = match hierarchy.controllers.as_slice() {
                [] => ("cgroup2", Vec::new()),
                [name] if name.starts_with("name=") => {
                    ("cgroup", vec!["none".to_owned(), name.clone()])
                }
                names => ("cgroup", names.to_vec()),
            };
            detached(kind, "cgroup", &[], &data, attrs)?
        } else {
            let Some(dir) = &hierarchy.dir else { continue };
            match bound(dir, attrs) {
                // Not the caller's to make.
                Err(e) if root.rootless && e.errno() == Some(Errno::NOENT) => continue,
                other => other?,
            }
        };
        attach(&made, &at).ctx("move_mount", || hierarchy.name.clone())?;
        if hierarchy.controllers.len() > 1 {
            for controller in &hierarchy.controllers {
                link(root, &base, controller, &hierarchy.name)?;
            }
        }
    }
    if options.one.set & ATTR_RDONLY != 0 {
        let attr = MountAttr { set: ATTR_RDONLY, ..MountAttr::default() };
        mount_setattr(&tmpfs, &attr).ctx("mount_setattr", || m.destination.as_str())?;
    }
    Ok(tmpfs)
}

fn link(root: &Root<'_>, base: &Path, controller: &str, name: &str) -> Result<()> {
    if controller == name {
        return Ok(());
    }
    let dir = open_in(root.fd(), base, OFlags::PATH, ResolveFlags::empty())
        .ctx("open", || base.display().to_string())?;
    match symlinkat(name, &dir, controller) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e).ctx("symlink", || controller),
    }
}

//! Mounts with more options than mount(2) takes, as overlays of many layers have them.
//!
//! Wraps fsopen(2), fsconfig(2), fsmount(2), move_mount(2).

use std::path::Path;

use rustix::{
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    },
};

/// mount(2) takes one page of options, its NUL included.
pub const OPTIONS_BYTES_MAX: usize = 4095;

/// Overlay's options with paths that start at the directory which the layers have in common, and that
/// directory, from which they are to be mounted; `None` where they do not fit into a page even so.
pub fn shortened<'a>(options: &[&'a str]) -> Option<(&'a str, String)> {
    let layers = options.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
    let first = layers.split(':').next()?;
    let mut base = &first[..first.rfind('/')?];
    // A backslash keeps a colon from ending a path: not for us to take apart.
    if layers.contains(['\\', ',']) || !layers.split(':').all(|layer| layer.starts_with('/')) {
        return None;
    }
    for layer in layers.split(':') {
        while !layer.strip_prefix(base).is_some_and(|rest| rest.starts_with('/')) {
            base = &base[..base.rfind('/')?];
        }
    }
    let cut = |path: &'a str| {
        let rest = path.strip_prefix(base).and_then(|rest| rest.strip_prefix('/'));
        rest.filter(|rest| !rest.is_empty()).unwrap_or(path)
    };
    let options: Vec<String> = options
        .iter()
        .map(|option| match option.strip_prefix("lowerdir=") {
            Some(layers) => {
                format!("lowerdir={}", layers.split(':').map(cut).collect::<Vec<_>>().join(":"))
            }
            None => (*option).to_owned(),
        })
        .collect();
    let text = options.join(",");
    (!base.is_empty() && text.len() <= OPTIONS_BYTES_MAX).then_some((base, text))
}

/// Mounts by the new mount API, an overlay's layers one at a time (`lowerdir+`, kernel 6.8).
///
/// # Errors
/// Those of the system calls; `EINVAL` where the kernel knows no `lowerdir+`.
pub fn mount_long(
    (kind, source): (&str, &str),
    flags: MountFlags,
    options: &[&str],
    target: &Path,
) -> Result<(), Errno> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", source)?;
    for option in options {
        match option.split_once('=') {
            Some(("lowerdir", layers)) if kind == "overlay" => {
                for layer in layers.split(':') {
                    fsconfig_set_string(&fs, "lowerdir+", layer)?;
                }
            }
            Some((key, value)) => fsconfig_set_string(&fs, key, value)?,
            None => fsconfig_set_flag(&fs, *option)?,
        }
    }
    if flags.contains(MountFlags::RDONLY) {
        fsconfig_set_flag(&fs, "ro")?;
    }
    fsconfig_create(&fs)?;
    let pairs = [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
    ];
    let mut attrs = MountAttrFlags::empty();
    for (flag, attr) in pairs {
        attrs.set(attr, flags.contains(flag));
    }
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attrs)?;
    let here = rustix::fs::CWD;
    move_mount(&mount, "", here, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn many_layers_are_named_from_their_directory() {
        let layers: Vec<String> =
            (0..100).map(|n| format!("/var/lib/store/snapshots/long-enough-{n}/fs")).collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        let (base, data) = shortened(&["volatile", "upperdir=/u", &lower]).unwrap();
        assert_eq!(base, "/var/lib/store/snapshots");
        assert!(data.starts_with("volatile,upperdir=/u,lowerdir=long-enough-0/fs:long-enough-1/"));
        assert_eq!(shortened(&["lowerdir=/a/x:b"]), None);
        assert_eq!(shortened(&["lowerdir=/a/x:/b/y"]), None);
        assert_eq!(shortened(&[r"lowerdir=/a/x\:z:/a/y"]), None);
    }
}

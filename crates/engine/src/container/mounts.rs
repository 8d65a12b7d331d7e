//! From `Binds`, `Mounts`, `Tmpfs`, `Volumes` and `VolumesFrom` to one list of mounts
//! (moby `daemon/volumes_unix.go`, `volume/mounts/linux_parser.go`).

use std::{collections::BTreeMap, path::PathBuf};

use api_types::{Config, HostConfig, Mount, MountType, VolumeOptions};

use super::record::{MountKind, MountUse};
use crate::{
    Engine, Error, Result,
    volume::{NewVolume, VolumeHold},
};

const PROPAGATIONS: &[&str] = &["private", "rprivate", "shared", "rshared", "slave", "rslave"];

/// Options of a tmpfs with a value and without (moby/sys/mount `validFlags`, `flags`).
const TMPFS_VALUES: &[&str] = &["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];
const TMPFS_FLAGS: &[&str] = &[
    "defaults",
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "sync",
    "async",
    "dirsync",
    "mand",
    "nomand",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
];

impl Engine {
    /// Settles every mount of a new container; makes the volumes that it needs, which stay as long as
    /// what is answered beside them.
    pub(super) fn resolve_mounts(
        &self,
        config: &Config,
        host_config: &HostConfig,
    ) -> Result<(Vec<MountUse>, Vec<VolumeHold>)> {
        // By target: what comes later in this order wins, as in docker.
        let mut by_target: BTreeMap<String, MountUse> = BTreeMap::new();
        for from in &host_config.volumes_from {
            for mount in self.mounts_of_other(from)? {
                by_target.insert(mount.target.clone(), mount);
            }
        }
        let mut given: BTreeMap<String, MountUse> = BTreeMap::new();
        for bind in &host_config.binds {
            add(&mut given, parse_bind(bind)?)?;
        }
        for mount in &host_config.mounts {
            add(&mut given, parse_mount(mount)?)?;
        }
        for (target, options) in &host_config.tmpfs {
            add(&mut given, tmpfs(target, options.split(',').map(Into::into).collect())?)?;
        }
        by_target.extend(given);
        for target in config.volumes.keys() {
            // docker reads these from the root, however they are written.
            let target = clean_target(&format!("/{target}"))?;
            by_target.entry(target.clone()).or_insert_with(|| MountUse {
                anonymous: true,
                ..empty(MountKind::Volume, target)
            });
        }
        let mut mounts: Vec<MountUse> = by_target.into_values().collect();
        let mut holds = Vec::new();
        for mount in &mut mounts {
            // Both have been parsed once.
            let same = |given: &&Mount| {
                mount.from_mounts && clean_target(&given.target).is_ok_and(|t| t == mount.target)
            };
            let options =
                host_config.mounts.iter().find(same).and_then(|m| m.volume_options.clone());
            holds.extend(self.settle(
                mount,
                &host_config.volume_driver,
                options.unwrap_or_default(),
            )?);
        }
        Ok((mounts, holds))
    }

    fn mounts_of_other(&self, from: &str) -> Result<Vec<MountUse>> {
        let (name, mode) = from.split_once(':').unwrap_or((from, ""));
        let read_only = match mode {
            "" | "rw" | "z" | "Z" => false,
            "ro" => true,
            _ => return Err(Error::invalid(format!("invalid mode: {mode}"))),
        };
        let other = self.containers.find(name).map_err(super::create::named_only)?;
        let mounts = other.record().mounts.clone();
        let shared = mounts.into_iter().filter(|mount| mount.kind != MountKind::Tmpfs);
        Ok(shared
            .map(|mount| MountUse {
                read_only: mount.read_only || read_only,
                // The volume is the other's to fill.
                no_copy: true,
                ..mount
            })
            .collect())
    }

    /// Makes the volume or checks the host path.
    fn settle(
        &self,
        mount: &mut MountUse,
        driver: &str,
        given: VolumeOptions,
    ) -> Result<Option<VolumeHold>> {
        match mount.kind {
            MountKind::Tmpfs => Ok(None),
            MountKind::Bind => settle_bind(mount).map(|()| None),
            MountKind::Volume => {
                let driver = if driver.is_empty() { "local" } else { driver };
                let new = mount.name.is_empty() || self.volumes.get(&mount.name).is_err();
                let (volume, hold) = self.volumes.create_held(NewVolume {
                    name: mount.name.clone(),
                    driver: driver.into(),
                    anonymous: mount.anonymous || mount.name.is_empty(),
                    labels: given.labels,
                    options: given.driver_config.map(|driver| driver.options).unwrap_or_default(),
                })?;
                mount.anonymous |= mount.name.is_empty();
                mount.name.clone_from(&volume.name);
                mount.source = self.volumes.data_dir(&volume.name);
                if new {
                    self.volume_event("create", &volume.name);
                }
                Ok(Some(hold))
            }
        }
    }
}

fn settle_bind(mount: &MountUse) -> Result<()> {
    match mount.source.symlink_metadata() {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let create = !mount.from_mounts || mount.options.iter().any(|o| o == "create");
            if !create {
                return Err(Error::invalid(format!(
                    "invalid mount config for type \"bind\": bind source path does not exist: {}",
                    mount.source.display()
                )));
            }
            crate::util::make_dir_mode(&mount.source, 0o755)
        }
        Err(error) => Err(Error::io("look at", &mount.source, &error)),
    }
}

fn empty(kind: MountKind, target: String) -> MountUse {
    MountUse {
        kind,
        name: String::new(),
        source: PathBuf::new(),
        target,
        read_only: false,
        propagation: String::new(),
        mode: String::new(),
        options: Vec::new(),
        anonymous: false,
        no_copy: false,
        subpath: String::new(),
        from_mounts: false,
        read_only_non_recursive: false,
    }
}

fn add(given: &mut BTreeMap<String, MountUse>, mount: MountUse) -> Result<()> {
    let target = mount.target.clone();
    if given.insert(target.clone(), mount).is_some() {
        return Err(Error::invalid(format!("Duplicate mount point: {target}")));
    }
    Ok(())
}

/// An absolute path without `.`, `..` and doubled slashes; never the root.
fn clean_target(target: &str) -> Result<String> {
    if !target.starts_with('/') {
        return Err(Error::invalid(format!(
            "invalid mount path: '{target}' mount path must be absolute"
        )));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err(Error::invalid("invalid specification: destination can't be '/'"));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// `SOURCE:TARGET[:OPTIONS]`, or a target alone for an anonymous volume.
fn parse_bind(bind: &str) -> Result<MountUse> {
    let invalid =
        |why: &str| Error::invalid(format!("invalid volume specification: '{bind}'{why}"));
    let parts: Vec<&str> = bind.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, mode] => (*source, *target, *mode),
        _ => return Err(invalid("")),
    };
    if target.is_empty() || (parts.len() > 1 && source.is_empty()) {
        return Err(invalid(""));
    }
    let kind = if source.starts_with('/') { "bind" } else { "volume" };
    let target = clean_target(target).map_err(|e| {
        invalid(&format!(": invalid mount config for type \"{kind}\": {}", e.message))
    })?;
    let kind = if source.starts_with('/') { MountKind::Bind } else { MountKind::Volume };
    let mut mount = MountUse { mode: mode.into(), ..empty(kind, target) };
    match kind {
        MountKind::Bind => mount.source = source.into(),
        _ => {
            if !source.is_empty() {
                crate::volume::validate_name(source)?;
            }
            mount.name = source.into();
        }
    }
    mount.options.push("rbind".into());
    for option in mode.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => mount.read_only = true,
            // SELinux labels are for hosts that have it; without it docker ignores them too.
            "rw" | "z" | "Z" | "consistent" | "cached" | "delegated" => {}
            "nocopy" if kind == MountKind::Volume => mount.no_copy = true,
            option if PROPAGATIONS.contains(&option) && kind == MountKind::Bind => {
                mount.propagation = option.into();
            }
            _ => return Err(Error::invalid(format!("invalid mode: {mode}"))),
        }
    }
    if mount.propagation.is_empty() && kind == MountKind::Bind {
        mount.propagation = "rprivate".into();
    }
    Ok(mount)
}

fn parse_mount(mount: &Mount) -> Result<MountUse> {
    let kind = match &mount.r#type {
        MountType::Bind => MountKind::Bind,
        MountType::Volume => MountKind::Volume,
        MountType::Tmpfs => return parse_tmpfs(mount),
        MountType::Image => return Err(Error::not_implemented("mount type \"image\"")),
        other => {
            return Err(Error::invalid(format!(
                "invalid mount config for type \"{}\": mount type unknown",
                other.as_str()
            )));
        }
    };
    let config_error = |why: String| {
        Error::invalid(format!(
            "invalid mount config for type \"{}\": {why}",
            mount.r#type.as_str()
        ))
    };
    if mount.target.is_empty() {
        return Err(config_error("field Target must not be empty".into()));
    }
    let mut parsed = MountUse {
        read_only: mount.read_only,
        from_mounts: true,
        ..empty(kind, clean_target(&mount.target).map_err(|e| config_error(e.message))?)
    };
    match kind {
        MountKind::Bind => {
            if !mount.source.starts_with('/') {
                return Err(config_error(format!(
                    "invalid mount path: '{}' mount path must be absolute",
                    mount.source
                )));
            }
            parsed.source = PathBuf::from(&mount.source);
            bind_options(&mut parsed, mount)?;
        }
        _ => volume_options(&mut parsed, mount)?,
    }
    Ok(parsed)
}

fn bind_options(parsed: &mut MountUse, mount: &Mount) -> Result<()> {
    let options = mount.bind_options.clone().unwrap_or_default();
    let propagation =
        if options.propagation.is_empty() { "rprivate" } else { options.propagation.as_str() };
    if !PROPAGATIONS.contains(&propagation) {
        return Err(Error::invalid(format!(
            "invalid mount config for type \"bind\": invalid propagation mode: {propagation}"
        )));
    }
    parsed.propagation = propagation.into();
    parsed.options.push(if options.non_recursive { "bind".into() } else { "rbind".into() });
    if options.create_mountpoint {
        parsed.options.push("create".into());
    }
    parsed.read_only_non_recursive = options.read_only_non_recursive;
    Ok(())
}

fn volume_options(parsed: &mut MountUse, mount: &Mount) -> Result<()> {
    let options = mount.volume_options.clone().unwrap_or_default();
    if let Some(driver) = &options.driver_config
        && !matches!(driver.name.as_str(), "" | "local")
    {
        return Err(Error::not_found(format!(
            "error looking up volume plugin {}: plugin \"{}\" not found",
            driver.name, driver.name
        )));
    }
    if !mount.source.is_empty() {
        crate::volume::validate_name(&mount.source)?;
    }
    parsed.name.clone_from(&mount.source);
    parsed.no_copy = options.no_copy;
    if !options.subpath.is_empty() {
        return Err(Error::not_implemented("VolumeOptions.Subpath"));
    }
    parsed.options.push("rbind".into());
    Ok(())
}

fn parse_tmpfs(mount: &Mount) -> Result<MountUse> {
    if !mount.source.is_empty() {
        return Err(Error::invalid(
            "invalid mount config for type \"tmpfs\": field Source must not be specified",
        ));
    }
    let given = mount.tmpfs_options.clone().unwrap_or_default();
    let mut options = Vec::new();
    if given.size_bytes > 0 {
        options.push(format!("size={}", given.size_bytes));
    }
    if given.mode != 0 {
        options.push(format!("mode={:o}", given.mode));
    }
    options.extend(given.options.iter().map(|pair| pair.join("=")));
    let mut parsed = tmpfs(&mount.target, options)?;
    parsed.read_only = mount.read_only;
    parsed.from_mounts = true;
    Ok(parsed)
}

fn tmpfs(target: &str, options: Vec<String>) -> Result<MountUse> {
    let options: Vec<String> = options.into_iter().filter(|option| !option.is_empty()).collect();
    for option in &options {
        let (key, value) =
            option.split_once('=').map_or((option.as_str(), false), |(k, _)| (k, true));
        let known = if value { TMPFS_VALUES } else { TMPFS_FLAGS };
        if !known.contains(&key) {
            return Err(Error::invalid(format!("invalid tmpfs option {key:?}")));
        }
    }
    Ok(MountUse {
        read_only: options.iter().any(|option| option == "ro"),
        options,
        ..empty(MountKind::Tmpfs, clean_target(target)?)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn binds_as_docker_reads_them() {
        let bind = parse_bind("/src:/dst/../x:ro,rslave").unwrap();
        assert_eq!((bind.kind, bind.target.as_str()), (MountKind::Bind, "/x"));
        assert!(bind.read_only);
        assert_eq!(bind.propagation, "rslave");
        let volume = parse_bind("data:/var/lib/x:nocopy").unwrap();
        assert_eq!((volume.kind, volume.name.as_str()), (MountKind::Volume, "data"));
        assert!(volume.no_copy);
        assert_eq!(parse_bind("/only").unwrap().name, "");
    }

    #[test]
    fn options_of_a_tmpfs() {
        let of = |text: &str| tmpfs("/t", text.split(',').map(Into::into).collect());
        assert!(of("ro,size=1m,mode=1777").unwrap().read_only);
        for text in ["nope=1", "size", "ro=1", "bind"] {
            assert!(of(text).unwrap_err().message.starts_with("invalid tmpfs option"), "{text}");
        }
    }

    #[test]
    fn binds_that_docker_refuses() {
        for bind in ["", ":/x", "a:", "/a:/b:c:d", "/a:/b:bogus", "/a:/", "/a:rel", "a b:/x"] {
            assert!(parse_bind(bind).is_err(), "{bind}");
        }
    }

    #[test]
    fn twice_the_same_target_is_refused() {
        let mut given = BTreeMap::new();
        add(&mut given, parse_bind("/a:/t").unwrap()).unwrap();
        let error = add(&mut given, parse_bind("/b:/t/").unwrap()).unwrap_err();
        assert_eq!(error.message, "Duplicate mount point: /t");
    }
}

//! `-v` and `--mount`.

use std::path::Path;

use api_types::{BindOptions, ImageOptions, Mount, MountType, TmpfsOptions, VolumeOptions};

use crate::values;

/// One `-v`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VolumeSpec {
    /// A named volume or a host directory: goes to `HostConfig.Binds`.
    Bind(String),
    /// A path alone: goes to `Config.Volumes`.
    Anonymous(String),
}

/// `[src:]dst[:opts]`; a source that begins with a dot is made absolute. What it means is the
/// engine's to judge.
pub(crate) fn volume_bind(text: &str, cwd: &Path) -> Result<VolumeSpec, String> {
    let Some((source, rest)) = text.split_once(':') else {
        if text.is_empty() {
            return Err("invalid empty volume spec".to_owned());
        }
        return Ok(VolumeSpec::Anonymous(text.to_owned()));
    };
    if source.is_empty() || rest.is_empty() {
        return Err(format!("invalid spec: {text}: empty section between colons"));
    }
    if source.starts_with('.') {
        let path = clean(&cwd.join(source));
        return Ok(VolumeSpec::Bind(format!("{path}:{rest}")));
    }
    Ok(VolumeSpec::Bind(text.to_owned()))
}

/// Removes `.` and `..` by their text.
fn clean(path: &Path) -> String {
    use std::path::Component;
    let mut parts: Vec<&std::ffi::OsStr> = Vec::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                parts.pop();
            }
            Component::Normal(name) => parts.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    let parts: Vec<_> = parts.iter().map(|p| p.to_string_lossy()).collect();
    format!("/{}", parts.join("/"))
}

fn flag(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None => Ok(true),
        Some("") => Err(format!("invalid value for {key}: ")),
        Some(v) => values::boolean(v).map_err(|_| format!("invalid value for {key}: {v}")),
    }
}

/// The comma-separated keys of `--mount`.
pub(crate) fn mount(text: &str) -> Result<Mount, String> {
    let fields = values::csv(text)?;
    if fields.is_empty() {
        return Err("value is empty".to_owned());
    }
    let mut m = Mount { r#type: MountType::Volume, ..Mount::default() };
    for field in &fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.trim().to_ascii_lowercase(), Some(value)),
            None => (field.trim().to_ascii_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("readonly" | "ro", v) => m.read_only = flag(&key, v)?,
            ("volume-nocopy", v) => volume(&mut m).no_copy = flag(&key, v)?,
            ("bind-create-src", v) => bind(&mut m).create_mountpoint = flag(&key, v)?,
            ("bind-nonrecursive", _) => {
                return Err(
                    "bind-nonrecursive is deprecated, use bind-recursive=disabled instead".into()
                );
            }
            (_, None) => return Err(format!("invalid field '{field}' must be a key=value pair")),
            (_, Some(value)) => key_value(&mut m, &key, value, field)?,
        }
    }
    check(&m)?;
    Ok(m)
}

fn bind(m: &mut Mount) -> &mut BindOptions {
    m.bind_options.get_or_insert_default()
}

fn volume(m: &mut Mount) -> &mut VolumeOptions {
    m.volume_options.get_or_insert_default()
}

fn tmpfs(m: &mut Mount) -> &mut TmpfsOptions {
    m.tmpfs_options.get_or_insert_default()
}

fn key_value(m: &mut Mount, key: &str, value: &str, field: &str) -> Result<(), String> {
    match key {
        "type" => m.r#type = MountType::from(value.to_ascii_lowercase().as_str()),
        "source" | "src" => {
            m.source = value.to_owned();
            if value == "." || value.starts_with("./") || value.starts_with("../") || value == ".."
            {
                let cwd = std::env::current_dir().map_err(|e| e.to_string())?;
                m.source = clean(&cwd.join(value));
            }
        }
        "target" | "dst" | "destination" => m.target = value.to_owned(),
        "consistency" => m.consistency = value.to_ascii_lowercase(),
        "bind-propagation" => bind(m).propagation = value.to_ascii_lowercase(),
        "bind-recursive" => match value {
            "enabled" => {}
            "disabled" => bind(m).non_recursive = true,
            "writable" => bind(m).read_only_non_recursive = true,
            "readonly" => bind(m).read_only_force_recursive = true,
            _ => {
                return Err(format!(
                    "invalid value for {key}: {value} (must be \"enabled\", \"disabled\", \"writable\", or \"readonly\")"
                ));
            }
        },
        "volume-subpath" => volume(m).subpath = value.to_owned(),
        "volume-label" => {
            let (k, v) = values::key_value(value);
            volume(m).labels.insert(k, v);
        }
        "volume-driver" => volume(m).driver_config.get_or_insert_default().name = value.to_owned(),
        "volume-opt" => {
            let (k, v) = values::key_value(value);
            volume(m).driver_config.get_or_insert_default().options.insert(k, v);
        }
        "image-subpath" => {
            m.image_options = Some(ImageOptions { subpath: value.to_owned() });
        }
        "tmpfs-size" => {
            tmpfs(m).size_bytes =
                values::bytes(value).map_err(|_| format!("invalid value for {key}: {value}"))?;
        }
        "tmpfs-mode" => {
            tmpfs(m).mode = u32::from_str_radix(value, 8)
                .map_err(|_| format!("invalid value for {key}: {value}"))?;
        }
        other => return Err(format!("unexpected key '{other}' in '{field}'")),
    }
    Ok(())
}

fn check(m: &Mount) -> Result<(), String> {
    if m.target.is_empty() {
        return Err("target is required".to_owned());
    }
    let kind = m.r#type.as_str();
    for (options, present, of) in [
        ("volume-*", m.volume_options.is_some(), MountType::Volume),
        ("image-*", m.image_options.is_some(), MountType::Image),
        ("bind-*", m.bind_options.is_some(), MountType::Bind),
        ("tmpfs-*", m.tmpfs_options.is_some(), MountType::Tmpfs),
    ] {
        if present && m.r#type != of {
            return Err(format!("cannot mix '{options}' options with mount type '{kind}'"));
        }
    }
    if let (Some(bind), MountType::Bind) = (&m.bind_options, &m.r#type) {
        if bind.read_only_non_recursive && !m.read_only {
            return Err("option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction".into());
        }
        if bind.read_only_force_recursive && !m.read_only {
            return Err("option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction".into());
        }
        if bind.read_only_force_recursive && bind.propagation != "rprivate" {
            return Err("option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn binds() {
        let v = |t: &str| volume_bind(t, Path::new("/work/dir"));
        assert_eq!(v("/data").unwrap(), VolumeSpec::Anonymous("/data".into()));
        assert_eq!(v("name:/data:ro").unwrap(), VolumeSpec::Bind("name:/data:ro".into()));
        assert_eq!(v("./x:/data").unwrap(), VolumeSpec::Bind("/work/dir/x:/data".into()));
        assert_eq!(v("..:/data").unwrap(), VolumeSpec::Bind("/work:/data".into()));
        assert!(v("").is_err() && v(":/x").is_err() && v("x:").is_err());
    }

    #[test]
    fn mounts() {
        let m = mount("type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave").unwrap();
        assert_eq!(m.r#type, MountType::Bind);
        assert!(m.read_only);
        assert_eq!(m.bind_options.unwrap().propagation, "rslave");
        let m = mount("source=v,target=/x,volume-opt=o=a,volume-opt=type=nfs,volume-label=k=v")
            .unwrap();
        let options = m.volume_options.unwrap();
        assert_eq!(options.driver_config.unwrap().options.len(), 2);
        let m = mount("type=tmpfs,dst=/x,tmpfs-size=1m,tmpfs-mode=1770").unwrap();
        assert_eq!(
            m.tmpfs_options.unwrap(),
            TmpfsOptions { size_bytes: 1 << 20, mode: 0o1770, options: vec![] }
        );
        for bad in [
            "",
            "type=bind",
            "dst=/x,what=1",
            "dst=/x,foo",
            "type=tmpfs,dst=/x,volume-nocopy",
            "type=bind,src=/,dst=/x,bind-recursive=perhaps",
            "dst=/x,readonly=perhaps",
            "type=bind,src=/,dst=/x,bind-nonrecursive",
            "type=bind,src=/,dst=/x,bind-recursive=readonly",
        ] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }
}

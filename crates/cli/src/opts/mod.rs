//! The grammars of structured option values, and the create body built from them.

mod container;
mod env;
mod mount;
mod network;
mod ports;

pub(crate) use container::{CreateInput, create_body, resources, restart_policy};
pub(crate) use env::{env_list, label_map};
pub(crate) use mount::{VolumeSpec, mount, volume_bind};
pub(crate) use network::{extra_host, network_attachment};
pub(crate) use ports::{expose, publish};

use api_types::{DeviceMapping, DeviceRequest, ThrottleDevice, Ulimit, WeightDevice};

use crate::values;

/// `name=soft[:hard]`.
pub(crate) fn ulimit(text: &str) -> Result<Ulimit, String> {
    let (name, limits) =
        text.split_once('=').ok_or_else(|| format!("invalid ulimit argument: {text}"))?;
    if !types::ULIMITS.contains(&name) {
        return Err(format!("invalid ulimit type: {name}"));
    }
    let number = |t: &str| {
        t.parse::<i64>().map_err(|_| format!("strconv.ParseInt: parsing {t:?}: invalid syntax"))
    };
    let (soft, hard) = match limits.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(limits)?, number(limits)?),
    };
    if hard >= 0 && soft > hard {
        return Err(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        ));
    }
    Ok(Ulimit { name: name.to_owned(), hard, soft })
}

/// `all`, a number, or `driver=,count=,device=,capabilities=,options=`.
pub(crate) fn gpus(text: &str) -> Result<DeviceRequest, String> {
    let count = |t: &str| match t {
        "all" => Ok(-1),
        t => t
            .parse::<i64>()
            .map_err(|_| format!("strconv.Atoi: parsing {t:?}: invalid syntax").to_string()),
    };
    let mut request = DeviceRequest::default();
    let mut seen: Vec<String> = Vec::new();
    for field in values::csv(text)? {
        let (key, value) = match field.split_once('=') {
            Some(pair) => pair,
            None if seen.iter().any(|k| k == "count") => {
                return Err(format!("gpu request key '{field}' can be specified only once"));
            }
            None => ("count", field.as_str()),
        };
        if seen.iter().any(|k| k == key) {
            return Err(format!("gpu request key '{key}' can be specified only once"));
        }
        seen.push(key.to_owned());
        match key {
            "driver" => request.driver = value.to_owned(),
            "count" => request.count = count(value)?,
            "device" => request.device_ids = value.split(',').map(str::to_owned).collect(),
            "capabilities" => {
                let mut all: Vec<String> = value.split(',').map(str::to_owned).collect();
                all.push("gpu".to_owned());
                request.capabilities = vec![all];
            }
            "options" => {
                request.options =
                    values::csv(value)?.iter().map(|p| values::key_value(p)).collect();
            }
            other => return Err(format!("unexpected key '{other}' in '{field}'")),
        }
    }
    if !seen.iter().any(|k| k == "count") && request.device_ids.is_empty() {
        request.count = 1;
    }
    if request.capabilities.is_empty() {
        request.capabilities = vec![vec!["gpu".to_owned()]];
    }
    Ok(request)
}

/// A CDI device: `vendor/class=name`.
pub(crate) fn is_cdi(text: &str) -> bool {
    text.split_once('=').is_some_and(|(kind, name)| {
        !text.starts_with('/')
            && !name.is_empty()
            && kind.split_once('/').is_some_and(|(vendor, class)| {
                !vendor.is_empty() && !class.is_empty() && !class.contains('/')
            })
    })
}

fn is_device_mode(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| "rwm".contains(c))
        && "rwm".chars().all(|c| text.matches(c).count() <= 1)
}

/// `host[:container[:rwm]]`.
pub(crate) fn device(text: &str) -> Result<DeviceMapping, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let invalid = || format!("invalid device specification: {text}");
    let (src, dst, mode) = match parts.as_slice() {
        [src] => (*src, *src, "rwm"),
        [src, mode] if is_device_mode(mode) => (*src, *src, *mode),
        [src, dst] => (*src, *dst, "rwm"),
        [src, dst, mode] if is_device_mode(mode) => (*src, *dst, *mode),
        [_, _, mode] => return Err(format!("bad mode specified: {mode}")),
        _ => return Err(invalid()),
    };
    if src.is_empty() || !dst.starts_with('/') {
        return Err(invalid());
    }
    Ok(DeviceMapping {
        path_on_host: src.to_owned(),
        path_in_container: dst.to_owned(),
        cgroup_permissions: mode.to_owned(),
    })
}

/// `type major:minor mode`, such as `c 1:3 mr`.
pub(crate) fn device_cgroup_rule(text: &str) -> Result<String, String> {
    let number = |t: &str| t == "*" || !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let mut words = text.split(' ');
    let ok = matches!(words.next(), Some("a" | "b" | "c"))
        && words
            .next()
            .and_then(|w| w.split_once(':'))
            .is_some_and(|(major, minor)| number(major) && number(minor))
        && words.next().is_some_and(|mode| mode.len() <= 3 && is_device_mode(mode))
        && words.next().is_none();
    if ok { Ok(text.to_owned()) } else { Err(format!("invalid device cgroup format '{text}'")) }
}

fn device_path(text: &str) -> Result<(&str, &str), String> {
    let (path, value) = text.split_once(':').ok_or_else(|| format!("bad format: {text}"))?;
    if !path.starts_with("/dev/") {
        return Err(format!("bad format for device path: {text}"));
    }
    Ok((path, value))
}

/// `path:weight`.
pub(crate) fn weight_device(text: &str) -> Result<WeightDevice, String> {
    let (path, value) = device_path(text)?;
    let weight: u16 = value.parse().map_err(|_| format!("invalid weight for device: {text}"))?;
    if weight > 0 && !(10..=1000).contains(&weight) {
        return Err(format!("invalid weight for device: {text}"));
    }
    Ok(WeightDevice { path: path.to_owned(), weight })
}

/// `path:bytes per second`.
pub(crate) fn throttle_bps(text: &str) -> Result<ThrottleDevice, String> {
    let (path, value) = device_path(text)?;
    let rate = values::bytes(value)
        .ok()
        .and_then(|rate| u64::try_from(rate).ok())
        .ok_or_else(|| {
            format!("invalid rate for device: {text}. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb")
        })?;
    Ok(ThrottleDevice { path: path.to_owned(), rate })
}

/// `path:operations per second`.
pub(crate) fn throttle_iops(text: &str) -> Result<ThrottleDevice, String> {
    let (path, value) = device_path(text)?;
    let rate = value.parse().map_err(|_| {
        format!("invalid rate for device: {text}. The correct format is <device-path>:<number>. Number must be a positive integer")
    })?;
    Ok(ThrottleDevice { path: path.to_owned(), rate })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ulimits() {
        let u = ulimit("nofile=10:20").unwrap();
        assert_eq!((u.soft, u.hard), (10, 20));
        assert_eq!(ulimit("core=-1").unwrap().hard, -1);
        for bad in ["nofile", "what=1", "nofile=20:10", "nofile=x", "nofile=1:2:3"] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn gpu_requests() {
        assert_eq!(gpus("all").unwrap().count, -1);
        assert_eq!(gpus("2").unwrap().capabilities, [["gpu"]]);
        let r = gpus(r#""device=1,3",driver=nvidia"#).unwrap();
        assert_eq!(r.device_ids, ["1", "3"]);
        assert_eq!((r.count, r.driver.as_str()), (0, "nvidia"));
        assert!(gpus("count=1,count=2").is_err());
        assert!(gpus("color=red").is_err());
    }

    #[test]
    fn devices() {
        let d = device("/dev/a:/dev/b:rm").unwrap();
        assert_eq!((d.path_in_container.as_str(), d.cgroup_permissions.as_str()), ("/dev/b", "rm"));
        assert_eq!(device("/dev/a:rw").unwrap().path_in_container, "/dev/a");
        assert_eq!(device("/dev/a").unwrap().cgroup_permissions, "rwm");
        for bad in ["", "/dev/a:b", "/dev/a:/b:x", "a:/b:r:w", "/dev/a:/b:rr"] {
            assert!(device(bad).is_err(), "{bad}");
        }
        assert!(is_cdi("vendor.com/class=name") && !is_cdi("/dev/x=1"));
        assert!(device_cgroup_rule("c 1:* rwm").is_ok());
        for bad in ["c 1:3", "d 1:3 r", "c 1 r", "c 1:3 x", "c 1:3 r x"] {
            assert!(device_cgroup_rule(bad).is_err(), "{bad}");
        }
        assert_eq!(throttle_bps("/dev/sda:1mb").unwrap().rate, 1 << 20);
        assert!(throttle_iops("/dev/sda:1mb").is_err());
        assert!(throttle_bps("sda:1").is_err());
        assert!(weight_device("/dev/sda:5").is_err());
    }
}

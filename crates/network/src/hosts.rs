//! The contents of a container's `/etc/hosts`. Pure.

use std::fmt::Write;
use std::net::IpAddr;

/// What goes into it.
#[derive(Debug, Clone, Default)]
pub struct HostsOptions {
    /// The container's host name.
    pub hostname: String,
    /// Its domain (`--domainname`).
    pub domain: Option<String>,
    /// The container's own addresses.
    pub addresses: Vec<IpAddr>,
    /// Further lines (`--add-host`, links): address and the names after it.
    pub extra: Vec<(IpAddr, String)>,
    /// Without IPv6 the `ip6-*` lines are left out.
    pub ipv6: bool,
}

/// Builds the file in Docker's form: loopback lines, then `--add-host`, then the
/// container's addresses.
pub fn build(options: &HostsOptions) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n");
    if options.ipv6 {
        text.push_str(
            "::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::\tip6-localnet\n\
             ff00::\tip6-mcastprefix\n\
             ff02::1\tip6-allnodes\n\
             ff02::2\tip6-allrouters\n",
        );
    }
    let mut line = |address: &IpAddr, names: &str| {
        writeln!(text, "{address}\t{names}").expect("writing to a string cannot fail");
    };
    for (address, names) in &options.extra {
        line(address, names);
    }
    // The whole name and its first part (libnetwork `sandbox_dns_unix.go` `updateHostsFile`).
    let whole = match options.domain.as_deref().filter(|d| !d.is_empty()) {
        Some(domain) => format!("{}.{domain}", options.hostname),
        None => options.hostname.clone(),
    };
    let names = match whole.split_once('.') {
        Some((first, _)) => format!("{whole} {first}"),
        None => whole,
    };
    for address in options.addresses.iter().filter(|_| !options.hostname.is_empty()) {
        line(address, &names);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_form() {
        let options = HostsOptions {
            hostname: "web".to_owned(),
            domain: Some("example.org".to_owned()),
            addresses: vec![IpAddr::from([172, 17, 0, 2])],
            extra: vec![(IpAddr::from([10, 0, 0, 1]), "db".to_owned())],
            ipv6: false,
        };
        assert_eq!(
            build(&options),
            "127.0.0.1\tlocalhost\n10.0.0.1\tdb\n172.17.0.2\tweb.example.org web\n"
        );
        let options = HostsOptions { ipv6: true, ..HostsOptions::default() };
        assert!(build(&options).contains("::1\tlocalhost ip6-localhost ip6-loopback\n"));
    }
}

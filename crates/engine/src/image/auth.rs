//! Whose credentials are meant for which registry.

use std::collections::BTreeMap;

use api_types::AuthConfig;
use store_api::Credentials;
use types::ImageRef;

/// The registry that docker's configuration knows as `https://index.docker.io/v1/`.
const DOCKER_HUB: &str = "docker.io";

pub(super) fn credentials(auth: &AuthConfig) -> Credentials {
    Credentials {
        username: auth.username.clone(),
        password: auth.password.clone(),
        identity_token: auth.identity_token.clone(),
        registry_token: auth.registry_token.clone(),
    }
}

/// `X-Registry-Config` by the registry's host and port. Docker's keys are hosts or URLs of any path; a
/// key that is the bare host counts before others of the same host (moby `registry.ResolveAuthConfig`).
pub(crate) fn by_registry(auths: &BTreeMap<String, AuthConfig>) -> BTreeMap<String, Credentials> {
    let mut found = BTreeMap::new();
    for (key, auth) in auths {
        let host = registry_host(key);
        if *key == host || !found.contains_key(&host) {
            found.insert(host, credentials(auth));
        }
    }
    found
}

/// Those for the registry that an image comes from.
pub(crate) fn of_image<'a>(
    credentials: &'a BTreeMap<String, Credentials>,
    image: &ImageRef,
) -> Option<&'a Credentials> {
    credentials.get(image.domain())
}

fn registry_host(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match bare.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.into(),
        host => host.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_form_of_docker_names_its_registry() {
        let auths = [
            ("https://index.docker.io/v1/", "hub"),
            ("localhost:5000", "local"),
            ("https://registry.example.com", "url"),
            ("http://plain.example.com:8080/v2/", "path"),
            ("https://both.example.com/v1/", "long"),
            ("both.example.com", "short"),
        ];
        let auths = auths.map(|(key, username)| {
            (key.to_string(), AuthConfig { username: username.into(), ..AuthConfig::default() })
        });
        let known = by_registry(&BTreeMap::from(auths));
        for (image, user) in [
            ("alpine", Some("hub")),
            ("me/app:1", Some("hub")),
            ("localhost:5000/app", Some("local")),
            ("registry.example.com/a/b", Some("url")),
            ("plain.example.com:8080/a", Some("path")),
            ("both.example.com/a", Some("short")),
            ("localhost:5001/app", None),
            ("example.com/a", None),
        ] {
            let image_ref: ImageRef = image.parse().unwrap();
            let found = of_image(&known, &image_ref).map(|c| c.username.as_str());
            assert_eq!(found, user, "{image}");
        }
    }
}

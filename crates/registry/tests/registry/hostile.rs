//! Servers that reset, lie, stall, redirect and refuse.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use registry::{
    BytesSource, Client, Config, Credentials, Error, Proxy, Repository, Target, Timeouts,
    TransportError, UploadOptions,
};
use types::{Digest, ErrorKind, ImageRef};

use crate::server::{Reply, Seen, Server, reply};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub(crate) fn quick() -> Config {
    Config {
        proxy: Proxy::default(),
        certs_dirs: Vec::new(),
        attempts: 4,
        timeouts: Timeouts {
            connect: Duration::from_secs(5),
            response: Duration::from_millis(800),
            stall: Duration::from_millis(400),
            stall_bytes: 1024,
            backoff: Duration::from_millis(5),
            retry_after_max: Duration::from_secs(3),
        },
        ..Config::default()
    }
}

pub(crate) fn password() -> Credentials {
    Credentials::Password { username: "user".into(), password: "secret".into() }
}

fn image(server: &Server) -> ImageRef {
    format!("{}/some/repo:tag", server.address).parse().unwrap()
}

async fn pull(server: &Server) -> Repository {
    Client::new(quick()).unwrap().pull(&image(server), Credentials::Anonymous).await.unwrap()
}

/// Bytes that differ in each run.
pub(crate) fn random(len: usize) -> Vec<u8> {
    use std::hash::{BuildHasher, Hasher};
    let mut state = std::collections::hash_map::RandomState::new().build_hasher().finish() | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..len).map(next).collect()
}

pub(crate) async fn read(repository: &Repository, digest: &Digest) -> Result<Vec<u8>, Error> {
    let mut blob = repository.get_blob(digest, None, 0).await?.verified();
    let mut all = Vec::new();
    while let Some(chunk) = blob.chunk().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

fn range_start(seen: &Seen) -> Option<usize> {
    seen.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

#[tokio::test]
async fn resets_are_resumed_where_they_happened() {
    let data = random(2_000_000);
    let digest = Digest::sha256(&data);
    let served = data.clone();
    let server = Server::start(move |seen, _| {
        let start = range_start(seen).unwrap_or(0);
        let body = served[start..].to_vec();
        let range = format!("bytes {start}-{}/{}", served.len() - 1, served.len());
        let status = if start > 0 { 206 } else { 200 };
        Reply::Cut {
            status,
            headers: vec![("Content-Range".into(), range)],
            body,
            after: 150_000 + start % 1000,
        }
    })
    .await;
    assert!(read(&pull(&server).await, &digest).await.unwrap() == data);
    let starts: Vec<_> = server.seen().iter().map(range_start).collect();
    assert_eq!(starts[0], None);
    assert!(starts.len() > 10 && starts[1..].iter().all(Option::is_some), "{starts:?}");
    assert!(starts.windows(2).all(|w| w[0] < w[1]), "always further: {starts:?}");
}

#[tokio::test]
async fn registries_without_ranges_are_resumed_too() {
    let data = random(600_000);
    let digest = Digest::sha256(&data);
    let served = data.clone();
    let server = Server::start(move |_, count| {
        let after = [200_000, 90_000, usize::MAX][count.min(2)];
        Reply::Cut { status: 200, headers: Vec::new(), body: served.clone(), after }
    })
    .await;
    assert!(read(&pull(&server).await, &digest).await.unwrap() == data);
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn attempts_without_progress_are_counted() {
    let server = Server::start(|seen, _| match seen.target.contains("blobs") {
        true => Reply::Cut { status: 200, headers: Vec::new(), body: vec![0; 10], after: 0 },
        false => Reply::Reset,
    })
    .await;
    let repository = pull(&server).await;
    let error = read(&repository, &Digest::sha256("x")).await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. }), "{error:?}");
    assert_eq!(server.seen().len(), 4);
    let error = repository.get_manifest(Target::Tag("t")).await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. }), "{error:?}");
    assert_eq!(server.seen().len(), 8);
}

#[tokio::test]
async fn wrong_digests_and_sizes_are_refused() {
    let server = Server::start(|seen, _| {
        if seen.target.contains("manifests") {
            reply(200, &[("Content-Type", MANIFEST)], r#"{"layers":[]}"#)
        } else {
            reply(200, &[], random(1000))
        }
    })
    .await;
    let repository = pull(&server).await;
    let digest = Digest::sha256("something else");
    let error = read(&repository, &digest).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { what: "blob", .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    let error = repository.get_manifest(Target::Digest(&digest)).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { what: "manifest", .. }), "{error:?}");
    let error = repository.get_blob(&digest, Some(999), 0).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        format!("blob {digest} of {}/some/repo has 1000 bytes, 999 were expected", server.address)
    );
    assert_eq!(server.seen().len(), 3, "nothing of this is tried again");
    let other = Digest::sha256("tag's");
    let told = other.to_string();
    let server = Server::start(move |_, _| {
        let headers = [("Content-Type", MANIFEST), ("Docker-Content-Digest", &told)];
        reply(200, &headers, r#"{"layers":[]}"#)
    })
    .await;
    let error = pull(&server).await.get_manifest(Target::Tag("t")).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error:?}");
}

#[tokio::test]
async fn too_many_requests_waits_as_long_as_asked_or_gives_the_words_on() {
    let words = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;
    let server = Server::start(move |_, count| match count {
        0 => reply(429, &[("Retry-After", "1")], words),
        _ => reply(200, &[("Content-Type", MANIFEST)], r#"{"layers":[]}"#),
    })
    .await;
    let begun = Instant::now();
    pull(&server).await.get_manifest(Target::Tag("t")).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.seen().len(), 2);
    for (after, requests) in [("0", 4), ("3600", 1)] {
        let server = Server::start(move |_, _| reply(429, &[("Retry-After", after)], words)).await;
        let error = pull(&server).await.get_manifest(Target::Tag("t")).await.unwrap_err();
        let expected = "toomanyrequests: You have reached your pull rate limit.";
        assert_eq!(error.to_string(), expected);
        assert_eq!(server.seen().len(), requests);
    }
}

#[tokio::test]
async fn redirects_to_other_hosts_carry_no_credentials() {
    let data = random(5000);
    let digest = Digest::sha256(&data);
    let body = data.clone();
    let storage = Server::start(move |_, _| reply(200, &[], body.clone())).await;
    let target = format!("http://{}/signed?key=1", storage.address);
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        None => reply(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], ""),
        Some(_) => reply(307, &[("Location", &target)], ""),
    })
    .await;
    let client = Client::new(quick()).unwrap();
    let repository = client.pull(&image(&server), password()).await.unwrap();
    assert!(read(&repository, &digest).await.unwrap() == data);
    assert_eq!(
        server.seen().last().unwrap().header("authorization"),
        Some("Basic dXNlcjpzZWNyZXQ=")
    );
    assert_eq!(storage.seen().len(), 1);
    assert_eq!(storage.seen()[0].header("authorization"), None);

    // The other host asking for credentials gets none.
    let thief =
        Server::start(|_, _| reply(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], "")).await;
    let target = format!("http://{}/", thief.address);
    let server = Server::start(move |_, _| reply(307, &[("Location", &target)], "")).await;
    let repository = client.pull(&image(&server), password()).await.unwrap();
    let error = read(&repository, &digest).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    assert_eq!(thief.seen().len(), 1);
    assert!(thief.seen().iter().all(|s| s.header("authorization").is_none()));

    // In circles.
    let server =
        Server::start(|seen, _| reply(302, &[("Location", &seen.target.clone())], "")).await;
    let error = client
        .pull(&image(&server), password())
        .await
        .unwrap()
        .get_manifest(Target::Tag("t"))
        .await;
    assert!(matches!(
        error.unwrap_err(),
        Error::Transport { source: TransportError::Redirect(_), .. }
    ));
    assert_eq!(server.seen().len(), 6);
}

#[tokio::test]
async fn slow_servers_time_out() {
    let mut config = quick();
    config.attempts = 1;
    let client = Client::new(config).unwrap();
    let drip = Server::start(|_, _| Reply::Drip {
        body: vec![0; 100_000],
        pause: Duration::from_millis(20),
    })
    .await;
    let begun = Instant::now();
    let repository = client.pull(&image(&drip), Credentials::Anonymous).await.unwrap();
    let error = read(&repository, &Digest::sha256("x")).await.unwrap_err();
    assert!(
        matches!(error, Error::Transport { source: TransportError::Stalled { .. }, .. }),
        "{error:?}"
    );
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let error = repository.get_manifest(Target::Tag("t")).await.unwrap_err();
    assert!(
        matches!(error, Error::Transport { source: TransportError::NoAnswer { .. }, .. }),
        "{error:?}"
    );
    let silent = Server::start(|_, _| Reply::Silence).await;
    let repository = client.pull(&image(&silent), Credentials::Anonymous).await.unwrap();
    let error = repository.get_manifest(Target::Tag("t")).await.unwrap_err();
    assert!(
        matches!(error, Error::Transport { source: TransportError::NoAnswer { .. }, .. }),
        "{error:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn bearer_tokens_by_get_and_by_post() {
    let tokens = Server::start(|seen, _| {
        let token = if seen.method == "POST" { "by-post" } else { "by-get" };
        let body =
            format!(r#"{{"access_token":"{token}","expires_in":300,"refresh_token":"again"}}"#);
        reply(200, &[], body)
    })
    .await;
    let realm = format!(
        "Bearer realm=\"http://{}/token\",service=\"reg\",scope=\"repository:some/repo:pull\"",
        tokens.address
    );
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        Some("Bearer by-get" | "Bearer by-post") => {
            reply(200, &[("Content-Type", MANIFEST)], r#"{"layers":[]}"#)
        }
        _ => reply(401, &[("WWW-Authenticate", &realm)], ""),
    })
    .await;
    let client = Client::new(quick()).unwrap();
    let identity = Credentials::IdentityToken { token: "refresh/me".into() };
    for credentials in [Credentials::Anonymous, password(), identity] {
        let repository = client.pull(&image(&server), credentials).await.unwrap();
        repository.get_manifest(Target::Tag("t")).await.unwrap();
        repository.get_manifest(Target::Tag("u")).await.unwrap();
    }
    let seen = tokens.seen();
    assert_eq!(seen.len(), 3, "one token for each repository");
    assert_eq!(seen[0].header("authorization"), None);
    assert!(seen[0].target.contains("service=reg"));
    assert!(seen[0].target.contains("scope=repository%3Asome%2Frepo%3Apull"));
    assert_eq!(seen[1].header("authorization"), Some("Basic dXNlcjpzZWNyZXQ="));
    let form = String::from_utf8(seen[2].body.clone()).unwrap();
    assert!(form.contains("grant_type=refresh_token") && form.contains("refresh%2Fme"), "{form}");
    let login = client.login(&server.address.to_string(), password()).await.unwrap();
    assert_eq!(login.identity_token.as_deref(), Some("again"));
    assert!(tokens.seen()[3].target.contains("offline_token=true"));
}

#[tokio::test]
async fn refusals_have_dockers_words() {
    let server = Server::start(|seen, _| {
        let error = |code: &str, message: &str| {
            format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#)
        };
        if seen.target.contains("denied") {
            reply(403, &[], error("DENIED", "requested access to the resource is denied"))
        } else if seen.target.contains("unauthorized") {
            reply(401, &[], error("UNAUTHORIZED", "authentication required"))
        } else if seen.target.contains("unknown") {
            reply(404, &[], error("NAME_UNKNOWN", "repository name not known to registry"))
        } else {
            reply(404, &[], error("MANIFEST_UNKNOWN", "manifest unknown"))
        }
    })
    .await;
    let repository = pull(&server).await;
    let name = format!("{}/some/repo", server.address);
    for (tag, words) in [
        ("t", format!("manifest for {name}:t not found: manifest unknown: manifest unknown")),
        (
            "denied",
            format!(
                "pull access denied for {name}, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"
            ),
        ),
        ("unauthorized", "unauthorized: authentication required".into()),
        (
            "unknown",
            format!(
                "repository {name} not found: name unknown: repository name not known to registry"
            ),
        ),
    ] {
        let error = repository.get_manifest(Target::Tag(tag)).await.unwrap_err();
        assert_eq!(error.to_string(), words);
    }
    assert_eq!(repository.head_manifest(Target::Tag("t")).await.unwrap(), None);
}

#[tokio::test]
async fn manifests_have_limits() {
    let big = vec![b' '; (4 << 20) + 1];
    let server =
        Server::start(move |_, _| reply(200, &[("Content-Type", MANIFEST)], big.clone())).await;
    let error = pull(&server).await.get_manifest(Target::Tag("t")).await.unwrap_err();
    let name = format!("{}/some/repo", server.address);
    assert_eq!(error.to_string(), format!("manifest t from {name} is larger than 4194304 bytes"));
}

/// Some answer a range with another one, or with 416: the blob is then asked for from its start, once.
#[tokio::test]
async fn a_wrong_range_starts_the_blob_anew() {
    let data = random(300_000 + usize::from(random(1)[0]));
    let digest = Digest::sha256(&data);
    let len = data.len();
    let wrong = [
        (206, format!("bytes 7-{}/{len}", len - 1)),
        (206, format!("bytes */{len}")),
        (206, String::new()),
        (416, format!("bytes */{len}")),
    ];
    for (status, range) in wrong {
        let (served, told) = (data.clone(), range.clone());
        let server = Server::start(move |seen, count| match range_start(seen) {
            None if count == 0 => Reply::Cut {
                status: 200,
                headers: Vec::new(),
                body: served.clone(),
                after: 100_000,
            },
            None => reply(200, &[], served.clone()),
            Some(start) => reply(status, &[("Content-Range", &told)], &served[start..]),
        })
        .await;
        assert!(read(&pull(&server).await, &digest).await.unwrap() == data, "{status} {range}");
        let ranges: Vec<bool> =
            server.seen().iter().map(|seen| range_start(seen).is_some()).collect();
        assert_eq!(ranges, [false, true, false], "{status} {range}");
    }
    // One that sends a part even then is told of, by the blob and the repository.
    let served = data.clone();
    let server = Server::start(move |_, _| {
        let range = format!("bytes 7-{}/{len}", len - 1);
        reply(206, &[("Content-Range", &range)], &served[7..])
    })
    .await;
    let repository = pull(&server).await;
    let error = repository.get_blob(&digest, Some(len as u64), 1000).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        format!(
            "blob {digest} from {}/some/repo is malformed: a part of it came where the whole was asked for",
            server.address
        )
    );
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn interrupted_uploads_go_on() {
    let data = random(3_000_000);
    let digest = Digest::sha256(&data);
    let stored = Arc::new(Mutex::new(Vec::<u8>::new()));
    let state = stored.clone();
    let server = Server::start_reading(
        move |seen, _| {
            let mut stored = state.lock().unwrap();
            let range = |len: usize| format!("0-{}", len.saturating_sub(1));
            match seen.method.as_str() {
                "POST" => reply(202, &[("Location", "/upload/1?state=a")], ""),
                "GET" => reply(
                    204,
                    &[("Location", "/upload/1?state=b"), ("Range", &range(stored.len()))],
                    "",
                ),
                "PATCH" => {
                    let begin = seen.header("content-range").unwrap().split('-').next().unwrap();
                    assert_eq!(begin, stored.len().to_string());
                    stored.extend_from_slice(&seen.body);
                    let range = range(stored.len());
                    reply(202, &[("Location", "/upload/1?state=c"), ("Range", &range)], "")
                }
                "PUT" => {
                    assert!(seen.target.starts_with("/upload/1?state=c&digest=sha256%3A"));
                    let digest = Digest::sha256(stored.as_slice()).to_string();
                    reply(201, &[("Docker-Content-Digest", &digest)], "")
                }
                _ => reply(500, &[], ""),
            }
        },
        700_000,
    )
    .await;
    let client = Client::new(quick()).unwrap();
    let repository = client.push(&image(&server), Credentials::Anonymous).await.unwrap();
    let source = BytesSource(Bytes::from(data.clone()));
    let told = Mutex::new(0);
    let report = |bytes| *told.lock().unwrap() = bytes;
    let options = UploadOptions { progress: Some(&report), ..Default::default() };
    repository.upload_blob(&digest, 3_000_000, &source, &options).await.unwrap();
    assert!(*stored.lock().unwrap() == data);
    assert_eq!(*told.lock().unwrap(), 3_000_000);
    let methods: Vec<_> = server.seen().iter().map(|s| s.method.clone()).collect();
    assert_eq!(methods, ["POST", "PATCH", "GET", "PATCH", "PUT"]);
    // A source that ends early is our failure, not the registry's.
    let short = BytesSource(Bytes::from(data[..2_000_000].to_vec()));
    let error = repository.upload_blob(&digest, 3_000_000, &short, &options).await.unwrap_err();
    assert!(matches!(error, Error::Source { .. }), "{error:?}");
}

#[tokio::test]
async fn uploads_to_other_hosts_carry_no_credentials() {
    let storage = Server::start(|seen, _| match seen.method.as_str() {
        "PUT" => reply(201, &[], ""),
        _ => reply(500, &[], ""),
    })
    .await;
    let location = format!("http://{}/up", storage.address);
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        None => reply(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], ""),
        Some(_) => reply(202, &[("Location", &location)], ""),
    })
    .await;
    let client = Client::new(quick()).unwrap();
    let repository = client.push(&image(&server), password()).await.unwrap();
    let source = BytesSource(Bytes::from_static(b"data"));
    let digest = Digest::sha256("data");
    repository.upload_blob(&digest, 4, &source, &UploadOptions::default()).await.unwrap();
    assert_eq!(storage.seen().len(), 1);
    assert_eq!(storage.seen()[0].body, b"data");
    assert_eq!(storage.seen()[0].header("authorization"), None);
}

#[tokio::test]
async fn mirrors_are_asked_first_without_credentials_and_fall_through() {
    let mirror = Server::start(|seen, _| match seen.target.contains("have") {
        true => reply(200, &[("Content-Type", MANIFEST)], r#"{"layers":[]}"#),
        false => reply(404, &[], ""),
    })
    .await;
    let hosts = tempfile::NamedTempFile::new().unwrap();
    let config = Config {
        mirrors: vec![format!("http://{}/prefix/", mirror.address)],
        // docker.io itself is a closed port here.
        resolver: registry::dns::Resolver::with_files(hosts.path().into(), "/nonexistent".into()),
        ..quick()
    };
    std::fs::write(hosts.path(), "127.0.0.1 registry-1.docker.io\n").unwrap();
    let client = Client::new(config).unwrap();
    let repository = client.pull(&"alpine".parse().unwrap(), password()).await.unwrap();
    repository.get_manifest(Target::Tag("have")).await.unwrap();
    let seen = mirror.seen();
    assert_eq!(seen[0].target, "/prefix/v2/library/alpine/manifests/have");
    assert!(seen.iter().all(|s| s.header("authorization").is_none()));
    let error = repository.get_manifest(Target::Tag("other")).await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. }), "the upstream's error: {error:?}");
}

#[tokio::test]
async fn the_rest_of_what_a_mirror_began_comes_from_the_next() {
    let data = random(1_000_000);
    let digest = Digest::sha256(&data);
    let part = |served: &[u8], seen: &Seen| {
        let start = range_start(seen).unwrap_or(0);
        let range = format!("bytes {start}-{}/{}", served.len() - 1, served.len());
        let status = if start > 0 { 206 } else { 200 };
        (status, vec![("Content-Range".to_owned(), range)], served[start..].to_vec())
    };
    let served = data.clone();
    let broken = Server::start(move |seen, _| {
        let (status, headers, body) = part(&served, seen);
        Reply::Cut { status, headers, body, after: 150_000 }
    })
    .await;
    let served = data.clone();
    let whole = Server::start(move |seen, _| {
        let (status, headers, body) = part(&served, seen);
        Reply::Full { status, headers, body }
    })
    .await;
    let mirrors = [&broken, &whole].map(|server| format!("http://{}/", server.address));
    let config = Config {
        mirrors: mirrors.to_vec(),
        resolver: registry::dns::Resolver::with_files("/nonexistent".into(), "/nonexistent".into()),
        ..quick()
    };
    let client = Client::new(config).unwrap();
    let repository = client.pull(&"alpine".parse().unwrap(), password()).await.unwrap();
    assert!(read(&repository, &digest).await.unwrap() == data);
    assert_eq!(broken.seen().len(), 1, "a mirror that failed is not insisted on");
    let start = range_start(&whole.seen()[0]).unwrap();
    assert!(start > 0 && start <= 150_000, "{start}");
    assert!(whole.seen().iter().all(|seen| seen.header("authorization").is_none()));
}

#[tokio::test]
async fn proxies_get_the_whole_address() {
    let proxy =
        Server::start(|_, _| reply(200, &[("Content-Type", MANIFEST)], r#"{"layers":[]}"#)).await;
    let config = Config {
        proxy: Proxy {
            http: Some(format!("http://u:p@{}", proxy.address)),
            https: None,
            no_proxy: String::new(),
        },
        insecure: vec!["far.example:5000".into()],
        resolver: registry::dns::Resolver::with_files("/nonexistent".into(), "/nonexistent".into()),
        ..quick()
    };
    let client = Client::new(config).unwrap();
    let image = "far.example:5000/x".parse().unwrap();
    client
        .pull(&image, Credentials::Anonymous)
        .await
        .unwrap()
        .get_manifest(Target::Tag("t"))
        .await
        .unwrap();
    let seen = proxy.seen();
    assert_eq!(seen[0].target, "http://far.example:5000/v2/x/manifests/t");
    assert_eq!(seen[0].header("host"), Some("far.example:5000"));
    assert_eq!(seen[0].header("proxy-authorization"), Some("Basic dTpw"));
}

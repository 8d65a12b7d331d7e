//! `hosts.toml`: who is asked for what, in which order, and what each is told.

use std::{net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use registry::{
    BytesSource, Client, Config, Credentials, Error, Repository, Target, UploadOptions,
};
use types::{Digest, ErrorKind, ImageRef};

use crate::{
    hostile::{MANIFEST, password, quick, random, read},
    server::{Reply, Seen, Server, reply},
};

/// A registry that no request may reach, as nobody listens there.
const FAR: &str = "registry.invalid:5000";

struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    fn new(name: &str, text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ground = Self { dir };
        ground.write(name, text);
        ground
    }

    fn write(&self, name: &str, text: &str) {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
    }

    fn config(&self, names: &str) -> Config {
        let hosts = self.dir.path().join("names");
        std::fs::write(&hosts, names).unwrap();
        Config {
            certs_dirs: vec![self.dir.path().to_owned()],
            resolver: registry::dns::Resolver::with_files(hosts, "/nonexistent".into()),
            ..quick()
        }
    }

    fn client(&self) -> Client {
        Client::new(self.config("")).unwrap()
    }

    async fn pull(&self, image: &str) -> Repository {
        let image: ImageRef = image.parse().unwrap();
        self.client().pull(&image, password()).await.unwrap()
    }
}

fn manifest(seen: &Seen) -> Option<Reply> {
    let is_it = seen.target.contains("/manifests/");
    is_it.then(|| reply(200, &[("Content-Type", MANIFEST)], r#"{"layers":[]}"#))
}

fn url(server: &Server) -> String {
    format!("http://{}", server.address)
}

fn targets(server: &Server) -> Vec<String> {
    server.seen().into_iter().map(|seen| seen.target).collect()
}

#[tokio::test]
async fn hosts_are_asked_in_order_and_told_for_whom() {
    let empty = Server::start(|_, _| reply(404, &[], "")).await;
    let full = Server::start(|seen, _| manifest(seen).unwrap_or(reply(404, &[], ""))).await;
    let down = closed();
    let text = format!(
        "server = \"http://{down}\"\n[host.\"http://{down}/a\"]\n[host.{:?}]\n[host.\"{}/z\"]\n",
        url(&empty),
        url(&full)
    );
    for name in ["registry.invalid_5000_", FAR, "_default"] {
        let ground = Ground::new(name, &text);
        let before = (empty.seen().len(), full.seen().len());
        let repository = ground.pull(&format!("{FAR}/some/repo")).await;
        repository.get_manifest(Target::Tag("t")).await.unwrap();
        let first = &empty.seen()[before.0];
        assert_eq!(
            first.target,
            format!("/v2/some/repo/manifests/t?ns={}", "registry.invalid%3A5000")
        );
        let second = &full.seen()[before.1];
        assert!(second.target.starts_with("/z/v2/some/repo/manifests/t?ns="), "{}", second.target);
        let all = [empty.seen(), full.seen()].concat();
        assert!(all.iter().all(|seen| seen.header("authorization").is_none()));
    }
    // Not this one's business.
    let ground = Ground::new("registry.invalid", &text);
    let before = full.seen().len();
    let error = ground.pull(&format!("{FAR}/x")).await.get_manifest(Target::Tag("t")).await;
    assert!(matches!(error.unwrap_err(), Error::Transport { .. }));
    assert_eq!(full.seen().len(), before);
}

/// An address at which nobody listens.
fn closed() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn each_is_asked_for_what_it_may_do_only() {
    let data = random(50_000);
    let digest = Digest::sha256(&data);
    let body = data.clone();
    let cache = Server::start(move |seen, _| {
        if seen.target.contains(&Digest::sha256(&body).to_string()) {
            return reply(200, &[], body.clone());
        }
        // Of tags it has its own idea, and nobody must hear it.
        manifest(seen).unwrap_or(reply(404, &[], ""))
    })
    .await;
    let resolver = Server::start(|_, _| {
        reply(200, &[("Content-Type", MANIFEST)], r#"{"schemaVersion":2,"layers":[]}"#)
    })
    .await;
    let target = Server::start(|seen, _| match seen.method.as_str() {
        "HEAD" => reply(404, &[], ""),
        "POST" => reply(202, &[("Location", "/up?x=1")], ""),
        _ => reply(201, &[], ""),
    })
    .await;
    let text = format!(
        "server = {:?}\ncapabilities = [\"resolve\"]\n\
         [host.{:?}]\ncapabilities = [\"pull\"]\n[host.{:?}]\ncapabilities = [\"push\"]\n",
        url(&resolver),
        url(&cache),
        url(&target)
    );
    let ground = Ground::new("_default", &text);
    let repository = ground.pull(&format!("{FAR}/some/repo")).await;
    let found = repository.get_manifest(Target::Tag("t")).await.unwrap();
    assert!(found.bytes.starts_with(br#"{"schemaVersion""#));
    assert_eq!((cache.seen().len(), resolver.seen().len()), (0, 1));
    assert!(read(&repository, &digest).await.unwrap() == data);
    assert_eq!((cache.seen().len(), resolver.seen().len()), (1, 1));
    // What only the cache could have, it does not have.
    let error = repository.fetch_blob(&Digest::sha256("nope"), 10).await.unwrap_err();
    assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
    assert_eq!(resolver.seen().len(), 1);

    let image: ImageRef = format!("{FAR}/some/repo").parse().unwrap();
    let push = ground.client().push(&image, password()).await.unwrap();
    let source = BytesSource(Bytes::from_static(b"data"));
    let options = UploadOptions::default();
    push.push_blob(&Digest::sha256("data"), 4, &source, &[], &options).await.unwrap();
    let seen = target.seen();
    assert!(seen[1].target.starts_with("/v2/some/repo/blobs/uploads/?ns=registry.invalid%3A5000"));
    assert!(seen[2].target.starts_with("/up?x=1&digest=sha256"), "{}", seen[2].target);
    assert!(seen.iter().all(|seen| seen.header("authorization").is_none()));

    let only = format!("[host.{:?}]\ncapabilities = [\"pull\"]\n", url(&cache));
    ground.write("_default", &format!("capabilities = [\"pull\"]\n{only}"));
    let error = ground.client().push(&image, password()).await.err().unwrap();
    let words = format!("hosts.toml says that no server of {FAR} may be asked to push");
    assert!(error.to_string().ends_with(&words), "{error}");
    let repository = ground.pull(&format!("{FAR}/some/repo")).await;
    let error = repository.get_manifest(Target::Tag("t")).await.unwrap_err();
    assert!(error.to_string().ends_with("may be asked to resolve"), "{error}");
}

#[tokio::test]
async fn paths_headers_and_credentials() {
    let elsewhere = Server::start(|seen, _| manifest(seen).unwrap_or(reply(404, &[], ""))).await;
    let leading = format!("{}/manifests/x", url(&elsewhere));
    let odd = Server::start(move |_, _| reply(307, &[("Location", &leading)], "")).await;
    let server = Server::start(|seen, _| match seen.header("authorization") {
        None => reply(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], ""),
        Some(_) => manifest(seen).unwrap_or(reply(200, &[], "")),
    })
    .await;
    let text = format!(
        "server = \"{}/root/\"\n[host.\"{}/v2/upstream\"]\noverride_path = true\n\
         [host.\"{}/v2/upstream\".header]\nAuthorization = \"Bearer of-the-file\"\n\
         x-several = [\"a\", \"b\"]\nuser-agent = \"of-the-file/1\"\n",
        url(&server),
        url(&odd),
        url(&odd)
    );
    let ground = Ground::new(FAR, &text);
    let repository = ground.pull(&format!("{FAR}/some/repo")).await;
    repository.get_manifest(Target::Tag("t")).await.unwrap();
    let seen = &odd.seen()[0];
    assert!(seen.target.starts_with("/v2/upstream/some/repo/manifests/t?ns="), "{}", seen.target);
    assert_eq!(seen.header("authorization"), Some("Bearer of-the-file"));
    assert_eq!(seen.header("x-several"), Some("b"), "the last of both");
    let agents = |seen: &Seen| {
        seen.lines.iter().filter(|(name, _)| name == "user-agent").cloned().collect::<Vec<_>>()
    };
    assert_eq!(agents(seen), [("user-agent".to_owned(), "of-the-file/1".to_owned())]);
    // Where it leads, nothing of that is told.
    let seen = &elsewhere.seen()[0];
    assert_eq!((seen.header("authorization"), seen.header("x-several")), (None, None));
    assert!(agents(seen).len() == 1 && agents(seen)[0].1 != "of-the-file/1");

    // The server that the file names in place of the registry gets the registry's credentials.
    ground.write(FAR, &format!("server = \"{}/root/\"\n", url(&server)));
    let repository = ground.pull(&format!("{FAR}/some/repo")).await;
    repository.get_manifest(Target::Tag("t")).await.unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(seen[1].header("authorization"), Some("Basic dXNlcjpzZWNyZXQ="));
    assert!(seen[1].target.starts_with("/root/v2/some/repo/manifests/t?ns="));
    ground.client().login(FAR, password()).await.unwrap();
    assert!(server.seen().last().unwrap().target.starts_with("/root/v2/?ns="));
}

#[tokio::test]
async fn wrong_bytes_of_a_mirror_come_from_the_next() {
    let data = random(200_000);
    let digest = Digest::sha256(&data);
    let liar = Server::start(|seen, _| match seen.target.contains("manifests") {
        true => reply(200, &[("Content-Type", MANIFEST)], r#"{"layers":[1]}"#),
        false => reply(200, &[], random(200_000)),
    })
    .await;
    let honest = |served: Vec<u8>| {
        move |seen: &Seen, _: usize| manifest(seen).unwrap_or(reply(200, &[], served.clone()))
    };
    let honest = Server::start(honest(data.clone())).await;
    let text = format!("server = {:?}\n[host.{:?}]\n", url(&honest), url(&liar));
    let ground = Ground::new("_default", &text);
    let repository = ground.pull(&format!("{FAR}/some/repo")).await;
    let by_digest = Digest::sha256(r#"{"layers":[]}"#);
    repository.get_manifest(Target::Digest(&by_digest)).await.unwrap();
    assert_eq!((liar.seen().len(), honest.seen().len()), (1, 1));
    // The reader of a large blob finds out, and says who it was.
    let mut blob = repository.get_blob(&digest, Some(200_000), 0).await.unwrap().verified();
    let error = loop {
        if let Err(error) = blob.chunk().await {
            break error;
        }
    };
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error:?}");
    assert_eq!(blob.sources(), [format!("{}/v2", url(&liar))]);
    assert!(repository.distrust(blob.sources()) && !repository.distrust(blob.sources()));
    assert!(read(&repository, &digest).await.unwrap() == data);
    assert_eq!(liar.seen().len(), 2);
    // Small ones are looked at here.
    let repository = ground.pull(&format!("{FAR}/some/repo")).await;
    assert!(repository.fetch_blob(&digest, 200_000).await.unwrap() == data);
    assert!(repository.fetch_blob(&digest, 200_000).await.unwrap() == data);
    assert_eq!(liar.seen().len(), 3, "it is not asked again");
    // What the registry itself sends wrong is an error.
    ground.write("_default", &format!("server = {:?}\n", url(&liar)));
    let repository = ground.pull(&format!("{FAR}/some/repo")).await;
    let error = repository.fetch_blob(&digest, 200_000).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    assert!(!repository.distrust(&[format!("{}/v2", url(&liar))]));
}

#[tokio::test]
async fn a_host_that_does_not_answer_costs_its_dial_timeout() {
    let full = Server::start(|seen, _| manifest(seen).unwrap_or(reply(404, &[], ""))).await;
    // A full queue: connections are neither taken nor refused.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) =
        std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200))
    {
        waiting.push(stream);
        assert!(waiting.len() < 100);
    }
    let text = format!(
        "server = {:?}\n[host.\"http://{address}\"]\ndial_timeout = \"300ms\"\n",
        url(&full)
    );
    let ground = Ground::new("_default", &text);
    let begun = std::time::Instant::now();
    let repository = ground.pull(&format!("{FAR}/some/repo")).await;
    repository.get_manifest(Target::Tag("t")).await.unwrap();
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(3), "{took:?}");
    // Once for all that is asked for.
    let begun = std::time::Instant::now();
    repository.get_manifest(Target::Tag("u")).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(300));
}

#[tokio::test]
async fn proxies_of_a_host_and_plain_http_behind_tls_settings() {
    let proxy = Server::start(|seen, _| manifest(seen).unwrap_or(reply(404, &[], ""))).await;
    let text = format!(
        "server = \"http://far.example\"\nproxy = {:?}\n",
        format!("http://u:p@{}", proxy.address)
    );
    let ground = Ground::new("_default", &text);
    let repository = ground.pull(&format!("{FAR}/some/repo")).await;
    repository.get_manifest(Target::Tag("t")).await.unwrap();
    assert!(targets(&proxy)[0].starts_with("http://far.example/v2/some/repo/manifests/t?ns="));
    assert_eq!(proxy.seen()[0].header("proxy-authorization"), Some("Basic dTpw"));

    // HTTPS is tried first, then HTTP; what was found out is remembered.
    let plain = Server::start(|seen, _| manifest(seen).unwrap_or(reply(404, &[], ""))).await;
    let text = format!("[host.{:?}]\nskip_verify = true\n", url(&plain));
    let ground = Ground::new("_default", &text);
    let repository = ground.pull(&format!("{FAR}/some/repo")).await;
    repository.get_manifest(Target::Tag("t")).await.unwrap();
    repository.get_manifest(Target::Tag("u")).await.unwrap();
    assert_eq!(plain.seen().len(), 2);
    assert_eq!(
        plain.connections() - plain.seen().len(),
        1,
        "one greeting that it did not understand"
    );
}

#[tokio::test]
async fn mistakes_in_the_file_are_errors() {
    let ground = Ground::new(FAR, "capabilities = [\"fly\"]");
    let image: ImageRef = format!("{FAR}/some/repo").parse().unwrap();
    let error = ground.client().pull(&image, Credentials::Anonymous).await.err().unwrap();
    let path = ground.dir.path().join(FAR).join("hosts.toml");
    assert_eq!(error.to_string(), format!("invalid {}", path.display()));
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.starts_with("capabilities: use \"pull\""), "{cause}");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    // Mended without a new client.
    assert!(Path::new(&path).exists());
    let client = ground.client();
    assert!(client.pull(&image, Credentials::Anonymous).await.is_err());
    ground.write(FAR, "");
    assert!(client.pull(&image, Credentials::Anonymous).await.is_ok());
}

#[tokio::test]
async fn what_a_mirror_lacks_the_registry_is_asked_for() {
    let data = random(1000);
    let digest = Digest::sha256(&data);
    let empty = Server::start(|_, _| reply(404, &[], "")).await;
    let manifest_digest = Digest::sha256(r#"{"layers":[]}"#).to_string();
    let length = data.len().to_string();
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json",
        "manifests":[{{"mediaType":{MANIFEST:?},"digest":"{manifest_digest}","size":13}}]}}"#
    );
    let told = manifest_digest.clone();
    let registry = Server::start(move |seen, _| {
        let target = &seen.target;
        if target.contains("/absent") || target.contains(&Digest::sha256("absent").to_string()) {
            return reply(404, &[], "");
        }
        if target.contains("/manifests/") {
            let headers = [("Content-Type", MANIFEST), ("Docker-Content-Digest", &told)];
            return reply(200, &headers, r#"{"layers":[]}"#);
        }
        if target.contains("/referrers/") {
            return reply(200, &[], index.clone());
        }
        reply(200, &[], vec![0; length.parse().unwrap()])
    })
    .await;
    let ground = Ground::new(
        "_default",
        &format!("server = {:?}\n[host.{:?}]\n", url(&registry), url(&empty)),
    );
    let repository = ground.pull(&format!("{FAR}/some/repo")).await;
    let found = repository.head_manifest(Target::Tag("t")).await.unwrap();
    assert_eq!(found.unwrap().digest.to_string(), manifest_digest);
    assert_eq!(repository.blob_exists(&digest).await.unwrap(), Some(1000));
    let found = repository.referrers(&digest, None).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((empty.seen().len(), registry.seen().len()), (3, 3));
    // What nobody has is no error.
    assert!(repository.head_manifest(Target::Tag("absent")).await.unwrap().is_none());
    assert!(repository.blob_exists(&Digest::sha256("absent")).await.unwrap().is_none());
    assert_eq!((empty.seen().len(), registry.seen().len()), (5, 5));
}

#[tokio::test]
async fn unknown_keys_are_passed_over() {
    let server = Server::start(|seen, _| manifest(seen).unwrap_or(reply(404, &[], ""))).await;
    let text = format!("server = {:?}\ncapabilites = [\"pull\"]\n", url(&server));
    let ground = Ground::new("_default", &text);
    let repository = ground.pull(&format!("{FAR}/some/repo")).await;
    repository.get_manifest(Target::Tag("t")).await.unwrap();
    assert_eq!(server.seen().len(), 1);
}

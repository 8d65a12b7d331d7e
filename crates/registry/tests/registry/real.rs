//! Debian's docker-registry on loopback: plain, and with TLS and passwords.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use bytes::Bytes;
use registry::{
    BytesSource, Client, Config, Credentials, Error, FileSource, Pushed, Repository, Target,
    UploadOptions,
};
use types::{Digest, ErrorKind, ImageRef};

use crate::hostile::{quick, random};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub(crate) struct Registry {
    child: Child,
    pub(crate) port: u16,
    pub(crate) dir: tempfile::TempDir,
}

/// Whom a registry lets in.
pub(crate) enum Access<'a> {
    All,
    /// TLS, and the user `user` with the password `se:cret`.
    Password,
    /// TLS, and who has a certificate of the test's authority.
    Certificate,
    /// With a token of this realm, signed by the authority that lies in this directory.
    Token(&'a str, &'a Path),
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn run(program: &str, args: &[&str], dir: &Path) {
    let status = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let status = status.unwrap_or_else(|e| panic!("{program} is needed for this test: {e}"));
    assert!(status.success(), "{program} {args:?}");
}

impl Registry {
    pub(crate) fn start(access: &Access<'_>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let root = dir.path().display().to_string();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {root}/data}}, delete: {{enabled: true}}}}\n\
             http:\n  addr: 127.0.0.1:{port}\n  secret: x\n"
        );
        let tls = format!("certificate: {root}/server.crt, key: {root}/server.key");
        match access {
            Access::All => {}
            Access::Password => {
                certificates(dir.path());
                run("htpasswd", &["-Bbc", "passwords", "user", "se:cret"], dir.path());
                config.push_str(&format!(
                    "  tls: {{{tls}}}\nauth: {{htpasswd: {{realm: test, path: {root}/passwords}}}}\n"
                ));
            }
            Access::Certificate => {
                certificates(dir.path());
                config.push_str(&format!("  tls: {{{tls}, clientcas: [{root}/ca.crt]}}\n"));
            }
            Access::Token(realm, authority) => config.push_str(&format!(
                "auth: {{token: {{realm: {realm:?}, service: the registry, issuer: the issuer, \
                 rootcertbundle: {}/ca.crt}}}}\n",
                authority.display()
            )),
        }
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .env_clear()
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is needed for this test");
        let registry = Self { child, port, dir };
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    pub(crate) fn image(&self, name: &str) -> ImageRef {
        format!("localhost:{}/{name}", self.port).parse().unwrap()
    }
}

/// An authority and a certificate of it for `registry.test`.
pub(crate) fn certificates(dir: &Path) {
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test CA",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ],
        dir,
    );
    run(
        "openssl",
        &[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=registry.test",
            "-keyout",
            "server.key",
            "-out",
            "server.csr",
        ],
        dir,
    );
    std::fs::write(
        dir.join("ext"),
        "subjectAltName=DNS:registry.test\nbasicConstraints=CA:FALSE\n",
    )
    .unwrap();
    run(
        "openssl",
        &[
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "ext",
            "-out",
            "server.crt",
        ],
        dir,
    );
}

/// Pushes an image of one random layer; gives manifest and layer.
pub(crate) async fn push_image(
    repository: &Repository,
    tag: &str,
    size: usize,
) -> (Bytes, Vec<u8>) {
    let layer = random(size);
    let digest = Digest::sha256(&layer);
    let source = BytesSource(Bytes::from(layer.clone()));
    let options = UploadOptions::default();
    let pushed = repository.push_blob(&digest, size as u64, &source, &[], &options).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    let config = format!(r#"{{"os":"linux","architecture":"amd64","x":"{digest}"}}"#);
    let config_digest = Digest::sha256(&config);
    let source = BytesSource(Bytes::from(config.clone()));
    let size_of = config.len() as u64;
    repository.push_blob(&config_digest, size_of, &source, &[], &options).await.unwrap();
    let manifest = Bytes::from(format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config_digest}","size":{size_of}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{size}}}]}}"#
    ));
    let put = repository.put_manifest(Target::Tag(tag), MANIFEST, manifest.clone()).await.unwrap();
    assert_eq!(put, Digest::sha256(&manifest));
    (manifest, layer)
}

pub(crate) async fn read(repository: &Repository, digest: &Digest, offset: u64) -> Vec<u8> {
    let mut blob = repository.get_blob(digest, None, offset).await.unwrap().verified();
    let mut all = Vec::new();
    while let Some(chunk) = blob.chunk().await.unwrap() {
        all.extend_from_slice(&chunk);
    }
    all
}

#[tokio::test]
async fn plain_http_in_both_directions() {
    let registry = Registry::start(&Access::All);
    let client = Client::new(quick()).unwrap();
    let image = registry.image("team/app:v1");
    let push = client.push(&image, Credentials::Anonymous).await.unwrap();
    let (manifest, layer) = push_image(&push, "v1", 3_000_000).await;
    let digest = Digest::sha256(&layer);

    let pull = client.pull(&image, Credentials::Anonymous).await.unwrap();
    let top = pull.get_manifest(Target::of(&image)).await.unwrap();
    assert_eq!(top.bytes, manifest);
    let by_digest = Digest::sha256(&manifest);
    assert_eq!(pull.get_manifest(Target::Digest(&by_digest)).await.unwrap(), top);
    let head = pull.head_manifest(Target::Tag("v1")).await.unwrap().unwrap();
    assert_eq!(head, top.descriptor);
    assert!(read(&pull, &digest, 0).await == layer);
    assert!(read(&pull, &digest, 1_234_567).await == layer[1_234_567..]);
    assert_eq!(pull.blob_exists(&digest).await.unwrap(), Some(3_000_000));
    assert_eq!(pull.blob_exists(&Digest::sha256("nope")).await.unwrap(), None);
    let error = pull.get_blob(&Digest::sha256("nope"), None, 0).await.err().unwrap();
    assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
    let error = pull.get_manifest(Target::Tag("nope")).await.unwrap_err();
    let name = format!("localhost:{}/team/app", registry.port);
    let words = format!("manifest for {name}:nope not found: manifest unknown: manifest unknown");
    assert_eq!(error.to_string(), words);
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = client
        .pull(&registry.image("not/there"), Credentials::Anonymous)
        .await
        .unwrap()
        .list_tags()
        .await
        .unwrap_err();
    let words = "not/there not found: name unknown: repository name not known to registry";
    assert!(error.to_string().ends_with(words), "{error}");

    // An index, its tags, what refers to it.
    let index = Bytes::from(format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{MANIFEST}","digest":"{by_digest}","size":{},"platform":{{"os":"linux","architecture":"amd64"}},"artifactType":"x/y"}}]}}"#,
        manifest.len()
    ));
    push.put_manifest(Target::Tag("multi"), INDEX, index.clone()).await.unwrap();
    let multi = pull.get_manifest(Target::Tag("multi")).await.unwrap();
    assert_eq!(multi.bytes, index);
    let entries = multi.entries("team/app").unwrap();
    assert_eq!(entries.iter().map(|entry| &entry.digest).collect::<Vec<_>>(), [&by_digest]);
    let mut tags = pull.list_tags().await.unwrap();
    tags.sort();
    assert_eq!(tags, ["multi", "v1"]);
    assert_eq!(pull.referrers(&by_digest, None).await.unwrap(), []);
    let tag = format!("sha256-{}", by_digest.hex());
    push.put_manifest(Target::Tag(&tag), INDEX, index).await.unwrap();
    assert_eq!(pull.referrers(&by_digest, Some("x/y")).await.unwrap().len(), 1);
    assert_eq!(pull.referrers(&by_digest, Some("z")).await.unwrap().len(), 0);
}

/// Whichever of them finds out first that the registry speaks no TLS, none fails for it.
#[tokio::test(flavor = "multi_thread")]
async fn first_requests_beside_each_other() {
    let registry = Registry::start(&Access::All);
    let absent = Digest::sha256(random(9));
    for _ in 0..20 {
        let client = Client::new(quick()).unwrap();
        let image = registry.image("team/app:v1");
        let pull = std::sync::Arc::new(client.pull(&image, Credentials::Anonymous).await.unwrap());
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let (pull, absent) = (pull.clone(), absent.clone());
            asked.spawn(async move { pull.blob_exists(&absent).await });
        }
        while let Some(answer) = asked.join_next().await {
            assert_eq!(answer.unwrap().unwrap(), None);
        }
    }
}

#[tokio::test]
async fn uploads_of_all_kinds() {
    let registry = Registry::start(&Access::All);
    let client = Client::new(quick()).unwrap();
    let first = client.push(&registry.image("one"), Credentials::Anonymous).await.unwrap();
    let second = client.push(&registry.image("two/deep"), Credentials::Anonymous).await.unwrap();
    let data = random(2_500_000);
    let file = registry.dir.path().join("blob");
    std::fs::write(&file, &data).unwrap();
    let source = FileSource(file);
    let told = Mutex::new(Vec::new());
    let report = |bytes| told.lock().unwrap().push(bytes);
    for chunk_bytes in [Some(700_000), Some(2_500_000), None] {
        // Another blob each time: its beginning is cut off.
        let cut = chunk_bytes.map_or(1, |n| usize::try_from(n / 100_000).unwrap());
        let part = data[cut * 7..].to_vec();
        let digest = Digest::sha256(&part);
        let source = BytesSource(Bytes::from(part.clone()));
        let options = UploadOptions { chunk_bytes, progress: Some(&report) };
        let size = part.len() as u64;
        first.upload_blob(&digest, size, &source, &options).await.unwrap();
        assert!(read(&first, &digest, 0).await == part);
        assert_eq!(told.lock().unwrap().last(), Some(&size));
    }
    for small in [0, 1, 2, 5000] {
        let digest = Digest::sha256(&data[..small]);
        let source = BytesSource(Bytes::from(data[..small].to_vec()));
        for chunk_bytes in [None, Some(1)].into_iter().take(if small > 2 { 1 } else { 2 }) {
            let options = UploadOptions { chunk_bytes, progress: None };
            let to = if chunk_bytes.is_some() { &second } else { &first };
            to.upload_blob(&digest, small as u64, &source, &options).await.unwrap();
        }
        assert_eq!(first.blob_exists(&digest).await.unwrap(), Some(small as u64));
    }
    let digest = Digest::sha256(&data);
    let options = UploadOptions::default();
    let size = data.len() as u64;
    let push = |to: Repository, from: &'static [&'static str]| {
        let (digest, source, options) = (digest.clone(), source.clone(), options);
        async move { to.push_blob(&digest, size, &source, from, &options).await.unwrap() }
    };
    assert_eq!(push(first.clone(), &[]).await, Pushed::Uploaded);
    assert_eq!(push(first.clone(), &[]).await, Pushed::AlreadyThere);
    assert!(!second.mount_blob(&Digest::sha256("nope"), "one").await.unwrap());
    let mounted = Pushed::Mounted { from: "one".into() };
    assert_eq!(push(second.clone(), &["one"]).await, mounted);
    assert!(read(&second, &digest, 0).await == data);
    // What does not have the digest that it claims is refused by the registry.
    let wrong = Digest::sha256("wrong");
    let error = first.upload_blob(&wrong, size, &source, &options).await.unwrap_err();
    assert!(matches!(error, Error::Status { status: 400, .. }), "{error:?}");
}

#[tokio::test]
async fn tls_and_passwords() {
    let registry = Registry::start(&Access::Password);
    let dir = registry.dir.path();
    let hosts = dir.join("hosts");
    std::fs::write(&hosts, "127.0.0.1 registry.test\n").unwrap();
    let address = format!("registry.test:{}", registry.port);
    let base = || Config {
        resolver: registry::dns::Resolver::with_files(hosts.clone(), "/nonexistent".into()),
        ..quick()
    };
    let image: ImageRef = format!("{address}/secret/app:v1").parse().unwrap();
    let good = || Credentials::Password { username: "user".into(), password: "se:cret".into() };

    // An authority that nobody knows: one attempt, no plain HTTP.
    let by_dir = Config { certs_dirs: vec![dir.join("certs.d")], ..base() };
    let stranger = Client::new(by_dir.clone()).unwrap();
    let begun = Instant::now();
    let error = stranger
        .pull(&image, good())
        .await
        .unwrap()
        .get_manifest(Target::Tag("v1"))
        .await
        .unwrap_err();
    let Error::Transport { source, .. } = &error else { panic!("{error:?}") };
    let place = dir.join("certs.d").join(&address).join("ca.crt");
    let words = format!(
        "tls: failed to verify certificate: x509: certificate signed by unknown authority. Put the \
         authority's certificate into {}",
        place.display()
    );
    assert_eq!(source.to_string(), words);
    assert!(begun.elapsed() < Duration::from_secs(5));

    // Known by the registry's own directory, or to all.
    let certs = dir.join("certs.d").join(&address);
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::copy(dir.join("ca.crt"), certs.join("ca.crt")).unwrap();
    let push = stranger.push(&image, good()).await.unwrap();
    push_image(&push, "v1", 1000).await;
    let by_file = Config { extra_ca_files: vec![dir.join("ca.crt")], ..base() };
    let insecure = Config { insecure: vec![address.clone()], ..base() };
    for config in [by_dir, by_file, insecure] {
        let client = Client::new(config).unwrap();
        let push = client.push(&image, good()).await.unwrap();
        let (manifest, layer) = push_image(&push, "v1", 1_500_000).await;
        let pull = client.pull(&image, good()).await.unwrap();
        assert_eq!(pull.get_manifest(Target::of(&image)).await.unwrap().bytes, manifest);
        assert!(read(&pull, &Digest::sha256(&layer), 0).await == layer);
        let nobody = client.pull(&image, Credentials::Anonymous).await.unwrap();
        let error = nobody.get_manifest(Target::of(&image)).await.unwrap_err();
        let words = format!(
            "Head \"https://{address}/v2/secret/app/manifests/v1\": no basic auth credentials"
        );
        assert_eq!(error.to_string(), words);
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        let error = nobody.list_tags().await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("Get \"https://{address}/v2/secret/app/")));
        let nobody = client.push(&image, Credentials::Anonymous).await.unwrap();
        let error = nobody.blob_exists(&Digest::sha256(&layer)).await.unwrap_err();
        assert_eq!(error.to_string(), "no basic auth credentials");
        let login = client.login(&format!("https://{address}/v2/"), good()).await.unwrap();
        assert_eq!(login.identity_token, None);
        let wrong = Credentials::Password { username: "user".into(), password: "guess".into() };
        let error = client.login(&address, wrong.clone()).await.unwrap_err();
        let words =
            format!("login attempt to https://{address}/v2/ failed with status: 401 Unauthorized");
        assert_eq!(error.to_string(), words);
        let wrong = client.pull(&image, wrong).await.unwrap();
        let error = wrong.get_manifest(Target::of(&image)).await.unwrap_err();
        assert_eq!(error.to_string(), "unauthorized: authentication required");
    }
}

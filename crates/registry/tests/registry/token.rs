//! Debian's docker-registry behind a token realm, and behind client certificates.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use registry::{
    BytesSource, Client, Config, Credentials, Error, Pushed, Target, TransportError, UploadOptions,
};
use serde_json::{Value, json};
use types::{Digest, ErrorKind, ImageRef};

use crate::{
    hostile::{password, quick, random},
    real::{Access, Registry, certificates, push_image, read},
    server::{Reply, Seen, Server, reply},
};

/// A JSON Web Token (RFC 7519) of the authority in a directory.
fn token(authority: &Path, access: &Value) -> String {
    let pem = std::fs::read_to_string(authority.join("ca.crt")).unwrap();
    let certificate: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [certificate] });
    let claims = json!({
        "iss": "the issuer", "aud": "the registry", "sub": "somebody", "jti": "1",
        "iat": now - 10, "nbf": now - 10, "exp": now + 300, "access": access,
    });
    let encode = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let text = format!("{}.{}", encode(header), encode(claims));
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(authority.join("ca.key"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl is needed for this test");
    openssl.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let signed = openssl.wait_with_output().unwrap();
    assert!(signed.status.success());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signed.stdout))
}

fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                out.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
            }
            b'+' => out.push(b' '),
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).unwrap()
}

/// The realm: everybody may pull what is below `public/`, who proves to be the user may do all.
fn realm(authority: &Path, seen: &Seen, refresh: &str) -> Reply {
    let body = String::from_utf8(seen.body.clone()).unwrap();
    let query = seen.target.split_once('?').map_or("", |(_, query)| query);
    let form = if seen.method == "POST" { &body } else { query };
    let pairs: Vec<(String, String)> = form
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect();
    let get = |name: &'static str| {
        pairs.iter().filter(move |(key, _)| key == name).map(|(_, v)| v.as_str())
    };
    assert_eq!(get("service").next(), Some("the registry"));
    let basic = format!("Basic {}", STANDARD.encode("user:secret"));
    let is_user = match (seen.method.as_str(), seen.header("authorization")) {
        ("POST", None) => {
            assert_eq!(get("grant_type").next(), Some("refresh_token"));
            get("refresh_token").next() == Some(refresh)
        }
        ("GET", None) => false,
        ("GET", Some(value)) if value == basic => true,
        _ => return reply(401, &[], r#"{"details":"incorrect username or password"}"#),
    };
    if seen.method == "POST" && !is_user {
        return reply(401, &[], r#"{"details":"invalid refresh token"}"#);
    }
    let mut access = Vec::new();
    for scope in get("scope").flat_map(|scopes| scopes.split(' ')) {
        let parts: Vec<&str> = scope.split(':').collect();
        let [kind, name, actions] = parts[..] else { panic!("{scope}") };
        let may = |action: &&str| is_user || (name.starts_with("public/") && *action == "pull");
        let actions: Vec<&str> = actions.split(',').filter(may).collect();
        access.push(json!({ "type": kind, "name": name, "actions": actions }));
    }
    let mut answer = json!({ "token": token(authority, &json!(access)), "expires_in": 300 });
    if get("offline_token").next() == Some("true") {
        answer["refresh_token"] = json!(refresh);
    }
    reply(200, &[], answer.to_string())
}

#[tokio::test]
async fn tokens_for_everybody_and_for_users() {
    let authority = tempfile::tempdir().unwrap();
    certificates(authority.path());
    let refresh = STANDARD.encode(random(20));
    let (place, good) = (authority.path().to_owned(), refresh.clone());
    let realms = Server::start(move |seen, _| realm(&place, seen, &good)).await;
    let url = format!("http://{}/token", realms.address);
    let registry = Registry::start(&Access::Token(&url, authority.path()));
    let client = Client::new(quick()).unwrap();
    let (public, secret) = (registry.image("public/app:v1"), registry.image("secret/app:v1"));

    // By password, and by the identity token that a login gives.
    let login = client.login(public.domain(), password()).await.unwrap();
    assert_eq!(login.identity_token.as_ref(), Some(&refresh));
    let identity = || Credentials::IdentityToken { token: refresh.clone() };
    let push = client.push(&public, password()).await.unwrap();
    let (manifest, layer) = push_image(&push, "v1", 300_000).await;
    let other = client.push(&secret, identity()).await.unwrap();
    // From one repository to the other: a token for both.
    let (digest, size) = (Digest::sha256(&layer), layer.len() as u64);
    let source = BytesSource(Bytes::from(layer.clone()));
    let options = UploadOptions::default();
    let pushed = other.push_blob(&digest, size, &source, &["public/app"], &options).await.unwrap();
    assert_eq!(pushed, Pushed::Mounted { from: "public/app".into() });
    push_image(&other, "v1", 1000).await;
    for credentials in [password(), identity()] {
        let pull = client.pull(&secret, credentials).await.unwrap();
        pull.get_manifest(Target::Tag("v1")).await.unwrap();
    }

    // Everybody, as far as it goes.
    let pull = client.pull(&public, Credentials::Anonymous).await.unwrap();
    assert_eq!(pull.get_manifest(Target::Tag("v1")).await.unwrap().bytes, manifest);
    assert!(read(&pull, &digest, 0).await == layer);
    let pull = client.pull(&secret, Credentials::Anonymous).await.unwrap();
    let error = pull.get_manifest(Target::Tag("v1")).await.unwrap_err();
    let name = format!("localhost:{}/secret/app", registry.port);
    let words = format!(
        "pull access denied for {name}, repository does not exist or may require 'docker login': \
         denied: requested access to the resource is denied"
    );
    assert_eq!(error.to_string(), words);
    let push = client.push(&public, Credentials::Anonymous).await.unwrap();
    let error = push.upload_blob(&digest, size, &source, &options).await.unwrap_err();
    assert_eq!(error.to_string(), "denied: requested access to the resource is denied");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);

    // Wrong ones are refused in the realm's words.
    let wrong = Credentials::Password { username: "user".into(), password: "guess".into() };
    let stale = Credentials::IdentityToken { token: "stale".into() };
    for (credentials, words) in
        [(wrong, "incorrect username or password"), (stale, "invalid refresh token")]
    {
        let pull = client.pull(&public, credentials.clone()).await.unwrap();
        let error = pull.get_manifest(Target::Tag("v1")).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
        assert!(error.to_string().ends_with(&format!("unauthorized: {words}")), "{error}");
        let error = client.login(public.domain(), credentials).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    }
    let seen = realms.seen();
    assert!(seen.iter().filter(|seen| seen.method == "POST").all(|seen| !seen.body.is_empty()));
}

#[tokio::test]
async fn a_token_servers_wish_to_wait_is_heard() {
    let realms = Server::start(|_, count| match count {
        0 => reply(429, &[("Retry-After", "1")], ""),
        _ => reply(200, &[], r#"{"token":"t"}"#),
    })
    .await;
    let challenge = format!("Bearer realm=\"http://{}/\"", realms.address);
    let server = Server::start(move |seen, _| match seen.header("authorization") {
        None => reply(401, &[("WWW-Authenticate", &challenge)], ""),
        Some(_) => reply(200, &[("Content-Type", crate::hostile::MANIFEST)], r#"{"layers":[]}"#),
    })
    .await;
    let image: ImageRef = format!("{}/x", server.address).parse().unwrap();
    let client = Client::new(quick()).unwrap();
    let pull = client.pull(&image, Credentials::Anonymous).await.unwrap();
    let begun = std::time::Instant::now();
    pull.get_manifest(Target::Tag("t")).await.unwrap();
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1));
}

#[tokio::test]
async fn certificates_of_ours_by_either_way() {
    let registry = Registry::start(&Access::Certificate);
    let dir = registry.dir.path();
    let hosts = dir.join("hosts");
    std::fs::write(&hosts, "127.0.0.1 registry.test other.test\n").unwrap();
    let (certs, name) = (dir.join("certs.d"), format!("registry.test:{}", registry.port));
    let client = || {
        let resolver =
            registry::dns::Resolver::with_files(hosts.clone(), PathBuf::from("/nonexistent"));
        let config = Config { certs_dirs: vec![certs.clone()], resolver, ..quick() };
        Client::new(config).unwrap()
    };
    let image: ImageRef = format!("{name}/app:v1").parse().unwrap();
    let own = certs.join(&name);
    std::fs::create_dir_all(&own).unwrap();
    std::fs::copy(dir.join("ca.crt"), own.join("ca.crt")).unwrap();
    let attempt = async |client: Client| {
        let repository = client.push(&image, Credentials::Anonymous).await?;
        repository.blob_exists(&Digest::sha256("x")).await
    };
    let error = attempt(client()).await.unwrap_err();
    let Error::Transport { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(source, TransportError::ClientCertificate { .. }), "{source:?}");
    let place = own.join("client.cert").display().to_string();
    assert!(source.to_string().contains(&place), "{source}");

    // docker's files.
    std::fs::copy(dir.join("server.crt"), own.join("client.cert")).unwrap();
    std::fs::copy(dir.join("server.key"), own.join("client.key")).unwrap();
    assert_eq!(attempt(client()).await.unwrap(), None);
    let push = client().push(&image, Credentials::Anonymous).await.unwrap();
    push_image(&push, "v1", 1000).await;
    std::fs::remove_dir_all(&own).unwrap();

    // containerd's, for a registry of another name.
    let (ca, cert, key) = (dir.join("ca.crt"), dir.join("server.crt"), dir.join("server.key"));
    let write = |lines: &str| {
        std::fs::create_dir_all(certs.join("_default")).unwrap();
        let text = format!("[host.\"https://{name}\"]\n{lines}");
        std::fs::write(certs.join("_default/hosts.toml"), text).unwrap();
    };
    let pull = async || {
        let image: ImageRef = "elsewhere.test/app:v1".parse().unwrap();
        let repository = client().pull(&image, Credentials::Anonymous).await?;
        repository.get_manifest(Target::Tag("v1")).await
    };
    let client_line = format!("client = [[{cert:?}, {key:?}]]\n");
    write(&format!("ca = {ca:?}\n{client_line}"));
    pull().await.unwrap();
    write(&format!("skip_verify = true\n{client_line}"));
    pull().await.unwrap();
    for lines in [client_line, format!("ca = {ca:?}\n")] {
        write(&lines);
        // The registry itself, which is asked last, is not there.
        let error = pull().await.unwrap_err();
        assert!(error.to_string().contains("https://elsewhere.test/"), "{error}");
    }
    // Both in one file, and a certificate for another name.
    let both = [std::fs::read(&cert).unwrap(), std::fs::read(&key).unwrap()].concat();
    std::fs::write(certs.join("_default/both.pem"), both).unwrap();
    write(&format!("ca = {ca:?}\nclient = \"both.pem\"\n"));
    pull().await.unwrap();
    let other = format!("other.test:{}", registry.port);
    let text = format!("server = \"https://{other}\"\nca = {ca:?}\nclient = \"both.pem\"\n");
    std::fs::write(certs.join("_default/hosts.toml"), text).unwrap();
    let error = pull().await.unwrap_err();
    let Error::Transport { source, .. } = &error else { panic!("{error:?}") };
    let words = format!("x509: certificate is not valid for {other}");
    assert!(source.to_string().contains(&words), "{source}");
}

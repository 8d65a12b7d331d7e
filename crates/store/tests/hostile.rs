//! Pulls from registries that break off, lie, refuse and lead elsewhere: each resumes or says clearly why not,
//! and nothing partial is ever to be seen.
#![allow(clippy::unwrap_used)]

#[path = "hostile/bombs.rs"]
mod bombs;
mod suite;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bombs::{
    a_layer_of_zeros_is_one_like_any_other, a_layer_that_becomes_too_much_is_refused,
    a_window_that_is_too_large_is_refused,
};
use serde_json::json;
use store::Store;
use store_api::{Error, Namespaces as _, ProgressState, Pulled, RegistryAccess, Services};
use suite::{assert_kind, registry, transfer};
use testkit::{
    fixtures::{
        oci::{Image, Layer},
        tar::TarStream,
    },
    random,
};
use types::{Digest, ErrorKind, ImageRef};

/// A registry that has one image, and behaves as it is told where a layer is asked for.
struct Registry {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    ended: Arc<AtomicBool>,
}

#[derive(Clone, Debug)]
struct Seen {
    path: String,
    /// First byte of a range.
    range: Option<usize>,
    has_credentials: bool,
}

enum Answer {
    Whole,
    /// So many bytes of what was asked for, then a reset.
    Cut(usize),
    /// The same of a registry that begins every blob at its start.
    CutWithoutRange(usize),
    /// So many bytes, then nothing more.
    Hang(usize),
    /// Bytes of the right number.
    Wrong,
    /// These, of the right number.
    Bytes(Vec<u8>),
    /// A status with headers and a body.
    Refusal(u16, &'static str, &'static str),
    Redirect(String),
}

type Behaviour = dyn Fn(&Seen, usize) -> Answer + Send + Sync;

impl Registry {
    /// `behave` gets each request for a layer and the number of those before it.
    fn start(
        image: &Image,
        behave: impl Fn(&Seen, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let (log, end) = (Arc::clone(&seen), Arc::clone(&ended));
        let image = Arc::new(image.clone());
        let behave: Arc<Behaviour> = Arc::new(behave);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (image, behave, log) = (image.clone(), behave.clone(), log.clone());
                let stream = stream.unwrap();
                std::thread::spawn(move || serve(stream, &image, &behave, &log));
            }
        });
        Self { address, seen, ended }
    }

    fn reference(&self) -> ImageRef {
        format!("{}/some/repo:{}", self.address, random::token(4).to_lowercase()).parse().unwrap()
    }

    fn layers_seen(&self) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.path.contains("/blobs/")).cloned().collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
    }
}

fn request(stream: &TcpStream) -> Option<Seen> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut seen = Seen { path, range: None, has_credentials: false };
    for line in lines {
        let line = line.ok()?.to_lowercase();
        if line.is_empty() {
            return Some(seen);
        }
        seen.has_credentials |= line.starts_with("authorization:");
        if let Some(range) = line.strip_prefix("range: bytes=") {
            seen.range = Some(range.trim_end_matches('-').parse().unwrap());
        }
    }
    None
}

fn serve(
    mut stream: TcpStream,
    image: &Image,
    behave: &Arc<Behaviour>,
    log: &Arc<Mutex<Vec<Seen>>>,
) -> Option<()> {
    let seen = request(&stream)?;
    let number = {
        let mut log = log.lock().unwrap();
        log.push(seen.clone());
        log.iter().filter(|other| is_layer(other, image)).count().saturating_sub(1)
    };
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    if seen.path.contains("/manifests/") {
        return full(&mut stream, 200, &format!("Content-Type: {manifest}\r\n"), &image.manifest);
    }
    let blobs = image.layers.iter().map(|layer| &layer.blob).chain([&image.config]);
    let blob = blobs.into_iter().find(|blob| seen.path.contains(&Digest::sha256(blob).to_string()));
    let Some(blob) = blob else { return full(&mut stream, 404, "", b"") };
    if !is_layer(&seen, image) {
        return full(&mut stream, 200, "", blob);
    }
    let from = seen.range.unwrap_or(0);
    let answer = behave(&seen, number);
    let (status, headers) = match (&answer, seen.range) {
        (Answer::CutWithoutRange(_), _) | (_, None) => (200, String::new()),
        (_, Some(from)) => {
            (206, format!("Content-Range: bytes {from}-{}/{}\r\n", blob.len() - 1, blob.len()))
        }
    };
    let rest = if status == 206 { &blob[from..] } else { &blob[..] };
    match answer {
        Answer::Whole => full(&mut stream, status, &headers, rest),
        Answer::Bytes(bytes) => full(&mut stream, status, &headers, &bytes),
        Answer::Wrong => full(&mut stream, status, &headers, &random::bytes(rest.len())),
        Answer::Refusal(status, headers, body) => {
            full(&mut stream, status, headers, body.as_bytes())
        }
        Answer::Redirect(to) => full(&mut stream, 307, &format!("Location: {to}\r\n"), b""),
        Answer::Cut(bytes) | Answer::CutWithoutRange(bytes) => {
            head(&mut stream, status, &headers, rest.len())?;
            stream.write_all(&rest[..bytes.min(rest.len())]).ok()?;
            stream.shutdown(std::net::Shutdown::Write).ok()?;
            // Until the client goes, so that it has read all of this.
            stream.read_to_end(&mut Vec::new()).ok()?;
            Some(())
        }
        Answer::Hang(bytes) => {
            head(&mut stream, status, &headers, rest.len())?;
            stream.write_all(&rest[..bytes.min(rest.len())]).ok()?;
            // Until the client goes.
            stream.read_to_end(&mut Vec::new()).ok()?;
            Some(())
        }
    }
}

fn is_layer(seen: &Seen, image: &Image) -> bool {
    seen.path.contains("/blobs/") && !seen.path.contains(&image.config_digest())
}

fn head(stream: &mut TcpStream, status: u16, headers: &str, length: usize) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).ok()
}

fn full(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8]) -> Option<()> {
    head(stream, status, headers, body.len())?;
    stream.write_all(body).ok()
}

/// An image whose one layer has so many random bytes, and a small one.
fn image(bytes: usize) -> Image {
    let large = TarStream::new().dir("d/").file("d/large", 0o644, &random::bytes(bytes)).finish();
    let small = TarStream::new().file("small", 0o600, b"small").finish();
    Image::new(vec![Layer::plain(large), Layer::gzipped(small)], &json!({ "Cmd": ["/small"] }))
}

async fn open(ground: &Path) -> (Arc<Store>, Services) {
    let config = suite::config(&ground.join("root"), &ground.join("state"));
    let store = Store::open(config).await.unwrap();
    let services = store.open("here").unwrap();
    (store, services)
}

async fn pull(services: &Services, reference: &ImageRef) -> store_api::Result<Pulled> {
    registry::pull(services, reference, RegistryAccess::default(), true).await.0
}

/// Looks again and again until it is so, for a minute.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !done().await {
        assert!(std::time::Instant::now() < end, "waited a minute: {what}");
        tokio::task::yield_now().await;
    }
}

/// What is in the store is whole, and belongs together.
async fn all_whole(services: &Services) {
    for blob in services.content.list(&[]).await.unwrap() {
        let bytes = suite::get(services, &blob.digest).await;
        assert_eq!(bytes.len() as u64, blob.size);
        assert_eq!(Digest::sha256(&bytes), blob.digest);
    }
    for image in services.images.list(&[]).await.unwrap() {
        services.extras.unpack(&image.target, None).await.unwrap();
    }
}

/// Nothing of an image that could not be had is there but whole blobs and what a next pull goes on with.
async fn nothing_partial(services: &Services, reference: &ImageRef, missing: &Layer) {
    all_whole(services).await;
    assert_kind(services.images.get(&reference.to_string()).await, ErrorKind::NotFound);
    let digest = Digest::sha256(&missing.blob);
    assert_kind(services.content.info(&digest).await, ErrorKind::NotFound);
    let snapshots = services.snapshots.list(&[]).await.unwrap();
    assert!(snapshots.is_empty(), "{snapshots:?}");
}

async fn pulled_well(services: &Services, image: &Image, reference: &ImageRef) {
    let record = services.images.get(&reference.to_string()).await.unwrap();
    assert_eq!(record.target.digest.to_string(), image.manifest_digest());
    let unpacked = services.extras.resolve_image(&record.target, None).await.unwrap();
    let tree = transfer::shown(services, &unpacked).await;
    let names: Vec<&Path> = tree.keys().map(|path| path.as_path()).collect();
    assert_eq!(names, ["d", "d/large", "small"].map(Path::new));
    all_whole(services).await;
    assert!(services.content.ingests(&[]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_with_and_without_ranges() {
    for ranges in [true, false] {
        let ground = tempfile::tempdir().unwrap();
        let (_store, services) = open(ground.path()).await;
        let image = image(3_000_000);
        let piece = usize::try_from(random::number(200_000..700_000)).unwrap();
        let registry = Registry::start(&image, move |_, number| match (ranges, number) {
            (true, _) => Answer::Cut(piece),
            // It begins anew each time, and comes a little further.
            (false, n) => Answer::CutWithoutRange((n + 1) * piece),
        });
        let reference = registry.reference();
        pull(&services, &reference).await.unwrap();
        pulled_well(&services, &image, &reference).await;
        let large = Digest::sha256(&image.layers[0].blob).to_string();
        let asked: Vec<_> =
            registry.layers_seen().into_iter().filter(|seen| seen.path.contains(&large)).collect();
        assert!(asked.len() > 3, "{asked:?}");
        assert!(asked.windows(2).all(|w| w[0].range < w[1].range), "always further: {asked:?}");
    }
}

/// The daemon's end in the middle of a download: the next one goes on there.
#[tokio::test(flavor = "multi_thread")]
async fn resumed_after_a_restart() {
    let ground = tempfile::tempdir().unwrap();
    let image = image(6_000_000);
    let large = image.layers[0].clone();
    let registry = Registry::start(&image, |_, _| Answer::Hang(3_000_000));
    let reference = registry.reference();
    let (store, services) = open(ground.path()).await;
    let pulling = tokio::spawn({
        let (services, reference) = (services.clone(), reference.clone());
        async move { pull(&services, &reference).await }
    });
    let name = format!("layer-{}", Digest::sha256(&large.blob));
    until("two MiB are written", async || {
        let ingests = services.content.ingests(&[]).await.unwrap();
        ingests.iter().any(|ingest| ingest.reference == name && ingest.offset >= 2 << 20)
    })
    .await;
    pulling.abort();
    assert!(pulling.await.unwrap_err().is_cancelled());
    nothing_partial(&services, &reference, &large).await;
    drop(services);
    drop(store);
    drop(registry);

    let config = suite::config(&ground.path().join("root"), &ground.path().join("state"));
    let mut opened = None;
    until("the first store lets go of its files", async || {
        opened = Store::open(config.clone()).await.ok();
        opened.is_some()
    })
    .await;
    let services = opened.as_ref().unwrap().open("here").unwrap();
    let registry = Registry::start(&image, |_, _| Answer::Whole);
    let reference = registry.reference();
    pull(&services, &reference).await.unwrap();
    pulled_well(&services, &image, &reference).await;
    let digest = Digest::sha256(&large.blob).to_string();
    let seen = registry.layers_seen();
    let asked = seen.iter().find(|seen| seen.path.contains(&digest)).unwrap();
    assert!(asked.range.unwrap() >= 2 << 20, "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_nobodys() {
    let ground = tempfile::tempdir().unwrap();
    let (_store, services) = open(ground.path()).await;
    let image = image(1_500_000);
    let large = image.layers[0].clone();
    let digest = Digest::sha256(&large.blob);
    let hex = digest.to_string();
    let registry = Registry::start(&image, move |seen, _| match seen.path.contains(&hex) {
        true => Answer::Wrong,
        false => Answer::Whole,
    });
    let reference = registry.reference();
    let (pulled, reports) =
        registry::pull(&services, &reference, RegistryAccess::default(), true).await;
    let error = pulled.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DataLoss);
    assert!(error.message.contains(&digest.to_string()), "{error}");
    assert_eq!(reports.iter().filter(|r| r.state == ProgressState::Retrying).count(), 1);
    nothing_partial(&services, &reference, &large).await;
    assert!(services.content.ingests(&[]).await.unwrap().iter().all(|i| i.offset == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_that_lie_or_break_off_cost_time_alone() {
    let ground = tempfile::tempdir().unwrap();
    let (_store, services) = open(ground.path()).await;
    let image = image(2_500_000);
    let liar = Registry::start(&image, |_, _| Answer::Wrong);
    let fickle = Registry::start(&image, |_, _| Answer::Cut(900_000));
    let honest = Registry::start(&image, |_, _| Answer::Whole);
    let registry = format!("{}.invalid:5000", random::name("registry"));
    let dir = ground.path().join("certs.d").join(&registry);
    std::fs::create_dir_all(&dir).unwrap();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n",
        honest.address, liar.address, fickle.address
    );
    std::fs::write(dir.join("hosts.toml"), text).unwrap();
    let reference: ImageRef = format!("{registry}/some/repo:v1").parse().unwrap();
    let certs_dirs = vec![ground.path().join("certs.d")];
    let access = RegistryAccess { certs_dirs, ..RegistryAccess::default() };
    registry::pull(&services, &reference, access, true).await.0.unwrap();
    pulled_well(&services, &image, &reference).await;
    let of_large = |of: &Registry| {
        let digest = Digest::sha256(&image.layers[0].blob).to_string();
        of.layers_seen().into_iter().filter(|seen| seen.path.contains(&digest)).collect::<Vec<_>>()
    };
    assert_eq!(of_large(&liar).len(), 1, "who lied is not asked again");
    assert!(of_large(&honest).iter().all(|seen| seen.range.is_some()), "the rest alone");
    assert!(liar.layers_seen().iter().all(|seen| seen.path.contains("?ns=")));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_in_the_registrys_words() {
    let image = image(10_000);
    let large = image.layers[0].clone();
    let digest = Digest::sha256(&large.blob).to_string();
    for (status, headers, body, kind, words) in [
        (
            429,
            "Retry-After: 3600\r\n",
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your limit."}]}"#,
            ErrorKind::ResourceExhausted,
            "toomanyrequests: You have reached your limit.",
        ),
        (
            403,
            "",
            r#"{"errors":[{"code":"DENIED","message":"not for you"}]}"#,
            ErrorKind::NotFound,
            "denied: not for you",
        ),
        (404, "", "", ErrorKind::NotFound, "unknown blob sha256:"),
        (401, "", "", ErrorKind::Unauthenticated, "unauthorized: authentication required"),
        (501, "", "not here", ErrorKind::Unavailable, "HTTP status 501 from GET http://"),
    ] {
        let ground = tempfile::tempdir().unwrap();
        let (_store, services) = open(ground.path()).await;
        let hex = digest.clone();
        let registry = Registry::start(&image, move |seen, _| match seen.path.contains(&hex) {
            true => Answer::Refusal(status, headers, body),
            false => Answer::Whole,
        });
        let reference = registry.reference();
        let error: Error = pull(&services, &reference).await.unwrap_err();
        assert_eq!(error.kind, kind, "{status}: {error}");
        assert!(error.message.contains(words), "{status}: {error}");
        nothing_partial(&services, &reference, &large).await;
    }
    // Asked to come again soon, we do.
    let ground = tempfile::tempdir().unwrap();
    let (_store, services) = open(ground.path()).await;
    let registry = Registry::start(&image, |_, number| match number {
        0 | 1 => Answer::Refusal(429, "Retry-After: 1\r\n", ""),
        _ => Answer::Whole,
    });
    let begun = std::time::Instant::now();
    pull(&services, &registry.reference()).await.unwrap();
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirected_blobs_come_without_credentials() {
    let ground = tempfile::tempdir().unwrap();
    let (_store, services) = open(ground.path()).await;
    let image = image(1_200_000);
    let storage = Registry::start(&image, |_, _| Answer::Cut(500_000));
    let address = storage.address;
    let challenge = "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:9/\"\r\n";
    let registry = Registry::start(&image, move |seen, _| match seen.has_credentials {
        true => Answer::Redirect(format!("http://{address}{}", seen.path)),
        false => Answer::Refusal(401, challenge, ""),
    });
    let credentials = store_api::Credentials {
        registry_token: random::token(20),
        ..store_api::Credentials::default()
    };
    let access = RegistryAccess { credentials: Some(credentials), ..RegistryAccess::default() };
    let reference = registry.reference();
    registry::pull(&services, &reference, access, true).await.0.unwrap();
    pulled_well(&services, &image, &reference).await;
    assert!(storage.layers_seen().len() > 2);
    assert!(storage.layers_seen().iter().all(|seen| !seen.has_credentials));
}

/// Bytes of all files below a directory of the store.
fn bytes_below(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.filter_map(|entry| entry.ok()).map(of).sum()
}

/// Two compressed layers, of which the lower one has so many random bytes.
fn compressed(bytes: usize) -> Image {
    let large = TarStream::new().dir("d/").file("d/large", 0o644, &random::bytes(bytes)).finish();
    let small = TarStream::new().file("small", 0o600, &random::bytes(5000)).finish();
    Image::new(vec![Layer::gzipped(large), Layer::gzipped(small)], &json!({ "Cmd": ["/small"] }))
}

async fn a_layer_is_made_while_it_comes_and_nobody_sees_it_before_its_end() {
    let image = compressed(6 << 20);
    let large = Digest::sha256(&image.layers[0].blob).to_string();
    let (path, missing) = (large.clone(), 1500);
    let length = image.layers[0].blob.len();
    let registry = Registry::start(&image, move |seen, _| match seen.range {
        None if seen.path.contains(&path) => Answer::Hang(length - missing),
        _ => Answer::Whole,
    });
    let ground = tempfile::tempdir().unwrap();
    let (_store, services) = open(ground.path()).await;
    let snapshots = ground.path().join("root/snapshots");
    let (pulling, reference) = (services.clone(), registry.reference());
    let first = tokio::spawn(async move { pull(&pulling, &reference).await });
    until("the layer's files", async || bytes_below(&snapshots) > 4 << 20).await;
    assert!(!first.is_finished(), "the pull has ended");
    assert!(services.snapshots.list(&[]).await.unwrap().is_empty(), "a layer is visible");
    let blobs = services.content.list(&[]).await.unwrap();
    assert!(blobs.iter().all(|blob| blob.digest.to_string() != large), "a blob is visible");
    // Who gives up leaves nothing of it but the bytes to go on with.
    first.abort();
    until("an end of what was made", async || {
        std::fs::read_dir(&snapshots).unwrap().next().is_none()
    })
    .await;
    let (pulled, steps) =
        registry::pull(&services, &registry.reference(), RegistryAccess::default(), true).await;
    pulled.unwrap();
    assert!(registry.layers_seen().iter().any(|seen| seen.range.is_some()), "not resumed");
    for layer in &image.layers {
        let digest = Digest::sha256(&layer.blob);
        let of_it = steps.iter().filter(|step| step.digest.as_ref() == Some(&digest));
        let states: Vec<_> = of_it.map(|step| step.state).collect();
        assert_eq!(states.last(), Some(&ProgressState::Complete), "{states:?}");
        let at = |state| states.iter().position(|other| *other == state);
        // The first pull may have had the small one to its end.
        let here = at(ProgressState::Downloaded).or(match digest.to_string() == large {
            true => None,
            false => at(ProgressState::Exists),
        });
        let here = here.unwrap_or_else(|| panic!("never downloaded: {states:?}"));
        let extracting = at(ProgressState::Extracting);
        let extracting = extracting.unwrap_or_else(|| panic!("never extracted: {states:?}"));
        assert!(extracting > here, "{states:?}");
    }
    all_whole(&services).await;
}

/// A pull fails, while another of its layers hangs for longer, and leaves nothing.
async fn fails_at_once(registry: &Registry, kind: ErrorKind) {
    let ground = tempfile::tempdir().unwrap();
    let (_store, services) = open(ground.path()).await;
    let reference = registry.reference();
    let pulling = pull(&services, &reference);
    let pulled = tokio::time::timeout(std::time::Duration::from_secs(10), pulling).await;
    let error = pulled.expect("the failure waits for another layer").unwrap_err();
    assert_eq!(error.kind, kind, "{error}");
    let snapshots = ground.path().join("root/snapshots");
    assert!(std::fs::read_dir(&snapshots).unwrap().next().is_none(), "something was left");
}

async fn a_layer_that_fails_ends_the_others_at_once() {
    let image = compressed(2 << 20);
    let large = Digest::sha256(&image.layers[0].blob).to_string();
    let registry = Registry::start(&image, move |seen, _| match seen.path.contains(&large) {
        true => Answer::Hang(1 << 20),
        false => Answer::Refusal(404, "", "{}"),
    });
    fails_at_once(&registry, ErrorKind::NotFound).await;
}

async fn a_layer_with_another_content_ends_the_others_at_once() {
    let mut image = compressed(2 << 20);
    image.layers.reverse();
    let large = Digest::sha256(&image.layers[1].blob).to_string();
    // Its configuration names another content of the lower layer.
    let other = TarStream::new().file("other", 0o600, &random::bytes(100)).finish();
    image = Image::new(image.layers, &json!({}));
    image.layers[0].blob = Layer::gzipped(other).blob;
    image.renew_manifest();
    let registry = Registry::start(&image, move |seen, _| match seen.path.contains(&large) {
        true => Answer::Hang(1 << 20),
        false => Answer::Whole,
    });
    fails_at_once(&registry, ErrorKind::DataLoss).await;
}

/// The first mirror sends the content that the configuration names, in a blob that is not the manifest's;
/// the next one sends that blob, which has another content. Nothing of the first counts.
async fn the_content_of_another_blob_is_not_taken() {
    let right = TarStream::new().file("right", 0o600, &random::bytes(5000)).finish();
    let other = TarStream::new().file("other", 0o600, &random::bytes(9000)).finish();
    let mut image = Image::new(vec![Layer::gzipped(right)], &json!({}));
    let mut lie = image.layers[0].blob.clone();
    image.layers[0].blob = Layer::gzipped(other).blob;
    image.renew_manifest();
    // RFC 1952, section 2.3.1: FEXTRA, as much as is missing.
    let missing = u16::try_from(image.layers[0].blob.len() - lie.len() - 2).unwrap();
    lie[3] |= 4;
    let extra = [&missing.to_le_bytes()[..], &vec![0; missing.into()]].concat();
    lie.splice(10..10, extra);
    let liar = Registry::start(&image, move |_, _| Answer::Bytes(lie.clone()));
    let honest = Registry::start(&image, |_, _| Answer::Whole);
    let ground = tempfile::tempdir().unwrap();
    let (_store, services) = open(ground.path()).await;
    let registry = format!("{}.invalid:5000", random::name("registry"));
    let dir = ground.path().join("certs.d").join(&registry);
    std::fs::create_dir_all(&dir).unwrap();
    let text =
        format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", honest.address, liar.address);
    std::fs::write(dir.join("hosts.toml"), text).unwrap();
    let reference: ImageRef = format!("{registry}/some/repo:v1").parse().unwrap();
    let certs_dirs = vec![ground.path().join("certs.d")];
    let access = RegistryAccess { certs_dirs, ..RegistryAccess::default() };
    let pulled = registry::pull(&services, &reference, access, true).await.0;
    assert_kind(pulled, ErrorKind::DataLoss);
    assert_eq!((liar.layers_seen().len() > 1, honest.layers_seen().is_empty()), (true, false));
    assert_kind(services.images.get(&reference.to_string()).await, ErrorKind::NotFound);
    let blob = services.content.info(&Digest::sha256(&image.layers[0].blob)).await.unwrap();
    assert!(!blob.labels.contains_key("containerd.io/uncompressed"), "{:?}", blob.labels);
    assert!(services.snapshots.list(&[]).await.unwrap().is_empty());
}

async fn a_layer_of_two_pulls_at_once_is_made_once() {
    let image = compressed(3 << 20);
    let registry = Registry::start(&image, |_, _| Answer::Whole);
    let ground = tempfile::tempdir().unwrap();
    let (_store, services) = open(ground.path()).await;
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (services, reference) = (services.clone(), registry.reference());
        pulls.spawn(async move { pull(&services, &reference).await });
    }
    while let Some(done) = pulls.join_next().await {
        done.unwrap().unwrap();
    }
    // Each making takes the next number.
    let numbers = std::fs::read_dir(ground.path().join("root/snapshots")).unwrap();
    let names = numbers.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut numbers: Vec<u64> = names.map(|name| name.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2]);
    all_whole(&services).await;
}

/// Helpers wait for downloads, which need the runtime's blocking threads to come to their end: they are
/// none of these.
async fn many_layers_come_with_few_blocking_threads() {
    let layer = |_| {
        let bytes = random::bytes(2 << 20);
        Layer::gzipped(TarStream::new().file(&random::name("f"), 0o644, &bytes).finish())
    };
    let image = Image::new((0..16).map(layer).collect(), &json!({}));
    let pulls = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let registry = Registry::start(&image, |_, _| Answer::Whole);
            let ground = tempfile::tempdir().unwrap();
            let (_store, services) = open(ground.path()).await;
            let reference = registry.reference();
            let pulling = pull(&services, &reference);
            let pulled = tokio::time::timeout(std::time::Duration::from_secs(60), pulling).await;
            pulled.expect("the pull stands still").unwrap();
            all_whole(&services).await;
        });
    });
    pulls.join().unwrap();
}

/// A client of the store commits the layer that is being made: it is there, and the pull goes on.
async fn a_layer_that_somebody_else_commits_meanwhile_is_done() {
    let mut image = compressed(8 << 20);
    image.layers.truncate(1);
    let image = Image::new(image.layers, &json!({}));
    let registry = Registry::start(&image, |_, _| Answer::Whole);
    let ground = tempfile::tempdir().unwrap();
    let (_store, services) = open(ground.path()).await;
    let reference = registry.reference();
    let pulled = registry::pull(&services, &reference, RegistryAccess::default(), false).await;
    let target = pulled.0.unwrap().target;
    let chain_id = Digest::sha256(&image.layers[0].tar).to_string();
    let snapshots = ground.path().join("root/snapshots");
    let labels = store_api::Labels::new();
    services.snapshots.prepare("theirs", None, labels.clone()).await.unwrap();
    let unpacking = tokio::spawn({
        let (services, target) = (services.clone(), target.clone());
        async move { services.extras.unpack(&target, None).await }
    });
    until("the layer's files", async || bytes_below(&snapshots) > 1 << 20).await;
    assert!(!unpacking.is_finished(), "it was made too quickly");
    services.snapshots.commit(&chain_id, "theirs", labels).await.unwrap();
    unpacking.await.unwrap().unwrap();
    let all = services.snapshots.list(&[]).await.unwrap();
    let names: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, [chain_id.as_str()]);
    assert_eq!(std::fs::read_dir(&snapshots).unwrap().count(), 1, "what was made stays");
}

in_every_form! { @ directories index;
    a_layer_that_somebody_else_commits_meanwhile_is_done
    a_layer_is_made_while_it_comes_and_nobody_sees_it_before_its_end
    a_layer_that_fails_ends_the_others_at_once
    a_layer_with_another_content_ends_the_others_at_once
    the_content_of_another_blob_is_not_taken
    a_layer_of_two_pulls_at_once_is_made_once
    many_layers_come_with_few_blocking_threads
    a_layer_that_becomes_too_much_is_refused
    a_window_that_is_too_large_is_refused
    a_layer_of_zeros_is_one_like_any_other
}

//! Layers that become much more than they are, and layers that want much memory for it.

use store::{Config, InflationLimit};

use super::*;

const MIB: usize = 1 << 20;
/// What the tests' process may have in memory at most: blobs of some MiB, two runtimes' threads, buffers.
const MEMORY_BYTES: u64 = 256 << 20;

/// A file's header of so many bytes, and how many zeros come after it to the archive's end.
fn zeros(bytes: u64) -> (Vec<u8>, u64) {
    assert!(bytes.is_multiple_of(512));
    let header = testkit::fixtures::tar::Header::new("zeros", b'0', bytes).finish();
    (header.to_vec(), bytes + 1024)
}

/// gzip members of 16 MiB of zeros each, after the header.
fn gzipped_zeros(bytes: u64) -> Vec<u8> {
    let (header, zeros) = zeros(bytes);
    let member = testkit::fixtures::gzip(&vec![0; 16 * MIB]);
    let count = usize::try_from(zeros / (16 * MIB) as u64).unwrap();
    let rest = usize::try_from(zeros % (16 * MIB) as u64).unwrap();
    let first = testkit::fixtures::gzip(&header);
    [first, member.repeat(count), testkit::fixtures::gzip(&vec![0; rest])].concat()
}

fn zeros_in_zstd(window_log: u8, bytes: u64) -> Vec<u8> {
    let (header, zeros) = zeros(bytes);
    testkit::fixtures::zstd(window_log, &header, zeros)
}

/// An image of a layer with these bytes, whose content has that diffID, and a small one.
fn image_of(blob: Vec<u8>, kind: &str, diff_id: &Digest) -> Image {
    let stand_in = TarStream::new().file("stand-in", 0o600, &random::bytes(20)).finish();
    let mut large = Layer::plain(stand_in);
    large.media_type = format!("application/vnd.oci.image.layer.v1.tar+{kind}");
    large.blob = blob;
    let other = Digest::sha256(&large.tar).to_string();
    let small = TarStream::new().file("small", 0o600, b"small").finish();
    let mut image = Image::new(vec![large, Layer::gzipped(small)], &json!({}));
    let config = String::from_utf8(image.config).unwrap();
    image.config = config.replace(&other, &diff_id.to_string()).into_bytes();
    image.renew_manifest();
    image
}

fn random_digest() -> Digest {
    Digest::sha256(random::bytes(20))
}

fn memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Pulls what cannot be unpacked: the error names the layer and has these words, and nothing is left but
/// whole blobs.
async fn refused(image: &Image, inflation: InflationLimit, words: &str) {
    let registry = Registry::start(image, |_, _| Answer::Whole);
    let ground = tempfile::tempdir().unwrap();
    let (root, state) = (ground.path().join("root"), ground.path().join("state"));
    let config = Config { inflation, ..suite::config(&root, &state) };
    let store = Store::open(config).await.unwrap();
    let services = store.open("here").unwrap();
    let reference = registry.reference();
    let pulling = pull(&services, &reference);
    let pulled = tokio::time::timeout(std::time::Duration::from_secs(120), pulling).await;
    let error = pulled.expect("it is inflated on and on").unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
    let layer = Digest::sha256(&image.layers[0].blob).to_string();
    assert!(error.message.contains(&layer), "the layer is not named: {error}");
    assert!(error.message.contains(words), "{error}");
    assert_kind(services.images.get(&reference.to_string()).await, ErrorKind::NotFound);
    assert!(services.snapshots.list(&[]).await.unwrap().is_empty());
    assert!(std::fs::read_dir(root.join("snapshots")).unwrap().next().is_none(), "files stay");
    assert!(services.content.ingests(&[]).await.unwrap().is_empty());
    all_whole(&services).await;
    let memory = memory_bytes();
    assert!(memory < MEMORY_BYTES, "{memory} bytes of memory");
}

pub(super) async fn a_layer_that_becomes_too_much_is_refused() {
    let inflation = InflationLimit { anyway_bytes: 96 << 20, per_byte: 8 };
    let words = "inflate to more than 100663296: a layer may have 100663296 bytes, or 8 for each";
    let gzip = gzipped_zeros(1 << 30);
    assert!(gzip.len() < 11 * MIB, "it is no bomb: {} bytes", gzip.len());
    refused(&image_of(gzip, "gzip", &random_digest()), inflation, words).await;
    refused(&image_of(zeros_in_zstd(20, 16 << 30), "zstd", &random_digest()), inflation, words)
        .await;
}

pub(super) async fn a_window_that_is_too_large_is_refused() {
    let layer = zeros_in_zstd(31, 1 << 20);
    let words = "a zstd frame needs a window of 2147483648 bytes, at most 134217728 are possible";
    let image = image_of(layer, "zstd", &random_digest());
    refused(&image, InflationLimit::default(), words).await;
}

/// What is honest comes, however little of it there is.
pub(super) async fn a_layer_of_zeros_is_one_like_any_other() {
    let bytes = 1 << 30;
    let (header, mut left) = zeros(bytes);
    let mut digester = types::Digester::sha256();
    digester.update(&header);
    let piece = vec![0; MIB];
    while left > 0 {
        let n = usize::try_from(left).unwrap().min(MIB);
        digester.update(&piece[..n]);
        left -= n as u64;
    }
    let diff_id = digester.finish();
    // The second needs more memory than a helper has: its turn comes.
    for (kind, blob) in [("gzip", gzipped_zeros(bytes)), ("zstd", zeros_in_zstd(25, bytes))] {
        let image = image_of(blob, kind, &diff_id);
        let registry = Registry::start(&image, |_, _| Answer::Whole);
        let ground = tempfile::tempdir().unwrap();
        let (_store, services) = open(ground.path()).await;
        let reference = registry.reference();
        let target = pull(&services, &reference).await.unwrap().target;
        let unpacked = services.extras.resolve_image(&target, None).await.unwrap();
        let top = unpacked.chain_ids.last().unwrap().to_string();
        let mounts = services.snapshots.view("v", Some(&top), suite::labels(&[])).await.unwrap();
        let size = suite::snapshots::mounted(&mounts, |root| {
            Ok(std::fs::metadata(root.join("zeros"))?.len())
        });
        assert_eq!(size, bytes, "{kind}");
        let memory = memory_bytes();
        assert!(memory < MEMORY_BYTES, "{kind}: {memory} bytes of memory");
    }
}

//! Images of several platforms.

use serde_json::{Value, json};
use store_api::{
    Descriptor, ExportRequest, ImagePlatform, ImportRequest, Imported, Services, SquashBase,
    SquashRequest,
};
use testkit::{
    fixtures::{
        digest,
        oci::{CONFIG_TYPE, INDEX_TYPE, Image, MANIFEST_TYPE},
        tar::TarStream,
    },
    random,
};
use tokio::sync::mpsc;
use types::{ErrorKind, Platform};

use super::{
    assert_kind, get,
    transfer::{collect, image, shown, stream},
};

/// Two that no test runs on.
const FOREIGN: [&str; 2] = ["linux/s390x", "linux/ppc64le"];

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

fn host() -> String {
    Platform::host().to_string()
}

/// A random image that says that it is for a platform.
fn image_for(text: &str) -> Image {
    let mut image = image();
    let mut config: Value = serde_json::from_slice(&image.config).unwrap();
    config["os"] = json!(platform(text).os);
    config["architecture"] = json!(platform(text).architecture);
    image.config = config.to_string().into_bytes();
    image.renew_manifest();
    image
}

/// An archive of one index. Of an image that is not `whole` only the manifest is in it.
struct Index {
    images: Vec<(String, Image)>,
    partial: Vec<(String, Image)>,
}

impl Index {
    fn new(whole: &[&str], partial: &[&str]) -> Self {
        let made = |names: &[&str]| -> Vec<(String, Image)> {
            names.iter().map(|name| ((*name).to_string(), image_for(name))).collect()
        };
        Self { images: made(whole), partial: made(partial) }
    }

    fn archive(&self, name: &str) -> Vec<u8> {
        let blob = |bytes: &[u8]| format!("blobs/sha256/{}", &digest(bytes)[7..]);
        let mut tar = TarStream::new();
        let mut entries = Vec::new();
        for (text, image) in self.images.iter().chain(&self.partial) {
            let Platform { os, architecture, .. } = platform(text);
            entries.push(json!({
                "mediaType": MANIFEST_TYPE, "digest": image.manifest_digest(),
                "size": image.manifest.len(),
                "platform": { "os": os, "architecture": architecture },
                "annotations": { "of": text, "org.opencontainers.image.ref.name": "x" },
            }));
            tar = tar.file(&blob(&image.manifest), 0o644, &image.manifest);
        }
        for (_, image) in &self.images {
            for bytes in image.layers.iter().map(|layer| &layer.blob).chain([&image.config]) {
                tar = tar.file(&blob(bytes), 0o644, bytes);
            }
        }
        // What says something of an image is no image, nor is an artifact.
        let artifact = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": [],
            "config": { "mediaType": "application/x-other", "digest": digest(b"[]"), "size": 2 },
        })
        .to_string();
        let entry = |annotations: Value| {
            json!({
                "mediaType": MANIFEST_TYPE, "digest": digest(artifact.as_bytes()),
                "size": artifact.len(), "annotations": annotations,
            })
        };
        entries.push(entry(json!({ "vnd.docker.reference.type": "attestation-manifest" })));
        entries.push(entry(json!({})));
        tar = tar.file(&blob(artifact.as_bytes()), 0o644, artifact.as_bytes());
        tar = tar.file(&blob(b"[]"), 0o644, b"[]");
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries,
            "annotations": { "made": "here" },
        })
        .to_string();
        let top = json!({
            "schemaVersion": 2, "mediaType": INDEX_TYPE,
            "manifests": [{
                "mediaType": INDEX_TYPE, "digest": digest(index.as_bytes()), "size": index.len(),
                "annotations": { "io.containerd.image.name": name },
            }],
        });
        tar.file(&blob(index.as_bytes()), 0o644, index.as_bytes())
            .file("index.json", 0o644, top.to_string().as_bytes())
            .file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)
            .finish()
    }
}

/// An archive of images for another machine and for this one, whose configuration names another content
/// of its lowest layer, if it is `wrong`.
pub fn two(name: &str, wrong: bool) -> Vec<u8> {
    let mut index = Index::new(&[FOREIGN[0], &host()], &[]);
    if wrong {
        let image = &mut index.images[1].1;
        let mut config: Value = serde_json::from_slice(&image.config).unwrap();
        config["rootfs"]["diff_ids"][0] = json!(digest(&random::bytes(10)));
        image.config = config.to_string().into_bytes();
        image.renew_manifest();
    }
    index.archive(name)
}

/// An archive of an index of two others, which name no platform: the first has a foreign image, the
/// second this machine's, whose platform only its configuration says; and that manifest's digest.
pub fn nested(name: &str) -> (Vec<u8>, String) {
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", &digest(bytes)[7..]);
    let mut tar = TarStream::new();
    let mut wanted = String::new();
    let index = |entries: Vec<Value>| {
        json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries }).to_string()
    };
    let entry = |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() });
    let mut inner = Vec::new();
    for text in [FOREIGN[0].to_string(), host()] {
        let image = image_for(&text);
        for bytes in image.layers.iter().map(|layer| &layer.blob).chain([&image.config]) {
            tar = tar.file(&blob(bytes), 0o644, bytes);
        }
        tar = tar.file(&blob(&image.manifest), 0o644, &image.manifest);
        wanted = image.manifest_digest();
        let of_it = index(vec![entry(MANIFEST_TYPE, &image.manifest)]);
        tar = tar.file(&blob(of_it.as_bytes()), 0o644, of_it.as_bytes());
        inner.push(entry(INDEX_TYPE, of_it.as_bytes()));
    }
    let outer = index(inner);
    let mut named = entry(INDEX_TYPE, outer.as_bytes());
    named["annotations"] = json!({ "io.containerd.image.name": name });
    let tar = tar
        .file(&blob(outer.as_bytes()), 0o644, outer.as_bytes())
        .file("index.json", 0o644, index(vec![named]).as_bytes())
        .file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    (tar.finish(), wanted)
}

async fn import_for(
    services: &Services,
    archive: Vec<u8>,
    platforms: &[&str],
) -> store_api::Result<Vec<Imported>> {
    let (progress, mut reports) = mpsc::channel(16);
    let drain = tokio::spawn(async move { while reports.recv().await.is_some() {} });
    let platforms = platforms.iter().map(|text| platform(text)).collect();
    let request = ImportRequest { platforms, unpack: true, ..ImportRequest::default() };
    let imported = services.transfer.import(request, stream(archive), progress).await;
    drain.await.unwrap();
    imported
}

fn name() -> String {
    format!("docker.io/library/{}:v1", random::name("img"))
}

/// What the store says of each platform: its name, and whether all is here.
async fn platforms(services: &Services, target: &Descriptor) -> Vec<(String, bool)> {
    let found = services.extras.platforms(target).await.unwrap();
    found.into_iter().map(|image| (image.platform.to_string(), image.whole)).collect()
}

/// The topmost layer of an image, if it is extracted.
async fn is_unpacked(services: &Services, of: &ImagePlatform) -> bool {
    let image = services.extras.resolve_image(&of.manifest, None).await.unwrap();
    let top = image.chain_ids.last().unwrap().to_string();
    services.snapshots.stat(&top).await.is_ok()
}

#[track_caller]
fn assert_says<T: std::fmt::Debug>(outcome: store_api::Result<T>, kind: ErrorKind, words: &[&str]) {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind, kind, "{error}");
    for words in words {
        assert!(error.message.contains(words), "{words:?} is not in: {error}");
    }
}

/// An archive without anything for this machine is loaded as it is, and says what it is for.
pub async fn foreign(services: &Services) {
    let made = Index::new(&FOREIGN, &[]);
    let name = name();
    let found = import_for(services, made.archive(&name), &[]).await.unwrap();
    assert_eq!((found.len(), &found[0].name), (1, &name));
    let target = services.images.get(&name).await.unwrap().target;
    let wanted = FOREIGN.map(|text| (text.to_string(), true));
    assert_eq!(platforms(services, &target).await, wanted);
    assert_kind(services.extras.unpack(&target, None).await, ErrorKind::NotFound);
    // docker's description in an archive of it is that of the first.
    let request = ExportRequest {
        names: vec![name.clone()],
        docker_compatible: true,
        ..ExportRequest::default()
    };
    let saved = collect(services.transfer.export(request).await.unwrap()).await.unwrap();
    let config = format!("[{{\"Config\":\"blobs/sha256/{}", &made.images[0].1.config_digest()[7..]);
    assert!(saved.windows(config.len()).any(|part| part == config.as_bytes()));
    // Nothing of it is lost, and it can be unpacked where somebody asks for it.
    services.extras.collect_garbage().await.unwrap();
    let other = platform(FOREIGN[1]);
    let unpacked = services.extras.unpack(&target, Some(&other)).await.unwrap();
    assert!(shown(services, &unpacked).await.contains_key(std::path::Path::new("old/b")));

    // This machine's manifest came without its content: it is not asked for.
    let partial = Index::new(&FOREIGN[..1], &[&host()]);
    let found = import_for(services, partial.archive(&self::name()), &[]).await.unwrap();
    let both = [(FOREIGN[0].to_string(), true), (host(), false)];
    assert_eq!(platforms(services, &found[0].target).await, both);
    let empty = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [] }).to_string();
    let empty = TarStream::new().file("index.json", 0o644, empty.as_bytes()).finish();
    assert_says(import_for(services, empty, &[]).await, ErrorKind::NotFound, &["names none"]);
}

/// Of an archive's platforms those are loaded and unpacked that were asked for; what it lacks is said.
pub async fn chosen(services: &Services) {
    let made = Index::new(&[&host(), FOREIGN[0], FOREIGN[1]], &[]);
    let name = name();
    let lacking = ["linux/riscv64", &host()];
    let words = ["no image for linux/riscv64", FOREIGN[0], FOREIGN[1], &host()];
    let outcome = import_for(services, made.archive(&name), &lacking).await;
    assert_says(outcome, ErrorKind::NotFound, &words);
    assert_kind(services.images.get(&name).await, ErrorKind::NotFound);

    let wanted = [&host(), FOREIGN[1]];
    let found = import_for(services, made.archive(&name), &wanted).await.unwrap();
    let target = &found[0].target;
    for image in services.extras.platforms(target).await.unwrap() {
        let is_wanted = wanted.contains(&image.platform.to_string().as_str());
        assert!(image.whole);
        assert_eq!(is_unpacked(services, &image).await, is_wanted, "{}", image.platform);
    }
    // Nothing leads to the content of others: a later collection takes it.
    let held = services.content.info(&target.digest).await.unwrap().labels;
    let holds = |image: &Image| held.values().any(|digest| *digest == image.manifest_digest());
    let held: Vec<bool> = made.images.iter().map(|(_, image)| holds(image)).collect();
    assert_eq!(held, [true, false, true]);
    let all: Vec<_> = made.images.iter().map(|(text, _)| (text.clone(), true)).collect();
    assert_eq!(platforms(services, target).await, all);

    // docker's archives say it too.
    let docker = image_for(FOREIGN[0]).docker_archive("x:1");
    let words = ["no image for linux/riscv64", FOREIGN[0]];
    let outcome = import_for(services, docker.clone(), &["linux/riscv64"]).await;
    assert_says(outcome, ErrorKind::NotFound, &words);
    assert_eq!(import_for(services, docker, &FOREIGN[..1]).await.unwrap().len(), 1);
}

fn squash(target: &Descriptor, base: SquashBase, of: Option<&str>) -> SquashRequest {
    let platform = of.map(platform);
    SquashRequest { target: target.digest.clone(), base, platform, comment: String::new() }
}

/// Every image of an index that is here is squashed, or the one that is wanted.
pub async fn squashed(services: &Services) {
    let made = Index::new(&[&host(), FOREIGN[0]], &[FOREIGN[1]]);
    let found = import_for(services, made.archive(&name()), &[]).await.unwrap();
    let target = &found[0].target;
    let all = squash(target, SquashBase::Layers(1), None);
    let squashed = services.extras.squash(all.clone()).await.unwrap();
    assert_eq!(services.extras.squash(all).await.unwrap(), squashed, "not reproducible");
    let index: Value = serde_json::from_slice(&get(services, &squashed.digest).await).unwrap();
    assert_eq!(
        (&index["mediaType"], &index["annotations"]["made"]),
        (&json!(INDEX_TYPE), &json!("here"))
    );
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 2, "{index}");
    services.extras.collect_garbage().await.unwrap();
    for (entry, (text, image)) in entries.iter().zip(&made.images) {
        assert_eq!(entry["annotations"], json!({ "of": text }));
        let of = platform(text);
        let after = services.extras.unpack(&squashed, Some(&of)).await.unwrap();
        let before = services.extras.unpack(target, Some(&of)).await.unwrap();
        assert_eq!(before.manifest.digest.to_string(), image.manifest_digest());
        assert_eq!(entry["digest"], after.manifest.digest.to_string());
        assert_eq!((after.layers.len(), &after.layers[0]), (2, &before.layers[0]));
        assert_eq!(shown(services, &after).await, shown(services, &before).await, "{text}");
        let config: Value =
            serde_json::from_slice(&get(services, &after.config.digest).await).unwrap();
        assert_eq!(config["architecture"], of.architecture);
        assert_eq!(config["history"].as_array().unwrap().len(), 4);
        assert_eq!(after.config.media_type, CONFIG_TYPE);
        // One alone is the same image as that within the index.
        let one = squash(target, SquashBase::Layers(1), Some(text));
        let one = services.extras.squash(one).await.unwrap();
        assert_eq!((one.digest, one.media_type.as_str()), (after.manifest.digest, MANIFEST_TYPE));
    }
    let refused = |base, of| services.extras.squash(squash(target, base, of));
    let none = SquashBase::Layers(0);
    let partial = refused(none.clone(), Some(FOREIGN[1])).await;
    assert_says(partial, ErrorKind::NotFound, &[FOREIGN[1], "not all here", "pull it", &host()]);
    let other = refused(none, Some("linux/riscv64")).await;
    assert_says(other, ErrorKind::NotFound, &["not made for linux/riscv64", FOREIGN[0]]);
    let too_many = refused(SquashBase::Layers(3), None).await;
    assert_says(too_many, ErrorKind::InvalidArgument, &["none above the 3", &host()]);
}

/// The base is an image: each platform keeps the layers that it has for this one.
pub async fn squashed_onto(services: &Services) {
    let whole = Index::new(&[&host(), FOREIGN[0]], &[]);
    let mut base = Index { images: whole.images.clone(), partial: Vec::new() };
    for (i, (text, image)) in base.images.iter_mut().enumerate() {
        let mut below = Image::new(image.layers[..=i].to_vec(), &json!({}));
        let mut config: Value = serde_json::from_slice(&below.config).unwrap();
        config["architecture"] = json!(platform(text).architecture);
        below.config = config.to_string().into_bytes();
        below.renew_manifest();
        *image = below;
    }
    let target = import_for(services, whole.archive(&name()), &[]).await.unwrap().remove(0).target;
    let below = import_for(services, base.archive(&name()), &[]).await.unwrap().remove(0).target;
    let onto = |base: &Descriptor| SquashBase::Image(base.digest.clone());
    let squashed = services.extras.squash(squash(&target, onto(&below), None)).await.unwrap();
    for (i, (text, _)) in whole.images.iter().enumerate() {
        let of = platform(text);
        let after = services.extras.unpack(&squashed, Some(&of)).await.unwrap();
        let before = services.extras.unpack(&target, Some(&of)).await.unwrap();
        assert_eq!(after.layers.len(), i + 2, "{text}");
        assert_eq!(after.layers[..=i], before.layers[..=i], "{text}");
        assert_eq!(shown(services, &after).await, shown(services, &before).await, "{text}");
    }
    // What is no base of it, or not for all of its platforms.
    let other = import_for(services, Index::new(&[&host(), FOREIGN[0]], &[]).archive(&name()), &[]);
    let other = other.await.unwrap().remove(0).target;
    let outcome = services.extras.squash(squash(&target, onto(&other), None)).await;
    assert_says(outcome, ErrorKind::InvalidArgument, &["lowest layers are not those of"]);
    let one = Index { images: base.images[..1].to_vec(), partial: Vec::new() };
    let one = import_for(services, one.archive(&name()), &[]).await.unwrap().remove(0).target;
    let outcome = services.extras.squash(squash(&target, onto(&one), None)).await;
    assert_says(outcome, ErrorKind::NotFound, &["not made for", FOREIGN[0]]);
    let alone = squash(&target, onto(&one), Some(&host()));
    services.extras.squash(alone).await.unwrap();
}

/// An archive holds what was asked for: one platform's manifest, or the index with some of its images.
pub async fn exported(services: &Services) {
    let made = Index::new(&[&host(), FOREIGN[0], FOREIGN[1]], &[]);
    let name = name();
    import_for(services, made.archive(&name), &[]).await.unwrap();
    let export = async |platforms: &[&str]| {
        let request = ExportRequest {
            names: vec![name.clone()],
            platforms: platforms.iter().map(|text| platform(text)).collect(),
            docker_compatible: true,
            ..ExportRequest::default()
        };
        Ok::<_, store_api::Error>(collect(services.transfer.export(request).await?).await.unwrap())
    };
    let has = |archive: &[u8], file: &str| {
        archive.windows(file.len()).any(|window| window == file.as_bytes())
    };
    let holds = |archive: &[u8]| -> Vec<bool> {
        let layer = |image: &Image| format!("blobs/sha256/{}", &digest(&image.layers[0].blob)[7..]);
        made.images.iter().map(|(_, image)| has(archive, &layer(image))).collect()
    };
    assert_eq!(holds(&export(&[]).await.unwrap()), [true, true, true]);
    let one = export(&FOREIGN[..1]).await.unwrap();
    assert_eq!((holds(&one), has(&one, "\"made\"")), (vec![false, true, false], false));
    let two = export(&[FOREIGN[1], &host()]).await.unwrap();
    assert_eq!((holds(&two), has(&two, "\"made\"")), (vec![true, false, true], true));
    let back = import_for(services, two, &[]).await.unwrap();
    assert_eq!((back.len(), &back[0].name), (1, &name));
    let lacking = export(&["linux/riscv64", &host()]).await;
    assert_says(lacking, ErrorKind::NotFound, &["not made for linux/riscv64", FOREIGN[0]]);
}

/// What only could stand in for one of several wanted platforms is left where that one is here itself.
pub async fn no_stand_ins(services: &Services) {
    let (wanted, stand_in) = (["linux/amd64", FOREIGN[0]], "linux/386");
    let made = Index::new(&[stand_in, wanted[0], wanted[1]], &[]);
    let found = import_for(services, made.archive(&name()), &wanted).await.unwrap();
    let held = services.content.info(&found[0].target.digest).await.unwrap().labels;
    let holds = |image: &Image| held.values().any(|digest| *digest == image.manifest_digest());
    let held: Vec<bool> = made.images.iter().map(|(_, image)| holds(image)).collect();
    assert_eq!(held, [false, true, true], "imported");
    let export = async |name: &str, made: &Index| -> Vec<bool> {
        let request = ExportRequest {
            names: vec![name.to_owned()],
            platforms: wanted.map(platform).to_vec(),
            ..ExportRequest::default()
        };
        let archive = services.transfer.export(request).await.unwrap();
        let archive = collect(archive).await.unwrap();
        let has = |image: &Image| {
            let file = format!("blobs/sha256/{}", &digest(&image.layers[0].blob)[7..]);
            archive.windows(file.len()).any(|window| window == file.as_bytes())
        };
        made.images.iter().map(|(_, image)| has(image)).collect()
    };
    let all = name();
    import_for(services, made.archive(&all), &[]).await.unwrap();
    assert_eq!(export(&all, &made).await, [false, true, true], "exported");
    // Where it is not, they do.
    let (name, made) = (name(), Index::new(&[stand_in, wanted[1]], &[]));
    let found = import_for(services, made.archive(&name), &wanted).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(export(&name, &made).await, [true, true]);
}

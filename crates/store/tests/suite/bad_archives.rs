//! Archives that are not what they say, and what is told of them.

use serde_json::{Value, json};
use store_api::{Image as Record, Services};
use testkit::{
    fixtures::{
        digest,
        oci::{INDEX_TYPE, Image, Layer},
        tar::TarStream,
    },
    random,
};
use types::ErrorKind;

use super::{
    assert_kind,
    transfer::{image, import},
};

/// The files of an image's layout with one of them changed.
fn changed(image: &Image, name: &str, path: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let mut stream = TarStream::new();
    let mut found = false;
    for (file, mut content) in image.oci_files(name) {
        if file == path {
            content = change(content);
            found = true;
        }
        stream = stream.file(&file, 0o644, &content);
    }
    assert!(found, "{path}");
    stream.finish()
}

fn without(image: &Image, name: &str, path: &str) -> Vec<u8> {
    let files = image.oci_files(name).into_iter().filter(|(file, _)| file != path);
    files.fold(TarStream::new(), |tar, (file, content)| tar.file(&file, 0o644, &content)).finish()
}

fn path_of(digest: &str) -> String {
    format!("blobs/sha256/{}", &digest["sha256:".len()..])
}

async fn refused(services: &Services, archive: Vec<u8>, words: &[&str]) {
    let error = import(services, archive).await.unwrap_err();
    for word in words {
        assert!(error.message.contains(word), "{word:?} is not in: {error}");
    }
    assert!(!error.message.contains("gantry-"), "a name of the store's own: {error}");
    assert!(services.images.list(&[]).await.unwrap().is_empty(), "something got a name");
}

/// An `oci-layout` of another major version, or none that can be read, is no OCI layout that we know.
pub async fn other_layouts(services: &Services) {
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let with = |text: &str| changed(&image(), &name, "oci-layout", |_| text.as_bytes().to_vec());
    let version = |version: &str| with(&json!({ "imageLayoutVersion": version }).to_string());
    for other in ["2.0.0", "10.0.0", "1", "0.9.0", ""] {
        refused(services, version(other), &["oci-layout", &format!("{other:?}"), "1.x"]).await;
    }
    refused(services, with("{}"), &["oci-layout of the archive", "imageLayoutVersion"]).await;
    refused(services, with(&" ".repeat(4097)), &["oci-layout", "4097", "4096"]).await;
    let minor = format!("1.{}.0", random::number(0..100));
    assert_eq!(import(services, version(&minor)).await.unwrap()[0].name, name);
}

/// What the archive lacks, or has with another size or digest than is said, is named.
pub async fn other_content(services: &Services) {
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    for what in ["manifest", "configuration", "layer"] {
        // Each time another: what came of an archive before counts as well.
        let image = image();
        let lost = match what {
            "manifest" => image.manifest_digest(),
            "configuration" => image.config_digest(),
            _ => digest(&image.layers[1].blob),
        };
        let archive = without(&image, &name, &path_of(&lost));
        refused(services, archive, &["not complete", what, &lost]).await;
    }
    let image = image();
    let (config, manifest) = (image.config_digest(), image.manifest_digest());
    let layers: Vec<String> = image.layers.iter().map(|layer| digest(&layer.blob)).collect();
    for damaged in [&manifest, &config, &layers[2]] {
        let path = path_of(damaged);
        let archive = changed(&image, &name, &path, |content| random::bytes(content.len()));
        refused(services, archive, &[&path, "digest"]).await;
    }
    let more = 1 + u64::from(random::number(0..99));
    let raise = |document: &[u8], at: &str| {
        let mut value: Value = serde_json::from_slice(document).unwrap();
        let size = value.pointer_mut(at).unwrap();
        let said = size.as_u64().unwrap() + more;
        *size = said.into();
        (value.to_string().into_bytes(), said.to_string())
    };
    let said = (image.manifest.len() as u64 + more).to_string();
    let index =
        changed(&image, &name, "index.json", |content| raise(&content, "/manifests/0/size").0);
    refused(services, index, &[&manifest, &said, &image.manifest.len().to_string()]).await;
    for (at, of) in [("/config/size", &config), ("/layers/0/size", &layers[0])] {
        let mut wrong = image.clone();
        let (document, said) = raise(&wrong.manifest, at);
        wrong.manifest = document;
        refused(services, wrong.oci_archive(&name), &[of, &said]).await;
    }
    let large = changed(&image, &name, "index.json", |mut content| {
        content.resize(types::limits::MANIFEST_BYTES + 1, b' ');
        content
    });
    let limit = types::limits::MANIFEST_BYTES;
    let words = [(limit + 1).to_string(), limit.to_string()];
    refused(services, large, &["index.json", &words[0], &words[1]]).await;
}

/// An image whose configuration knows another number of layers than its manifest has, for this machine or
/// another.
pub async fn other_layers(services: &Services) {
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let mut wrong = image();
    let layers = wrong.layers.len();
    let extra = TarStream::new().file("extra", 0o644, &random::bytes(9)).finish();
    wrong.layers.push(Layer::plain(extra));
    wrong.renew_manifest();
    let words = [format!("expected {}, got {layers}", layers + 1), "layers length mismatch".into()];
    refused(services, wrong.docker_archive(&name), &[&words[0], &words[1]]).await;
    let words = format!("its configuration names {layers} layers, its manifest {}", layers + 1);
    let words = [wrong.manifest_digest(), words];
    refused(services, wrong.oci_archive(&name), &[&words[0], &words[1]]).await;

    // Beside a right one, in an index, and for a machine that is not this one.
    let right = image();
    let mut config: Value = serde_json::from_slice(&wrong.config).unwrap();
    config["architecture"] = "s390x".into();
    wrong.config = config.to_string().into_bytes();
    wrong.renew_manifest();
    // Of two that are not for this machine none is unpacked.
    let mut second = image();
    config = serde_json::from_slice(&second.config).unwrap();
    config["architecture"] = "ppc64le".into();
    second.config = config.to_string().into_bytes();
    second.renew_manifest();
    let mut index: Value = serde_json::from_slice(&right.oci_files(&name)[1].1).unwrap();
    let entry = |image: &Image, architecture: &str| {
        let mut entry = index["manifests"][0].clone();
        entry["digest"] = image.manifest_digest().into();
        entry["size"] = image.manifest.len().into();
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let entries = [entry(&second, "ppc64le"), entry(&wrong, "s390x")];
    let inner = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries });
    let inner = inner.to_string().into_bytes();
    let above = json!({
        "mediaType": INDEX_TYPE, "digest": digest(&inner), "size": inner.len(),
        "annotations": { "io.containerd.image.name": format!("{name}-other") },
    });
    index["manifests"].as_array_mut().unwrap().push(above);
    let mut tar = TarStream::new().file(&path_of(&digest(&inner)), 0o644, &inner);
    let others = wrong.oci_files(&name).into_iter().chain(second.oci_files(&name));
    let others = others.filter(|(path, _)| path.starts_with("blobs/"));
    for (path, content) in right.oci_files(&name).into_iter().chain(others) {
        let content = if path == "index.json" { index.to_string().into_bytes() } else { content };
        tar = tar.file(&path, 0o644, &content);
    }
    let words = wrong.manifest_digest();
    refused(services, tar.finish(), &[&words, "its configuration names"]).await;
}

/// Names of docker's old layout are names, too.
pub async fn old_names(services: &Services) {
    let tagged = |name: &str, tag: &str| {
        TarStream::new()
            .file("a/json", 0o644, br#"{"id":"a","os":"linux"}"#)
            .file(
                "a/layer.tar",
                0o644,
                &TarStream::new().file("x", 0o644, &random::bytes(3)).finish(),
            )
            .file("repositories", 0o644, json!({ name: { tag: "a" } }).to_string().as_bytes())
            .finish()
    };
    for (name, tag) in
        [("No Name", "x"), ("name", "no tag"), ("../..", "x"), ("name", ""), ("", "x")]
    {
        refused(
            services,
            tagged(name, tag),
            &["repositories", &format!("{:?}", format!("{name}:{tag}"))],
        )
        .await;
    }
    let name = random::name("old");
    let found = import(services, tagged(&name, "x")).await.unwrap();
    assert_eq!(found[0].name, format!("docker.io/library/{name}:x"));
}

/// A name that comes twice is the last one's; the first image has no name then, and is told of as such.
pub async fn names_twice(services: &Services) {
    let (first, last) = (image(), image());
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let merged =
        |own: &[(String, Vec<u8>)], other: &[(String, Vec<u8>)], file: &str, list: &str| {
            let read = |files: &[(String, Vec<u8>)]| -> Value {
                let (_, content) = files.iter().find(|(path, _)| path == file).unwrap();
                serde_json::from_slice(content).unwrap()
            };
            let (mut all, more) = (read(own), read(other));
            let more = more.pointer(list).unwrap().as_array().unwrap().clone();
            all.pointer_mut(list).unwrap().as_array_mut().unwrap().extend(more);
            let mut tar = TarStream::new().file(file, 0o644, all.to_string().as_bytes());
            for (path, content) in
                own.iter().chain(other).filter(|(path, _)| path.contains('/') || path != file)
            {
                tar = tar.file(path, 0o644, content);
            }
            tar.finish()
        };
    let docker = |image: &Image| {
        let config = format!("{}.json", &image.config_digest()[7..]);
        let layers: Vec<String> =
            image.layers.iter().map(|layer| format!("{}.tar", &digest(&layer.tar)[7..])).collect();
        let saved = json!([{ "Config": config, "RepoTags": [name], "Layers": layers }]);
        let mut files = vec![
            ("manifest.json".to_owned(), saved.to_string().into_bytes()),
            (config, image.config.clone()),
        ];
        let tars = image.layers.iter().map(|layer| layer.tar.clone());
        files.extend(layers.into_iter().zip(tars));
        files
    };
    for archive in [
        merged(&first.oci_files(&name), &last.oci_files(&name), "index.json", "/manifests"),
        merged(&docker(&first), &docker(&last), "manifest.json", ""),
    ] {
        let found = import(services, archive).await.unwrap();
        let names: Vec<&str> = found.iter().map(|image| image.name.as_str()).collect();
        assert_eq!(names, ["", name.as_str()]);
        assert_ne!(found[0].target.digest, found[1].target.digest);
        let named: Record = services.images.get(&name).await.unwrap();
        assert_eq!(named.target, found[1].target);
        let config = services.extras.resolve_image(&named.target, None).await.unwrap().config;
        assert_eq!(config.digest.to_string(), last.config_digest());
        services.images.delete(&name, true).await.unwrap();
    }
}

/// An image that has lost content is not saved: what is missing is named, and what helps.
pub async fn lost_content(services: &Services) {
    let image = image();
    let short = random::name("img");
    let name = format!("docker.io/library/{short}:v1");
    import(services, image.oci_archive(&name)).await.unwrap();
    let lost = [
        ("layer", digest(&image.layers[1].blob)),
        ("configuration", image.config_digest()),
        ("manifest", image.manifest_digest()),
    ];
    for (what, lost) in lost {
        services.content.delete(&lost.parse().unwrap()).await.unwrap();
        let request = store_api::ExportRequest { names: vec![name.clone()], ..Default::default() };
        let error = services.transfer.export(request).await.map(drop).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
        let wanted = format!(
            "{what} {lost} of image {short}:v1 is missing: pull the image again, or mend the store with `gantry fsck --repair`"
        );
        assert_eq!(error.message, wanted);
    }
    assert_kind(services.images.get("nope").await, ErrorKind::NotFound);
}

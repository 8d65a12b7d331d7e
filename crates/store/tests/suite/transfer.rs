use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;
use serde_json::json;
use store_api::{
    ByteStream, Descriptor, ExportRequest, ImportRequest, Services, SquashBase, SquashRequest,
    UnpackedImage,
};
use testkit::{
    fixtures::{
        oci::{Image, Layer},
        tar::TarStream,
    },
    random,
};
use tokio::sync::mpsc;
use types::{Digest, ErrorKind};

use super::{assert_kind, labels, snapshots::tree};

/// A stream in pieces of random size.
pub fn stream(bytes: Vec<u8>) -> ByteStream {
    let (sender, stream) = mpsc::channel(2);
    tokio::spawn(async move {
        let mut rest = Bytes::from(bytes);
        while !rest.is_empty() {
            let n = usize::try_from(random::number(1..5000)).unwrap().min(rest.len());
            if sender.send(Ok(rest.split_to(n))).await.is_err() {
                return;
            }
        }
    });
    stream
}

pub async fn collect(mut stream: ByteStream) -> store_api::Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(piece) = stream.recv().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all)
}

pub async fn import(
    services: &Services,
    archive: Vec<u8>,
) -> store_api::Result<Vec<store_api::Imported>> {
    import_as(services, archive, true).await
}

pub async fn import_as(
    services: &Services,
    archive: Vec<u8>,
    unpack: bool,
) -> store_api::Result<Vec<store_api::Imported>> {
    let (progress, mut reports) = mpsc::channel(16);
    let drain = tokio::spawn(async move { while reports.recv().await.is_some() {} });
    let request = ImportRequest { unpack, ..ImportRequest::default() };
    let imported = services.transfer.import(request, stream(archive), progress).await;
    drain.await.unwrap();
    imported
}

/// Three layers: files, a removal, an opaque directory, hard links across nothing.
pub fn image() -> Image {
    let layers = vec![
        Layer::gzipped(
            TarStream::new()
                .dir("etc/")
                .file("etc/keep", 0o640, &random::bytes(100))
                .file("etc/gone", 0o644, b"gone")
                .dir("old/")
                .file("old/a", 0o644, b"a")
                .finish(),
        ),
        Layer::plain(
            TarStream::new()
                .dir("etc/")
                .whiteout("etc/gone")
                .dir("old/")
                .file("old/.wh..wh..opq", 0o644, b"")
                .file("old/b", 0o755, &random::bytes(50))
                .hardlink("old/c", "old/b")
                .finish(),
        ),
        Layer::gzipped(
            TarStream::new()
                .dir("old/")
                .whiteout("old/c")
                .symlink("link", "etc/keep")
                .file("new", 0o600, &random::bytes(70))
                .finish(),
        ),
    ];
    Image::new(layers, &json!({ "Cmd": ["/new"], "Env": [format!("R={}", random::token(6))] }))
}

pub async fn shown(services: &Services, image: &UnpackedImage) -> super::snapshots::Tree {
    let top = image.chain_ids.last().unwrap().to_string();
    let key = random::name("show");
    let mounts = services.snapshots.view(&key, Some(&top), labels(&[])).await.unwrap();
    let tree = tree(&mounts);
    services.snapshots.remove(&key).await.unwrap();
    tree
}

/// With a base name alone names of other repositories count for nothing, and a tag alone is one of it.
pub async fn based(services: &Services) {
    let image = image();
    let (own, other) = (random::name("own"), random::name("other"));
    let (own, other) = (format!("docker.io/library/{own}"), format!("docker.io/library/{other}"));
    let tag = random::token(6);
    let named = image.oci_archive(&format!("{own}:{tag}"));
    let mut tagged = TarStream::new();
    for (path, content) in image.oci_files(&tag) {
        // Of the two annotations the tag's alone.
        let text = String::from_utf8_lossy(&content).replace("io.containerd.image.name", "x.y");
        let text = text.replace("latest", &tag).into_bytes();
        tagged = tagged.file(&path, 0o644, if path == "index.json" { &text } else { &content });
    }
    let tagged = tagged.finish();
    for (archive, base, base_only, wanted) in [
        (&named, &own, true, format!("{own}:{tag}")),
        (&named, &other, true, String::new()),
        (&named, &other, false, format!("{own}:{tag}")),
        (&named, &own[..own.len() - 1].to_owned(), true, String::new()),
        (&tagged, &other, true, format!("{other}:{tag}")),
        (&tagged, &other, false, format!("{other}:{tag}")),
        (&tagged, &String::new(), false, String::new()),
    ] {
        let (progress, mut reports) = mpsc::channel(16);
        let drain = tokio::spawn(async move { while reports.recv().await.is_some() {} });
        let request = ImportRequest { base_name: base.clone(), base_only, ..Default::default() };
        let found = services.transfer.import(request, stream(archive.clone()), progress).await;
        drain.await.unwrap();
        let found = found.unwrap();
        assert_eq!((found.len(), found[0].name.as_str()), (1, wanted.as_str()), "{base}");
        for image in services.images.list(&[]).await.unwrap() {
            assert_eq!(image.name, wanted);
            services.images.delete(&image.name, false).await.unwrap();
        }
    }
}

/// An image of more layers than dockerd takes shows what all of them hold; one of more than overlay takes
/// is refused.
pub async fn many_layers(services: &Services) {
    let layer = |n: usize| {
        let path = format!("d/{n}");
        Layer::plain(TarStream::new().dir("d/").file(&path, 0o644, &random::bytes(9)).finish())
    };
    let name = || format!("docker.io/library/{}:v1", random::name("img"));
    let count = 200 + usize::try_from(random::number(0..50)).unwrap();
    let image = Image::new((0..count).map(layer).collect(), &json!({}));
    let imported = import(services, image.oci_archive(&name())).await.unwrap();
    let image = services.extras.resolve_image(&imported[0].target, None).await.unwrap();
    let files = shown(services, &image).await.into_keys().filter(|path| path.iter().count() == 2);
    assert_eq!(files.count(), count);
    let count = types::limits::LAYERS + 1;
    let image = Image::new((0..count).map(layer).collect(), &json!({}));
    let refused = import(services, image.oci_archive(&name())).await;
    assert_kind(refused, ErrorKind::InvalidArgument);
}

/// Archives of every layout come in, are named and unpacked, and go out the same each time.
pub async fn archives(services: &Services) {
    let image = image();
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let found = import(services, image.oci_archive(&name)).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].name, name);
    assert_eq!(found[0].target.digest.to_string(), image.manifest_digest());
    let unpacked = services.extras.unpack(&found[0].target, None).await.unwrap();
    let tree = shown(services, &unpacked).await;
    let names: Vec<&Path> = tree.keys().map(|path| path.as_path()).collect();
    assert_eq!(names, ["etc", "etc/keep", "link", "new", "old", "old/b"].map(Path::new));
    assert_eq!(tree[Path::new("etc/keep")].0 & 0o7777, 0o640);

    // docker's old archive of the same image has the same layers.
    let old_name = random::name("old");
    let found = import(services, image.docker_archive(&format!("{old_name}:x"))).await.unwrap();
    assert_eq!(found[0].name, format!("docker.io/library/{old_name}:x"));
    let again = services.extras.resolve_image(&found[0].target, None).await.unwrap();
    assert_eq!(again.chain_ids, unpacked.chain_ids);
    assert_eq!(shown(services, &again).await, tree);

    let request = ExportRequest {
        names: vec![name.clone(), found[0].name.clone()],
        docker_compatible: true,
        ..ExportRequest::default()
    };
    let archive = collect(services.transfer.export(request.clone()).await.unwrap()).await.unwrap();
    let second = collect(services.transfer.export(request).await.unwrap()).await.unwrap();
    assert_eq!(archive, second, "the export is not deterministic");
    for image in [&name, &found[0].name] {
        services.images.delete(image, true).await.unwrap();
    }
    let top = unpacked.chain_ids.last().unwrap().to_string();
    assert_kind(services.snapshots.stat(&top).await, ErrorKind::NotFound);
    assert_kind(services.content.info(&unpacked.config.digest).await, ErrorKind::NotFound);
    let mut back = import(services, archive).await.unwrap();
    back.sort_by(|a, b| a.name.cmp(&b.name));
    let mut names: Vec<&str> = back.iter().map(|image| image.name.as_str()).collect();
    names.dedup();
    assert_eq!(names.len(), 2, "{back:?}");
    let image = services.images.get(&name).await.unwrap();
    let unpacked = services.extras.unpack(&image.target, None).await.unwrap();
    assert_eq!(shown(services, &unpacked).await, tree);
}

/// Layers in a docker archive may be compressed in every way that `xz`, `bzip2`, `zstd` and `gzip` do, and the
/// second of two that are the same may be a link, as docker before 25 writes it.
pub async fn compressed(services: &Services) {
    for program in ["xz", "bzip2", "zstd", "gzip"] {
        let mut image = image();
        let twice = image.layers[0].clone();
        image.layers.push(twice);
        let image = Image::new(image.layers, &json!({}));
        let config = format!("{}.json", &image.config_digest()[7..]);
        let name = format!("{}:1", random::name("img"));
        let layers = ["a/layer.tar", "b/layer.tar", "c/layer.tar", "d/layer.tar"];
        let manifest = json!([{ "Config": config, "RepoTags": [name], "Layers": layers }]);
        let mut tar = TarStream::new().file(&config, 0o644, &image.config);
        for (layer, path) in image.layers.iter().zip(&layers[..3]) {
            let packed = testkit::command::Cmd::host(program, ["-c"]).stdin(layer.tar.clone());
            tar = tar.file(path, 0o644, &packed.ok().unwrap().stdout);
        }
        let tar = tar.dir("d").symlink("d/layer.tar", "../a/layer.tar");
        let tar = tar.file("manifest.json", 0o644, manifest.to_string().as_bytes()).finish();
        let found = import(services, tar).await.unwrap();
        assert_eq!(found[0].name, format!("docker.io/library/{name}"));
        let unpacked = services.extras.unpack(&found[0].target, None).await.unwrap();
        assert_eq!(unpacked.layers[0], unpacked.layers[3], "{program}");
        let wanted = if program == "zstd" { "+zstd" } else { "+gzip" };
        assert!(unpacked.layers.iter().all(|layer| layer.media_type.ends_with(wanted)));
        assert!(shown(services, &unpacked).await.contains_key(Path::new("etc/gone")), "{program}");
    }
}

/// What docker before 1.10 saved, named and unnamed.
pub async fn old_archives(services: &Services) {
    let image = image();
    let name = random::name("old");
    for named in [true, false] {
        let ids: Vec<String> = (0..3).map(|i| format!("{i}{}", random::token(20))).collect();
        let mut tar = TarStream::new();
        for (i, layer) in image.layers.iter().enumerate() {
            let v1 = json!({
                "id": ids[i], "parent": i.checked_sub(1).map(|below| &ids[below]),
                "created": "2015-01-02T03:04:05Z", "architecture": "amd64", "os": "linux",
                "config": { "Cmd": ["/new"] }, "Size": 1,
                "container_config": { "Cmd": ["/bin/sh", "-c", format!("step {i}")] },
            });
            tar = tar
                .dir(&ids[i])
                .file(&format!("{}/VERSION", ids[i]), 0o644, b"1.0")
                .file(&format!("{}/json", ids[i]), 0o644, v1.to_string().as_bytes())
                .file(&format!("{}/layer.tar", ids[i]), 0o644, &layer.tar);
        }
        if named {
            let names = json!({ name.as_str(): { "x": ids[2] } });
            tar = tar.file("repositories", 0o644, names.to_string().as_bytes());
        }
        let found = import(services, tar.finish()).await.unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        let wanted = format!("docker.io/library/{name}:x");
        assert_eq!(found[0].name, if named { &wanted } else { "" });
        let unpacked = services.extras.unpack(&found[0].target, None).await.unwrap();
        let tree = shown(services, &unpacked).await;
        let names: Vec<&Path> = tree.keys().map(|path| path.as_path()).collect();
        assert_eq!(names, ["etc", "etc/keep", "link", "new", "old", "old/b"].map(Path::new));
        let config = super::get(services, &unpacked.config.digest).await;
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["config"]["Cmd"][0], "/new");
        assert_eq!(config["history"][1]["created_by"], "/bin/sh -c step 1");
        assert!(config.get("parent").is_none() && config.get("id").is_none(), "{config}");
    }
    let lost = TarStream::new().file("a/json", 0o644, br#"{"parent":"b"}"#).finish();
    assert_kind(import(services, lost).await, ErrorKind::InvalidArgument);

    // Of an image with several tags the layers are read once; there is a limit to tags and files.
    let layer = Layer::gzipped(image.layers[0].tar.clone());
    let tagged = |count: usize| {
        let tags: BTreeMap<String, &str> = (0..count).map(|n| (format!("t{n}"), "a")).collect();
        let names = json!({ name.as_str(): tags });
        TarStream::new()
            .file("a/json", 0o644, br#"{"id":"a","container_config":{"Cmd":["x","y"]}}"#)
            .file("a/layer.tar", 0o644, &layer.blob)
            .file("repositories", 0o644, names.to_string().as_bytes())
            .finish()
    };
    let found = import(services, tagged(3)).await.unwrap();
    let names: Vec<String> = (0..3).map(|n| format!("docker.io/library/{name}:t{n}")).collect();
    assert_eq!(found.iter().map(|image| image.name.clone()).collect::<Vec<_>>(), names);
    assert!(found.iter().all(|image| image.target == found[0].target));
    assert_refused(import(services, tagged(1025)).await, "more than 1024 images");
    let mut many = TarStream::new();
    for n in 0..=16 << 10 {
        many = many.file(&format!("{n}/json"), 0o644, b"{}");
    }
    assert_refused(import(services, many.finish()).await, "more than 16384 files");
    let wrong = TarStream::new().file("b/json", 0o644, br#"{"created":7}"#).finish();
    assert_refused(import(services, wrong).await, "b/json of the archive");
}

fn assert_refused<T: std::fmt::Debug>(outcome: store_api::Result<T>, words: &str) {
    let error = outcome.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

/// An image that loses its name to another one can be given a new name, and goes after that as any.
pub async fn renamed(services: &Services) {
    let image = image();
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let old = import(services, image.oci_archive(&name)).await.unwrap().remove(0).target;
    let found = import(services, image.docker_archive(&name)).await.unwrap();
    assert_eq!(found[0].name, name);
    assert_ne!(found[0].target.digest, old.digest);
    services.extras.collect_garbage().await.unwrap();
    let mut kept = services.images.get(&name).await.unwrap();
    assert_eq!(kept.target.digest, found[0].target.digest);
    kept.name = format!("kept@{}", old.digest);
    kept.target = old.clone();
    services.images.put(kept.clone()).await.unwrap();
    services.extras.unpack(&old, None).await.unwrap();
    services.images.delete(&kept.name, true).await.unwrap();
    assert_kind(services.content.info(&old.digest).await, ErrorKind::NotFound);
    services.content.info(&found[0].target.digest).await.unwrap();
}

/// Archives and images that lie are refused, and nothing gets a name.
pub async fn hostile(services: &Services) {
    let name = format!("docker.io/library/{}:v1", random::name("bad"));
    let mut wrong_layer = image();
    wrong_layer.layers[1].tar = TarStream::new().file("x", 0o644, b"x").finish();
    wrong_layer.layers[1].blob = wrong_layer.layers[1].tar.clone();
    wrong_layer.renew_manifest();
    let archive = wrong_layer.oci_archive(&name);
    assert_kind(import(services, archive).await, ErrorKind::DataLoss);
    assert_kind(services.images.get(&name).await, ErrorKind::NotFound);
    let archive = wrong_layer.docker_archive(&name);
    assert_kind(import(services, archive).await, ErrorKind::DataLoss);

    let mut both = image();
    let text = String::from_utf8(both.manifest.clone()).unwrap();
    both.manifest = text.replacen('{', "{\"manifests\":[],", 1).into_bytes();
    assert_kind(import(services, both.oci_archive(&name)).await, ErrorKind::InvalidArgument);

    // A name that would lead nowhere is told of. One with the image's own digest leads to it.
    let repository = format!("docker.io/library/{}", random::name("bad"));
    let other = Digest::sha256(random::token(9));
    let by_digest = format!("{repository}@{other}");
    for (archive, words) in [
        (image().docker_archive(&by_digest), "invalid tag"),
        (image().docker_archive("No Such:Tag!"), "invalid tag"),
        (image().oci_archive(&by_digest), "another image's"),
    ] {
        let error = import(services, archive).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
        assert!(error.message.contains(words), "{error}");
        assert_kind(services.images.get(&by_digest).await, ErrorKind::NotFound);
    }
    let own = image();
    let by_digest = format!("{repository}@{}", own.manifest_digest());
    let found = import(services, own.oci_archive(&by_digest)).await.unwrap();
    assert_eq!(services.images.get(&by_digest).await.unwrap().target, found[0].target);

    let mut cut = image().oci_archive(&name);
    cut.truncate(cut.len() / 2);
    assert_kind(import(services, cut).await, ErrorKind::InvalidArgument);
    let nothing = TarStream::new().file("readme", 0o644, b"hello").finish();
    assert_kind(import(services, nothing).await, ErrorKind::InvalidArgument);
    assert_kind(services.images.get(&name).await, ErrorKind::NotFound);
}

/// The upper layers become one that shows the same.
pub async fn squashed(services: &Services) {
    let name = format!("docker.io/library/{}:v1", random::name("img"));
    let found = import(services, image().oci_archive(&name)).await.unwrap();
    let target = &found[0].target;
    let before = services.extras.unpack(target, None).await.unwrap();
    let tree = shown(services, &before).await;
    for keep_layers in [0, 1, 2] {
        let request = SquashRequest {
            target: target.digest.clone(),
            base: SquashBase::Layers(keep_layers),
            platform: None,
            comment: String::new(),
        };
        let squashed = services.extras.squash(request.clone()).await.unwrap();
        assert_eq!(services.extras.squash(request).await.unwrap(), squashed);
        let after = services.extras.unpack(&squashed, None).await.unwrap();
        assert_eq!(after.layers.len(), keep_layers + 1);
        assert_eq!(after.chain_ids[..keep_layers], before.chain_ids[..keep_layers]);
        assert_eq!(shown(services, &after).await, tree, "squashed onto {keep_layers}");
        let config = super::get(services, &after.config.digest).await;
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        let history = config["history"].as_array().unwrap();
        assert_eq!(history.len(), 4);
        let empty = |i: usize| history[i]["empty_layer"] == json!(true);
        for i in 0..3 {
            assert_eq!(empty(i), i >= keep_layers);
        }
        assert!(!empty(3));
        let comment = history[3]["comment"].as_str().unwrap();
        assert!(comment.starts_with(&format!("merge {} to ", target.digest)), "{comment}");
    }
    let request = SquashRequest {
        target: target.digest.clone(),
        base: SquashBase::Layers(3),
        platform: None,
        comment: String::new(),
    };
    assert_kind(services.extras.squash(request).await, ErrorKind::InvalidArgument);
}

/// `docker import`, and the image that needs no registry.
pub async fn made_here(services: &Services) {
    let text = random::token(12);
    let tar = TarStream::new().dir("bin/").file("bin/x", 0o755, text.as_bytes()).finish();
    for archive in [tar.clone(), testkit::fixtures::gzip(&tar)] {
        let name = format!("docker.io/library/{}:latest", random::name("rootfs"));
        let config = json!({ "config": { "Cmd": ["/bin/x"] } }).to_string().into_bytes();
        let target: Descriptor =
            services.extras.import_rootfs(stream(archive), config, &name).await.unwrap();
        assert_eq!(services.images.get(&name).await.unwrap().target, target);
        let unpacked = services.extras.unpack(&target, None).await.unwrap();
        let tree = shown(services, &unpacked).await;
        assert_eq!(tree[Path::new("bin/x")].2, text.as_bytes());
    }
    let no_tar = stream(random::bytes(2000));
    assert_kind(
        services.extras.import_rootfs(no_tar, Vec::new(), "x").await,
        ErrorKind::InvalidArgument,
    );
    assert_kind(services.extras.embedded_image("alpine").await, ErrorKind::NotFound);
    let hello = services.extras.embedded_image("gantry/hello").await.unwrap();
    assert_eq!(services.extras.embedded_image("gantry/hello:latest").await.unwrap(), hello);
    let unpacked = services.extras.unpack(&hello, None).await.unwrap();
    let tree = shown(services, &unpacked).await;
    let program = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(program.path(), &tree[Path::new("hello")].2).unwrap();
    let path = program.into_temp_path();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = std::process::Command::new(&path).output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("Hello from a container"));
}

/// The same content comes in under many names while others of them are removed and garbage is
/// collected: whatever was acknowledged is whole.
pub async fn collected_meanwhile(services: &Services) {
    let image = image();
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..4 {
        let (services, image) = (services.clone(), image.clone());
        tasks.spawn(async move {
            let mut asked_again = false;
            for _ in 0..10 {
                let name = format!("docker.io/library/{}:v1", random::name("img"));
                let archive = match worker % 2 {
                    0 => image.oci_archive(&name),
                    _ => image.docker_archive(&name),
                };
                match import(&services, archive).await {
                    Ok(found) => assert_eq!(found[0].name, name),
                    // Only of docker's archive a client may be asked to try again.
                    Err(error) if worker % 2 == 1 && error.is_not_found() => {
                        asked_again = true;
                        continue;
                    }
                    Err(error) => panic!("{error}"),
                }
                let target = services.images.get(&name).await.unwrap().target;
                let unpacked = services.extras.unpack(&target, None).await.unwrap();
                assert!(shown(&services, &unpacked).await.contains_key(Path::new("old/b")));
                for blob in &unpacked.layers {
                    super::get(&services, &blob.digest).await;
                }
                services.images.delete(&name, true).await.unwrap();
            }
            asked_again
        });
    }
    let mut asked_again = false;
    while let Some(done) = tasks.join_next().await {
        asked_again |= done.unwrap();
    }
    if asked_again {
        // What an import that failed had brought is kept for who tries again, as the client does now.
        let name = format!("docker.io/library/{}:v1", random::name("img"));
        import(services, image.docker_archive(&name)).await.unwrap();
        services.images.delete(&name, true).await.unwrap();
    }
    services.extras.collect_garbage().await.unwrap();
    assert!(services.content.list(&[]).await.unwrap().is_empty());
    assert!(services.snapshots.list(&[]).await.unwrap().is_empty());
}

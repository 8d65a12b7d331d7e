//! What is no regular file lies where one should.

use std::{fs, path::Path, time::Duration};

use store::LayerForm;
use testkit::random;

use crate::{
    Ground, NAMESPACE, files, finding,
    suite::{self, registry::Registry, transfer},
};

/// Puts something in a blob's place that is no regular file.
fn displace(blob: &Path, kind: &str) {
    fs::remove_file(blob).unwrap();
    match kind {
        "FIFO" => {
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            let (cwd, of) = (rustix::fs::CWD, rustix::fs::FileType::Fifo);
            rustix::fs::mknodat(cwd, blob, of, mode, 0).unwrap();
        }
        "symbolic link" => std::os::unix::fs::symlink("/dev/zero", blob).unwrap(),
        _ => {
            fs::create_dir(blob).unwrap();
            fs::write(blob.join("within"), "kept").unwrap();
        }
    }
}

/// What is no regular file in a blob's place is neither waited for nor taken for one, and makes way for
/// the blob; a directory is kept beside. The daemon starts with it, too.
pub(crate) async fn displaced() {
    let ground = Ground::new().await;
    let before = files(&ground.root());
    let layer = ground.image.layers[random::number(0..3) as usize].digest.clone();
    let (blob, object) = (ground.blob(&layer), format!("content {layer}"));
    let aside = ground.root().join("damaged");
    for kind in ["FIFO", "symbolic link", "directory"] {
        displace(&blob, kind);
        let problem = &ground.look().await;
        let problem = &finding(problem, &object).problem;
        assert!(problem.contains(kind), "{problem}");
        if kind != "directory" {
            ground.found_and_repaired(std::slice::from_ref(&object), &before, kind).await;
            continue;
        }
        assert!(finding(&ground.repair().await, &object).repaired);
        let kept = aside.join(format!("sha256-{}", layer.hex())).join("within");
        assert_eq!(fs::read(kept).unwrap(), b"kept");
        fs::remove_dir_all(&aside).unwrap();
        assert_eq!(files(&ground.root()), before);
    }
    let elsewhere = Registry::start();
    for kind in ["FIFO", "symbolic link", "directory"] {
        displace(&blob, kind);
        drop(ground.serve().await);
        assert!(blob.symlink_metadata().is_err(), "{kind}");
        assert!(aside.join(format!("sha256-{}", layer.hex())).symlink_metadata().is_ok());
        fs::remove_dir_all(&aside).unwrap();
        assert!(ground.repair().await.is_clean(), "{kind}");
        // While the daemon runs.
        let (store, services) = ground.serve().await;
        displace(&blob, kind);
        let read = services.content.read_at(&layer, 0, 100).await;
        suite::assert_kind(read, types::ErrorKind::DataLoss);
        let (progress, mut reports) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move { while reports.recv().await.is_some() {} });
        let request = store_api::PushRequest {
            name: ground.name.clone(),
            reference: elsewhere.reference(),
            platform: None,
            access: store_api::RegistryAccess::default(),
        };
        let pushing = services.transfer.push(request, progress);
        let pushed = tokio::time::timeout(Duration::from_secs(60), pushing).await;
        let error = pushed.expect("the push waits").unwrap_err();
        assert!(error.message.contains("damaged on disk"), "{error}");
        drop((store, services));
        assert!(finding(&ground.repair().await, &object).repaired);
        fs::remove_dir_all(&aside).ok();
    }
}

/// The same of what a packed layer consists of.
pub(crate) async fn displaced_parts() {
    if suite::forms::form() != LayerForm::Index {
        return;
    }
    let ground = Ground::new().await;
    let before = files(&ground.root());
    for kind in ["FIFO", "symbolic link", "directory"] {
        for (directory, key) in ground.layers() {
            let object = format!("snapshot {NAMESPACE}/{key}");
            for name in ["layer.tar", "layer.toc", "index"] {
                let path = directory.join(name);
                if !path.exists() {
                    continue;
                }
                displace(&path, kind);
                let what = format!("{name}: a {kind}");
                ground.found_and_repaired(std::slice::from_ref(&object), &before, &what).await;
                if name == "layer.tar" {
                    continue;
                }
                // What can be made again is, also when it is used.
                displace(&path, kind);
                let (store, services) = ground.serve().await;
                let shown = transfer::shown(&services, &ground.image).await;
                assert!(shown.contains_key(Path::new("old/b")), "{what}");
                drop((store, services));
                assert!(ground.repair().await.is_clean(), "{what}");
                assert_eq!(ground.look().await.findings, [], "{what}");
            }
        }
    }
    // Without its tar a layer is lost, and made again from its blob.
    displace(&ground.layers()[0].0.join("layer.tar"), "FIFO");
    let (_store, services) = ground.serve().await;
    let target = services.images.get(&ground.name).await.unwrap().target;
    services.extras.unpack(&target, None).await.unwrap();
    let shown = transfer::shown(&services, &ground.image).await;
    assert!(shown.contains_key(Path::new("old/b")));
}

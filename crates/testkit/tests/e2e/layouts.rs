//! OCI layouts as directories, squashed images, and images for other machines, by our own command line.

use crate::ground::{Ground, on_engine};
use serde_json::json;
use testkit::fixtures::busybox::Busybox;
use testkit::fixtures::digest;
use testkit::fixtures::oci::{INDEX_TYPE, Image, Layer, MANIFEST_TYPE};
use testkit::random;
use testkit::sandbox::Net;

impl Ground<'_> {
    /// Our own client; what it prints, and its exit code.
    fn gantry(&self, args: &[&str]) -> (String, i32) {
        let output = self.daemon.client("gantry", args.iter().copied()).output().unwrap();
        (output.both(), output.code())
    }

    fn gantry_ok(&self, args: &[&str]) -> String {
        let output = self.daemon.client("gantry", args.iter().copied()).cwd("/run/tmp").ok();
        output.unwrap().text()
    }
}

/// What `load` says that it loaded.
fn loaded(text: &str) -> &str {
    let line = text.lines().last().unwrap_or_default();
    let name = line.strip_prefix("Loaded image: ");
    name.or_else(|| line.strip_prefix("Loaded image ID: ")).unwrap_or_else(|| panic!("{text}"))
}

/// Directories that skopeo and umoci make are loaded, and they read ours.
#[test]
fn layouts_are_directories_too() {
    on_engine(Net::Isolated, |ground| {
        let image = Busybox::new().unwrap();
        ground.rootfs(&image);
        ground.sandbox.write("/run/tmp/in.tar", image.oci_archive()).unwrap();
        let word = random::token(12);
        ground.others(&format!(
            "skopeo copy -q --insecure-policy oci-archive:in.tar oci:skopeo:x
             umoci init --layout umoci; umoci new --image umoci:u
             umoci unpack --image umoci:u bundle; cp -a rootfs/. bundle/rootfs/
             umoci repack --image umoci:u bundle
             echo {word} > bundle/rootfs/word; umoci repack --refresh-bundle --image umoci:u bundle
             umoci config --image umoci:u --config.cmd cat --config.cmd /word"
        ));
        for (directory, said) in [("skopeo", &image.marker), ("umoci", &image.marker)] {
            let text = ground.gantry_ok(&["load", "-i", directory]);
            let id = loaded(&text);
            assert_eq!(&ground.read_marker(id, &image.marker_path), said, "{directory}");
            if directory == "umoci" {
                assert_eq!(ground.docker(&["run", "--rm", id]), word);
            }
            // Out again: what we write is what the others take.
            let out = format!("out-{directory}");
            ground.gantry_ok(&["save", "--format", "oci-dir", "-o", &out, id]);
            let again = format!("again-{directory}");
            ground.gantry_ok(&["image", "save", "--format=oci-dir", "-o", &again, id]);
            let digest = ground.others(&format!(
                "diff -r {out} {again}; test ! -e {out}/manifest.json
                 skopeo inspect --format '{{{{.Digest}}}}' oci:{out}"
            ));
            assert_eq!(digest, ground.inspect(id, "{{.Id}}"));
            ground.docker(&["rmi", id]);
            assert_eq!(loaded(&ground.gantry_ok(&["load", "-i", &out])), digest);
        }
        let (name, tag) = (random::name("layout"), random::token(4));
        let full = format!("{name}:{tag}");
        ground.docker(&["tag", ground.reference(), &full]);
        ground.gantry_ok(&["save", "--format", "oci-dir", "-o", "named", &full]);
        let marker = ground.others(&format!(
            "skopeo copy -q --insecure-policy oci:named:{tag} dir:copied
             umoci unpack --image named:{tag} unpacked > /dev/null
             cat unpacked/rootfs{}",
            ground.image.marker_path
        ));
        assert_eq!(marker, ground.image.marker);
        ground.docker(&["rmi", &full]);
        assert_eq!(loaded(&ground.gantry_ok(&["load", "-i", "named"])), full);

        let refused = |args: &[&str], words: &str| {
            let (text, code) = ground.gantry(args);
            assert!(code != 0 && text.contains(words), "{args:?}: {code}: {text}");
        };
        refused(&["load", "-i", "/run/tmp/rootfs"], "is no OCI image layout");
        refused(&["save", "--format", "oci-dir", "-o", "/run/tmp/named", &full], "is not empty");
        refused(&["save", "--format", "oci-dir", &full], "needs a directory");
        refused(&["save", "--format", "zip", "-o", "/run/tmp/x", &full], "unknown format");
        refused(&["save", "--format", "oci-dir", "-o", "/run/tmp/x", "nope"], "No such image");
        ground.others(
            "test ! -e x; test -z \"$(ls -A | grep '^[.]')\"
             cd named/blobs/sha256; for f in *; do mv $f /run/tmp/moved; ln -s /run/tmp/moved $f; break; done",
        );
        refused(&["load", "-i", "/run/tmp/named"], "is a symbolic link");
    });
}

/// A stored image is squashed; of one of several platforms those that are here.
#[test]
fn stored_images_are_squashed() {
    on_engine(Net::Isolated, |ground| {
        let word = random::token(10);
        let dockerfile = format!(
            "FROM {}\nRUN echo {word} > /one && echo gone > /two\nRUN rm /two && echo {word} > /three\nCMD cat /three\n",
            ground.reference()
        );
        ground.sandbox.write("/run/tmp/context/Dockerfile", dockerfile).unwrap();
        ground.docker(&["build", "-q", "-t", "tall:1", "/run/tmp/context"]);
        let layers = |image: &str| -> Vec<String> {
            let list = ground.inspect(image, "{{range .RootFS.Layers}}{{.}} {{end}}");
            list.split_whitespace().map(str::to_owned).collect()
        };
        let (base, tall) = (layers(ground.reference()), layers("tall:1"));
        assert_eq!(tall.len(), base.len() + 2);
        let id =
            ground.gantry_ok(&["image", "squash", "-t", "small:1", "-m", "made small", "tall:1"]);
        assert_eq!(id, ground.inspect("small:1", "{{.Id}}"));
        assert_eq!(layers("small:1").len(), 1);
        let onto = ["image", "squash", "--from", ground.reference(), "-t", "onto", "tall:1"];
        ground.gantry_ok(&onto);
        let kept = layers("onto");
        assert_eq!((kept.len(), &kept[..base.len()]), (base.len() + 1, &base[..]));
        for image in ["small:1", "onto"] {
            assert_eq!(ground.docker(&["run", "--rm", image]), word, "{image}");
            let two = ground.docker(&["run", "--rm", image, "sh", "-c", "ls /two || echo none"]);
            assert_eq!(two, "none", "{image}");
        }
        let history = ["history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.Comment}}"];
        let history = ground.docker(&[&history[..], &["small:1"]].concat());
        assert!(history.contains("|made small") && history.contains("rm /two"), "{history}");
        // Without a name it is one that can be removed; under its own name the old one loses it.
        let unnamed = ground.gantry_ok(&["image", "squash", "-m", &random::token(5), "tall:1"]);
        assert_eq!(ground.inspect(&unnamed, "{{len .RepoTags}}"), "0");
        ground.docker(&["rmi", &unnamed]);
        let before = ground.inspect("tall:1", "{{.Id}}");
        let after = ground.gantry_ok(&["image", "squash", "-t", "tall:1", "tall:1"]);
        assert_eq!(ground.inspect("tall:1", "{{.Id}}"), after);
        assert_eq!(ground.inspect(&before, "{{len .RepoTags}}"), "0");
        let refused = |args: &[&str], words: &str| {
            let (text, code) = ground.gantry(args);
            assert!(code != 0 && text.contains(words), "{args:?}: {code}: {text}");
        };
        refused(
            &["image", "squash", "--from", "onto", "small:1"],
            "lowest layers are not those of",
        );
        refused(
            &["image", "squash", "--platform", "linux/s390x", "small:1"],
            "not made for linux/s390x",
        );
        refused(&["image", "squash", "-t", "Bad Name", "small:1"], "invalid reference");
        refused(&["image", "squash", "nope"], "No such image");
    });
}

/// What is for other machines is loaded as it is; who runs it is told.
#[test]
fn images_for_other_machines_are_loaded() {
    on_engine(Net::Isolated, |ground| {
        let images = [Busybox::new().unwrap(), Busybox::new().unwrap()];
        let name = format!("{}:1", random::name("foreign"));
        let blob = |bytes: &[u8]| {
            let digest = digest(bytes);
            let file = format!("/run/tmp/both/blobs/{}", digest.replacen(':', "/", 1));
            ground.sandbox.write(&file, bytes).unwrap();
            digest
        };
        let mut entries = Vec::new();
        for (image, architecture) in images.iter().zip(["s390x", "ppc64le"]) {
            let mut made = Image::new(vec![Layer::gzipped(image.rootfs.clone())], &json!({}));
            let mut config: serde_json::Value = serde_json::from_slice(&made.config).unwrap();
            config["architecture"] = json!(architecture);
            made.config = config.to_string().into_bytes();
            made.renew_manifest();
            blob(&made.config);
            blob(&made.layers[0].blob);
            entries.push(json!({
                "mediaType": MANIFEST_TYPE, "digest": blob(&made.manifest),
                "size": made.manifest.len(),
                "platform": { "os": "linux", "architecture": architecture },
            }));
        }
        let index = |manifests: serde_json::Value| {
            let index =
                json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests });
            index.to_string().into_bytes()
        };
        let both = index(json!(entries));
        let top = index(json!([{
            "mediaType": INDEX_TYPE, "digest": blob(&both), "size": both.len(),
            "annotations": { "io.containerd.image.name": format!("docker.io/library/{name}") },
        }]));
        ground.sandbox.write("/run/tmp/both/index.json", top).unwrap();
        let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
        ground.sandbox.write("/run/tmp/both/oci-layout", version).unwrap();
        let (text, code) =
            ground.gantry(&["load", "-i", "/run/tmp/both", "--platform", "linux/arm64"]);
        let words = "no image for linux/arm64: it has linux/s390x and linux/ppc64le";
        assert!(code != 0 && text.contains(words), "{code}: {text}");
        assert_eq!(loaded(&ground.gantry_ok(&["load", "-i", "both"])), name);
        assert_eq!(ground.inspect(&name, "{{.Architecture}}"), "s390x");
        // busybox is this machine's all the same: it runs, after a warning.
        let (said, code) = ground.gantry(&["run", "--rm", &name, "cat", &images[0].marker_path]);
        assert_eq!(code, 0, "{said}");
        let words = "WARNING: The requested image's platform (linux/s390x) does not match the detected host platform";
        assert!(said.contains(words) && said.contains(&images[0].marker), "{said}");
        let other =
            ["run", "--rm", "--platform", "linux/ppc64le", &name, "cat", &images[1].marker_path];
        let (said, _) = ground.gantry(&other);
        assert!(said.contains(&images[1].marker) && !said.contains("WARNING"), "{said}");
        let absent = ["create", "--pull", "never", "--platform", "linux/arm64", &name];
        let (said, code) = ground.gantry(&absent);
        assert!(
            code != 0
                && said.contains("for linux/arm64: it is here for linux/ppc64le, linux/s390x"),
            "{said}"
        );
        let squashed = ground.gantry_ok(&["image", "squash", "-t", &name, &name]);
        let out =
            ["save", "--format", "oci-dir", "-o", "two", "--platform", "linux/s390x", &squashed];
        ground.gantry_ok(&out);
        let one = ground.others("skopeo inspect --config oci:two");
        assert!(one.contains("\"architecture\": \"s390x\""), "{one}");
    });
}

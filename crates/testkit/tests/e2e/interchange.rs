//! Images made by others run here, and ours run there: skopeo, buildah, podman, umoci, and both
//! releases of dockerd. What is compared is the whole file system that a container sees.

use crate::ground::{Ground, LONG, on_engine};
use testkit::command::Cmd;
use testkit::engine::Daemon;
use testkit::fixtures::busybox::Busybox;
use testkit::leak::LeakCheck;
use testkit::peer::{self, Release};
use testkit::random;
use testkit::sandbox::{Net, Sandbox};

const STORAGE: &str =
    "--root=/run/tmp/containers --runroot=/run/containers --storage-driver=overlay";

/// Every object of a container's root: type, mode, owner, size, time, link target and content. Left out
/// are what engines put into each container, the times of the directories that they put it into, and
/// the root itself, whose mode each chooses for an image that does not say it.
const LISTING: &str = r#"
cd /
all() {
    find . -xdev \( -path ./dev -o -path ./proc -o -path ./sys -o -path ./run -o -path ./.dockerenv \
        -o -path ./etc/hosts -o -path ./etc/hostname -o -path ./etc/resolv.conf -o -path ./etc/mtab \) \
        -prune -o ! -path . "$@"
}
all -type d -print0 | xargs -0 stat -c '%n %a %u %g'
all -type f -print0 | xargs -0 stat -c '%n %a %u %g %s %Y %h'
all -type f -print0 | xargs -0 md5sum
all -type l -print0 | xargs -0 stat -c '%N %a %u %g %Y'
all ! -type d ! -type f ! -type l -print0 | xargs -0 stat -c '%n %F %a %u %g %t %T %Y'
"#;

/// Layers with everything that shells can make: what is replaced, removed and made again, links, devices,
/// odd and long names, holes, strange owners and modes.
fn dockerfile(base: &str, word: &str) -> String {
    let long = "n".repeat(200);
    format!(
        r#"FROM {base}
RUN mkdir -p /data/sub /data/gone /opt && echo {word} > /data/file && echo a > /data/gone/a \
 && echo x > /data/sub/x && echo old > /data/replaced && mkdir /data/turns && echo t > /data/turns/t
RUN echo new-{word} > /data/replaced && rm -r /data/gone && rm -r /data/turns && echo f > /data/turns \
 && rm -r /data/sub && mkdir /data/sub && echo y > /data/sub/y
RUN ln /data/file /data/hard && ln -s ../data/file /opt/soft && mkfifo /opt/pipe \
 && mknod /opt/null c 1 3 && mknod /opt/block b 7 1 && chmod 640 /opt/block
RUN dd if=/bin/sh of=/opt/holes bs=4096 count=1 seek=2000 2>/dev/null && truncate -s 20M /opt/holes
RUN mkdir "/opt/a b" && echo 1 > "/opt/a b/ü*?" && echo 2 > "/opt/-r" && echo 3 > /opt/{long} \
 && mkdir -p /opt/{long}.d/{long}/{long} && echo 4 > /opt/{long}.d/{long}/{long}/{long}
RUN cp /bin/sh /opt/suid && chown 1000:2000 /opt/suid && chmod 6755 /opt/suid \
 && chown 123456:654321 /data/replaced && mkdir -m 1777 /opt/sticky && mkdir -m 0 /opt/closed
RUN touch -h -d @86400 /opt/soft && touch -d @1000000000 /data/sub/y /opt/sticky
ENV WORD={word}
LABEL word={word}
CMD ["sh", "-c", "echo $WORD"]
"#
    )
}

/// Builds it where the daemon is, and gives what the image is named.
fn build(daemon: &Daemon<'_>, base: &str, word: &str) -> String {
    let name = format!("{}:{}", random::name("rich"), random::token(4));
    let sandbox = daemon.sandbox();
    sandbox.write("/run/tmp/context/Dockerfile", dockerfile(base, word)).unwrap();
    let build = ["build", "-t", &name, "/run/tmp/context"];
    daemon.docker(build).env("DOCKER_BUILDKIT", "0").timeout(LONG).ok().unwrap();
    name
}

fn listing(daemon: &Daemon<'_>, image: &str) -> String {
    let run = ["run", "--rm", "--net=none", image, "sh", "-ec", LISTING];
    sorted(&daemon.docker(run).timeout(LONG).ok().unwrap().text())
}

/// A listing in an order that does not depend on the one of directories.
fn sorted(listing: &str) -> String {
    let mut lines: Vec<&str> = listing.lines().collect();
    assert!(lines.len() > 100, "{listing}");
    lines.sort_unstable();
    lines.join("\n")
}

fn word_of(daemon: &Daemon<'_>, image: &str) -> String {
    daemon.docker(["run", "--rm", "--net=none", image]).ok().unwrap().text()
}

/// The name under which `docker load` says that it knows what it loaded.
fn load(daemon: &Daemon<'_>, archive: &str) -> Vec<String> {
    let lines = daemon.docker(["load", "-i", archive]).timeout(LONG).ok().unwrap().lines();
    let said = |line: &String| {
        let name = line.strip_prefix("Loaded image: ");
        name.or_else(|| line.strip_prefix("Loaded image ID: ")).map(str::to_owned)
    };
    lines.iter().filter_map(said).collect()
}

fn loaded(daemon: &Daemon<'_>, archive: &str) -> String {
    let mut names = load(daemon, archive);
    assert_eq!(names.len(), 1, "{names:?}");
    names.remove(0)
}

/// The two lists as one text if they differ, with what only one of them has.
#[track_caller]
fn assert_same(ours: &str, theirs: &str, what: &str) {
    let only = |one: &str, other: &str| -> Vec<String> {
        let other: std::collections::BTreeSet<&str> = other.lines().collect();
        one.lines().filter(|line| !other.contains(line)).take(20).map(str::to_owned).collect()
    };
    if ours != theirs {
        panic!(
            "{what}: only ours: {:#?}, only theirs: {:#?}",
            only(ours, theirs),
            only(theirs, ours)
        );
    }
}

impl Ground<'_> {
    /// A script that has to succeed, with `$B`, `$P` as buildah's and podman's command lines. What podman
    /// remembers of registries has no option of its own: it gets a `/var/cache` of its own.
    pub(crate) fn others(&self, script: &str) -> String {
        let prepare = format!(
            "set -eu; mount -t tmpfs cache /var/cache; cd /run/tmp; B='buildah {STORAGE}'; \
             P='podman {STORAGE} --cgroup-manager=cgroupfs --events-backend=file --runtime=/usr/sbin/runc'\n"
        );
        let command =
            self.sandbox.command("unshare", ["-m", "sh", "-c", &(prepare + script)]).timeout(LONG);
        let seen = command.ok().unwrap().text();
        // podman keeps the empty parents of its containers' cgroups.
        let empty = "find /sys/fs/cgroup -mindepth 2 -depth -type d -path '*/libpod_parent*' -exec rmdir {} +";
        self.sandbox.shell(empty).ok().unwrap();
        seen
    }

    /// An image's root as a directory and as a tar, for others to work on.
    pub(crate) fn rootfs(&self, image: &Busybox) {
        self.sandbox.write("/run/tmp/rootfs.tar", &image.rootfs).unwrap();
        let script =
            "mkdir -p rootfs && tar -C rootfs -xf rootfs.tar && tar -C rootfs -cf whole.tar .";
        self.others(script);
    }

    pub(crate) fn read_marker(&self, image: &str, path: &str) -> String {
        self.docker(&["run", "--rm", "--net=none", image, "cat", path])
    }
}

/// buildah's commit and build in all the transports it has.
#[test]
fn images_of_buildah_and_podman_run_here() {
    on_engine(Net::Isolated, |ground| {
        let image = Busybox::new().unwrap();
        ground.rootfs(&image);
        let (word, name) = (random::token(12), format!("localhost/{}", random::name("b")));
        ground
            .sandbox
            .write(
                "/run/tmp/context/Dockerfile",
                format!(
                    "FROM {name}:commit\nRUN echo {word} > /word && rm {}\nCMD cat /word\n",
                    image.marker_path
                ),
            )
            .unwrap();
        ground.others(&format!(
            "c=$($B from scratch); $B copy $c rootfs /; $B config --cmd 'cat {marker}' --env W={word} $c
             $B commit $c {name}:commit
             $B bud --isolation chroot -t {name}:bud context
             $B push {name}:commit oci-archive:commit-oci.tar:{name}:commit
             $B push {name}:commit docker-archive:commit-docker.tar:{name}:commit
             $B push {name}:bud oci:bud-oci:v1; tar -C bud-oci -cf bud-oci.tar .
             $P save -q -o podman-docker.tar {name}:bud
             $P save -q --format oci-archive -o podman-oci.tar {name}:bud
             $P save -q --format oci-dir -o podman-dir {name}:bud; tar -C podman-dir -cf podman-dir.tar .
             $P save -q -m -o podman-both.tar {name}:commit {name}:bud
             for program in gzip xz bzip2 'zstd -q'; do $program -k podman-docker.tar; done",
            marker = image.marker_path,
        ));
        for archive in ["commit-oci.tar", "commit-docker.tar"] {
            let loaded = loaded(&ground.daemon, &format!("/run/tmp/{archive}"));
            assert_eq!(loaded, format!("{name}:commit"), "{archive}");
            assert_eq!(ground.docker(&["run", "--rm", &loaded]), image.marker, "{archive}");
            let env = ground.inspect(&loaded, "{{.Config.Env}}");
            assert!(env.contains(&format!("W={word}")), "{archive}: {env}");
            ground.docker(&["rmi", &loaded]);
        }
        for archive in [
            "bud-oci.tar",
            "podman-docker.tar",
            "podman-docker.tar.gz",
            "podman-docker.tar.xz",
            "podman-docker.tar.bz2",
            "podman-docker.tar.zst",
            "podman-oci.tar",
            "podman-dir.tar",
        ] {
            let loaded = loaded(&ground.daemon, &format!("/run/tmp/{archive}"));
            // buildah's layout has only a tag, which names nothing by itself.
            assert_eq!(loaded.starts_with("sha256:"), archive == "bud-oci.tar", "{loaded}");
            assert_eq!(ground.docker(&["run", "--rm", &loaded]), word, "{archive}");
            let gone = ["run", "--rm", &loaded, "test", "-e", &image.marker_path];
            assert_eq!(ground.daemon.docker(gone).output().unwrap().code(), 1, "{archive}");
            ground.docker(&["rmi", &loaded]);
        }
        let both = load(&ground.daemon, "/run/tmp/podman-both.tar");
        assert_eq!(both, [format!("{name}:commit"), format!("{name}:bud")]);
        assert_eq!(ground.docker(&["run", "--rm", &both[0]]), image.marker);
        assert_eq!(ground.docker(&["run", "--rm", &both[1]]), word);
    });
}

#[test]
fn images_of_skopeo_and_umoci_run_here() {
    on_engine(Net::Isolated, |ground| {
        let image = Busybox::new().unwrap();
        ground.rootfs(&image);
        ground.sandbox.write("/run/tmp/in.tar", image.oci_archive()).unwrap();
        let word = random::token(12);
        let name = random::name("s");
        ground.others(&format!(
            "copy() {{ skopeo copy -q --insecure-policy \"$@\"; }}
             copy oci-archive:in.tar oci:gzip:x
             copy --dest-compress-format zstd oci-archive:in.tar oci:zstd:x
             copy --dest-compress-format zstd:chunked oci-archive:in.tar oci:chunked:x
             copy --format v2s2 oci-archive:in.tar docker-archive:docker.tar:{name}:1
             copy oci-archive:in.tar oci-archive:oci.tar:{name}:2
             umoci init --layout umoci; umoci new --image umoci:u
             umoci unpack --image umoci:u bundle; cp -a rootfs/. bundle/rootfs/
             umoci repack --image umoci:u bundle
             echo {word} > bundle/rootfs/word; umoci repack --refresh-bundle --image umoci:u bundle
             umoci config --image umoci:u --config.cmd cat --config.cmd /word
             for d in gzip zstd chunked umoci; do tar -C $d -cf $d.tar .; done"
        ));
        for archive in ["gzip", "zstd", "chunked", "docker", "oci"] {
            let loaded = loaded(&ground.daemon, &format!("/run/tmp/{archive}.tar"));
            match archive {
                "docker" => assert_eq!(loaded, format!("{name}:1")),
                "oci" => assert_eq!(loaded, format!("{name}:2")),
                _ => assert!(loaded.starts_with("sha256:"), "{archive}: {loaded}"),
            }
            assert_eq!(ground.read_marker(&loaded, &image.marker_path), image.marker, "{archive}");
            let label = ground.inspect(&loaded, "{{.Config.Labels.marker}}");
            assert_eq!(label, image.marker, "{archive}");
            ground.docker(&["rmi", &loaded]);
        }
        let loaded = loaded(&ground.daemon, "/run/tmp/umoci.tar");
        assert_eq!(ground.docker(&["run", "--rm", &loaded]), word);
        assert_eq!(ground.read_marker(&loaded, &image.marker_path), image.marker);
    });
}

/// One image of ours, as everybody else sees it.
#[test]
fn our_images_run_with_podman_and_are_read_by_all() {
    on_engine(Net::Isolated, |ground| {
        let word = random::token(12);
        let name = build(&ground.daemon, ground.reference(), &word);
        let ours = listing(&ground.daemon, &name);
        let base = ground.reference().to_owned();
        ground.docker(&["save", "-o", "/run/tmp/out.tar", &name, &base]);
        ground.docker(&["save", "-o", "/run/tmp/again.tar", &base, &name]);
        ground.others("cmp out.tar again.tar");
        let id = ground.inspect(&name, "{{.Id}}");
        let tag = name.rsplit_once(':').unwrap().1;
        ground.others(&format!(
            "skopeo inspect --config docker-archive:out.tar:{name} > config.json
             mkdir layout; tar -C layout -xf out.tar
             skopeo inspect --format '{{{{.Digest}}}}' oci:layout:{tag} > digest
             $P load -q -i out.tar"
        ));
        let config = ground.sandbox.shell("cat /run/tmp/config.json").ok().unwrap().json().unwrap();
        assert_eq!(config["config"]["Labels"]["word"], word.as_str());
        assert_eq!(ground.sandbox.read("/run/tmp/digest").unwrap().trim(), id);
        let run = |image: &str, command: &str| format!("$P run --rm --net=none {image} {command}");
        assert_eq!(ground.others(&run(&name, "")), word);
        let script = format!("sh -ec '{}'", LISTING.replace('\'', "'\\''"));
        assert_same(&ours, &sorted(&ground.others(&run(&name, &script))), "podman");
        assert_eq!(
            ground.others(&run(&base, &format!("cat {}", ground.image.marker_path))),
            ground.image.marker
        );
        // buildah goes on from it, and umoci unpacks the layout, whose tag is the image's.
        let (one, two) = (random::token(8), random::token(8));
        let seen = ground.others(&format!(
            "c=$($B from --pull-never {name}); $B run --isolation chroot $c sh -c 'echo {one} > /data/one'
             $B commit -q $c localhost/onward:{two} > /dev/null
             $B push -q localhost/onward:{two} docker-archive:back.tar:localhost/onward:{two} > /dev/null
             umoci unpack --image layout:{tag} unpacked > /dev/null
             cat unpacked/rootfs/data/replaced; stat -c '%u:%g %a' unpacked/rootfs/opt/suid"
        ));
        assert_eq!(seen, format!("new-{word}\n1000:2000 6755"));
        let back = loaded(&ground.daemon, "/run/tmp/back.tar");
        assert_eq!(back, format!("localhost/onward:{two}"));
        assert_eq!(ground.docker(&["run", "--rm", &back, "cat", "/data/one"]), one);
        // What comes back as it went is the same image.
        ground.docker(&["rmi", &name]);
        load(&ground.daemon, "/run/tmp/out.tar");
        assert_eq!(ground.inspect(&name, "{{.Id}}"), id);
        assert_same(&listing(&ground.daemon, &name), &ours, "our own archive");
    });
}

/// Builds with a dockerd, runs here, and the other way round.
fn with_dockerd(release: Release) {
    let leak = LeakCheck::new().unwrap();
    let word = random::token(12);
    let other = Busybox::new().unwrap();
    let peer_box = Sandbox::new().unwrap();
    let mut dockerd = peer::dockerd(&peer_box, release, &serde_json::Value::Null).unwrap();
    dockerd.docker(["load"]).stdin(other.docker_archive()).ok().unwrap();
    let theirs = build(&dockerd, &other.reference, &word);
    let their_listing = listing(&dockerd, &theirs);
    dockerd.docker(["save", "-o", "/run/tmp/theirs.tar", &theirs, &other.reference]).ok().unwrap();
    let archive = std::fs::read(peer_box.path("/run/tmp/theirs.tar")).unwrap();
    let history = |daemon: &Daemon<'_>, image: &str| -> String {
        let history = ["history", "--no-trunc", "--format", "{{.CreatedBy}}", image];
        daemon.docker(history).ok().unwrap().text()
    };
    let their_history = history(&dockerd, &theirs);
    let mut back = None;
    on_engine(Net::Isolated, |ground| {
        ground.sandbox.write("/run/tmp/theirs.tar", &archive).unwrap();
        let mut names = load(&ground.daemon, "/run/tmp/theirs.tar");
        names.sort();
        let mut wanted = [theirs.clone(), other.reference.clone()];
        wanted.sort();
        assert_eq!(names, wanted);
        assert_eq!(word_of(&ground.daemon, &theirs), word);
        assert_same(&listing(&ground.daemon, &theirs), &their_listing, "theirs, here");
        assert_eq!(history(&ground.daemon, &theirs), their_history);
        assert_eq!(ground.read_marker(&other.reference, &other.marker_path), other.marker);
        let word = random::token(12);
        let ours = build(&ground.daemon, ground.reference(), &word);
        ground.docker(&["save", "-o", "/run/tmp/ours.tar", &ours, &theirs, ground.reference()]);
        let listing = listing(&ground.daemon, &ours);
        let archive = std::fs::read(ground.sandbox.path("/run/tmp/ours.tar")).unwrap();
        back = Some((ours, word, listing, history(&ground.daemon, &theirs), archive));
    });
    let (ours, our_word, our_listing, our_history, archive) = back.unwrap();
    dockerd.docker(["rmi", "-f", &theirs]).ok().unwrap();
    peer_box.write("/run/tmp/ours.tar", &archive).unwrap();
    assert_eq!(load(&dockerd, "/run/tmp/ours.tar").len(), 3);
    assert_eq!(word_of(&dockerd, &ours), our_word);
    assert_same(&our_listing, &listing(&dockerd, &ours), "ours, there");
    assert_same(&listing(&dockerd, &theirs), &their_listing, "theirs, back again");
    assert_eq!(history(&dockerd, &theirs), our_history);
    dockerd.stop().unwrap();
    drop(dockerd);
    peer_box.close().unwrap();
    leak.finish().unwrap();
}

#[test]
fn images_go_to_and_fro_with_dockerd_of_bookworm() {
    with_dockerd(Release::Bookworm);
}

#[test]
fn images_go_to_and_fro_with_dockerd_of_trixie() {
    with_dockerd(Release::Trixie);
}

/// A whole Debian, as debootstrap makes it.
#[test]
fn a_debian_goes_to_podman_and_back() {
    on_engine(Net::Isolated, |ground| {
        ground.import_base("debian");
        let word = random::token(12);
        let name = build(&ground.daemon, "local/debian", &word);
        let ours = listing(&ground.daemon, &name);
        let save = ["save", "-o", "/run/tmp/out.tar", &name];
        ground.daemon.docker(save).timeout(LONG).ok().unwrap();
        let script = format!("sh -ec '{}'", LISTING.replace('\'', "'\\''"));
        let seen = ground.others(&format!(
            "$P load -q -i out.tar > /dev/null; $P run --rm --net=none {name} {script}
             $P save -q --format oci-archive -o back.tar {name}"
        ));
        assert_same(&ours, &sorted(&seen), "podman");
        ground.docker(&["rmi", "-f", &name]);
        let back = loaded(&ground.daemon, "/run/tmp/back.tar");
        assert_same(&listing(&ground.daemon, &back), &ours, "back from podman");
    });
}

/// A command line that names what it does not find.
#[test]
fn what_is_no_image_is_said_to_be_none() {
    on_engine(Net::Isolated, |ground| {
        let refused = |tar: &[u8]| -> String {
            let command: Cmd = ground.daemon.docker(["load"]).stdin(tar.to_vec());
            let output = command.output().unwrap();
            assert_ne!(output.code(), 0, "{}", output.both());
            output.both()
        };
        let rootfs = refused(&Busybox::new().unwrap().rootfs);
        assert!(rootfs.contains("neither index.json nor manifest.json"), "{rootfs}");
        let noise = refused(&random::bytes(4000));
        assert!(noise.contains("archive"), "{noise}");
    });
}

/// The analysis of an image that was built here, by command line and API; every number is known.
#[test]
fn layers_are_told_with_what_would_shrink_them() {
    on_engine(Net::Isolated, |ground| {
        let size = || usize::try_from(random::number(5000..90000)).unwrap();
        let (owned, dropped, lists) = (size(), size(), size());
        for (name, bytes) in [("owned", owned), ("dropped", dropped), ("lists", lists)] {
            let content = random::bytes(bytes);
            ground.sandbox.write(&format!("/run/tmp/context/{name}"), content).unwrap();
        }
        let dockerfile = format!(
            "FROM {}\nCOPY owned dropped /srv/\nRUN chown 1000 /srv/owned\nRUN rm /srv/dropped\n\
             COPY lists /var/lib/apt/lists/deb_Packages\nENV A=b\n\
             RUN cp /var/lib/apt/lists/deb_Packages /srv/one && cp /srv/one /srv/two\n",
            ground.reference()
        );
        ground.sandbox.write("/run/tmp/context/Dockerfile", dockerfile).unwrap();
        ground.docker(&["build", "-q", "-t", "known", "/run/tmp/context"]);
        let gantry =
            |args: &[&str]| ground.daemon.client("gantry", args.iter().copied()).ok().unwrap();
        let json = gantry(&["image", "layers", "--format", "json", "known"]).json().unwrap();
        assert_eq!(json["Id"], ground.inspect("known", "{{.Id}}").as_str());
        let numbers: Vec<Vec<u64>> = json["Layers"].as_array().unwrap()[1..]
            .iter()
            .map(|layer| {
                let fields = ["Added", "Files", "Removals", "Overwritten", "Deleted"];
                fields.map(|field| layer[field].as_u64().unwrap()).to_vec()
            })
            .collect();
        let wanted = [
            [owned + dropped, 2, 0, owned, dropped],
            [owned, 1, 0, 0, 0],
            [0, 0, 1, 0, 0],
            [lists, 1, 0, 0, 0],
            [2 * lists, 2, 0, 0, 0],
        ]
        .map(|layer| layer.map(|number| u64::try_from(number).unwrap()).to_vec());
        assert_eq!(numbers, wanted, "{json}");
        let by = json["Layers"][2]["CreatedBy"].as_str().unwrap();
        assert!(by.contains("chown 1000 /srv/owned"), "{by}");
        let advice: std::collections::BTreeMap<&str, &serde_json::Value> = json["Advice"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["Kind"].as_str().unwrap(), one))
            .collect();
        for (kind, layer, by, size, words) in [
            ("rewritten", 2, 3, owned, "COPY --chown"),
            ("deleted", 2, 4, dropped, ".dockerignore"),
            ("cache", 5, 0, lists, "rm -rf /var/lib/apt/lists/*"),
            ("copied", 6, 6, lists, "ln"),
        ] {
            let one = advice.get(kind).unwrap_or_else(|| panic!("no {kind}: {json}"));
            assert_eq!(
                (one["Layer"].as_i64(), one["By"].as_i64(), one["Size"].as_u64()),
                (Some(layer), Some(by), u64::try_from(size).ok()),
                "{one}"
            );
            assert!(one["Advice"].as_str().unwrap().contains(words), "{one}");
        }
        assert_eq!(json["Saving"], owned + dropped + 2 * lists);
        let table = gantry(&["image", "layers", "--top", "1", "known"]).text();
        crate::ground::assert_in_order(
            &table,
            &["LAYER", "OVERWRITTEN", "CREATED BY", "Largest files:", "/bin/busybox", "shrink"],
        );
        assert_eq!(table.matches("/bin/busybox").count(), 1, "{table}");
        let many = ["image", "layers", "--top", "1001", "known"];
        let refused = ground.daemon.client("gantry", many).output().unwrap();
        assert!(refused.code() != 0 && refused.both().contains("1000"), "{}", refused.both());
    });
}

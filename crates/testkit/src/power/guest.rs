//! What the guest works with: images as archives and in a registry's directory, and its script.

use super::plan::{self, Plan, Tree};
use super::{FS_BYTES, MARK};
use crate::error::IoContext;
use crate::fixtures::busybox;
use crate::fixtures::oci::{Image, Layer};
use crate::fixtures::tar::TarStream;
use crate::{Error, Result, fixtures, random};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::path::Path;

/// Where the guest finds the files.
const GUEST_DIR: &str = "/bases";
/// Bytes of a mark: what a write past the page cache has to be a multiple of.
const MARK_BYTES: u64 = 4096;

/// As `sha256sum` says it.
pub(super) fn sum(data: &[u8]) -> String {
    fixtures::digest(data).split_off("sha256:".len())
}

/// Writes plan, script and images of a work-load of so many rounds into the directory `dir`.
pub fn write(dir: &Path, seed: u64, rounds: usize) -> Result<Plan> {
    let mut rng = StdRng::seed_from_u64(seed);
    let word = random::token(32);
    let base = Layer::gzipped(busybox::rootfs("/d/common", &word)?);
    let common = sum(word.as_bytes());
    let mut sources = Vec::new();
    for i in 0..plan::IMAGES {
        let (image, tree) = image(&mut rng, i, &base, &common);
        let name = plan::loaded(i);
        // Both forms of archives.
        let archive =
            if i % 2 == 0 { image.oci_archive(&name) } else { image.docker_archive(&name) };
        write_file(dir, &format!("image{i}.tar"), &archive)?;
        write_registry(dir, &format!("image{i}"), &image)?;
        sources.push(tree);
    }
    let (plan, files) = plan::plan(seed, rounds, &sources);
    for (name, bytes) in files {
        write_file(dir, &name, &bytes)?;
    }
    write_file(dir, "registry.yml", registry_config(GUEST_DIR).as_bytes())?;
    write_file(dir, "work.sh", script(&plan).as_bytes())?;
    let text = serde_json::to_vec(&plan).map_err(|error| Error::Parse {
        what: "a plan".into(),
        wanted: "JSON",
        found: error.to_string(),
    })?;
    write_file(dir, "plan.json", &text)?;
    Ok(plan)
}

/// The plan that [`write`] has left in `dir`.
pub fn read_plan(dir: &Path) -> Result<Plan> {
    let path = dir.join("plan.json");
    let text = std::fs::read(&path).context("read", path.display())?;
    serde_json::from_slice(&text).map_err(|error| Error::Parse {
        what: path.display().to_string(),
        wanted: "a plan",
        found: error.to_string(),
    })
}

/// A base that all share, a layer with a small file, one to be removed, and a larger one, and a layer that
/// removes, replaces and adds.
fn image(rng: &mut StdRng, i: usize, base: &Layer, common: &str) -> (Image, Tree) {
    let mut tree = Tree::from([("d/common".to_owned(), common.to_owned())]);
    let mut put = |stream: TarStream, rng: &mut StdRng, path: String, most: usize| {
        let mut bytes = vec![0; rng.random_range(1..most)];
        rng.fill(&mut bytes[..]);
        tree.insert(path.clone(), sum(&bytes));
        stream.file(&path, 0o644, &bytes)
    };
    let big = if i == 0 { 2 << 20 } else { 200_000 };
    let mut first = TarStream::new().dir("d");
    for (name, most) in [("small", 100), ("replaced", 9000), ("big", big)] {
        first = put(first, rng, format!("d/{name}{i}"), most);
    }
    first = first.file("d/removed", 0o600, b"x").hardlink("d/again", &format!("d/small{i}"));
    let mut second = TarStream::new().dir("d").whiteout("d/removed");
    for (name, most) in [("replaced", 20_000), ("added", 20_000)] {
        second = put(second, rng, format!("d/{name}{i}"), most);
    }
    let small = tree[&format!("d/small{i}")].clone();
    tree.insert("d/again".into(), small);
    let layers =
        vec![base.clone(), Layer::gzipped(first.finish()), Layer::gzipped(second.finish())];
    let run = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"], "Labels": { "i": i.to_string() } });
    (Image::new(layers, &run), tree)
}

fn write_file(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).context("create", parent.display())?;
    }
    std::fs::write(&path, bytes).context("write", path.display())
}

/// The image as `NAME:v1` in the directory of a docker-registry (its layout: `registry/storage/paths.go`).
fn write_registry(dir: &Path, name: &str, image: &Image) -> Result<()> {
    let top = "registry/docker/registry/v2";
    let repository = format!("{top}/repositories/{name}");
    let layers = image.layers.iter().map(|layer| &layer.blob);
    for blob in layers.chain([&image.config, &image.manifest]) {
        let hex = sum(blob);
        write_file(dir, &format!("{top}/blobs/sha256/{}/{hex}/data", &hex[..2]), blob)?;
        let link = format!("sha256:{hex}");
        write_file(dir, &format!("{repository}/_layers/sha256/{hex}/link"), link.as_bytes())?;
    }
    let hex = sum(&image.manifest);
    let link = format!("sha256:{hex}");
    let tag = format!("{repository}/_manifests/tags/v1");
    for place in [
        format!("{repository}/_manifests/revisions/sha256/{hex}/link"),
        format!("{tag}/current/link"),
        format!("{tag}/index/sha256/{hex}/link"),
    ] {
        write_file(dir, &place, link.as_bytes())?;
    }
    Ok(())
}

/// For a registry that serves what lies in `dir`.
pub(super) fn registry_config(dir: &str) -> String {
    // JSON is YAML.
    json!({
        "version": "0.1",
        "log": { "level": "warn" },
        "storage": { "filesystem": { "rootdirectory": format!("{dir}/registry") } },
        "http": { "addr": plan::REGISTRY },
    })
    .to_string()
}

/// For busybox in the guest: the daemon, then one command after the other, with a mark before and after.
fn script(plan: &Plan) -> String {
    let seek = FS_BYTES / MARK_BYTES;
    let mut script = format!(
        "# Made by `power-loss plan`, seed {seed}.
export HOME=/root D={GUEST_DIR}
ip link add eth0 type dummy && ip address add 198.51.100.2/24 dev eth0 && ip link set eth0 up
ip route add default via 198.51.100.1
echo 'nameserver 198.51.100.1' > /etc/resolv.conf
printf '127.0.0.1\\tlocalhost\\n' > /etc/hosts
mark() {{ # No flush: it is to make nothing durable.
  printf '%-{MARK_BYTES}s' \"{MARK} $1 $2\" > /tmp/mark &&
    dd if=/tmp/mark of=/dev/vda bs={MARK_BYTES} seek={seek} count=1 oflag=direct conv=notrunc 2> /tmp/dd ||
    {{ cat /tmp/dd; exit 1; }}
}}
waits() {{
  n=0
  until \"$@\" > /dev/null 2>&1; do
    n=$((n + 1))
    [ $n -lt 300 ] || {{ echo \"waited for $*\"; cat /var/log/*.log; exit 1; }}
    usleep 100000
  done
}}
run() {{
  mark begin $1
  sh -e /tmp/command > /tmp/out 2>&1 ||
    {{ echo \"command $1 failed:\"; cat /tmp/command /tmp/out; tail -n 40 /var/log/gantry.log; exit 1; }}
  mark done $1
}}
docker-registry serve $D/registry.yml > /var/log/registry.log 2>&1 &
gantry daemon > /var/log/gantry.log 2>&1 &
waits [ -S /run/gantry/gantry.sock ]
waits wget -q -O /dev/null http://{}/v2/
",
        plan::REGISTRY,
        seed = plan.seed,
    );
    for (i, command) in plan.commands.iter().enumerate() {
        script += &format!("cat > /tmp/command <<'END'\n{}\nEND\nrun {i}\n", command.script);
    }
    script + &format!("echo 'power-loss: {} commands are done'\n", plan.commands.len())
}

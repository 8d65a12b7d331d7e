//! Random images in Debian's dockerd, whose overlay of the layers has to show, entry by entry, what GNU tar
//! makes of the same archives; `store`'s test of the same name holds our three forms against it. What
//! dockerd does in ways of its own is `trees::DOCKERD`.
//!
//! `FUZZ_SEED` is the number of the first case, `TREES` how many there are.

use testkit::engine::Daemon;
use testkit::fixtures::oci::{Image, Layer};
use testkit::fixtures::trees::{self, Draws, Reader, gnu, walk};
use testkit::leak::LeakCheck;
use testkit::peer::{self, Release};
use testkit::random;
use testkit::sandbox::Sandbox;

/// What `make test` takes.
const SAMPLE: u64 = 4;
/// For making a failing case smaller.
const SHRINK: std::time::Duration = std::time::Duration::from_secs(25);
const SHOWN: &str = "/run/tmp/shown";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn dockerd_shows_what_gnu_tar_makes() {
    let leak = LeakCheck::new().unwrap();
    let sandbox = Sandbox::new().unwrap();
    let mut dockerd = peer::dockerd(&sandbox, Release::Bookworm, &serde_json::Value::Null).unwrap();
    let first = number("FUZZ_SEED").unwrap_or_else(|| u64::from(random::number(1..u32::MAX)));
    eprintln!("trees in dockerd: FUZZ_SEED={first}");
    let mut entries = 0;
    for seed in first..first + number("TREES").unwrap_or(SAMPLE) {
        let mut tree = trees::case(seed);
        let draws = tree.current();
        entries += draws.build(Reader::Dockerd).iter().map(|l| l.entries.len()).sum::<usize>();
        if let Some(why) = failure(&dockerd, &draws) {
            eprintln!("trees in dockerd: FUZZ_SEED={seed} fails: {why}");
            let fails = |draws: &Draws| failure(&dockerd, draws);
            let (draws, why) = trees::shrink(&mut *tree, SHRINK, fails).unwrap_or((draws, why));
            let layers = trees::describe(&draws.build(Reader::Dockerd));
            panic!("FUZZ_SEED={seed}: {why}\n{layers}");
        }
    }
    assert!(entries > 0, "all cases were empty");
    dockerd.stop().unwrap();
    drop(dockerd);
    sandbox.close().unwrap();
    leak.finish().unwrap();
}

/// Why a case fails, if it does.
fn failure(dockerd: &Daemon<'_>, draws: &Draws) -> Option<String> {
    let layers = draws.build(Reader::Dockerd);
    let ground = tempfile::tempdir().unwrap();
    let undescribed = match gnu::apply(&layers, ground.path()) {
        Ok(undescribed) => undescribed,
        Err(error) => return Some(format!("GNU tar: {error}")),
    };
    let wanted = walk::walk(ground.path()).unwrap();
    match shown(dockerd, &layers) {
        Err(error) => Some(format!("dockerd: {error}")),
        Ok(found) => wanted.as_dockerd(&undescribed).difference(&found.as_dockerd(&undescribed)),
    }
}

/// What dockerd's layers of an image show as it mounts them for a container.
fn shown(dockerd: &Daemon<'_>, layers: &[trees::Layer]) -> Result<walk::Walked, testkit::Error> {
    let sandbox = dockerd.sandbox();
    let layers = layers.iter().map(|layer| Layer::plain(layer.tar())).collect();
    let image = Image::new(layers, &serde_json::json!({ "Cmd": ["/x"] }));
    let name = format!("{}:v1", random::name("tree"));
    dockerd.docker(["load", "-q"]).stdin(image.docker_archive(&name)).ok()?;
    // By the short names that dockerd has for layers: sixty long ones do not fit into a page.
    let script = format!(
        "top=$(docker image inspect -f '{{{{.GraphDriver.Data.UpperDir}}}}' {name})
         cd ${{top%/*}}/..; top=${{top%/diff}}; top=${{top##*/}}
         below=/run/tmp/empty; test ! -e $top/lower || below=$(cat $top/lower)
         mkdir -p {SHOWN} /run/tmp/empty
         mount -t overlay -o ro,lowerdir=l/$(cat $top/link):$below shown {SHOWN}"
    );
    dockerd.client("sh", ["-ec", &script]).ok()?;
    let walked = walk::walk(&sandbox.path(SHOWN)).map_err(|error| testkit::Error::Failed {
        command: format!("walk {SHOWN}"),
        status: error.to_string(),
        output: String::new(),
    });
    dockerd.client("sh", ["-ec", &format!("umount {SHOWN}; docker rmi {name}")]).ok()?;
    walked
}

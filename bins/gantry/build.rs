//! Tells the program from what it was built: the commit, when that was made, and the compiler. And has the
//! linker put the functions of a release build in order.
//!
//! Nothing of it depends on when or where it is built. Outside of a checkout of this tree there is no
//! commit, and no time unless `SOURCE_DATE_EPOCH` gives one.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    // Of this tree, not of one around it.
    let own = git(&["rev-parse", "--show-prefix"]).as_deref() == Some("bins/gantry/");
    let git = |args: &[&str]| if own { git(args) } else { None };
    // The log of HEAD grows with each commit; where there is none, HEAD itself at least moves.
    for name in ["logs/HEAD", "HEAD"] {
        let path = git(&["rev-parse", "--git-path", name]);
        if let Some(path) = path.filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
            break;
        }
    }
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_default();
    let asked = std::env::var("SOURCE_DATE_EPOCH").ok().filter(|time| !time.is_empty());
    let time = asked.or_else(|| git(&["log", "-1", "--format=%ct"])).unwrap_or_default();
    let compiler = std::env::var("RUSTC").ok().and_then(|rustc| output(&rustc, &["--version"]));
    let compiler = compiler.unwrap_or_default();
    let compiler: Vec<&str> = compiler.split_whitespace().take(2).collect();
    println!("cargo::rustc-env=GANTRY_COMMIT={commit}");
    println!("cargo::rustc-env=GANTRY_BUILD_SECONDS={time}");
    println!("cargo::rustc-env=GANTRY_COMPILER={}", compiler.join(" "));
    order();
}

/// What short-lived processes and an idle daemon go through lies side by side in memory, see
/// `scripts/link-order`. The list is of x86-64; the linker that comes with the compiler understands it, and
/// another that somebody has chosen need not.
fn order() {
    /// Written by `scripts/link-order`.
    const LIST: &str = "link-order.ld.gz";
    println!("cargo::rerun-if-changed={LIST}");
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    let flags = var("CARGO_ENCODED_RUSTFLAGS");
    let chosen = !var("RUSTC_LINKER").is_empty() || flags.contains("link");
    if var("PROFILE") != "release" || var("CARGO_CFG_TARGET_ARCH") != "x86_64" || chosen {
        return;
    }
    let packed = std::fs::read(LIST).expect("it is part of the tree");
    let mut script = String::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut script).expect("gzip of text");
    let path = PathBuf::from(var("OUT_DIR")).join("link-order.ld");
    std::fs::write(&path, script).expect("cargo has made the directory");
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", path.display());
}

fn git(args: &[&str]) -> Option<String> {
    output("git", args)
}

/// What a program says, if it succeeds and says something.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

//! Tells the program from what it was built: the commit, when that was made, and the compiler.
//!
//! Nothing of it depends on when or where it is built. Outside of a checkout of this tree there is no
//! commit, and no time unless `SOURCE_DATE_EPOCH` gives one.

use std::path::Path;
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

//! The words in `mounts[].options`, each by itself and together.

use super::mounts::{line, source_with_mount};
use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, lacks, same, want};
use crate::random;
use serde_json::json;

pub(super) const ALL: &[Property] = &[
    p("mount-options/flags-of-a-bind", |g| flags(g, "bind")),
    p("mount-options/flags-of-a-file-system", |g| flags(g, "tmpfs")),
    p("mount-options/flags-together", together),
    p("mount-options/the-last-wins", last_wins),
    p("mount-options/inverse-words", inverse),
    p("mount-options/defaults", defaults),
    p("mount-options/unknown-words-go-to-the-file-system", unknown),
    p("mount-options/ro-bind-holds", ro_holds),
    p("mount-options/ro-is-not-recursive", ro_flat),
    p("mount-options/rro", |g| recursive(g, "rro", "ro,", true)),
    p("mount-options/rnosuid", |g| recursive(g, "rnosuid", "nosuid", false)),
    p("mount-options/rnodev", |g| recursive(g, "rnodev", "nodev", false)),
    p("mount-options/rnoexec", |g| recursive(g, "rnoexec", "noexec", false)),
    p("mount-options/rnoatime", |g| recursive(g, "rnoatime", "noatime", false)),
    p("mount-options/rnodiratime", |g| recursive(g, "rnodiratime", "nodiratime", false)),
    p("mount-options/rrelatime", |g| recursive(g, "rrelatime", "relatime", false)),
    p("mount-options/rnosymfollow", |g| recursive(g, "rnosymfollow", "nosymfollow", false)),
    p("mount-options/rstrictatime", rstrictatime),
    p("mount-options/rrw-undoes", rrw),
    p("mount-options/noexec-holds", noexec_holds),
    p("mount-options/nodev-holds", nodev_holds),
    p("mount-options/nosymfollow-holds", nosymfollow_holds),
    p("mount-options/sync-and-dirsync", synchronous),
];

fn mounted(g: &Ground, kind: &str, options: &[&str]) -> Checked<String> {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/mountinfo"]);
    let mut all: Vec<&str> = options.to_vec();
    let source = if kind == "bind" {
        crate::oci::write(b.path("source/x"), "")?;
        all.insert(0, "rbind");
        b.path("source").display().to_string()
    } else {
        "tmpfs".to_owned()
    };
    b.mount(json!({"destination": "/m", "type": kind, "source": source, "options": all}));
    let got = b.output()?;
    Ok(line(&got, "/m").to_owned())
}

fn options_of(line: &str) -> Vec<&str> {
    line.split(' ').nth(5).unwrap_or_default().split(',').collect()
}

fn flags(g: &Ground, kind: &str) -> Checked {
    for flag in ["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime"] {
        let got = mounted(g, kind, &[flag])?;
        want(options_of(&got).contains(&flag), flag, &got)?;
    }
    let got = mounted(g, kind, &["strictatime"])?;
    want(!options_of(&got).iter().any(|o| ["relatime", "noatime"].contains(o)), "strict", &got)
}

fn together(g: &Ground) -> Checked {
    let mut wanted: Vec<&str> = ["ro", "nosuid", "nodev", "noexec", "nodiratime"]
        .into_iter()
        .filter(|_| random::number(0..2) == 1)
        .collect();
    for kind in ["bind", "tmpfs"] {
        let got = mounted(g, kind, &wanted)?;
        let mut seen: Vec<&str> = options_of(&got);
        seen.retain(|option| !["rw", "relatime"].contains(option));
        seen.sort_unstable();
        wanted.sort_unstable();
        same("options", seen, wanted.clone())?;
    }
    Ok(())
}

fn last_wins(g: &Ground) -> Checked {
    for (one, two) in [("ro", "rw"), ("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec")] {
        lacks(two, &options_of(&mounted(g, "tmpfs", &[one, two])?).join(" "), one)?;
        has(one, &options_of(&mounted(g, "tmpfs", &[two, one])?).join(" "), one)?;
    }
    Ok(())
}

fn inverse(g: &Ground) -> Checked {
    let words = ["suid", "dev", "exec", "rw", "diratime", "async", "relatime", "loud", "nomand"];
    let got = mounted(g, "tmpfs", &words)?;
    same("options", options_of(&got), ["rw", "relatime"])
}

fn defaults(g: &Ground) -> Checked {
    same("options", options_of(&mounted(g, "tmpfs", &["defaults"])?), ["rw", "relatime"])
}

fn unknown(g: &Ground) -> Checked {
    let word = random::token(7);
    let mut b = Bundle::new(g, "true")?;
    b.mount(json!({"destination": "/m", "type": "tmpfs", "source": "tmpfs", "options": [word]}));
    has("run", &b.refused()?, "/m")
}

fn ro_holds(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "touch /m/new 2>&1; echo y > /m/x")?;
    crate::oci::write(b.path("source/x"), "old")?;
    b.mount(json!({"destination": "/m", "type": "bind", "source": "source",
        "options": ["rbind", "ro"]}));
    has("touch", &b.run()?.stdout, "Read-only file system")?;
    same("the file", crate::oci::read(b.path("source/x"))?, "old")?;
    want(!b.path("source/new").exists(), "a new file", "")
}

fn ro_flat(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "touch /m/sub/new && echo done")?;
    let (source, _below) = source_with_mount(&b)?;
    b.mount(json!({"destination": "/m", "type": "bind", "source": source,
        "options": ["rbind", "ro"]}));
    same("the mount below", b.output()?, "done")
}

/// The words with an r are for all that is below as well.
fn recursive(g: &Ground, word: &str, wanted: &str, writes: bool) -> Checked {
    let mut b = Bundle::new(g, "touch /m/sub/new 2>&1; cat /proc/self/mountinfo")?;
    let (source, _below) = source_with_mount(&b)?;
    b.mount(json!({"destination": "/m", "type": "bind", "source": source,
        "options": ["rbind", word]}));
    let got = b.run()?.ok()?;
    for at in ["/m", "/m/sub"] {
        has(at, line(&got, at).split(' ').nth(5).unwrap_or_default(), wanted)?;
    }
    same("a write below fails", got.contains("Read-only file system"), writes)
}

fn rstrictatime(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["cat", "/proc/self/mountinfo"]);
    let (source, _below) = source_with_mount(&b)?;
    b.mount(json!({"destination": "/m", "type": "bind", "source": source,
        "options": ["rbind", "rstrictatime"]}));
    let got = b.output()?;
    for at in ["/m", "/m/sub"] {
        lacks(at, line(&got, at).split(' ').nth(5).unwrap_or_default(), "relatime")?;
    }
    Ok(())
}

fn rrw(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "touch /m/sub/new && echo done")?;
    let (source, _below) = source_with_mount(&b)?;
    b.mount(json!({"destination": "/m", "type": "bind", "source": source,
        "options": ["rbind", "rro", "rrw"]}));
    same("a write below", b.output()?, "done")
}

fn noexec_holds(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "/m/program 2>&1; sh /m/program")?;
    crate::oci::write(b.path("source/program"), "#!/bin/sh\necho run\n")?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    drop(std::fs::set_permissions(b.path("source/program"), mode));
    b.mount(json!({"destination": "/m", "type": "bind", "source": "source",
        "options": ["rbind", "noexec"]}));
    let got = b.output()?;
    has("execution", &got, "Permission denied")?;
    want(got.ends_with("run"), "by a shell", got)
}

fn nodev_holds(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "mknod /m/null c 1 3 && head -c 0 /m/null 2>&1; echo $?")?;
    b.mount(json!({"destination": "/m", "type": "tmpfs", "source": "tmpfs", "options": ["nodev"]}));
    has("open", &b.output()?, "ermission denied")
}

fn nosymfollow_holds(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "ln -s /etc/passwd /m/link; cat /m/link 2>&1; readlink /m/link")?;
    b.mount(json!({"destination": "/m", "type": "tmpfs", "source": "tmpfs",
        "options": ["nosymfollow"]}));
    let got = b.output()?;
    lacks("what the link leads to", &got, "root:")?;
    want(got.ends_with("/etc/passwd"), "the link itself", got)
}

fn synchronous(g: &Ground) -> Checked {
    for word in ["sync", "dirsync"] {
        let got = mounted(g, "tmpfs", &[word])?;
        let super_options = got.rsplit(' ').next().unwrap_or_default().to_owned();
        want(super_options.split(',').any(|o| o == word), word, got)?;
    }
    Ok(())
}

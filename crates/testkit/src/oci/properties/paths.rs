//! `maskedPaths` and `readonlyPaths`.

use super::p;
use crate::oci::bundle::Bundle;
use crate::oci::{Checked, Ground, Property, has, same, want};
use crate::random;
use serde_json::json;

pub(super) const ALL: &[Property] = &[
    p("paths/masked-file", masked_file),
    p("paths/masked-directory", masked_directory),
    p("paths/masked-directory-is-read-only", masked_read_only),
    p("paths/masked-missing", masked_missing),
    p("paths/masked-through-a-link", masked_link),
    p("paths/read-only", read_only),
    p("paths/read-only-file", read_only_file),
    p("paths/read-only-missing", read_only_missing),
    p("paths/read-only-keeps-flags", read_only_flags),
    p("paths/docker-s-defaults", defaults),
];

fn masked_file(g: &Ground) -> Checked {
    let mut b =
        Bundle::new(g, "stat -c %F:%t:%T /secret; cat /secret; echo x > /secret && echo w")?;
    b.file("secret", random::token(12), 0o644)?;
    b.config["linux"]["maskedPaths"] = json!(["/secret"]);
    has("what is seen", &b.run()?.stdout, "character special file:1:3\n")?;
    let content = crate::oci::read(b.root("secret"))?;
    same("what is below it is unchanged", content.len(), 12)
}

fn masked_directory(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "ls -A /secret | wc -l; stat -c %F /secret")?;
    b.file("secret/file", "x", 0o644)?;
    b.config["linux"]["maskedPaths"] = json!(["/secret"]);
    same("what is seen", b.output()?, "0\ndirectory")
}

fn masked_read_only(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "touch /secret/new 2>&1; touch /secret/../secret/x 2>&1")?;
    b.directory("secret")?;
    b.config["linux"]["maskedPaths"] = json!(["/secret"]);
    has("a write", &b.run()?.stdout, "Read-only file system")
}

fn masked_missing(g: &Ground) -> Checked {
    let name = format!("/{}", random::token(8));
    let mut b = Bundle::new(g, &format!("ls {name} 2>/dev/null; echo on"))?;
    b.config["linux"]["maskedPaths"] = json!([name, format!("{name}/deep")]);
    same("output", b.output()?, "on")?;
    want(!b.root(&name).exists(), "it is not made", name)
}

/// What the link leads to is masked, whichever way it is reached.
fn masked_link(g: &Ground) -> Checked {
    let word = random::token(12);
    let mut b = Bundle::new(g, "cat /link/file 2>/dev/null; cat /real/file 2>/dev/null; echo on")?;
    b.file("real/file", &word, 0o644)?;
    drop(std::os::unix::fs::symlink("/real", b.root("link")));
    b.config["linux"]["maskedPaths"] = json!(["/link"]);
    let ran = b.run()?;
    want(!ran.stdout.contains(&word), "what is seen", ran.to_string())
}

fn read_only(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "touch /ro/x 2>&1; touch /rw && cat /ro/file")?;
    b.file("ro/file", "content", 0o644)?;
    b.config["linux"]["readonlyPaths"] = json!(["/ro"]);
    let ran = b.run()?;
    has("a write", &ran.stdout, "/ro/x: Read-only file system")?;
    has("a read", &ran.stdout, "content")
}

fn read_only_file(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "echo x > /file; cat /file")?;
    b.file("file", "content", 0o644)?;
    b.config["linux"]["readonlyPaths"] = json!(["/file"]);
    let ran = b.run()?;
    has("a write", &ran.stderr, "Read-only file system")?;
    same("the file", ran.line(), "content")
}

fn read_only_missing(g: &Ground) -> Checked {
    let name = format!("/{}", random::token(8));
    let mut b = Bundle::new(g, "echo on")?;
    b.config["linux"]["readonlyPaths"] = json!([name]);
    same("output", b.output()?, "on")
}

fn read_only_flags(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "grep ' /proc/sys ' /proc/self/mountinfo")?;
    b.config["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    let got = b.output()?;
    let options = got.split(' ').nth(5).unwrap_or_default();
    for wanted in ["ro", "nosuid", "nodev", "noexec"] {
        has("options", options, wanted)?;
    }
    Ok(())
}

fn defaults(g: &Ground) -> Checked {
    let masked = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"];
    let read_only = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
    // Whatever of them this kernel has; what is written is what is there, so that it harms nobody.
    let script = "for f in /proc/kcore /proc/keys /proc/timer_list; do [ ! -e $f ] || cat $f; done; \
                  for d in /proc/acpi /sys/firmware; do [ ! -d $d ] || ls $d; done; \
                  n=$(cat /proc/sys/kernel/pid_max); echo $n > /proc/sys/kernel/pid_max; \
                  echo h > /proc/irq/default_smp_affinity";
    let mut b = Bundle::new(g, script)?;
    b.config["linux"]["maskedPaths"] = json!(masked);
    b.config["linux"]["readonlyPaths"] = json!(read_only);
    let ran = b.run()?;
    same("what is masked", ran.line(), "")?;
    want(ran.stderr.matches("ead-only file system").count() == 2, "refused writes", ran.to_string())
}

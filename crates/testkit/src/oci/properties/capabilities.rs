//! The five sets of capabilities.

use super::p;
use crate::oci::bundle::{Bundle, DOCKER_CAPABILITIES};
use crate::oci::{Checked, Ground, Property, has, same, want};
use crate::random;
use serde_json::{Value, json};

pub(super) const ALL: &[Property] = &[
    p("capabilities/sets-as-given", sets),
    p("capabilities/ambient-for-another-user", ambient),
    p("capabilities/another-user-without-ambient", other_user),
    p("capabilities/none", none),
    p("capabilities/absent", absent),
    p("capabilities/dropped-really", dropped),
    p("capabilities/kept-really", kept),
    p("capabilities/unknown-name", unknown),
    p("capabilities/no-inheritable-by-itself", no_inheritable),
    p("capabilities/securebits", securebits),
];

const LOOK: &str = "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb):' /proc/self/status";

/// Their numbers in the kernel, of those that are used here.
const NUMBERS: [(&str, u32); 14] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_FOWNER", 3),
    ("CAP_FSETID", 4),
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_SETPCAP", 8),
    ("CAP_NET_BIND_SERVICE", 10),
    ("CAP_NET_RAW", 13),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_MKNOD", 27),
    ("CAP_AUDIT_WRITE", 29),
];

fn some() -> Vec<(&'static str, u32)> {
    NUMBERS.into_iter().filter(|_| random::number(0..2) == 1).collect()
}

fn names(of: &[(&'static str, u32)]) -> Value {
    json!(of.iter().map(|(name, _)| *name).collect::<Vec<_>>())
}

fn mask(of: &[(&'static str, u32)]) -> u64 {
    of.iter().map(|(_, number)| 1 << number).sum()
}

/// One set, from the lines of status.
fn seen(text: &str, set: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("Cap{set}:\t")));
    line.and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(u64::MAX)
}

fn sets(g: &Ground) -> Checked {
    let bounding = some();
    let half = |of: &[(&'static str, u32)]| -> Vec<(&'static str, u32)> {
        of.iter().copied().filter(|_| random::number(0..3) > 0).collect()
    };
    let permitted = half(&bounding);
    let (effective, inheritable) = (half(&permitted), half(&permitted));
    let ambient = half(&inheritable);
    let mut b = Bundle::new(g, "")?;
    b.config["process"]["args"] = json!(["sh", "-c", LOOK]);
    // Root's program gets all that is bounding, so the sets show before exec only for another user.
    b.config["process"]["user"] = json!({"uid": 1234, "gid": 1234});
    b.config["process"]["capabilities"] = json!({
        "bounding": names(&bounding), "permitted": names(&permitted),
        "effective": names(&effective), "inheritable": names(&inheritable),
        "ambient": names(&ambient),
    });
    let got = b.output()?;
    same("bounding", seen(&got, "Bnd"), mask(&bounding))?;
    same("inheritable", seen(&got, "Inh"), mask(&inheritable))?;
    same("ambient", seen(&got, "Amb"), mask(&ambient))?;
    // What the kernel makes of them at exec of an ordinary file.
    same("permitted", seen(&got, "Prm"), mask(&ambient))?;
    same("effective", seen(&got, "Eff"), mask(&ambient))
}

fn ambient(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "touch /owned && chown 5:5 /owned && stat -c %u /owned")?;
    let list = json!(["CAP_CHOWN", "CAP_DAC_OVERRIDE"]);
    for set in ["bounding", "permitted", "effective", "inheritable", "ambient"] {
        b.config["process"]["capabilities"][set] = list.clone();
    }
    b.config["process"]["user"] = json!({"uid": 1234, "gid": 1234});
    same("owner", b.output()?, "5")
}

fn other_user(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, LOOK)?;
    b.config["process"]["user"] = json!({"uid": 1234, "gid": 1234});
    let got = b.output()?;
    for set in ["Eff", "Prm", "Inh", "Amb"] {
        same(set, seen(&got, set), 0)?;
    }
    want(seen(&got, "Bnd") != 0, "bounding", got)
}

fn none(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, LOOK)?;
    b.config["process"]["capabilities"] = json!({});
    let got = b.output()?;
    for set in ["Eff", "Prm", "Inh", "Amb", "Bnd"] {
        same(set, seen(&got, set), 0)?;
    }
    Ok(())
}

fn absent(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, LOOK)?;
    b.config["process"].as_object_mut().expect("an object").remove("capabilities");
    let got = b.output()?;
    for set in ["Eff", "Prm", "Inh", "Amb", "Bnd"] {
        same(set, seen(&got, set), 0)?;
    }
    Ok(())
}

fn dropped(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, "chown 5:5 /etc/group; echo $?; hostname other; echo $?")?;
    let list: Vec<&str> = DOCKER_CAPABILITIES.into_iter().filter(|n| *n != "CAP_CHOWN").collect();
    b.capabilities(&list);
    same("both fail", b.output()?, "1\n1")
}

fn kept(g: &Ground) -> Checked {
    let name = random::name("host");
    let script = format!("chown 5:5 /etc/group && hostname {name} && hostname");
    let mut b = Bundle::new(g, &script)?;
    b.capabilities(&["CAP_CHOWN", "CAP_SYS_ADMIN"]);
    same("both succeed", b.output()?, name)
}

/// A name of a later kernel is left out, and told, so that old hosts run new configs.
fn unknown(g: &Ground) -> Checked {
    let name = format!("CAP_{}", random::token(6).to_uppercase());
    let mut b = Bundle::new(g, LOOK)?;
    b.capabilities(&["CAP_CHOWN", &name]);
    let ran = b.run()?;
    same("exit code", ran.code, 0)?;
    same("effective", seen(&ran.stdout, "Eff"), 1)?;
    has("a warning", &ran.stderr, &name)
}

fn no_inheritable(g: &Ground) -> Checked {
    let mut b = Bundle::new(g, LOOK)?;
    let got = b.output()?;
    same("inheritable", seen(&got, "Inh"), 0)?;
    same("ambient", seen(&got, "Amb"), 0)?;
    same("effective and bounding", seen(&got, "Eff"), seen(&got, "Bnd"))
}

/// No bit that keeps root from being root is left set.
fn securebits(g: &Ground) -> Checked {
    use crate::oci::elf;
    let mut b = Bundle::new(g, "")?;
    b.file("probe", elf::x86_64(&[elf::call(157, &[27, 0, 0, 0, 0])]), 0o755)?; // PR_GET_SECUREBITS
    b.config["process"]["args"] = json!(["/probe"]);
    same("securebits", elf::results(&b.run()?.raw, true), [0])
}

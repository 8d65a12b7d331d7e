//! Tests that run once for each form that layers take.

use std::process::Command;

use store::LayerForm;

/// In the environment of a test's own process: the form of its stores' layers.
pub const FORM: &str = "STORE_LAYERS";
/// Seconds for one test in one form.
const LIMIT: &str = "600";

/// The form that the environment names; without one layers are extracted.
pub fn form() -> LayerForm {
    match std::env::var(FORM).as_deref() {
        Ok("index") => LayerForm::Index,
        Ok("copy") => LayerForm::Copy,
        Ok("directories") | Err(_) => LayerForm::Directories,
        Ok(other) => panic!("{FORM}={other}: directories, index or copy"),
    }
}

/// Runs a test of this binary in a process and a mount namespace of its own, with stores of one form: no
/// mount is seen outside, and a test that hangs is ended.
pub fn in_form(form: &str, name: &str, work: impl AsyncFnOnce()) {
    if std::env::var_os(FORM).is_some() {
        tokio::runtime::Runtime::new().unwrap().block_on(work());
        return;
    }
    if form == "index" && !mounts_erofs() {
        eprintln!("SKIPPED {name}: this kernel mounts no EROFS from files (6.12 does)");
        return;
    }
    // Mounts keep their directories until the namespace is gone. The room lies in the place of the
    // temporary directory, whose path is short enough for that of many layers.
    let room = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    let place = Some(std::env::temp_dir()).filter(|place| !program.starts_with(place));
    let status = Command::new("timeout")
        .args(["--kill-after=10", LIMIT])
        .args(["unshare", "--mount", "--propagation", "private"])
        .args(["sh", "-ec", "mount --bind \"$1\" \"$2\"; shift 2; exec \"$@\"", "sh"])
        .arg(room.path())
        .arg(place.as_deref().unwrap_or(room.path()))
        .arg(program)
        .args(["--exact", name, "--nocapture"])
        .env(FORM, form)
        .status()
        .unwrap();
    room.close().unwrap();
    assert!(status.success(), "{name}: {status}");
}

fn mounts_erofs() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 12)
}

/// Makes a test of each async function for each form: `index::NAME`, and so on.
#[macro_export]
macro_rules! in_every_form {
    ($($name:ident),* $(,)?) => {
        $crate::in_every_form!(@ directories index copy; $($name)*);
    };
    (@ $($form:ident)*; $($name:ident)*) => {
        $crate::in_every_form!(@each [$($form)*] [$($name)*]);
    };
    (@each [] $names:tt) => {};
    (@each [$form:ident $($more:ident)*] [$($name:ident)*]) => {
        mod $form {$(
            #[test]
            fn $name() {
                let name = concat!(stringify!($form), "::", stringify!($name));
                $crate::suite::forms::in_form(stringify!($form), name, super::$name);
            }
        )*}
        $crate::in_every_form!(@each [$($more)*] [$($name)*]);
    };
}

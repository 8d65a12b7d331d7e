//! Protects itself, as a shim does, and then runs the program that it is given.

use std::os::unix::process::CommandExt;

fn main() -> std::io::Result<()> {
    runtime::selfexe::protect().map_err(std::io::Error::other)?;
    assert!(runtime::selfexe::is_protected().map_err(std::io::Error::other)?);
    let mut words = std::env::args_os().skip(1);
    let program = words.next().unwrap_or_else(|| "true".into());
    Err(std::process::Command::new(program).args(words).exec())
}

//! Test programs that are one test, with a `main` of their own, beside the standard harness.

use std::io::Write as _;

/// Answers a test runner's questions for a program that is the one test `name`: whether the program
/// has nothing more to do, because it was only listed, or another test was asked for.
pub fn is_answered(name: &str) -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--list") {
        if !has("--ignored") {
            // A runner that does not listen does not matter.
            writeln!(std::io::stdout(), "{name}: test").ok();
        }
        return true;
    }
    has("--ignored") || (has("--exact") && !has(name))
}

//! The shim as a program of its own; in the one binary it is `gantry shim`.

fn main() {
    std::process::exit(shim::main(std::env::args_os().skip(1).collect()));
}

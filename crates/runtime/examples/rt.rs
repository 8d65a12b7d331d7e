//! The runtime's command line on its own, for tests and for use by hand.

fn main() {
    std::process::exit(runtime::cli::main(std::env::args_os().skip(1).collect()));
}

//! The init alone, for tests; in the one binary it is what runs under the name `docker-init`.

fn main() {
    std::process::exit(shim::init::main(std::env::args_os().skip(1).collect()));
}

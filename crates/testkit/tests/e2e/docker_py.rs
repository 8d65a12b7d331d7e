//! docker-py, from PyPI.

use crate::ground::on_engine;
use std::time::Duration;
use testkit::sandbox::Net;
use testkit::{Error, cache_dir, random};

#[test]
fn the_examples_of_its_documentation_work() {
    on_engine(Net::Isolated, |ground| {
        let python = cache_dir().join("venv/bin/python");
        assert!(python.exists(), "{:?}", Error::MissingPeer { path: python });
        let (word, code) = (random::token(8), random::exit_code().to_string());
        let program = python.display().to_string();
        let args = ["-c", include_str!("docker_py.py"), ground.reference(), &word, &code];
        let command = ground.daemon.client(&program, args).timeout(Duration::from_secs(180));
        let output = command.output().unwrap();
        assert_eq!(output.code(), 0, "{}", output.both());
        assert_eq!(output.text(), format!("all done {word}"));
    });
}

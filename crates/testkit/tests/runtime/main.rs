//! Runtimes against the specification: the suite of [`testkit::oci`] on ours, on Debian's runc and on
//! crun, each in a sandbox, and what fails held against the list of known differences.
//!
//! `CONFORMANCE_RUNTIME=/path/of/a/runtime` has the suite look at that one in place of ours,
//! `CONFORMANCE_LONG=1` lets attacks go through as many rounds as are on their list, not a sample.
#![allow(clippy::unwrap_used)]

mod attacks;
mod conformance;
mod list;

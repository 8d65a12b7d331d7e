#![allow(clippy::unwrap_used)]
//! Random trees against GNU tar in both directions, hostile archives, layers.
//! Runs as root: owners, devices and `trusted.*` attributes are part of it.

mod gnu;
mod hostile;
mod layers;
mod tree;

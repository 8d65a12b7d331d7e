//! What containerd's services do not know.

mod hello;
mod merge;
mod rootfs;
mod squash;

//! What containerd's services do not know.

mod analyse;
mod hello;
mod merge;
mod rootfs;
mod squash;

pub(crate) use self::analyse::analyse;

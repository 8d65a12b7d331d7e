//! Named points at which a test lets this process die, or the write or read that follows fail.
//!
//! Owns: the plan of what happens where. Does not own: the points, which lie in the code that they
//! are about, a line each; what has to hold afterwards, which is the tests'.
//!
//! Without debug assertions, as in every release build, the functions are empty and nothing is read
//! from the environment. With them a point costs one relaxed atomic load, unless the environment, or
//! a test in the same process ([`arm`]), has a plan:
//!
//! - `GANTRY_FAULT=NAME:N[+]:ACTION[,…]`: at the N-th pass of the point NAME, or with `+` from then on.
//!   NAME `*` stands for all points and counts the passes of all, `*w` for those in front of a write, `*r`
//!   for those in front of a read. ACTION is `kill` (SIGKILL to this process), or an error that the write or
//!   read gets: `enospc`, `eio`, `emfile`; a point that is in front of neither takes no notice of those.
//! - `GANTRY_FAULT_TRACE=FILE`: every pass is appended to FILE, as `w NAME`, `r NAME` or `p NAME`.
//!
//! Static state: the plan, in builds with debug assertions. Locks: the plan's own, never held when the
//! process goes on in the caller. On-disk layout, tasks, channels: none.

#[cfg(debug_assertions)]
mod plan;

#[cfg(debug_assertions)]
pub use plan::{arm, disarm, fired};

/// A point between two steps.
#[inline(always)]
pub fn pass(name: &'static str) {
    #[cfg(debug_assertions)]
    plan::at(name, plan::Place::Step);
    #[cfg(not(debug_assertions))]
    let _: &str = name;
}

/// A point in front of a write, a rename, a removal or a sync, which is not done if this fails.
///
/// # Errors
/// The one that a test has planned, none else.
#[inline(always)]
pub fn write(name: &'static str) -> std::io::Result<()> {
    #[cfg(debug_assertions)]
    if let Some(error) = plan::at(name, plan::Place::Write) {
        return Err(error);
    }
    #[cfg(not(debug_assertions))]
    let _: &str = name;
    Ok(())
}

/// A point in front of a read on which it depends what counts as lost; it is not done if this fails.
///
/// # Errors
/// The one that a test has planned, none else.
#[inline(always)]
pub fn read(name: &'static str) -> std::io::Result<()> {
    #[cfg(debug_assertions)]
    if let Some(error) = plan::at(name, plan::Place::Read) {
        return Err(error);
    }
    #[cfg(not(debug_assertions))]
    let _: &str = name;
    Ok(())
}

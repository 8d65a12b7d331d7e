//! Attacks on the runtime.

//! gantry-sys
pub mod netns;
pub mod packet;

//! gantry-sys

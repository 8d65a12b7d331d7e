//! gantry-shim

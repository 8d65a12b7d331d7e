//! gantry-store

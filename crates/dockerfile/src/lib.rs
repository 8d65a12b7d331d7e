//! gantry-dockerfile

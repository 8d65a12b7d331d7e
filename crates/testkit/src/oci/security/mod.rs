//! Attacks on the runtime, each with what must hold, and the same attack where the defence is absent,
//! which must succeed: that shows that the test bites. The names are those of the list of known escapes.

mod binary;
mod ground;
mod identity;
mod paths;

use super::{Checked, Ground, Property};

const fn p(name: &'static str, check: fn(&Ground) -> Checked) -> Property {
    Property { name, check }
}

/// Every attack.
pub fn all() -> Vec<Property> {
    [binary::ALL, paths::ALL, identity::ALL].concat()
}

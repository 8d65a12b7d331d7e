//! containerd's filters, for the lists of this crate.

use std::borrow::Cow;

use store_api::filters as language;

pub(crate) use language::label;

use crate::error::Result;

/// Answers the fields of what is filtered, by path: `["labels", "a.b"]`.
pub(crate) trait Fields {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>>;
}

/// The structs are the seam's and the language's trait is too: this stands between them.
struct Of<'a, T>(&'a T);

impl<T: Fields> language::Fields for Of<'_, T> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        self.0.field(path)
    }
}

#[derive(Debug)]
pub(crate) struct Filters(language::Filters);

impl Filters {
    pub(crate) fn parse(filters: &[String]) -> Result<Self> {
        Ok(Self(language::Filters::parse(filters)?))
    }

    pub(crate) fn matches(&self, fields: &impl Fields) -> bool {
        self.0.matches(&Of(fields))
    }
}

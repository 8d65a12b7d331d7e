//! containerd's filters for the little lists that are made here: plugins, and tasks for metrics.
//! What the store lists it filters itself, with the whole language.

use tonic::Status;

/// Alternatives of conditions that must all hold; no alternative: everything passes.
pub(crate) struct Filter(Vec<Vec<Condition>>);

struct Condition {
    field: String,
    equal: bool,
    value: String,
}

impl Filter {
    /// Understands `field==value` and `field!=value`, values quoted or not, joined by commas.
    ///
    /// # Errors
    /// `Unimplemented` for the rest of the language, naming the filter.
    pub(crate) fn parse(filters: &[String]) -> Result<Self, Status> {
        let alternatives = filters.iter().filter(|text| !text.is_empty());
        alternatives.map(|text| conditions(text)).collect::<Result<_, _>>().map(Self)
    }

    /// `field` answers the value of a field, if there is such a field.
    pub(crate) fn matches<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> bool {
        let holds = |condition: &Condition| {
            let value = field(&condition.field);
            (value == Some(condition.value.as_str())) == condition.equal
        };
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(holds))
    }
}

fn conditions(text: &str) -> Result<Vec<Condition>, Status> {
    let other = || Status::unimplemented(format!("the filter {text:?} is not implemented here"));
    let mut conditions = Vec::new();
    for part in text.split(',') {
        let (field, value, equal) = match (part.split_once("=="), part.split_once("!=")) {
            (Some((field, value)), _) => (field, value, true),
            (None, Some((field, value))) => (field, value, false),
            (None, None) => return Err(other()),
        };
        let bare = match value.strip_prefix('"') {
            Some(rest) => rest.strip_suffix('"').ok_or_else(other)?,
            None => value,
        };
        let plain = |text: &str| !text.contains(['"', '\\']);
        if field.is_empty() || !plain(field) || !plain(bare) {
            return Err(other());
        }
        conditions.push(Condition { field: field.to_owned(), equal, value: bare.to_owned() });
    }
    Ok(conditions)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn passes(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
        Filter::parse(&filters).unwrap().matches(|field| match field {
            "id" => Some("overlayfs"),
            "type" => Some("snapshotter"),
            _ => None,
        })
    }

    #[test]
    fn conditions_and_alternatives() {
        assert!(passes(&[]));
        assert!(passes(&["type==snapshotter,id==overlayfs"]));
        assert!(passes(&["type==\"snapshotter\", id==overlayfs".replace(' ', "").as_str()]));
        assert!(!passes(&["type==snapshotter,id==native"]));
        assert!(passes(&["id==native", "id!=native"]));
        assert!(!passes(&["platform==x"]));
    }

    #[test]
    fn the_rest_is_refused() {
        for text in ["id~=over", "id", "id==\"a", "=="] {
            assert!(Filter::parse(&[text.to_string()]).is_err(), "{text}");
        }
    }
}

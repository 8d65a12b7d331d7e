//! How structs become JSON the way Go's encoder does it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Maps are sorted by key, as Go's encoder writes them.
pub type Map<V> = BTreeMap<String, V>;

/// Defines wire structs: PascalCase names, every field optional and null-tolerant.
///
/// A trailing `+ { pub field: Type }` flattens another wire struct into this one.
macro_rules! wire {
    ($(
        $(#[$sm:meta])*
        pub struct $name:ident {
            $( $(#[$fm:meta])* pub $field:ident : $ty:ty ),* $(,)?
        } $( + { $( $(#[$flm:meta])* pub $flat:ident : $flat_ty:ty ),* $(,)? } )?
    )*) => { $(
        $(#[$sm])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        pub struct $name {
            $(
                $(#[$fm])*
                #[serde(deserialize_with = "crate::wire::or_default")]
                pub $field: $ty,
            )*
            $( $( $(#[$flm])* #[serde(flatten)] pub $flat: $flat_ty, )* )?
        }
    )* };
}

/// Reads `null` as the default value.
pub(crate) fn or_default<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// Something that can be empty in Go's `omitempty` sense.
pub(crate) trait IsZero {
    fn is_zero(&self) -> bool;
}

macro_rules! zero_number {
    ($($t:ty),*) => { $( impl IsZero for $t { fn is_zero(&self) -> bool { *self == <$t>::default() } } )* };
}
zero_number!(i32, i64, u8, u16, u32, u64, bool, f64);

impl IsZero for String {
    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}
impl<T> IsZero for Vec<T> {
    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}
impl<V> IsZero for Map<V> {
    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}
impl<T> IsZero for Option<T> {
    fn is_zero(&self) -> bool {
        self.is_none()
    }
}

/// `skip_serializing_if` for Go's `omitempty`.
pub(crate) fn zero<T: IsZero>(value: &T) -> bool {
    value.is_zero()
}

/// Writes an empty list or map as `null`: a nil slice of dockerd's.
pub(crate) fn nil<T: Serialize + IsZero, S: Serializer>(
    value: &T,
    s: S,
) -> Result<S::Ok, S::Error> {
    if value.is_zero() { s.serialize_none() } else { value.serialize(s) }
}

/// Go's `struct{}`: written as `{}`, read from anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Empty {}

impl<'de> Deserialize<'de> for Empty {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(d)?;
        Ok(Empty {})
    }
}

/// A list of words that a client may also send as one string (`Cmd`, `Entrypoint`, `Shell`).
///
/// One string is one word, not a command line to split.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct StrSlice(pub Vec<String>);

impl IsZero for StrSlice {
    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }
}

impl Deref for StrSlice {
    type Target = Vec<String>;
    fn deref(&self) -> &Vec<String> {
        &self.0
    }
}

impl DerefMut for StrSlice {
    fn deref_mut(&mut self) -> &mut Vec<String> {
        &mut self.0
    }
}

impl From<Vec<String>> for StrSlice {
    fn from(words: Vec<String>) -> Self {
        StrSlice(words)
    }
}

impl<'de> Deserialize<'de> for StrSlice {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Words;
        impl<'de> Visitor<'de> for Words {
            type Value = StrSlice;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E>(self, v: &str) -> Result<StrSlice, E> {
                Ok(StrSlice(vec![v.to_owned()]))
            }
            fn visit_unit<E>(self) -> Result<StrSlice, E> {
                Ok(StrSlice::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<StrSlice, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = seq.next_element::<Option<String>>()? {
                    words.push(word.unwrap_or_default());
                }
                Ok(StrSlice(words))
            }
        }
        d.deserialize_any(Words)
    }
}

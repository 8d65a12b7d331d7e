//! A request, taken apart once.

use std::{collections::HashMap, sync::Arc};

use api_types::{ApiVersion, AuthConfig, Filters, query_bool};
use base64::Engine as _;
use engine::Engine;
use http::{HeaderMap, request::Parts};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use types::{Platform, limits};

use crate::error::ApiError;

/// Everything that a handler may ask of a request.
pub(crate) struct Context {
    pub(crate) engine: Arc<Engine>,
    pub(crate) version: ApiVersion,
    pub(crate) parts: Parts,
    pub(crate) body: Option<Incoming>,
    /// What stands in the path for the route's `{}`.
    pub(crate) name: String,
    pub(crate) query: Query,
    /// Keeps the client counted while its stream outlives the request.
    pub(crate) client: Arc<crate::server::Counted>,
}

/// Query parameters, decoded; a name may come several times.
#[derive(Debug, Default)]
pub(crate) struct Query(HashMap<String, Vec<String>>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let mut map: HashMap<String, Vec<String>> = HashMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            map.entry(decode(key, true)).or_default().push(decode(value, true));
        }
        Self(map)
    }

    /// The first value, or nothing.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.0.get(key).and_then(|values| values.first()).map_or("", String::as_str)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub(crate) fn all(&self, key: &str) -> Vec<String> {
        self.0.get(key).cloned().unwrap_or_default()
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        query_bool(self.get(key))
    }

    /// A flag whose absence means yes.
    pub(crate) fn flag_or_yes(&self, key: &str) -> bool {
        !self.has(key) || self.flag(key)
    }

    pub(crate) fn optional(&self, key: &str) -> Option<&str> {
        Some(self.get(key)).filter(|value| !value.is_empty())
    }

    pub(crate) fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, ApiError> {
        match self.optional(key) {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(ApiError::bad(format!("invalid value for {key}: {text:?}"))),
            },
        }
    }

    pub(crate) fn filters(&self) -> Result<Filters, ApiError> {
        Ok(Filters::parse(self.get("filters"))?)
    }

    /// docker's CLI sends `linux/arm64`; the API since 1.48 a JSON object.
    pub(crate) fn platform(&self) -> Result<Option<Platform>, ApiError> {
        self.optional("platform").map(parse_platform).transpose()
    }

    /// The same where there may be several.
    pub(crate) fn platforms(&self) -> Result<Vec<Platform>, ApiError> {
        let given = self.0.get("platform").into_iter().flatten();
        given.filter(|text| !text.is_empty()).map(|text| parse_platform(text)).collect()
    }

    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|(key, values)| values.iter().map(|v| (key.as_str(), v.as_str())))
    }
}

pub(crate) fn parse_platform(text: &str) -> Result<Platform, ApiError> {
    let bad = || ApiError::bad(format!("invalid platform: {text}"));
    if text.starts_with('{') {
        return serde_json::from_str(text).map_err(|_| bad());
    }
    text.parse().map_err(|_| bad())
}

/// Percent-decoding; in queries `+` is a space.
pub(crate) fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let hex = bytes.get(index + 1..index + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        let value = hex.and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match (bytes[index], value) {
            (b'%', Some(value)) => {
                out.push(value);
                index += 3;
                continue;
            }
            (b'+', _) if plus => out.push(b' '),
            (other, _) => out.push(other),
        }
        index += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Context {
    /// The body as one JSON document. An empty body is the default value.
    pub(crate) async fn json<T: DeserializeOwned + Default>(&mut self) -> Result<T, ApiError> {
        let Some(body) = self.body.take() else { return Ok(T::default()) };
        let limited = Limited::new(body, limits::JSON_BODY_BYTES);
        let bytes = limited
            .collect()
            .await
            .map_err(|e| ApiError::bad(format!("the request's body could not be read: {e}")))?
            .to_bytes();
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(T::default());
        }
        let kind = header(&self.parts.headers, "content-type").unwrap_or_default();
        let media = kind.split(';').next().unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::bad(format!(
                "unsupported Content-Type header ({kind}): must be 'application/json'"
            )));
        }
        let mut documents = serde_json::Deserializer::from_slice(&bytes).into_iter::<T>();
        let first = documents
            .next()
            .ok_or_else(|| ApiError::bad("invalid JSON: got EOF while reading request body"))?
            .map_err(|e| ApiError::bad(format!("invalid JSON: {e}")))?;
        if documents.next().is_some() {
            return Err(ApiError::bad("unexpected content after JSON"));
        }
        Ok(first)
    }

    pub(crate) fn upload(&mut self) -> engine::ByteStream {
        match self.body.take() {
            Some(body) => crate::body::upload(body),
            None => tokio::sync::mpsc::channel(1).1,
        }
    }

    /// `X-Registry-Auth`; one that cannot be read counts as none, as in dockerd.
    pub(crate) fn registry_auth(&self) -> Option<AuthConfig> {
        let auth: AuthConfig = decode_json(header(&self.parts.headers, "x-registry-auth")?)?;
        (auth != AuthConfig::default()).then_some(auth)
    }

    /// `X-Registry-Config` of a build.
    pub(crate) fn registry_config(&self) -> std::collections::BTreeMap<String, AuthConfig> {
        header(&self.parts.headers, "x-registry-config").and_then(decode_json).unwrap_or_default()
    }

    pub(crate) fn wants_upgrade(&self) -> bool {
        self.parts.headers.contains_key(http::header::UPGRADE)
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Base64 of JSON, of either alphabet, with or without padding.
fn decode_json<T: DeserializeOwned>(text: &str) -> Option<T> {
    let text: String = text
        .trim_end_matches('=')
        .chars()
        .map(|c| match c {
            '+' => '-',
            '/' => '_',
            other => other,
        })
        .collect();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn queries_decode() {
        let query = Query::parse("a=1&a=b%20c&d=x+y&flag&filters=%7B%7D");
        assert_eq!(query.all("a"), ["1", "b c"]);
        assert_eq!(query.get("d"), "x y");
        assert!(query.has("flag") && !query.flag("flag"));
        assert!(query.filters().unwrap().is_empty());
        assert_eq!(decode("%zz%4", false), "%zz%4");
    }

    #[test]
    fn auth_headers_in_every_dress() {
        use base64::engine::general_purpose::{STANDARD, URL_SAFE};
        let json = r#"{"username":"u?>","password":"p"}"#;
        for text in [STANDARD.encode(json), URL_SAFE.encode(json)] {
            let auth: AuthConfig = decode_json(&text).unwrap();
            assert_eq!(auth.username, "u?>");
        }
        assert!(decode_json::<AuthConfig>("!!!").is_none());
    }
}

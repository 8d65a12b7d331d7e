//! Who we are, as a registry wants to hear it: basic (RFC 7617) or bearer tokens from the
//! realm that it names (distribution's token and OAuth2 specifications).

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use serde::Deserialize;

use crate::{
    client::retry_after,
    config::Credentials,
    endpoint::Endpoint,
    error::{Error, Problem, TransportError},
    transport::{Origin, Payload, Transport, read_small, text},
};

/// Bytes of a token server's answer; tokens of large clouds have some KiB.
const ANSWER_MAX: usize = 256 << 10;
/// Token specification: how long a token holds that does not say so.
const DEFAULT_LIFE_SECS: u64 = 60;
/// A token is renewed this long before its end.
const MARGIN: Duration = Duration::from_secs(5);
/// OAuth2 wants a name of the client.
const CLIENT_ID: &str = "gantry";

/// A `Basic` value; `None` if it cannot be a header.
pub(crate) fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    let text = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What is sent with each request, and until when.
#[derive(Clone, Default)]
pub(crate) struct Authorization {
    pub(crate) value: Option<HeaderValue>,
    expires: Option<Instant>,
    /// Counts renewals, so that requests that failed together renew once.
    pub(crate) generation: u64,
    /// A refresh token that the token server gave.
    pub(crate) identity_token: Option<String>,
}

impl Authorization {
    pub(crate) fn current(&self) -> Option<HeaderValue> {
        let expired = self.expires.is_some_and(|end| Instant::now() >= end);
        self.value.clone().filter(|_| !expired)
    }
}

/// What a 401 asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String>, error: Option<String> },
}

impl Challenge {
    /// The strongest challenge that an answer holds: bearer before basic.
    pub(crate) fn find(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(header::WWW_AUTHENTICATE);
        let mut found = None;
        for text in values.iter().filter_map(|v| v.to_str().ok()) {
            let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                let mut parameters = parameters(rest);
                let mut take = |name| {
                    parameters.iter_mut().find(|p| p.0 == name).map(|p| std::mem::take(&mut p.1))
                };
                if let Some(realm) = take("realm") {
                    let (service, scope, error) = (take("service"), take("scope"), take("error"));
                    return Some(Self::Bearer { realm, service, scope, error });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                found = Some(Self::Basic);
            }
        }
        found
    }
}

/// `name=token` and `name="quoted"`, separated by commas (RFC 9110 section 11.2).
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut rest = text.trim();
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([',', ' ', '\t']).to_ascii_lowercase();
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut chars = quoted.char_indices();
            let mut end = quoted.len();
            while let Some((at, c)) = chars.next() {
                match c {
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    '\\' => value.extend(chars.next().map(|(_, c)| c)),
                    c => value.push(c),
                }
            }
            rest = &quoted[end..];
        } else {
            let end = after.find(',').unwrap_or(after.len());
            value.push_str(after[..end].trim());
            rest = &after[end..];
        }
        out.push((name, value));
    }
    out
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    refresh_token: String,
    #[serde(default)]
    expires_in: u64,
}

/// What a token is asked for.
pub(crate) struct Wish<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) scopes: &'a [String],
    /// Also ask for a refresh token (`docker login`).
    pub(crate) offline: bool,
}

/// Answers a challenge of the registry itself.
pub(crate) async fn answer(
    transport: &Transport,
    challenge: Challenge,
    credentials: &Credentials,
    wish: &Wish<'_>,
) -> Result<Authorization, Error> {
    let unauthorized = || Error::Unauthorized {
        registry: wish.endpoint.registry.clone(),
        message: "unauthorized: authentication required".into(),
    };
    let malformed = |problem| Error::Malformed {
        what: "authentication challenge".into(),
        from: wish.endpoint.registry.clone(),
        problem: Problem::Text(problem),
    };
    match (challenge, credentials) {
        (_, Credentials::RegistryToken { token }) => {
            let value = bearer(token).ok_or_else(unauthorized)?;
            Ok(Authorization { value: Some(value), ..Default::default() })
        }
        (Challenge::Basic, Credentials::Password { username, password }) => {
            let value = basic(username, password).ok_or_else(unauthorized)?;
            Ok(Authorization { value: Some(value), ..Default::default() })
        }
        (Challenge::Basic, _) => Err(Error::Unauthorized {
            registry: wish.endpoint.registry.clone(),
            message: "no basic auth credentials".into(),
        }),
        (Challenge::Bearer { realm, service, scope, .. }, _) => {
            let uri: Uri = realm.parse().map_err(|_| malformed("the realm is no URL"))?;
            let origin = Origin::of(&uri).map_err(|_| malformed("the realm is no URL"))?;
            if wish.endpoint.origin.https && !origin.https {
                return Err(malformed("the realm of a registry with TLS has none"));
            }
            let mut scopes = wish.scopes.to_vec();
            if let Some(scope) = scope {
                let news = scope.split(' ').map(str::to_owned).filter(|s| !s.is_empty());
                let news: Vec<_> = news.filter(|s| !scopes.contains(s)).collect();
                scopes.extend(news);
            }
            fetch(transport, &uri, service.as_deref(), &scopes, credentials, wish).await
        }
    }
}

async fn fetch(
    transport: &Transport,
    realm: &Uri,
    service: Option<&str>,
    scopes: &[String],
    credentials: &Credentials,
    wish: &Wish<'_>,
) -> Result<Authorization, Error> {
    let mut form = Vec::new();
    form.extend(service.map(|s| ("service", s.to_owned())));
    let mut headers = HeaderMap::new();
    let post = matches!(credentials, Credentials::IdentityToken { .. });
    match credentials {
        Credentials::IdentityToken { token } => {
            form.push(("grant_type", "refresh_token".into()));
            form.push(("client_id", CLIENT_ID.into()));
            form.push(("refresh_token", token.clone()));
            form.push(("scope", scopes.join(" ")));
        }
        _ => form.extend(scopes.iter().map(|s| ("scope", s.clone()))),
    }
    if let Credentials::Password { username, password } = credentials {
        form.push(("account", username.clone()));
        form.push(("client_id", CLIENT_ID.into()));
        if wish.offline {
            form.push(("offline_token", "true".into()));
        }
        headers.extend(basic(username, password).map(|v| (header::AUTHORIZATION, v)));
    }
    let encoded = encode_form(&form);
    let (method, uri, payload) = if post {
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(header::CONTENT_TYPE, kind);
        (Method::POST, realm.clone(), Payload::Bytes(Bytes::from(encoded)))
    } else {
        let separator = if realm.query().is_some() { '&' } else { '?' };
        let uri = format!("{realm}{separator}{encoded}");
        let error = |_| Error::Malformed {
            what: "authentication challenge".into(),
            from: wish.endpoint.registry.clone(),
            problem: Problem::Text("the realm is no URL"),
        };
        (Method::GET, uri.parse().map_err(error)?, Payload::Empty)
    };
    let error = |source| Error::Transport {
        method: method.to_string(),
        url: crate::client::shown(realm),
        source,
    };
    let origin = Origin::of(realm).map_err(error)?;
    if origin == wish.endpoint.origin {
        wish.endpoint.own_headers(&mut headers);
    }
    let via = wish.endpoint.via(&origin);
    let response = transport.send(&via, &method, &uri, &headers, payload).await.map_err(error)?;
    let status = response.status();
    let after = text(response.headers(), header::RETRY_AFTER).and_then(retry_after);
    let body = read_small(response.into_body(), ANSWER_MAX, &transport.timeouts)
        .await
        .map_err(error)?
        .unwrap_or_default();
    if !status.is_success() {
        return Err(refusal(&wish.endpoint.registry, realm, (status.as_u16(), after), &body));
    }
    accept(&body, wish)
}

fn accept(body: &[u8], wish: &Wish<'_>) -> Result<Authorization, Error> {
    let malformed = |problem| Error::Malformed {
        what: "token".into(),
        from: wish.endpoint.registry.clone(),
        problem,
    };
    let token: Token = serde_json::from_slice(body).map_err(|e| malformed(e.into()))?;
    let text = if token.token.is_empty() { &token.access_token } else { &token.token };
    let value = bearer(text).filter(|_| !text.is_empty());
    let value = value.ok_or_else(|| malformed(Problem::Text("it is empty")))?;
    let life = if token.expires_in == 0 { DEFAULT_LIFE_SECS } else { token.expires_in };
    let life = Duration::from_secs(life.min(24 * 3600)).saturating_sub(MARGIN);
    Ok(Authorization {
        value: Some(value),
        expires: Some(Instant::now() + life),
        generation: 0,
        identity_token: Some(token.refresh_token).filter(|t| !t.is_empty()),
    })
}

fn refusal(
    registry: &str,
    realm: &Uri,
    (status, after): (u16, Option<Duration>),
    body: &[u8],
) -> Error {
    #[derive(Deserialize, Default)]
    struct Details {
        #[serde(default)]
        details: String,
    }
    let registry = registry.to_owned();
    let told = crate::client::error_text(body);
    match status {
        401 | 403 | 400 => {
            let details: Details = serde_json::from_slice(body).unwrap_or_default();
            let message = match (told, details.details) {
                (Some(told), _) => told,
                (None, details) if !details.is_empty() => format!("unauthorized: {details}"),
                _ => "unauthorized: authentication required".into(),
            };
            Error::Unauthorized { registry, message }
        }
        429 => {
            let message = told.unwrap_or_else(|| "toomanyrequests: too many requests".into());
            Error::TooManyRequests { registry, message, after }
        }
        status => Error::Status {
            method: "GET".into(),
            url: crate::client::shown(realm),
            status,
            message: told.unwrap_or_else(|| "no token".into()),
        },
    }
}

/// `application/x-www-form-urlencoded`, which is a query as well.
fn encode_form(form: &[(&str, String)]) -> String {
    let items = form.iter().map(|(key, value)| format!("{key}={}", encode(value)));
    items.collect::<Vec<_>>().join("&")
}

/// Percent-encodes all but unreserved characters (RFC 3986 section 2.3).
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A transport error with the request that it belongs to.
pub(crate) fn transport_error(method: &Method, uri: &Uri, source: TransportError) -> Error {
    Error::Transport { method: method.to_string(), url: crate::client::shown(uri), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn challenges() {
        let mut headers = HeaderMap::new();
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"x\""));
        assert_eq!(Challenge::find(&headers), Some(Challenge::Basic));
        let value = "Bearer realm=\"https://a/t\",service=\"s, \\\"q\\\"\", scope=repository:a:pull,error=insufficient_scope";
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(value));
        assert_eq!(
            Challenge::find(&headers),
            Some(Challenge::Bearer {
                realm: "https://a/t".into(),
                service: Some("s, \"q\"".into()),
                scope: Some("repository:a:pull".into()),
                error: Some("insufficient_scope".into()),
            })
        );
        assert!(parameters("==\"\\").len() < 3);
    }

    #[test]
    fn forms() {
        assert_eq!(
            encode_form(&[("a", "b c/ä".into()), ("d", "1".into())]),
            "a=b%20c%2F%C3%A4&d=1"
        );
    }
}

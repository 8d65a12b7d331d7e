//! The servers that answer for a registry, in the order in which they are asked.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Uri, header};
use types::DEFAULT_DOMAIN;

use crate::{
    auth::{self, Authorization, Challenge, Wish},
    client::Shared,
    config::{Credentials, HostPort},
    error::Error,
    hosts::{self, Address, Capabilities, Host, Hosts},
    transport::{Origin, Transport, Via},
};

/// Where docker.io's registry is.
pub(crate) const HUB_HOST: &str = "registry-1.docker.io";
/// How long it is remembered that an insecure registry speaks HTTPS or does not.
const SCHEME_FOR: Duration = Duration::from_secs(600);
const SCHEMES_MAX: usize = 1024;
/// Files whose unknown keys are remembered, and how many of them a warning names.
const FILES_MAX: usize = 256;
const NAMED_MAX: usize = 8;

/// One server that may have a repository.
pub(crate) struct Endpoint {
    /// Scheme, host and path in front of `/NAME/manifests/…`.
    pub(crate) base: String,
    pub(crate) origin: Origin,
    /// As references name it.
    pub(crate) registry: String,
    /// Asked before others, so that its failures are no end.
    pub(crate) mirror: bool,
    pub(crate) may: Capabilities,
    /// The registry that it stands in for, where the server's own name does not say so.
    namespace: Option<String>,
    /// Sent to this server alone.
    headers: HeaderMap,
    via: Via,
    /// HTTPS or HTTP is still to be found out.
    probing: bool,
    offline: bool,
    credentials: Credentials,
    scopes: Mutex<Vec<String>>,
    auth: tokio::sync::Mutex<Authorization>,
}

/// Who asks a registry for what.
#[derive(Clone, Copy)]
pub(crate) struct Asking<'a> {
    /// As references name it.
    pub(crate) registry: &'a str,
    pub(crate) credentials: &'a Credentials,
    pub(crate) scopes: &'a [String],
    pub(crate) purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Pull,
    Push,
    Login,
}

/// A registry's servers, and the file that says so.
#[derive(Default)]
pub(crate) struct Endpoints {
    pub(crate) all: Vec<Arc<Endpoint>>,
    pub(crate) file: Option<PathBuf>,
}

impl Shared {
    /// The servers to ask: mirrors of the configuration, those of `hosts.toml`, the registry itself.
    pub(crate) async fn endpoints(&self, asking: Asking<'_>) -> Result<Endpoints, Error> {
        let file = self.hosts_file(asking.registry).await?;
        let mut all = Vec::new();
        if asking.purpose == Purpose::Pull && asking.registry == DEFAULT_DOMAIN {
            let mirrors = self.mirrors.iter().filter_map(|uri| mirror(uri, asking));
            all.extend(mirrors.map(Arc::new));
        }
        let path = file.as_ref().map(|file| file.path.clone());
        let server = file.as_ref().map(|file| &file.server);
        let mirrors = file.iter().flat_map(|file| &file.mirrors);
        let mut mirrors = mirrors.filter_map(|host| Some((host.address.as_ref()?, host)));
        if asking.purpose == Purpose::Pull {
            let them = mirrors.flat_map(|(address, host)| self.at(address, host, asking, false));
            all.extend(them);
        } else if asking.purpose == Purpose::Push
            && let Some(path) = &path
        {
            // As containerd: the first that may be pushed to is the one.
            if let Some((address, host)) = mirrors.find(|(_, host)| host.may.push) {
                let all = self.at(address, host, asking, false);
                return Ok(Endpoints { all, file: Some(path.clone()) });
            }
            if server.is_some_and(|server| !server.may.push) {
                let registry = asking.registry.to_owned();
                return Err(Error::NotCapable { path: path.clone(), registry, wish: "push" });
            }
        }
        all.extend(match server.and_then(|server| Some((server.address.as_ref()?, server))) {
            Some((address, server)) => self.at(address, server, asking, true),
            None => self.upstream(server, asking),
        });
        Ok(Endpoints { all, file: path })
    }

    async fn hosts_file(&self, registry: &str) -> Result<Option<Hosts>, Error> {
        let (dirs, name) = (self.certs_dirs.clone(), registry.to_owned());
        let read = tokio::task::spawn_blocking(move || hosts::find(&dirs, &name));
        let file = read.await.unwrap_or_else(|error| {
            let source = std::io::Error::other(error);
            Err(Error::File { path: hosts::FILE_NAME.into(), source })
        })?;
        if let Some(file) = &file {
            self.warn_of_unknown(file);
        }
        Ok(file)
    }

    /// Once for as long as the file has the same unknown keys.
    fn warn_of_unknown(&self, file: &Hosts) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if file.unknown.is_empty() {
            warned.remove(&file.path);
            return;
        }
        if warned.get(&file.path) == Some(&file.unknown) {
            return;
        }
        if warned.len() >= FILES_MAX {
            warned.clear();
        }
        warned.insert(file.path.clone(), file.unknown.clone());
        let (path, more) = (file.path.display(), file.unknown.len().saturating_sub(NAMED_MAX));
        let keys = file.unknown.iter().take(NAMED_MAX).map(String::as_str);
        let keys = keys.collect::<Vec<_>>().join(", ");
        tracing::warn!(%path, keys, more, "unknown keys are passed over");
    }

    /// A host of `hosts.toml`, or the `server` that it names in place of the registry's own.
    fn at(
        &self,
        address: &Address,
        host: &Host,
        asking: Asking<'_>,
        is_server: bool,
    ) -> Vec<Arc<Endpoint>> {
        let authority = match address.authority.as_str() {
            // The documentation's own example names docker.io, which answers no requests.
            DEFAULT_DOMAIN | "index.docker.io" => HUB_HOST,
            authority => authority,
        };
        let is_own = authority == authority_of(asking.registry);
        let schemes: &[bool] = if address.https_first { &[true, false] } else { &[address.https] };
        let endpoint = |https: &bool| {
            let scheme = if *https { "https" } else { "http" };
            let base = format!("{scheme}://{authority}{}", address.root);
            // Credentials are for the registry: its server gets them, another host does not.
            let credentials =
                if is_own || is_server { asking.credentials } else { &Credentials::Anonymous };
            let mut endpoint =
                endpoint(&base, &Asking { credentials, ..asking }, address.https_first)?;
            endpoint.via.settings = Some(host.settings.clone());
            endpoint.headers = host.headers.clone();
            endpoint.may = host.may;
            endpoint.mirror = !is_server && asking.purpose == Purpose::Pull;
            endpoint.namespace = (!is_own).then(|| asking.registry.to_owned());
            if !is_server {
                endpoint.registry = authority.to_owned();
            }
            Some(Arc::new(endpoint))
        };
        schemes.iter().filter_map(endpoint).collect()
    }

    /// The registry's own servers: over HTTPS, and if it is insecure over HTTP.
    fn upstream(&self, host: Option<&Host>, asking: Asking<'_>) -> Vec<Arc<Endpoint>> {
        let authority = authority_of(asking.registry);
        let insecure =
            HostPort::parse(asking.registry).is_some_and(|at| self.transport.is_insecure(&at));
        let schemes: &[bool] = if insecure { &[true, false] } else { &[true] };
        let endpoint = |https: &bool| {
            let base = format!("{}://{authority}/v2", if *https { "https" } else { "http" });
            let mut endpoint = endpoint(&base, &asking, insecure)?;
            if let Some(host) = host {
                endpoint.may = host.may;
                endpoint.headers = host.headers.clone();
                endpoint.via.settings = Some(host.settings.clone());
            }
            Some(Arc::new(endpoint))
        };
        schemes.iter().filter_map(endpoint).collect()
    }

    fn known_scheme(&self, endpoint: &Endpoint) -> Option<bool> {
        let known = self.schemes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(endpoint.authority());
        known.filter(|(_, since)| since.elapsed() < SCHEME_FOR).map(|(scheme, _)| *scheme)
    }

    /// False for the scheme that an insecure registry is known not to speak.
    pub(crate) fn may_answer(&self, endpoint: &Endpoint) -> bool {
        let known = self.known_scheme(endpoint).filter(|_| endpoint.probing);
        known.is_none_or(|https| https == endpoint.origin.https)
    }

    /// Whether another endpoint comes after this one, so that it is not worth to insist. That a
    /// request beside this one has found out meanwhile that it is HTTP makes the next one no less worth
    /// asking.
    pub(crate) fn has_next(&self, endpoint: &Endpoint) -> bool {
        let may_be_http = || self.known_scheme(endpoint) != Some(true);
        endpoint.mirror || (endpoint.probing && endpoint.origin.https && may_be_http())
    }

    /// Whether an error is a reason to ask the next endpoint.
    pub(crate) fn falls_through(&self, endpoint: &Endpoint, error: &Error) -> bool {
        self.has_next(endpoint) && (endpoint.mirror || error.is_other_way_possible())
    }

    /// Remembers that an endpoint answered.
    pub(crate) fn learn(&self, endpoint: &Endpoint) {
        if !endpoint.probing {
            return;
        }
        let mut known = self.schemes.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= SCHEMES_MAX {
            known.clear();
        }
        known
            .entry(endpoint.authority().to_owned())
            .or_insert_with(|| (endpoint.origin.https, Instant::now()));
    }

    pub(crate) fn forget(&self, endpoint: &Endpoint) {
        let mut known = self.schemes.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(endpoint.authority());
    }
}

/// Host and port at which a registry is.
fn authority_of(registry: &str) -> &str {
    if registry == DEFAULT_DOMAIN { HUB_HOST } else { registry }
}

fn endpoint(base: &str, asking: &Asking<'_>, probing: bool) -> Option<Endpoint> {
    let origin = base.parse().ok().and_then(|uri| Origin::of(&uri).ok())?;
    Some(Endpoint {
        base: base.to_owned(),
        via: Via { home: Some(origin.clone()), settings: None, plain_too: probing && origin.https },
        origin,
        registry: asking.registry.to_owned(),
        mirror: false,
        may: Capabilities::ALL,
        namespace: None,
        headers: HeaderMap::new(),
        probing,
        offline: asking.purpose == Purpose::Login,
        credentials: asking.credentials.clone(),
        scopes: Mutex::new(asking.scopes.to_vec()),
        auth: tokio::sync::Mutex::default(),
    })
}

/// Of `registry-mirrors`: its path is that in front of `/v2`.
fn mirror(uri: &Uri, asking: Asking<'_>) -> Option<Endpoint> {
    let authority = uri.authority()?.as_str();
    let path = uri.path().trim_end_matches('/');
    let base = format!("{}://{authority}{path}/v2", uri.scheme_str()?);
    let asking = Asking { credentials: &Credentials::Anonymous, registry: authority, ..asking };
    let mut endpoint = endpoint(&base, &asking, false)?;
    endpoint.mirror = true;
    endpoint.may = Capabilities::MIRROR;
    Some(endpoint)
}

impl Endpoint {
    /// The address of a path of the registry, which begins with `/`.
    pub(crate) fn uri(&self, path: &str) -> Result<Uri, Error> {
        let mut text = format!("{}{path}", self.base);
        if let Some(namespace) = &self.namespace {
            let separator = if path.contains('?') { '&' } else { '?' };
            // As containerd sends it; mirrors of several registries choose by it.
            text.push_str(&format!("{separator}ns={}", auth::encode(namespace)));
        }
        text.parse().map_err(|_| Error::Config { what: "registry address", text })
    }

    /// The address of a list's next page, which says for itself all but whose list it is.
    pub(crate) fn next_page(&self, next: Uri) -> Result<Uri, Error> {
        let Some(namespace) = &self.namespace else { return Ok(next) };
        let query = next.query().unwrap_or_default();
        if query.split('&').any(|item| item.starts_with("ns=")) {
            return Ok(next);
        }
        let separator = if query.is_empty() { '?' } else { '&' };
        let text = format!("{next}{separator}ns={}", auth::encode(namespace));
        text.parse().map_err(|_| Error::Config { what: "registry address", text })
    }

    fn authority(&self) -> &str {
        let rest = self.base.split_once("://").map_or(self.base.as_str(), |(_, rest)| rest);
        rest.split('/').next().unwrap_or_default()
    }

    /// How a server is reached to which this one leads.
    pub(crate) fn via(&self, to: &Origin) -> Via {
        if *to == self.origin { self.via.clone() } else { self.via.elsewhere() }
    }

    /// The headers that only this server is sent.
    pub(crate) fn own_headers(&self, headers: &mut HeaderMap) {
        for name in self.headers.keys() {
            headers.remove(name);
            for value in self.headers.get_all(name) {
                headers.append(name, value.clone());
            }
        }
    }

    pub(crate) async fn authorization(&self) -> (Option<HeaderValue>, u64) {
        let auth = self.auth.lock().await;
        (auth.current(), auth.generation)
    }

    /// To be kept in place of a password, if the token server gave one.
    pub(crate) async fn identity_token(&self) -> Option<String> {
        self.auth.lock().await.identity_token.clone()
    }

    /// Makes sure that tokens cover a scope; a new one is fetched if they do not.
    pub(crate) async fn widen(&self, scope: String) {
        let is_new = {
            let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
            let is_new = !scopes.contains(&scope);
            if is_new {
                scopes.push(scope);
            }
            is_new
        };
        if is_new && !matches!(self.credentials, Credentials::RegistryToken { .. }) {
            let mut auth = self.auth.lock().await;
            // A basic header covers everything; a token is fetched at the next challenge.
            auth.value = None;
            auth.generation += 1;
        }
    }

    pub(crate) async fn renew(
        &self,
        transport: &Transport,
        challenge: Challenge,
        generation: u64,
    ) -> Result<(), Error> {
        let mut auth = self.auth.lock().await;
        if auth.generation != generation && auth.current().is_some() {
            return Ok(());
        }
        let scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let wish = Wish { endpoint: self, scopes: &scopes, offline: self.offline };
        let mut fresh = auth::answer(transport, challenge, &self.credentials, &wish).await?;
        fresh.generation = auth.generation + 1;
        *auth = fresh;
        Ok(())
    }

    /// Whether the file's headers prove who asks, so that there is nothing to add.
    pub(crate) fn has_own_authorization(&self) -> bool {
        self.headers.contains_key(header::AUTHORIZATION)
    }
}

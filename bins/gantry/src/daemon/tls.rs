//! TLS of the tcp listeners: our certificate, and which clients may come.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::config::Tls;

/// A certificate chain is a few kilobytes.
const FILE_LIMIT_BYTES: u64 = 4 << 20;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("TLS: read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("TLS: {} is no PEM file of the wanted kind", path.display())]
    Pem { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("TLS: {} has no certificate", path.display())]
    Empty { path: PathBuf },
    #[error("TLS: the authority in {} cannot be used", path.display())]
    Authority { path: PathBuf, source: rustls::Error },
    #[error("TLS: no client could be verified by {}", path.display())]
    Verifier { path: PathBuf, source: rustls::server::VerifierBuilderError },
    #[error("TLS: certificate {} with key {}", cert.display(), key.display())]
    Pair { cert: PathBuf, key: PathBuf, source: rustls::Error },
}

/// Reads the files once, at the start.
///
/// # Errors
/// [`Error`], naming the file.
pub(crate) fn server_config(tls: &Tls) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|source| pair(tls, source))?;
    let builder = if tls.verify {
        let roots = Arc::new(authorities(&tls.ca)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|source| Error::Verifier { path: tls.ca.clone(), source })?;
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let pem = |source| Error::Pem { path: tls.key.clone(), source };
    let key = PrivateKeyDer::from_pem_slice(&read(&tls.key)?).map_err(pem)?;
    let mut config = builder
        .with_single_cert(certificates(&tls.cert)?, key)
        .map_err(|source| pair(tls, source))?;
    // Attach and exec take the connection over, which HTTP/2 has not.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn pair(tls: &Tls, source: rustls::Error) -> Error {
    Error::Pair { cert: tls.cert.clone(), key: tls.key.clone(), source }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_LIMIT_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let all = all.map_err(|source| Error::Pem { path: path.into(), source })?;
    if all.is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    Ok(all)
}

fn authorities(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| Error::Authority { path: path.into(), source })?;
    }
    Ok(roots)
}

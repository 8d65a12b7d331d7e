//! Whom to trust, and who we are, by registry.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

use crate::{
    config::Config,
    error::Error,
    hosts::{Settings, directory_names},
};

/// Files looked at in one registry's directory.
const FILES_MAX: usize = 256;

/// The system's authorities, read when the first TLS connection is made.
pub(crate) struct Trust {
    certs_dirs: Vec<PathBuf>,
    extra: Vec<PathBuf>,
    system: Mutex<Option<Arc<RootCertStore>>>,
    provider: Arc<CryptoProvider>,
}

impl Trust {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            certs_dirs: config.certs_dirs.clone(),
            extra: config.extra_ca_files.clone(),
            system: Mutex::default(),
            provider: Arc::new(rustls::crypto::ring::default_provider()),
        }
    }

    /// Where certificates are to be put, for the words of errors.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.certs_dirs.first().map(PathBuf::as_path)
    }

    /// The TLS settings for a server, `registry` as a reference names it; the authorities of `home`, which
    /// led to it, hold too. Reads files.
    pub(crate) fn for_registry(
        &self,
        registry: &str,
        home: Option<&str>,
        settings: &Settings,
        verify: bool,
    ) -> Result<Arc<ClientConfig>, Error> {
        let host_error = |source| Error::Certificates { host: registry.to_owned(), source };
        let mut roots = self.system()?.as_ref().clone();
        for file in &settings.ca {
            add(&mut roots, file)?;
        }
        // Of several certificates of ours the first counts, those of hosts.toml before others.
        let mut identity = match settings.client.first() {
            Some((certificate, key)) => Some(pair(certificate, key)?),
            None => None,
        };
        for file in self.files_for(registry)? {
            match file.extension().and_then(|e| e.to_str()) {
                Some("crt") => add(&mut roots, &file)?,
                Some("cert") if identity.is_none() => {
                    identity = Some(pair(&file, &file.with_extension("key"))?);
                }
                _ => {}
            }
        }
        for file in home.map(|home| self.files_for(home)).transpose()?.unwrap_or_default() {
            if file.extension().is_some_and(|e| e == "crt") {
                add(&mut roots, &file)?;
            }
        }
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(host_error)?;
        let builder = if verify {
            builder.with_root_certificates(roots)
        } else {
            let verifier = Arc::new(NoVerification(self.provider.clone()));
            builder.dangerous().with_custom_certificate_verifier(verifier)
        };
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(host_error)?,
        };
        // One connection for each transfer: no window shared between layers.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// What lies in a registry's directories.
    fn files_for(&self, registry: &str) -> Result<Vec<PathBuf>, Error> {
        let mut all = Vec::new();
        for dir in &self.certs_dirs {
            for name in directory_names(registry) {
                all.extend(files(&dir.join(name))?);
            }
        }
        Ok(all)
    }

    fn system(&self) -> Result<Arc<RootCertStore>, Error> {
        let kept = || self.system.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(roots) = &*kept() {
            return Ok(roots.clone());
        }
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a certificate of the system cannot be read");
        }
        roots.add_parsable_certificates(found.certs);
        for file in &self.extra {
            add(&mut roots, file)?;
        }
        Ok(kept().insert(Arc::new(roots)).clone())
    }

    /// Has the files read anew: someone may have added what was missing.
    pub(crate) fn forget(&self) {
        *self.system.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A directory's files in order; none if there is no such directory.
fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let error = |source| Error::File { path: dir.to_owned(), source };
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(error(e)),
    };
    let mut files = Vec::new();
    for item in listing.take(FILES_MAX) {
        files.push(item.map_err(error)?.path());
    }
    files.sort();
    Ok(files)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let error = |source| Error::Pem { path: file.to_owned(), source };
    CertificateDer::pem_file_iter(file).map_err(error)?.collect::<Result<_, _>>().map_err(error)
}

/// A certificate of ours with those that vouch for it, and its key.
fn pair(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|source| Error::Pem { path: key.to_owned(), source })?;
    Ok((chain, key))
}

fn add(roots: &mut RootCertStore, file: &Path) -> Result<(), Error> {
    for certificate in certificates(file)? {
        let host = file.display().to_string();
        roots.add(certificate).map_err(|source| Error::Certificates { host, source })?;
    }
    Ok(())
}

/// For registries that were declared insecure: any certificate will do, signatures are checked.
#[derive(Debug)]
struct NoVerification(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

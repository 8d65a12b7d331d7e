//! `gantry containerd fsck`: everything that is stored is looked at, and repaired from registries.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use store_api::{Credentials, FsckReport, FsckRequest, Namespaces as _, RegistryAccess};

use crate::{Persona, daemon};

/// A password read from stdin is at most so long.
const PASSWORD_BYTES: u64 = 64 << 10;

pub(crate) const HELP: &str = "
Options of fsck:
      --repair             Make whole what is damaged, from what is here or from the registry it came from
      --hosts-dir string   Directory of registries' hosts.toml and certificates, in place of
                           /etc/{gantry,docker,containerd}/certs.d (may be repeated)
      --plain-http         Speak HTTP to the registry of --registry, where it does not speak HTTPS
      --registry string    HOST[:PORT] of the registry that --user and --plain-http are for
  -u, --user string        USER[:PASSWORD] for this registry; without it, and for all others, the
                           credentials are those that pull has, of docker's config.json ($DOCKER_CONFIG)
      --password-stdin     Read the password of --user from STDIN
";

/// What follows the word `fsck`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) repair: bool,
    hosts_dirs: Vec<PathBuf>,
    plain_http: bool,
    pub(crate) registry: String,
    pub(crate) user: String,
    password_stdin: bool,
}

impl Options {
    /// Takes a flag if it is one of these.
    pub(crate) fn flag(
        &mut self,
        name: &str,
        value: &mut dyn FnMut() -> Result<OsString, String>,
    ) -> Result<bool, String> {
        let mut text = || {
            let value = value()?;
            value.into_string().map_err(|value| format!("not UTF-8: {value:?}"))
        };
        match name {
            "--repair" => self.repair = true,
            "--plain-http" => self.plain_http = true,
            "--password-stdin" => self.password_stdin = true,
            "--hosts-dir" => {
                let path = std::path::absolute(text()?).map_err(|e| format!("{name}: {e}"))?;
                self.hosts_dirs.push(path);
            }
            "--registry" => self.registry = registry(&text()?)?,
            "-u" | "--user" => self.user = text()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// # Errors
    /// Flags that say nothing without another one, or contradict each other.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self.repair && *self != Self::default() {
            return Err("registries are asked only with --repair".into());
        }
        if self.plain_http && self.registry.is_empty() {
            return Err("--plain-http needs --registry: who is spoken to without TLS".into());
        }
        match (self.user.as_str(), self.registry.as_str()) {
            ("", _) if self.password_stdin => Err("--password-stdin needs --user".into()),
            ("", "") => Ok(()),
            (_, "") => Err("--user needs --registry: whose password it is".into()),
            ("", _) if self.plain_http => Ok(()),
            ("", _) => Err("--registry needs --user or --plain-http".into()),
            (user, _) if user.contains(':') && self.password_stdin => {
                Err("the password is given twice, by --user and --password-stdin".into())
            }
            (user, _) if !user.contains(':') && !self.password_stdin => {
                Err("--user without a password needs --password-stdin".into())
            }
            _ => Ok(()),
        }
    }

    fn given(&self) -> anyhow::Result<Option<(String, Credentials)>> {
        if self.user.is_empty() {
            return Ok(None);
        }
        let (username, password) = match self.user.split_once(':') {
            Some((user, password)) => (user.to_owned(), password.to_owned()),
            None => {
                let mut text = String::new();
                std::io::stdin().take(PASSWORD_BYTES).read_to_string(&mut text)?;
                (self.user.clone(), text.trim_end_matches(['\r', '\n']).to_owned())
            }
        };
        let credentials = Credentials { username, password, ..Credentials::default() };
        Ok(Some((self.registry.clone(), credentials)))
    }
}

/// A registry's name as image names have it, in lower case.
fn registry(text: &str) -> Result<String, String> {
    let refused = || {
        format!(
            "--registry {text:?} is none: it is written as in the names of images, HOST or HOST:PORT (docker.io is Docker Hub's)"
        )
    };
    if text.contains('/') {
        return Err(refused());
    }
    let text = text.to_ascii_lowercase();
    let reference: types::ImageRef = format!("{text}/x/y").parse().map_err(|_| refused())?;
    // A word without a dot or a port is the beginning of a path, on Docker Hub.
    if reference.path() == "x/y" { Ok(reference.domain().to_owned()) } else { Err(refused()) }
}

/// The credentials of whoever calls, each looked up once; by registries' names in lower case.
#[derive(Debug, Default)]
struct Logins(Mutex<BTreeMap<String, Result<Option<Credentials>, String>>>);

impl store_api::Logins for Logins {
    fn of(&self, registry: &str) -> store_api::Result<Option<Credentials>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.entry(registry.to_ascii_lowercase()).or_insert_with(|| {
            let login = cli::login_of(registry)?;
            Ok(login.map(|login| Credentials {
                username: login.username,
                password: login.password,
                identity_token: login.identity_token,
                ..Credentials::default()
            }))
        });
        found.clone().map_err(store_api::Error::internal)
    }
}

/// In place of credentials, where no registry may be asked: why.
#[derive(Debug)]
struct NoRegistries(String);

impl store_api::Logins for NoRegistries {
    fn of(&self, _: &str) -> store_api::Result<Option<Credentials>> {
        Err(store_api::Error::new(types::ErrorKind::FailedPrecondition, self.0.clone()))
    }
}

/// `usual`: how the daemon asks registries. Where that is not known, none is asked, and what can be repaired
/// without is.
fn request(
    options: &Options,
    usual: impl FnOnce() -> Result<RegistryAccess, String>,
) -> anyhow::Result<FsckRequest> {
    if !options.repair {
        return Ok(FsckRequest::default());
    }
    let mut access = match usual() {
        Ok(access) => access,
        Err(error) => {
            let why = format!("no registry is asked: {error}");
            eprintln!("gantry containerd: {why}");
            return Ok(FsckRequest {
                repair: true,
                logins: Some(Arc::new(NoRegistries(why))),
                ..FsckRequest::default()
            });
        }
    };
    access.certs_dirs.clone_from(&options.hosts_dirs);
    if options.plain_http {
        // Of this one alone: everybody else's credentials stay behind TLS.
        access.insecure.push(options.registry.clone());
    }
    let logins = Logins::default();
    if let Some((registry, credentials)) = options.given()? {
        let mut known = logins.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(registry, Ok(Some(credentials)));
    }
    Ok(FsckRequest { repair: true, access, logins: Some(Arc::new(logins)) })
}

/// Checks the store and prints what was found; the exit code: 1 if something is not as it should be.
pub(crate) fn run(
    (root, state): (&Path, &Path),
    options: &Options,
    persona: Persona,
) -> anyhow::Result<i32> {
    let request = request(options, || daemon::usual_registry_access(persona))?;
    let runtime = daemon::runtime()?;
    let report = runtime.block_on(async {
        let purpose = if options.repair { store::Purpose::Repair } else { store::Purpose::Check };
        let config = store::Config { purpose, ..store::Config::new(root, state) };
        let store = store::Store::open(config).await.map_err(opening)?;
        // One check goes through all namespaces.
        let services = store.open("moby").map_err(daemon::failed("open the namespace moby"))?;
        services.extras.fsck(request).await.map_err(daemon::failed("fsck"))
    });
    runtime.shutdown_timeout(daemon::LAST_TASKS);
    let report = report?;
    let code = daemon::say(&text(&report));
    Ok(if code == 0 && !report.is_clean() { 1 } else { code })
}

/// The lock on the database is the store's; the way out is ours to tell.
fn opening(error: store_api::Error) -> anyhow::Error {
    let is_locked = error.message.contains("another daemon uses it");
    let is_none = error.is_not_found();
    let error = daemon::failed("open the store")(error);
    if is_locked {
        error.context("the store is in use: stop the daemon first (containers may go on running)")
    } else if is_none {
        error.context(
            "name the directory of a store by --root: a daemon's is DATA-ROOT/store, by default /var/lib/gantry/store",
        )
    } else {
        error
    }
}

fn text(report: &FsckReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let (object, problem) = (&finding.object, &finding.problem);
        if finding.repaired {
            text.push_str(&format!("{object}: {problem}: repaired\n"));
        } else {
            text.push_str(&format!("{object}: {problem}\n    {}\n", finding.remedy));
        }
    }
    if report.more > 0 {
        text.push_str(&format!("and {} more\n", report.more));
    }
    let left = report.findings.iter().filter(|finding| !finding.repaired).count();
    text.push_str(&format!(
        "{} images, {} snapshots, {} blobs with {} bytes; found: {}, repaired: {}\n",
        report.images,
        report.snapshots,
        report.blobs,
        report.bytes,
        report.findings.len(),
        report.findings.len() - left,
    ));
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(words: &[&str]) -> Result<Options, String> {
        let mut options = Options { repair: true, ..Options::default() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().map(OsString::from).ok_or_else(|| "no value".into());
            assert!(options.flag(word, &mut value)?, "{word}");
        }
        options.check().map(|()| options)
    }

    #[test]
    fn only_the_named_registry_is_asked_without_tls() {
        assert!(options(&["--plain-http"]).unwrap_err().contains("--registry"));
        let plain = options(&["--plain-http", "--registry", "Reg.Example:5000"]).unwrap();
        let usual = || Ok(RegistryAccess { insecure: vec!["own:1".into()], ..Default::default() });
        let request = request(&plain, usual).unwrap();
        assert!(!request.access.plain_http, "it would hold for all");
        assert_eq!(request.access.insecure, ["own:1", "reg.example:5000"]);
    }

    #[test]
    fn a_registry_is_the_one_of_image_names() {
        for (given, name) in [
            ("index.docker.io", "docker.io"),
            ("LOCALHOST", "localhost"),
            ("r:1", "r:1"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            let user = ["-u", "a:b", "--registry", given];
            let found = options(&user).unwrap().given().unwrap().unwrap();
            assert_eq!(found.0, name, "{given}");
        }
        for given in ["https://reg.example", "reg.example/x", "word", "", "a b"] {
            let error = options(&["-u", "a:b", "--registry", given]).unwrap_err();
            assert!(error.contains("HOST:PORT"), "{given}: {error}");
        }
    }

    /// What is wrong with the daemon's configuration is told of each registry that would be asked.
    #[test]
    fn a_bad_configuration_keeps_from_registries_alone() {
        let repair = options(&[]).unwrap();
        let request = request(&repair, || Err("daemon.json: bad".into())).unwrap();
        assert!(request.repair);
        let error = request.logins.unwrap().of("docker.io").unwrap_err();
        assert!(error.message.contains("daemon.json: bad"), "{error}");
    }
}

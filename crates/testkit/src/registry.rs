//! Debian's docker-registry on the loopback of a sandbox.

use crate::command::{Cmd, Running};
use crate::sandbox::Sandbox;
use crate::{Result, engine, random, wait};
use serde_json::json;

/// How a registry wants to be spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// HTTP, everybody may do everything.
    Plain,
    /// TLS with a CA of its own, basic authentication with random credentials.
    Secured,
}

/// A running registry. It ends with this value, or with the sandbox.
#[derive(Debug)]
pub struct Registry {
    /// `127.0.0.1:PORT`.
    pub address: String,
    pub user: String,
    pub password: String,
    /// The CA's certificate in the sandbox; it is also in `/etc/docker/certs.d` and
    /// `/etc/gantry/certs.d` under the address.
    pub ca: String,
    running: Running,
}

impl Registry {
    pub fn start(sandbox: &Sandbox, access: Access) -> Result<Self> {
        let address = format!("127.0.0.1:{}", random::port());
        let dir = format!("/var/lib/{}", random::name("registry"));
        let (user, password) = (random::token(8), random::token(20));
        let mut http = json!({ "addr": address });
        let mut config = json!({
            "version": "0.1",
            "log": { "level": "warn" },
            "storage": {
                "filesystem": { "rootdirectory": format!("{dir}/data") },
                "delete": { "enabled": true },
            },
        });
        let ca = format!("{dir}/ca.crt");
        sandbox.write(&format!("{dir}/data/.keep"), "")?;
        if access == Access::Secured {
            make_certificates(sandbox, &dir)?;
            http["tls"] = json!({
                "certificate": format!("{dir}/server.crt"),
                "key": format!("{dir}/server.key"),
            });
            let entry = Cmd::host("htpasswd", ["-Bbn", &user, &password]).ok()?.text();
            sandbox.write(&format!("{dir}/htpasswd"), entry + "\n")?;
            config["auth"] = json!({
                "htpasswd": { "realm": "test", "path": format!("{dir}/htpasswd") },
            });
            for place in ["/etc/docker/certs.d", "/etc/gantry/certs.d"] {
                sandbox.write(&format!("{place}/{address}/ca.crt"), sandbox.read(&ca)?)?;
            }
        }
        config["http"] = http;
        let file = format!("{dir}/config.yml"); // JSON is YAML
        sandbox.write(&file, config.to_string())?;
        let running = sandbox.command("docker-registry", ["serve", file.as_str()]).spawn()?;
        let mut registry = Self { address, user, password, ca, running };
        registry.wait_ready(sandbox)?;
        Ok(registry)
    }

    fn wait_ready(&mut self, sandbox: &Sandbox) -> Result<()> {
        let port = self.port();
        wait::until_ok("docker-registry to listen", engine::START_LIMIT, || {
            if sandbox.listens(port) { Ok(()) } else { Err(self.log()) }
        })
    }

    pub fn port(&self) -> u16 {
        self.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(0)
    }

    /// `ADDRESS/NAME:TAG` with random name and tag.
    pub fn reference(&self) -> String {
        format!("{}/{}:{}", self.address, random::name("image"), random::token(5))
    }

    pub fn log(&self) -> String {
        self.running.stdout_so_far() + &self.running.stderr_so_far()
    }
}

/// A CA and a server certificate for 127.0.0.1, localhost and registry.test, valid for a day.
fn make_certificates(sandbox: &Sandbox, dir: &str) -> Result<()> {
    let script = format!(
        "cd {dir}
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 \
  -subj '/CN=testkit CA' -keyout ca.key -out ca.crt
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
  -subj '/CN=localhost' -keyout server.key -out server.csr
printf 'subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost,DNS:registry.test\\nbasicConstraints=CA:FALSE\\n' > ext
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 \
  -extfile ext -out server.crt"
    );
    sandbox.command("sh", ["-ec", &script]).ok().map(drop)
}

//! `login`, `logout`.

use std::io::{BufRead, Read, Write};

use api_types::AuthConfig;

use crate::config::HUB;
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::term::Raw;

/// A password longer than this is a mistake.
const MAX_SECRET_BYTES: u64 = 1 << 20;

fn server(text: Option<&String>) -> String {
    match text.map(String::as_str) {
        None | Some("" | "docker.io" | "index.docker.io" | "registry-1.docker.io" | HUB) => {
            HUB.to_owned()
        }
        Some(text) => {
            let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
            bare.unwrap_or(text).split('/').next().unwrap_or_default().to_owned()
        }
    }
}

fn read_line(prompt: &str, secret: bool) -> Result<String> {
    let broken = |source| Error::Stream { what: "read the terminal", source };
    let mut out = std::io::stdout().lock();
    write!(out, "{prompt}").and_then(|()| out.flush()).map_err(Error::output)?;
    let quiet = secret.then(Raw::silent);
    let mut line = String::new();
    let read = std::io::stdin().lock().take(MAX_SECRET_BYTES).read_line(&mut line);
    drop(quiet);
    if secret {
        writeln!(out).map_err(Error::output)?;
    }
    read.map_err(broken)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn password_from_stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(MAX_SECRET_BYTES)
        .read_to_string(&mut text)
        .map_err(|source| Error::Stream { what: "read stdin", source })?;
    Ok(text.trim_end_matches('\n').trim_end_matches('\r').to_owned())
}

pub(crate) async fn login(ctx: &Ctx, m: Matches) -> Result<()> {
    let mut user = m.string("username");
    let mut password = m.string("password");
    if m.changed("password") {
        ctx.note("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
        if m.flag("password-stdin") {
            return Err(
                "conflicting options: cannot specify both --password and --password-stdin".into()
            );
        }
    }
    if m.flag("password-stdin") {
        if user.is_empty() {
            return Err("the --password-stdin option requires --username to be set".into());
        }
        password = password_from_stdin()?;
    }
    let server = server(m.args.first());
    if user.is_empty() && password.is_empty() {
        let known = ctx.config.borrow().credentials(&server)?;
        if !known.username.is_empty() && !known.password.is_empty()
            || !known.identity_token.is_empty()
        {
            ctx.line(&format!(
                "Authenticating with existing credentials... [Username: {}]",
                known.username
            ))?;
            if let Ok(()) = authenticate(ctx, known).await {
                return Ok(());
            }
            ctx.note("Login did not succeed, error: the existing credentials were refused");
        }
    }
    if (user.is_empty() || password.is_empty()) && !ctx.stdin_is_tty() {
        return Err("Error: Cannot perform an interactive login from a non TTY device".into());
    }
    if user.is_empty() {
        user = read_line("Username: ", false)?;
        if user.is_empty() {
            return Err("username is required".into());
        }
    }
    if password.is_empty() {
        password = read_line("Password: ", true)?;
        if password.is_empty() {
            return Err("password is required".into());
        }
    }
    let auth = AuthConfig {
        username: user.trim().to_owned(),
        password,
        server_address: server,
        ..AuthConfig::default()
    };
    authenticate(ctx, auth).await
}

async fn authenticate(ctx: &Ctx, mut auth: AuthConfig) -> Result<()> {
    let reply = ctx.client()?.auth(&auth).await?;
    if !reply.identity_token.is_empty() {
        auth.password.clear();
        auth.identity_token = reply.identity_token;
    }
    let in_file = ctx.config.borrow_mut().store_credentials(&auth)?;
    if in_file {
        let path = ctx.config.borrow().dir.join("config.json");
        ctx.note(&format!(
            "\nWARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a credential helper to remove this warning.\n",
            path.display()
        ));
    }
    let status = if reply.status.is_empty() { "Login Succeeded" } else { &reply.status };
    ctx.line(status)
}

pub(crate) async fn logout(ctx: &Ctx, m: Matches) -> Result<()> {
    let server = server(m.args.first());
    let shown = if server == HUB { HUB } else { &server };
    ctx.line(&format!("Removing login credentials for {shown}"))?;
    // Docker does not mind if there were none.
    ctx.config.borrow_mut().erase_credentials(&server)?;
    Ok(())
}

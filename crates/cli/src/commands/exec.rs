//! `exec`.

use api_types::{ExecCreate, StrSlice};
use client::StartExec;

use crate::commands::run::{check_tty, detach_keys, start_code};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::flags::Matches;
use crate::opts::env_list;
use crate::stream::{End, Resize, Session, follow_size, pump};
use crate::term;

pub(crate) async fn exec(ctx: &Ctx, m: Matches) -> Result<()> {
    let (container, command) = m.args.split_first().ok_or("a container is needed")?;
    let (keys, key_bytes) = detach_keys(ctx, &m)?;
    let (detach, tty, interactive) = (m.flag("detach"), m.flag("tty"), m.flag("interactive"));
    let client = ctx.client()?;
    // Fails first, before the terminal is looked at.
    client.container_inspect(container).await?;
    let console_size = Some(term::size()).filter(|size| tty && *size != [0, 0]);
    let body = ExecCreate {
        user: m.string("user"),
        privileged: m.flag("privileged"),
        tty,
        console_size,
        attach_stdin: interactive && !detach,
        attach_stdout: !detach,
        attach_stderr: !detach,
        detach,
        detach_keys: keys,
        env: env_list(&m.list("env-file"), &m.list("env"))?,
        working_dir: m.string("workdir"),
        cmd: StrSlice(command.to_vec()),
    };
    if !detach {
        check_tty(ctx, body.attach_stdin, tty)?;
    }
    let id = client.exec_create(container, &body).await.map_err(start_error)?;
    let start = StartExec { tty, console_size };
    if detach {
        return client.exec_start_detached(&id, &start).await.map_err(start_error);
    }
    let conn = client.exec_start(&id, &start).await.map_err(start_error)?;
    let session =
        Session { tty, stdin: interactive, stdout: true, stderr: true, detach_keys: key_bytes };
    let resize = async {
        match tty {
            true => follow_size(client, Resize::Exec(&id)).await,
            false => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        end = pump(conn, session) => end?,
        () = resize => End::Closed,
    };
    if end == End::Detached {
        // Docker's words; what was executed goes on.
        return Err("read escape sequence".into());
    }
    let status = client.exec_inspect(&id).await?;
    match status.exit_code.unwrap_or(0) {
        0 => Ok(()),
        code => Err(Error::Exit(i32::try_from(code).unwrap_or(1))),
    }
}

fn start_error(error: client::Error) -> Error {
    match error.message().map(start_code) {
        Some(code @ (126 | 127)) => Error::Status { code, text: error.to_string() },
        _ => error.into(),
    }
}

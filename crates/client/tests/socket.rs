//! The client against a hand-written server on a unix socket.
#![allow(clippy::unwrap_used)]

use api_types::{ApiVersion, JsonMessage};
use client::{AttachOptions, Client, Endpoint, Options, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

async fn head(stream: &mut UnixStream) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(seen).unwrap()
}

const PING: &str =
    "HTTP/1.1 200 OK\r\nApi-Version: 1.43\r\nOstype: linux\r\nContent-Length: 0\r\n\r\n";

fn start<F, Fut>(serve: F) -> (tempfile::TempDir, Client)
where
    F: Fn(UnixStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("engine.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    let client = Client::new(Options {
        endpoint: Endpoint::Unix(path),
        tls: None,
        api_version: None,
        user_agent: "test".into(),
        headers: [("X-Mine".to_owned(), "yes".to_owned())].into(),
        lookup: None,
    });
    (dir, client)
}

#[tokio::test]
async fn negotiates_reuses_and_reports_errors() {
    let (_dir, client) = start(|mut s| async move {
        assert!(head(&mut s).await.starts_with("HEAD /_ping HTTP/1.1"));
        s.write_all(PING.as_bytes()).await.unwrap();
        // The same connection again.
        let request = head(&mut s).await;
        assert!(request.starts_with("GET /v1.43/containers/a%20b/json HTTP/1.1"), "{request}");
        assert!(request.to_lowercase().contains("x-mine: yes"));
        let body = r#"{"message":"No such container: a b"}"#;
        let reply =
            format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        s.write_all(reply.as_bytes()).await.unwrap();
    });
    assert_eq!(client.api_version().await.unwrap(), ApiVersion::parse("1.43").unwrap());
    let error = client.container_inspect("a b").await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), "Error response from daemon: No such container: a b");
}

#[tokio::test]
async fn hijack_half_closes() {
    let (_dir, client) = start(|mut s| async move {
        loop {
            let request = head(&mut s).await;
            if request.contains("_ping") {
                s.write_all(PING.as_bytes()).await.unwrap();
                continue;
            }
            assert!(
                request.starts_with("POST /v1.43/containers/c/attach?stream=1&stdin=1"),
                "{request}"
            );
            assert!(request.to_lowercase().contains("upgrade: tcp"));
            s.write_all(b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly ")
                .await
                .unwrap();
            let mut input = Vec::new();
            s.read_to_end(&mut input).await.unwrap();
            input.reverse();
            s.write_all(&input).await.unwrap();
            return;
        }
    });
    let options = AttachOptions { stdin: true, stdout: true, ..Default::default() };
    let mut raw = client.container_attach("c", &options).await.unwrap();
    assert_eq!(raw.content_type, "application/vnd.docker.raw-stream");
    raw.write_all(b"abc").await.unwrap();
    raw.shutdown().await.unwrap();
    let mut output = String::new();
    raw.read_to_string(&mut output).await.unwrap();
    assert_eq!(output, "early cba");
}

#[tokio::test]
async fn json_lines_in_any_pieces() {
    let (_dir, client) = start(|mut s| async move {
        head(&mut s).await;
        s.write_all(PING.as_bytes()).await.unwrap();
        head(&mut s).await;
        s.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        for piece in ["{\"status\":\"a", "b\"}\r\n{\"status\":\"c\"}\r\n\r\n", "{\"error\":\"d\"}"]
        {
            s.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await.unwrap();
        }
        s.write_all(b"0\r\n\r\n").await.unwrap();
    });
    let mut lines = client.stream(Request::post("/x")).await.unwrap().json_lines::<JsonMessage>();
    assert_eq!(lines.next().await.unwrap().unwrap().status, "ab");
    assert_eq!(lines.next().await.unwrap().unwrap().status, "c");
    assert_eq!(lines.next().await.unwrap().unwrap().error, "d");
    assert!(lines.next().await.unwrap().is_none());
}

#[tokio::test]
async fn nobody_listens() {
    let client = Client::new(Options {
        endpoint: Endpoint::Unix("/nonexistent/engine.sock".into()),
        tls: None,
        api_version: None,
        user_agent: "test".into(),
        headers: Default::default(),
        lookup: None,
    });
    let error = client.ping().await.unwrap_err();
    assert!(error.is_connect());
    assert_eq!(
        error.to_string(),
        "Cannot connect to the Docker daemon at unix:///nonexistent/engine.sock. Is the docker daemon running?"
    );
}

#[tokio::test]
async fn names_of_tcp_hosts() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut s, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            seen.push(s.read_u8().await.unwrap());
        }
        let head = String::from_utf8(seen).unwrap().to_lowercase();
        assert!(head.contains(&format!("host: engine.test:{port}")), "{head}");
        s.write_all(PING.as_bytes()).await.unwrap();
    });
    let options = |name: &str, lookup| Options {
        endpoint: Endpoint::Tcp { host: name.into(), port },
        tls: None,
        api_version: None,
        user_agent: "test".into(),
        headers: Default::default(),
        lookup,
    };
    let lookup = client::Lookup::new(async |name| match name.as_str() {
        "engine.test" => Ok(vec!["127.0.0.1".parse().unwrap()]),
        _ => Ok(vec![]),
    });
    Client::new(options("engine.test", Some(lookup.clone()))).ping().await.unwrap();
    let error = Client::new(options("other.test", Some(lookup))).ping().await.unwrap_err();
    assert!(error.to_string().contains("lookup other.test: no such host"), "{error}");
    assert!(Client::new(options("other.test", None)).ping().await.is_err());
}

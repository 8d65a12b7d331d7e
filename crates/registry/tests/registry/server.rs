//! A server whose every byte the test decides: one request for each connection.

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// As in the request line.
    pub(crate) target: String,
    /// The last of each name, in lower case.
    pub(crate) headers: HashMap<String, String>,
    /// All of them.
    pub(crate) lines: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

pub(crate) enum Reply {
    Full {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// Promises `body` but resets the connection after some bytes of it.
    Cut {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
        after: usize,
    },
    /// Sends the body byte by byte.
    Drip {
        body: Vec<u8>,
        pause: Duration,
    },
    /// Says nothing.
    Silence,
    Reset,
}

pub(crate) fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Reply {
    let headers = headers.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    Reply::Full { status, headers, body: body.into() }
}

type Handler = dyn Fn(&Seen, usize) -> Reply + Send + Sync;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// `handler` gets each request and how many came before it.
    pub(crate) async fn start(
        handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_reading(handler, usize::MAX).await
    }

    /// Of the first request with a larger body, only `cut` bytes of it are read before a reset.
    pub(crate) async fn start_reading(
        handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
        cut: usize,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Handler> = Arc::new(handler);
        let log = seen.clone();
        let was_cut = Arc::new(Mutex::new(false));
        let connections = Arc::new(AtomicUsize::new(0));
        let taken = connections.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                taken.fetch_add(1, Ordering::SeqCst);
                let work = serve(stream, handler.clone(), log.clone(), cut, was_cut.clone());
                let work: Pin<Box<dyn Future<Output = Option<()>> + Send>> = Box::pin(work);
                tokio::spawn(work);
            }
        });
        Self { address, seen, connections, task }
    }

    /// Those too that never came to a request.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    handler: Arc<Handler>,
    log: Arc<Mutex<Vec<Seen>>>,
    cut: usize,
    was_cut: Arc<Mutex<bool>>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        if head[0] == 0x16 {
            // TLS, which no request line begins with.
            return None;
        }
    }
    let text = String::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let lines: Vec<(String, String)> = lines
        .filter_map(|l| l.split_once(": "))
        .map(|(k, v)| (k.to_lowercase(), v.to_owned()))
        .collect();
    let headers: HashMap<String, String> = lines.iter().cloned().collect();
    let length: usize = headers.get("content-length").map_or(0, |l| l.parse().unwrap());
    let cut_now = length > cut && !std::mem::replace(&mut *was_cut.lock().unwrap(), true);
    let mut body = vec![0; if cut_now { cut } else { length }];
    stream.read_exact(&mut body).await.ok()?;
    let seen = Seen { method, target, headers, lines, body };
    let count = {
        let mut log = log.lock().unwrap();
        log.push(seen.clone());
        log.len() - 1
    };
    let answer = handler(&seen, count);
    if cut_now {
        reset(&stream);
        return None;
    }
    answer_with(stream, &seen, answer).await
}

fn reset(stream: &TcpStream) {
    // Closed at once, with what is in flight thrown away.
    stream.set_zero_linger().unwrap();
}

async fn answer_with(mut stream: TcpStream, seen: &Seen, answer: Reply) -> Option<()> {
    let head = |status: u16, headers: &[(String, String)], length: usize| {
        let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
        if !headers.iter().any(|h| h.0 == "Content-Length") {
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head + "\r\n"
    };
    match answer {
        Reply::Full { status, headers, body } => {
            stream.write_all(head(status, &headers, body.len()).as_bytes()).await.ok()?;
            if seen.method != "HEAD" {
                stream.write_all(&body).await.ok()?;
            }
            stream.shutdown().await.ok()?;
            // Until the client has it all.
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.ok()?;
        }
        Reply::Cut { status, headers, body, after } => {
            stream.write_all(head(status, &headers, body.len()).as_bytes()).await.ok()?;
            stream.write_all(&body[..after.min(body.len())]).await.ok()?;
            stream.shutdown().await.ok()?;
        }
        Reply::Drip { body, pause } => {
            stream.write_all(head(200, &[], body.len()).as_bytes()).await.ok()?;
            for byte in body {
                stream.write_all(&[byte]).await.ok()?;
                tokio::time::sleep(pause).await;
            }
        }
        Reply::Silence => std::future::pending().await,
        Reply::Reset => reset(&stream),
    }
    Some(())
}

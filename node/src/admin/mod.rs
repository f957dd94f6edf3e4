//! The admin address: health and metrics over HTTP, on shard 0.
//!
//! One request to a connection, a bounded number of connections, and a deadline for each: nothing that comes in
//! here can hold memory or the shard for long.
mod io;

use crate::runtime::{self, spawn, spawn_isolated, timeout};
use crate::sys;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// Connections at a time; further ones are closed.
const CONNECTIONS_MAX: usize = 64;
/// From the connection's start to the response's end.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest request head.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// What the pages say. `Clone` is cheap.
#[derive(Clone)]
pub struct Pages {
    /// Whether the node serves.
    pub ready: Rc<dyn Fn() -> bool>,
    /// The metrics of all shards, as text.
    pub metrics: Rc<dyn Fn() -> Pin<Box<dyn Future<Output = String>>>>,
}

/// Serves for the life of the shard. `listener` is a listening TCP socket.
pub fn serve(listener: OwnedFd, pages: Pages) {
    runtime::attend(listener.as_fd());
    let listener = sys::listener(listener);
    let open = Rc::new(Cell::new(0));
    // A task of its own that is never cancelled: a cancelled accept loses its connection.
    spawn("admin accept", async move {
        loop {
            match listener.accept().await {
                Ok(stream) if open.get() < CONNECTIONS_MAX => {
                    let (pages, open) = (pages.clone(), Open::new(&open));
                    runtime::attend(sys::borrowed(&stream));
                    spawn_isolated("admin connection", async move {
                        let _open = open;
                        let _ = timeout(DEADLINE, connection(stream, pages)).await;
                    });
                }
                Ok(stream) => drop(stream),
                Err(error) => {
                    // No descriptor is free, most likely: others may be soon.
                    tracing::warn!(%error, "the admin address cannot accept");
                    runtime::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
}

/// Counts a connection.
struct Open(Rc<Cell<usize>>);

impl Open {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Open(count.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn connection(stream: glommio::net::TcpStream, pages: Pages) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(respond(&request, &pages).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(io::Stream::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection ended early");
    }
}

async fn respond(request: &Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
    let path = request.uri().path();
    if !matches!(path, "/livez" | "/readyz" | "/metrics") {
        return page(
            StatusCode::NOT_FOUND,
            TEXT,
            "not found: there are /livez, /readyz and /metrics\n".into(),
        );
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n".into());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match path {
        "/metrics" => page(StatusCode::OK, PROMETHEUS, (pages.metrics)().await),
        "/readyz" if !(pages.ready)() => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not ready\n".into()),
        _ => page(StatusCode::OK, TEXT, "ok\n".into()),
    }
}

fn page(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests;

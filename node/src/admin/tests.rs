//! The pages, and clients that behave badly.
use super::*;
use crate::runtime::{Settings, Stopper, start};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// A shard that serves pages, while `client` runs on this thread.
fn with_admin(client: impl FnOnce(SocketAddr)) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let stopper = Stopper::new();
    let settings = Settings { io_memory: 1 << 20, ring_depth: 64, ..Settings::default() };
    let executors = start(
        &settings,
        vec![(OwnedFd::from(listener), stopper.subscribe())],
        |_, (listener, stop)| async move {
            let asked = Rc::new(Cell::new(0));
            let ready = Rc::new(move || asked.replace(asked.get() + 1) > 0);
            let metrics: Rc<dyn Fn() -> Pin<Box<dyn Future<Output = String>>>> =
                Rc::new(|| Box::pin(async { "x 1\n".repeat(100_000) }));
            serve(listener, Pages { ready, metrics });
            stop.stopped().await;
        },
    )
    .expect("an executor");
    client(address);
    stopper.stop();
    executors.join().pop().expect("one").expect("no panic");
}

fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("accepted");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("answered and closed");
    response
}

#[test]
fn the_pages_answer() {
    with_admin(|address| {
        let get = |path: &str| ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert!(get("/livez").starts_with("HTTP/1.1 200 OK"));
        assert!(get("/readyz").starts_with("HTTP/1.1 503"), "not at first");
        assert!(get("/readyz").starts_with("HTTP/1.1 200"), "then");
        let metrics = get("/metrics");
        assert!(metrics.contains("version=0.0.4") && metrics.ends_with("x 1\n") && metrics.len() > 400_000);
        assert!(get("/").starts_with("HTTP/1.1 404"));
        let posted = ask(address, "POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        assert!(posted.starts_with("HTTP/1.1 405") && posted.contains("allow: GET, HEAD"), "{posted}");
        assert!(ask(address, "HEAD /livez HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200"));
    });
}

#[test]
fn garbage_and_clients_without_end_disturb_nobody() {
    with_admin(|address| {
        let idle: Vec<TcpStream> =
            (0..CONNECTIONS_MAX).map(|_| TcpStream::connect(address).expect("accepted")).collect();
        let mut over = TcpStream::connect(address).expect("accepted by the kernel");
        assert_eq!(over.read(&mut [0; 16]).expect("closed"), 0);
        drop(idle);
        let mut tries = 0;
        let answer = loop {
            let mut stream = TcpStream::connect(address).expect("accepted");
            let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n");
            let mut response = String::new();
            if stream.read_to_string(&mut response).is_ok() && !response.is_empty() {
                break response;
            }
            tries += 1;
            assert!(tries < 500, "room again after the others left");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(answer.starts_with("HTTP/1.1 200"));
        assert!(ask(address, "\0\u{1}garbage\r\n\r\n").starts_with("HTTP/1.1 400"));
        let long = format!("GET /livez HTTP/1.1\r\nX: {}", "y".repeat(2 * HEAD_BYTES_MAX));
        let mut stream = TcpStream::connect(address).expect("accepted");
        let _ = stream.write_all(long.as_bytes());
        let mut response = Vec::new();
        // The connection may be reset before all was sent.
        let _ = stream.read_to_end(&mut response);
        assert!(response.is_empty() || response.starts_with(b"HTTP/1.1 4"));
    });
}

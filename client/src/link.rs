//! One socket to one broker, with many requests in flight: [`Connection`] driven by a task.
//!
//! ```text
//!   connect ── versions asked ── open ──┬── Link dropped, nothing in flight ──► closed
//!                                       └── socket fails, or an answer is overdue ──► failed: all who wait are told
//! ```
//!
//! A failed link stays failed: whoever holds it gets the same error for each further request, and makes another.
//! Invariant: the task holds no borrow across an await, and answers are handed over in the order they came.

use crate::api::Call;
use crate::connection::{Broken, Connection, Frame, Response};
use crate::error::Error;
use crate::limits::CONNECT_TIMEOUT;
use crate::runtime::{self, Stream};
use crate::versions::Versions;
use flumen_wire::codec::{Decode, Reader};
use flumen_wire::messages::api_versions_request::ApiVersionsRequest;
use flumen_wire::messages::api_versions_response::ApiVersionsResponse;
use flumen_wire::{ApiKey, ErrorCode};
use futures_channel::oneshot;
use futures_io::{AsyncRead, AsyncWrite};
use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Reads that one poll does before other tasks get their turn.
const READS_PER_TURN: usize = 32;

/// How a link behaves.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// What the client calls itself.
    pub client_id: String,
    /// How long an answer may take; requests that wait at the broker add their wait.
    pub request_timeout: Duration,
}

/// A response whose body is read on demand: it borrows from the frame.
#[derive(Debug)]
pub struct Answer<R> {
    response: Response,
    address: Rc<str>,
    asked: PhantomData<fn() -> R>,
}

impl<R: Call> Answer<R> {
    /// The body.
    pub fn read(&self) -> Result<R::Response<'_>, Error> {
        R::Response::decode(&mut Reader::new(&self.response.body), self.response.version)
            .map_err(|error| Error::decode(&self.address, self.response.key, error))
    }

    /// The body's bytes.
    pub fn body(&self) -> &bytes::Bytes {
        &self.response.body
    }

    /// Who answered.
    pub fn address(&self) -> &Rc<str> {
        &self.address
    }

    /// The version that was used.
    pub fn version(&self) -> i16 {
        self.response.version
    }
}

/// A request that was sent. It is answered whether or not this is kept.
pub type Pending = oneshot::Receiver<Result<Response, Error>>;

/// A frame that was not sent comes back.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: Error,
    /// The frame.
    pub frame: Frame,
}

struct Waiting {
    reply: oneshot::Sender<Result<Response, Error>>,
    since: Instant,
    within: Duration,
}

struct Shared {
    address: Rc<str>,
    connection: RefCell<Connection<Waiting>>,
    /// Of the driving task, while it waits.
    driver: RefCell<Option<Waker>>,
    failed: OnceCell<Error>,
    /// How many [`Link`]s there are.
    users: Cell<usize>,
}

/// See the head of this file.
pub struct Link {
    shared: Rc<Shared>,
    versions: Rc<OnceCell<Versions>>,
    request_timeout: Duration,
}

impl Clone for Link {
    fn clone(&self) -> Link {
        self.shared.users.set(self.shared.users.get() + 1);
        Link {
            shared: self.shared.clone(),
            versions: self.versions.clone(),
            request_timeout: self.request_timeout,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.users.set(self.shared.users.get() - 1);
        self.shared.wake();
    }
}

impl Link {
    /// Connects to `host:port` and learns what the broker can do.
    pub async fn connect(address: &str, settings: &LinkSettings) -> Result<Link, Error> {
        let stream = open(address).await?;
        let address: Rc<str> = address.into();
        let shared = Rc::new(Shared {
            address,
            connection: RefCell::new(Connection::new(&settings.client_id)),
            driver: RefCell::new(None),
            failed: OnceCell::new(),
            users: Cell::new(1),
        });
        let link = Link {
            shared: shared.clone(),
            versions: Rc::new(OnceCell::new()),
            request_timeout: settings.request_timeout,
        };
        runtime::spawn(Drive { stream, shared, alarm: None }.run());
        let versions = link.ask_versions().await?;
        let _ = link.versions.set(versions);
        Ok(link)
    }

    /// The peer, as it was given.
    pub fn address(&self) -> &Rc<str> {
        &self.shared.address
    }

    /// What the broker has.
    pub fn versions(&self) -> &Versions {
        self.versions.get().expect("set before the link is handed out")
    }

    /// The version in which a request would be sent.
    pub fn version<R: Call>(&self) -> Result<i16, Error> {
        self.versions().choose::<R>().ok_or_else(|| Error::Unsupported {
            address: self.address().clone(),
            api: R::KEY,
            ours: (R::MIN_VERSION, R::NEWEST),
            theirs: self.versions().range(R::KEY),
        })
    }

    /// Whether it can still be used.
    pub fn is_open(&self) -> bool {
        self.shared.failed.get().is_none()
    }

    /// What this client calls itself.
    pub fn client_id(&self) -> String {
        self.shared.connection.borrow().client_id().to_owned()
    }

    /// How many requests wait for their answers.
    pub fn in_flight(&self) -> usize {
        self.shared.connection.borrow().in_flight()
    }

    /// Sends what `make` makes for the version that is used, and waits for the answer.
    pub async fn call<R: Call>(&self, make: impl FnOnce(i16) -> R) -> Result<Answer<R>, Error> {
        self.call_within(Duration::ZERO, make).await
    }

    /// As [`Link::call`], for a request whose answer the broker holds back for up to `wait`.
    pub async fn call_within<R: Call>(
        &self,
        wait: Duration,
        make: impl FnOnce(i16) -> R,
    ) -> Result<Answer<R>, Error> {
        let version = self.version::<R>()?;
        let pending = self.send(version, &make(version), wait)?;
        self.answer(pending).await
    }

    /// Waits for the answer to what was sent.
    pub async fn answer<R: Call>(&self, pending: Pending) -> Result<Answer<R>, Error> {
        let response = match pending.await {
            Ok(result) => result?,
            Err(oneshot::Canceled) => return Err(self.failure(None)),
        };
        Ok(Answer { response, address: self.address().clone(), asked: PhantomData })
    }

    /// Sends a request and does not wait.
    pub fn send<R: Call>(&self, version: i16, request: &R, wait: Duration) -> Result<Pending, Error> {
        self.check()?;
        let (reply, pending) = oneshot::channel();
        let waiting = self.waiting(reply, wait);
        let sent = self.shared.connection.borrow_mut().send(version, request, waiting);
        sent.map_err(|_| Error::Busy { address: self.address().clone() })?;
        self.shared.wake();
        Ok(pending)
    }

    /// Sends an encoded frame and does not wait. The correlation id in it is set here. The buffer is shared with the
    /// connection until it is written, and the caller's alone after the answer.
    pub fn send_frame(
        &self,
        key: ApiKey,
        version: i16,
        frame: Frame,
        wait: Duration,
    ) -> Result<(Pending, Rc<Vec<u8>>), Refused> {
        let (reply, pending) = oneshot::channel();
        let waiting = self.waiting(reply, wait);
        Ok((pending, self.push_frame(key, version, frame, Some(waiting))?))
    }

    /// Sends a frame to which there is no response: a Produce with acks=0.
    pub fn send_unanswered(&self, key: ApiKey, version: i16, frame: Frame) -> Result<Rc<Vec<u8>>, Refused> {
        self.push_frame(key, version, frame, None)
    }

    /// Whether everything given to it has left for the kernel.
    pub fn is_flushed(&self) -> bool {
        self.shared.connection.borrow().outgoing().is_empty()
    }

    fn push_frame(
        &self,
        key: ApiKey,
        version: i16,
        frame: Frame,
        waiting: Option<Waiting>,
    ) -> Result<Rc<Vec<u8>>, Refused> {
        if let Err(error) = self.check() {
            return Err(Refused { error, frame });
        }
        let pushed = self.shared.connection.borrow_mut().send_frame(key, version, frame, waiting);
        let busy = |(_, frame)| Refused { error: Error::Busy { address: self.address().clone() }, frame };
        let buffer = pushed.map_err(busy)?;
        self.shared.wake();
        Ok(buffer)
    }

    fn waiting(&self, reply: oneshot::Sender<Result<Response, Error>>, wait: Duration) -> Waiting {
        Waiting { reply, since: Instant::now(), within: self.request_timeout.saturating_add(wait) }
    }

    fn check(&self) -> Result<(), Error> {
        self.shared.failed.get().cloned().map_or(Ok(()), Err)
    }

    fn failure(&self, waiting: Option<ApiKey>) -> Error {
        let closed = || Error::Closed { address: self.address().clone(), waiting };
        self.shared.failed.get().cloned().unwrap_or_else(closed)
    }

    /// Asks in the newest version; a broker that does not know it answers in version 0 with what it does know.
    async fn ask_versions(&self) -> Result<Versions, Error> {
        let request = ApiVersionsRequest {
            client_software_name: "flumen",
            client_software_version: env!("CARGO_PKG_VERSION"),
        };
        let newest = <ApiVersionsRequest<'_> as Call>::NEWEST;
        let answer: Answer<ApiVersionsRequest<'_>> =
            self.answer(self.send(newest, &request, Duration::ZERO)?).await?;
        let body = &answer.response.body;
        let refused = body.first_chunk().map(|code| i16::from_be_bytes(*code))
            == Some(ErrorCode::UnsupportedVersion.code());
        let version = if refused { 0 } else { newest };
        let decoded = ApiVersionsResponse::decode(&mut Reader::new(body), version);
        let response = decoded.map_err(|error| Error::decode(self.address(), ApiKey::ApiVersions, error))?;
        if !refused {
            Error::check(response.error_code, None, || format!("the versions of {}", self.address()))?;
            return Ok(Versions::new(&response));
        }
        // Ask again in what it has, or in 0, which it has for certain.
        let version = Versions::new(&response).choose::<ApiVersionsRequest<'_>>().unwrap_or(0);
        let request = if version >= 3 { request } else { ApiVersionsRequest::default() };
        let answer: Answer<ApiVersionsRequest<'_>> =
            self.answer(self.send(version, &request, Duration::ZERO)?).await?;
        let response = answer.read()?;
        Error::check(response.error_code, None, || format!("the versions of {}", self.address()))?;
        Ok(Versions::new(&response))
    }
}

/// Looks the name up (which blocks: it happens once per broker) and connects to the first address that answers.
pub(crate) async fn open(address: &str) -> Result<Stream, Error> {
    let unusable = |why: String| Error::Address { address: address.to_owned(), why };
    let resolved: Vec<SocketAddr> =
        address.to_socket_addrs().map_err(|error| unusable(error.to_string()))?.collect();
    let mut last = unusable("the name has no address".to_owned());
    for one in resolved {
        let why = match runtime::timeout(CONNECT_TIMEOUT, runtime::connect(one)).await {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(error)) => explain(&error),
            None => format!("no connection within {:.0} s", CONNECT_TIMEOUT.as_secs_f64()),
        };
        last = Error::Socket { address: address.into(), why };
    }
    Err(last)
}

/// Without the number that the system's text ends with.
pub(crate) fn explain(error: &io::Error) -> String {
    let text = error.to_string();
    let short = text.split(" (os error").next().unwrap_or(&text);
    short.to_lowercase()
}

impl Shared {
    fn wake(&self) {
        if let Some(waker) = self.driver.borrow_mut().take() {
            waker.wake();
        }
    }

    fn fail(&self, error: Error) {
        let _ = self.failed.set(error.clone());
        let waiting: Vec<_> = self.connection.borrow_mut().drain().collect();
        for one in waiting {
            let _ = one.token.reply.send(Err(error.clone()));
        }
    }
}

/// The task behind a link.
struct Drive {
    stream: Stream,
    shared: Rc<Shared>,
    alarm: Option<Alarm>,
}

/// Goes off at the deadline of the request that was the oldest when it was set.
struct Alarm {
    at: Instant,
    sleep: Pin<Box<dyn Future<Output = ()>>>,
}

impl Drive {
    async fn run(mut self) {
        let outcome = std::future::poll_fn(|context| self.turn(context)).await;
        let error = outcome.err();
        let closed = || Error::Closed { address: self.shared.address.clone(), waiting: None };
        self.shared.fail(error.unwrap_or_else(closed));
    }

    /// Writes, reads, looks at the clock. Ends when nobody uses the link any more.
    fn turn(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.write(context)?;
        self.read(context)?;
        self.watch(context)?;
        let idle = {
            let connection = self.shared.connection.borrow();
            connection.in_flight() == 0 && connection.outgoing().is_empty()
        };
        if self.shared.users.get() == 0 && idle {
            return Poll::Ready(Ok(()));
        }
        let mut driver = self.shared.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *driver = Some(context.waker().clone());
        }
        Poll::Pending
    }

    fn write(&mut self, context: &mut Context<'_>) -> Result<(), Error> {
        let mut connection = self.shared.connection.borrow_mut();
        while !connection.outgoing().is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, connection.outgoing()) {
                Poll::Ready(Ok(0)) => return Err(self.closed(&connection)),
                Poll::Ready(Ok(count)) => connection.sent(count),
                Poll::Ready(Err(error)) if is_gone(&error) => return Err(self.closed(&connection)),
                Poll::Ready(Err(error)) => return Err(self.socket(&error)),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn read(&mut self, context: &mut Context<'_>) -> Result<(), Error> {
        for _ in 0..READS_PER_TURN {
            let mut connection = self.shared.connection.borrow_mut();
            match Pin::new(&mut self.stream).poll_read(context, connection.receive_buffer()) {
                Poll::Ready(Ok(0)) => return Err(self.closed(&connection)),
                Poll::Ready(Ok(count)) => connection.received(count),
                Poll::Ready(Err(error)) if is_gone(&error) => return Err(self.closed(&connection)),
                Poll::Ready(Err(error)) => return Err(self.socket(&error)),
                Poll::Pending => return Ok(()),
            }
            loop {
                match connection.next() {
                    Ok(None) => break,
                    // Whoever asked may have gone.
                    Ok(Some((asked, response))) => drop(asked.token.reply.send(Ok(response))),
                    Err(Broken::Frame(error)) => return Err(Error::frame(&self.shared.address, error)),
                    Err(broken) => {
                        let (address, why) = (self.shared.address.clone(), broken.to_string());
                        return Err(Error::Malformed { address, api: None, why });
                    }
                }
            }
        }
        context.waker().wake_by_ref();
        Ok(())
    }

    /// Fails when the oldest request is overdue, and otherwise sees to it that this is looked at in time. Not with a
    /// timer for each request: one that was set for a request answered since then just runs out.
    fn watch(&mut self, context: &mut Context<'_>) -> Result<(), Error> {
        loop {
            let connection = self.shared.connection.borrow();
            let Some(oldest) = connection.oldest() else { return Ok(()) };
            let (now, deadline) = (Instant::now(), oldest.token.since + oldest.token.within);
            if now >= deadline {
                let (address, api) = (self.shared.address.clone(), oldest.key);
                return Err(Error::Timeout { address, api, after: oldest.token.within });
            }
            if self.alarm.as_ref().is_none_or(|alarm| alarm.at > deadline) {
                let sleep = Box::pin(runtime::sleep(deadline - now));
                self.alarm = Some(Alarm { at: deadline, sleep });
            }
            let Some(alarm) = &mut self.alarm else { return Ok(()) };
            if alarm.sleep.as_mut().poll(context).is_pending() {
                return Ok(());
            }
            self.alarm = None;
        }
    }

    fn closed(&self, connection: &Connection<Waiting>) -> Error {
        let waiting = connection.oldest().map(|one| one.key);
        Error::Closed { address: self.shared.address.clone(), waiting }
    }

    fn socket(&self, error: &io::Error) -> Error {
        Error::Socket { address: self.shared.address.clone(), why: explain(error) }
    }
}

pub(crate) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionReset | K::BrokenPipe | K::ConnectionAborted | K::UnexpectedEof)
}

#[cfg(test)]
pub(crate) mod tests;

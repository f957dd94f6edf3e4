//! The coordinator's side of a worker.

use super::clock::{Offset, RoundTrip};
use super::{Job, Order, PROTOCOL_VERSION, Word, read_line, write_line};
use crate::engine::{Clock, Control, Means, Report};
use crate::failure::Failure;
use crate::layout::MachineShare;
use crate::result::{Machine, Usage};
use crate::scenario::Scenario;
use crate::target::Target;
use std::io::BufReader;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Questions about the time.
const CLOCK_QUESTIONS: usize = 200;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often what the run wants is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// A worker.
pub(crate) struct Link {
    address: String,
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    /// With the error of its clock, the largest of all phases.
    pub machine: Machine,
    clock: Offset,
}

/// Connects to all workers.
pub(crate) fn connect(addresses: &str) -> Result<Vec<Link>, Failure> {
    let all = addresses.split(',').map(str::trim).filter(|one| !one.is_empty());
    let links: Vec<Link> = all.map(Link::connect).collect::<Result<_, _>>()?;
    if links.is_empty() {
        return Err(Failure::Usage("--workers: give at least one HOST:PORT".to_owned()));
    }
    Ok(links)
}

impl Link {
    fn connect(address: &str) -> Result<Link, Failure> {
        let about = || format!("worker {address}");
        let io = |error| Failure::io(about(), error);
        let resolved = address.to_socket_addrs().map_err(io)?.next();
        let resolved =
            resolved.ok_or_else(|| Failure::Usage(format!("{}: the name has no address", about())))?;
        let stream = TcpStream::connect_timeout(&resolved, CONNECT_TIMEOUT).map_err(io)?;
        stream.set_nodelay(true).map_err(io)?;
        let reader = BufReader::new(stream.try_clone().map_err(io)?);
        let machine = Machine::default();
        let clock = Offset::default();
        let mut link = Link { address: address.to_owned(), stream, reader, machine, clock };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        link.order(&Order::Hello { protocol: PROTOCOL_VERSION, version })?;
        match link.word()? {
            Word::Hello { protocol: PROTOCOL_VERSION, machine, .. } => link.machine = *machine,
            Word::Hello { version, .. } => {
                return Err(Failure::Other(format!(
                    "{}: it is of version {version}; use the same here",
                    about()
                )));
            }
            _ => return Err(link.strange()),
        }
        Ok(link)
    }

    fn measure_clock(&mut self) -> Result<Offset, Failure> {
        let clock = Clock::new(0);
        let mut trips = Vec::with_capacity(CLOCK_QUESTIONS);
        for _ in 0..CLOCK_QUESTIONS {
            let asked_ns = clock.unix_ns(Instant::now());
            self.order(&Order::Clock)?;
            let Word::Clock { unix_ns } = self.word()? else { return Err(self.strange()) };
            let answered_ns = clock.unix_ns(Instant::now());
            trips.push(RoundTrip { asked_ns, answered_ns, theirs_ns: unix_ns });
        }
        Offset::of(&trips).ok_or_else(|| self.strange())
    }

    /// Gives it its share of a phase, with how far its clock is off now. How many threads it uses.
    pub(crate) fn prepare(
        &mut self,
        scenario: &Scenario,
        phase: usize,
        target: &Target,
        run: u64,
        share: MachineShare,
        means: Means,
    ) -> Result<usize, Failure> {
        self.clock = self.measure_clock()?;
        let job = Job {
            scenario: scenario.clone(),
            phase,
            target: target.clone(),
            run,
            share,
            clock_offset_ns: self.clock.offset_ns,
            means,
        };
        self.order(&Order::Job(Box::new(job)))?;
        match self.word()? {
            Word::Prepared { threads } => Ok(threads),
            Word::Told(super::Told::Failed(why)) => {
                Err(Failure::Other(format!("worker {}: {why}", self.address)))
            }
            _ => Err(self.strange()),
        }
    }

    /// Passes on what is told, and what the run wants, until the worker has ended. What its process took.
    pub(crate) fn follow(&mut self, control: &Arc<Control>, reports: &Sender<Report>) -> Usage {
        let result = std::thread::scope(|scope| {
            let (ended, has_ended) = std::sync::mpsc::channel::<()>();
            let mut out = match self.stream.try_clone() {
                Ok(out) => out,
                Err(error) => return Err(Failure::io("a socket", error)),
            };
            scope.spawn(move || {
                // A worker that is gone is seen by who reads.
                let _ = pass_orders(&mut out, control, &has_ended);
            });
            let usage = self.pass_reports(reports);
            drop(ended);
            usage
        });
        let heard = result.and_then(|usage| {
            self.order(&Order::Heard)?;
            // Its clock may have gone another way meanwhile.
            let later = self.measure_clock()?;
            let error_ns = self.clock.error_until(&later);
            self.machine.clock_error_ns = self.machine.clock_error_ns.max(Some(error_ns));
            Ok(usage)
        });
        heard.unwrap_or_else(|failure| {
            let _ = reports.send(Report::Failed(failure));
            Usage::default()
        })
    }

    fn pass_reports(&mut self, reports: &Sender<Report>) -> Result<Usage, Failure> {
        loop {
            match self.word()? {
                Word::Told(told) => {
                    let about = |why| Failure::Other(format!("worker {}: {why}", self.address));
                    let _ = reports.send(told.into_report().map_err(about)?);
                }
                Word::Ended { usage } => return Ok(usage),
                _ => return Err(self.strange()),
            }
        }
    }

    fn order(&mut self, order: &Order) -> Result<(), Failure> {
        write_line(&mut self.stream, order)
            .map_err(|error| Failure::io(format!("worker {}", self.address), error))
    }

    fn word(&mut self) -> Result<Word, Failure> {
        let word = read_line(&mut self.reader)
            .map_err(|error| Failure::io(format!("worker {}", self.address), error))?;
        word.ok_or_else(|| Failure::Other(format!("worker {} is gone", self.address)))
    }

    fn strange(&self) -> Failure {
        Failure::Other(format!("worker {}: it says what was not asked", self.address))
    }
}

/// Tells the worker what the run wants, as that comes up.
fn pass_orders(
    out: &mut TcpStream,
    control: &Control,
    has_ended: &std::sync::mpsc::Receiver<()>,
) -> std::io::Result<()> {
    let (mut started, mut sealed, mut cut, mut abandoned) = (false, false, false, false);
    let length_ns = control.end_ns();
    loop {
        if let Some(start) = control.start_at.get()
            && !std::mem::replace(&mut started, true)
        {
            write_line(out, &Order::Start { at_unix_ns: control.clock.unix_ns(*start) })?;
        }
        if let Some(acknowledged) = control.sealed()
            && !std::mem::replace(&mut sealed, true)
        {
            write_line(out, &Order::Seal { acknowledged })?;
        }
        if control.end_ns() < length_ns && !std::mem::replace(&mut cut, true) {
            write_line(out, &Order::Cut)?;
        }
        if control.is_abandoned() && !std::mem::replace(&mut abandoned, true) {
            write_line(out, &Order::Abandon)?;
        }
        if has_ended.recv_timeout(LOOK_INTERVAL) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            return Ok(());
        }
    }
}

//! The worker's side: one coordinator after the other, and for each one phase after the other.

use super::{Job, Order, PROTOCOL_VERSION, Told, Word, read_line, write_line};
use crate::cli::WorkerOptions;
use crate::console::{remark, say};
use crate::engine::{Clock, Control};
use crate::failure::Failure;
use crate::machine;
use crate::phase::Prepared;
use crate::process::Watched;
use std::io::{self, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Between two looks whether the measured time has begun, or is over.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// `flumen-bench worker`: until it is ended.
pub(crate) fn serve(options: &WorkerOptions) -> Result<(), Failure> {
    let listener = TcpListener::bind(&options.listen).map_err(|error| Failure::io(&options.listen, error))?;
    let address = listener.local_addr().map_err(|error| Failure::io(&options.listen, error))?;
    say(&format!("{address}\n"))?;
    for stream in listener.incoming().flatten() {
        if let Err(error) = attend(stream) {
            remark(&format!("flumen-bench worker: {error}"));
        }
    }
    Ok(())
}

/// Does what one coordinator wants, until it goes.
fn attend(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(order) = read_line(&mut reader)? {
        match order {
            Order::Hello { .. } => {
                let machine = Box::new(machine::describe(Path::new(".")));
                let version = env!("CARGO_PKG_VERSION").to_owned();
                write_line(&mut stream, &Word::Hello { protocol: PROTOCOL_VERSION, version, machine })?;
            }
            Order::Clock => {
                let unix_ns = Clock::new(0).unix_ns(Instant::now());
                write_line(&mut stream, &Word::Clock { unix_ns })?;
            }
            Order::Job(job) => run(*job, &mut stream, &mut reader)?,
            // Of a phase that has ended meanwhile.
            Order::Start { .. } | Order::Seal { .. } | Order::Cut | Order::Abandon | Order::Heard => {}
        }
    }
    Ok(())
}

fn run(job: Job, stream: &mut TcpStream, reader: &mut BufReader<TcpStream>) -> io::Result<()> {
    let prepared = job
        .scenario
        .check()
        .and_then(|()| {
            let phase = job.scenario.phases.get(job.phase);
            phase.ok_or_else(|| Failure::Other("a phase that is not there".to_owned()))
        })
        .and_then(|phase| Prepared::new(&job.scenario, phase, &job.target, job.run, job.share, job.means));
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => return write_line(stream, &Word::Told(Told::Failed(failure.to_string()))),
    };
    write_line(stream, &Word::Prepared { threads: prepared.threads() })?;
    let control = Arc::new(prepared.control(Clock::new(job.clock_offset_ns)));
    let (tell, told) = channel();
    let warmup = prepared.warmup();
    let running = match prepared.start(&control, &tell) {
        Ok(running) => running,
        Err(failure) => return write_line(stream, &Word::Told(Told::Failed(failure.to_string()))),
    };
    drop(tell);
    // Orders come until the phase is over; the socket's end abandons it.
    std::thread::scope(|scope| {
        let heard = scope.spawn(|| obey(reader, &control));
        let mut watched = Watched::Not(Vec::new());
        loop {
            watched.look(&control, warmup);
            match told.recv_timeout(LOOK_INTERVAL) {
                Ok(report) if write_line(stream, &Word::Told(Told::of(&report))).is_err() => {
                    control.abandoned.store(true, Ordering::Relaxed);
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        for thread in running {
            let _ = thread.join();
        }
        let (usage, _) = watched.into_seen();
        let ended = write_line(stream, &Word::Ended { usage });
        let heard = heard.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        ended.and(heard)
    })
}

/// Heeds orders until the coordinator says that it has heard the end, or is gone.
fn obey(reader: &mut BufReader<TcpStream>, control: &Control) -> io::Result<()> {
    loop {
        match read_line(reader) {
            Ok(Some(Order::Start { at_unix_ns })) => {
                let _ = control.start_at.set(control.clock.instant(at_unix_ns));
            }
            Ok(Some(Order::Seal { acknowledged })) => control.seal(acknowledged),
            Ok(Some(Order::Cut)) => control.cut(),
            Ok(Some(Order::Abandon)) => control.abandoned.store(true, Ordering::Relaxed),
            Ok(Some(Order::Heard)) => return Ok(()),
            Ok(Some(_)) => {}
            Ok(None) => {
                control.abandoned.store(true, Ordering::Relaxed);
                return Ok(());
            }
            Err(error) => {
                control.abandoned.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
    }
}

//! A broker of this machine that is killed in the midst of a load (`kill -9`) and started again at once, as it was: the
//! same program, arguments, environment, folder and output. What counts is the time from the kill until a record that was sent
//! after its end is acknowledged.
//!
//! ```text
//!   LocalBroker::find --due--> killed --process gone--> started --> first acknowledgement (Outage, told by the lanes)
//! ```
//!
//! It is for a broker that nobody else starts again: a supervisor would start a second one.

use crate::engine::Control;
use crate::failure::Failure;
use crate::process;
use crate::result::RestartSeen;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpgid, pidfd_open, pidfd_send_signal};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A process that was killed is gone after so long at most.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// What the threads of a load know of it.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    killed_at: OnceLock<Instant>,
    /// From here on nothing is answered but by the process that is started after it. Until then the old one may still
    /// answer, since a signal takes its time.
    gone_at: OnceLock<Instant>,
    acknowledged_at: OnceLock<Instant>,
}

impl Outage {
    pub(crate) fn is_gone(&self) -> bool {
        self.gone_at.get().is_some()
    }

    /// Whether what was due or sent then can have reached only the process that was started after the kill.
    #[cfg_attr(
        not(feature = "librdkafka"),
        expect(dead_code, reason = "lanes of our own ask when they connect")
    )]
    pub(crate) fn was_gone(&self, at: Instant) -> bool {
        self.gone_at.get().is_some_and(|gone| *gone < at)
    }

    /// Something that was sent after the end of the old process was acknowledged.
    pub(crate) fn note_acknowledgement(&self, at: Instant) {
        let _ = self.acknowledged_at.set(at);
    }
}

/// A process that listens on this machine, and how it was started.
#[derive(Debug)]
pub(crate) struct LocalBroker {
    pid: Pid,
    program: PathBuf,
    /// The first is what it calls itself.
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: PathBuf,
    group: Option<Pid>,
}

impl LocalBroker {
    pub(crate) fn find(addresses: &[SocketAddr]) -> Result<LocalBroker, Failure> {
        let pid = process::listener(addresses).ok_or_else(|| {
            Failure::Usage(
                "phases.restart: no process of this machine that we may look at listens there; only such a broker can \
                 be killed and started again"
                    .to_owned(),
            )
        })?;
        LocalBroker::of(pid).map_err(|error| Failure::io(format!("process {pid}"), error))
    }

    fn of(pid: u32) -> io::Result<LocalBroker> {
        let of = |what: &str| PathBuf::from(format!("/proc/{pid}/{what}"));
        let arguments = pieces(fs::read(of("cmdline"))?);
        let executable = fs::read_link(of("exe"))?;
        // The kernel marks the link of a program whose file was replaced since.
        let program = match (executable.exists(), arguments.first()) {
            (false, Some(name)) => PathBuf::from(name),
            _ => executable,
        };
        let environment = pieces(fs::read(of("environ"))?).into_iter().filter_map(|one| {
            let bytes = one.into_vec();
            let middle = bytes.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (bytes[..middle].to_vec(), bytes[middle + 1..].to_vec());
            Some((OsString::from_vec(name), OsString::from_vec(value)))
        });
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        Ok(LocalBroker {
            pid: raw,
            program,
            arguments,
            environment: environment.collect(),
            folder: fs::read_link(of("cwd"))?,
            group: getpgid(Some(raw)).ok(),
        })
    }

    /// Kills it, waits until it is gone, and starts it again.
    fn kill_and_start(&self, outage: &Outage) -> Result<Child, Failure> {
        let failed = |error: io::Error| Failure::io(self.program.display(), error);
        let output = |number: u32| self.output(number);
        let (out, err) = (output(1), output(2));
        let handle = pidfd_open(self.pid, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
        let _ = outage.killed_at.set(Instant::now());
        pidfd_send_signal(&handle, Signal::KILL).map_err(|error| failed(error.into()))?;
        let limit = Timespec { tv_sec: END_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit));
        if ended.map_err(|error| failed(error.into()))? == 0 {
            return Err(Failure::Other(format!("{}: it does not end", self.program.display())));
        }
        let _ = outage.gone_at.set(Instant::now());
        // Where it was with its group: who ends the group ends the new one, too. A group that is gone has no members.
        let group = self.group.map_or(0, Pid::as_raw_pid);
        let started = self.command(&out, &err, group).spawn();
        started.or_else(|_| self.command(&out, &err, 0).spawn()).map_err(failed)
    }

    fn command(&self, out: &Option<File>, err: &Option<File>, group: i32) -> Command {
        let mut command = Command::new(&self.program);
        if let Some((name, rest)) = self.arguments.split_first() {
            command.arg0(name).args(rest);
        }
        let to = |file: &Option<File>| {
            let file = file.as_ref().and_then(|file| file.try_clone().ok());
            file.map_or_else(Stdio::null, Stdio::from)
        };
        command.env_clear().envs(self.environment.iter().cloned()).current_dir(&self.folder);
        command.stdin(Stdio::null()).stdout(to(out)).stderr(to(err)).process_group(group);
        command
    }

    /// What it writes to, to be written on. None for what cannot be opened again: a socket, or a pipe that may have
    /// no reader any more.
    fn output(&self, number: u32) -> Option<File> {
        let path = format!("/proc/{}/fd/{number}", self.pid.as_raw_pid());
        let kind = fs::metadata(&path).ok()?.file_type();
        if !kind.is_file() && !kind.is_char_device() {
            return None;
        }
        OpenOptions::new().append(true).open(Path::new(&path)).ok()
    }
}

/// As the kernel tells them: each ends with a zero.
fn pieces(bytes: Vec<u8>) -> Vec<OsString> {
    let text = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    text.split(|byte| *byte == 0).map(|piece| OsString::from_vec(piece.to_vec())).collect()
}

/// A restart that is to be, or has been.
#[derive(Debug)]
pub(crate) struct Restart {
    broker: LocalBroker,
    /// From the start of the load.
    due: Duration,
    started: Option<Child>,
}

impl Restart {
    pub(crate) fn new(broker: LocalBroker, due: Duration) -> Restart {
        Restart { broker, due, started: None }
    }

    /// Does what is due. A broker that ends again by itself ends the run.
    pub(crate) fn look(&mut self, control: &Control) -> Result<(), Failure> {
        let Some(start) = control.start_at.get() else { return Ok(()) };
        if let Some(child) = &mut self.started {
            let program = self.broker.program.display();
            return match child.try_wait() {
                Ok(Some(status)) => Err(Failure::Other(format!(
                    "{program}: started again after the kill, it ended with {status}"
                ))),
                _ => Ok(()),
            };
        }
        let is_over = self.due.as_nanos() as u64 >= control.end_ns();
        if start.elapsed() >= self.due && !is_over {
            self.started = Some(self.broker.kill_and_start(&control.outage)?);
        }
        Ok(())
    }

    /// What came of it; none where the load ended before.
    pub(crate) fn seen(&self, control: &Control, warmup: Duration) -> Option<RestartSeen> {
        let (start, killed) = (control.start_at.get()?, control.outage.killed_at.get()?);
        let first = control.outage.acknowledged_at.get();
        Some(RestartSeen {
            phase: String::new(),
            killed_at_s: killed.saturating_duration_since(*start + warmup).as_secs_f64(),
            first_acknowledgement_ns: first.map(|at| at.saturating_duration_since(*killed).as_nanos() as u64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_process_was_started_is_found_and_it_is_started_so_again() {
        let folder = std::env::temp_dir().join(format!("flumen-bench-outage-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let log = folder.join("log");
        let mut child = Command::new("sh")
            .args(["-c", "echo \"$GREETING $1\"; exec sleep 600", "sh", "with spaces"])
            .env("GREETING", "hello")
            .current_dir(&folder)
            .stdout(File::create(&log).expect("a file"))
            .process_group(0)
            .spawn()
            .expect("a process");
        let said = || fs::read_to_string(&log).expect("it is there");
        wait_until(|| said() == "hello with spaces\n");
        // It becomes another program.
        wait_until(|| LocalBroker::of(child.id()).is_ok_and(|broker| broker.arguments == ["sleep", "600"]));
        let first = LocalBroker::of(child.id()).expect("ours");
        assert_eq!(first.environment.iter().find(|(name, _)| name == "GREETING").expect("set").1, "hello");
        let outage = Outage::default();
        let broker = LocalBroker {
            arguments: ["sh", "-c", "echo again; pwd; exec sleep 600"].map(OsString::from).to_vec(),
            program: "sh".into(),
            ..first
        };
        let mut again = broker.kill_and_start(&outage).expect("it starts");
        assert!(outage.is_gone() && !child.wait().expect("ours").success());
        let expected =
            format!("hello with spaces\nagain\n{}\n", folder.canonicalize().expect("there").display());
        wait_until(|| said() == expected);
        again.kill().expect("ours");
        again.wait().expect("ours");
        fs::remove_dir_all(&folder).expect("the folder");
    }

    fn wait_until(what: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !what() {
            assert!(Instant::now() < deadline, "it did not come to pass");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn who_listens_nowhere_cannot_be_killed() {
        let listening = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listening.local_addr().expect("its address");
        drop(listening);
        let failure = LocalBroker::find(&[address]).expect_err("nobody is there");
        assert!(matches!(&failure, Failure::Usage(text) if text.contains("restart")), "{failure:?}");
    }
}

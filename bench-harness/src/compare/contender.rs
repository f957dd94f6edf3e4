//! A broker that is compared: one that runs already, or one that is started here, on free ports of the loopback address
//! and with a folder of its own.
//!
//! ```text
//!   Spec::parse --start--> Contender --drop--> process ended, folder gone
//!                              |
//!                         guardian: a shell that waits for our end, and then does the same, however we ended
//! ```
//!
//! Brokers are in process groups of their own: Ctrl-C is for us, and they are needed until what was measured is whole.

use super::kafka;
use crate::failure::Failure;
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A JVM on a busy machine takes its time.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Of a broker's log, in the message that it did not start.
const LOG_TAIL_LINES: usize = 30;
/// Ends the broker's group and removes its folder when its standard input ends, which it does when we do. A line says
/// that the group has ended: its number may be another's by then.
const GUARDIAN: &str = r#"read -r said; [ "$said" = ended ] || kill -9 "-$1"; rm -rf -- "$2""#;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spec {
    Flumen { program: PathBuf },
    Kafka { is_synced: bool },
    Running { address: String },
}

impl Spec {
    pub(super) fn parse(text: &str) -> Result<Spec, Failure> {
        match text {
            "flumen" => Ok(Spec::Flumen { program: node_program() }),
            "kafka" => Ok(Spec::Kafka { is_synced: false }),
            "kafka-sync" => Ok(Spec::Kafka { is_synced: true }),
            _ => match text.strip_prefix("flumen=") {
                Some(program) => Ok(Spec::Flumen { program: PathBuf::from(program) }),
                None if text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => {
                    Ok(Spec::Running { address: text.to_owned() })
                }
                None => Err(Failure::Usage(format!(
                    "{text:?} is no broker: give flumen, flumen=PATH, kafka, kafka-sync or HOST:PORT"
                ))),
            },
        }
    }
}

/// Beside this program, where a build of both puts it; else wherever the shell finds it.
fn node_program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|path| path.with_file_name("flumen-node"));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from("flumen-node"))
}

/// Where brokers are started, and out of what.
pub(super) struct Place {
    /// Folders are made below it.
    pub folder: PathBuf,
    pub kafka_jars: Option<PathBuf>,
}

/// See the head of this file.
pub(super) struct Contender {
    /// What it was started as, in words.
    pub description: String,
    pub address: String,
    /// Where it keeps its data, when it was started here.
    pub data: Option<PathBuf>,
    started: Option<Started>,
}

impl Contender {
    /// Starts it where it does not run yet, and waits until it accepts connections.
    pub(super) fn start(spec: &Spec, place: &Place, interrupted: &AtomicBool) -> Result<Contender, Failure> {
        let (name, build): (_, Build) = match spec {
            Spec::Running { address } => {
                return Ok(Contender {
                    description: format!("a broker that ran already, at {address}"),
                    address: address.clone(),
                    data: None,
                    started: None,
                });
            }
            Spec::Flumen { program } => ("flumen", Box::new(|folder, ports| flumen(program, folder, ports))),
            Spec::Kafka { is_synced } => {
                let jars = kafka::jars(place.kafka_jars.as_deref())?;
                ("kafka", Box::new(move |folder, ports| kafka::broker(&jars, *is_synced, folder, ports)))
            }
        };
        let folder = new_folder(&place.folder, name)?;
        let ports = free_ports().map_err(|error| Failure::io("free ports", error))?;
        let prepared = build(&folder, &ports).and_then(|(command, description)| {
            Started::spawn(command, &folder).map(|started| (started, description))
        });
        // From here on the folder is the guardian's; before, it is ours.
        let (mut started, description) = prepared.inspect_err(|_| drop(fs::remove_dir_all(&folder)))?;
        let address = SocketAddr::from(([127, 0, 0, 1], ports[0]));
        started.wait_ready(name, address, interrupted)?;
        let data = Some(folder.join("data"));
        Ok(Contender { description, address: address.to_string(), data, started: Some(started) })
    }

    /// The end of its log, for the message when it ended by itself.
    pub(super) fn why_ended(&mut self) -> Option<String> {
        let started = self.started.as_mut()?;
        let status = started.process.try_wait().ok()??;
        Some(format!("it ended with {status}\n{}", started.log_tail()))
    }
}

/// The command that runs the broker, and what it is in words.
type Build<'a> = Box<dyn Fn(&Path, &[u16; 3]) -> Result<(Command, String), Failure> + 'a>;

fn flumen(program: &Path, folder: &Path, ports: &[u16; 3]) -> Result<(Command, String), Failure> {
    let version = Command::new(program).arg("--version").output().map_err(|error| {
        Failure::io(format!("{} (build it: cargo build --release)", program.display()), error)
    })?;
    let mut command = Command::new(program);
    // What configures a node of the user's own is not for this one.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FLUMEN_")) {
        command.env_remove(name);
    }
    command.arg("--data-dir").arg(folder.join("data"));
    for (flag, port) in ["--kafka-addr", "--admin-addr", "--cluster-addr"].iter().zip(ports) {
        command.arg(flag).arg(format!("127.0.0.1:{port}"));
    }
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    Ok((command, format!("{version}, as it comes: fdatasync before every acknowledgement")))
}

/// Three ports that nothing listens on now, held together while they are chosen, so that they differ. Below those that
/// the kernel gives to whoever connects: a client that retries while a contender restarts may be given its port, and then
/// keeps it.
fn free_ports() -> io::Result<[u16; 3]> {
    const TRIES: usize = 1000;
    const FIRST: u16 = 10_000;
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let outgoing = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768);
    let free = || {
        let mut tries = (0..TRIES).map(|_| match outgoing > FIRST {
            true => TcpListener::bind(("127.0.0.1", fastrand::u16(FIRST..outgoing))),
            false => TcpListener::bind("127.0.0.1:0"),
        });
        tries.find_map(Result::ok).ok_or_else(|| io::Error::other("no port is free"))
    };
    let held = [free()?, free()?, free()?];
    let [first, second, third] = held.each_ref().map(|listener| listener.local_addr().map(|at| at.port()));
    Ok([first?, second?, third?])
}

fn new_folder(below: &Path, name: &str) -> Result<PathBuf, Failure> {
    let folder = below.join(format!("flumen-bench-{name}-{}-{:08x}", std::process::id(), fastrand::u32(..)));
    fs::create_dir_all(&folder).map_err(|error| Failure::io(folder.display(), error))?;
    // Its guardian works elsewhere.
    folder.canonicalize().map_err(|error| Failure::io(folder.display(), error))
}

/// A process and its guardian.
struct Started {
    process: Child,
    guardian: Child,
    folder: PathBuf,
}

impl Started {
    fn spawn(mut command: Command, folder: &Path) -> Result<Started, Failure> {
        let program = command.get_program().to_string_lossy().into_owned();
        let log = File::create(folder.join("log"))
            .and_then(|log| Ok((log.try_clone()?, log)))
            .map_err(|error| Failure::io(folder.display(), error))?;
        let mut process = command
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.0)
            .stderr(log.1)
            .process_group(0)
            .spawn()
            .map_err(|error| Failure::io(&program, error))?;
        let guardian = Command::new("sh")
            .args(["-c", GUARDIAN, "sh", &process.id().to_string()])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        match guardian {
            Ok(guardian) => Ok(Started { process, guardian, folder: folder.to_owned() }),
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(Failure::io("sh", error))
            }
        }
    }

    fn wait_ready(
        &mut self,
        name: &str,
        address: SocketAddr,
        interrupted: &AtomicBool,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(address).is_err() {
            if let Ok(Some(status)) = self.process.try_wait() {
                let tail = self.log_tail();
                return Err(Failure::Other(format!(
                    "{name} ended with {status} before it was ready\n{tail}"
                )));
            }
            if interrupted.load(Ordering::Relaxed) {
                return Err(Failure::Interrupted);
            }
            if Instant::now() > deadline {
                let limit = START_TIMEOUT.as_secs();
                return Err(Failure::Other(format!(
                    "{name} was not ready in {limit} s\n{}",
                    self.log_tail()
                )));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }
}

impl Drop for Started {
    /// Without ceremony: its data is of no use to anybody.
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.process.wait();
        // Told that the group is gone, the guardian removes the folder.
        if let Some(mut stdin) = self.guardian.stdin.take() {
            let _ = stdin.write_all(b"ended\n");
        }
        let _ = self.guardian.wait();
    }
}

/// Whether an address can be resolved at all, before anything else is started.
pub(super) fn check_address(spec: &Spec) -> Result<(), Failure> {
    match spec {
        Spec::Running { address } => match address.to_socket_addrs() {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::NoBroker(format!("{address}: {error}"))),
        },
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_told_apart() {
        let kafka = |is_synced| Spec::Kafka { is_synced };
        for (text, expected) in [
            ("kafka", kafka(false)),
            ("kafka-sync", kafka(true)),
            ("flumen=/a/flumen-node", Spec::Flumen { program: PathBuf::from("/a/flumen-node") }),
            ("[::1]:9092", Spec::Running { address: "[::1]:9092".to_owned() }),
        ] {
            assert_eq!(Spec::parse(text).expect("a broker"), expected);
        }
        for wrong in ["", "pulsar", "localhost", "localhost:x", "kafka-"] {
            assert!(matches!(Spec::parse(wrong), Err(Failure::Usage(_))), "{wrong}");
        }
    }

    fn sleeper(folder: &Path) -> Started {
        let mut command = Command::new("sleep");
        command.arg("600");
        Started::spawn(command, folder).expect("a process")
    }

    fn runs(pid: u32) -> bool {
        // A zombie is ended: its parent here is this test.
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }

    fn wait_until(what: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !what() {
            assert!(Instant::now() < deadline, "it did not come to pass");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    #[test]
    fn what_was_started_ends_and_its_folder_goes() {
        let folder = new_folder(&std::env::temp_dir(), "test").expect("a folder");
        let started = sleeper(&folder);
        let pid = started.process.id();
        assert!(runs(pid) && folder.join("log").exists());
        drop(started);
        assert!(!runs(pid) && !folder.exists());
    }

    #[test]
    fn the_guardian_does_the_same_when_we_end_without_a_word() {
        let folder = new_folder(&std::env::temp_dir(), "test").expect("a folder");
        let mut started = sleeper(&folder);
        let pid = started.process.id();
        // As when our process is killed: the pipe closes, and nobody has said anything.
        drop(started.guardian.stdin.take());
        wait_until(|| !runs(pid) && !folder.exists());
    }

    #[test]
    fn a_broker_that_does_not_start_says_why() {
        let folder = new_folder(&std::env::temp_dir(), "test").expect("a folder");
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such disk >&2; exit 3"]);
        let mut started = Started::spawn(command, &folder).expect("a process");
        // A free one may be somebody's by then.
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        let failure = started.wait_ready("it", nobody, &AtomicBool::new(false)).expect_err("it ended");
        assert!(
            matches!(&failure, Failure::Other(text) if text.contains("exit status: 3") && text.ends_with("no such disk")),
            "{failure:?}"
        );
    }
}

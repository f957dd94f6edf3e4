//! What a process takes of the machine, from `/proc`: our own, and the broker's where it runs here. The broker is found by
//! the address that it listens on, so nobody has to say which process it is, and one that is started again in the
//! midst of a run is found again.
//!
//! ```text
//!   address --bind?--> is ours --/proc/net/tcp--> inode of the listener --/proc/*/fd--> process
//!   Watch::begin --one sample a second, on a thread of its own--> end: differences from the first sample
//! ```
//!
//! Figures of other users' processes may be denied: those are zero, and a broker whose files can not be listed is not
//! found. CPU is counted by the kernel in ticks of 10 ms, which is 1 % of a core over one second.

use crate::engine::{Amount, Control};
use crate::machine::kib_of;
use crate::result::{BrokerProcess, Usage, UsageSecond};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// The kernel's `LISTEN` in /proc/net/tcp.
const TCP_LISTEN: &str = "0A";

/// Totals of a process since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Figures {
    cpu_user_s: f64,
    cpu_system_s: f64,
    rss_bytes: u64,
    disk_read_bytes: u64,
    disk_write_bytes: u64,
    voluntary: u64,
    involuntary: u64,
}

impl Figures {
    fn of(pid: u32) -> io::Result<Figures> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (cpu_user_s, cpu_system_s) = cpu_of(&stat, rustix::param::clock_ticks_per_second() as f64)
            .ok_or(io::ErrorKind::InvalidData)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        // One that has ended stays in the table while nobody has asked for its end.
        if stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X'])) {
            return Err(io::ErrorKind::NotFound.into());
        }
        // Only for processes of the same user, or for root.
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let mut figures = Figures {
            cpu_user_s,
            cpu_system_s,
            rss_bytes: kib_of(&status, "VmRSS:").unwrap_or(0),
            disk_read_bytes: number_of(&io, "read_bytes:"),
            disk_write_bytes: number_of(&io, "write_bytes:"),
            voluntary: 0,
            involuntary: 0,
        };
        // The file of the process counts its first thread alone.
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            figures.voluntary += number_of(&status, "voluntary_ctxt_switches:");
            figures.involuntary += number_of(&status, "nonvoluntary_ctxt_switches:");
        }
        Ok(figures)
    }
}

/// User and system seconds. The name in the second field may hold spaces and brackets.
fn cpu_of(stat: &str, ticks_per_s: f64) -> Option<(f64, f64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some((next()? as f64 / ticks_per_s, next()? as f64 / ticks_per_s))
}

fn number_of(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// The process that listens on one of the addresses, if it is on this machine and may be seen.
pub(crate) fn listener(addresses: &[SocketAddr]) -> Option<u32> {
    let mut inodes = HashSet::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let table = fs::read_to_string(file).unwrap_or_default();
        for address in addresses.iter().filter(|address| is_of_this_machine(address.ip())) {
            inodes.extend(listening_inodes(&table, *address));
        }
    }
    if inodes.is_empty() {
        return None;
    }
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| has_socket(*pid, &inodes))
        .collect();
    // A parent that handed its socket on has the lower number and serves nobody; there is seldom more than one.
    pids.sort_unstable();
    pids.pop()
}

/// Another machine's broker may well use the port of a process that runs here.
fn is_of_this_machine(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Of the sockets in a table of the kernel's that accept connections to `address`, all of its kind included.
fn listening_inodes(table: &str, address: SocketAddr) -> Vec<u64> {
    let listens = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (&local, &state, &inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let (ip, port) = local.split_once(':')?;
        let ip = ip_of(ip)?;
        let is_for = ip == address.ip().to_canonical() || ip.is_unspecified();
        let fits = state == TCP_LISTEN && u16::from_str_radix(port, 16).ok()? == address.port() && is_for;
        if fits { inode.parse().ok() } else { None }
    };
    table.lines().filter_map(listens).collect()
}

/// The kernel prints addresses as words in the order of the machine.
fn ip_of(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for place in 0..4 {
                octets[4 * place..4 * place + 4].copy_from_slice(&word(8 * place)?);
            }
            Some(IpAddr::from(Ipv6Addr::from(octets)).to_canonical())
        }
        _ => None,
    }
}

fn has_socket(pid: u32, inodes: &HashSet<u64>) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| {
        let Ok(target) = fs::read_link(file.path()) else { return false };
        let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
        inode.and_then(|text| text.parse().ok()).is_some_and(|inode: u64| inodes.contains(&inode))
    })
}

/// One process over time. A process that takes its place goes on where it ended.
#[derive(Debug)]
struct Track {
    pid: u32,
    last: Figures,
    last_at: Instant,
    /// Whether `last` is of the process that runs now.
    is_alive: bool,
    restarted: bool,
    usage: Usage,
}

impl Track {
    fn begin(pid: u32, now: Instant) -> io::Result<Track> {
        let last = Figures::of(pid)?;
        let usage = Usage { rss_bytes_max: last.rss_bytes, ..Usage::default() };
        Ok(Track { pid, last, last_at: now, is_alive: true, restarted: false, usage })
    }

    fn sample(&mut self, began: Instant, now: Instant) {
        let Ok(figures) = Figures::of(self.pid) else {
            self.is_alive = false;
            return;
        };
        self.add(figures, began, now);
    }

    /// The process has a new one in its place; what that took since its start counts.
    fn replaced_by(&mut self, pid: u32) {
        (self.pid, self.is_alive, self.restarted) = (pid, true, true);
        self.last = Figures::default();
    }

    fn add(&mut self, now_figures: Figures, began: Instant, now: Instant) {
        let before = self.last;
        let user = (now_figures.cpu_user_s - before.cpu_user_s).max(0.0);
        let system = (now_figures.cpu_system_s - before.cpu_system_s).max(0.0);
        let length_s = now.duration_since(self.last_at).as_secs_f64();
        let read = now_figures.disk_read_bytes.saturating_sub(before.disk_read_bytes);
        let write = now_figures.disk_write_bytes.saturating_sub(before.disk_write_bytes);
        let usage = &mut self.usage;
        usage.cpu_user_s += user;
        usage.cpu_system_s += system;
        usage.rss_bytes_max = usage.rss_bytes_max.max(now_figures.rss_bytes);
        usage.disk_read_bytes += read;
        usage.disk_write_bytes += write;
        // Threads that ended took their counts with them.
        usage.context_switches_voluntary += now_figures.voluntary.saturating_sub(before.voluntary);
        usage.context_switches_involuntary += now_figures.involuntary.saturating_sub(before.involuntary);
        if length_s > 0.0 {
            usage.seconds.push(UsageSecond {
                at_s: self.last_at.duration_since(began).as_secs_f64(),
                length_s,
                cores: (user + system) / length_s,
                rss_bytes: now_figures.rss_bytes,
                disk_read_bytes: read,
                disk_write_bytes: write,
            });
        }
        (self.last, self.last_at) = (now_figures, now);
    }
}

/// What processes take is watched within the measured time alone.
#[derive(Debug)]
pub(crate) enum Watched {
    /// With the broker's addresses.
    Not(Vec<SocketAddr>),
    Now(Watch),
    Done(Usage, Option<BrokerProcess>),
}

impl Watched {
    /// To be called often: begins and ends it when the time for that has come.
    pub(crate) fn look(&mut self, control: &Control, warmup: Duration) {
        let Some(start) = control.start_at.get() else { return };
        let (now, end) = (Instant::now(), *start + Duration::from_nanos(control.end_ns()));
        match self {
            Watched::Not(addresses) if now >= *start + warmup && now < end => {
                if let Ok(watch) = Watch::begin(addresses) {
                    *self = Watched::Now(watch);
                }
            }
            Watched::Now(_) if now >= end => self.end(),
            _ => {}
        }
    }

    fn end(&mut self) {
        let none = Watched::Done(Usage::default(), None);
        if let Watched::Now(watch) = std::mem::replace(self, none) {
            let (usage, broker) = watch.end();
            *self = Watched::Done(usage, broker);
        }
    }

    /// What was seen, also where the measured time is cut short.
    pub(crate) fn into_seen(mut self) -> (Usage, Option<BrokerProcess>) {
        if matches!(self, Watched::Now(_)) {
            self.end();
        }
        match self {
            Watched::Done(usage, broker) => (usage, broker),
            Watched::Not(_) | Watched::Now(_) => (Usage::default(), None),
        }
    }
}

/// Samples ourselves and the broker from `begin` to `end`.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Dropped to ask for the end.
    ask: Sender<()>,
    thread: JoinHandle<(Option<Track>, Option<Track>)>,
}

impl Watch {
    /// `addresses` are those of the broker; none that is local, none is watched.
    pub(crate) fn begin(addresses: &[SocketAddr]) -> io::Result<Watch> {
        let addresses = addresses.to_vec();
        let (ask, asked) = channel::<()>();
        // The first samples are taken here, so that they are of before whatever the caller does next.
        let began = Instant::now();
        let mut own = Track::begin(std::process::id(), began).ok();
        let mut broker = listener(&addresses).and_then(|pid| Track::begin(pid, Instant::now()).ok());
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
            let mut due = began + SAMPLE_INTERVAL;
            loop {
                let wait = due.saturating_duration_since(Instant::now());
                let is_end = asked.recv_timeout(wait) != Err(RecvTimeoutError::Timeout);
                if let Some(track) = &mut own {
                    track.sample(began, Instant::now());
                }
                if let Some(track) = &mut broker {
                    track.sample(began, Instant::now());
                    if !track.is_alive
                        && let Some(pid) = listener(&addresses)
                    {
                        track.replaced_by(pid);
                        track.sample(began, Instant::now());
                    }
                }
                if is_end {
                    return (own, broker);
                }
                due += SAMPLE_INTERVAL;
            }
        })?;
        Ok(Watch { ask, thread })
    }

    /// What we took, and what the broker took, since the begin.
    pub(crate) fn end(self) -> (Usage, Option<BrokerProcess>) {
        drop(self.ask);
        let Ok((own, broker)) = self.thread.join() else { return (Usage::default(), None) };
        let broker = broker.map(|track| BrokerProcess {
            pid: track.pid,
            name: fs::read_to_string(format!("/proc/{}/comm", track.pid))
                .unwrap_or_default()
                .trim()
                .to_owned(),
            restarted: track.restarted,
            usage: track.usage,
            ..BrokerProcess::default()
        });
        (own.map(|track| track.usage).unwrap_or_default(), broker)
    }
}

impl BrokerProcess {
    /// Fills in CPU per unit of work: of all that was produced and fetched while it was watched.
    pub(crate) fn relate(&mut self, Amount { bytes, records, requests }: Amount) {
        let cpu_s = self.usage.cpu_user_s + self.usage.cpu_system_s;
        let per = |amount: u64, unit: f64| (amount > 0).then(|| cpu_s * unit / amount as f64);
        self.cpu_s_per_gb = per(bytes, 1e9);
        self.cpu_us_per_record = per(records, 1e6);
        self.cpu_us_per_request = per(requests, 1e6);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_process_behind_an_address_is_found() {
        let listening = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listening.local_addr().expect("its address");
        assert_eq!(listener(&[address]), Some(std::process::id()));
        drop(listening);
        assert_eq!(listener(&[address]), None);
    }

    #[test]
    fn one_that_listens_on_all_addresses_is_found() {
        let listening =
            TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).expect("a port");
        let port = listening.local_addr().expect("its address").port();
        assert_eq!(listener(&[SocketAddr::from(([127, 0, 0, 1], port))]), Some(std::process::id()));
        // The same port of a machine that is not this one (RFC 5737).
        assert_eq!(listener(&[SocketAddr::from(([192, 0, 2, 1], port))]), None);
    }

    #[test]
    fn what_is_done_between_begin_and_end_is_counted() {
        let listening = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let watch = Watch::begin(&[listening.local_addr().expect("its address")]).expect("a thread");
        let began = Instant::now();
        let mut work = 0u64;
        while began.elapsed() < Duration::from_millis(1200) {
            work = std::hint::black_box(work.wrapping_add(1));
        }
        let (own, broker) = watch.end();
        // Here the broker is this very process.
        let broker = broker.expect("it was found");
        assert_eq!((broker.pid, broker.restarted), (std::process::id(), false));
        for usage in [&own, &broker.usage] {
            assert!(usage.cpu_user_s > 0.1, "{usage:?}");
            assert!(usage.seconds.len() >= 2, "{usage:?}");
            let summed: f64 = usage.seconds.iter().map(|second| second.cores * second.length_s).sum();
            assert!((summed - usage.cpu_user_s - usage.cpu_system_s).abs() < 1e-6, "{usage:?}");
        }
    }

    #[test]
    fn a_restart_adds_what_the_new_process_took() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut track = Track {
            pid: 1,
            last: Figures { cpu_user_s: 10.0, ..Figures::default() },
            last_at: now,
            is_alive: true,
            restarted: false,
            usage: Usage::default(),
        };
        track.add(Figures { cpu_user_s: 11.5, ..Figures::default() }, now, now + second);
        track.replaced_by(2);
        track.add(Figures { cpu_user_s: 0.25, ..Figures::default() }, now, now + 2 * second);
        assert!(track.restarted);
        assert_eq!(track.usage.cpu_user_s, 1.75);
        assert_eq!(track.usage.seconds.iter().map(|one| one.cores).collect::<Vec<_>>(), [1.5, 0.25]);
    }

    #[test]
    fn the_kernels_tables_are_read() {
        let stat = "12 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20";
        assert_eq!(cpu_of(stat, 100.0), Some((1.5, 0.5)));
        assert_eq!(cpu_of("12 (x", 100.0), None);
        assert_eq!(number_of("a: 1\nread_bytes: 77\n", "read_bytes:"), 77);
        assert_eq!(ip_of("00000000"), Some(Ipv4Addr::UNSPECIFIED.into()));
        assert_eq!(ip_of("0000000000000000FFFF0000"), None);
        #[cfg(target_endian = "little")]
        {
            assert_eq!(ip_of("0100007F"), Some(Ipv4Addr::LOCALHOST.into()));
            assert_eq!(ip_of("0000000000000000FFFF00000100007F"), Some(Ipv4Addr::LOCALHOST.into()));
            let line =
                "  0: 0100007F:2384 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 4711 1";
            let address = SocketAddr::from(([127, 0, 0, 1], 0x2384));
            assert_eq!(listening_inodes(line, address), [4711]);
            assert!(listening_inodes(&line.replace(" 0A ", " 01 "), address).is_empty());
        }
    }

    #[test]
    fn cpu_is_related_to_work_that_was_done() {
        let usage = Usage { cpu_user_s: 1.0, cpu_system_s: 1.0, ..Usage::default() };
        let mut process = BrokerProcess { usage, ..BrokerProcess::default() };
        process.relate(Amount { bytes: 4_000_000_000, records: 1_000_000, requests: 0 });
        assert_eq!(
            (process.cpu_s_per_gb, process.cpu_us_per_record, process.cpu_us_per_request),
            (Some(0.5), Some(2.0), None)
        );
    }
}

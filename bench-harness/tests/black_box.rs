//! The program as its users meet it: exit codes, messages, what it writes. Its counterpart is its own null broker, in a
//! process of its own.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flumen-bench"));
    command.env_remove("FLUMEN_BROKERS").stdin(Stdio::null());
    command
}

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("flumen-bench-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A null broker in a process of its own.
struct Broker {
    child: Child,
    address: String,
}

impl Broker {
    fn start(arguments: &[&str]) -> Broker {
        let mut command = program();
        let mut child =
            command.arg("null-broker").args(arguments).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut address = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut address).expect("it says where it listens");
        Broker { child, address: address.trim().to_owned() }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A scenario of one phase, with what is said of its producers and what comes behind.
fn scenario(folder: &Folder, producers: &str, rest: &str) -> PathBuf {
    let path = folder.file("scenario.toml");
    let text = format!(
        "request_timeout_s = 5\n[topic]\nname = \"t\"\n[[phases]]\nname = \"p\"\nseconds = 2\nwarmup_seconds = 0.2\n\
         [[phases.producers]]\n{producers}\n{rest}\n"
    );
    std::fs::write(&path, text).expect("written");
    path
}

fn run(broker: &str, scenario: &Path, arguments: &[&str]) -> Output {
    program().arg("run").arg(scenario).args(["-b", broker]).args(arguments).output().expect("it runs")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("it was written")).expect("JSON")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn assert_code(output: &Output, code: i32, words: &str) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "{words:?} is not in: {said}");
}

/// The part of a kind in a result.
fn part<'a>(result: &'a Value, kind: &str) -> &'a Value {
    let parts = result["parts"].as_array().expect("parts");
    parts.iter().find(|part| part["kind"] == kind).expect("the part is there")
}

const STEADY: &str = "rate = 500\ncount = 2\npayload.size = 64";
const READER: &str = "[[phases.consumers]]\nfrom = \"latest\"\nwait_ms = 50";

#[test]
fn a_run_counts_every_record_and_can_be_repeated_from_its_result() {
    let (folder, broker) = (Folder::new(), Broker::start(&["--keep"]));
    let file = folder.file("result.json");
    let log = folder.file("log.hlog");
    let scenario = scenario(&folder, STEADY, READER);
    let output = folder_run(&broker, &scenario, &file, &["--hlog", log.to_str().expect("text")]);
    assert_code(&output, 0, "checked");
    let result = json(&file);
    // By the clock: neither more nor fewer than 500 a second for two seconds.
    for kind in ["produce", "end_to_end", "lateness"] {
        assert_eq!(part(&result, kind)["records"], 1000, "{kind}");
        assert_eq!(part(&result, kind)["latency"]["summary"]["count"], 1000, "{kind}");
    }
    let seconds = part(&result, "produce")["seconds"].as_array().expect("seconds");
    assert_eq!(seconds.iter().map(|one| one["records"].as_u64().expect("a number")).sum::<u64>(), 1000);
    assert_eq!(result["integrity"]["lost"], 0);
    // Warm-up is checked too.
    assert_eq!(result["integrity"]["checked"], 1100);
    assert_eq!(result["growths"][0]["appended"], 1100);
    assert_eq!(result["growths"][0]["acknowledged"], 1100);
    let logged = std::fs::read_to_string(folder.file("log-p-produce.hlog")).expect("written");
    assert!(logged.lines().filter(|line| line.contains(",HIST")).count() >= 2, "{logged}");

    let again = folder.file("again.json");
    let arguments = ["-b", &broker.address, "-o", again.to_str().expect("text")];
    let output = program().arg("rerun").arg(&file).args(arguments).output().expect("it runs");
    assert_code(&output, 0, "produce");
    let repeated = json(&again);
    assert_eq!(repeated["setting"], result["setting"]);
    assert_eq!(part(&repeated, "produce")["records"], 1000);
}

fn folder_run(broker: &Broker, scenario: &Path, file: &Path, more: &[&str]) -> Output {
    let mut arguments = vec!["-o", file.to_str().expect("text")];
    arguments.extend(more);
    run(&broker.address, scenario, &arguments)
}

#[test]
fn what_makes_no_sense_is_told_with_its_place() {
    let folder = Folder::new();
    assert_code(&run("127.0.0.1:1", &scenario(&folder, "ratee = 1", ""), &[]), 2, "ratee");
    assert_code(
        &run("127.0.0.1:1", &scenario(&folder, "rate = -1", ""), &[]),
        2,
        "phases.0.producers.0.rate",
    );
    assert_code(&run("127.0.0.1:1", Path::new("no-such"), &[]), 2, "there are canonical");
    assert_code(&run("nonsense", &scenario(&folder, STEADY, ""), &[]), 2, "HOST:PORT");
}

#[test]
fn no_broker_is_told() {
    let folder = Folder::new();
    let output = run("127.0.0.1:1", &scenario(&folder, STEADY, ""), &[]);
    assert_code(&output, 3, "127.0.0.1:1");
}

#[test]
fn a_result_that_cannot_be_written_is_told_and_the_figures_are_printed() {
    let (folder, broker) = (Folder::new(), Broker::start(&[]));
    let scenario = scenario(&folder, STEADY, "");
    let output = run(&broker.address, &scenario, &["-o", "/dev/full"]);
    assert_code(&output, 1, "No space left");
    assert!(text(&output).contains("records/s"), "what was measured is not lost");
    // A folder that is not there is found before the run.
    let output = run(&broker.address, &scenario, &["-o", "/no/such/folder/result.json"]);
    assert_code(&output, 1, "/no/such/folder");
    assert!(!text(&output).contains("records/s"), "nothing was measured");
}

#[test]
fn what_a_broker_spoils_fails_the_run() {
    let many = "rate = 3000\nbatch_records = 1\nrequest_batches = 1\npayload.size = 64";
    for (fault, what) in [("lose", "lost"), ("duplicate", "duplicated"), ("reorder", "reordered")] {
        let (folder, broker) = (Folder::new(), Broker::start(&["--fault", fault]));
        let file = folder.file("result.json");
        let output = folder_run(&broker, &scenario(&folder, many, READER), &file, &[]);
        assert_code(&output, 4, "FAILED");
        let integrity = &json(&file)["integrity"];
        let found = integrity[what].as_u64().expect("a number");
        // One in every hundred batches of each of four partitions, a record each.
        let expected = integrity["checked"].as_u64().expect("a number") / 100;
        assert!(found.abs_diff(expected) <= 4, "{fault}: {integrity}");
    }
}

#[test]
fn an_interrupt_leaves_a_partial_result() {
    let (folder, broker) = (Folder::new(), Broker::start(&["--keep"]));
    let file = folder.file("result.json");
    let scenario = scenario(&folder, STEADY, READER);
    let arguments = ["-b", &broker.address, "--seconds", "60", "-o", file.to_str().expect("text")];
    let mut child =
        program().arg("run").arg(&scenario).args(arguments).stdout(Stdio::null()).spawn().expect("it runs");
    std::thread::sleep(Duration::from_millis(1500));
    interrupt(&child);
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    let result = json(&file);
    assert!(result["verdict"]["partial"].is_string(), "{}", result["verdict"]);
    let seconds = result["duration_s"].as_f64().expect("a number");
    assert!((0.3..3.0).contains(&seconds), "{seconds}");
    let records = part(&result, "produce")["records"].as_f64().expect("a number");
    assert!((records / seconds / 500.0 - 1.0).abs() < 0.1, "{records} in {seconds} s");
    assert_eq!(result["integrity"]["lost"], 0);
}

#[test]
fn a_restart_of_the_broker_is_counted_and_the_run_goes_on() {
    let folder = Folder::new();
    let broker = Broker::start(&[]);
    let (address, file) = (broker.address.clone(), folder.file("result.json"));
    let scenario = scenario(&folder, STEADY, "");
    let arguments = ["-b", &address, "--seconds", "4", "-o", file.to_str().expect("text")];
    let mut command = program();
    command.arg("run").arg(&scenario).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("it runs");
    std::thread::sleep(Duration::from_millis(1500));
    drop(broker);
    std::thread::sleep(Duration::from_millis(500));
    let _again = Broker::start(&["--listen", &address]);
    let output = child.wait_with_output().expect("it ends");
    assert_code(&output, 0, "CONNECTION");
    let result = json(&file);
    let produce = part(&result, "produce");
    let errors: u64 = produce["errors"].as_object().expect("errors").values().filter_map(Value::as_u64).sum();
    assert!(errors > 0, "{}", produce["errors"]);
    // What was due while nobody listened was sent later, and waited.
    let records = produce["records"].as_u64().expect("a number");
    assert!((1900..=2000).contains(&records), "{records}");
    assert!(produce["latency"]["summary"]["max_ns"].as_u64().expect("a number") > 300_000_000);
}

#[test]
fn a_broker_that_the_scenario_kills_is_started_again_and_its_outage_is_timed() {
    let folder = Folder::new();
    // At an address that it will be started at again.
    let address = Broker::start(&[]).address.clone();
    let broker = Broker::start(&["--listen", &address]);
    let file = folder.file("result.json");
    let scenario = scenario(&folder, STEADY, "[phases.restart]\nat_seconds = 0.7");
    let output = folder_run(&broker, &scenario, &file, &[]);
    let result = json(&file);
    let pid = result["broker_process"]["pid"].as_u64().and_then(|pid| i32::try_from(pid).ok());
    let again = pid.and_then(rustix::process::Pid::from_raw).expect("it was found");
    rustix::process::kill_process(again, rustix::process::Signal::KILL).expect("it runs");
    assert_code(&output, 0, "from kill -9");
    assert_ne!(pid, i32::try_from(broker.child.id()).ok(), "another process has its place");
    assert_eq!(result["broker_process"]["restarted"], true);
    let restart = &result["restarts"][0];
    let killed_at = restart["killed_at_s"].as_f64().expect("a number");
    assert!((0.7..1.2).contains(&killed_at), "{restart}");
    let outage_ns = restart["first_acknowledgement_ns"].as_u64().expect("a number");
    assert!((1_000_000..1_300_000_000).contains(&outage_ns), "{restart}");
    // What was due in the meantime waited as long at most.
    let max_ns = part(&result, "produce")["latency"]["summary"]["max_ns"].as_u64().expect("a number");
    assert!(max_ns > outage_ns / 2, "{max_ns} {restart}");
}

#[test]
fn a_broker_that_is_elsewhere_is_not_killed() {
    let (folder, broker, one) = (Folder::new(), Broker::start(&[]), worker());
    let scenario = scenario(&folder, STEADY, "[phases.restart]\nat_seconds = 0.5");
    assert_code(&run(&broker.address, &scenario, &["--workers", &one.address]), 2, "phases.restart");
    assert_code(
        &run(&broker.address, &scenario, &["--set", "phases.0.restart.at_seconds=3"]),
        2,
        "at_seconds",
    );
}

#[test]
fn bare_writes_beside_the_load_are_timed_and_nothing_stays_behind() {
    let (folder, broker) = (Folder::new(), Broker::start(&[]));
    let (file, data) = (folder.file("result.json"), folder.file("data"));
    std::fs::create_dir(&data).expect("made");
    let data_dir = data.to_str().expect("text");
    let output =
        folder_run(&broker, &scenario(&folder, STEADY, ""), &file, &["--raw-sync", "--data-dir", data_dir]);
    assert_code(&output, 0, "that of a bare write and sync");
    let result = json(&file);
    let raw = part(&result, "raw_sync");
    // Fifty a second for two seconds, on a disk that may be slow, but not that slow.
    let count = raw["latency"]["summary"]["count"].as_u64().expect("a number");
    assert!((1..=100).contains(&count), "{raw}");
    assert_eq!(raw["bytes"], 4096 * count);
    assert_eq!(std::fs::read_dir(&data).expect("it is there").count(), 0);
    // They are none of the broker's work.
    let per_gb = result["broker_process"]["cpu_s_per_gb"].as_f64().expect("a number");
    let usage = &result["broker_process"]["usage"];
    let cpu_s =
        usage["cpu_user_s"].as_f64().expect("a number") + usage["cpu_system_s"].as_f64().expect("a number");
    // Nor is what came back when nobody watched any more.
    let produce = part(&result, "produce");
    let late = produce["late"]["bytes"].as_u64().unwrap_or_default();
    let bytes = produce["bytes"].as_u64().expect("a number") - late;
    assert!((per_gb * bytes as f64 / 1e9 - cpu_s).abs() < 1e-9, "{per_gb} {cpu_s}");
}

#[cfg(not(feature = "librdkafka"))]
#[test]
fn a_driver_that_is_not_built_in_is_told() {
    let (folder, broker) = (Folder::new(), Broker::start(&[]));
    let output = run(&broker.address, &scenario(&folder, STEADY, ""), &["--driver", "librdkafka"]);
    assert_code(&output, 2, "--features librdkafka");
}

#[cfg(feature = "librdkafka")]
#[test]
fn librdkafka_makes_the_load_of_our_own_client() {
    let (folder, broker) = (Folder::new(), Broker::start(&["--keep"]));
    let file = folder.file("result.json");
    for (load, expected) in [
        (STEADY, Some(1000)),
        ("rate = 500\ncompression = \"zstd\"\nlinger_ms = 5\nidempotent = true", Some(1000)),
        ("rate = 500\npartitioning = \"key\"\nkeys = 100\nbatch_records = 1", Some(1000)),
        ("load = \"closed\"\nin_flight = 1\nbatch_records = 1\nrequest_batches = 1", None),
        ("load = \"closed\"\npartitioning = \"sticky\"", None),
    ] {
        let output =
            folder_run(&broker, &scenario(&folder, load, READER), &file, &["--driver", "librdkafka"]);
        assert_code(&output, 0, "checked");
        let result = json(&file);
        assert!(result["driver"].as_str().is_some_and(|name| name.starts_with("librdkafka 2.")), "{load}");
        let produce = part(&result, "produce");
        let records = produce["records"].as_u64().expect("a number");
        assert!(records > 100 && expected.is_none_or(|expected| records == expected), "{load}: {records}");
        assert_eq!(produce["latency"]["summary"]["count"], records, "{load}");
        assert_eq!(result["integrity"]["lost"], 0, "{load}");
        assert!(result["integrity"]["checked"].as_u64().is_some_and(|checked| checked >= records), "{load}");
        assert!(produce["requests"].as_u64().is_some_and(|requests| requests > 0), "{load}");
    }
}

#[cfg(feature = "librdkafka")]
#[test]
fn librdkafka_is_asked_for_nothing_that_it_has_not() {
    let (folder, broker) = (Folder::new(), Broker::start(&[]));
    let driver = ["--driver", "librdkafka"];
    for (load, key) in [("request_batches = 4", "request_batches"), ("request_bytes = 100", "request_bytes")]
    {
        assert_code(&run(&broker.address, &scenario(&folder, load, ""), &driver), 2, key);
    }
    assert_code(&run("127.0.0.1:1", &scenario(&folder, STEADY, ""), &driver), 3, "127.0.0.1:1");
}

#[cfg(feature = "librdkafka")]
#[test]
fn librdkafka_is_counted_through_a_restart_too() {
    let folder = Folder::new();
    let address = Broker::start(&[]).address.clone();
    let broker = Broker::start(&["--listen", &address]);
    let file = folder.file("result.json");
    let scenario = scenario(&folder, STEADY, "[phases.restart]\nat_seconds = 0.7");
    let output = folder_run(&broker, &scenario, &file, &["--driver", "librdkafka", "--seconds", "4"]);
    let result = json(&file);
    let pid = result["broker_process"]["pid"].as_u64().and_then(|pid| i32::try_from(pid).ok());
    let again = pid.and_then(rustix::process::Pid::from_raw).expect("it was found");
    rustix::process::kill_process(again, rustix::process::Signal::KILL).expect("it runs");
    assert_code(&output, 0, "from kill -9");
    // Some milliseconds where the library finds the new process at its first try; else it waits 100 ms and longer.
    let outage_ns = result["restarts"][0]["first_acknowledgement_ns"].as_u64().expect("a number");
    assert!((500_000..3_000_000_000).contains(&outage_ns), "{}", result["restarts"]);
}

#[test]
fn a_consumer_that_is_behind_when_reading_ends_is_no_loss() {
    let (folder, broker) = (Folder::new(), Broker::start(&["--keep"]));
    let file = folder.file("result.json");
    // A batch of each partition every two seconds: it would need minutes.
    let slow = "[[phases.consumers]]\nfrom = \"latest\"\npause_ms = 2000\npartition_bytes_max = 1";
    let output = folder_run(&broker, &scenario(&folder, STEADY, slow), &file, &[]);
    assert_code(&output, 0, "INCOMPLETE");
    let result = json(&file);
    let integrity = &result["integrity"];
    assert_eq!((&integrity["lost"], &integrity["deleted"]), (&0.into(), &0.into()), "{integrity}");
    assert!(integrity["unread"].as_u64().is_some_and(|unread| unread > 500), "{integrity}");
    assert!(text(&output).contains("still behind"), "{}", text(&output));
}

#[test]
fn a_consumer_that_is_behind_when_the_user_ends_it_is_no_loss_either() {
    let (folder, broker) = (Folder::new(), Broker::start(&["--keep"]));
    let file = folder.file("result.json");
    let slow = "[[phases.consumers]]\nfrom = \"latest\"\npause_ms = 1000\npartition_bytes_max = 1";
    let scenario = scenario(&folder, STEADY, slow);
    let arguments = ["-b", &broker.address, "--seconds", "60", "-o", file.to_str().expect("text")];
    let child = program().arg("run").arg(&scenario).args(arguments).stdout(Stdio::null()).spawn();
    let mut child = child.expect("it runs");
    std::thread::sleep(Duration::from_millis(1500));
    interrupt(&child);
    let began = Instant::now();
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(8), "it does not wait for who is behind");
    let integrity = &json(&file)["integrity"];
    assert_eq!(integrity["lost"], 0, "{integrity}");
    assert!(integrity["unread"].as_u64().is_some_and(|unread| unread > 100), "{integrity}");
}

#[test]
fn what_retention_deletes_before_it_is_read_is_told_and_no_loss() {
    let (folder, broker) = (Folder::new(), Broker::start(&["--keep", "--keep-bytes", "20000"]));
    let file = folder.file("result.json");
    let slow = "[[phases.consumers]]\nfrom = \"latest\"\npause_ms = 700";
    let output = folder_run(&broker, &scenario(&folder, STEADY, slow), &file, &[]);
    assert_code(&output, 0, "deleted by the broker before they were read");
    let integrity = &json(&file)["integrity"];
    assert_eq!((&integrity["lost"], &integrity["unread"]), (&0.into(), &0.into()), "{integrity}");
    assert!(integrity["deleted"].as_u64().is_some_and(|deleted| deleted > 50), "{integrity}");
}

#[test]
fn percentiles_of_an_overloaded_broker_are_called_lower_bounds() {
    let (folder, broker) = (Folder::new(), Broker::start(&["--stall-ms", "90", "--every-ms", "100"]));
    let file = folder.file("result.json");
    let many = "rate = 20000\nin_flight = 1\nbatch_records = 1\nrequest_batches = 1\npayload.size = 64";
    let output = folder_run(&broker, &scenario(&folder, many, ""), &file, &["--warmup", "0"]);
    assert_code(&output, 0, "INCOMPLETE");
    let result = json(&file);
    let why = result["verdict"]["incomplete"].as_str().expect("said");
    assert!(why.contains("lower bounds") && why.contains("were never sent"), "{why}");
}

#[test]
fn loss_is_found_where_nobody_reads() {
    let many = "rate = 3000\nbatch_records = 1\nrequest_batches = 1\npayload.size = 64";
    let run_with = |fault: &str, more: &str| {
        let (folder, broker) = (Folder::new(), Broker::start(&["--fault", fault]));
        let file = folder.file("result.json");
        let output = folder_run(&broker, &scenario(&folder, &format!("{many}\n{more}"), ""), &file, &[]);
        (output, json(&file))
    };
    let (output, result) = run_with("lose", "");
    assert_code(&output, 4, "or more were lost: the logs grew by");
    let growth = &result["growths"][0];
    let acknowledged = growth["acknowledged"].as_u64().expect("a number");
    let missing = growth["missing"].as_u64().expect("a number");
    assert!(missing.abs_diff(acknowledged / 100) <= 4, "{growth}");
    let (output, result) = run_with("duplicate", "");
    assert_code(&output, 0, "records more than were acknowledged: duplicates");
    assert_eq!(result["growths"][0]["missing"], 0);
    let (output, _) = run_with("none", "");
    assert_code(&output, 0, "it was not checked whether the logs grew");
    let (output, _) = run_with("lose", "acks = \"none\"");
    assert_code(&output, 0, "it was not checked whether the logs grew");
}

#[test]
fn output_that_nobody_reads_or_that_is_full_costs_no_result() {
    let (folder, broker) = (Folder::new(), Broker::start(&["--keep"]));
    let (file, log) = (folder.file("result.json"), folder.file("log.hlog"));
    let scenario = scenario(&folder, STEADY, READER);
    let run_into = |out: Stdio| {
        let _ = std::fs::remove_file(&file);
        let output = program()
            .arg("run")
            .arg(&scenario)
            .args(["-b", &broker.address, "-o", file.to_str().expect("text")])
            .args(["--hlog", log.to_str().expect("text")])
            .stdout(out)
            .stderr(Stdio::piped())
            .output()
            .expect("it runs");
        assert_eq!(part(&json(&file), "produce")["records"], 1000);
        assert!(folder.file("log-p-produce.hlog").exists());
        output
    };
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("it is there");
    let output = run_into(full.into());
    assert_code(&output, 1, "standard output: No space left");
    // A pipe whose reader has gone.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = run_into(writer.into());
    assert_code(&output, 0, "");
    assert_eq!(text(&output), "");
}

#[test]
fn a_result_is_repeated_as_it_was_made() {
    let (folder, broker) = (Folder::new(), Broker::start(&[]));
    let (file, again) = (folder.file("result.json"), folder.file("again.json"));
    let data = folder.0.to_str().expect("text").to_owned();
    let given = ["--epoll", "--raw-sync", "--data-dir", &data];
    assert_code(&folder_run(&broker, &scenario(&folder, STEADY, ""), &file, &given), 0, "raw sync");
    let address = broker.address.clone();
    drop(broker);
    let rerun = |more: &[&str]| {
        let written = ["-o", again.to_str().expect("text")];
        program().arg("rerun").arg(&file).args(written).args(more).output().expect("it runs")
    };
    assert_code(&rerun(&[]), 3, &address);
    let other = Broker::start(&[]);
    assert_code(&rerun(&["-b", &other.address]), 0, "raw sync");
    let (first, second) = (json(&file), json(&again));
    assert_eq!(first["manner"]["epoll"], true);
    assert_eq!(first["manner"], second["manner"]);
    assert_eq!(first["topics"]["partitions"], 4);
    // Where the topics are others than those that the result is of.
    let wider = Broker::start(&["--partitions", "6"]);
    assert_code(&rerun(&["-b", &wider.address]), 0, "was there with 6 partitions; the scenario says 4");
}

#[test]
fn what_came_before_a_phase_that_failed_is_kept() {
    let (folder, broker) = (Folder::new(), Broker::start(&[]));
    let file = folder.file("result.json");
    let second = "[[phases]]\nname = \"q\"\nseconds = 1\n[[phases.producers]]\n\
                  payload = { content = \"lines\", file = \"/no/such/file\" }";
    let output = folder_run(&broker, &scenario(&folder, STEADY, second), &file, &[]);
    assert_code(&output, 1, "/no/such/file");
    assert!(text(&output).contains("PARTIAL: phase \"q\" failed"), "{}", text(&output));
    let result = json(&file);
    assert_eq!(part(&result, "produce")["records"], 1000);
    assert!(result["verdict"]["partial"].as_str().is_some_and(|why| why.contains("/no/such/file")));
}

#[test]
fn a_topic_that_is_named_must_be_there_unless_it_may_be_made() {
    let (folder, broker) = (Folder::new(), Broker::start(&["--topic", "there"]));
    let scenario = scenario(&folder, STEADY, "");
    let run_on = |arguments: &[&str]| run(&broker.address, &scenario, arguments);
    assert_code(&run_on(&["--topic", "missing"]), 2, "--create-topic makes it");
    assert_code(&run_on(&["--topic", "there"]), 0, "produce");
    assert_code(&run_on(&["--topic", "missing", "--create-topic"]), 0, "produce");
    // That of a scenario is made.
    assert_code(&run_on(&[]), 0, "produce");
    assert_code(&run_on(&["--topic", "there", "--partitions", "9"]), 0, "was there with 4 partitions");
}

#[test]
fn consumers_that_receive_nothing_fail_the_run() {
    let (folder, broker) = (Folder::new(), Broker::start(&["--keep"]));
    let path = folder.file("scenario.toml");
    let alone = "[topic]\nname = \"t\"\n[[phases]]\nname = \"p\"\nseconds = 1\nwarmup_seconds = 0\n\
                 [[phases.consumers]]\nname = \"cold\"\nfrom = \"earliest\"\nwait_ms = 50\n";
    std::fs::write(&path, alone).expect("written");
    assert_code(&run(&broker.address, &path, &[]), 4, "the consumers \"cold\" received nothing");
}

#[test]
fn a_full_batch_does_not_wait_for_its_linger() {
    let (folder, broker) = (Folder::new(), Broker::start(&[]));
    let file = folder.file("result.json");
    for law in ["sticky", "round-robin"] {
        // Ten records come in 5 ms, and all that wait for each other in 20 ms.
        let full = format!("rate = 2000\nlinger_ms = 400\nbatch_records = 10\npartitioning = \"{law}\"");
        let output = folder_run(&broker, &scenario(&folder, &full, ""), &file, &[]);
        assert_code(&output, 0, "produce");
        let result = json(&file);
        let produce = part(&result, "produce");
        assert_eq!(produce["records"], 4000, "{law}");
        let p50_ns = produce["latency"]["summary"]["p50_ns"].as_u64().expect("a number");
        assert!(p50_ns < 100_000_000, "{law}: {p50_ns}");
        // Batches that are not full wait: there are no more of them than that.
        let requests = produce["requests"].as_u64().expect("a number");
        assert!((90..=450).contains(&requests), "{law}: {requests}");
    }
}

#[test]
fn a_phase_ends_when_it_has_written_enough() {
    let (folder, broker) = (Folder::new(), Broker::start(&[]));
    let file = folder.file("result.json");
    let scenario = scenario(&folder, "rate = 1000\npayload.size = 100", "");
    let arguments = ["--seconds", "60", "--set", "phases.0.bytes=150000"];
    assert_code(&folder_run(&broker, &scenario, &file, &arguments), 0, "produce");
    let result = json(&file);
    let bytes = part(&result, "produce")["bytes"].as_u64().expect("a number");
    assert!((150_000..300_000).contains(&bytes), "{bytes}");
    assert!(result["verdict"]["partial"].is_null());
    let arguments = ["--seconds", "1", "--set", "phases.0.bytes=150000"];
    assert_code(&folder_run(&broker, &scenario, &file, &arguments), 0, "of 150000 bytes were written");
}

#[test]
fn stalls_that_make_no_sense_are_refused() {
    for stall_ms in ["-5", "0", "nan", "inf", "1e300"] {
        let output = program().args(["selftest", "--stall-ms", stall_ms]).output().expect("it runs");
        assert_code(&output, 2, "--stall-ms");
    }
}

/// Ctrl-C.
fn interrupt(child: &Child) {
    let pid = i32::try_from(child.id()).expect("a pid");
    let pid = rustix::process::Pid::from_raw(pid).expect("not zero");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it is there");
}

/// A worker in a process of its own.
fn worker() -> Broker {
    let mut command = program();
    let mut child = command
        .args(["worker", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut address = String::new();
    let out = child.stdout.take().expect("piped");
    BufReader::new(out).read_line(&mut address).expect("it says where it listens");
    Broker { child, address: address.trim().to_owned() }
}

#[test]
fn two_workers_make_the_load_of_one_and_their_counts_merge() {
    let (folder, broker) = (Folder::new(), Broker::start(&["--keep"]));
    let (one, other) = (worker(), worker());
    let workers = format!("{},{}", one.address, other.address);
    let file = folder.file("result.json");
    // Twice, since a worker serves one run after the other.
    for _ in 0..2 {
        let scenario =
            scenario(&folder, STEADY, "[[phases.consumers]]\nfrom = \"latest\"\nwait_ms = 50\ncount = 2");
        let output = folder_run(&broker, &scenario, &file, &["--workers", &workers]);
        assert_code(&output, 0, "checked");
        let result = json(&file);
        assert_eq!(part(&result, "produce")["records"], 1000);
        assert_eq!(part(&result, "produce")["latency"]["summary"]["count"], 1000);
        // Two readers, one on each machine; both receive all.
        assert_eq!(part(&result, "end_to_end")["latency"]["summary"]["count"], 2000);
        assert_eq!(
            (&result["integrity"]["checked"], &result["integrity"]["lost"]),
            (&2200.into(), &0.into())
        );
        let machines = result["machines"].as_array().expect("machines");
        assert_eq!(machines.len(), 2);
        assert!(machines.iter().all(|one| one["clock_error_ns"].as_u64().is_some_and(|ns| ns < 10_000_000)));
    }
    drop(other);
    let output = folder_run(&broker, &scenario(&folder, STEADY, ""), &file, &["--workers", &workers]);
    assert_code(&output, 1, "worker");
}

//! What `flumen` does where no broker is: exit codes and messages as its users meet them. With brokers, Flumen's and
//! Kafka's, it is tested by `tests/interop/test_flumen_cli.py`.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn flumen(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flumen"));
    command.env_remove("FLUMEN_BROKERS").stdin(Stdio::null()).args(arguments);
    command.output().expect("the command starts")
}

fn good(arguments: &[&str]) -> String {
    let done = flumen(arguments);
    assert_eq!((done.status.code(), errors(&done)), (Some(0), ""), "{arguments:?}");
    String::from_utf8(done.stdout).expect("text")
}

fn errors(done: &Output) -> &str {
    std::str::from_utf8(&done.stderr).expect("text")
}

/// An empty folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("flumen-test-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path in text")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

#[test]
fn nobody_there() {
    let done = flumen(&["topic", "list", "-b", "127.0.0.1:1"]);
    assert_eq!(done.status.code(), Some(3));
    let told = errors(&done);
    assert!(told.contains("no broker answers; 127.0.0.1:1: connection refused"), "{told}");
    assert!(told.contains("--brokers"), "{told}");
}

#[test]
fn nobody_answers_where_something_is() {
    // The kernel takes the connection, and nobody ever reads from it.
    let silent = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let silent = silent.local_addr().expect("bound").to_string();
    let brokers = format!("{silent},a..b:9092");
    let done = flumen(&["topic", "list", "-b", &brokers, "--timeout", "20ms"]);
    let told = errors(&done);
    assert_eq!(done.status.code(), Some(3), "{told}");
    assert!(
        told.contains(&format!("no broker answers; {silent}: ")) && told.contains("; a..b:9092: "),
        "{told}"
    );
}

#[test]
fn nobody_reads_what_is_told() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_flumen"));
    let done = command.args(["topic", "list", "-b", "127.0.0.1:1"]).stderr(writer).status();
    assert_eq!(done.expect("the command starts").code(), Some(3));
}

#[test]
fn which_broker_does_not_matter_where_none_is_asked() {
    for arguments in [&["completions", "bash"][..], &["man"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flumen"));
        let done = command.env("FLUMEN_BROKERS", "").args(arguments).output().expect("the command starts");
        assert_eq!((done.status.code(), errors(&done)), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn wrong_arguments() {
    let wrong: [&[&str]; 11] = [
        &["topic"],
        &["topic", "create", "t", "-c", "novalue"],
        &["consume", "t", "-o", "@noon"],
        &["consume", "t", "-f", "%y"],
        &["log", "dump", "d", "-f", "%y"],
        &["--timeout", "soon", "topic", "list"],
        &["--timeout", "10000000000000000000s", "topic", "list"],
        &["topic", "list", "-b", "127.0.0.1:99999"],
        &["topic", "list", "-b", ""],
        &["log", "dump", "d", "-f", "%k"],
        &["log", "dump", "d", "-r", "-f", "%k", "--format", "json"],
    ];
    for arguments in wrong {
        let done = flumen(arguments);
        assert_eq!(done.status.code(), Some(2), "{arguments:?}");
        assert!(!done.stderr.is_empty() && done.stdout.is_empty(), "{arguments:?}: {}", errors(&done));
    }
}

#[test]
fn nothing_to_verify() {
    let folder = Folder::new("verify");
    let done = flumen(&["log", "verify", folder.path()]);
    assert_eq!(done.status.code(), Some(2));
    assert!(errors(&done).contains("no segments"), "{}", errors(&done));
    let absent = format!("{}/absent", folder.path());
    assert_eq!(flumen(&["log", "verify", &absent]).status.code(), Some(1));
}

#[test]
fn completions() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(good(&["completions", shell]).contains("consume"), "{shell}");
    }
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().expect("bash starts");
    let mut input = bash.stdin.take().expect("piped");
    input.write_all(good(&["completions", "bash"]).as_bytes()).expect("bash reads it");
    drop(input);
    assert!(bash.wait().expect("it ends").success());
}

#[test]
fn man_pages() {
    let page = good(&["man"]);
    assert!(page.trim_start().starts_with('.') && page.contains("Exit codes"), "{page}");
    let folder = Folder::new("man");
    good(&["man", folder.path()]);
    for name in ["flumen.1", "flumen-topic-create.1", "flumen-consume.1"] {
        assert!(folder.0.join(name).is_file(), "{name}");
    }
}

//! Apache Kafka as a contender: its jars by Maven, once for each user; one broker that is its own controller, with the
//! options of its start script.

use crate::failure::Failure;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const POM: &str = include_str!("../../peers/kafka/pom.xml");
const LOG_SETTINGS: &str = include_str!("../../peers/kafka/log4j2.properties");
/// As in `pom.xml`; a test compares them.
pub(super) const VERSION: &str = "4.3.1";
/// What `kafka-server-start.sh` gives the JVM.
const JVM_OPTIONS: [&str; 8] = [
    "-Xmx1G",
    "-Xms1G",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-Djava.awt.headless=true",
];

/// The folder with the jars, which Maven fills the first time.
pub(super) fn jars(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(given) = given {
        let has_broker = fs::read_dir(given)
            .map_err(|error| Failure::io(given.display(), error))?
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("kafka_"));
        if !has_broker {
            return Err(Failure::Usage(format!(
                "{}: there is no jar of Kafka's broker in it",
                given.display()
            )));
        }
        return given.canonicalize().map_err(|error| Failure::io(given.display(), error));
    }
    let cache = cache_folder()?;
    let jars = cache.join(format!("kafka-{VERSION}"));
    // It is there whole, or not at all.
    if jars.is_dir() {
        return Ok(jars);
    }
    let filling = cache.join(format!("kafka-{VERSION}.{}", std::process::id()));
    let filled = fill(&filling).and_then(|()| {
        // Another one may have been quicker; its jars are the same.
        match fs::rename(&filling, &jars) {
            Err(error) if !jars.is_dir() => Err(Failure::io(jars.display(), error)),
            _ => Ok(jars),
        }
    });
    let _ = fs::remove_dir_all(&filling);
    filled
}

fn cache_folder() -> Result<PathBuf, Failure> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")));
    let cache = cache.ok_or_else(|| {
        Failure::Usage("there is no HOME to keep Kafka's jars in: give --kafka-jars".to_owned())
    })?;
    Ok(cache.join("flumen-bench"))
}

fn fill(folder: &Path) -> Result<(), Failure> {
    eprintln!("flumen-bench: Maven copies Apache Kafka {VERSION} into the cache, once");
    let pom = folder.join("pom.xml");
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&pom, POM))
        .map_err(|error| Failure::io(folder.display(), error))?;
    let mut maven = Command::new("mvn");
    maven.args(["--batch-mode", "--quiet", "--file"]).arg(&pom).arg("dependency:copy-dependencies");
    maven.arg(format!("-DoutputDirectory={}", folder.display())).stdin(Stdio::null());
    let status = maven.status().map_err(|error| {
        Failure::io("mvn (to compare with Kafka, install Maven and a JDK, or give --kafka-jars)", error)
    })?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::Other(format!("Maven ended with {status}: what it said is above"))),
    }
}

/// The command of a broker whose folder is laid out, and what it is in words.
pub(super) fn broker(
    jars: &Path,
    is_synced: bool,
    folder: &Path,
    ports: &[u16; 3],
) -> Result<(Command, String), Failure> {
    let settings = folder.join("server.properties");
    let log_settings = folder.join("log4j2.properties");
    fs::write(&settings, properties(is_synced, &folder.join("data"), ports))
        .and_then(|()| fs::write(&log_settings, LOG_SETTINGS))
        .map_err(|error| Failure::io(folder.display(), error))?;
    let java = |class: &str| {
        let mut java = Command::new("java");
        java.arg(format!("-Dlog4j2.configurationFile={}", log_settings.display()));
        java.args(JVM_OPTIONS).arg("-cp").arg(format!("{}/*", jars.display())).arg(class);
        java
    };
    let formatted = java("kafka.tools.StorageTool")
        .args(["format", "--cluster-id", &cluster_id(), "--config"])
        .arg(&settings)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::io("java (to compare with Kafka, install a JDK of 17 or later)", error))?;
    if !formatted.status.success() {
        let said = String::from_utf8_lossy(&formatted.stderr);
        return Err(Failure::Other(format!("Kafka's storage tool ended with {}\n{said}", formatted.status)));
    }
    let mut command = java("kafka.Kafka");
    command.arg(&settings);
    let how = match is_synced {
        true => "flush.messages=1: fsync before every acknowledgement",
        false => "as it comes: no sync before an acknowledgement",
    };
    Ok((command, format!("Apache Kafka {VERSION} with the JVM options of its start script, {how}")))
}

fn properties(is_synced: bool, data: &Path, ports: &[u16; 3]) -> String {
    let [broker, controller, _] = ports;
    let mut settings = format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{broker}\n\
         controller.listener.names=CONTROLLER\n\
         log.dirs={}\n\
         offsets.topic.replication.factor=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\n",
        data.display()
    );
    if is_synced {
        settings.push_str("log.flush.interval.messages=1\n");
    }
    settings
}

/// In Kafka's print form, which must not look like an option.
fn cluster_id() -> String {
    loop {
        let id = BASE64_URL_SAFE_NO_PAD.encode(fastrand::u128(..).to_le_bytes());
        if !id.starts_with('-') {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_pom() {
        assert!(POM.contains(&format!("<kafka.version>{VERSION}</kafka.version>")));
    }

    #[test]
    fn only_the_synced_form_syncs() {
        let of = |is_synced| properties(is_synced, Path::new("/d"), &[1, 2, 3]);
        assert!(of(true).contains("\nlog.flush.interval.messages=1\n") && !of(false).contains("flush"));
        assert!(of(false).contains("PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2\n"));
    }

    #[test]
    fn a_folder_without_the_broker_is_refused() {
        let folder = std::env::temp_dir().join(format!("flumen-bench-jars-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        assert!(matches!(jars(Some(&folder)), Err(Failure::Usage(_))));
        fs::write(folder.join("kafka_2.13-4.3.1.jar"), b"").expect("a file");
        assert!(jars(Some(&folder)).is_ok());
        fs::remove_dir_all(&folder).expect("the folder");
    }
}

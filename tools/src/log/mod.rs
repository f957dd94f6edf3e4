//! `flumen log`: segments and indexes on disk, of Flumen's or of Kafka's, and what else a node keeps, without a broker.

mod dump;
mod index;
mod journal;
mod node_files;
mod segment;
mod verify;

use crate::cli::LogCommand;
use crate::failure::Failure;
use crate::output::Out;
use crate::record_format::RecordFormat;
use std::path::{Path, PathBuf};

/// The folder of a partition, or a part of it.
#[derive(Debug, PartialEq, Eq)]
struct PartitionFiles {
    /// As in `topic-0`.
    name: String,
    /// By base offset.
    segments: Vec<PathBuf>,
}

pub(crate) fn run(command: LogCommand, out: &mut Out) -> Result<(), Failure> {
    match command {
        LogCommand::Dump { output: Some(_), .. } if out.is_json() => {
            Err(Failure::usage("--output is for text: leave it out, or --format json"))
        }
        LogCommand::Dump { path, records, output } => {
            let format = records.then(|| output.unwrap_or_else(|| RecordFormat::known(dump::FORMAT)));
            dump::run(&path, format.as_ref(), out)
        }
        LogCommand::Verify { path } => verify::run(&path, out),
    }
}

/// What lies at a path: a segment, the segments of a partition, or those of all partitions of a data folder.
fn partitions(path: &Path) -> Result<Vec<PartitionFiles>, Failure> {
    if path.is_file() {
        let name = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        return Ok(vec![PartitionFiles { name, segments: vec![path.to_owned()] }]);
    }
    let own = partition(path)?;
    if !own.segments.is_empty() {
        return Ok(vec![own]);
    }
    let mut found = Vec::new();
    for folder in entries(path)?.into_iter().filter(|entry| entry.is_dir()) {
        let one = partition(&folder)?;
        // Other folders may hold logs of other kinds: the metadata log of a node.
        if !one.segments.is_empty() && topic_partition(&one.name).1 >= 0 {
            found.push(one);
        }
    }
    Ok(found)
}

fn partition(folder: &Path) -> Result<PartitionFiles, Failure> {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
    Ok(PartitionFiles {
        name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        segments: entries(folder)?.into_iter().filter(is_segment).collect(),
    })
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let cannot = |error| Failure::io(folder.display(), error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(cannot)? {
        paths.push(entry.map_err(cannot)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// The base offset in the name of a segment or an index: 20 digits.
fn base_offset(path: &Path) -> Option<i64> {
    let stem = path.file_stem()?.to_str()?;
    (stem.len() == 20 && stem.bytes().all(|byte| byte.is_ascii_digit())).then(|| stem.parse().ok()).flatten()
}

/// `topic-0` taken apart.
fn topic_partition(name: &str) -> (&str, i32) {
    match name.rsplit_once('-').and_then(|(topic, number)| Some((topic, number.parse().ok()?))) {
        Some(both) => both,
        None => (name, -1),
    }
}

//! `flumen log verify`: every batch, record and index entry is looked at, and what is wrong is said with file and
//! position.

use super::segment::{Fault, Segment};
use super::{PartitionFiles, base_offset, index, journal, node_files, partitions};
use crate::amount;
use crate::failure::Failure;
use crate::output::{Column, Out, Table};
use flumen_storage::metadata_log::METADATA_DIRECTORY;
use flumen_wire::batch::RawBatch;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// How large a batch may be once opened.
const DECOMPRESSED_BYTES_MAX: usize = 1 << 30;

/// Something that is wrong.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) file: String,
    pub(super) position: u64,
    pub(super) what: String,
}

/// What was looked at, and what was found.
#[derive(Debug, Default)]
pub(super) struct Tally {
    segments: u64,
    batches: u64,
    records: u64,
    bytes: u64,
    index_entries: u64,
    pub(super) journal_files: u64,
    pub(super) journal_groups: u64,
    pub(super) checkpoints: u64,
    pub(super) metadata_files: u64,
    pub(super) metadata_records: u64,
    pub(super) findings: Vec<Finding>,
}

impl Tally {
    pub(super) fn find(&mut self, file: &Path, position: u64, what: impl ToString) {
        self.findings.push(Finding { file: file.display().to_string(), position, what: what.to_string() });
    }
}

pub(crate) fn run(path: &Path, out: &mut Out) -> Result<(), Failure> {
    let mut tally = Tally::default();
    let partitions = partitions(path)?;
    for partition in &partitions {
        verify_partition(partition, &mut tally)?;
    }
    verify_node_files(path, &mut tally)?;
    let is_of_a_node = tally.journal_files > 0 || tally.metadata_files > 0 || !tally.findings.is_empty();
    if partitions.is_empty() && !is_of_a_node {
        return Err(Failure::usage(format!(
            "{}: no segments (*.log) in it or in the folders in it; give a data folder, the folder of a partition, or a .log file",
            path.display()
        )));
    }
    print(&tally, partitions.len(), out)?;
    match tally.findings.len() {
        0 => Ok(()),
        count => Err(Failure::Unsound(format!("{}: {count} faults found", path.display()))),
    }
}

/// What only the data folder of a node has.
fn verify_node_files(path: &Path, tally: &mut Tally) -> Result<(), Failure> {
    let image = match path.join(METADATA_DIRECTORY).is_dir() {
        true => node_files::verify_metadata(path, tally)?,
        false => None,
    };
    let checkpoints = path.join("checkpoint");
    let durable = match checkpoints.is_dir() {
        true => node_files::verify_checkpoints(&checkpoints, image.as_ref(), tally)?,
        false => Default::default(),
    };
    let journals = path.join("journal");
    if journals.is_dir() {
        journal::verify(&journals, durable, tally)?;
    }
    Ok(())
}

fn print(tally: &Tally, partitions: usize, out: &mut Out) -> Result<(), Failure> {
    if out.is_json() {
        let one = |finding: &Finding| json!({ "file": finding.file, "position": finding.position, "what": finding.what });
        return out.json(&json!({
            "partitions": partitions,
            "segments": tally.segments,
            "batches": tally.batches,
            "records": tally.records,
            "bytes": tally.bytes,
            "index_entries": tally.index_entries,
            "journal_files": tally.journal_files,
            "journal_groups": tally.journal_groups,
            "checkpoints": tally.checkpoints,
            "metadata_files": tally.metadata_files,
            "metadata_records": tally.metadata_records,
            "faults": tally.findings.iter().map(one).collect::<Vec<_>>(),
        }));
    }
    if !tally.findings.is_empty() {
        let mut table =
            Table::new(&[Column::Whole("FILE"), Column::Number("POSITION"), Column::Whole("FAULT")]);
        for finding in &tally.findings {
            table.row(vec![finding.file.clone(), finding.position.to_string(), finding.what.clone()]);
        }
        out.table(&table)?;
    }
    let count = |number: u64| amount::count(number as i64);
    out.line(&format!(
        "{} partitions, {} segments, {} batches, {} records, {}, {} index entries",
        partitions,
        count(tally.segments),
        count(tally.batches),
        count(tally.records),
        amount::bytes(tally.bytes),
        count(tally.index_entries)
    ))?;
    if tally.journal_files > 0 {
        out.line(&format!("{} journal files, {} groups", tally.journal_files, count(tally.journal_groups)))?;
    }
    if tally.metadata_files > 0 {
        out.line(&format!(
            "{} checkpoints, {} metadata files, {} metadata records",
            tally.checkpoints,
            tally.metadata_files,
            count(tally.metadata_records)
        ))?;
    }
    out.line(if tally.findings.is_empty() { "sound" } else { "not sound" })
}

fn verify_partition(partition: &PartitionFiles, tally: &mut Tally) -> Result<(), Failure> {
    let mut next_offset = None;
    for path in &partition.segments {
        let Some(base) = base_offset(path) else {
            tally.find(path, 0, "the name of a segment is its base offset in 20 digits");
            continue;
        };
        if next_offset.is_some_and(|next| base < next) {
            let what =
                format!("the segment begins before the end of the one before, {}", next_offset.unwrap_or(0));
            tally.find(path, 0, what);
        }
        next_offset = Some(verify_segment(path, base, tally)?);
    }
    Ok(())
}

/// The offset behind the segment.
fn verify_segment(path: &Path, base: i64, tally: &mut Tally) -> Result<i64, Failure> {
    let mut segment = Segment::open(path).map_err(|error| Failure::io(path.display(), error))?;
    tally.segments += 1;
    let mut places = BTreeMap::new();
    let mut next_offset = base;
    loop {
        let at = segment.position();
        match segment.next() {
            Ok(None) => break,
            Ok(Some((position, batch))) => {
                verify_batch(path, position, &batch, next_offset, tally);
                let header = &batch.header;
                places.insert(position, (header.base_offset, header.last_offset()));
                next_offset = next_offset.max(header.next_offset());
                tally.batches += 1;
                tally.bytes += header.size() as u64;
            }
            Err(Fault::Io(error)) => return Err(Failure::io(path.display(), error)),
            Err(fault) => {
                tally.find(path, at, &fault);
                // What follows cannot be told from what is broken; nor can the index.
                return Ok(next_offset);
            }
        }
    }
    verify_indexes(path, base, next_offset, &places, tally)?;
    Ok(next_offset)
}

fn verify_batch(path: &Path, position: u64, batch: &RawBatch<'_>, next_offset: i64, tally: &mut Tally) {
    let header = &batch.header;
    if header.base_offset < next_offset {
        let what = format!("a batch of offset {} where {next_offset} or later is due", header.base_offset);
        tally.find(path, position, what);
    }
    if let Err(error) = batch.check_crc() {
        return tally.find(path, position, error);
    }
    if header.last_offset_delta < 0 {
        return tally.find(path, position, format!("last offset delta {}", header.last_offset_delta));
    }
    match count_records(batch) {
        Ok(count) if count == i64::from(header.record_count) => tally.records += count as u64,
        Ok(count) => {
            tally.find(
                path,
                position,
                format!("{count} records where the header says {}", header.record_count),
            );
        }
        Err(error) => tally.find(path, position, error),
    }
}

fn count_records(batch: &RawBatch<'_>) -> Result<i64, flumen_wire::batch::BatchError> {
    let mut count = 0;
    for record in &batch.records(DECOMPRESSED_BYTES_MAX)? {
        record?;
        count += 1;
    }
    Ok(count)
}

fn verify_indexes(
    path: &Path,
    base: i64,
    next_offset: i64,
    places: &BTreeMap<u64, (i64, i64)>,
    tally: &mut Tally,
) -> Result<(), Failure> {
    for extension in ["index", "timeindex"] {
        let file = path.with_extension(extension);
        let bytes =
            index::read_beside(path, extension).map_err(|error| Failure::io(file.display(), error))?;
        // Without an index a broker makes one.
        let Some(bytes) = bytes else { continue };
        let checked = match extension {
            "index" => index::check_offsets(&bytes, base, places),
            _ => index::check_times(&bytes, base, next_offset),
        };
        match checked {
            Ok(entries) => tally.index_entries += entries as u64,
            Err(fault) => tally.find(&file, fault.position, fault.what),
        }
    }
    Ok(())
}

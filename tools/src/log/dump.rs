//! `flumen log dump`: the batches of segments, or their records.

use super::segment::{Fault, Segment};
use super::{PartitionFiles, partitions, topic_partition};
use crate::failure::Failure;
use crate::output::{Column, Out, Table};
use crate::record_format::{self, RecordFormat};
use crate::time;
use flumen_wire::batch::RawBatch;
use serde_json::{Value, json};
use std::path::Path;

/// How records are printed where nothing else is asked for.
pub(super) const FORMAT: &str = "%o\\t%d\\t%k\\t%v\\n";
/// How large a batch may be once opened.
const DECOMPRESSED_BYTES_MAX: usize = 1 << 30;
/// Rows of one table: what is printed at a time, however large the segment.
const ROWS_MAX: usize = 1000;

/// Prints batches, or records in a format.
pub(crate) fn run(path: &Path, records: Option<&RecordFormat>, out: &mut Out) -> Result<(), Failure> {
    let all = partitions(path)?;
    if all.is_empty() {
        return Err(Failure::usage(format!("{}: there are no segments (*.log)", path.display())));
    }
    for partition in &all {
        for segment in &partition.segments {
            match records {
                Some(format) => dump_records(partition, segment, format, out)?,
                None => dump_batches(segment, out)?,
            }
        }
    }
    Ok(())
}

fn broken(path: &Path, position: u64, fault: &Fault) -> Failure {
    Failure::Unsound(format!("{}, position {position}: {fault}", path.display()))
}

fn dump_records(
    partition: &PartitionFiles,
    path: &Path,
    format: &RecordFormat,
    out: &mut Out,
) -> Result<(), Failure> {
    let (topic, number) = topic_partition(&partition.name);
    let mut segment = Segment::open(path).map_err(|error| Failure::io(path.display(), error))?;
    let mut line = Vec::new();
    loop {
        let at = segment.position();
        let next = segment.next().map_err(|fault| broken(path, at, &fault))?;
        let Some((position, batch)) = next else { return Ok(()) };
        if batch.header.is_control() {
            continue;
        }
        let unreadable = |error| broken(path, position, &Fault::Batch(error));
        for record in &batch.records(DECOMPRESSED_BYTES_MAX).map_err(unreadable)? {
            let record = record.map_err(unreadable)?;
            line.clear();
            if out.is_json() {
                line.extend_from_slice(record_format::json(topic, number, &record).to_string().as_bytes());
                line.push(b'\n');
            } else {
                format.write(topic, number, &record, &mut line);
            }
            out.write(&line)?;
        }
    }
}

fn dump_batches(path: &Path, out: &mut Out) -> Result<(), Failure> {
    let mut segment = Segment::open(path).map_err(|error| Failure::io(path.display(), error))?;
    if !out.is_json() {
        out.line(&path.display().to_string())?;
    }
    let mut table = batch_table();
    let mut rows = 0;
    let failure = loop {
        let at = segment.position();
        match segment.next() {
            Ok(None) => break None,
            Ok(Some((position, batch))) if out.is_json() => out.json(&batch_json(path, position, &batch))?,
            Ok(Some((position, batch))) => {
                table.row(batch_row(position, &batch));
                rows += 1;
                if rows == ROWS_MAX {
                    out.table(&table)?;
                    (table, rows) = (batch_table(), 0);
                }
            }
            Err(fault) => break Some(broken(path, at, &fault)),
        }
    };
    if !out.is_json() {
        out.table(&table)?;
        if segment.allocated_ahead > 0 {
            out.line(&format!("{} bytes allocated ahead", segment.allocated_ahead))?;
        }
    }
    failure.map_or(Ok(()), Err)
}

fn batch_table() -> Table {
    Table::new(&[
        Column::Number("POSITION"),
        Column::Number("FIRST"),
        Column::Number("LAST"),
        Column::Number("RECORDS"),
        Column::Number("BYTES"),
        Column::Whole("CODEC"),
        Column::Number("EPOCH"),
        Column::Text("PRODUCER"),
        Column::Whole("LARGEST TIMESTAMP"),
        Column::Whole("FLAGS"),
    ])
}

fn batch_row(position: u64, batch: &RawBatch<'_>) -> Vec<String> {
    let header = &batch.header;
    let producer = match header.has_producer_id() {
        true => format!("{}/{} #{}", header.producer_id, header.producer_epoch, header.base_sequence),
        false => "-".to_owned(),
    };
    let codec = header.compression().map_or_else(|id| format!("codec {id}"), |codec| codec.name().to_owned());
    vec![
        position.to_string(),
        header.base_offset.to_string(),
        header.last_offset().to_string(),
        header.record_count.to_string(),
        header.size().to_string(),
        codec,
        header.partition_leader_epoch.to_string(),
        producer,
        time::print(header.max_timestamp),
        flags(batch).join(" "),
    ]
}

fn flags(batch: &RawBatch<'_>) -> Vec<&'static str> {
    let attributes = batch.header.attributes;
    let append_time = attributes.timestamp_type() == flumen_wire::batch::TimestampType::LogAppendTime;
    [
        (attributes.is_transactional(), "transactional"),
        (attributes.is_control(), "control"),
        (append_time, "append-time"),
        (attributes.has_delete_horizon(), "delete-horizon"),
        (!batch.crc_matches(), "BAD-CRC"),
    ]
    .into_iter()
    .filter_map(|(is_set, name)| is_set.then_some(name))
    .collect()
}

fn batch_json(path: &Path, position: u64, batch: &RawBatch<'_>) -> Value {
    let header = &batch.header;
    json!({
        "file": path.display().to_string(),
        "position": position,
        "base_offset": header.base_offset,
        "last_offset": header.last_offset(),
        "records": header.record_count,
        "bytes": header.size(),
        "compression": header.compression().map(|codec| codec.name()).ok(),
        "leader_epoch": header.partition_leader_epoch,
        "producer_id": header.producer_id,
        "producer_epoch": header.producer_epoch,
        "base_sequence": header.base_sequence,
        "max_timestamp": header.max_timestamp,
        "flags": flags(batch),
    })
}

//! The journal of a node's data folder: are its groups as they were written?

use super::entries;
use super::node_files::Durable;
use super::verify::Tally;
use crate::failure::Failure;
use flumen_core::journal::{FileHeader, FileScan, Tail, judge, scan};
use flumen_core::limits::BLOCK_BYTES;
use std::path::{Path, PathBuf};

/// Checks all journal files of a folder. A bad group that nothing knows as durable, neither a later group nor one of the
/// checkpoints (`durable`), is a torn tail, as a crash leaves it, and no fault.
pub(super) fn verify(folder: &Path, mut durable: Durable, tally: &mut Tally) -> Result<(), Failure> {
    let mut scans: Vec<(PathBuf, FileScan)> = Vec::new();
    for path in entries(folder)? {
        let bytes = std::fs::read(&path).map_err(|error| Failure::io(path.display(), error))?;
        tally.journal_files += 1;
        let block = &bytes[..bytes.len().min(BLOCK_BYTES as usize)];
        // Made, and not used yet.
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        match FileHeader::decode(block) {
            Ok(header) => scans.push((path, scan(&bytes, header.file_uuid, BLOCK_BYTES))),
            Err(error) => tally.find(&path, 0, format!("the file's header: {error}")),
        }
    }
    for (_, scan) in &scans {
        for header in scan.groups.iter().map(|group| &group.header) {
            let known = durable.entry((header.incarnation, header.shard)).or_insert(header.durable_lsn);
            *known = (*known).max(header.durable_lsn);
        }
    }
    for (path, scan) in &scans {
        tally.journal_groups += scan.groups.len() as u64;
        for group in scan.groups.iter().filter(|group| !group.is_valid()) {
            let header = &group.header;
            let known =
                durable.get(&(header.incarnation, header.shard)).copied().unwrap_or(header.durable_lsn);
            if judge(header.lsn, known) == Tail::Corrupt {
                let part = if group.table_valid { "bodies" } else { "table" };
                let what = format!(
                    "group {} of shard {} is durable, and its {part} are not as written",
                    header.lsn, header.shard
                );
                tally.find(path, group.position, what);
            }
        }
    }
    Ok(())
}

//! What a node's data folder holds beside segments and journals: its checkpoints and its metadata log.

use super::entries;
use super::verify::Tally;
use crate::failure::Failure;
use flumen_core::metadata::Image;
use flumen_core::types::{Incarnation, Lsn, PartitionId, ShardId};
use flumen_storage::metadata_log::{self, METADATA_DIRECTORY, MetadataLogError};
use flumen_storage::verify_checkpoint;
use std::collections::BTreeMap;
use std::path::Path;

/// By journal: the highest LSN that a checkpoint knows as durable.
pub(super) type Durable = BTreeMap<(Incarnation, ShardId), Lsn>;

/// Checks the metadata log of a data folder. What it comes to, if it is sound.
pub(super) fn verify_metadata(folder: &Path, tally: &mut Tally) -> Result<Option<Image>, Failure> {
    let names: Vec<String> = names_of(&folder.join(METADATA_DIRECTORY))?;
    let mut read = 0;
    let found = metadata_log::verify(&names, |path| {
        read += 1;
        std::fs::read(folder.join(path))
    });
    tally.metadata_files += read;
    match found {
        Ok(image) => {
            tally.metadata_records += image.offset();
            Ok(Some(image))
        }
        Err(error) => {
            match error {
                MetadataLogError::Io { file, error } => {
                    return Err(Failure::io(folder.join(file).display(), error));
                }
                MetadataLogError::Corrupt { file, position, reason } => {
                    tally.find(&folder.join(file), position, reason);
                }
                MetadataLogError::Missing(file) => tally.find(&folder.join(file), 0, "the file is missing"),
                MetadataLogError::Replay(error) => tally.find(&folder.join(METADATA_DIRECTORY), 0, error),
            }
            Ok(None)
        }
    }
}

/// Checks all checkpoints of a data folder. `image` gives names to partitions that one of them says are damaged.
pub(super) fn verify_checkpoints(
    folder: &Path,
    image: Option<&Image>,
    tally: &mut Tally,
) -> Result<Durable, Failure> {
    let mut durable = Durable::new();
    for path in entries(folder)? {
        let bytes = std::fs::read(&path).map_err(|error| Failure::io(path.display(), error))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match verify_checkpoint(&name, &bytes) {
            // A write that was cut short, and nothing depends on it.
            Ok(None) => {}
            Ok(Some(found)) => {
                tally.checkpoints += 1;
                for (partition, reason) in found.offline {
                    tally.find(&path, 0, format!("{} is not served: {reason}", name_of(partition, image)));
                }
                if let Some(shard) = found.shard {
                    let known = durable.entry((found.incarnation, shard)).or_insert(found.durable_lsn);
                    *known = (*known).max(found.durable_lsn);
                }
            }
            Err(reason) => tally.find(&path, 0, reason),
        }
    }
    Ok(durable)
}

fn names_of(folder: &Path) -> Result<Vec<String>, Failure> {
    let name = |path: &std::path::PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
    Ok(entries(folder)?.iter().filter_map(name).collect())
}

/// `topic-0`, or the topic's id where its name is not known.
fn name_of(partition: PartitionId, image: Option<&Image>) -> String {
    match image.and_then(|image| image.topic_by_id(partition.topic)) {
        Some(topic) => format!("{}-{}", topic.name, partition.partition),
        None => format!("partition {} of the topic with id {}", partition.partition, partition.topic),
    }
}

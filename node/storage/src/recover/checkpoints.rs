//! Which checkpoint says what of each partition.

use std::collections::{BTreeMap, HashMap};

use flumen_core::limits::CHECKPOINT_BYTES_MAX;
use flumen_core::types::{Incarnation, Lsn, PartitionId};

use super::{KnownPartition, Recovery, RecoveryError, Replay, failed};
use crate::checkpoint::{Checkpoint, Record, SHARD_ALL, parse_name};
use crate::disk::Disk;

/// What the checkpoints say together.
pub(super) struct Base {
    /// Every file of the folder, to be removed once there is a new one.
    pub(super) names: Vec<String>,
    /// The newest incarnation that has a checkpoint for all: journals of it must be whole from where its checkpoints
    /// end.
    pub(super) incarnation: Incarnation,
    /// By shard, in that incarnation: the first LSN that is needed, and the highest known durable.
    pub(super) shards: BTreeMap<u16, (Lsn, Lsn)>,
}

type Key = (Incarnation, u16);

impl<D: Disk> Recovery<'_, D> {
    pub(super) async fn read_checkpoints(
        &mut self,
        known: &HashMap<PartitionId, KnownPartition>,
    ) -> Result<Base, RecoveryError> {
        let (names, mut newest, broken) = self.load_checkpoints().await?;
        let incarnation = newest.keys().chain(broken.keys()).filter(|(_, shard)| *shard == SHARD_ALL);
        let incarnation = incarnation.map(|(incarnation, _)| *incarnation).max().unwrap_or(Incarnation(0));
        newest.retain(|(of, _), _| *of >= incarnation);
        let mut records: HashMap<PartitionId, (u16, Record)> = HashMap::new();
        let mut shards = BTreeMap::new();
        // The one for all is the oldest of its incarnation.
        let order = |(of, shard): &Key| (*of, *shard != SHARD_ALL, *shard);
        let mut ordered: Vec<(Key, Checkpoint)> = newest.into_iter().collect();
        ordered.sort_by_key(|(key, _)| order(key));
        for ((_, shard), checkpoint) in ordered {
            if shard != SHARD_ALL {
                let own =
                    checkpoint.records.iter().filter(|record| record.incarnation == checkpoint.incarnation);
                let covered = own.map(|record| record.lsn).min().unwrap_or(checkpoint.durable_lsn);
                shards.insert(shard, (Lsn(covered.0 + 1), checkpoint.durable_lsn));
            }
            for record in checkpoint.records {
                records.insert(record.id, (shard, record));
            }
        }
        let mut ids: Vec<&PartitionId> = known.keys().collect();
        ids.sort();
        for id in ids {
            let record = records.remove(id);
            let from_shard = record.as_ref().is_some_and(|(shard, _)| *shard != SHARD_ALL);
            let record = record.map(|(_, record)| record);
            let expiration_ms = self.settings.producer_expiration_ms;
            let replay = Replay::new(*id, known[id].clone(), record, incarnation, expiration_ms, self.now_ms);
            self.replays.insert(*id, replay);
            let lost = broken.iter().find(|((of, shard), _)| {
                *of >= incarnation && !from_shard && (*shard != SHARD_ALL || *of == incarnation)
            });
            if let Some(((of, _), reason)) = lost {
                self.offline(*id, reason.clone(), Some(*of));
            }
        }
        Ok(Base { names, incarnation, shards })
    }

    /// The newest good checkpoint of each incarnation and shard, and where there is none but a bad one, why.
    #[allow(clippy::type_complexity)]
    async fn load_checkpoints(
        &mut self,
    ) -> Result<(Vec<String>, BTreeMap<Key, Checkpoint>, BTreeMap<Key, String>), RecoveryError> {
        let entries = self.disk.list("checkpoint").await.map_err(failed("listing checkpoint"))?;
        let mut found: Vec<(Key, u64, String)> = Vec::new();
        for entry in entries {
            let path = format!("checkpoint/{}", entry.name);
            match parse_name(&entry.name) {
                Some((incarnation, shard, number)) => found.push(((incarnation, shard), number, entry.name)),
                // Never finished, so nobody relied on it.
                None if entry.name.ends_with(".tmp") => self.disk.remove_file(&path).await.ok().unwrap_or(()),
                None => self.findings.push(format!("{path} is none of ours")),
            }
        }
        found.sort();
        let (mut newest, mut broken) = (BTreeMap::new(), BTreeMap::new());
        for (key, number, name) in &found {
            let path = format!("checkpoint/{name}");
            let bytes = self.disk.read_file(&path, CHECKPOINT_BYTES_MAX).await.map_err(failed(&path))?;
            let decoded = Checkpoint::decode(&bytes);
            let named = |c: &Checkpoint| (c.incarnation, c.shard) == *key && c.number == *number;
            match decoded {
                Ok(checkpoint) if named(&checkpoint) => {
                    broken.remove(key);
                    newest.insert(*key, checkpoint);
                }
                decoded => {
                    let reason = decoded.err().unwrap_or("it bears another's name");
                    let reason = format!("{path} is corrupt: {reason}");
                    self.findings.push(reason.clone());
                    // An older one still tells the truth, as long as the journals reach back to it.
                    if !newest.contains_key(key) {
                        broken.insert(*key, reason);
                    }
                }
            }
        }
        Ok((found.into_iter().map(|(_, _, name)| name).collect(), newest, broken))
    }
}

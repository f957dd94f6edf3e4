//! Journals of all shards and incarnations: which groups count, and what the missing ones are.

use std::collections::BTreeMap;

use flumen_core::journal::{
    EntryKind, FileHeader, FileScan, FoundGroup, GroupHeader, Tail, decode_table, judge, scan,
};
use flumen_core::limits::{BLOCK_BYTES, JOURNAL_FILE_BYTES_MAX};
use flumen_core::types::{Incarnation, Lsn, ShardId};
use flumen_wire::batch::crc_matches;
use futures_util::future::join_all;

use super::checkpoints::Base;
use super::replay::Replay;
use super::{Recovery, RecoveryError, failed};
use crate::disk::{BLOCK, Buffer, Disk, File, OpenMode};
use crate::engine::planted;
use crate::journal_files::JournalFileInfo;

/// Bytes of one read, and how many are in flight.
const READ_BYTES: usize = 1 << 20;
const READS: usize = 8;

/// A journal file of the folder.
pub(super) struct JournalFile {
    pub(super) path: String,
    pub(super) info: JournalFileInfo,
    /// Header of its first group, when that is valid.
    pub(super) first: Option<GroupHeader>,
}

/// One shard's journal in one incarnation.
type Key = (Incarnation, ShardId);

impl<D: Disk> Recovery<'_, D> {
    /// Applies what the journals hold past the checkpoints. Returns the files, in the order of their numbers.
    pub(super) async fn read_journals(&mut self, base: &Base) -> Result<Vec<JournalFile>, RecoveryError> {
        let files = self.list_journals().await?;
        let mut durable: BTreeMap<Key, Lsn> = BTreeMap::new();
        for (shard, (_, lsn)) in &base.shards {
            durable.insert((base.incarnation, ShardId(*shard)), *lsn);
        }
        let mut journals: BTreeMap<Key, Vec<&JournalFile>> = BTreeMap::new();
        for file in &files {
            let Some(first) = file.first else { continue };
            let key = (first.incarnation, first.shard);
            raise(&mut durable, key, first.durable_lsn);
            journals.entry(key).or_default().push(file);
        }
        // Files whose first group is bad may still say what was durable.
        for file in files.iter().filter(|file| file.first.is_none()) {
            let bytes = self.read_whole(file).await?;
            for seen in scan(&bytes, file.info.file_uuid, BLOCK_BYTES).beyond {
                raise(&mut durable, (seen.incarnation, seen.shard), seen.durable_lsn);
            }
        }
        for (key, mut files) in journals {
            files.sort_by_key(|file| file.first.map(|first| first.lsn));
            if self.is_needed(key.0) || planted!(self.settings, StaleGroupAccepted) {
                self.read_journal(base, key, &files, &mut durable).await?;
            }
        }
        // A journal of which no file's first group is left has nothing to begin from.
        for (key, lsn) in durable {
            let strict = key.0 == base.incarnation;
            let needed = base.shards.get(&key.1.0).map_or(Lsn(1), |(needed, _)| *needed);
            let seen = files
                .iter()
                .filter_map(|file| file.first)
                .any(|first| (first.incarnation, first.shard) == key);
            if strict && !seen && lsn >= needed {
                let reason = format!("journal of shard {}: groups from LSN {needed} are missing", key.1);
                self.journal_lost(base, key, reason);
            }
        }
        Ok(files)
    }

    /// Whether any partition may need groups of this incarnation.
    fn is_needed(&self, incarnation: Incarnation) -> bool {
        self.replays.values().any(|replay| replay.needs(incarnation))
    }

    /// The first group of an earlier incarnation's journals that any partition may need.
    fn first_needed(&self, incarnation: Incarnation) -> Lsn {
        let firsts = self.replays.values().filter_map(|replay| replay.first_needed(incarnation));
        firsts.min().unwrap_or(Lsn(1))
    }

    async fn list_journals(&mut self) -> Result<Vec<JournalFile>, RecoveryError> {
        let mut entries = self.disk.list("journal").await.map_err(failed("listing journal"))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let mut files = Vec::new();
        for entry in entries {
            let path = format!("journal/{}", entry.name);
            let Ok(number) = entry.name.parse::<u32>() else {
                self.findings.push(format!("{path} is none of ours"));
                continue;
            };
            let file = self.disk.open(&path, OpenMode::default()).await.map_err(failed(&path))?;
            let (buffer, content) = file.read_at(0, 2 * BLOCK).await.map_err(failed(&path))?;
            let bytes = &buffer.as_slice()[..content];
            let header = match FileHeader::decode(bytes) {
                Ok(header) if header.number == number && header.capacity == entry.len => Some(header),
                _ => None,
            };
            let info = match header {
                Some(header) if header.directory_id != self.settings.directory_id => {
                    return Err(RecoveryError::Foreign(path));
                }
                Some(FileHeader { number, file_uuid, capacity, .. }) => {
                    JournalFileInfo { number, file_uuid, capacity, usable: true, laid_out: false }
                }
                None => match self.headless(&path, number, entry.len).await? {
                    Some(info) => info,
                    None => continue,
                },
            };
            let first = bytes.get(BLOCK..).and_then(|bytes| GroupHeader::decode(bytes).ok());
            let first =
                first.filter(|first| first.file_uuid == info.file_uuid && first.position == BLOCK_BYTES);
            files.push(JournalFile { path, info, first });
        }
        files.sort_by_key(|file| file.info.number);
        Ok(files)
    }

    /// A file without a good header: what a creation left that a crash cut short, and it goes; or damage, and its groups
    /// still count.
    async fn headless(
        &mut self,
        path: &str,
        number: u32,
        len: u64,
    ) -> Result<Option<JournalFileInfo>, RecoveryError> {
        let capacity = len / BLOCK_BYTES * BLOCK_BYTES;
        let probe = JournalFileInfo { number, file_uuid: [0; 16], capacity, usable: true, laid_out: false };
        let probe = JournalFile { path: path.to_owned(), info: probe, first: None };
        let bytes = self.read_whole(&probe).await?;
        let group = bytes.chunks_exact(BLOCK).find_map(|block| GroupHeader::decode(block).ok());
        match group {
            Some(group) => {
                self.findings
                    .push(format!("{path} at position 0: the file's header is corrupt; its groups are used"));
                Ok(Some(JournalFileInfo { file_uuid: group.file_uuid, ..probe.info }))
            }
            None => {
                self.disk.remove_file(path).await.map_err(failed(path))?;
                Ok(None)
            }
        }
    }

    async fn read_whole(&mut self, file: &JournalFile) -> Result<Vec<u8>, RecoveryError> {
        let len = file.info.capacity.min(JOURNAL_FILE_BYTES_MAX) as usize;
        let opened = self.disk.open(&file.path, OpenMode::default()).await.map_err(failed(&file.path))?;
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = bytes.len();
            let reads = (0..READS).map(|index| at + index * READ_BYTES).take_while(|start| *start < len);
            let reads = reads.map(|start| opened.read_at(start as u64, READ_BYTES.min(len - start)));
            let mut short = false;
            for read in join_all(reads).await {
                let (buffer, content) = read.map_err(failed(&file.path))?;
                if !short {
                    bytes.extend_from_slice(&buffer.as_slice()[..content]);
                }
                short |= content < READ_BYTES;
            }
            if short {
                break;
            }
        }
        self.journal_bytes += bytes.len() as u64;
        Ok(bytes)
    }

    /// Goes through one journal, file by file, group by group.
    async fn read_journal(
        &mut self,
        base: &Base,
        key: Key,
        files: &[&JournalFile],
        durable: &mut BTreeMap<Key, Lsn>,
    ) -> Result<(), RecoveryError> {
        let strict = key.0 == base.incarnation;
        let needed = match strict {
            true => base.shards.get(&key.1.0).map_or(Lsn(1), |(needed, _)| *needed),
            false => self.first_needed(key.0),
        };
        let mut expected = strict.then_some(needed);
        for (at, file) in files.iter().enumerate() {
            let first = file.first.map_or(Lsn(0), |first| first.lsn);
            let next = files.get(at + 1).and_then(|next| next.first).map(|first| first.lsn);
            // All of it is covered: the next one begins where it ends.
            if next.is_some_and(|next| next <= needed) {
                continue;
            }
            if let Some(expected) = expected.filter(|expected| first > *expected) {
                if strict {
                    break;
                }
                // What checkpoints cover may be gone, as its file was being laid out anew: what comes behind it was written
                // when all before it was durable, and counts.
                self.groups_lost(key, expected, first);
            }
            let bytes = self.read_whole(file).await?;
            let found = scan(&bytes, file.info.file_uuid, BLOCK_BYTES);
            for group in &found.groups {
                raise(durable, key, group.header.durable_lsn);
            }
            for seen in &found.beyond {
                raise(durable, (seen.incarnation, seen.shard), seen.durable_lsn);
            }
            let known = durable.get(&key).copied().unwrap_or(Lsn(0));
            for group in &found.groups {
                let lsn = group.header.lsn;
                if lsn < needed {
                    self.note_shards(group, &bytes);
                    continue;
                }
                if !group.is_valid() && !self.judge_group(base, key, file, group, &bytes, known) {
                    self.flush_all().await;
                    return Ok(());
                }
                if group.table_valid {
                    self.apply_group(file, group, &bytes);
                }
                expected = Some(Lsn(lsn.0 + 1));
            }
            if planted!(self.settings, StaleGroupAccepted) {
                self.apply_stale(file, &found, &bytes);
            }
            self.flush_all().await;
        }
        // What comes next was never written, or it is lost.
        let end = expected.unwrap_or(Lsn(1));
        let known = durable.get(&key).copied().unwrap_or(Lsn(0));
        if self.judge(end, known) == Tail::Corrupt {
            if strict {
                let near = files.last().map_or("journal", |file| file.path.as_str());
                let reason =
                    format!("{near}: group LSN {end} of shard {} was durable and is not there", key.1);
                self.journal_lost(base, key, reason);
            } else {
                self.groups_lost(key, end, Lsn(known.0 + 1));
            }
        }
        Ok(())
    }

    fn judge(&self, lsn: Lsn, known: Lsn) -> Tail {
        if planted!(self.settings, CorruptionTakenForTornTail) {
            return Tail::Torn;
        }
        judge(lsn, known)
    }

    /// Deals with a group whose header alone is good. Returns whether to go on behind it.
    fn judge_group(
        &mut self,
        base: &Base,
        key: Key,
        file: &JournalFile,
        group: &FoundGroup,
        bytes: &[u8],
        known: Lsn,
    ) -> bool {
        let (lsn, position) = (group.header.lsn, group.position);
        if self.judge(lsn, known) == Tail::Torn {
            return false;
        }
        let text = format!("{} at position {position}: group LSN {lsn} is corrupt", file.path);
        if !group.table_valid {
            self.journal_lost(base, key, text);
            return true;
        }
        self.findings.push(text.clone());
        let start = position as usize;
        let whole = &bytes[start..start + group.header.byte_length as usize];
        for (entry, body) in decode_table(&group.header, whole).unwrap_or_default() {
            // What a checkpoint covers may be gone: the file may have been laid out anew.
            let is_needed = |replay: &Replay| replay.is_past(key.0, lsn);
            if self.replays.get(&entry.partition).is_some_and(is_needed)
                && !body_is_sound(entry.kind, &whole[body.clone()])
            {
                let reason = format!("{} at position {}: {text}", file.path, start + body.start);
                self.offline(entry.partition, reason, Some(key.0));
            }
        }
        true
    }

    /// Groups of an earlier incarnation's journal are not there: partitions that had data in it and need them go offline.
    fn groups_lost(&mut self, key: Key, from: Lsn, to: Lsn) {
        let concerned = |replay: &&Replay| {
            replay.shard == Some(key) && replay.first_needed(key.0).is_some_and(|first| first < to)
        };
        let concerned: Vec<_> = self.replays.values().filter(concerned).map(|replay| replay.id).collect();
        for id in concerned {
            let reason =
                format!("journal of shard {}: groups from LSN {from} to before {to} are missing", key.1);
            self.offline(id, reason, Some(key.0));
        }
    }

    /// Every partition that may have had data in this journal goes offline.
    fn journal_lost(&mut self, base: &Base, key: Key, reason: String) {
        self.findings.push(reason.clone());
        let other_shard = |shard: Option<Key>| shard.is_some_and(|(of, shard)| of == key.0 && shard != key.1);
        let concerned: Vec<_> = self
            .replays
            .values()
            .filter(|replay| replay.needs(key.0) && !(key.0 == base.incarnation && other_shard(replay.shard)))
            .map(|replay| replay.id)
            .collect();
        for id in concerned {
            self.offline(id, reason.clone(), Some(key.0));
        }
    }

    /// Of a group that is not applied: in which journal its partitions were.
    fn note_shards(&mut self, group: &FoundGroup, bytes: &[u8]) {
        if !group.table_valid {
            return;
        }
        let start = group.position as usize;
        let whole = &bytes[start..start + group.header.byte_length as usize];
        for (entry, _) in decode_table(&group.header, whole).unwrap_or_default() {
            if let Some(replay) = self.replays.get_mut(&entry.partition) {
                replay.shard = Some((group.header.incarnation, group.header.shard));
            }
        }
    }

    fn apply_group(&mut self, file: &JournalFile, group: &FoundGroup, bytes: &[u8]) {
        let start = group.position as usize;
        let whole = &bytes[start..start + group.header.byte_length as usize];
        let (incarnation, lsn) = (group.header.incarnation, group.header.lsn);
        let mut every = planted!(self.settings, FilledLsnIgnored);
        every |= planted!(self.settings, StaleGroupAccepted);
        for (entry, body) in decode_table(&group.header, whole).unwrap_or_default() {
            let Some(replay) = self.replays.get_mut(&entry.partition) else { continue };
            replay.shard = Some((incarnation, group.header.shard));
            if replay.offline.is_some() || (!every && !replay.is_past(incarnation, lsn)) {
                continue;
            }
            let place = start + body.start;
            if let Err(reason) = replay.apply(&entry, &whole[body], self.now_ms) {
                let reason = format!("{} at position {place}: {reason}", file.path);
                self.offline(entry.partition, reason, Some(incarnation));
            }
        }
    }

    /// A planted bug: what an older use of the file left is taken for good.
    fn apply_stale(&mut self, file: &JournalFile, found: &FileScan, bytes: &[u8]) {
        for seen in &found.beyond {
            let rest = scan(bytes, file.info.file_uuid, seen.position);
            for group in rest.groups.iter().filter(|group| group.is_valid()).take(1) {
                self.apply_group(file, group, bytes);
            }
        }
    }
}

fn raise(durable: &mut BTreeMap<Key, Lsn>, key: Key, lsn: Lsn) {
    let known = durable.entry(key).or_insert(Lsn(0));
    *known = (*known).max(lsn);
}

/// Whether a body is as written, by the checksums of its batches. An EXTENT's headers have none of their own: what
/// they say is compared with the segment.
fn body_is_sound(kind: EntryKind, body: &[u8]) -> bool {
    match kind {
        EntryKind::Data | EntryKind::Relog => {
            super::replay::batches_of(body).all(|batch| batch.is_ok_and(crc_matches))
        }
        EntryKind::Extent => false,
        EntryKind::Truncate | EntryKind::LogStart | EntryKind::Drop => true,
    }
}

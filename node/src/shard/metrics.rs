//! What a shard tells of itself to Prometheus, and how shard 0 puts all shards together.

use std::rc::Rc;

use flumen_core::types::ShardId;
use flumen_storage::EngineMetrics;
use flumen_wire::ApiKey;

use super::Shard;
use crate::admin::Pages;
use crate::probe::{self, Snapshot};

impl Shard {
    /// The pages of the admin address.
    pub(super) fn pages(self: &Rc<Self>) -> Pages {
        let (serving, shard) = (Rc::clone(self), Rc::clone(self));
        Pages {
            ready: Rc::new(move || serving.facts.is_ready() && !serving.stopping.get()),
            metrics: Rc::new(move || {
                let shard = Rc::clone(&shard);
                Box::pin(async move { shard.metrics_of_all().await })
            }),
        }
    }

    async fn metrics_of_all(self: &Rc<Self>) -> String {
        let mut all = Snapshot::default();
        for target in (0..self.count as u16).map(ShardId) {
            // `None`: that shard has ended, and so does the node.
            if let Some(snapshot) = self.ask(target, |shard| async move { shard.snapshot() }).await {
                all.merge(snapshot);
            }
        }
        if let Some(health) = self.facts.health.get() {
            probe::report_health(&health(), &mut all);
        }
        probe::report_process(&mut all);
        all.to_text()
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let net = self.net.counters();
        snapshot.counter("flumen_connections_accepted_total", "Connections accepted.", "", net.accepted);
        snapshot.counter(
            "flumen_connections_refused_total",
            "Connections refused: too many.",
            "",
            net.refused,
        );
        snapshot.gauge("flumen_connections", "Connections open.", "", net.open as f64);
        snapshot.counter("flumen_received_bytes_total", "Bytes read from clients.", "", net.bytes_in);
        snapshot.counter("flumen_sent_bytes_total", "Bytes sent to clients.", "", net.bytes_out);
        self.probe.report(api_name, &mut snapshot);
        let sessions = self.sessions.borrow().len() as f64;
        snapshot.gauge("flumen_fetch_sessions", "Fetch sessions.", "", sessions);
        self.report_groups(&mut snapshot);
        report_engine(&self.engine.metrics(), &mut snapshot);
        snapshot
    }
}

impl Shard {
    fn report_groups(&self, snapshot: &mut Snapshot) {
        let (groups, offsets, records) = self.coordinator_counts();
        let counts = [
            ("type=\"classic\",state=\"empty\"", groups.classic_empty),
            ("type=\"classic\",state=\"preparing_rebalance\"", groups.classic_preparing_rebalance),
            ("type=\"classic\",state=\"completing_rebalance\"", groups.classic_completing_rebalance),
            ("type=\"classic\",state=\"stable\"", groups.classic_stable),
            ("type=\"consumer\"", groups.consumer),
        ];
        for (labels, count) in counts {
            snapshot.gauge("flumen_groups", "Groups, by type and state.", labels, count as f64);
        }
        snapshot.gauge("flumen_group_offsets", "Offsets that groups have committed.", "", offsets as f64);
        snapshot.counter(
            "flumen_group_records_total",
            "Records that group coordinators have written.",
            "",
            records,
        );
    }
}

fn api_name(key: i16) -> &'static str {
    ApiKey::from_key(key).map_or("unknown", ApiKey::name)
}

fn report_engine(engine: &EngineMetrics, snapshot: &mut Snapshot) {
    let counters = [
        ("flumen_commit_cycles_total", "Groups written to journals.", engine.groups),
        ("flumen_journal_bytes_total", "Bytes of these groups.", engine.group_bytes),
        ("flumen_batches_total", "Batches appended.", engine.batches),
        ("flumen_batch_bytes_total", "Bytes of batches appended.", engine.batch_bytes),
        ("flumen_bulk_bytes_total", "Bytes that went past the journal.", engine.bulk_bytes),
        ("flumen_filled_bytes_total", "Bytes written from memory to segments.", engine.filled_bytes),
        ("flumen_checkpoints_total", "Checkpoints written.", engine.checkpoints),
        ("flumen_reads_cached_total", "Reads answered from the batch cache.", engine.reads_cached),
        ("flumen_reads_disk_total", "Reads that went to disk.", engine.reads_disk),
        ("flumen_segments_deleted_total", "Segments deleted by retention.", engine.segments_deleted),
        ("flumen_compaction_runs_total", "Passes of compaction.", engine.compaction_runs),
        ("flumen_compaction_runs_failed_total", "Of these, ended early.", engine.compaction_runs_failed),
        ("flumen_compaction_read_bytes_total", "Bytes read by compaction.", engine.compaction_read_bytes),
        ("flumen_compaction_written_bytes_total", "Bytes it wrote.", engine.compaction_written_bytes),
        ("flumen_storage_full_total", "Times that the disk was full.", engine.storage_full),
    ];
    for (name, help, value) in counters {
        snapshot.counter(name, help, "", value);
    }
    let gauges = [
        ("flumen_partitions", "Partitions.", engine.partitions),
        ("flumen_partitions_offline", "Partitions that are offline.", engine.partitions_offline),
        ("flumen_staged_bytes", "Bytes accepted and not in their segments yet.", engine.staged_bytes),
        ("flumen_cache_bytes", "Bytes in the batch cache.", engine.cache_bytes),
        ("flumen_index_bytes", "Bytes of the indexes of active segments.", engine.index_bytes),
        ("flumen_journal_files", "Journal files.", engine.journal_files),
        ("flumen_journal_files_free", "Journal files that are free.", engine.journal_files_free),
    ];
    for (name, help, value) in gauges {
        snapshot.gauge(name, help, "", value as f64);
    }
    let seconds = |micros: u64| micros as f64 / 1e6;
    snapshot.real_counter(
        "flumen_journal_sync_seconds_total",
        "Time from forming a group to its durability: the synchronous write of the journal.",
        "",
        seconds(engine.group_micros),
    );
    snapshot.real_counter(
        "flumen_compaction_seconds_total",
        "Time that compaction took.",
        "",
        seconds(engine.compaction_micros),
    );
    snapshot.real_counter(
        "flumen_checkpoint_seconds_total",
        "Time that checkpoints took.",
        "",
        seconds(engine.checkpoint_micros),
    );
}

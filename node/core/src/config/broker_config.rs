//! The settings of this node as its driver reads them: typed, complete, checked.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::resolve::{Overrides, Settings, Values};
use super::setting::connections_by_address;
use super::{GroupConfig, LogConfig};

/// The settings of this node that something acts on. Times in milliseconds, sizes in bytes; names are the
/// settings'.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct BrokerConfig {
    pub auto_create_topics_enable: bool,
    pub broker_rack: Option<String>,
    /// `None`: connections are never closed for being idle.
    pub connections_max_idle_ms: Option<u64>,
    pub default_replication_factor: i16,
    pub delete_topic_enable: bool,
    pub fetch_max_bytes: u32,
    pub log_cleaner_backoff_ms: u64,
    pub log_cleaner_dedupe_buffer_size: u64,
    pub log_cleaner_enable: bool,
    pub log_cleaner_io_buffer_load_factor: f64,
    pub log_cleaner_io_buffer_size: u32,
    /// Bytes per second.
    pub log_cleaner_io_max_bytes_per_second: f64,
    pub log_retention_check_interval_ms: u64,
    pub max_connections: u32,
    pub max_connections_per_ip: u32,
    /// What goes before the former, for these addresses.
    pub max_connections_per_ip_overrides: BTreeMap<IpAddr, u32>,
    pub max_incremental_fetch_session_cache_slots: u32,
    pub max_request_partition_size_limit: u32,
    pub metadata_log_max_record_bytes_between_snapshots: u64,
    pub num_partitions: i32,
    pub producer_id_expiration_ms: u64,
    pub socket_listen_backlog_size: u32,
    /// `None`: left to the kernel.
    pub socket_receive_buffer_bytes: Option<u32>,
    pub socket_request_max_bytes: u32,
    /// `None`: left to the kernel.
    pub socket_send_buffer_bytes: Option<u32>,
    /// Groups and committed offsets.
    pub group: GroupConfig,
    /// What topics without settings of their own get.
    pub log: LogConfig,
}

impl BrokerConfig {
    pub(super) fn read(values: &Settings) -> BrokerConfig {
        let flag = |name| values.text(name) == "true";
        let natural = |name| u64::try_from(values.long(name)).unwrap_or(0);
        let kernel = |name| u32::try_from(values.long(name)).ok();
        let real = |name, default| values.text(name).parse::<f64>().unwrap_or(default);
        let rack = values.text("broker.rack").into_owned();
        BrokerConfig {
            auto_create_topics_enable: flag("auto.create.topics.enable"),
            broker_rack: (!rack.is_empty()).then_some(rack),
            connections_max_idle_ms: u64::try_from(values.long("connections.max.idle.ms")).ok(),
            default_replication_factor: i16::try_from(values.long("default.replication.factor"))
                .unwrap_or(i16::MAX),
            delete_topic_enable: flag("delete.topic.enable"),
            fetch_max_bytes: values.count("fetch.max.bytes"),
            log_cleaner_backoff_ms: natural("log.cleaner.backoff.ms"),
            log_cleaner_dedupe_buffer_size: natural("log.cleaner.dedupe.buffer.size"),
            log_cleaner_enable: flag("log.cleaner.enable"),
            log_cleaner_io_buffer_load_factor: real("log.cleaner.io.buffer.load.factor", 0.9),
            log_cleaner_io_buffer_size: values.count("log.cleaner.io.buffer.size"),
            log_cleaner_io_max_bytes_per_second: real("log.cleaner.io.max.bytes.per.second", f64::MAX),
            log_retention_check_interval_ms: natural("log.retention.check.interval.ms"),
            max_connections: values.count("max.connections"),
            max_connections_per_ip: values.count("max.connections.per.ip"),
            max_connections_per_ip_overrides: connections_by_address(
                &values.text("max.connections.per.ip.overrides"),
            )
            .unwrap_or_default(),
            max_incremental_fetch_session_cache_slots: values
                .count("max.incremental.fetch.session.cache.slots"),
            max_request_partition_size_limit: values.count("max.request.partition.size.limit"),
            metadata_log_max_record_bytes_between_snapshots: natural(
                "metadata.log.max.record.bytes.between.snapshots",
            ),
            num_partitions: i32::try_from(values.long("num.partitions")).unwrap_or(i32::MAX),
            producer_id_expiration_ms: natural("producer.id.expiration.ms"),
            socket_listen_backlog_size: values.count("socket.listen.backlog.size"),
            socket_receive_buffer_bytes: kernel("socket.receive.buffer.bytes"),
            socket_request_max_bytes: values.count("socket.request.max.bytes"),
            socket_send_buffer_bytes: kernel("socket.send.buffer.bytes"),
            group: GroupConfig::read(values),
            log: values.log_config(&Overrides::new()),
        }
    }
}

impl Default for BrokerConfig {
    fn default() -> BrokerConfig {
        Settings::default().broker_config()
    }
}

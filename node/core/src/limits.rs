//! Every bound of a node, by name, and the relations between them that the code relies on.
//!
//! A bound that an operator may set lives in the broker settings; what stands here is the hard limit around it.

/// Unit of direct I/O and of alignment on disk.
pub const BLOCK_BYTES: u64 = 4096;

/// Largest journal group, header, table, bodies and padding included.
pub const GROUP_BYTES_MAX: u64 = 16 << 20;
/// Most entries in one group.
pub const GROUP_ENTRIES_MAX: u32 = 65_536;
/// Smallest journal file: one header block and one group of some use. Tests use small ones.
pub const JOURNAL_FILE_BYTES_MIN: u64 = 64 << 10;
/// Largest journal file. Recovery holds one in memory at a time.
pub const JOURNAL_FILE_BYTES_MAX: u64 = 256 << 20;
/// What a journal file is unless told otherwise.
pub const JOURNAL_FILE_BYTES: u64 = 64 << 20;
/// Most journal files of one data folder.
pub const JOURNAL_FILES_MAX: usize = 4096;

/// Largest batch that the log accepts, whatever `max.message.bytes` says: it fits a request and a segment.
pub const BATCH_BYTES_MAX: usize = 96 << 20;
/// Bytes that one compressed batch of a log may open to, when it is compacted or searched by time.
pub const DECOMPRESSED_BYTES_MAX: usize = 256 << 20;
/// Staged bytes of a node at most: what is in memory and not in segments.
pub const STAGED_BYTES_MAX: usize = 256 << 20;
/// Staged bytes of one partition from which they go past the journal, straight to the segment (see `journal::plan::route`).
pub const BULK_BYTES_MIN: usize = 256 << 10;
/// Size that one bulk write aims at; a batch is never split over two.
pub const BULK_WRITE_BYTES: usize = 512 << 10;
/// Bulk writes of one shard in flight at a time.
pub const BULK_WRITES_MAX: usize = 16;
/// Bytes of one fill write at most.
pub const FILL_WRITE_BYTES_MAX: usize = 1 << 20;
/// Unfilled bytes of one partition from which it is filled without waiting for a checkpoint.
pub const FILL_BYTES_MIN: usize = 1 << 20;
/// Segment writes of one shard in flight at a time.
pub const FILLS_MAX: usize = 16;

/// First and largest step by which a segment's space is allocated; it doubles in between.
pub const ALLOCATE_BYTES_MIN: u64 = 64 << 10;
/// See [`ALLOCATE_BYTES_MIN`].
pub const ALLOCATE_BYTES_MAX: u64 = 16 << 20;

/// Largest position in a segment: Kafka's indexes hold positions as signed 32-bit.
pub const SEGMENT_BYTES_MAX: u64 = i32::MAX as u64;
/// Most segments of one partition.
pub const SEGMENTS_MAX: usize = 1 << 20;
/// Segments of a partition from which on it gets new ones only when the last is full, whatever their age or their index.
pub const SMALL_SEGMENTS_MAX: usize = 65_536;
/// Largest checkpoint file.
pub const CHECKPOINT_BYTES_MAX: u64 = 1 << 30;
/// Answers that wait for durability on one partition's duplicates at most.
pub const WAITERS_MAX: usize = 4096;
/// Bulk bytes after which a checkpoint is due: what recovery may have to check is bounded by it.
pub const BULK_BYTES_PER_CHECKPOINT: u64 = 1 << 30;
/// File operations in flight at a time while recovering or checkpointing.
pub const RECOVERY_DEPTH: usize = 32;

/// Most partitions that all topics together may have. Each costs memory on its shard, a directory and an
/// entry of every checkpoint.
pub const PARTITIONS_MAX: usize = 200_000;
/// Most partitions that one request may create; Kafka's bound.
pub const PARTITIONS_PER_REQUEST_MAX: usize = 10_000;
/// Most partitions of one topic: an index has at most five digits, so that directory names fit the file system.
pub const PARTITIONS_PER_TOPIC_MAX: usize = 100_000;
/// Longest name of a topic; Kafka's bound: with a partition's number it must fit a file name.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;
/// Most settings that one topic or broker may have set. More than there are names.
pub const OVERRIDES_MAX: usize = 512;
/// Longest value of a setting, in bytes; Kafka's bound.
pub const CONFIG_VALUE_BYTES_MAX: usize = 32_767;
/// The same where it is a number or a word.
pub const CONFIG_WORD_BYTES_MAX: usize = 64;
/// Names and values of all settings of topics, brokers and groups together: a snapshot of the metadata is one file.
pub const CONFIGS_BYTES_MAX: usize = 64 << 20;
/// Most resources whose settings one request may change: it is decided in one go.
pub const ALTERED_RESOURCES_MAX: usize = 10_000;
/// Groups that have settings of their own; each is a record of metadata for ever.
pub const CONFIGURED_GROUPS_MAX: usize = 10_000;
/// Length of the id of a group that has settings of its own.
pub const CONFIGURED_GROUP_ID_BYTES_MAX: usize = 4_096;
/// Producer ids given to a node at a time; Kafka's number.
pub const PRODUCER_ID_BLOCK_LEN: i64 = 1_000;
/// Most partitions that all fetch sessions of one shard remember. A session past it is not made, or is closed:
/// its client then names its partitions with every request.
pub const SESSION_PARTITIONS_MAX: usize = 1 << 20;
/// Most groups of one coordinator, of which there is one for each partition of `__consumer_offsets`.
pub const GROUPS_PER_COORDINATOR_MAX: usize = 100_000;
/// Most committed offsets of one coordinator, over all its groups.
pub const OFFSETS_PER_COORDINATOR_MAX: usize = 1 << 20;
/// What clients say beside their offsets, of all offsets of a coordinator.
pub const OFFSETS_METADATA_BYTES_MAX: usize = 32 << 20;
/// Most members of one group, those included that were only given an id, whatever `group.max.size` says.
pub const GROUP_MEMBERS_MAX: usize = 10_000;
/// What the members of one group may say to its protocols, and what they may be assigned, in bytes of each.
pub const GROUP_MEMBERS_BYTES_MAX: usize = 8 << 20;
/// Longest id of a group, a member, a client or a static member; all of them are kept.
pub const GROUP_NAME_BYTES_MAX: usize = 32_767;
/// Records of a coordinator that wait for the log at most: past it, requests wait.
pub const COORDINATOR_BACKLOG_BYTES_MAX: usize = 8 << 20;
/// What a batch of a coordinator aims at; a decision is never split over two.
pub const COORDINATOR_BATCH_BYTES: usize = 1 << 20;
/// What the records of one OffsetCommit may come to. Each names group and topic, so they may be far larger than it.
pub const OFFSET_COMMIT_BYTES_MAX: usize = 32 << 20;

/// Most topics that one member of a consumer group subscribes to by name.
pub const GROUP_MEMBER_TOPICS_MAX: usize = 10_000;
/// Most regular expressions by which the members of one group subscribe. Each is matched with all topics when one comes or
/// goes.
pub const GROUP_EXPRESSIONS_MAX: usize = 64;
/// Longest regular expression by which a member subscribes.
pub const GROUP_EXPRESSION_BYTES_MAX: usize = 4_096;
/// Largest such expression once it is compiled, and largest cache for matching with it.
pub const GROUP_EXPRESSION_COMPILED_BYTES_MAX: usize = 128 << 10;

const _: () = assert!(BLOCK_BYTES.is_power_of_two());
const _: () = assert!(GROUP_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(GROUP_BYTES_MAX + BLOCK_BYTES <= JOURNAL_FILE_BYTES);
const _: () = assert!(JOURNAL_FILE_BYTES_MIN <= JOURNAL_FILE_BYTES);
const _: () = assert!(JOURNAL_FILE_BYTES <= JOURNAL_FILE_BYTES_MAX);
// What is below the bulk threshold fits a group.
const _: () = assert!((BULK_BYTES_MIN as u64) < GROUP_BYTES_MAX / 4);
const _: () = assert!((FILL_WRITE_BYTES_MAX as u64).is_multiple_of(BLOCK_BYTES));
const _: () =
    assert!(ALLOCATE_BYTES_MIN.is_multiple_of(BLOCK_BYTES) && ALLOCATE_BYTES_MIN <= ALLOCATE_BYTES_MAX);
// A group's record fits a batch: what its members say, what they are assigned, and their names.
const _: () = assert!(2 * GROUP_MEMBERS_BYTES_MAX + COORDINATOR_BATCH_BYTES < BATCH_BYTES_MAX);
const _: () = assert!(2 * OFFSET_COMMIT_BYTES_MAX + COORDINATOR_BATCH_BYTES < BATCH_BYTES_MAX);
const _: () = assert!((BATCH_BYTES_MAX as u64) < SEGMENT_BYTES_MAX);
const _: () = assert!(PARTITIONS_PER_REQUEST_MAX <= PARTITIONS_PER_TOPIC_MAX);
const _: () = assert!(PARTITIONS_PER_TOPIC_MAX <= PARTITIONS_MAX);
const _: () = assert!(TOPIC_NAME_BYTES_MAX + "-99999".len() <= 255);
const _: () = assert!(crate::config::TOPIC_SETTINGS.len() <= OVERRIDES_MAX);
const _: () = assert!(crate::config::BROKER_SETTINGS.len() <= OVERRIDES_MAX);

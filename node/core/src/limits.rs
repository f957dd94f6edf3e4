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
/// Staged bytes of a node at most: what is in memory and not in segments.
pub const STAGED_BYTES_MAX: usize = 256 << 20;
/// Staged bytes of one partition from which they go past the journal, straight to the segment.
pub const BULK_BYTES_MIN: usize = 512 << 10;
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
/// Largest checkpoint file.
pub const CHECKPOINT_BYTES_MAX: u64 = 1 << 30;
/// Answers that wait for durability on one partition's duplicates at most.
pub const WAITERS_MAX: usize = 4096;
/// Bulk bytes after which a checkpoint is due: what recovery may have to check is bounded by it.
pub const BULK_BYTES_PER_CHECKPOINT: u64 = 1 << 30;
/// File operations in flight at a time while recovering or checkpointing.
pub const RECOVERY_DEPTH: usize = 32;

const _: () = assert!(BLOCK_BYTES.is_power_of_two());
const _: () = assert!(GROUP_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(GROUP_BYTES_MAX + BLOCK_BYTES <= JOURNAL_FILE_BYTES);
const _: () = assert!(JOURNAL_FILE_BYTES_MIN <= JOURNAL_FILE_BYTES);
const _: () = assert!(JOURNAL_FILE_BYTES <= JOURNAL_FILE_BYTES_MAX);
// What is below the bulk threshold fits a group.
const _: () = assert!((BULK_BYTES_MIN as u64) < GROUP_BYTES_MAX / 4);
const _: () = assert!(BULK_WRITE_BYTES <= BULK_BYTES_MIN);
const _: () = assert!((FILL_WRITE_BYTES_MAX as u64).is_multiple_of(BLOCK_BYTES));
const _: () =
    assert!(ALLOCATE_BYTES_MIN.is_multiple_of(BLOCK_BYTES) && ALLOCATE_BYTES_MIN <= ALLOCATE_BYTES_MAX);
const _: () = assert!((BATCH_BYTES_MAX as u64) < SEGMENT_BYTES_MAX);

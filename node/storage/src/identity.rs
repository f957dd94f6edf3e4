//! Whose data folder this is, and which start of it: `node.meta` and `incarnation`, the first files of a start.
//!
//! ```text
//! node.meta                                    incarnation
//!  0  magic "FLMNNODE"                          0  magic "FLMNINCR"
//!  8  version of this frame, u32                8  incarnation, u64
//! 12  length of the payload, u32               16  CRC-32C of [0, 16)
//! 16  CRC-32C of [0, 16) and of the payload
//! 20  payload: the FlatBuffer `NodeMeta`
//! ```
//!
//! Both are replaced whole: written beside, synced, renamed, the folder synced. `node.meta` is written once, when
//! the folder is made; the incarnation rises by one, durably, with every start and before anything but
//! `node.meta` is written, so that nothing of two starts can be confused.

use std::fmt;
use std::io;

use flumen_core::metadata::{ClusterId, DirectoryId};
use flumen_core::types::{Incarnation, NodeId};
use flumen_schemas::node_meta as schema;
use flumen_schemas::planus::{Builder, ReadAsRoot};
use flumen_wire::crc::Crc32c;

use crate::disk::Disk;

/// Version of the data folder that this release writes, and the only one that it reads.
pub const FORMAT_VERSION: u32 = 1;

const NODE_META: &str = "node.meta";
const INCARNATION: &str = "incarnation";
const NODE_META_MAGIC: &[u8; 8] = b"FLMNNODE";
const INCARNATION_MAGIC: &[u8; 8] = b"FLMNINCR";
const FRAME_VERSION: u32 = 1;
const FRAME_HEADER_LEN: usize = 20;
/// Both files are far smaller.
const FILE_BYTES_MAX: u64 = 4096;
/// What stands in a data folder that was in use.
const CONTENT: [&str; 3] = ["metadata", "journal", "checkpoint"];

/// Whose data folder this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The node.
    pub node_id: NodeId,
    /// The folder itself.
    pub directory_id: DirectoryId,
}

/// Why a data folder cannot be used.
#[derive(Debug)]
pub enum IdentityError {
    /// The disk failed.
    Io {
        /// At which file.
        file: &'static str,
        /// How.
        error: io::Error,
    },
    /// The file is not what was written.
    Corrupt {
        /// Which file.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The file is gone, and the folder was in use.
    Missing(&'static str),
    /// The folder is of another release.
    Version(u32),
    /// The folder is another node's.
    OtherNode {
        /// The node that it belongs to.
        folder: NodeId,
        /// The node that was started on it.
        started: NodeId,
    },
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdentityError::Io { file, error } => write!(f, "{file}: {error}"),
            IdentityError::Corrupt { file, reason } => {
                write!(f, "{file} is corrupt: {reason}. Restore it from a backup")
            }
            IdentityError::Missing(file) => write!(
                f,
                "the data folder was in use, and its {file} is missing. Restore it from a backup, or start on an \
                 empty folder"
            ),
            IdentityError::Version(version) => write!(
                f,
                "the data folder has format {version}, and this release reads format {FORMAT_VERSION}: start the \
                 release that wrote it"
            ),
            IdentityError::OtherNode { folder, started } => write!(
                f,
                "the data folder belongs to node {folder}, and this node is {started}: start it with --node-id \
                 {folder}, or on a folder of its own"
            ),
        }
    }
}

impl std::error::Error for IdentityError {}

/// Reads whose folder it is; on a folder that was never used, makes it this node's. `fresh` is what it becomes
/// then: its node is checked in any case, the random ids are used only once.
pub async fn identify<D: Disk>(disk: &D, fresh: Identity) -> Result<Identity, IdentityError> {
    let identity = match read(disk, NODE_META).await? {
        Some(bytes) => {
            let identity = decode_node_meta(&bytes)?;
            // Its name may be there and not be durable yet, after a start that was killed.
            disk.sync_directory("").await.map_err(failed(NODE_META))?;
            identity
        }
        None if was_used(disk).await? => return Err(IdentityError::Missing(NODE_META)),
        None => {
            replace(disk, NODE_META, &encode_node_meta(&fresh)).await?;
            fresh
        }
    };
    if identity.node_id != fresh.node_id {
        return Err(IdentityError::OtherNode { folder: identity.node_id, started: fresh.node_id });
    }
    Ok(identity)
}

/// The number of this start: one more than ever before, durable when this returns.
pub async fn next_incarnation<D: Disk>(disk: &D) -> Result<Incarnation, IdentityError> {
    let last = match read(disk, INCARNATION).await? {
        Some(bytes) => decode_incarnation(&bytes)?,
        None if was_used(disk).await? => return Err(IdentityError::Missing(INCARNATION)),
        None => 0,
    };
    let next = last.checked_add(1).ok_or_else(|| corrupt(INCARNATION, "it is at its end"))?;
    replace(disk, INCARNATION, &encode_incarnation(next)).await?;
    Ok(Incarnation(next))
}

fn failed(file: &'static str) -> impl Fn(io::Error) -> IdentityError {
    move |error| IdentityError::Io { file, error }
}

fn corrupt(file: &'static str, reason: impl Into<String>) -> IdentityError {
    IdentityError::Corrupt { file, reason: reason.into() }
}

async fn read<D: Disk>(disk: &D, file: &'static str) -> Result<Option<Vec<u8>>, IdentityError> {
    match disk.read_file(file, FILE_BYTES_MAX).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(file)(error)),
    }
}

async fn replace<D: Disk>(disk: &D, file: &'static str, content: &[u8]) -> Result<(), IdentityError> {
    let temporary = format!("{file}.tmp");
    disk.write_file(&temporary, content, true).await.map_err(failed(file))?;
    disk.rename(&temporary, file).await.map_err(failed(file))?;
    disk.sync_directory("").await.map_err(failed(file))
}

async fn was_used<D: Disk>(disk: &D) -> Result<bool, IdentityError> {
    let entries = disk.list("").await.map_err(failed("the data folder"))?;
    Ok(entries.iter().any(|entry| CONTENT.contains(&entry.name.as_str())))
}

fn encode_node_meta(identity: &Identity) -> Vec<u8> {
    let uuid = |bytes: [u8; 16]| {
        let bits = u128::from_be_bytes(bytes);
        schema::Uuid { high: (bits >> 64) as u64, low: bits as u64 }
    };
    let payload = Builder::new()
        .finish(
            schema::NodeMeta {
                format_version: FORMAT_VERSION,
                cluster_id: uuid(identity.cluster_id.0),
                node_id: identity.node_id.0,
                directory_id: uuid(identity.directory_id.0),
            },
            None,
        )
        .to_vec();
    let mut bytes = NODE_META_MAGIC.to_vec();
    bytes.extend(FRAME_VERSION.to_le_bytes());
    bytes.extend(u32::try_from(payload.len()).expect("a few fields").to_le_bytes());
    bytes.extend(crc(&[&bytes, &payload]).to_le_bytes());
    bytes.extend(payload);
    bytes
}

fn decode_node_meta(bytes: &[u8]) -> Result<Identity, IdentityError> {
    let wrong = |reason: &str| Err(corrupt(NODE_META, reason));
    let Some((header, payload)) = bytes.split_at_checked(FRAME_HEADER_LEN) else {
        return wrong("it is too short");
    };
    if header[..8] != *NODE_META_MAGIC {
        return wrong("it is not a node.meta");
    }
    let version = u32_at(header, 8);
    if version != FRAME_VERSION {
        return Err(IdentityError::Version(version));
    }
    if u32_at(header, 12) as usize != payload.len() || u32_at(header, 16) != crc(&[&header[..16], payload]) {
        return wrong("the checksum does not match");
    }
    let read = schema::NodeMetaRef::read_as_root(payload).and_then(schema::NodeMeta::try_from);
    let meta = read.map_err(|error| corrupt(NODE_META, error.to_string()))?;
    if meta.format_version != FORMAT_VERSION {
        return Err(IdentityError::Version(meta.format_version));
    }
    let bytes = |uuid: schema::Uuid| (u128::from(uuid.high) << 64 | u128::from(uuid.low)).to_be_bytes();
    Ok(Identity {
        cluster_id: ClusterId(bytes(meta.cluster_id)),
        node_id: NodeId(meta.node_id),
        directory_id: DirectoryId(bytes(meta.directory_id)),
    })
}

fn encode_incarnation(number: u64) -> Vec<u8> {
    let mut bytes = INCARNATION_MAGIC.to_vec();
    bytes.extend(number.to_le_bytes());
    bytes.extend(crc(&[&bytes]).to_le_bytes());
    bytes
}

fn decode_incarnation(bytes: &[u8]) -> Result<u64, IdentityError> {
    if bytes.len() != 20 || bytes[..8] != *INCARNATION_MAGIC {
        return Err(corrupt(INCARNATION, "it is not an incarnation"));
    }
    if u32_at(bytes, 16) != crc(&[&bytes[..16]]) {
        return Err(corrupt(INCARNATION, "the checksum does not match"));
    }
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[8..16]);
    Ok(u64::from_le_bytes(number))
}

fn crc(parts: &[&[u8]]) -> u32 {
    let mut sum = Crc32c::new();
    parts.iter().for_each(|part| sum.update(part));
    sum.finish()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;
    use crate::sim::{Crash, Random, Sim, SimOptions, Stop};

    fn fresh(node: i32, random: u8) -> Identity {
        Identity {
            cluster_id: ClusterId([random; 16]),
            node_id: NodeId(node),
            directory_id: DirectoryId([random ^ 0xff; 16]),
        }
    }

    #[test]
    fn incarnations_rise_over_crashes_and_the_identity_stays() {
        for seed in 0..300 {
            let mut random = Random::new(seed);
            let mut sim = Sim::new(seed, SimOptions::default());
            let seen = Rc::new(Cell::new((0u64, None::<Identity>)));
            for start in 1..8 {
                sim.crash_after(random.between(1, 24));
                let (disk, seen) = (sim.disk(), Rc::clone(&seen));
                let outcome = sim.run(async move {
                    let identity = identify(&disk, fresh(1, start)).await.expect("usable");
                    let (last, known) = seen.get();
                    assert!(known.is_none_or(|known| known == identity));
                    let incarnation = next_incarnation(&disk).await.expect("usable").0;
                    assert!(incarnation > last);
                    seen.set((incarnation, Some(identity)));
                    disk.create_directory("metadata").await.expect("created");
                    disk.sync_directory("").await.expect("synced");
                });
                assert!(matches!(outcome, Ok(()) | Err(Stop::Crashed)), "seed {seed}: {outcome:?}");
                sim = sim.crash(if random.chance(1, 2) { Crash::Power } else { Crash::Process });
            }
        }
    }

    #[test]
    fn a_folder_that_cannot_be_trusted_is_refused() {
        let sim = Sim::new(1, SimOptions::default());
        let disk = sim.disk();
        sim.run(async move {
            let identity = identify(&disk, fresh(1, 7)).await.expect("made");
            assert_eq!(identify(&disk, fresh(1, 8)).await.expect("known"), identity);
            assert_eq!(next_incarnation(&disk).await.expect("first"), Incarnation(1));
            assert_eq!(next_incarnation(&disk).await.expect("second"), Incarnation(2));
            let other = identify(&disk, fresh(2, 8)).await.expect_err("another node's").to_string();
            assert!(other.contains("belongs to node 1") && other.contains("--node-id 1"), "{other}");

            for position in 0..disk.files()["node.meta"].len() as u64 {
                disk.corrupt("node.meta", position, 1).expect("there");
                assert!(identify(&disk, fresh(1, 8)).await.is_err(), "position {position}");
                disk.corrupt("node.meta", position, 1).expect("there");
            }
            for position in 0..20 {
                disk.corrupt("incarnation", position, 1).expect("there");
                assert!(next_incarnation(&disk).await.is_err(), "position {position}");
                disk.corrupt("incarnation", position, 1).expect("there");
            }
            disk.create_directory("journal").await.expect("created");
            for file in ["incarnation", "node.meta"] {
                disk.remove_file(file).await.expect("removed");
            }
            assert!(matches!(identify(&disk, fresh(1, 8)).await, Err(IdentityError::Missing("node.meta"))));
            assert!(matches!(next_incarnation(&disk).await, Err(IdentityError::Missing("incarnation"))));
        })
        .expect("no crash was asked for");
    }
}

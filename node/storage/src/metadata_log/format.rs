//! The bytes of the metadata log and of its snapshots. All numbers are little-endian.
//!
//! ```text
//! file header (one block)                    frame (at a multiple of 8)
//!  0  magic, 8 bytes                          0  magic, u32
//!  8  version, u32                            4  length of the payload, u32
//! 12  zero, u32                               8  offset of its first record, u64
//! 16  file uuid, 16 bytes                    16  epoch, u64
//! 32  offset of the first record, u64        24  count of records, u32
//! 40  epoch, u64                             28  CRC-32C of the payload
//! 48  CRC-32C of [0, 48)                     32  CRC-32C of the file uuid and of [0, 32)
//! 52  zeros up to 4096                       36  zero, u32
//!                                            40  payload (a FlatBuffer), zeros up to a multiple of 8
//! ```
//!
//! The uuid in the sum makes bytes of another file, and bytes that a client put into a setting, no frame.

use flumen_wire::crc::Crc32c;

use crate::disk::BLOCK;

/// Length of a frame's header.
pub(super) const FRAME_HEADER_LEN: usize = 40;
/// Longest payload of a frame.
pub(super) const PAYLOAD_BYTES_MAX: usize = 32 << 20;
/// First version of both files, and the only one.
const VERSION: u32 = 1;

const LOG_MAGIC: [u8; 8] = *b"FLMNMLOG";
const SNAPSHOT_MAGIC: [u8; 8] = *b"FLMNMSNP";
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"FLMF");

/// Which of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Log,
    Snapshot,
}

impl FileKind {
    fn magic(self) -> [u8; 8] {
        match self {
            FileKind::Log => LOG_MAGIC,
            FileKind::Snapshot => SNAPSHOT_MAGIC,
        }
    }
}

/// What the first block of a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) uuid: [u8; 16],
    /// In a log, offset of the first record; in a snapshot, how many records it stands for.
    pub(super) offset: u64,
    pub(super) epoch: u64,
}

impl FileHeader {
    pub(super) fn encode(&self, kind: FileKind) -> Vec<u8> {
        let mut block = Vec::with_capacity(BLOCK);
        block.extend(kind.magic());
        block.extend(VERSION.to_le_bytes());
        block.extend([0; 4]);
        block.extend(self.uuid);
        block.extend(self.offset.to_le_bytes());
        block.extend(self.epoch.to_le_bytes());
        let sum = crc(&[&block]);
        block.extend(sum.to_le_bytes());
        block.resize(BLOCK, 0);
        block
    }

    /// Reads a header; the error says what is wrong with it.
    pub(super) fn decode(bytes: &[u8], kind: FileKind) -> Result<FileHeader, &'static str> {
        let Some(block) = bytes.get(..BLOCK) else { return Err("the file is shorter than its header") };
        if block[..8] != kind.magic() {
            return Err("this is not a metadata file");
        }
        if u32_at(block, 48) != crc(&[&block[..48]]) {
            return Err("the header's checksum does not match");
        }
        if u32_at(block, 8) != VERSION {
            return Err("the file is of a version that this release does not know");
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[16..32]);
        Ok(FileHeader { uuid, offset: u64_at(block, 32), epoch: u64_at(block, 40) })
    }
}

/// What a frame's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Offset of its first record.
    pub(super) offset: u64,
    pub(super) epoch: u64,
    /// How many records it holds.
    pub(super) count: u32,
}

impl FrameHeader {
    /// The offset after its last record.
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.count)
    }
}

/// A whole frame, padded.
pub(super) fn encode_frame(uuid: &[u8; 16], header: FrameHeader, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() <= PAYLOAD_BYTES_MAX);
    let mut frame = Vec::with_capacity((FRAME_HEADER_LEN + payload.len()).next_multiple_of(8));
    frame.extend(FRAME_MAGIC.to_le_bytes());
    frame.extend((payload.len() as u32).to_le_bytes());
    frame.extend(header.offset.to_le_bytes());
    frame.extend(header.epoch.to_le_bytes());
    frame.extend(header.count.to_le_bytes());
    frame.extend(crc(&[payload]).to_le_bytes());
    let sum = crc(&[uuid, &frame]);
    frame.extend(sum.to_le_bytes());
    frame.extend([0; 4]);
    frame.extend(payload);
    frame.resize(frame.len().next_multiple_of(8), 0);
    frame
}

/// A frame that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) header: FrameHeader,
    pub(super) payload: &'a [u8],
    /// Where it begins in the file.
    pub(super) position: usize,
    /// Where it ends, padding included.
    pub(super) end: usize,
}

/// The frame at `position`, if a whole and intact one is there.
pub(super) fn frame_at<'a>(bytes: &'a [u8], uuid: &[u8; 16], position: usize) -> Option<Frame<'a>> {
    let header = bytes.get(position..position + FRAME_HEADER_LEN)?;
    if u32_at(header, 0) != FRAME_MAGIC || u32_at(header, 32) != crc(&[uuid, &header[..32]]) {
        return None;
    }
    let len = u32_at(header, 4) as usize;
    let start = position + FRAME_HEADER_LEN;
    let payload = bytes.get(start..start.checked_add(len)?)?;
    let end = (start + len).next_multiple_of(8);
    if len > PAYLOAD_BYTES_MAX || end > bytes.len() || u32_at(header, 28) != crc(&[payload]) {
        return None;
    }
    let header =
        FrameHeader { offset: u64_at(header, 8), epoch: u64_at(header, 16), count: u32_at(header, 24) };
    header.offset.checked_add(u64::from(header.count))?;
    Some(Frame { header, payload, position, end })
}

/// How the frames of a file end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Zeros follow, or nothing.
    Clean,
    /// What follows is no frame, nor is there one behind it: the last write did not complete.
    Torn,
    /// What follows is no frame, but there is one behind it: something that was durable is damaged.
    Corrupt,
}

/// All frames of a file, in order, from its second block; where they end, and how.
pub(super) fn scan<'a>(bytes: &'a [u8], uuid: &[u8; 16]) -> (Vec<Frame<'a>>, usize, Tail) {
    let mut frames = Vec::new();
    let mut position = BLOCK.min(bytes.len());
    while let Some(frame) = frame_at(bytes, uuid, position) {
        position = frame.end;
        frames.push(frame);
    }
    let tail = if bytes[position..].iter().all(|byte| *byte == 0) {
        Tail::Clean
    } else if (position + 8..bytes.len()).step_by(8).any(|later| frame_at(bytes, uuid, later).is_some()) {
        Tail::Corrupt
    } else {
        Tail::Torn
    };
    (frames, position, tail)
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

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

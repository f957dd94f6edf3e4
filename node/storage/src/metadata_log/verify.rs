//! The metadata log of a node that does not run, looked at and left as it is.

use std::io;

use flumen_core::metadata::Image;

use super::recovery::{Listing, image_of, replay_log};
use super::{MetadataLogError, log_path, snapshot_path};

/// Reads what a start would read: the newest snapshot and the log behind it. `names` are those of the folder,
/// `read` gives a file's bytes by its path from the data folder. Returns what they come to. A tail that the next start
/// would cut is no error.
pub fn verify(
    names: &[String],
    mut read: impl FnMut(&str) -> io::Result<Vec<u8>>,
) -> Result<Image, MetadataLogError> {
    let mut bytes_of =
        |file: String| read(&file).map_err(|error| MetadataLogError::Io { file: file.clone(), error });
    let listing = Listing::of(names.iter().map(String::as_str));
    let mut image = match listing.snapshots.last() {
        Some(offset) => image_of(*offset, &bytes_of(snapshot_path(*offset))?)?,
        None => Image::default(),
    };
    let base = listing.log_for(image.offset())?;
    replay_log(base, u64::MAX, &bytes_of(log_path(base))?, &mut image)?;
    Ok(image)
}

//! The contract of the disk, and glommio's traps, on a real file system.
use super::*;
use crate::runtime::{Settings, run_once, spawn};
use flumen_storage::disk::{Buffer as _, File as _};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder of this test's own, removed when it is over.
struct Folder(PathBuf);

impl Folder {
    fn new(under: &Path) -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("flumen-disk-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = under.join(name);
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where direct I/O is likely: the target folder of the build.
fn on_disk() -> Folder {
    Folder::new(
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in the workspace").join("target").as_path(),
    )
}

fn with_disk<F, Fut, T>(folder: &Folder, faults: &'static str, test: F) -> T
where
    F: Fn(GlommioDisk) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let root = folder.0.clone();
    let probe = root.join(PROBE_FILE);
    std::fs::write(&probe, [0; BLOCK]).expect("a probe file");
    let settings =
        Settings { io_memory: 1 << 20, ring_depth: 64, probe_file: Some(probe), ..Settings::default() };
    run_once(&settings, move || {
        let mut disk = GlommioDisk::mount(&root, true, Arc::default());
        disk.faults = Faults::new(faults, None);
        test(disk)
    })
    .expect("an executor")
}

const NEW: OpenMode = OpenMode { create_new: true, write: true, synchronous: false };
const READ: OpenMode = OpenMode { create_new: false, write: false, synchronous: false };

fn filled(disk: &GlommioDisk, blocks: usize, first: u8) -> Rc<Buffer> {
    let mut buffer = disk.allocate(blocks * BLOCK);
    for (index, block) in buffer.as_mut_slice().chunks_mut(BLOCK).enumerate() {
        block.fill(first + index as u8);
    }
    Rc::new(buffer)
}

async fn write_and_read_back(disk: GlommioDisk) {
    let file = disk.open("a", NEW).await.expect("created");
    assert_eq!(disk.open("a", NEW).await.err().expect("exists").kind(), io::ErrorKind::AlreadyExists);
    file.write_at(filled(&disk, 3, 1), BLOCK as u64).await.expect("written");
    file.sync().await.expect("synced");
    let (buffer, content) = file.read_at(0, 8 * BLOCK).await.expect("read");
    assert_eq!(content, 4 * BLOCK);
    let firsts: Vec<u8> = buffer.as_slice()[..content].chunks(BLOCK).map(|block| block[7]).collect();
    assert_eq!(firsts, [0, 1, 2, 3]);
    let synchronous = OpenMode { create_new: true, write: true, synchronous: true };
    let journal = disk.open("journal", synchronous).await.expect("created");
    journal.preallocate(1 << 20).await.expect("room");
    assert_eq!(std::fs::metadata(disk.path("journal")).expect("there").len(), 1 << 20);
    journal.write_at(filled(&disk, 2, 9), 0).await.expect("written");
    let (buffer, content) = journal.read_at(0, 4 * BLOCK).await.expect("read");
    assert_eq!((content, buffer.as_slice()[0], buffer.as_slice()[2 * BLOCK]), (4 * BLOCK, 9, 0));
}

#[test]
fn what_is_written_is_read_back() {
    with_disk(&on_disk(), "", write_and_read_back);
}

#[test]
fn a_file_system_without_direct_io_works_too() {
    let tmpfs = Path::new("/dev/shm");
    if crate::sys::file_system(tmpfs).is_ok_and(|kind| kind.is_tmpfs()) {
        with_disk(&Folder::new(tmpfs), "", write_and_read_back);
    }
    // And one that glommio would ask for direct I/O, in vain.
    with_disk(&on_disk(), "", |mut disk| {
        disk.direct = false;
        write_and_read_back(disk)
    });
}

#[test]
fn a_read_ends_where_the_file_ends_and_shows_nothing_else() {
    with_disk(&on_disk(), "", |disk| async move {
        // Memory that the next buffers are made of holds something recognisable.
        drop((0..16).map(|_| filled(&disk, 16, 0xaa)).collect::<Vec<_>>());
        disk.write_file("short", &[7; 100], false).await.expect("written");
        disk.write_file("blocks", &[7; 2 * BLOCK], false).await.expect("written");
        disk.sync_all().await.expect("synced");
        for (path, len) in [("short", 100), ("blocks", 2 * BLOCK)] {
            let file = disk.open(path, READ).await.expect("opened");
            let (buffer, content) = file.read_at(0, 4 * BLOCK).await.expect("read");
            assert_eq!(content, len, "{path}");
            assert!(buffer.as_slice()[..content].iter().all(|&byte| byte == 7));
            assert!(buffer.as_slice()[content..].iter().all(|&byte| byte == 0), "{path}: residue");
            let (_, content) = file.read_at(4 * BLOCK as u64, BLOCK).await.expect("read");
            assert_eq!(content, 0, "{path}: past the end");
        }
    });
}

/// The trap needs the first file of a fresh thread to be empty and open for both; the probe file comes before it.
#[test]
fn an_empty_first_file_does_not_make_the_device_pollable() {
    with_disk(&on_disk(), "", |disk| async move {
        let file = disk.open("empty", NEW).await.expect("created");
        file.write_at(filled(&disk, 1, 3), 0).await.expect("written");
        let (_, content) = file.read_at(0, BLOCK).await.expect("no EOPNOTSUPP");
        assert_eq!(content, BLOCK);
    });
}

#[test]
fn a_short_write_is_continued_and_one_of_nothing_is_an_error() {
    with_disk(&on_disk(), "write:a:short=9000:times=3;write:b:short=100", |disk| async move {
        let file = disk.open("a", NEW).await.expect("created");
        // 9,000 bytes are two blocks and a bit, which does not end at a block: the buffered handle takes that.
        let Handle::Direct(_) = &file.handle else { panic!("direct I/O in this folder") };
        drop(file);
        let mut buffered = disk.clone();
        buffered.direct = false;
        let file = buffered.open("a", OpenMode { create_new: false, ..NEW }).await.expect("opened");
        file.write_at(filled(&disk, 8, 1), 0).await.expect("written in pieces");
        let (buffer, content) = file.read_at(0, 8 * BLOCK).await.expect("read");
        assert_eq!(content, 8 * BLOCK);
        assert!(
            buffer
                .as_slice()
                .chunks(BLOCK)
                .enumerate()
                .all(|(i, block)| block.iter().all(|&b| b == 1 + i as u8))
        );
        let file = buffered.open("b", NEW).await.expect("created");
        let error = file.write_at(filled(&disk, 1, 1), 0).await.expect_err("nothing whole is written");
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    });
}

#[test]
fn a_buffer_in_flight_is_not_changed_by_its_owner() {
    with_disk(&on_disk(), "", |disk| async move {
        let mut buffer = disk.allocate(BLOCK);
        buffer.as_mut_slice().fill(1);
        let in_flight = buffer.dma();
        buffer.as_mut_slice().fill(2);
        assert!(in_flight.as_bytes().iter().all(|&byte| byte == 1));
        buffer.truncate(BLOCK);
        assert!(buffer.as_slice().iter().all(|&byte| byte == 2));
    });
}

#[test]
fn folders_and_names() {
    with_disk(&on_disk(), "", |disk| async move {
        disk.create_directory("t-0").await.expect("created");
        disk.create_directory("t-0").await.expect("no error when it exists");
        disk.write_file("t-0/x", b"one", true).await.expect("written");
        disk.rename("t-0/x", "t-0/y").await.expect("renamed");
        disk.sync_directory("t-0").await.expect("synced");
        assert_eq!(disk.read_file("t-0/y", 3).await.expect("read"), b"one");
        let longer = disk.read_file("t-0/y", 2).await.expect_err("too long");
        assert_eq!(longer.kind(), io::ErrorKind::InvalidData);
        let missing = disk.read_file("t-0/x", 2).await.expect_err("gone");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(missing.to_string().contains("t-0/x"), "{missing}");
        let mut entries = disk.list("").await.expect("listed");
        entries.retain(|entry| entry.name != PROBE_FILE);
        assert_eq!(entries, [DirectoryEntry { name: "t-0".into(), len: 0, is_directory: true }]);
        assert_eq!(disk.list("t-0").await.expect("listed")[0].len, 3);
        let file = disk.open("t-0/y", OpenMode { write: true, ..READ }).await.expect("opened");
        file.truncate(1).await.expect("cut");
        assert_eq!(disk.read_file("t-0/y", 3).await.expect("read"), b"o");
        disk.remove_file("t-0/y").await.expect("removed");
        disk.remove_directory("t-0").await.expect("removed");
        let missing = disk.open("t-0/y", READ).await.err().expect("gone");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    });
}

/// glommio looks at the path again after the open and panics where it is gone by then.
#[test]
fn opening_what_is_being_removed_is_an_error_at_most() {
    with_disk(&on_disk(), "", |disk| async move {
        for _ in 0..200 {
            disk.create_directory("d").await.expect("created");
            disk.write_file("d/f", &[1; BLOCK], false).await.expect("written");
            let remover = disk.clone();
            let removal = spawn("removal", async move { remover.rename("d", "d-delete").await });
            if let Err(error) = disk.open("d/f", READ).await {
                assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
            }
            removal.await.expect("it ran").expect("renamed");
            disk.remove_directory("d-delete").await.expect("removed");
        }
    });
}

#[test]
fn faults_come_when_told() {
    with_disk(&on_disk(), "sync:log:EIO:after=1:times=1;preallocate::ENOSPC", |disk| async move {
        let file = disk.open("log", NEW).await.expect("created");
        file.sync().await.expect("the first goes well");
        file.sync().await.expect_err("the second does not");
        file.sync().await.expect("the third does");
        let error = file.preallocate(1 << 20).await.expect_err("full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    });
    assert!(std::panic::catch_unwind(|| Faults::new("write:x", None)).is_err());
    assert!(std::panic::catch_unwind(|| Faults::new("chew:x:EIO", None)).is_err());
}

//! `disk::Disk` and `disk::File` on the simulated machine.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::Random;
use super::executor::{Event, Slot, State, World};
use super::tree::{Inode, Tree};
use crate::disk::{BLOCK, Buffer, DirectoryEntry, Disk, File, OpenMode};

/// Memory of the simulated disk. Fresh memory holds 0xA5, so that padding which nobody zeroed is seen.
pub struct SimBuffer(Vec<u8>);

impl Buffer for SimBuffer {
    fn as_slice(&self) -> &[u8] {
        &self.0
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.0
    }

    fn truncate(&mut self, len: usize) {
        assert!(len.is_multiple_of(BLOCK) && len <= self.0.len(), "a buffer is cut to whole blocks");
        self.0.truncate(len);
    }
}

/// What an I/O is, for faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `write_at`, `write_file`.
    Write,
    /// `read_at`, `read_file`.
    Read,
    /// `sync`, `sync_directory`, `sync_all`, the sync of `write_file`.
    Sync,
    /// `preallocate`, `truncate`.
    Length,
    /// `open`, `create_directory`, `list`, `rename`, removals.
    Name,
}

/// An error to come.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Part of the path (as it was when the file was opened); `sync_all` has the path `sync_all`.
    pub path_contains: String,
    /// What fails.
    pub operation: Operation,
    /// How many that match go well before.
    pub skip: u32,
    /// How many fail then.
    pub count: u32,
    /// How.
    pub kind: io::ErrorKind,
}

type WholeIo = Box<dyn FnOnce(&mut Tree, Outcome<'_>)>;

/// An I/O between submission and completion.
pub(super) enum InFlight {
    Write(WriteInFlight),
    /// Happens at its completion.
    Whole(WholeIo),
}

pub(super) struct WriteInFlight {
    inode: Inode,
    path: Rc<str>,
    position: u64,
    buffer: Rc<SimBuffer>,
    synchronous: bool,
    slot: Rc<Slot<io::Result<()>>>,
}

/// How a whole I/O ends.
pub(super) enum Outcome<'a> {
    Done,
    Failed(io::ErrorKind, &'a mut Random),
    /// A crash came, and it has happened nevertheless, perhaps not all of it.
    Interrupted(&'a mut Random),
}

fn injected(kind: io::ErrorKind) -> io::Error {
    io::Error::new(kind, "injected by the simulated disk")
}

impl State {
    /// Whether this I/O is to fail.
    fn fault(&mut self, path: &str, operation: Operation) -> Option<io::ErrorKind> {
        for fault in &mut self.faults {
            if fault.operation == operation && path.contains(&fault.path_contains) {
                if fault.skip > 0 {
                    fault.skip -= 1;
                } else if fault.count > 0 {
                    fault.count -= 1;
                    return Some(fault.kind);
                }
            }
        }
        None
    }

    fn delay(&mut self, bytes: usize) -> Duration {
        let transfer = bytes as u64 / 2;
        let nanos = match self.random.below(64) {
            0 => self.random.between(1_000_000, 20_000_000),
            1..=8 => self.random.between(200_000, 1_000_000),
            _ => self.random.between(10_000, 200_000),
        };
        Duration::from_nanos(nanos + transfer)
    }
}

impl InFlight {
    pub(super) fn complete(self, state: &mut State) {
        match self {
            InFlight::Write(write) => write.complete(state),
            InFlight::Whole(run) => {
                state.io_step(format_args!("done"));
                run(&mut state.tree, Outcome::Done);
            }
        }
    }

    /// A crash finds it in flight.
    pub(super) fn interrupt(self, tree: &mut Tree, random: &mut Random) {
        match self {
            InFlight::Write(write) => write.apply_in_part(tree, random),
            InFlight::Whole(run) => {
                if random.chance(1, 2) {
                    run(tree, Outcome::Interrupted(random));
                }
            }
        }
    }
}

impl WriteInFlight {
    fn blocks(&self) -> std::ops::Range<u64> {
        let first = self.position / BLOCK as u64;
        first..first + (self.buffer.0.len() / BLOCK) as u64
    }

    fn complete(self, state: &mut State) {
        state.io_step(format_args!("written {} {} {}", self.path, self.position, self.buffer.0.len()));
        for block in self.blocks() {
            state.blocks_in_flight.remove(&(self.inode, block));
        }
        if let Some(kind) = state.fault(&self.path, Operation::Write) {
            state.note(format_args!("and has failed"));
            let State { tree, random, .. } = state;
            self.apply_in_part(tree, random);
            self.slot.fill(Err(injected(kind)));
            return;
        }
        let blocks = self.blocks();
        let missing = state.tree.content(self.inode).missing_space(blocks.start, blocks.end);
        if let Err(full) = state.tree.reserve(missing) {
            self.slot.fill(Err(full));
            return;
        }
        let sequence = state.tree.mark();
        let content = state.tree.content(self.inode);
        content.write(sequence, self.position, &self.buffer.0, || true);
        if self.synchronous {
            content.sync_range(sequence, self.position, self.buffer.0.len() as u64);
        }
        self.slot.fill(Ok(()));
    }

    /// Each sector is written or not; none of it is durable.
    fn apply_in_part(&self, tree: &mut Tree, random: &mut Random) {
        let sequence = tree.mark();
        let whole = random.below(3);
        let keep = || match whole {
            0 => true,
            1 => false,
            _ => random.chance(1, 2),
        };
        if whole != 1 {
            tree.content(self.inode).write(sequence, self.position, &self.buffer.0, keep);
        }
    }
}

/// The simulated disk, as `disk::Disk`, and what a test may do to it.
#[derive(Clone)]
pub struct SimDisk {
    world: Rc<World>,
}

impl SimDisk {
    pub(super) fn new(world: Rc<World>) -> SimDisk {
        SimDisk { world }
    }

    /// Runs `future` as a task of the machine.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.world.spawn(Box::pin(future));
    }

    /// Makes I/O fail.
    pub fn inject(&self, fault: Fault) {
        self.world.state.borrow_mut().faults.push(fault);
    }

    /// Lets all I/O go well again.
    pub fn clear_faults(&self) {
        self.world.state.borrow_mut().faults.clear();
    }

    /// Sets the space of the disk, in bytes.
    pub fn set_capacity(&self, bytes: u64) {
        self.world.state.borrow_mut().tree.set_capacity(bytes);
    }

    /// Bytes of space taken.
    pub fn allocated(&self) -> u64 {
        self.world.state.borrow().tree.allocated_blocks() * BLOCK as u64
    }

    /// Flips the bits of `mask` in one byte of a file, on the medium.
    pub fn corrupt(&self, path: &str, position: u64, mask: u8) -> io::Result<()> {
        self.world.state.borrow_mut().tree.corrupt(path, position, mask)
    }

    /// All files with their content, as a reader sees them, by path.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        fn walk(tree: &mut Tree, path: &str, out: &mut BTreeMap<String, Vec<u8>>) {
            for entry in tree.list(path).unwrap_or_default() {
                let child = if path.is_empty() { entry.name } else { format!("{path}/{}", entry.name) };
                if entry.is_directory {
                    walk(tree, &child, out);
                } else if let Ok(bytes) = tree.read_file(&child, u64::MAX) {
                    out.insert(child, bytes);
                }
            }
        }
        let mut out = BTreeMap::new();
        walk(&mut self.world.state.borrow_mut().tree, "", &mut out);
        out
    }

    /// Adds a line to the trace.
    pub fn note(&self, line: std::fmt::Arguments<'_>) {
        self.world.state.borrow_mut().note(line);
    }

    /// Submits an I/O that happens as a whole, at its completion. `fail` runs instead where a fault says so.
    async fn whole<R: 'static>(
        &self,
        operation: Operation,
        path: &str,
        what: std::fmt::Arguments<'_>,
        bytes: usize,
        run: impl FnOnce(&mut Tree, Outcome<'_>) -> io::Result<R> + 'static,
    ) -> io::Result<R> {
        let slot = Slot::new();
        {
            let mut state = self.world.state.borrow_mut();
            if !state.dead {
                state.io_step(what);
                let fault = state.fault(path, operation);
                if fault.is_some() {
                    state.note(format_args!("which will fail"));
                }
                let delay = state.delay(bytes);
                let result = slot.clone();
                let mut random = state.random.fork();
                let complete = move |tree: &mut Tree, outcome: Outcome<'_>| {
                    let outcome = match fault {
                        Some(kind) => Outcome::Failed(kind, &mut random),
                        None => outcome,
                    };
                    result.fill(run(tree, outcome));
                };
                state.schedule(delay, Event::Io(InFlight::Whole(Box::new(complete))));
            }
        }
        slot.wait().await
    }

    async fn plain<R: 'static>(
        &self,
        operation: Operation,
        path: &str,
        what: &str,
        run: impl FnOnce(&mut Tree, &str) -> io::Result<R> + 'static,
    ) -> io::Result<R> {
        let owned = path.to_string();
        self.whole(operation, path, format_args!("{what} {path}"), 0, move |tree, outcome| match outcome {
            Outcome::Done | Outcome::Interrupted(_) => run(tree, &owned),
            Outcome::Failed(kind, _) => Err(injected(kind)),
        })
        .await
    }
}

impl Disk for SimDisk {
    type Buffer = SimBuffer;
    type File = SimFile;

    fn allocate(&self, len: usize) -> SimBuffer {
        assert!(len.is_multiple_of(BLOCK), "memory for direct I/O comes in whole blocks");
        SimBuffer(vec![0xA5; len])
    }

    async fn open(&self, path: &str, mode: OpenMode) -> io::Result<SimFile> {
        assert!(
            mode.write || !(mode.create_new || mode.synchronous),
            "{path}: opened to create but not to write"
        );
        let handle = Rc::new(RefCell::new(None));
        let opened = Opened { world: self.world.clone(), inode: handle.clone() };
        let inode = self
            .plain(
                Operation::Name,
                path,
                if mode.create_new { "create" } else { "open" },
                move |tree, path| {
                    let inode = tree.open(path, mode.create_new)?;
                    *handle.borrow_mut() = Some(inode);
                    Ok(inode)
                },
            )
            .await?;
        Ok(SimFile { world: self.world.clone(), inode, path: path.into(), mode, _opened: opened })
    }

    async fn read_file(&self, path: &str, len_max: u64) -> io::Result<Vec<u8>> {
        self.plain(Operation::Read, path, "read_file", move |tree, path| tree.read_file(path, len_max)).await
    }

    async fn write_file(&self, path: &str, content: &[u8], sync: bool) -> io::Result<()> {
        self.world.state.borrow_mut().note_bytes(content);
        let (bytes, owned) = (content.to_vec(), path.to_string());
        let what = format_args!("write_file {path} {}", content.len());
        self.whole(Operation::Write, path, what, content.len(), move |tree, outcome| match outcome {
            Outcome::Done => tree.write_file(&owned, &bytes),
            Outcome::Interrupted(random) => tree.write_file(&owned, &bytes[..random.index(bytes.len() + 1)]),
            Outcome::Failed(kind, random) => {
                tree.write_file(&owned, &bytes[..random.index(bytes.len() + 1)])?;
                Err(injected(kind))
            }
        })
        .await?;
        if !sync {
            return Ok(());
        }
        let file = self.open(path, OpenMode::default()).await?;
        file.sync().await
    }

    async fn create_directory(&self, path: &str) -> io::Result<()> {
        self.plain(Operation::Name, path, "mkdir", |tree, path| tree.create_directory(path)).await
    }

    async fn list(&self, path: &str) -> io::Result<Vec<DirectoryEntry>> {
        let mut entries = self.plain(Operation::Name, path, "list", |tree, path| tree.list(path)).await?;
        // "In no order": whoever relies on one is found out.
        let mut state = self.world.state.borrow_mut();
        for i in (1..entries.len()).rev() {
            entries.swap(i, state.random.index(i + 1));
        }
        Ok(entries)
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let target = to.to_string();
        self.plain(Operation::Name, from, "rename", move |tree, from| tree.rename(from, &target)).await
    }

    async fn remove_file(&self, path: &str) -> io::Result<()> {
        self.plain(Operation::Name, path, "unlink", |tree, path| tree.remove_file(path)).await
    }

    async fn remove_directory(&self, path: &str) -> io::Result<()> {
        self.plain(Operation::Name, path, "rmdir", |tree, path| tree.remove_directory(path)).await
    }

    async fn sync_directory(&self, path: &str) -> io::Result<()> {
        let mark = self.world.state.borrow_mut().tree.mark();
        self.plain(Operation::Sync, path, "sync_directory", move |tree, path| tree.sync_directory(path, mark))
            .await
    }

    async fn sync_all(&self) -> io::Result<()> {
        let (mark, takes) = {
            let mut state = self.world.state.borrow_mut();
            (state.tree.mark(), state.sync_all_takes)
        };
        self.sleep(takes).await;
        self.whole(Operation::Sync, "sync_all", format_args!("sync_all"), 0, move |tree, outcome| {
            match outcome {
                Outcome::Done | Outcome::Interrupted(_) => match tree.sync_all(mark) {
                    true => Ok(()),
                    false => Err(injected(io::ErrorKind::Other)),
                },
                Outcome::Failed(kind, random) => {
                    tree.fail_sync_all(mark, random);
                    Err(injected(kind))
                }
            }
        })
        .await
    }

    async fn is_laid_out(&self, _path: &str) -> io::Result<bool> {
        Ok(false)
    }

    async fn sleep(&self, time: Duration) {
        let deadline = self.world.state.borrow().now + time;
        std::future::poll_fn(|context| {
            let mut state = self.world.state.borrow_mut();
            if state.now >= deadline {
                return std::task::Poll::Ready(());
            }
            let left = deadline - state.now;
            state.schedule(left, Event::Wake(context.waker().clone()));
            std::task::Poll::Pending
        })
        .await;
    }

    fn now_ms(&self) -> i64 {
        let state = self.world.state.borrow();
        state.start_ms + state.now.as_millis() as i64
    }

    fn monotonic(&self) -> Duration {
        self.world.state.borrow().now
    }
}

/// An inode that an `open` has taken, from the moment the disk did so: closing happens also where the future
/// of `open` is dropped in between.
struct Opened {
    world: Rc<World>,
    inode: Rc<RefCell<Option<Inode>>>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        // While a panic unwinds, the state may be borrowed; then nobody counts handles any more.
        if let (Some(inode), Ok(mut state)) = (*self.inode.borrow(), self.world.state.try_borrow_mut())
            && !state.dead
        {
            state.tree.close(inode);
        }
    }
}

/// An open file of the simulated disk.
pub struct SimFile {
    world: Rc<World>,
    inode: Inode,
    path: Rc<str>,
    mode: OpenMode,
    _opened: Opened,
}

impl SimFile {
    fn disk(&self) -> SimDisk {
        SimDisk::new(self.world.clone())
    }

    fn check_aligned(&self, position: u64, len: usize) {
        assert!(
            position.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK) && len > 0,
            "{}: misaligned direct I/O of {len} bytes at {position}",
            self.path
        );
    }

    fn check_writable(&self) {
        assert!(self.mode.write, "{}: changed through a read-only handle", self.path);
    }
}

impl File for SimFile {
    type Buffer = SimBuffer;

    async fn write_at(&self, buffer: Rc<SimBuffer>, position: u64) -> io::Result<()> {
        self.check_aligned(position, buffer.0.len());
        self.check_writable();
        let slot = Slot::new();
        {
            let mut state = self.world.state.borrow_mut();
            if !state.dead {
                state.io_step(format_args!("write {} {position} {}", self.path, buffer.0.len()));
                state.note_bytes(&buffer.0);
                let delay = state.delay(buffer.0.len());
                let write = WriteInFlight {
                    inode: self.inode,
                    path: self.path.clone(),
                    position,
                    buffer,
                    synchronous: self.mode.synchronous,
                    slot: slot.clone(),
                };
                for block in write.blocks() {
                    let free = state.blocks_in_flight.insert((self.inode, block));
                    assert!(free, "{}: two writes of block {block} in flight at once", self.path);
                }
                state.schedule(delay, Event::Io(InFlight::Write(write)));
            }
        }
        slot.wait().await
    }

    async fn read_at(&self, position: u64, len: usize) -> io::Result<(SimBuffer, usize)> {
        self.check_aligned(position, len);
        let (disk, inode) = (self.disk(), self.inode);
        let mut buffer = disk.allocate(len);
        let what = format_args!("read {} {position} {len}", self.path);
        disk.whole(Operation::Read, &self.path, what, len, move |tree, outcome| match outcome {
            Outcome::Failed(kind, _) => Err(injected(kind)),
            _ => {
                let content = tree.content(inode).read(position, &mut buffer.0);
                Ok((buffer, content))
            }
        })
        .await
    }

    async fn sync(&self) -> io::Result<()> {
        let mark = self.world.state.borrow_mut().tree.mark();
        let inode = self.inode;
        let what = format_args!("sync {}", self.path);
        self.disk()
            .whole(Operation::Sync, &self.path, what, 0, move |tree, outcome| match outcome {
                Outcome::Failed(kind, random) => {
                    tree.content(inode).sync_failed(mark, random);
                    Err(injected(kind))
                }
                _ if tree.content(inode).take_lost() => Err(injected(io::ErrorKind::Other)),
                _ => {
                    tree.content(inode).sync(mark);
                    Ok(())
                }
            })
            .await
    }

    async fn preallocate(&self, len: u64) -> io::Result<()> {
        self.check_writable();
        let inode = self.inode;
        let what = format_args!("preallocate {} {len}", self.path);
        self.disk()
            .whole(Operation::Length, &self.path, what, 0, move |tree, outcome| {
                if let Outcome::Failed(kind, _) = outcome {
                    return Err(injected(kind));
                }
                let missing = tree.content(inode).missing_space(0, len.div_ceil(BLOCK as u64));
                tree.reserve(missing)?;
                let sequence = tree.mark();
                tree.content(inode).preallocate(sequence, len);
                Ok(())
            })
            .await
    }

    async fn truncate(&self, len: u64) -> io::Result<()> {
        self.check_writable();
        let inode = self.inode;
        let what = format_args!("truncate {} {len}", self.path);
        self.disk()
            .whole(Operation::Length, &self.path, what, 0, move |tree, outcome| {
                if let Outcome::Failed(kind, _) = outcome {
                    return Err(injected(kind));
                }
                let sequence = tree.mark();
                tree.content(inode).set_len(sequence, len);
                Ok(())
            })
            .await
    }
}

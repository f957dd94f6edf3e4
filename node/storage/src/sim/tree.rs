//! Directories and files of the simulated disk: names, what of them is durable, and what a crash leaves.
//!
//! A directory has the names that processes see (`view`), the names on the medium (`base`), and the changes
//! between (`pending`), which `sync_directory` moves over. Syncing a file does not make its name durable.
//! At a power failure either a prefix of a directory's changes survives (a journalled file system), or each
//! change on its own, except that a change depends on every earlier one of the same name.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::Random;
use super::content::Content;
use crate::disk::DirectoryEntry;

pub(super) type Inode = u64;
const ROOT: Inode = 0;

#[derive(Clone, Debug)]
enum Change {
    Link { name: String, inode: Inode },
    Unlink { name: String },
    Rename { from: String, to: String },
}

#[derive(Clone, Debug, Default)]
struct Directory {
    view: BTreeMap<String, Inode>,
    base: BTreeMap<String, Inode>,
    pending: Vec<(u64, Change)>,
}

#[derive(Clone, Debug)]
enum Node {
    Directory(Directory),
    File(Content),
}

/// All names and files of one disk.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    nodes: BTreeMap<Inode, Node>,
    next_inode: Inode,
    handles: BTreeMap<Inode, usize>,
    /// A sync of everything has failed in this life.
    sync_all_failed: bool,
    sequence: u64,
    capacity_blocks: u64,
}

fn apply(names: &mut BTreeMap<String, Inode>, change: &Change) {
    match change {
        Change::Link { name, inode } => {
            names.insert(name.clone(), *inode);
        }
        Change::Unlink { name } => {
            names.remove(name);
        }
        Change::Rename { from, to } => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

impl Directory {
    fn push(&mut self, sequence: u64, change: Change) {
        apply(&mut self.view, &change);
        self.pending.push((sequence, change));
    }

    fn sync(&mut self, mark: u64) {
        let count = self.pending.partition_point(|(sequence, _)| *sequence < mark);
        for (_, change) in self.pending.drain(..count) {
            apply(&mut self.base, &change);
        }
    }

    fn power_failure(&mut self, random: &mut Random) {
        let pending = std::mem::take(&mut self.pending);
        let prefix = random.chance(1, 2).then(|| random.index(pending.len() + 1));
        let mut lost: BTreeSet<String> = BTreeSet::new();
        for (i, (_, change)) in pending.iter().enumerate() {
            let names: Vec<&String> = match change {
                Change::Link { name, .. } | Change::Unlink { name } => vec![name],
                Change::Rename { from, to } => vec![from, to],
            };
            let keep = match prefix {
                Some(kept) => i < kept,
                None => random.chance(1, 2) && !names.iter().any(|name| lost.contains(*name)),
            };
            if keep {
                apply(&mut self.base, change);
            } else {
                lost.extend(names.into_iter().cloned());
            }
        }
        self.view = self.base.clone();
    }
}

fn not_found(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{path}: not found"))
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Tree {
    pub(super) fn new(capacity: u64) -> Tree {
        let nodes = BTreeMap::from([(ROOT, Node::Directory(Directory::default()))]);
        let capacity_blocks = capacity / crate::disk::BLOCK as u64;
        Tree {
            nodes,
            next_inode: 1,
            handles: BTreeMap::new(),
            sync_all_failed: false,
            sequence: 1,
            capacity_blocks,
        }
    }

    /// A number greater than that of everything that has completed so far.
    pub(super) fn mark(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(super) fn set_capacity(&mut self, bytes: u64) {
        self.capacity_blocks = bytes / crate::disk::BLOCK as u64;
    }

    /// Blocks taken by files that have a name or are open.
    pub(super) fn allocated_blocks(&self) -> u64 {
        let named = self.named();
        let live = |inode: &Inode| named.contains(inode) || self.handles.contains_key(inode);
        self.nodes
            .iter()
            .map(|(inode, node)| match node {
                Node::File(content) if live(inode) => content.allocated(),
                _ => 0,
            })
            .sum()
    }

    fn named(&self) -> BTreeSet<Inode> {
        let directories = self.nodes.values().filter_map(|node| match node {
            Node::Directory(directory) => Some(directory),
            Node::File(_) => None,
        });
        directories.flat_map(|directory| directory.view.values().copied()).collect()
    }

    fn lookup(&self, path: &str) -> io::Result<Inode> {
        let mut at = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = match self.nodes.get(&at) {
                Some(Node::Directory(directory)) => {
                    *directory.view.get(name).ok_or_else(|| not_found(path))?
                }
                _ => {
                    return Err(io::Error::new(
                        io::ErrorKind::NotADirectory,
                        format!("{path}: not a directory"),
                    ));
                }
            };
        }
        Ok(at)
    }

    fn directory(&mut self, path: &str) -> io::Result<&mut Directory> {
        let inode = self.lookup(path)?;
        match self.nodes.get_mut(&inode) {
            Some(Node::Directory(directory)) => Ok(directory),
            _ => Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{path}: not a directory"))),
        }
    }

    fn file(&self, path: &str) -> io::Result<Inode> {
        let inode = self.lookup(path)?;
        match self.nodes.get(&inode) {
            Some(Node::File(_)) => Ok(inode),
            _ => Err(io::Error::new(io::ErrorKind::IsADirectory, format!("{path}: is a directory"))),
        }
    }

    /// The content of an inode that is open or was just looked up.
    pub(super) fn content(&mut self, inode: Inode) -> &mut Content {
        match self.nodes.get_mut(&inode) {
            Some(Node::File(content)) => content,
            _ => panic!("inode {inode} is no file"),
        }
    }

    fn link(&mut self, path: &str, node: Node) -> io::Result<Inode> {
        let (parent, name) = split(path);
        let sequence = self.mark();
        let inode = self.next_inode;
        let directory = self.directory(parent)?;
        if name.is_empty() || directory.view.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{path}: exists")));
        }
        directory.push(sequence, Change::Link { name: name.to_string(), inode });
        self.next_inode += 1;
        self.nodes.insert(inode, node);
        Ok(inode)
    }

    pub(super) fn open(&mut self, path: &str, create_new: bool) -> io::Result<Inode> {
        let inode =
            if create_new { self.link(path, Node::File(Content::default()))? } else { self.file(path)? };
        *self.handles.entry(inode).or_default() += 1;
        Ok(inode)
    }

    pub(super) fn close(&mut self, inode: Inode) {
        if let Some(count) = self.handles.get_mut(&inode) {
            *count -= 1;
            if *count == 0 {
                self.handles.remove(&inode);
            }
        }
    }

    pub(super) fn read_file(&mut self, path: &str, len_max: u64) -> io::Result<Vec<u8>> {
        let inode = self.file(path)?;
        let content = self.content(inode);
        if content.len() > len_max {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{path}: longer than {len_max} bytes"),
            ));
        }
        let mut bytes = vec![0; content.len() as usize];
        content.read(0, &mut bytes);
        Ok(bytes)
    }

    pub(super) fn write_file(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let blocks = bytes.len().div_ceil(crate::disk::BLOCK) as u64;
        self.reserve(blocks)?;
        let inode = match self.file(path) {
            Ok(inode) => inode,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.link(path, Node::File(Content::default()))?
            }
            Err(e) => return Err(e),
        };
        let sequence = self.mark();
        self.content(inode).replace(sequence, bytes);
        Ok(())
    }

    /// Fails with `StorageFull` unless `blocks` more fit.
    pub(super) fn reserve(&self, blocks: u64) -> io::Result<()> {
        if blocks > 0 && self.allocated_blocks() + blocks > self.capacity_blocks {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the simulated disk is full"));
        }
        Ok(())
    }

    pub(super) fn create_directory(&mut self, path: &str) -> io::Result<()> {
        match self.lookup(path) {
            Ok(inode) if matches!(self.nodes.get(&inode), Some(Node::Directory(_))) => Ok(()),
            Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{path}: a file"))),
            Err(_) => self.link(path, Node::Directory(Directory::default())).map(|_| ()),
        }
    }

    pub(super) fn list(&mut self, path: &str) -> io::Result<Vec<DirectoryEntry>> {
        let names = self.directory(path)?.view.clone();
        let entry = |(name, inode)| match &self.nodes[&inode] {
            Node::Directory(_) => DirectoryEntry { name, len: 0, is_directory: true },
            Node::File(content) => DirectoryEntry { name, len: content.len(), is_directory: false },
        };
        Ok(names.into_iter().map(entry).collect())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let ((parent, from_name), (to_parent, to_name)) = (split(from), split(to));
        assert_eq!(parent, to_parent, "the engine renames within one directory only");
        self.lookup(from)?;
        if let Ok(target) = self.lookup(to)
            && matches!(self.nodes.get(&target), Some(Node::Directory(_)))
        {
            return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, format!("{to}: a directory")));
        }
        let sequence = self.mark();
        let change = Change::Rename { from: from_name.to_string(), to: to_name.to_string() };
        self.directory(parent)?.push(sequence, change);
        Ok(())
    }

    pub(super) fn remove_file(&mut self, path: &str) -> io::Result<()> {
        self.file(path)?;
        self.unlink(path)
    }

    fn unlink(&mut self, path: &str) -> io::Result<()> {
        let (parent, name) = split(path);
        let sequence = self.mark();
        self.directory(parent)?.push(sequence, Change::Unlink { name: name.to_string() });
        Ok(())
    }

    /// Removes a directory and its content, name by name: a crash may leave any part of it.
    pub(super) fn remove_directory(&mut self, path: &str) -> io::Result<()> {
        for entry in self.list(path)? {
            let child = format!("{path}/{}", entry.name);
            if entry.is_directory { self.remove_directory(&child)? } else { self.unlink(&child)? }
        }
        self.unlink(path)
    }

    pub(super) fn sync_directory(&mut self, path: &str, mark: u64) -> io::Result<()> {
        self.directory(path)?.sync(mark);
        Ok(())
    }

    /// `false` where one has failed before in this life: the contract of `Disk::sync_all`.
    pub(super) fn sync_all(&mut self, mark: u64) -> bool {
        if self.sync_all_failed {
            return false;
        }
        for node in self.nodes.values_mut() {
            match node {
                Node::Directory(directory) => directory.sync(mark),
                Node::File(content) => content.sync(mark),
            }
        }
        true
    }

    pub(super) fn fail_sync_all(&mut self, mark: u64, random: &mut Random) {
        self.sync_all_failed = true;
        for node in self.nodes.values_mut() {
            if let Node::File(content) = node {
                content.sync_all_failed(mark, random);
            }
        }
    }

    /// The process is gone: nothing is open any more, and an error that was due to an open file is told to nobody.
    fn forget_handles(&mut self) {
        self.sync_all_failed = false;
        self.handles.clear();
        for node in self.nodes.values_mut() {
            if let Node::File(content) = node {
                content.take_lost();
            }
        }
    }

    /// The process is gone: nothing is open any more. What was pending stays pending.
    pub(super) fn process_failure(&mut self) {
        self.forget_handles();
    }

    /// The power failed: only the medium remains, and of what was pending whatever `random` says.
    pub(super) fn power_failure(&mut self, random: &mut Random) {
        self.forget_handles();
        for node in self.nodes.values_mut() {
            match node {
                Node::Directory(directory) => directory.power_failure(random),
                Node::File(content) => content.power_failure(random),
            }
        }
        let mut reachable = BTreeSet::new();
        let mut waiting = vec![ROOT];
        while let Some(inode) = waiting.pop() {
            if reachable.insert(inode)
                && let Some(Node::Directory(directory)) = self.nodes.get(&inode)
            {
                waiting.extend(directory.base.values());
            }
        }
        self.nodes.retain(|inode, _| reachable.contains(inode));
    }

    /// Flips bits of one byte of a file.
    pub(super) fn corrupt(&mut self, path: &str, position: u64, mask: u8) -> io::Result<()> {
        let inode = self.file(path)?;
        self.content(inode).corrupt(position, mask);
        Ok(())
    }
}

//! `flumen consume`: records become lines, alone or as a member of a group.
//!
//! Without `--follow` it ends at the ends that the partitions had when it began. In a group it commits what has been
//! printed: now and then, before it gives partitions up, and at its end. Printed is committed and not the other way round: a
//! record may be printed twice after a crash, none is left out.

use crate::amount;
use crate::cli::{AssignorName, ConsumeOptions};
use crate::failure::Failure;
use crate::interrupt::{GRACE, Interrupt, TICK};
use crate::offset_spec::OffsetSpec;
use crate::output::{Out, StatusLine};
use crate::record_format::{self, RecordFormat};
use flumen_client::cluster::EARLIEST;
use flumen_client::consumer::{Consumer, ConsumerSettings, Fetched, Reset, offsets_at};
use flumen_client::error::Error;
use flumen_client::group::{Assignor, GroupMember, GroupSettings};
use flumen_client::metadata::TopicPartition;
use flumen_client::{Cluster, runtime};
use flumen_wire::ErrorCode;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How records are printed where nothing else is asked for.
const FORMAT: &str = "%v\\n";
/// Between two commits.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) async fn run(cluster: &Cluster, options: ConsumeOptions, out: &mut Out) -> Result<(), Failure> {
    if out.is_json() && options.output.is_some() {
        return Err(Failure::usage("--output is for text: leave it out, or --format json"));
    }
    let format = match options.json || out.is_json() {
        true => None,
        false => Some(options.output.clone().unwrap_or_else(|| RecordFormat::known(FORMAT))),
    };
    let metadata_age_max = amount::duration(&options.metadata_age).ok_or_else(|| {
        Failure::usage(format!("--metadata-age {}: give a time, as in 30s", options.metadata_age))
    })?;
    let topics: BTreeSet<&str> = options.topics.iter().map(String::as_str).collect();
    let partitions = chosen(cluster, &topics, &options.partitions).await?;
    let settings = ConsumerSettings {
        read_committed: !options.read_uncommitted,
        reset: Some(EARLIEST),
        ..ConsumerSettings::default()
    };
    let mut reader = Reader {
        consumer: Consumer::new(cluster, settings),
        printer: Printer::new(format, options.count, out),
        ends: BTreeMap::new(),
        follow: options.follow,
        interrupt: Interrupt::listen()?,
    };
    let result = match &options.group {
        None => {
            let interrupt = reader.interrupt.clone();
            let begin = async {
                let begin = options.offset.unwrap_or(OffsetSpec::Start);
                let offsets = begin.resolve(cluster, &partitions).await?;
                reader.begin(cluster, &offsets).await
            };
            match interrupt.bounds(Duration::ZERO, begin).await {
                Some(Ok(())) => reader.read_alone().await,
                Some(failed) => failed,
                None => reader.cut_short(),
            }
        }
        Some(group) => {
            let mut grouped = Grouped::new(cluster, group, &options, metadata_age_max);
            let result = grouped.read(&mut reader).await;
            let interrupt = reader.interrupt.clone();
            result.and(interrupt.bounds(GRACE, grouped.end(&mut reader)).await.unwrap_or_else(|| {
                let why = "interrupted, and the coordinator of the group does not answer: what was printed last may be \
                           printed again";
                Err(Failure::Partial(why.to_owned()))
            }))
        }
    };
    reader.printer.finish()?;
    result?;
    if reader.was_cut() { Err(Failure::Interrupted) } else { Ok(()) }
}

/// The partitions of these topics: those with these numbers, or all.
async fn chosen(
    cluster: &Cluster,
    topics: &BTreeSet<&str>,
    numbers: &[i32],
) -> Result<Vec<TopicPartition>, Failure> {
    let numbers: BTreeSet<i32> = numbers.iter().copied().collect();
    let mut partitions = Vec::new();
    for name in topics {
        let topic = cluster.topic(name, false).await?;
        for number in &numbers {
            topic.partition(*number)?;
        }
        let all = topic.partitions.iter().map(|one| one.index);
        let these = all.filter(|index| numbers.is_empty() || numbers.contains(index));
        partitions.extend(these.map(|index| TopicPartition::new(topic.name.clone(), index)));
    }
    Ok(partitions)
}

/// Reads what is assigned, and prints it.
struct Reader<'o> {
    consumer: Consumer,
    printer: Printer<'o>,
    /// Where to stop in each partition; empty with `--follow`.
    ends: BTreeMap<TopicPartition, i64>,
    follow: bool,
    interrupt: Interrupt,
}

impl Reader<'_> {
    /// Reads these from these offsets, up to the ends that there are now.
    async fn begin(
        &mut self,
        cluster: &Cluster,
        offsets: &BTreeMap<TopicPartition, i64>,
    ) -> Result<(), Failure> {
        for (at, offset) in offsets {
            self.consumer.add(at.clone(), *offset);
            self.printer.positions.insert(at.clone(), *offset);
        }
        if !self.follow {
            let partitions: Vec<_> = offsets.keys().cloned().collect();
            let ends = offsets_at(cluster, &partitions, flumen_client::cluster::LATEST).await?;
            for (at, end) in ends {
                if offsets.get(&at).is_some_and(|offset| *offset >= end) {
                    self.consumer.pause(&at);
                }
                self.ends.insert(at, end);
            }
        }
        Ok(())
    }

    fn drop_partition(&mut self, at: &TopicPartition) {
        self.consumer.revoke(at);
        self.printer.positions.remove(at);
        self.ends.remove(at);
    }

    async fn read_alone(&mut self) -> Result<(), Failure> {
        while !self.is_done() {
            self.step().await?;
        }
        Ok(())
    }

    /// Whether there is nothing left to do.
    fn is_done(&self) -> bool {
        self.interrupt.is_asked() || self.printer.is_full() || (!self.follow && self.is_at_end())
    }

    /// Whether the user ended it before there was nothing left to do. With `--follow` there is no other end.
    fn was_cut(&self) -> bool {
        self.interrupt.is_asked() && !self.follow && !self.printer.is_full() && !self.is_at_end()
    }

    /// The user ended it before anything could be read.
    fn cut_short(&self) -> Result<(), Failure> {
        if self.follow { Ok(()) } else { Err(Failure::Interrupted) }
    }

    fn is_at_end(&self) -> bool {
        self.ends.iter().all(|(at, end)| {
            self.consumer.positions().get(at).is_none_or(|position| {
                // What is behind the last stable offset is not shown, however far the log goes.
                position.offset >= *end || (position.end >= 0 && position.offset >= position.end)
            })
        })
    }

    /// Prints what comes within a tick.
    async fn step(&mut self) -> Result<(), Failure> {
        let polled = runtime::timeout(TICK, self.consumer.poll()).await.transpose();
        for reset in self.consumer.take_resets() {
            self.printer.tell_reset(&reset);
        }
        let polled = polled?;
        for fetched in polled.into_iter().flatten() {
            let end = self.ends.get(&fetched.at).copied().unwrap_or(i64::MAX);
            self.printer.print(&fetched, end)?;
            if self.consumer.positions().get(&fetched.at).is_some_and(|position| position.offset >= end) {
                self.consumer.pause(&fetched.at);
            }
            if self.printer.is_full() {
                break;
            }
        }
        self.printer.tick(self.consumer.positions().values().map(|p| (p.end - p.offset).max(0)).sum())
    }
}

/// Reads as a member of a group.
struct Grouped {
    cluster: Cluster,
    member: GroupMember,
    cooperative: bool,
    begin: Option<OffsetSpec>,
    assigned: BTreeSet<TopicPartition>,
    committed: BTreeMap<TopicPartition, i64>,
    next_commit: Instant,
    /// How old metadata may get: new partitions are seen in it.
    metadata_age_max: Duration,
    next_metadata: Instant,
}

impl Grouped {
    fn new(cluster: &Cluster, group: &str, options: &ConsumeOptions, metadata_age_max: Duration) -> Grouped {
        let topics: BTreeSet<Rc<str>> = options.topics.iter().map(|name| name.as_str().into()).collect();
        let mut settings = GroupSettings::new(group, topics.into_iter().collect());
        settings.assignor = match options.assignor {
            AssignorName::Range => Assignor::Range,
            AssignorName::CooperativeSticky => Assignor::CooperativeSticky,
        };
        settings.instance_id = options.instance_id.clone();
        Grouped {
            cluster: cluster.clone(),
            cooperative: settings.assignor.is_cooperative(),
            member: GroupMember::new(cluster, settings),
            begin: options.offset,
            assigned: BTreeSet::new(),
            committed: BTreeMap::new(),
            next_commit: Instant::now() + COMMIT_INTERVAL,
            metadata_age_max,
            next_metadata: Instant::now() + metadata_age_max,
        }
    }

    async fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Failure> {
        loop {
            if self.member.must_rejoin()? {
                let interrupt = reader.interrupt.clone();
                match interrupt.bounds(Duration::ZERO, self.rejoin(reader)).await {
                    Some(joined) => joined?,
                    None => return reader.cut_short(),
                }
                continue;
            }
            if reader.is_done() {
                return Ok(());
            }
            reader.step().await?;
            if Instant::now() >= self.next_commit {
                let interrupt = reader.interrupt.clone();
                let work = async {
                    self.commit(reader).await?;
                    self.look_for_partitions().await
                };
                if let Some(done) = interrupt.bounds(Duration::ZERO, work).await {
                    done?;
                }
            }
        }
    }

    /// Has the group share anew where topics have got more partitions. Those who follow its leader hear it from the
    /// coordinator.
    async fn look_for_partitions(&mut self) -> Result<(), Failure> {
        if Instant::now() >= self.next_metadata {
            self.next_metadata = Instant::now() + self.metadata_age_max;
            match self.cluster.refresh_known().await {
                Err(error) if !error.is_retriable() => return Err(error.into()),
                _ => {}
            }
        }
        if self.member.partitions_changed() {
            self.member.request_rejoin();
        }
        Ok(())
    }

    async fn rejoin(&mut self, reader: &mut Reader<'_>) -> Result<(), Failure> {
        self.commit(reader).await?;
        if !self.cooperative {
            self.give_up(reader, |_| true);
        }
        let assigned: BTreeSet<_> = self.member.join().await?.into_iter().collect();
        self.give_up(reader, |at| !assigned.contains(at));
        let new: Vec<_> = assigned.difference(&self.assigned).cloned().collect();
        let metadata = self.cluster.metadata();
        if new.iter().any(|at| metadata.leader(at).is_err()) {
            // The leader of the group knows of partitions that are not known here yet.
            let _ = self.cluster.refresh_known().await;
        }
        let offsets = self.begin_at(&new).await?;
        reader.begin(&self.cluster, &offsets).await?;
        self.assigned = assigned;
        Ok(())
    }

    /// Commits and leaves. Also after a failure: others shall have the partitions at once.
    async fn end(mut self, reader: &mut Reader<'_>) -> Result<(), Failure> {
        let committed = self.commit(reader).await;
        let left = self.member.leave().await;
        committed.and(left.map_err(Failure::from))
    }

    fn give_up(&mut self, reader: &mut Reader<'_>, which: impl Fn(&TopicPartition) -> bool) {
        self.assigned.retain(|at| {
            let goes = which(at);
            if goes {
                reader.drop_partition(at);
                self.committed.remove(at);
            }
            !goes
        });
    }

    /// Where the group is, or where it is to begin: an explicit `-o` counts for what it has never committed.
    async fn begin_at(&mut self, new: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, i64>, Failure> {
        let known = self.member.committed(new).await?;
        let unknown: Vec<_> = new.iter().filter(|at| !known.contains_key(at)).cloned().collect();
        let begin = self.begin.unwrap_or(OffsetSpec::Start);
        let mut offsets = begin.resolve(&self.cluster, &unknown).await?;
        for (at, committed) in known {
            self.committed.insert(at.clone(), committed.offset);
            offsets.insert(at, committed.offset);
        }
        Ok(offsets)
    }

    /// Commits what has been printed since the last time. That the group has moved on is no failure: whoever has the
    /// partitions now begins at the last commit.
    async fn commit(&mut self, reader: &mut Reader<'_>) -> Result<(), Failure> {
        self.next_commit = Instant::now() + COMMIT_INTERVAL;
        reader.printer.flush()?;
        let printed = &reader.printer.positions;
        let new: BTreeMap<_, _> = printed
            .iter()
            .filter(|(at, offset)| self.assigned.contains(at) && self.committed.get(at) != Some(offset))
            .map(|(at, offset)| (at.clone(), *offset))
            .collect();
        match self.member.commit(&new).await {
            Ok(()) => {
                self.committed.extend(new);
                Ok(())
            }
            Err(error) if is_over(&error) => {
                self.member.request_rejoin();
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn is_over(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(ErrorCode::IllegalGeneration | ErrorCode::UnknownMemberId | ErrorCode::RebalanceInProgress)
    )
}

/// Prints records and counts them.
struct Printer<'o> {
    /// None: JSON.
    format: Option<RecordFormat>,
    left: Option<u64>,
    out: &'o mut Out,
    status: StatusLine,
    buffer: Vec<u8>,
    /// Behind the last printed record.
    positions: BTreeMap<TopicPartition, i64>,
    records: u64,
    bytes: u64,
    before: (Instant, u64, u64),
}

impl<'o> Printer<'o> {
    fn new(format: Option<RecordFormat>, left: Option<u64>, out: &'o mut Out) -> Printer<'o> {
        Printer {
            format,
            left,
            out,
            status: StatusLine::new(),
            buffer: Vec::new(),
            positions: BTreeMap::new(),
            records: 0,
            bytes: 0,
            before: (Instant::now(), 0, 0),
        }
    }

    fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Prints records below `end`, as many as are left.
    fn print(&mut self, fetched: &Fetched, end: i64) -> Result<(), Failure> {
        /// What is gathered before it is written.
        const GATHERED_BYTES: usize = 64 << 10;
        if fetched.len_bytes() > 0 && self.out.is_terminal() {
            self.status.clear();
        }
        let at = &fetched.at;
        let mut failed = None;
        let mut next = fetched.next_offset.min(end);
        let mut printed = fetched.asked;
        let walked = fetched.for_each(|record| {
            if self.left == Some(0) || record.offset >= end {
                next = next.min(record.offset);
                return ControlFlow::Break(());
            }
            match &self.format {
                Some(format) => format.write(&at.topic, at.partition, record, &mut self.buffer),
                None => {
                    let json = record_format::json(&at.topic, at.partition, record);
                    self.buffer.extend_from_slice(json.to_string().as_bytes());
                    self.buffer.push(b'\n');
                }
            }
            if self.buffer.len() >= GATHERED_BYTES {
                failed = self.out.write(&self.buffer).err();
                self.buffer.clear();
            }
            self.records += 1;
            self.bytes += record.size as u64;
            self.left = self.left.map(|left| left - 1);
            printed = record.offset + 1;
            if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if let Some(failure) = failed {
            return Err(failure);
        }
        // What comes before a record that cannot be read is printed.
        self.out.write(&self.buffer)?;
        self.buffer.clear();
        if walked.is_err() {
            next = printed;
        }
        if let Some(position) = self.positions.get_mut(at) {
            *position = next.max(*position);
        }
        walked.map(drop).map_err(Failure::from)
    }

    /// The output goes on elsewhere than it says.
    fn tell_reset(&mut self, reset: &Reset) {
        self.status.clear();
        let Reset { at, from, to } = reset;
        let what = if to > from { "was deleted" } else { "is behind the end of the log" };
        let _ = writeln!(io::stderr(), "flumen: {at}: offset {from} {what}; reading goes on at {to}");
    }

    /// Lets what is printed be seen, and shows how it goes.
    fn tick(&mut self, lag: i64) -> Result<(), Failure> {
        self.flush()?;
        if self.status.is_due() {
            let (since, records, bytes) = self.before;
            let seconds = since.elapsed().as_secs_f64();
            let per_second = |count: u64| (count as f64 / seconds) as u64;
            self.status.show(&format!(
                "{} records  {}  {}/s  {}/s  {} behind",
                amount::count(self.records as i64),
                amount::bytes(self.bytes),
                amount::count(per_second(self.records - records) as i64),
                amount::bytes(per_second(self.bytes - bytes)),
                amount::count(lag),
            ));
            self.before = (Instant::now(), self.records, self.bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush()
    }

    fn finish(&mut self) -> Result<(), Failure> {
        self.status.clear();
        self.flush()
    }
}

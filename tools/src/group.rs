//! `flumen group`.

use crate::amount;
use crate::cli::GroupCommand;
use crate::failure::{Failure, warn};
use crate::offset_spec::OffsetSpec;
use crate::output::{Column, Out, Table, bar, printable};
use crate::topic::{Outcomes, distinct};
use flumen_client::Cluster;
use flumen_client::admin::groups::{self, GroupDescription};
use flumen_client::cluster::{LATEST, Topics};
use flumen_client::error::Error;
use flumen_client::metadata::TopicPartition;
use flumen_wire::ErrorCode;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Characters of the longest bar of a lag.
const BAR_WIDTH: usize = 16;

pub(crate) async fn run(cluster: &Cluster, command: GroupCommand, out: &mut Out) -> Result<(), Failure> {
    match command {
        GroupCommand::List => list(cluster, out).await,
        GroupCommand::Describe { groups } => describe(cluster, &distinct(groups), out).await,
        GroupCommand::Seek { group, to, topics, dry_run } => {
            seek(cluster, &group, to, &topics, dry_run, out).await
        }
        GroupCommand::Delete { groups } => {
            let mut outcomes = Outcomes::new("GROUP");
            for group in distinct(groups) {
                let result = groups::delete(cluster, &group).await.map(|()| "deleted".to_owned());
                outcomes.add(group, result);
            }
            outcomes.print(out)
        }
    }
}

async fn list(cluster: &Cluster, out: &mut Out) -> Result<(), Failure> {
    let all = groups::list(cluster).await?;
    if out.is_json() {
        let one = |group: &groups::ListedGroup| {
            json!({
                "group": group.id,
                "state": group.state,
                "type": group.kind,
                "protocol_type": group.protocol_type,
                "coordinator": group.coordinator,
            })
        };
        return out.json(&all.iter().map(one).collect::<Vec<Value>>().into());
    }
    let mut table = Table::new(&[
        Column::Text("GROUP"),
        Column::Whole("STATE"),
        Column::Whole("TYPE"),
        Column::Number("COORDINATOR"),
    ]);
    for group in all {
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        table.row(vec![group.id, or_dash(group.state), or_dash(group.kind), group.coordinator.to_string()]);
    }
    out.table(&table)
}

/// Where a group is in one partition.
struct Place {
    at: TopicPartition,
    committed: Option<i64>,
    end: Option<i64>,
    /// Index of the member that reads it.
    member: Option<usize>,
}

impl Place {
    fn lag(&self) -> Option<i64> {
        Some((self.end? - self.committed?).max(0))
    }
}

async fn describe(cluster: &Cluster, names: &[String], out: &mut Out) -> Result<(), Failure> {
    let mut documents = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let group = groups::describe(cluster, name).await?;
        let places = places(cluster, &group).await?;
        if out.is_json() {
            documents.push(describe_json(&group, &places));
            continue;
        }
        if number > 0 {
            out.line("")?;
        }
        describe_table(&group, &places, out)?;
    }
    if out.is_json() { out.json(&documents.into()) } else { Ok(()) }
}

/// All partitions that the group has committed or that a member reads. Those of topics that are gone have no end.
async fn places(cluster: &Cluster, group: &GroupDescription) -> Result<Vec<Place>, Failure> {
    let committed = groups::offsets(cluster, &group.id).await?;
    let mut members = BTreeMap::new();
    for (index, member) in group.members.iter().enumerate() {
        members.extend(member.assignment.iter().map(|at| (at.clone(), index)));
    }
    let all: BTreeSet<&TopicPartition> = committed.keys().chain(members.keys()).collect();
    let names: BTreeSet<&str> = all.iter().map(|at| &*at.topic).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let metadata = cluster.refresh(Topics::Named(&names), false).await?;
    let asked: Vec<_> =
        all.iter().filter(|at| metadata.leader(at).is_ok()).map(|at| ((*at).clone(), LATEST)).collect();
    let (ends, refusal) = cluster.list_offsets_told(&asked).await;
    if let Some(refusal) = refusal {
        warn(&format!("not all partitions tell their ends: {refusal}"));
    }
    Ok(all
        .into_iter()
        .map(|at| Place {
            committed: committed.get(at).map(|one| one.offset),
            end: ends.get(at).map(|one| one.offset),
            member: members.get(at).copied(),
            at: at.clone(),
        })
        .collect())
}

fn describe_table(group: &GroupDescription, places: &[Place], out: &mut Out) -> Result<(), Failure> {
    let total: i64 = places.iter().filter_map(Place::lag).sum();
    let assignor = if group.assignor.is_empty() { "-" } else { &group.assignor };
    out.line(&printable(&format!(
        "{}  state {}  type {}  assignor {assignor}  coordinator {}  members {}  lag {}",
        group.id,
        group.state,
        group.kind,
        group.coordinator,
        group.members.len(),
        amount::count(total)
    )))?;
    if places.is_empty() {
        return out.line("no offsets are committed, and no partitions are assigned");
    }
    let largest = places.iter().filter_map(Place::lag).max().unwrap_or(0);
    let mut table = Table::new(&[
        Column::Text("TOPIC"),
        Column::Number("PARTITION"),
        Column::Number("COMMITTED"),
        Column::Number("END"),
        Column::Number("LAG"),
        Column::Whole(""),
        Column::Text("MEMBER"),
        Column::Text("HOST"),
    ]);
    let number = |value: Option<i64>| value.map_or("-".to_owned(), amount::count);
    for place in places {
        let member = place.member.and_then(|index| group.members.get(index));
        table.row(vec![
            place.at.topic.to_string(),
            place.at.partition.to_string(),
            number(place.committed),
            number(place.end),
            number(place.lag()),
            place.lag().map_or(String::new(), |lag| bar(lag, largest, BAR_WIDTH)),
            member.map_or("-".to_owned(), |member| {
                member.instance_id.clone().unwrap_or_else(|| member.id.clone())
            }),
            member.map_or("-".to_owned(), |member| member.host.trim_start_matches('/').to_owned()),
        ]);
    }
    out.table(&table)
}

fn describe_json(group: &GroupDescription, places: &[Place]) -> Value {
    let member = |one: &groups::GroupMember| {
        let partitions = |at: &TopicPartition| json!({ "topic": &*at.topic, "partition": at.partition });
        json!({
            "id": one.id,
            "instance_id": one.instance_id,
            "client_id": one.client_id,
            "host": one.host,
            "assignment": one.assignment.iter().map(partitions).collect::<Vec<_>>(),
        })
    };
    let place = |one: &Place| {
        json!({
            "topic": &*one.at.topic,
            "partition": one.at.partition,
            "committed": one.committed,
            "end": one.end,
            "lag": one.lag(),
            "member": one.member.and_then(|index| group.members.get(index)).map(|member| &member.id),
        })
    };
    json!({
        "group": group.id,
        "state": group.state,
        "type": group.kind,
        "assignor": group.assignor,
        "coordinator": group.coordinator,
        "lag": places.iter().filter_map(Place::lag).sum::<i64>(),
        "members": group.members.iter().map(member).collect::<Vec<_>>(),
        "partitions": places.iter().map(place).collect::<Vec<_>>(),
    })
}

async fn seek(
    cluster: &Cluster,
    group: &str,
    to: OffsetSpec,
    topics: &[String],
    dry_run: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let committed = groups::offsets(cluster, group).await?;
    let partitions = if topics.is_empty() {
        if committed.is_empty() {
            return Err(Failure::usage(format!(
                "group {group:?} has no offsets yet: say with --topics which partitions it is to begin with"
            )));
        }
        existing(cluster, committed.keys()).await?
    } else {
        named(cluster, topics).await?
    };
    let offsets = to.resolve(cluster, &partitions).await?;
    if dry_run {
        match groups::describe(cluster, group).await {
            Ok(described) if !described.members.is_empty() => return Err(has_members(group).into()),
            // One that is not there is made.
            Err(error) if error.code() != Some(ErrorCode::GroupIdNotFound) => return Err(error.into()),
            _ => {}
        }
    } else {
        groups::set_offsets(cluster, group, &offsets).await.map_err(|error| match error.code() {
            Some(
                ErrorCode::UnknownMemberId | ErrorCode::RebalanceInProgress | ErrorCode::IllegalGeneration,
            ) => has_members(group),
            _ => error,
        })?;
    }
    let before = |at: &TopicPartition| committed.get(at).map(|one| one.offset);
    if out.is_json() {
        let one = |(at, offset): (&TopicPartition, &i64)| json!({ "topic": &*at.topic, "partition": at.partition, "before": before(at), "offset": offset, "done": !dry_run });
        return out.json(&offsets.iter().map(one).collect::<Vec<Value>>().into());
    }
    let mut table = Table::new(&[
        Column::Text("TOPIC"),
        Column::Number("PARTITION"),
        Column::Number("BEFORE"),
        Column::Number(if dry_run { "WOULD BE" } else { "NOW" }),
    ]);
    for (at, offset) in &offsets {
        table.row(vec![
            at.topic.to_string(),
            at.partition.to_string(),
            before(at).map_or("-".to_owned(), amount::count),
            amount::count(*offset),
        ]);
    }
    out.table(&table)
}

fn has_members(group: &str) -> Error {
    Error::Invalid(format!(
        "group {group:?} has members, which would overwrite this: stop its consumers first (`flumen group describe \
         {group}` shows them)"
    ))
}

/// Those that are still there.
async fn existing<'a>(
    cluster: &Cluster,
    partitions: impl Iterator<Item = &'a TopicPartition> + Clone,
) -> Result<Vec<TopicPartition>, Failure> {
    let names: BTreeSet<&str> = partitions.clone().map(|at| &*at.topic).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let metadata = cluster.refresh(Topics::Named(&names), false).await?;
    let is_there = |at: &&TopicPartition| {
        !matches!(metadata.leader(at), Err(Error::UnknownTopic(_) | Error::UnknownPartition { .. }))
    };
    Ok(partitions.filter(is_there).cloned().collect())
}

/// `TOPIC` or `TOPIC:PARTITION`, each partition once.
async fn named(cluster: &Cluster, topics: &[String]) -> Result<Vec<TopicPartition>, Failure> {
    let mut found = BTreeSet::new();
    for text in topics {
        let usage = || Failure::usage(format!("--topics {text:?}: give TOPIC or TOPIC:PARTITION"));
        let (name, partition) = match text.rsplit_once(':') {
            None => (text.as_str(), None),
            Some((name, number)) => {
                let number = number.parse::<i32>().ok().filter(|number| *number >= 0);
                (name, Some(number.ok_or_else(usage)?))
            }
        };
        if name.is_empty() {
            return Err(usage());
        }
        let topic = cluster.topic(name, false).await?;
        match partition {
            Some(partition) => {
                topic.partition(partition)?;
                found.insert(TopicPartition::new(name, partition));
            }
            None => found.extend(topic.partitions.iter().map(|one| TopicPartition::new(name, one.index))),
        }
    }
    Ok(found.into_iter().collect())
}

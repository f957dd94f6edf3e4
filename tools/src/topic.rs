//! `flumen topic`.

use crate::amount;
use crate::cli::TopicCommand;
use crate::config::value_of;
use crate::failure::{Failure, warn};
use crate::output::{Column, Out, Table, printable};
use flumen_client::Cluster;
use flumen_client::admin::configs::{self, Change, Config, Entity};
use flumen_client::admin::topics::{self, NewTopic};
use flumen_client::cluster::{EARLIEST, LATEST, Topics};
use flumen_client::error::Error;
use flumen_client::metadata::{Topic, TopicPartition, print_id};
use flumen_wire::ErrorCode;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) async fn run(cluster: &Cluster, command: TopicCommand, out: &mut Out) -> Result<(), Failure> {
    match command {
        TopicCommand::Create { topics, partitions, replicas, configs, if_not_exists, dry_run } => {
            let new = |name: &String| NewTopic {
                name: name.clone(),
                partitions: partitions.unwrap_or(-1),
                replicas: replicas.unwrap_or(-1),
                configs: configs.clone(),
            };
            let new: Vec<_> = distinct(topics).iter().map(new).collect();
            create(cluster, &new, if_not_exists, dry_run, out).await
        }
        TopicCommand::List { internal } => list(cluster, internal, out).await,
        TopicCommand::Describe { topics } => describe(cluster, &distinct(topics), out).await,
        TopicCommand::Alter { topic, partitions, configs, reset } => {
            alter(cluster, &topic, partitions, configs, reset, out).await
        }
        TopicCommand::Delete { topics, if_exists } => {
            delete(cluster, &distinct(topics), if_exists, out).await
        }
    }
}

/// Each name once, in the order in which they came: brokers refuse a request that has one twice.
pub(crate) fn distinct(names: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names.into_iter().filter(|name| seen.insert(name.clone())).collect()
}

async fn create(
    cluster: &Cluster,
    new: &[NewTopic],
    if_not_exists: bool,
    dry_run: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let mut outcomes = Outcomes::new("TOPIC");
    for one in topics::create(cluster, new, dry_run).await? {
        let done = if dry_run { "could be created" } else { "created" };
        match one.result {
            Err(error) if if_not_exists && error.code() == Some(ErrorCode::TopicAlreadyExists) => {
                outcomes.add(one.name, Ok("exists already".to_owned()));
            }
            Err(error) => outcomes.add(one.name, Err(error)),
            Ok(()) if one.partitions > 0 => {
                let shape = format!("{done}: partitions {}, replicas {}", one.partitions, one.replicas);
                outcomes.add(one.name, Ok(shape));
            }
            Ok(()) => outcomes.add(one.name, Ok(done.to_owned())),
        }
    }
    outcomes.print(out)
}

async fn delete(cluster: &Cluster, names: &[String], if_exists: bool, out: &mut Out) -> Result<(), Failure> {
    let mut outcomes = Outcomes::new("TOPIC");
    for (name, result) in topics::delete(cluster, names).await? {
        let unknown = |error: &Error| error.code() == Some(ErrorCode::UnknownTopicOrPartition);
        match result {
            Ok(()) => outcomes.add(name, Ok("deleted".to_owned())),
            Err(error) if unknown(&error) && if_exists => outcomes.add(name, Ok("is not there".to_owned())),
            Err(error) if unknown(&error) => outcomes.add(name.clone(), Err(Error::UnknownTopic(name))),
            Err(error) => outcomes.add(name, Err(error)),
        }
    }
    outcomes.print(out)
}

async fn alter(
    cluster: &Cluster,
    topic: &str,
    partitions: Option<i32>,
    set: Vec<(String, String)>,
    reset: Vec<String>,
    out: &mut Out,
) -> Result<(), Failure> {
    let changes: Vec<Change> = set
        .into_iter()
        .map(|(key, value)| Change::Set(key, value))
        .chain(reset.into_iter().map(Change::Reset))
        .collect();
    if changes.is_empty() && partitions.is_none() {
        return Err(Failure::usage("nothing to change: give --partitions, --config or --reset"));
    }
    let mut outcomes = Outcomes::new("TOPIC");
    let mut refused = false;
    if !changes.is_empty() {
        let result = configs::alter(cluster, &Entity::Topic(topic.to_owned()), &changes).await;
        refused = result.is_err();
        let count = changes.len();
        let done = format!("{count} setting{} changed", if count == 1 { "" } else { "s" });
        outcomes.add(topic.to_owned(), result.map(|()| done));
    }
    // Partitions cannot be taken back: there are none more unless all else is as it was asked for.
    if let Some(count) = partitions.filter(|_| !refused) {
        let result = topics::create_partitions(cluster, topic, count).await;
        outcomes.add(topic.to_owned(), result.map(|()| format!("{count} partitions")));
    }
    outcomes.print(out)
}

async fn list(cluster: &Cluster, internal: bool, out: &mut Out) -> Result<(), Failure> {
    let metadata = cluster.refresh(Topics::All, false).await?;
    let shown = metadata.topics.values().filter(|topic| internal || !topic.internal);
    if out.is_json() {
        let all: Vec<Value> = shown.map(topic_json).collect();
        return out.json(&all.into());
    }
    let mut table =
        Table::new(&[Column::Text("TOPIC"), Column::Number("PARTITIONS"), Column::Number("REPLICAS")]);
    for topic in shown {
        table.row(vec![
            topic.name.to_string(),
            topic.partitions.len().to_string(),
            replicas(topic).to_string(),
        ]);
    }
    out.table(&table)
}

fn replicas(topic: &Topic) -> usize {
    topic.partitions.first().map_or(0, |one| one.replicas.len())
}

fn topic_json(topic: &Topic) -> Value {
    json!({
        "name": &*topic.name,
        "id": print_id(&topic.id),
        "internal": topic.internal,
        "partitions": topic.partitions.len(),
        "replicas": replicas(topic),
    })
}

async fn describe(cluster: &Cluster, names: &[String], out: &mut Out) -> Result<(), Failure> {
    let mut documents = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let topic = cluster.topic(name, false).await?;
        let led: Vec<_> = topic
            .partitions
            .iter()
            .filter(|one| one.leader >= 0)
            .map(|one| TopicPartition::new(topic.name.clone(), one.index))
            .collect();
        let ends = |when| led.iter().map(move |at| (at.clone(), when)).collect::<Vec<_>>();
        let offsets = |found: BTreeMap<TopicPartition, flumen_client::cluster::ListedOffset>| {
            found.into_iter().map(|(at, one)| (at.partition, one.offset)).collect::<BTreeMap<_, _>>()
        };
        let (starts, _) = cluster.list_offsets_told(&ends(EARLIEST)).await;
        let (ends, refusal) = cluster.list_offsets_told(&ends(LATEST)).await;
        let (starts, ends) = (offsets(starts), offsets(ends));
        if let Some(refusal) = refusal {
            warn(&format!("not all partitions tell their ends: {refusal}"));
        }
        let configs = configs::describe(cluster, &Entity::Topic(name.clone()), &[]).await?;
        if out.is_json() {
            documents.push(describe_json(&topic, &starts, &ends, &configs));
            continue;
        }
        if place > 0 {
            out.line("")?;
        }
        describe_table(&topic, &starts, &ends, &configs, out)?;
    }
    if out.is_json() { out.json(&documents.into()) } else { Ok(()) }
}

fn describe_table(
    topic: &Topic,
    starts: &BTreeMap<i32, i64>,
    ends: &BTreeMap<i32, i64>,
    configs: &[Config],
    out: &mut Out,
) -> Result<(), Failure> {
    let records: i64 = ends.iter().filter_map(|(p, end)| Some(end - starts.get(p)?)).sum();
    out.line(&format!(
        "{}  id {}  partitions {}  replicas {}  records about {}",
        topic.name,
        print_id(&topic.id),
        topic.partitions.len(),
        replicas(topic),
        amount::count(records)
    ))?;
    for config in configs.iter().filter(|config| config.is_set) {
        let value = printable(value_of(config));
        out.line(&format!("  {} = {value}  ({})", config.name, config.source))?;
    }
    let mut table = Table::new(&[
        Column::Number("PARTITION"),
        Column::Number("LEADER"),
        Column::Number("EPOCH"),
        Column::Text("REPLICAS"),
        Column::Text("IN SYNC"),
        Column::Number("START"),
        Column::Number("END"),
    ]);
    let offset =
        |offsets: &BTreeMap<i32, i64>, p| offsets.get(p).map_or("-".to_owned(), |n| amount::count(*n));
    for one in &topic.partitions {
        table.row(vec![
            one.index.to_string(),
            if one.leader < 0 { "none".to_owned() } else { one.leader.to_string() },
            one.leader_epoch.to_string(),
            join(&one.replicas),
            join(&one.isr),
            offset(starts, &one.index),
            offset(ends, &one.index),
        ]);
    }
    out.table(&table)
}

fn describe_json(
    topic: &Topic,
    starts: &BTreeMap<i32, i64>,
    ends: &BTreeMap<i32, i64>,
    configs: &[Config],
) -> Value {
    let partitions: Vec<Value> = topic
        .partitions
        .iter()
        .map(|one| {
            json!({
                "partition": one.index,
                "leader": one.leader,
                "leader_epoch": one.leader_epoch,
                "replicas": one.replicas,
                "isr": one.isr,
                "offline": one.offline,
                "log_start_offset": starts.get(&one.index),
                "high_watermark": ends.get(&one.index),
            })
        })
        .collect();
    let set: serde_json::Map<String, Value> =
        configs.iter().filter(|one| one.is_set).map(|one| (one.name.clone(), json!(one.value))).collect();
    json!({
        "name": &*topic.name,
        "id": print_id(&topic.id),
        "internal": topic.internal,
        "configs": set,
        "partitions": partitions,
    })
}

fn join(numbers: &[i32]) -> String {
    numbers.iter().map(i32::to_string).collect::<Vec<_>>().join(",")
}

/// What came of each of several things: one line each, and a failure at the end if any failed.
pub(crate) struct Outcomes {
    title: &'static str,
    all: Vec<(String, Result<String, Error>)>,
}

impl Outcomes {
    pub(crate) fn new(title: &'static str) -> Outcomes {
        Outcomes { title, all: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: String, result: Result<String, Error>) {
        self.all.push((name, result));
    }

    /// What went well to standard output, the first failure as the command's own.
    pub(crate) fn print(self, out: &mut Out) -> Result<(), Failure> {
        if out.is_json() {
            let one = |(name, result): &(String, Result<String, Error>)| match result {
                Ok(done) => json!({ "name": name, "ok": true, "result": done }),
                Err(error) => {
                    let code = error.code().map(ErrorCode::name);
                    json!({ "name": name, "ok": false, "error": error.to_string(), "code": code })
                }
            };
            out.json(&self.all.iter().map(one).collect::<Vec<_>>().into())?;
        } else if self.all.iter().any(|(_, result)| result.is_ok()) {
            let mut table = Table::new(&[Column::Whole(self.title), Column::Whole("RESULT")]);
            for (name, result) in &self.all {
                if let Ok(done) = result {
                    table.row(vec![name.clone(), done.clone()]);
                }
            }
            out.table(&table)?;
        }
        let mut failed: Vec<Error> = self.all.into_iter().filter_map(|(_, result)| result.err()).collect();
        if failed.len() <= 1 {
            return failed.pop().map_or(Ok(()), |error| Err(error.into()));
        }
        let lines: Vec<String> = failed.iter().map(Error::to_string).collect();
        Err(Failure::Partial(lines.join("\nflumen: ")))
    }
}

#![allow(clippy::disallowed_methods)] // reads its scenarios
//! Text scenarios of the controller, one per file in `tests/metadata`.
//!
//! A line at the margin is a command; the lines indented below it are its outcome. What a command does:
//!
//! ```text
//!   node N inc=I [dir=D]             a node registers
//!   given KEY=VALUE                  a broker setting given at start
//!   create NAME [partitions=N] [rf=N] [assign=0:1/2;1:2/1] [validate] [KEY=VALUE..] [, NAME ..]
//!   grow NAME COUNT [assign=1/2;2/1] [validate]
//!   delete NAME|id:N ..              topics, by name or by the number of their creation
//!   set RESOURCE KEY=VALUE|KEY+=VALUE|KEY-=VALUE|!KEY .. [validate]     incremental alter
//!   alter RESOURCE KEY=VALUE ..      the old alter
//!   ids NODE                         a block of producer ids
//!   limit N                          most partitions of all topics
//!   show [TOPIC]                     the image, or one topic
//! ```
//!
//! After every command the image must survive a snapshot. `UPDATE=1 cargo test` rewrites the outcomes.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use flumen_core::config::StaticSettings;
use flumen_core::metadata::{
    BrokerRegistration, ConfigChange, Controller, Decision, DeleteTopic, DirectoryId, Image, Listener,
    NewPartitions, NewTopic, PARTITIONS_MAX, Record, Refused, ResourceChanges,
};
use flumen_core::types::{Incarnation, NodeId, TopicId};

struct Scenario {
    image: Image,
    statics: Arc<StaticSettings>,
    limit: usize,
    topics_tried: u8,
    /// The image and controller of before are needed while a decision is made.
    out: String,
}

#[test]
fn scenarios() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metadata");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    assert!(files.len() >= 5);
    for file in files {
        let text = std::fs::read_to_string(&file).expect("scenario");
        let outcome = run(&text);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, outcome).expect("writable");
        } else {
            assert!(outcome == text, "{}: this came out:\n{outcome}", file.display());
        }
    }
}

fn run(text: &str) -> String {
    let mut scenario = Scenario {
        image: Image::default(),
        statics: Arc::default(),
        limit: PARTITIONS_MAX,
        topics_tried: 0,
        out: String::new(),
    };
    for line in text.lines().filter(|line| !line.starts_with("  ")) {
        scenario.out.push_str(line);
        scenario.out.push('\n');
        if !line.is_empty() && !line.starts_with('#') {
            scenario.command(line);
            let again = Image::from_snapshot(scenario.image.offset(), &scenario.image.snapshot());
            assert_eq!(again.as_ref(), Ok(&scenario.image));
        }
    }
    scenario.out
}

impl Scenario {
    fn say(&mut self, line: impl AsRef<str>) {
        writeln!(self.out, "  {}", line.as_ref()).expect("a string takes all");
    }

    fn with<R>(&self, decide: impl FnOnce(&Controller<'_>) -> R) -> R {
        let config = self.image.settings(NodeId(1), &self.statics).broker_config();
        let mut controller = Controller::new(&self.image, &self.statics, &config);
        controller.partitions_max = self.limit;
        decide(&controller)
    }

    fn commit(&mut self, records: &[Record]) {
        for record in records {
            self.image.replay(record).expect("a decided record fits");
        }
    }

    fn settle<T>(
        &mut self,
        names: &[String],
        decision: Decision<Vec<Result<T, Refused>>>,
        ok: impl Fn(&T) -> String,
    ) {
        for (name, outcome) in names.iter().zip(&decision.response) {
            match outcome {
                Ok(done) => self.say(format!("{name}: {}", ok(done))),
                Err(refused) => self.say(format!("{name}: {refused}")),
            }
        }
        self.say(format!("{} records", decision.records.len()));
        self.commit(&decision.records);
    }

    fn command(&mut self, line: &str) {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        match verb {
            "node" => self.node(&words),
            "given" => {
                let (key, value) = rest.split_once('=').expect("KEY=VALUE");
                Arc::make_mut(&mut self.statics).set(key, value).expect("valid");
            }
            "create" => self.create(rest),
            "grow" => self.grow(&words),
            "delete" => self.delete(&words),
            "set" | "alter" => self.alter(verb, &words),
            "ids" => {
                let node = NodeId(words[0].parse().expect("number"));
                let decision = self.with(|controller| controller.allocate_producer_ids(node)).expect("ids");
                self.say(format!(
                    "{}..{}",
                    decision.response.first,
                    decision.response.first + decision.response.len
                ));
                self.commit(&decision.records);
            }
            "limit" => self.limit = words[0].parse().expect("number"),
            "show" => self.show(words.first().copied()),
            _ => panic!("no such command: {line}"),
        }
    }

    fn node(&mut self, words: &[&str]) {
        let registration = BrokerRegistration {
            node: NodeId(words[0].parse().expect("number")),
            incarnation: Incarnation(option(words, "inc").expect("inc").parse().expect("number")),
            directory: DirectoryId([option(words, "dir").unwrap_or("a").as_bytes()[0]; 16]),
            rack: None,
            listeners: vec![Listener { name: "PLAINTEXT".into(), host: "localhost".into(), port: 9092 }],
        };
        match self.with(|controller| controller.register_broker(registration)) {
            Ok(records) => self.commit(&records),
            Err(refused) => self.say(refused.to_string()),
        }
    }

    fn create(&mut self, rest: &str) {
        let parts: Vec<Vec<&str>> = rest.split(" , ").map(|part| part.split(' ').collect()).collect();
        let topics: Vec<NewTopic<'_>> = parts.iter().map(|words| new_topic(words)).collect();
        let ids: Vec<TopicId> = (1..=topics.len() as u8).map(|n| topic_id(self.topics_tried + n)).collect();
        let validate = rest.split(' ').any(|word| word == "validate");
        let decision = self.with(|controller| controller.create_topics(&topics, &ids, validate));
        self.topics_tried += topics.len() as u8;
        let names: Vec<String> = topics.iter().map(|topic| format!("{:.40}", topic.name)).collect();
        self.settle(&names, decision, |done| {
            format!("{} partitions x {}", done.partitions, done.replication_factor)
        });
    }

    fn grow(&mut self, words: &[&str]) {
        let assignments = option(words, "assign").map(|text| text.split(';').map(nodes).collect());
        let new = NewPartitions { name: words[0], count: words[1].parse().expect("number"), assignments };
        let decision =
            self.with(|controller| controller.create_partitions(&[new], words.contains(&"validate")));
        self.settle(&[words[0].to_owned()], decision, |()| "ok".to_owned());
    }

    fn delete(&mut self, words: &[&str]) {
        let topics: Vec<DeleteTopic<'_>> = words
            .iter()
            .map(|word| match word.strip_prefix("id:") {
                Some(number) => DeleteTopic { name: None, id: topic_id(number.parse().expect("number")) },
                None => DeleteTopic { name: Some(word), id: TopicId::ZERO },
            })
            .collect();
        let decision = self.with(|controller| controller.delete_topics(&topics));
        let names: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        self.settle(&names, decision, |deleted| format!("{} is deleted", deleted.name));
    }

    fn alter(&mut self, verb: &str, words: &[&str]) {
        let (kind, name) = words[0].split_once(':').expect("topic:NAME, broker:N or group:ID");
        let resource_type = match kind {
            "topic" => 2,
            "broker" => 4,
            "group" => 32,
            number => number.parse().expect("a resource type"),
        };
        let changes =
            words[1..].iter().filter(|word| **word != "validate").map(|word| change(word)).collect();
        let resources = [ResourceChanges { resource_type, resource_name: name, changes }];
        let validate = words.contains(&"validate");
        let decision = self.with(|controller| match verb {
            "set" => controller.incremental_alter_configs(&resources, validate),
            _ => controller.alter_configs(&resources, validate),
        });
        for record in &decision.records {
            let Record::Config { name, value, .. } = record else { panic!("{record:?}") };
            self.say(format!("{name} = {}", value.as_deref().unwrap_or("(unset)")));
        }
        self.settle(&[words[0].to_owned()], decision, |()| "ok".to_owned());
    }

    fn show(&mut self, only: Option<&str>) {
        let image = self.image.clone();
        for topic in image.topics().filter(|topic| only.is_none_or(|only| only == &*topic.name)) {
            for (index, partition) in topic.partitions.iter().enumerate() {
                let list =
                    |nodes: &[NodeId]| nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join("/");
                self.say(format!(
                    "{} leader {} epoch {}.{} replicas {} isr {}",
                    topic.directory(index as i32),
                    partition.leader.map_or("none".to_owned(), |node| node.to_string()),
                    partition.leader_epoch,
                    partition.partition_epoch,
                    list(&partition.replicas),
                    list(&partition.isr),
                ));
            }
            for (name, value) in image.topic_overrides(&topic.name).iter() {
                self.say(format!("{} {name}={value}", topic.name));
            }
        }
    }
}

fn topic_id(number: u8) -> TopicId {
    let mut id = [0; 16];
    id[15] = number;
    TopicId(id)
}

fn option<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn nodes(text: &str) -> Vec<NodeId> {
    text.split('/')
        .filter(|node| !node.is_empty())
        .map(|node| NodeId(node.parse().expect("number")))
        .collect()
}

fn new_topic<'a>(words: &[&'a str]) -> NewTopic<'a> {
    let mut topic = NewTopic::with_defaults(words[0]);
    for word in &words[1..] {
        match word.split_once('=') {
            Some(("partitions", count)) => topic.partitions = count.parse().expect("number"),
            Some(("rf", factor)) => topic.replication_factor = factor.parse().expect("number"),
            Some(("assign", text)) => {
                let one = |part: &str| {
                    let (partition, list) = part.split_once(':').expect("PARTITION:NODES");
                    (partition.parse().expect("number"), nodes(list))
                };
                topic.assignments = text.split(';').map(one).collect();
            }
            Some((name, value)) => topic.configs.push((name, Some(value))),
            None if *word == "validate" => {}
            None => topic.configs.push((word, None)),
        }
    }
    topic
}

fn change<'a>(word: &'a str) -> ConfigChange<'a> {
    if let Some(name) = word.strip_prefix('!') {
        return ConfigChange { name, operation: 1, value: None };
    }
    let Some((name, value)) = word.split_once('=') else {
        return ConfigChange { name: word, operation: 0, value: None };
    };
    let (name, operation) = match (name.strip_suffix('+'), name.strip_suffix('-')) {
        (Some(name), _) => (name, 2),
        (_, Some(name)) => (name, 3),
        _ => (name, 0),
    };
    ConfigChange { name, operation, value: Some(value) }
}

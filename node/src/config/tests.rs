//! Which source counts, and what is said of mistakes.
use super::*;
use clap::Parser;

fn load(line: &str, environment: &[(&str, &str)]) -> Result<Config, Mistake> {
    let arguments = Arguments::try_parse_from(std::iter::once("flumen-node").chain(line.split_whitespace()))
        .expect("flags");
    Config::from_sources(
        &arguments,
        environment.iter().map(|(name, value)| ((*name).into(), (*value).into())),
    )
}

fn mistake(line: &str, environment: &[(&str, &str)]) -> String {
    load(line, environment).expect_err("a mistake").to_string()
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let config = load("", &[]).expect("no flag is needed");
    assert_eq!(config.node_id, NodeId(1));
    assert!(config.data_dir.is_absolute() && config.data_dir.ends_with("flumen-data"));
    assert_eq!(config.kafka_addr.to_string(), "127.0.0.1:9092");
    assert_eq!(config.admin_addr.to_string(), "127.0.0.1:9644");
    assert_eq!(config.cluster_addr.to_string(), "127.0.0.1:7946");
    assert_eq!(config.advertised(config.kafka_addr).to_string(), "127.0.0.1:9092");
    assert!(config.seeds.is_empty() && config.warnings.is_empty());
    assert!((1..=SHARDS_MAX).contains(&config.shards));
    assert!((MEMORY_MIN..=MEMORY_DEFAULT_MAX).contains(&config.memory));
    assert_eq!(config.broker.num_partitions, 1);
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let path = std::env::temp_dir().join(format!("flumen-config-{}.toml", std::process::id()));
    let content = "node-id = 5\nkafka_addr = \"127.0.0.1:5\"\nadmin-addr = \"127.0.0.1:5\"\nseeds = [\"a:1\", \"[::1]:2\"]\n\
                   [set]\nnum.partitions = 5\nlog.retention.ms = 5\n\"log.segment.bytes\" = 5242880\n\
                   auto.create.topics.enable = false\n";
    std::fs::write(&path, content).expect("written");
    let environment = [
        ("FLUMEN_KAFKA_ADDR", "127.0.0.1:4"),
        ("FLUMEN_ADMIN_ADDR", "127.0.0.1:4"),
        ("FLUMEN_SET_NUM_PARTITIONS", "4"),
        ("FLUMEN_SET", "log.retention.ms=4; message.max.bytes=4000"),
        ("FLUMEN_MEMORY", ""),
        ("FLUMEN_SERVICE_HOST", "10.0.0.1"),
        ("FLUMEN_NODEID", "3"),
        ("PATH", "/bin"),
    ];
    let line = format!("--config {} --admin-addr 127.0.0.1:3 --set num.partitions=3", path.display());
    let config = load(&line, &environment).expect("valid");
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(config.node_id, NodeId(5));
    assert_eq!((config.kafka_addr.port(), config.admin_addr.port()), (4, 3));
    assert_eq!(config.broker.num_partitions, 3);
    assert_eq!(config.broker.log.retention_ms, 4);
    assert!(!config.broker.auto_create_topics_enable);
    let seeds: Vec<String> = config.seeds.iter().map(HostPort::to_string).collect();
    assert_eq!(seeds, ["a:1", "[::1]:2"]);
    assert_eq!(config.warnings, ["the environment variable FLUMEN_NODEID means nothing to a node"]);
}

#[test]
fn mistakes_say_where_they_stand_and_what_would_fit() {
    assert_eq!(mistake("--node-id=-1", &[]), "--node-id: '-1' is not a whole number from 0 to 2147483647");
    assert_eq!(
        mistake("", &[("FLUMEN_SHARDS", "0")]),
        "FLUMEN_SHARDS: '0' is not a whole number from 1 to 256"
    );
    let host_port = "is not HOST:PORT, as in 127.0.0.1:9092 or [::1]:9092";
    for wrong in ["localhost", ":1", "h:99999", "::1:9092", "[::1:1"] {
        assert_eq!(
            mistake(&format!("--kafka-addr {wrong}"), &[]),
            format!("--kafka-addr: '{wrong}' {host_port}")
        );
    }
    assert_eq!(mistake("--memory 1k", &[]), "--memory: '1k' is not enough: at least 64MiB");
    assert!(mistake("--memory lots", &[]).contains("as in 512MiB"));
    assert_eq!(mistake("--set a", &[]), "--set a: 'a' is not KEY=VALUE, as in num.partitions=3");
    let unknown = mistake("--set num.partition=3", &[]);
    assert!(
        unknown.starts_with(
            "--set num.partition=3: Unknown broker config name: num.partition; did you mean num.partitions?"
        ),
        "{unknown}"
    );
    assert!(unknown.contains("known: ") && unknown.contains("message.max.bytes"), "{unknown}");
    let value = mistake("--set num.partitions=many", &[]);
    assert!(
        value.starts_with("--set num.partitions=many: Invalid value many for configuration num.partitions"),
        "{value}"
    );
    assert_eq!(mistake("--set node.id=3", &[]), "--set node.id=3: node.id is set by --node-id");
    assert!(mistake("--config /nowhere.toml", &[]).starts_with("/nowhere.toml: "));
}

#[test]
fn a_listener_on_every_address_advertises_one_that_can_be_reached() {
    let config = load("--kafka-addr 0.0.0.0:0", &[]).expect("valid");
    let listening = "0.0.0.0:4321".parse().expect("an address");
    let advertised = config.advertised(listening);
    assert_eq!(advertised.port, 4321);
    assert_ne!(advertised.host, "0.0.0.0");
    let config = load("--kafka-addr 0.0.0.0:0 --kafka-advertised broker.example:29092", &[]).expect("valid");
    assert_eq!(config.advertised(listening).to_string(), "broker.example:29092");
}

#[test]
fn a_node_alone_on_this_machine_does_not_delay_groups() {
    let delay = |line| {
        let config = load(line, &[]).expect("valid");
        config.broker.group.initial_rebalance_delay_ms
    };
    assert_eq!(delay(""), 0);
    assert_eq!(delay("--set group.initial.rebalance.delay.ms=500"), 500);
    assert_eq!(delay("--kafka-addr 0.0.0.0:9092"), 3_000);
    assert_eq!(delay("--seeds 127.0.0.1:7947"), 3_000);
    let interval = |line| load(line, &[]).expect("valid").broker.group.consumer_assignment_interval_ms;
    assert_eq!((interval(""), interval("--kafka-addr 0.0.0.0:9092")), (0, 1_000));
    assert_eq!(interval("--set group.consumer.assignment.interval.ms=700"), 700);
}

#[test]
fn what_flags_say_is_described_under_kafkas_names() {
    let config = load("--node-id 7 --data-dir /d --kafka-addr 127.0.0.1:5 --kafka-advertised h:6", &[])
        .expect("valid");
    let shown =
        |name| config.settings.describe_broker(flumen_core::config::broker_setting(name).expect("known"));
    for (name, value) in [
        ("node.id", "7"),
        ("broker.id", "7"),
        ("log.dirs", "/d"),
        ("listeners", "PLAINTEXT://127.0.0.1:5"),
        ("advertised.listeners", "PLAINTEXT://h:6"),
    ] {
        let shown = shown(name);
        assert_eq!((shown.value.as_deref(), shown.source.code()), (Some(value), 4), "{name}");
    }
}

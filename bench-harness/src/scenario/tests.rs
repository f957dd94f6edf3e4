use super::*;

const MINIMAL: &str = "[[phases]]\nseconds = 1\n[[phases.producers]]\n";

fn wrong(text: &str, flags: &Overrides) -> String {
    match Scenario::parse(text, "test").and_then(|scenario| scenario.with(flags)) {
        Err(Failure::Usage(why)) => why,
        other => panic!("expected a refusal, found {other:?}"),
    }
}

#[test]
fn all_that_come_with_the_program_can_be_run_and_repeated() {
    for (name, text) in BUILT_IN {
        let scenario = Scenario::parse(text, name).and_then(|one| one.with(&Overrides::default()));
        let scenario = scenario.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(!scenario.description.is_empty(), "{name} says what it is for");
        let json = serde_json::to_value(&scenario).expect("it can be written");
        let back: Scenario = serde_json::from_value(json).expect("and read");
        assert_eq!(back, scenario);
    }
}

#[test]
fn what_is_not_known_or_makes_no_sense_is_named() {
    let none = Overrides::default();
    let unknown = wrong(&format!("{MINIMAL}ratee = 5\n"), &none);
    assert!(unknown.contains("ratee") && unknown.contains("unknown field"), "{unknown}");
    for (setting, named) in [
        ("rate = -5", "phases.0.producers.0.rate"),
        ("count = 0", "phases.0.producers.0.count"),
        ("in_flight = 0", "phases.0.producers.0.in_flight"),
        ("in_flight = 6\nidempotent = true", "at most 5"),
        ("acks = \"none\"\nidempotent = true", "needs acks"),
        ("arrivals = \"ramp\"", "rate_end"),
        ("arrivals = \"trace\"", "needs a file"),
        ("partitioning = \"key\"", "needs keys"),
        ("payload.size_min = 9\npayload.size_max = 8", "above size_max"),
        ("payload.content = \"lines\"", "needs a file"),
        ("payload.content = \"compressible\"\npayload.ratio = 0", "payload.ratio"),
    ] {
        let why = wrong(&format!("{MINIMAL}{setting}\n"), &none);
        assert!(why.contains(named), "{setting}: {why}");
    }
    let many = "[topic]\ncount = 1000\npartitions = 1000\n";
    assert!(wrong(&format!("{many}{MINIMAL}"), &none).contains("topic.partitions"));
    let product = "[topic]\npartitions = 100000\n";
    let why = wrong(&format!("{product}{MINIMAL}count = 1000\n"), &none);
    assert!(why.contains("1000 producers and 0 consumers on 100000 partitions"), "{why}");
    assert!(wrong("phases = []", &none).contains("there are none"));
    assert!(wrong("[[phases]]\nseconds = 1\n", &none).contains("neither producers"));
    let flags = Overrides { rate: Some(-1.0), ..Overrides::default() };
    assert!(wrong(MINIMAL, &flags).contains("rate"));
}

#[test]
fn flags_override_and_any_setting_can_be_set() {
    let set =
        ["phases.0.producers.0.acks=leader", "phases.0.seconds=7", "topic.configs={ \"flush.ms\" = \"5\" }"];
    let flags = Overrides {
        rate: Some(20.0),
        size: Some(99),
        topic: Some("other".to_owned()),
        set: set.map(str::to_owned).to_vec(),
        ..Overrides::default()
    };
    let scenario = Scenario::parse(MINIMAL, "test").and_then(|one| one.with(&flags)).expect("sound");
    let producers = &scenario.phases[0].producers[0];
    assert_eq!((producers.rate, producers.payload.size, producers.acks), (20.0, 99, Acks::Leader));
    assert_eq!((scenario.topic.name.as_str(), scenario.phases[0].seconds), ("other", 7.0));
    assert_eq!(scenario.topic.configs["flush.ms"], "5");
    assert!(!scenario.topic.create, "a topic that is named must be there");
    let flags = Overrides { topic: Some("other".to_owned()), create_topic: true, ..Overrides::default() };
    let scenario = Scenario::parse(MINIMAL, "test").and_then(|one| one.with(&flags)).expect("sound");
    assert!(scenario.topic.create);
    for (pair, named) in
        [("nothing", "KEY=VALUE"), ("phases.3.seconds=1", "\"3\""), ("topic.x=1", "unknown field")]
    {
        let flags = Overrides { set: vec![pair.to_owned()], ..Overrides::default() };
        let why = wrong(MINIMAL, &flags);
        assert!(why.contains(named), "{pair}: {why}");
    }
}

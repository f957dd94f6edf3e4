//! Keys and values of `__consumer_offsets`, and what members tell each other, byte for byte as Kafka's own classes
//! (kafka-group-coordinator and kafka-clients 4.3.1) wrote them.
//!
//! No independent codec in Rust knows these records; this is what ours is held against. The bytes must decode to what
//! they were made of and encode to themselves.

use flumen_wire::codec::{Decode, Encode, Reader, RecordKey, Versioned};
use flumen_wire::group as g;

/// Each message's name, and what Kafka wrote: the type of the record (of keys) or the version, and the body.
const GOLDEN: &[(&str, &str)] = &[
    ("OffsetCommitKey", "000100016700017400000007"),
    ("OffsetCommitValue", "0000000000000000002a00016d00000000000003e8"),
    ("OffsetCommitValue", "0001000000000000002a00016d00000000000003e800000000000007d0"),
    ("OffsetCommitValue", "0002000000000000002a00016d00000000000003e8"),
    ("OffsetCommitValue", "0003000000000000002a0000000500016d00000000000003e8"),
    (
        "OffsetCommitValue",
        "0004000000000000002a00000005026d00000000000003e8010010000102030405060708090a0b0c0d0e0f",
    ),
    ("GroupMetadataKey", "0002000167"),
    (
        "GroupMetadataValue",
        "00000008636f6e73756d657200000003000572616e67650003632d31000000010003632d31000163000a2f3132372e302e302e31000027100000000201020000000103",
    ),
    (
        "GroupMetadataValue",
        "00010008636f6e73756d657200000003000572616e67650003632d31000000010003632d31000163000a2f3132372e302e302e31000493e0000027100000000201020000000103",
    ),
    (
        "GroupMetadataValue",
        "00020008636f6e73756d657200000003000572616e67650003632d3100000000000004d2000000010003632d31000163000a2f3132372e302e302e31000493e0000027100000000201020000000103",
    ),
    (
        "GroupMetadataValue",
        "00030008636f6e73756d657200000003000572616e67650003632d3100000000000004d2000000010003632d31000169000163000a2f3132372e302e302e31000493e0000027100000000201020000000103",
    ),
    (
        "GroupMetadataValue",
        "000409636f6e73756d6572000000030672616e676504632d3100000000000004d20204632d31026902630b2f3132372e302e302e31000493e00000271003010202030000",
    ),
    ("ConsumerGroupMetadataKey", "0003000167"),
    ("ConsumerGroupMetadataValue", "000000000009010008000000000000004d"),
    ("ConsumerGroupMemberMetadataKey", "000500016700016d"),
    (
        "ConsumerGroupMemberMetadataValue",
        "0000000272026302680302610262000000000508756e69666f726d0100100100000006020672616e676502090000",
    ),
    ("ConsumerGroupTargetAssignmentMetadataKey", "0006000167"),
    ("ConsumerGroupTargetAssignmentMetadataValue", "00000000000400"),
    ("ConsumerGroupTargetAssignmentMemberKey", "000700016700016d"),
    (
        "ConsumerGroupTargetAssignmentMemberValue",
        "000002000102030405060708090a0b0c0d0e0f0300000001000000020000",
    ),
    ("ConsumerGroupCurrentMemberAssignmentKey", "000800016700016d"),
    (
        "ConsumerGroupCurrentMemberAssignmentValue",
        "000000000004000000030102000102030405060708090a0b0c0d0e0f0300000001000000020100090300000003000000040100",
    ),
    ("ConsumerGroupRegularExpressionKey", "00100001670003612e2a"),
    ("ConsumerGroupRegularExpressionValue", "0000020361620000000000000008000000000000006300"),
    ("ConsumerProtocolSubscription", "0000000000010001610000000105"),
    ("ConsumerProtocolSubscription", "000100000001000161000000010500000001000161000000020000000000000001"),
    (
        "ConsumerProtocolSubscription",
        "00020000000100016100000001050000000100016100000002000000000000000100000006",
    ),
    (
        "ConsumerProtocolSubscription",
        "00030000000100016100000001050000000100016100000002000000000000000100000006000172",
    ),
    ("ConsumerProtocolAssignment", "000300000001000161000000020000000000000001ffffffff"),
];

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("digits"));
    digits.map(|pair| u8::from_str_radix(pair, 16).expect("two digits")).collect()
}

fn rewritten_key<'a, K: RecordKey + Decode<'a>>(bytes: &'a [u8]) -> Vec<u8> {
    let mut reader = Reader::new(bytes);
    assert_eq!(reader.i16(), Ok(K::TYPE));
    let key = K::decode(&mut reader, 0).expect("a key");
    reader.finish().expect("nothing behind it");
    key.to_key()
}

fn rewritten<'a, V: Versioned + Decode<'a> + Encode>(bytes: &'a [u8]) -> Vec<u8> {
    let version = Reader::new(bytes).i16().expect("a version");
    V::from_versioned(bytes).expect("a value").to_versioned(version)
}

#[test]
fn kafkas_bytes_are_read_and_written_again() {
    for (name, hex) in GOLDEN {
        let bytes = &bytes(hex);
        let again = match *name {
            "OffsetCommitKey" => rewritten_key::<g::offset_commit_key::OffsetCommitKey<'_>>(bytes),
            "OffsetCommitValue" => rewritten::<g::offset_commit_value::OffsetCommitValue<'_>>(bytes),
            "GroupMetadataKey" => rewritten_key::<g::group_metadata_key::GroupMetadataKey<'_>>(bytes),
            "GroupMetadataValue" => rewritten::<g::group_metadata_value::GroupMetadataValue<'_>>(bytes),
            "ConsumerGroupMetadataKey" => rewritten_key::<g::consumer_group_metadata_key::ConsumerGroupMetadataKey<'_>>(bytes),
            "ConsumerGroupMetadataValue" => rewritten::<g::consumer_group_metadata_value::ConsumerGroupMetadataValue>(bytes),
            "ConsumerGroupMemberMetadataKey" => rewritten_key::<g::consumer_group_member_metadata_key::ConsumerGroupMemberMetadataKey<'_>>(bytes),
            "ConsumerGroupMemberMetadataValue" => rewritten::<g::consumer_group_member_metadata_value::ConsumerGroupMemberMetadataValue<'_>>(bytes),
            "ConsumerGroupTargetAssignmentMetadataKey" => rewritten_key::<g::consumer_group_target_assignment_metadata_key::ConsumerGroupTargetAssignmentMetadataKey<'_>>(bytes),
            "ConsumerGroupTargetAssignmentMetadataValue" => rewritten::<g::consumer_group_target_assignment_metadata_value::ConsumerGroupTargetAssignmentMetadataValue>(bytes),
            "ConsumerGroupTargetAssignmentMemberKey" => rewritten_key::<g::consumer_group_target_assignment_member_key::ConsumerGroupTargetAssignmentMemberKey<'_>>(bytes),
            "ConsumerGroupTargetAssignmentMemberValue" => rewritten::<g::consumer_group_target_assignment_member_value::ConsumerGroupTargetAssignmentMemberValue>(bytes),
            "ConsumerGroupCurrentMemberAssignmentKey" => rewritten_key::<g::consumer_group_current_member_assignment_key::ConsumerGroupCurrentMemberAssignmentKey<'_>>(bytes),
            "ConsumerGroupCurrentMemberAssignmentValue" => rewritten::<g::consumer_group_current_member_assignment_value::ConsumerGroupCurrentMemberAssignmentValue>(bytes),
            "ConsumerGroupRegularExpressionKey" => rewritten_key::<g::consumer_group_regular_expression_key::ConsumerGroupRegularExpressionKey<'_>>(bytes),
            "ConsumerGroupRegularExpressionValue" => rewritten::<g::consumer_group_regular_expression_value::ConsumerGroupRegularExpressionValue<'_>>(bytes),
            "ConsumerProtocolSubscription" => rewritten::<g::consumer_protocol_subscription::ConsumerProtocolSubscription<'_>>(bytes),
            "ConsumerProtocolAssignment" => rewritten::<g::consumer_protocol_assignment::ConsumerProtocolAssignment<'_>>(bytes),
            other => panic!("{other} is not in the list"),
        };
        assert_eq!(again, *bytes, "{name}");
    }
}

/// Bytes that both sides misread in the same way would come out as they went in; these did not.
#[test]
fn fields_are_what_kafka_set() {
    let find = |wanted: &str, version: i16| {
        let of_version = |hex: &&str| Reader::new(&bytes(hex)).i16() == Ok(version);
        let mut named = GOLDEN.iter().filter(|(name, _)| *name == wanted).map(|(_, hex)| *hex);
        bytes(named.rfind(|hex| of_version(hex)).expect("a row"))
    };
    let row = find("OffsetCommitValue", 4);
    let offset = g::offset_commit_value::OffsetCommitValue::from_versioned(&row).expect("a value");
    assert_eq!((offset.offset, offset.leader_epoch, offset.metadata), (42, 5, "m"));
    assert_eq!((offset.commit_timestamp, offset.topic_id[15]), (1_000, 15));
    let row = find("GroupMetadataValue", 3);
    let group = g::group_metadata_value::GroupMetadataValue::from_versioned(&row).expect("a value");
    assert_eq!((group.generation, group.protocol, group.leader), (3, Some("range"), Some("c-1")));
    let member = &group.members[0];
    assert_eq!((member.group_instance_id, member.rebalance_timeout), (Some("i"), 300_000));
    assert_eq!((member.subscription, member.assignment), (&[1_u8, 2][..], &[3_u8][..]));
    let row = find("ConsumerProtocolSubscription", 3);
    let said = g::consumer_protocol_subscription::ConsumerProtocolSubscription::from_versioned(&row);
    let said = said.expect("a subscription");
    assert_eq!((said.generation_id, said.rack_id, said.owned_partitions.len()), (6, Some("r"), 1));
    let mut newer = row.clone();
    newer[1] = 9;
    let newer =
        g::consumer_protocol_subscription::ConsumerProtocolSubscription::from_versioned_lenient(&newer);
    assert_eq!(newer, Ok(said));
}

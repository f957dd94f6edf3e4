//! ConsumerGroupDescribe (key 69): consumer groups, their members, what these have and are to have. KIP-848.

use std::rc::Rc;

use flumen_core::coordinator::assignor::Partitions;
use flumen_core::coordinator::consumer::DescribedGroup as Described;
use flumen_core::coordinator::{Answer, Caller, Context, Coordinator, Request as GroupRequest, Token};
use flumen_core::metadata::Image;
use flumen_wire::ErrorCode;
use flumen_wire::messages::consumer_group_describe_request::ConsumerGroupDescribeRequest;
use flumen_wire::messages::consumer_group_describe_response::{
    Assignment, ConsumerGroupDescribeResponse, DescribedGroup, Member, TopicPartitions,
};

use super::authorized_operations as operations;
use super::group::{are_repeated, each};
use super::{Refusal, Request};
use crate::net::response::Response;
use crate::shard::Shard;

/// The first version that tells which protocol a member speaks.
const MEMBER_TYPE_VERSION: i16 = 1;
const CLASSIC: i8 = 0;
const CONSUMER: i8 = 1;
const UNKNOWN: i8 = -1;

pub(super) async fn handle(shard: &Rc<Shard>, request: &Request) -> Result<Response, Refusal> {
    let body: ConsumerGroupDescribeRequest<'_> = request.body()?;
    let repeated = are_repeated(body.group_ids.iter().copied());
    let asked = body.group_ids.iter().zip(repeated).map(|(group_id, is_repeated)| async move {
        if is_repeated {
            return Answer::Failed(ErrorCode::InvalidRequest);
        }
        let id = (*group_id).to_owned();
        let call = move |coordinator: &mut Coordinator, cx: &Context<'_>, token: Token| {
            let described = GroupRequest::ConsumerGroupDescribe(&id);
            coordinator.handle(cx, &Caller::default(), described, token);
        };
        shard.coordinate(group_id, call).await
    });
    let answers = each(asked).await?;
    let image = shard.image();
    let authorized_operations = operations::when_asked(body.include_authorized_operations, operations::GROUP);
    let groups = body.group_ids.iter().zip(&answers).map(|(group_id, answer)| {
        let group = match answer {
            Answer::ConsumerDescribed(Ok(group)) => described(group, &image, request.version),
            Answer::ConsumerDescribed(Err(refused)) => DescribedGroup {
                error_code: refused.code.code(),
                error_message: Some(&refused.message),
                ..DescribedGroup::default()
            },
            Answer::Failed(code) => DescribedGroup { error_code: code.code(), ..DescribedGroup::default() },
            other => unreachable!("no answer to ConsumerGroupDescribe: {other:?}"),
        };
        DescribedGroup { group_id, authorized_operations, ..group }
    });
    let groups = groups.collect();
    request.respond(&ConsumerGroupDescribeResponse { groups, ..Default::default() })
}

fn described<'a>(group: &'a Described, image: &'a Image, version: i16) -> DescribedGroup<'a> {
    let members = group.members.iter().map(|described| {
        let (metadata, current) = (&described.member.metadata, &described.member.current);
        let is_classic = metadata.classic.is_some();
        Member {
            member_id: &described.id,
            instance_id: metadata.instance_id.as_deref(),
            rack_id: metadata.rack_id.as_deref(),
            member_epoch: current.member_epoch,
            client_id: &metadata.client_id,
            client_host: &metadata.client_host,
            subscribed_topic_names: metadata.subscribed_topic_names.iter().map(AsRef::as_ref).collect(),
            subscribed_topic_regex: metadata.expression().map(AsRef::as_ref),
            assignment: assignment(&current.assigned, image),
            target_assignment: assignment(&described.target, image),
            member_type: match is_classic {
                _ if version < MEMBER_TYPE_VERSION => UNKNOWN,
                true => CLASSIC,
                false => CONSUMER,
            },
        }
    });
    DescribedGroup {
        group_state: group.state.name(),
        group_epoch: group.group_epoch,
        assignment_epoch: group.assignment_epoch,
        assignor_name: group.assignor.name(),
        members: members.collect(),
        ..DescribedGroup::default()
    }
}

/// Partitions by name; those of topics that are gone have none, and are left out.
fn assignment<'a>(partitions: &Partitions, image: &'a Image) -> Assignment<'a> {
    let topics = partitions.by_topic().filter_map(|(id, partitions)| {
        let topic = image.topic_by_id(id)?;
        Some(TopicPartitions { topic_id: id.0, topic_name: &topic.name, partitions: partitions.collect() })
    });
    Assignment { topic_partitions: topics.collect() }
}

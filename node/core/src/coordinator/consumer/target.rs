//! From the group's epoch to its target: which topics the group stands on, when its epoch rises, and what the assignor
//! makes of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use flumen_wire::ErrorCode;
use xxhash_rust::xxh3::Xxh3;

use super::super::assignor::{self, Assignor, PartitionCounts};
use super::change::{Change, GroupEpoch, ResolvedExpression, TargetEpoch};
use super::group::{ConsumerGroup, Draft};
use super::{Context, Refused, expression};
use crate::limits::GROUP_EXPRESSIONS_MAX;
use crate::metadata::Image;
use crate::types::TopicId;

impl ConsumerGroup {
    /// Whether the topics of this group may have changed since it was last compared with an image.
    pub(super) fn is_metadata_newer(&self, image: &Image) -> bool {
        self.compared_with.get() != Some(image.topics_offset())
    }

    /// Whether there is no target for the group's epoch, and the last assignment was long enough ago.
    pub(super) fn is_assignment_due(&self, context: &Context<'_>) -> bool {
        let TargetEpoch { epoch, timestamp_ms } = self.target_epoch;
        let interval_ms = i64::from(context.settings.assignment_interval_ms);
        // A clock that was set back makes nobody wait for longer.
        let since = context.now_ms.saturating_sub(timestamp_ms);
        self.epoch.epoch > epoch && (timestamp_ms == 0 || !(0..interval_ms).contains(&since))
    }

    /// What a member's subscription makes of the topics that there are now, as a number.
    fn metadata_hash(&self, image: &Image) -> i64 {
        let mut hash = Xxh3::new();
        for topic in self.subscribed_topics().into_iter().filter_map(|name| image.topic(name)) {
            hash.update(&topic.id.0);
            hash.update(&(topic.partitions.len() as u64).to_le_bytes());
        }
        hash.digest().cast_signed()
    }

    /// The assignor that most members ask for; the default one where none is asked for.
    pub(super) fn preferred_assignor(&self, context: &Context<'_>) -> Assignor {
        let allowed = &context.settings.assignors;
        let default = allowed.first().copied().unwrap_or(Assignor::Uniform);
        let mut votes: BTreeMap<usize, usize> = BTreeMap::new();
        for member in self.members.values() {
            let asked = member.metadata.server_assignor.as_deref().and_then(Assignor::from_name);
            let place = asked.and_then(|asked| allowed.iter().position(|assignor| *assignor == asked));
            if let Some(place) = place {
                *votes.entry(place).or_default() += 1;
            }
        }
        // Where votes are equal, the one that stands first.
        let most = votes.into_iter().max_by_key(|(place, votes)| (*votes, std::cmp::Reverse(*place)));
        most.map_or(default, |(place, _)| allowed[place])
    }
}

impl Draft<'_> {
    /// Resolves an expression that a member has come with, if no other member has it already.
    pub(super) fn add_expression(&mut self, context: &Context<'_>, regex: &Arc<str>) -> Result<(), Refused> {
        if self.group.expressions.contains_key(regex) {
            return Ok(());
        }
        let compiled = expression::compile(regex)?;
        if self.group.expressions.len() >= GROUP_EXPRESSIONS_MAX {
            let text = format!(
                "The members of the group subscribe by {GROUP_EXPRESSIONS_MAX} regular expressions already."
            );
            return Err(Refused::new(ErrorCode::GroupMaxSizeReached, text));
        }
        let topics = expression::matching(&compiled, context.image);
        self.push(Change::Expression(Arc::clone(regex), Some(resolved(context, topics))));
        Ok(())
    }

    /// Drops expressions that nobody subscribes by any more.
    pub(super) fn drop_unused_expressions(&mut self) {
        let is_used = |regex: &Arc<str>| {
            self.group.members.values().any(|member| member.metadata.expression() == Some(regex))
        };
        let unused: Vec<Arc<str>> =
            self.group.expressions.keys().filter(|regex| !is_used(regex)).cloned().collect();
        for regex in unused {
            self.push(Change::Expression(regex, None));
        }
    }

    /// Resolves all expressions again. They are compiled anew: topics come and go seldom, and what is compiled takes up to a
    /// mebibyte.
    pub(super) fn refresh_expressions(&mut self, context: &Context<'_>) {
        let mut changed = Vec::new();
        for (regex, before) in &self.group.expressions {
            // One that does not compile was written by another release: it keeps the topics that it has.
            let Ok(compiled) = expression::compile(regex) else { continue };
            let topics = expression::matching(&compiled, context.image);
            if topics != before.topics {
                changed.push(Change::Expression(Arc::clone(regex), Some(resolved(context, topics))));
            }
        }
        changed.into_iter().for_each(|record| self.push(record));
    }

    /// Raises the group's epoch, when asked to or when its topics are not what they were.
    pub(super) fn raise_epoch(&mut self, context: &Context<'_>, anyway: bool) {
        let metadata_hash = self.group.metadata_hash(context.image);
        if anyway || metadata_hash != self.group.epoch.metadata_hash {
            let epoch = self.group.epoch.epoch.saturating_add(1);
            self.push(Change::Epoch(Some(GroupEpoch { epoch, metadata_hash })));
        }
    }

    /// Gives every member its target for the group's epoch, if it has none yet. Shortly after the last time it waits, so
    /// that members who come together share one assignment; then the next heartbeat of anybody brings it.
    pub(super) fn assign(&mut self, context: &Context<'_>) {
        if !self.group.is_assignment_due(context) {
            return;
        }
        let epoch = self.group.epoch.epoch;
        for record in self.targets(context) {
            self.push(record);
        }
        self.push(Change::TargetEpoch(Some(TargetEpoch { epoch, timestamp_ms: context.now_ms })));
    }

    /// The targets that change.
    fn targets(&self, context: &Context<'_>) -> Vec<Change> {
        let group = &*self.group;
        let topics = |name: &str| context.image.topic(name);
        let counts: PartitionCounts = group
            .subscribed_topics()
            .into_iter()
            .filter_map(topics)
            .map(|topic| (topic.id, i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX)))
            .collect();
        let subscriptions: Vec<Vec<TopicId>> = group
            .members
            .values()
            .map(|member| {
                let mut ids: Vec<TopicId> = group
                    .topics_of(&member.metadata)
                    .into_iter()
                    .filter_map(|name| Some(topics(name)?.id))
                    .collect();
                ids.sort_unstable();
                ids
            })
            .collect();
        let targets: Vec<_> = group.members.keys().map(|id| group.target(id)).collect();
        let members: Vec<assignor::Member<'_>> = group
            .members
            .iter()
            .zip(subscriptions.iter().zip(&targets))
            .map(|((id, member), (topics, current))| assignor::Member {
                id,
                instance_id: member.metadata.instance_id.as_deref(),
                topics,
                current,
            })
            .collect();
        let assigned = group.preferred_assignor(context).assign(&members, &counts);
        group
            .members
            .keys()
            .zip(targets.iter().zip(assigned))
            .filter(|(id, (before, after))| ***before != *after || !group.targets.contains_key(*id))
            .map(|(id, (_, after))| Change::Target(Arc::clone(id), Some(Arc::new(after))))
            .collect()
    }
}

fn resolved(context: &Context<'_>, topics: Vec<Arc<str>>) -> Arc<ResolvedExpression> {
    Arc::new(ResolvedExpression {
        topics,
        image_offset: context.image.offset().cast_signed(),
        timestamp_ms: context.now_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{ConfigResource, Record};

    #[test]
    fn a_setting_is_no_reason_to_compare_topics_again() {
        let group = ConsumerGroup::new("g".into());
        let mut image = Image::default();
        let topic = |number: u8| Record::Topic { id: TopicId([number; 16]), name: format!("t{number}") };
        image.replay(&topic(1)).expect("fits");
        assert!(group.is_metadata_newer(&image));
        group.compared_with.set(Some(image.topics_offset()));
        let name = "retention.ms".to_owned();
        let resource = ConfigResource::Topic("t1".to_owned());
        image.replay(&Record::Config { resource, name, value: Some("1".to_owned()) }).expect("fits");
        assert!(!group.is_metadata_newer(&image));
        image.replay(&topic(2)).expect("fits");
        assert!(group.is_metadata_newer(&image));
    }
}

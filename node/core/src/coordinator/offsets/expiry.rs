//! When committed offsets go by themselves: their group was empty for `offsets.retention.minutes`, their topic is no
//! longer read by it for as long, or their topic was deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Committed, NO_TIME, tombstone};
use crate::coordinator::groups::Group;
use crate::coordinator::record::Record;
use crate::coordinator::{Context, Coordinator};
use crate::types::TopicId;

/// From when a group's offsets age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::coordinator) enum Aging {
    /// They do not: the group is at work, and what it reads is not known.
    Never,
    /// From the last commit of each.
    SinceCommit,
    /// From this time, when the group lost its last member.
    Since(i64),
}

impl Coordinator {
    /// Deletes offsets that are too old, and groups without members that have none left.
    pub(in crate::coordinator) fn expire_offsets(&mut self, cx: &Context<'_>) {
        let groups: Vec<Arc<str>> = self.groups.iter().map(|(id, _)| Arc::clone(id)).collect();
        for id in groups {
            let expired = self.expired_offsets(cx, &id);
            self.write_apart(cx, expired);
            let is_empty = match self.groups.get(&id) {
                Some(Group::Classic(group)) => group.is_abandoned(),
                Some(Group::Consumer(group)) => group.is_empty(),
                None => false,
            };
            if is_empty && !self.offsets.has_any(&id) {
                self.write_group_tombstones(&id);
            }
            self.outbox.close();
        }
    }

    fn expired_offsets(&self, cx: &Context<'_>, id: &str) -> Vec<Record> {
        let (Some(group), Some(topics)) = (self.groups.get(id), self.offsets.by_group.get(id)) else {
            return Vec::new();
        };
        let aging = match group {
            Group::Classic(group) => group.aging(),
            Group::Consumer(_) => Aging::SinceCommit,
        };
        let mut records = Vec::new();
        for (topic, partitions) in topics {
            let subscribed = match group {
                Group::Classic(group) => group.is_subscribed_to(topic),
                Group::Consumer(group) => group.is_subscribed_to(topic),
            };
            if subscribed {
                continue;
            }
            let expired = partitions.iter().filter(|(_, committed)| committed.is_expired(cx, aging));
            records.extend(expired.map(|(partition, _)| tombstone(id, topic, *partition)));
        }
        records
    }

    /// Deletes all offsets of topics that are gone.
    pub(in crate::coordinator) fn delete_offsets_of_topics(&mut self, cx: &Context<'_>, deleted: &[&str]) {
        if deleted.is_empty() {
            return;
        }
        let mut records = Vec::new();
        for (group, topics) in &self.offsets.by_group {
            let gone = deleted.iter().filter_map(|name| topics.get_key_value(*name));
            for (topic, partitions) in gone.collect::<BTreeMap<_, _>>() {
                records.extend(partitions.keys().map(|partition| tombstone(group, topic, *partition)));
            }
        }
        self.write_apart(cx, records);
    }
}

/// Offsets of topics that were deleted while nobody was told.
impl Coordinator {
    pub(in crate::coordinator) fn delete_orphaned_offsets(&mut self, cx: &Context<'_>) {
        let mut records = Vec::new();
        for (group, topics) in &self.offsets.by_group {
            for (topic, partitions) in topics {
                let orphaned = partitions.iter().filter(|(_, committed)| committed.is_orphaned(cx, topic));
                records.extend(orphaned.map(|(partition, _)| tombstone(group, topic, *partition)));
            }
        }
        self.write_apart(cx, records);
    }
}

impl Committed {
    /// Whether its topic is gone. Where it was written without an identity, another topic of that name has the benefit of
    /// the doubt.
    fn is_orphaned(&self, cx: &Context<'_>, topic: &str) -> bool {
        match self.topic_id {
            TopicId::ZERO => cx.image.topic(topic).is_none(),
            id => cx.image.topic_by_id(id).is_none(),
        }
    }

    fn is_expired(&self, cx: &Context<'_>, aging: Aging) -> bool {
        let since = match aging {
            Aging::Never => return false,
            // The client has said when.
            _ if self.expire_timestamp != NO_TIME => return cx.now_ms >= self.expire_timestamp,
            Aging::SinceCommit => self.commit_timestamp,
            Aging::Since(time) => time,
        };
        cx.now_ms.saturating_sub(since) >= cx.config.offsets_retention_ms
    }
}

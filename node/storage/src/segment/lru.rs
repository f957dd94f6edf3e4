//! A small map that forgets what was used longest ago once its members weigh too much.

use std::collections::BTreeMap;
use std::rc::Rc;

/// Keyed by path. Sizes are small (hundreds), so the oldest is found by a look at each.
pub(super) struct Lru<V> {
    members: BTreeMap<Rc<str>, Member<V>>,
    weight: usize,
    weight_max: usize,
    clock: u64,
}

struct Member<V> {
    value: V,
    weight: usize,
    used: u64,
}

impl<V: Clone> Lru<V> {
    pub(super) fn new(weight_max: usize) -> Lru<V> {
        Lru { members: BTreeMap::new(), weight: 0, weight_max, clock: 0 }
    }

    pub(super) fn get(&mut self, key: &str) -> Option<V> {
        self.clock += 1;
        let member = self.members.get_mut(key)?;
        member.used = self.clock;
        Some(member.value.clone())
    }

    /// Keeps `value`; one that alone weighs too much is kept until the next.
    pub(super) fn insert(&mut self, key: Rc<str>, value: V, weight: usize) {
        self.remove(&key);
        while self.weight + weight > self.weight_max
            && let Some(oldest) = self.members.iter().min_by_key(|(_, member)| member.used)
        {
            let oldest = oldest.0.clone();
            self.remove(&oldest);
        }
        self.clock += 1;
        self.weight += weight;
        self.members.insert(key, Member { value, weight, used: self.clock });
    }

    pub(super) fn remove(&mut self, key: &str) {
        if let Some(member) = self.members.remove(key) {
            self.weight -= member.weight;
        }
    }

    /// Forgets every member whose key begins with `prefix`.
    pub(super) fn remove_prefix(&mut self, prefix: &str) {
        let from = Rc::from(prefix);
        let keys = self.members.range(from..).map(|(key, _)| key.clone());
        let keys: Vec<Rc<str>> = keys.take_while(|key| key.starts_with(prefix)).collect();
        for key in keys {
            self.remove(&key);
        }
    }

    pub(super) fn weight(&self) -> usize {
        self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_the_one_used_longest_ago() {
        let mut lru = Lru::new(3);
        for key in ["a", "b", "c"] {
            lru.insert(key.into(), key, 1);
        }
        assert_eq!(lru.get("a"), Some("a"));
        lru.insert("d".into(), "d", 1);
        assert_eq!((lru.get("a"), lru.get("b"), lru.weight()), (Some("a"), None, 3));
        lru.insert("e".into(), "e", 9);
        assert_eq!((lru.get("a"), lru.get("e"), lru.weight()), (None, Some("e"), 9));
        lru.remove_prefix("e");
        assert_eq!(lru.weight(), 0);
    }
}

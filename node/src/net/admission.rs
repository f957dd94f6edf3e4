//! How many connections the node has, over all shards, from whom, and how many it may have. One for the node; shards meet
//! in it only when a connection comes or goes.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flumen_core::config::BrokerConfig;

/// Connections may take three of four descriptors: the rest is for the files of logs and journals.
const SHARE_OF_FILES: (u64, u64) = (3, 4);

/// See the module.
#[derive(Debug)]
pub(crate) struct Admission {
    /// What the limit of open files leaves for connections.
    files_max: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open: usize,
    /// Of each peer that has any. As many entries as connections, at most.
    open_by_ip: HashMap<IpAddr, u32>,
    /// `max.connections`.
    max: usize,
    /// `max.connections.per.ip`.
    max_per_ip: u32,
    /// `max.connections.per.ip.overrides`.
    max_of: BTreeMap<IpAddr, u32>,
}

impl Admission {
    pub(crate) fn new(open_files_max: u64) -> Admission {
        let (of_four, four) = SHARE_OF_FILES;
        let state = State {
            open: 0,
            open_by_ip: HashMap::new(),
            max: usize::MAX,
            max_per_ip: u32::MAX,
            max_of: BTreeMap::new(),
        };
        Admission {
            files_max: usize::try_from(open_files_max / four * of_four).unwrap_or(usize::MAX),
            state: Mutex::new(state),
        }
    }

    /// Takes the limits of these settings. Connections that are there stay.
    pub(crate) fn limit(&self, config: &BrokerConfig) {
        let mut state = self.state();
        state.max = config.max_connections as usize;
        state.max_per_ip = config.max_connections_per_ip;
        state.max_of.clone_from(&config.max_connections_per_ip_overrides);
    }

    /// One more from there, until it [leaves](Admission::leave); or why not.
    pub(super) fn enter(&self, from: IpAddr) -> Result<(), &'static str> {
        let from = from.to_canonical();
        let mut state = self.state();
        let of_ip = state.open_by_ip.get(&from).copied().unwrap_or(0);
        if state.open >= state.max {
            return Err("refused: max.connections is reached");
        }
        // Of each address that is not named, one from here is let in always: who else could change the limit again?
        let unnamed = state.max_per_ip.max(u32::from(from.is_loopback()));
        if of_ip >= state.max_of.get(&from).copied().unwrap_or(unnamed) {
            return Err("refused: max.connections.per.ip is reached");
        }
        if state.open >= self.files_max {
            return Err(
                "refused: connections have three quarters of the limit of open files; raise it (`ulimit -n`)",
            );
        }
        state.open += 1;
        state.open_by_ip.insert(from, of_ip + 1);
        Ok(())
    }

    /// One that had [entered](Admission::enter) from there is gone.
    pub(super) fn leave(&self, from: IpAddr) {
        let from = from.to_canonical();
        let mut state = self.state();
        state.open = state.open.saturating_sub(1);
        match state.open_by_ip.get_mut(&from) {
            Some(of_ip) if *of_ip > 1 => *of_ip -= 1,
            _ => _ = state.open_by_ip.remove(&from),
        }
    }

    /// Nothing that holds it can fail in its midst.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn limits(max: u32, per_ip: u32, of: &[(IpAddr, u32)]) -> BrokerConfig {
        BrokerConfig {
            max_connections: max,
            max_connections_per_ip: per_ip,
            max_connections_per_ip_overrides: of.iter().copied().collect(),
            ..BrokerConfig::default()
        }
    }

    #[test]
    fn the_lower_of_both_limits_holds_and_may_change() {
        let admission = Admission::new(8);
        assert!((0..6).all(|_| admission.enter(HERE).is_ok()));
        assert!(admission.enter(HERE).is_err_and(|why| why.contains("ulimit")));
        admission.limit(&limits(2, u32::MAX, &[]));
        assert!(admission.enter(HERE).is_err_and(|why| why.contains("max.connections is")));
        (0..5).for_each(|_| admission.leave(HERE));
        assert!(admission.enter(HERE).is_ok() && admission.enter(HERE).is_err());
        admission.limit(&limits(u32::MAX, u32::MAX, &[]));
        assert!(admission.enter(HERE).is_ok());
    }

    #[test]
    fn each_address_has_its_own_limit() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let (one, other, named) = (address("10.0.0.1"), address("10.0.0.2"), address("::1"));
        let admission = Admission::new(1 << 20);
        admission.limit(&limits(100, 2, &[(named, 3), (other, 0)]));
        assert!(admission.enter(one).is_ok() && admission.enter(one).is_ok());
        assert!(admission.enter(one).is_err_and(|why| why.contains("per.ip")));
        let mapped = address("::ffff:10.0.0.1");
        assert!(admission.enter(mapped).is_err(), "it is the same peer");
        assert!(admission.enter(other).is_err());
        assert!((0..3).all(|_| admission.enter(named).is_ok()) && admission.enter(named).is_err());
        admission.leave(one);
        assert!(admission.enter(mapped).is_ok() && admission.enter(one).is_err());
        [one, one, named, named, named].iter().for_each(|from| admission.leave(*from));
        let state = admission.state();
        assert!(state.open == 0 && state.open_by_ip.is_empty(), "{state:?}");
    }
}

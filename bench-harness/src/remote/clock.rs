//! How far another machine's clock is off, measured by round trips (Cristian's algorithm): of many questions the one that
//! was answered fastest says most. The answer was given at some time between question and receipt, so half of the round
//! trip is the error that remains. Clocks drift and are set: so it is measured before and after each phase, and what the
//! two differ by is an error as well.

/// What one question showed: when it was asked and answered by our clock, and what the other clock said.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundTrip {
    pub asked_ns: u64,
    pub answered_ns: u64,
    pub theirs_ns: u64,
}

/// What is to be added to the other clock to get ours, and how far that may be off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offset {
    pub offset_ns: i64,
    pub error_ns: u64,
}

impl Offset {
    pub(super) fn of(trips: &[RoundTrip]) -> Option<Offset> {
        let best = trips.iter().min_by_key(|trip| trip.answered_ns.saturating_sub(trip.asked_ns))?;
        let length = best.answered_ns.saturating_sub(best.asked_ns);
        let middle = best.asked_ns + length / 2;
        let offset_ns = middle.wrapping_sub(best.theirs_ns) as i64;
        Some(Offset { offset_ns, error_ns: length.div_ceil(2) })
    }

    /// How far times may be off that were corrected by this one, where later it was another.
    pub(super) fn error_until(&self, later: &Offset) -> u64 {
        let moved = self.offset_ns.abs_diff(later.offset_ns);
        self.error_ns.max(later.error_ns).max(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_round_trip_counts_and_bounds_the_error() {
        // Theirs is 500 behind; the way there takes longer than the way back.
        let trip = |asked_ns: u64, there: u64, back: u64| RoundTrip {
            asked_ns,
            answered_ns: asked_ns + there + back,
            theirs_ns: asked_ns + there - 500,
        };
        let found =
            Offset::of(&[trip(10_000, 900, 10), trip(20_000, 30, 10), trip(30_000, 200, 400)]).expect("some");
        assert_eq!(found.error_ns, 20);
        assert!((found.offset_ns - 500).unsigned_abs() <= found.error_ns, "{found:?}");
        assert_eq!(Offset::of(&[]), None);
    }

    #[test]
    fn a_clock_that_moved_is_off_by_as_much() {
        let offset = |offset_ns, error_ns| Offset { offset_ns, error_ns };
        assert_eq!(offset(-100, 20).error_until(&offset(-110, 30)), 30);
        assert_eq!(offset(-100, 20).error_until(&offset(1_000, 30)), 1_100);
    }
}

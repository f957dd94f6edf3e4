//! How far another machine's clock is off, measured by round trips (Cristian's algorithm): of many questions the one that
//! was answered fastest says most. The answer was given at some time between question and receipt, so half of the round
//! trip is the error that remains, and it is stated with the result.

/// What one question showed: when it was asked and answered by our clock, and what the other clock said.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundTrip {
    pub asked_ns: u64,
    pub answered_ns: u64,
    pub theirs_ns: u64,
}

/// What is to be added to the other clock to get ours, and how far that may be off.
pub(super) fn offset(trips: &[RoundTrip]) -> Option<(i64, u64)> {
    let best = trips.iter().min_by_key(|trip| trip.answered_ns.saturating_sub(trip.asked_ns))?;
    let length = best.answered_ns.saturating_sub(best.asked_ns);
    let middle = best.asked_ns + length / 2;
    Some((middle.wrapping_sub(best.theirs_ns) as i64, length.div_ceil(2)))
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
        let (found, error) =
            offset(&[trip(10_000, 900, 10), trip(20_000, 30, 10), trip(30_000, 200, 400)]).expect("some");
        assert_eq!(error, 20);
        assert!((found - 500).unsigned_abs() <= error, "{found}");
        assert_eq!(offset(&[]), None);
    }
}

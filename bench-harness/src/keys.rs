//! Keys of records, drawn by Zipf's law: the key of rank `n` comes as often as `1 / n^skew` says. A skew of 0 is all alike.
//!
//! Drawn by rejection-inversion (Hörmann and Derflinger, 1996), which needs neither a table of the keys nor more memory
//! for a billion of them than for ten.

use fastrand::Rng;

/// See the head of this file.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    rng: Rng,
    count: u64,
    skew: f64,
    /// The integral of the law's envelope at the first rank (less the first rank's own weight) and at the last.
    from: f64,
    to: f64,
    /// What is this close above its rank is taken without looking further.
    sure: f64,
}

impl Keys {
    /// Of `count` keys, at least one.
    pub(crate) fn new(count: u64, skew: f64, seed: u64) -> Keys {
        let mut keys = Keys { rng: Rng::with_seed(seed), count, skew, from: 0.0, to: 0.0, sure: 0.0 };
        keys.from = keys.integral(1.5) - 1.0;
        keys.to = keys.integral(count as f64 + 0.5);
        keys.sure = 2.0 - keys.inverse(keys.integral(2.5) - keys.weight(2.0));
        keys
    }

    /// The rank of the next key, from 0.
    pub(crate) fn next(&mut self) -> u64 {
        if self.skew == 0.0 {
            return self.rng.u64(0..self.count);
        }
        loop {
            let at = self.to + self.rng.f64() * (self.from - self.to);
            let x = self.inverse(at);
            let rank = (x + 0.5).floor().clamp(1.0, self.count as f64);
            if rank - x <= self.sure || at >= self.integral(rank + 0.5) - self.weight(rank) {
                return rank as u64 - 1;
            }
        }
    }

    fn weight(&self, x: f64) -> f64 {
        x.powf(-self.skew)
    }

    /// Of the weight, from 1.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        log * expm1_over((1.0 - self.skew) * log)
    }

    fn inverse(&self, x: f64) -> f64 {
        let scaled = (x * (1.0 - self.skew)).max(-1.0);
        (x * ln1p_over(scaled)).exp()
    }
}

/// `(e^x - 1) / x`, also near 0.
fn expm1_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x / 2.0 }
}

/// `ln(1 + x) / x`, also near 0.
fn ln1p_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_come_as_often_as_the_law_says() {
        const DRAWS: usize = 400_000;
        for (count, skew) in [(1_u64, 1.0), (10, 0.0), (10, 0.5), (50, 1.0), (50, 1.3), (1000, 0.99)] {
            let mut keys = Keys::new(count, skew, 3);
            let mut seen = vec![0_usize; count as usize];
            for _ in 0..DRAWS {
                seen[keys.next() as usize] += 1;
            }
            let total: f64 = (1..=count).map(|rank| (rank as f64).powf(-skew)).sum();
            for (rank, found) in seen.iter().enumerate() {
                let expected = DRAWS as f64 * ((rank + 1) as f64).powf(-skew) / total;
                // Five standard deviations.
                let off = (*found as f64 - expected).abs();
                assert!(
                    off <= 5.0 * expected.sqrt() + 1.0,
                    "{count} {skew}: rank {rank}: {found}, {expected}"
                );
            }
        }
    }

    #[test]
    fn a_seed_repeats_them() {
        let draw = || {
            let mut keys = Keys::new(1000, 1.1, 9);
            (0..100).map(|_| keys.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
    }
}

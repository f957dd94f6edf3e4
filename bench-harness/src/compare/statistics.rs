//! Ratios and how sure one may be of them: the bootstrap (Efron 1979), by percentiles of the ratio over samples drawn
//! again with replacement. Two kinds of sample, because they answer different questions; see [`Over`]. The seed is fixed
//! and stands in the document, so the same runs give the same interval.

use super::document::{Bootstrap, Interval, Over, Ratio};
use super::figures::{Digest, Figure};
use crate::result::Second;

/// As many as make the ends of a 95 % interval steady to about a hundredth of its width.
const RESAMPLES: u32 = 2000;
/// Neighbouring seconds are alike (a compaction, a flush of the page cache): drawn one by one they would feign more samples
/// than there are.
const BLOCK_SECONDS: u32 = 5;
const SEED: u64 = 0x464c_554d_454e;
const CONFIDENCE: f64 = 0.95;
/// Of fewer, any interval would be that of a handful of values.
const TURNS_MIN: usize = 3;
const BLOCKS_MIN: usize = 5;

/// How intervals are drawn here.
pub(crate) const BOOTSTRAP: Bootstrap =
    Bootstrap { resamples: RESAMPLES, seed: SEED, confidence: CONFIDENCE, block_seconds: BLOCK_SECONDS };

/// All ratios of A to one other; `a[i]` and `b[i]` ran next to each other.
pub(crate) fn ratios(a: &[Digest], b: &[Digest], to: usize) -> Vec<Ratio> {
    let turns = a.len().min(b.len());
    let (a, b) = (&a[..turns], &b[..turns]);
    let mut found = Vec::new();
    let phases = a.first().map(Digest::phases).unwrap_or_default();
    for phase in &phases {
        let named = if phases.len() > 1 { phase } else { "" };
        for figure in Figure::ALL.into_iter().filter(|figure| figure.is_of_phase()) {
            let asked = Asked { figure, phase, named, to };
            found.extend(over_turns(&asked, a, b));
            found.extend(over_seconds(&asked, a, b));
        }
    }
    for figure in Figure::ALL.into_iter().filter(|figure| !figure.is_of_phase()) {
        found.extend(over_turns(&Asked { figure, phase: "", named: "", to }, a, b));
    }
    found
}

/// What is to be compared, and with whom.
struct Asked<'a> {
    figure: Figure,
    phase: &'a str,
    /// As it is called where there are several.
    named: &'a str,
    to: usize,
}

fn over_turns(asked: &Asked, a: &[Digest], b: &[Digest]) -> Option<Ratio> {
    let all: Vec<usize> = (0..a.len()).collect();
    let value = |runs: &[Digest], drawn: &[usize]| asked.figure.over_runs(asked.phase, runs, drawn);
    let (value_a, value_b) = (value(a, &all)?, value(b, &all)?);
    let mut draw = Draw::new(SEED);
    let enough = a.len() >= TURNS_MIN;
    let interval = enough.then(|| {
        bootstrap(|| {
            // A and B of a turn together: what disturbed the machine then disturbed both.
            let drawn = draw.places(a.len());
            Some(value(a, &drawn)? / value(b, &drawn)?)
        })
    });
    asked.ratio(Over::Turns, (value_a, value_b), interval.flatten(), a.len())
}

fn over_seconds(asked: &Asked, a: &[Digest], b: &[Digest]) -> Option<Ratio> {
    let figure = asked.figure;
    let kind = figure.part_of_blocks()?;
    let blocks = |digests: &'_ [Digest]| -> Vec<Vec<Second>> {
        let of_run = |digest: &Digest| -> Vec<Vec<Second>> {
            digest.seconds(asked.phase, kind).chunks(BLOCK_SECONDS as usize).map(<[Second]>::to_vec).collect()
        };
        digests.iter().flat_map(of_run).collect()
    };
    let (blocks_a, blocks_b) = (blocks(a), blocks(b));
    let samples = blocks_a.len().min(blocks_b.len());
    if samples < BLOCKS_MIN {
        return None;
    }
    let all = |blocks: &[Vec<Second>]| (0..blocks.len()).collect::<Vec<usize>>();
    let value_a = figure.over_blocks(&blocks_a, &all(&blocks_a))?;
    let value_b = figure.over_blocks(&blocks_b, &all(&blocks_b))?;
    let mut draw = Draw::new(SEED);
    let interval = bootstrap(|| {
        let (drawn_a, drawn_b) = (draw.places(blocks_a.len()), draw.places(blocks_b.len()));
        Some(figure.over_blocks(&blocks_a, &drawn_a)? / figure.over_blocks(&blocks_b, &drawn_b)?)
    });
    asked.ratio(Over::Seconds, (value_a, value_b), interval, samples)
}

impl Asked<'_> {
    /// A document has no way to say infinite, and a ratio to nothing says nothing: none then.
    fn ratio(
        &self,
        over: Over,
        (a, b): (f64, f64),
        interval: Option<Interval>,
        samples: usize,
    ) -> Option<Ratio> {
        let ratio = a / b;
        ratio.is_finite().then(|| Ratio {
            figure: self.figure,
            phase: self.named.to_owned(),
            to: self.to,
            over,
            a,
            b,
            ratio,
            interval,
            samples: samples as u32,
        })
    }
}

/// The middle of what `again` gives, [`CONFIDENCE`] of it.
fn bootstrap(mut again: impl FnMut() -> Option<f64>) -> Option<Interval> {
    let mut values: Vec<f64> =
        (0..RESAMPLES).filter_map(|_| again()).filter(|value| value.is_finite()).collect();
    // A drawing without a single record has no ratio; of many such, the rest is not a fair sample.
    if values.len() < RESAMPLES as usize * 9 / 10 {
        return None;
    }
    values.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (share * (values.len() - 1) as f64).round() as usize;
        values.get(place).copied()
    };
    Some(Interval { low: at((1.0 - CONFIDENCE) / 2.0)?, high: at((1.0 + CONFIDENCE) / 2.0)? })
}

/// Drawing with replacement.
struct Draw(fastrand::Rng);

impl Draw {
    fn new(seed: u64) -> Draw {
        Draw(fastrand::Rng::with_seed(seed))
    }

    fn places(&mut self, count: usize) -> Vec<usize> {
        (0..count).map(|_| self.0.usize(..count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{PartKind, fixture};

    fn digests(speeds: &[f64]) -> Vec<Digest> {
        let run = |(turn, speed): (usize, &f64)| {
            Digest::of(&fixture::run("x", turn as u64, *speed)).expect("a sound fixture")
        };
        speeds.iter().enumerate().map(run).collect()
    }

    fn find(ratios: &[Ratio], figure: Figure, over: Over) -> Option<&Ratio> {
        ratios.iter().find(|one| one.figure == figure && one.over == over)
    }

    #[test]
    fn the_interval_of_a_mean_is_what_theory_says() {
        // Of 400 samples, 1..=400: the mean is 200.5, its standard error sd / sqrt(n) = 115.47 / 20 = 5.77.
        let values: Vec<f64> = (1..=400).map(f64::from).collect();
        let mut draw = Draw::new(1);
        let interval = bootstrap(|| {
            let drawn = draw.places(values.len());
            Some(drawn.iter().map(|place| values[*place]).sum::<f64>() / values.len() as f64)
        })
        .expect("an interval");
        assert!((interval.low - (200.5 - 1.96 * 5.77)).abs() < 0.8, "{interval:?}");
        assert!((interval.high - (200.5 + 1.96 * 5.77)).abs() < 0.8, "{interval:?}");
    }

    #[test]
    fn it_covers_the_truth_about_as_often_as_it_says() {
        // 300 samples of 40 even numbers in [0, 1): their true mean is 0.5.
        let mut source = fastrand::Rng::with_seed(7);
        let covered = (0..300u64)
            .filter(|round| {
                let values: Vec<f64> = (0..40).map(|_| source.f64()).collect();
                let mut draw = Draw::new(*round);
                let interval = bootstrap(|| {
                    Some(draw.places(40).iter().map(|place| values[*place]).sum::<f64>() / 40.0)
                })
                .expect("an interval");
                interval.low <= 0.5 && 0.5 <= interval.high
            })
            .count();
        assert!((273..=297).contains(&covered), "{covered} of 300, and 285 are expected");
    }

    #[test]
    fn drawings_without_a_value_make_no_interval() {
        assert_eq!(bootstrap(|| None), None);
        let mut count = 0;
        let half = bootstrap(|| {
            count += 1;
            (count % 2 == 0).then_some(1.0)
        });
        assert_eq!(half, None);
    }

    #[test]
    fn equal_runs_are_even_and_the_interval_says_so() {
        let speeds = [1.0, 1.0, 1.0, 1.0];
        let found = ratios(&digests(&speeds), &digests(&speeds), 1);
        for figure in [Figure::ProduceP99, Figure::ProduceRecordsPerS, Figure::CpuPerGb] {
            let ratio = find(&found, figure, Over::Turns).expect("a ratio");
            assert_eq!((ratio.ratio, ratio.samples), (1.0, 4), "{ratio:?}");
            assert_eq!(ratio.interval, Some(Interval { low: 1.0, high: 1.0 }), "{ratio:?}");
        }
    }

    #[test]
    fn what_slows_both_of_a_turn_does_not_widen_the_interval() {
        // Always twice as slow, in turns that differ tenfold from each other.
        let a = digests(&[2.0, 20.0, 6.0, 2.4]);
        let b = digests(&[1.0, 10.0, 3.0, 1.2]);
        let found = ratios(&a, &b, 1);
        let paired = find(&found, Figure::ProduceP50, Over::Turns).expect("a ratio");
        let interval = paired.interval.expect("an interval");
        assert!(interval.low > 1.9 && interval.high < 2.1, "{paired:?}");
    }

    #[test]
    fn of_too_few_turns_there_is_a_ratio_and_no_interval() {
        let found = ratios(&digests(&[2.0, 2.0]), &digests(&[1.0, 1.0]), 1);
        let ratio = find(&found, Figure::ProduceP50, Over::Turns).expect("a ratio");
        assert!(ratio.ratio > 1.5 && ratio.interval.is_none(), "{ratio:?}");
        // Seconds there are enough of, and only for rates.
        assert!(find(&found, Figure::ProduceRecordsPerS, Over::Seconds).expect("a ratio").interval.is_some());
        assert!(find(&found, Figure::ProduceP99, Over::Seconds).is_none());
    }

    #[test]
    fn the_same_runs_give_the_same_interval() {
        let (a, b) = (digests(&[1.0, 1.3, 0.8]), digests(&[2.0, 1.9, 2.2]));
        assert_eq!(ratios(&a, &b, 1), ratios(&a, &b, 1));
    }

    #[test]
    fn nothing_produced_is_no_ratio() {
        let mut silent = fixture::run("x", 1, 1.0);
        silent.parts.retain(|part| part.kind != PartKind::Produce);
        let silent = [Digest::of(&silent).expect("sound")];
        let found = ratios(&silent, &digests(&[1.0]), 1);
        assert!(find(&found, Figure::ProduceRecordsPerS, Over::Turns).is_none());
        assert!(find(&found, Figure::EndToEndP99, Over::Turns).is_some());
    }
}

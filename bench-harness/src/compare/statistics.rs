//! Ratios and how sure one may be of them: the bootstrap (Efron 1979), by percentiles of the ratio over samples drawn
//! again with replacement. Two kinds of sample, because they answer different questions; see [`Over`]. The seed is fixed
//! and stands in the document, so the same runs give the same interval.
//!
//! Of few samples the drawn ones vary too little: their variance is too small by `(n - 1) / n`, and the estimate of it is
//! itself uncertain, which is what Student's distribution is for. So the logarithm of the interval is widened about that of
//! the ratio by both (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 3.3).

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
        let drawn = bootstrap(|| {
            // A and B of a turn together: what disturbed the machine then disturbed both.
            let drawn = draw.places(a.len());
            Some(value(a, &drawn)? / value(b, &drawn)?)
        });
        drawn.map(|interval| widened(interval, value_a / value_b, a.len()))
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
    let interval = interval.map(|interval| widened(interval, value_a / value_b, samples));
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
            is_withheld: false,
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

/// The interval of a ratio as wide as `samples` allow; see the head of this file.
fn widened(interval: Interval, ratio: f64, samples: usize) -> Interval {
    let samples = samples.max(2) as f64;
    let factor = student(samples as usize - 1) / NORMAL * (samples / (samples - 1.0)).sqrt();
    let end = |value: f64| ratio * (value / ratio).powf(factor);
    Interval { low: end(interval.low), high: end(interval.high) }
}

/// Of the normal distribution, the middle [`CONFIDENCE`] of which lies within.
const NORMAL: f64 = 1.959_964;

/// The same of Student's distribution with so many degrees of freedom.
fn student(degrees: usize) -> f64 {
    const KNOWN: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    // Past these by the first terms of its expansion (Abramowitz and Stegun 26.7.5).
    let expanded = |degrees: f64| {
        let (z3, z5) = (NORMAL.powi(3), NORMAL.powi(5));
        let first = (z3 + NORMAL) / (4.0 * degrees);
        let second = (5.0 * z5 + 16.0 * z3 + 3.0 * NORMAL) / (96.0 * degrees * degrees);
        NORMAL + first + second
    };
    degrees
        .checked_sub(1)
        .and_then(|place| KNOWN.get(place))
        .copied()
        .unwrap_or_else(|| expanded(degrees as f64))
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
    fn of_five_turns_it_covers_the_truth_nearly_as_often_too() {
        // Log-normal with a spread of 20 %, as turns on a busy machine vary: the ratio of sums is 1 in truth.
        const TURNS: usize = 5;
        const ROUNDS: u64 = 400;
        let mut source = fastrand::Rng::with_seed(11);
        let mut turn = || {
            let radius = (-2.0 * (1.0 - source.f64()).ln()).sqrt();
            (0.2 * radius * (std::f64::consts::TAU * source.f64()).cos()).exp()
        };
        let (mut plain, mut wide) = (0, 0);
        for round in 0..ROUNDS {
            let sides: [Vec<f64>; 2] = [0, 1].map(|_| (0..TURNS).map(|_| turn()).collect());
            let ratio = |drawn: &[usize]| {
                let [a, b] = sides.each_ref().map(|side| drawn.iter().map(|place| side[*place]).sum::<f64>());
                a / b
            };
            let mut draw = Draw::new(round);
            let interval = bootstrap(|| Some(ratio(&draw.places(TURNS)))).expect("an interval");
            let covers = |interval: Interval| interval.low <= 1.0 && 1.0 <= interval.high;
            plain += u32::from(covers(interval));
            wide += u32::from(covers(widened(interval, ratio(&[0, 1, 2, 3, 4]), TURNS)));
        }
        assert!(plain < 350, "{plain} of 400: without a correction it is far too narrow");
        assert!((372..=396).contains(&wide), "{wide} of 400, and 380 are expected");
    }

    #[test]
    fn few_samples_widen_an_interval_and_many_leave_it() {
        for (degrees, expected) in [(2, 4.303), (4, 2.776), (11, 2.201), (30, 2.042), (100, 1.984)] {
            assert!((student(degrees) - expected).abs() < 0.003, "{degrees}: {}", student(degrees));
        }
        let interval = Interval { low: 1.8, high: 2.2 };
        let few = widened(interval, 2.0, 3);
        assert!(few.low < 1.55 && few.high > 2.55, "{few:?}");
        let many = widened(interval, 2.0, 1000);
        assert!((many.low - 1.8).abs() < 0.001 && (many.high - 2.2).abs() < 0.001, "{many:?}");
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

//! Where to begin reading, as `-o` and `--to` take it: `start`, `end`, an offset, so many from the start or the end, or a
//! time. The words of kcat and rpk are understood.

use crate::time;
use flumen_client::Cluster;
use flumen_client::cluster::{EARLIEST, LATEST};
use flumen_client::consumer::offsets_at;
use flumen_client::error::Error;
use flumen_client::metadata::TopicPartition;
use std::collections::BTreeMap;

/// See the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OffsetSpec {
    /// The start of the log.
    Start,
    /// Its end.
    End,
    /// That offset, brought inside the log.
    At(i64),
    /// So many after the start.
    FromStart(i64),
    /// So many before the end.
    FromEnd(i64),
    /// The first record of that time or later, in milliseconds since the epoch.
    Time(i64),
}

/// For clap.
pub(crate) fn parse(text: &str) -> Result<OffsetSpec, String> {
    let number =
        |digits: &str| digits.parse::<i64>().ok().filter(|n| *n >= 0 && !digits.starts_with(['+', '-']));
    let spec = match text {
        "start" | "beginning" | "earliest" => Some(OffsetSpec::Start),
        "end" | "latest" => Some(OffsetSpec::End),
        _ => match text.as_bytes().first() {
            Some(b'@') => time::parse(&text[1..], time::now_ms()).map(OffsetSpec::Time),
            Some(b'-') => number(&text[1..]).map(OffsetSpec::FromEnd),
            Some(b'+') => number(&text[1..]).map(OffsetSpec::FromStart),
            _ => number(text).map(OffsetSpec::At),
        },
    };
    spec.ok_or_else(|| {
        "give start, end, an offset, +N (from the start), -N (before the end), or @TIME: @2026-01-31T12:00, @-1h, @ and \
         milliseconds or seconds since 1970"
            .to_owned()
    })
}

impl OffsetSpec {
    /// The offset in each partition. Never outside of the log.
    pub(crate) async fn resolve(
        self,
        cluster: &Cluster,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, i64>, Error> {
        match self {
            OffsetSpec::Start => offsets_at(cluster, partitions, EARLIEST).await,
            OffsetSpec::End => offsets_at(cluster, partitions, LATEST).await,
            OffsetSpec::Time(ms) => offsets_at(cluster, partitions, ms.max(0)).await,
            OffsetSpec::At(_) | OffsetSpec::FromStart(_) | OffsetSpec::FromEnd(_) => {
                let starts = offsets_at(cluster, partitions, EARLIEST).await?;
                let mut ends = offsets_at(cluster, partitions, LATEST).await?;
                for (at, end) in &mut ends {
                    let start = starts.get(at).copied().unwrap_or(0);
                    *end = self.between(start, *end);
                }
                Ok(ends)
            }
        }
    }

    fn between(self, start: i64, end: i64) -> i64 {
        let wanted = match self {
            OffsetSpec::At(offset) => offset,
            OffsetSpec::FromStart(count) => start.saturating_add(count),
            OffsetSpec::FromEnd(count) => end.saturating_sub(count),
            OffsetSpec::End => end,
            OffsetSpec::Start | OffsetSpec::Time(_) => start,
        };
        wanted.max(start).min(end.max(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_notations_are_read() {
        for (text, spec) in [
            ("start", OffsetSpec::Start),
            ("beginning", OffsetSpec::Start),
            ("earliest", OffsetSpec::Start),
            ("end", OffsetSpec::End),
            ("latest", OffsetSpec::End),
            ("0", OffsetSpec::At(0)),
            ("42", OffsetSpec::At(42)),
            ("-5", OffsetSpec::FromEnd(5)),
            ("+5", OffsetSpec::FromStart(5)),
            ("@1700000000000", OffsetSpec::Time(1_700_000_000_000)),
            ("@2023-11-14", OffsetSpec::Time(1_699_920_000_000)),
        ] {
            assert_eq!(parse(text), Ok(spec), "{text}");
        }
        for text in ["", "middle", "--5", "+-5", "4x", "@", "@noon", "99999999999999999999"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_offset_is_brought_inside_the_log() {
        let place = |spec: OffsetSpec| spec.between(10, 20);
        assert_eq!(place(OffsetSpec::At(5)), 10);
        assert_eq!(place(OffsetSpec::At(15)), 15);
        assert_eq!(place(OffsetSpec::At(99)), 20);
        assert_eq!(place(OffsetSpec::FromStart(3)), 13);
        assert_eq!(place(OffsetSpec::FromEnd(3)), 17);
        assert_eq!(place(OffsetSpec::FromEnd(99)), 10);
        assert_eq!(place(OffsetSpec::FromEnd(i64::MAX)), 10);
    }
}

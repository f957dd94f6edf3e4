#![allow(clippy::disallowed_methods)] // reads its scenarios
//! Plays the scenarios in `tests/scenarios/producer`, one per file: a line is a command, and the lines after it that begin with
//! `>` are what must come of it. `FLUMEN_BLESS=1` writes what came instead.
//!
//! ```text
//! send P EPOCH SEQUENCE COUNT    producer P sends a batch; it is appended where that is the verdict
//! plain COUNT                    a batch without a producer id is appended
//! found P EPOCH SEQUENCE COUNT   recovery finds this batch in the log
//! wait MS                        time passes
//! expire                         forgets producers that were silent too long (100 ms)
//! truncate OFFSET                cuts the log
//! restart                        snapshot and restore
//! show                           lists what is remembered
//! ```
#![allow(clippy::unwrap_used)]

mod scenario;

use flumen_core::producer::{ProducerTable, Verdict};
use flumen_core::types::Offset;
use flumen_wire::batch::{Attributes, BatchHeader, MAGIC};
use std::fmt::Write;

const EXPIRATION_MS: i64 = 100;

struct World {
    table: ProducerTable,
    now_ms: i64,
    log_end: i64,
}

#[test]
fn scenarios() {
    scenario::play_all("producer", play);
}

fn play(script: &str) -> String {
    let mut world = World { table: ProducerTable::new(EXPIRATION_MS), now_ms: 0, log_end: 0 };
    let mut out = String::new();
    for line in script.lines().filter(|line| !line.starts_with('>')) {
        writeln!(out, "{line}").unwrap();
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
        if let Some((command, arguments)) = words.split_first() {
            let numbers: Vec<i64> = arguments.iter().map(|word| word.parse().unwrap()).collect();
            for outcome in world.run(command, &numbers) {
                writeln!(out, "> {outcome}").unwrap();
            }
        }
    }
    out
}

impl World {
    fn run(&mut self, command: &str, numbers: &[i64]) -> Vec<String> {
        match (command, numbers) {
            ("send", &[id, epoch, sequence, count]) => {
                let header = self.header(id, epoch, sequence, count);
                vec![match self.table.check(self.now_ms, &header) {
                    Ok(Verdict::Append) => {
                        self.table.update(self.now_ms, &header);
                        self.append(count)
                    }
                    Ok(Verdict::Duplicate { base_offset, last_offset, append_time }) => {
                        format!("duplicate of {base_offset}..={last_offset} written at {append_time}")
                    }
                    Err(error) => format!("{}: {error}", error.error_code()),
                }]
            }
            ("plain", &[count]) => {
                self.table.update(self.now_ms, &self.header(-1, -1, -1, count));
                vec![self.append(count)]
            }
            ("found", &[id, epoch, sequence, count]) => {
                self.table.apply_recovered(self.now_ms, &self.header(id, epoch, sequence, count));
                self.log_end += count;
                vec![]
            }
            ("wait", &[ms]) => {
                self.now_ms += ms;
                vec![]
            }
            ("expire", []) => vec![format!("{} forgotten", self.table.expire(self.now_ms))],
            ("truncate", &[offset]) => {
                self.table.truncate_to(Offset(offset));
                self.log_end = offset;
                vec![]
            }
            ("restart", []) => {
                self.table = ProducerTable::restore(EXPIRATION_MS, &self.table.snapshot()).unwrap();
                vec![]
            }
            ("renewed", []) => {
                self.table.expect_old();
                vec![]
            }
            ("show", []) => self.show(),
            _ => panic!("no such command: {command} {numbers:?}"),
        }
    }

    fn append(&mut self, count: i64) -> String {
        let base_offset = self.log_end;
        self.log_end += count;
        format!("appended {base_offset}..={}", self.log_end - 1)
    }

    fn show(&self) -> Vec<String> {
        self.table
            .snapshot()
            .producers
            .iter()
            .map(|p| {
                let window: Vec<String> = p
                    .window()
                    .iter()
                    .map(|b| format!("{}-{} @{}", b.first_sequence(), b.last_sequence, b.base_offset()))
                    .collect();
                format!("producer {} epoch {}: {}", p.producer_id, p.epoch, window.join(", "))
            })
            .collect()
    }

    fn header(&self, producer_id: i64, epoch: i64, sequence: i64, count: i64) -> BatchHeader {
        BatchHeader {
            base_offset: self.log_end,
            batch_length: 49,
            partition_leader_epoch: 0,
            magic: MAGIC,
            crc: 0,
            attributes: Attributes::default(),
            last_offset_delta: count as i32 - 1,
            base_timestamp: self.now_ms,
            max_timestamp: self.now_ms,
            producer_id,
            producer_epoch: epoch as i16,
            base_sequence: sequence as i32,
            record_count: count as i32,
        }
    }
}

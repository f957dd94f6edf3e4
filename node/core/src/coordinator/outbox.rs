//! What a coordinator wants done: records appended, and answers given once what they depend on is in the log.
//!
//! ```text
//!   request ── decide ── write(record): replayed, and put into the open decision
//!                └────── answer(token): held ──────────────┐
//!   close: the decision is complete          next_batch ──>│append── committed ──> ready
//! ```
//!
//! Invariants:
//! - **an answer is ready only when every decision made before it, its own included, is committed**: also one that
//!   only read, since what it read may not be in the log yet. Where that takes too long, an error is answered instead
//!   ([`Outbox::refuse_held`]), and the decisions stand: to whoever asked, as if the answer was lost;
//! - a decision's records are in one batch: it is in the log as a whole or not at all;
//! - batches are appended one after the other, so what is committed is always a prefix of the decisions;
//! - each token that was taken is answered once: [`Outbox::abandon`] has those that were not.

use std::collections::{BTreeSet, VecDeque};

use flumen_wire::ErrorCode;

use super::answer::Answer;
use super::record::Record;

/// A request's mark, chosen by whoever asks. No two that are unanswered are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Records to append as one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// In their order.
    pub records: Vec<Record>,
    /// The batch holds the decisions up to this one.
    decisions: u64,
}

/// Decisions and answers on their way.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// The decision that is being made, and the answers given in it.
    open: Vec<Record>,
    answering: Vec<(Token, Answer)>,
    /// Complete decisions that no batch holds yet.
    closed: VecDeque<Vec<Record>>,
    closed_bytes: usize,
    /// Decisions made, given out in batches, committed: each a prefix of the one before.
    made: u64,
    given: u64,
    committed: u64,
    /// Answers, with the decision that each waits for; these rise.
    held: VecDeque<(u64, Token, Answer)>,
    /// Tokens that were taken and not answered yet.
    unanswered: BTreeSet<Token>,
}

impl Outbox {
    /// Takes a request in.
    pub(super) fn take(&mut self, token: Token) {
        let is_new = self.unanswered.insert(token);
        assert!(is_new, "a token is used once");
    }

    /// Puts a record, which was replayed, into the open decision.
    pub(super) fn write(&mut self, record: Record) {
        self.open.push(record);
    }

    /// Answers a request, once the decision that is being made is committed.
    pub(super) fn answer(&mut self, token: Token, answer: Answer) {
        let was_open = self.unanswered.remove(&token);
        assert!(was_open, "a token is answered once");
        self.answering.push((token, answer));
    }

    /// The open decision is complete.
    pub(super) fn close(&mut self) {
        if !self.open.is_empty() {
            let records = std::mem::take(&mut self.open);
            self.closed_bytes += records.iter().map(Record::len_bytes).sum::<usize>();
            self.closed.push_back(records);
            self.made += 1;
        }
        let after = self.made;
        self.held.extend(self.answering.drain(..).map(|(token, answer)| (after, token, answer)));
    }

    /// Bytes of records that no batch holds yet.
    pub(super) fn backlog_bytes(&self) -> usize {
        self.closed_bytes
    }

    /// The next batch: as many decisions as fit into `bytes_max`, one at least. None while one is being appended.
    pub(super) fn next_batch(&mut self, bytes_max: usize) -> Option<Batch> {
        if self.given > self.committed {
            return None;
        }
        let mut records = Vec::new();
        let mut bytes = 0;
        while let Some(decision) = self.closed.front() {
            bytes += decision.iter().map(Record::len_bytes).sum::<usize>();
            if bytes > bytes_max && !records.is_empty() {
                break;
            }
            records.extend(self.closed.pop_front()?);
            self.given += 1;
        }
        self.closed_bytes -= records.iter().map(Record::len_bytes).sum::<usize>();
        (!records.is_empty()).then_some(Batch { records, decisions: self.given })
    }

    /// A batch is committed.
    pub(super) fn committed(&mut self, batch: &Batch) {
        assert_eq!(batch.decisions, self.given, "one batch at a time");
        self.committed = batch.decisions;
    }

    /// Takes out the next answer that may leave.
    pub(super) fn pop_ready(&mut self) -> Option<(Token, Answer)> {
        let (after, ..) = self.held.front()?;
        if *after > self.committed {
            return None;
        }
        self.held.pop_front().map(|(_, token, answer)| (token, answer))
    }

    /// Answers whoever waits for what is not committed, without that.
    pub(super) fn refuse_held(&mut self, error: ErrorCode) {
        for (after, _, answer) in self.held.iter_mut().filter(|(after, ..)| *after > self.committed) {
            (*after, *answer) = (self.committed, Answer::Failed(error));
        }
    }

    /// Answers whoever has no answer yet.
    pub(super) fn refuse_parked(&mut self, error: ErrorCode) {
        for token in std::mem::take(&mut self.unanswered) {
            self.answering.push((token, Answer::Failed(error)));
        }
        self.close();
    }

    /// How many tokens have no answer which left.
    pub(super) fn unanswered(&self) -> usize {
        self.unanswered.len() + self.held.len()
    }

    /// Every token that has no answer which left: the state that they depend on is gone.
    pub(super) fn abandon(self) -> Vec<Token> {
        assert!(self.open.is_empty() && self.answering.is_empty(), "decisions are closed");
        let held = self.held.into_iter().map(|(_, token, _)| token);
        held.chain(self.unanswered).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: usize) -> Record {
        Record { key: vec![0; bytes], value: None }
    }

    fn failed() -> Answer {
        Answer::Failed(ErrorCode::None)
    }

    #[test]
    fn an_answer_waits_for_all_decisions_before_it() {
        let mut outbox = Outbox::default();
        for token in [1, 2, 3, 4] {
            outbox.take(Token(token));
        }
        outbox.answer(Token(1), failed());
        outbox.close();
        assert_eq!(outbox.pop_ready(), Some((Token(1), failed())));
        outbox.answer(Token(2), failed());
        outbox.write(record(10));
        outbox.close();
        // This one only reads, and what it reads may be what the other has written.
        outbox.answer(Token(3), failed());
        outbox.close();
        assert_eq!(outbox.pop_ready(), None);
        let batch = outbox.next_batch(1_000).expect("a batch");
        outbox.write(record(10));
        outbox.answer(Token(4), failed());
        outbox.close();
        assert_eq!(outbox.next_batch(1_000), None, "one at a time");
        outbox.committed(&batch);
        assert_eq!(outbox.pop_ready(), Some((Token(2), failed())));
        assert_eq!(outbox.pop_ready(), Some((Token(3), failed())));
        assert_eq!(outbox.pop_ready(), None);
        assert_eq!(outbox.abandon(), [Token(4)]);
    }

    #[test]
    fn answers_may_be_refused_before_what_they_wait_for_is_committed() {
        let mut outbox = Outbox::default();
        for token in [1, 2, 3] {
            outbox.take(Token(token));
        }
        outbox.write(record(10));
        outbox.answer(Token(1), failed());
        outbox.close();
        let batch = outbox.next_batch(1_000).expect("a batch");
        outbox.answer(Token(2), failed());
        outbox.close();
        assert_eq!(outbox.pop_ready(), None);
        let refused = Answer::Failed(ErrorCode::NotCoordinator);
        outbox.refuse_held(ErrorCode::NotCoordinator);
        assert_eq!(outbox.pop_ready(), Some((Token(1), refused.clone())));
        assert_eq!(outbox.pop_ready(), Some((Token(2), refused)));
        // The decision stands, and whoever asks now waits for it.
        outbox.answer(Token(3), failed());
        outbox.close();
        assert_eq!(outbox.pop_ready(), None);
        outbox.committed(&batch);
        assert_eq!(outbox.pop_ready(), Some((Token(3), failed())));
    }

    #[test]
    fn decisions_are_not_torn() {
        let mut outbox = Outbox::default();
        let beside = record(0).len_bytes();
        for sizes in [&[60, 60][..], &[30], &[30], &[500, 500], &[30]] {
            sizes.iter().for_each(|size| outbox.write(record(*size - beside)));
            outbox.close();
        }
        assert_eq!(outbox.backlog_bytes(), 1_210);
        let mut sizes = Vec::new();
        while let Some(batch) = outbox.next_batch(180) {
            sizes.push(batch.records.len());
            outbox.committed(&batch);
        }
        assert_eq!(sizes, [4, 2, 1]);
        assert_eq!(outbox.backlog_bytes(), 0);
    }
}

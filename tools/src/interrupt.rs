//! Ctrl-C and SIGTERM: the first asks a command to end in order, the second ends it.

use crate::failure::Failure;
use flumen_client::runtime;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often it is looked whether a signal came.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// How long what is to end in order may take after it was asked to.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// Whether the command has been asked to end.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on signals are heard here.
    pub(crate) fn listen() -> Result<Interrupt, Failure> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal sets the flag, which arms the second.
            flag::register_conditional_shutdown(signal, 128 + signal, asked.clone())
                .and_then(|_| flag::register(signal, asked.clone()))
                .map_err(|error| Failure::io("signals", error))?;
        }
        Ok(Interrupt(asked))
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// What comes of `work`; none where it is not done so long after the command was asked to end. It is then dropped.
    pub(crate) async fn bounds<F: Future>(&self, grace: Duration, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        let mut until = None;
        loop {
            if let Some(done) = runtime::timeout(TICK, work.as_mut()).await {
                return Some(done);
            }
            if self.is_asked() && Instant::now() >= *until.get_or_insert_with(|| Instant::now() + grace) {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};

    #[test]
    fn only_an_interrupt_ends_what_does_not_end() {
        let interrupt = Interrupt(Arc::default());
        let asked = interrupt.0.clone();
        runtime::block_on(async {
            assert_eq!(interrupt.bounds(Duration::ZERO, ready(5)).await, Some(5));
            let later = async {
                runtime::sleep(TICK * 2).await;
                asked.store(true, Ordering::Relaxed);
                pending::<()>().await;
            };
            assert_eq!(interrupt.bounds(Duration::ZERO, later).await, None);
            // What is done in time counts also then.
            assert_eq!(interrupt.bounds(Duration::ZERO, ready(5)).await, Some(5));
            let slow = async {
                runtime::sleep(TICK * 2).await;
                5
            };
            assert_eq!(interrupt.bounds(GRACE, slow).await, Some(5));
        });
    }
}

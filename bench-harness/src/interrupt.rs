//! Ctrl-C: the first asks for the end of the load, so that what was measured is written; the second ends the program.

use crate::failure::Failure;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Set when the user, or whoever runs us, wants the end.
pub(crate) fn flag() -> Result<Arc<AtomicBool>, Failure> {
    const SECOND_TIME: i32 = 130;
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // In this order: the first arms the second.
        signal_hook::flag::register_conditional_shutdown(signal, SECOND_TIME, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .map_err(|error| Failure::io("the handler of Ctrl-C", error))?;
    }
    Ok(flag)
}

//! Chores of the project that need more than a shell: generating code that is committed.
//!
//! ```text
//! cargo run -p xtask -- codegen messages     # wire/src/messages and group, and what wire/samples needs, from Kafka's
//!                                            # message definitions
//! cargo run -p xtask -- codegen schemas      # flatbuffers/src/generated, from flatbuffers/schemas
//! ```
//!
//! What is generated is committed, so that a build needs nothing of this; a test here regenerates it and compares.

mod codegen;
mod messages;
mod schemas;

use std::process::ExitCode;

const USAGE: &str = "usage: xtask codegen messages|schemas";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["codegen", "messages"] => messages::generate().and_then(|files| codegen::write(&files)),
        ["codegen", "schemas"] => schemas::generate().and_then(|files| codegen::write(&files)),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

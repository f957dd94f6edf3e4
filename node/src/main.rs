//! The node's binary.
fn main() {
    eprintln!("flumen-node: this build does not serve yet");
    std::process::exit(1);
}

//! Text scenarios: files below `tests/scenarios` that hold a script and what comes of each of its lines.

use std::path::Path;

/// Plays every file of a folder; what comes out must be the file itself. With `FLUMEN_BLESS` set it is written instead.
pub(crate) fn play_all(folder: &str, play: impl Fn(&str) -> String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios").join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let expected = std::fs::read_to_string(&path).unwrap();
        let played = play(&expected);
        if std::env::var_os("FLUMEN_BLESS").is_some() {
            std::fs::write(&path, &played).unwrap();
        } else {
            assert!(
                played == expected,
                "{}: expected\n{expected}\nbut it came out as\n{played}",
                path.display()
            );
        }
    }
}

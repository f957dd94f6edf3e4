//! The rules of the tree that no compiler checks: which crate and module may know which, where `unsafe` and
//! glommio may be named. Also prints, without failing, the longest files and functions, so that growth is seen.

use std::fs;
use std::path::{Path, PathBuf};

/// Crates and the crates of this workspace that they may depend on, outside tests.
const CRATE_EDGES: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("client", &["flumen-wire"]),
    ("flatbuffers", &[]),
    ("node/core", &["flumen-wire"]),
    ("node/storage", &["flumen-core", "flumen-schemas", "flumen-wire"]),
    ("node", &["flumen-core", "flumen-storage", "flumen-wire"]),
    // Measures any broker: it knows the protocol and the client, nothing of the node.
    ("bench-harness", &["flumen-client", "flumen-wire"]),
    // Of the node it uses what looks at the machine, of core and storage the formats on disk.
    ("tools", &["flumen-client", "flumen-core", "flumen-node", "flumen-storage", "flumen-wire"]),
];

/// Modules of `node/core` and the sibling modules that each may use, besides `types` and `limits`.
const CORE_EDGES: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("coordinator", &["config", "metadata"]),
    ("epochs", &[]),
    ("fetch", &[]),
    ("journal", &[]),
    // Its const asserts relate the bounds to the tables of settings.
    ("limits", &["config"]),
    ("log", &["config", "epochs", "producer"]),
    ("metadata", &["config"]),
    ("producer", &[]),
    ("types", &[]),
];

/// Where glommio, or the client's other executor, may be named. `admin` wraps its streams for hyper; the log leaves out lines of its reactor.
const GLOMMIO_PLACES: &[&str] = &[
    "bench-harness/src/limits/disk",
    "client/src/runtime",
    "node/src/admin",
    "node/src/disk",
    "node/src/net",
    "node/src/probe/log",
    "node/src/runtime",
    "node/src/sys",
];

/// Where `unsafe` may be written.
const UNSAFE_PLACES: &[&str] = &["node/src/sys"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

struct Source {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for folder in ["wire/src", "client/src", "flatbuffers/src", "node", "bench-harness/src", "tools", "tests"]
    {
        collect(&root().join(folder), &mut found);
    }
    assert!(found.len() > 20, "the sources are where this test looks for them");
    found
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() && name != "target" && name != "fuzz" {
            collect(&path, found);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).expect("a readable source");
            let relative = path.strip_prefix(root()).expect("below the root");
            found.push(Source { path: relative.to_string_lossy().into_owned(), text });
        }
    }
}

fn is_below(path: &str, folders: &[&str]) -> bool {
    folders.iter().any(|f| path == format!("{f}.rs") || path.starts_with(&format!("{f}/")))
}

/// Lines of code, without comments.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(i, line)| (i + 1, line.split("//").next().unwrap_or_default()))
        .filter(|(_, line)| !line.trim().is_empty())
}

#[test]
fn crates_depend_one_way() {
    let mut wrong = Vec::new();
    for (folder, allowed) in CRATE_EDGES {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        let mut section = "";
        for line in manifest.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if section == "[dependencies]" && name.starts_with("flumen-") && !allowed.contains(&name) {
                wrong.push(format!("{folder} must not depend on {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn siblings_in_core_keep_apart() {
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(rest) = source.path.strip_prefix("node/core/src/") else { continue };
        let module = rest.split(['/', '.']).next().unwrap_or_default();
        if module == "lib" {
            continue;
        }
        let Some((_, allowed)) = CORE_EDGES.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{}: module `{module}` is not in the table of this test", source.path));
            continue;
        };
        for (number, line) in code_lines(&source.text) {
            for used in line.match_indices("crate::").map(|(at, found)| &line[at + found.len()..]) {
                let sibling: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let fine = sibling.is_empty()
                    || sibling == module
                    || ["types", "limits"].contains(&sibling.as_str())
                    || allowed.contains(&sibling.as_str());
                if !fine {
                    wrong.push(format!("{}:{number}: `{module}` must not know `{sibling}`", source.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn glommio_and_unsafe_stay_where_they_belong() {
    let mut wrong = Vec::new();
    for source in sources() {
        if source.path == "tests/tests/tidiness.rs" {
            continue;
        }
        let production = ["node/src", "node/core/src", "client/src", "bench-harness/src", "tools/src"]
            .iter()
            .any(|folder| source.path.starts_with(folder));
        for (number, line) in code_lines(&source.text) {
            let is_executor =
                ["glommio", "async_io", "async_executor"].iter().any(|name| line.contains(name));
            if production && is_executor && !is_below(&source.path, GLOMMIO_PLACES) {
                wrong.push(format!("{}:{number}: an executor is named outside its places", source.path));
            }
            let is_unsafe =
                line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl");
            if production && is_unsafe && !is_below(&source.path, UNSAFE_PLACES) {
                wrong.push(format!("{}:{number}: `unsafe` outside node/src/sys", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Prints what has grown; never fails.
#[test]
fn longest_files_and_functions() {
    let mut files = Vec::new();
    let mut functions = Vec::new();
    for source in sources() {
        if source.text.starts_with("// @generated") || source.path.contains("/tests/") {
            continue;
        }
        let before_tests = source.text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        files.push((before_tests.lines().count(), source.path.clone()));
        let mut open: Option<(usize, usize, String)> = None;
        for (index, line) in before_tests.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let start = line.trim_start();
            if open.is_none() && start.contains("fn ") && start.ends_with('{') && !start.starts_with("//") {
                let name = start.split("fn ").nth(1).unwrap_or_default();
                let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                open = Some((index, indent, name));
            } else if let Some((from, depth, name)) = &open
                && start == "}"
                && indent == *depth
            {
                functions.push((index - from + 1, format!("{}:{} {name}", source.path, from + 1)));
                open = None;
            }
        }
    }
    files.sort_by(|a, b| b.cmp(a));
    functions.sort_by(|a, b| b.cmp(a));
    for (lines, name) in files.iter().take(10).chain(functions.iter().take(15)) {
        println!("{lines:6} lines  {name}");
    }
}

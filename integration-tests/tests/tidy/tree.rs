//! The source tree as the tidy rules see it: every Rust file with its comments and texts blanked.

use std::fs;
use std::path::{Path, PathBuf};

/// One Rust file.
pub(crate) struct Source {
    /// From the workspace root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    /// The text without comments and without the contents of literals; line numbers stay.
    pub(crate) code: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
            code: code_of(text),
        }
    }

    pub(crate) fn in_tests_folder(&self) -> bool {
        self.path.contains("/tests/")
            || self.path.contains("/benches/")
            || self.path.ends_with("tests.rs")
    }

    /// The first line that is compiled for tests only; unit tests stand at the end of a file.
    pub(crate) fn tests_from_line(&self) -> Option<usize> {
        if self.in_tests_folder() || self.path.starts_with("integration-tests/") {
            return Some(0);
        }
        self.code
            .lines()
            .position(|line| line.contains("#[cfg(test)]"))
    }

    /// The code that ends up in a binary.
    pub(crate) fn shipped_code(&self) -> String {
        let lines = self.tests_from_line().unwrap_or(usize::MAX);
        self.code.lines().take(lines).collect::<Vec<_>>().join("\n")
    }
}

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// Every Rust file of the workspace.
pub(crate) fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for path in files(&root(), "rs") {
        let text = fs::read_to_string(root().join(&path)).expect("readable UTF-8");
        found.push(Source::new(&path, &text));
    }
    assert!(found.len() > 20, "only {} sources found", found.len());
    found
}

/// Every file of that extension, from the root with `/`, but for what was built or fetched.
pub(crate) fn files(root: &Path, extension: &str) -> Vec<String> {
    let mut folders = vec![root.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let entry = entry.expect("a readable entry");
            let name = entry.file_name().into_string().expect("UTF-8 file name");
            let kind = entry.file_type().expect("a file type");
            let built =
                ["target", "test-artifacts", "node_modules", "venv"].contains(&name.as_str());
            // `.ci` is the one hidden folder that holds something of ours, and it has no such file.
            if kind.is_dir() && !built && !name.starts_with('.') {
                folders.push(entry.path());
            } else if kind.is_file()
                && Path::new(&name)
                    .extension()
                    .is_some_and(|end| end == extension)
            {
                let path = entry.path();
                let inside = path.strip_prefix(root).expect("below the root");
                found.push(inside.to_str().expect("UTF-8").replace('\\', "/"));
            }
        }
    }
    found.sort();
    found
}

/// Whether the text holds the word, and not only as a part of a longer one.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(part)
            && !text[at + word.len()..].chars().next().is_some_and(part)
    })
}

/// Blanks comments and the insides of literals. Knows just enough of the language for that.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let previous_is_word = code
            .chars()
            .next_back()
            .is_some_and(|p| p.is_alphanumeric() || p == '_');
        let skipped = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => comment_length(rest),
            '"' => quoted_length(rest),
            'r' | 'b' | 'c' if !previous_is_word => raw_length(rest).unwrap_or(0),
            '\'' => character_length(rest),
            _ => 0,
        };
        if skipped == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(
                rest[..skipped]
                    .chars()
                    .map(|c| if c == '\n' { '\n' } else { ' ' }),
            );
            rest = &rest[skipped..];
        }
    }
    code
}

fn comment_length(text: &str) -> usize {
    let mut depth = 0_usize;
    let bytes = text.as_bytes();
    let mut at = 0;
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

fn quoted_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Of `r"…"`, `r#"…"#`, `br"…"` and `cr"…"`.
fn raw_length(text: &str) -> Option<usize> {
    let after_prefix = text.trim_start_matches(['b', 'c']).strip_prefix('r')?;
    let after_hashes = after_prefix.trim_start_matches('#');
    let inside = after_hashes.strip_prefix('"')?;
    let hashes = after_prefix.len() - after_hashes.len();
    let end = format!("\"{}", "#".repeat(hashes));
    let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some(text.len() - inside.len() + length)
}

/// Of a character literal; 0 for a lifetime.
fn character_length(text: &str) -> usize {
    let mut inside = text.char_indices().skip(1);
    match inside.next() {
        Some((_, '\\')) => text[2..]
            .find('\'')
            .map_or(0, |at| if at == 0 { 4 } else { at + 3 }),
        Some(_) => inside
            .next()
            .filter(|(_, c)| *c == '\'')
            .map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

#[test]
fn comments_and_literals_are_blanked_and_lines_stay() {
    let check = |text: &str, expect: &str| {
        assert_eq!(
            code_of(text)
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
            expect
        )
    };
    check("a /* b /* c */ d */ e // f", "a e");
    check(r#"a("b \" c", 'd', '\'', '\n', b"e")"#, "a( , , , , b )");
    check("a::<'b>(r##\"c \"# d\"##) e", "a::<'b>( ) e");
    check("for_r\"x\" y", "for_r y");
    assert_eq!(code_of("/*\n\n*/x\n\"\n\"").lines().count(), 5);
}

//! Runs the commands of `docs/tutorial/first-block.md` as a reader would type them, in order, in a
//! fresh folder, and compares what they print with what the page shows.
//!
//! The page's ```sh blocks run in bash and must succeed. A comment right above a block says more:
//!
//! ```text
//! <!-- background until: TEXT -->   runs until the end of the page; the next block waits for TEXT
//! <!-- shows -->                    above ```text: these lines were printed by the block before,
//!                                   in this order; … stands for anything
//! <!-- not run -->                  for reading only
//! ```
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The first start makes a Python environment, which fetches packages.
const BACKGROUND_MAX: Duration = Duration::from_secs(300);
const COMMAND_MAX: Duration = Duration::from_secs(120);
/// How often a log file is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Run(String),
    Background { command: String, until: String },
    Shows(Vec<String>),
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = page.lines();
    let mut marker = "";
    while let Some(line) = lines.next() {
        if let Some(comment) = line
            .strip_prefix("<!-- ")
            .and_then(|rest| rest.strip_suffix(" -->"))
        {
            marker = comment;
            continue;
        }
        let Some(language) = line.strip_prefix("```") else {
            marker = "";
            continue;
        };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let text = block.join("\n");
        match (language, marker) {
            (_, "not run") => {}
            ("sh", "") => steps.push(Step::Run(text)),
            ("sh", marker) => {
                let until = marker
                    .strip_prefix("background until: ")
                    .expect("a known marker");
                steps.push(Step::Background {
                    command: text,
                    until: until.to_owned(),
                });
            }
            (_, "shows") => steps.push(Step::Shows(block.into_iter().map(str::to_owned).collect())),
            (_, "") => {}
            (_, other) => panic!("unknown marker: {other}"),
        }
        marker = "";
    }
    steps
}

/// Whether the text is the pattern, in which `…` stands for anything.
fn is_like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut exact = true;
    let mut last = "";
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
        (exact, last) = (false, part);
    }
    rest.is_empty() || !exact && (last.is_empty() || text.ends_with(last))
}

/// The first shown line that was not printed, lines in between allowed.
fn not_printed<'a>(printed: &str, shown: &'a [String]) -> Option<&'a str> {
    let mut lines = printed.lines();
    shown
        .iter()
        .find(|pattern| !lines.any(|line| is_like(line.trim_end(), pattern)))
        .map(String::as_str)
}

/// A command and all that it started, in a process group of their own.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(command: &str, folder: &Path, log: PathBuf) -> Self {
        let output = File::create(&log).expect("a log file");
        let child = Command::new("bash")
            .args(["-euo", "pipefail", "-c", command])
            .current_dir(folder)
            .env("PATH", path_with_binaries())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .process_group(0)
            .spawn()
            .expect("bash starts");
        Self { child, log }
    }

    fn printed(&self) -> String {
        let mut text = Vec::new();
        File::open(&self.log)
            .and_then(|mut log| log.read_to_end(&mut text))
            .expect("a readable log");
        String::from_utf8_lossy(&text).into_owned()
    }

    fn signal(&self, name: &str) {
        let group = format!("-{}", self.child.id());
        // It fails when all of the group have ended already.
        let _ended = Command::new("kill")
            .args([name, "--", &group])
            .stderr(Stdio::null())
            .status();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal("-KILL");
        let _reaped = self.child.wait();
    }
}

/// Looks again and again until there is something to see.
#[expect(
    clippy::disallowed_methods,
    reason = "another process's output and end wake nobody here"
)]
fn wait_for<T>(at_most: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..at_most.as_millis() / LOOK_AGAIN.as_millis() {
        if let Some(seen) = look() {
            return Some(seen);
        }
        // Only between two looks at a condition.
        std::thread::sleep(LOOK_AGAIN);
    }
    look()
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// This test lives in target/debug/deps, what it tests in target/debug.
fn path_with_binaries() -> std::ffi::OsString {
    let test = std::env::current_exe().expect("a path");
    let folder = test.ancestors().nth(2).expect("target/debug").to_owned();
    assert!(
        folder.join("millrace").is_file(),
        "no {}/millrace: run `make build`",
        folder.display()
    );
    let mut path = vec![folder];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    std::env::join_paths(path).expect("a path")
}

/// What a reader has after `git clone`, as far as the page uses it.
fn copy_of_the_template(to: &Path) {
    let copied = Command::new("git")
        .args(["ls-files", "-z", "app-template"])
        .current_dir(workspace())
        .output()
        .expect("git runs");
    assert!(copied.status.success());
    for name in String::from_utf8(copied.stdout)
        .expect("UTF-8")
        .split_terminator('\0')
    {
        let target = to.join(name);
        fs::create_dir_all(target.parent().expect("a folder")).expect("created");
        fs::copy(workspace().join(name), target).expect("copied");
    }
}

#[test]
fn the_tutorial_works_as_it_is_written() {
    let page =
        fs::read_to_string(workspace().join("docs/tutorial/first-block.md")).expect("the page");
    let steps = steps(&page);
    assert!(steps.len() > 5, "the page has lost its commands: {steps:?}");
    let folder = tempfile::tempdir().expect("a folder");
    copy_of_the_template(folder.path());

    let mut background: Vec<Running> = Vec::new();
    let mut printed = String::new();
    for (number, step) in steps.iter().enumerate() {
        let log = folder.path().join(format!("step-{number}.log"));
        match step {
            Step::Run(command) => {
                let mut running = Running::start(command, folder.path(), log);
                let status = wait_for(COMMAND_MAX, || running.child.try_wait().expect("a child"));
                printed = running.printed();
                let behind: String = background.iter().map(Running::printed).collect();
                assert!(
                    status.is_some_and(|status| status.success()),
                    "{command}\nended with {status:?} and printed\n{printed}\nin the background:\n{behind}"
                );
            }
            Step::Background { command, until } => {
                let mut running = Running::start(command, folder.path(), log);
                let seen = wait_for(BACKGROUND_MAX, || {
                    let ended = running.child.try_wait().expect("a child").is_some();
                    (ended || running.printed().contains(until)).then_some(!ended)
                });
                printed = running.printed();
                assert_eq!(
                    seen,
                    Some(true),
                    "{command}\nnever printed {until:?}, but\n{printed}"
                );
                background.push(running);
            }
            Step::Shows(shown) => {
                let missing = not_printed(&printed, shown);
                assert_eq!(
                    missing, None,
                    "not printed, or not in this order; but this was\n{printed}"
                );
            }
        }
    }
    // Ctrl-C at the end, as the page says: everything stops by itself.
    for mut running in background {
        running.signal("-INT");
        let status = wait_for(COMMAND_MAX, || running.child.try_wait().expect("a child"));
        assert!(
            status.is_some(),
            "does not stop after Ctrl-C:\n{}",
            running.printed()
        );
    }
}

#[test]
fn a_page_is_read_as_its_markers_say() {
    let page = "text\n```sh\na\nb\n```\n<!-- shows -->\n```text\nx … y\n```\n<!-- not run -->\n```sh\nc\n```\n\
                <!-- background until: ready now -->\n```sh\nd\n```\n```yaml\ne\n```\n";
    let expected = [
        Step::Run("a\nb".into()),
        Step::Shows(vec!["x … y".into()]),
        Step::Background {
            command: "d".into(),
            until: "ready now".into(),
        },
    ];
    assert_eq!(steps(page), expected);
}

#[test]
fn what_was_printed_is_compared_line_by_line() {
    let shown = |lines: &[&str]| {
        lines
            .iter()
            .map(|line| (*line).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        not_printed("a 1 b\nnoise\nc", &shown(&["a … b", "c"])),
        None
    );
    assert_eq!(not_printed("c\na 1 b", &shown(&["a … b", "c"])), Some("c"));
    assert!(is_like("a 1 b 2 c", "a … b … c") && is_like("a 1", "a …") && is_like("a", "a"));
    assert!(!is_like("a 1 b", "a …c") && !is_like("a b", "a") && !is_like("x a", "a"));
}

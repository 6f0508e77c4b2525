//! `millrace man`: manual pages, one for each command.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man;

use crate::Ending;
use crate::screen::Screen;

/// Write the manual pages into a folder
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace man /usr/local/share/man/man1
  millrace man pages && man pages/millrace-check.1")]
pub struct Arguments {
    /// Where to; it is made if it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let folder = &arguments.folder;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let pages = pages()?;
    for (name, page) in &pages {
        let path = folder.join(name);
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    screen.print(&format!("{} pages in {}\n", pages.len(), folder.display()))?;
    Ok(Ending::Ok)
}

/// Name and text of each page.
fn pages() -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut command = super::Arguments::command();
    command.build();
    let mut pages = Vec::new();
    add(&command, "millrace", &mut pages)?;
    Ok(pages)
}

fn add(command: &Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    let mut page = Vec::new();
    // What the environment of this run holds is nobody's default.
    let shown = command
        .clone()
        .mut_args(|argument| argument.hide_env_values(true));
    Man::new(shown).render(&mut page)?;
    pages.push((format!("{name}.1"), page));
    let inner = command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set() && inner.get_name() != "help");
    for inner in inner {
        add(inner, &format!("{name}-{}", inner.get_name()), pages)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_examples() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["millrace.1", "millrace-check-app.1", "millrace-dlq-ls.1"] {
            assert!(names.contains(&name), "{names:?}");
        }
        for (name, page) in &pages {
            let page = String::from_utf8_lossy(page);
            assert!(page.contains(".TH"), "{name}");
            assert!(
                page.contains("xample") || page.contains("Start here") || name == "millrace-dlq.1",
                "{name}"
            );
        }
    }
}

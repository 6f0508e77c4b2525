//! `millrace schema`: the JSON Schema of the block document (C-5).

use clap::Args;

use crate::Ending;
use crate::screen::Screen;

/// Print the JSON Schema of the block document, for editors and CI
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  millrace schema > block.schema.json

In an editor with a YAML language server, put this on the first line of a block document:
  # yaml-language-server: $schema=block.schema.json")]
pub struct Arguments {}

pub(crate) fn run(_arguments: &Arguments, screen: Screen) -> anyhow::Result<Ending> {
    screen.print_json(&millrace_core::contract::block::schema())?;
    Ok(Ending::Ok)
}

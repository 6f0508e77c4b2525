//! `millrace completions`: what a shell needs to complete our commands and options.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::Ending;
use crate::screen::Screen;

/// Print the completions of a shell
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  millrace completions bash > /etc/bash_completion.d/millrace
  millrace completions zsh > \"${fpath[1]}/_millrace\"
  millrace completions fish > ~/.config/fish/completions/millrace.fish")]
pub struct Arguments {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments, screen: Screen) -> anyhow::Result<Ending> {
    let mut script = Vec::new();
    let mut command = super::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "millrace", &mut script);
    screen.print(&String::from_utf8_lossy(&script))?;
    Ok(Ending::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_completes_every_command() {
        for shell in [
            Shell::Bash,
            Shell::Zsh,
            Shell::Fish,
            Shell::Elvish,
            Shell::PowerShell,
        ] {
            let mut script = Vec::new();
            let mut command = super::super::Arguments::command();
            clap_complete::generate(shell, &mut command, "millrace", &mut script);
            let script = String::from_utf8(script).unwrap();
            for name in ["check-app", "completions", "tap"] {
                assert!(script.contains(name), "{shell}: {name}");
            }
        }
    }
}

//! Completions for shells, and man pages, made of the command line itself.

use std::path::Path;

use clap::CommandFactory;

use crate::program::arguments::{Arguments, Completions, Man};
use crate::program::failure::Failure;
use crate::program::print;

/// Prints the completions.
///
/// # Errors
/// When the standard output takes nothing.
pub(crate) fn completions(arguments: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "dmaspace", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes the man pages.
///
/// # Errors
/// When a page cannot be written.
pub(crate) fn man(arguments: &Man) -> Result<(), Failure> {
    let directory: &Path = &arguments.directory;
    clap_mangen::generate_to(Arguments::command(), directory)
        .map_err(|error| Failure::Input(format!("{}: expected a directory to write to: {error}", directory.display())))
}

#[cfg(test)]
mod tests {
    use clap::Command;
    use clap_complete::Shell;

    use super::*;

    /// Every option of a command: its long name, with dashes.
    fn options(command: &Command) -> Vec<String> {
        let options = command.get_arguments().filter(|argument| !argument.is_hide_set());
        options.filter_map(|argument| Some(format!("--{}", argument.get_long()?))).collect()
    }

    fn commands() -> Vec<Command> {
        let mut all = Arguments::command();
        all.build();
        all.get_subcommands().filter(|command| command.get_name() != "help").cloned().collect()
    }

    #[test]
    fn completions_know_every_command_and_option() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "dmaspace", &mut script);
            let script = String::from_utf8(script).expect("text");
            for command in commands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
                for option in options(&command) {
                    let known = [option.clone(), format!("-l {}", option.trim_start_matches('-'))];
                    assert!(known.iter().any(|known| script.contains(known)), "{shell}: {option}");
                }
            }
        }
    }

    #[test]
    fn there_is_a_man_page_for_every_command_with_its_options_and_examples() {
        let directory = tempfile::tempdir().expect("a directory");
        man(&Man { directory: directory.path().to_owned() }).expect("it can be written");
        let page = |name: &str| std::fs::read_to_string(directory.path().join(name)).expect(name).replace("\\-", "-");
        assert!(page("dmaspace.1").contains(".TH dmaspace 1"));
        for command in commands() {
            let name = command.get_name();
            let page = page(&format!("dmaspace-{name}.1"));
            assert!(page.contains("Examples:"), "{name}");
            for option in options(&command) {
                assert!(page.contains(&option), "{name}: {option}");
            }
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_bad_input() {
        let failure = man(&Man { directory: "/nowhere/at/all".into() }).expect_err("no directory");
        assert!(matches!(&failure, Failure::Input(text) if text.starts_with("/nowhere/at/all: expected")), "{failure}");
    }

    #[test]
    fn every_command_has_examples_in_its_help() {
        for mut command in commands() {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Examples:\n"), "{}", command.get_name());
        }
    }
}

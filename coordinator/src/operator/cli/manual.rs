//! `lockstep completions` and `lockstep man`: what shells and `man` know of the command line, made from the command line itself.

use clap_complete::Shell;
use clap_mangen::Man;

use super::exit::{Exit, Failure};
use super::{command, output};
use crate::codes::Code;

/// Shells whose completions are tried by a test.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Which {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// Which shell
    #[arg(value_name = "SHELL")]
    shell: Which,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Which command, such as `tx show`; none: `lockstep` itself
    #[arg(value_name = "COMMAND")]
    words: Vec<String>,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<Exit, Failure> {
    let shell = match args.shell {
        Which::Bash => Shell::Bash,
        Which::Zsh => Shell::Zsh,
        Which::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "lockstep", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}

pub(super) fn man(args: &ManArgs) -> Result<Exit, Failure> {
    let mut whole = command();
    whole.build();
    let mut page = whole;
    for (at, word) in args.words.iter().enumerate() {
        let inner = page
            .get_subcommands()
            .find(|inner| inner.get_name() == word || inner.get_all_aliases().any(|alias| alias == word));
        page = inner.cloned().ok_or_else(|| {
            let path = output::printable(&args.words[..=at].join(" "));
            let why = format!("`lockstep {path}` is no command");
            Failure::coded(Code::WrongCommandLine, Exit::Usage, why).remedy("`lockstep --help` lists them")
        })?;
    }
    let name = page.get_bin_name().unwrap_or("lockstep").replace(' ', "-");
    let mut text = Vec::new();
    let rendered = Man::new(page).title(name).render(&mut text);
    rendered.map_err(|error| Failure::of_system("write the page", &error))?;
    output::print(&String::from_utf8_lossy(&text))?;
    Ok(Exit::Ok)
}

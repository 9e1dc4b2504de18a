//! `slb completions` and `slb man`: scripts for shells and manual pages, made from the command line's definition.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use clap::CommandFactory as _;

use crate::Failure;
use crate::cli::{Cli, CompletionsOptions, ManOptions};
use crate::output::unwritten;

/// Prints the script by which a shell completes commands and options.
pub(crate) fn completions(options: &CompletionsOptions) -> Result<(), Failure> {
    // Into memory first: the generator panics where its output cannot be written.
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut visible(), "slb", &mut script);
    print(&script)
}

/// Writes to standard output.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(unwritten)
}

/// Writes `slb.1`, and a page for each command such as `slb-replay.1`.
pub(crate) fn pages(options: &ManOptions) -> Result<(), Failure> {
    let directory = &options.directory;
    let failed = |error: &dyn Display| Failure::failed(format!("{}: {error}", directory.display()));
    fs::create_dir_all(directory).map_err(|error| failed(&error))?;
    let mut whole = Cli::command().disable_help_subcommand(true);
    // Names of pages such as slb-state-export.
    whole.build();
    write_pages(&whole, directory).map_err(|error| failed(&error))
}

/// Writes the page of a command and of those below it.
fn write_pages(of: &clap::Command, directory: &Path) -> io::Result<()> {
    for below in of.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_pages(below, directory)?;
    }
    let page = clap_mangen::Man::new(of.clone())
        .source(concat!("slb ", env!("CARGO_PKG_VERSION")))
        .manual("slb");
    page.generate_to(directory).map(|_| ())
}

/// The command line without its hidden commands, which the program starts by itself.
fn visible() -> clap::Command {
    let whole = Cli::command();
    let shown = whole.get_subcommands().filter(|of| !of.is_hide_set());
    clap::Command::new("slb")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommands(shown.cloned())
}

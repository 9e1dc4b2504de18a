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
    let mut pages = Vec::new();
    add_pages(&whole, &mut pages);
    // All are looked at first: a directory gets all pages, or none.
    for (name, _) in &pages {
        may_replace(&directory.join(name))?;
    }
    for (name, page) in &pages {
        let path = directory.join(name);
        // Another file takes the name, so a link's target stays as it is.
        let new = directory.join(format!(".{name}.new"));
        let written = fs::write(&new, page).and_then(|()| fs::rename(&new, &path));
        written.map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

/// Adds the page of a command and those of the commands below it, each with its file's name.
fn add_pages(of: &clap::Command, pages: &mut Vec<(String, Vec<u8>)>) {
    for below in of.get_subcommands().filter(|below| !below.is_hide_set()) {
        add_pages(below, pages);
    }
    let page = clap_mangen::Man::new(of.clone())
        .source(concat!("slb ", env!("CARGO_PKG_VERSION")))
        .manual("slb");
    let mut text = Vec::new();
    // Writing into memory does not fail.
    let _ = page.render(&mut text);
    pages.push((page.get_filename(), text));
}

/// Fails where a path holds something other than a page of slb.
fn may_replace(path: &Path) -> Result<(), Failure> {
    let is_page = || fs::read(path).is_ok_and(|bytes| find(&bytes, b".TH slb"));
    let is_free = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(_) => false,
        Ok(metadata) => metadata.is_file() && is_page(),
    };
    match is_free {
        true => Ok(()),
        false => Err(Failure::failed(format!(
            "{}: expected a new file or a manual page of slb, got another file, which stays",
            path.display()
        ))),
    }
}

fn find(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The command line without its hidden commands, which the program starts by itself.
fn visible() -> clap::Command {
    let whole = Cli::command();
    let shown = whole.get_subcommands().filter(|of| !of.is_hide_set());
    clap::Command::new("slb")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommands(shown.cloned())
}

//! `slb import`: converts Azure's JSON into a configuration.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use slb_control::azure::{self, Input, Inventory};

use crate::Failure;
use crate::cli::ImportOptions;
use crate::output::{Content, create, is_standard, read_input};

pub(crate) fn run(options: &ImportOptions) -> Result<(), Failure> {
    let bad = |errors: slb_control::ConfigErrors| Failure {
        status: 2,
        message: errors.to_string(),
    };
    let inventory = options.inventory.as_deref().map(Inventory::from_path);
    let inventory = inventory.transpose().map_err(bad)?.unwrap_or_default();
    let standard = options.files.iter().filter(|path| is_standard(path));
    if standard.count() > 1 {
        return Err(Failure::usage(
            "import: expected - for standard input once at most, got it twice",
        ));
    }
    let mut files = Vec::new();
    for path in &options.files {
        files.push(read_input(path)?);
    }
    let inputs = files.iter().map(|(file, text)| Input { file, text });
    let inputs: Vec<Input<'_>> = inputs.collect();
    let imported = azure::import(&inputs, &inventory).map_err(bad)?;
    for warning in &imported.warnings {
        tell_line!("warning: {warning}");
    }
    if imported.is_empty {
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(", ");
        return Err(Failure::failed(format!(
            "{names}: no configuration is written: expected a load balancer whose condition, if any, is true, or a part of one, got none"
        )));
    }
    if let Some(missing) = &imported.missing {
        tell_line!("not a whole configuration, since only parts of a load balancer were given:");
        tell_line!("{missing}");
    }
    match &options.out {
        Some(path) => {
            let read = options.files.iter().chain(&options.inventory);
            let read: Vec<&Path> = read.map(PathBuf::as_path).collect();
            let mut file = create(&read, ("--out", path), Content::Configuration)?;
            file.write_all(imported.toml.as_bytes())
                .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
        }
        None => {
            say!("{}", imported.toml)?;
            Ok(())
        }
    }
}

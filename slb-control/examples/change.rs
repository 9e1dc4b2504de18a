//! Shows the effect of replacing a configuration by another one, before anything is replaced.
//!
//! ```sh
//! cargo run -p slb-control --example change -- examples/web.toml new.toml
//! ```

use std::error::Error;

use slb_control::{Config, Diff};

fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<String> = std::env::args().skip(1).collect();
    let [old, new] = &files[..] else {
        return Err("expected two configurations".into());
    };
    // A faulty file is refused with all its faults, each with its line.
    let (old, new) = (Config::from_path(old)?, Config::from_path(new)?);
    let diff = Diff::between(&old, &new)?;
    match diff.is_empty() {
        true => println!("nothing changes"),
        false => print!("{diff}"),
    }
    Ok(())
}

//! The text of a configuration, without its secrets.

use std::fmt;
use std::ops::Range;
use std::time::SystemTime;

use toml::de::{DeTable, DeValue};

/// The tables that may hold a secret, and its field.
const SECRETS: [(&str, &str); 2] = [("node", "hash_key"), ("fleet", "hash_key")];

/// The text of a configuration, its name, and the time at which it was read.
///
/// The text may hold a secret, `hash_key`; [`shown`](Self::shown) leaves it out, and so does `Debug`.
#[derive(Clone)]
pub struct Origin {
    /// The name used in errors: the path of the file, as it was given.
    pub name: String,
    /// The time of reading.
    pub read: SystemTime,
    text: String,
    /// Positions of the secrets in the text.
    secrets: Vec<Range<usize>>,
}

impl Origin {
    pub(super) fn new(name: &str, text: &str, document: &DeTable<'_>) -> Self {
        let secrets = SECRETS.iter().filter_map(|&(table, field)| {
            let (_, table) = document.iter().find(|(name, _)| *name.get_ref() == table)?;
            let DeValue::Table(table) = table.get_ref() else {
                return None;
            };
            let (_, value) = table.iter().find(|(name, _)| *name.get_ref() == field)?;
            Some(value.span())
        });
        let mut secrets: Vec<_> = secrets.collect();
        secrets.sort_by_key(|span| span.start);
        Self {
            name: name.to_owned(),
            read: SystemTime::now(),
            text: text.to_owned(),
            secrets,
        }
    }

    /// Returns the text with `"(secret)"` in place of each secret.
    pub fn shown(&self) -> String {
        let (mut shown, mut from) = (String::new(), 0);
        for secret in &self.secrets {
            shown += self.text.get(from..secret.start).unwrap_or_default();
            shown += "\"(secret)\"";
            from = secret.end;
        }
        shown + self.text.get(from..).unwrap_or_default()
    }

    /// The text, with its secrets: for the lines of faults.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Returns true if a text is identical to the one that was read, including secrets.
    pub fn is(&self, text: &str) -> bool {
        self.text == text
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin")
            .field("name", &self.name)
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

//! A TOML document that is read field by field; each fault is recorded with its line.
//!
//! A [`Section`] records the fields that were read. Other fields are reported as unknown, with the
//! known name that they resemble.

use std::cell::{Cell, OnceCell, RefCell};
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::duration::{format_duration, parse_duration};
use crate::error::{ConfigError, ConfigErrors};

/// A position in the text.
pub(crate) type Span = Range<usize>;

/// The faults found so far.
#[derive(Debug)]
pub(crate) struct Faults<'t> {
    file: &'t str,
    text: &'t str,
    /// The positions of line feeds, found on first use.
    line_feeds: OnceCell<Vec<usize>>,
    errors: RefCell<Vec<ConfigError>>,
    /// Faults beyond those that are kept.
    more: Cell<usize>,
}

/// Faults that are kept and told: a file of millions would take more memory than its text.
const MOST_FAULTS: usize = 1 << 16;

impl<'t> Faults<'t> {
    pub(crate) fn new(file: &'t str, text: &'t str) -> Self {
        Self {
            file,
            text,
            line_feeds: OnceCell::new(),
            errors: RefCell::default(),
            more: Cell::new(0),
        }
    }

    /// Returns the name of the file in errors.
    pub(crate) fn file(&self) -> &'t str {
        self.file
    }

    /// The text of the file.
    pub(crate) fn text(&self) -> &'t str {
        self.text
    }

    /// Returns the line of a position, counted from 1.
    ///
    /// # Cost
    /// A binary search, after one pass over the text for the first call.
    pub(crate) fn line(&self, span: &Span) -> usize {
        let line_feeds = self.line_feeds.get_or_init(|| {
            let bytes = (0..).zip(self.text.bytes());
            let feeds = bytes.filter(|&(_, byte)| byte == b'\n');
            feeds.map(|(place, _)| place).collect()
        });
        line_feeds.partition_point(|&place| place < span.start) + 1
    }

    pub(crate) fn add(&self, span: &Span, place: impl Into<String>, message: impl Into<String>) {
        if self.errors.borrow().len() >= MOST_FAULTS {
            self.more.set(self.more.get() + 1);
            return;
        }
        let line = self.line(span);
        self.errors.borrow_mut().push(ConfigError {
            file: self.file.to_owned(),
            line,
            place: place.into(),
            message: message.into(),
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.errors.borrow().is_empty()
    }

    /// Returns true while there are few faults, so that each may be explained at some cost.
    pub(crate) fn are_few(&self) -> bool {
        const FEW: usize = 100;
        self.errors.borrow().len() < FEW
    }

    /// Returns all faults, sorted by line.
    pub(crate) fn into_errors(self) -> ConfigErrors {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|error| error.line);
        if self.more.get() > 0 {
            let line = errors.last().map_or(1, |error| error.line);
            errors.push(ConfigError {
                file: self.file.to_owned(),
                line,
                place: String::new(),
                message: format!("there are {} more faults", self.more.get()),
            });
        }
        ConfigErrors(errors)
    }
}

/// A table of the document.
#[derive(Debug)]
pub(crate) struct Section<'d> {
    table: &'d DeTable<'d>,
    span: Span,
    /// The item's name in errors: `rule "http"`.
    place: String,
    faults: &'d Faults<'d>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'d> Section<'d> {
    pub(crate) fn root(document: &'d Spanned<DeTable<'d>>, faults: &'d Faults<'d>) -> Self {
        let table = document.get_ref();
        Self {
            table,
            span: document.span(),
            place: String::new(),
            faults,
            asked: RefCell::default(),
        }
    }

    /// Returns the position of the section.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// Returns true while the file has few faults.
    pub(crate) fn has_few_faults(&self) -> bool {
        self.faults.are_few()
    }

    /// Reports a fault of a field.
    pub(crate) fn fault(&self, span: &Span, field: &str, message: impl Into<String>) {
        let place = match (self.place.is_empty(), field.is_empty()) {
            (true, _) => field.to_owned(),
            (false, true) => self.place.clone(),
            (false, false) => format!("{}: {field}", self.place),
        };
        self.faults.add(span, place, message);
    }

    fn get(&self, field: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        let mut asked = self.asked.borrow_mut();
        if !asked.contains(&field) {
            asked.push(field);
        }
        drop(asked);
        self.table.get(field)
    }

    /// Returns a required field.
    fn require(&self, field: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        let value = self.get(field);
        if value.is_none() {
            self.fault(&self.span, field, "is missing");
        }
        value
    }

    /// Returns the sections `[[field]]`, each with its name in errors.
    pub(crate) fn sections(&self, field: &'static str) -> Vec<Self> {
        let Some(value) = self.get(field) else {
            return Vec::new();
        };
        match value.get_ref().as_array() {
            None => self.wrong_type(value, field, "a list of tables"),
            Some(array) => {
                let others = array
                    .iter()
                    .filter(|one| one.get_ref().as_table().is_none());
                others.for_each(|one| self.wrong_type(one, field, "a table"));
            }
        }
        self.peek_sections(field)
    }

    /// The sections `[[field]]`; no fault where there is something else.
    pub(crate) fn peek_sections(&self, field: &'static str) -> Vec<Self> {
        let Some(array) = self
            .table
            .get(field)
            .and_then(|value| value.get_ref().as_array())
        else {
            return Vec::new();
        };
        // In `backends = [...]` of a pool, the kind is "backend".
        let kind = match field {
            "backends" => "backend",
            field => field,
        };
        let mut sections = Vec::new();
        for (index, element) in array.iter().enumerate() {
            let Some(table) = element.get_ref().as_table() else {
                continue;
            };
            let name = table.get("name").and_then(|name| name.get_ref().as_str());
            let own = match name {
                Some(name) => format!("{kind} {name:?}"),
                None => format!("{kind} {}", index + 1),
            };
            let place = if self.place.is_empty() {
                own
            } else {
                format!("{}: {own}", self.place)
            };
            sections.push(Section {
                table,
                span: element.span(),
                place,
                faults: self.faults,
                asked: RefCell::default(),
            });
        }
        sections
    }

    /// Returns the required section `[field]`.
    pub(crate) fn section(&self, field: &'static str) -> Option<Self> {
        let Some(value) = self.get(field) else {
            self.fault(
                &self.span,
                "",
                format!("expected a section [{field}], got none"),
            );
            return None;
        };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(value, field, "a table");
            return None;
        };
        Some(Section {
            table,
            span: value.span(),
            place: field.to_owned(),
            faults: self.faults,
            asked: RefCell::default(),
        })
    }

    fn wrong_type(&self, value: &Spanned<DeValue<'_>>, field: &str, expected: &str) {
        let got = match field {
            "hash_key" => value.get_ref().type_str().to_owned(), // it is secret
            _ => described(value.get_ref()),
        };
        self.fault(
            &value.span(),
            field,
            format!("expected {expected}, got {got}"),
        );
    }

    fn as_string(&self, value: &'d Spanned<DeValue<'d>>, field: &str) -> Option<(&'d str, Span)> {
        match value.get_ref().as_str() {
            Some(text) => Some((text, value.span())),
            None => {
                self.wrong_type(value, field, "a string");
                None
            }
        }
    }

    /// Returns the section's name, if it has one, without reporting a fault.
    pub(crate) fn peek_name(&self) -> Option<String> {
        self.table
            .get("name")
            .and_then(|name| name.get_ref().as_str())
            .map(str::to_owned)
    }

    /// Reads a required, nonempty string.
    pub(crate) fn name(&self, field: &'static str) -> Option<(String, Span)> {
        let (text, span) = self.as_string(self.require(field)?, field)?;
        if text.is_empty() {
            self.fault(&span, field, "expected a name, got an empty string");
            return None;
        }
        Some((text.to_owned(), span))
    }

    /// Reads an optional string.
    pub(crate) fn text(&self, field: &'static str) -> Option<(String, Span)> {
        self.as_string(self.get(field)?, field)
            .map(|(text, span)| (text.to_owned(), span))
    }

    fn parse<T>(
        &self,
        value: &'d Spanned<DeValue<'d>>,
        field: &str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<(T, Span)> {
        let (text, span) = self.as_string(value, field)?;
        match parse(text) {
            Some(parsed) => Some((parsed, span)),
            None => {
                self.fault(&span, field, format!("expected {expected}, got {text:?}"));
                None
            }
        }
    }

    /// Reads and parses a required string.
    pub(crate) fn required<T>(
        &self,
        field: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<(T, Span)> {
        self.parse(self.require(field)?, field, expected, parse)
    }

    /// Reads and parses an optional string.
    pub(crate) fn optional<T>(
        &self,
        field: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<(T, Span)> {
        self.parse(self.get(field)?, field, expected, parse)
    }

    /// Returns true if a field is present.
    pub(crate) fn has(&self, field: &'static str) -> bool {
        self.get(field).is_some()
    }

    /// Returns true if a field is present, which does not make it one that the section may have.
    pub(crate) fn contains(&self, field: &str) -> bool {
        self.table.keys().any(|key| *key.get_ref() == field)
    }

    /// Returns true if a field is an empty list.
    pub(crate) fn is_empty_list(&self, field: &'static str) -> bool {
        let array = self.get(field).and_then(|value| value.get_ref().as_array());
        array.is_some_and(|array| array.is_empty())
    }

    /// Reads and parses an optional string or list of strings.
    pub(crate) fn any<T>(
        &self,
        field: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<(T, Span)> {
        if self.has(field) {
            self.one_or_more(field, expected, parse)
        } else {
            Vec::new()
        }
    }

    /// Reads and parses a required string or nonempty list of strings.
    pub(crate) fn one_or_more<T>(
        &self,
        field: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<(T, Span)> {
        let Some(value) = self.require(field) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            return self
                .parse(value, field, expected, parse)
                .into_iter()
                .collect();
        };
        if array.is_empty() {
            self.fault(
                &value.span(),
                field,
                format!("expected {expected}, got an empty list"),
            );
        }
        array
            .iter()
            .filter_map(|value| self.parse(value, field, expected, &parse))
            .collect()
    }

    /// Reads a choice among words, or returns the default.
    pub(crate) fn choice<T: Copy>(
        &self,
        field: &'static str,
        choices: &[(&str, T)],
        default: T,
    ) -> T {
        self.renamed_choice(field, choices, &[], default)
    }

    /// Reads a choice among words, some of which had other names that are still accepted.
    pub(crate) fn renamed_choice<T: Copy>(
        &self,
        field: &'static str,
        choices: &[(&str, T)],
        former: &[(&str, T)],
        default: T,
    ) -> T {
        let Some(value) = self.get(field) else {
            return default;
        };
        let expected = list(choices.iter().map(|(name, _)| *name));
        self.parse(value, field, &expected, |text| {
            let mut all = choices.iter().chain(former);
            let found = all.find(|(name, _)| *name == text);
            found.map(|&(_, choice)| choice)
        })
        .map_or(default, |(choice, _)| choice)
    }

    /// Reads a required choice among words.
    pub(crate) fn required_choice<T: Copy>(
        &self,
        field: &'static str,
        choices: &[(&str, T)],
    ) -> Option<(T, Span)> {
        let expected = list(choices.iter().map(|(name, _)| *name));
        self.required(field, &expected, |text| {
            choices
                .iter()
                .find(|(name, _)| *name == text)
                .map(|&(_, choice)| choice)
        })
    }

    fn as_integer(
        &self,
        value: &'d Spanned<DeValue<'d>>,
        field: &str,
        range: &RangeInclusive<u64>,
    ) -> Option<(u64, Span)> {
        let expected = format!("{} to {}", range.start(), range.end());
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(value, field, &expected);
            return None;
        };
        let digits = integer.as_str().replace('_', "");
        match u64::from_str_radix(digits.trim_start_matches('+'), integer.radix()) {
            Ok(number) if range.contains(&number) => Some((number, value.span())),
            _ => {
                self.fault(
                    &value.span(),
                    field,
                    format!("expected {expected}, got {digits}"),
                );
                None
            }
        }
    }

    /// Reads a required number.
    pub(crate) fn required_integer(
        &self,
        field: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<(u64, Span)> {
        self.as_integer(self.require(field)?, field, &range)
    }

    /// Reads a number, or returns the default; returns `None` for a faulty number.
    pub(crate) fn integer(
        &self,
        field: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> Option<(u64, Span)> {
        match self.get(field) {
            Some(value) => self.as_integer(value, field, &range),
            None => Some((default, self.span.clone())),
        }
    }

    /// Reads a number, or returns the default, also for a faulty number.
    pub(crate) fn number(
        &self,
        field: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        self.integer(field, range, default)
            .map_or(default, |(number, _)| number)
    }

    /// Reads all fields of a section with arbitrary names and numbers.
    pub(crate) fn numbers(&self, range: RangeInclusive<u64>) -> Vec<(&'d str, u64, Span)> {
        let fields = self.table.iter();
        let numbers = fields.filter_map(|(key, value)| {
            let name: &str = key.get_ref();
            let (number, _) = self.as_integer(value, name, &range)?;
            Some((name, number, key.span()))
        });
        numbers.collect()
    }

    /// Reads a boolean, or returns the default.
    pub(crate) fn boolean(&self, field: &'static str, default: bool) -> bool {
        let Some(value) = self.get(field) else {
            return default;
        };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(value, field, "true or false");
            default
        })
    }

    /// Reads a duration, or returns the default.
    pub(crate) fn duration(
        &self,
        field: &'static str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let (least, most) = (
            format_duration(*range.start()),
            format_duration(*range.end()),
        );
        let expected = format!("a time from {least} to {most}, such as {least:?}");
        self.optional(field, &expected, |text| {
            parse_duration(text).filter(|duration| range.contains(duration))
        })
        .map_or(default, |(duration, _)| duration)
    }

    /// Reports the fields that were not read.
    pub(crate) fn finish(self) {
        let asked = self.asked.borrow();
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if !asked.contains(&name) {
                let alike = self
                    .has_few_faults()
                    .then(|| resembling(name, asked.iter().copied()));
                let hint = alike.flatten().map_or_else(
                    || format!("expected {}", list(asked.iter().copied())),
                    |known| format!("did you mean {known:?}?"),
                );
                self.fault(&key.span(), "", format!("unknown field {name:?}: {hint}"));
            }
        }
    }
}

/// A value as messages show it.
pub(crate) fn described(value: &DeValue<'_>) -> String {
    const LONGEST: usize = 60;
    match value {
        DeValue::String(text) if text.chars().count() <= LONGEST => format!("{text:?}"),
        DeValue::String(_) => "a string".to_owned(),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Returns the known name that resembles a text most, if any does.
pub(crate) fn resembling<'n>(text: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    names
        .map(|name| (strsim::damerau_levenshtein(text, name), name))
        .filter(|&(distance, name)| distance <= 1 + name.len() / 4)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}

/// `"a", "b" or "c"`.
pub(crate) fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<String> = names.map(|name| format!("{name:?}")).collect();
    match names.split_last() {
        None => "nothing".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

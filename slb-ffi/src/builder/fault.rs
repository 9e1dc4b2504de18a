//! Faults of a builder's calls, as text.

use core::fmt::{self, Write as _};

use crate::error::slb_error::*;
use crate::error::{Error, message};

/// Bytes of a message, including the terminating zero.
const MESSAGE_LEN: usize = 256;

/// The reason why an argument is refused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    error: Error,
    /// The field or parameter; empty: the item itself.
    field: &'static str,
    why: Why,
}

#[derive(Clone, Copy, Debug)]
enum Why {
    /// The error describes the fault.
    Error,
    /// The valid values, and the given one.
    Expected(&'static str, Option<i64>),
    /// An index beyond the end of a list, and the list's length.
    Index(usize, usize),
    /// A list of this capacity has no room.
    Full(usize),
}

impl Fault {
    /// Makes the fault of an unexpected value.
    pub(crate) fn expected(field: &'static str, what: &'static str, got: impl Into<i64>) -> Self {
        Self::range(field, Why::Expected(what, Some(got.into())))
    }

    /// Makes the fault of a value that cannot be shown as a number.
    pub(crate) const fn unfit(field: &'static str, what: &'static str) -> Self {
        Self::range(field, Why::Expected(what, None))
    }

    /// Makes the fault of an index beyond the end of a list of `count` elements.
    pub(crate) const fn index(field: &'static str, index: usize, count: usize) -> Self {
        Self::range(field, Why::Index(index, count))
    }

    /// Makes the fault of a full list, by the field of `slb_capacity` with its capacity.
    pub(crate) const fn full(field: &'static str, capacity: usize) -> Self {
        Self {
            error: SLB_ERROR_FULL,
            field,
            why: Why::Full(capacity),
        }
    }

    /// Returns the fault with the name of the field.
    pub(crate) const fn of(self, field: &'static str) -> Self {
        Self { field, ..self }
    }

    const fn range(field: &'static str, why: Why) -> Self {
        let error = SLB_ERROR_RANGE;
        Self { error, field, why }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self {
            error,
            field: "",
            why: Why::Error,
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        fault.error
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field;
        match self.why {
            Why::Full(capacity) => {
                return write!(
                    f,
                    ": no room for another one, capacity.{field} is {capacity}"
                );
            }
            _ if field.is_empty() => {}
            _ => write!(f, ": {field}")?,
        }
        match self.why {
            Why::Error | Why::Full(_) => {
                let text = message(self.error as i32).to_str().unwrap_or_default();
                write!(f, ": {text}")
            }
            Why::Expected(what, Some(got)) => write!(f, ": expected {what}, got {got}"),
            Why::Expected(what, None) => write!(f, ": expected {what}"),
            Why::Index(index, 0) => write!(f, ": there is no {index}, since there are none"),
            Why::Index(index, count) => {
                write!(
                    f,
                    ": there is no {index}, since there are {count}, from 0 on"
                )
            }
        }
    }
}

/// The message of the last call that failed.
#[derive(Debug)]
pub(super) struct Message {
    text: [u8; MESSAGE_LEN],
}

impl Message {
    pub(super) const EMPTY: Self = Self {
        text: [0; MESSAGE_LEN],
    };

    /// Writes the message about an item, with its name if that has been read.
    pub(super) fn set(&mut self, item: &str, name: &str, fault: &Fault) {
        let mut cut = Cut::new(&mut self.text);
        let _ = match name {
            "" => write!(cut, "{item}{fault}"),
            name => write!(cut, "{item} {name:?}{fault}"),
        };
        cut.end();
    }

    pub(super) const fn as_ptr(&self) -> *const core::ffi::c_char {
        self.text.as_ptr().cast()
    }
}

/// Text that is truncated to the available room, at a character boundary.
pub(crate) struct Cut<'a> {
    room: &'a mut [u8],
    len: usize,
    is_full: bool,
}

impl<'a> Cut<'a> {
    pub(crate) const fn new(room: &'a mut [u8]) -> Self {
        Self {
            room,
            len: 0,
            is_full: false,
        }
    }

    /// Writes the zero that ends the text.
    pub(crate) fn end(self) {
        if let Some(end) = self.room.get_mut(self.len) {
            *end = 0;
        }
    }
}

impl fmt::Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The last byte is for the zero.
        let left = self.room.len().saturating_sub(self.len + 1);
        let taken = text.floor_char_boundary(left);
        let end = self.len + taken;
        let place = self.room.get_mut(self.len..end);
        if let (Some(place), Some(bytes), false) =
            (place, text.as_bytes().get(..taken), self.is_full)
        {
            place.copy_from_slice(bytes);
            self.len = end;
        }
        self.is_full |= taken < text.len();
        Ok(())
    }
}

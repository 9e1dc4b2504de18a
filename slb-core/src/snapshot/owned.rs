//! A snapshot that returns its memory.

use core::fmt;
use core::mem::MaybeUninit;
use core::ops::Deref;

use super::Snapshot;
use crate::mem::{Arena, Line};
use crate::spec::{Spec, SpecError};

/// A snapshot together with the lines that hold it, for programs without an allocator.
///
/// [`install`](crate::Mux::install) returns the old snapshot, and [`into_lines`](Self::into_lines)
/// returns its memory for the next one, so two pieces of memory are enough for any number of
/// configurations.
///
/// ```
/// # use slb_core::mem::Line;
/// # use slb_core::snapshot::{OwnedSnapshot, Rejected};
/// # use slb_core::spec::Spec;
/// # use slb_core::Mux;
/// /// Puts a configuration in place with the help of spare lines; returns those of the old one.
/// fn reload<'m>(
///     mux: &mut Mux<'m, OwnedSnapshot<'m>>,
///     spec: &Spec<'_>,
///     spare: &'m mut [Line],
/// ) -> &'m mut [Line] {
///     match OwnedSnapshot::build(spec, Some(mux.snapshot()), spare) {
///         Ok(next) => match mux.install(next) {
///             Ok(old) => old.into_lines(),
///             Err(rejected) => rejected.snapshot.into_lines(),
///         },
///         Err(unbuilt) => unbuilt.lines,
///     }
/// }
/// ```
pub struct OwnedSnapshot<'m> {
    snapshot: Snapshot<'m>,
    /// All lines that hold the snapshot. A plain reference would assert exclusive access to them on
    /// each move.
    lines: MaybeUninit<&'m mut [Line]>,
}

/// A compilation error, with the lines that were given for the snapshot.
#[derive(Debug)]
pub struct Unbuilt<'m> {
    /// The fault of the spec.
    pub error: SpecError,
    /// The given memory.
    pub lines: &'m mut [Line],
}

impl fmt::Display for Unbuilt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl core::error::Error for Unbuilt<'_> {}

impl<'m> OwnedSnapshot<'m> {
    /// Compiles `spec` into `lines`; [`Snapshot::lines_for`] returns the number of lines that it
    /// needs. `previous` is the snapshot that this one will replace.
    ///
    /// # Errors
    /// The spec contradicts itself, or there are too few lines.
    pub fn build(
        spec: &Spec<'_>,
        previous: Option<&Snapshot<'_>>,
        lines: &'m mut [Line],
    ) -> Result<Self, Unbuilt<'m>> {
        let mut lines = MaybeUninit::new(lines);
        // SAFETY: the reference was written just now.
        let lent: *mut [Line] = unsafe { &mut **lines.assume_init_mut() };
        // SAFETY: the caller lends the lines for `'m`, and nothing else uses them until the
        // snapshot is gone: `into_lines` consumes it.
        let lent: &'m mut [Line] = unsafe { &mut *lent };
        match Snapshot::build(spec, previous, &mut Arena::new(lent)) {
            Ok(snapshot) => Ok(Self { snapshot, lines }),
            Err(error) => Err(Unbuilt {
                error,
                // SAFETY: the reference was written above, and nothing was built that uses it.
                lines: unsafe { lines.assume_init() },
            }),
        }
    }

    /// Drops the snapshot, and returns all lines that were given for it.
    pub fn into_lines(self) -> &'m mut [Line] {
        let Self { snapshot, lines } = self;
        drop(snapshot);
        // SAFETY: `build` wrote the reference, and everything that was built in the lines is gone:
        // a snapshot moves nothing out of them, and is only ever lent.
        unsafe { lines.assume_init() }
    }
}

impl<'m> Deref for OwnedSnapshot<'m> {
    type Target = Snapshot<'m>;

    #[inline]
    fn deref(&self) -> &Snapshot<'m> {
        &self.snapshot
    }
}

impl fmt::Debug for OwnedSnapshot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot.fmt(f)
    }
}

//! Limits on new flows of one source, and on packets of a role's own.

mod own;
mod source;

pub(crate) use own::{Limits, Own, Rates};
pub use source::{SourceBucket, SourceLimiter};

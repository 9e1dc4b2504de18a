//! Limits on the new flows of each source, and on the packets that a role sends itself.

mod own;
mod source;

pub(crate) use own::{Limits, Own, Rates};
pub use source::{SourceBucket, SourceLimiter};

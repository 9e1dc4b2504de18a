//! The connection table of each address family.

use crate::link::Link;
use crate::nat::rewrite::Rewrite;
use crate::nat::table::Connections;
use crate::nat::{Links, NatTable};

/// The table of a family.
pub(crate) trait Table: Rewrite {
    fn table<'t, 'm>(connections: &'t mut NatTable<'m>) -> &'t mut Connections<'m, Self>;

    /// The connections of this family, read only.
    fn table_of<'t, 'm>(connections: &'t NatTable<'m>) -> &'t Connections<'m, Self>;

    /// The link headers that its connections were opened with.
    fn links_of<'t>(links: &'t Links<'_>) -> &'t [Link];

    /// The link headers of one family's connections.
    fn links<'t>(links: &'t mut Links<'_>) -> &'t mut [Link];
}

impl Table for u64 {
    #[inline]
    fn table<'t, 'm>(connections: &'t mut NatTable<'m>) -> &'t mut Connections<'m, Self> {
        &mut connections.ipv4
    }

    fn table_of<'t, 'm>(connections: &'t NatTable<'m>) -> &'t Connections<'m, Self> {
        &connections.ipv4
    }

    fn links_of<'t>(links: &'t Links<'_>) -> &'t [Link] {
        &links.ipv4
    }

    fn links<'t>(links: &'t mut Links<'_>) -> &'t mut [Link] {
        &mut links.ipv4
    }
}

impl Table for [u64; 4] {
    #[inline]
    fn table<'t, 'm>(connections: &'t mut NatTable<'m>) -> &'t mut Connections<'m, Self> {
        &mut connections.ipv6
    }

    fn table_of<'t, 'm>(connections: &'t NatTable<'m>) -> &'t Connections<'m, Self> {
        &connections.ipv6
    }

    fn links_of<'t>(links: &'t Links<'_>) -> &'t [Link] {
        &links.ipv6
    }

    fn links<'t>(links: &'t mut Links<'_>) -> &'t mut [Link] {
        &mut links.ipv6
    }
}

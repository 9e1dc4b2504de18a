//! Identifiers of resources, and placeholders for hashes that only Azure knows.

use super::Arguments;
use super::arguments::Outcome;
use crate::azure::json::Failure;

/// `resourceId('Microsoft.Network/loadBalancers/probes', 'lb', 'probe')`: types and names in turn.
/// Subscription and group may stand before the type; they make no difference here.
pub(super) fn resource_id(a: &Arguments<'_>) -> Outcome {
    let texts: Result<Vec<&str>, Failure> = (0..a.count()).map(|place| a.string(place)).collect();
    let texts = texts?;
    let at = texts.iter().position(|text| text.contains('/'));
    let from_type = at.and_then(|at| texts.get(at..)?.split_first());
    let (kind, names) = from_type.ok_or_else(|| a.fault("expected a type with a \"/\""))?;
    let (provider, types) = kind.split_once('/').unwrap_or((kind, ""));
    let types: Vec<&str> = types.split('/').collect();
    // One text may contain several names.
    let names: Vec<&str> = names.iter().flat_map(|names| names.split('/')).collect();
    if types.len() != names.len() {
        return Err(a.fault(format_args!(
            "expected {} names for {kind}, got {}",
            types.len(),
            names.len()
        )));
    }
    let mut id = format!("/subscriptions/-/providers/{provider}");
    for (kind, name) in types.iter().zip(names) {
        id.push('/');
        id.push_str(kind);
        id.push('/');
        id.push_str(name);
    }
    a.bounded(id)
}

/// Returns the FNV-1a hash of some texts, as a placeholder for Azure's hash, which is not public.
pub(in crate::azure) fn stand_in(texts: &[String]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Formats a hash as thirteen characters, like `uniqueString`.
pub(in crate::azure) fn unique_string(hash: u64) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digit = |place: u32| DIGITS[(hash.rotate_right(5 * place) & 31) as usize];
    (0..13).map(|place| char::from(digit(place))).collect()
}

/// Formats a hash as a GUID.
pub(in crate::azure) fn guid(hash: u64) -> String {
    let low = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let text = format!("{hash:016x}{low:016x}");
    let part = |range| text.get(range).unwrap_or_default();
    [
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32),
    ]
    .join("-")
}

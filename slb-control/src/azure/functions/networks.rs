//! Functions of addresses and prefixes.

use std::net::IpAddr;

use super::Arguments;
use super::arguments::Outcome;
use crate::azure::json::{Failure, Value};

pub(super) fn of_networks(name: &str, a: &Arguments<'_>) -> Option<Outcome> {
    Some(match name {
        "cidrhost" => cidr_host(a),
        "cidrsubnet" => cidr_subnet(a),
        _ => return None,
    })
}

/// A prefix: its first address as a number, and its length.
fn prefix(a: &Arguments<'_>) -> Result<(IpAddr, u32), Failure> {
    let text = a.string(0)?;
    let parsed = text.split_once('/').and_then(|(address, bits)| {
        let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse::<u32>().ok()?);
        (bits <= width(address)).then_some((address, bits))
    });
    parsed.ok_or_else(|| a.expected(0, "a prefix such as \"10.0.0.0/24\""))
}

pub(super) fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Returns the address with the number `number` in the prefix of `first`.
fn address_in(first: IpAddr, bits: u32, number: u128) -> Option<IpAddr> {
    let host_bits = width(first) - bits;
    let mask = 1u128
        .checked_shl(host_bits)
        .map_or(u128::MAX, |size| size - 1);
    if number > mask {
        return None;
    }
    Some(match first {
        IpAddr::V4(first) => {
            let number = (u128::from(first.to_bits()) & !mask) + number;
            IpAddr::from(u32::try_from(number).ok()?.to_be_bytes())
        }
        IpAddr::V6(first) => IpAddr::from(((first.to_bits() & !mask) + number).to_be_bytes()),
    })
}

/// `cidrHost('10.0.0.0/24', 3)` is `10.0.0.4`: the addresses that hosts can have are counted from 0.
fn cidr_host(a: &Arguments<'_>) -> Outcome {
    let ((first, bits), index) = (prefix(a)?, a.size(1)?);
    let address = address_in(first, bits, index as u128 + 1);
    let address = address.ok_or_else(|| a.fault(format_args!("{index} is beyond the prefix")))?;
    Ok(Value::String(address.to_string()))
}

/// `cidrSubnet('10.0.0.0/16', 24, 2)` is `10.0.2.0/24`.
fn cidr_subnet(a: &Arguments<'_>) -> Outcome {
    let ((first, bits), new, index) = (prefix(a)?, a.size(1)?, a.size(2)?);
    let new = u32::try_from(new).unwrap_or(u32::MAX);
    let number = width(first)
        .checked_sub(new)
        .filter(|_| new >= bits)
        .and_then(|shift| (index as u128).checked_mul(1u128.checked_shl(shift)?));
    let address = number.and_then(|number| address_in(first, bits, number));
    let address = address.ok_or_else(|| a.fault("the subnet is beyond the prefix"))?;
    Ok(Value::String(format!("{address}/{new}")))
}

//! Reading of the hash function and its key.

use slb_core::hash::{Hasher, MICROSOFT_KEY, SipHash13, Toeplitz, Xxh3};

use crate::document::{Section, Span};

#[derive(Clone, Copy, PartialEq, Eq)]
enum HashName {
    Xxh3,
    SipHash13,
    Toeplitz,
}

pub(super) fn read_hasher(section: &Section<'_>, seed: u64) -> Hasher {
    let choices = [
        ("xxh3", HashName::Xxh3),
        ("siphash-1-3", HashName::SipHash13),
        ("toeplitz", HashName::Toeplitz),
    ];
    let name = section.choice("hash", &choices, HashName::Xxh3);
    let key = section.text("hash_key");
    match (name, key) {
        (HashName::Xxh3, None) => Hasher::Xxh3(Xxh3::new(seed)),
        (HashName::Xxh3, Some((_, span))) => {
            let message = "is for \"siphash-1-3\" and \"toeplitz\"; \"xxh3\" has a hash_seed";
            section.fault(&span, "hash_key", message);
            Hasher::default()
        }
        (HashName::SipHash13, Some((text, span))) => match hex(&text) {
            Some(key) => {
                refuse_zeros(section, &key, &span);
                Hasher::SipHash13(SipHash13::new(key))
            }
            None => {
                let message = "expected 32 hexadecimal digits (it is secret, so not shown)";
                section.fault(&span, "hash_key", message);
                Hasher::default()
            }
        },
        (HashName::SipHash13, None) => {
            let message = "is missing: \"siphash-1-3\" needs a secret one of 32 hexadecimal digits";
            section.fault(section.span(), "hash_key", message);
            Hasher::default()
        }
        (HashName::Toeplitz, Some((text, span))) => match hex(&text) {
            Some(key) => {
                refuse_zeros(section, &key, &span);
                Hasher::Toeplitz(Toeplitz::new(&key))
            }
            None => {
                let message = "expected 80 hexadecimal digits (it is secret, so not shown)";
                section.fault(&span, "hash_key", message);
                Hasher::default()
            }
        },
        (HashName::Toeplitz, None) => Hasher::Toeplitz(Toeplitz::new(&MICROSOFT_KEY)),
    }
}

/// Reports a key of zeros, which is no secret: Toeplitz then hashes all flows alike, and anyone can
/// compute SipHash.
fn refuse_zeros(section: &Section<'_>, key: &[u8], span: &Span) {
    if key.iter().all(|&byte| byte == 0) {
        section.fault(span, "hash_key", "expected a secret key, got zeros only");
    }
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

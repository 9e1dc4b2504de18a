//! Hashes of an IPv4 tuple: those that are the same on every node, and those that are not.

use std::hash::BuildHasher;
use std::hint::black_box;

use slb_bench::{Options, Report, Sample};
use slb_core::hash::{MICROSOFT_KEY, SipHash13, Toeplitz, TupleHasher, Xxh3};

const COUNT: usize = 1024;

pub(super) fn measure(options: &Options, report: &mut Report) {
    report.group("hashes, for each IPv4 tuple");
    let tuples: Vec<[u64; 2]> = (0..COUNT as u64)
        .map(|i| [i << 32 | 0x0a00_0001, 6 << 32 | i])
        .collect();
    let mut show = |name: &str, hash: &dyn Fn(&[[u64; 2]]) -> u64| {
        let name = format!("hash, {name}");
        if report.wants(&name) {
            let sample = Sample::measure(options.time(), COUNT, || {
                black_box(hash(black_box(&tuples)));
            });
            report.show(&name, sample, None);
        }
    };
    fn all(tuples: &[[u64; 2]], hash: impl Fn(&[u64; 2]) -> u64) -> u64 {
        tuples.iter().map(hash).fold(0, u64::wrapping_add)
    }
    let (xxh3, sip) = (Xxh3::new(1), SipHash13::new([7; 16]));
    let toeplitz = Toeplitz::new(&MICROSOFT_KEY);
    show("slb XXH3", &|tuples| all(tuples, |tuple| xxh3.ipv4(tuple)));
    show("slb SipHash-1-3", &|tuples| {
        all(tuples, |tuple| sip.ipv4(tuple))
    });
    show("slb Toeplitz", &|tuples| {
        all(tuples, |tuple| toeplitz.ipv4(tuple))
    });
    let ahash = ahash::RandomState::with_seeds(1, 2, 3, 4);
    show("ahash, of one process", &|tuples| {
        all(tuples, |tuple| ahash.hash_one(tuple))
    });
    let foldhash = foldhash::fast::FixedState::with_seed(1);
    show("foldhash, of one process", &|tuples| {
        all(tuples, |tuple| foldhash.hash_one(tuple))
    });
}

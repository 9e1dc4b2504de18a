//! The worker that has a frame's connection, and takes it over, through the C API.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one C program's calls, of which the same is promised"
)]

use std::ptr::{null, null_mut};

use slb::slb_error::*;
use slb::*;

const TOML: &str = r#"
[node]
role = "proxy"
[[frontend]]
name = "web"
address = "20.20.20.100"
[[pool]]
name = "p"
backends = [{ name = "one", address = "10.10.1.11" }]
[[rule]]
name = "http"
frontend = "web"
pool = "p"
protocol = "tcp"
frontend_port = 80
backend_port = 8080
"#;

const VIP: [u8; 4] = [20, 20, 20, 100];
const SERVER: [u8; 4] = [10, 10, 1, 11];
const WORKERS: u16 = 3;
const CLIENTS: u8 = 90;

/// A snapshot of a configuration.
fn snapshot(toml: &str) -> *mut slb_snapshot {
    let (mut config, mut snapshot) = (null_mut(), null_mut());
    let text = toml.as_ptr().cast();
    // SAFETY: what the pointers point to is as long as is said.
    unsafe {
        assert_eq!(
            slb_config_parse(text, toml.len(), null_mut(), 0, &mut config),
            0
        );
        assert_eq!(slb_config_snapshot(config, null(), &mut snapshot), 0);
        assert_eq!(slb_config_free(config), 0);
    }
    snapshot
}

/// A segment between a client and the other end.
fn segment(from: [u8; 4], to: [u8; 4], ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut bytes = vec![
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0,
    ];
    bytes.extend([from, to].concat());
    bytes.extend(ports.0.to_be_bytes());
    bytes.extend(ports.1.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let words = bytes[14..34].chunks_exact(2);
    let sum: u32 = words
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn frame(buffer: &mut [u8], port: u16) -> slb_frame {
    slb_frame {
        buffer: buffer.as_mut_ptr(),
        capacity: buffer.len() as u32,
        offset: 0,
        length: buffer.len() as u32,
        port,
        action: 0,
        reason: 0,
    }
}

fn steering(own: u16) -> slb_steering {
    slb_steering {
        key: [7, 8],
        workers: WORKERS,
        own,
    }
}

fn owner(snapshot: *const slb_snapshot, bytes: &mut [u8], port: u16, own: u16) -> u16 {
    let (mut frame, mut owner) = (frame(bytes, port), 99);
    // SAFETY: there is one frame and one owner.
    let others = unsafe { slb_steer(snapshot, &steering(own), &mut frame, 1, &mut owner) };
    assert_eq!(others, i32::from(owner != own));
    owner
}

#[test]
fn both_directions_have_one_owner_and_so_do_records() {
    let snapshot = snapshot(TOML);
    let mut options = std::mem::MaybeUninit::<slb_nat_options>::uninit();
    let mut proxies = [null_mut(); WORKERS as usize + 1];
    // SAFETY: there is room for each of them.
    let mut options = unsafe {
        slb_nat_options_init(options.as_mut_ptr());
        options.assume_init()
    };
    (options.key, options.connections) = ([7, 8], 1024);
    for proxy in &mut proxies {
        // SAFETY: the snapshot is one, and there is room for a proxy.
        assert_eq!(unsafe { slb_proxy_new(snapshot, &options, proxy) }, 0);
    }
    let [one, shares @ ..] = proxies;
    let mut owned = [0; WORKERS as usize];
    for number in 0..CLIENTS {
        let client = [198, 51, 100, number];
        let mut syn = segment(client, VIP, (4000, 80), 2);
        let mut answer = segment(SERVER, client, (8080, 4000), 0x12);
        let asked = owner(snapshot, &mut syn, 0, 0);
        assert_eq!(owner(snapshot, &mut answer, 1, 2), asked);
        owned[usize::from(asked)] += 1;
        let mut both = [frame(&mut syn, 0), frame(&mut answer, 1)];
        // SAFETY: there are two frames.
        let done =
            unsafe { slb_proxy_process(one, 1_000_000_000, both.as_mut_ptr(), 2, null_mut()) };
        assert_eq!(done, 2);
    }
    assert!(owned.iter().all(|&count| count > 15), "{owned:?}");
    let (mut records, mut length, mut count) = (vec![0; 1 << 16], 0, 0);
    let mut exported = slb_exported::default();
    loop {
        let room = &mut records[length..];
        let (into, most) = (room.as_mut_ptr(), room.len());
        // SAFETY: the records have so much room.
        count += unsafe { slb_proxy_export(one, exported.next, into, most, &mut exported) };
        length += exported.length;
        if exported.more == 0 {
            break;
        }
    }
    assert_eq!(count, i32::from(CLIENTS));
    for (number, (&share, owned)) in (0..).zip(shares.iter().zip(owned)) {
        let mut imported = slb_imported::default();
        let (now, records) = (1_000_000_000, records.as_ptr());
        let steering = steering(number);
        // SAFETY: the records are so long.
        let taken = unsafe {
            slb_proxy_import_share(share, now, 0, 0, records, length, &steering, &mut imported)
        };
        assert_eq!((taken, imported.refused), (owned, 0));
    }
    for proxy in proxies {
        // SAFETY: each is a proxy.
        assert_eq!(unsafe { slb_proxy_free(proxy) }, 0);
    }
    // SAFETY: nothing has the snapshot any more.
    assert_eq!(unsafe { slb_snapshot_free(snapshot) }, 0);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let snapshot = snapshot(TOML);
    let mut bytes = segment([198, 51, 100, 1], VIP, (4000, 80), 2);
    let (mut frame, mut owner) = (frame(&mut bytes, 0), 99);
    let good = steering(0);
    let mut ask = |steering: *const slb_steering| {
        // SAFETY: there is one frame and one owner.
        unsafe { slb_steer(snapshot, steering, &mut frame, 1, &mut owner) }
    };
    for (steering, error) in [
        (slb_steering { workers: 0, ..good }, SLB_ERROR_RANGE),
        (slb_steering { own: 3, ..good }, SLB_ERROR_RANGE),
        (
            slb_steering {
                key: [0; 2],
                ..good
            },
            SLB_ERROR_KEY,
        ),
    ] {
        assert_eq!(ask(&steering), error as i32);
    }
    assert_eq!(ask(null()), SLB_ERROR_NULL as i32);
    assert_eq!(owner, 99, "nothing was changed");
    let translating = TOML.to_owned() + "source_nat = \"10.0.0.9\"\n";
    let other = self::snapshot(&translating);
    // SAFETY: both are snapshots, and NULL is none.
    unsafe {
        assert_eq!(slb_snapshot_spreads(snapshot), 1);
        assert_eq!(slb_snapshot_spreads(other), 0);
        assert_eq!(slb_snapshot_spreads(null()), SLB_ERROR_NULL as i32);
        assert_eq!(slb_snapshot_free(snapshot), 0);
        assert_eq!(slb_snapshot_free(other), 0);
    }
}

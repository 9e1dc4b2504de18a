//! A mux in a program that has nothing: no std, no allocator, no libc. All tables are static.
//!
//! It forwards one packet and ends with status 0, or with another where something went wrong.
//! Linux on x86-64 is only the stage: the last instruction is its `exit`.

#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};
use core::net::Ipv4Addr;
use core::time::Duration;

use slb_core::flow::{FlowTable, Ipv4Bucket};
use slb_core::hash::{Distribution, Hasher, SipHash13};
use slb_core::mem::{Arena, Line, Mem};
use slb_core::service::{
    Backend, BackendState, Echo, Frontend, Pool, Protocol, Rule, Snapshot, Spec, Underlay,
};
use slb_core::stats::{BackendCounters, RuleCounters};
use slb_core::wire::vxlan::Vni;
use slb_core::{Frame, HEADROOM, Instant, Mux, MuxOptions, MuxTables, Verdict};

/// Memory of the snapshot: a table of 251 slots and a little more.
static mut SNAPSHOT: [Line; 64] = [Line::EMPTY; 64];
static mut FLOWS: [Ipv4Bucket; FlowTable::buckets_for(1000)] =
    [Ipv4Bucket::EMPTY; FlowTable::buckets_for(1000)];
static mut FRAME: [u8; 256] = [0; 256];

fn run() -> Option<()> {
    let backend = |name, number| Backend {
        name,
        address: Ipv4Addr::new(10, 10, 1, number).into(),
        host: Ipv4Addr::new(172, 16, 0, 100 + number).into(),
        mac: None,
        next_hop: None,
        weight: 1,
        state: BackendState::Healthy,
        ..Backend::default()
    };
    let backends = [backend("vm1", 1), backend("vm2", 2)];
    let spec = Spec {
        hasher: Hasher::SipHash13(SipHash13::new([7; 16])),
        maglev_seed: 1,
        underlay: Underlay { ipv4: Some(Ipv4Addr::new(172, 16, 0, 11)), ..Underlay::default() },
        frontends: &[Frontend {
            name: "web",
            address: Ipv4Addr::new(20, 20, 20, 100).into(),
            echo: Echo::Answer,
        }],
        rules: &[Rule {
            name: "http",
            frontend: 0,
            pool: 0,
            protocol: Protocol::Tcp,
            frontend_port: 80,
            backend_port: 80,
            distribution: Distribution::FiveTuple,
            idle_timeout: Duration::from_secs(240),
            ..Rule::default()
        }],
        pools: &[Pool {
            name: "servers",
            vni: Vni::new(5001)?,
            table_size: 251,
            backends: &backends,
        }],
        ..Spec::default()
    };
    // SAFETY: this is the only place that names the statics, and it runs once.
    let (memory, flows, buffer) = unsafe {
        (&mut *(&raw mut SNAPSHOT), &mut *(&raw mut FLOWS), &mut *(&raw mut FRAME))
    };
    let snapshot = Snapshot::build(&spec, None, &mut Arena::new(memory)).ok()?;
    let mut rules = [RuleCounters::default(); 1];
    let mut backends = [BackendCounters::default(); 2];
    let tables = MuxTables {
        flows: Some(FlowTable::new(flows, Mem::empty(), [3, 4])),
        fragments: None,
        rules: Mem::from(&mut rules),
        backends: Mem::from(&mut backends),
    };
    let mut mux = Mux::new(&snapshot, tables, MuxOptions::default());

    // A SYN from 198.51.100.10:50000 to 20.20.20.100:80.
    let packet = [
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00, // Ethernet
        0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 198, 51, 100, 10, 20, 20, 20, 100, // IPv4
        0xc3, 0x50, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0, // TCP
    ];
    buffer.get_mut(HEADROOM..HEADROOM + packet.len())?.copy_from_slice(&packet);
    let mut frames = [Frame::new(buffer, HEADROOM, packet.len())?];
    mux.process(Instant::from_secs(1), &mut frames);
    let is_right = matches!(frames[0].verdict(), Verdict::Forward(_))
        && frames[0].len() == packet.len() + 50
        && mux.stats().flows.live == 1;
    is_right.then_some(())
}

/// Where the program begins: aligns the stack as calls expect it.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!("and rsp, -16", "call {main}", "ud2", main = sym main);
}

extern "C" fn main() -> ! {
    exit(if run().is_some() { 0 } else { 1 })
}

fn exit(status: i32) -> ! {
    // SAFETY: `exit` ends the process and touches no memory.
    unsafe { asm!("syscall", in("rax") 60, in("rdi") status, options(noreturn)) }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(2)
}

// What the compiler may call for copies and comparisons, and a libc would bring.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller promises `len` bytes on both sides, as C has it.
    unsafe { asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: copying forwards reads each byte before it is written over.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: copying backwards does, where `to` is behind `from`.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _,
            inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _)
    };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller promises `len` bytes.
    unsafe { asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for i in 0..len {
        // SAFETY: the caller promises `len` bytes on both sides.
        let (a, b) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, len) }
}

//! The parts that a libc would bring: the start and the end of the program, and the copies that the
//! compiler calls.
//!
//! Linux on x86-64 is only the stage: the last instruction is its `exit`.

use core::arch::{asm, naked_asm};

/// Where the program begins: aligns the stack as calls expect it.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!("and rsp, -16", "call {main}", "ud2", main = sym main);
}

extern "C" fn main() -> ! {
    exit(if crate::run().is_some() { 0 } else { 1 })
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

//! Frames, in the layout that C and Rust share.

use core::ffi::{c_char, c_int, c_void};
use core::mem::offset_of;

use slb_core::Frame;

use crate::error::slb_error::*;
use crate::error::{Error, guard};
use crate::memory::{array_of, overlap};

/// A packet in a buffer: `length` bytes from `offset` on, from its Ethernet header and without the
/// frame check sequence. Encapsulation needs 70 bytes before the packet (`SLB_HEADROOM`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_frame {
    /// The buffer: owned by the caller, and shared with no other frame.
    pub buffer: *mut u8,
    /// Capacity of the buffer in bytes.
    pub capacity: u32,
    /// Offset of the packet in the buffer.
    pub offset: u32,
    /// Length of the packet in bytes.
    pub length: u32,
    /// The port of arrival; after `SLB_FORWARD`, the port to send the frame out of.
    pub port: u16,
    /// Kind of the verdict, a value of enum slb_action.
    pub action: u8,
    /// After `SLB_DROP`, the reason: see `slb_drop_reason`.
    pub reason: u8,
}

/// Headroom that encapsulation needs before a packet, in bytes.
pub const SLB_HEADROOM: usize = 70;
/// The number of frames that are processed together: pass this number at a time, or a multiple of
/// it.
pub const SLB_BURST: usize = 64;

/// The kind of a frame's verdict; `port` and `reason` are its details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum slb_action {
    /// The frame is not for the balancer, and is unchanged.
    SLB_PASS = 0,
    /// Send the frame out of its `port`.
    SLB_FORWARD = 1,
    /// The frame has become an answer: send it out of the port of arrival.
    SLB_REPLY = 2,
    /// Do not send the frame.
    SLB_DROP = 3,
    /// Send the frame out of every port but its `port`.
    SLB_FLOOD = 4,
}

/// The verdict of a frame: action, reason and port, as an array beside the frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct slb_verdict {
    /// Kind of the verdict, a value of enum slb_action.
    pub action: u8,
    /// After `SLB_DROP`, the reason: see `slb_drop_reason`.
    pub reason: u8,
    /// After `SLB_FORWARD`, the port to send it out of.
    pub port: u16,
}

/// A function that is called for each step of each frame: `frame` is its index, `label` the kind of step, such as
/// "rule", and `text` the step in words, with indexes of rules and backends. Both texts are valid only during the call.
/// The function must not use the handle that calls it, and must not throw.
pub type slb_observer = Option<
    unsafe extern "C" fn(
        context: *mut c_void,
        frame: usize,
        label: *const c_char,
        text: *const c_char,
    ),
>;

const _: () = assert!(SLB_HEADROOM == slb_core::HEADROOM);
const _: () = assert!(SLB_BURST == slb_core::BURST);
const _: () = assert!(size_of::<slb_frame>() == size_of::<Frame<'static>>());
const _: () = assert!(align_of::<slb_frame>() == align_of::<Frame<'static>>());
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<slb_frame>() == 24);
    assert!(offset_of!(slb_frame, length) == 16);
    assert!(offset_of!(slb_frame, reason) == 23);
    assert!(size_of::<slb_verdict>() == 4);
};

/// Returns the frames in the dataplane's type, after checking each.
///
/// # Errors
/// A frame has no buffer, or exceeds it.
pub(crate) fn frames(frames: &mut [slb_frame]) -> Result<&mut [Frame<'_>], Error> {
    for frame in frames.iter() {
        let end = u64::from(frame.offset) + u64::from(frame.length);
        if frame.buffer.is_null() || end > u64::from(frame.capacity) {
            return Err(SLB_ERROR_FRAME);
        }
    }
    let first: *mut Frame<'_> = frames.as_mut_ptr().cast();
    // SAFETY: both structs are `repr(C)` with the same fields in the same order (asserted above as
    // far as possible). A `Frame`'s invariants hold: the buffer is not NULL, offset and length lie
    // inside it, and any number is a valid action or reason. The header requires the buffer to be
    // valid and not used elsewhere.
    Ok(unsafe { core::slice::from_raw_parts_mut(first, frames.len()) })
}

/// Detects overlapping buffers, which `slb_mux_process` does not. This is for tests of an I/O
/// layer: the time grows with the square of `count`.
///
/// Returns 0, `SLB_ERROR_OVERLAP`, or `SLB_ERROR_FRAME` if a frame exceeds its buffer.
///
/// # Safety
/// `frames` points to `count` frames.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_frames_check(frames: *const slb_frame, count: usize) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let frames = unsafe { array_of(frames, count) }?;
        for (index, frame) in frames.iter().enumerate() {
            let end = u64::from(frame.offset) + u64::from(frame.length);
            if frame.buffer.is_null() || end > u64::from(frame.capacity) {
                return Err(SLB_ERROR_FRAME);
            }
            let of = |frame: &slb_frame| (frame.buffer.cast_const(), frame.capacity as usize);
            let others = frames.get(index + 1..).unwrap_or_default();
            if others.iter().any(|other| overlap(of(frame), of(other))) {
                return Err(SLB_ERROR_OVERLAP);
            }
        }
        Ok(0)
    })
}

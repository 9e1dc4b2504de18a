//! `include/slb.h` is made by cbindgen from the source. To make it again:
//! `SLB_WRITE_HEADER=1 cargo test -p slb-ffi --test header`.

use std::fs;
use std::path::Path;

const BEFORE: &str = "\
/* slb: a layer-4 load balancer for your packets. Made by cbindgen from slb-ffi/src: do not edit.
 *
 * Functions that can fail return 0 or a count on success, else a negative value of enum slb_error;
 * after an error nothing has changed, unless the function says so. Pointers may be NULL only where
 * that is documented. NULL, misaligned, too short or overlapping arguments, and handles of another
 * kind, are errors. Only slb_frames_check looks for buffers of frames that overlap each other.
 * Pointers to undersized objects cannot be detected.
 *
 * A handle is for one thread at a time, and each thread may have its own; a snapshot is for any
 * number of threads and handles. There are no callbacks but observers and no global state. Only
 * functions with _new or _config in their name allocate. No panic unwinds into the caller.
 *
 * A verdict is an action (enum slb_action) with its details: the port of SLB_FORWARD and SLB_FLOOD,
 * or the reason of SLB_DROP.
 *
 * In a struct filled with zeros each field has its default: set only the fields that you need. Names
 * and addresses are required, and slb_builder_error says which one is missing. Options are filled in
 * by their _init function, since 0 means none there.
 *
 * The freestanding library has no function with _new or _config in its name: define SLB_FREESTANDING.
 *
 * See docs/c.md. */";

const AFTER: &str = "\
#if defined(__cplusplus) && __cplusplus >= 201103L
#define SLB_ASSERT(condition) static_assert(condition, #condition)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define SLB_ASSERT(condition) _Static_assert(condition, #condition)
#endif
#ifdef SLB_ASSERT
SLB_ASSERT(sizeof(slb_verdict) == 4);
SLB_ASSERT(sizeof(slb_address) == 17);
SLB_ASSERT(sizeof(slb_health) == 128);
SLB_ASSERT(sizeof(slb_stats) == 8 * (33 + SLB_DROP_REASONS));
#if UINTPTR_MAX == UINT64_MAX
SLB_ASSERT(sizeof(slb_frame) == 24);
SLB_ASSERT(sizeof(slb_backend) == 72);
SLB_ASSERT(sizeof(slb_rule) == 56);
SLB_ASSERT(sizeof(slb_mux_options) == 72);
SLB_ASSERT(sizeof(slb_nat_options) == 120);
#endif
#undef SLB_ASSERT
#endif";

fn generate() -> String {
    let crate_dir = env!("CARGO_MANIFEST_DIR");
    let mut config = cbindgen::Config {
        language: cbindgen::Language::C,
        include_guard: Some("SLB_H".into()),
        cpp_compat: true,
        no_includes: true,
        sys_includes: vec!["stddef.h".into(), "stdint.h".into()],
        header: Some(BEFORE.into()),
        trailer: Some(AFTER.into()),
        usize_is_size_t: true,
        documentation_style: cbindgen::DocumentationStyle::Doxy,
        style: cbindgen::Style::Both,
        line_length: 100,
        tab_width: 4,
        ..cbindgen::Config::default()
    };
    config.enumeration.prefix_with_name = false;
    config
        .defines
        .insert("feature = std".into(), "SLB_HOSTED".into());
    // What no function names, since numbers stand for it.
    config.export.include = [
        "slb_error",
        "slb_action",
        "slb_protocol",
        "slb_state",
        "slb_change",
        "slb_role",
    ]
    .map(String::from)
    .to_vec();
    let mut bytes = Vec::new();
    cbindgen::Builder::new()
        .with_crate(crate_dir)
        .with_config(config)
        .generate()
        .unwrap()
        .write(&mut bytes);
    let header = String::from_utf8(bytes).unwrap();
    // Rust's word for a promise means nothing to C: its paragraph is what the caller has to see to.
    header
        .replace("# Safety\n", "The caller promises:\n")
        .replace("SLB_HOSTED", "!defined(SLB_FREESTANDING)")
        .replace(
            "defined(!defined(SLB_FREESTANDING))",
            "!defined(SLB_FREESTANDING)",
        )
}

#[test]
fn the_header_is_that_of_the_source() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/slb.h");
    let made = generate();
    if std::env::var_os("SLB_WRITE_HEADER").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap();
    assert!(
        kept == made,
        "slb.h is not that of the source: make it anew"
    );
}

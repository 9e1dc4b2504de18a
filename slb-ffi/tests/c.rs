//! The library as C and C++ programs use it: installed, found by pkg-config and CMake, built by two
//! compilers, run under valgrind and sanitizers.
//!
//! What a test needs and is not there (a compiler, CMake, libpcap's header) it names, and is skipped.
//! With `SLB_REQUIRE_ALL` set it fails instead.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

macro_rules! skip {
    ($($why:tt)*) => {{
        assert!(std::env::var_os("SLB_REQUIRE_ALL").is_none(), $($why)*);
        eprintln!("SKIPPED: {}", format!($($why)*));
        return;
    }};
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn has(tool: &str) -> bool {
    Command::new(tool)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// The first of some tools that is not there.
fn missing<'t>(tools: &[&'t str]) -> Option<&'t str> {
    tools.iter().copied().find(|tool| !has(tool))
}

#[track_caller]
fn ok(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command:?}: {said}\n{errors}");
    output
}

/// Where the library is installed, once for all tests; `None` where there is no make or compiler.
fn installed() -> Option<&'static Path> {
    static PREFIX: OnceLock<Option<PathBuf>> = OnceLock::new();
    PREFIX
        .get_or_init(|| {
            if missing(&["make", "cc"]).is_some() {
                return None;
            }
            let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed");
            let prefix_option = format!("PREFIX={}", prefix.display());
            let mut make = Command::new("make");
            make.args(["install", &prefix_option, "CARGO=cargo", "PROFILE=release"])
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                // What cargo tells its tests is not for another build.
                .env_remove("CARGO_TARGET_DIR");
            ok(&mut make);
            Some(prefix)
        })
        .as_deref()
}

fn build(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Returns the flags of pkg-config for our library and others.
fn flags(prefix: &Path, packages: &[&str]) -> Vec<String> {
    let output = ok(Command::new("pkg-config")
        .args(["--cflags", "--libs"])
        .args(packages)
        .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut flags: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    flags.push(format!("-Wl,-rpath,{}/lib", prefix.display()));
    flags
}

/// Returns true if a compiler has its sanitizers: clang's are a package of their own.
fn sanitizes(test: &str, compiler: &str) -> bool {
    let folder = build(&format!("{test}-sanitizes-{compiler}"));
    let source = folder.join("empty.c");
    fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let output = Command::new(compiler)
        .arg("-fsanitize=address,undefined")
        .arg(&source)
        .arg("-o")
        .arg(folder.join("empty"))
        .output()
        .unwrap();
    if !output.status.success() {
        eprintln!("{compiler} has no sanitizers");
    }
    output.status.success()
}

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-pedantic", "-Werror"];

#[test]
fn the_header_is_good_c99_and_cpp17() {
    if let Some(tool) = missing(&["gcc", "clang", "g++", "clang++"]) {
        skip!("{tool} is not installed");
    }
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/slb.h");
    for (compilers, language, standards) in [
        (["gcc", "clang"], "c", &["c99", "c11", "c17"][..]),
        (["g++", "clang++"], "c++", &["c++11", "c++17"][..]),
    ] {
        for compiler in compilers {
            for standard in standards {
                ok(Command::new(compiler)
                    .arg(format!("-std={standard}"))
                    .args(STRICT)
                    .args(["-fsyntax-only", "-x", language])
                    .arg(&header));
            }
        }
    }
}

#[test]
fn what_is_exported_is_what_the_header_declares() {
    let Some(prefix) = installed() else {
        skip!("make or a C compiler is not installed");
    };
    if let Some(tool) = missing(&["nm"]) {
        skip!("{tool} is not installed");
    }
    let output = ok(Command::new("nm")
        .args(["-D", "--defined-only", "--format=just-symbols"])
        .arg(prefix.join("lib/libslb.so")));
    let exported: BTreeSet<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| line.split('@').next().unwrap_or_default().to_owned())
        .filter(|name| name != "SLB_0")
        .collect();
    let header = fs::read_to_string(prefix.join("include/slb.h")).unwrap();
    let declared: BTreeSet<String> = header
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("slb_"))
        .map(str::to_owned)
        .collect();
    assert!(declared.len() > 70, "{declared:?}");
    assert_eq!(exported, declared);
    let soname = ok(Command::new("readelf")
        .arg("-d")
        .arg(prefix.join("lib/libslb.so")));
    assert!(String::from_utf8_lossy(&soname.stdout).contains("libslb.so.0]"));
}

#[test]
fn every_misuse_is_seen() {
    let Some(prefix) = installed() else {
        skip!("make or a C compiler is not installed");
    };
    if let Some(tool) = missing(&["gcc", "clang", "pkg-config", "valgrind"]) {
        skip!("{tool} is not installed");
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/misuse.c");
    let folder = build("misuse");
    for compiler in ["gcc", "clang"] {
        for (name, options) in [
            ("plain", &[][..]),
            (
                "sanitized",
                &["-fsanitize=address,undefined", "-fno-sanitize-recover"][..],
            ),
        ] {
            if !options.is_empty() && !sanitizes("misuse", compiler) {
                assert_eq!(compiler, "clang");
                continue;
            }
            let program = folder.join(format!("{compiler}-{name}"));
            ok(Command::new(compiler)
                .args(["-std=c11", "-g"])
                .args(STRICT)
                .args(options)
                .arg(&source)
                .arg("-o")
                .arg(&program)
                .args(flags(prefix, &["slb"])));
            let output = ok(&mut Command::new(&program));
            assert_eq!(output.stdout, b"every misuse was seen\n");
        }
    }
    ok(Command::new("valgrind")
        .args(["--quiet", "--error-exitcode=9", "--leak-check=full"])
        .arg(folder.join("gcc-plain")));
}

/// Pins cross as records from one process to another.
#[test]
fn a_state_is_exported_and_imported() {
    let Some(prefix) = installed() else {
        skip!("make or a C compiler is not installed");
    };
    if let Some(tool) = missing(&["gcc", "pkg-config", "valgrind"]) {
        skip!("{tool} is not installed");
    }
    let folder = build("state");
    let program = folder.join("state");
    ok(Command::new("gcc")
        .args(["-std=c11", "-g"])
        .args(STRICT)
        .arg(root().join("examples/c/state.c"))
        .arg("-o")
        .arg(&program)
        .args(flags(prefix, &["slb"])));
    for what in ["export", "import"] {
        let output = ok(Command::new("valgrind")
            .args(["--quiet", "--error-exitcode=9", "--leak-check=full"])
            .arg(&program)
            .args([what, "examples/web.toml"])
            .arg(folder.join("flows"))
            .current_dir(root()));
        assert_eq!(output.stdout, b"done\n");
    }
}

#[test]
fn the_examples_build_with_pkg_config_and_run() {
    let Some(prefix) = installed() else {
        skip!("make or a C compiler is not installed");
    };
    if let Some(tool) = missing(&["gcc", "clang", "g++", "clang++", "pkg-config", "valgrind"]) {
        skip!("{tool} is not installed");
    }
    if !Path::new("/usr/include/pcap/pcap.h").exists() {
        skip!("libpcap's header is not installed");
    }
    let folder = build("examples");
    let out = folder.join("out.pcap");
    let run = |program: &Path, under: &[&str]| {
        let mut all: Vec<&str> = under.to_vec();
        let path = program.to_str().unwrap();
        all.push(path);
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).current_dir(root());
        if path.contains("-c") {
            command
                .args(["examples/web.toml", "examples/sample.pcap"])
                .arg(&out);
        }
        ok(&mut command)
    };
    for (compiler, standard, source, packages) in [
        ("gcc", "c99", "examples/c/mux.c", &["slb", "libpcap"][..]),
        ("clang", "c99", "examples/c/mux.c", &["slb", "libpcap"][..]),
        ("g++", "c++17", "examples/cpp/mux.cpp", &["slb"][..]),
        ("clang++", "c++17", "examples/cpp/mux.cpp", &["slb"][..]),
    ] {
        let kind = if standard == "c99" { "c" } else { "plus" };
        for (name, options) in [("plain", ""), ("sanitized", "-fsanitize=address,undefined")] {
            if !options.is_empty() && !sanitizes("examples", compiler) {
                assert!(compiler.starts_with("clang"));
                continue;
            }
            let program = folder.join(format!("{name}-{compiler}-{kind}"));
            let mut compile = Command::new(compiler);
            compile
                .arg(format!("-std={standard}"))
                .args(["-g", "-D_GNU_SOURCE"])
                .args(STRICT)
                .args(Some(options).filter(|options| !options.is_empty()))
                .arg(root().join(source))
                .arg("-o")
                .arg(&program)
                .args(flags(prefix, packages));
            ok(&mut compile);
            run(&program, &[]);
            if name == "plain" {
                let quietly = [
                    "valgrind",
                    "--quiet",
                    "--error-exitcode=9",
                    "--leak-check=full",
                ];
                run(&program, &quietly);
            }
        }
    }
}

/// The program that the documentation begins with, against the shared library and as a static program.
#[test]
fn the_first_program_is_linked_both_ways_and_runs() {
    let Some(prefix) = installed() else {
        skip!("make or a C compiler is not installed");
    };
    if let Some(tool) = missing(&["gcc", "clang", "pkg-config", "valgrind"]) {
        skip!("{tool} is not installed");
    }
    let source = root().join("examples/c/first.c");
    let lines = fs::read_to_string(&source).unwrap().lines().count();
    assert!(lines <= 60, "{lines} lines");
    let folder = build("first");
    for compiler in ["gcc", "clang"] {
        for linked in ["shared", "static"] {
            let program = folder.join(format!("{compiler}-{linked}"));
            let mut packages = vec!["slb"];
            let mut compile = Command::new(compiler);
            compile.args(["-std=c99", "-g"]).args(STRICT);
            if linked == "static" {
                packages.push("--static");
                compile.arg("-static");
            }
            compile.arg(&source).arg("-o").arg(&program);
            ok(compile.args(flags(prefix, &packages)));
            let output = ok(&mut Command::new(&program));
            let text = String::from_utf8(output.stdout).unwrap();
            for line in [
                "packet     tcp 198.51.100.10:50000 > 20.20.20.100:80, SYN, ",
                "rule       0\n",
                "verdict    forward, out of port 0\n",
                "1 forwarded\n",
            ] {
                assert!(text.contains(line), "{line:?} in {text}");
            }
        }
    }
    ok(Command::new("valgrind")
        .args(["--quiet", "--error-exitcode=9", "--leak-check=full"])
        .arg(folder.join("gcc-shared")));
}

/// Two threads that hand packets to each other, each with the connections that `slb_steer` gives it.
#[test]
fn two_threads_share_a_proxys_connections() {
    let Some(prefix) = installed() else {
        skip!("make or a C compiler is not installed");
    };
    if let Some(tool) = missing(&["gcc", "clang", "pkg-config", "valgrind"]) {
        skip!("{tool} is not installed");
    }
    let folder = build("workers");
    for compiler in ["gcc", "clang"] {
        let program = folder.join(compiler);
        let mut compile = Command::new(compiler);
        compile
            .args(["-std=c99", "-g", "-D_GNU_SOURCE"])
            .args(STRICT)
            .arg(root().join("examples/c/workers.c"))
            .arg("-o")
            .arg(&program)
            .args(flags(prefix, &["slb"]))
            .arg("-pthread");
        ok(&mut compile);
        let said = String::from_utf8(ok(&mut Command::new(&program)).stdout).unwrap();
        assert!(said.starts_with("64 of 64 answered from the VIP"), "{said}");
        // Half of the clients are the other worker's.
        let counts: Vec<u32> = said
            .split([' ', '\n'])
            .filter_map(|word| word.parse().ok())
            .collect();
        assert!(
            counts[2..].iter().all(|handed| (16..=48).contains(handed))
                && counts[2] + counts[3] == 64,
            "{said}"
        );
    }
    ok(Command::new("valgrind")
        .args(["--quiet", "--error-exitcode=9", "--leak-check=full"])
        .arg(folder.join("gcc")));
}

#[test]
fn cmake_finds_it() {
    let Some(prefix) = installed() else {
        skip!("make or a C compiler is not installed");
    };
    if let Some(tool) = missing(&["cmake", "pkg-config", "gcc", "clang", "g++", "clang++"]) {
        skip!("{tool} is not installed");
    }
    if !Path::new("/usr/include/pcap/pcap.h").exists() {
        skip!("libpcap's header is not installed");
    }
    for (example, variable, compiler) in [
        ("c", "C", "gcc"),
        ("c", "C", "clang"),
        ("cpp", "CXX", "g++"),
        ("cpp", "CXX", "clang++"),
    ] {
        let folder = build(&format!("cmake-{compiler}"));
        ok(Command::new("cmake")
            .arg("-S")
            .arg(root().join("examples").join(example))
            .arg("-B")
            .arg(&folder)
            .arg(format!("-DCMAKE_{variable}_COMPILER={compiler}"))
            .arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display())));
        ok(Command::new("cmake").arg("--build").arg(&folder));
        let mut program = Command::new(folder.join("mux"));
        if example == "c" {
            program
                .args(["examples/web.toml", "examples/sample.pcap"])
                .arg(folder.join("out.pcap"));
        }
        ok(program.current_dir(root()));
    }
}

/// Linked without libc and an allocator.
#[test]
fn the_freestanding_library_needs_nothing() {
    if let Some(tool) = missing(&["make", "gcc", "nm"]) {
        skip!("{tool} is not installed");
    }
    ok(Command::new("make")
        .args(["freestanding", "CARGO=cargo", "PROFILE=release"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("CARGO_TARGET_DIR"));
    let folder = build("freestanding");
    let program = folder.join("mux");
    ok(Command::new("gcc")
        .args(["-std=c11", "-ffreestanding", "-nostdlib", "-static", "-O2"])
        .args(STRICT)
        .arg("-I")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("include"))
        .arg(root().join("examples/c-freestanding/mux.c"))
        .arg(root().join("target/freestanding/libslb.a"))
        .arg("-Wl,--gc-sections")
        .arg("-o")
        .arg(&program));
    let undefined = ok(Command::new("nm").arg("-u").arg(&program));
    assert_eq!(String::from_utf8_lossy(&undefined.stdout), "");
    ok(&mut Command::new(&program));
}

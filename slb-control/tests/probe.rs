//! Probes of real servers, good and bad ones.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use slb_control::Config;
use slb_control::config::{Probe, Standing};
use slb_control::probe::{Asker, ProbeFailure, Prober, Target};
use slb_core::health::Condition;
use slb_core::spec::BackendState;
use slb_core::wire::vxlan::Vni;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A server that does something with each connection, until the test is over.
fn serve(act: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let act = Arc::new(act);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let act = Arc::clone(&act);
            thread::spawn(move || act(stream));
        }
    });
    address
}

/// Reads a request up to its empty line.
fn read_request(stream: &mut impl Read) -> io::Result<String> {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        text.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A configuration whose one rule asks so.
fn config(probe: &str, address: SocketAddr) -> Config {
    let text = format!(
        "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
         [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
         [[pool]]\nname = \"servers\"\nvni = 1\nbackends = [\n\
         {{ name = \"a\", address = \"10.0.0.1\", host = \"172.16.0.101\" }},\n\
         {{ name = \"b\", address = \"10.0.0.2\", host = \"172.16.0.102\", state = \"down\" }}]\n\
         [[probe]]\nname = \"p\"\nport = {}\n{probe}\n\
         [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"servers\"\nprobe = \"p\"\n\
         protocol = \"tcp\"\nfrontend_port = 80\n",
        address.port(),
    );
    let mut config = Config::parse("probe.toml", &text).unwrap();
    // A configuration names no loopback address, but the servers of these tests are there.
    config.pools[0].backends[0].address = address.ip();
    config.pools[0].backends[1].address = "127.0.0.9".parse().unwrap();
    config
}

fn target(probe: &str, address: SocketAddr) -> Target {
    let mut probe: Probe = config(probe, address).probes.remove(0);
    probe.timeout = Duration::from_millis(400);
    Target {
        address: address.ip(),
        vni: Vni::default(),
        vm: None,
        probe,
    }
}

fn ask(asker: &Asker, target: &Target) -> Result<(), ProbeFailure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(asker.ask(target))
}

const HTTP: &str = "protocol = \"http\"\npath = \"/health\"";

#[test]
fn tcp_is_well_when_the_handshake_completes() {
    let asker = Asker::new(&[]);
    let address = serve(|_| Ok(()));
    ask(&asker, &target("protocol = \"tcp\"", address)).unwrap();
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let failure = ask(&asker, &target("protocol = \"tcp\"", gone)).unwrap_err();
    assert!(matches!(failure, ProbeFailure::Connect(_)), "{failure}");
}

#[test]
fn http_is_well_when_it_says_200() {
    let asker = Asker::new(&["127.0.0.5".parse().unwrap()]);
    let address = serve(|mut stream| {
        let request = read_request(&mut stream)?;
        assert!(request.starts_with("GET /health HTTP/1.1\r\n"), "{request}");
        // With its port, which is not the usual one (RFC 9110 §7.2).
        let port = stream.local_addr()?.port();
        let is_named = request.contains(&format!("host: web.example:{port}\r\n"));
        let from_source = stream.peer_addr()?.ip() == "127.0.0.5".parse::<IpAddr>().unwrap();
        let status = if is_named && from_source {
            "200 OK"
        } else {
            "400 Bad Request"
        };
        write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 99999\r\n\r\n")?;
        // The body is not waited for.
        thread::sleep(Duration::from_secs(2));
        Ok(())
    });
    ask(
        &asker,
        &target(&format!("{HTTP}\nhost = \"web.example\""), address),
    )
    .unwrap();
    let failure = ask(&asker, &target(HTTP, address)).unwrap_err();
    assert_eq!(failure.to_string(), "expected 200, got 400 Bad Request");
}

#[test]
fn who_answers_badly_harms_nobody() {
    let asker = Asker::new(&[]);
    type Act = fn(TcpStream) -> io::Result<()>;
    let bad: [(&str, Act); 7] = [
        ("says nothing", |mut stream| {
            read_request(&mut stream)?;
            thread::sleep(Duration::from_secs(5));
            Ok(())
        }),
        ("does not even read", |stream| {
            thread::sleep(Duration::from_secs(5));
            drop(stream);
            Ok(())
        }),
        ("hangs up", |mut stream| read_request(&mut stream).map(drop)),
        ("is no HTTP", |mut stream| {
            stream.write_all(&[0xff; 1 << 20])
        }),
        ("has headers without end", |mut stream| {
            write!(stream, "HTTP/1.1 200 OK\r\n")?;
            loop {
                write!(stream, "x-header: {}\r\n", "y".repeat(1000))?;
            }
        }),
        ("drips", |mut stream| {
            for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n" {
                stream.write_all(&[*byte])?;
                thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        }),
        ("says 100 for ever", |mut stream| {
            loop {
                write!(stream, "HTTP/1.1 100 Continue\r\n\r\n")?;
            }
        }),
    ];
    for (what, act) in bad {
        let begin = Instant::now();
        let failure = ask(&asker, &target(HTTP, serve(act)));
        assert!(failure.is_err(), "{what}");
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "{what}: bounded by the timeout"
        );
    }
}

#[test]
fn https_is_well_with_a_certificate_that_is_trusted_or_any() {
    let made = rcgen::generate_simple_self_signed(["web.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let server = Arc::new(server);
    let address = serve(move |stream| {
        let session = ServerConnection::new(Arc::clone(&server)).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(session, stream);
        read_request(&mut stream)?;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
        stream.flush()
    });
    let asker = Asker::new(&[]);
    let https = "protocol = \"https\"\nhost = \"web.example\"";
    ask(
        &asker,
        &target(&format!("{https}\nverify_certificate = false"), address),
    )
    .unwrap();
    let failure = ask(&asker, &target(https, address)).unwrap_err();
    assert!(failure.to_string().contains("UnknownIssuer"), "{failure}");
    // What is no TLS at all.
    let plain = serve(|mut stream| stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"));
    let failure = ask(&asker, &target(https, plain)).unwrap_err();
    assert!(matches!(failure, ProbeFailure::Tls(_)), "{failure}");
}

/// Waits for a backend to turn; gives to what.
fn turn(prober: &mut Prober) -> Option<Condition> {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        if let Some(change) = prober.changed() {
            assert_eq!(change.probe, "p");
            return Some(change.condition);
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

#[test]
fn a_backend_turns_after_as_many_answers_as_the_threshold_says() {
    let (is_well, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
    let (well, count) = (Arc::clone(&is_well), Arc::clone(&asked));
    let address = serve(move |mut stream| {
        read_request(&mut stream)?;
        count.fetch_add(1, Ordering::SeqCst);
        let status = if well.load(Ordering::SeqCst) {
            "200 OK"
        } else {
            "503 Unavailable"
        };
        write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")
    });
    let mut config = config(&format!("{HTTP}\nthreshold = 3"), address);
    config.probes[0].interval = Duration::from_millis(60);
    config.probes[0].timeout = Duration::from_millis(60);
    let mut prober = Prober::start(&[]).unwrap();
    prober.set(&config);
    // The backend that is said to be unhealthy is not asked.
    assert_eq!(prober.targets(), 1);
    let state = |prober: &Prober| {
        let mut applied = config.clone();
        prober.apply(&mut applied);
        applied.standing(0, 0)
    };
    assert_eq!(state(&prober), Standing::Healthy);
    while asked.load(Ordering::SeqCst) < 4 {
        thread::sleep(Duration::from_millis(5));
    }
    for (well, condition, after) in [
        (false, Condition::Unhealthy, Standing::Unhealthy),
        (true, Condition::Healthy, Standing::Healthy),
    ] {
        is_well.store(well, Ordering::SeqCst);
        let before = asked.load(Ordering::SeqCst);
        assert_eq!(turn(&mut prober), Some(condition));
        let probes = asked.load(Ordering::SeqCst) - before;
        // One may have been on its way when the server turned, and one since.
        assert!((3..=4).contains(&probes), "{probes} probes");
        assert_eq!(state(&prober), after);
    }

    // The same configuration, moved about, changes nothing; another probe begins anew.
    is_well.store(false, Ordering::SeqCst);
    assert_eq!(turn(&mut prober), Some(Condition::Unhealthy));
    prober.set(&config.clone());
    assert_eq!(state(&prober), Standing::Unhealthy);
    let mut other = config.clone();
    other.probes[0].path = "/other".to_owned();
    prober.set(&other);
    assert_eq!(state(&prober), Standing::Healthy);
    assert_eq!(turn(&mut prober), Some(Condition::Unhealthy));
    // A configuration without rules asks nobody.
    other.rules.clear();
    prober.set(&other);
    assert_eq!(prober.targets(), 0);
    let before = asked.load(Ordering::SeqCst);
    thread::sleep(Duration::from_millis(200));
    assert!(asked.load(Ordering::SeqCst) <= before + 1);
}

/// Azure's `AllProbedDown` and `AllProbedUp`.
#[test]
fn where_nobody_is_well_nobody_or_everybody_is_used() {
    let is_well = Arc::new(AtomicBool::new(false));
    let well = Arc::clone(&is_well);
    let sick = serve(move |mut stream| {
        read_request(&mut stream)?;
        let status = if well.load(Ordering::SeqCst) {
            "200 OK"
        } else {
            "503 Gone"
        };
        write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")
    });
    for (value, alone) in [
        ("refuse", Standing::Unhealthy),
        ("use-all", Standing::Healthy),
    ] {
        let mut config = config(
            &format!("{HTTP}\nthreshold = 1\nno_healthy_backends = \"{value}\""),
            sick,
        );
        config.probes[0].interval = Duration::from_millis(50);
        config.probes[0].timeout = Duration::from_millis(50);
        let mut prober = Prober::start(&[]).unwrap();
        prober.set(&config);
        assert_eq!(turn(&mut prober), Some(Condition::Unhealthy));
        let states = |config: &Config, prober: &Prober| -> Vec<Standing> {
            let mut applied = config.clone();
            prober.apply(&mut applied);
            let backends = 0..applied.pools[0].backends.len();
            backends.map(|place| applied.standing(0, place)).collect()
        };
        // The other one is down by the configuration, and stays so.
        assert_eq!(states(&config, &prober), [alone, Standing::Down]);
        // With somebody left who is well, the sick one gets nothing, whatever is said.
        let mut two = config.clone();
        let mut third = two.pools[0].backends[0].clone();
        third.name = "third".to_owned();
        third.address = "127.0.0.77".parse().unwrap();
        two.pools[0].backends.push(third);
        assert_eq!(states(&two, &prober)[0], Standing::Unhealthy);
        // A draining one takes no new flows: it is nobody who is left.
        two.pools[0].backends[2].state = BackendState::Draining;
        assert_eq!(states(&two, &prober)[0], alone);
        // And all is as before when it is well again.
        is_well.store(true, Ordering::SeqCst);
        assert_eq!(turn(&mut prober), Some(Condition::Healthy));
        assert_eq!(states(&config, &prober)[0], Standing::Healthy);
        is_well.store(false, Ordering::SeqCst);
    }
}

#[test]
fn many_backends_are_not_asked_at_once() {
    // Each server notes when it was asked; 40 backends are 40 addresses of the loopback.
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let note = Arc::clone(&asked);
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream);
            note.lock().unwrap().push(Instant::now());
        }
    });
    let mut config = config(
        "protocol = \"tcp\"",
        SocketAddr::from(([127, 0, 1, 0], port)),
    );
    let first = config.pools[0].backends[0].clone();
    config.pools[0].backends = (0..40u8)
        .map(|number| {
            let mut backend = first.clone();
            backend.name = format!("b{number}");
            backend.address = IpAddr::from([127, 0, 1, number]);
            backend
        })
        .collect();
    config.probes[0].interval = Duration::from_millis(1000);
    let mut prober = Prober::start(&[]).unwrap();
    let begin = Instant::now();
    prober.set(&config);
    assert_eq!(prober.targets(), 40);
    while asked.lock().unwrap().len() < 40 && begin.elapsed() < Duration::from_secs(5) {
        thread::sleep(Duration::from_millis(10));
    }
    let asked = asked.lock().unwrap();
    let quarter = |number: u32| {
        let (from, to) = (number * 250, (number + 1) * 250);
        let within = asked.iter().take(40).filter(|at| {
            let at = at.duration_since(begin).as_millis() as u32;
            (from..to).contains(&at)
        });
        within.count()
    };
    let quarters = [0, 1, 2, 3].map(quarter);
    assert!(quarters.iter().all(|&count| count >= 4), "{quarters:?}");
}

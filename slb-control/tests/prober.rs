//! The prober's own troubles, and how it shares itself among pools.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use slb_control::Config;
use slb_control::config::Standing;
use slb_control::probe::{Asker, Prober, Target, targets};
use slb_core::health::Condition;

/// A server that answers each request with `answer`; counts them.
fn serve(address: &str, answer: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(address).unwrap();
    let (address, count) = (
        listener.local_addr().unwrap(),
        Arc::new(AtomicUsize::new(0)),
    );
    let counting = Arc::clone(&count);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let counting = Arc::clone(&counting);
            thread::spawn(move || -> io::Result<()> {
                let (mut text, mut byte) = (Vec::new(), [0]);
                while !text.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte)?;
                    text.push(byte[0]);
                }
                counting.fetch_add(1, Ordering::SeqCst);
                stream.write_all(answer.as_bytes())
            });
        }
    });
    (address, count)
}

const WELL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Pools of backends, each with a rule whose probe asks a port.
fn config(pools: &[(u16, Vec<IpAddr>)], interval: Duration) -> Config {
    let mut text = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n".to_owned();
    for (number, (port, backends)) in pools.iter().enumerate() {
        text += &format!(
            "[[frontend]]\nname = \"f{number}\"\naddress = \"20.20.20.{}\"\n\
             [[probe]]\nname = \"p{number}\"\nport = {port}\nprotocol = \"http\"\npath = \"/\"\n\
             threshold = 2\n\
             [[rule]]\nname = \"r{number}\"\nfrontend = \"f{number}\"\npool = \"q{number}\"\n\
             probe = \"p{number}\"\nprotocol = \"tcp\"\nfrontend_port = 80\n\
             [[pool]]\nname = \"q{number}\"\nvni = {}\ntable_size = 65537\nbackends = [\n",
            100 + number,
            5001 + number
        );
        for place in 0..backends.len() {
            text += &format!(
                "{{ name = \"b{place}\", address = \"10.{number}.{}.{}\", host = \"172.16.0.101\" }},\n",
                place / 250,
                1 + place % 250
            );
        }
        text += "]\n";
    }
    let mut config = Config::parse("prober.toml", &text).unwrap();
    // A configuration names no loopback address, but the servers of these tests are there.
    for (pool, (_, backends)) in config.pools.iter_mut().zip(pools) {
        for (backend, address) in pool.backends.iter_mut().zip(backends) {
            backend.address = *address;
        }
    }
    for probe in &mut config.probes {
        probe.interval = interval;
        probe.timeout = interval;
    }
    config
}

fn standing(prober: &Prober, config: &Config, pool: usize) -> Standing {
    let mut applied = config.clone();
    prober.apply(&mut applied);
    applied.standing(pool, 0)
}

/// Hears of changes for so long; gives them.
fn listen(prober: &mut Prober, how_long: Duration) -> Vec<Condition> {
    let end = Instant::now() + how_long;
    let mut all = Vec::new();
    while Instant::now() < end {
        while let Some(change) = prober.changed() {
            all.push(change.condition);
        }
        thread::sleep(Duration::from_millis(5));
    }
    all
}

fn ask(target: &Target, sources: &[IpAddr]) -> Result<(), slb_control::probe::ProbeFailure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(Asker::new(sources).ask(target))
}

#[test]
fn what_the_node_cannot_do_is_not_the_backends_fault() {
    let (address, asked) = serve("127.0.0.1:0", WELL);
    let config = config(
        &[(address.port(), vec![address.ip()])],
        Duration::from_millis(50),
    );
    // An address to ask from that this machine does not have: EADDRNOTAVAIL.
    let nowhere: IpAddr = "192.0.2.77".parse().unwrap();
    let failure = ask(&targets(&config)[0].0, &[nowhere]).unwrap_err();
    assert!(failure.is_own(), "{failure}");
    assert!(
        failure.to_string().starts_with("this node cannot probe: "),
        "{failure}"
    );

    let mut prober = Prober::start(&[nowhere]).unwrap();
    prober.set(&config);
    assert_eq!(prober.unknown(), 1);
    assert_eq!(listen(&mut prober, Duration::from_millis(400)), []);
    assert_eq!(standing(&prober, &config, 0), Standing::Healthy);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    let why = prober.take_trouble().unwrap();
    assert!(why.contains("assign requested address"), "{why}");
    // It stands in nobody's way.
    assert_eq!(prober.unknown(), 0);
    // One who refuses is at fault himself.
    let refused = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut other = config.clone();
    other.probes[0].port = refused.port();
    let failure = ask(&targets(&other)[0].0, &[]).unwrap_err();
    assert!(!failure.is_own(), "{failure}");
}

#[test]
fn the_first_answer_tells_and_comes_soon() {
    let (well, _) = serve("127.0.0.1:0", WELL);
    let dead = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let pools = [
        (well.port(), vec![well.ip()]),
        (dead.port(), vec![dead.ip()]),
    ];
    // By the interval alone it would take half a minute.
    let config = config(&pools, Duration::from_secs(15));
    let mut prober = Prober::start(&[]).unwrap();
    prober.set(&config);
    assert_eq!(prober.unknown(), 2);
    let begin = Instant::now();
    while prober.unknown() > 0 {
        assert!(begin.elapsed() < Duration::from_secs(12));
        let _ = prober.changed();
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(standing(&prober, &config, 0), Standing::Healthy);
    assert_eq!(standing(&prober, &config, 1), Standing::Unhealthy);
}

#[test]
fn silent_backends_of_one_pool_take_nothing_from_another() {
    let (well, asked) = serve("127.0.0.1:0", WELL);
    // Three thousand addresses of one who accepts and says nothing.
    let silent = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let most = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&most);
    thread::spawn(move || {
        let mut held = Vec::new();
        for stream in silent.incoming().flatten() {
            let _ = stream.set_nonblocking(true);
            held.push(stream);
            // Those that were given up have come to their end.
            held.retain(|mut stream| !matches!(stream.read(&mut [0; 4096]), Ok(0)));
            counting.fetch_max(held.len(), Ordering::SeqCst);
        }
    });
    let addresses = (0..3000u16).map(|number| {
        let [high, low] = number.to_be_bytes();
        IpAddr::from([127, 7, high, low.max(1)])
    });
    let pools = [(port, addresses.collect()), (well.port(), vec![well.ip()])];
    let mut config = config(&pools, Duration::from_secs(5));
    config.probes[1].interval = Duration::from_millis(200);
    config.probes[1].timeout = Duration::from_millis(200);
    let mut prober = Prober::start(&[]).unwrap().with_sockets(600);
    prober.set(&config);
    listen(&mut prober, Duration::from_secs(3));
    assert_eq!(standing(&prober, &config, 1), Standing::Healthy);
    let asked = asked.load(Ordering::SeqCst);
    assert!(asked >= 8, "asked {asked} times in 3 s, expected about 14");
    let most = most.load(Ordering::SeqCst);
    assert!((100..=300).contains(&most), "{most} connections at once");
    assert_eq!(prober.take_trouble(), None);
}

#[test]
fn many_short_headers_are_an_answer() {
    let mut text = "HTTP/1.1 200 OK\r\n".to_owned();
    for number in 0..600 {
        text += &format!("h{number}: 1\r\n");
    }
    text += "content-length: 0\r\n\r\n";
    let (address, _) = serve("127.0.0.1:0", text.leak());
    let config = config(
        &[(address.port(), vec![address.ip()])],
        Duration::from_secs(5),
    );
    ask(&targets(&config)[0].0, &[]).unwrap();
}

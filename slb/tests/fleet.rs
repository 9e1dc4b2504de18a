//! Muxes and backends change, hosts before muxes, under downloads, uploads, datagrams and QUIC, and no
//! connection breaks.
//!
//! In the data centre of [`common::lab`], with three muxes and five vms: mux1 is killed, mux3 joins, vm4 is
//! added, and vm5 takes the place of vm3, which drains.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::inside::inside;
use common::lab::{Change, ECHO_PORT, Io, Lab, NO_CHANGE, QUIC_PORT, SLOW, TOOLS, VIP, VIP6};
use common::world::lacking;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::rustls::{self, RootCertStore};

const DOWNLOADS: usize = 200;
const UPLOADS: usize = 50;
const TALKS: usize = 20;
const QUIC_CONNECTIONS: usize = 10;
/// Between two questions of a talk or a QUIC connection.
const PAUSE: Duration = Duration::from_millis(40);
/// The maximum time for an answer. A datagram is sent again meanwhile, by the talk or by QUIC.
const PATIENCE: Duration = Duration::from_secs(5);

/// Lets one data centre run at a time: they have the same names, and each loads both processors.
static ALONE: Mutex<()> = Mutex::new(());

/// A flag that ends threads, also those of a test that panics.
#[derive(Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn vip_of(number: usize, port: u16) -> SocketAddr {
    let vip: IpAddr = [VIP, VIP6][number % 2].parse().unwrap();
    SocketAddr::new(vip, port)
}

/// Answers each datagram by the same, and the vm's number before it.
fn echo(vm: u8, stop: &AtomicBool) {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, ECHO_PORT)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let mut datagram = [0; 64];
    datagram[0] = vm;
    while !stop.load(Ordering::Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut datagram[1..]) {
            let _ = socket.send_to(&datagram[..=len], from);
        }
    }
}

/// Asks by datagrams from one port; gives the vms that answered, and how many answers there were.
fn talk(to: SocketAddr, stop: &AtomicBool) -> (BTreeSet<u8>, u32) {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(to).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let (mut vms, mut count) = (BTreeSet::new(), 0u32);
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        'answered: loop {
            assert!(asked.elapsed() < PATIENCE, "{to}: no answer {count}");
            // While no mux has the route, the kernel may say that there is none.
            let _ = socket.send(&count.to_be_bytes());
            let sent = Instant::now();
            let mut answer = [0; 64];
            while sent.elapsed() < Duration::from_millis(200) {
                let Ok(len) = socket.recv(&mut answer) else {
                    break;
                };
                vms.insert(answer[0]);
                if answer[1..len] == count.to_be_bytes() {
                    break 'answered;
                }
            }
        }
        count += 1;
        sleep(PAUSE);
    }
    (vms, count)
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

async fn until(stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(PAUSE).await;
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A vm's QUIC server: what a stream brings goes back, eight bytes at a time.
fn quic_server(key: &rcgen::CertifiedKey<rcgen::KeyPair>) -> quinn::ServerConfig {
    let secret = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], secret.into())
        .unwrap();
    let config = quinn::crypto::rustls::QuicServerConfig::try_from(config).unwrap();
    quinn::ServerConfig::with_crypto(Arc::new(config))
}

fn serve_quic(config: quinn::ServerConfig, stop: Arc<AtomicBool>) {
    runtime().block_on(async {
        let address = (Ipv6Addr::UNSPECIFIED, QUIC_PORT).into();
        let endpoint = quinn::Endpoint::server(config, address).unwrap();
        let accept = async {
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(async move {
                    let connection = incoming.await.ok()?;
                    let (mut send, mut receive) = connection.accept_bi().await.ok()?;
                    let mut message = [0; 8];
                    while receive.read_exact(&mut message).await.is_ok() {
                        send.write_all(&message).await.ok()?;
                    }
                    Some(())
                });
            }
        };
        tokio::select! { () = accept => {}, () = until(stop) => {} }
    });
}

/// Asks over one QUIC connection until it is to stop; gives how many answers there were.
async fn ask_by_quic(
    endpoint: quinn::Endpoint,
    to: SocketAddr,
    stop: Arc<AtomicBool>,
) -> Result<u64, String> {
    let why = |what: &str, error: &dyn std::fmt::Display| format!("{to}: {what}: {error}");
    let connecting = endpoint.connect(to, "lab");
    let connection = connecting.map_err(|error| why("connect", &error))?.await;
    let connection = connection.map_err(|error| why("handshake", &error))?;
    let stream = connection.open_bi().await;
    let (mut send, mut receive) = stream.map_err(|error| why("stream", &error))?;
    let mut count = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let question = count.to_be_bytes();
        let mut answer = [0; 8];
        let exchange = async {
            let sent = send.write_all(&question).await;
            sent.map_err(|error| why("send", &error))?;
            let received = receive.read_exact(&mut answer).await;
            received.map_err(|error| why("receive", &error))
        };
        let exchanged = tokio::time::timeout(PATIENCE, exchange).await;
        exchanged.map_err(|error| why("wait", &error))??;
        assert_eq!(answer, question);
        count += 1;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(count)
}

fn use_quic(
    authority: CertificateDer<'static>,
    stop: &Arc<AtomicBool>,
) -> Vec<Result<u64, String>> {
    let mut roots = RootCertStore::empty();
    roots.add(authority).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(config));
    runtime().block_on(async {
        let asked: Vec<_> = (0..QUIC_CONNECTIONS)
            .map(|number| {
                let to = vip_of(number, QUIC_PORT);
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                // A port for each: otherwise all are one flow.
                let mut endpoint = quinn::Endpoint::client(any.parse().unwrap()).unwrap();
                endpoint.set_default_client_config(config.clone());
                tokio::spawn(ask_by_quic(endpoint, to, Arc::clone(stop)))
            })
            .collect();
        let mut results = Vec::new();
        for connection in asked {
            results.push(connection.await.unwrap());
        }
        results
    })
}

fn nothing_breaks(io: Io, flows: u32) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = Change {
        flows,
        datagrams: true,
        ..NO_CHANGE
    };
    let after = Change {
        backends: &[(1, 1), (2, 1), (3, 0), (4, 1), (5, 1)],
        ..before
    };
    let mut lab = Lab::new(io, (3, 5));
    let (servers, clients) = (Stop::default(), Stop::default());
    let key = rcgen::generate_simple_self_signed(["lab".to_owned()]).unwrap();
    let config = quic_server(&key);
    for vm in 1..=5 {
        let (machine, stop) = (format!("vm{vm}"), servers.flag());
        inside(&lab.world, &machine, move || echo(vm, &stop));
        let (config, stop) = (config.clone(), servers.flag());
        inside(&lab.world, &machine, move || serve_quic(config, stop));
    }
    lab.start_all(before);
    lab.wait_for_configurations();

    let curl = |more: &str| {
        let curl = "curl -sS --no-progress-meter -Z --parallel-immediate --parallel-max 200 -m 60";
        lab.world.start("client", &format!("{curl} {more}"))
    };
    let half = DOWNLOADS / 2;
    let downloads = curl(&format!(
        "-w '%{{http_code}} %{{size_download}}\\n' \
         -o /dev/null 'http://{VIP}/slow?n=[1-{half}]' \
         -o /dev/null 'http://[{VIP6}]/slow?n=[1-{half}]'"
    ));
    let whole = lab.world.path("slow").display().to_string();
    let half = UPLOADS / 2;
    let uploads = curl(&format!(
        "--limit-rate 128k -w '%{{http_code}}\\n' \
         -o /dev/null -T {whole} 'http://{VIP}/put/four[1-{half}]' \
         -o /dev/null -T {whole} 'http://[{VIP6}]/put/six[1-{half}]'"
    ));
    let talks: Vec<_> = (0..TALKS)
        .map(|number| {
            let stop = clients.flag();
            let run = move || talk(vip_of(number, ECHO_PORT), &stop);
            inside(&lab.world, "client", run)
        })
        .collect();
    let (authority, stop) = (key.cert.der().clone(), clients.flag());
    let quic = inside(&lab.world, "client", move || use_quic(authority, &stop));
    sleep(Duration::from_millis(2500));

    lab.reconfigure_in_order(after);
    let mux = lab.muxes.remove(&1).unwrap();
    mux.signal("KILL");
    drop(mux);
    let mux = lab.start("mux", 3, after);
    lab.muxes.insert(3, mux);
    lab.wait_for_paths(2);

    let said = downloads.finish();
    let complete = format!("200 {SLOW}");
    let count = said.lines().filter(|line| **line == complete).count();
    assert_eq!(count, DOWNLOADS, "downloads: {said}");
    let said = uploads.finish();
    let is_stored = |line: &&str| matches!(*line, "201" | "204");
    assert_eq!(said.lines().filter(is_stored).count(), UPLOADS, "{said}");
    let stored = (1..=5).flat_map(|vm| {
        let files = fs::read_dir(lab.world.path(&format!("www-vm{vm}/put"))).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len())
    });
    assert_eq!(stored.filter(|&len| len == SLOW as u64).count(), UPLOADS);
    drop(clients);
    for (number, talk) in talks.into_iter().enumerate() {
        let (vms, count) = talk.join().unwrap();
        assert_eq!(vms.len(), 1, "talk {number} moved between vms: {vms:?}");
        assert!(count > 20, "talk {number}: {count} answers");
    }
    for connection in quic.join().unwrap() {
        let count = connection.unwrap();
        assert!(count > 20, "{count} answers by QUIC");
    }

    // Otherwise nothing of this tested anything.
    let sum = |machines: &[u32], role: &str, path: &str| -> u64 {
        let all = machines
            .iter()
            .map(|number| lab.status(&format!("{role}{number}")));
        all.map(|status| status.pointer(path).unwrap().as_u64().unwrap())
            .sum()
    };
    assert!(sum(&[1, 2, 3, 4, 5], "host", "/passed_on") > 0);
    assert!(sum(&[3], "mux", "/forwarded/packets") > 0);
    let page = |_| {
        lab.world
            .on("client", &format!("curl -sS -m 5 http://{VIP}/"))
    };
    let served: BTreeSet<String> = (0..60).map(page).map(|page| page[..3].to_owned()).collect();
    assert_eq!(
        served,
        ["vm1", "vm2", "vm4", "vm5"].map(str::to_owned).into()
    );
    drop(servers);
}

#[test]
#[ignore = "needs root"]
fn mux_and_backends_change_at_once_over_afxdp() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    nothing_breaks(Io::AfXdp, NO_CHANGE.flows);
}

#[test]
#[ignore = "needs root"]
fn mux_and_backends_change_at_once_over_tun() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    nothing_breaks(Io::Tun, NO_CHANGE.flows);
}

#[test]
#[ignore = "needs root"]
fn stateless_muxes_and_backends_change_at_once_over_afxdp() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    nothing_breaks(Io::AfXdp, 0);
}

#[test]
#[ignore = "needs root"]
fn stateless_muxes_and_backends_change_at_once_over_tun() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    nothing_breaks(Io::Tun, 0);
}

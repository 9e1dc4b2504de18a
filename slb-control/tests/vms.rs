//! A host agent's probes of its own vms, through their ports: the vms here are stacks of smoltcp's.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant as Clock};

use slb_control::Config;
use slb_control::config::{PROBE_SOURCE_IPV4, PROBE_SOURCE_IPV6, Standing};
use slb_control::probe::{Prober, WorkerEnd, targets, way};
use slb_core::PortId;
use slb_core::health::Condition;
use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

/// The behaviour of a vm's server.
#[derive(Default)]
struct Service {
    /// True if it answers 503.
    is_sick: AtomicBool,
    /// True if it answers nothing: its vm accepts connections all the same.
    hangs: AtomicBool,
    asked: AtomicU32,
}

#[derive(Default)]
struct Packets {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

impl phy::Device for Packets {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sent<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Received(packet), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl phy::TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

/// The address that a packet comes from.
fn source(packet: &[u8]) -> IpAddr {
    match packet[0] >> 4 {
        4 => <[u8; 4]>::try_from(&packet[12..16]).unwrap().into(),
        _ => <[u8; 16]>::try_from(&packet[8..24]).unwrap().into(),
    }
}

/// A vm: its stack, and a server on port 8000 for one connection at a time of each family.
struct Vm {
    interface: Interface,
    sockets: SocketSet<'static>,
    device: Packets,
    service: Arc<Service>,
}

impl Vm {
    fn new(address: IpAddr, service: Arc<Service>) -> Self {
        let mut device = Packets::default();
        let config = InterfaceConfig::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut device, Instant::ZERO);
        let length = if address.is_ipv4() { 24 } else { 64 };
        interface.update_ip_addrs(|all| all.push(IpCidr::new(address.into(), length)).unwrap());
        let gateway = IpAddress::from(address);
        let routes = interface.routes_mut();
        match gateway {
            IpAddress::Ipv4(gateway) => routes.add_default_ipv4_route(gateway).map(drop),
            IpAddress::Ipv6(gateway) => routes.add_default_ipv6_route(gateway).map(drop),
        }
        .unwrap();
        let mut sockets = SocketSet::new(Vec::new());
        for _ in 0..4 {
            let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
            sockets.add(tcp::Socket::new(buffer(), buffer()));
        }
        Self {
            interface,
            sockets,
            device,
            service,
        }
    }

    fn turn(&mut self, now: Instant) {
        self.interface
            .poll(now, &mut self.device, &mut self.sockets);
        for (_, socket) in self.sockets.iter_mut() {
            let smoltcp::socket::Socket::Tcp(socket) = socket else {
                continue;
            };
            if !socket.is_open() {
                socket.listen(8000).unwrap();
            }
            if !socket.can_recv() || self.service.hangs.load(Ordering::SeqCst) {
                continue;
            }
            let text = socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap();
            assert!(text.starts_with(b"GET /health HTTP/1.1\r\n"));
            self.service.asked.fetch_add(1, Ordering::SeqCst);
            let status = match self.service.is_sick.load(Ordering::SeqCst) {
                true => "503 Unavailable",
                false => "200 OK",
            };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            socket.send_slice(answer.as_bytes()).unwrap();
            socket.close();
        }
    }
}

/// The worker, and the vms behind its ports.
struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(end: WorkerEnd, mut vms: HashMap<u16, Vm>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let begin = Clock::now();
            while !stopped.load(Ordering::SeqCst) {
                let now = Instant::from_micros(begin.elapsed().as_micros() as i64);
                while end.take(|port, mac, packet| {
                    assert_eq!(mac.0[..5], [0x02, 0, 0, 0, 0]);
                    let from = source(packet);
                    let own = [PROBE_SOURCE_IPV4.into(), PROBE_SOURCE_IPV6.into()];
                    assert!(own.contains(&from), "{from}");
                    let vm = vms.get_mut(&port.0).expect("a port with a vm");
                    vm.device.received.push_back(packet.to_vec());
                }) {}
                for (&port, vm) in &mut vms {
                    vm.turn(now);
                    for packet in vm.device.sent.drain(..) {
                        end.give(PortId(port), &packet);
                    }
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

/// Two vms of two networks that have one address, and a third one elsewhere.
fn config(ipv6: bool) -> Config {
    let (vip, dip) = match ipv6 {
        true => ("2001:db8:20::", "fd00:10:1::11"),
        false => ("20.20.20.10", "10.10.1.11"),
    };
    let mut text = "[node]\nrole = \"host\"\nunderlay = \"172.16.0.101\"\n\
         [[probe]]\nname = \"health\"\nprotocol = \"http\"\nport = 8000\npath = \"/health\"\n\
         threshold = 1\n"
        .to_owned();
    for vm in 1..=3 {
        let host = if vm == 3 { 102 } else { 101 };
        text += &format!(
            "[[frontend]]\nname = \"f{vm}\"\naddress = \"{vip}{vm}\"\n\
             [[pool]]\nname = \"p{vm}\"\nvni = 500{vm}\nbackends = [{{ name = \"vm{vm}\", \
             address = \"{dip}\", host = \"172.16.0.{host}\", mac = \"02:00:00:00:00:0{vm}\" }}]\n\
             [[rule]]\nname = \"r{vm}\"\nfrontend = \"f{vm}\"\npool = \"p{vm}\"\nprobe = \"health\"\n\
             protocol = \"tcp\"\nfrontend_port = 80\n"
        );
    }
    let mut config = Config::parse("host.toml", &text).unwrap();
    config.probes[0].interval = Duration::from_millis(200);
    config.probes[0].timeout = Duration::from_millis(200);
    config
}

/// Waits for a backend to turn.
fn turn(prober: &mut Prober) -> (String, Condition) {
    let end = Clock::now() + Duration::from_secs(10);
    while Clock::now() < end {
        if let Some(change) = prober.changed() {
            assert_eq!(change.backends.len(), 1);
            return (change.backends[0].1.clone(), change.condition);
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("nobody turned");
}

#[test]
fn two_networks_with_one_address_are_two_backends() {
    for ipv6 in [false, true] {
        let config = config(ipv6);
        let services = [(); 2].map(|()| Arc::new(Service::default()));
        let address = config.pools[0].backends[0].address;
        let vms = [1, 2].map(|port| {
            let service = Arc::clone(&services[usize::from(port) - 1]);
            (port, Vm::new(address, service))
        });
        let (worker, prober) = way();
        let worker = Worker::start(worker, vms.into());
        let mut prober = Prober::through_vms(prober).unwrap();
        prober.set(&config);
        assert_eq!(prober.targets(), 2, "the third vm runs elsewhere");
        let standings = |prober: &Prober| {
            let mut applied = config.clone();
            prober.apply(&mut applied);
            [0, 1].map(|pool| applied.standing(pool, 0))
        };
        let end = Clock::now() + Duration::from_secs(10);
        while services.iter().any(|s| s.asked.load(Ordering::SeqCst) < 3) {
            assert!(Clock::now() < end, "nobody is asked");
            thread::sleep(Duration::from_millis(5));
        }
        assert!(prober.changed().is_none());
        assert_eq!(standings(&prober), [Standing::Healthy; 2]);
        // It says that it is not well, then nothing at all, and each time only it is out.
        let sick = [Standing::Healthy, Standing::Unhealthy];
        for trouble in [&services[1].is_sick, &services[1].hangs] {
            trouble.store(true, Ordering::SeqCst);
            assert_eq!(turn(&mut prober), ("vm2".to_owned(), Condition::Unhealthy));
            assert_eq!(standings(&prober), sick);
            trouble.store(false, Ordering::SeqCst);
            assert_eq!(turn(&mut prober), ("vm2".to_owned(), Condition::Healthy));
            assert_eq!(standings(&prober), [Standing::Healthy; 2]);
        }
        drop(worker);
        // Without a way nobody is reached.
        let (first, second) = (turn(&mut prober), turn(&mut prober));
        assert_ne!(first.0, second.0);
        assert_eq!(
            (first.1, second.1),
            (Condition::Unhealthy, Condition::Unhealthy)
        );
    }
}

#[test]
fn a_host_asks_its_own_vms_and_whoever_is_not_to_probe_nobody() {
    let mut config = config(false);
    let all = targets(&config);
    let ports: Vec<_> = all
        .iter()
        .map(|(target, _)| target.vm.unwrap().port.0)
        .collect();
    assert_eq!(ports, [1, 2]);
    config.node.probing = false;
    assert!(targets(&config).is_empty());
    assert_eq!(config.node.probe_source(), Default::default());
    config.node.probing = true;
    config.node.probe_sources = vec!["169.254.7.7".parse().unwrap()];
    let source = config.node.probe_source();
    assert_eq!(source.ipv4, Some("169.254.7.7".parse().unwrap()));
    assert_eq!(source.ipv6, Some(PROBE_SOURCE_IPV6));
}

/// Packets that nobody takes fill what there is room for, and no more.
#[test]
fn a_vm_that_floods_the_prober_loses_its_packets() {
    let (worker, prober) = way();
    for number in 0..100_000_u32 {
        worker.give(PortId(1), &number.to_be_bytes());
    }
    worker.give(PortId(1), &[0; 9000]);
    assert!(!worker.take(|_, _, _| unreachable!("nobody asks")));
    drop(prober);
    worker.give(PortId(1), b"to nobody");
}

//! The commands of a fleet, at an etcd of one member. No root.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const SLB: &str = env!("CARGO_BIN_EXE_slb");

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &str, arguments: &[&str]) -> Running {
    let mut command = Command::new(program);
    command.args(arguments).stdout(Stdio::null());
    Running(command.stderr(Stdio::null()).spawn().unwrap())
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(40);
    while !is_so() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        sleep(Duration::from_millis(50));
    }
}

/// An etcd with a controller.
struct Fleet {
    url: String,
    directory: tempfile::TempDir,
    _etcd: Running,
    _controller: Running,
}

impl Fleet {
    /// Starts one; `None` where etcd is not installed.
    fn start() -> Option<Self> {
        Command::new("etcd").arg("--version").output().ok()?;
        let directory = tempfile::tempdir().unwrap();
        let url = format!("http://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        let data = directory.path().join("data").display().to_string();
        let etcd = start(
            "etcd",
            &[
                "--name=one",
                "--log-level=error",
                "--data-dir",
                &data,
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
                &format!("--initial-cluster=one={peer}"),
            ],
        );
        let controller = start(SLB, &["controller", "--fleet", &url, "--name", "one"]);
        let fleet = Self {
            url,
            directory,
            _etcd: etcd,
            _controller: controller,
        };
        wait_until("a controller leads", || {
            let status = fleet.slb(&["fleet", "status"]);
            said(&status).starts_with("controller: one")
        });
        Some(fleet)
    }

    fn slb(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(SLB);
        command.args(arguments).args(["--fleet", &self.url]);
        command.output().unwrap()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn apply(&self, text: &str) -> Output {
        let path = self.write("web.toml", text);
        self.slb(&["apply", "--wait", "20", "-f", &path.display().to_string()])
    }

    fn etcdctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3");
        let output = command
            .args(["--endpoints", &self.url])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        said(&output)
    }
}

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

const WEB: &str = "[fleet]\nhash_seed = 7\n\
    [[frontend]]\nname = \"web\"\naddress = \"192.0.2.1\"\n\
    [[pool]]\nname = \"servers\"\nvni = 5001\n\
    backends = [{ name = \"vm1\", address = \"10.10.1.11\", host = \"172.16.0.101\" }]\n\
    [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"servers\"\nprotocol = \"tcp\"\nfrontend_port = 80\n";

#[test]
fn operators_are_told_what_is_wrong_and_how_to_put_it_right() {
    let Some(fleet) = Fleet::start() else {
        skip!("etcd is not installed");
    };
    // Lines are the file's.
    let output = fleet.apply(&WEB.replace("frontend_port", "frontend_prt"));
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("web.toml:15: "), "{}", said(&output));
    let output = fleet.apply(WEB);
    assert!(
        said(&output).contains("live: generation 1"),
        "{}",
        said(&output)
    );
    // A pool that rules lead to.
    let output = fleet.slb(&["delete", "pool", "servers"]);
    assert_eq!(output.status.code(), Some(1));
    let expected = "pool servers is in use by rule http: delete that first";
    assert!(said(&output).contains(expected), "{}", said(&output));
    let output = fleet.slb(&["delete", "pool", "none"]);
    assert!(
        said(&output).contains("there is no pool none"),
        "{}",
        said(&output)
    );
    // What is wanted is lost: a whole file takes its place, and a part of one does not.
    fleet.etcdctl(&["del", "--prefix", "/slb/1/default/spec/"]);
    let output = fleet.slb(&["delete", "rule", "http"]);
    assert!(
        said(&output).contains("is not in the store"),
        "{}",
        said(&output)
    );
    let output = fleet.apply(&WEB.replace("5001", "5002"));
    let text = said(&output);
    assert!(
        text.contains("the previous configuration cannot be read, and is replaced"),
        "{text}"
    );
    assert!(text.contains("live: generation"), "{text}");
    assert!(said(&fleet.slb(&["get", "pool"])).contains("5002"));
}

#[test]
fn a_host_agent_that_is_gone_is_shown_and_forgotten() {
    let Some(fleet) = Fleet::start() else {
        skip!("etcd is not installed");
    };
    let output = fleet.slb(&["fleet", "forget", "host1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("no host agent has ever reported to this fleet"),
        "{}",
        said(&output)
    );
    let key = "/slb/1/default/node/host/host1";
    let report = r#"{"schema":1,"addresses":["172.16.0.101"],"version":"0","held":0,"live":0}"#;
    fleet.etcdctl(&["put", key, report]);
    wait_until("the agent is known", || {
        fleet
            .etcdctl(&["get", "/slb/1/default/state/agents"])
            .contains("host1")
    });
    let output = fleet.slb(&["fleet", "forget", "host1"]);
    assert!(
        said(&output).contains("host host1 is still running"),
        "{}",
        said(&output)
    );
    fleet.etcdctl(&["del", key]);
    let status = said(&fleet.slb(&["fleet", "status"]));
    assert!(status.contains("(slb fleet forget host1)"), "{status}");
    let status = said(&fleet.slb(&["fleet", "status", "--format", "json"]));
    assert!(status.contains("\"gone\": true"), "{status}");
    let output = fleet.slb(&["fleet", "forget", "host1"]);
    assert_eq!(said(&output), "forgotten: host host1\n");
    let status = said(&fleet.slb(&["fleet", "status"]));
    assert!(!status.contains("host1"), "{status}");
}

#[test]
fn zones_are_shown_with_their_nodes_and_backends() {
    let Some(fleet) = Fleet::start() else {
        skip!("etcd is not installed");
    };
    let text = WEB.replace("protocol =", "probe = \"alive\"\nprotocol =")
        + "[[probe]]\nname = \"alive\"\nprotocol = \"tcp\"\nport = 80\n";
    let text = text.replace("{ name = \"vm1\",", "{ name = \"vm1\", zone = \"west\",");
    fleet.apply(&text);
    let key = |kind: &str, node: &str| format!("/slb/1/default/{kind}/{node}");
    let report = r#"{"schema":1,"addresses":["172.16.0.101"],"version":"0","held":1,"live":1,"zone":"west"}"#;
    fleet.etcdctl(&["put", &key("node", "host/h1"), report]);
    let well = r#"{"schema":1,"failing":[]}"#;
    fleet.etcdctl(&["put", &key("health", "host/h1"), well]);
    let mux = report.replace("west", "east").replace(".101", ".11");
    fleet.etcdctl(&["put", &key("node", "mux/m1"), &mux]);
    let status = || said(&fleet.slb(&["fleet", "status"]));
    let west = |rest: &str| {
        format!("zone west: muxes none; hosts {rest} of 1 backends of servers serve\n")
    };
    wait_until("the zone is well", || status().contains(&west("h1; 1")));
    assert!(status().contains("zone east: muxes m1; hosts none\n"));
    fleet.etcdctl(&["del", &key("node", "host/h1")]);
    fleet.etcdctl(&["del", &key("health", "host/h1")]);
    wait_until("the zone is lost", || {
        status().contains(&west("h1 (away); 0"))
    });
    let json = said(&fleet.slb(&["fleet", "status", "--format", "json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        json["zones"],
        serde_json::json!([{ "pool": "servers", "zone": "west", "backends": 1, "serving": 0 }])
    );
    assert_eq!(json["nodes"][0]["zone"], "east");
}

#[test]
fn a_password_in_an_address_is_refused_and_not_repeated() {
    for arguments in [&["get"][..], &["fleet", "status"], &["controller"]] {
        let mut command = Command::new(SLB);
        command.args(arguments);
        let url = "http://root:secret@127.0.0.1:2379";
        let output = command.args(["--fleet", url]).output().unwrap();
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("got one with a user's name"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

/// Returns the status line and the body of the answer at a path.
fn http(port: u16, path: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.lines().next()?.to_owned(), body.to_owned()))
}

fn waits(directory: &Path, role: &str) {
    let port = free_port();
    let config = directory.join(format!("{role}.toml"));
    let text = format!("[node]\nrole = \"{role}\"\nunderlay = \"172.16.0.11\"\n");
    fs::write(&config, text).unwrap();
    let _node = start(
        SLB,
        &[
            role,
            "-c",
            &config.display().to_string(),
            "--io",
            "afxdp:none",
            "--metrics",
            &format!("127.0.0.1:{port}"),
            "--fleet",
            "http://127.0.0.1:1",
        ],
    );
    wait_until("it says why it is not ready", || {
        http(port, "/readyz").is_some_and(|(status, body)| {
            let why =
                "not ready: waiting for the fleet's first generation: the store does not answer";
            status == "HTTP/1.1 503 Service Unavailable" && body.starts_with(why)
        })
    });
    let (status, body) = http(port, "/healthz").unwrap();
    assert_eq!(
        (status.as_str(), body.as_str()),
        ("HTTP/1.1 200 OK", "well\n")
    );
    let (status, body) = http(port, "/metrics").unwrap();
    assert_eq!(
        (status.as_str(), body.as_str()),
        ("HTTP/1.1 200 OK", "# EOF\n")
    );
    assert_eq!(http(port, "/").unwrap().0, "HTTP/1.1 404 Not Found");
}

#[test]
fn a_node_that_waits_for_its_fleet_is_not_ready_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    waits(directory.path(), "mux");
    waits(directory.path(), "host");
}

//! QUIC rules in files.

use slb_control::Config;

fn file(protocol: &str, port: u16, rest: &str) -> String {
    format!(
        "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
         [[frontend]]\nname = \"v\"\naddress = \"20.20.20.100\"\n\
         [[pool]]\nname = \"p\"\nvni = 5001\nbackends = [\n\
         {{ name = \"b\", address = \"10.0.0.1\", host = \"172.16.0.101\" }} ]\n\
         [[rule]]\nname = \"r\"\nfrontend = \"v\"\npool = \"p\"\nprotocol = \"{protocol}\"\n\
         frontend_port = {port}\n{rest}\n"
    )
}

#[test]
fn rules_for_udp_may_be_for_quic() {
    for (protocol, port) in [("udp", 443), ("all", 0)] {
        for (rest, quic) in [("", false), ("quic = false", false), ("quic = true", true)] {
            let config = Config::parse("f.toml", &file(protocol, port, rest)).expect("good");
            assert_eq!(config.rules[0].terms.quic, quic, "{protocol} {rest}");
        }
    }
    for (protocol, port) in [("tcp", 443), ("icmp", 0)] {
        let refused = Config::parse("f.toml", &file(protocol, port, "quic = true"));
        let refused = refused.expect_err("not UDP").to_string();
        let expected = "rule \"r\": quic: expected false unless the protocol is \"udp\" or \"all\"";
        assert!(refused.contains(expected), "{refused}");
    }
}

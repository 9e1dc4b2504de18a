// A mux in C++: one SYN through it, then a backend is drained, and the flow stays where it is.
//
//   c++ -std=c++17 mux.cpp -o mux $(pkg-config --cflags --libs slb)
#include <cstdio>
#include <cstring>
#include <slb.hpp>

static const char toml[] = R"(
[node]
role = "mux"
underlay = "172.16.0.11"
[[frontend]]
name = "web"
address = "20.20.20.100"
[[pool]]
name = "servers"
vni = 5001
backends = [
  { name = "vm1", address = "10.10.1.11", host = "172.16.0.101" },
  { name = "vm2", address = "10.10.1.12", host = "172.16.0.102" },
]
[[rule]]
name = "http"
frontend = "web"
pool = "servers"
protocol = "tcp"
frontend_port = 80
)";

// A SYN from 198.51.100.10:50000 to 20.20.20.100:80.
static const uint8_t syn[] = {
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00,                                // Ethernet
    0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0xe8, 0x1a, 198, 51, 100, 10, 20, 20, 20, 100,  // IPv4
    0xc3, 0x50, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0,  // TCP
};

// Sends the SYN; gives the last byte of the host that it goes to.
static int host_of(slb::mux& mux, uint64_t now) {
    uint8_t buffer[256];
    std::memcpy(buffer + SLB_HEADROOM, syn, sizeof syn);
    slb_frame frame = {buffer, sizeof buffer, SLB_HEADROOM, sizeof syn, 0, 0, 0};
    mux.process(now, &frame, 1);
    if (frame.action != SLB_FORWARD) throw slb::error(frame.action, slb_drop_reason(frame.reason));
    return buffer[frame.offset + 33];
}

int main() try {
    slb::config config(toml);
    slb::mux mux(config, 0x0123456789abcdef, 0xfedcba9876543210);  // yours: random, and secret
    const int before = host_of(mux, 1000000000);
    for (const slb_flow& flow : mux.flows())
        std::printf("port %u is with backend %u\n", flow.tuple.source_port, flow.backend);
    config.set_backend(before == 101 ? "vm2" : "vm1", 0, SLB_DRAINING);
    mux.install(config);
    const int after = host_of(mux, 2000000000);
    std::printf("%d, then %d; %llu forwarded\n", before, after,
                static_cast<unsigned long long>(mux.stats().forwarded));
    try {
        slb::config bad("[node]\nrole = \"hub\"\n");
    } catch (const slb::error& error) {
        std::printf("%s\n", error.what());
    }
    return before == after ? 0 : 1;
} catch (const slb::error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}

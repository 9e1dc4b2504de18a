// Which packets of an interface go to user space: those of the balancer, and no others.
//
// An XDP program. It runs for each packet that an interface receives, before the kernel's stack:
// what it redirects is the balancer's, what it passes stays the kernel's, untouched. ARP and
// neighbour discovery stay with the kernel, but for a vm's questions about addresses of its network; of an
// interface that takes everything else, those that are about an address of the kernel's do.
//
// Built by `slb-io-afxdp/bpf/build`; the object lies beside it, so that `cargo build` needs no clang.

#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define UINT(name, value) int (*name)[value]
#define TYPE(name, type) type *name
#define BIG(x) __builtin_bswap16(x) // the hosts that this object is for are little-endian

static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const redirect)(void *map, __u32 key, __u64 flags) = (void *)BPF_FUNC_redirect_map;

// What the interface is; set before the program is loaded.
#define SERVICES 0 // takes packets by their destination
#define VMS 1      // takes IP packets of a vm, but for those to addresses of the kernel's
#define EVERYTHING 2 // takes all frames, but for those that are for addresses of the kernel's
const volatile __u32 interface_is = SERVICES;

// What becomes of a packet of the balancer's whose queue has no socket.
const volatile __u32 without_socket = XDP_PASS;

// What is taken of a destination.
#define TAKE_ALL 1   // a VIP
#define TAKE_VXLAN 2 // this node's address on the fabric
#define TAKE_NONE 4  // the kernel's, of an interface that takes all else
#define TAKE_NEIGHBOUR 8 // of a vm's interface: ARP and neighbour solicitations for it, too
#define TAKE_ANSWERS 16 // of a vm's interface, beside TAKE_NONE: TCP to the ports that nodes call VIPs from

// The ports that nodes call VIPs from: 61440 to 62463 (CALLER_PORTS of program.rs).
#define CALLERS_MASK 0xfc00
#define FIRST_CALLER 0xf000

struct address {
    __u8 bytes[16]; // IPv6, or IPv4 in IPv6 (RFC 4291 2.5.5.2)
};

struct {
    UINT(type, BPF_MAP_TYPE_HASH);
    UINT(max_entries, 65536);
    UINT(map_flags, BPF_F_NO_PREALLOC);
    TYPE(key, struct address);
    TYPE(value, __u32);
} addresses SEC(".maps");

// The sockets of user space, by receive queue.
struct {
    UINT(type, BPF_MAP_TYPE_XSKMAP);
    UINT(max_entries, 256);
    UINT(key_size, sizeof(__u32));
    UINT(value_size, sizeof(__u32));
} sockets SEC(".maps");

struct ethernet {
    __u8 destination[6], source[6];
    __u16 ether_type;
} __attribute__((packed));

struct vlan {
    __u16 tag, ether_type;
} __attribute__((packed));

struct ipv4 {
    __u8 version_len, tos;
    __u16 total_len, id, fragment;
    __u8 ttl, protocol;
    __u16 checksum;
    __u8 source[4], destination[4];
} __attribute__((packed));

struct ipv6 {
    __u8 version_class, class_flow;
    __u16 flow, payload_len;
    __u8 next_header, hop_limit;
    __u8 source[16], destination[16];
} __attribute__((packed));

struct arp {
    __u16 hardware, protocol;
    __u8 hardware_len, protocol_len;
    __u16 operation;
    __u8 sender_hardware[6], sender[4], target_hardware[6], target[4];
} __attribute__((packed));

struct solicitation {
    __u8 kind, code;
    __u16 checksum;
    __u32 reserved;
    __u8 target[16];
} __attribute__((packed));

struct udp {
    __u16 source, destination, len, checksum;
} __attribute__((packed));

struct ports { // of TCP
    __u16 source, destination;
} __attribute__((packed));

#define ETHER_IPV4 0x0800
#define ETHER_IPV6 0x86dd
#define ETHER_ARP 0x0806
#define ETHER_VLAN 0x8100
#define ETHER_SERVICE_VLAN 0x88a8
#define ETHER_OLD_QINQ 0x9100 // before 802.1ad; the same three as in slb-core's wire/ethernet.rs
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_ICMPV6 58
#define SOLICITATION 135 // of a neighbour (RFC 4861 4.3)
#define VXLAN_PORT 4789

struct packet {
    struct address destination; // of ARP and a neighbour solicitation, the address that is asked for
    __u8 is_vxlan;     // UDP for port 4789, and no later fragment
    __u8 is_neighbour; // neighbour discovery
    __u8 is_answer;    // TCP to a port that nodes call VIPs from, and no later fragment
    __u8 is_local;     // to a multicast, broadcast or link-local address
};

// An IPv4 address as the map has it.
ALWAYS_INLINE void map_ipv4(struct address *to, const __u8 *from) {
    __builtin_memset(to, 0, 10);
    to->bytes[10] = to->bytes[11] = 0xff;
    __builtin_memcpy(to->bytes + 12, from, 4);
}

// What it is.
#define OTHER 0
#define IP 1
#define ARP 2

// Whether it is an IP packet or ARP; if so, what it is for.
ALWAYS_INLINE int read(void *at, void *end, struct packet *packet) {
    struct ethernet *link = at;
    if ((void *)(link + 1) > end)
        return OTHER;
    __u16 ether_type = BIG(link->ether_type);
    void *network = link + 1;
#pragma unroll
    for (int tags = 0; tags < 2; tags++) {
        struct vlan *vlan = network;
        if (ether_type != ETHER_VLAN && ether_type != ETHER_SERVICE_VLAN &&
            ether_type != ETHER_OLD_QINQ)
            break;
        if ((void *)(vlan + 1) > end)
            return OTHER;
        ether_type = BIG(vlan->ether_type);
        network = vlan + 1;
    }
    __u8 protocol;
    void *transport;
    if (ether_type == ETHER_IPV4) {
        struct ipv4 *ip = network;
        if ((void *)(ip + 1) > end)
            return OTHER;
        map_ipv4(&packet->destination, ip->destination);
        packet->is_local = ip->destination[0] >= 224 ||
                           (ip->destination[0] == 169 && ip->destination[1] == 254);
        // With options it is no VXLAN of a fabric. Where they end could be computed, but the kernel
        // lets only those with CAP_PERFMON compute with packet pointers.
        if ((ip->version_len & 15) != 5)
            return IP;
        transport = ip + 1;
        protocol = BIG(ip->fragment) & 0x1fff ? 0 : ip->protocol;
    } else if (ether_type == ETHER_IPV6) {
        struct ipv6 *ip = network;
        if ((void *)(ip + 1) > end)
            return OTHER;
        __builtin_memcpy(packet->destination.bytes, ip->destination, 16);
        packet->is_local = ip->destination[0] == 0xff ||
                           (ip->destination[0] == 0xfe && (ip->destination[1] & 0xc0) == 0x80);
        transport = ip + 1;
        protocol = ip->next_header;
    } else if (ether_type == ETHER_ARP) {
        struct arp *arp = network;
        if ((void *)(arp + 1) > end)
            return OTHER;
        map_ipv4(&packet->destination, arp->target);
        return ARP;
    } else {
        return OTHER;
    }
    if (protocol == PROTOCOL_UDP) {
        struct udp *udp = transport;
        packet->is_vxlan = (void *)(udp + 1) <= end && udp->destination == BIG(VXLAN_PORT);
    } else if (protocol == PROTOCOL_TCP) {
        struct ports *ports = transport;
        packet->is_answer = (void *)(ports + 1) <= end &&
                            (BIG(ports->destination) & CALLERS_MASK) == FIRST_CALLER;
    } else if (protocol == PROTOCOL_ICMPV6 && ether_type == ETHER_IPV6) {
        __u8 *kind = transport;
        // Router and neighbour solicitations and advertisements, redirects (RFC 4861).
        packet->is_neighbour = (void *)(kind + 1) <= end && *kind >= 133 && *kind <= 137;
        struct solicitation *asks = transport;
        if ((void *)(asks + 1) <= end && asks->kind == SOLICITATION)
            __builtin_memcpy(packet->destination.bytes, asks->target, 16);
    }
    return IP;
}

ALWAYS_INLINE int is_taken(struct xdp_md *context) {
    struct packet packet = {};
    int kind = read((void *)(long)context->data, (void *)(long)context->data_end, &packet);
    if (interface_is == EVERYTHING) {
        __u32 *own = kind == OTHER ? 0 : map_lookup(&addresses, &packet.destination);
        return !(own && (*own & TAKE_NONE));
    }
    if (kind == OTHER)
        return 0;
    __u32 *found = map_lookup(&addresses, &packet.destination);
    __u32 what = found ? *found : 0;
    if (kind == ARP || packet.is_neighbour)
        return interface_is == VMS && (what & TAKE_NEIGHBOUR) && !(what & TAKE_NONE);
    if (interface_is == VMS && (what & TAKE_NONE))
        return (what & TAKE_ANSWERS) && packet.is_answer;
    if (interface_is == VMS)
        return !packet.is_local;
    return (what & TAKE_ALL) || ((what & TAKE_VXLAN) && packet.is_vxlan);
}

SEC("xdp")
int steer(struct xdp_md *context) {
    if (!is_taken(context))
        return XDP_PASS;
    return redirect(&sockets, context->rx_queue_index, without_socket);
}

char terms[] SEC("license") = "Dual MIT/GPL";

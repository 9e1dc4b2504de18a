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
 * See docs/c.md. */

#ifndef SLB_H
#define SLB_H

#include <stddef.h>
#include <stdint.h>

/**
 * Headroom that encapsulation needs before a packet, in bytes.
 */
#define SLB_HEADROOM 70

/**
 * The number of frames that are processed together: pass this number at a time, or a multiple of
 * it.
 */
#define SLB_BURST 64

/**
 * The length of the longest record in bytes. With less room, nothing is exported.
 */
#define SLB_RECORD_MOST 152

/**
 * The maximum number of table slots that one call of `_export` visits.
 */
#define SLB_EXPORT_STEP 256

/**
 * Length of `refused_for`, with room for further reasons, so that they do not change the layout.
 */
#define SLB_REFUSALS 16

/**
 * Length of `dropped_for` in `slb_stats`, with room for further reasons, so that they do not
 * change the layout.
 */
#define SLB_DROP_REASONS 64

/**
 * The result of a call: 0, or an error.
 */
typedef enum slb_error {
    /**
     * Success.
     */
    SLB_OK = 0,
    /**
     * A pointer must not be NULL.
     */
    SLB_ERROR_NULL = -1,
    /**
     * A pointer is misaligned for its type, or memory for a handle is not aligned to 64 bytes.
     */
    SLB_ERROR_ALIGNMENT = -2,
    /**
     * The given memory or array is too short.
     */
    SLB_ERROR_SHORT = -3,
    /**
     * Two arguments overlap.
     */
    SLB_ERROR_OVERLAP = -4,
    /**
     * A frame's offset and length exceed its buffer.
     */
    SLB_ERROR_FRAME = -5,
    /**
     * A number is out of range, or a name is not UTF-8.
     */
    SLB_ERROR_RANGE = -6,
    /**
     * The pointer is no handle of this kind, or the handle was freed.
     */
    SLB_ERROR_HANDLE = -7,
    /**
     * The handle is in use: a mux, host or proxy uses the snapshot.
     */
    SLB_ERROR_IN_USE = -8,
    /**
     * The configuration contradicts itself.
     */
    SLB_ERROR_CONFIGURATION = -9,
    /**
     * The builder has no room for another item.
     */
    SLB_ERROR_FULL = -10,
    /**
     * The allocator has no memory.
     */
    SLB_ERROR_MEMORY = -11,
    /**
     * An internal fault of the library. The handle must not be used any more.
     */
    SLB_ERROR_INTERNAL = -12,
    /**
     * The key of a mux, host or proxy is all zeros: it has to be random and secret.
     */
    SLB_ERROR_KEY = -13,
    /**
     * The snapshot is for a proxy and the handle is a mux or host, or vice versa.
     */
    SLB_ERROR_ROLE = -14,
    /**
     * The snapshot was not built from the installed one: flows would move.
     */
    SLB_ERROR_LINEAGE = -15,
    /**
     * The bytes are no records, or are damaged; nothing was taken over.
     */
    SLB_ERROR_RECORDS = -16,
} slb_error;

/**
 * The kind of a frame's verdict; `port` and `reason` are its details.
 */
typedef enum slb_action {
    /**
     * The frame is not for the balancer, and is unchanged.
     */
    SLB_PASS = 0,
    /**
     * Send the frame out of its `port`.
     */
    SLB_FORWARD = 1,
    /**
     * The frame has become an answer: send it out of the port of arrival.
     */
    SLB_REPLY = 2,
    /**
     * Do not send the frame.
     */
    SLB_DROP = 3,
    /**
     * Send the frame out of every port but its `port`.
     */
    SLB_FLOOD = 4,
} slb_action;

/**
 * The protocol of a rule.
 */
typedef enum slb_protocol {
    /**
     * TCP to one port.
     */
    SLB_TCP = 0,
    /**
     * UDP to one port.
     */
    SLB_UDP = 1,
    /**
     * Echo requests.
     */
    SLB_ICMP = 2,
    /**
     * HA ports: every protocol and port.
     */
    SLB_ALL = 3,
} slb_protocol;

/**
 * Administrative state of a backend, set by the operator for all rules. Observed health is separate, so a backend can
 * be draining and unhealthy.
 */
typedef enum slb_state {
    /**
     * The backend gets new flows while it is healthy.
     */
    SLB_UP = 0,
    /**
     * The backend is out of service: it gets no new flows, and connections of rules with `tcp_reset` are
     * reset.
     */
    SLB_DOWN = 1,
    /**
     * The backend keeps its flows and gets no new ones.
     */
    SLB_DRAINING = 2,
} slb_state;

/**
 * The effect of a probe's result on a backend's health.
 */
typedef enum slb_change {
    /**
     * No change.
     */
    SLB_UNCHANGED = 0,
    /**
     * The backend is healthy now.
     */
    SLB_NOW_HEALTHY = 1,
    /**
     * The backend is unhealthy now.
     */
    SLB_NOW_UNHEALTHY = 2,
} slb_change;

#if !defined(SLB_FREESTANDING)
/**
 * The role that a configuration is for.
 */
typedef enum slb_role {
#if !defined(SLB_FREESTANDING)
    /**
     * A mux.
     */
    SLB_MUX = 0,
#endif
#if !defined(SLB_FREESTANDING)
    /**
     * A host agent.
     */
    SLB_HOST = 1,
#endif
#if !defined(SLB_FREESTANDING)
    /**
     * A proxy.
     */
    SLB_PROXY = 2,
#endif
} slb_role;
#endif

/**
 * A configuration that is built field by field. Names passed to it have to stay valid until
 * `slb_builder_free`; everything else is copied.
 */
typedef struct slb_builder slb_builder;

#if !defined(SLB_FREESTANDING)
/**
 * A configuration that was read from TOML: see docs/configuration.md.
 */
typedef struct slb_config slb_config;
#endif

/**
 * A host agent, which translates packets between VIPs and the vms of one machine.
 */
typedef struct slb_host slb_host;

/**
 * A mux, which sends packets for VIPs to the hosts of their backends, in VXLAN.
 */
typedef struct slb_mux slb_mux;

/**
 * A proxy, which translates packets between clients on one side and backends on the other.
 */
typedef struct slb_proxy slb_proxy;

/**
 * A compiled configuration: immutable, and usable by any number of muxes, hosts and proxies.
 */
typedef struct slb_snapshot slb_snapshot;

/**
 * Capacity of a builder: the number of items of each kind.
 */
typedef struct slb_capacity {
    /**
     * Number of VIPs.
     */
    size_t frontends;
    /**
     * Number of pools.
     */
    size_t pools;
    /**
     * Number of backends over all pools.
     */
    size_t backends;
    /**
     * Number of load-balancing rules.
     */
    size_t rules;
    /**
     * Number of inbound NAT rules and pools.
     */
    size_t inbound_nat;
    /**
     * Number of outbound rules.
     */
    size_t outbound;
    /**
     * Number of frontends of all outbound rules.
     */
    size_t outbound_frontends;
    /**
     * Number of muxes' addresses.
     */
    size_t muxes;
    /**
     * Number of frontend ports of a proxy.
     */
    size_t frontend_ports;
    /**
     * Number of source rewrites of a proxy.
     */
    size_t source_rewrites;
    /**
     * Number of sets of probe results: one for each pair of pool and probe that rules use.
     */
    size_t health;
    /**
     * Number of results in all sets: a set has one for each backend of its pool.
     */
    size_t health_results;
    /**
     * Number of inside prefixes; see `slb_builder_inside`.
     */
    size_t inside;
    /**
     * Number of networks.
     */
    size_t networks;
    /**
     * Number of address spaces of all networks.
     */
    size_t network_prefixes;
    /**
     * Number of gateways of all networks.
     */
    size_t network_gateways;
    /**
     * Number of vms that are no backends.
     */
    size_t vms;
    /**
     * Number of addresses of all vms that are no backends.
     */
    size_t vm_addresses;
} slb_capacity;

/**
 * An IP address.
 */
typedef struct slb_address {
    /**
     * 4, 6, or 0 for none.
     */
    uint8_t family;
    /**
     * The address in network byte order; IPv4 uses the first four bytes.
     */
    uint8_t bytes[16];
} slb_address;

/**
 * A MAC address, or none.
 */
typedef struct slb_mac {
    /**
     * Not 0: the address is set.
     */
    uint8_t given;
    /**
     * The six bytes of the address.
     */
    uint8_t bytes[6];
} slb_mac;

/**
 * A backend server. Zeros are the defaults of all fields except name and addresses.
 */
typedef struct slb_backend {
    /**
     * Name of the backend, unique in its pool.
     */
    const char *name;
    /**
     * Address of the backend.
     */
    struct slb_address address;
    /**
     * The underlay address of its host; none for a proxy.
     */
    struct slb_address host;
    /**
     * MAC address of the backend; none: derived from its address.
     */
    struct slb_mac mac;
    /**
     * The MAC address of the next hop to its host; none: the underlay's. At a proxy, the destination MAC address of
     * packets to the backend; none: their link headers stay.
     */
    struct slb_mac next_hop;
    /**
     * Weight: the backend's share of new flows relative to the others; 0 means 1. To give it none,
     * set its state.
     */
    uint32_t weight;
    /**
     * Instance number in the pool, which determines its ports; 0 or negative: its index in the
     * pool.
     */
    int32_t instance;
    /**
     * The port of this node for the backend's vm; 0 or negative if the vm runs on another host.
     */
    int32_t port;
    /**
     * The backend's port instead of the rule's; 0: the rule's.
     */
    uint16_t backend_port;
    /**
     * Administrative state, of enum slb_state.
     */
    uint8_t state;
    /**
     * Not 0: the backend was observed to fail, for example by its traffic; this applies to all
     * rules. Results of probes, which rules refer to, are set with `slb_builder_set_health`.
     */
    uint8_t unhealthy;
} slb_backend;

/**
 * This node's addresses on the fabric, and its settings for encapsulation. With all zeros there
 * are no addresses, and the other fields have their defaults.
 */
typedef struct slb_underlay {
    /**
     * Outer source address over IPv4, or none.
     */
    struct slb_address ipv4;
    /**
     * Outer source address over IPv6, or none.
     */
    struct slb_address ipv6;
    /**
     * This node's MAC address.
     */
    struct slb_mac mac;
    /**
     * The MAC address of the fabric's router.
     */
    struct slb_mac next_hop;
    /**
     * The longest IP packet on the fabric; 0: 1500.
     */
    uint16_t mtu;
    /**
     * The port that encapsulated packets leave by.
     */
    uint16_t port;
    /**
     * TTL of the outer header; 0: 64.
     */
    uint8_t hop_limit;
    /**
     * The outer UDP checksum: 0: zero over IPv4, computed over IPv6; 1: zero; 2: computed.
     */
    uint8_t udp_checksum;
} slb_underlay;

/**
 * A VIP.
 */
typedef struct slb_frontend {
    /**
     * Name of the frontend, unique among them.
     */
    const char *name;
    /**
     * Address of the frontend, the VIP.
     */
    struct slb_address address;
    /**
     * Echo requests: 0: answered here; 1: to the HA-ports rule's pool; 2: dropped.
     */
    uint8_t icmp_echo;
} slb_frontend;

/**
 * A pool of backends.
 */
typedef struct slb_pool {
    /**
     * Name of the pool, unique among them.
     */
    const char *name;
    /**
     * The VXLAN network of its backends, 0 to 16777215.
     */
    uint32_t vni;
    /**
     * Slots of its Maglev table, a prime; 0: 65537.
     */
    uint32_t table_size;
} slb_pool;

/**
 * The terms of a rule's connections. All zeros are the defaults.
 */
typedef struct slb_terms {
    /**
     * Source address that backends see instead of the client's; none: the client's.
     */
    struct slb_address source_nat;
    /**
     * Idle timeout of a flow in seconds, 240 to 1800; 0: 240.
     */
    uint16_t idle_timeout;
    /**
     * Not 0: backends see the VIP and the frontend port.
     */
    uint8_t floating_ip;
    /**
     * Not 0: both ends get a RST when a connection expires.
     */
    uint8_t tcp_reset;
    /**
     * Not 0: answers go back through the mux that the client's last packet came through.
     */
    uint8_t through_mux;
    /**
     * Not 0: UDP under a load-balancing rule is QUIC, so that packet headers show if a connection
     * begins.
     */
    uint8_t quic;
} slb_terms;

/**
 * A load-balancing rule.
 */
typedef struct slb_rule {
    /**
     * Name of the rule, unique among them.
     */
    const char *name;
    /**
     * Index of the rule's frontend.
     */
    size_t frontend;
    /**
     * Index of the rule's pool.
     */
    size_t pool;
    /**
     * The port that clients use; 0 with `SLB_ICMP` and `SLB_ALL`.
     */
    uint16_t frontend_port;
    /**
     * The port that backends serve; 0: as `frontend_port`.
     */
    uint16_t backend_port;
    /**
     * A value of enum slb_protocol.
     */
    uint8_t protocol;
    /**
     * The fields that choose a backend: 0: the five-tuple; 1: the source and destination address;
     * 2: these and the protocol.
     */
    uint8_t distribution;
    /**
     * The choice of a backend, at a proxy: 0: Maglev; 1: the fewest live connections.
     */
    uint8_t scheduler;
    /**
     * Further terms of the rule's connections.
     */
    struct slb_terms terms;
} slb_rule;

/**
 * Frontend ports that lead to one backend each.
 */
typedef struct slb_inbound_nat {
    /**
     * Name of the inbound NAT rule or pool, unique among them.
     */
    const char *name;
    /**
     * Index of the rule's frontend.
     */
    size_t frontend;
    /**
     * Index of the rule's pool.
     */
    size_t pool;
    /**
     * Index of the rule's backend in the pool; negative for a NAT pool, with a port for each
     * backend.
     */
    int32_t backend;
    /**
     * The port that clients use; for a NAT pool, the port of instance 0.
     */
    uint16_t first_port;
    /**
     * The last port of a NAT pool.
     */
    uint16_t last_port;
    /**
     * The port that the backend serves.
     */
    uint16_t backend_port;
    /**
     * `SLB_TCP` or `SLB_UDP`.
     */
    uint8_t protocol;
    /**
     * Further terms of the rule's connections.
     */
    struct slb_terms terms;
} slb_inbound_nat;

/**
 * An outbound rule: lets the vms of a pool connect out with the addresses of frontends.
 */
typedef struct slb_outbound {
    /**
     * Name of the outbound rule, unique among them.
     */
    const char *name;
    /**
     * Indexes of its frontends.
     */
    const size_t *frontends;
    /**
     * Number of frontends.
     */
    size_t frontend_count;
    /**
     * Index of the rule's pool.
     */
    size_t pool;
    /**
     * SNAT ports of each backend, a multiple of 8; 0: an even share.
     */
    uint32_t allocated_outbound_ports;
    /**
     * Idle timeout of a flow in seconds, 240 to 1800; 0: 240.
     */
    uint16_t idle_timeout;
    /**
     * `SLB_TCP`, `SLB_UDP` or `SLB_ALL`.
     */
    uint8_t protocol;
    /**
     * Not 0: both ends get a RST when a connection expires.
     */
    uint8_t tcp_reset;
} slb_outbound;

/**
 * A prefix of addresses.
 */
typedef struct slb_prefix {
    /**
     * An address of the prefix.
     */
    struct slb_address address;
    /**
     * The number of bits that all addresses of the prefix share.
     */
    uint8_t length;
} slb_prefix;

/**
 * A network of vms. Host agents connect the vms in VXLAN, and answer ARP and neighbour discovery
 * for them. Backends belong to the network with their pool's VNI.
 */
typedef struct slb_network {
    /**
     * Name of the network.
     */
    const char *name;
    /**
     * Address spaces of the network.
     */
    const struct slb_prefix *prefixes;
    /**
     * Number of address spaces.
     */
    size_t prefix_count;
    /**
     * Addresses of the network's routers, which host agents answer for.
     */
    const struct slb_address *gateways;
    /**
     * Number of gateways.
     */
    size_t gateway_count;
    /**
     * VXLAN network identifier, unique among networks.
     */
    uint32_t vni;
} slb_network;

/**
 * A vm of a network that is no backend, or further addresses of one that is.
 */
typedef struct slb_vm {
    /**
     * Name of the vm.
     */
    const char *name;
    /**
     * Index of its network.
     */
    size_t network;
    /**
     * Addresses of the vm, at least one.
     */
    const struct slb_address *addresses;
    /**
     * Number of addresses.
     */
    size_t address_count;
    /**
     * The underlay address of its host.
     */
    struct slb_address host;
    /**
     * MAC address of the vm; none: derived from its first address.
     */
    struct slb_mac mac;
    /**
     * The port of this node for the vm; 0 or negative if the vm runs on another host.
     */
    int32_t port;
    /**
     * MAC address of the next hop to its host; none: the underlay's.
     */
    struct slb_mac next_hop;
} slb_vm;

/**
 * Options of a mux. `slb_mux_options_init` sets the defaults.
 */
typedef struct slb_mux_options {
    /**
     * Capacity of the flow table for each address family; 0: no table, so that Maglev alone picks
     * backends.
     */
    size_t flows;
    /**
     * Echo replies per second; 0: none.
     */
    uint32_t answers_per_second;
    /**
     * Burst of echo replies.
     */
    uint32_t answers_at_once;
    /**
     * New flows per second of one source (an IPv4 address, or a /64 of IPv6); 0: no limit.
     */
    uint32_t flows_per_source;
    /**
     * Burst of new flows of one source.
     */
    uint32_t flows_per_source_at_once;
    /**
     * Secret key of the tables: 128 random bits that only this process knows. All zeros are
     * refused with `SLB_ERROR_KEY`.
     */
    uint64_t key[2];
    /**
     * ICMP "fragmentation needed" and ICMPv6 "packet too big" per second; 0: none.
     */
    uint32_t too_big_per_second;
    /**
     * Burst of "fragmentation needed" and "packet too big".
     */
    uint32_t too_big_at_once;
    /**
     * Other ICMP errors per second; 0: none.
     */
    uint32_t errors_per_second;
    /**
     * Burst of other ICMP errors.
     */
    uint32_t errors_at_once;
    /**
     * RSTs per second; 0: none.
     */
    uint32_t resets_per_second;
    /**
     * Burst of RSTs.
     */
    uint32_t resets_at_once;
    /**
     * Later fragments that can wait for their first one, at 2 KiB each, rounded up to a multiple
     * of 64; 0: none. `_advance` returns them in its spare frames when the first one has arrived.
     */
    uint32_t waiting_fragments;
} slb_mux_options;

/**
 * Options of a host agent or a proxy. `slb_nat_options_init` sets the defaults.
 */
typedef struct slb_nat_options {
    /**
     * Capacity of the connection table for each address family.
     */
    size_t connections;
    /**
     * Echo replies per second; 0: none.
     */
    uint32_t answers_per_second;
    /**
     * Burst of echo replies.
     */
    uint32_t answers_at_once;
    /**
     * RSTs per second; 0: none.
     */
    uint32_t resets_per_second;
    /**
     * Burst of RSTs.
     */
    uint32_t resets_at_once;
    /**
     * New flows per second of one source (an IPv4 address, or a /64 of IPv6); 0: no limit.
     */
    uint32_t flows_per_source;
    /**
     * Burst of new flows of one source.
     */
    uint32_t flows_per_source_at_once;
    /**
     * Not 0: lowers the maximum segment size in SYNs to what fits VXLAN. For a host agent.
     */
    uint8_t clamp_mss;
    /**
     * Secret key of the tables and of the choice of SNAT ports: 128 random bits that only this
     * process knows. All zeros are refused with `SLB_ERROR_KEY`.
     */
    uint64_t key[2];
    /**
     * ICMP "fragmentation needed" and ICMPv6 "packet too big" per second; 0: none.
     */
    uint32_t too_big_per_second;
    /**
     * Burst of "fragmentation needed" and "packet too big".
     */
    uint32_t too_big_at_once;
    /**
     * Other ICMP errors per second; 0: none.
     */
    uint32_t errors_per_second;
    /**
     * Burst of other ICMP errors.
     */
    uint32_t errors_at_once;
    /**
     * Source address of a host agent's ICMP errors over IPv4; all zeros: its underlay address.
     */
    uint8_t icmp_source_ipv4[4];
    /**
     * Source address of a host agent's ICMP errors over IPv6; all zeros: its underlay address.
     */
    uint8_t icmp_source_ipv6[16];
    /**
     * Later fragments that can wait for their first one, at 2 KiB each, rounded up to a multiple
     * of 64; 0: none. `_advance` returns them in its spare frames when the first one has arrived.
     */
    uint32_t waiting_fragments;
    /**
     * For a host agent: packets per second that match none of its connections and are passed on to
     * other hosts; 0: none.
     */
    uint32_t passes_per_second;
    /**
     * Burst of packets passed on.
     */
    uint32_t passes_at_once;
    /**
     * For a host agent or a proxy: connections per second that it takes up in their middle after
     * `slb_host_take_up` or `slb_proxy_take_up`; 0: none.
     */
    uint32_t take_ups_per_second;
    /**
     * Burst of connections taken up.
     */
    uint32_t take_ups_at_once;
    /**
     * For a host agent: flows without connections that it remembers for vms with access lists, at 96 bytes each;
     * 0: none, so that the answers of such flows need rules of their own.
     */
    uint32_t direct_flows;
} slb_nat_options;

/**
 * Source and destination.
 */
typedef struct slb_tuple {
    /**
     * Source address.
     */
    struct slb_address source;
    /**
     * Destination of the flow.
     */
    struct slb_address destination;
    /**
     * Source port in host byte order; 0 for a protocol without ports.
     */
    uint16_t source_port;
    /**
     * Destination port in host byte order.
     */
    uint16_t destination_port;
} slb_tuple;

/**
 * A flow of a mux.
 */
typedef struct slb_flow {
    /**
     * The five-tuple of the flow's packets.
     */
    struct slb_tuple tuple;
    /**
     * Index of the flow's backend, counted over all pools; `UINT32_MAX` if the backend was
     * removed.
     */
    uint32_t backend;
    /**
     * The protocol's number: 6, 17, or 0 for all others.
     */
    uint8_t protocol;
    /**
     * 1: SYNs only; 2: established; 3: FIN or RST was seen.
     */
    uint8_t state;
} slb_flow;

/**
 * A connection of a host or a proxy.
 */
typedef struct slb_connection {
    /**
     * The five-tuple of packets from outside.
     */
    struct slb_tuple outside;
    /**
     * The five-tuple of the server's packets.
     */
    struct slb_tuple inside;
    /**
     * The protocol's number.
     */
    uint8_t protocol;
    /**
     * 1: SYN or first packet seen; 2: answered; 3: established; 4 and 5: the outside or the inside
     * end sent a FIN; 6: both did; 7: reset.
     */
    uint8_t state;
} slb_connection;

/**
 * A packet in a buffer: `length` bytes from `offset` on, from its Ethernet header and without the
 * frame check sequence. Encapsulation needs 70 bytes before the packet (`SLB_HEADROOM`).
 */
typedef struct slb_frame {
    /**
     * The buffer: owned by the caller, and shared with no other frame.
     */
    uint8_t *buffer;
    /**
     * Capacity of the buffer in bytes.
     */
    uint32_t capacity;
    /**
     * Offset of the packet in the buffer.
     */
    uint32_t offset;
    /**
     * Length of the packet in bytes.
     */
    uint32_t length;
    /**
     * The port of arrival; after `SLB_FORWARD`, the port to send the frame out of.
     */
    uint16_t port;
    /**
     * Kind of the verdict, a value of enum slb_action.
     */
    uint8_t action;
    /**
     * After `SLB_DROP`, the reason: see `slb_drop_reason`.
     */
    uint8_t reason;
} slb_frame;

/**
 * The health of a backend by its probes, in the caller's memory. `slb_health_init` initialises it;
 * its contents are private.
 */
typedef struct slb_health {
    /**
     * Private.
     */
    uint64_t opaque[16];
} slb_health;

/**
 * The timing of a backend's probes.
 */
typedef struct slb_probe {
    /**
     * Time from one probe to the next, in nanoseconds.
     */
    uint64_t interval;
    /**
     * Time after which a probe without an answer has failed, in nanoseconds. At most the interval.
     */
    uint64_t timeout;
    /**
     * Consecutive failures that make a healthy backend unhealthy, and successes that make it
     * healthy again.
     */
    uint32_t threshold;
} slb_probe;

/**
 * The verdict of a frame: action, reason and port, as an array beside the frames.
 */
typedef struct slb_verdict {
    /**
     * Kind of the verdict, a value of enum slb_action.
     */
    uint8_t action;
    /**
     * After `SLB_DROP`, the reason: see `slb_drop_reason`.
     */
    uint8_t reason;
    /**
     * After `SLB_FORWARD`, the port to send it out of.
     */
    uint16_t port;
} slb_verdict;

/**
 * A function that is called for each step of each frame: `frame` is its index, `label` the kind of step, such as
 * "rule", and `text` the step in words, with indexes of rules and backends. Both texts are valid only during the call.
 * The function must not use the handle that calls it, and must not throw.
 */
typedef void (*slb_observer)(void *context, size_t frame, const char *label, const char *text);

/**
 * Counters of a mux, host agent or proxy. Every frame received is in exactly one of forwarded,
 * replied, passed and dropped.
 */
typedef struct slb_stats {
    /**
     * Frames received.
     */
    uint64_t received;
    /**
     * Bytes of the frames received.
     */
    uint64_t received_bytes;
    /**
     * Frames to send out of a port.
     */
    uint64_t forwarded;
    /**
     * Bytes of the frames forwarded, in their length on arrival.
     */
    uint64_t forwarded_bytes;
    /**
     * Frames that became an answer.
     */
    uint64_t replied;
    /**
     * Frames passed: not for the balancer.
     */
    uint64_t passed;
    /**
     * Frames dropped.
     */
    uint64_t dropped;
    /**
     * Frames dropped, by the number of the reason: see `slb_drop_reason`. Index 0 is not used.
     */
    uint64_t dropped_for[SLB_DROP_REASONS];
    /**
     * TCP segments that match a rule and request a connection.
     */
    uint64_t syns;
    /**
     * ICMP errors that match a rule by the flow that they quote.
     */
    uint64_t icmp_errors;
    /**
     * For a mux: flows pinned.
     */
    uint64_t flows_made;
    /**
     * Expired.
     */
    uint64_t flows_expired;
    /**
     * Half-open and closing flows evicted to make room.
     */
    uint64_t flows_evicted;
    /**
     * Flows refused because the table was full.
     */
    uint64_t flows_refused;
    /**
     * Flows in the table now.
     */
    uint64_t flows_live;
    /**
     * Places in the table.
     */
    uint64_t flow_places;
    /**
     * For a host agent or a proxy: connections made.
     */
    uint64_t connections_made;
    /**
     * Expired.
     */
    uint64_t connections_expired;
    /**
     * Removed for other reasons.
     */
    uint64_t connections_removed;
    /**
     * Connections refused because the table was full.
     */
    uint64_t connections_refused;
    /**
     * Connections in the table now.
     */
    uint64_t connections_live;
    /**
     * Places in the table.
     */
    uint64_t connection_places;
    /**
     * RSTs sent.
     */
    uint64_t resets;
    /**
     * RSTs that were not sent, because of the limit or for lack of spare frames.
     */
    uint64_t resets_suppressed;
    /**
     * For a host agent or a proxy: removed connections that made room for new ones.
     */
    uint64_t connections_evicted;
    /**
     * Unanswered connections among those in the table.
     */
    uint64_t connections_unanswered;
    /**
     * Fragments that have finished waiting for their first one. Each counts twice: in
     * `dropped_for` as "fragment_held", and with its final outcome. `dropped` includes those that
     * still wait.
     */
    uint64_t fragments_released;
    /**
     * For a host agent: packets without a connection that it passed on to another host.
     */
    uint64_t passed_on;
    /**
     * For a host agent: packets that no host knew, passed on to the host that begins their flow.
     */
    uint64_t passed_back;
    /**
     * For a mux: flows taken over from records, which are not counted as made.
     */
    uint64_t flows_imported;
    /**
     * For a host agent or a proxy: connections taken over from records, which are not counted as
     * made.
     */
    uint64_t connections_imported;
    /**
     * For a host agent or a proxy: connections taken up in the middle.
     */
    uint64_t taken_up;
    /**
     * Frames for public addresses of vms.
     */
    uint64_t public_in;
    /**
     * For a host agent: frames of vms that left with a public address.
     */
    uint64_t public_out;
} slb_stats;

/**
 * Counters of a rule.
 */
typedef struct slb_rule_stats {
    /**
     * Frames to send out of a port.
     */
    uint64_t forwarded;
    /**
     * Bytes of the frames forwarded, in their length on arrival.
     */
    uint64_t forwarded_bytes;
    /**
     * TCP segments that request a connection.
     */
    uint64_t syns;
    /**
     * Flows pinned, or connections made.
     */
    uint64_t flows;
} slb_rule_stats;

/**
 * Counters of a backend.
 */
typedef struct slb_backend_stats {
    /**
     * Frames to send out of a port.
     */
    uint64_t forwarded;
    /**
     * Bytes of the frames forwarded, in their length on arrival.
     */
    uint64_t forwarded_bytes;
    /**
     * Flows pinned to the backend, or connections made.
     */
    uint64_t flows;
    /**
     * Live connections of the backend; 0 for a mux.
     */
    uint64_t live;
} slb_backend_stats;

/**
 * The result of one call of an export.
 */
typedef struct slb_exported {
    /**
     * The number of bytes that were written.
     */
    size_t length;
    /**
     * The number of records that were written.
     */
    size_t records;
    /**
     * The value of `from` for the next call.
     */
    uint64_t next;
    /**
     * 1: there may be more, beginning at `next`; 0: everything was exported.
     */
    uint8_t more;
} slb_exported;

/**
 * Number of records taken over, and of those refused by reason.
 */
typedef struct slb_imported {
    /**
     * Records that were taken over.
     */
    uint64_t taken;
    /**
     * Records that were refused.
     */
    uint64_t refused;
    /**
     * Number of refused records by reason: see `slb_refusal`.
     */
    uint64_t refused_for[SLB_REFUSALS];
} slb_imported;

/**
 * Division of the connections of a host agent or a proxy among workers. Each worker is a thread with a
 * handle of its own, and all have the same snapshot.
 */
typedef struct slb_steering {
    /**
     * A secret of 128 random bits: the same at all workers of a node. Not zero.
     */
    uint64_t key[2];
    /**
     * Number of workers, at least 1.
     */
    uint16_t workers;
    /**
     * Number of the calling worker, below `workers`.
     */
    uint16_t own;
} slb_steering;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Describes the last failed call on the builder: the item and field, the expected values and the one given, such as
 * `backend "vm1": port: expected 0 to 65535, got 70000`. The text is empty if no call failed, never NULL, and valid
 * until the next call on the builder.
 *
 * The caller promises:
 * `builder` is a builder, or NULL.
 */
const char *slb_builder_error(struct slb_builder *builder);

/**
 * Returns the bytes of memory that a builder needs, or 0 if the argument is bad.
 *
 * The caller promises:
 * `capacity` points to a capacity.
 */
size_t slb_builder_size(const struct slb_capacity *capacity);

/**
 * Makes a builder in `memory`, which is aligned to 64 bytes and has `length` bytes;
 * `slb_builder_size` returns the number needed. The builder owns the memory until
 * `slb_builder_free`.
 *
 * The caller promises:
 * The memory is the caller's.
 */
int slb_builder_init(void *memory,
                     size_t length,
                     const struct slb_capacity *capacity,
                     struct slb_builder **out);

#if !defined(SLB_FREESTANDING)
/**
 * Makes a builder in memory that the library allocates. Otherwise like `slb_builder_init`.
 *
 * The caller promises:
 * The pointers are valid for their types.
 */
int slb_builder_new(const struct slb_capacity *capacity, struct slb_builder **out);
#endif

/**
 * Frees a builder. The caller owns its own memory again; memory of the library is released.
 * Snapshots made with the builder stay valid. NULL is no error.
 *
 * The caller promises:
 * `builder` is a builder, and is not used afterwards.
 */
int slb_builder_free(struct slb_builder *builder);

/**
 * Writes all faults of the configuration to `text`, one per line with the names of its items, cut to `length` bytes
 * with the terminating zero; `text` may be NULL. Returns the number of faults, 0 if a snapshot can be made.
 *
 * The caller promises:
 * `builder` is a builder, and `text` has room for `length` bytes.
 */
int slb_builder_faults(struct slb_builder *builder,
                       char *text,
                       size_t length);

/**
 * Adds a backend to a pool. Returns its index in the pool.
 *
 * The caller promises:
 * `builder` is a builder, and `backend` points to a backend.
 */
int slb_builder_backend(struct slb_builder *builder,
                        size_t pool,
                        const struct slb_backend *backend);

/**
 * Changes the weight and the administrative state of a backend for all rules, for example to drain
 * it; 0 in `weight` keeps the weight. The change takes effect with the next snapshot. For a
 * probe's result, see `slb_builder_set_health`.
 *
 * The caller promises:
 * `builder` is a builder.
 */
int slb_builder_set_backend(struct slb_builder *builder,
                            size_t pool,
                            size_t backend,
                            uint32_t weight,
                            uint8_t state);

/**
 * Sets a backend's seat: it gets the slots of the pool's Maglev table that follow from the seat,
 * instead of those that follow from its name. A backend with the seat of the one that it replaces
 * gets that one's slots, and no other slot moves. Of several backends with one seat, all but one
 * have to drain. NULL resets the seat to the backend's name.
 *
 * The caller promises:
 * `builder` is a builder, and `seat` is NULL, or a string that stays as long as the builder.
 */
int slb_builder_seat(struct slb_builder *builder, size_t pool, size_t backend, const char *seat);

/**
 * Sets the time of the next snapshot, in nanoseconds of a clock that continues from snapshot to
 * snapshot. A host agent derives from it how long a backend had its slots of the Maglev table, and
 * passes packets on to the former owners that have the most connections. Without a call, all
 * snapshots count equally.
 *
 * The caller promises:
 * `builder` is a builder.
 */
int slb_builder_now(struct slb_builder *builder, uint64_t now);

/**
 * Sets the observed health of a backend for all rules: with 0 in `healthy` it fails, and gets no
 * new flows. The change takes effect with the next snapshot. For a probe's result, see
 * `slb_builder_set_health`.
 *
 * The caller promises:
 * `builder` is a builder.
 */
int slb_builder_set_condition(struct slb_builder *builder,
                              size_t pool,
                              size_t backend,
                              uint8_t healthy);

/**
 * Adds a set of probe results for the backends of a pool, all of them healthy: one set for each
 * probe that rules of the pool use. Returns its index.
 *
 * The caller promises:
 * `builder` is a builder.
 */
int slb_builder_health(struct slb_builder *builder, size_t pool);

/**
 * Assigns a set of probe results of the rule's pool to a rule. Without a set, the rule uses only
 * the state of backends.
 *
 * The caller promises:
 * `builder` is a builder.
 */
int slb_builder_rule_health(struct slb_builder *builder, size_t rule, size_t health);

/**
 * Sets the result of a probe for a backend, given by its index in the pool: with 0 in `healthy`
 * the probe fails, and rules with this set give it no new flows. `weight` is the backend's for
 * these rules; negative: its own. It takes effect with the next snapshot.
 *
 * The caller promises:
 * `builder` is a builder.
 */
int slb_builder_set_health(struct slb_builder *builder,
                           size_t health,
                           size_t backend,
                           uint8_t healthy,
                           int64_t weight);

/**
 * Sets the hash of flows, the same on every node. 0: XXH3 with `seed`; 1: SipHash-1-3 with a `key`
 * of 16 bytes; 2: Toeplitz with a `key` of 40 bytes, or NULL for Microsoft's. `seed` also
 * determines Maglev's permutations.
 *
 * The caller promises:
 * `builder` is a builder, and `key` has `length` bytes.
 */
int slb_builder_hash(struct slb_builder *builder,
                     uint8_t hash,
                     uint64_t seed,
                     const uint8_t *key,
                     size_t length);

/**
 * Sets this node's addresses on the fabric.
 *
 * The caller promises:
 * `builder` is a builder, and `underlay` points to an underlay.
 */
int slb_builder_underlay(struct slb_builder *builder, const struct slb_underlay *underlay);

/**
 * Adds a VIP. Returns its index.
 *
 * The caller promises:
 * `builder` is a builder, and `frontend` points to a frontend.
 */
int slb_builder_frontend(struct slb_builder *builder, const struct slb_frontend *frontend);

/**
 * Adds a pool. Returns its index.
 *
 * The caller promises:
 * `builder` is a builder, and `pool` points to a pool.
 */
int slb_builder_pool(struct slb_builder *builder, const struct slb_pool *pool);

/**
 * Adds a load-balancing rule. Returns its index.
 *
 * The caller promises:
 * `builder` is a builder, and `rule` points to a rule.
 */
int slb_builder_rule(struct slb_builder *builder, const struct slb_rule *rule);

/**
 * Adds an inbound NAT rule or pool. Returns its index.
 *
 * The caller promises:
 * `builder` is a builder, and `nat` points to an inbound NAT rule.
 */
int slb_builder_inbound_nat(struct slb_builder *builder, const struct slb_inbound_nat *nat);

/**
 * Adds an outbound rule. Returns its index.
 *
 * The caller promises:
 * `builder` is a builder, and `outbound` points to an outbound rule with as many frontends as it
 * says.
 */
int slb_builder_outbound(struct slb_builder *builder, const struct slb_outbound *outbound);

/**
 * Adds a mux's underlay address. A host accepts packets from it, and returns answers through it if
 * a rule says so. Returns its index.
 *
 * The caller promises:
 * `builder` is a builder, and `address` points to an address.
 */
int slb_builder_mux(struct slb_builder *builder, const struct slb_address *address);

/**
 * Adds a prefix of `prefix_length` bits to the inside prefixes. Vms reach, and answer, inside addresses with their own
 * addresses; outbound rules translate packets to all others. Without a call, private, shared, link-local and unique
 * local addresses and 168.63.129.16 are inside. The first call removes these; with NULL it adds none, so that only the
 * vms' networks are inside. Returns the number of prefixes before the call.
 *
 * The caller promises:
 * `builder` is a builder, and `address` points to an address.
 */
int slb_builder_inside(struct slb_builder *builder,
                       const struct slb_address *address,
                       uint8_t prefix_length);

/**
 * Sets the source address, one of each family, of the caller's probes of a host's vms. Packets
 * from vms to this address are passed, regardless of outbound rules.
 *
 * The caller promises:
 * `builder` is a builder, and `address` points to an address.
 */
int slb_builder_probe_source(struct slb_builder *builder, const struct slb_address *address);

/**
 * Makes the configuration a proxy's, with its backends at `backend_port`. With 0 in `multi` there
 * is one frontend port; otherwise any number, each with an address.
 *
 * The caller promises:
 * `builder` is a builder.
 */
int slb_builder_proxy(struct slb_builder *builder, uint8_t multi, uint16_t backend_port);

/**
 * Adds a frontend port of a proxy. `address` is the IPv4 address of the client at that port, or
 * NULL. Returns its index.
 *
 * The caller promises:
 * `builder` is a builder, and `address` points to an address.
 */
int slb_builder_frontend_port(struct slb_builder *builder,
                              uint16_t port,
                              const struct slb_address *address);

/**
 * Adds a source rewrite of a proxy: backends see clients in the range of `prefix_length` bits that
 * begins at `from` with the addresses that begin at `to`. Returns its index.
 *
 * The caller promises:
 * `builder` is a builder, and both point to addresses.
 */
int slb_builder_source_rewrite(struct slb_builder *builder,
                               const struct slb_address *from,
                               const struct slb_address *to,
                               uint8_t prefix_length);

/**
 * Adds a network, whose vms host agents connect. Returns its index.
 *
 * The caller promises:
 * `builder` is a builder, and `network` points to a network with as many prefixes and gateways as it
 * says.
 */
int slb_builder_network(struct slb_builder *builder,
                        const struct slb_network *network);

/**
 * Makes a frontend private to a network, both given by their indexes: only vms of the network reach it, and the host
 * agent of the calling vm chooses the backend. Its address has to be in the network's address spaces, and its rules
 * have to lead to pools of the network. Returns 0.
 *
 * The caller promises:
 * `builder` is a builder.
 */
int slb_builder_private_frontend(struct slb_builder *builder,
                                 size_t network,
                                 size_t frontend);

/**
 * Adds a vm of a network that is no backend, or further addresses of one that is. Returns its
 * index.
 *
 * The caller promises:
 * `builder` is a builder, and `vm` points to a vm with as many addresses as it says.
 */
int slb_builder_vm(struct slb_builder *builder, const struct slb_vm *vm);

#if !defined(SLB_FREESTANDING)
/**
 * Reads a configuration of `length` bytes. Returns `SLB_ERROR_CONFIGURATION` if it has faults, and
 * writes them to `faults`, one per line, cut to `faults_length` bytes with the terminating zero;
 * `faults` may be NULL.
 *
 * The caller promises:
 * `toml` has `length` bytes, and `faults` room for `faults_length`.
 */
int slb_config_parse(const char *toml,
                     size_t length,
                     char *faults,
                     size_t faults_length,
                     struct slb_config **out);
#endif

#if !defined(SLB_FREESTANDING)
/**
 * Frees a configuration. Snapshots made from it stay valid. NULL is no error.
 *
 * The caller promises:
 * `config` is a configuration, and is not used afterwards.
 */
int slb_config_free(struct slb_config *config);
#endif

#if !defined(SLB_FREESTANDING)
/**
 * Returns the role that a configuration is for: a value of enum slb_role.
 *
 * The caller promises:
 * `config` is a configuration.
 */
int slb_config_role(struct slb_config *config);
#endif

#if !defined(SLB_FREESTANDING)
/**
 * Sets the options of a mux from a configuration, except the key.
 *
 * The caller promises:
 * `config` is a configuration, and `options` were initialised.
 */
int slb_config_mux_options(struct slb_config *config, struct slb_mux_options *options);
#endif

#if !defined(SLB_FREESTANDING)
/**
 * Sets the options of a host agent or a proxy from a configuration, except the key.
 *
 * The caller promises:
 * `config` is a configuration, and `options` were initialised.
 */
int slb_config_nat_options(struct slb_config *config, struct slb_nat_options *options);
#endif

#if !defined(SLB_FREESTANDING)
/**
 * Changes the weight and the administrative state of a backend for all rules, for example to drain
 * it; 0 in `weight` keeps the weight. `backend` is its name, or POOL/NAME. It takes effect with
 * the next snapshot. For a probe's result, see `slb_config_set_health`.
 *
 * The caller promises:
 * `config` is a configuration, and `backend` ends with a zero.
 */
int slb_config_set_backend(struct slb_config *config,
                           const char *backend,
                           uint32_t weight,
                           uint8_t state);
#endif

#if !defined(SLB_FREESTANDING)
/**
 * Sets the observed health of a backend for all rules: with 0 in `healthy` it fails, and gets no
 * new flows. `backend` is its name, or POOL/NAME. It takes effect with the next snapshot. For a
 * probe's result, see `slb_config_set_health`.
 *
 * The caller promises:
 * `config` is a configuration, and `backend` ends with a zero.
 */
int slb_config_set_condition(struct slb_config *config, const char *backend, uint8_t healthy);
#endif

#if !defined(SLB_FREESTANDING)
/**
 * Sets the result of a rule's probe for a backend of the rule's pool, both given by name: with 0
 * in `healthy` the probe fails. The result applies to all rules of the pool with this probe. The
 * change takes effect with the next snapshot.
 *
 * The caller promises:
 * `config` is a configuration, and both names end with a zero.
 */
int slb_config_set_health(struct slb_config *config,
                          const char *rule,
                          const char *backend,
                          uint8_t healthy);
#endif

#if !defined(SLB_FREESTANDING)
/**
 * Compiles a configuration. `previous`, which may be NULL, is the predecessor of the new snapshot:
 * backends and rules keep their counters and flows.
 *
 * The caller promises:
 * Both handles are valid.
 */
int slb_config_snapshot(struct slb_config *config,
                        const struct slb_snapshot *previous,
                        struct slb_snapshot **out);
#endif

/**
 * Returns the meaning of an error in English. The text is never NULL and must not be freed.
 */
const char *slb_strerror(int error);

/**
 * Returns the library's version, such as "0.1.0". The text is never NULL and must not be freed.
 */
const char *slb_version(void);

/**
 * Copies flows to `out`, which has room for `count` of them, 3 or more, and advances `cursor`,
 * which begins at 0. Returns the number of copied flows; 0: there are no more. Changes between
 * calls may be missed.
 *
 * The caller promises:
 * `mux` is a mux, and `out` has `count` elements.
 */
int slb_mux_flows(struct slb_mux *mux, uint64_t *cursor, struct slb_flow *out, size_t count);

/**
 * Copies connections to `out`, which has room for `count` of them, and advances `cursor`, which begins at 0. Returns
 * the number of copied connections; 0: there are no more.
 *
 * The caller promises:
 * `host` is a host agent, and `out` has `count` elements.
 */
int slb_host_connections(struct slb_host *host,
                         uint64_t *cursor,
                         struct slb_connection *out,
                         size_t count);

/**
 * Copies connections of a proxy, like `slb_host_connections`.
 *
 * The caller promises:
 * `proxy` is a proxy, and `out` has `count` elements.
 */
int slb_proxy_connections(struct slb_proxy *proxy,
                          uint64_t *cursor,
                          struct slb_connection *out,
                          size_t count);

/**
 * Detects overlapping buffers, which `slb_mux_process` does not. This is for tests of an I/O
 * layer: the time grows with the square of `count`.
 *
 * Returns 0, `SLB_ERROR_OVERLAP`, or `SLB_ERROR_FRAME` if a frame exceeds its buffer.
 *
 * The caller promises:
 * `frames` points to `count` frames.
 */
int slb_frames_check(const struct slb_frame *frames, size_t count);

/**
 * Initialises a health state: healthy, or unhealthy if `healthy` is 0. The first probe is due
 * within one interval from `now`; `number`, any index of the backend, spreads the probes of many
 * backends over the interval.
 *
 * The caller promises:
 * `health` points to memory for a health state.
 */
int slb_health_init(struct slb_health *health,
                    const struct slb_probe *probe,
                    uint8_t healthy,
                    uint64_t now,
                    uint32_t number);

/**
 * Returns the time of the next event: a probe to send, or the timeout of the outstanding one.
 * `UINT64_MAX` if the argument is bad.
 *
 * The caller promises:
 * `health` was initialised by `slb_health_init`.
 */
uint64_t slb_health_due(struct slb_health *health);

/**
 * Returns 1 if a probe is due now, and records it as sent; otherwise 0.
 *
 * The caller promises:
 * `health` was initialised by `slb_health_init`.
 */
int slb_health_begin(struct slb_health *health, uint64_t now);

/**
 * Records that the outstanding probe succeeded. Returns a value of enum slb_change.
 *
 * The caller promises:
 * `health` was initialised by `slb_health_init`.
 */
int slb_health_succeeded(struct slb_health *health);

/**
 * Records that the outstanding probe failed. Returns a value of enum slb_change.
 *
 * The caller promises:
 * `health` was initialised by `slb_health_init`.
 */
int slb_health_failed(struct slb_health *health);

/**
 * Records a probe past its timeout as failed. Returns a value of enum slb_change.
 *
 * The caller promises:
 * `health` was initialised by `slb_health_init`.
 */
int slb_health_expire(struct slb_health *health, uint64_t now);

/**
 * Returns 1 if the backend is healthy, otherwise 0.
 *
 * The caller promises:
 * `health` was initialised by `slb_health_init`.
 */
int slb_health_is_healthy(struct slb_health *health);

/**
 * Returns the bytes of memory that a host agent needs, or 0 if an argument is bad.
 *
 * The caller promises:
 * `snapshot` is a snapshot.
 */
size_t slb_host_size(const struct slb_snapshot *snapshot, const struct slb_nat_options *options);

/**
 * Makes a host agent in `memory`, which is aligned to 64 bytes and has `length` bytes; `slb_host_size` returns the
 * number needed. The host agent owns the memory until `slb_host_free`, and uses the snapshot until another is
 * installed or the host agent is freed.
 *
 * The caller promises:
 * `snapshot` is a snapshot, and `memory` is the caller's.
 */
int slb_host_init(void *memory,
                  size_t length,
                  const struct slb_snapshot *snapshot,
                  const struct slb_nat_options *options,
                  struct slb_host **out);

#if !defined(SLB_FREESTANDING)
/**
 * Makes a host agent in memory that the library allocates. Otherwise like `slb_host_init`.
 *
 * The caller promises:
 * `snapshot` is a snapshot.
 */
int slb_host_new(const struct slb_snapshot *snapshot,
                 const struct slb_nat_options *options,
                 struct slb_host **out);
#endif

/**
 * Frees a host agent. The caller owns its own memory again; memory of the library is released.
 * NULL is no error.
 *
 * The caller promises:
 * `host` is a host agent, and is not used afterwards.
 */
int slb_host_free(struct slb_host *host);

/**
 * Processes `count` frames, like `slb_mux_process`.
 *
 * The caller promises:
 * `host` is a host agent, and `frames` and `verdicts` have `count` elements.
 */
int slb_host_process(struct slb_host *host,
                     uint64_t now,
                     struct slb_frame *frames,
                     size_t count,
                     struct slb_verdict *verdicts);

/**
 * Like `slb_host_process`, and calls `observer` with `context` for each step of each frame. This
 * is for single packets: formatting the text is slow.
 *
 * The caller promises:
 * `host` is a host agent, `frames` has `count` elements, and `observer` can be called with
 * `context`.
 */
int slb_host_process_observed(struct slb_host *host,
                              uint64_t now,
                              struct slb_frame *frames,
                              size_t count,
                              slb_observer observer,
                              void *context);

/**
 * Ends expired connections, and writes RSTs for both ends into `spare`: `count` frames with an
 * empty buffer of 64 bytes or more each, of which up to 64 are used. Fragments whose first one has
 * arrived are released into `spare` as well, each with its verdict, if the buffer is large enough;
 * 2112 bytes always are. Call this about 20 times a second, and before or after each burst.
 *
 * Returns the number of frames in `spare` to send: those with a length.
 *
 * The caller promises:
 * `host` is a host agent, and `spare` has `count` elements.
 */
int slb_host_advance(struct slb_host *host, uint64_t now, struct slb_frame *spare, size_t count);

/**
 * Installs another snapshot, built with the present one as its predecessor. If `before` is not
 * NULL, it receives the old snapshot, which can be freed unless another role uses it. Returns
 * `SLB_ERROR_LINEAGE` if the snapshot was not built so, and keeps the present one;
 * `SLB_ERROR_ROLE` if the snapshot is a proxy's.
 *
 * The caller promises:
 * Both handles are valid.
 */
int slb_host_install(struct slb_host *host,
                     const struct slb_snapshot *snapshot,
                     struct slb_snapshot **before);

/**
 * Changes the options. A limit with the same rate keeps its present level. `connections`,
 * `flows_per_source`, `waiting_fragments`, `direct_flows` and the key keep their initial values.
 *
 * The caller promises:
 * `host` is a host agent, and `options` points to options.
 */
int slb_host_set_options(struct slb_host *host, const struct slb_nat_options *options);

/**
 * Copies the host agent's counters since its creation to `out`.
 *
 * The caller promises:
 * `host` is a host agent.
 */
int slb_host_stats(struct slb_host *host, struct slb_stats *out);

/**
 * Copies the counters of a rule, by its index in the configuration.
 *
 * The caller promises:
 * `host` is a host agent.
 */
int slb_host_rule_stats(struct slb_host *host, size_t rule, struct slb_rule_stats *out);

/**
 * Copies the counters of a backend, by its index among those of all pools.
 *
 * The caller promises:
 * `host` is a host agent.
 */
int slb_host_backend_stats(struct slb_host *host, size_t backend, struct slb_backend_stats *out);

/**
 * Writes connections as records into `into`, like `slb_mux_export`.
 *
 * The caller promises:
 * `host` is a host agent, and `into` has `length` bytes.
 */
int slb_host_export(struct slb_host *host,
                    uint64_t from,
                    uint8_t *into,
                    size_t length,
                    struct slb_exported *out);

/**
 * Writes the connections of one vm as records into `into`, as `slb_host_export` does for all vms. `backend` is the
 * vm's index in the snapshot. Another host agent takes the connections over with `slb_host_import` when the vm moves
 * there. `SLB_ERROR_RANGE`: the backend is not on this host.
 *
 * The caller promises:
 * `host` is a host agent, and `into` has `length` bytes.
 */
int slb_host_export_vm(struct slb_host *host,
                       size_t backend,
                       uint64_t from,
                       uint8_t *into,
                       size_t length,
                       struct slb_exported *out);

/**
 * Takes over connections from records, like `slb_mux_import`.
 *
 * The caller promises:
 * `host` is a host agent, and `records` has `length` bytes.
 */
int slb_host_import(struct slb_host *host,
                    uint64_t now,
                    uint64_t elapsed,
                    uint8_t is_stale,
                    const uint8_t *records,
                    size_t length,
                    struct slb_imported *out);

/**
 * Takes over one worker's share of the connections in the records of all workers: see `slb_steer`. Worker 0 counts
 * unreadable records. Otherwise like `slb_host_import`.
 *
 * The caller promises:
 * `host` is a host agent, and `records` has `length` bytes.
 */
int slb_host_import_share(struct slb_host *host,
                          uint64_t now,
                          uint64_t elapsed,
                          uint8_t is_stale,
                          const uint8_t *records,
                          size_t length,
                          const struct slb_steering *steering,
                          struct slb_imported *out);

/**
 * Makes a host agent that starts without state, or with a stale one, take up TCP connections from
 * outside in the middle, for as long as connections of their rule may be idle.
 * `take_ups_per_second` of the options limits the rate. Connections that vms opened are not taken
 * up, since only the state has their ports.
 *
 * The caller promises:
 * `host` is a host agent.
 */
int slb_host_take_up(struct slb_host *host, uint64_t now);

/**
 * Returns the bytes of memory that a mux needs, or 0 if an argument is bad.
 *
 * The caller promises:
 * `snapshot` is a snapshot.
 */
size_t slb_mux_size(const struct slb_snapshot *snapshot, const struct slb_mux_options *options);

/**
 * Makes a mux in `memory`, which is aligned to 64 bytes and has `length` bytes; `slb_mux_size`
 * returns the number needed. The mux owns the memory until `slb_mux_free`, and uses the snapshot
 * until another is installed or the mux is freed.
 *
 * The caller promises:
 * `snapshot` is a snapshot, and `memory` is the caller's.
 */
int slb_mux_init(void *memory,
                 size_t length,
                 const struct slb_snapshot *snapshot,
                 const struct slb_mux_options *options,
                 struct slb_mux **out);

#if !defined(SLB_FREESTANDING)
/**
 * Makes a mux in memory that the library allocates. Otherwise like `slb_mux_init`.
 *
 * The caller promises:
 * `snapshot` is a snapshot.
 */
int slb_mux_new(const struct slb_snapshot *snapshot,
                const struct slb_mux_options *options,
                struct slb_mux **out);
#endif

/**
 * Frees a mux. The caller owns its own memory again; memory of the library is released. NULL is no
 * error.
 *
 * The caller promises:
 * `mux` is a mux, and is not used afterwards.
 */
int slb_mux_free(struct slb_mux *mux);

/**
 * Processes `count` frames: rewrites those to be sent in place, and writes the verdict into each;
 * also into `verdicts`, an array of as many elements, unless it is NULL. `now` is in nanoseconds
 * from any origin, and should not run backwards. Pass frames in bursts of `SLB_BURST`.
 *
 * Returns `count`. On `SLB_ERROR_FRAME` no frame was touched.
 *
 * The caller promises:
 * `mux` is a mux, and `frames` and `verdicts` have `count` elements.
 */
int slb_mux_process(struct slb_mux *mux,
                    uint64_t now,
                    struct slb_frame *frames,
                    size_t count,
                    struct slb_verdict *verdicts);

/**
 * Like `slb_mux_process`, and calls `observer` with `context` for each step of each frame. This is
 * for single packets: formatting the text is slow.
 *
 * The caller promises:
 * `mux` is a mux, `frames` has `count` elements, and `observer` can be called with `context`.
 */
int slb_mux_process_observed(struct slb_mux *mux,
                             uint64_t now,
                             struct slb_frame *frames,
                             size_t count,
                             slb_observer observer,
                             void *context);

/**
 * Does the work that no packet triggers: expires flows, and releases fragments that waited for
 * their first one. Call it about 20 times a second, and after each burst if fragments may wait.
 * `spare` are `count` frames, whose content is lost, of which up to 64 become those fragments,
 * each with its verdict; a buffer of 2112 bytes holds any. `spare` may be NULL with a count of 0,
 * but then no fragment is released.
 *
 * Returns the number of frames in `spare` to send: those with a length.
 *
 * The caller promises:
 * `mux` is a mux, and `spare` has `count` elements.
 */
int slb_mux_advance(struct slb_mux *mux, uint64_t now, struct slb_frame *spare, size_t count);

/**
 * Installs another snapshot, built with the present one as its predecessor. If `before` is not
 * NULL, it receives the old snapshot, which can be freed unless another role uses it. Returns
 * `SLB_ERROR_LINEAGE` if the snapshot was not built so, and keeps the present one;
 * `SLB_ERROR_ROLE` if the snapshot is a proxy's.
 *
 * The caller promises:
 * Both handles are valid.
 */
int slb_mux_install(struct slb_mux *mux,
                    const struct slb_snapshot *snapshot,
                    struct slb_snapshot **before);

/**
 * Changes the options. A limit with the same rate keeps its present level. `flows`,
 * `flows_per_source`, `waiting_fragments` and the key keep their initial values.
 *
 * The caller promises:
 * `mux` is a mux, and `options` points to options.
 */
int slb_mux_set_options(struct slb_mux *mux, const struct slb_mux_options *options);

/**
 * Copies the mux's counters since its creation to `out`.
 *
 * The caller promises:
 * `mux` is a mux.
 */
int slb_mux_stats(struct slb_mux *mux, struct slb_stats *out);

/**
 * Copies the counters of a rule, by its index in the configuration.
 *
 * The caller promises:
 * `mux` is a mux.
 */
int slb_mux_rule_stats(struct slb_mux *mux, size_t rule, struct slb_rule_stats *out);

/**
 * Copies the counters of a backend, by its index among those of all pools.
 *
 * The caller promises:
 * `mux` is a mux.
 */
int slb_mux_backend_stats(struct slb_mux *mux, size_t backend, struct slb_backend_stats *out);

/**
 * Writes pinned flows as records into `into`, and the position for the next call into `out`:
 * `from` is 0 at first, then `next` of the previous call, for as long as `more` is set. Frames may
 * be processed between two calls. A call looks at `SLB_EXPORT_STEP` slots at most, and writes
 * nothing if `length` is below `SLB_RECORD_MOST`. Times are relative to the last call of
 * `_process` or `_advance`.
 *
 * Returns the number of records written.
 *
 * The caller promises:
 * `mux` is a mux, and `into` has `length` bytes.
 */
int slb_mux_export(struct slb_mux *mux,
                   uint64_t from,
                   uint8_t *into,
                   size_t length,
                   struct slb_exported *out);

/**
 * Takes over flows from records that were exported `elapsed` nanoseconds ago, by any process and
 * with any snapshot: records identify backends by the pool's name, the backend's name and its
 * address. Records of backends that the present snapshot no longer has are refused, and counted in
 * `out`. `is_stale` is 1 if packets were processed after the export, else 0. Existing flows do not
 * change. Returns `SLB_ERROR_RECORDS` if the bytes are not whole records.
 *
 * Returns the number of records taken over.
 *
 * The caller promises:
 * `mux` is a mux, and `records` has `length` bytes.
 */
int slb_mux_import(struct slb_mux *mux,
                   uint64_t now,
                   uint64_t elapsed,
                   uint8_t is_stale,
                   const uint8_t *records,
                   size_t length,
                   struct slb_imported *out);

/**
 * Sets the defaults: a million flows, 1000 answers of each kind and 10000 RSTs per second, 64
 * waiting fragments, no limit for sources, and a key of zeros, which the caller has to replace by
 * a secret one. NULL is ignored.
 *
 * The caller promises:
 * `options` points to memory for the options.
 */
void slb_mux_options_init(struct slb_mux_options *options);

/**
 * Sets the defaults: 262144 connections, 1000 answers of each kind, 10000 RSTs and a million
 * packets passed on per second, 64 waiting fragments, no limit for sources, and a key of zeros,
 * which the caller has to replace by a secret one. NULL is ignored.
 *
 * The caller promises:
 * `options` points to memory for the options.
 */
void slb_nat_options_init(struct slb_nat_options *options);

/**
 * Returns the bytes of memory that a proxy needs, or 0 if an argument is bad.
 *
 * The caller promises:
 * `snapshot` is a snapshot.
 */
size_t slb_proxy_size(const struct slb_snapshot *snapshot, const struct slb_nat_options *options);

/**
 * Makes a proxy in `memory`, which is aligned to 64 bytes and has `length` bytes; `slb_proxy_size`
 * returns the number needed. The proxy owns the memory until `slb_proxy_free`, and uses the
 * snapshot until another is installed or the proxy is freed.
 *
 * The caller promises:
 * `snapshot` is a snapshot, and `memory` is the caller's.
 */
int slb_proxy_init(void *memory,
                   size_t length,
                   const struct slb_snapshot *snapshot,
                   const struct slb_nat_options *options,
                   struct slb_proxy **out);

#if !defined(SLB_FREESTANDING)
/**
 * Makes a proxy in memory that the library allocates. Otherwise like `slb_proxy_init`.
 *
 * The caller promises:
 * `snapshot` is a snapshot.
 */
int slb_proxy_new(const struct slb_snapshot *snapshot,
                  const struct slb_nat_options *options,
                  struct slb_proxy **out);
#endif

/**
 * Frees a proxy. The caller owns its own memory again; memory of the library is released. NULL is
 * no error.
 *
 * The caller promises:
 * `proxy` is a proxy, and is not used afterwards.
 */
int slb_proxy_free(struct slb_proxy *proxy);

/**
 * Processes `count` frames, like `slb_mux_process`.
 *
 * The caller promises:
 * `proxy` is a proxy, and `frames` and `verdicts` have `count` elements.
 */
int slb_proxy_process(struct slb_proxy *proxy,
                      uint64_t now,
                      struct slb_frame *frames,
                      size_t count,
                      struct slb_verdict *verdicts);

/**
 * Like `slb_proxy_process`, and calls `observer` with `context` for each step of each frame. This
 * is for single packets: formatting the text is slow.
 *
 * The caller promises:
 * `proxy` is a proxy, `frames` has `count` elements, and `observer` can be called with `context`.
 */
int slb_proxy_process_observed(struct slb_proxy *proxy,
                               uint64_t now,
                               struct slb_frame *frames,
                               size_t count,
                               slb_observer observer,
                               void *context);

/**
 * Ends expired connections, and writes RSTs for both ends into `spare`: `count` frames with an
 * empty buffer of 64 bytes or more each, of which up to 64 are used. Call this about 20 times a
 * second, and before or after each burst.
 *
 * Returns the number of frames in `spare` to send: those with a length.
 *
 * The caller promises:
 * `proxy` is a proxy, and `spare` has `count` elements.
 */
int slb_proxy_advance(struct slb_proxy *proxy, uint64_t now, struct slb_frame *spare, size_t count);

/**
 * Installs another snapshot, built with the present one as its predecessor. If `before` is not
 * NULL, it receives the old snapshot, which can be freed unless another role uses it. Returns
 * `SLB_ERROR_LINEAGE` if the snapshot was not built so, and keeps the present one;
 * `SLB_ERROR_ROLE` if the snapshot is not a proxy's.
 *
 * The caller promises:
 * Both handles are valid.
 */
int slb_proxy_install(struct slb_proxy *proxy,
                      const struct slb_snapshot *snapshot,
                      struct slb_snapshot **before);

/**
 * Changes the options. A limit with the same rate keeps its present level. `connections`,
 * `flows_per_source`, `waiting_fragments` and the key keep their initial values.
 *
 * The caller promises:
 * `proxy` is a proxy, and `options` points to options.
 */
int slb_proxy_set_options(struct slb_proxy *proxy, const struct slb_nat_options *options);

/**
 * Copies the proxy's counters since its creation to `out`.
 *
 * The caller promises:
 * `proxy` is a proxy.
 */
int slb_proxy_stats(struct slb_proxy *proxy, struct slb_stats *out);

/**
 * Copies the counters of a rule, by its index in the configuration.
 *
 * The caller promises:
 * `proxy` is a proxy.
 */
int slb_proxy_rule_stats(struct slb_proxy *proxy, size_t rule, struct slb_rule_stats *out);

/**
 * Copies the counters of a backend, by its index among those of all pools.
 *
 * The caller promises:
 * `proxy` is a proxy.
 */
int slb_proxy_backend_stats(struct slb_proxy *proxy, size_t backend, struct slb_backend_stats *out);

/**
 * Writes sessions as records into `into`, like `slb_mux_export`.
 *
 * The caller promises:
 * `proxy` is a proxy, and `into` has `length` bytes.
 */
int slb_proxy_export(struct slb_proxy *proxy,
                     uint64_t from,
                     uint8_t *into,
                     size_t length,
                     struct slb_exported *out);

/**
 * Takes over sessions from records, like `slb_mux_import`.
 *
 * The caller promises:
 * `proxy` is a proxy, and `records` has `length` bytes.
 */
int slb_proxy_import(struct slb_proxy *proxy,
                     uint64_t now,
                     uint64_t elapsed,
                     uint8_t is_stale,
                     const uint8_t *records,
                     size_t length,
                     struct slb_imported *out);

/**
 * Takes over one worker's share of the sessions in the records of all workers: see `slb_steer`. Worker 0 counts
 * unreadable records. Otherwise like `slb_proxy_import`.
 *
 * The caller promises:
 * `proxy` is a proxy, and `records` has `length` bytes.
 */
int slb_proxy_import_share(struct slb_proxy *proxy,
                           uint64_t now,
                           uint64_t elapsed,
                           uint8_t is_stale,
                           const uint8_t *records,
                           size_t length,
                           const struct slb_steering *steering,
                           struct slb_imported *out);

/**
 * Makes a proxy that starts without state, or with a stale one, take up TCP sessions in the middle
 * by their clients' segments, if the rule's scheduler is Maglev, for as long as sessions of their
 * rule may be idle. `take_ups_per_second` of the options limits the rate.
 *
 * The caller promises:
 * `proxy` is a proxy.
 */
int slb_proxy_take_up(struct slb_proxy *proxy, uint64_t now);

/**
 * Returns the bytes of memory that the snapshot of a configuration needs, or 0 if an argument is
 * bad or the configuration contradicts itself. `previous` may be NULL.
 *
 * The caller promises:
 * The handles are valid.
 */
size_t slb_snapshot_size(struct slb_builder *builder, const struct slb_snapshot *before);

/**
 * Compiles a configuration into `memory`, which is aligned to 64 bytes and has `length` bytes;
 * `slb_snapshot_size` returns the number needed. `previous`, which may be NULL, is the predecessor
 * of the new snapshot: backends and rules keep their counters and flows. The snapshot owns the
 * memory until `slb_snapshot_free`. The builder can be changed and used again.
 *
 * The caller promises:
 * The handles are valid, and `memory` is the caller's.
 */
int slb_snapshot_init(void *memory,
                      size_t length,
                      struct slb_builder *builder,
                      const struct slb_snapshot *before,
                      struct slb_snapshot **out);

#if !defined(SLB_FREESTANDING)
/**
 * Compiles a configuration into memory that the library allocates. Otherwise like
 * `slb_snapshot_init`.
 *
 * The caller promises:
 * The handles are valid.
 */
int slb_snapshot_new(struct slb_builder *builder,
                     const struct slb_snapshot *before,
                     struct slb_snapshot **out);
#endif

/**
 * Frees a snapshot. The caller owns its own memory again; memory of the library is released.
 * Returns `SLB_ERROR_IN_USE` while a mux, host agent or proxy uses it. NULL is no error.
 *
 * The caller promises:
 * `snapshot` is a snapshot, and is not used afterwards.
 */
int slb_snapshot_free(struct slb_snapshot *snapshot);

/**
 * Returns the generation of a snapshot: one more than that of its predecessor; 0 if the argument
 * is no snapshot.
 *
 * The caller promises:
 * `snapshot` is a snapshot.
 */
uint64_t slb_snapshot_generation(const struct slb_snapshot *snapshot);

/**
 * Returns the number of backends of a snapshot, over all pools. Their indexes count from 0, pool
 * by pool in the order of the configuration.
 *
 * The caller promises:
 * `snapshot` is a snapshot.
 */
size_t slb_snapshot_backends(const struct slb_snapshot *snapshot);

/**
 * Returns the name of a reason for refusing records, by its index in `refused_for`, such as
 * "tuple_taken"; "unknown" for an index without a reason. The text is never NULL and must not be
 * freed.
 */
const char *slb_refusal(uint8_t reason);

/**
 * Returns the name of a drop reason, such as "no_rule"; "none" for 0, and "unknown" for a number
 * without a reason. The text is never NULL and must not be freed. Numbers are stable within a
 * version.
 */
const char *slb_drop_reason(uint8_t reason);

/**
 * Finds the worker that has the connection of each of `count` received frames, and writes its number to `owners`; for
 * a frame of no connection this is the calling worker. Before processing, hand a frame of another worker to that
 * worker unchanged, over a queue of your own. Both directions of a connection, all fragments of a datagram and ICMP
 * errors about a connection have one owner. The frames are not changed.
 *
 * `slb_snapshot_spreads` says whether several workers can share the connections of a snapshot.
 *
 * Returns the number of frames that other workers own. `SLB_ERROR_RANGE`: `workers` is 0, or `own` is not below it.
 * `SLB_ERROR_KEY`: the key is zero.
 *
 * The caller promises:
 * The snapshot is one; `frames` and `owners` point to `count` of each.
 */
int slb_steer(const struct slb_snapshot *snapshot,
              const struct slb_steering *steering,
              struct slb_frame *frames_in,
              size_t count,
              uint16_t *owners);

/**
 * Returns 1 if several workers can share the connections of a snapshot, else 0: if a rule has a source NAT address,
 * servers see one address for all clients, so one worker has to have all connections. So does a vm of the node with an
 * access list.
 *
 * The caller promises:
 * The snapshot is one.
 */
int slb_snapshot_spreads(const struct slb_snapshot *snapshot);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SLB_H */

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
#endif

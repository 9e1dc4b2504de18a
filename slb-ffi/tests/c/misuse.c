/* Every function with every bad argument that can be seen: an error, and nothing changes. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <slb.h>

#undef NDEBUG
#define IS(call, error)                                                            \
    do {                                                                           \
        int got = (call);                                                          \
        if (got != (error)) {                                                      \
            fprintf(stderr, "%s:%d: %s: %d, not %d\n", __FILE__, __LINE__, #call, got, error); \
            exit(1);                                                               \
        }                                                                          \
    } while (0)
#define ODD(type, pointer) ((type *)((char *)(pointer) + 1))

static slb_address ipv4(uint8_t last) {
    slb_address address = {4, {10, 10, 1, last}};
    return address;
}

static slb_frontend frontend(void) {
    slb_frontend frontend = {"web", {4, {20, 20, 20, 100}}, 0};
    return frontend;
}

static slb_backend backend(const char *name, uint8_t last) {
    slb_backend backend;
    memset(&backend, 0, sizeof backend);
    backend.name = name;
    backend.address = ipv4(last);
    backend.host = ipv4(101);
    backend.weight = 1;
    backend.instance = backend.port = -1;
    return backend;
}

static slb_rule rule(void) {
    slb_rule rule;
    memset(&rule, 0, sizeof rule);
    rule.name = "http";
    rule.frontend_port = rule.backend_port = 80;
    return rule;
}

static void strings(void) {
    assert(strcmp(slb_strerror(SLB_ERROR_NULL), "a pointer is NULL") == 0);
    for (int error = -100; error < 100; error++) assert(slb_strerror(error)[0]);
    for (int reason = 0; reason < 256; reason++) assert(slb_drop_reason((uint8_t)reason)[0]);
    for (int reason = 0; reason < 256; reason++) assert(slb_refusal((uint8_t)reason)[0]);
    assert(strcmp(slb_refusal(6), "tuple_taken") == 0);
    assert(strcmp(slb_drop_reason(0), "none") == 0);
    assert(strcmp(slb_drop_reason(1), "truncated") == 0);
    assert(strcmp(slb_drop_reason(3), "no_rule") == 0);
    assert(strcmp(slb_drop_reason(255), "unknown") == 0);
    assert(strstr(slb_strerror(SLB_ERROR_KEY), "the key is all zeros"));
    assert(slb_version()[0]);
}

#define SAYS(text)                                                                   \
    do {                                                                             \
        const char *said = slb_builder_error(builder);                               \
        if (strcmp(said, text) != 0) {                                               \
            fprintf(stderr, "%s:%d: %s, not %s\n", __FILE__, __LINE__, said, text); \
            exit(1);                                                                 \
        }                                                                            \
    } while (0)

/* What is refused, item by item and field by field; and zeros that are what is usual. */
static void messages(void) {
    slb_capacity capacity;
    memset(&capacity, 0, sizeof capacity);
    capacity.frontends = capacity.pools = capacity.rules = 1;
    capacity.backends = 2;
    slb_builder *builder = NULL;
    assert(strcmp(slb_builder_error(NULL), "a pointer is NULL") == 0);
    IS(slb_builder_new(&capacity, &builder), SLB_OK);
    SAYS("");
    slb_frontend web;
    memset(&web, 0, sizeof web);
    IS(slb_builder_frontend(builder, &web), SLB_ERROR_NULL);
    SAYS("frontend: name: a pointer is NULL");
    web.name = "\xff";
    IS(slb_builder_frontend(builder, &web), SLB_ERROR_RANGE);
    SAYS("frontend: name: expected UTF-8");
    web.name = "web";
    IS(slb_builder_frontend(builder, &web), SLB_ERROR_RANGE);
    SAYS("frontend \"web\": address: expected an address of family 4 or 6, got 0");
    web.address = frontend().address;
    web.icmp_echo = 7;
    IS(slb_builder_frontend(builder, &web), SLB_ERROR_RANGE);
    SAYS("frontend \"web\": icmp_echo: expected 0, 1 or 2, got 7");
    web.icmp_echo = 0;
    IS(slb_builder_frontend(builder, &web), 0);
    IS(slb_builder_frontend(builder, &web), SLB_ERROR_FULL);
    SAYS("frontend \"web\": no room for another one, capacity.frontends is 1");
    slb_backend one;
    memset(&one, 0, sizeof one);
    one.name = "one";
    IS(slb_builder_backend(builder, 0, &one), SLB_ERROR_RANGE);
    SAYS("backend \"one\": address: expected an address of family 4 or 6, got 0");
    one.address = ipv4(1);
    one.host = ipv4(101);
    IS(slb_builder_backend(builder, 0, &one), SLB_ERROR_RANGE);
    SAYS("backend \"one\": pool: there is no 0, since there are none");
    slb_pool pool = {"servers", 0, 0};
    IS(slb_builder_pool(builder, &pool), 0);
    IS(slb_builder_backend(builder, 1, &one), SLB_ERROR_RANGE);
    SAYS("backend \"one\": pool: there is no 1, since there are 1, from 0 on");
    one.port = 70000;
    IS(slb_builder_backend(builder, 0, &one), SLB_ERROR_RANGE);
    SAYS("backend \"one\": port: expected at most 65535, got 70000");
    one.port = 0;
    IS(slb_builder_backend(builder, 0, &one), 0); /* all else is zero */
    one.name = "two", one.address = ipv4(2), one.instance = one.port = -1;
    IS(slb_builder_backend(builder, 0, &one), 1);
    IS(slb_builder_set_backend(builder, 0, 9, 0, SLB_UP), SLB_ERROR_RANGE);
    SAYS("backend: backend: there is no 9, since there are 2, from 0 on");
    slb_rule http;
    memset(&http, 0, sizeof http);
    http.name = "http", http.frontend_port = 80;
    http.terms.idle_timeout = 7;
    IS(slb_builder_rule(builder, &http), SLB_ERROR_RANGE);
    SAYS("rule \"http\": idle_timeout: expected 0, or 240 to 1800 seconds, got 7");
    http.terms.idle_timeout = 0;
    IS(slb_builder_rule(builder, &http), 0);
    slb_underlay underlay;
    memset(&underlay, 0, sizeof underlay);
    underlay.ipv4 = ipv4(11);
    IS(slb_builder_underlay(builder, &underlay), SLB_OK);
    IS(slb_builder_faults(builder, NULL, 0), 0);
    slb_snapshot *snapshot;
    IS(slb_snapshot_new(builder, NULL, &snapshot), SLB_OK);
    IS(slb_snapshot_free(snapshot), SLB_OK);
    IS(slb_builder_free(builder), SLB_OK);
}

struct seen {
    size_t steps, verdicts;
    char last[256];
};

static void see(void *context, size_t frame, const char *label, const char *text) {
    struct seen *seen = context;
    assert(frame < 2);
    seen->steps++;
    seen->verdicts += strcmp(label, "verdict") == 0;
    strncpy(seen->last, text, sizeof seen->last - 1);
}

static slb_builder *builders(void) {
    slb_capacity capacity;
    memset(&capacity, 0, sizeof capacity);
    capacity.frontends = capacity.pools = capacity.rules = capacity.inbound_nat = 1;
    capacity.outbound = capacity.outbound_frontends = capacity.muxes = 1;
    capacity.frontend_ports = capacity.source_rewrites = 1;
    capacity.backends = capacity.health_results = 2;
    capacity.health = capacity.inside = 1;
    assert(slb_builder_size(NULL) == 0);
    assert(slb_builder_size(ODD(slb_capacity, &capacity)) == 0);
    slb_capacity huge = capacity;
    huge.backends = SIZE_MAX;
    assert(slb_builder_size(&huge) == 0);
    size_t size = slb_builder_size(&capacity);
    assert(size > 0);

    slb_builder *builder = NULL, *other = NULL;
    char *memory = aligned_alloc(64, size + 64);
    IS(slb_builder_init(NULL, size, &capacity, &builder), SLB_ERROR_NULL);
    IS(slb_builder_init(memory + 8, size, &capacity, &builder), SLB_ERROR_ALIGNMENT);
    IS(slb_builder_init(memory, size - 64, &capacity, &builder), SLB_ERROR_SHORT);
    IS(slb_builder_init(memory, 0, &capacity, &builder), SLB_ERROR_SHORT);
    IS(slb_builder_init(memory, SIZE_MAX, &capacity, &builder), SLB_ERROR_RANGE);
    IS(slb_builder_init(memory, size, NULL, &builder), SLB_ERROR_NULL);
    IS(slb_builder_init(memory, size, &capacity, NULL), SLB_ERROR_NULL);
    assert(builder == NULL);
    IS(slb_builder_init(memory, size, &capacity, &builder), SLB_OK);
    IS(slb_builder_free(builder), SLB_OK);
    IS(slb_builder_free(builder), SLB_ERROR_HANDLE);
    IS(slb_builder_free(NULL), SLB_OK);
    free(memory);
    IS(slb_builder_new(NULL, &builder), SLB_ERROR_NULL);
    IS(slb_builder_new(&capacity, NULL), SLB_ERROR_NULL);
    IS(slb_builder_new(&huge, &other), SLB_ERROR_RANGE);
    IS(slb_builder_new(&capacity, &builder), SLB_OK);

    static const uint8_t key[40];
    IS(slb_builder_hash(NULL, 0, 1, NULL, 0), SLB_ERROR_NULL);
    IS(slb_builder_hash(builder, 3, 1, NULL, 0), SLB_ERROR_RANGE);
    IS(slb_builder_hash(builder, 1, 1, key, 15), SLB_ERROR_RANGE);
    IS(slb_builder_hash(builder, 1, 1, NULL, 0), SLB_ERROR_RANGE);
    IS(slb_builder_hash(builder, 2, 1, key, 39), SLB_ERROR_RANGE);
    IS(slb_builder_hash(builder, 2, 1, key, 40), SLB_OK);
    IS(slb_builder_hash(builder, 0, 1, NULL, 0), SLB_OK);

    slb_underlay underlay;
    memset(&underlay, 0, sizeof underlay);
    underlay.ipv4 = ipv4(11);
    IS(slb_builder_underlay(builder, NULL), SLB_ERROR_NULL);
    IS(slb_builder_underlay(NULL, &underlay), SLB_ERROR_NULL);
    IS(slb_builder_underlay(builder, ODD(slb_underlay, &underlay)), SLB_ERROR_ALIGNMENT);
    underlay.udp_checksum = 3;
    IS(slb_builder_underlay(builder, &underlay), SLB_ERROR_RANGE);
    underlay.udp_checksum = 0;
    underlay.ipv6 = ipv4(11);
    IS(slb_builder_underlay(builder, &underlay), SLB_ERROR_RANGE);
    memset(&underlay.ipv6, 0, sizeof underlay.ipv6);
    underlay.ipv4.family = 6;
    IS(slb_builder_underlay(builder, &underlay), SLB_ERROR_RANGE);
    underlay.ipv4.family = 4;
    IS(slb_builder_underlay(builder, &underlay), SLB_OK);

    slb_frontend web = frontend(), bad = web;
    IS(slb_builder_frontend(builder, NULL), SLB_ERROR_NULL);
    bad.name = NULL;
    IS(slb_builder_frontend(builder, &bad), SLB_ERROR_NULL);
    bad.name = "\xff";
    IS(slb_builder_frontend(builder, &bad), SLB_ERROR_RANGE);
    bad = web, bad.address.family = 5;
    IS(slb_builder_frontend(builder, &bad), SLB_ERROR_RANGE);
    bad = web, bad.address.family = 0;
    IS(slb_builder_frontend(builder, &bad), SLB_ERROR_RANGE);
    bad = web, bad.icmp_echo = 3;
    IS(slb_builder_frontend(builder, &bad), SLB_ERROR_RANGE);
    IS(slb_builder_frontend(builder, &web), 0);
    IS(slb_builder_frontend(builder, &web), SLB_ERROR_FULL);

    slb_pool pool = {"servers", 1 << 24, 251};
    slb_backend one = backend("one", 1), two = backend("two", 2), wrong = one;
    IS(slb_builder_backend(builder, 0, &one), SLB_ERROR_RANGE); /* no pool yet */
    IS(slb_builder_pool(builder, NULL), SLB_ERROR_NULL);
    IS(slb_builder_pool(builder, &pool), SLB_ERROR_RANGE);
    pool.vni = 5001;
    IS(slb_builder_pool(builder, &pool), 0);
    IS(slb_builder_pool(builder, &pool), SLB_ERROR_FULL);
    IS(slb_builder_backend(builder, 0, NULL), SLB_ERROR_NULL);
    wrong.state = 3;
    IS(slb_builder_backend(builder, 0, &wrong), SLB_ERROR_RANGE);
    wrong = one, wrong.port = 65536;
    IS(slb_builder_backend(builder, 0, &wrong), SLB_ERROR_RANGE);
    IS(slb_builder_backend(builder, SIZE_MAX, &one), SLB_ERROR_RANGE);
    IS(slb_builder_health(NULL, 0), SLB_ERROR_NULL);
    IS(slb_builder_health(builder, 1), SLB_ERROR_RANGE);
    IS(slb_builder_set_health(builder, 0, 0, 1, -1), SLB_ERROR_RANGE);
    IS(slb_builder_backend(builder, 0, &one), 0);
    IS(slb_builder_health(builder, 0), 0);
    IS(slb_builder_health(builder, 0), SLB_ERROR_FULL);
    IS(slb_builder_set_health(builder, 0, 1, 1, -1), SLB_ERROR_RANGE);
    IS(slb_builder_backend(builder, 0, &two), 1);
    IS(slb_builder_set_health(builder, 0, 1, 0, -1), SLB_OK);
    IS(slb_builder_set_health(builder, 0, 1, 1, UINT32_MAX), SLB_OK);
    IS(slb_builder_set_health(builder, 0, 1, 1, 1 + (int64_t)UINT32_MAX), SLB_ERROR_RANGE);
    IS(slb_builder_set_health(builder, 0, 1, 1, INT64_MIN), SLB_OK);
    IS(slb_builder_set_health(builder, 1, 0, 1, -1), SLB_ERROR_RANGE);
    IS(slb_builder_set_health(NULL, 0, 0, 1, -1), SLB_ERROR_NULL);
    IS(slb_builder_rule_health(builder, 0, 0), SLB_ERROR_RANGE); /* no rule yet */
    IS(slb_builder_backend(builder, 0, &two), SLB_ERROR_FULL);
    IS(slb_builder_set_backend(builder, 0, 2, 1, SLB_UP), SLB_ERROR_RANGE);
    IS(slb_builder_set_backend(builder, 1, 0, 1, SLB_UP), SLB_ERROR_RANGE);
    IS(slb_builder_set_backend(builder, 0, 0, 1, 9), SLB_ERROR_RANGE);
    IS(slb_builder_set_backend(NULL, 0, 0, 1, 0), SLB_ERROR_NULL);
    IS(slb_builder_set_backend(builder, 0, 1, 7, SLB_DRAINING), SLB_OK);
    IS(slb_builder_set_condition(builder, 0, 2, 1), SLB_ERROR_RANGE);
    IS(slb_builder_set_condition(builder, 1, 0, 1), SLB_ERROR_RANGE);
    IS(slb_builder_set_condition(NULL, 0, 0, 1), SLB_ERROR_NULL);
    IS(slb_builder_set_condition(builder, 0, 1, 0), SLB_OK); /* and draining */
    IS(slb_builder_seat(builder, 0, 2, "one"), SLB_ERROR_RANGE);
    IS(slb_builder_seat(builder, 1, 0, "one"), SLB_ERROR_RANGE);
    IS(slb_builder_seat(builder, 0, 1, "\xff"), SLB_ERROR_RANGE);
    IS(slb_builder_seat(NULL, 0, 1, "one"), SLB_ERROR_NULL);
    IS(slb_builder_seat(builder, 0, 1, "one"), SLB_OK); /* the other one drains */
    IS(slb_builder_seat(builder, 0, 1, NULL), SLB_OK);
    IS(slb_builder_now(NULL, 1), SLB_ERROR_NULL);
    IS(slb_builder_now(builder, 1), SLB_OK);

    slb_rule http = rule(), not = http;
    IS(slb_builder_rule(builder, NULL), SLB_ERROR_NULL);
    not.protocol = 4;
    IS(slb_builder_rule(builder, &not ), SLB_ERROR_RANGE);
    not = http, not.distribution = 3;
    IS(slb_builder_rule(builder, &not ), SLB_ERROR_RANGE);
    not = http, not.scheduler = 2;
    IS(slb_builder_rule(builder, &not ), SLB_ERROR_RANGE);
    not = http, not.terms.idle_timeout = 239;
    IS(slb_builder_rule(builder, &not ), SLB_ERROR_RANGE);
    not = http, not.terms.source_nat.family = 7;
    IS(slb_builder_rule(builder, &not ), SLB_ERROR_RANGE);
    IS(slb_builder_rule(builder, &http), 0);
    IS(slb_builder_rule_health(NULL, 0, 0), SLB_ERROR_NULL);
    IS(slb_builder_rule_health(builder, 1, 0), SLB_ERROR_RANGE);
    IS(slb_builder_rule_health(builder, 0, 1), SLB_ERROR_RANGE);
    IS(slb_builder_rule_health(builder, 0, 0), SLB_OK);

    slb_inbound_nat nat;
    memset(&nat, 0, sizeof nat);
    nat.name = "ssh";
    nat.first_port = 2222, nat.backend_port = 22, nat.protocol = 9;
    IS(slb_builder_inbound_nat(builder, NULL), SLB_ERROR_NULL);
    IS(slb_builder_inbound_nat(builder, &nat), SLB_ERROR_RANGE);
    nat.protocol = SLB_TCP;
    IS(slb_builder_inbound_nat(builder, &nat), 0);

    slb_outbound out;
    size_t frontends[2] = {0, 1};
    memset(&out, 0, sizeof out);
    out.name = "out", out.frontend_count = 1, out.protocol = SLB_ALL;
    IS(slb_builder_outbound(builder, NULL), SLB_ERROR_NULL);
    IS(slb_builder_outbound(builder, &out), SLB_ERROR_NULL);
    out.frontends = frontends, out.frontend_count = SIZE_MAX;
    IS(slb_builder_outbound(builder, &out), SLB_ERROR_RANGE);
    out.frontend_count = 2;
    IS(slb_builder_outbound(builder, &out), SLB_ERROR_FULL);
    slb_network network;
    slb_vm vm;
    slb_address member = ipv4(13);
    slb_prefix space = {member, 33};
    memset(&network, 0, sizeof network);
    memset(&vm, 0, sizeof vm);
    network.name = vm.name = "blue", network.vni = 1 << 24;
    IS(slb_builder_network(NULL, &network), SLB_ERROR_NULL);
    IS(slb_builder_network(builder, NULL), SLB_ERROR_NULL);
    IS(slb_builder_network(builder, &network), SLB_ERROR_RANGE);
    network.vni = 1, network.prefix_count = 1;
    IS(slb_builder_network(builder, &network), SLB_ERROR_NULL);
    network.prefixes = &space;
    IS(slb_builder_network(builder, &network), SLB_ERROR_RANGE);
    space.length = 24, network.gateway_count = SIZE_MAX, network.gateways = &member;
    IS(slb_builder_network(builder, &network), SLB_ERROR_RANGE);
    network.gateway_count = 1;
    IS(slb_builder_network(builder, &network), SLB_ERROR_FULL);
    IS(slb_builder_private_frontend(NULL, 0, 0), SLB_ERROR_NULL);
    IS(slb_builder_private_frontend(builder, 99, 0), SLB_ERROR_RANGE);
    IS(slb_builder_vm(NULL, &vm), SLB_ERROR_NULL);
    IS(slb_builder_vm(builder, NULL), SLB_ERROR_NULL);
    vm.addresses = &member, vm.address_count = 1;
    IS(slb_builder_vm(builder, &vm), SLB_ERROR_RANGE);
    vm.host = member, vm.port = 65536;
    IS(slb_builder_vm(builder, &vm), SLB_ERROR_RANGE);
    vm.port = 1;
    IS(slb_builder_vm(builder, &vm), SLB_ERROR_FULL);

    slb_address mux = ipv4(12);
    IS(slb_builder_mux(builder, NULL), SLB_ERROR_NULL);
    IS(slb_builder_mux(builder, &mux), 0);
    IS(slb_builder_mux(builder, &mux), SLB_ERROR_FULL);
    mux.family = 0;
    IS(slb_builder_probe_source(builder, &mux), SLB_ERROR_RANGE);
    mux.family = 4;
    IS(slb_builder_probe_source(builder, NULL), SLB_ERROR_NULL);
    IS(slb_builder_probe_source(NULL, &mux), SLB_ERROR_NULL);
    IS(slb_builder_probe_source(builder, &mux), SLB_OK);
    IS(slb_builder_inside(NULL, &mux, 32), SLB_ERROR_NULL);
    IS(slb_builder_inside(builder, &mux, 33), SLB_ERROR_RANGE);
    mux.family = 6;
    IS(slb_builder_inside(builder, &mux, 129), SLB_ERROR_RANGE);
    mux.family = 5;
    IS(slb_builder_inside(builder, &mux, 0), SLB_ERROR_RANGE);
    mux.family = 4;
    IS(slb_builder_inside(builder, &mux, 32), 0);
    IS(slb_builder_inside(builder, &mux, 32), SLB_ERROR_FULL);
    IS(slb_builder_inside(builder, NULL, 99), 1);
    IS(slb_builder_proxy(NULL, 0, 1), SLB_ERROR_NULL);
    IS(slb_builder_frontend_port(NULL, 0, NULL), SLB_ERROR_NULL);
    mux.family = 6;
    IS(slb_builder_frontend_port(builder, 0, &mux), SLB_ERROR_RANGE);
    IS(slb_builder_frontend_port(builder, 0, NULL), 0);
    IS(slb_builder_frontend_port(builder, 1, NULL), SLB_ERROR_FULL);
    IS(slb_builder_source_rewrite(builder, NULL, &mux, 24), SLB_ERROR_NULL);
    IS(slb_builder_source_rewrite(builder, &mux, NULL, 24), SLB_ERROR_NULL);
    return builder;
}

static slb_snapshot *snapshots(slb_builder *builder) {
    slb_snapshot *snapshot = NULL, *not = (slb_snapshot *)builder;
    assert(slb_snapshot_size(NULL, NULL) == 0);
    assert(slb_snapshot_size(builder, not ) == 0);
    size_t size = slb_snapshot_size(builder, NULL);
    assert(size > 0);
    char *memory = aligned_alloc(64, size);
    IS(slb_snapshot_init(NULL, size, builder, NULL, &snapshot), SLB_ERROR_NULL);
    IS(slb_snapshot_init(memory + 1, size, builder, NULL, &snapshot), SLB_ERROR_ALIGNMENT);
    IS(slb_snapshot_init(memory, size - 64, builder, NULL, &snapshot), SLB_ERROR_SHORT);
    IS(slb_snapshot_init(memory, size, NULL, NULL, &snapshot), SLB_ERROR_NULL);
    IS(slb_snapshot_init(memory, size, builder, not, &snapshot), SLB_ERROR_HANDLE);
    IS(slb_snapshot_init(memory, size, builder, NULL, NULL), SLB_ERROR_NULL);
    IS(slb_snapshot_init(memory, size, builder, NULL, &snapshot), SLB_OK);
    IS(slb_snapshot_free(snapshot), SLB_OK);
    IS(slb_snapshot_free(snapshot), SLB_ERROR_HANDLE);
    IS(slb_snapshot_free(not ), SLB_ERROR_HANDLE);
    IS(slb_snapshot_free(NULL), SLB_OK);
    free(memory);
    IS(slb_snapshot_new(NULL, NULL, &snapshot), SLB_ERROR_NULL);
    IS(slb_snapshot_new(builder, NULL, NULL), SLB_ERROR_NULL);
    IS(slb_snapshot_new(builder, NULL, &snapshot), SLB_OK);
    assert(slb_snapshot_generation(snapshot) == 1 && slb_snapshot_generation(NULL) == 0);
    assert(slb_snapshot_backends(snapshot) == 2 && slb_snapshot_backends(not ) == 0);
    return snapshot;
}

static void frames_of(slb_mux *mux) {
    static uint8_t buffers[2][256];
    slb_frame frames[3];
    memset(frames, 0, sizeof frames);
    slb_verdict verdicts[3];
    slb_frame good = {buffers[0], 256, 100, 60, 0, 0, 0}, other = good, bad = good;
    other.buffer = buffers[1];
    frames[0] = good, frames[1] = other;
    IS(slb_mux_process(NULL, 1, frames, 1, NULL), SLB_ERROR_NULL);
    IS(slb_mux_process(ODD(slb_mux, mux), 1, frames, 1, NULL), SLB_ERROR_ALIGNMENT);
    IS(slb_mux_process(mux, 1, NULL, 1, NULL), SLB_ERROR_NULL);
    IS(slb_mux_process(mux, 1, NULL, 0, NULL), 0);
    IS(slb_mux_process(mux, 1, ODD(slb_frame, frames), 1, NULL), SLB_ERROR_ALIGNMENT);
    IS(slb_mux_process(mux, 1, frames, SIZE_MAX, NULL), SLB_ERROR_RANGE);
    IS(slb_mux_process(mux, 1, frames, 2, (slb_verdict *)&frames[1]), SLB_ERROR_OVERLAP);
    bad.offset = 200;
    frames[1] = bad;
    IS(slb_mux_process(mux, 1, frames, 2, verdicts), SLB_ERROR_FRAME);
    bad.offset = UINT32_MAX, bad.length = UINT32_MAX;
    frames[1] = bad;
    IS(slb_mux_process(mux, 1, frames, 2, verdicts), SLB_ERROR_FRAME);
    bad = good, bad.buffer = NULL;
    frames[1] = bad;
    IS(slb_mux_process(mux, 1, frames, 2, verdicts), SLB_ERROR_FRAME);
    slb_stats stats;
    IS(slb_mux_stats(mux, &stats), SLB_OK);
    assert(stats.received == 0); /* none was touched */
    frames[1] = other;
    frames[0].action = 200, frames[0].reason = 200; /* whatever was there */
    IS(slb_mux_process(mux, 1, frames, 2, verdicts), 2);
    IS(slb_mux_stats(mux, &stats), SLB_OK);
    assert(stats.received == 2);
    IS(slb_frames_check(NULL, 1), SLB_ERROR_NULL);
    IS(slb_frames_check(frames, 2), SLB_OK);
    frames[1] = frames[0];
    IS(slb_frames_check(frames, 2), SLB_ERROR_OVERLAP);
    frames[1] = bad;
    IS(slb_frames_check(frames, 2), SLB_ERROR_FRAME);
}

#define ROLE(role, options_type, options)                                                       \
    static slb_##role *role##s(slb_snapshot *snapshot) {                                        \
        slb_##role *handle = NULL;                                                              \
        options_type given;                                                                     \
        options##_init(&given);                                                                 \
        options##_init(NULL);                                                                   \
        slb_snapshot *not = (slb_snapshot *)&given, *before;                                    \
        assert(slb_##role##_size(NULL, &given) == 0 && slb_##role##_size(snapshot, NULL) == 0); \
        size_t size = slb_##role##_size(snapshot, &given);                                      \
        assert(size > 0);                                                                       \
        char *memory = aligned_alloc(64, size);                                                 \
        given.key[0] = given.key[1] = 0;                                                        \
        IS(slb_##role##_init(memory, size, snapshot, &given, &handle), SLB_ERROR_KEY);          \
        assert(handle == NULL);                                                                 \
        IS(slb_##role##_new(snapshot, &given, &handle), SLB_ERROR_KEY);                         \
        given.key[1] = 1;                                                                       \
        IS(slb_##role##_init(NULL, size, snapshot, &given, &handle), SLB_ERROR_NULL);           \
        IS(slb_##role##_init(memory + 8, size, snapshot, &given, &handle), SLB_ERROR_ALIGNMENT); \
        IS(slb_##role##_init(memory, size - 64, snapshot, &given, &handle), SLB_ERROR_SHORT);   \
        IS(slb_##role##_init(memory, size, not, &given, &handle), SLB_ERROR_HANDLE);            \
        IS(slb_##role##_init(memory, size, snapshot, NULL, &handle), SLB_ERROR_NULL);           \
        IS(slb_##role##_init(memory, size, snapshot, &given, NULL), SLB_ERROR_NULL);            \
        IS(slb_##role##_init(memory, size, snapshot, &given, &handle), SLB_OK);                 \
        IS(slb_##role##_free(handle), SLB_OK);                                                  \
        IS(slb_##role##_free(handle), SLB_ERROR_HANDLE);                                        \
        IS(slb_##role##_free(NULL), SLB_OK);                                                    \
        free(memory);                                                                           \
        IS(slb_##role##_new(snapshot, &given, NULL), SLB_ERROR_NULL);                           \
        IS(slb_##role##_new(snapshot, &given, &handle), SLB_OK);                                \
        IS(slb_snapshot_free(snapshot), SLB_ERROR_IN_USE);                                      \
        IS(slb_##role##_install(handle, NULL, NULL), SLB_ERROR_NULL);                           \
        IS(slb_##role##_install(handle, not, NULL), SLB_ERROR_HANDLE);                          \
        IS(slb_##role##_install(NULL, snapshot, NULL), SLB_ERROR_NULL);                         \
        IS(slb_##role##_install(handle, snapshot, ODD(slb_snapshot *, &before)), SLB_ERROR_ALIGNMENT); \
        IS(slb_##role##_install(handle, snapshot, &before), SLB_OK);                            \
        assert(before == snapshot);                                                             \
        slb_stats stats;                                                                        \
        slb_rule_stats of_rule;                                                                 \
        slb_backend_stats of_backend;                                                           \
        IS(slb_##role##_stats(handle, NULL), SLB_ERROR_NULL);                                   \
        IS(slb_##role##_stats(NULL, &stats), SLB_ERROR_NULL);                                   \
        IS(slb_##role##_stats((slb_##role *)snapshot, &stats), SLB_ERROR_HANDLE);               \
        IS(slb_##role##_stats(handle, &stats), SLB_OK);                                         \
        IS(slb_##role##_rule_stats(handle, SIZE_MAX, &of_rule), SLB_ERROR_RANGE);               \
        IS(slb_##role##_rule_stats(handle, 0, NULL), SLB_ERROR_NULL);                           \
        IS(slb_##role##_rule_stats(handle, 0, &of_rule), SLB_OK);                               \
        IS(slb_##role##_backend_stats(handle, 2, &of_backend), SLB_ERROR_RANGE);                \
        IS(slb_##role##_backend_stats(handle, 0, NULL), SLB_ERROR_NULL);                        \
        IS(slb_##role##_backend_stats(handle, 1, &of_backend), SLB_OK);                         \
        uint8_t buffer[128];                                                                    \
        slb_frame spare = {buffer, 128, 0, 0, 0, 0, 0};                                         \
        IS(slb_##role##_advance(NULL, 1, &spare, 1), SLB_ERROR_NULL);                           \
        IS(slb_##role##_advance(handle, 1, NULL, 1), SLB_ERROR_NULL);                           \
        IS(slb_##role##_advance(handle, 1, NULL, 0), 0);                                        \
        spare.offset = 129;                                                                     \
        IS(slb_##role##_advance(handle, 1, &spare, 1), SLB_ERROR_FRAME);                        \
        spare.offset = 0;                                                                       \
        IS(slb_##role##_advance(handle, UINT64_MAX, &spare, 1), 0);                             \
        assert(spare.buffer == buffer && spare.capacity == 128);                                \
        IS(slb_##role##_process(handle, 1, &spare, 0, NULL), 0);                                \
        slb_exported exported;                                                                  \
        slb_imported imported;                                                                  \
        uint8_t records[SLB_RECORD_MOST] = {0};                                                 \
        size_t room = sizeof records;                                                           \
        IS(slb_##role##_export(NULL, 0, records, room, &exported), SLB_ERROR_NULL);             \
        IS(slb_##role##_export(handle, 0, NULL, room, &exported), SLB_ERROR_NULL);              \
        IS(slb_##role##_export(handle, 0, records, room, NULL), SLB_ERROR_NULL);                \
        IS(slb_##role##_export(handle, 0, records, SIZE_MAX, &exported), SLB_ERROR_RANGE);      \
        IS(slb_##role##_export(handle, UINT64_MAX, records, room, &exported), 0);               \
        assert(exported.length == 0 && exported.records == 0);                                  \
        IS(slb_##role##_import(NULL, 1, 0, 0, records, 0, &imported), SLB_ERROR_NULL);          \
        IS(slb_##role##_import(handle, 1, 0, 0, NULL, 0, &imported), SLB_ERROR_NULL);           \
        IS(slb_##role##_import(handle, 1, 0, 0, records, 0, NULL), SLB_ERROR_NULL);             \
        IS(slb_##role##_import(handle, 1, 0, 0, records, room, &imported), SLB_ERROR_RECORDS);  \
        IS(slb_##role##_import(handle, 1, UINT64_MAX, 1, records, 0, &imported), 0);            \
        assert(imported.taken == 0 && imported.refused == 0);                                   \
        IS(slb_##role##_process((slb_##role *)snapshot, 1, &spare, 1, NULL), SLB_ERROR_HANDLE); \
        return handle;                                                                          \
    }
ROLE(mux, slb_mux_options, slb_mux_options)
ROLE(host, slb_nat_options, slb_nat_options)
ROLE(proxy, slb_nat_options, slb_nat_options)

static void flows(slb_mux *mux, slb_host *host, slb_proxy *proxy) {
    uint64_t cursor = 0;
    slb_flow some[3];
    slb_connection others[3];
    IS(slb_mux_flows(NULL, &cursor, some, 3), SLB_ERROR_NULL);
    IS(slb_mux_flows(mux, NULL, some, 3), SLB_ERROR_NULL);
    IS(slb_mux_flows(mux, &cursor, NULL, 3), SLB_ERROR_NULL);
    IS(slb_mux_flows(mux, &cursor, some, 2), SLB_ERROR_SHORT);
    IS(slb_mux_flows((slb_mux *)host, &cursor, some, 3), SLB_ERROR_HANDLE);
    IS(slb_mux_flows(mux, &cursor, some, 3), 0);
    cursor = UINT64_MAX;
    IS(slb_mux_flows(mux, &cursor, some, 3), 0);
    cursor = 0;
    IS(slb_host_connections(host, NULL, others, 3), SLB_ERROR_NULL);
    IS(slb_host_connections((slb_host *)proxy, &cursor, others, 3), SLB_ERROR_HANDLE);
    IS(slb_host_connections(host, &cursor, others, 3), 0);
    IS(slb_proxy_connections(proxy, &cursor, NULL, 3), SLB_ERROR_NULL);
    cursor = UINT64_MAX - 1;
    IS(slb_proxy_connections(proxy, &cursor, others, 3), 0);
}

/* Writes the checksum of an IPv4 header of 20 bytes. */
static void right_header(uint8_t *header) {
    uint32_t sum = 0;
    header[10] = header[11] = 0;
    for (int i = 0; i < 20; i += 2) sum += (uint32_t)header[i] << 8 | header[i + 1];
    sum = (sum >> 16) + (sum & 0xffff);
    sum += sum >> 16;
    header[10] = (uint8_t)(~sum >> 8), header[11] = (uint8_t)~sum;
}

/* A source that may begin one flow, and a second one later; others are not disturbed. */
static void sources(slb_snapshot *snapshot) {
    slb_mux *mux = NULL;
    slb_mux_options options;
    slb_mux_options_init(&options);
    options.flows = 64;
    options.key[0] = 7;
    size_t without = slb_mux_size(snapshot, &options);
    options.flows_per_source = options.flows_per_source_at_once = 1;
    assert(slb_mux_size(snapshot, &options) > without);
    IS(slb_mux_new(snapshot, &options, &mux), SLB_OK);
    for (uint8_t i = 0; i < 4; i++) {
        uint8_t buffer[512] = {0}, *packet = buffer + 256;
        const uint8_t syn[] = {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0,                       /* Ethernet */
                               0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0,                       /* IPv4 */
                               10, 9, 9, (uint8_t)(i == 2 ? 2 : 1), 20, 20, 20, 100,          /* who, the VIP */
                               4, i, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0, 0, 0, 0}; /* TCP */
        memcpy(packet, syn, sizeof syn);
        right_header(packet + 14);
        slb_frame frame = {buffer, sizeof buffer, 256, sizeof syn, 0, 0, 0};
        slb_verdict verdict;
        IS(slb_mux_process(mux, i < 3 ? 1 : 2000000001, &frame, 1, &verdict), 1);
        const char *reason = slb_drop_reason(verdict.reason);
        int is_refused = verdict.action == SLB_DROP && strcmp(reason, "source_limit") == 0;
        assert(is_refused == (i == 1));
        assert(is_refused || verdict.action == SLB_FORWARD);
    }
    IS(slb_mux_free(mux), SLB_OK);
}

/* Two rules of one pool: whoever fails the probe of the one serves the other. */
static void health_by_rule(void) {
    slb_capacity capacity;
    memset(&capacity, 0, sizeof capacity);
    capacity.frontends = capacity.pools = capacity.backends = 1;
    capacity.rules = 2, capacity.health = capacity.health_results = 1;
    slb_builder *builder = NULL;
    IS(slb_builder_new(&capacity, &builder), SLB_OK);
    slb_underlay underlay;
    memset(&underlay, 0, sizeof underlay);
    underlay.ipv4 = ipv4(11);
    slb_frontend web = frontend();
    slb_pool pool = {"servers", 5001, 251};
    slb_backend one = backend("one", 1);
    slb_rule first = rule(), second = first;
    second.name = "plain", second.frontend_port = second.backend_port = 81;
    IS(slb_builder_underlay(builder, &underlay), SLB_OK);
    IS(slb_builder_frontend(builder, &web), 0);
    IS(slb_builder_pool(builder, &pool), 0);
    IS(slb_builder_backend(builder, 0, &one), 0);
    IS(slb_builder_health(builder, 0), 0);
    IS(slb_builder_rule(builder, &first), 0);
    IS(slb_builder_rule(builder, &second), 1);
    IS(slb_builder_rule_health(builder, 0, 0), SLB_OK);
    slb_snapshot *snapshot = NULL, *before = NULL;
    slb_mux *mux = NULL;
    slb_mux_options options;
    slb_mux_options_init(&options);
    options.flows = 64, options.key[0] = 1;
    IS(slb_snapshot_new(builder, NULL, &snapshot), SLB_OK);
    IS(slb_mux_new(snapshot, &options, &mux), SLB_OK);
    for (uint8_t healthy = 2; healthy-- > 0;) {
        IS(slb_builder_set_health(builder, 0, 0, healthy, -1), SLB_OK);
        IS(slb_snapshot_new(builder, snapshot, &snapshot), SLB_OK);
        IS(slb_mux_install(mux, snapshot, &before), SLB_OK);
        IS(slb_snapshot_free(before), SLB_OK);
        for (uint8_t port = 80; port <= 81; port++) {
            uint8_t buffer[512] = {0};
            const uint8_t syn[] = {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0,         /* Ethernet */
                                   0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0,         /* IPv4 */
                                   10, 9, 9, 1, 20, 20, 20, 100,                    /* who, the VIP */
                                   4, healthy, 0, port, 0, 0, 0, 1, 0, 0, 0, 0,     /* TCP */
                                   0x50, 2, 1, 0, 0, 0, 0, 0};
            memcpy(buffer + 256, syn, sizeof syn);
            right_header(buffer + 256 + 14);
            slb_frame frame = {buffer, sizeof buffer, 256, sizeof syn, 0, 0, 0};
            slb_verdict verdict;
            IS(slb_mux_process(mux, 1, &frame, 1, &verdict), 1);
            int is_refused = verdict.action == SLB_DROP &&
                             strcmp(slb_drop_reason(verdict.reason), "no_backend") == 0;
            assert(is_refused == (port == 80 && !healthy));
            assert(is_refused || verdict.action == SLB_FORWARD);
        }
    }
    IS(slb_mux_free(mux), SLB_OK);
    IS(slb_snapshot_free(snapshot), SLB_OK);
    IS(slb_builder_free(builder), SLB_OK);
}

static void health(void) {
    slb_health health;
    slb_probe probe = {5000000000, 1000000000, 2};
    IS(slb_health_init(NULL, &probe, 1, 0, 0), SLB_ERROR_NULL);
    IS(slb_health_init(&health, NULL, 1, 0, 0), SLB_ERROR_NULL);
    IS(slb_health_init(ODD(slb_health, &health), &probe, 1, 0, 0), SLB_ERROR_ALIGNMENT);
    probe.threshold = 0;
    IS(slb_health_init(&health, &probe, 1, 0, 0), SLB_ERROR_RANGE);
    probe.threshold = 2, probe.interval = 0;
    IS(slb_health_init(&health, &probe, 1, 0, 0), SLB_ERROR_RANGE);
    probe.interval = 5000000000;
    IS(slb_health_init(&health, &probe, 1, 0, 0), SLB_OK);
    assert(slb_health_due(NULL) == UINT64_MAX && slb_health_due(&health) == 0);
    IS(slb_health_begin(NULL, 0), SLB_ERROR_NULL);
    IS(slb_health_succeeded(&health), SLB_UNCHANGED); /* of no probe */
    for (uint64_t i = 0; i < 2; i++) {
        IS(slb_health_begin(&health, i * 5000000000), 1);
        IS(slb_health_begin(&health, i * 5000000000), 0);
        IS(slb_health_expire(&health, i * 5000000000), SLB_UNCHANGED);
        IS(slb_health_expire(&health, i * 5000000000 + 1000000000),
           i == 0 ? SLB_UNCHANGED : SLB_NOW_UNHEALTHY);
    }
    IS(slb_health_is_healthy(&health), 0);
    IS(slb_health_begin(&health, 10000000000), 1);
    IS(slb_health_failed(&health), SLB_UNCHANGED);
}

static void configs(void) {
    slb_config *config = NULL;
    slb_snapshot *snapshot = NULL;
    slb_mux_options mux;
    slb_nat_options nat;
    char faults[64];
    const char *bad = "[node]\nrole = \"hub\"\n";
    memset(faults, 'x', sizeof faults);
    IS(slb_config_parse(NULL, 1, faults, sizeof faults, &config), SLB_ERROR_NULL);
    IS(slb_config_parse(bad, strlen(bad), faults, sizeof faults, NULL), SLB_ERROR_NULL);
    IS(slb_config_parse("\xff", 1, faults, sizeof faults, &config), SLB_ERROR_RANGE);
    IS(slb_config_parse(bad, strlen(bad), faults, sizeof faults, &config), SLB_ERROR_CONFIGURATION);
    assert(config == NULL && strlen(faults) == sizeof faults - 1);
    assert(strncmp(faults, "configuration:1: node", 21) == 0 || strstr(faults, "role"));
    IS(slb_config_parse(bad, strlen(bad), faults, 1, &config), SLB_ERROR_CONFIGURATION);
    assert(faults[0] == 0);
    IS(slb_config_parse(bad, strlen(bad), faults, 0, &config), SLB_ERROR_CONFIGURATION);
    IS(slb_config_parse(bad, strlen(bad), NULL, 0, &config), SLB_ERROR_CONFIGURATION);
    const char *good = "[node]\nrole = \"proxy\"\n[[pool]]\nname = \"p\"\n"
                       "backends = [{ name = \"b\", address = \"10.0.0.1\" }]\n"
                       "[[frontend]]\nname = \"f\"\naddress = \"20.20.20.100\"\n"
                       "[[probe]]\nname = \"tcp\"\nprotocol = \"tcp\"\nport = 80\n"
                       "[[rule]]\nname = \"plain\"\nfrontend = \"f\"\npool = \"p\"\n"
                       "protocol = \"tcp\"\nfrontend_port = 81\n"
                       "[[rule]]\nname = \"probed\"\nfrontend = \"f\"\npool = \"p\"\n"
                       "protocol = \"tcp\"\nfrontend_port = 80\nprobe = \"tcp\"\n";
    IS(slb_config_parse(good, strlen(good), NULL, 0, &config), SLB_OK);
    IS(slb_config_role(NULL), SLB_ERROR_NULL);
    IS(slb_config_role(config), SLB_PROXY);
    slb_mux_options_init(&mux);
    slb_nat_options_init(&nat);
    IS(slb_config_mux_options(config, NULL), SLB_ERROR_NULL);
    IS(slb_config_mux_options(config, &mux), SLB_OK);
    IS(slb_config_nat_options(NULL, &nat), SLB_ERROR_NULL);
    IS(slb_config_nat_options(config, &nat), SLB_OK);
    IS(slb_config_set_backend(config, NULL, 1, 0), SLB_ERROR_NULL);
    IS(slb_config_set_backend(config, "none", 1, 0), SLB_ERROR_RANGE);
    IS(slb_config_set_backend(config, "p/b", 1, 3), SLB_ERROR_RANGE);
    IS(slb_config_set_backend(config, "p/b", 1, SLB_DRAINING), SLB_OK);
    IS(slb_config_set_condition(config, NULL, 0), SLB_ERROR_NULL);
    IS(slb_config_set_condition(config, "none", 0), SLB_ERROR_RANGE);
    IS(slb_config_set_condition(config, "p/b", 0), SLB_OK);
    IS(slb_config_set_health(config, NULL, "b", 1), SLB_ERROR_NULL);
    IS(slb_config_set_health(config, "none", "b", 1), SLB_ERROR_RANGE);
    IS(slb_config_set_health(config, "plain", "b", 1), SLB_ERROR_RANGE); /* no probe */
    IS(slb_config_set_health(config, "probed", "none", 1), SLB_ERROR_RANGE);
    IS(slb_config_set_health(config, "probed", "b", 0), SLB_OK);
    IS(slb_config_snapshot(config, NULL, NULL), SLB_ERROR_NULL);
    IS(slb_config_snapshot(config, (slb_snapshot *)&nat, &snapshot), SLB_ERROR_HANDLE);
    IS(slb_config_snapshot(config, NULL, &snapshot), SLB_OK);
    IS(slb_config_free(config), SLB_OK);
    IS(slb_config_free(NULL), SLB_OK);
    IS(slb_config_free((slb_config *)snapshot), SLB_ERROR_HANDLE);
    IS(slb_snapshot_free(snapshot), SLB_OK);
}

/* A handle gets no snapshot of another role, and none that does not follow its own. */
static void lineage(slb_mux *mux, slb_host *host, slb_proxy *proxy, slb_snapshot *snapshot,
                    slb_snapshot *of_proxy, slb_snapshot *other) {
    slb_mux_options options;
    slb_nat_options nat;
    slb_mux_options_init(&options);
    slb_nat_options_init(&nat);
    options.key[0] = nat.key[0] = 1;
    slb_mux *no_mux = NULL;
    slb_host *no_host = NULL;
    slb_proxy *no_proxy = NULL;
    assert(slb_mux_size(of_proxy, &options) == 0 && slb_proxy_size(snapshot, &nat) == 0);
    IS(slb_mux_new(of_proxy, &options, &no_mux), SLB_ERROR_ROLE);
    IS(slb_host_new(of_proxy, &nat, &no_host), SLB_ERROR_ROLE);
    IS(slb_proxy_new(snapshot, &nat, &no_proxy), SLB_ERROR_ROLE);
    assert(no_mux == NULL && no_host == NULL && no_proxy == NULL);
    IS(slb_mux_install(mux, of_proxy, NULL), SLB_ERROR_ROLE);
    IS(slb_host_install(host, of_proxy, NULL), SLB_ERROR_ROLE);
    IS(slb_proxy_install(proxy, snapshot, NULL), SLB_ERROR_ROLE);
    slb_snapshot *before = NULL;
    IS(slb_proxy_install(proxy, other, &before), SLB_ERROR_LINEAGE);
    assert(before == NULL && strstr(slb_strerror(SLB_ERROR_LINEAGE), "as `previous`"));
    assert(strstr(slb_strerror(SLB_ERROR_ROLE), "another role"));
}

/* What a host does with a datagram of its vm to an IPv4 address. */
static slb_verdict of_vm_to(slb_host *host, uint8_t a, uint8_t b) {
    uint8_t buffer[512] = {0};
    const uint8_t datagram[] = {2, 0, 0, 0, 0, 1, 2, 0, 10, 10, 1, 1, 8, 0, /* Ethernet */
                                0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0,  /* IPv4 */
                                10, 10, 1, 1, a, b, 0, 1,                  /* the vm, to whom */
                                4, 1, 0, 53, 0, 8, 0, 0};                  /* UDP */
    memcpy(buffer + 256, datagram, sizeof datagram);
    right_header(buffer + 256 + 14);
    slb_frame frame = {buffer, sizeof buffer, 256, sizeof datagram, 7, 0, 0};
    slb_verdict verdict;
    IS(slb_host_process(host, 1, &frame, 1, &verdict), 1);
    return verdict;
}

/* Which addresses are inside is the caller's to say; what is not needs an outbound rule. */
static void inside(void) {
    slb_address prefix;
    memset(&prefix, 0, sizeof prefix);
    prefix.family = 4, prefix.bytes[0] = 198, prefix.bytes[1] = 19;
    /* The usual prefixes; one of the caller's; none. */
    for (int given = 0; given < 3; given++) {
        slb_capacity capacity;
        memset(&capacity, 0, sizeof capacity);
        capacity.frontends = capacity.pools = capacity.backends = capacity.rules = 1;
        capacity.inside = 1;
        slb_builder *builder = NULL;
        IS(slb_builder_new(&capacity, &builder), SLB_OK);
        slb_underlay underlay;
        memset(&underlay, 0, sizeof underlay);
        underlay.ipv4 = ipv4(11);
        slb_frontend web = frontend();
        slb_pool pool = {"servers", 5001, 251};
        slb_backend one = backend("one", 1);
        one.host = underlay.ipv4, one.port = 7;
        slb_rule http = rule();
        IS(slb_builder_underlay(builder, &underlay), SLB_OK);
        IS(slb_builder_frontend(builder, &web), 0);
        IS(slb_builder_pool(builder, &pool), 0);
        IS(slb_builder_backend(builder, 0, &one), 0);
        IS(slb_builder_rule(builder, &http), 0);
        if (given == 1) IS(slb_builder_inside(builder, &prefix, 15), 0);
        if (given == 2) IS(slb_builder_inside(builder, NULL, 0), 0);
        slb_snapshot *snapshot = NULL;
        slb_host *host = NULL;
        slb_nat_options options;
        slb_nat_options_init(&options);
        options.connections = 64, options.key[0] = 1;
        IS(slb_snapshot_new(builder, NULL, &snapshot), SLB_OK);
        IS(slb_builder_free(builder), SLB_OK);
        IS(slb_host_new(snapshot, &options, &host), SLB_OK);
        slb_verdict private = of_vm_to(host, 10, 200), own = of_vm_to(host, 198, 18);
        assert(private.action == (given == 0 ? SLB_PASS : SLB_DROP));
        assert(own.action == (given == 1 ? SLB_PASS : SLB_DROP));
        if (given == 2) assert(strcmp(slb_drop_reason(own.reason), "no_outbound_rule") == 0);
        IS(slb_host_free(host), SLB_OK);
        IS(slb_snapshot_free(snapshot), SLB_OK);
    }
}

/* A builder says everything that is wrong, by name. */
static void faults(void) {
    slb_capacity capacity;
    memset(&capacity, 0, sizeof capacity);
    capacity.rules = 2;
    slb_builder *builder = NULL;
    char text[512], few[8];
    IS(slb_builder_faults(NULL, text, sizeof text), SLB_ERROR_NULL);
    IS(slb_builder_new(&capacity, &builder), SLB_OK);
    IS(slb_builder_faults(builder, text, sizeof text), 0);
    assert(text[0] == 0);
    slb_rule rule;
    memset(&rule, 0, sizeof rule);
    rule.name = "http", rule.frontend = 3, rule.pool = 2, rule.frontend_port = 80;
    IS(slb_builder_rule(builder, &rule), 0);
    rule.name = "dns", rule.frontend_port = 0;
    IS(slb_builder_rule(builder, &rule), 1);
    IS(slb_builder_faults(builder, NULL, 0), 5);
    IS(slb_builder_faults(builder, text, sizeof text), 5);
    assert(strstr(text, "rule \"http\": frontend 3 does not exist, there are 0\n"));
    assert(strstr(text, "rule \"dns\": pool 2 does not exist, there are 0\n"));
    IS(slb_builder_faults(builder, few, sizeof few), 5);
    assert(strcmp(few, "rule \"h") == 0);
    IS(slb_builder_faults(builder, text, 0), 5);
    slb_snapshot *snapshot = NULL;
    IS(slb_snapshot_new(builder, NULL, &snapshot), SLB_ERROR_CONFIGURATION);
    IS(slb_builder_free(builder), SLB_OK);
}

/* An observer hears each step of each frame; options change in place. */
static void observed(slb_mux *mux, slb_host *host, slb_proxy *proxy) {
    static uint8_t buffers[2][256];
    slb_frame frames[2] = {{buffers[0], 256, 100, 60, 0, 0, 0}, {buffers[1], 256, 100, 60, 0, 0, 0}};
    struct seen seen;
    memset(&seen, 0, sizeof seen);
    IS(slb_mux_process_observed(mux, 9, frames, 2, NULL, &seen), SLB_ERROR_NULL);
    IS(slb_mux_process_observed(NULL, 9, frames, 2, see, &seen), SLB_ERROR_NULL);
    IS(slb_mux_process_observed((slb_mux *)host, 9, frames, 2, see, &seen), SLB_ERROR_HANDLE);
    IS(slb_mux_process_observed(mux, 9, NULL, 2, see, &seen), SLB_ERROR_NULL);
    IS(slb_mux_process_observed(mux, 9, NULL, 0, see, &seen), 0);
    assert(seen.steps == 0);
    IS(slb_mux_process_observed(mux, 9, frames, 2, see, &seen), 2);
    assert(seen.verdicts == 2 && strcmp(seen.last, "pass, untouched") == 0);
    IS(slb_host_process_observed(host, 9, frames, 2, see, &seen), 2);
    IS(slb_proxy_process_observed(proxy, 9, frames, 2, see, &seen), 2);
    assert(seen.verdicts == 6);
    slb_mux_options options;
    slb_nat_options nat;
    slb_mux_options_init(&options);
    slb_nat_options_init(&nat);
    IS(slb_mux_set_options(NULL, &options), SLB_ERROR_NULL);
    IS(slb_mux_set_options(mux, NULL), SLB_ERROR_NULL);
    IS(slb_mux_set_options((slb_mux *)proxy, &options), SLB_ERROR_HANDLE);
    IS(slb_mux_set_options(mux, &options), SLB_OK);
    IS(slb_host_set_options(NULL, &nat), SLB_ERROR_NULL);
    IS(slb_host_set_options(host, &nat), SLB_OK);
    IS(slb_proxy_set_options(NULL, &nat), SLB_ERROR_NULL);
    IS(slb_proxy_set_options(proxy, &nat), SLB_OK);
}

int main(void) {
    strings();
    messages();
    faults();
    slb_builder *builder = builders();
    slb_snapshot *snapshot = snapshots(builder);
    slb_snapshot *of_proxy = NULL, *other = NULL;
    IS(slb_builder_proxy(builder, 0, 1), SLB_OK);
    IS(slb_snapshot_new(builder, NULL, &of_proxy), SLB_OK);
    IS(slb_snapshot_new(builder, NULL, &other), SLB_OK);
    IS(slb_builder_free(builder), SLB_OK);
    slb_mux *mux = muxs(snapshot);
    slb_host *host = hosts(snapshot);
    slb_proxy *proxy = proxys(of_proxy);
    lineage(mux, host, proxy, snapshot, of_proxy, other);
    flows(mux, host, proxy);
    frames_of(mux);
    observed(mux, host, proxy);
    sources(snapshot);
    health();
    health_by_rule();
    inside();
    configs();
    IS(slb_mux_free((slb_mux *)host), SLB_ERROR_HANDLE);
    IS(slb_mux_free(mux), SLB_OK);
    IS(slb_host_free(host), SLB_OK);
    IS(slb_snapshot_free(of_proxy), SLB_ERROR_IN_USE);
    IS(slb_proxy_free(proxy), SLB_OK);
    IS(slb_snapshot_free(snapshot), SLB_OK);
    IS(slb_snapshot_free(of_proxy), SLB_OK);
    IS(slb_snapshot_free(other), SLB_OK);
    puts("every misuse was seen");
    return 0;
}

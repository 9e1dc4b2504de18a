/* A mux in C that has nothing: no libc, no allocator. All memory is static.
 *
 * It builds a configuration field by field, sends one packet, takes a backend out, and ends with
 * status 0, or with another where something went wrong. Linux on x86-64 is only the stage.
 */
#define SLB_FREESTANDING
#include <slb.h>

static _Alignas(64) uint8_t builder_memory[8192], snapshot_memory[2][32768], mux_memory[1 << 20];
static uint8_t buffer[256];

/* A SYN from 198.51.100.10:50000 to 20.20.20.100:80. */
static const uint8_t syn[54] = {
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00,
    0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0xe8, 0x1a, 198, 51, 100, 10, 20, 20, 20, 100,
    0xc3, 0x50, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0,
};

static slb_address ipv4(uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
    slb_address address = {4, {a, b, c, d}};
    return address;
}

static slb_builder *configure(void) {
    slb_capacity capacity = {0};
    capacity.frontends = capacity.pools = capacity.rules = 1;
    capacity.backends = 2;
    slb_builder *builder;
    if (slb_builder_init(builder_memory, sizeof builder_memory, &capacity, &builder) < 0) return 0;
    slb_underlay underlay = {0};
    underlay.ipv4 = ipv4(172, 16, 0, 11);
    slb_frontend frontend = {"web", ipv4(20, 20, 20, 100), 0};
    slb_pool pool = {"servers", 5001, 251};
    slb_rule rule = {0};
    rule.name = "http";
    rule.frontend_port = rule.backend_port = 80;
    rule.protocol = SLB_TCP;
    int result = slb_builder_underlay(builder, &underlay) | slb_builder_frontend(builder, &frontend)
        | slb_builder_pool(builder, &pool) | slb_builder_rule(builder, &rule);
    for (uint8_t i = 1; i <= 2; i++) {
        slb_backend backend = {0};
        backend.name = i == 1 ? "vm1" : "vm2";
        backend.address = ipv4(10, 10, 1, i);
        backend.host = ipv4(172, 16, 0, (uint8_t)(100 + i));
        result |= slb_builder_backend(builder, 0, &backend);
    }
    return result < 0 ? 0 : builder;
}

static int run(void) {
    slb_builder *builder = configure();
    slb_snapshot *snapshot, *next, *before;
    if (!builder) return 1;
    if (slb_snapshot_size(builder, 0) > sizeof snapshot_memory[0]) return 2;
    if (slb_snapshot_init(snapshot_memory[0], sizeof snapshot_memory[0], builder, 0, &snapshot)) return 3;
    slb_mux_options options;
    slb_mux_options_init(&options);
    options.flows = 1000;
    options.key[0] = 0x0123456789abcdef; /* yours: from the machine's source of random numbers */
    options.key[1] = 0xfedcba9876543210;
    slb_mux *mux;
    if (slb_mux_size(snapshot, &options) > sizeof mux_memory) return 4;
    if (slb_mux_init(mux_memory, sizeof mux_memory, snapshot, &options, &mux)) return 5;
    uint8_t hosts[2];
    for (int i = 0; i < 2; i++) {
        for (unsigned at = 0; at < sizeof syn; at++) buffer[SLB_HEADROOM + at] = syn[at];
        slb_frame frame = {buffer, sizeof buffer, SLB_HEADROOM, sizeof syn, 0, 0, 0};
        slb_verdict verdict;
        if (slb_mux_process(mux, 1000000000u * (1u + (unsigned)i), &frame, 1, &verdict) != 1) return 6;
        if (verdict.action != SLB_FORWARD || frame.length != sizeof syn + 50) return 7;
        hosts[i] = buffer[frame.offset + 33];
        if (i == 1) break;
        /* The one that it went to fails: its SYN goes to the other. */
        if (slb_builder_set_condition(builder, 0, hosts[0] - 101u, 0)) return 8;
        if (slb_snapshot_init(snapshot_memory[1], sizeof snapshot_memory[1], builder, snapshot, &next)) return 9;
        if (slb_snapshot_free(snapshot) != SLB_ERROR_IN_USE) return 10;
        if (slb_mux_install(mux, next, &before) || before != snapshot) return 11;
        if (slb_snapshot_free(snapshot)) return 12;
    }
    return hosts[0] == hosts[1] ? 13 : 0;
}

/* What the compiler and the library call, and a libc would bring. */
void *memcpy(void *to, const void *from, size_t count) {
    uint8_t *a = to;
    const uint8_t *b = from;
    while (count--) *a++ = *b++;
    return to;
}
void *memmove(void *to, const void *from, size_t count) {
    uint8_t *a = to;
    const uint8_t *b = from;
    if (a < b) return memcpy(to, from, count);
    while (count--) a[count] = b[count];
    return to;
}
void *memset(void *to, int byte, size_t count) {
    uint8_t *a = to;
    while (count--) *a++ = (uint8_t)byte;
    return to;
}
int memcmp(const void *left, const void *right, size_t count) {
    const uint8_t *a = left, *b = right;
    for (; count--; a++, b++)
        if (*a != *b) return *a - *b;
    return 0;
}
int bcmp(const void *left, const void *right, size_t count) { return memcmp(left, right, count); }
size_t strlen(const char *text) {
    size_t length = 0;
    while (text[length]) length++;
    return length;
}

__attribute__((force_align_arg_pointer)) void _start(void) {
    int status = run();
    __asm__ volatile("syscall" : : "a"(60), "D"(status) : "rcx", "r11", "memory");
    __builtin_unreachable();
}
